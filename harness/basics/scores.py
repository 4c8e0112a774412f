"""IoU and the other figures of an evaluation from its counts: one formula for writing and for checking."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np


def iou_from_counts(
    intersection: np.ndarray,
    predicted: np.ndarray,
    labelled: np.ndarray,
    classes: Literal["occurring", "labelled"] = "occurring",
) -> tuple[np.ndarray, np.ndarray]:
    """IoU by class and its mean, in percent, from counts summed over pictures.

    Args:
        intersection, predicted, labelled: ``(..., K)`` pixels.
        classes: over which classes the mean goes, see :class:`harness.recipes.protocols.Protocol`.

    Returns:
        ``(..., K)`` IoU, NaN for classes left out, and its mean ``(...)`` over the others (NaN if none).
    """
    union = predicted + labelled - intersection
    used = union > 0 if classes == "occurring" else labelled > 0
    iou = np.where(used, 100.0 * intersection / np.maximum(union, 1), np.nan)
    number = used.sum(-1)
    mean = np.where(number > 0, np.where(used, iou, 0.0).sum(-1) / np.maximum(number, 1), np.nan)
    return iou, mean


def figures(
    images: int,
    totals: Sequence[np.ndarray],
    names: Sequence[str],
    classes: Literal["occurring", "labelled"],
) -> dict[str, Any]:
    """The figures of an evaluation record (keys as in ``EvaluationRecord``).

    Args:
        images: number of pictures.
        totals: ``(K,)`` intersection, predicted and labelled pixels, summed over pictures.
        names: the K classes.
        classes: over which the mean goes.
    """
    iou, miou = iou_from_counts(totals[0], totals[1], totals[2], classes)
    pixels = int(totals[2].sum())
    values = iou.tolist()
    return {
        "images": images,
        "classes": list(names),
        "miou": None if math.isnan(miou) else float(miou),
        "iou": [None if math.isnan(v) else v for v in values],
        "absent": [name for name, value in zip(names, values, strict=True) if math.isnan(value)],
        "pixel_accuracy": 100.0 * int(totals[0].sum()) / pixels if pixels else None,
        "coverage": int(totals[1].sum()) / pixels if pixels else None,
    }
