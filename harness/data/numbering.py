"""Whose numbers a label map holds: those of the classes, or those of the data set's own files.

``classes``  0..K-1 in the order of the classes, as everything that this project writes
``files``    as the data set is distributed and its test server scores: ADE20K's 1..150, Cityscapes'
             labelIds, COCO's category ids 1..90, ``first_value`` of a user's own set

Both are bytes, and most values mean a class in either. So the numbering of somebody's PNGs is said, or found
where only one is possible, and never guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from harness.basics.errors import UserError
from harness.basics.reading import read_object
from harness.basics.scores import iou_from_counts
from harness.data.base import IGNORE, UNLABELLED, Dataset, LabelSpec, class_numbers
from harness.data.images import read_index
from harness.data.parallel import ordered_map

Numbering = Literal["classes", "files"]

#: Pictures whose labels are compared with their masks.
_COMPARED = 30
#: What lies beside label maps that this project wrote, and says so.
_NOTES = ("export.json", "predict.json", "labels.json", "complete.json")


def numberings(dataset: Dataset) -> dict[Numbering, np.ndarray]:
    """The numberings that label maps of a data set may be in.

    Returns:
        ``(256,)`` int16 by name: label of every value, 255 for values that are no class, -1 for values that
        do not occur. One entry where classes have the same numbers in both, or where the data set's files
        hold colours.
    """
    count, files = dataset.info.num_classes, dataset.numbers()
    classes = class_numbers(count, void=False)
    has_all = set(range(count)) <= set(files.tolist())
    if not has_all or (files[:count] == classes[:count]).all():
        return {"classes": np.where(classes < 0, files, classes) if has_all else classes}
    return {"classes": classes, "files": files}


def to_files(dataset: Dataset) -> np.ndarray:
    """``(256,)`` uint8: number of every label in the data set's own files; void for all others.

    Raises:
        UserError: its files hold colours.
    """
    files, count = dataset.numbers(), dataset.info.num_classes
    values = [np.flatnonzero(files == label) for label in range(count)]
    if any(len(v) == 0 for v in values):
        raise UserError(
            f"the files of {dataset.info.name} do not hold a number for each class",
            where="--encoding files",
            remedy="write class numbers: --encoding classes",
        )
    void = np.flatnonzero(files == IGNORE)
    written = np.full(256, void[0] if len(void) and files[IGNORE] != IGNORE else IGNORE, np.uint8)
    written[:count] = [v[0] for v in values]
    return written


def palette_of(dataset: Dataset, encoding: Numbering) -> Sequence[Sequence[int]]:
    """Colours by value, for label maps in a numbering."""
    palette = dataset.info.palette
    if encoding == "classes":
        return palette
    colours = np.zeros((256, 3), np.uint8)
    colours[to_files(dataset)[: len(palette)]] = palette
    return [tuple(int(v) for v in row) for row in colours]


def said_beside(folder: Path) -> Numbering | None:
    """The numbering of label maps that this project wrote, from the note beside them; None without one.

    Raises:
        UserError: the note is damaged.
    """
    notes = [folder / name for name in _NOTES]
    if folder.absolute().name == "predictions":  # of a record, or of an evaluation that was kept
        notes.append(folder.absolute().parent / "evaluation.json")
    note = next((n for n in notes if n.is_file()), None)
    if note is None:
        return None
    return "files" if read_object(note).get("encoding") == "files" else "classes"


def values_present(paths: Iterable[Path], *, workers: int = 0, what: str = "label maps") -> np.ndarray:
    """``(256,)`` bool: which values some index PNGs hold. Raises UserError for a file that is none."""
    found = np.zeros(256, bool)
    for values in ordered_map(_values, list(paths), workers=workers, kind="threads", what=what):
        found |= values
    return found


def _values(path: Path) -> np.ndarray:
    return np.bincount(read_index(path).ravel(), minlength=256) > 0


def chosen_numbering(
    dataset: Dataset, values: np.ndarray, *, free: Iterable[int], what: str, where: object, say: str
) -> Numbering:
    """The one numbering in which all values mean something.

    Args:
        dataset: whose classes.
        values: ``(256,)`` bool, those that occur.
        free: values that are no class in either numbering.
        what: what holds them, in words.
        where: where it lies.
        say: how the numbering is said, with ``{}`` for its name, such as ``--encoding {}``.

    Raises:
        UserError: it can be either, or neither.
    """
    legal = numberings(dataset)
    able = [name for name, table in legal.items() if not _strange(values, table, free).any()]
    if len(able) == 1:
        return able[0]
    words = "; ".join(f"{name}: {in_words(table)}" for name, table in legal.items())
    if able:
        raise UserError(
            f"{what} can be in class numbers or in those of {dataset.info.title}'s own files ({words})",
            where=where,
            remedy=f"say which: {say.format('classes')} or {say.format('files')}",
        )
    wrong = _strange(values, legal["classes"], free)
    for table in legal.values():
        wrong &= _strange(values, table, free)
    shown = ranges(np.flatnonzero(wrong).tolist()) or "numbers of both"
    raise UserError(
        f"{what} hold {shown}, which fits neither numbering of {dataset.info.title} ({words})",
        where=where,
        remedy="write one class number for each pixel, in one numbering",
    )


def _strange(values: np.ndarray, table: np.ndarray, free: Iterable[int]) -> np.ndarray:
    strange: np.ndarray = values & (table < 0)
    strange[list(free)] = False
    return strange


def in_words(table: np.ndarray) -> str:
    """The values of a numbering, such as ``0..18`` or ``7, 8, 11..13; no class 0..6``."""
    classes = ranges(np.flatnonzero((table >= 0) & (table != IGNORE)).tolist())
    void = ranges(np.flatnonzero(table == IGNORE).tolist())
    return classes + (f", no class {void}" if void else "")


def ranges(values: Sequence[int], most: int = 12) -> str:
    """Ascending numbers, those that follow one another as ``a..b``."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    texts = [str(a) if a == b else f"{a}, {b}" if b == a + 1 else f"{a}..{b}" for a, b in runs]
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


# --- weak labels -------------------------------------------------------------------------------------


def settled(
    dataset: Dataset,
    ids: Sequence[str],
    spec: LabelSpec,
    *,
    folder: Path | None = None,
    workers: int = 0,
    say: str = "labels.encoding = {}",
) -> LabelSpec:
    """The settings of label PNGs with their numbering, ``found`` replaced by what it is.

    Args:
        dataset: whose labels.
        ids: the pictures that have them.
        spec: the settings.
        folder: of pseudo labels; the files that ``spec`` names by default.
        workers: threads that read.
        say: how the numbering is said, with ``{}`` for its name.

    Raises:
        UserError: it can be either numbering, or neither.
    """
    if spec.encoding != "found" or (folder is None and (spec.source, spec.format) != ("official", "png")):
        return spec
    legal = numberings(dataset)
    if len(legal) == 1:
        return spec
    paths = [
        path
        for image_id in ids
        for path in ((folder / f"{image_id}.png",) if folder else dataset.label_files(image_id, spec)[:1])
        if path.exists()
    ]
    if not paths:
        return spec  # reading them says what is missing
    known = {said_beside(place) for place in {path.parent for path in paths}}
    if known == {None} and folder is None:
        known = {dataset.numbering_of(path) for path in paths}
    if len(known) == 1 and (only := known.pop()) is not None:
        return replace(spec, encoding=only)
    if folder is None and spec.unlabelled is not None:
        able = {n for n, t in legal.items() if not 0 <= t[spec.unlabelled] < dataset.info.num_classes}
        if len(able) == 1:
            return replace(spec, encoding=able.pop())
    free = (UNLABELLED, IGNORE) if folder else () if spec.unlabelled is None else (spec.unlabelled,)
    values = values_present(paths, workers=workers, what="numbering of labels")
    place = paths[0].parent
    return replace(
        spec,
        encoding=chosen_numbering(dataset, values, free=free, what="these label PNGs", where=place, say=say),
    )


# --- how well a numbering fits -----------------------------------------------------------------------


def better_fit(confusion: np.ndarray, dataset: Dataset, used: np.ndarray, option: str = "--encoding ") -> str:
    """A warning where label maps would fit their masks far better in other numbers; empty otherwise.

    Args:
        confusion: ``(256, K)`` int64 pixels by value in the file and class of the mask.
        dataset: the data set.
        used: ``(256,)`` the numbering that was counted.
        option: how another one is said.
    """
    count = dataset.info.num_classes
    others: dict[str, np.ndarray] = {f"{option}{n}": t for n, t in numberings(dataset).items()}
    above, below = np.full(256, -1, np.int16), np.full(256, -1, np.int16)
    above[: count - 1] = np.arange(1, count)
    below[1 : count + 1] = np.arange(count)
    first, last = dataset.info.classes[0], dataset.info.classes[-1]
    others[f"numbers one higher (counted without {first!r}, that is)"] = above
    others[f"numbers one lower (0 no class, {count} {last!r})"] = below
    own = fit(confusion, used)
    found = max(others, key=lambda name: fit(confusion, others[name]))
    best = fit(confusion, others[found])
    if np.isnan(best) or best < max(2 * own, own + 10):
        return ""
    return f"with {found}, these label maps would score {best:.2f} instead of {own:.2f} mIoU: check numbering"


def labels_fit(dataset: Dataset, split: str, read: Callable[[str], np.ndarray | None]) -> str:
    """A warning where label PNGs would fit the masks far better in other numbers; empty otherwise, and where
    there are no masks to compare with.

    Args:
        dataset: whose masks.
        split: whose pictures; some of them are looked at.
        read: image id to its label as class numbers ``(H, W)`` uint8.
    """
    count = dataset.info.num_classes
    confusion = np.zeros((256, count), np.int64)
    try:
        masked = dataset.masked(split)
        for k in range(number := min(len(masked), _COMPARED)):
            image_id = masked[k * len(masked) // number]
            mask, label = dataset.read_mask(image_id, split), read(image_id)
            if label is not None and label.shape == mask.shape:
                confusion += count_values(label, mask, count)
    except UserError:  # a mask that is wrong: nobody trains on it
        return ""
    confusion[count:] = 0  # what is not labelled fits anything
    if not confusion.any():
        return ""
    return better_fit(confusion, dataset, class_numbers(count, void=False), "labels.encoding=")


def fit(confusion: np.ndarray, table: np.ndarray) -> float:
    """Mean IoU in percent of label maps in a numbering, from :func:`better_fit`'s counts."""
    count = confusion.shape[1]
    decided = (table >= 0) & (table < count)
    joint = np.zeros((count, count), np.int64)
    np.add.at(joint, table[decided], confusion[decided])
    return float(iou_from_counts(np.diag(joint), joint.sum(1), confusion.sum(0))[1])


def count_values(values: np.ndarray, mask: np.ndarray, num_classes: int) -> np.ndarray:
    """``(256, K)`` int64 pixels by value of a label map and class of its mask; void is not counted.

    Args:
        values: ``(H, W)`` uint8.
        mask: ``(H, W)`` uint8 ``0..K-1``, 255 void.
        num_classes: K.
    """
    counted = mask != IGNORE
    joint = values[counted].astype(np.int64) * num_classes + mask[counted]
    return np.bincount(joint, minlength=256 * num_classes).reshape(256, num_classes)
