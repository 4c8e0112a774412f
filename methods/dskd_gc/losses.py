"""Losses of DSKD+GC that no other method has, one function for each equation.

Equation numbers are counted from the paper: E7 mirror consistency, E9 region of interest, E10 distillation
of uncertain patches, E22 segmentation. Every function takes float32 or float64 and computes in it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.engine.batch import IGNORE
from methods.dskd_gc_config import Reduce, SegmentationForm, SimilarityMode


def mirror_consistency(mirrored: Tensor, plain: Tensor, mode: SimilarityMode = "channel") -> Tensor:
    """L_sim (E7): minus the mean cosine between the features of a picture and of its mirror image.

    Args:
        mirrored: ``(B, C, h, w)`` features of the mirrored picture, as the network gave them.
        plain: ``(B, C, h, w)`` features of the picture.
        mode: the vectors compared: each channel's map, as printed, each token's features, or a picture's
            whole map.

    Returns:
        Scalar in ``[-1, 1]``; -1 where features mirror exactly as pictures do. Both sides take gradient.
    """
    one, other = mirrored.flip(-1).flatten(2), plain.flatten(2)
    if mode == "flat":
        one, other = one.flatten(1), other.flatten(1)
    return -F.cosine_similarity(one, other, dim=2 if mode == "channel" else 1).mean()


@torch.no_grad()
def region_of_interest(cam: Tensor, low: float = 0.2, high: float = 0.7) -> Tensor:
    """Uncertain positions (E9): the largest class activation lies strictly between two thresholds.

    Args:
        cam: ``(B, F, h, w)`` activation maps in ``[0, 1]``, those of absent classes 0.
        low: lower threshold.
        high: upper threshold.

    Returns:
        ``(B, h, w)`` bool.
    """
    confidence = cam.amax(1)
    return (confidence > low) & (confidence < high)


def uncertain_patch_loss(
    target: Tensor,
    prediction: Tensor,
    image: Tensor,
    batch: int,
    *,
    reduce: Reduce = "pooled",
    target_temperature: float = 1.0,
    temperature: float = 1.0,
    centre: Tensor | None = None,
) -> Tensor:
    """L_PUNC (E10): cross-entropy of the outputs for uncertain patches, 0 where there are none.

    Args:
        target: ``(M, D)`` outputs of the network that teaches, for the M uncertain patches of a batch;
            no gradient flows into them.
        prediction: ``(M, D)`` outputs of the network that learns.
        image: ``(M,)`` int64, the picture each patch belongs to.
        batch: number of pictures.
        reduce: mean over all patches, or over each picture's and then over all pictures.
        target_temperature: divides ``target``.
        temperature: divides ``prediction``.
        centre: ``(D,)`` subtracted from ``target`` first, None for none.

    Returns:
        Scalar.
    """
    with torch.no_grad():
        shifted = target if centre is None else target - centre
        share = (shifted / target_temperature).softmax(1)
    each = -(share * (prediction / temperature).log_softmax(1)).sum(1)
    if reduce == "pooled":
        return each.sum() / max(len(each), 1)
    number = torch.zeros(batch, dtype=each.dtype, device=each.device)
    number = number.index_add(0, image, torch.ones_like(each)).clamp(min=1)
    return (each / number[image]).sum() / batch


def segmentation_loss(logits: Tensor, labels: Tensor, form: SegmentationForm = "mean") -> Tensor:
    """L_seg (E22): cross-entropy against corrected labels; 0 with zero gradient where none is left.

    The paper prints 1/N and does not say what N is.

    Args:
        logits: ``(B, K, H, W)``.
        labels: ``(B, H, W)`` int64; 255 does not count.
        form: `mean` over the labelled pixels of the batch; `balanced`, half the mean over background and
            half that over the other classes (ToCo losses.py); `per_image_sum`, the sum over pixels, mean
            over pictures.

    Returns:
        Scalar.
    """
    each = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    labelled = labels != IGNORE
    if form == "mean":
        return each.sum() / labelled.sum().clamp(min=1)
    if form == "per_image_sum":
        return each.sum() / len(labels)
    background = labels == 0
    foreground = labelled & ~background
    halves = [(each * side).sum() / side.sum().clamp(min=1) for side in (background, foreground)]
    return 0.5 * (halves[0] + halves[1])
