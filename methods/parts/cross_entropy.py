"""Cross-entropies over what is annotated."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.engine.batch import IGNORE


def total_cross_entropy(logits: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
    """Sum of the cross-entropies of all pixels whose target is not ``IGNORE``.

    CUDA's own sum adds in any order. Where deterministic kernels are asked for, the sum is taken afterwards,
    at the cost of a map.

    Args:
        logits: ``(B, K, H, W)`` floating point.
        targets: ``(B, H, W)`` int64 in ``0..K-1``, or ``IGNORE``.
        weight: ``(K,)`` of the classes; 1 by default.
    """
    options: dict[str, Any] = {"weight": weight, "ignore_index": IGNORE}
    if torch.are_deterministic_algorithms_enabled():
        return F.cross_entropy(logits, targets, reduction="none", **options).sum()
    return F.cross_entropy(logits, targets, reduction="sum", **options)


def partial_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the labelled pixels of a batch; 0 with zero gradient if there are none.

    Args:
        logits: ``(B, K, H, W)`` floating point.
        labels: ``(B, H, W)`` int64; values outside ``0..K-1`` are not labelled.

    Returns:
        Scalar of the dtype of ``logits``.
    """
    labelled = labels < logits.shape[1]
    targets = labels.where(labelled, IGNORE)
    return total_cross_entropy(logits, targets) / labelled.sum().clamp(min=1)


def two_sided_cross_entropy(logits: Tensor, labels: Tensor, background: int | None) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy over annotated background pixels, and that over annotated foreground pixels.

    Args:
        logits: ``(B, K, H, W)`` float32 or float64.
        labels: ``(B, H, W)`` int64; values outside ``0..K-1`` do not count.
        background: its label; None makes everything foreground.

    Returns:
        Two scalars; a side without pixels is 0 with zero gradient.
    """
    known = labels < logits.shape[1]
    cost = F.cross_entropy(logits, labels.where(known, 0), reduction="none")
    behind = known & (labels == (-1 if background is None else background))
    first, second = (
        torch.where(side, cost, 0).sum() / side.sum().clamp(min=1) for side in (behind, known & ~behind)
    )
    return first, second
