"""Arrays of golden files, for tests of all folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def arrays(file: Path) -> dict[str, Tensor]:
    """The numeric arrays of a golden file."""
    with np.load(file) as data:
        return {k: torch.from_numpy(data[k]) for k in data if data[k].dtype.kind != "U"}


def boxes(corners: Tensor, height: int, width: int) -> Tensor:
    """Boxes (top, bottom, left, right) as masks ``(B, height, width)``."""
    inside = torch.zeros(len(corners), height, width, dtype=torch.bool)
    for mask, (top, bottom, left, right) in zip(inside, corners.tolist(), strict=True):
        mask[top:bottom, left:right] = True
    return inside
