"""Labels from boxes, and tags from labels: what reading a data set needs, without scipy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from harness.data.base import UNLABELLED, BoxInside

#: Share of a box's area that Khoreva et al. (CVPR 2017) keep as its class in Box^i, as we read them.
_INNER_SHARE = 0.2


def paint_boxes(
    label: np.ndarray, boxes: Sequence[tuple[int, int, int, int, int]], inside: BoxInside
) -> None:
    """Clear the inside of all boxes and paint it as asked, smaller boxes on top.

    Args:
        label: ``(H, W)`` uint8, changed in place.
        boxes: class, top, bottom, left, right in pixels, ends exclusive, within the picture.
        inside: see ``LabelSpec.box_inside``.
    """
    for _, top, bottom, left, right in boxes:
        label[top:bottom, left:right] = UNLABELLED
    if inside == "unlabelled":
        return
    side = 1.0 if inside == "fill" else _INNER_SHARE**0.5
    for kind, top, bottom, left, right in sorted(boxes, key=lambda b: -(b[2] - b[1]) * (b[4] - b[3])):
        height, width = (max(1, round(side * n)) for n in (bottom - top, right - left))
        first, start = top + (bottom - top - height) // 2, left + (right - left - width) // 2
        label[first : first + height, start : start + width] = kind


def tags_from_mask(mask: np.ndarray, num_classes: int) -> np.ndarray:
    """``(K,)`` uint8 multi-hot: classes that occur in a ``(H, W)`` uint8 label or mask."""
    return (np.bincount(mask.ravel(), minlength=256)[:num_classes] > 0).astype(np.uint8)
