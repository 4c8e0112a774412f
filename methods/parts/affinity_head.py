"""Pairwise feature consistency in a local window: the affinity losses of A2GNN.

Zhang, Xiao, Jiao, Wei and Zhao, "Affinity Attention Graph Neural Network for Weakly Supervised Semantic
Segmentation", TPAMI 2021 (A2GNN; code resnet38_aff_gated.py and train_gated_aff.py). The distance of two
pixels is the mean absolute difference of their features, their affinity ``exp(-distance)``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from harness.engine.batch import UNLABELLED
from harness.nn.precision import outside_autocast
from methods.parts.gated_crf import half_window, neighbours_inside


def window_distance(features: Tensor, radius: int) -> Tensor:
    """Mean absolute feature difference between each pixel and those of the window around it.

    Args:
        features: ``(B, C, H, W)`` float32 or float64.
        radius: of the square window.

    Returns:
        ``(B, 2r + 1, 2r + 1, H, W)`` by vertical and horizontal offset. A neighbour outside the image
        counts as a zero vector, as in the authors' zero-padded unfold; see :func:`window_inside`.
    """
    return _WindowDistance.apply(features, radius)


class _WindowDistance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, radius: int) -> Tensor:
        ctx.save_for_backward(z)
        ctx.radius = radius
        side = 2 * radius + 1
        out = z.abs().mean(1)[:, None, None].repeat(1, side, side, 1, 1)
        out[:, radius, radius] = 0
        for dy, dx, here, there in half_window(radius, *z.shape[2:]):
            distance = (z[here] - z[there]).abs_().mean(1)
            out[:, radius + dy, radius + dx][here] = distance
            out[:, radius - dy, radius - dx][there] = distance
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (z,) = ctx.saved_tensors
        r = ctx.radius
        out = torch.zeros_like(z)
        inside = torch.zeros_like(grad[:, 0, 0])  # gradient that belongs to neighbours in the image
        for dy, dx, here, there in half_window(r, *z.shape[2:]):
            to, fro = grad[:, r + dy, r + dx][here], grad[:, r - dy, r - dx][there]
            inside[here] += to
            inside[there] += fro
            pull = (z[here] - z[there]).sign_().mul_((to + fro)[:, None])
            out[here] += pull
            out[there] -= pull
        outside = grad.sum((1, 2)) - grad[:, r, r] - inside
        # What is left inside is rounding, not gradient.
        at_rim = neighbours_inside(r, z.shape[2], z.shape[3], z.device) < (2 * r + 1) ** 2
        out += z.sign() * torch.where(at_rim, outside, 0)[:, None]
        return out / z.shape[1], None


def window_inside(radius: int, height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Which neighbours of :func:`window_distance` lie in the image ``(2r + 1, 2r + 1, H, W)``, bool."""
    offset = torch.arange(-radius, radius + 1, device=device)

    def along(length: int) -> Tensor:
        at = torch.arange(length, device=device) + offset[:, None]
        return (at >= 0) & (at < length)

    return along(height)[:, None, :, None] & along(width)[None, :, None, :]


def _neighbours(maps: Tensor, radius: int, outside: float) -> Tensor:
    """The window around each pixel of ``(B, C, H, W)``: ``(B, C, 2r + 1, 2r + 1, H, W)``."""
    padded = torch.nn.functional.pad(maps, (radius,) * 4, value=outside)
    side = 2 * radius + 1
    return padded.unfold(2, side, 1).unfold(3, side, 1).permute(0, 1, 4, 5, 2, 3)


class AffinityLoss(NamedTuple):
    """The affinity loss and its parts.

    Attributes:
        loss: ``background / 4 + foreground / 4 + different / 2``.
        background: mean of ``-log(a + 1e-5)`` over pairs of background pixels.
        foreground: mean of ``-log(a + 1e-5)`` over pairs of one foreground class.
        different: mean of ``-log(1 + 1e-5 - a)`` over pairs of different classes.
        counts: ``(3,)`` int64, numbers of ordered pairs, in this order.
    """

    loss: Tensor
    background: Tensor
    foreground: Tensor
    different: Tensor
    counts: Tensor


def affinity_loss(
    features: Tensor, labels: Tensor, *, radius: int = 4, pad_background: bool = False
) -> AffinityLoss:
    """Pull features of equal labels together and those of different labels apart (A2GNN training loss).

    A pixel's pair with itself counts among the equal ones, as coded.

    Args:
        features: ``(B, C, H, W)``.
        labels: ``(B, H, W)`` int64, 0 background; 254 and above unlabelled. Padding is none of the
            classes either.
        radius: of the window [4; the code has 3 for image labels and points].
        pad_background: True counts neighbours outside the image as background with zero features, as
            the authors' zero-padded unfold does, which doubles the background pairs of a small map;
            False leaves them out.

    Returns:
        the loss in float64 for float64 features, else float32, computed outside autocast. A kind of
        pair that does not occur contributes zero (our choice).
    """
    with outside_autocast(features.device):
        z = features.to(torch.promote_types(features.dtype, torch.float32))
        affinity = torch.exp(-window_distance(z, radius))
        centre = labels[:, None, None]
        outside = 0 if pad_background else UNLABELLED
        around = _neighbours(labels[:, None], radius, outside)[:, 0]
        paired = (centre < UNLABELLED) & (around < UNLABELLED)
        equal = paired & (centre == around)
        kinds = [equal & (centre == 0), equal & (centre > 0), paired & (centre != around)]
        attract, repel = -torch.log(affinity + 1e-5), -torch.log(1 + 1e-5 - affinity)
        counts = torch.stack([kind.sum() for kind in kinds])
        background, foreground, different = (
            torch.where(kind, cost, 0).sum() / count.clamp(min=1)
            for kind, cost, count in zip(kinds, (attract, attract, repel), counts, strict=True)
        )
        loss = background / 4 + foreground / 4 + different / 2
        return AffinityLoss(loss, background, foreground, different, counts)


def affinity_regulariser(
    features: Tensor,
    colours: Tensor,
    *,
    mask: Tensor | None = None,
    radius: int = 4,
    sigma_xy: float = 6.0,
    sigma_rgb: float = 0.1,
) -> Tensor:
    """``sum k |z_i - z_j| m / sum m``: features follow colours and positions (weight 3 in A2GNN).

    ``k`` is a Gaussian of position and colour, zero for a pixel with itself; ``m`` is one where the pixel
    and its neighbour in the image are valid. A pixel's pair with itself counts in ``sum m``, as coded.

    Args:
        features: ``(B, C, H, W)``.
        colours: ``(B, 3, H, W)`` normalised colours of the same size.
        mask: ``(B, H, W)`` bool or 0/1, valid pixels; None is all.
        radius: of the window.
        sigma_xy: standard deviation of positions in pixels of the features.
        sigma_rgb: standard deviation of colours.

    Returns:
        scalar, float64 for float64 features, else float32; computed outside autocast.
    """
    with outside_autocast(features.device):
        z = features.to(torch.promote_types(features.dtype, torch.float32))
        rgb = colours.detach().to(z.dtype)
        valid = torch.ones_like(rgb[:, 0]) if mask is None else mask.to(z.dtype)
        m = valid[:, None, None] * _neighbours(valid[:, None], radius, 0)[:, 0]
        at = torch.arange(-radius, radius + 1, dtype=z.dtype, device=z.device)
        position = (at[:, None].square() + at.square()) / sigma_xy**2
        apart = (_neighbours(rgb, radius, 0) - rgb[:, :, None, None]).square().sum(1) / sigma_rgb**2
        kernel = torch.exp(-0.5 * (apart + position[:, :, None, None]))
        kernel[:, radius, radius] = 0
        return (kernel * window_distance(z, radius) * m).sum() / m.sum().clamp(min=1)
