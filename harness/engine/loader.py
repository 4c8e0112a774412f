"""Training batches: which sample stands where in which step, and how it becomes tensors.

The plan of a run (order of every epoch, generator of every sample) follows from the seed and the step
alone (:mod:`harness.engine.sampling`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler

from harness.basics.errors import UserError
from harness.data.base import Dataset
from harness.engine.augment import Sample, augment, jitter, recolour
from harness.engine.batch import UNLABELLED, PackedBatch
from harness.engine.loading import in_worker, loaded
from harness.engine.sampling import Pool, Stream, ordered
from harness.recipes.specs import Recipe

if TYPE_CHECKING:
    from harness.data.labels.label_store import LabelStore
    from harness.engine.build import FurtherSpec, ViewSpec
    from harness.engine.method import Method

#: A split whose decoded pictures and labels take no more bytes is decoded once (by each loader process).
KEPT_BYTES = 64 * 2**20

#: One sample of a step: step, slot in the step, index into its split; the name of further pictures behind it.
Slot = tuple[int, int, int] | tuple[int, int, int, str]


class StepSampler(Sampler[list[Slot]]):
    """All samples of each optimiser step, from a given step on.

    Args:
        length: pictures in the split.
        size: samples per step, over all groups.
        total: steps of the run.
        seed: seed of the run.
        start: first step to yield.
        slots: which samples of each step to yield; all by default.
        order: from epoch and generator to the indices of the epoch; a permutation by default.
        further: streams of further pictures, of which each step takes some.

    Raises:
        UserError: the split has fewer pictures than one step needs.
    """

    def __init__(
        self,
        length: int,
        size: int,
        total: int,
        seed: int,
        start: int = 0,
        slots: range | None = None,
        order: Callable[[int, np.random.Generator], np.ndarray] | None = None,
        further: Sequence[Stream] = (),
    ) -> None:
        self.length, self.size, self.total, self.seed, self.start = length, size, total, seed, start
        self.slots = range(size) if slots is None else slots
        self.order, self.further = order, further
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
                rng = np.random.Generator(np.random.PCG64([self.seed, epoch]))
                order = rng.permutation(self.length) if self.order is None else self.order(epoch, rng)
            first = step % self.steps_per_epoch * self.size
            own = [(step, slot, int(order[first + slot])) for slot in self.slots]
            yield [*own, *(sample for stream in self.further for sample in stream.at(step))]


class TrainingSet(TorchDataset):
    """Augmented samples of a split with its weak labels.

    Args:
        dataset: where pictures are read.
        ids: image ids of the split.
        labels: prepared labels in canonical encoding.
        recipe: crop and augmentation.
        seed: seed of the run.
        views: further views, by name.
        further: further pictures, by name. Those of the training split are ``ids``, of which a part may be
            held out.
    """

    def __init__(
        self,
        dataset: Dataset,
        ids: Sequence[str],
        labels: LabelStore,
        recipe: Recipe,
        seed: int,
        views: Mapping[str, ViewSpec],
        further: Mapping[str, FurtherSpec] | None = None,
    ) -> None:
        self.dataset, self.ids, self.labels, self.recipe = dataset, list(ids), labels, recipe
        self.seed, self.views, self.further = seed, dict(views), dict(further or {})
        self._others = {
            name: self.ids if spec.split in ("", recipe.train_split) else list(dataset.ids(spec.split))
            for name, spec in self.further.items()
        }
        self._kept: dict[tuple[str, int], tuple[np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def ids_of(self, name: str = "") -> list[str]:
        """Ids of the labelled pictures, or of further ones by their name."""
        return self._others[name] if name else self.ids

    def plan(self, method: Method, total: int, start: int, groups: range) -> StepSampler:
        """The samples of each step from ``start`` on, of these groups of a step."""
        batch = self.recipe.batch

        def slots(per_group: int) -> range:
            return range(groups[0] * per_group, (groups[-1] + 1) * per_group)

        streams = []
        for name, spec in self.further.items():
            number = spec.per_group or batch.per_group
            size = number * batch.groups
            streams.append(Stream(name, len(self._others[name]), size, self.seed, slots(number)))
        order = None
        if method.orders():
            order = partial(ordered, method, Pool(tuple(self.ids), np.asarray(self.labels.tags)))
        own = slots(batch.per_group)
        return StepSampler(len(self), batch.size, total, self.seed, start, own, order, streams)

    def __getitem__(self, slot: Slot) -> dict:
        step, place, index, *names = slot
        name = str(names[0]) if names else ""
        image_id = self.ids_of(name)[index]
        rng = random.Random(f"{self.seed}/{step}/{f'{name}/' if name else ''}{place}")
        image, label = self._read(index, name)
        drawn = (self.further[name].augment if name else None) or self.recipe.augment
        sample = augment(image, label, self.recipe.crop_size, drawn, rng)
        return {
            "id": image_id,
            "further": name,
            "tags": np.zeros_like(self.labels.tags[0]) if name else self.labels.tags[index],
            "image": sample.image,
            "label": sample.label,
            "valid": sample.valid,
            "views": {name: self._view(spec, sample, image, label, rng) for name, spec in self.views.items()},
        }

    def _read(self, index: int, name: str = "") -> tuple[np.ndarray, np.ndarray]:
        """Colours ``(H, W, 3)`` and label ``(H, W)`` of a picture; those of small splits stay in memory."""
        if (name, index) in self._kept:
            return self._kept[name, index]
        ids = self.ids_of(name)
        image, label = self.dataset.read_image(ids[index]), None if name else self.labels.read(ids[index])
        if label is None:
            label = np.full(image.shape[:2], UNLABELLED, np.uint8)
        # As if all were of this size: then a large split keeps nothing, rather than some of its pictures.
        if (image.nbytes + label.nbytes) * len(ids) <= KEPT_BYTES:
            for array in (image, label):
                array.setflags(write=False)
            self._kept[name, index] = image, label
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
    """Samples of one step to one :class:`PackedBatch` per group."""

    def __init__(self, groups: int) -> None:
        self.groups = groups

    def __call__(self, samples: Sequence[dict]) -> list[PackedBatch]:
        named: dict[str, list[dict]] = {}
        for sample in samples:
            named.setdefault(sample.get("further", ""), []).append(sample)
        batches = self._groups(named.pop(""))
        for name, own in named.items():
            for batch, more in zip(batches, self._groups(own), strict=True):
                batch.further[name] = more
        return [b.share_memory() for b in batches] if in_worker() else batches

    def _groups(self, samples: Sequence[dict]) -> list[PackedBatch]:
        per_group = len(samples) // self.groups
        return [self._one(samples[g * per_group : (g + 1) * per_group]) for g in range(self.groups)]

    def _one(self, samples: Sequence[dict]) -> PackedBatch:
        def stacked(arrays: Sequence[np.ndarray]) -> torch.Tensor:
            return torch.from_numpy(np.stack(arrays))

        views = {}
        for name in samples[0]["views"]:
            colours, inside = zip(*(s["views"][name] for s in samples), strict=True)
            views[name] = (_pictures(colours), stacked(inside))
        return PackedBatch(
            raw=_pictures([s["image"] for s in samples]),
            labels=stacked([s["label"] for s in samples]),
            tags=stacked([s["tags"] for s in samples]),
            ids=[s["id"] for s in samples],
            valid=stacked([s["valid"] for s in samples]),
            views=views,
        )


def training_loader(
    data: TrainingSet, sampler: StepSampler, groups: int, *, workers: int, pin: bool
) -> Iterator[list[PackedBatch]]:
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
