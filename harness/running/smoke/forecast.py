"""What a run would do and cost, from records and smoke runs that are there: ``wsss run --dry-run``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch

from harness.basics.errors import UserError
from harness.engine.footprint import footprint
from harness.engine.loader import TrainingSet
from harness.engine.networks import build_method
from harness.recipes.resolving import Resolved
from harness.records.records import Record
from harness.running.jobs.job import Resources
from harness.running.smoke import feeding
from harness.running.smoke.feeding import Feeding
from harness.running.smoke.report import SmokeRow, read_smoke_rows, values_digest
from harness.running.trials.execution import waves
from harness.running.trials.sources import labels_there
from harness.running.trials.trial import (
    Options,
    Prepared,
    Trial,
    check_processes,
    inspect,
    prepare,
    source_of,
)


@dataclass(frozen=True)
class Forecast:
    """One trial before it runs.

    Attributes:
        trial: which.
        state: ``finished``, ``new``, ``goes on`` (a checkpoint is there), or ``waits`` for the labels of
            another trial.
        steps: optimiser steps of the whole run.
        seconds: left to do, from recorded rates; None where nothing like it was recorded, 0 when finished.
        mebibytes: what its record will take, from recorded ones; None likewise.
        basis: which records the estimate rests on.
        makes: what it would make first, such as ``labels``; empty where everything is there.
        running_mebibytes: what a checkpoint takes beyond that while the trial runs, where it is known.
        memory_mib: that tensors of a training step take on a GPU, by estimate; None where none can be made.
        measured_mib: that a smoke run of the same recipe reserved on its GPU; None without one.
        feeding: what it takes to keep one GPU busy; None where a step's time on it is not known.
        notes: what a record of it would say beside its numbers.
        reached: the step that it goes on from; None where it does not, or the checkpoint is not on this disk.
        code: in what the code that has trained it differs from that which is here; empty if in nothing.
    """

    trial: Trial
    state: str
    steps: int
    seconds: float | None
    mebibytes: float | None
    basis: str
    makes: str = ""
    running_mebibytes: float = 0.0
    memory_mib: float | None = None
    measured_mib: float | None = None
    feeding: Feeding | None = None
    notes: tuple[str, ...] = ()
    reached: int | None = None
    code: str = ""


def estimated_mib(resolved: Resolved) -> float | None:
    """Memory that tensors of a training step take (:mod:`harness.engine.footprint`), None where that cannot
    be found out."""
    try:
        return footprint(resolved).peak_mib
    except UserError:
        return None


def forecast(trials: Sequence[Trial], options: Options, step_seconds: float | None = None) -> list[Forecast]:
    """Check every trial as a run would, and estimate it; writes nothing into the record store.

    The estimate of a trial rests on finished records of its recipe: their median rate of steps and the
    time of their evaluations. Records of other overrides count where there are none of the same ones;
    where there are no records, the figures of a smoke run count.

    Args:
        trials: which.
        options: as a run would have them.
        step_seconds: of a training step on the GPU that is planned for; by default those of a smoke run on a
            GPU, or a rule of thumb for the GPU that is here.

    Raises:
        UserError: a mistake that a run would be refused for.
    """
    ordered = [trial for wave in waves(trials) for trial in wave]
    finished = [r for r in options.store.records(*{trial.name for trial in ordered}) if r.finished]
    smoked = [row for row in read_smoke_rows(options.results) if row.seconds() is not None]
    there = _folders(options.cache)
    measured = {row.name: row.device_mib for row in smoked}
    known: dict[str, Feeding | None] = {}
    return [
        replace(
            row,
            makes=_made(row, prepared, options.cache, there),
            memory_mib=estimated_mib(trial.resolved) if row.state != "finished" else None,
            measured_mib=measured.get(trial.name),
            feeding=_feeding(trial, prepared, row.state, smoked, step_seconds, known),
            notes=() if prepared is None else tuple(prepared.facts.get("notes", ())),
            code="" if prepared is None or row.state == "new" else prepared.other_code,
        )
        for trial in ordered
        for row, prepared in [_one(trial, options, finished, smoked)]
    ]


def _feeding(
    trial: Trial,
    prepared: Prepared | None,
    state: str,
    smoked: Sequence[SmokeRow],
    given: float | None,
    known: dict[str, Feeding | None],
) -> Feeding | None:
    """What it takes to feed a GPU with the pictures of a trial; those of other seeds are not timed again."""
    if prepared is None or state == "finished":
        return None
    resolved, own = prepared.resolved, values_digest(prepared.resolved)
    if own not in known:
        seconds, basis = given, "as given"
        rows = [row for row in smoked if row.device_mib is not None and row.values == own and row.phases]
        if seconds is None and rows:
            seconds = max((1 - phase.waiting) / phase.rate for phase in rows[-1].phases)
            basis = f"smoke run of {rows[-1].written[:10]}"
        if seconds is None and prepared.device.type == "cuda":
            with suppress(UserError):
                name = torch.cuda.get_device_name(prepared.device)
                seconds = feeding.step_seconds(footprint(resolved), resolved.recipe, name)
                basis = "by rule of thumb"
        known[own] = None
        if seconds is not None:
            data = _training_set(prepared)
            pictures = sum(feeding.pictures_of_step(data).values())
            known[own] = Feeding(feeding.picture_seconds(data), pictures, seconds, basis)
    return known[own]


def _training_set(prepared: Prepared) -> TrainingSet:
    """The pictures that a trial trains on, as its loader makes them."""
    recipe = prepared.resolved.recipe
    ids = prepared.dataset.ids(recipe.train_split)
    bare = replace(prepared.resolved, recipe=replace(recipe, weights="none"))
    with torch.device("meta"):
        method = build_method(bare, torch.device("meta"), 0)
    drawn = method.views(), method.further()
    return TrainingSet(prepared.dataset, ids, prepared.labels, recipe, prepared.trial.seed, *drawn)


def _folders(cache: Path) -> frozenset[Path]:
    """Folders of generated data sets and of whole prepared labels in a cache."""
    made = {index.parent for index in cache.glob("labels/*/*/index.npz")}
    return frozenset(made | {folder for folder in cache.glob("*/*") if folder.is_dir()})


def _made(row: Forecast, prepared: Prepared | None, cache: Path, there: frozenset[Path]) -> str:
    """What a trial would make in a cache that held some folders before it was looked at."""
    if prepared is None:  # it waits for another trial, whose network makes its labels
        return "labels"
    places = {"data set": prepared.dataset.root, "labels": prepared.labels.folder}
    return ", ".join(
        what for what, p in places.items() if p is not None and p.is_relative_to(cache) and p not in there
    )


def labels_ready(trial: Trial, options: Options) -> bool:
    """Whether a trial can be prepared without making another one's pseudo labels first, or again."""
    source = source_of(trial)
    if source is None:
        return True
    if not labels_ready(source, options):
        return False
    recipe = inspect(trial, options).resolved.recipe
    return labels_there(prepare(source, options), recipe.labels_from or "", recipe.train_split)


def state_of(trial: Trial, options: Options) -> tuple[str, Prepared | None]:
    """State of a trial as in :class:`Forecast`, and the prepared trial where it need not wait.

    Raises:
        UserError: as :func:`harness.running.trials.trial.prepare`.
    """
    if not labels_ready(trial, options):
        return "waits", None
    prepared = prepare(trial, options)
    there = "checkpoint/last.pt" in prepared.store.sizes(prepared.folder)
    return ("finished" if prepared.done else "goes on" if there else "new"), prepared


def _one(
    trial: Trial, options: Options, finished: Sequence[Record], smoked: Sequence[SmokeRow]
) -> tuple[Forecast, Prepared | None]:
    """The forecast of a trial, and the prepared trial where it need not wait."""
    checked = inspect(trial, options)
    check_processes(checked, options)
    steps = checked.steps
    state, prepared = state_of(trial, options)
    at = prepared.reached if prepared is not None and state == "goes on" else None
    left = steps - min(at or 0, steps)
    if state == "finished":
        return Forecast(trial, state, steps, 0.0, 0.0, ""), prepared
    alike = [r for r in finished if r.name == trial.name and r.data.get("steps_per_second")]
    same = [r for r in alike if prepared is not None and r.digest == prepared.digest] or alike
    if same:
        seconds = median(
            left / r.data["steps_per_second"] + sum(e.data["seconds"] for e in r.evaluations.values())
            for r in same
        )
        size = median(sum(options.store.sizes(r.path).values()) / 2**20 for r in same)
        basis = f"{len(same)} record{'s' * (len(same) > 1)}"
        return Forecast(trial, state, steps, seconds, size, basis, reached=at), prepared
    rows = [row for row in smoked if row.name == trial.name]
    own = values_digest(checked.resolved)
    row = max(rows, key=lambda r: (r.values == own, r.written), default=None)
    if row is None:
        return Forecast(trial, state, steps, None, None, "no record, no smoke run", reached=at), prepared
    basis = f"smoke run of {row.written[:10]}" + ("" if row.values == own else ", other values")
    running = max(row.checkpoint_mib - row.final_mib, 0.0)
    size = row.final_mib
    return Forecast(trial, state, steps, row.seconds(left), size, basis, "", running, reached=at), prepared


def free_mebibytes(folder: Path) -> float:
    """Room on the disk that a folder is on, or will be on."""
    there = next(p for p in (folder, *folder.parents) if p.exists())
    return shutil.disk_usage(there).free / 2**20


def concurrent(resources: Resources | None, processes: int = 1) -> int | None:
    """How many trials of some processes run at a time on this machine; None for a cluster, which was not
    asked."""
    if resources is None:
        return 1
    if resources.address is not None:
        return resources.max_concurrent
    fit = (os.cpu_count() or 1) / (resources.cpus_per_process * processes)
    if resources.gpus_per_process:
        fit = min(fit, torch.cuda.device_count() / (resources.gpus_per_process * processes))
    return max(min(int(fit), resources.max_concurrent or int(fit)), 1)


def wall_seconds(rows: Sequence[Forecast], at_a_time: int) -> float | None:
    """Time until all have ended, at least; None where a trial's is unknown."""
    left = [r.seconds for r in rows]
    known = [s for s in left if s is not None]
    if len(known) < len(left):
        return None
    return max(sum(known) / at_a_time, max(known, default=0.0))
