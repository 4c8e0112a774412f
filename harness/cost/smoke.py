"""Twenty real steps, a resume and a few pictures of every recipe at full size, before a week is spent.

A recipe's steps are spread over the phases of its method (``Method.probe_steps``), so that memory and
errors of late phases are found too. Before each later phase everything is thrown away and resumed from
a checkpoint, by the code that resumes a killed run. Nothing enters the record store.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from harness import devices, distributed, evaluation, faults, protocols, provenance
from harness.boundary import BoundaryCounter
from harness.cost.forecast import labels_ready, state_of
from harness.cost.smoke_report import Pass, Phase, Row, folder, read, values_digest, write, write_table
from harness.cost.stand_in import stand_in_labels
from harness.data.base import Dataset
from harness.data.label_store import LabelStore
from harness.data.loader import TrainingSet
from harness.errors import UserError
from harness.files import check_writable
from harness.jobs.job import Event, InFolder, Job, Resources, Source, release
from harness.jobs.run import run
from harness.networks import build_method, load_weights
from harness.recipes import Resolved, resolve
from harness.rehearsal import source_output
from harness.runs.execution import waves
from harness.runs.trial import Options, Trial, check_processes, choose_device, inspect, prepare, source_of
from harness.schema import digest
from harness.specs import EvaluationSpec, Recipe, SelectionSpec
from harness.training import Status, Trainer
from harness.watching.board import Board, Work

if TYPE_CHECKING:
    from methods.base import Method

#: Optimiser steps of a smoke run.
STEPS = 20
#: Steps between two readings of the clock.
ROW = 5
#: Pictures of each evaluation.
PICTURES = 4
#: Pictures of a split whose size is looked up, to find a large one.
LOOKED_UP = 500

#: What the name of a pass begins with that writes labels for other recipes.
EXPORT = "labels for others: "

STAND_IN = "trained on stand-in labels, as those of its source do not exist yet"


@dataclass
class _Found:
    """Figures of a recipe while they are being found."""

    notes: list[str] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)
    passes: list[Pass] = field(default_factory=list)
    sizes: dict[str, float] = field(default_factory=dict)
    workers_mib: float = 0.0


@dataclass
class SmokeJob(InFolder):
    """A recipe to try; its number is its place in the table.

    Attributes:
        trial: recipe, overrides and the first of the seeds still to run.
        seeds: how many trials are still to run.
        outputs: ``labels_from`` of chosen recipes that train on this one's pseudo labels.
        options: as the run would have them.
        folder: an empty one for checkpoints.
        row: what is known before it ran.
        found: figures so far, in the process that finds them.
    """

    trial: Trial
    seeds: int
    outputs: tuple[str, ...]
    options: Options
    folder: Path
    row: Row
    found: _Found = field(default_factory=_Found, init=False)

    @property
    def label(self) -> str:
        """The recipe."""
        return self.trial.name

    @property
    def recipe(self) -> Recipe:
        """With the overrides of the run."""
        return resolve(self.trial.name, self.trial.overrides).recipe

    def work(self, alone: Callable[[], None] = lambda: None) -> Iterator[Event]:
        """Make the steps and evaluations of a recipe; its row is the result.

        The stage that it has come to is written beside the checkpoints, for the case that the process dies.
        """
        device = choose_device(self.options.device)
        if device.type == "cpu":
            torch.set_num_threads(self.options.threads)
        else:
            devices.check_kernels(devices.machine(thoroughly=True))
        provenance.reset_peak_memory(device)
        for stage in _stages(self, self.found):
            write_stage(self.place, stage)
            yield Event(Status(0, STEPS, 0.0, note=stage))
        memory = distributed.collected(_memory(device, self.found.workers_mib))
        release()  # the next recipe may be tried in this process
        yield Event(ended="passed", result=self._row(device, _of_all(memory)))

    def failed(self, error: BaseException) -> Event:
        """The row says where it came to, and why it went no further."""
        reason, whole = faults.told(error, self.recipe)
        trace = "" if whole else faults.trace_of(error)
        try:
            device = choose_device(self.options.device)
        except UserError:
            device = torch.device("cpu")
        row = self._row(device, _memory(device, self.found.workers_mib))
        row = replace(row, status="failed", stage=read_stage(self.place), reason=reason, trace=trace)
        return Event(ended="failed", reason=reason, lost=faults.poisons(error), result=row)

    def died(self, reason: str, trace: str = "") -> Row:
        """The row where the process gives none itself."""
        return replace(self.row, status="failed", stage=read_stage(self.place), reason=reason, trace=trace)

    def _row(self, device: torch.device, memory: dict[str, Any]) -> Row:
        found = self.found
        return replace(
            self.row,
            notes=tuple(found.notes),
            phases=tuple(found.phases),
            passes=tuple(found.passes),
            hardware=provenance.hardware(device),
            written=datetime.now(UTC).isoformat(timespec="seconds"),
            **memory,
            **found.sizes,  # type: ignore[arg-type]
        )


# --- what is tried -----------------------------------------------------------------------------------


def segments(total: int, fractions: Sequence[float]) -> list[tuple[int, int]]:
    """Stretches of training, (first step, number of steps), at least two, at most :data:`STEPS` steps.

    One at each fraction of ``total`` and one at the start, cut to the run's length.
    """
    early = 0.01  # a probe this early stands for the start
    points = fractions if min(fractions) <= early else (0.0, *fractions)
    starts = sorted({int(point * total) // ROW * ROW for point in points})
    if len(starts) == 1:
        starts.append(starts[0] + STEPS // 2)
    most = STEPS // ROW
    starts = [*starts[: most - 1], starts[-1]] if len(starts) > most else starts
    each = STEPS // len(starts) // ROW * ROW
    cut = [max(min(start, (total - each) // ROW * ROW), 0) for start in starts]
    return [(start, min(each, total - start)) for start in cut]


def _sample(dataset: Dataset, split: str) -> list[str]:
    """A large picture of a split, then some of median size."""
    ids = list(dataset.ids(split))
    looked_up = ids[:: max(len(ids) // LOOKED_UP, 1)]
    pixels = [int(np.prod(dataset.picture_size(i))) for i in looked_up]
    order = [looked_up[i] for i in np.argsort(pixels, kind="stable")]
    middle = max((len(order) - PICTURES) // 2, 0)
    return [order[-1], *order[:-1][middle : middle + PICTURES - 1]]


# --- one recipe --------------------------------------------------------------------------------------


def write_stage(place: Path, stage: str) -> None:
    """Leave word of what is being done."""
    if not distributed.first():
        return
    place.mkdir(parents=True, exist_ok=True)
    (place / "stage").write_text(stage, encoding="utf-8")


def read_stage(place: Path) -> str:
    """What was being done last."""
    try:
        return (place / "stage").read_text(encoding="utf-8")
    except OSError:
        return "starting"


def _memory(device: torch.device, workers_mib: float) -> dict[str, Any]:
    host = provenance.peak_memory_mib(torch.device("cpu"))
    cuda = device.type == "cuda"
    return {
        "device_mib": torch.cuda.max_memory_reserved(device) / 2**20 if cuda else None,
        "host_mib": None if host is None else host + workers_mib,
    }


def _of_all(memory: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Memory of all processes of a recipe: the largest of a GPU, and that of the host together."""
    device = [found["device_mib"] for found in memory if found["device_mib"] is not None]
    host = [found["host_mib"] for found in memory if found["host_mib"] is not None]
    return {"device_mib": max(device, default=None), "host_mib": sum(host) if host else None}


def _stages(job: SmokeJob, found: _Found) -> Iterator[str]:
    """Do the work; yields what comes next."""
    options, seed = job.options, job.trial.seed
    yield "preparing labels"
    checked, labels = inspect(job.trial, options), _labels(job, found)
    resolved, dataset, device = checked.resolved, checked.dataset, checked.device
    recipe = resolved.recipe
    ids = dataset.ids(recipe.train_split)

    def create() -> tuple[Method, Trainer]:
        method = build_method(resolved, device, seed)
        data = TrainingSet(dataset, ids, labels, recipe, seed, method.views())
        kept = {"folder": job.place, "workers": options.workers}
        return method, Trainer(method, recipe, data, seed=seed, log_every=ROW, **kept)  # type: ignore[arg-type]

    yield "building the network"
    method, trainer = create()
    plan = segments(trainer.total, type(method).probe_steps)
    for number, (start, steps) in enumerate(plan):
        if number:
            yield f"saving a checkpoint after step {trainer.step}"
            trainer.step = start  # what follows is resumed at a later phase
            clock = time.monotonic()
            trainer.save()
            seconds = time.monotonic() - clock
            if distributed.first():
                found.sizes |= {"checkpoint_mib": _mib(trainer.checkpoint), "save_seconds": seconds}
            del method, trainer
            release()
            yield f"resuming at step {start}"
            method, trainer = create()
        yield f"steps {start} to {start + steps - 1}"
        found.phases.append(_train(trainer, start, steps, found))
        if number and trainer.resumed_at != start:
            raise UserError(
                f"the run was resumed at step {trainer.resumed_at} of {start}",
                where=trainer.checkpoint,
                remedy="check the disk that the records are on",
            )
    yield "saving the final checkpoint"
    trainer.save(final=True)
    if distributed.first():
        found.sizes["final_mib"] = _mib(trainer.checkpoint)
        load_weights(method, trainer.checkpoint)
    distributed.broadcast_weights(method)
    for name, times, work, pictures in _passes(job, resolved, dataset, method, trainer):
        yield f"evaluating {name}"
        alone = name.startswith(EXPORT)  # other passes are shared among the processes of a trial
        share = 1 if alone else distributed.world_size()
        found.passes.append(Pass(name, pictures, work() / share, times))


def _labels(job: SmokeJob, found: _Found) -> LabelStore:
    """The recipe's labels, or a stand-in for those that its source has not made yet."""
    if labels_ready(job.trial, job.options):
        return prepare(job.trial, job.options).labels
    found.notes.append(STAND_IN)
    checked = inspect(job.trial, job.options)
    return stand_in_labels(checked.dataset, checked.resolved.recipe.train_split, job.place / "labels")


def _train(trainer: Trainer, start: int, steps: int, found: _Found) -> Phase:
    """Make some steps; the rate is that of all rows but the first, which waits for loader and compiler."""
    trainer.step = start  # a checkpoint, where there is one, says the same
    rows: list[tuple[int, float]] = []
    work = trainer.run()
    try:
        before = start
        for status in work:
            rows.append((status.step - before, status.steps_per_second))
            found.workers_mib = max(found.workers_mib, provenance.children_memory_mib())
            before = status.step
            if status.step >= start + steps:
                break
    finally:
        work.close()  # type: ignore[attr-defined]
    timed = rows[1:] or rows
    seconds = sum(made / rate for made, rate in timed)
    return Phase(start, before - start, sum(made for made, _ in timed) / seconds)


def _mib(file: Path) -> float:
    return file.stat().st_size / 2**20


# --- evaluations -------------------------------------------------------------------------------------

_Work = tuple[str, int, Callable[[], float], int]


def _passes(
    job: SmokeJob, resolved: Resolved, dataset: Dataset, method: Method, trainer: Trainer
) -> Iterator[_Work]:
    """(name, times in a trial, work that gives seconds for one picture, pictures of the split)."""
    recipe, device = resolved.recipe, trainer.device
    segmented: list[tuple[str, int, EvaluationSpec | SelectionSpec]] = [
        (spec.name, 1, spec) for spec in recipe.evaluation if spec.output == "segmentation"
    ]
    if recipe.selection is not None:
        times = trainer.total // recipe.selection.every(trainer.steps_per_epoch)
        segmented.append((f"selection {recipe.selection.split}", times, recipe.selection))
    for name, times, spec in segmented:
        work = partial(_segmentation, method, dataset, spec, device)
        yield name, times, work, len(dataset.ids(spec.split))
    labelled = [spec for spec in recipe.evaluation if spec.output != "segmentation"]
    for split, group in groupby(sorted(labelled, key=lambda s: s.split), key=lambda s: s.split):
        specs = list(group)
        names = list(dict.fromkeys(spec.output for spec in specs))
        scored = partial(_pseudo_labels, method, dataset, split, names, device, True)
        yield ", ".join(s.name for s in specs), 1, scored, len(dataset.ids(split))
    for source in job.outputs:
        output = source_output(resolved, source)
        made = partial(_pseudo_labels, method, dataset, recipe.train_split, [output], device, False)
        yield f"{EXPORT}{output}", 1, made, len(dataset.ids(recipe.train_split))


def _segmentation(
    method: Method, dataset: Dataset, spec: EvaluationSpec | SelectionSpec, device: torch.device
) -> float:
    """Score some pictures as an evaluation does; seconds for one of median size."""
    num_classes = dataset.info.num_classes
    bands = BoundaryCounter(num_classes)
    found = evaluation.predictions(
        method,
        dataset,
        spec.split,
        protocols.protocol(spec.protocol),
        network=spec.network,
        device=device,
        ids=_sample(dataset, spec.split),
    )
    seconds: list[float] = []
    clock = time.monotonic()
    for name, prediction, mask in found:
        evaluation.gather([(name, prediction, mask)], num_classes)
        assert mask is not None  # gather has refused pictures without one
        bands.add(prediction, mask)
        seconds.append(time.monotonic() - clock)
        clock = time.monotonic()
    return statistics.mean(seconds[1:] or seconds)  # the first is large, and waits for the compiler


def _pseudo_labels(
    method: Method, dataset: Dataset, split: str, outputs: Sequence[str], device: torch.device, scored: bool
) -> float:
    """Make some pseudo labels, and score them; seconds for a picture of median size."""
    found = evaluation.pseudo_labels(
        method, dataset, split, outputs, device=device, ids=_sample(dataset, split)
    )
    seconds: list[float] = []
    clock = time.monotonic()
    for name, labels, mask in found:
        if scored:
            for output in outputs:
                evaluation.gather([(name, labels[output], mask)], dataset.info.num_classes)
        seconds.append(time.monotonic() - clock)
        clock = time.monotonic()
    return statistics.mean(seconds[1:] or seconds)


# --- all of them -------------------------------------------------------------------------------------


def smoke(trials: Sequence[Trial], options: Options, resources: Resources | None) -> list[Row]:
    """Try every recipe among some trials once, and those that they take labels from.

    Recipes whose trials are all finished are left alone; what passed before with the same code, data,
    machine and options is not tried again.

    Args:
        trials: from :func:`harness.runs.execution.plan`.
        options: as the run would have them.
        resources: for Ray, as the run would have them; None tries one after another in this process.

    Returns:
        One row for each recipe, in order; they are on disk too, with a table.

    Raises:
        UserError: no recipe can be run, for the reason of the first.
    """
    known = {r.setting: r for r in read(options.results) if r.status == "passed" and r.setting}
    work = folder(options.results) / "work"
    check_writable(work)
    rows: list[Row] = []
    jobs: list[SmokeJob] = []
    errors: list[UserError] = []
    groups = _by_recipe(trials)
    for number, group in enumerate(groups):
        try:
            job = _job(number, groups, options, resources, work / str(number))
        except UserError as error:
            errors.append(error)
            reason = {"status": "failed", "stage": "checking", "reason": str(error)}
            rows.append(Row(group[0].name, trials=len(group), **reason))  # type: ignore[arg-type]
            continue
        rows.append(job.row)
        if job.seeds and job.row.setting in known:
            rows[-1] = replace(known[job.row.setting], trials=job.seeds)
        elif job.seeds:
            jobs.append(job)
    if errors and len(errors) == len(groups):
        raise errors[0]
    try:
        _try(jobs, rows, options, resources)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    write_table(rows, options.results)
    return rows


def _by_recipe(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Trials that differ in the seed alone, sources first."""
    found: dict[tuple[str, str], list[Trial]] = {}
    for trial in (t for wave in waves(trials) for t in wave):
        found.setdefault((trial.name, digest(trial.overrides)), []).append(trial)
    return list(found.values())


def _job(
    number: int,
    groups: Sequence[Sequence[Trial]],
    options: Options,
    resources: Resources | None,
    place: Path,
) -> SmokeJob:
    """What is to be done for a recipe; nothing where all of its trials are finished."""
    group = groups[number]
    checked = inspect(group[0], options)
    check_processes(checked, options)
    left = [t for t in group if state_of(t, options)[0] != "finished"]
    recipe = checked.resolved.recipe
    own = replace(group[0], seed=0)
    outputs = tuple(
        sorted(
            {
                resolve(g[0].name, g[0].overrides).recipe.labels_from or ""
                for g in groups
                if (source := source_of(g[0])) is not None and replace(source, seed=0) == own
            }
        )
    )
    values = values_digest(checked.resolved)
    code = provenance.code()
    setting: list[Any] = [
        values,
        dict(checked.fingerprints),
        checked.weights,
        outputs,
        code,
        provenance.environment(),
    ]
    setting += [provenance.hardware(checked.device), options.device, options.workers, options.threads]
    setting += [resources, labels_ready(group[0], options), recipe.labels_from]
    row = Row(
        group[0].name,
        values=values,
        setting=digest(setting) if not code["dirty"] else "",  # changed code is tried again
        status="finished" if not left else "passed",
        trials=len(left),
        total=checked.steps,
        checkpoint_seconds=options.checkpoint_seconds,
    )
    processes = options.processes or recipe.batch.groups
    trial = left[0] if left else group[0]
    return SmokeJob(number, trial, len(left), outputs, options, place, row, processes=processes)


class _Recipes(Source):
    """Recipes to try, each in a process of its own on Ray, since memory is that of a process.

    Args:
        jobs: one for each.
        board: shows them.
        ended: receives the row of each.
    """

    reused = False

    def __init__(
        self, jobs: Sequence[SmokeJob], board: Board, ended: Callable[[SmokeJob, Row], None]
    ) -> None:
        self.waiting, self.board, self.ended = list(jobs), board, ended
        self.processes = max((job.processes for job in jobs), default=1)

    def next(self) -> Job | None:
        """In the order of the table."""
        return self.waiting.pop(0) if self.waiting else None

    def take(self, job: Job, event: Event) -> bool:
        """Show what is being done; keep the row at the end."""
        assert isinstance(job, SmokeJob)
        if event.ended:
            row = event.result or job.died(event.reason)
            self.board.end(job.number, row.status, f"{row.status:8s} {job.label}")
            self.ended(job, row)
        elif event.status is not None:
            self.board.update(job.number, event.status)
        return False

    def again(self, job: Job, why: str) -> None:
        """Nothing is tried twice."""

    def gave_up(self, job: Job, fault: faults.TransientFault, trace: str) -> Event:
        """It died."""
        why = f"its worker process died (out of host memory?): {str(fault).removeprefix('tried once: ')}"
        return Event(ended="failed", reason=why)


def _try(jobs: Sequence[SmokeJob], rows: list[Row], options: Options, resources: Resources | None) -> None:
    """Try recipes, with the resources of a trial and as many at a time as trials would be; rows are kept as
    they come."""

    def ended(job: SmokeJob, row: Row) -> None:
        rows[job.number] = row
        write(row, options.results)

    board = Board(len(jobs), states=("passed", "failed"), unit="recipes")
    for job in jobs:
        board.add(job.number, Work(job.label))
    try:
        once = None if resources is None else replace(resources, retries=0)
        run(_Recipes(jobs, board, ended), once, retries=0)
    finally:
        board.close()
