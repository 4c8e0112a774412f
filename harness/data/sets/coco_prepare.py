"""COCO 2014's maps and image tags, from the official instances (or panoptic annotations).

Maps go to ``SegmentationClass/{train,val}2014/<id>.png``, palette PNGs of 0..80, beside ``prepared.json``,
which says what they were drawn from; tags go to ``lists/tags.npz``. Maps that are there already are
kept, so that preparing can stop and go on; maps of another source are drawn again, and ready-made ones
(no ``prepared.json``) are left alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harness.basics.errors import UserError
from harness.basics.files import sha256_of, write_json
from harness.basics.reading import MOST_TEXT, read_json, remembered
from harness.data import coco_masks
from harness.data.base import DatasetInfo
from harness.data.images import read_rgb, save_index
from harness.data.lists import read_tags, write_tags
from harness.data.parallel import ordered_map

#: Raised when equal annotations may give other maps.
_VERSION = 1


class _Job(NamedTuple):
    """One picture: its id, ``(H, W)``, and its annotations or panoptic segments."""

    image_id: str
    size: tuple[int, int]
    annotations: Sequence[Mapping[str, Any]]
    panoptic: Path | None


def prepare_part(
    info: DatasetInfo,
    part: str,
    source: Path,
    maps: Path,
    labels: np.ndarray,
    *,
    wanted: Sequence[str] | None,
    workers: int,
    report: Callable[[str], None],
) -> dict[str, np.ndarray]:
    """Draw the maps of one part and return its image tags.

    Args:
        info: names, colours.
        part: ``train`` or ``val``.
        source: ``instances_*.json`` or ``panoptic_*.json`` (its PNGs in the folder of the same name).
        maps: folder for ``<id>.png``.
        labels: ``(256,)`` uint8 label of every category id.
        wanted: ids to draw; all pictures of the file by default.
        workers: processes; 0 draws in this one.
        report: told what happened, one line at a time.

    Returns:
        Id to ``(K,)`` uint8 tags: classes of a picture's annotations, crowds among them.

    Raises:
        UserError: the file is not such a file, or lacks pictures that are wanted.
    """
    jobs = _jobs(part, source, labels)
    if wanted is not None:
        missing = [i for i in wanted if i not in jobs]
        if missing:
            raise UserError(
                f"the annotations lack {len(missing)} pictures of the {part} list, such as {missing[0]}",
                where=source,
                remedy=f"use instances_{part}2014.json: pictures of 2017 are distributed over other files",
            )
        jobs = {i: jobs[i] for i in wanted}
    tags = {i: _tags(job, labels, info.num_classes) for i, job in jobs.items()}
    if any(maps.glob("*.png")) and not (maps / "prepared.json").exists():
        report(f"{part}: {maps} holds ready-made maps, they are left as they are (delete them to draw anew)")
        return tags
    stamp = {"version": _VERSION, "source": source.name, "sha256": sha256_of(source)}
    if _stamp(maps) != stamp:
        for path in maps.glob("*.png"):  # none of an older source may stay
            path.unlink()
        write_json(maps / "prepared.json", stamp)
    todo = [job for job in jobs.values() if not (maps / f"{job.image_id}.png").exists()]
    draw = partial(_draw, maps, labels, info.palette)
    for _ in ordered_map(draw, todo, workers=workers, kind="processes", what=f"drawing maps of {part}2014"):
        pass
    report(f"{part}: {len(todo)} maps drawn, {len(jobs) - len(todo)} were there, in {maps}")
    return tags


def _stamp(maps: Path) -> Any:
    return remembered(maps / "prepared.json", dict, None)


def add_tags(path: Path, tags: Mapping[str, np.ndarray]) -> None:
    """Add tags to those in a file of image tags, which is written where there is none."""
    both = (read_tags(path) if path.exists() else {}) | dict(tags)
    write_tags(path, list(both), np.stack(list(both.values())))


def _jobs(part: str, source: Path, labels: np.ndarray) -> dict[str, _Job]:
    """What to draw for every picture of an annotation file, by id."""
    try:
        content = read_json(source, MOST_TEXT)
        pictures, annotations = content["images"], content["annotations"]
        of_picture: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
        for annotation in annotations:
            of_picture[annotation["image_id"]].append(annotation)
        jobs = {}
        for picture in pictures:
            found = of_picture.get(picture["id"], [])
            panoptic = None
            if found and "segments_info" in found[0]:
                panoptic = source.with_suffix("") / found[0]["file_name"]
                found = found[0]["segments_info"]
            image_id = f"COCO_{part}2014_{picture['id']:012d}"
            size = (int(picture["height"]), int(picture["width"]))
            if min(size) < 1 or not all(isinstance(each, dict) for each in found):
                raise ValueError(f"picture {picture['id']}")
            jobs[image_id] = _Job(image_id, size, found, panoptic)
        return jobs
    except (UserError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"not a file of COCO annotations: {type(error).__name__} {error}",
            where=source,
            remedy="unpack annotations_trainval2014.zip again",
        ) from None


def _tags(job: _Job, labels: np.ndarray, num_classes: int) -> np.ndarray:
    row = np.zeros(num_classes, np.uint8)
    kinds = [a.get("category_id") for a in job.annotations]
    row[[int(labels[k]) for k in kinds if type(k) is int and 0 <= k < len(labels)]] = 1
    row[0] = 0
    return row


def _draw(maps: Path, labels: np.ndarray, palette: Sequence[Sequence[int]], job: _Job) -> None:
    try:
        if job.panoptic is None:
            drawn = coco_masks.annotation_map(job.annotations, job.size, labels)
        else:
            drawn = coco_masks.panoptic_map(read_rgb(job.panoptic), job.annotations, labels)
    except UserError as error:
        raise UserError(f"{job.image_id}: {error.problem}", where=error.where, remedy=error.remedy) from None
    save_index(maps / f"{job.image_id}.png", drawn, palette)
