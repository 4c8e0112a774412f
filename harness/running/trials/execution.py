"""Trials on Ray with explicit resources, or one after another in this process.

Neither changes a number: a trial is a function of recipe, seed and data. What is finished stays; a
trial whose worker dies is started again and goes on from its last checkpoint.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import torch

from harness.basics import interruption
from harness.basics.errors import UserError
from harness.basics.files import check_writable
from harness.basics.progress import counted
from harness.data.sets.own import register
from harness.engine import distributed, faults
from harness.engine.training import Status
from harness.recipes.given import given
from harness.recipes.specs import Recipe
from harness.records import aside
from harness.records.called import called_rows
from harness.records.locks import Elsewhere, is_free
from harness.records.records import Store
from harness.records.remote import reported
from harness.running.jobs.job import Event, Job, Resources, Source, on
from harness.running.jobs.run import run_jobs as run_jobs
from harness.running.trials.display import Outcome, RunDisplay
from harness.running.trials.trial import (
    Options,
    Prepared,
    Trial,
    check_processes,
    forget_data,
    inspect,
    prepare,
    source_of,
)
from harness.running.trials.work import record_failure, run_trial
from harness.running.watching.trackers import require

#: Seconds between two looks at trials that another driver runs.
POLL_SECONDS = 2.0


def plan(
    targets: Sequence[str], seeds: Sequence[int], overrides: Mapping[str, Any], store: Store | None = None
) -> list[Trial]:
    """One trial for each recipe of the targets, see :func:`harness.recipes.given.given`, and each seed; rows
    that were named are those of a store."""
    called = None if store is None else called_rows(store)
    found = [one for target in targets for one in given(target, overrides, called)]
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
    return execute(plan(names, chosen, overrides or {}, options.store), options, resources, again=again)


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
    forget_data()
    require(options.trackers, options.tracking)
    ordered = waves(trials)
    store = options.store
    store.refresh(*{trial.name for wave in ordered for trial in wave})
    everything = [t for wave in ordered for t in wave]
    for trial in counted(everything, len(everything), "checking", "trials"):
        check_processes(inspect(trial, options), options)
    with ExitStack() as session:
        session.enter_context(store.only_driver())
        session.enter_context(interruption.handled())
        if again:
            set_finished_aside(trials, options, print)
        source = Trials(everything, options, resources is not None, session)
        run_jobs(source, resources)
        return list(source.ended.values())


@dataclass
class TrialJob(Job):
    """A trial of a run.

    Attributes:
        trial: which.
        options: where and how it runs.
        dependents: trials that train on its labels; a worker writes these when the trial has ended.
        prepared: the trial after all checks, in a process that has made them.
    """

    trial: Trial
    options: Options
    dependents: tuple[Trial, ...] = ()
    prepared: Prepared | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Another process makes all checks itself, for its own disk and device."""
        return super().__getstate__() | {"prepared": None}

    @property
    def label(self) -> str:
        """Recipe and seed."""
        return str(self.trial)

    @property
    def ready(self) -> Prepared:
        """The trial after all checks."""
        assert self.prepared is not None, "the job has begun"
        return self.prepared

    @property
    def place(self) -> Path:
        """The folder of the trial."""
        return self.ready.folder

    @property
    def recipe(self) -> Recipe | None:
        """Of the trial."""
        return self.prepared.resolved.recipe if self.prepared else None

    def begin(self, gpus: float | None = None) -> torch.device:
        """Make the checks where they have not been made. Arguments as in :class:`..jobs.job.Job`."""
        if self.prepared is None:
            self.options = replace(self.options, device=on(self.options.device, gpus))
            self.prepared = prepare(self.trial, self.options)
        return self.prepared.device

    def work(self, alone: Callable[[], None] = lambda: None) -> Iterator[Event]:
        """Train, evaluate, record; then write labels for those that train on them, while the GPU is here."""
        for status in run_trial(self.ready):
            yield Event(status)
        if not distributed.first():
            return
        alone()
        for trial in self.dependents:
            yield Event(Status(0, self.ready.steps, 0.0, note="writing labels"))
            with suppress(Exception):  # the driver meets it again, and reports it
                prepare(trial, self.options)

    def failed(self, error: BaseException) -> Event:
        """Recorded; where the checks have failed, the driver records it, which knows where."""
        if isinstance(error, Elsewhere):
            return Event(ended=error.status, reason=str(error))
        if self.prepared is None:
            sent = faults.relayed(error)
            return Event(ended="failed", reason=sent.text, trace=sent.trace, lost=sent.kind.poison)
        return Event(ended="failed", reason=record_error(self.ready, error), lost=faults.poisons(error))


class Trials(Source):
    """The trials of a run, until every one has ended.

    A trial has to wait where it trains on the labels of another one, and where another driver runs it. On
    Ray one trial of each recipe comes first; then those that take longest, as far as that is known from the
    first ones, so that no long trial runs alone at the end.

    Args:
        trials: those that make labels for others among them.
        options: where and how they run.
        on_ray: whether they run on Ray, or in the order in which they can.
        session: closes the display in the end.
    """

    def __init__(self, trials: Sequence[Trial], options: Options, on_ray: bool, session: ExitStack) -> None:
        self.options, self.on_ray, self.session = options, on_ray, session
        self.open = dict.fromkeys(trials)
        self.ended: dict[Trial, Outcome] = {}
        self.prepared: dict[Trial, Prepared] = {}
        #: Trials that can run now.
        self.waiting: dict[Trial, Prepared] = {}
        #: Trials that another driver runs, and when the record they had was written.
        self.busy: dict[Trial, str | None] = {}
        #: Notes that were shown.
        self.told: set[str] = set()
        #: Trials by the one whose labels they train on.
        self.dependents: dict[Trial, list[Trial]] = {}
        for trial in trials:
            if (source := source_of(trial)) is not None:
                self.dependents.setdefault(source, []).append(trial)
        self._numbers = itertools.count()
        self._names: set[str] = set()  # recipes of which a trial has begun
        self._seconds: dict[str, float] = {}
        self._pace = 1.0  # seconds per unit of cost
        self._looked = self._said = False

    @cached_property
    def display(self) -> RunDisplay:
        """All trials on the terminal, from the first that runs to the end of the session."""
        display = RunDisplay(len(self.open))
        self.session.callback(display.close)
        return display

    @property
    def processes(self) -> int:  # type: ignore[override]
        """Of the largest trial that is known."""
        return max((one.processes for one in self.prepared.values()), default=1)

    # --- what comes next ----------------------------------------------------------------------------

    def next(self) -> Job | None:
        """The next trial that can run. Mistakes of those that need not wait are raised at the first call."""
        if not self._looked:
            self._looked = True
            later = {t for found in self.dependents.values() for t in found}
            self._admit(self._ready([t for t in self.open if t not in later], strict=True))
        if not self.waiting:
            return None
        one = (
            max(self.waiting.values(), key=self._urgency)
            if self.on_ray
            else next(iter(self.waiting.values()))
        )
        del self.waiting[one.trial]
        self._names.add(one.trial.name)
        dependents = tuple(self.dependents.get(one.trial, ())) if self.on_ray else ()
        return TrialJob(next(self._numbers), one.trial, one.options, dependents, one, processes=one.processes)

    def _urgency(self, one: Prepared) -> tuple[bool, float]:
        name = one.trial.name
        first = bool(self.dependents.get(one.trial)) or name not in self._names
        return first, self._seconds.get(name, one.cost * self._pace)

    def wait(self) -> bool:
        """Until another driver has ended one of the trials that it runs."""
        if not self.open:
            return False
        self._admit(self._ready(list(self.busy)))
        if self.open and not self.waiting:
            if not self._said:
                self.display.say(f"waiting for {len(self.busy)} trial(s) that run elsewhere")
            self._said = True
            time.sleep(POLL_SECONDS)
        return True

    # --- what has happened --------------------------------------------------------------------------

    def take(self, job: Job, event: Event) -> bool:
        """Show where a trial stands; note how it ended, and let those run that waited for it."""
        assert isinstance(job, TrialJob)
        one = job.ready
        if not event.ended:
            if event.status is not None:
                self.display.update(one.trial, event.status)
            return False
        if self.on_ray:
            with reported():  # it may have run on another node
                one.store.pull(one.folder)
        reason = event.reason
        if event.trace is not None:
            reason = record_failure(one, reason, event.trace)
        seconds = event.seconds if event.ended == "finished" else 0.0
        if seconds:
            self._seconds[one.trial.name] = seconds  # the last is as good as a mean
            self._pace = seconds / one.cost
        self._end(one, Outcome(one.trial, event.ended, reason, seconds))
        return False

    def again(self, job: Job, why: str) -> None:
        """A trial goes on from its last checkpoint."""
        self.display.say(f"again    {job.label}: {why}")

    def gave_up(self, job: Job, fault: faults.TransientFault, trace: str) -> Event:
        """Record it."""
        assert isinstance(job, TrialJob)
        with reported():
            job.ready.store.pull(job.ready.folder)
        return Event(ended="failed", reason=record_error(job.ready, fault, trace))

    def _end(self, one: Prepared, outcome: Outcome) -> None:
        self.display.end(one, outcome)
        self._admit(self._noted(outcome))

    def _noted(self, outcome: Outcome) -> list[Prepared]:
        """Note how a trial ended; returns those that can run now because of it."""
        trial = outcome.trial
        if outcome.status == "busy":
            self.busy[trial] = _ended(self.prepared[trial])
            return []
        self.ended[trial] = outcome
        del self.open[trial]
        return self._ready(self.dependents.get(trial, []))

    def _admit(self, prepared: Sequence[Prepared]) -> None:
        """Trials that can run now; what is done already ends at once."""
        for one in prepared:
            self.display.add(one)
        for one in prepared:
            if one.done:
                self._end(one, kept_outcome(one))
            else:
                self.waiting[one.trial] = one

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
                found += self._noted(Outcome(trial, "failed", reason))
                continue
            one = self.prepared[trial]
            if trial in self.busy:
                if not one.done and not is_free(one.folder):
                    continue
                before, record = self.busy.pop(trial), one.record
                if _ended(one) != before and record is not None and not record.finished:
                    self.display.fail(trial, f"elsewhere: {record.data['reason']}")
                    found += self._noted(Outcome(trial, "failed", record.data["reason"]))
                    continue
            found.append(one)
        return found

    def _tell(self, prepared: Prepared) -> None:
        """What a user should know of a trial before it trains; of the seeds of a recipe once."""
        name, recipe, chosen = prepared.trial.name, prepared.resolved.recipe, prepared.resolved.chosen
        numbers = {"crop": recipe.crop, "batch.per_group": recipe.batch.per_group}
        lines = [f"chosen   {name}: {key}={numbers[key]}, from {why}" for key, why in chosen.items()]
        lines += [f"note     {name}: {note}" for note in prepared.facts.get("notes", ())]
        done = prepared.done
        if not done and (at := prepared.reached) is not None:
            other = f"; its steps up to there were {code}" if (code := prepared.other_code) else ""
            lines.append(f"goes on  {prepared.trial}: from step {at:,} of {prepared.steps:,}{other}")
        for line in lines:
            if line not in self.told and not done:
                self.display.say(line)
            self.told.add(line)


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


def kept_outcome(prepared: Prepared) -> Outcome:
    """The outcome of a trial that is done already; it says if other code than what is here has done it."""
    other = prepared.other_code
    return Outcome(prepared.trial, "kept", f"{other}\nremedy: --again trains it anew" if other else "")


def set_finished_aside(trials: Sequence[Trial], options: Options, say: Callable[[str], None]) -> None:
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


def record_error(prepared: Prepared, error: BaseException, trace: str | None = None) -> str:
    """Record that an error ended a trial; returns what a user should know.

    Args:
        prepared: the trial.
        error: what happened.
        trace: for ``error.txt``; that of the error by default.
    """
    reason, whole = faults.told(error, prepared.resolved.recipe)
    return record_failure(prepared, reason, trace or ("" if whole else error))
