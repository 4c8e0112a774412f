"""Trials on Ray Tune with explicit resources, or one after another in this process.

Neither changes a number: a trial is a function of recipe, seed and data. What is finished stays; a
trial whose worker dies is started again and goes on from its last checkpoint.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

from tqdm import tqdm

from harness.errors import UserError
from harness.live import Display
from harness.recipes import expand
from harness.running import run
from harness.trial import Options, Prepared, Trial, inspect, prepare, source_of

#: Seconds between two reports of a running trial.
REPORT_SECONDS = 1.0


@dataclass(frozen=True)
class Resources:
    """What trials may use.

    Attributes:
        cpus_per_trial: cores of one trial, its loader workers included.
        gpus_per_trial: GPUs of one trial; a fraction lets several share one (bookkeeping, not a limit
            of memory).
        max_concurrent: most trials at a time; as many as fit by default.
        address: a running Ray cluster to join; a local Ray starts without it.
        retries: how often a trial whose worker died is started again.
    """

    cpus_per_trial: float = 1.0
    gpus_per_trial: float = 0.0
    max_concurrent: int | None = None
    address: str | None = None
    retries: int = 3


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: ``finished``, ``kept`` (it was finished before) or ``failed``."""

    trial: Trial
    status: str
    reason: str = ""
    seconds: float = 0.0


def plan(targets: Sequence[str], seeds: Sequence[int], overrides: Mapping[str, Any]) -> list[Trial]:
    """One trial for each recipe of the targets and each seed."""
    return [Trial(name, seed, dict(overrides)) for name, seed in product(expand(targets), seeds)]


def waves(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Trials in the order in which they can run: those whose labels another trial makes come after it.

    Sources that were not asked for are added.
    """
    depth: dict[Trial, int] = {}

    def place(trial: Trial) -> int:
        if trial not in depth:
            source = source_of(trial)
            depth[trial] = 0 if source is None else place(source) + 1
        return depth[trial]

    for trial in trials:
        place(trial)
    return [
        [t for t, d in depth.items() if d == level] for level in range(max(depth.values(), default=-1) + 1)
    ]


def execute(trials: Sequence[Trial], options: Options, resources: Resources | None) -> list[Outcome]:
    """Check all trials, then run them, wave by wave; what can go wrong before training does so first.

    Args:
        trials: from :func:`plan`.
        options: where and how.
        resources: for Ray; None runs one trial after another in this process.

    Raises:
        UserError: a mistake was found before the first trial ran.
    """
    ordered = waves(trials)
    quiet = not sys.stderr.isatty()
    for trial in tqdm([t for wave in ordered for t in wave], desc="checking", disable=quiet, leave=False):
        inspect(trial, options)
    outcomes: list[Outcome] = []
    with ExitStack() as session:
        for number, wave in enumerate(ordered):
            prepared = []
            for trial in wave:
                try:
                    prepared.append(prepare(trial, options))
                except UserError as error:
                    if number == 0:
                        raise
                    outcomes.append(Outcome(trial, "failed", str(error)))
                    tqdm.write(f"failed   {trial}\n{error}", file=sys.stderr)
            if resources is None or all(p.done for p in prepared):
                outcomes += run_local(prepared)
                continue
            if start_ray(resources):  # once, for all waves
                session.callback(_stop_ray)
            outcomes += run_ray(prepared, resources)
    return outcomes


def guarded(prepared: Prepared, work: Callable[[], Any]) -> Outcome | None:
    """Run a piece of a trial; an error becomes a failed outcome, recorded in the trial's folder."""
    try:
        work()
    except UserError as error:
        return Outcome(prepared.trial, "failed", str(error))
    except Exception as error:
        file = prepared.folder / "error.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(traceback.format_exc(), encoding="utf-8")
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        return Outcome(prepared.trial, "failed", f"{type(error).__name__}: {first}\n  where:  {file}")
    return None


def run_local(prepared: Sequence[Prepared]) -> list[Outcome]:
    """All trials, one after another, in this process."""
    display = Display(prepared)
    outcomes = []
    try:
        for one in prepared:
            if one.done:
                outcome = Outcome(one.trial, "kept")
            else:
                clock = time.monotonic()

                def work(one: Prepared = one) -> None:
                    for status in run(one):
                        display.update(one.trial, status)

                failed = guarded(one, work)
                outcome = failed or Outcome(one.trial, "finished", seconds=time.monotonic() - clock)
            display.end(one, outcome)
            outcomes.append(outcome)
    finally:
        display.close()
    return outcomes


# --- Ray ---------------------------------------------------------------------------------------------


def run_ray(prepared: Sequence[Prepared], resources: Resources) -> list[Outcome]:
    """All trials on Ray Tune, as many at a time as their resources allow, the longest first.

    Ray must run (:func:`start_ray`).
    """
    open_trials = [p for p in prepared if not p.done]
    outcomes = {p.trial: Outcome(p.trial, "kept") for p in prepared if p.done}
    display = Display(prepared)
    try:
        for one in prepared:
            if one.trial in outcomes:
                display.end(one, outcomes[one.trial])
        if open_trials:
            from harness.ray_trials import run_trials  # imports Ray

            outcomes |= run_trials(
                sorted(open_trials, key=lambda p: p.cost, reverse=True), resources, display
            )
    finally:
        display.close()
    if any(p.trial not in outcomes for p in prepared):
        raise KeyboardInterrupt  # Tune swallows Ctrl-C and returns what has ended so far
    return [outcomes[p.trial] for p in prepared]


def start_ray(resources: Resources) -> bool:
    """Start a local Ray, or join a cluster; True if it was started here.

    Raises:
        UserError: Ray is not usable here, or has too little for one trial.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    if resources.address is None:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    try:
        import ray
    except ImportError as error:
        raise UserError(
            f"Ray cannot be imported: {error}", remedy="install ray[tune], or use --local"
        ) from error
    mine = not ray.is_initialized()
    if mine:
        local: dict[str, Any] = (
            {} if resources.address else {"object_store_memory": 128 * 2**20, "include_dashboard": False}
        )
        start = partial(ray.init, address=resources.address, log_to_driver=False, logging_level=logging.ERROR)
        try:
            try:
                start(**local)
            except Exception as error:
                if "timed out during startup" not in str(error):
                    raise
                start(**local)  # a busy machine; Ray waits half a minute and no longer
        except Exception as error:  # Ray raises bare exceptions too
            raise UserError(
                f"Ray did not start: {(str(error).splitlines() or [type(error).__name__])[0]}",
                where=resources.address or "a local Ray",
                remedy="check --address, or use --local",
            ) from error
    there = ray.cluster_resources()
    for kind, wanted in (("CPU", resources.cpus_per_trial), ("GPU", resources.gpus_per_trial)):
        if wanted > there.get(kind, 0):
            if mine:
                ray.shutdown()
            raise UserError(
                f"one trial asks for {wanted:g} {kind}, the cluster has {there.get(kind, 0):g}",
                where=f"--{kind.lower()}s-per-trial",
                remedy="ask for less",
            )
    return mine


def _stop_ray() -> None:
    import ray

    ray.shutdown()
