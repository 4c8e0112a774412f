"""One trial: a recipe with overrides and a seed, and every check that can be made before it trains.

``prepare`` finds what can be found before training: data, labels, weights, configuration, device.
:func:`harness.running.trials.work.run_trial` does the work.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch

from harness.basics import devices
from harness.basics.errors import UserError
from harness.basics.files import cache_folder, expanded
from harness.basics.reading import Damaged
from harness.basics.schema import digest, essential, file_name
from harness.data import sense
from harness.data.base import Dataset, LabelSpec, Supervision
from harness.data.labels.label_store import LabelStore, prepare_labels, reads_masks, require_masks
from harness.data.prepare.verify import SplitReport
from harness.data.sets import own
from harness.data.sets.roots import open_dataset
from harness.engine import distributed
from harness.engine.loader import StepSampler
from harness.engine.outputs import check_labels_from
from harness.engine.rehearsal import check_weights, rehearse, source_output
from harness.nn.compiling import check_compiler
from harness.nn.weights import weights_sha256
from harness.recipes import fitting, foreign, protocols, recipe_files
from harness.recipes.resolving import Resolved, recipe_names, resolve
from harness.recipes.specs import EvaluationSpec
from harness.records.checkpoints import CHECKPOINTS, reached
from harness.records.object_store import beside, is_uri
from harness.records.records import Record, Store
from harness.running.trials.mending import is_scored
from harness.running.trials.sources import labels_by
from harness.running.trials.splits import look, pictures_of, scorable, separate, split_facts

#: Values of an evaluation that its digest holds one by one, and those that decide nothing.
_SPEC = ("split", "protocol", "network", "output", "checkpoint", "cells", "tolerance")


@dataclass(frozen=True)
class Trial:
    """A recipe with overrides and a seed.

    Attributes:
        name: recipe name.
        seed: seed of weights, data order, augmentation and everything random in the method.
        overrides: dotted key to value, as from ``harness.recipes.resolving.parse_overrides``.
        called: the recipe file that the values come from, which is what tables call them.
    """

    name: str
    seed: int = 0
    overrides: Mapping[str, Any] = field(default_factory=dict, hash=False)
    called: str = field(default="", compare=False)

    @cached_property
    def resolved(self) -> Resolved:
        """The recipe, read once. Raises UserError, see :func:`harness.recipes.resolving.resolve`."""
        return resolve(self.name, self.overrides)

    def __getstate__(self) -> dict[str, Any]:
        """Another process reads the recipe itself: what it names may be another there."""
        return {key: value for key, value in vars(self).items() if key != "resolved"}

    def __str__(self) -> str:
        return f"{self.name}{f'@{self.called}' if self.called else ''} seed {self.seed}"


@dataclass(frozen=True)
class Options:
    """Where and how trials run; nothing here changes a number.

    Attributes:
        results: folder of the record store, or its URI (``s3://bucket/prefix``).
        data_roots: ``PATH`` (a parent of official folders) or ``NAME=PATH``, as on the command line.
        cache: generated data and prepared labels.
        device: ``cpu``, ``cuda``, ``cuda:1``, or ``auto``.
        workers: loader processes of a trial.
        threads: threads of a trial's arithmetic on the CPU (another number may change the last bit).
        checkpoint_seconds: least time between two checkpoints.
        save_predictions: keep palette PNGs of evaluated pictures in the record.
        processes: that share the groups of one trial; 0 for one process for each group of its recipe
            (another number may change the last bits).
        trackers: names of ``harness.running.watching.trackers.TRACKERS`` that follow each trial.
        tracking_root: folder for trackers that keep files; beside the record store by default, in the cache
            where the store is a URI.
        called: what tables call trials with overrides, in place of these.
        deterministic: ask torch for kernels that give the same bits every time (they may give other last
            bits than the usual ones).
    """

    results: Path | str = Path("results")
    data_roots: tuple[str, ...] = ()
    cache: Path = field(default_factory=cache_folder)
    device: str = "auto"
    workers: int = 0
    threads: int = 1
    checkpoint_seconds: float = 60.0
    save_predictions: bool = False
    processes: int = 1
    trackers: tuple[str, ...] = ()
    tracking_root: Path | None = None
    called: str = ""
    deterministic: bool = False

    def __getstate__(self) -> dict[str, Any]:
        """Another process may stand in another folder: places are sent from the root on."""
        return vars(self.absolute())

    @property
    def tracking(self) -> Path:
        """Folder for trackers that keep files."""
        if self.tracking_root is not None:
            return self.tracking_root
        return self.cache if is_uri(self.results) else beside(self.results)

    @property
    def store(self) -> Store:
        """The record store."""
        return Store(self.results, self.cache)

    def absolute(self) -> Options:
        """The same for processes that stand in another folder."""
        return replace(
            self,
            results=self.results if is_uri(self.results) else expanded(self.results).absolute(),
            cache=self.cache.absolute(),
            data_roots=tuple(map(own.absolute_root, self.data_roots)),
            tracking_root=None if self.tracking_root is None else self.tracking_root.absolute(),
        )


@dataclass(frozen=True)
class Prepared:
    """A trial that has passed every check made before training."""

    trial: Trial
    options: Options
    resolved: Resolved
    dataset: Dataset
    labels: LabelStore
    facts: Mapping[str, Any]
    digest: str
    folder: Path
    device: torch.device
    steps: int

    @property
    def cost(self) -> float:
        """Pixels that the trial trains on: the longest trials have most."""
        recipe = self.resolved.recipe
        return float(self.steps * recipe.batch.size * recipe.crop_size[0] * recipe.crop_size[1])

    @property
    def processes(self) -> int:
        """Processes that share this trial's groups."""
        return self.options.processes or self.resolved.recipe.batch.groups

    @property
    def store(self) -> Store:
        """The record store."""
        return self.options.store

    def evaluation_digest(self, spec: EvaluationSpec) -> str:
        """Over everything that defines a number of a given network."""
        values = essential(protocols.protocol(spec.protocol))
        split = self.facts["data"]["splits"][spec.split]["fingerprint"]
        parts = [spec.split, values, spec.network, spec.output, spec.checkpoint, split]
        options = {k: v for k, v in essential(spec).items() if k not in _SPEC}
        config = self.resolved.inference
        return digest([*parts, *([options] if options or config else []), *([config] if config else [])])

    def evaluation_name(self, spec: EvaluationSpec) -> str:
        """What was scored, with the values of inference that are not the recipe's own."""
        values = [f"{k}-{json.dumps(v)}" for k, v in sorted(self.resolved.inference.items())]
        return f"{spec.name}-{file_name('-'.join(values))}" if values else spec.name

    def missing_evaluations(self) -> list[EvaluationSpec]:
        """Evaluations of the recipe that are not on disk yet."""
        return [spec for spec in self.resolved.recipe.evaluation if not is_scored(self, spec)]

    def evaluation_folder(self, spec: EvaluationSpec) -> Path:
        """Where an evaluation stands."""
        return self.folder / "evaluations" / f"{self.evaluation_name(spec)}-{self.evaluation_digest(spec)}"

    @property
    def record(self) -> Record | None:
        """The record, None before the trial has ended, or where it is damaged and will be written again.

        Raises:
            Damaged: it is of a newer version, or of another trial.
        """
        try:
            return self.store.get(self.folder)
        except Damaged as error:
            if not error.mendable:
                raise
            return None

    @property
    def reached(self) -> int | None:
        """The step that its checkpoint on this disk goes on from; None where there is none."""
        return reached(self.folder / CHECKPOINTS / "last.pt")

    @property
    def other_code(self) -> str:
        """In what the code that has trained it, to the end or so far, differs from that which is here; empty
        if in nothing, or where it has not begun."""
        record = self.record
        if record is not None and record.finished:
            return foreign.difference(record.data, self.resolved)
        return "" if self.reached is None else foreign.gone_on(self.folder, self.resolved)

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do."""
        record = self.record
        return record is not None and record.finished and not self.missing_evaluations()


# --- before training ---------------------------------------------------------------------------------


def choose_device(name: str) -> torch.device:
    """The device that a name stands for, as in :func:`harness.basics.devices.device_named`, on this machine.

    Raises:
        UserError: likewise.
    """
    return devices.device_named(name, devices.machine())


@cache
def _labels(
    dataset: Dataset,
    split: str,
    supervision: Supervision,
    spec: LabelSpec,
    cache_root: Path,
    workers: int,
    labels_from: str | None,
) -> LabelStore:
    """Prepared labels, once per process."""
    return prepare_labels(
        dataset, split, supervision, spec, cache=cache_root, workers=workers, labels_from=labels_from
    )


def forget_data() -> None:
    """Look at data and labels anew: files may have changed since this process last did."""
    for remembered in (open_dataset, look, _labels):
        remembered.cache_clear()
    fitting.forget_pictures()


@dataclass(frozen=True)
class Checked:
    """What can be said of a trial before its labels are known.

    Attributes:
        resolved: its recipe, without evaluations of splits that have no masks.
        splits: what was found in the splits that it touches.
        notes: what a user should know before it starts, and a reader of its numbers after it.
        further: splits of the further pictures that its method asks for, by name.
    """

    resolved: Resolved
    device: torch.device
    dataset: Dataset
    splits: Mapping[str, SplitReport]
    weights: str | None
    notes: tuple[str, ...] = ()
    further: Mapping[str, str] = field(default_factory=dict)

    @property
    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of each split, over pictures and those masks that the trial may read."""
        return {split: found.fingerprint or "" for split, found in self.splits.items()}

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        recipe = self.resolved.recipe
        return recipe.schedule.total_steps(len(self.dataset.ids(recipe.train_split)) // recipe.batch.size)


def inspect(trial: Trial, options: Options, evaluations: tuple[EvaluationSpec, ...] | None = None) -> Checked:
    """Everything that can be checked before the labels of a trial exist.

    Its networks are built and tried without allocating anything (:mod:`harness.engine.rehearsal`).
    Every picture and mask that it will touch is decoded once (and remembered), and backbone weights
    are found and read into them. Arguments and errors as :func:`prepare`.
    """
    own.register(options.data_roots)  # again here: a worker process has not read the command line
    resolved = trial.resolved
    if evaluations is not None:
        resolved = replace(resolved, recipe=replace(resolved.recipe, evaluation=evaluations))
    recipe = resolved.recipe
    further = {name: split or recipe.train_split for name, split in rehearse(resolved).further.items()}
    if recipe.labels_from is not None:
        check_labels_from(recipe.labels_from, f"{resolved.file} labels_from")
        if (source := source_of(trial)) is not None:
            source_output(source.resolved, recipe.labels_from)
    device = choose_device(options.device)
    if recipe.precision.compile:
        check_compiler(device)
    dataset = open_dataset(recipe.dataset, options.data_roots, options.cache)
    kept, notes = scorable(recipe, dataset, "evaluation" in trial.overrides or evaluations is not None)
    resolved = replace(resolved, recipe=replace(recipe, evaluation=kept))
    scored = [e.split for e in kept]
    if recipe.selection is not None:
        scored.append(recipe.selection.split)
    require_masks(dataset, recipe.train_split, recipe.supervision, recipe.labels, recipe.labels_from)
    length = len(dataset.ids(recipe.train_split))
    StepSampler(length, recipe.batch.size, 1, trial.seed)  # refuses a split smaller than a step
    trained = reads_masks(recipe.supervision, recipe.labels, recipe.labels_from)
    read = {*scored, *([recipe.train_split] if trained else [])}
    splits = {
        split: look(dataset, split, options.cache, options.workers, split in read)
        for split in dict.fromkeys([recipe.train_split, *further.values(), *scored])
    }
    if borrowed := recipe_files.borrowed_method(resolved.name):
        notes += (borrowed,)
    notes += separate(resolved.recipe, dataset, splits, further)  # what is not scored was not read
    for found in splits.values():
        notes += found.warnings
        if own.is_own(recipe.dataset):  # whose they are can mend them; official ones are as all read them
            notes += tuple(text for text in found.dropped if text not in notes)
    weights = weights_sha256(recipe.backbone, recipe.weights)
    check_weights(resolved, weights)
    checked = Checked(resolved, device, dataset, splits, weights, notes, further)
    recipe.schedule.check(checked.steps)
    return checked


def check_processes(checked: Checked, options: Options) -> None:
    """Refuse to train with a number of processes that the recipe's groups cannot be shared by.

    Raises:
        UserError: see :func:`harness.engine.distributed.check_groups`; or pictures would stay on nodes
            that only share an object store.
    """
    if options.save_predictions and options.processes != 1 and is_uri(options.results):
        raise UserError(
            "each process of a trial writes its own pictures, and rank 0 alone uploads",
            where="--save-predictions",
            remedy="a folder that all nodes share for --results, or `wsss predict` later",
        )
    recipe = checked.resolved.recipe
    known = None if options.device == "auto" else checked.device  # on a cluster, workers choose
    distributed.check_groups(recipe, options.processes or recipe.batch.groups, known)


def labels_of(checked: Checked, trial: Trial, options: Options) -> tuple[LabelStore, str | None]:
    """The labels of a checked trial in one encoding, made once; and what made them where that is another
    recipe's network (:func:`exported`), None otherwise.

    Raises:
        UserError: labels are missing or malformed, or the trial that makes them is not finished.
    """
    recipe = checked.resolved.recipe
    labels_from, origin = recipe.labels_from, None
    if labels_from is not None and is_recipe(labels_from):
        source = source_of(trial)
        assert source is not None
        folder, origin = exported(labels_from, trial.seed, recipe.train_split, options, source.overrides)
        labels_from = str(folder)
    labels = _labels(
        checked.dataset,
        recipe.train_split,
        recipe.supervision,
        recipe.labels,
        options.cache,
        options.workers,
        labels_from,
    )
    return labels, origin


def prepare(
    trial: Trial, options: Options, evaluations: tuple[EvaluationSpec, ...] | None = None
) -> Prepared:
    """Check a trial as far as can be done without training, and bring its labels into one encoding.

    A recipe that trains on another recipe's pseudo labels has them written here, once, from the
    finished record of the same seed.

    Args:
        trial: what to run.
        options: where and how.
        evaluations: score these instead of the recipe's own.

    Raises:
        UserError: something is missing, corrupt or does not fit.
    """
    checked = inspect(trial, options, evaluations)
    recipe, dataset = checked.resolved.recipe, checked.dataset
    labels, origin = labels_of(checked, trial, options)
    # Seeds of one row have labels of their own where another trial of the same seed made them.
    fingerprint = origin or labels.fingerprint
    notes = [*checked.notes, *labels.warnings]
    seen = sense.taught(dataset.info, recipe.supervision, labels.statistics["classes"])
    for split, found in checked.splits.items():
        if split != recipe.train_split and split in {e.split for e in recipe.evaluation}:
            notes += sense.unseen(dataset.info, split, found.occurs, seen)
    facts = {
        "data": {
            "dataset": recipe.dataset,
            "splits": {split: split_facts(dataset, found) for split, found in checked.splits.items()},
            "labels": {"fingerprint": fingerprint, "content": labels.fingerprint, **labels.statistics},
        },
        "weights": {"name": recipe.weights, "backbone": recipe.backbone, "sha256": checked.weights},
        **({"notes": notes} if notes else {}),
    }
    own = _digest(checked, fingerprint, trial, options)
    folder = options.store.folder(trial.name, own, trial.seed)
    return Prepared(
        trial, options, checked.resolved, dataset, labels, facts, own, folder, checked.device, checked.steps
    )


def _digest(checked: Checked, labels: str, trial: Trial, options: Options) -> str:
    """The training digest: of recipe, pictures, labels and weights.

    Masks of the training split count by what is trained on, the labels. Before version 0.2 they counted
    themselves: where the store holds results of such a digest, they are gone on with.
    """
    split, weights, dataset = checked.resolved.recipe.train_split, checked.weights or "", checked.dataset
    own = checked.resolved.digest(pictures_of(checked.splits, split, checked.further), labels, weights)
    place = options.store.folder(trial.name, own, 0).parent
    masked = len(dataset.masked(split)) == len(dataset.ids(split)) and not checked.further
    if place.exists() or not place.parent.exists() or not masked:
        return own
    with_masks = look(dataset, split, options.cache, options.workers, True).fingerprint or ""
    earlier = checked.resolved.digest(with_masks, labels, weights)
    return earlier if place.with_name(earlier).exists() else own


# --- labels from another recipe ----------------------------------------------------------------------


def is_recipe(labels_from: str) -> bool:
    """Whether ``labels_from`` names a recipe (``cam/voc-image-r50``, with ``:output``) and not a folder."""
    return labels_from.partition(":")[0] in recipe_names()


def source_of(trial: Trial) -> Trial | None:
    """The trial whose pseudo labels a trial trains on; None where there is none.

    It has the same seed and is on the same data: another data set than that of its recipe is passed on.
    """
    recipe = trial.resolved.recipe
    if recipe.labels_from is None or not is_recipe(recipe.labels_from):
        return None
    name = recipe.labels_from.partition(":")[0]
    usual = resolve(name).recipe
    overrides: dict[str, Any] = {}
    if recipe.dataset != usual.dataset:
        overrides["dataset"] = recipe.dataset
        if recipe.train_split != usual.train_split:
            overrides["train_split"] = recipe.train_split
    return Trial(name, trial.seed, overrides)


def exported(
    labels_from: str,
    seed: int,
    split: str,
    options: Options,
    overrides: Mapping[str, Any] | None = None,
) -> tuple[Path, str]:
    """The folder of a finished trial's pseudo labels on a split; written first where it is not there.

    Args:
        labels_from: recipe name, with ``:output`` where its method gives several.
        seed: which of its trials.
        split: pictures to label, with their image tags.
        options: where records and data are.
        overrides: with which it was trained, see :func:`source_of`.

    Returns:
        A folder of ``<id>.png`` index maps, 255 where uncertain; and what made them, whatever the seed:
        the source's name, output and training digest, and a digest of the code of other packages that
        trained it and makes the labels, where there is such code.

    Raises:
        UserError: the trial is not finished, or gives no such output.
    """
    name = labels_from.partition(":")[0]
    source = prepare(Trial(name, seed, dict(overrides or {})), options)
    return labels_by(source, labels_from, split, options.workers)
