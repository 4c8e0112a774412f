"""Checkpoints beside the record that says what they are."""

from __future__ import annotations

import os
from pathlib import Path

from harness.basics.files import sha256_of
from harness.basics.reading import damaged
from harness.records.records import Record, read_record

#: The folder of a trial's checkpoints.
CHECKPOINTS = "checkpoint"


def check_recorded(checkpoint: Path) -> None:
    """Compare a checkpoint in a trial's folder with the hash in the trial's record.

    A checkpoint that stands elsewhere, or that is still trained, has no such record, and passes.

    Raises:
        Damaged: it is not the file that was recorded, or the record beside it is damaged.
    """
    record = record_beside(checkpoint)
    expected = None if record is None else record.sha256_of_checkpoint(checkpoint.name)
    if record is None or expected is None:
        return
    found = sha256_of(checkpoint)
    if found != expected:
        from harness.recipes.names import run_command  # reads recipes, which a sound file does not need

        raise damaged(
            checkpoint,
            f"it is not the checkpoint that was recorded: its SHA-256 is {found[:12]}, not {expected[:12]}",
            "restore the file, or move the trial's folder away and train it again: "
            + run_command(
                record.name,
                record.data["overrides"],
                f"--seed {record.seed}",
                called=record.data.get("called", ""),
            ),
        )


def reached(checkpoint: Path) -> int | None:
    """The step that a checkpoint goes on from; None where there is none, or none that can be read. Only that
    number is read: large files cost nothing."""
    import torch

    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        return int(state["step"])
    except Exception:  # unpickling, zip and storage errors have no common base; training says what is wrong
        return None


def record_beside(checkpoint: Path) -> Record | None:
    """The finished record that a checkpoint belongs to; None where it stands in no trial's folder."""
    place = checkpoint.absolute().parent
    if place.name != CHECKPOINTS or not os.path.lexists(place.parent / "record.json"):
        return None
    record = read_record(place.parent)
    return record if record.finished else None
