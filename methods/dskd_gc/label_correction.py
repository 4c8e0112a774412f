"""Correction of pseudo labels by what neighbours look like, where labels are likely to be noise.

From *Dual-stage guided weakly supervised semantic segmentation with Gaussian correction* (Journal of
Image and Graphics 30(12), 2025), equations E18 to E21. A noise probability G splits the pixels: above
``theta_high`` lies the region R_h, between the thresholds R_u, the rest is clean. In both regions a pixel
that differs from one of its four neighbours becomes background. Otherwise a pixel of R_h is ignored, and
one of R_u takes the label of the neighbour most like it.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.engine.batch import IGNORE
from methods.dskd_gc_config import Border, CorrectionSource, Rewrite

#: Steps (rows, columns) to up, down, left, right: of equally similar neighbours the first counts.
NEIGHBOURS = ((-1, 0), (1, 0), (0, -1), (0, 1))
#: Channels enlarged at a time, so that memory does not grow with the width of a network.
CHUNK = 64


class NoiseRegions(NamedTuple):
    """Bool maps ``(B, h, w)``; with the clean pixels they part the picture."""

    high: Tensor
    uncertain: Tensor


def noise_regions(noise: Tensor, theta_low: float = 0.25, theta_high: float = 0.85) -> NoiseRegions:
    """R_h (G > theta_high) and R_u (theta_low < G < theta_high); on a threshold a pixel is clean.

    Args:
        noise: ``(B, h, w)`` noise probability G.
        theta_low: lower threshold.
        theta_high: upper threshold.
    """
    return NoiseRegions(noise > theta_high, (noise > theta_low) & (noise < theta_high))


def shifted(x: Tensor, distance: int, fill: float | int) -> Tensor:
    """Values at the four neighbours: ``(B, h, w)`` to ``(B, 4, h, w)``, up, down, left, right.

    Args:
        x: maps of any dtype.
        distance: pixels from a pixel to its neighbours.
        fill: what stands outside.
    """
    height, width = x.shape[-2:]
    padded = F.pad(x, (distance,) * 4, value=fill)
    return torch.stack(
        [padded[:, distance * (1 + i) :, distance * (1 + j) :][:, :height, :width] for i, j in NEIGHBOURS],
        dim=1,
    )


def neighbour_similarity(
    features: Tensor,
    *,
    size: tuple[int, int] | None = None,
    mode: Literal["nearest", "bilinear"] = "nearest",
    distance: int = 1,
    border: Border = "valid",
) -> Tensor:
    """Cosine similarity of every position and its four neighbours (E18, E20).

    Args:
        features: ``(B, C, h, w)`` floating point.
        size: enlarge the features to ``(H, W)`` first.
        mode: how.
        distance: positions from a position to its neighbours, on the enlarged grid.
        border: a neighbour outside is absent (NaN), has features 0 (similarity 0), or is the position
            itself.

    Returns:
        ``(B, 4, H, W)``, up, down, left, right; float64 for float64 features, else float32.
    """
    size = size or (features.shape[-2], features.shape[-1])
    x = features.detach()
    x = x if x.dtype == torch.float64 else x.float()
    own = x.new_zeros(x.shape[0], *size)
    down, right = torch.zeros_like(own), torch.zeros_like(own)
    for chunk in x.split(CHUNK, dim=1):
        big = chunk if chunk.shape[-2:] == size else F.interpolate(chunk, size=size, mode=mode)
        own += big.square().sum(1)
        down[:, :-distance] += (big[:, :, :-distance] * big[:, :, distance:]).sum(1)
        right[:, :, :-distance] += (big[..., :-distance] * big[..., distance:]).sum(1)
    tiny = torch.finfo(x.dtype).tiny
    length = own.sqrt()
    lengths = shifted(length, distance, 0.0)
    products = torch.stack(
        [
            down.roll(distance, 1),  # what wraps around is outside, and replaced below
            down,
            right.roll(distance, 2),
            right,
        ],
        dim=1,
    )
    similarity = products / (length[:, None] * lengths).clamp(min=tiny)
    if border == "zero":
        return similarity.where(_inside(size, distance, x.device), 0)
    outside = torch.full_like(length, math.nan) if border == "valid" else (length > 0).to(x)
    return similarity.where(_inside(size, distance, x.device), outside[:, None])


def _inside(size: tuple[int, int], distance: int, device: torch.device) -> Tensor:
    """``(1, 4, H, W)`` bool: the neighbour lies in the picture."""
    return shifted(torch.ones(1, *size, dtype=torch.uint8, device=device), distance, 0) > 0


@torch.no_grad()
def correct_labels(
    labels: Tensor,
    noise: Tensor,
    similarity: Tensor,
    *,
    tau: float,
    theta_low: float = 0.25,
    theta_high: float = 0.85,
    distance: int = 1,
    border: Border = "valid",
    source: CorrectionSource = "initial",
    rewrite: Rewrite = "all",
) -> Tensor:
    """Corrected labels (E19, E21); every other pixel keeps its label.

    Args:
        labels: ``(B, h, w)`` int64: 0 background, other classes, 255 no label.
        noise: ``(B, h, w)`` noise probability G.
        similarity: ``(B, 4, h, w)`` from :func:`neighbour_similarity` with the same ``border``.
        tau: a neighbour less similar than this makes a noisy pixel background.
        theta_low, theta_high: see :func:`noise_regions`.
        distance: pixels from a pixel to its neighbours.
        border: with `replicate` a neighbour outside has the pixel's own label, else label 0.
        source: pixels of R_u copy initial labels, or those that R_h has already changed.
        rewrite: `keep_bg` leaves background labels in R_h alone.

    Returns:
        ``(B, h, w)`` int64.
    """
    high, uncertain = noise_regions(noise, theta_low, theta_high)
    differs = (similarity < tau).any(1)  # absent neighbours are NaN, which is less than nothing
    if rewrite == "keep_bg":
        high = high & (labels != 0)
    after_high = labels.where(~high, differs.logical_not() * IGNORE)
    copied = labels if source == "initial" else after_high
    neighbours = shifted(copied, distance, 0)
    if border == "replicate":
        inside = _inside((labels.shape[-2], labels.shape[-1]), distance, labels.device)
        neighbours = neighbours.where(inside, copied[:, None])
    present = similarity.nan_to_num(nan=-math.inf)
    best, value = neighbours[:, 0], present[:, 0]
    for k in range(1, len(NEIGHBOURS)):
        better = present[:, k] > value
        best = neighbours[:, k].where(better, best)
        value = torch.maximum(present[:, k], value)
    return after_high.where(~uncertain, best.where(~differs, 0))
