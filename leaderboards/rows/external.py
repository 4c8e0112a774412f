"""Results from outside: predictions of any code base scored here, and records of another store.

A folder of PNGs and a metadata file become a record ``external/<name>``, which the tables mark so. Nothing
is known of its training beyond what the metadata say, so it is never judged against a published value.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from harness.basics.arrays import MOST_FILE
from harness.basics.errors import UserError
from harness.basics.files import cache_folder, check_writable, read_toml, write_with
from harness.basics.reading import Damaged, damaged, read_bytes, read_object
from harness.basics.schema import Neutral, digest, dump, load, schema
from harness.data.base import Dataset, Supervision
from harness.evaluation import evaluator
from harness.evaluation.boundary import Boundary, BoundaryCounter
from harness.recipes import foreign, protocols
from harness.records.adding import adding
from harness.records.records import EvaluationRecord, Record, Store
from leaderboards.rows.gathering import external_digest


@schema
class External:
    """Metadata of imported predictions."""

    name: str
    """Short name: letters, digits, dashes and underscores; the table shows `external/<name>`."""
    title: str
    """Name of the method in tables."""
    dataset: str
    """Registry name of the data set."""
    supervision: Supervision
    """Kind of weak label that it was trained on."""
    split: str = "val"
    """Split that was predicted."""
    backbone: str = "not stated"
    """Backbone, as its authors call it."""
    weights: str = "not stated"
    """Where the backbone started."""
    weak_label: str = "not stated"
    """Which weak labels it was trained on."""
    encoding: Annotated[Literal["found", "classes", "files"], Neutral("found")] = "found"
    """Whose numbers the label maps hold: those of the `classes` (0..K-1) or the data set's own `files`."""
    protocol: str = "not stated"
    """Scales, mirror, CRF: how the predictions were made."""
    source: str = "not stated"
    """Paper, repository, commit, or who made them."""
    seed: int = Field(default=0, ge=0)
    """Runs of one name and different seeds fold into one row."""
    notes: str = ""
    """Caveats; they may differ from seed to seed."""


def read_metadata(file: Path) -> External:
    """Read a metadata file. Raises UserError for a missing file, an unknown key or a wrong value."""
    metadata = load(External, read_toml(file), file)
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}", metadata.name):
        raise UserError(
            f"the name {metadata.name!r} is no folder name", where=file, remedy="letters, digits, - and _"
        )
    return metadata


def earlier(store: Store, metadata: External) -> float | None:
    """The mIoU of the import that one of these predictions replaces; None where there is none."""
    own = external_digest(dump(metadata))
    found = [
        record
        for record in store.records(f"external/{metadata.name}")
        if record.seed == metadata.seed and external_digest(record.data.get("metadata", {})) == own
    ]
    newest = max(found, key=lambda record: record.data["ended"], default=None)
    return None if newest is None else next((run.miou for run in newest.evaluations.values()), None)


def import_predictions(
    folder: Path,
    metadata: External,
    dataset: Dataset,
    store: Store,
    *,
    cache: Path | None = None,
    say: Callable[[str], None] = warnings.warn,
) -> Record:
    """Score ``<folder>/<id>.png`` and add the result to a store; an earlier import of that seed is replaced.

    Args:
        folder: index PNGs of every picture of the split, at the size of its mask.
        metadata: what is known of them.
        dataset: the data set, opened.
        store: where the record goes.
        cache: where checks of the data set are kept, the user's cache folder by default.
        say: is told what a reader of the figures must know.

    Raises:
        UserError: predictions are missing, of another size, not index maps, or hold values that are no
            class; their numbering can be either; the split has no masks.
    """
    from harness.data.predictions import FolderPredictions
    from harness.data.prepare.verify import preflight

    split, info = metadata.split, dataset.info
    dataset.check_split(split)
    check_writable(store.root)
    notes = saved_notes(folder)
    encoding = None if metadata.encoding == "found" else metadata.encoding
    pairs = FolderPredictions(dataset, folder, split, encoding, say='encoding = "{}" in the metadata')
    bands = BoundaryCounter(info.num_classes)
    counts = evaluator.gather(bands.following(pairs), info.num_classes)
    if text := pairs.warning():
        notes = [*notes, text]
        say(f"warning: {text}")
    fingerprint = preflight(dataset, [split], cache=cache or cache_folder(), workers=0)[split]
    images, official = dataset.coverage(split)
    known = {k: v for k, v in dump(metadata).items() if k != "seed"}
    own = external_digest(known)
    name = f"external/{metadata.name}"
    place = store.folder(name, own, metadata.seed)
    protocol = protocols.Protocol()
    spec: dict[str, Any] = {"split": split, "protocol": "external", "network": "default"}
    spec |= {"output": "segmentation", "checkpoint": "last", "cells": [], "tolerance": None}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    recipe: dict[str, Any] = {
        "method": "external",
        "dataset": info.name,
        "supervision": metadata.supervision,
        "backbone": metadata.backbone,
        "weights": metadata.weights,
        "weak_label": metadata.weak_label,
        "train_split": "",
        "evaluation": [spec],
    }
    words = [f"source {metadata.source}", f"made with {metadata.protocol}", metadata.notes]
    with adding(store, place):
        store.write_evaluation(
            place,
            counts,
            {
                "name": f"{split}-external",
                "digest": digest([split, "external", fingerprint]),
                "spec": spec,
                "protocol": {"about": metadata.protocol, "classes": protocol.classes},
                "official_images": official,
                "data_fingerprint": fingerprint,
                "written": now,
                **({"notes": notes} if notes else {}),
                **evaluator.summarise(counts, info.classes, protocol),
            },
            bands.result(),
        )
        return store.write_record(
            place,
            {
                "name": name,
                "method": "external",
                "title": f"{metadata.title} (external)",
                "recipe": recipe,
                "overrides": {},
                "seed": metadata.seed,
                "digest": own,
                "status": "finished",
                "external": words,
                "metadata": known,
                "data": {"dataset": info.name, "splits": {split: {"images": images, "official": official}}},
                "ended": now,
            },
        )


def saved_notes(folder: Path) -> list[str]:
    """What ``wsss evaluate --save`` said of the network whose predictions lie in a folder.

    Args:
        folder: ``<saved>/predictions``, or any other, of which nothing is known.

    Raises:
        UserError: the ``evaluation.json`` beside it is damaged, so that its caveats cannot be told.
    """
    file = folder.absolute().parent / "evaluation.json"
    if folder.absolute().name != "predictions" or not file.is_file():
        return []
    notes = read_object(file).get("notes", [])
    if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        raise damaged(file, "'notes' is no list of texts")
    return notes


#: Files of an evaluation; the JSON last: the evaluation exists when it does.
_EVALUATION = ("per_image.npz", "boundary.npz", "evaluation.json")


def import_records(source: Path | str | Store, store: Store) -> tuple[list[Path], list[Path]]:
    """Copy finished records of another store, checkpoints and predictions left behind.

    A record that is here already has the same numbers there, or nothing is imported at all. Evaluations of
    it that only the other store has are added; one that has failed here is replaced.

    Every file of a record is read and checked before the first byte of it is written; only files that a
    record is known to have are copied, and no link is followed. What is damaged is left out and noted.

    Args:
        source: the other ``results`` folder, its URI, or its store (whose ``left_out`` grows).
        store: where they go.

    Returns:
        Folders that were written, and those that existed already.

    Raises:
        UserError: the folder holds no finished record; or a number of a record that is here too differs.
    """
    origin = source if isinstance(source, Store) else Store(source)
    found = [record for record in origin.records() if record.finished]
    if not found:
        others = "".join(f"; left out: {error.brief}" for error in origin.left_out.values())
        raise UserError(
            f"no finished record and no metadata file{others}",
            where=origin.place,
            remedy="name a results folder, or add --metadata FILE for a folder of predictions",
        )
    store.refresh(*{record.name for record in found})
    pairs: list[tuple[Path, Record, Record | None]] = []
    for record in found:
        place = store.folder(record.name, record.digest, record.seed)
        try:
            pairs.append((place, record, store.get(place)))
        except Damaged as error:  # a record of another trial, or a damaged one: it is not touched
            store.note(error)
    _refuse_differences(
        [(own, record) for _, record, own in pairs if own is not None and own.finished], origin
    )
    written, present = [], []
    for place, record, own in pairs:
        lacking: Collection[str] | None = None
        if own is not None and own.finished:
            present.append(place)
            lacking = record.sound.keys() - own.sound.keys()
            if not lacking:
                continue
        try:
            parts = _parts(record, origin.root, lacking)
        except Damaged as error:
            origin.note(error)
            continue
        with adding(store, place):
            for name, content in parts:
                write_with(place / name, partial(_put, content))
        if lacking is None:
            written.append(place)
    return written, present


def _refuse_differences(pairs: Sequence[tuple[Record, Record]], origin: Store) -> None:
    """Records of equal digest and seed must say the same, here and there.

    Raises:
        UserError: they do not; every difference is named.
    """
    found = [text for ours, theirs in pairs for text in _differences(ours, theirs)]
    if found:
        shown = [*found[:8], *([f"and {len(found) - 8} more"] if found[8:] else [])]
        raise UserError(
            "numbers of the same recipe, seed and data differ, so nothing was imported:\n    "
            + "\n    ".join(shown),
            where=origin.place,
            remedy="find out which is right (code and machine stand in both record.json); then import into a "
            "store of its own (--results), or move the folder of the wrong record away",
        )


def _differences(ours: Record, theirs: Record) -> list[str]:
    """Every evaluation with other numbers, both of them named."""
    found = []
    for name, run in theirs.sound.items():
        own, where = ours.sound.get(name), f"{theirs.name} seed {theirs.seed}, {name}"
        if own is None:
            known = {e.data.get("checkpoint_sha256") for e in ours.sound.values()}
            if run.data.get("checkpoint_sha256") not in known:
                found.append(f"{where}: {run.miou:.2f} there, of another trained network than the one here")
        elif own.data["digest"] == run.data["digest"] and not _same_counts(own, run):
            codes = [foreign.told_packages(record.data) for record in (ours, theirs)]
            note = f" (code here: {codes[0]}; there: {codes[1]})" if codes[0] != codes[1] else ""
            found.append(f"{where}: {own.miou:.2f} here, {run.miou:.2f} there{note}")
    return found


def _same_counts(one: EvaluationRecord, other: EvaluationRecord) -> bool:
    """Whether two evaluations counted the same in every picture."""
    a, b = one.per_image, other.per_image
    parts = ("intersection", "predicted", "labelled")
    return a.ids == b.ids and all(np.array_equal(getattr(a, p), getattr(b, p)) for p in parts)


def _put(content: bytes, stream: IO[bytes]) -> None:
    stream.write(content)


def _parts(record: Record, root: Path, only: Collection[str] | None = None) -> list[tuple[str, bytes]]:
    """Names and contents of a record's files, ``record.json`` last.

    Args:
        record: what to copy.
        root: of the record's store.
        only: these evaluations alone; everything by default.

    Raises:
        Damaged: the record, or a file of it, lies behind a link.
    """
    _no_link(record.path / "record.json", root)
    files = []
    for run in record.all_evaluations if only is None else [record.sound[name] for name in sorted(only)]:
        try:
            run.load()
            _no_link(run.path / "evaluation.json", root)
            Boundary.load(run.path / "boundary.npz")
        except Damaged as error:
            record.note(error)
            continue
        files += [run.path / name for name in _EVALUATION]
    if only is None:
        files += [record.path / "history.csv"] if not record.history().empty else []
        files.append(record.path / "record.json")
    parts = []
    for file in files:
        if os.path.lexists(file):
            _no_link(file, root)
            parts.append((file.relative_to(record.path).as_posix(), read_bytes(file, MOST_FILE)))
    return parts


def _no_link(file: Path, root: Path) -> None:
    """Raises Damaged where a file, or a folder between it and its store, is a link."""
    for place in (file, *file.parents):
        if place == root:
            return
        if place.is_symlink():
            raise damaged(
                place, "it is a link, and an import follows none", "name the folder that it leads to"
            )
