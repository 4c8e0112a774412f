"""Colours of normalised pictures."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.nn.constants import constant
from harness.nn.precision import outside_autocast

#: ImageNet statistics of RGB in 0..255.
RGB_MEAN = (123.675, 116.28, 103.53)
RGB_STD = (58.395, 57.12, 57.375)


def colours(images: Tensor) -> Tensor:
    """Undo the ImageNet normalisation: ``(B, 3, H, W)`` to float32 colours 0..255, whole but for rounding."""
    with outside_autocast(images.device):
        mean, std = constant((RGB_MEAN, RGB_STD), images.device)[..., None, None]
        return images.float() * std + mean


def denormalise(images: Tensor) -> Tensor:
    """:func:`colours` as uint8, cut off to whole numbers, not rounded (ToCo and FSR utils/imutils.py).

    So a colour may come back one step darker, and the order of the two operations decides which.
    """
    return colours(images).to(torch.uint8)
