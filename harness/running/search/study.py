"""Hyper-parameter search: an Optuna study on disk decides, Ray Tune or this process trains.

The study is a journal file, ``optuna.log``, in Optuna's own format. It is the one source of truth:
suggestions (``ask``), pruning and results (``tell``) happen in the driver alone, whoever trains. A
search that was killed therefore goes on from the journal: trials that were running continue from
their checkpoints, and the study ends with exactly the number of finished trials asked for.

Ray Tune receives the study through its searcher and scheduler interfaces (``harness.running.jobs.on_ray``).
Ray's own ``OptunaSearch`` drives an Optuna study in the same way, but it switches Optuna's pruners off,
tells pruned trials as complete ones, which misleads samplers, and cannot restore a study from a persistent
storage.
"""

from __future__ import annotations

import math
import os
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import orjson
from filelock import Timeout
from optuna.trial import FrozenTrial, TrialState

from harness.basics.errors import UserError
from harness.basics.files import check_writable
from harness.basics.reading import damaged, read_bytes
from harness.basics.schema import digest
from harness.recipes import foreign
from harness.recipes.resolving import resolve
from harness.records.locks import locked
from harness.records.remote import reported
from harness.running.jobs.job import Event, Job, Resources, Source
from harness.running.jobs.run import run_jobs as run_jobs
from harness.running.search.objective import END, SearchJob
from harness.running.search.plan import SCHEDULERS, SearchPlan, contains, grid_values
from harness.running.trials.trial import Trial

#: ASHA: about one in this many goes on at each comparison. [our choice, matches the points above]
REDUCTION = 2
#: Trials before a model-based sampler, or the median, is used. [our choice: searches here are small]
STARTUP = 5
#: Suggestions in a row that were all tried before, after which a search ends early. [our choice]
REPEATS = 100

STATES = {TrialState.COMPLETE: "finished", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
_BEGUN = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED)


# --- the study ---------------------------------------------------------------------------------------


class _Grid(optuna.samplers.GridSampler):
    """The grid without the call that ends ``Study.optimize``, which ask and tell do not use."""

    def after_trial(self, *arguments: Any, **options: Any) -> None:
        """Nothing to do."""


def create_seed(plan: SearchPlan, number: int) -> int:
    """Seed of the sampler for one trial."""
    return int(digest([plan.seed, number], 8), 16)


def create_sampler(plan: SearchPlan, number: int) -> optuna.samplers.BaseSampler:
    """The sampler for one trial, seeded by the plan's seed and the trial's number.

    A sampler that is made anew for every trial has no state in memory, so that a search resumed at
    any trial goes on as the undisturbed one would.
    """
    seed = create_seed(plan, number)
    if plan.sampler == "grid":  # the order of a grid follows from the seed and must not change
        grid = {k: grid_values(d, plan.grid_points) for k, d in plan.space.items()}
        return _Grid(grid, seed=plan.seed)
    if plan.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if plan.sampler == "cmaes":
        return optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
    if plan.sampler == "gp":
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=STARTUP)
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP, constant_liar=True)


def create_pruner(scheduler: str) -> optuna.pruners.BasePruner:
    """ASHA (Li et al., MLSys 2020), median stopping (Golovin et al., KDD 2017), or neither."""
    if scheduler == "asha":
        return optuna.pruners.SuccessiveHalvingPruner(
            min_resource=SCHEDULERS["asha"][0], reduction_factor=REDUCTION
        )
    if scheduler == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=STARTUP)
    return optuna.pruners.NopPruner()


def _mend(journal: Path) -> None:
    """Cut off a last line that a kill left unfinished.

    Raises:
        Damaged: it is no journal, see :func:`_check`.
    """
    if os.path.lexists(journal):
        content = _check(journal)
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with journal.open("r+b") as stream:
                stream.truncate(whole)


_DAMAGED = "restore it, or move the folder away and search anew"


def _check(journal: Path) -> bytes:
    """The content of a journal: an object on each line, the last of which may be unfinished.

    Raises:
        Damaged: unreadable, no regular file, or another line.
    """
    content = read_bytes(journal)
    *lines, rest = content.split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            entry = orjson.loads(line)
        except ValueError:
            entry = None
        # the first entry creates the study (operation 0); without it all others would be passed over
        if not isinstance(entry, dict) or (number == 1 and entry.get("op_code") != 0):
            raise damaged(journal, f"line {number} is no entry of a study", _DAMAGED)
    if not _BEGINNING.startswith(rest[: len(_BEGINNING)]):
        raise damaged(journal, "its last line is no beginning of an entry of a study", _DAMAGED)
    return content


#: How every line of a journal begins.
_BEGINNING = b'{"op_code":'


class Study:
    """The bookkeeping of one search; made by :func:`open_study`.

    Args:
        plan: the search.
        study: the Optuna study behind it.
    """

    def __init__(self, plan: SearchPlan, study: optuna.Study) -> None:
        self.plan, self.study = plan, study
        #: Called whenever a trial has ended.
        self.on_end: Callable[[FrozenTrial], None] = lambda trial: None
        #: Told of trials that are started again, in a line.
        self.on_again: Callable[[str], None] = lambda line: None
        self._running: dict[int, optuna.trial.Trial] = {}
        self._since: dict[int, float] = {}
        wanted = plan.trials
        if plan.sampler == "grid":
            sizes = [len(grid_values(d, plan.grid_points)) for d in plan.space.values()]
            wanted = min(wanted, int(np.prod(sizes, dtype=object)) + (plan.own is not None))
        #: How many trials shall have finished or been pruned in the end.
        self.wanted: int = wanted
        #: How many may still be started.
        self.left = max(wanted - self.counts()["finished"] - self.counts()["pruned"], 0)
        self._interrupted = [t for t in self.trials if t.state == TrialState.RUNNING]

    @property
    def trials(self) -> list[FrozenTrial]:
        """Trials of this search, without those taken over from earlier ones, repeats, and those not begun."""
        found = self.study.get_trials(deepcopy=False)
        return [
            t for t in found if t.state != TrialState.WAITING and not {"from", "repeats"} & set(t.user_attrs)
        ]

    def counts(self) -> Counter[str]:
        """Number of trials by state; diverged ones are pruned."""
        return Counter(STATES.get(t.state, "running") for t in self.trials)

    def next(self) -> SearchJob | None:
        """The next trial to run: one that was interrupted, else a new suggestion; None at the end."""
        trial = (self._continued() or self._asked()) if self.left > 0 else None
        if trial is None:
            self.left = 0
            return None
        self.left -= 1
        self._running[trial.number] = trial
        self._since[trial.number] = time.monotonic()
        plan = self.plan
        return SearchJob(
            number=trial.number,
            trial=Trial(plan.recipe, plan.seed, {**plan.overrides, **trial.params}),
            options=plan.options,
            objective=plan.objective,
            points=SCHEDULERS[plan.scheduler],
            folder=plan.folder / "trials" / f"{trial.number:04d}",
            processes=plan.processes,
        )

    def _continued(self) -> optuna.trial.Trial | None:
        while self._interrupted:
            frozen = self._interrupted.pop(0)
            self.study.sampler = create_sampler(self.plan, frozen.number)
            trial = optuna.trial.Trial(self.study, frozen._trial_id)
            if set(frozen.params) == set(self.plan.space):
                return trial
            trial.set_user_attr("reason", "stopped before all of its values were drawn")
            self.study.tell(trial, state=TrialState.FAIL)
        return None

    def _asked(self) -> optuna.trial.Trial | None:
        """A new suggestion; one that was tried before is drawn again, at random.

        Repeats stay in the journal as failed trials, which samplers and pruners do not see. After
        many in a row the space counts as exhausted.
        """
        for _ in range(REPEATS):
            everything = self.study.get_trials(deepcopy=False)
            begun = [t for t in everything if t.state in _BEGUN and "from" not in t.user_attrs]
            has_own = any(t.user_attrs.get("own") for t in everything if t.state != TrialState.FAIL)
            if self.plan.own is not None and not has_own:
                self.study.enqueue_trial(dict(self.plan.own), user_attrs={"own": True})
            self.study.sampler = create_sampler(self.plan, len(everything))
            if everything and "repeats" in everything[-1].user_attrs:
                seed = create_seed(self.plan, len(everything))
                self.study.sampler = optuna.samplers.RandomSampler(seed=seed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                trial = self.study.ask(dict(self.plan.space))
            before = next((t.number for t in begun if t.params == trial.params), None)
            if before is None:
                return trial
            trial.set_user_attr("repeats", before)
            self.study.tell(trial, state=TrialState.FAIL)
        return None

    def absorb(self, number: int, event: Event) -> bool:
        """Take in an event of a trial; True when the trial has ended or shall stop now."""
        trial = self._running.get(number)
        if trial is None:
            return True
        for percent, value in event.values:
            if not math.isfinite(value):
                self.end(number, "diverged", reason=f"the objective is {value} at {percent}% of training")
                return True
            if percent not in self.frozen(number).intermediate_values:
                trial.report(value, percent)
                # The recipe's own configuration is the yardstick of all others, so it is never stopped.
                if percent < END and trial.should_prune() and not trial.user_attrs.get("own"):
                    self.end(number, "pruned")
                    return True
            if percent == END:
                self.end(number, "finished", value)
                return True
        if event.ended:
            self.end(number, event.ended, reason=event.reason)
            return True
        return False

    def end(self, number: int, state: str, value: float | None = None, reason: str = "") -> None:
        """Tell how a trial ended: ``finished``, ``pruned``, ``diverged`` or ``failed``.

        A diverged trial counts as pruned before its first measurement, which samplers read as the
        worst there is.
        """
        trial = self._running.pop(number)
        trial.set_user_attr("seconds", round(time.monotonic() - self._since.pop(number), 3))
        if reason:
            trial.set_user_attr("reason", reason)
        if state == "diverged":
            trial.set_user_attr("diverged", True)
        told = {"finished": TrialState.COMPLETE, "failed": TrialState.FAIL}.get(state, TrialState.PRUNED)
        self.study.tell(trial, value, state=told)
        if state != "failed":  # a failed one may be looked into
            folder = self.plan.folder / "trials" / f"{number:04d}"
            shutil.rmtree(folder / "checkpoint", ignore_errors=True)
            with reported():
                self.plan.store.discard(folder, lambda file: file.startswith("checkpoint/"))
        self.on_end(self.frozen(number))
        self.plan.store.save(self.plan.folder)

    def frozen(self, number: int) -> FrozenTrial:
        """A trial as it stands in the journal."""
        return self.study.get_trials(deepcopy=False)[number]

    def warm_start(self, earlier: Path) -> int:
        """Take over what an earlier search measured, for the sampler to learn from; returns the number.

        Values count as they are: take over only searches with a comparable objective. Trials taken
        over are not counted, and none is taken over twice.

        Args:
            earlier: folder of the other study.

        Raises:
            UserError: there is no journal in it.
        """
        journal = earlier / "optuna.log"
        if not os.path.lexists(journal):
            raise UserError("no study here", where=journal, remedy="name the output folder of a search")
        _check(journal)
        storage = _storage(journal)
        names = optuna.get_all_study_names(storage)
        if len(names) != 1:
            raise damaged(journal, f"it holds {len(names)} studies, one is wanted", _DAMAGED)
        name = names[0]
        known = {t.user_attrs.get("from") for t in self.study.get_trials(deepcopy=False)}
        number = 0
        for trial in optuna.load_study(study_name=name, storage=storage).get_trials(deepcopy=False):
            source = f"{name} trial {trial.number}"
            fits = set(trial.params) == set(self.plan.space) and all(
                contains(self.plan.space[k], v) for k, v in trial.params.items()
            )
            if trial.state != TrialState.COMPLETE or not fits or source in known:
                continue
            self.study.add_trial(
                optuna.trial.create_trial(
                    value=trial.value,
                    params=trial.params,
                    distributions=dict(self.plan.space),
                    user_attrs={"from": source},
                )
            )
            number += 1
        return number


def _storage(journal: Path) -> optuna.storages.JournalStorage:
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    # Symbolic links, Optuna's default lock, need privileges on Windows.
    backend = JournalFileBackend(str(journal), lock_obj=JournalFileOpenLock(str(journal)))
    try:
        return optuna.storages.JournalStorage(backend)  # replays every line
    except (LookupError, ValueError, TypeError, AttributeError, AssertionError) as error:
        problem = f"it cannot be replayed ({type(error).__name__}: {str(error)[:100]})"
        raise damaged(journal, problem, _DAMAGED) from None


@contextmanager
def open_study(plan: SearchPlan) -> Iterator[Study]:
    """Open or begin the study of a plan; one process at a time.

    Raises:
        UserError: another process runs the same search, or ``--out`` holds a different one.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    check_writable(plan.folder)
    plan.folder.mkdir(parents=True, exist_ok=True)
    try:
        with (
            locked(plan.folder / "search.lock", timeout=0),
            plan.store.only_driver(plan.folder),
            plan.store.work(plan.folder),
        ):
            journal = plan.folder / "optuna.log"
            _mend(journal)
            journal.with_name("optuna.log.lock").unlink(missing_ok=True)  # left by a kill; we are alone
            storage = _storage(journal)
            name = f"{plan.recipe} {plan.digest}"
            others = [n for n in optuna.get_all_study_names(storage) if n != name]
            if others:
                raise UserError(
                    f"the folder holds another search, {others[0]!r}",
                    where=plan.folder,
                    remedy="choose another --out",
                )
            study = optuna.create_study(
                study_name=name,
                storage=storage,
                sampler=create_sampler(plan, 0),
                pruner=create_pruner(plan.scheduler),
                direction="maximize",
                load_if_exists=True,
            )
            _check_code(plan, study)
            if "stamp" not in study.user_attrs:
                study.set_user_attr("stamp", plan.objective.stamp)
            opened = Study(plan, study)
            yield opened
            with reported():  # of trials that were stopped on other nodes
                kept = [f"trials/{t.number:04d}/" for t in opened.trials if t.state == TrialState.FAIL]
                plan.store.discard(
                    plan.folder, lambda f: "/checkpoint/" in f and not f.startswith(tuple(kept))
                )
    except Timeout:
        raise UserError(
            "another process runs this search",
            where=plan.folder,
            remedy="wait for it, or choose another --out",
        ) from None


def _check_code(plan: SearchPlan, study: optuna.Study) -> None:
    """Trials of one study are compared, so one state of other packages' code makes all of them.

    Raises:
        UserError: the study was begun with other code than what is here now.
    """
    resolved, key = resolve(plan.recipe, plan.overrides), "packages"
    known = study.user_attrs.get(key)
    if known is None and not study.get_trials(deepcopy=False):
        study.set_user_attr(key, foreign.packages_of(resolved))
    elif other := foreign.begun(known, resolved):
        raise UserError(
            f"the search was {other}",
            where=plan.folder,
            remedy="go back to that code, or begin a search of its own with --out FOLDER "
            f"(--warm-start {plan.folder} learns from the trials here)",
        )


# --- running it --------------------------------------------------------------------------------------


class StudyTrials(Source):
    """The trials of a study, as long as it asks for more; it stops those that it has no hope for.

    Args:
        study: decides.
        progress: hears of every event.
    """

    ahead = False  # a suggestion that is asked for before there is room for it would know less

    def __init__(self, study: Study, progress: Callable[[SearchJob, Event], None]) -> None:
        self.study, self.progress = study, progress

    @property
    def processes(self) -> int:  # type: ignore[override]
        """Of each trial."""
        return self.study.plan.processes

    def next(self) -> SearchJob | None:
        """As the study suggests."""
        return self.study.next()

    def again(self, job: Job, why: str) -> None:
        """The trial goes on from its checkpoint, with the values that were measured."""
        self.study.on_again(f"again    {job.label}: {why}")

    def take(self, job: Job, event: Event) -> bool:
        """Show it, and let the study judge."""
        assert isinstance(job, SearchJob)
        self.progress(job, event)
        return self.study.absorb(job.number, event)


def run_study(
    study: Study, progress: Callable[[SearchJob, Event], None], resources: Resources | None = None
) -> None:
    """Run what is left of a study.

    Args:
        study: from :func:`open_study`. Workers see its folder under the same path as the driver.
        progress: hears of every event.
        resources: of each process of a trial on Ray; None runs one trial after another in this process.

    Raises:
        UserError: Ray cannot start, or a trial asks for more than there is.
        KeyboardInterrupt: the search was interrupted; what has run of it is on disk.
    """
    run_jobs(StudyTrials(study, progress), resources)


def best_trial(study: Study) -> FrozenTrial | None:
    """The finished trial of the highest value, the earliest of equals; None before one has finished."""
    finished = [t for t in study.trials if t.state == TrialState.COMPLETE]
    return max(finished, key=lambda t: (t.value, -t.number), default=None)


def own_trial(study: Study) -> FrozenTrial | None:
    """The finished trial of the recipe's own values."""
    found = (t for t in study.trials if t.user_attrs.get("own") and t.state == TrialState.COMPLETE)
    return next(found, None)
