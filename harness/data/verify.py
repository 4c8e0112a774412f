"""Preflight: decode every picture and mask that a run will touch, before it trains.

What was found sound is remembered with size and time of change of the files, so that only new and
changed files are decoded again. Decoding leaves Python's lock, so threads are enough.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from harness.data.base import Dataset
from harness.data.parallel import ordered_map
from harness.errors import UserError
from harness.files import read_json, sha256_of, whole_file

#: Part of what is remembered; raised when the checks become stricter.
_VERSION = 1


class _Sound(NamedTuple):
    """What is remembered of a picture and its mask.

    Attributes:
        stamp: size and time of change of both files.
        picture: SHA-256 of the picture's file.
        mask: SHA-256 of the mask's file, empty where there is none.
    """

    stamp: str
    picture: str
    mask: str


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


def _check(dataset: Dataset, split: str, cache: Path, workers: int, with_masks: bool) -> str:
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
        if any(known.get(image_id) != row for image_id, row in sound.items()):
            with whole_file(memory) as stream:
                json.dump({**known, **sound}, stream)
    if offenders:
        first, others = offenders[0], len(offenders) - 1
        more = f" (and {others} more of the {len(ids)} images of {split})" if others else ""
        raise UserError(first.problem + more, where=first.where, remedy=first.remedy)
    whole = hashlib.sha256()
    for image_id in ids:
        whole.update(f"{image_id}\0{sound[image_id].picture}\0{sound[image_id].mask}\n".encode())
    return whole.hexdigest()


def _look(
    dataset: Dataset, split: str, with_masks: bool, known: Mapping[str, _Sound], image_id: str
) -> _Sound | UserError:
    """Check one picture and its mask, unless both are as they were."""
    picture = dataset.image_path(image_id)
    mask = dataset.mask_path(image_id, split) if with_masks else None
    stamp = _stamp(picture) + ("" if mask is None else " " + _stamp(mask))
    remembered = known.get(image_id)
    if remembered is not None and remembered.stamp == stamp:
        return remembered
    try:
        height, width = dataset.read_image(image_id).shape[:2]
        if mask is not None:
            rows, columns = dataset.read_mask(image_id, split).shape
            if (rows, columns) != (height, width):
                raise UserError(
                    f"the mask is {columns}x{rows} pixels, its picture {width}x{height}",
                    where=mask,
                    remedy="take picture and mask from the same release of the data set",
                )
    except UserError as error:
        return error
    return _Sound(stamp, sha256_of(picture), "" if mask is None else sha256_of(mask))


def _stamp(path: Path) -> str:
    try:
        stat = path.stat()
    except OSError:
        return "missing"
    return f"{stat.st_size}.{stat.st_mtime_ns}"


def _memory(dataset: Dataset, split: str, cache: Path, with_masks: bool) -> Path:
    """The file that remembers a split of one copy of a data set."""
    some_id = dataset.ids(split)[0]
    key = [_VERSION, str(dataset.image_path(some_id).resolve()), dataset.info.num_classes, with_masks]
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
    return cache / "verified" / dataset.info.name / f"{split}-{name}.json"


def _recall(memory: Path) -> dict[str, _Sound]:
    try:
        return {image_id: _Sound(*row) for image_id, row in read_json(memory).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}  # nothing remembered, or not by us: look again
