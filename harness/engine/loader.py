"""Training batches: which sample stands where in which step, and how it becomes tensors.

The plan of a run (permutation of every epoch, generator of every sample) follows from the seed and
the step alone. So a run can start at any step, with any number of loader workers, and sees the same.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler

from harness.basics.errors import UserError
from harness.data.base import Dataset
from harness.engine.augment import Sample, augment, jitter, recolour
from harness.engine.batch import UNLABELLED, Batch, View
from harness.engine.loading import in_worker, loaded
from harness.nn.pixels import normalise
from harness.recipes.specs import Recipe

if TYPE_CHECKING:
    from harness.data.labels.label_store import LabelStore
    from harness.engine.build import ViewSpec

#: A split whose decoded pictures and labels take no more bytes is decoded once (by each loader process).
KEPT_BYTES = 64 * 2**20

#: One sample of a step: (step, slot in the step, index into the split).
Slot = tuple[int, int, int]


class StepSampler(Sampler[list[Slot]]):
    """All samples of each optimiser step, from a given step on.

    Args:
        length: pictures in the split.
        size: samples per step, over all groups.
        total: steps of the run.
        seed: seed of the run.
        start: first step to yield.
        slots: which samples of each step to yield; all by default.

    Raises:
        UserError: the split has fewer pictures than one step needs.
    """

    def __init__(
        self, length: int, size: int, total: int, seed: int, start: int = 0, slots: range | None = None
    ) -> None:
        self.length, self.size, self.total, self.seed, self.start = length, size, total, seed, start
        self.slots = range(size) if slots is None else slots
        if length < size:
            raise UserError(
                f"one step takes {size} pictures, the training split has {length}",
                where="[batch]",
                remedy="make batch.groups or batch.per_group smaller with --set",
            )

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass; the rest of a permutation is dropped."""
        return self.length // self.size

    def __len__(self) -> int:
        return self.total - self.start

    def __iter__(self) -> Iterator[list[Slot]]:
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in range(self.start, self.total):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(self.length)
            first = step % self.steps_per_epoch * self.size
            yield [(step, slot, int(order[first + slot])) for slot in self.slots]


class TrainingSet(TorchDataset):
    """Augmented samples of a split with its weak labels.

    Args:
        dataset: where pictures are read.
        ids: image ids of the split.
        labels: prepared labels in canonical encoding.
        recipe: crop and augmentation.
        seed: seed of the run.
        views: further views, by name.
    """

    def __init__(
        self,
        dataset: Dataset,
        ids: Sequence[str],
        labels: LabelStore,
        recipe: Recipe,
        seed: int,
        views: Mapping[str, ViewSpec],
    ) -> None:
        self.dataset, self.ids, self.labels, self.recipe = dataset, list(ids), labels, recipe
        self.seed, self.views = seed, dict(views)
        self._kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, slot: Slot) -> dict:
        step, place, index = slot
        image_id = self.ids[index]
        rng = random.Random(f"{self.seed}/{step}/{place}")
        image, label = self._read(index)
        sample = augment(image, label, self.recipe.crop_size, self.recipe.augment, rng)
        return {
            "id": image_id,
            "tags": self.labels.tags[index],
            "image": sample.image,
            "label": sample.label,
            "valid": sample.valid,
            "views": {name: self._view(spec, sample, image, label, rng) for name, spec in self.views.items()},
        }

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Colours ``(H, W, 3)`` and label ``(H, W)`` of a picture; those of small splits stay in memory."""
        if index in self._kept:
            return self._kept[index]
        image, label = self.dataset.read_image(self.ids[index]), self.labels.read(self.ids[index])
        if label is None:
            label = np.full(image.shape[:2], UNLABELLED, np.uint8)
        # As if all were of this size: then a large split keeps nothing, rather than some of its pictures.
        if (image.nbytes + label.nbytes) * len(self) <= KEPT_BYTES:
            for array in (image, label):
                array.setflags(write=False)
            self._kept[index] = image, label
        return image, label

    def _view(
        self, spec: ViewSpec, main: Sample, image: np.ndarray, label: np.ndarray, rng: random.Random
    ) -> tuple[np.ndarray, np.ndarray]:
        """Colours ``(h, w, 3)`` and validity ``(h, w)`` of a further view: of the main one, or of its own."""
        if not spec.independent:
            return view(main.plain if spec.plain else main.image, main.valid, spec, rng)
        height, width = self.recipe.crop_size
        size = (round(height * spec.scale), round(width * spec.scale))
        own = augment(image, label, size, spec.augment or self.recipe.augment, rng)
        return view(own.image, own.valid, replace(spec, scale=1.0), rng)


def view(
    image: np.ndarray, valid: np.ndarray, spec: ViewSpec, rng: random.Random
) -> tuple[np.ndarray, np.ndarray]:
    """An augmented picture resized, mirrored and recoloured as asked; padding stays black.

    Args:
        image: ``(H, W, 3)`` uint8.
        valid: ``(H, W)`` bool.
        spec: what is asked; ``independent`` plays no part here.
        rng: the sample's generator.

    Returns:
        Colours ``(h, w, 3)`` uint8 and validity ``(h, w)`` bool.
    """
    picture, inside = Image.fromarray(image), Image.fromarray(valid.astype(np.uint8))
    if spec.scale != 1:
        size = (round(picture.width * spec.scale), round(picture.height * spec.scale))
        picture = picture.resize(size, Image.Resampling.BILINEAR)
        inside = inside.resize(size, Image.Resampling.NEAREST)
    if spec.flip:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        inside = inside.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if spec.colour:
        s = spec.colour
        picture = jitter(picture, (s, s, s, min(s / 2, 0.5)), rng)
    if spec.recolour is not None:
        picture = recolour(picture, spec.recolour, rng)
    colours, known = np.array(picture), np.array(inside, dtype=bool)
    if spec.colour or spec.recolour is not None:
        colours[~known] = 0
    return colours, known


def _pictures(arrays: Sequence[np.ndarray]) -> torch.Tensor:
    """Stack ``(H, W, 3)`` arrays to a contiguous ``(B, 3, H, W)`` uint8 tensor."""
    return torch.from_numpy(np.ascontiguousarray(np.stack(arrays).transpose(0, 3, 1, 2)))


class Collate:
    """Samples of one step to one :class:`Batch` per group; masks stay uint8 until here."""

    def __init__(self, groups: int) -> None:
        self.groups = groups

    def __call__(self, samples: Sequence[dict]) -> list[Batch]:
        per_group = len(samples) // self.groups
        batches = [self._one(samples[g * per_group : (g + 1) * per_group]) for g in range(self.groups)]
        return [b.share_memory() for b in batches] if in_worker() else batches

    def _one(self, samples: Sequence[dict]) -> Batch:
        raw = _pictures([s["image"] for s in samples])
        views = {}
        for name in samples[0]["views"]:
            colours = _pictures([s["views"][name][0] for s in samples])
            inside = torch.from_numpy(np.stack([s["views"][name][1] for s in samples]))
            views[name] = View(normalise(colours), colours, inside)
        return Batch(
            images=normalise(raw),
            labels=torch.from_numpy(np.stack([s["label"] for s in samples])).long(),
            tags=torch.from_numpy(np.stack([s["tags"] for s in samples])).float(),
            ids=[s["id"] for s in samples],
            raw=raw,
            valid=torch.from_numpy(np.stack([s["valid"] for s in samples])),
            views=views,
        )


def training_loader(
    data: TrainingSet, sampler: StepSampler, groups: int, *, workers: int, pin: bool
) -> Iterator[list[Batch]]:
    """Yields, for each step of ``sampler``, the list of its groups' batches; errors as in
    :func:`harness.engine.loading.loaded`."""
    return loaded(
        data,
        Collate(groups),
        workers=workers,
        pin=pin,
        batch_sampler=sampler,
        prefetch_factor=4 if workers else None,
        generator=torch.Generator(),  # keeps the loader off the global generator
    )
