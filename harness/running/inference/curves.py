"""Curves of pseudo labels over the threshold of activation maps: what ``wsss curve`` does."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from harness.basics import finite, interruption
from harness.basics.errors import UserError
from harness.basics.registry import DATASETS, METHODS
from harness.data.sets.own import register
from harness.engine.method import Method
from harness.engine.networks import load_noted
from harness.engine.outputs import check_scored
from harness.engine.training import Status
from harness.evaluation import evaluator
from harness.evaluation.thresholds import Sweep, labels_above, strongest, sweep_counts
from harness.nn import pixels
from harness.recipes.given import one
from harness.recipes.resolving import resolve
from harness.recipes.specs import EvaluationSpec
from harness.records.called import called_rows
from harness.records.records import Store
from harness.running.inference.scoring import finished_records, of_sound_records
from harness.running.jobs.calls import Call
from harness.running.jobs.job import Event, Resources
from harness.running.trials.trial import Options, Trial, forget_data, prepare

#: The value of a method's ``Config`` that its label ``cam`` is cut at.
THRESHOLD_KEY = "background_score"


@dataclass(frozen=True)
class ThresholdCurve:
    """What maps at every threshold are worth. S seeds, T thresholds, K classes; figures in percent.

    Attributes:
        recipe, split: whose maps, of which pictures.
        overrides: values that it was trained with.
        thresholds: ``(T,)`` float32, ascending.
        own: place of the recipe's own threshold; None where its method names none.
        seeds: their numbers.
        miou, precision, recall: ``(S, T)``, see :meth:`harness.evaluation.thresholds.Sweep.scores`.
        iou: ``(S, T, K)``, NaN where a class does not occur.
        classes: their names.
        pictures: how many were counted.
        notes: what a reader must know.
    """

    recipe: str
    split: str
    overrides: Mapping[str, Any]
    thresholds: np.ndarray
    own: int | None
    seeds: tuple[int, ...]
    miou: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    iou: np.ndarray
    classes: tuple[str, ...]
    pictures: int
    notes: tuple[str, ...] = ()

    @property
    def oracle(self) -> int:
        """Place of the best mean over seeds: nobody can choose it without masks of these pictures."""
        return int(np.argmax(np.nan_to_num(self.miou.mean(0), nan=-1.0)))


def threshold_curve(
    recipe: str,
    *,
    split: str | None = None,
    step: float = 0.01,
    overrides: Mapping[str, Any] | None = None,
    options: Options | None = None,
    resources: Resources | None = None,
    store: Store | None = None,
    say: Callable[[str], None] = warnings.warn,
) -> ThresholdCurve:
    """Score the activation maps of a recipe's finished records at many thresholds, in one pass for each.

    Args:
        recipe: its name, the name of a row, or a recipe file.
        split: which pictures, those it trains on by default; they need masks and image tags.
        step: between thresholds, from 0 up to 1; the recipe's own is one of them in any case.
        overrides: recipe values by dotted key.
        options: records, data and device; usual ones by default.
        resources: of each record on Ray; None measures one after another in this process.
        store: the store of ``options``, for who asks it afterwards what was left out.
        say: is told what a reader of the figures must know.

    Raises:
        UserError: a name is unknown, there is no such record, the method makes no activation maps, or the
            data set has no background.
    """
    forget_data()
    options = options or Options()
    register(options.data_roots)
    asked = one(recipe, overrides, called_rows(store or options.store))
    resolved = resolve(asked.name, asked.overrides)
    split = split or resolved.recipe.train_split
    check_scored(resolved, split=split)
    if METHODS.get(resolved.recipe.method).class_maps is Method.class_maps:
        raise UserError(
            f"{resolved.recipe.method} makes no activation maps",
            where=asked.name,
            remedy="name a recipe whose method has class_maps, such as cam/mini-image",
        )
    info = DATASETS.get(resolved.recipe.dataset).info
    if info.background is None:
        raise UserError(
            f"{info.title} has no background class, so that no threshold parts anything from it",
            where=asked.name,
        )
    own = getattr(resolved.config, THRESHOLD_KEY, None)
    values = np.arange(0, 1, step, dtype=np.float64).astype(np.float32)
    if own is not None:
        values = np.union1d(values, np.float32(own)).astype(np.float32)
    at = store or options.store
    records = finished_records(asked.name, at, asked.overrides)
    calls = [
        Call(
            number,
            f"{asked.name} seed {record.seed}",
            partial(_measure, Trial(asked.name, record.seed, asked.overrides), split, record.digest, values),
            options,
            record.path,
        )
        for number, record in enumerate(records)
    ]
    seeds: list[int] = []
    sweeps: list[tuple[np.ndarray, ...]] = []
    notes: dict[str, None] = {}
    number = 0
    for record, found in of_sound_records(records, calls, resources, at):
        sweep, number, told = found
        notes |= dict.fromkeys(told)
        if sweep is not None:
            seeds.append(record.seed)
            sweeps.append(sweep.scores())
    for note in notes:
        say(note)
    if not sweeps:
        raise UserError(
            f"no record of {asked.name} could be measured", where=at.place, remedy="; ".join(notes)
        )
    miou, precision, recall, iou = (np.stack(part) for part in zip(*sweeps, strict=True))
    place = None if own is None else int(np.searchsorted(values, np.float32(own)))
    return ThresholdCurve(
        asked.name, split, asked.overrides, values, place, tuple(seeds), miou, precision, recall, iou,
        tuple(info.classes), number, tuple(notes),
    )  # fmt: skip


def _measure(
    trial: Trial, split: str, digest: str, thresholds: np.ndarray, options: Options
) -> Iterator[Event]:
    """Counts of one record over a split; None where recipe, data or weights have changed since."""
    notes: list[str] = []
    prepared = prepare(trial, options, evaluations=(EvaluationSpec(split=split, output="cam"),))
    if prepared.digest != digest:
        notes.append(f"skipped {trial} {digest}: its recipe, data or weights have changed since")
        yield Event(ended="finished", result=(None, 0, notes))
        return
    file = prepared.folder / "checkpoint" / "last.pt"
    prepared.store.pull(prepared.folder, lambda name: name == "checkpoint/last.pt")
    method, notes = load_noted(prepared.resolved, prepared.device, file, None, lambda text: None)
    dataset, own = prepared.dataset, getattr(prepared.resolved.config, THRESHOLD_KEY, None)
    background = dataset.info.background
    assert background is not None
    ids = dataset.masked(split)
    tags = torch.from_numpy(dataset.tags(ids)).float()
    whole: Sweep | None = None
    clock = time.monotonic()
    with torch.inference_mode():
        for index, (name, image, mask) in enumerate(evaluator.pictures(dataset, split, ids, options.workers)):
            raw = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).to(prepared.device)
            images, present = pixels.normalise(raw)[None], tags[index : index + 1].to(prepared.device)
            with finite.of_picture(name):
                maps = method.class_maps(images, present)
                if maps is None:
                    raise UserError(f"{method.title} makes no activation maps", where=trial.name)
                finite.require_finite(maps, "the activation maps")
            value, best = strongest(maps[0], background)
            if index == 0 and own is not None and not _cut(method, images, present, value, best, own):
                notes.append("the label cam of this method is not the strongest map above its threshold")
            assert mask is not None
            found = sweep_counts(value, best, mask, thresholds, background, dataset.info.num_classes)
            whole = found if whole is None else whole + found
            if index % 50 == 49 or index == len(ids) - 1:
                rate = (index + 1) / (time.monotonic() - clock)
                yield Event(Status(index + 1, len(ids), rate, note=f"maps of {split}"))
                interruption.stop_if_noted()
    yield Event(ended="finished", result=(whole, len(ids), notes))


def _cut(
    method: Method,
    images: torch.Tensor,
    tags: torch.Tensor,
    value: np.ndarray,
    best: np.ndarray,
    own: float,
) -> bool:
    """Whether the method's own label of a picture is its maps at its own threshold; True without one."""
    label = method.pseudo_labels(images, tags).get("cam")
    if label is None:
        return True
    background = method.build.dataset.background
    assert background is not None
    return bool((label[0].cpu().numpy() == labels_above(value, best, own, background)).all())
