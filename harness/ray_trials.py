"""Trials as Ray Tune trainables. Importing this module imports Ray."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ray import tune

from harness import interruption
from harness.errors import UserError
from harness.execution import REPORT_SECONDS, Outcome, Resources, guarded, record_error
from harness.faults import TransientFault
from harness.live import Display
from harness.remote import reported
from harness.running import record_failure, run
from harness.training import Status
from harness.trial import Options, Prepared, Trial, prepare


class Steps:
    """A trial in pieces of about :data:`REPORT_SECONDS`, as a Tune trainable reports them."""

    def __init__(self, trial: Trial, options: Options) -> None:
        self.prepared = prepare(trial, options)
        self.work: Iterator = run(self.prepared)
        self.status, self.clock = Status(0, self.prepared.steps, 0.0), time.monotonic()
        self.begun = False

    def piece(self) -> dict[str, Any]:
        """Go on for a while; the last piece says ``done``."""
        until = time.monotonic() + REPORT_SECONDS
        ended, self.begun = False, True

        def work() -> None:
            nonlocal ended
            for status in self.work:
                self.status = status.after(self.status)
                if time.monotonic() > until:
                    return
            ended = True

        # A transient fault ends this process: Tune starts the trial again in a new one.
        other = guarded(self.prepared, work, again=True)
        ended = ended or other is not None
        self.begun = not ended
        return _report(self.status, ended, time.monotonic() - self.clock, other)

    def leave(self) -> None:
        """Let a trial that stands between two pieces write a checkpoint."""
        if not self.begun:
            return
        interruption.note()
        try:
            next(self.work, None)
        except KeyboardInterrupt:
            pass
        finally:
            interruption.forget()


def _report(status: Status | None, done: bool, wall: float, other: Outcome | None = None) -> dict[str, Any]:
    """What a worker tells the driver; ``other`` is an outcome that is not ``finished``."""
    ended = None if other is None else (other.status, other.reason)
    return {"status": status, "done": done, "wall": wall, "other": ended}


class Actor(tune.Trainable):
    """A worker process; it takes one trial after another, each of which keeps its own checkpoints."""

    def setup(self, config: dict) -> None:
        """Note the trial; it is prepared with its first step."""
        self.steps: Steps | None = None
        self.job = config["job"]

    def reset_config(self, new_config: dict) -> bool:
        """Take another trial."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Go on for about :data:`REPORT_SECONDS`."""
        if self.steps is None:
            try:
                self.steps = Steps(self.job["trial"], self.job["options"])
            except UserError as error:  # the data changed since the driver looked
                return _report(None, True, 0.0, Outcome(self.job["trial"], "failed", str(error)))
        return self.steps.piece()

    def cleanup(self) -> None:
        """The run is interrupted, or there is no other trial to take."""
        if self.steps is not None:
            self.steps.leave()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: trials write their own."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: trials find their own."""


class Watch(tune.Callback):
    """Passes Tune's events to the display and collects outcomes.

    Args:
        prepared: trials in the order of their index.
        display: progress in the terminal.
        retries: how often a dead worker's trial is started again.
    """

    def __init__(self, prepared: Sequence[Prepared], display: Display, retries: int) -> None:
        self.prepared, self.display, self.retries = prepared, display, retries
        self.outcomes: dict[Trial, Outcome] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks to disk; a terminal cannot be pickled and is not needed there."""
        return {}

    def _end(self, index: int, outcome: Outcome) -> None:
        if outcome.trial not in self.outcomes:
            self.outcomes[outcome.trial] = outcome
            self.display.end(self.prepared[index], outcome)

    def _look(self, index: int) -> None:
        """See what a trial has left that may have run on another node."""
        with reported():
            self.prepared[index].store.pull(self.prepared[index].folder)

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        """Progress, or the last report of a trial."""
        if "status" not in result:
            return
        index = trial.config["job"]["index"]
        own = self.prepared[index].trial
        if result["done"]:
            self._look(index)
        if result["other"] is not None:
            status, reason = result["other"]
            if status == "failed" and self.prepared[index].record is None:  # the worker could not prepare it
                reason = record_failure(self.prepared[index], reason)
            self._end(index, Outcome(own, status, reason))
        elif result["done"]:
            self._end(index, Outcome(own, "finished", seconds=result["wall"]))
        else:
            self.display.update(own, result["status"])

    def on_trial_recover(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """A trial that is started again."""
        own = self.prepared[trial.config["job"]["index"]].trial
        self.display.say(f"again    {own}: {_last_words(trial)}")

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """A trial whose worker died too often; nobody else can record it."""
        index = trial.config["job"]["index"]
        self._look(index)
        fault = TransientFault(f"given up after {self.retries + 1} attempts: {_last_words(trial)}")
        reason = record_error(self.prepared[index], fault, _errors(trial))
        self._end(index, Outcome(self.prepared[index].trial, "failed", reason))


def _errors(trial: Any) -> str:
    """What Tune has noted about the deaths of a trial's workers."""
    try:
        return Path(trial.error_file).read_text(encoding="utf-8")
    except (OSError, TypeError):
        return "its worker died"


def _last_words(trial: Any) -> str:
    """The last death in one line."""
    last = _errors(trial).rpartition("Failure # ")[2]
    lines = [line.strip() for line in last.splitlines()[1:] if line.strip()]
    if any("Traceback" in line for line in lines):  # an error of the trial's, in its last line
        return lines[-1].removeprefix("harness.faults.")
    memory = [line for line in lines[1:] if "memory" in line.lower()]
    return " ".join([*lines[:1], *memory[:1]]) or "its worker died"


def run_trials(prepared: Sequence[Prepared], resources: Resources, display: Display) -> dict[Trial, Outcome]:
    """Run trials on the Ray that is up, in the order given as far as their resources allow."""
    watch = Watch(prepared, display, resources.retries)
    jobs = [{"index": i, "trial": p.trial, "options": p.options} for i, p in enumerate(prepared)]
    with tempfile.TemporaryDirectory(prefix="wsss-tune-", ignore_cleanup_errors=True) as scratch:
        tuner = tune.Tuner(
            tune.with_resources(Actor, {"cpu": resources.cpus_per_trial, "gpu": resources.gpus_per_trial}),
            param_space={"job": tune.grid_search(jobs)},
            tune_config=tune.TuneConfig(
                reuse_actors=True,
                max_concurrent_trials=resources.max_concurrent,
                trial_name_creator=_short_name,
                trial_dirname_creator=_short_name,
            ),
            run_config=tune.RunConfig(
                name="wsss",
                storage_path=scratch,
                verbose=0,
                callbacks=[watch],
                failure_config=tune.FailureConfig(max_failures=resources.retries),
            ),
        )
        tuner.fit()
    return watch.outcomes


def _short_name(trial: Any) -> str:
    return f"trial-{trial.config['job']['index']}"
