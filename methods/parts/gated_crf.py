"""Gated CRF loss in shift form.

Obukhov et al., "Gated CRF Loss for Weakly Supervised Semantic Image Segmentation", 2019 (GatedCRFLoss
module of the authors). The authors unfold every window, which holds ``(2r + 1)^2`` copies of the
probabilities and the features and as many again for the backward pass. Here each pair of pixels is
visited once, by comparing two shifted slices, and the gradient is accumulated on the way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torch.autograd.function import once_differentiable

from harness.basics.schema import schema
from harness.nn.precision import outside_autocast

#: The name under which a kernel's ``sigmas`` lists the pixels' positions.
POSITION = "xy"


@schema
class GatedCRFKernel:
    """One Gaussian of the mixture ``sum_m w_m exp(-1/2 sum_f |f_i - f_j|^2 / s_f^2)``."""

    weight: float = 1.0
    """Share of the mixture [authors' default: one kernel of weight 1]."""
    sigmas: dict[str, float] = Field(default_factory=lambda: {POSITION: 6.0, "rgb": 0.1})
    """Standard deviation by modality; ``xy`` is the position in prediction pixels [authors' default]."""


def half_window(radius: int, height: int, width: int) -> Iterator[tuple[int, int, tuple, tuple]]:
    """Every pair of pixels within a square window, once.

    Yields:
        the offset ``(dy, dx)`` with ``dy > 0``, or ``dy = 0`` and ``dx > 0``, and the two index tuples
        that cut the overlapping slices out of a map ``(..., height, width)``: pixel and neighbour.
    """
    for dy in range(min(radius, height - 1) + 1):
        for dx in range(-min(radius, width - 1), min(radius, width - 1) + 1):
            if dy > 0 or dx > 0:
                left, right = max(-dx, 0), width - max(dx, 0)
                here = (..., slice(0, height - dy), slice(left, right))
                there = (..., slice(dy, height), slice(left + dx, right + dx))
                yield dy, dx, here, there


def neighbours_inside(radius: int, height: int, width: int, device: torch.device) -> Tensor:
    """How many positions of the window around each pixel lie in the image ``(height, width)``, int64."""

    def along(length: int) -> Tensor:
        at = torch.arange(length, device=device)
        return (at + radius).clamp_(max=length - 1) - (at - radius).clamp_(min=0) + 1

    return along(height)[:, None] * along(width)


def gated_crf_loss(
    probabilities: Tensor,
    modalities: Mapping[str, Tensor],
    *,
    kernels: Sequence[GatedCRFKernel] = (GatedCRFKernel(),),
    radius: int = 5,
    mask_src: Tensor | None = None,
    mask_dst: Tensor | None = None,
    count_outside: bool = False,
) -> Tensor:
    """``(1/D) sum_i sum_{j in window(i), j != i} k_ij m_src(j) m_dst(i) (1 - p_i . p_j)``.

    Defaults are the authors' (their training weight is 0.1, from 0.5 % of the steps on). ``D`` is the sum
    of ``m_dst``, else that of ``m_src``, else the number of pixels. Modalities and masks of another size
    are averaged down to the prediction; a mask then counts only where all of it is valid.

    Args:
        probabilities: ``(B, K, h, w)`` softmax.
        modalities: features ``(B, C, H, W)`` by name, such as ``rgb`` (the sigma's default is for
            normalised colours). One that requires grad is trained through; detach it otherwise.
        kernels: the mixture; every modality named there must be given, except ``xy``.
        radius: of the square window, in pixels of the prediction.
        mask_src: ``(B, H, W)`` bool or 0/1: pixels that may send, usually the unpadded ones.
        mask_dst: ``(B, H, W)`` likewise: pixels that receive.
        count_outside: without ``mask_src`` the authors' code takes neighbours outside the image for
            pixels with all features, position and probabilities zero. That adds about 1 % to the loss
            and nothing to the gradient by ``probabilities``. False leaves them out.

    Returns:
        scalar, float64 for float64 probabilities, else float32; computed outside autocast. Zero where
        the mask that divides is empty (our choice; the authors' code divides by zero).

    Raises:
        ValueError: a kernel names a modality that is not given, or names none.
    """
    for kernel in kernels:
        missing = kernel.sigmas.keys() - modalities.keys() - {POSITION}
        if missing or not kernel.sigmas:
            raise ValueError(f"kernel over {sorted(kernel.sigmas)}, modalities given: {sorted(modalities)}")
    with outside_autocast(probabilities.device):
        p = probabilities.to(torch.promote_types(probabilities.dtype, torch.float32))
        height, width = p.shape[2:]
        features = [_scaled_features(kernel, modalities, p) for kernel in kernels]
        src, dst = _valid(mask_src, p), _valid(mask_dst, p)
        total = _GatedCRF.apply(p, src, dst, radius, tuple(kernels), *features)
        if count_outside and src is None:
            outside = (2 * radius + 1) ** 2 - neighbours_inside(radius, height, width, p.device)
            for kernel, feature in zip(kernels, features, strict=True):
                alone = _kernel_with_origin(kernel, feature, p) * outside
                total = total + (alone if dst is None else alone * dst[:, 0]).sum()
        counted = dst if dst is not None else src
        denominator = p[:, 0].numel() if counted is None else counted.sum().clamp(min=1)
        return total / denominator


def _scaled_features(kernel: GatedCRFKernel, modalities: Mapping[str, Tensor], p: Tensor) -> Tensor:
    """A kernel's modalities over their deviations ``(B, C, h, w)``; ``C`` is 0 for position alone."""
    parts = [p.new_zeros(len(p), 0, *p.shape[2:])]
    for name, sigma in kernel.sigmas.items():
        if name != POSITION:
            feature = modalities[name].to(p.dtype)
            if feature.shape[2:] != p.shape[2:]:
                feature = F.interpolate(feature, size=p.shape[2:], mode="area")
            parts.append(feature / sigma)
    return torch.cat(parts, dim=1)


def _valid(mask: Tensor | None, p: Tensor) -> Tensor | None:
    """A mask at the prediction's size ``(B, 1, h, w)``, one only where all of its area is valid."""
    if mask is None:
        return None
    area = F.interpolate(mask[:, None].to(p.dtype), size=p.shape[2:], mode="area")
    return (area > 1 - 1e-6).to(p.dtype)  # a mean of ones may round


def _kernel_with_origin(kernel: GatedCRFKernel, feature: Tensor, p: Tensor) -> Tensor:
    """The kernel ``(B, h, w)`` between each pixel and one at position zero with zero features."""
    exponent = feature.square().sum(1)
    if POSITION in kernel.sigmas:
        y = torch.arange(p.shape[2], dtype=p.dtype, device=p.device)[:, None]
        x = torch.arange(p.shape[3], dtype=p.dtype, device=p.device)
        exponent = exponent + (y.square() + x.square()) / kernel.sigmas[POSITION] ** 2
    return kernel.weight * torch.exp(-0.5 * exponent)


class _GatedCRF(torch.autograd.Function):
    """The double sum, and its gradients by the probabilities and by each kernel's features.

    The sum is linear in each of its probabilities, so half of ``p . grad`` is the part of it that
    depends on them: no product of probabilities is needed besides those of the gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        p: Tensor,
        src: Tensor | None,
        dst: Tensor | None,
        radius: int,
        kernels: tuple[GatedCRFKernel, ...],
        *features: Tensor,
    ) -> Tensor:
        trained = ctx.needs_input_grad[5:]
        grad_p = torch.zeros_like(p)
        grad_features = [
            torch.zeros_like(f) if wanted else None for f, wanted in zip(features, trained, strict=True)
        ]
        mass = torch.zeros_like(p[:, :1])  # of the kernel, by pixel
        for dy, dx, here, there in half_window(radius, *p.shape[2:]):
            # Both directions of the pair at once.
            gate = _pair_gate(src, dst, here, there)
            parts = [
                _pair_kernel(kernel, f, dy, dx, here, there) * gate
                for kernel, f in zip(kernels, features, strict=True)
            ]
            k = sum(parts[1:], parts[0])
            mass[here] += k
            mass[there] += k
            grad_p[here].addcmul_(k, p[there], value=-1)
            grad_p[there].addcmul_(k, p[here], value=-1)
            if any(trained):
                disagreement = 1 - (p[here] * p[there]).sum(1, keepdim=True)
                for part, f, grad in zip(parts, features, grad_features, strict=True):
                    if grad is not None:
                        pull = (f[here] - f[there]) * (part * disagreement)
                        grad[here].sub_(pull)
                        grad[there].add_(pull)
        ctx.save_for_backward(grad_p, *grad_features)
        # Pixel by pixel, since the two parts nearly cancel where neighbours agree.
        return (mass[:, 0] + (p * grad_p).sum(1)).sum() / 2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_p, *grad_features = ctx.saved_tensors
        scaled = [None if g is None else grad * g for g in grad_features]
        return (grad * grad_p, None, None, None, None, *scaled)


def _pair_gate(src: Tensor | None, dst: Tensor | None, here: tuple, there: tuple) -> Tensor | float:
    """``m_src(j) m_dst(i) + m_src(i) m_dst(j)`` of each pair; a missing mask is one."""
    if src is None and dst is None:
        return 2.0
    if src is None or dst is None:
        mask = src if src is not None else dst
        assert mask is not None
        return mask[here] + mask[there]
    return src[there] * dst[here] + src[here] * dst[there]


def _pair_kernel(kernel: GatedCRFKernel, f: Tensor, dy: int, dx: int, here: tuple, there: tuple) -> Tensor:
    """One Gaussian between two shifted slices ``(B, 1, h', w')``."""
    sigma = kernel.sigmas.get(POSITION, math.inf)
    near = kernel.weight * math.exp(-0.5 * (dy * dy + dx * dx) / sigma**2)
    return (f[here] - f[there]).square_().sum(1, keepdim=True).mul_(-0.5).exp_().mul_(near)
