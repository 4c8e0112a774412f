"""Self-distillation between two views, on class tokens and on masked patches (FSR losses.py)."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


def distillation_targets(teacher: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """Sharpened teacher distributions ``softmax((z - centre) / temperature)`` over the last axis.

    Args:
        teacher: ``(..., D)`` projector outputs of the teacher.
        centre: ``(D,)`` running mean of such outputs.
        temperature: teacher temperature.
    """
    return ((teacher - centre) / temperature).softmax(-1).detach()


def distillation_terms(student: Tensor, targets: Tensor, temperature: float = 0.1) -> Tensor:
    """Cross-entropy of each row, ``- sum_d q_d log softmax(z / temperature)_d``.

    Args:
        student: ``(..., D)`` projector outputs of the student.
        targets: ``(..., D)`` from :func:`distillation_targets`.
        temperature: student temperature.

    Returns:
        ``(...)``.
    """
    return -(targets * (student / temperature).log_softmax(-1)).sum(-1)


def class_distillation(student: Tensor, targets: Tensor, temperature: float = 0.1) -> Tensor:
    """The certain part ("cer.FSR"): class tokens of the student's views against view 1 of the teacher.

    Args:
        student: ``(V, B, D)`` projector outputs of class tokens: the masked view 2, then local views.
        targets: ``(B, D)`` from :func:`distillation_targets` of the teacher's view 1.
        temperature: student temperature.

    Returns:
        Scalar: the mean over views and images.
    """
    return distillation_terms(student, targets, temperature).mean()


def patch_distillation(student: Tensor, targets: Tensor, counts: Tensor, temperature: float = 0.1) -> Tensor:
    """The uncertain part ("unc.FSR"): masked patches of view 2 against the teacher's at the same places.

    Args:
        student: ``(B, M, D)`` projector outputs of the student's masked tokens (:func:`masked_tokens`).
        targets: ``(B, M, D)`` from :func:`distillation_targets`, of the same tokens.
        counts: ``(B, M)`` 1 for a masked token, 0 for one that only fills up.
        temperature: student temperature.

    Returns:
        Scalar: the mean over each image's masked tokens, then over images; an image without one counts 0.
    """
    terms = distillation_terms(student, targets, temperature) * counts
    return (terms.sum(1) / counts.sum(1).clamp(min=1)).mean()


def masked_tokens(mask: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Where the masked tokens are, the same number for every image, without waiting for the device.

    Args:
        mask: ``(B, h, w)`` bool; at most ``number`` True in any image.
        number: M.

    Returns:
        Indices ``(B, M)`` int64 into the ``h * w`` tokens, and ``(B, M)`` float32: 1 where the token is
        masked, 0 where it only fills up.
    """
    counts, index = mask.flatten(1).float().topk(number, dim=1)
    return index, counts


class Centre(nn.Module):
    """Running mean of the teacher's outputs, moved once per optimiser step.

    The authors average over the images of all GPUs. Here groups are computed one after the other, or
    one per process: each adds its outputs with :meth:`collect`, and :meth:`update` moves the centre by
    the mean over all of them. So every group of a step sees the same centre, as theirs do.

    Args:
        width: D.
        momentum: weight of the old centre.
    """

    value: Tensor
    _sum: Tensor
    _count: Tensor

    def __init__(self, width: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(width))
        self.register_buffer("_sum", torch.zeros(width), persistent=False)
        self.register_buffer("_count", torch.zeros(()), persistent=False)

    @torch.no_grad()
    def collect(self, outputs: Tensor) -> None:
        """Add teacher outputs ``(..., D)`` to this step's mean; every row weighs the same."""
        rows = outputs.flatten(0, -2)
        self._sum += rows.sum(0)
        self._count += len(rows)

    @torch.no_grad()
    def update(self) -> None:
        """``value <- momentum * value + (1 - momentum) * mean``; nothing where nothing was collected."""
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self._sum)
            dist.all_reduce(self._count)
        mean = self._sum / self._count.clamp(min=1)
        weight = (1 - self.momentum) * (self._count > 0).to(mean.dtype)  # not in float32 for float64
        self.value.lerp_(mean, weight)
        self._sum.zero_()
        self._count.zero_()


def teacher_temperature(step: int, start: float, end: float, steps: int) -> float:
    """Linear from ``start`` at step 0 to ``end`` at step ``steps - 1``, constant afterwards.

    Args:
        step: 0-based optimiser step.
        start, end: temperatures.
        steps: length of the rise; 0 for none.
    """
    if step >= steps:
        return end
    return start + (end - start) * step / max(steps - 1, 1)
