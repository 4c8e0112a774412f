"""Checks of files: decode every picture and mask that a run will touch, before it trains.

What was found sound is remembered with size and time of change of the files, so that only new and
changed files are decoded again. Decoding leaves Python's lock, so threads are enough.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harness.basics.errors import UserError
from harness.basics.files import sha256_of, whole_file
from harness.basics.reading import remembered
from harness.data import sense
from harness.data.base import Dataset
from harness.data.images import palette_note
from harness.data.parallel import ordered_map

#: Part of what is remembered; raised when the checks become stricter.
_VERSION = 4


class _Sound(NamedTuple):
    """What is remembered of a picture and its mask.

    Attributes:
        stamp: size and time of change of both files.
        picture: SHA-256 of the picture's file.
        mask: SHA-256 of the mask's file, empty where there is none.
        note: what is odd about them, empty where nothing is.
        dropped: what of the picture is not read, one thing a line.
        pixels: of the mask, ``label:pixels`` of what occurs, separated by spaces.
    """

    stamp: str
    picture: str
    mask: str
    note: str = ""
    dropped: str = ""
    pixels: str = ""


def preflight(
    dataset: Dataset,
    splits: Sequence[str],
    *,
    cache: Path,
    workers: int = 0,
    pictures_only: Collection[str] = (),
) -> dict[str, str]:
    """Check all pictures and masks of some splits.

    A picture must exist and decode whole. A mask need not be there; one that is must decode whole, hold
    legal values only and be as large as its picture.

    Args:
        dataset: what to check.
        splits: which splits.
        cache: where it is remembered what is sound.
        workers: threads; 0 checks in this one.
        pictures_only: splits whose masks the run does not touch.

    Returns:
        Data fingerprint by split: SHA-256 over ids and contents of pictures and of the masks that are here.

    Raises:
        UserError: the first offender in list order, with the number of further ones.
    """
    found = {}
    for split in splits:
        whole = sound_split(
            dataset, split, cache=cache, workers=workers, with_masks=split not in pictures_only
        )
        assert whole.fingerprint is not None
        found[split] = whole.fingerprint
    return found


@dataclass(frozen=True)
class SplitReport:
    """What was found in one split.

    Attributes:
        split: its name.
        images: ids in this copy's list.
        official: official number of images.
        offenders: what is wrong, in list order.
        notes: what a user should know.
        warnings: what is likely a mistake; it does not keep a run from starting, and stays with its numbers.
        fingerprint: SHA-256 over ids and contents of pictures and of the masks that are here, None where
            something is wrong.
        looked_at: images that were decoded now; the others are as they were.
        pictures: SHA-256 of each sound picture, by id.
        masks: number of pictures whose mask is here.
        pixels: ``(256,)`` pixels of all masks by label; 255 is void.
        occurs: ``(256,)`` number of masks in which a label occurs.
        strange: number of ids that are in no official list.
        decoding: how pictures are read, empty as usual.
        dropped: what of pictures is not read; among the notes too.
    """

    split: str
    images: int
    official: int
    offenders: tuple[UserError, ...]
    notes: tuple[str, ...]
    fingerprint: str | None
    looked_at: int
    pictures: Mapping[str, str] = field(default_factory=dict, repr=False)
    masks: int = 0
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64), repr=False)
    occurs: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64), repr=False)

    strange: int = 0
    decoding: str = ""
    warnings: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    @cached_property
    def of_pictures(self) -> str:
        """SHA-256 over ids and contents of the pictures alone: ``fingerprint`` where there are no masks."""
        return _fingerprint(
            self.decoding, ((image_id, sha256, "") for image_id, sha256 in self.pictures.items())
        )


def verify_split(
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
    info, (pixels, occurs) = dataset.info, _contents(sound.values())
    strange = dataset.unofficial(split)
    pictures = {image_id: row.picture for image_id, row in sound.items()}
    return SplitReport(
        split=split,
        images=len(ids),
        official=info.splits[split],
        offenders=tuple(offenders),
        notes=(*(dropped := tuple(_dropped(sound))), *_twins(pictures)),
        dropped=dropped,
        warnings=(*_odd(sound), *_official(strange, len(ids), split), *sense.of_masks(info, split, pixels)),
        fingerprint=None
        if offenders
        else _fingerprint(dataset.decoding, ((i, sound[i].picture, sound[i].mask) for i in ids)),
        looked_at=fresh + len(offenders),
        pictures=pictures,
        masks=sum(bool(row.mask) for row in sound.values()),
        pixels=pixels,
        occurs=occurs,
        strange=len(strange),
        decoding=dataset.decoding,
    )


def _official(strange: Sequence[str], images: int, split: str) -> Iterator[str]:
    if strange:
        number = f"{len(strange):,} of {images:,} pictures"
        yield f"{number} are in no official list of {split}, such as {strange[0]}"


def overlap(trained: SplitReport, scored: SplitReport) -> str:
    """Which pictures of a split are trained on, by id and by content; nothing where none are."""
    both = sorted(set(trained.pictures) & set(scored.pictures))
    found = [f"{len(both)} ids of {scored.split} are in {trained.split}, such as {both[0]}"] if both else []
    named = set(both)
    contents = {sha256: i for i, sha256 in trained.pictures.items() if i not in named}
    twins = [(i, contents[s]) for i, s in scored.pictures.items() if s in contents and i not in named]
    if twins:
        found.append(
            f"{len(twins)} pictures of {scored.split} are copies of pictures of {trained.split}, such as "
            f"{twins[0][0]} of {twins[0][1]}"
        )
    return "; ".join(found)


def _fingerprint(decoding: str, rows: Iterable[tuple[str, str, str]]) -> str:
    """SHA-256 over how pictures are read, ids, and hashes of pictures and masks."""
    whole = hashlib.sha256(decoding.encode())
    for image_id, picture, mask in rows:
        whole.update(f"{image_id}\0{picture}\0{mask}\n".encode())
    return whole.hexdigest()


def _contents(rows: Iterable[_Sound]) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of all masks by label, and in how many masks each label occurs."""
    pixels, occurs = np.zeros(256, np.int64), np.zeros(256, np.int64)
    for row in rows:
        for part in row.pixels.split():
            label, _, number = part.partition(":")
            pixels[int(label)] += int(number)
            occurs[int(label)] += 1
    return pixels, occurs


def _odd(sound: Mapping[str, _Sound]) -> Iterator[str]:
    odd = [image_id for image_id, row in sound.items() if row.note]
    if odd:
        yield f"{len(odd)} masks with {sound[odd[0]].note}, the first is that of {odd[0]}"


def _dropped(sound: Mapping[str, _Sound]) -> Iterator[str]:
    dropped: dict[str, list[str]] = {}
    for image_id, row in sound.items():
        for what in row.dropped.splitlines():
            dropped.setdefault(what, []).append(image_id)
    for what, ids in dropped.items():
        yield f"{len(ids)} pictures with {what}, the first is {ids[0]}"


def _twins(pictures: Mapping[str, str]) -> Iterator[str]:
    first: dict[str, str] = {}
    twins = [(first[sha], i) for i, sha in pictures.items() if first.setdefault(sha, i) != i]
    if twins:
        one, copy = twins[0]
        yield f"{len(twins)} pictures are copies of others in the split, such as {copy} of {one}"


def sound_split(
    dataset: Dataset, split: str, *, cache: Path, workers: int = 0, with_masks: bool = True
) -> SplitReport:
    """As :func:`verify_split`, of a split in which nothing is wrong.

    Raises:
        UserError: likewise; the first offender in list order, with the number of further ones.
    """
    found = verify_split(dataset, split, cache=cache, workers=workers, with_masks=with_masks)
    if found.fingerprint is None:
        first, others = found.offenders[0], len(found.offenders) - 1
        more = f" (and {others} more of the {found.images} images of {split})" if others else ""
        raise UserError(first.problem + more, where=first.where, remedy=first.remedy)
    return found


def _look(
    dataset: Dataset, split: str, with_masks: bool, known: Mapping[str, _Sound], image_id: str
) -> _Sound | UserError:
    """Check one picture and its mask, unless both are as they were."""
    try:
        picture = dataset.image_path(image_id)
        mask = dataset.mask_path(image_id, split) if with_masks else None
        if mask is not None and not os.path.lexists(mask):
            mask = None
        stamp = _stamp(picture) + ("" if mask is None else " " + _stamp(mask))
        remembered = known.get(image_id)
        if remembered is not None and remembered.stamp == stamp:
            return remembered
        height, width = dataset.read_image(image_id).shape[:2]
        dropped = "\n".join(dataset.picture_notes(image_id))
        note = pixels = ""
        if mask is not None:
            values = dataset.read_mask(image_id, split)
            rows, columns = values.shape
            found = np.bincount(values.ravel(), minlength=256)
            pixels = " ".join(f"{label}:{found[label]}" for label in np.flatnonzero(found))
            if (rows, columns) != (height, width):
                raise UserError(
                    f"the mask is {columns}x{rows} pixels, its picture {width}x{height}",
                    where=mask,
                    remedy="take picture and mask from the same release of the data set",
                )
            note = palette_note(mask, dataset.info.palette if (own := dataset.mask_palette) is None else own)
    except UserError as error:
        return error
    return _Sound(stamp, sha256_of(picture), "" if mask is None else sha256_of(mask), note, dropped, pixels)


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
