"""Whether coordinates can be pixels of a picture."""

from __future__ import annotations

import numpy as np

from harness.basics.errors import UserError

#: How far beyond the frame a point may lie, in pixels: tools count from 0 or 1, and to edges or centres.
_SLACK = 1.0


def check_points(points: np.ndarray, size: tuple[int, int], where: object, stray: float = 0) -> None:
    """Refuse points that cannot be pixels of a picture.

    Args:
        points: ``(N, 2)`` x, y of everything that is drawn on it.
        size: ``(H, W)`` of the picture.
        where: file and picture.
        stray: share of the points that may lie outside, as some do in the official files, which are read
            as their authors read them.

    Raises:
        UserError: numbers that are not finite, shares of the picture where pixels are meant, or points
            outside.
    """
    height, width = size
    if not np.isfinite(points).all():
        raise UserError("a point without a place", where=where, remedy="mend or delete it")
    if not len(points):
        return
    shares = (points >= 0).all() and (points <= 1).all() and (points != np.floor(points)).any()
    if shares and min(size) > 2:
        raise UserError(
            "all coordinates lie between 0 and 1, as shares of the picture do; pixels are meant",
            where=where,
            remedy="multiply x by the picture's width and y by its height, or export pixels",
        )
    outside = ((points < -_SLACK) | (points > np.array([width, height]) + _SLACK)).any(1)
    if outside.mean() > stray:
        x, y = points[outside][0]
        number = int(outside.sum())
        raise UserError(
            f"a point at x {x:g}, y {y:g} lies outside the picture of {width}x{height} pixels"
            + (f", and so do {number - 1} more" if number > 1 else ""),
            where=where,
            remedy="use labels made for these very pictures, neither resized nor cropped nor turned",
        )
