"""Colours of normalised pictures."""

from __future__ import annotations

import torch
from torch import Tensor

#: ImageNet statistics of RGB in 0..255.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


def denormalise(images: Tensor) -> Tensor:
    """Undo the ImageNet normalisation: ``(B, 3, H, W)`` to uint8 colours.

    Values are cut off to whole numbers, not rounded, as in ToCo and FSR utils/imutils.py; so a colour
    may come back one step darker, and the order of the two operations decides which.
    """
    with torch.autocast(images.device.type, enabled=False):
        mean, std = images.new_tensor([MEAN, STD], dtype=torch.float32)[..., None, None]
        return (images.float() * std + mean).to(torch.uint8)
