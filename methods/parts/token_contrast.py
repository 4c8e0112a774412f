"""Contrast of patch tokens and of class tokens (ToCo, Ru et al., CVPR 2023, model/losses.py)."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from harness.engine.batch import IGNORE
from harness.nn.precision import outside_autocast

Form = Literal["toco", "paper"]


def affinity_labels(labels: Tensor) -> Tensor:
    """Pairs of tokens: 1 same label, 0 different, 255 a token with itself or one undecided.

    Args:
        labels: ``(B, h, w)`` or ``(B, N)`` int64, 255 undecided.

    Returns:
        ``(B, N, N)`` int64.
    """
    flat = labels.flatten(1)
    known = flat != IGNORE
    pair = (flat[:, :, None] == flat[:, None, :]).long()
    pair = pair.masked_fill_(~(known[:, :, None] & known[:, None, :]), IGNORE)
    pair.diagonal(dim1=1, dim2=2).fill_(IGNORE)
    return pair


def patch_token_contrast(
    features: Tensor, labels: Tensor, form: Form = "toco", reduce: Literal["pooled", "per_image"] = "pooled"
) -> Tensor:
    """Pull tokens of one label together and push those of two apart (PTC).

    With the cosine s of every ordered pair i != j of decided tokens of one picture:

    ``toco``   ``(1 - sum_same |s| / (n_same + 1)) / 2 + sum_other |s| / (n_other + 1) / 2``, sums over
               the batch (ToCo model/losses.py)
    ``paper``  ``mean_same (1 - s) + mean_other s`` (DSKD+GC equation 4); a side without pairs is 0

    Undecided tokens are left out before the cosines are taken, and the pairs enter as one weight each,
    so a single matrix of cosines is made.

    Args:
        features: ``(B, C, h, w)`` tokens.
        labels: ``(B, h, w)`` int64, 255 undecided.
        form: see above.
        reduce: ``paper`` only: means over the pairs of the batch, or of each picture and then over pictures.

    Returns:
        Scalar, float32 (float64 for such features), outside autocast. Without a decided pair it is 0.5
        (``toco``) or 0 (``paper``), with zero gradient.
    """
    with outside_autocast(features.device):
        x = features.to(torch.promote_types(features.dtype, torch.float32)).flatten(2).mT
        flat, order = _decided_first(labels.flatten(1))
        x = F.normalize(x.gather(1, order[..., None].expand(-1, -1, x.shape[2])), dim=2, eps=1e-8)
        known = flat != IGNORE
        pairs = known[:, :, None] & known[:, None, :]
        pairs.diagonal(dim1=1, dim2=2).fill_(False)
        same = flat[:, :, None] == flat[:, None, :]
        over = (1, 2) if form == "paper" and reduce == "per_image" else (0, 1, 2)
        number = pairs.sum(over, keepdim=True).to(x.dtype)
        positive = (pairs & same).sum(over, keepdim=True).to(x.dtype)
        negative = number - positive
        if form == "toco":
            near, far, absolute = 0.5 / (positive + 1), 0.5 / (negative + 1), True
            constant: Tensor | float = 0.5
        else:
            images = 1 if reduce == "pooled" else len(x)
            near, far = 1 / positive.clamp(min=1) / images, 1 / negative.clamp(min=1) / images
            constant, absolute = (positive > 0).to(x.dtype).sum() / images, False
        weights = torch.where(same, -near, far).masked_fill_(~pairs, 0)
        return constant + _WeightedCosines.apply(x, weights, absolute)


def _decided_first(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Labels ``(B, M)`` with decided ones in front, M the most that a picture has, and their places."""
    known = labels != IGNORE
    number = int(known.sum(1).max())
    order = known.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :number]
    return labels.gather(1, order), order


class _WeightedCosines(torch.autograd.Function):
    """``sum_ij w_ij s_ij`` or ``sum_ij w_ij |s_ij|`` with symmetric weights, ``s = x x^T``.

    The gradient is one product instead of two, since both factors are the same tensor.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, absolute: bool) -> Tensor:
        cosines = x @ x.mT
        if absolute:
            weights = weights * cosines.sign()
        ctx.save_for_backward(x, weights)
        return (weights * cosines).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, weights = ctx.saved_tensors
        return (2 * grad) * (weights @ x), None, None


def class_token_contrast(student: Tensor, teacher: Tensor, positive: Tensor, temperature: float) -> Tensor:
    """Contrast of class tokens: global views against crops that show an object, or do not (CTC).

    With ``e_vj = exp(t_v . s_j / temperature)``, N_v the sum of e_vj over the negative crops and P the
    number of positive ones, a picture's loss is
    ``sum_v [sum_pos -log(e_vj / (e_vj + N_v + 1e-4)) - log(1 / (1 + N_v + 1e-4))] / (2 (P + 1e-4))``.
    The last term stands outside the sum over crops in the authors' code and is kept.

    Args:
        student: ``(B, V, D)`` projections of all views, global ones included.
        teacher: ``(B, G, D)`` projections of the global views, without gradient.
        positive: ``(B, V)``, non-zero for global views and crops of uncertain or foreground regions.
        temperature: 0.5 on VOC; the COCO script has 1.

    Returns:
        Scalar mean over pictures, float32 (float64 for such projections), outside autocast.
    """
    with outside_autocast(student.device):
        student = student.to(torch.promote_types(student.dtype, torch.float32))
        scores = teacher.detach().to(student.dtype) @ student.mT / temperature  # (B, G, V)
        chosen = (positive != 0)[:, None]
        negatives = (scores.exp() * ~chosen).sum(2) + 1e-4
        terms = (torch.logaddexp(scores, negatives.log()[..., None]) - scores) * chosen
        total = terms.sum((1, 2)) + negatives.log1p().sum(1)
        return (total / (2 * (chosen.sum((1, 2)) + 1e-4))).mean()
