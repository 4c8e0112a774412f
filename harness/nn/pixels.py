"""From pixels to what networks read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from harness.basics.imagenet import MEAN, STD
from harness.nn.constants import constant


def normalise(raw: Tensor) -> Tensor:
    """``(..., 3, H, W)`` uint8 RGB to float32 with ImageNet mean 0 and deviation 1."""
    mean, std = constant((MEAN, STD), raw.device)[..., None, None]
    return (raw.float() / 255 - mean) / std


@dataclass(frozen=True)
class FromImageNet:
    """A forward pre-hook that turns ImageNet-normalised pictures into those of another mean and deviation.

    Attributes:
        mean: of R, G and B in [0, 1], that the module's weights were trained with.
        std: their deviations.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments of ``module`` with the first, ``(B, 3, H, W)`` pictures, in its colours."""
        images = arguments[0]
        scale = tuple(own / new for own, new in zip(STD, self.std, strict=True))
        shift = tuple((own - new) / std for own, new, std in zip(MEAN, self.mean, self.std, strict=True))
        factor, offset = constant((scale, shift), images.device, images.dtype)[..., None, None]
        return (images * factor + offset, *arguments[1:])
