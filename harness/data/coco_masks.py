"""COCO's segmentations to pixels: polygons, run lengths, and whole maps of a picture's annotations.

The pixels are those of pycocotools (maskApi.c), which is used where it is installed (the extra
``coco``) because it is a little faster. Without it the same rules are followed in numpy: a polygon's
outline is drawn on a grid five times as fine, where it leaves or enters each column of pixels is noted,
and a pixel is inside if the number of such crossings before it, down the column and the columns
before, is odd.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from harness.basics.errors import UserError

try:
    from pycocotools import mask as _pycocotools
except ImportError:
    _pycocotools = None

#: Farthest corner of a polygon, in pixels.
_FARTHEST = 100_000
#: How much finer than pixels the grid is on which outlines are drawn.
_FINE = 5


def decode(segmentation: Any, size: tuple[int, int], *, library: bool | None = None) -> np.ndarray:
    """Pixels of one segmentation: ``(H, W)`` bool.

    Args:
        segmentation: a list of polygons ``[x, y, x, y, ...]`` in pixels, whose union counts, or run
            lengths ``{"counts", "size"}`` down the columns, as numbers or as pycocotools' text.
        size: ``(H, W)`` of the picture.
        library: use pycocotools; by default where it is installed.

    Raises:
        UserError: neither polygons nor run lengths, or run lengths of another size.
    """
    use = _pycocotools is not None if library is None else library
    if isinstance(segmentation, Mapping):
        return from_runs(_runs(segmentation, size), size)
    polygons = checked_polygons(segmentation)
    if use:
        whole = _pycocotools.merge(_pycocotools.frPyObjects([p.ravel().tolist() for p in polygons], *size))
        return from_runs(unpacked(whole["counts"]), size)
    inside = np.zeros(size, bool)
    for polygon in polygons:
        inside |= from_polygon(polygon, size)
    return inside


def checked_polygons(segmentation: Any) -> list[np.ndarray]:
    """Polygons ``(N, 2)`` float64 x, y of a segmentation, each of three points and more.

    One polygon may stand without the list around it. Polygons of one or two points cover nothing and are
    left out: pycocotools takes the four numbers of two points for a box, and stops where not all polygons
    of an object have four.

    Raises:
        UserError: anything else than lists of x and y by turns, or no polygon that covers something.
    """
    if not isinstance(segmentation, list) or not segmentation:
        said = "an empty list" if segmentation == [] else type(segmentation).__name__
        raise UserError(f"a segmentation is polygons or run lengths, not {said}")
    nested = [segmentation] if not isinstance(segmentation[0], list) else segmentation
    polygons = []
    for numbers in nested:
        if not isinstance(numbers, list) or not all(type(v) in (int, float) for v in numbers):
            raise UserError("a polygon is a list of numbers: x, y, x, y, ...")
        if len(numbers) % 2:
            raise UserError(f"a polygon has {len(numbers)} numbers, x and y by turns are an even number")
        if not all(abs(v) <= _FARTHEST for v in numbers):
            raise UserError(f"a polygon has a corner beyond {_FARTHEST:,} pixels")
        if len(numbers) >= 6:
            polygons.append(np.array(numbers, np.float64).reshape(-1, 2))
    if not polygons:
        raise UserError("no polygon has three points and more: nothing is covered")
    return polygons


def _runs(segmentation: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    """``(N,)`` int64 run lengths of an object of ``counts`` and ``size``."""
    try:
        stated, counts = [int(v) for v in segmentation["size"]], segmentation["counts"]
        runs = np.asarray(counts if isinstance(counts, list) else unpacked(counts), np.int64)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError, AttributeError):
        raise UserError("run lengths are 'counts', numbers or pycocotools' text, and 'size'") from None
    if stated != list(size):
        raise UserError(f"run lengths of a picture of {stated}, ours is {list(size)}")
    return runs


def from_runs(counts: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """``(H, W)`` bool from ``(N,)`` run lengths down the columns, outside and inside by turns.

    Raises:
        UserError: the runs do not add up to the picture.
    """
    if counts.min(initial=0) < 0 or counts.sum() != size[0] * size[1]:
        raise UserError(
            f"run lengths add up to {counts.sum()} pixels, the picture has {size[0] * size[1]}",
            remedy="take the annotations from the official archive",
        )
    inside = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return inside.reshape(size[1], size[0]).T


def unpacked(text: str | bytes) -> np.ndarray:
    """``(N,)`` int64 run lengths from pycocotools' text.

    Each number is a chain of characters from 48 on with five bits each, low bits first, and a sixth bit
    where the chain goes on; bit 5 of the last is the sign. From the fourth number on the difference to
    the one before the last is written (maskApi.c, rleFrString).
    """
    codes = np.frombuffer(text.encode() if isinstance(text, str) else text, np.uint8).astype(np.int64) - 48
    last = (codes & 0x20) == 0
    starts = np.flatnonzero(np.concatenate([[True], last[:-1]]))
    place = 5 * (np.arange(len(codes)) - np.repeat(starts, np.diff([*starts, len(codes)])))
    values = np.add.reduceat((codes & 0x1F) << place, starts)
    ends = np.flatnonzero(last)
    values -= np.where(codes[ends] & 0x10, np.int64(1) << (place[ends] + 5), 0)
    for start in (1, 2):  # two interleaved running sums, from the second and the third number
        values[start::2] = np.cumsum(values[start::2])
    return values


def from_polygon(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """``(H, W)`` bool from the ``(N, 2)`` x, y of one polygon, as maskApi.c rleFrPoly draws it."""
    height, width = size
    corners = (_FINE * points + 0.5).astype(np.int64)
    u, v = _outline(corners, np.roll(corners, -1, axis=0))
    crossing = np.flatnonzero(np.diff(u))
    before, after = u[crossing], u[crossing + 1]
    column = (np.where(after < before, after, after - 1) + 0.5) / _FINE - 0.5
    row = (np.minimum(v[crossing], v[crossing + 1]) + 0.5) / _FINE - 0.5
    kept = (np.floor(column) == column) & (column >= 0) & (column <= width - 1)
    row = np.ceil(np.clip(row[kept], 0, height)).astype(np.int64)
    inside = np.zeros(size, bool)
    if len(row):
        columns = column[kept].astype(np.int64)
        first, last = int(columns.min()), int(columns.max()) + 1
        pixels = (last - first) * height  # columns beyond have no crossings, and an even number before them
        crossings = np.bincount((columns - first) * height + row, minlength=pixels)[:pixels]
        inside[:, first:last] = np.bitwise_and(np.cumsum(crossings), 1).reshape(last - first, height).T
    return inside


def _outline(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x and y of all points on the closed outline, edge by edge, both ends of each edge included."""
    way = second - first
    long = np.abs(way)
    flat = long[:, 0] >= long[:, 1]
    turned = np.where(flat, way[:, 0] < 0, way[:, 1] < 0)
    start = np.where(turned[:, None], second, first)
    end = np.where(turned[:, None], first, second)
    steps = long.max(1)
    across = np.where(flat, end[:, 1] - start[:, 1], end[:, 0] - start[:, 0])
    slope = across / np.maximum(steps, 1)
    edge = np.repeat(np.arange(len(steps)), steps + 1)
    index = np.arange(len(edge)) - np.repeat(np.cumsum(steps + 1) - (steps + 1), steps + 1)
    along = np.where(turned[edge], steps[edge] - index, index)
    main = along + np.where(flat, start[:, 0], start[:, 1])[edge]
    other = (np.where(flat, start[:, 1], start[:, 0])[edge] + slope[edge] * along + 0.5).astype(np.int64)
    return np.where(flat[edge], main, other), np.where(flat[edge], other, main)


def panoptic_map(
    numbers: np.ndarray, segments: Sequence[Mapping[str, Any]], labels: np.ndarray
) -> np.ndarray:
    """The map of one picture's panoptic annotation: ``(H, W)`` uint8, 0 for stuff and what is unlabelled.

    Args:
        numbers: ``(H, W, 3)`` uint8 colours of the PNG: R + 256 G + 65536 B is the number of a segment.
        segments: ``segments_info``, with ``id`` and ``category_id``.
        labels: ``(256,)`` uint8 label of every category id, 0 for those of stuff.
    """
    numbers = numbers.astype(np.int64) @ np.array([1, 256, 65536])
    known = np.array([0, *(s["id"] for s in segments)])
    label = np.array([0, *(labels[s["category_id"]] for s in segments)], np.uint8)
    order = np.argsort(known)
    place = order[np.searchsorted(known, numbers, sorter=order).clip(max=len(known) - 1)]
    if (known[place] != numbers).any():
        raise UserError(
            "the panoptic map holds segments that its JSON file does not name",
            remedy="take both from the same archive",
        )
    return label[place]


def annotation_map(
    annotations: Sequence[Mapping[str, Any]], size: tuple[int, int], labels: np.ndarray
) -> np.ndarray:
    """The map of one picture: ``(H, W)`` uint8, 0 where there is no annotation.

    Where annotations overlap the one with the smaller stated area lies on top, so that no object is
    lost under a larger one; equal areas: the one that stands first. Crowds are drawn as their class.
    Both are the rules of coco2voc (coco2voc_aux.py annotations_to_seg), by which the maps of the field
    are made.

    Args:
        annotations: those of the picture, with ``category_id``, ``segmentation`` and ``area`` (by default
            the number of pixels covered).
        size: ``(H, W)`` of the picture.
        labels: ``(256,)`` uint8 label of every category id.

    Raises:
        UserError: a segmentation cannot be read, or a category is unknown; the annotation is named.
    """
    drawn = np.zeros(size, np.uint8)
    parts: list[tuple[float, int, np.ndarray]] = []
    for annotation in annotations:
        name = annotation.get("id", "without id")
        category = annotation.get("category_id")
        label = int(labels[category]) if type(category) is int and 0 <= category < len(labels) else 0
        if label == 0:
            raise UserError(f"annotation {name} has the unknown category {category}")
        try:
            inside = decode(annotation.get("segmentation"), size)
        except UserError as error:
            raise UserError(f"annotation {name}: {error.problem}", remedy=error.remedy) from None
        area = annotation.get("area")
        parts.append((float(area) if isinstance(area, int | float) else float(inside.sum()), label, inside))
    for _, label, inside in sorted(parts, key=lambda part: part[0])[::-1]:
        drawn[inside] = label
    return drawn
