"""Everything in a store read and compared with what was recorded: ``wsss verify-store``.

Other verbs check what they use, and where a user has many of something, its size and time. Here every byte
is read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from harness.basics.errors import UserError
from harness.basics.files import cache_folder, sha256_of
from harness.basics.progress import counted
from harness.basics.reading import Damaged, damaged, read_json, read_object
from harness.basics.registry import DATASETS
from harness.data.base import Dataset
from harness.data.images import read_index
from harness.data.naming import stays_inside
from harness.data.prepare.verify import verify_split
from harness.evaluation.boundary import Boundary
from harness.evaluation.counting import count
from harness.nn.torch_files import read_torch
from harness.records.checkpoints import CHECKPOINTS
from harness.records.history import read_curve
from harness.records.records import EvaluationRecord, Record, Store
from harness.records.truth import Pictures, Truth, contradictions, truth_of

#: A record lies this deep: method, recipe, digest, seed.
_DEPTH = 4
#: Opens a data set; raises UserError where it is not there.
Open = Callable[[str], Dataset]


@dataclass
class Verified:
    """What was read.

    Attributes:
        records, evaluations, checkpoints: how many were found sound.
        breaches: what is wrong, one error for each place.
        runs: sound evaluations, with the data that they were scored on.
        unseen: splits whose evaluations could not be compared with the data set, and why.
    """

    records: int = 0
    evaluations: int = 0
    checkpoints: int = 0
    breaches: dict[str, Damaged] = field(default_factory=dict)
    runs: list[tuple[Pictures, EvaluationRecord]] = field(default_factory=list)
    unseen: dict[str, str] = field(default_factory=dict)

    def note(self, error: Damaged) -> None:
        """Remember a breach; each place once."""
        self.breaches.setdefault(str(error.where), error)

    def sound(self, work: Iterator[None]) -> bool:
        """Whether a piece of work meets no damaged file."""
        try:
            for _ in work:
                pass
        except Damaged as error:
            self.note(error)
            return False
        return True


def verify_store(store: Store, dataset: Open | None = None, cache: Path | None = None) -> Verified:
    """Read a whole store; under a URI, after everything was brought.

    Args:
        store: the store.
        dataset: opens a data set by its name, to count the labelled pixels of its pictures anew.
        cache: where checks of data sets are kept, the user's cache folder by default.

    Raises:
        UserError: the store is not there, or cannot be reached.
    """
    done = Verified()
    records = list(store.records())
    for record in counted(records, len(records), "verifying", "records"):
        store.pull(record.path, lambda name: True)
        before = len(store.left_out) + len(done.breaches)
        _record(record, done)
        done.records += before == len(store.left_out) + len(done.breaches)
    for folder, names in _folders(store.root):
        _others(store.root, folder, names, done)
    _truths(done, dataset, cache or cache_folder())
    for error in store.left_out.values():
        done.note(error)
    return done


def _record(record: Record, done: Verified) -> None:
    known = _classes(record)
    for run in record.all_evaluations:
        if done.sound(_evaluation(run, known)):
            done.evaluations += 1
            done.runs.append(((record.recipe["dataset"], run.data["data_fingerprint"]), run))
    record.history()
    for name in ("last.pt", "best.pt"):
        file = record.path / CHECKPOINTS / name
        if os.path.lexists(file):
            done.checkpoints += done.sound(_checkpoint(file, record.sha256_of_checkpoint(name)))


def _classes(record: Record) -> tuple[str, ...] | None:
    try:
        return tuple(DATASETS.get(record.recipe["dataset"]).info.classes)
    except UserError:  # its package is not installed
        return None


def _evaluation(run: EvaluationRecord, known: tuple[str, ...] | None) -> Iterator[None]:
    counts = run.load()
    if known is not None and tuple(run.data["classes"]) != known:
        raise damaged(run.path / "evaluation.json", "its classes are not those of the data set")
    bands = Boundary.load(run.path / "boundary.npz")
    totals = (counts.intersection.sum(0), counts.predicted.sum(0), counts.labelled.sum(0))
    if bands is not None and not bands.fits(totals):
        raise damaged(run.path / "boundary.npz", "more pixels lie in its bands than were counted")
    yield


def _truths(done: Verified, dataset: Open | None, cache: Path) -> None:
    """Labelled pixels, against those of the data set where it is there, and of the others of its data."""
    known: dict[Pictures, Truth] = {}
    splits = {(pictures, run.data["spec"]["split"]) for pictures, run in done.runs}
    for pictures, split in sorted(splits):
        if dataset is None:
            break
        name, fingerprint = pictures
        try:
            opened = dataset(name)
            if verify_split(opened, split, cache=cache).fingerprint != fingerprint:
                raise UserError("other pictures or masks than those that were scored")
            if pictures not in known:
                known[pictures] = _counted(opened, split)
        except UserError as error:
            done.unseen.setdefault(f"{name} {split}", error.problem)
    wrong = contradictions(done.runs, known)
    for contradiction in wrong.values():
        done.note(contradiction)
    done.evaluations -= len(wrong)


def _counted(dataset: Dataset, split: str) -> Truth:
    """The truth of a split, from its masks."""
    ids, classes = dataset.masked(split), dataset.info.num_classes
    masks = (dataset.read_mask(image_id, split) for image_id in ids)
    return truth_of(ids, np.array([count(mask, mask, classes)[2] for mask in masks], dtype=np.int64))


def _checkpoint(file: Path, expected: str | None) -> Iterator[None]:
    found = sha256_of(file)
    if expected is not None and found != expected:
        raise damaged(file, f"its SHA-256 is {found[:12]}, {expected[:12]} is recorded", "restore the file")
    read_torch(file)
    yield


def _folders(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Every folder and the names of its files, links not followed, in a fixed order."""
    for place, inner, names in os.walk(root):
        inner.sort()
        yield Path(place), sorted(names)


def _others(root: Path, folder: Path, names: list[str], done: Verified) -> None:
    """Files that no record speaks of: what is still trained, pseudo labels, what is out of place."""
    depth = len(folder.relative_to(root).parts)
    if "record.json" in names and depth != _DEPTH:
        done.note(damaged(folder / "record.json", "no record is looked for here", "move it out of the store"))
    if folder.name == CHECKPOINTS and not os.path.lexists(folder.parent / "record.json"):
        for name in names:
            if name.endswith(".pt"):
                done.checkpoints += done.sound(_checkpoint(folder / name, None))
    if "history.csv" in names and not os.path.lexists(folder / "record.json"):
        done.sound(_curve(folder / "history.csv"))
    if "complete.json" in names:
        done.sound(_labels(folder))
    if "predictions" in folder.relative_to(root).parts:
        for name in names:
            if name.endswith(".png"):
                done.sound(_picture(folder / name))
    for name in names:
        if name.endswith(".json") and name not in ("record.json", "evaluation.json", "complete.json"):
            done.sound(_json(folder / name))


def _curve(file: Path) -> Iterator[None]:
    read_curve(file)
    yield


def _json(file: Path) -> Iterator[None]:
    (read_json if file.name == "code.json" else read_object)(file)  # the only list
    yield


def _picture(file: Path) -> Iterator[None]:
    try:
        read_index(file)
    except UserError as error:
        raise damaged(file, error.problem, error.remedy or "") from None
    yield


def _labels(folder: Path) -> Iterator[None]:
    """Pseudo labels that another recipe trains on, against the hashes that were written with them."""
    recorded = read_object(folder / "complete.json").get("sha256", {})
    if not isinstance(recorded, dict):
        raise damaged(folder / "complete.json", "key 'sha256': an object is wanted")
    for image_id, sha256 in recorded.items():
        file = folder / f"{image_id}.png"
        if not stays_inside(image_id):
            raise damaged(folder / "complete.json", f"{image_id[:60]!r} is the id of no picture")
        if sha256_of(file) != sha256:
            raise damaged(file, "it is not the label that was written", "delete it: it is made again")
        yield
