"""What a method sees of the world: a batch and the progress of training. Nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from harness.basics.errors import UserError, nearest
from harness.data.base import IGNORE, UNLABELLED
from harness.nn.pixels import normalise

__all__ = ["IGNORE", "UNLABELLED", "Batch", "NoView", "PackedBatch", "Progress", "View"]


def _moved(value: Any, move: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return move(value)
    if isinstance(value, View | Batch | PackedBatch):
        return replace(value, **{f.name: _moved(getattr(value, f.name), move) for f in fields(value)})
    if isinstance(value, dict):
        return {k: _moved(v, move) for k, v in value.items()}
    return tuple(_moved(v, move) for v in value) if isinstance(value, tuple) else value


@dataclass
class View:
    """Another augmented view of the same pictures, on request of ``Method.views``.

    Attributes:
        images: ``(B, 3, h, w)`` float32, ImageNet-normalised.
        raw: ``(B, 3, h, w)`` uint8 colours before normalisation.
        valid: ``(B, h, w)`` bool, False where padded.
    """

    images: Tensor
    raw: Tensor
    valid: Tensor


class NoView(UserError, KeyError):
    """A loss asks for a view, or for further pictures, that its method did not ask a batch to carry."""


class _Carried(dict[str, Any]):
    """What a batch carries by name; what is not there is named, with what is."""

    field, what = "views", "view"

    def __missing__(self, name: str) -> Any:
        raise NoView(
            f"a batch carries no {self.what} {name!r}",
            where=f"batch.{self.field}",
            remedy=nearest(str(name), self) if self else f"let the method's `{self.field}` ask for it",
        )


class _Further(_Carried):
    """Further pictures by name."""

    field, what = "further", "further pictures"


@dataclass
class Batch:
    """One group's share of a training step. Dense masks are absent under weak supervision.

    Attributes:
        images: ``(B, 3, H, W)`` float32, ImageNet-normalised.
        labels: ``(B, H, W)`` int64: ``0..K-1`` class, 254 not annotated, 255 padding (void under
            ``full`` only).
        tags: ``(B, K)`` float32 multi-hot over the whole, uncropped weak label; background only if
            it was annotated.
        ids: image ids.
        raw: ``(B, 3, H, W)`` uint8 colours after geometric augmentation, before normalisation.
        valid: ``(B, H, W)`` bool, False where padded.
        views: further views by name, only those that the method asked for; another name raises
            :class:`NoView`.
        further: batches of further pictures by name, likewise: their labels are all 254 (255 where padded)
            and their tags 0, whatever the supervision; ``views`` are those of the method.
    """

    images: Tensor
    labels: Tensor
    tags: Tensor
    ids: list[str]
    raw: Tensor
    valid: Tensor
    views: dict[str, View] = field(default_factory=dict)
    further: dict[str, Batch] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.views, self.further = _Carried(self.views), _Further(self.further)

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Batch:
        """A copy on ``device``."""
        return _moved(self, lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory."""
        return _moved(self, lambda t: t.pin_memory())

    def rows(self, rows: slice) -> Batch:
        """Some of the samples, and the same share of further ones."""
        kept = [f.name for f in fields(self) if f.name != "further"]
        values = {name: _moved(getattr(self, name), lambda t: t[rows]) for name in kept}
        first, last, _ = rows.indices(len(self))
        further = {
            name: more.rows(slice(first * len(more) // len(self), last * len(more) // len(self)))
            for name, more in self.further.items()
        }
        return replace(self, **{**values, "ids": self.ids[rows], "further": further})

    def pieces(self, number: int) -> Iterator[Batch]:
        """The batch cut into so many pieces, for gradients that are accumulated."""
        each = math.ceil(len(self) / number)
        for start in range(0, len(self), each):
            yield self if number == 1 else self.rows(slice(start, start + each))

    def __len__(self) -> int:
        return len(self.ids)


@dataclass
class PackedBatch:
    """What a loader hands over of a :class:`Batch`: bytes, a fifth of what the batch takes.

    Attributes:
        raw: ``(B, 3, H, W)`` uint8.
        labels: ``(B, H, W)`` uint8.
        tags: ``(B, K)`` uint8.
        ids: image ids.
        valid: ``(B, H, W)`` bool.
        views: colours and validity of further views, as ``raw`` and ``valid``, by name.
        further: of further pictures, by name.
    """

    raw: Tensor
    labels: Tensor
    tags: Tensor
    ids: list[str]
    valid: Tensor
    views: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    further: dict[str, PackedBatch] = field(default_factory=dict)

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Batch:
        """The batch, made on ``device`` of the bytes that are copied there."""
        there: PackedBatch = _moved(self, lambda t: t.to(device, non_blocking=non_blocking))
        return there._unpacked()

    def _unpacked(self) -> Batch:
        return Batch(
            images=normalise(self.raw),
            labels=self.labels.long(),
            tags=self.tags.float(),
            ids=self.ids,
            raw=self.raw,
            valid=self.valid,
            views={name: View(normalise(raw), raw, valid) for name, (raw, valid) in self.views.items()},
            further={name: more._unpacked() for name, more in self.further.items()},
        )

    def pin_memory(self) -> PackedBatch:
        """A copy in page-locked memory (called by the data loader)."""
        return _moved(self, lambda t: t.pin_memory())

    def share_memory(self) -> PackedBatch:
        """A copy that other processes see without another copy; fails where there is no room for it."""
        return _moved(self, lambda t: t.share_memory_())


@dataclass(frozen=True)
class Progress:
    """Where training stands when a step begins.

    Attributes:
        step: optimiser steps already taken, ``0 .. total - 1``.
        total: optimiser steps of the whole run.
        steps_per_epoch: optimiser steps in one pass over the training split.
    """

    step: int
    total: int
    steps_per_epoch: int

    @property
    def epoch(self) -> int:
        """Completed passes over the training split."""
        return self.step // self.steps_per_epoch

    @property
    def fraction(self) -> float:
        """Share of the run that is done, in ``[0, 1)``."""
        return self.step / self.total
