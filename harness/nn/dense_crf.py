"""Dense CRF: the regularised loss for training, and mean-field inference for post-processing.

Loss: Tang et al., "On Regularized Losses for Weakly-supervised CNN Segmentation", ECCV 2018 (rloss
DenseCRFLoss.py), and its gated variant in RRM, ToCo and FSR (DenseEnergyLoss). Inference: Krähenbühl
and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", NIPS 2011, as
coded in pydensecrf. Both filter on the permutohedral lattice of :mod:`harness.nn.lattice`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from harness.basics.errors import UserError
from harness.basics.finite import scores_error
from harness.nn.crf_parameters import CRFParameters, crf_parameters
from harness.nn.lattice import bilateral_features, build_lattice, gaussian_filter
from harness.nn.precision import outside_autocast
from harness.nn.resize import resize

# --- the loss ----------------------------------------------------------------------------------------


def dense_crf_loss(
    probabilities: Tensor,
    images: Tensor,
    *,
    roi: Tensor | None = None,
    unlabelled: Tensor | None = None,
    extra: Tensor | None = None,
    sigma_rgb: float | None = 15.0,
    sigma_xy: float = 100.0,
    scale: float = 0.5,
    gradient: Literal["coded", "true"] = "coded",
    kernel: Literal["lattice", "exact"] = "lattice",
) -> Tensor:
    """Dense CRF energy ``-(1/B) sum_b sum_k <S_k, G (K S_k)>`` of soft segmentations ``S``.

    ``S`` is ``probabilities * roi``, ``K`` the bilateral Gaussian with every pixel's own term, ``G``
    a gate: one everywhere for the plain loss; for the gated loss ``max(0, roi - max_k p_k)``, and one
    where ``unlabelled``. Nothing is divided by the number of pixels, so the value grows with the
    resolution, and published weights hold for it and for the lattice, which sums to about half of the
    exact kernel.

    Published settings (weight, sigma_rgb, sigma_xy, scale): rloss in PyTorch 2e-9, 15, 100, 0.5; its
    Caffe ResNet-101 model 13 and 80; RRM, ToCo and FSR (gated) 1e-7, 15, 100, 0.5. Multiply by the
    weight outside.

    Args:
        probabilities: ``(B, K, H, W)`` softmax. Resized bilinearly by ``scale``.
        images: ``(B, 3, H, W)`` colours 0..255, any number type. Resized by ``scale`` to the nearest.
        roi: ``(B, H, W)`` region of interest in [0, 1], such as the unpadded area; None is all ones.
            Resized to the nearest.
        unlabelled: ``(B, H, W)`` bool; given, it turns the gate on. Resized to the nearest.
        extra: ``(B, D, h, w)`` further features of the kernel over their standard deviations, resized
            bilinearly; no gradient reaches them. Each dimension makes the lattice larger.
        sigma_rgb: standard deviation of colours; None leaves colours out of the kernel.
        sigma_xy: standard deviation of positions in pixels before resizing.
        scale: resolution of the loss relative to the images.
        gradient: ``coded`` is that of the authors' code, ``-(2/B) G (K S) roi``. For the plain loss
            it is right up to the lattice's asymmetry (a few percent); for the gated one it is not the
            energy's derivative (single entries differ by half and more). ``true`` is the derivative with the
            gate held constant, ``-(1/B) (G (K S) + K^T (G S)) roi``, at the price of a second filter.
        kernel: ``lattice``, or the ``exact`` Gaussian, which is quadratic in the number of pixels.

    Returns:
        scalar, float64 for float64 probabilities, else float32; computed outside autocast.

    Raises:
        ValueError: sizes that do not match, or an unknown ``gradient`` or ``kernel``.
    """
    if gradient not in ("coded", "true") or kernel not in ("lattice", "exact"):
        raise ValueError(f"unknown gradient {gradient!r} or kernel {kernel!r}")
    shape = (probabilities.shape[0], *probabilities.shape[2:])
    for name, given in {"images": images[:, 0], "roi": roi, "unlabelled": unlabelled}.items():
        if given is not None and given.shape != shape:
            raise ValueError(f"{name} of {tuple(given.shape)} beside probabilities of {shape}")

    with outside_autocast(probabilities.device):
        p = probabilities.to(torch.promote_types(probabilities.dtype, torch.float32))
        region = torch.ones_like(p[:, :1]) if roi is None else roi[:, None].to(p.dtype)
        colours = images.detach().to(p.dtype)
        if scale != 1:
            p = F.interpolate(p, scale_factor=scale, mode="bilinear", align_corners=False)
            colours = F.interpolate(colours, scale_factor=scale)
            region = F.interpolate(region, scale_factor=scale)
        gate = None
        if unlabelled is not None:
            free = F.interpolate(unlabelled[:, None].to(p.dtype), scale_factor=scale) > 0
            confident = (region - p.detach().amax(1, keepdim=True)).clamp_(min=0)
            gate = torch.where(free, 1.0, confident)
        features = bilateral_features(colours, sigma_xy=sigma_xy * scale, sigma_rgb=sigma_rgb)
        if extra is not None:
            others = resize(extra.detach().to(features.dtype), features.shape[2:], align_corners=False)
            features = torch.cat([features, others], dim=1)
        apply, adjoint = _kernel(features, kernel)
        return _DenseEnergy.apply(p * region, gate, apply, adjoint if gradient == "true" else None)


def _kernel(features: Tensor, kind: str) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """The kernel as a function of values, and its adjoint."""
    if kind == "exact":
        return (lambda v: gaussian_filter(features, v),) * 2
    lattice = build_lattice(features)
    return lattice.filter, lambda v: lattice.filter(v, transposed=True)


class _DenseEnergy(torch.autograd.Function):
    """The energy of ``S``; its gradient is made in the forward pass, as the filtered map is at hand."""

    @staticmethod
    def forward(
        ctx: Any,
        s: Tensor,
        gate: Tensor | None,
        apply: Callable[[Tensor], Tensor],
        adjoint: Callable[[Tensor], Tensor] | None,
    ) -> Tensor:
        filtered = apply(s) if gate is None else apply(s) * gate
        energy = -(s * filtered).sum() / len(s)
        if ctx.needs_input_grad[0]:
            other = filtered if adjoint is None else adjoint(s if gate is None else s * gate)
            ctx.save_for_backward((filtered + other).div_(-len(s)))
        return energy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return grad * gradient, None, None, None


# --- mean field --------------------------------------------------------------------------------------


def label_probabilities(labels: Tensor, num_classes: int, *, confidence: float = 0.7) -> Tensor:
    """Hard labels as probabilities for :func:`mean_field` (pydensecrf unary_from_labels).

    Args:
        labels: ``(B, H, W)`` int64; anything outside ``0..num_classes - 1`` gets equal probabilities.
        num_classes: at least 2.
        confidence: probability of the label, in (0, 1); the rest is shared by the other classes [0.7
            in the helpers of ToCo, DuPL and WeCLIP].

    Returns:
        ``(B, num_classes, H, W)`` float32.
    """
    known = (labels >= 0) & (labels < num_classes)
    classes = torch.arange(num_classes, device=labels.device)[:, None, None]
    labelled = (labels[:, None] == classes).float()
    labelled = labelled * (confidence - (1 - confidence) / (num_classes - 1))
    labelled += (1 - confidence) / (num_classes - 1)
    return torch.where(known[:, None], labelled, 1 / num_classes)


@torch.no_grad()
def mean_field(
    probabilities: Tensor,
    images: Tensor,
    parameters: CRFParameters | str,
    *,
    engine: Literal["torch", "pydensecrf"] = "torch",
) -> Tensor:
    """Refine soft segmentations by dense CRF mean-field inference.

    ``Q <- softmax(-U + sum_f w_f n_f F_f(n_f Q))`` from ``Q = softmax(-U)``, with ``U = -log p``, ``F_f``
    the lattice filter of a term, ``w_f`` its weight and ``n_f = (F_f 1)^-1/2`` (pydensecrf's symmetric
    normalisation).

    Args:
        probabilities: ``(B, K, H, W)``; values below 1e-5 count as 1e-5, as in pydensecrf.
        images: ``(B, 3, H, W)`` colours 0..255; a float image is rounded.
        parameters: a set, or the name of a published one.
        engine: ``torch`` runs on the tensors' device and needs nothing else; ``pydensecrf`` is the
            compiled package, picture by picture on the CPU.

    Returns:
        ``(B, K, H, W)`` float32 on the device of ``probabilities``, summing to one over ``K``.

    Raises:
        UserError: unknown parameter set, or pydensecrf asked for and not installed.
        NonFiniteScoresError: a probability is NaN.
        ValueError: sizes that do not match, or an unknown engine.
    """
    p = crf_parameters(parameters) if isinstance(parameters, str) else parameters
    if (probabilities.shape[0], *probabilities.shape[2:]) != (images.shape[0], *images.shape[2:]):
        raise ValueError(f"images of {tuple(images.shape)} beside probabilities {tuple(probabilities.shape)}")
    colours = images if images.dtype == torch.uint8 else images.round().clamp(0, 255).to(torch.uint8)
    if bool(probabilities.isnan().any()):  # minus infinity counts as 1e-5; infinity is cut to 1
        raise scores_error("the probabilities that enter the CRF")
    with outside_autocast(probabilities.device):
        unary = probabilities.float().clamp(1e-5, 1).log_().neg_()
        if engine == "pydensecrf":
            return _pydensecrf(unary, colours, p)
        if engine != "torch":
            raise ValueError(f"unknown engine {engine!r}")
        terms = [
            _Potts(bilateral_features(colours, sigma_xy=xy, sigma_rgb=rgb), weight)
            for xy, rgb, weight in (
                (p.gaussian_sigma_xy, None, p.gaussian_compat),
                (p.bilateral_sigma_xy, p.bilateral_sigma_rgb, p.bilateral_compat),
            )
        ]
        q = torch.softmax(-unary, dim=1)
        for _ in range(p.iterations):
            score = -unary
            for term in terms:
                score += term.message(q)
            q = torch.softmax(score, dim=1)
        return q


class _Potts:
    """One Potts term: a normalised filter and its weight."""

    def __init__(self, features: Tensor, weight: float) -> None:
        self.lattice, self.weight = build_lattice(features), weight
        # 1e-20 as in pydensecrf; the filter of ones is at least the point's own share.
        self.norm = (self.lattice.filter(torch.ones_like(features[:, :1])) + 1e-20).rsqrt()

    def message(self, q: Tensor) -> Tensor:
        return self.lattice.filter(q * self.norm).mul_(self.norm).mul_(self.weight)


def _pydensecrf(unary: Tensor, colours: Tensor, p: CRFParameters) -> Tensor:
    try:
        package = importlib.import_module("pydensecrf.densecrf")
    except ImportError as error:
        raise UserError(
            "pydensecrf is asked for but not installed",
            where="engine",
            remedy="leave the engine at 'torch', which gives the same result, or run "
            "`pip install pydensecrf2` (needs a C++ compiler)",
        ) from error
    _, classes, height, width = unary.shape
    refined = torch.empty_like(unary, device="cpu")
    for energies, picture, out in zip(unary.cpu().flatten(2), colours.cpu(), refined, strict=True):
        crf = package.DenseCRF2D(width, height, classes)
        crf.setUnaryEnergy(energies.contiguous().numpy())
        crf.addPairwiseGaussian(sxy=p.gaussian_sigma_xy, compat=p.gaussian_compat)
        crf.addPairwiseBilateral(
            sxy=p.bilateral_sigma_xy,
            srgb=p.bilateral_sigma_rgb,
            rgbim=picture.permute(1, 2, 0).contiguous().numpy(),
            compat=p.bilateral_compat,
        )
        q = torch.from_numpy(np.array(crf.inference(p.iterations)))
        out.copy_(q.view(classes, height, width))
    return refined.to(unary.device)
