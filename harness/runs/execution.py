"""Trials on Ray Tune with explicit resources, or one after another in this process.

Neither changes a number: a trial is a function of recipe, seed and data. What is finished stays; a
trial whose worker dies is started again and goes on from its last checkpoint.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import cached_property
from itertools import product
from typing import Any

import torch
from tqdm import tqdm

from harness import faults, foreign, interruption
from harness.cluster.session import Resources, ray_session
from harness.data.own import register
from harness.errors import UserError
from harness.files import check_writable
from harness.given import given
from harness.runs.apart import run_apart
from harness.runs.display import Display
from harness.runs.running import record_failure, run
from harness.runs.trial import (
    Options,
    Outcome,
    Prepared,
    Trial,
    check_processes,
    forget,
    inspect,
    prepare,
    source_of,
)
from harness.store import aside
from harness.store.locks import Elsewhere, is_free
from harness.watching.trackers import require

#: Seconds between two looks at trials that another driver runs.
POLL_SECONDS = 2.0


def plan(targets: Sequence[str], seeds: Sequence[int], overrides: Mapping[str, Any]) -> list[Trial]:
    """One trial for each recipe of the targets, as :func:`harness.given.given` reads them, and each seed."""
    found = [one for target in targets for one in given(target, overrides)]
    trials = (Trial(one.name, seed, dict(one.overrides), one.called) for one, seed in product(found, seeds))
    return list(dict.fromkeys(trials))


def run_recipes(
    targets: str | Sequence[str],
    seeds: int | Sequence[int] = 3,
    *,
    overrides: Mapping[str, Any] | None = None,
    options: Options | None = None,
    resources: Resources | None = None,
    again: bool = False,
) -> list[Outcome]:
    """Train, evaluate and record recipes or suites: what ``wsss run`` does.

    Args:
        targets: recipes, patterns of recipes, suites, or recipe files.
        seeds: how many, from 0 on, or which.
        overrides: recipe values by dotted key.
        options: where and how; usual ones by default.
        resources: of each trial on Ray; None runs one trial after another in this process.
        again: as for :func:`execute`.

    Returns:
        How each trial has ended, those that make labels for others among them.

    Raises:
        UserError: a mistake was found before the first trial ran.
    """
    names = [targets] if isinstance(targets, str) else targets
    chosen = range(seeds) if isinstance(seeds, int) else seeds
    options = options or Options()
    register(options.data_roots)  # a recipe file may name them
    return execute(plan(names, chosen, overrides or {}), options, resources, again=again)


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


def execute(
    trials: Sequence[Trial], options: Options, resources: Resources | None, *, again: bool = False
) -> list[Outcome]:
    """Check all trials, then run them, wave by wave; what can go wrong before training does so first.

    Args:
        trials: from :func:`plan`.
        options: where and how.
        resources: for Ray; None runs one trial after another in this process.
        again: train anew what is finished; its records are set aside first, and nothing is deleted.

    Raises:
        UserError: a mistake was found before the first trial ran.
    """
    forget()
    require(options.trackers, options.tracking)
    ordered = waves(trials)
    store = options.store
    store.refresh(*{trial.name for wave in ordered for trial in wave})
    for trial in tqdm([t for wave in ordered for t in wave], desc="checking", disable=None, leave=False):
        check_processes(inspect(trial, options), options)
    with ExitStack() as session:
        session.enter_context(store.only_driver())
        session.enter_context(interruption.handled())
        if again:
            set_aside(trials, options, tqdm.write)
        return Rounds([t for wave in ordered for t in wave], options, resources, session).run()


class Rounds:
    """Runs what can run, again and again, until every trial has ended.

    A trial has to wait where it trains on the labels of another one, and where another driver runs it.
    """

    def __init__(
        self, trials: Sequence[Trial], options: Options, resources: Resources | None, session: ExitStack
    ) -> None:
        self.options, self.resources, self.session = options, resources, session
        self.open = dict.fromkeys(trials)
        self.ended: dict[Trial, Outcome] = {}
        self.prepared: dict[Trial, Prepared] = {}
        #: Trials that another driver runs, and when the record they had was written.
        self.busy: dict[Trial, str | None] = {}
        #: Notes that were shown.
        self.told: set[str] = set()
        #: Trials by the one whose labels they train on.
        self.dependents: dict[Trial, list[Trial]] = {}
        for trial in trials:
            if (source := source_of(trial)) is not None:
                self.dependents.setdefault(source, []).append(trial)

    @cached_property
    def display(self) -> Display:
        """All trials on the terminal, from the first that runs to the end of the session."""
        display = Display(len(self.open))
        self.session.callback(display.close)
        return display

    def run(self) -> list[Outcome]:
        """Outcomes in the order of ending."""
        waiting = {t for found in self.dependents.values() for t in found}
        ready = self._ready([t for t in self.open if t not in waiting], strict=True)
        said = False
        while self.open:
            left = self._run(ready) if ready else []
            ready = [*left, *self._ready(list(self.busy))]
            if not ready and self.open:
                if not said:
                    self.display.say(f"waiting for {len(self.busy)} trial(s) that run elsewhere")
                said = True
                time.sleep(POLL_SECONDS)
        return list(self.ended.values())

    def take(self, outcome: Outcome) -> list[Prepared]:
        """Note how a trial ended; returns those that can run now because of it."""
        trial = outcome.trial
        if outcome.status == "busy":
            self.busy[trial] = _ended(self.prepared[trial])
            return []
        self.ended[trial] = outcome
        del self.open[trial]
        return self._ready(self.dependents.get(trial, []))

    def _ready(self, trials: Sequence[Trial], strict: bool = False) -> list[Prepared]:
        """Those of some trials that can run now; with ``strict`` a mistake is raised."""
        found: list[Prepared] = []
        for trial in trials:
            try:
                if trial not in self.prepared:
                    self.prepared[trial] = _with_a_place(prepare(trial, self.options))
                    self._tell(self.prepared[trial])
            except Exception as error:
                if strict:
                    raise
                reason, _ = faults.told(error, None)  # it has no folder for a trace
                self.display.fail(trial, reason)
                found += self.take(Outcome(trial, "failed", reason))
                continue
            one = self.prepared[trial]
            if trial in self.busy:
                if not one.done and not is_free(one.folder):
                    continue
                before, record = self.busy.pop(trial), one.record
                if _ended(one) != before and record is not None and not record.finished:
                    self.display.fail(trial, f"elsewhere: {record.data['reason']}")
                    found += self.take(Outcome(trial, "failed", record.data["reason"]))
                    continue
            found.append(one)
        return found

    def _tell(self, prepared: Prepared) -> None:
        """What a user should know of a trial before it trains; of the seeds of a recipe once."""
        name, recipe, chosen = prepared.trial.name, prepared.resolved.recipe, prepared.resolved.chosen
        numbers = {"crop": recipe.crop, "batch.per_group": recipe.batch.per_group}
        lines = [f"chosen   {name}: {key}={numbers[key]}, from {why}" for key, why in chosen.items()]
        lines += [f"note     {name}: {note}" for note in prepared.facts.get("notes", ())]
        for line in lines:
            if line not in self.told and not prepared.done:
                self.display.say(line)
            self.told.add(line)

    def _run(self, ready: list[Prepared]) -> list[Prepared]:
        """Run trials; returns those that have become ready and were not run."""
        for one in ready:
            self.display.add(one)
        if self.resources is None or all(p.done for p in ready):
            return [later for outcome in run_local(ready, self.display) for later in self.take(outcome)]
        processes = max(p.processes for p in ready)
        self.session.enter_context(ray_session(self.resources, processes))  # for all rounds
        run_ray(ready, self.resources, self)
        return []


def _with_a_place(prepared: Prepared) -> Prepared:
    """A trial that is done, or whose folder can be written to. Raises UserError for any other."""
    try:
        check_writable(prepared.folder)
    except UserError:
        if not prepared.done:
            raise
    return prepared


def _ended(prepared: Prepared) -> str | None:
    """When the record of a trial was written."""
    record = prepared.record
    return None if record is None else record.data.get("ended")


def kept(prepared: Prepared) -> Outcome:
    """The outcome of a trial that is done already; it says if other code than what is here has done it."""
    record = prepared.record
    other = "" if record is None else foreign.difference(record.data, prepared.resolved)
    return Outcome(prepared.trial, "kept", f"{other}\nremedy: --again trains it anew" if other else "")


def set_aside(trials: Sequence[Trial], options: Options, say: Callable[[str], None]) -> None:
    """Move the finished records of some trials out of the way, so that they are trained anew.

    Nothing is deleted. Those that train on others' labels come first, while those labels are there.
    """
    asked = set(trials)
    for trial in reversed([t for wave in waves(trials) for t in wave if t in asked]):
        try:
            prepared = prepare(trial, options)
        except UserError:
            continue  # there is no record yet, or running it says what is wrong
        record = prepared.record
        if record is not None and record.finished:
            place = aside.set_aside(prepared.store, prepared.folder)
            say(f"aside    {trial}: its record is now {prepared.store.shown(place)}")


def guarded(prepared: Prepared, work: Callable[[], Any], *, again: bool = False) -> Outcome | None:
    """Run a piece of a trial; an error becomes an outcome, and a failure is recorded.

    Args:
        prepared: the trial.
        work: what to do.
        again: the caller can start the trial once more, so a transient fault is left to it.

    Raises:
        Exception: a transient fault, where ``again`` is true.
        KeyboardInterrupt: work was asked to stop.
    """
    try:
        work()
        return None
    except Elsewhere as found:
        return Outcome(prepared.trial, found.status, str(found))
    except BaseException as error:
        if interruption.asked(error):
            raise
        if faults.transient(error):
            interruption.stop_if_noted()  # a signal that ends a group of processes breaks much else
            if again:
                raise
        reason, lost = record_error(prepared, error), faults.poisons(error)
    gc.collect()  # the frames of the error may have kept tensors alive
    if prepared.device.type == "cuda":
        with suppress(RuntimeError):  # of a GPU that is lost
            torch.cuda.empty_cache()
    return Outcome(prepared.trial, "failed", reason, lost=lost)


def record_error(prepared: Prepared, error: BaseException, trace: str | None = None) -> str:
    """Record that an error ended a trial; returns what a user should know.

    Args:
        prepared: the trial.
        error: what happened.
        trace: for ``error.txt``; that of the error by default.
    """
    reason, whole = faults.told(error, prepared.resolved.recipe)
    return record_failure(prepared, reason, trace or ("" if whole else error))


def run_local(
    prepared: Sequence[Prepared], display: Display, retries: int = faults.RETRIES
) -> Iterator[Outcome]:
    """All trials, one after another, in this process; yields how each has ended.

    Should this process lose its GPU, the others run in processes of their own.
    """
    here = True
    for one in prepared:
        interruption.stop_if_noted()
        clock, outcome = time.monotonic(), kept(one) if one.done else None
        for left in range(retries, -1, -1):
            if outcome is not None:
                break
            try:
                outcome = _attempt(one, display, here=here, again=left > 0)
            except Exception as fault:
                here = here and not faults.poisons(fault)
                display.say(f"again    {one.trial}: {faults.first_line(fault)}")
        assert outcome is not None
        here = here and not outcome.lost
        if outcome.status == "finished":
            outcome = replace(outcome, seconds=time.monotonic() - clock)
        display.end(one, outcome)
        yield outcome


def _attempt(one: Prepared, display: Display, *, here: bool, again: bool) -> Outcome:
    """Run a trial in this process or one of its own; a transient fault is raised where ``again``."""

    def work() -> None:
        for status in run(one) if here else run_apart(one):
            display.update(one.trial, status)

    outcome = guarded(one, work, again=again) or Outcome(one.trial, "finished")
    return outcome if here else replace(outcome, lost=False)


# --- Ray ---------------------------------------------------------------------------------------------


def run_ray(prepared: Sequence[Prepared], resources: Resources, rounds: Rounds) -> None:
    """All trials on Ray Tune, as many at a time as their resources allow, and those that they make ready.

    Ray must run (:func:`ray_session`).
    """
    from harness.cluster.trials import run_trials  # imports Ray

    run_trials(prepared, resources, rounds)
    if any(t not in rounds.busy for t in rounds.open):
        raise interruption.error()  # Tune swallows Ctrl-C and returns when running trials have stopped
