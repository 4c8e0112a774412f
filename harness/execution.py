"""Trials on Ray Tune with explicit resources, or one after another in this process.

Neither changes a number: a trial is a function of recipe, seed and data. What is finished stays; a
trial whose worker dies is started again and goes on from its last checkpoint.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from tqdm import tqdm

from harness import faults, interruption
from harness.apart import run_apart
from harness.errors import UserError
from harness.live import Display
from harness.locks import Elsewhere, is_free
from harness.recipes import expand
from harness.records import Store
from harness.running import record_failure, run
from harness.trackers import require
from harness.trial import Options, Prepared, Trial, inspect, prepare, source_of

#: Seconds between two reports of a running trial.
REPORT_SECONDS = 1.0
#: Seconds between two looks at trials that another driver runs.
POLL_SECONDS = 2.0


@dataclass(frozen=True)
class Resources:
    """What trials may use.

    Attributes:
        cpus_per_process: cores of each process of a trial, its loader workers included.
        gpus_per_process: GPUs of each process of a trial; a fraction lets trials share one (bookkeeping,
            not a limit of memory).
        max_concurrent: most trials at a time; as many as fit by default.
        address: a running Ray cluster to join; a local Ray starts without it.
        retries: how often a trial whose worker died, or met a transient fault, is started again.
    """

    cpus_per_process: float = 1.0
    gpus_per_process: float = 0.0
    max_concurrent: int | None = None
    address: str | None = None
    retries: int = faults.RETRIES


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: ``finished``, ``kept`` (it was finished before, or elsewhere) or ``failed``;
    ``busy`` while another process runs it."""

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
    require(options.trackers, options.tracking)
    ordered = waves(trials)
    store = Store(options.results, options.cache)
    store.refresh(*{trial.name for wave in ordered for trial in wave})
    quiet = not sys.stderr.isatty()
    for trial in tqdm([t for wave in ordered for t in wave], desc="checking", disable=quiet, leave=False):
        inspect(trial, options)
    with ExitStack() as session:
        session.enter_context(store.only_driver())
        session.enter_context(interruption.handled())
        return _Rounds([t for wave in ordered for t in wave], options, resources, session).run()


class _Rounds:
    """Runs what can run, again and again, until every trial has ended.

    A trial has to wait where it trains on the labels of another one, and where another driver runs it.
    """

    def __init__(
        self, trials: Sequence[Trial], options: Options, resources: Resources | None, session: ExitStack
    ) -> None:
        self.open, self.options, self.resources, self.session = list(trials), options, resources, session
        self.ended: dict[Trial, Outcome] = {}
        self.prepared: dict[Trial, Prepared] = {}
        #: Trials that another driver runs, and when the record they had was written.
        self.busy: dict[Trial, str | None] = {}

    def run(self) -> list[Outcome]:
        """Outcomes in the order of ending."""
        first, said = True, False
        while self.open:
            ready = self._ready(strict=first)
            first = False
            for outcome in self._run(ready) if ready else []:
                if outcome.status == "busy":
                    self.busy[outcome.trial] = _ended(self.prepared[outcome.trial])
                else:
                    self._end(outcome)
            if not ready and self.open:
                if not said:
                    tqdm.write(f"waiting for {len(self.busy)} trial(s) that run elsewhere", file=sys.stderr)
                said = True
                time.sleep(POLL_SECONDS)
        return list(self.ended.values())

    def _end(self, outcome: Outcome) -> None:
        self.ended[outcome.trial] = outcome
        self.open.remove(outcome.trial)

    def _ready(self, strict: bool) -> list[Prepared]:
        """Trials that can run now; a mistake found before any has run is raised."""
        found = []
        for trial in [t for t in self.open if (s := source_of(t)) is None or s in self.ended]:
            try:
                if trial not in self.prepared:
                    self.prepared[trial] = prepare(trial, self.options)
            except UserError as error:
                if strict:
                    raise
                self._end(Outcome(trial, "failed", str(error)))
                tqdm.write(f"failed   {trial}\n{error}", file=sys.stderr)
                continue
            one = self.prepared[trial]
            if trial in self.busy:
                if not one.done and not is_free(one.folder):
                    continue
                before, record = self.busy.pop(trial), one.record
                if _ended(one) != before and record is not None and not record.finished:
                    self._end(Outcome(trial, "failed", record.data["reason"]))
                    tqdm.write(f"failed   {trial} elsewhere", file=sys.stderr)
                    continue
            found.append(one)
        return found

    def _run(self, ready: list[Prepared]) -> list[Outcome]:
        if self.resources is None or all(p.done for p in ready):
            return run_local(ready)
        if start_ray(self.resources):  # once, for all rounds
            self.session.callback(_stop_ray)
        interruption.install()  # Ray has taken SIGTERM
        return run_ray(ready, self.resources)


def _ended(prepared: Prepared) -> str | None:
    """When the record of a trial was written."""
    record = prepared.record
    return None if record is None else record.data.get("ended")


def guarded(prepared: Prepared, work: Callable[[], Any], *, again: bool = False) -> Outcome | None:
    """Run a piece of a trial; an error becomes an outcome, and a failure is recorded.

    Args:
        prepared: the trial.
        work: what to do.
        again: the caller can start the trial once more, so a transient fault is left to it.

    Raises:
        Exception: a transient fault, where ``again`` is true.
    """
    try:
        work()
        return None
    except Elsewhere as found:
        return Outcome(prepared.trial, found.status, str(found))
    except Exception as error:
        if again and faults.transient(error):
            raise
        reason = record_error(prepared, error)
    gc.collect()  # the frames of the error may have kept tensors alive
    if prepared.device.type == "cuda":
        torch.cuda.empty_cache()
    return Outcome(prepared.trial, "failed", reason)


def record_error(prepared: Prepared, error: Exception, trace: str | None = None) -> str:
    """Record that an error ended a trial; returns what a user should know.

    Args:
        prepared: the trial.
        error: what happened.
        trace: for ``error.txt``; that of the error by default.
    """
    clear = faults.explained(error, prepared.resolved.recipe)
    if trace is None:
        trace = "" if clear is error else "".join(traceback.format_exception(error))
    return record_failure(prepared, str(clear or faults.first_line(error)), trace)


def run_local(prepared: Sequence[Prepared], retries: int = faults.RETRIES) -> list[Outcome]:
    """All trials, one after another, in this process.

    Should this process lose its GPU, the others run in processes of their own.
    """
    display = Display(prepared)
    outcomes = []
    here = True
    try:
        for one in prepared:
            clock, outcome = time.monotonic(), Outcome(one.trial, "kept") if one.done else None
            for left in range(retries, -1, -1):
                if outcome is not None:
                    break
                try:
                    outcome = _attempt(one, display, here=here, again=left > 0)
                except Exception as fault:
                    here = here and not faults.poisons(fault)
                    display.say(f"again    {one.trial}: {faults.first_line(fault)}")
            assert outcome is not None
            if outcome.status == "finished":
                outcome = replace(outcome, seconds=time.monotonic() - clock)
            display.end(one, outcome)
            outcomes.append(outcome)
    finally:
        display.close()
    return outcomes


def _attempt(one: Prepared, display: Display, *, here: bool, again: bool) -> Outcome:
    """Run a trial in this process or one of its own; a transient fault is raised where ``again``."""

    def work() -> None:
        for status in run(one) if here else run_apart(one):
            display.update(one.trial, status)

    return guarded(one, work, again=again) or Outcome(one.trial, "finished")


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
        raise interruption.error()  # Tune swallows Ctrl-C and returns what has ended so far
    return [outcomes[p.trial] for p in prepared]


def start_ray(resources: Resources, processes: int = 1) -> bool:
    """Start a local Ray, or join a cluster; True if it was started here.

    Args:
        resources: what trials may use.
        processes: of the largest trial.

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
    for kind, each in (("CPU", resources.cpus_per_process), ("GPU", resources.gpus_per_process)):
        wanted = each * processes
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
