"""What annotation tools draw (points, lines, areas, boxes), checked against the picture and painted.

Which of them a kind of label takes: boxes become box labels; points, lines and areas scribbles; areas
blocks; points points. Whatever else a file holds is refused by name, so that nothing is lost silently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from harness.basics.errors import UserError
from harness.data.base import UNLABELLED, LabelSpec, Supervision
from harness.data.labels.annotations import Stroke, draw_clicks, draw_strokes
from harness.data.labels.coordinates import check_points
from harness.data.labels.importers import Box, draw_boxes


@dataclass(frozen=True)
class Area:
    """Pixels of one class.

    Attributes:
        label: class.
        inside: ``(H, W)`` bool.
        box: of its corners, or of its pixels.
    """

    label: int
    inside: np.ndarray
    box: Box


@dataclass
class Drawn:
    """What is drawn on one picture.

    Attributes:
        points, lines: strokes of one point, and of several.
        areas: polygons and the like.
        boxes: boxes.
    """

    points: list[Stroke] = field(default_factory=list)
    lines: list[Stroke] = field(default_factory=list)
    areas: list[Area] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)


#: Which shapes each kind of label takes.
_TAKES: dict[Supervision, tuple[str, ...]] = {
    "scribble": ("points", "lines", "areas"),
    "point": ("points",),
    "block": ("areas",),
    "box": ("boxes", "areas"),
}


def checked_box(label: int, corners: Sequence[float], size: tuple[int, int], where: object) -> Box:
    """A box of left, top, right, bottom.

    Raises:
        UserError: as :func:`check_points`; swapped corners, or nothing inside.
    """
    left, top, right, bottom = map(float, corners)
    check_points(np.array([[left, top], [right, bottom]]), size, where)
    if max(left, top, right, bottom) <= 1 < min(size) - 1:
        raise UserError(
            f"the box {left:g}, {top:g}, {right:g}, {bottom:g} looks like shares of the picture; "
            "pixels are meant",
            where=where,
            remedy="multiply x by the picture's width and y by its height, or export pixels",
        )
    if right <= left or bottom <= top:
        raise UserError(
            f"the box {left:g}, {top:g}, {right:g}, {bottom:g} has swapped corners or nothing inside",
            where=where,
            remedy="write left, top, right, bottom with left < right and top < bottom",
        )
    return label, left, top, right, bottom


def painted(
    shapes: Drawn,
    supervision: Supervision,
    size: tuple[int, int],
    spec: LabelSpec,
    background: int | None,
    where: Path,
) -> np.ndarray:
    """``(H, W)`` uint8 label: ``0..K-1`` annotated class, 254 elsewhere; of boxes, background outside.

    Areas are painted first, larger ones below, then lines, then points.

    Args:
        shapes: what is drawn.
        supervision: kind of weak label.
        size: ``(H, W)`` of the picture.
        spec: width of strokes, what is inside of boxes.
        background: label of the background class.
        where: the file.

    Raises:
        UserError: shapes that this kind of label does not take, or boxes without a background class.
    """
    taken = _TAKES[supervision]
    for kind in ("points", "lines", "areas", "boxes"):
        if kind not in taken and getattr(shapes, kind):
            raise UserError(
                f"the file has {kind}, and {supervision} labels are of {' and '.join(taken)}",
                where=where,
                remedy="choose the supervision that fits what was drawn, or take them out of the file",
            )
    if supervision == "box":
        if background is None:
            raise UserError(
                "box labels say what is background, and the data set has no such class",
                where="supervision",
                remedy="choose another supervision",
            )
        boxes = [*shapes.boxes, *(area.box for area in shapes.areas)]
        return draw_boxes(boxes, size, background, spec.box_inside)
    label = np.full(size, UNLABELLED, np.uint8)
    for area in sorted(shapes.areas, key=lambda a: -int(a.inside.sum())):
        label[area.inside] = area.label
    drawn = [draw_strokes(shapes.lines, size, spec.stroke), draw_clicks(shapes.points, size, spec.stroke)]
    for layer in drawn:
        label = np.where(layer == UNLABELLED, label, layer)
    return label
