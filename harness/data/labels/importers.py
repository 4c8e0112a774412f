"""Boxes and image tags from files of their official makers: VOC XML, COCO instances, one-hot arrays."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any
from xml.etree import ElementTree

import numpy as np

from harness.basics.errors import UserError, nearest
from harness.basics.reading import read_bytes
from harness.data.base import UNLABELLED, BoxInside
from harness.data.labels.painting import paint_boxes
from harness.data.labels.tag_columns import placed_tags

#: Class, left, top, right, bottom in pixels from the picture's corner; right and bottom exclusive.
Box = tuple[int, float, float, float, float]


def voc_boxes(path: Path, names: Mapping[str, int]) -> list[Box]:
    """Boxes of one of VOC's ``Annotations/<id>.xml``, whose corners are pixels counted from 1.

    Raises:
        UserError: missing, not such a file, or an unknown class.
    """
    boxes: list[Box] = []
    try:
        content = _content(path, "boxes", "name VOC's Annotations folder with --folder")
        for element in ElementTree.fromstring(content).iter("object"):
            name = (element.findtext("name") or "").strip()
            if name not in names:
                raise UserError(f"unknown class {name!r}", where=path, remedy=nearest(name, names))
            corner = element.find("bndbox")
            left, top, right, bottom = (
                float((corner.findtext(k) if corner is not None else None) or "nan")
                for k in ("xmin", "ymin", "xmax", "ymax")
            )
            _check_box(left, top, right, bottom, right - left, bottom - top)
            boxes.append((names[name], left - 1, top - 1, right, bottom))
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f"not a VOC annotation: {error}", where=path, remedy="unpack VOC again") from None
    return boxes


@cache
def coco_boxes(path: Path, labels: bytes) -> Mapping[int, list[Box]]:
    """Boxes of a file of COCO instances by picture number; crowds have none that means an object.

    Args:
        path: ``instances_*.json``.
        labels: 256 bytes, the label of every category id.

    Raises:
        UserError: missing or not such a file.
    """
    boxes: dict[int, list[Box]] = {}
    try:
        content = json.loads(_content(path, "boxes", "name instances_*.json with --folder"))
        for picture in content["images"]:
            boxes[picture["id"]] = []
        for annotation in content["annotations"]:
            if not annotation.get("iscrowd"):
                left, top, width, height = map(float, annotation["bbox"])
                _check_box(left, top, left + width, top + height, width, height)
                kind = annotation["category_id"]
                if not 0 <= kind < len(labels) or not labels[kind]:  # background is no object
                    raise ValueError(f"category {kind}")
                boxes[annotation["image_id"]].append((labels[kind], left, top, left + width, top + height))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(
            f"not a file of COCO instances: {error}", where=path, remedy="unpack it again"
        ) from None
    return boxes


def _content(path: Path, what: str, remedy: str) -> bytes:
    """The bytes of a file that must be there."""
    if not os.path.lexists(path):
        raise UserError(f"the file of {what} is missing", where=path, remedy=remedy)
    return read_bytes(path)


def _check_box(left: float, top: float, right: float, bottom: float, width: float, height: float) -> None:
    """Raises ValueError unless numbers can be pixels and corners are in their order."""
    if not all(abs(number) <= _FARTHEST for number in (left, top, right, bottom)):
        raise ValueError("an object without a box")
    if width < 0 or height < 0:
        raise ValueError(f"a box {left:g}, {top:g}, {right:g}, {bottom:g} with swapped corners")


#: Farthest edge of a box, in pixels.
_FARTHEST = 1e6


def draw_boxes(boxes: Sequence[Box], size: tuple[int, int], background: int, inside: BoxInside) -> np.ndarray:
    """``(H, W)`` uint8: background outside all boxes, inside as for simulated boxes, 254 elsewhere.

    Edges are rounded to whole pixels and cut off at the picture's frame; a box keeps at least one pixel.
    """
    label = np.full(size, background, np.uint8)
    whole = []
    for kind, left, top, right, bottom in boxes:
        first, start = min(max(round(top), 0), size[0] - 1), min(max(round(left), 0), size[1] - 1)
        last, stop = max(min(round(bottom), size[0]), first + 1), max(min(round(right), size[1]), start + 1)
        whole.append((kind, first, last, start, stop))
    paint_boxes(label, whole, inside)
    return label


# --- image tags --------------------------------------------------------------------------------------

_ARRAY_PARTS = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class _OnlyArrays(pickle.Unpickler):
    """Reads pickled arrays and nothing else, so that a file cannot run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ARRAY_PARTS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no part of an array")


def read_onehot(path: Path, num_classes: int, background: int | None = 0) -> dict[str, np.ndarray]:
    """Image tags of a pickled ``cls_labels_onehot.npy``: id to ``(K,)`` uint8, background column 0.

    The files of the field hold a dict of id to ``K - 1`` classes, all but background; K columns pass too.

    Args:
        path: the file.
        num_classes: K.
        background: label of the background class, None where there is none.

    Raises:
        UserError: missing, no such file, or another number of classes.
    """
    try:
        content = _pickled(io.BytesIO(_content(path, "image tags", "check --folder")))
        rows = {str(i): np.asarray(row).ravel().astype(np.float64) for i, row in content.items()}
        if not all(np.isfinite(row).all() for row in rows.values()):
            raise ValueError("it holds numbers that are not finite")
    except UserError:
        raise
    except Exception as error:  # what bytes can make of an unpickler has no common base
        why = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
        raise UserError(
            f"not a file of one-hot image tags: {why}", where=path, remedy="use cls_labels_onehot.npy"
        ) from None
    return placed_tags(rows, num_classes, background, path)


def _pickled(stream: IO[bytes]) -> Any:
    """The object in an .npy file of one pickled object."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    if not dtype.hasobject or shape != ():
        raise ValueError("it holds an array, not a dict by image id")
    return _OnlyArrays(stream).load().item()


def empty(size: tuple[int, int]) -> np.ndarray:
    """``(H, W)`` uint8 with nothing labelled."""
    return np.full(size, UNLABELLED, np.uint8)
