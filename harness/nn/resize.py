"""Bilinear resizing of scores and features and its transpose, and OpenCV's cubic resizing of pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def resize(x: Tensor, size: Sequence[int], *, align_corners: bool) -> Tensor:
    """Bilinear resize of ``(B, C, h, w)`` to ``(B, C, *size)``; ``x`` itself when the size is right."""
    if x.shape[-2:] == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=align_corners)


def cubic_resize(images: Tensor, factors: tuple[float, float], size: Sequence[int]) -> Tensor:
    """Pictures at ``factors`` times their size, as OpenCV's ``resize(..., fx, fy, INTER_CUBIC)`` makes them.

    A cubic kernel with a = -0.75 over four pixels a side whatever the factor (no antialiasing), the border
    pixel repeated outside. Pixel ``i`` of the result is read at ``(i + 0.5) / factor - 0.5``, however the
    size was rounded.

    Args:
        images: ``(B, C, H, W)`` floating point.
        factors: of width and height.
        size: (height, width) of the result, within a pixel of the factors' product with the old size.

    Returns:
        ``(B, C, *size)``, not clamped.
    """
    # Torch cuts the size off; with a border of repeated pixels nothing is lost, and nothing else changes.
    right, below = (math.ceil(2 / factor) for factor in factors)
    padded = F.pad(images, (0, right, 0, below), mode="replicate")
    scaled = F.interpolate(
        padded, scale_factor=(factors[1], factors[0]), mode="bicubic", recompute_scale_factor=False
    )
    return scaled[..., : size[0], : size[1]]


def scaled_side(side: int, factor: float) -> int:
    """A side of a scaled picture as OpenCV rounds it: to the nearest integer, halves to the even one."""
    return max(round(side * factor), 1)


def resize_matrix(
    n_out: int,
    n_in: int,
    *,
    align_corners: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """The matrix ``(n_out, n_in)`` of a linear resize along one side; its rows sum to one."""
    columns = torch.eye(n_in, dtype=dtype, device=device)[None]
    return F.interpolate(columns, size=n_out, mode="linear", align_corners=align_corners)[0].T


def transposed_resize(x: Tensor, size: Sequence[int], *, align_corners: bool = False) -> Tensor:
    """The transpose (adjoint) of a bilinear resize from ``size`` to the size of ``x``.

    Resizing is linear, so for any map ``f`` of the small size ``sum(x * resize(f))`` equals
    ``sum(transposed_resize(x) * f)``: sums over a large map are taken on the small one, exactly.

    Args:
        x: ``(..., H, W)`` floating point.
        size: the small size ``(h, w)``.
        align_corners: of the resize that is transposed.

    Returns:
        ``(..., h, w)`` of the dtype of ``x``.
    """
    height, width = x.shape[-2:]
    rows = resize_matrix(height, size[0], align_corners=align_corners, dtype=x.dtype, device=x.device)
    columns = resize_matrix(width, size[1], align_corners=align_corners, dtype=x.dtype, device=x.device)
    return rows.T @ (x @ columns)
