"""Checks of files: decode every picture and mask that a run will touch, before it trains.

What was found sound is remembered with size and time of change of the files, so that only new and
changed files are decoded again. Decoding leaves Python's lock, so threads are enough.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from harness.data.base import Dataset
from harness.data.images import palette_note
from harness.data.parallel import ordered_map
from harness.errors import UserError
from harness.files import sha256_of, whole_file
from harness.reading import remembered

#: Part of what is remembered; raised when the checks become stricter.
_VERSION = 3


class _Sound(NamedTuple):
    """What is remembered of a picture and its mask.

    Attributes:
        stamp: size and time of change of both files.
        picture: SHA-256 of the picture's file.
        mask: SHA-256 of the mask's file, empty where there is none.
        note: what is odd about them, empty where nothing is.
        dropped: what of the picture is not read, one thing a line.
    """

    stamp: str
    picture: str
    mask: str
    note: str = ""
    dropped: str = ""


def preflight(
    dataset: Dataset,
    splits: Sequence[str],
    *,
    cache: Path,
    workers: int = 0,
    pictures_only: Collection[str] = (),
) -> dict[str, str]:
    """Check all pictures and masks of some splits.

    A picture must exist and decode whole; a mask must too, hold legal values only and be as large as
    its picture. Splits without public masks are checked for pictures alone.

    Args:
        dataset: what to check.
        splits: which splits.
        cache: where it is remembered what is sound.
        workers: threads; 0 checks in this one.
        pictures_only: splits whose masks the run does not touch.

    Returns:
        Data fingerprint by split: SHA-256 over ids and contents of pictures and masks.

    Raises:
        UserError: the first offender in list order, with the number of further ones.
    """
    return {split: _check(dataset, split, cache, workers, split not in pictures_only) for split in splits}


@dataclass(frozen=True)
class SplitReport:
    """What was found in one split.

    Attributes:
        split: its name.
        images: ids in this copy's list.
        official: official number of images.
        offenders: what is wrong, in list order.
        notes: what a user should know, and what does not keep a run from starting.
        fingerprint: SHA-256 over ids and contents of pictures and masks, None where something is wrong.
        looked_at: images that were decoded now; the others are as they were.
        pictures: SHA-256 of each sound picture, by id.
    """

    split: str
    images: int
    official: int
    offenders: tuple[UserError, ...]
    notes: tuple[str, ...]
    fingerprint: str | None
    looked_at: int
    pictures: Mapping[str, str] = field(default_factory=dict, repr=False)


def check_split(
    dataset: Dataset, split: str, *, cache: Path, workers: int = 0, with_masks: bool = True
) -> SplitReport:
    """Look at every picture and mask of a split that is new or has changed.

    Args:
        dataset: what to check.
        split: which split.
        cache: where it is remembered what is sound.
        workers: threads; 0 checks in this one.
        with_masks: check masks too.

    Raises:
        UserError: unknown split, no list, or a malformed one.
    """
    ids = dataset.ids(split)
    memory = _memory(dataset, split, cache, with_masks)
    known = _recall(memory)
    work = partial(_look, dataset, split, with_masks, known)
    sound: dict[str, _Sound] = {}
    offenders: list[UserError] = []
    rows = ordered_map(work, ids, workers=workers, kind="threads", what=f"checking {split}")
    try:
        for image_id, row in zip(ids, rows, strict=True):
            if isinstance(row, UserError):
                offenders.append(row)
            else:
                sound[image_id] = row
    finally:  # what was looked at is remembered even when the user stops here
        fresh = sum(known.get(image_id) != row for image_id, row in sound.items())
        if fresh:
            with whole_file(memory) as stream:
                json.dump({**known, **sound}, stream)
    whole = hashlib.sha256(dataset.decoding.encode())
    if not offenders:
        for image_id in ids:
            whole.update(f"{image_id}\0{sound[image_id].picture}\0{sound[image_id].mask}\n".encode())
    pictures = {image_id: row.picture for image_id, row in sound.items()}
    return SplitReport(
        split=split,
        images=len(ids),
        official=dataset.info.splits[split],
        offenders=tuple(offenders),
        notes=tuple(_notes(sound, pictures)),
        fingerprint=None if offenders else whole.hexdigest(),
        looked_at=fresh + len(offenders),
        pictures=pictures,
    )


def _notes(sound: Mapping[str, _Sound], pictures: Mapping[str, str]) -> Iterator[str]:
    """What is worth saying about files that are sound one by one."""
    odd = [image_id for image_id, row in sound.items() if row.note]
    if odd:
        yield f"{len(odd)} masks with {sound[odd[0]].note}, the first is that of {odd[0]}"
    dropped: dict[str, list[str]] = {}
    for image_id, row in sound.items():
        for what in row.dropped.splitlines():
            dropped.setdefault(what, []).append(image_id)
    for what, ids in dropped.items():
        yield f"{len(ids)} pictures with {what}, the first is {ids[0]}"
    first: dict[str, str] = {}
    twins = [(first[sha], i) for i, sha in pictures.items() if first.setdefault(sha, i) != i]
    if twins:
        one, copy = twins[0]
        yield f"{len(twins)} pictures are copies of others in the split, such as {copy} of {one}"


def _check(dataset: Dataset, split: str, cache: Path, workers: int, with_masks: bool) -> str:
    found = check_split(dataset, split, cache=cache, workers=workers, with_masks=with_masks)
    if found.fingerprint is None:
        first, others = found.offenders[0], len(found.offenders) - 1
        more = f" (and {others} more of the {found.images} images of {split})" if others else ""
        raise UserError(first.problem + more, where=first.where, remedy=first.remedy)
    return found.fingerprint


def _look(
    dataset: Dataset, split: str, with_masks: bool, known: Mapping[str, _Sound], image_id: str
) -> _Sound | UserError:
    """Check one picture and its mask, unless both are as they were."""
    try:
        picture = dataset.image_path(image_id)
        mask = dataset.mask_path(image_id, split) if with_masks else None
        stamp = _stamp(picture) + ("" if mask is None else " " + _stamp(mask))
        remembered = known.get(image_id)
        if remembered is not None and remembered.stamp == stamp:
            return remembered
        height, width = dataset.read_image(image_id).shape[:2]
        dropped = "\n".join(dataset.picture_notes(image_id))
        note = ""
        if mask is not None:
            rows, columns = dataset.read_mask(image_id, split).shape
            if (rows, columns) != (height, width):
                raise UserError(
                    f"the mask is {columns}x{rows} pixels, its picture {width}x{height}",
                    where=mask,
                    remedy="take picture and mask from the same release of the data set",
                )
            note = palette_note(mask, dataset.info.palette)
    except UserError as error:
        return error
    return _Sound(stamp, sha256_of(picture), "" if mask is None else sha256_of(mask), note, dropped)


def _stamp(path: Path) -> str:
    try:
        stat = path.stat()
    except OSError:
        return "missing"
    return f"{stat.st_size}.{stat.st_mtime_ns}"


def _memory(dataset: Dataset, split: str, cache: Path, with_masks: bool) -> Path:
    """The file that remembers a split of one copy of a data set."""
    some_id = dataset.ids(split)[0]
    place = str(dataset.image_path(some_id).resolve())
    key = [_VERSION, place, dataset.info.num_classes, with_masks, dataset.reading]
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
    return cache / "verified" / dataset.info.name / f"{split}-{name}.json"


def _recall(memory: Path) -> dict[str, _Sound]:
    """What was found sound before; nothing where that is not known, or not written by us: look again."""

    def understand(found: dict[str, Any]) -> dict[str, _Sound]:
        rows = {image_id: _Sound(*row) for image_id, row in found.items()}
        if not all(isinstance(text, str) for row in rows.values() for text in row):
            raise TypeError("a row of texts is wanted")
        return rows

    return remembered(memory, understand, {})
