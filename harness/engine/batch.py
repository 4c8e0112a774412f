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

__all__ = ["IGNORE", "UNLABELLED", "Batch", "NoView", "Progress", "View"]


def _moved(value: Any, move: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return move(value)
    if isinstance(value, View | Batch):
        return replace(value, **{f.name: _moved(getattr(value, f.name), move) for f in fields(value)})
    if isinstance(value, dict):
        return {k: _moved(v, move) for k, v in value.items()}
    return value


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

        def move(t: Tensor) -> Tensor:
            return t.to(device, non_blocking=non_blocking)

        return replace(self, **{f.name: _moved(getattr(self, f.name), move) for f in fields(self)})

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory (called by the data loader)."""
        return replace(
            self, **{f.name: _moved(getattr(self, f.name), lambda t: t.pin_memory()) for f in fields(self)}
        )

    def share_memory(self) -> Batch:
        """A copy that other processes see without another copy; fails where there is no room for it."""
        return replace(
            self, **{f.name: _moved(getattr(self, f.name), lambda t: t.share_memory_()) for f in fields(self)}
        )

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
