"""From pixels to what networks read."""

from __future__ import annotations

import torch
from torch import Tensor

#: ImageNet statistics of RGB in [0, 1].
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def normalise(raw: Tensor) -> Tensor:
    """``(..., 3, H, W)`` uint8 RGB to float32 with ImageNet mean 0 and deviation 1."""
    mean = torch.tensor(MEAN, device=raw.device).view(3, 1, 1)
    std = torch.tensor(STD, device=raw.device).view(3, 1, 1)
    return (raw.float() / 255 - mean) / std
