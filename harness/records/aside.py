"""A trial's folder moved out of the way, so that it is trained anew and nothing is lost."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

from harness.basics.errors import UserError
from harness.basics.files import named
from harness.records.locks import HOLDER, is_free
from harness.records.records import Store


def set_aside(store: Store, folder: Path) -> Path:
    """Move a trial's folder to ``before-<time>-seed-<n>`` beside it, where no reader sees it.

    It can be moved back. In a folder this is one rename; under a URI it is stored there before it goes here.

    Args:
        store: the store.
        folder: of the trial.

    Returns:
        The new place.

    Raises:
        UserError: another process runs the trial just now.
    """
    if not is_free(folder):
        raise UserError("another process runs this trial", where=store.shown(folder), remedy="wait for it")
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    place = folder.with_name(f"before-{now}-{folder.name}")
    if store.mirror is None or not store.holds(folder):
        with named(folder):
            folder.rename(place)
        return place
    store.pull(folder, lambda name: True)
    shutil.copytree(folder, place, ignore=shutil.ignore_patterns("*.lock", HOLDER))
    store.push(place)
    store.discard(folder, lambda name: True)
    shutil.rmtree(folder)
    store.pull(folder)
    return place
