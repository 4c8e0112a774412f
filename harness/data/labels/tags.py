"""Image tags from files: which column is which class, and tags as CSV with class names.

Rows of tags have a column for each class in the order of the data set's classes, or one for each class
but background, in the same order. Background is no tag: its column is 0 whatever a file says.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from harness.basics.errors import UserError, nearest
from harness.basics.reading import read_text
from harness.data.base import DatasetInfo
from harness.data.labels.importers import read_onehot
from harness.data.labels.tag_columns import placed_tags
from harness.data.lists import read_tags
from harness.data.naming import ByPicture, bare

#: Files of image tags beside the description of a data set, by their names.
NAMES = ("tags.csv", "tags.npz", "cls_labels_onehot.npy")
#: What stands above the column of pictures, and above one of class names.
_PICTURE = frozenset({"id", "image", "image_id", "picture", "file", "filename", "file_name", "name", "path"})
_TAGS = frozenset({"tag", "tags", "class", "classes", "label", "labels", "class_name"})
_YES_NO = {"0": 0, "1": 1, "": 0, "0.0": 0, "1.0": 1, "false": 0, "true": 1, "no": 0, "yes": 1}


def tags_by_picture(path: Path, info: DatasetInfo) -> ByPicture[np.ndarray]:
    """``(K,)`` uint8 tags of the pictures that a file of image tags speaks of, background 0.

    Args:
        path: ``.csv`` (:func:`read_csv_tags`), ``.npy``
            (:func:`harness.data.labels.importers.read_onehot`) or ``.npz``
            (:func:`harness.data.lists.read_tags`).
        info: classes and background.

    Raises:
        UserError: missing, no such file, an unknown class, or a number of columns that cannot be right.
    """
    if path.suffix.lower() == ".csv":
        return ByPicture(read_csv_tags(path, info), path)
    if path.suffix.lower() == ".npy":
        return ByPicture(read_onehot(path, info.num_classes, info.background), path)
    return ByPicture(placed_tags(read_tags(path), info.num_classes, info.background, path), path)


def read_csv_tags(path: Path, info: DatasetInfo) -> dict[str, np.ndarray]:
    """Tags of a CSV file by the picture's name as an id is written.

    A header ``id,wing,beak`` names a column of 0 and 1 for each class; without one, or under
    ``id,tags``, a row is a picture and its classes, in cells of their own or in one cell between ``;``
    or ``|``. In the second form a picture may have several rows, and one with none has no tag.

    Raises:
        UserError: missing, an unknown class or value, a class without column, or a picture twice.
    """
    rows = csv_rows(path)
    number, first = rows[0]
    head = [cell.casefold() for cell in first]
    if head[0] in _PICTURE and len(head) >= 2 and not set(head[1:]) <= _TAGS:
        return _columns(path, first, rows[1:], info)
    tags: dict[str, np.ndarray] = {}
    for number, cells in rows[head[0] in _PICTURE :]:
        row = tags.setdefault(bare(cells[0]), np.zeros(info.num_classes, np.uint8))
        for cell in cells[1:]:
            for name in [cell] if cell in info.classes else re.split(r"[;|,]", cell):
                if name.strip():
                    row[class_of(name.strip(), info, f"{path}, line {number}")] = 1
    return {name: _without_background(row, info) for name, row in tags.items()}


def _columns(
    path: Path, head: Sequence[str], rows: Sequence[tuple[int, Sequence[str]]], info: DatasetInfo
) -> dict[str, np.ndarray]:
    """Tags of a file with a column for each class."""
    labels = [class_of(name, info, f"{path}, header") for name in head[1:]]
    lacking = [name for k, name in enumerate(info.classes) if k not in labels and k != info.background]
    if lacking or len(set(labels)) < len(labels):
        raise UserError(
            f"no column of class {lacking[0]!r}" if lacking else "two columns of one class",
            where=f"{path}, header",
            remedy="write one column for each class; background needs none",
        )
    tags: dict[str, np.ndarray] = {}
    for number, cells in rows:
        where, name = f"{path}, line {number}", bare(cells[0])
        values = [_YES_NO.get(cell.casefold(), -1) for cell in cells[1:]]
        if len(values) != len(labels):
            raise UserError(
                f"the row has {len(values)} tags, the header {len(labels)}", where=where, remedy="complete it"
            )
        if -1 in values:
            raise UserError(
                f"{cells[1 + values.index(-1)][:40]!r} is no tag", where=where, remedy="write 0 or 1"
            )
        if name in tags:
            raise UserError(f"the picture {name!r} stands in an earlier row", where=where, remedy="keep one")
        tags[name] = np.zeros(info.num_classes, np.uint8)
        tags[name][labels] = values
        _without_background(tags[name], info)
    return tags


def csv_rows(path: Path) -> list[tuple[int, list[str]]]:
    """Line numbers and cells of a CSV file, blanks around cells and empty lines dropped.

    Cells stand between commas, else between tabs, else between semicolons, as in the first line. Lines
    that begin with ``#`` are remarks.

    Raises:
        UserError: missing, not UTF-8, not CSV, or nothing in it.
    """
    text = read_text(path)
    first = next((line for line in text.splitlines() if line.strip() and not line.startswith("#")), "")
    between = next((sign for sign in ",\t;" if sign in first), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=between, skipinitialspace=True)
    rows = []
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if any(cells) and not cells[0].startswith("#"):
                rows.append((reader.line_num, cells))
    except csv.Error as error:
        raise UserError(f"not a CSV file: {error}", where=path, remedy="save it as CSV in UTF-8") from None
    if not rows:
        raise UserError("the CSV file holds no rows", where=path, remedy="write one row for each picture")
    return rows


def class_of(name: str, info: DatasetInfo, where: object) -> int:
    """Label of a class name. Raises UserError for an unknown one."""
    if name not in info.classes:
        raise UserError(f"unknown class {name[:60]!r}", where=where, remedy=nearest(name, info.classes))
    return info.classes.index(name)


def _without_background(row: np.ndarray, info: DatasetInfo) -> np.ndarray:
    if info.background is not None:
        row[info.background] = 0
    return row


def tags_file(folder: Path, named: str, where: Path) -> Path:
    """The file of image tags beside a description.

    Args:
        folder: where to look.
        named: what the description says; one of :data:`NAMES` by default.
        where: the description, for errors.

    Raises:
        UserError: there are several.
    """
    if named:
        return folder / named
    found: Mapping[str, Path] = {name: folder / name for name in NAMES if (folder / name).exists()}
    if len(found) > 1:
        raise UserError(
            f"there are several files of image tags: {', '.join(found)}",
            where=where,
            remedy=f'say which one counts: tags = "{next(iter(found))}"',
        )
    return next(iter(found.values()), folder / "tags.npz")
