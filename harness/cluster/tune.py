"""What trials of runs and of searches have in common on Ray Tune. Importing this module imports Ray.

Tune places, starts again and counts. Its own checkpoints and states stay empty: trials keep checkpoints in
the record store, and what is to be done next follows from what is on disk.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from harness import faults

#: Seconds between two reports of a running trial.
REPORT_SECONDS = 1.0


class Worker(tune.Trainable):
    """A worker process that takes one trial after another, each of which keeps its own checkpoints."""

    def reset_config(self, new_config: dict) -> bool:
        """Take another trial."""
        self.setup(new_config)
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: trials write their own."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: trials find their own."""


class Supplier(Searcher):
    """Gives Tune one trial after another, as ``{"job": job}``; nothing is optimised by Tune itself."""

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher to disk; nobody reads that."""
        return {}

    def set_search_properties(self, metric: Any, mode: Any, config: dict, **spec: Any) -> bool:
        """Nothing to set."""
        return True

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Nothing, unless the supplier wants to hear of it."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the state is on disk already."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the state is on disk already."""


def fit(
    worker: type[Worker],
    resources: Any,
    supplier: Supplier,
    retries: int,
    callbacks: Sequence[tune.Callback] = (),
    **choices: Any,
) -> None:
    """Run what a supplier gives, until it has nothing more.

    Args:
        worker: runs ``config["job"]``, which has a ``number``.
        resources: of a trial, as ``tune.with_resources`` takes them.
        supplier: gives trials.
        retries: how often a trial is started again whose worker died, or raised.
        callbacks: hear of what happens.
        choices: further fields of ``tune.TuneConfig``.
    """
    with tempfile.TemporaryDirectory(prefix="wsss-tune-", ignore_cleanup_errors=True) as scratch:
        tune.Tuner(
            tune.with_resources(worker, resources),
            tune_config=tune.TuneConfig(
                search_alg=supplier,
                reuse_actors=True,
                trial_name_creator=_short_name,
                trial_dirname_creator=_short_name,
                **choices,
            ),
            run_config=tune.RunConfig(
                name="wsss",
                storage_path=scratch,
                verbose=0,
                callbacks=list(callbacks),
                failure_config=tune.FailureConfig(max_failures=retries),
            ),
        ).fit()


def _short_name(trial: Any) -> str:
    return f"trial-{trial.config['job'].number}"


def all_words(trial: Any) -> str:
    """What Tune has noted about the failed attempts of a trial."""
    try:
        return faults.printable_lines(Path(trial.error_file).read_text(encoding="utf-8", errors="replace"))
    except (OSError, TypeError):
        return "its worker died"


def last_words(trial: Any) -> str:
    """Why the last attempt of a trial failed, in one line: the error itself, or how its worker died."""
    try:
        error = trial.get_pickled_error()
    except Exception:  # it may be of a class that cannot be made again
        error = None
    if isinstance(getattr(error, "cause", None), BaseException):
        return faults.first_line(error.cause).removeprefix("TransientFault: ")
    last = faults.printable(all_words(trial).rpartition("Failure # ")[2])
    lines = [line.strip() for line in last.splitlines()[1:] if line.strip()]
    memory = [line for line in lines[1:] if "memory" in line.lower()]
    return " ".join([*lines[:1], *memory[:1]]) or "its worker died"


def tried(retries: int, trial: Any) -> str:
    """How often a trial was tried, and why it failed in the end."""
    times = "once" if retries == 0 else f"{retries + 1} times"
    return f"tried {times}: {last_words(trial)}"
