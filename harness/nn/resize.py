"""Bilinear resizing of scores and features, and its transpose."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def resize(x: Tensor, size: Sequence[int], *, align_corners: bool) -> Tensor:
    """Bilinear resize of ``(B, C, h, w)`` to ``(B, C, *size)``; ``x`` itself when the size is right."""
    if x.shape[-2:] == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=align_corners)


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
