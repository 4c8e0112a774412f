"""Twenty real steps, a resume and a few pictures of every recipe at full size, before a week is spent.

A recipe's steps are spread over the phases of its method (``Method.probe_steps``), so that memory and
errors of late phases are found too. Before each later phase everything is thrown away and resumed from
a checkpoint, by the code that resumes a killed run. Nothing enters the record store.
"""

from __future__ import annotations

import math
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

from harness.basics import devices, provenance
from harness.basics.errors import UserError
from harness.data.base import Dataset
from harness.data.labels.label_store import LabelStore
from harness.engine import distributed, faults
from harness.engine.loader import TrainingSet
from harness.engine.networks import build_method, load_weights
from harness.engine.rehearsal import source_output
from harness.engine.training import Status, Trainer
from harness.evaluation import evaluator
from harness.evaluation.boundary import BoundaryCounter
from harness.recipes import protocols
from harness.recipes.resolving import Resolved
from harness.recipes.specs import EvaluationSpec, Recipe, SelectionSpec
from harness.running.jobs.job import Event, InFolder, release
from harness.running.smoke.forecast import labels_ready
from harness.running.smoke.report import Pass, Phase, SmokeRow
from harness.running.smoke.stand_in import stand_in_labels
from harness.running.trials.trial import (
    Options,
    Trial,
    choose_device,
    inspect,
    prepare,
)

if TYPE_CHECKING:
    from harness.engine.method import Method

#: Optimiser steps of a smoke run.
SMOKE_STEPS = 20
#: Steps between two readings of the clock.
ROW = 5
#: Pictures of each evaluation.
SMOKE_PICTURES = 4
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
    row: SmokeRow
    found: _Found = field(default_factory=_Found, init=False)

    @property
    def label(self) -> str:
        """The recipe."""
        return self.trial.name

    @property
    def recipe(self) -> Recipe:
        """With the overrides of the run."""
        return self.trial.resolved.recipe

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
            yield Event(Status(0, SMOKE_STEPS, 0.0, note=stage))
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

    def died(self, reason: str, trace: str = "") -> SmokeRow:
        """The row where the process gives none itself."""
        return replace(self.row, status="failed", stage=read_stage(self.place), reason=reason, trace=trace)

    def _row(self, device: torch.device, memory: dict[str, Any]) -> SmokeRow:
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
    """Stretches of training, (first step, number of steps), at least two, at most :data:`SMOKE_STEPS` steps.

    One at each fraction of ``total`` and one at the start, cut to the run's length.
    """
    early = 0.01  # a probe this early stands for the start
    points = fractions if min(fractions) <= early else (0.0, *fractions)
    starts = sorted({int(point * total) // ROW * ROW for point in points})
    if len(starts) == 1:
        starts.append(starts[0] + SMOKE_STEPS // 2)
    most = SMOKE_STEPS // ROW
    starts = [*starts[: most - 1], starts[-1]] if len(starts) > most else starts
    each = SMOKE_STEPS // len(starts) // ROW * ROW
    cut = [max(min(start, (total - each) // ROW * ROW), 0) for start in starts]
    return [(start, min(each, total - start)) for start in cut]


def _sample(dataset: Dataset, split: str) -> list[str]:
    """A large picture of a split, then some of median size."""
    ids = list(dataset.ids(split))
    looked_up = ids[:: max(len(ids) // LOOKED_UP, 1)]
    pixels = [int(np.prod(dataset.picture_size(i))) for i in looked_up]
    order = [looked_up[i] for i in np.argsort(pixels, kind="stable")]
    middle = max((len(order) - SMOKE_PICTURES) // 2, 0)
    return [order[-1], *order[:-1][middle : middle + SMOKE_PICTURES - 1]]


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
        data = TrainingSet(dataset, ids, labels, recipe, seed, method.views(), method.further())
        kept = {"folder": job.place, "workers": options.workers, "deterministic": options.deterministic}
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
    """Make some steps; the rate is that of all rows but the first, which waits for loader and compiler.

    Each loader process makes a whole step, and all of them have theirs ready when the first one has: steps
    are timed until each has made another, or the loader would seem as fast as the first ones were handed out.
    """
    trainer.step = start  # a checkpoint, where there is one, says the same
    steps = min(max(steps, ROW + math.ceil(trainer.workers / ROW) * ROW), trainer.total - start)
    rows: list[tuple[int, float, float]] = []
    work = trainer.run()
    try:
        before = start
        for status in work:
            rows.append((status.step - before, status.steps_per_second, status.waiting))
            found.workers_mib = max(found.workers_mib, provenance.children_memory_mib())
            before = status.step
            if status.step >= start + steps:
                break
    finally:
        work.close()  # type: ignore[attr-defined]
    timed = rows[1:] or rows
    seconds = sum(made / rate for made, rate, _ in timed)
    waited = sum(share * made / rate for made, rate, share in timed)
    return Phase(start, before - start, sum(made for made, _, _ in timed) / seconds, waited / seconds)


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
    found = evaluator.predictions(
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
    for pair in found:
        evaluator.gather(bands.following([pair]), num_classes)
        seconds.append(time.monotonic() - clock)
        clock = time.monotonic()
    return statistics.mean(seconds[1:] or seconds)  # the first is large, and waits for the compiler


def _pseudo_labels(
    method: Method, dataset: Dataset, split: str, outputs: Sequence[str], device: torch.device, scored: bool
) -> float:
    """Make some pseudo labels, and score them; seconds for a picture of median size."""
    found = evaluator.pseudo_labels(
        method, dataset, split, outputs, device=device, ids=_sample(dataset, split)
    )
    num_classes = dataset.info.num_classes
    bands = BoundaryCounter(num_classes)
    seconds: list[float] = []
    clock = time.monotonic()
    for name, labels, mask in found:
        if scored:
            for output in outputs:
                evaluator.gather(bands.following([(name, labels[output], mask)]), num_classes)
        seconds.append(time.monotonic() - clock)
        clock = time.monotonic()
    return statistics.mean(seconds[1:] or seconds)
