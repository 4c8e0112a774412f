"""What is on disk of a trial already: whether it can be believed, and what has to make way."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.basics.files import sha256_of
from harness.basics.reading import Damaged, remembered, set_damaged_aside
from harness.evaluation.boundary import Boundary
from harness.records.records import read_evaluation

if TYPE_CHECKING:
    from harness.recipes.specs import EvaluationSpec
    from harness.running.trials.trial import Prepared


def is_scored(prepared: Prepared, spec: EvaluationSpec) -> bool:
    """Whether an evaluation is on disk, whole, with counts of these pictures that say what it says."""
    place = prepared.evaluation_folder(spec)
    if not os.path.lexists(place / "evaluation.json"):
        return False
    try:
        record = prepared.record
        counts = read_evaluation(place, _checkpoint(prepared, spec) if record is None else record.data).load()
        if counts.ids != tuple(prepared.dataset.ids(spec.split)):
            return False
        bands = Boundary.load(place / "boundary.npz")
    except Damaged as error:
        if not error.mendable:
            raise
        return False
    if bands is None:  # of pseudo labels they are counted since boundary IoU is, and no record is scored anew
        return spec.output != "segmentation"
    return bands.fits((counts.intersection.sum(0), counts.predicted.sum(0), counts.labelled.sum(0)))


def _checkpoint(prepared: Prepared, spec: EvaluationSpec) -> dict[str, Any]:
    """What a record would say of the checkpoint that an evaluation scores; nothing where there is none."""
    file = prepared.folder / "checkpoint" / f"{spec.checkpoint}.pt"
    where = "best" if spec.checkpoint == "best" else "checkpoint"
    return {where: {"sha256": sha256_of(file)}} if file.is_file() else {}


def make_way(prepared: Prepared) -> list[str]:
    """Move damaged files aside, in whose places a run will write; what the user shall be told of it.

    Raises:
        Damaged: a file is of a newer version, or of another trial.
    """
    told = []
    try:
        prepared.store.get(prepared.folder)
    except Damaged as error:
        if not error.mendable:
            raise
        aside = set_damaged_aside(prepared.folder / "record.json")
        told.append(f"{error.brief}; moved to {aside}, the trial goes on from its checkpoint")
    for spec in prepared.missing_evaluations():
        place = prepared.evaluation_folder(spec)
        if os.path.lexists(place) and not place.is_dir():
            set_damaged_aside(place)
        for name in ("evaluation.json", "per_image.npz", "boundary.npz"):
            if os.path.lexists(place / name):
                aside = set_damaged_aside(place / name)
                told.append(f"{place / name}: damaged; moved to {aside}, {spec.name} is scored again")
    return told


def is_whole(place: Path, ids: Sequence[str], code: str = "") -> bool:
    """Whether a folder of pseudo labels holds what was written, byte for byte, by some code.

    Args:
        place: the folder.
        ids: of the pictures.
        code: of other packages, as ``complete.json`` notes it; empty where all is ours.
    """
    memo = place / "complete.json"
    recorded = remembered(memo, lambda found: dict(found["sha256"]), None)
    if remembered(memo, lambda found: str(found.get("code", "")), "") != code:
        return False
    if recorded is None or set(recorded) != set(ids):
        return False
    try:
        return all(sha256_of(place / f"{i}.png") == sha256 for i, sha256 in recorded.items())
    except Damaged:
        return False
