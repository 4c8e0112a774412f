"""Gaussian filtering in a few dimensions: the permutohedral lattice in tensors, and the exact sum.

The lattice (Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice",
Eurographics 2010) approximates ``sum_j exp(-|f_i - f_j|^2 / 2) v_j`` in time linear in the number of
points: every point is spread over the corners of the simplex that holds it (splat), the corners are
blurred along each of the lattice's axes with ``(1/2, 1, 1/2)``, and read back (slice). Rounding, ties,
the axes' order and the final factor follow the C++ code behind rloss (bilateralfilter) and
pydensecrf, so that loss weights tuned with them keep their meaning.

It is *not* the Gaussian: sums come out at about 0.4 to 0.65 of the exact ones, and after the best
rescaling the error is still some 5 to 16 % rms. :func:`gaussian_filter` is the exact sum, quadratic in
the number of points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from harness.nn.constants import constant
from harness.nn.precision import outside_autocast


def bilateral_features(images: Tensor, *, sigma_xy: float, sigma_rgb: float | None) -> Tensor:
    """Position and colour as filter features, in the order of the authors' code: x, y, r, g, b.

    The order matters to the lattice, which is not isotropic.

    Args:
        images: ``(B, 3, H, W)`` any number type, colours on the scale of ``sigma_rgb`` (0..255).
        sigma_xy: standard deviation of positions, in pixels.
        sigma_rgb: standard deviation of colours; None for position alone.

    Returns:
        ``(B, 5, H, W)``, or ``(B, 2, H, W)`` without colour; float64 for float64 images, else float32.
    """
    dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
    batch, _, height, width = images.shape
    x = torch.arange(width, dtype=dtype, device=images.device).expand(height, width)
    y = torch.arange(height, dtype=dtype, device=images.device)[:, None].expand(height, width)
    position = (torch.stack([x, y]) / sigma_xy).expand(batch, 2, height, width)
    if sigma_rgb is None:
        return position.contiguous()
    return torch.cat([position, images.detach().to(dtype) / sigma_rgb], dim=1)


@dataclass(frozen=True, eq=False)
class Lattice:
    """The lattice of a batch of point sets; build it once, filter any number of channels with it.

    The pictures of a batch share the tables but never exchange values. All three steps are gathers
    with a fixed order of summation, so results repeat bit for bit.

    Attributes:
        shape: ``(B, *spatial)`` of the points.
        corners: ``(B * N, d + 1)`` int64, the lattice vertices around each point.
        weights: ``(B * N, d + 1)`` barycentric coordinates, rows sum to one.
        points: ``(B * N * (d + 1),)`` int64, the points that reach each vertex, vertex by vertex.
        point_weights: their barycentric coordinates.
        starts: ``(M + 1,)`` int64, where each of the ``M`` vertices begins in ``points``.
        stencils: ``(d + 1, M + 1, 3)`` int64, each vertex and its two neighbours along each axis. Row
            ``M`` is the empty vertex that stands for neighbours which no point reaches.
    """

    shape: tuple[int, ...]
    corners: Tensor
    weights: Tensor
    points: Tensor
    point_weights: Tensor
    starts: Tensor
    stencils: Tensor

    @property
    def num_vertices(self) -> int:
        """Vertices that some point reaches, over the whole batch."""
        return self.starts.numel() - 1

    def filter(self, values: Tensor, *, transposed: bool = False) -> Tensor:
        """Filter every channel; differentiable in ``values``.

        Args:
            values: ``(B, C, *spatial)``, converted to the lattice's dtype.
            transposed: apply the adjoint (the axes in reverse order). The two differ by a few percent,
                since neighbours are missing at the rim of the occupied region.

        Returns:
            ``(B, C, *spatial)`` in the lattice's dtype (float32 or float64).

        Raises:
            ValueError: values of another batch or size than the lattice's.
        """
        if (values.shape[0], *values.shape[2:]) != self.shape:
            raise ValueError(
                f"values {tuple(values.shape)} do not fit a lattice of (B, *spatial) {self.shape}"
            )
        return _Filter.apply(values.to(self.weights.dtype), self, transposed)

    def _filter(self, values: Tensor, transposed: bool) -> Tensor:
        batch, channels = values.shape[:2]
        rows = values.flatten(2).transpose(1, 2).reshape(-1, channels)
        x = F.embedding_bag(self.points, rows, self.starts, mode="sum", per_sample_weights=self.point_weights)
        kernel = constant((1, 0.5, 0.5), x.device, x.dtype).expand(x.shape[0], 3).contiguous()
        for stencil in self.stencils.flip(0) if transposed else self.stencils:
            x = F.embedding_bag(stencil, x, mode="sum", per_sample_weights=kernel)
        x = F.embedding_bag(self.corners, x, mode="sum", per_sample_weights=self.weights)
        x = x / (1 + 2.0 ** -(self.corners.shape[1] - 1))
        return x.view(batch, -1, channels).transpose(1, 2).reshape(values.shape)


class _Filter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, lattice: Lattice, transposed: bool) -> Tensor:
        ctx.lattice, ctx.transposed = lattice, transposed
        return lattice._filter(values, transposed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.lattice._filter(grad.to(ctx.lattice.weights.dtype), not ctx.transposed), None, None


@torch.no_grad()
def build_lattice(features: Tensor) -> Lattice:
    """Build the lattice of a batch of point sets. Takes no gradient with respect to ``features``.

    Reads the features' range and the number of vertices back from the device.

    Args:
        features: ``(B, d, *spatial)``, already divided by the standard deviations; float64 is kept,
            anything else becomes float32.

    Raises:
        ValueError: features that are not finite, or spread over more lattice cells than 63 bits count
            (a standard deviation that is far too small).
    """
    batch, d = features.shape[:2]
    f = features.to(torch.float64 if features.dtype == torch.float64 else torch.float32)
    f = f.flatten(2).transpose(0, 1).reshape(d, -1)  # (d, B * N)
    if not torch.isfinite(f).all():
        raise ValueError("the features to be filtered are not finite")
    remainder, rank, barycentric = _enclosing_simplex(f)

    strides, origin = _strides(remainder[:d], batch)
    picture = torch.arange(batch, device=f.device).repeat_interleave(f.shape[1] // batch)
    key = (remainder[:d].long() - origin[:, None]).mul_(strides[1:, None]).sum(0).add_(picture * strides[0])
    step = torch.cat([strides[1:], strides.new_zeros(1)])  # the last coordinate follows from the others
    keys = _corner_keys(key, rank, step)

    # One stable sort gives the vertices, and for each of them the points that reach it.
    ordered, order = torch.sort(keys.flatten(), stable=True)
    first = torch.ones_like(ordered, dtype=torch.bool)
    torch.ne(ordered[1:], ordered[:-1], out=first[1:])
    vertex = first.cumsum(0) - 1
    corners = torch.empty_like(vertex).scatter_(0, order, vertex).view(d + 1, -1)
    starts = first.nonzero()[:, 0]
    return Lattice(
        shape=(batch, *features.shape[2:]),
        corners=corners.T.contiguous(),
        weights=barycentric.T.contiguous(),
        points=order % f.shape[1],
        point_weights=barycentric.flatten()[order],
        starts=F.pad(starts, (0, 1), value=ordered.numel()),
        stencils=_stencils(ordered[starts], step),
    )


def _enclosing_simplex(f: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The simplex that holds each of the points ``(d, n)``.

    Returns:
        its corner of remainder zero ``(d + 1, n)``, integers as floats; the rank of each coordinate's
        offset from it ``(d + 1, n)`` int64, 0 for the largest; the barycentric coordinates
        ``(d + 1, n)`` by the corner's remainder.
    """
    d, n = f.shape
    spread = math.sqrt(2 / 3) * (d + 1)
    elevated = f.new_empty(d + 1, n)  # the hyperplane of zero sum in d + 1 dimensions
    above = torch.zeros_like(f[0])
    for j in range(d, 0, -1):
        scaled = f[j - 1] * (spread / math.sqrt(j * (j + 1)))
        elevated[j] = above - j * scaled
        above = above + scaled
    elevated[0] = above

    rounded = torch.round(elevated / (d + 1))
    excess = rounded.sum(0)
    corner = rounded.mul_(d + 1)
    offset = elevated - corner
    rank = excess.repeat(d + 1, 1)
    for i in range(d + 1):
        for j in range(i + 1, d + 1):
            smaller = offset[i] < offset[j]  # of equals, the lower index ranks first
            rank[i] += smaller
            rank[j] += ~smaller
    shift = (d + 1) * ((rank < 0).to(f.dtype) - (rank > d).to(f.dtype))
    rank, corner = (rank + shift).long(), corner + shift

    descending = torch.empty_like(elevated).scatter_(0, rank, (elevated - corner) / (d + 1))
    barycentric = torch.empty_like(elevated)
    barycentric[0] = descending[d] + (1 - descending[0])
    barycentric[1:] = (descending[:-1] - descending[1:]).flip(0)
    return corner, rank, barycentric


def _strides(corner: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """Mixed-radix strides ``(1 + d,)`` for picture and coordinates, and the coordinates' origin ``(d,)``.

    The range leaves room for a simplex's other corners and their neighbours, so that a sum of a key and
    an offset of keys never carries into the next digit.
    """
    d = corner.shape[0]
    margin = 2 * (d + 1)
    bounds = torch.stack([corner.amin(1), corner.amax(1)])
    low, high = bounds.tolist()  # for the check alone: what is needed on the device is computed there
    sizes = [int(top - bottom) + 2 * margin + 1 for bottom, top in zip(low, high, strict=True)]
    if max(math.prod(sizes) * batch, *map(abs, low + high)) >= 2**63:
        raise ValueError(
            f"features span {sizes} lattice cells, more than 63-bit keys count; use larger deviations"
        )
    origin, top = bounds.long()
    extent = top - origin + (2 * margin + 1)
    strides = F.pad(extent.flip(0).cumprod(0).flip(0), (0, 1), value=1)
    return strides, origin - margin


def _corner_keys(key: Tensor, rank: Tensor, step: Tensor) -> Tensor:
    """Keys ``(d + 1, n)`` of a simplex's corners, from the key of its corner of remainder zero.

    Corner ``k`` adds ``k`` to every coordinate, less ``d + 1`` for the ``k`` of the highest ranks.
    """
    d = step.numel() - 1
    by_rank = torch.empty_like(rank).scatter_(0, rank, step[:, None].expand_as(rank))
    keys = by_rank.flip(0).mul_(-(d + 1)).add_(step.sum()).cumsum_(0).roll(1, 0)
    keys[0] = 0
    return keys.add_(key)


def _stencils(vertices: Tensor, step: Tensor) -> Tensor:
    """Each vertex and its neighbours along every axis ``(d + 1, M + 1, 3)``; ``M`` where there is none."""
    d, m = step.numel() - 1, vertices.numel()
    here = torch.arange(m + 1, device=vertices.device)
    # Along axis a: one down in every coordinate, d up in coordinate a.
    towards = vertices + ((d + 1) * step - step.sum())[:, None]
    found = torch.searchsorted(vertices, towards).clamp_(max=m - 1)
    back = torch.where(vertices[found] == towards, found, m)
    back = torch.cat([back, back.new_full((d + 1, 1), m)], dim=1)
    forth = torch.full_like(back, m).scatter_(1, back, here.expand_as(back))
    forth[:, m] = m  # written by every vertex without a neighbour
    return torch.stack([here.expand_as(back), back, forth], dim=2)


def gaussian_filter(features: Tensor, values: Tensor, *, chunk: int = 1024) -> Tensor:
    """The exact sum ``sum_j exp(-|f_i - f_j|^2 / 2) v_j``; quadratic in the number of points.

    A reference, and a choice for small maps (up to about 60x60): at 224x224 it takes some hundred times
    the lattice's time. Differentiable in ``values``; the filter is its own adjoint.

    Args:
        features: ``(B, d, *spatial)``, already divided by the standard deviations.
        values: ``(B, C, *spatial)``.
        chunk: points whose kernel rows are held at a time, ``chunk * N`` numbers (our choice).

    Returns:
        ``(B, C, *spatial)``, float64 for float64 features, else float32.
    """
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    return _GaussianFilter.apply(values.to(dtype), features.detach().to(dtype), chunk)


class _GaussianFilter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, features: Tensor, chunk: int) -> Tensor:
        ctx.save_for_backward(features)
        ctx.chunk = chunk
        return _gaussian_filter(features, values, chunk)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (features,) = ctx.saved_tensors
        return _gaussian_filter(features, grad.to(features.dtype), ctx.chunk), None, None


def _gaussian_filter(features: Tensor, values: Tensor, chunk: int) -> Tensor:
    f, v = features.flatten(2), values.flatten(2)
    out = torch.empty_like(v)
    with outside_autocast(features.device):
        for start in range(0, f.shape[2], chunk):
            rows = slice(start, start + chunk)
            # Differences, not the expanded square: that one loses four digits in float32.
            distance = f.new_zeros(len(f), min(chunk, f.shape[2] - start), f.shape[2])
            for feature in f.unbind(1):
                distance += (feature[:, rows, None] - feature[:, None]).square_()
            out[:, :, rows] = v @ distance.mul_(-0.5).exp_().transpose(1, 2)
    return out.view_as(values)
