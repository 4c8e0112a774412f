"""The record store: what a trial leaves behind. Leaderboards are computed from it alone.

Layout of a trial's folder, ``<root>/<method>/<recipe>/<digest>/seed-<n>/``::

    history.csv                                 loss terms, learning rate, rate of every logged step
    checkpoint/last.pt                          resumable until the run is finished, then weights only
    evaluations/<name>-<digest>/per_image.npz   ids; per image and class: intersection, predicted, labelled
    evaluations/<name>-<digest>/boundary.npz    the same near boundaries, summed over the pictures
    evaluations/<name>-<digest>/evaluation.json the number with everything that defines it
    record.json                                 written last: the record exists when this file does

Every JSON is written last and by rename: what exists is whole. A store under a URI is worked on through a
local mirror of it (:mod:`harness.records.remote`).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.basics.files import cache_folder, write_json
from harness.basics.reading import Damaged, Misplaced, damaged, unreadable
from harness.records.counts import COUNTS, PerImage
from harness.records.documents import (
    SCHEMA,
    EvaluationDocument,
    RecordDocument,
    fault_of_counts,
    fault_of_origin,
    read_document,
)
from harness.records.driver_claim import only_driver
from harness.records.history import read_curve
from harness.records.object_store import is_uri
from harness.records.remote import Mirror, for_readers, for_work, mirror_of
from harness.records.truth import Truth, truth_of

if TYPE_CHECKING:
    import pandas as pd

#: Takes note of a file that is left out.
Note = Callable[[Damaged], None]
#: Says whether counts of this many bytes may stay in memory.
Keep = Callable[[int], bool]
#: Bytes of counts that a store keeps after it has checked them, for the tables that read them next; those of
#: 2,000 evaluations of 100 pictures.
_KEPT = 64 << 20
_COPY = "move the copy out of the store"


def _ignore(error: Damaged) -> None:
    """Nobody asked."""


def _never(size: int) -> bool:
    """Nothing is kept."""
    return False


@dataclass(frozen=True)
class EvaluationRecord:
    """One evaluation on disk.

    Keys of ``data``: ``schema, name, digest, spec`` (split, protocol, network, output, checkpoint, cells,
    tolerance), ``protocol`` (every value), ``images, official_images, classes, miou`` (percent),
    ``iou`` (percent per class, None where absent), ``absent`` (class names), ``pixel_accuracy``,
    ``config`` (values that only inference reads, where they are not the recipe's own), ``notes`` (what a
    reader must know of the checkpoint),
    ``coverage`` (share of pixels with a decision), ``data_fingerprint, checkpoint_sha256, seconds``, and
    ``packages`` where code of others took part (:mod:`harness.recipes.foreign`).
    """

    path: Path
    data: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What was scored, such as ``val-single``."""
        return self.data["name"]

    @property
    def miou(self) -> float:
        """Mean IoU in percent; NaN when no class occurs."""
        value = self.data["miou"]
        return math.nan if value is None else float(value)

    @property
    def iou(self) -> np.ndarray:
        """``(K,)`` IoU in percent, NaN for classes that occur neither in prediction nor label."""
        return np.array([math.nan if v is None else v for v in self.data["iou"]], dtype=np.float64)

    @cached_property
    def per_image(self) -> PerImage:
        """Per-image statistics."""
        return self.load()

    @cached_property
    def truth(self) -> Truth:
        """What was labelled in its pictures, in short.

        Raises:
            Damaged: the counts are missing or damaged.
        """
        counts = self.counts()
        return truth_of(counts.ids, counts.labelled)

    def counts(self) -> PerImage:
        """Per-image statistics that somebody checked already: those still in memory, else read anew without
        the comparison of :meth:`load`, and not kept.

        Raises:
            Damaged: missing or damaged.
        """
        known: PerImage | None = self.__dict__.get("per_image")
        return PerImage.load(self.path / "per_image.npz") if known is None else known

    def check(self, keep: Keep) -> None:
        """As :meth:`load`, for its errors; the counts stay in memory where ``keep`` says so."""
        found = self.load()
        if keep(sum(getattr(found, name).nbytes for name in COUNTS)):
            self.__dict__["per_image"] = found

    def load(self) -> PerImage:
        """Per-image statistics, read anew and not kept: all counts of a large store do not fit into memory.

        Raises:
            Damaged: missing, damaged, or not those that the figures were computed from.
        """
        file = self.path / "per_image.npz"
        counts = PerImage.load(file)
        fault = fault_of_counts(
            self.data, counts.ids, (counts.intersection, counts.predicted, counts.labelled)
        )
        if fault is not None:
            raise damaged(self.path / "evaluation.json", f"{fault} ({file.name})", "evaluate again")
        self.__dict__["truth"] = truth_of(counts.ids, counts.labelled)
        return counts


@dataclass(frozen=True)
class Record:
    """One trial on disk.

    Keys of ``data``: ``schema, name, method, title, recipe`` (after overrides, config included),
    ``overrides, seed, digest, status`` (``finished`` or ``failed``), ``reason``, ``code`` (version,
    commit, dirty; ``packages`` where code of others took part, see :mod:`harness.recipes.foreign`),
    ``environment`` (python, packages), ``hardware``, ``data`` (dataset, per-split ``images``,
    ``official``, ``fingerprint``; ``labels`` fingerprint and statistics), ``weights``
    (name, sha256), ``parameters``, ``started, ended`` (ISO 8601, UTC), ``seconds, steps,
    steps_per_second, peak_memory_mib, resumed, checkpoint`` (file, sha256), and ``curve_lacks`` (first and
    last step of each gap) where rows of ``history.csv`` were lost.
    """

    path: Path
    data: Mapping[str, Any]
    note: Note = field(default=_ignore, compare=False, repr=False)
    keep: Keep = field(default=_never, compare=False, repr=False)

    @property
    def name(self) -> str:
        """Recipe name, ``<method>/<table>``."""
        return self.data["name"]

    @property
    def seed(self) -> int:
        """Seed of the trial."""
        return self.data["seed"]

    @property
    def digest(self) -> str:
        """Training digest."""
        return self.data["digest"]

    @property
    def recipe(self) -> Mapping[str, Any]:
        """The recipe's values after overrides."""
        return self.data["recipe"]

    @property
    def finished(self) -> bool:
        """Whether training came to its end."""
        return self.data["status"] == "finished"

    @cached_property
    def all_evaluations(self) -> tuple[EvaluationRecord, ...]:
        """Every evaluation, by the time of writing. Damaged ones are left out."""
        found = []
        read = partial(read_evaluation, of=self.data)
        for place in self._noted(_evaluations, self.path / "evaluations") or ():
            file = place / "evaluation.json"
            if os.path.lexists(file) or _leads_nowhere(place):
                one = self._noted(read, place)
                found += [] if one is None else [one]
        return tuple(sorted(found, key=lambda e: (e.data.get("written", ""), e.path.name)))

    @cached_property
    def evaluations(self) -> dict[str, EvaluationRecord]:
        """Evaluations by name; where a protocol changed, the one written last. Damaged ones are left out."""
        return {e.name: e for e in self.all_evaluations}

    def sha256_of_checkpoint(self, name: str) -> str | None:
        """The recorded hash of ``last.pt`` or ``best.pt``, None where none is recorded."""
        facts = self.data.get("checkpoint" if name == "last.pt" else "best") or {}
        if facts.get("sha256") or name == "last.pt":
            return facts.get("sha256")
        scored = [e.data for e in self.evaluations.values() if f"{e.data['spec']['checkpoint']}.pt" == name]
        hashes = {data.get("checkpoint_sha256") for data in scored}
        return hashes.pop() if len(hashes) == 1 else None

    @cached_property
    def sound(self) -> dict[str, EvaluationRecord]:
        """Those of :attr:`evaluations` whose counts are there and say what the figures say."""
        found = {}
        for name, evaluation in self.evaluations.items():
            try:
                evaluation.check(self.keep)
            except Damaged as error:
                self.note(error)
            else:
                found[name] = evaluation
        return found

    def history(self) -> pd.DataFrame:
        """Training curve: ``step, lr, steps_per_second`` and one column for each loss term; empty where
        there is none, or a damaged one."""
        import pandas as pd

        file, upto = self.path / "history.csv", self.data.get("steps") if self.finished else None
        for start, end in self.data.get("curve_lacks", ()):
            upto = start - 1 if end == upto else upto
        read = partial(read_curve, upto=upto)
        found = self._noted(read, file) if os.path.lexists(file) else None
        return pd.DataFrame() if found is None else found

    def _noted(self, read: Callable[[Any], Any], place: Any) -> Any:
        """What a reader gives; None, and a note, where it meets a damaged file."""
        try:
            return read(place)
        except Damaged as error:
            self.note(error)
            return None


def _evaluations(place: Path) -> list[Path]:
    """The folders of evaluations. Raises Damaged where something else stands in their place."""
    if os.path.lexists(place) and not place.is_dir():
        raise damaged(place, "it is no folder of evaluations", "evaluate again")
    return entries(place)


def _leads_nowhere(place: Path) -> bool:
    """Whether a link leads to nothing, or back to itself."""
    return place.is_symlink() and not place.exists()


def read_record(folder: Path, note: Note = _ignore, keep: Keep = _never) -> Record:
    """The record in a folder.

    Raises:
        Damaged: its JSON is missing or damaged.
    """
    return Record(folder, read_document(folder / "record.json", RecordDocument), note, keep)


def read_evaluation(folder: Path, of: Mapping[str, Any] | None = None) -> EvaluationRecord:
    """The evaluation in a folder, its counts not looked at.

    Args:
        folder: where it stands.
        of: values of the record that it belongs to, where that is at hand.

    Raises:
        Damaged: its JSON is missing, damaged, of another evaluation, or of another network than the record's.
    """
    file = folder / "evaluation.json"
    found = EvaluationRecord(folder, read_document(file, EvaluationDocument))
    own = f"{found.name}-{found.data['digest']}"
    if folder.name != own:
        raise damaged(file, f"it says that it is {own}: a copy", "move it away, or give it its name")
    if fault := fault_of_origin(found.data, of or {}):
        raise damaged(file, fault, "evaluate again")
    return found


#: Names of trials that were moved out of the way (:mod:`harness.records.aside`).
_SET_ASIDE = re.compile(r"before-\d{8}T\d+-seed-\d+")


def entries(place: Path) -> list[Path]:
    """What a folder holds, by name; nothing where there is no such folder.

    Raises:
        Damaged: the folder cannot be listed.
    """
    try:
        return sorted(place.iterdir(), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise unreadable(place, error) from None


class Store:
    """Records in a folder, or under a URI that pyarrow opens.

    Args:
        root: the ``results`` folder, which may not exist yet, or a URI such as ``s3://bucket/prefix``.
        cache: where the mirror of a URI lies, the user's cache folder by default.

    Attributes:
        root: the folder of records; of a URI, that of its mirror.
        place: the folder or URI, as it may be printed.
        left_out: files and folders that were met and left out, with what is wrong with each.
    """

    def __init__(self, root: Path | str, cache: Path | None = None) -> None:
        self.mirror: Mirror | None = None
        if is_uri(root):
            self.mirror = mirror_of(str(root), cache or cache_folder())
        self.root = Path(root) if self.mirror is None else self.mirror.root
        self.place = str(self.mirror or self.root)
        self.left_out: dict[str, Damaged] = {}
        self._room = _KEPT

    def note(self, error: Damaged) -> None:
        """Remember what was left out; each place once. A trial that moves away while it is read is sound."""
        place = Path(str(error.where))
        trial = Path(*place.parts[: len(self.root.parts) + 4])
        within = self.holds(place) and place != trial and trial.name.startswith("seed-")
        if not within or os.path.lexists(trial / "record.json"):
            self.left_out.setdefault(str(error.where), error)

    def _keep(self, size: int) -> bool:
        fits = size <= self._room
        self._room -= size if fits else 0
        return fits

    def folder(self, name: str, digest: str, seed: int) -> Path:
        """Where a trial keeps its files."""
        return self.root / name / digest / f"seed-{seed}"

    def get(self, folder: Path) -> Record | None:
        """The record in a trial's folder, None when it does not exist (yet).

        Raises:
            Damaged: it is damaged, or it is that of another trial.
        """
        file = folder / "record.json"
        if self.mirror is not None and file.name not in self.mirror.listed(folder):
            return None
        if not os.path.lexists(file):
            return None
        record = read_record(folder, self.note, self._keep)
        own = self.folder(record.name, record.digest, record.seed)
        if own.parts[-4:] != folder.parts[-4:]:
            says = own.relative_to(self.root).as_posix()
            raise Misplaced(f"it says that it is {says}: a copy", where=file, remedy=_COPY)
        return record

    def records(self, *patterns: str) -> Iterator[Record]:
        """All sound records whose recipe name matches one of some globs (none: all), in a fixed order.

        A damaged record, and a copy that stands elsewhere than its name, digest and seed say, is left out
        and noted (:attr:`left_out`).
        """
        patterns = patterns or ("*",)
        self.refresh(*patterns)
        for method in self._entries(self.root):
            for recipe in self._entries(method):
                if any(fnmatch(f"{method.name}/{recipe.name}", pattern) for pattern in patterns):
                    for digest in self._entries(recipe):
                        if os.path.lexists(digest / "record.json"):
                            self.note(damaged(digest, "a trial in the place of a training digest", _COPY))
                        for trial in self._entries(digest):
                            yield from self._found(trial)

    def _found(self, trial: Path) -> Iterator[Record]:
        """The record of what may be a trial's folder, and no earlier one that was set aside."""
        if _SET_ASIDE.fullmatch(trial.name):
            return
        if _leads_nowhere(trial):
            self.note(damaged(trial, "a link that leads nowhere", "mend the link, or delete it"))
            return
        if not trial.name.lower().startswith("seed") and not os.path.lexists(trial / "record.json"):
            for inner in self._entries(trial):
                if inner.name.startswith("seed-") and os.path.lexists(inner / "record.json"):
                    self.note(damaged(inner, "a store within the store", "name that folder with --results"))
            return
        try:
            record = self.get(trial)
        except Damaged as error:
            self.note(error)
            return
        if record is not None:
            yield record

    def _entries(self, place: Path) -> list[Path]:
        try:
            return entries(place)
        except Damaged as error:
            self.note(error)
            return []

    # --- under a URI (in a folder, none of these does anything) ---------------------------------------

    def refresh(self, *patterns: str) -> None:
        """See what is there now, and bring what readers need of the records whose recipe matches a glob.

        Raises:
            UserError: the store is not there, refuses, or cannot be reached; so of all that follow.
        """
        if self.mirror is not None:
            self.mirror.refresh(*patterns)

    @contextmanager
    def work(self, folder: Path, wanted: Callable[[str], bool] = for_work) -> Iterator[None]:
        """Hold a trial's folder to write in it: what is wanted is brought first, all stored in the end."""
        held = self.mirror is not None and self.holds(folder)
        with self.mirror.work(folder, wanted) if self.mirror is not None and held else nullcontext():
            yield

    def save(self, folder: Path) -> None:
        """Within :meth:`work`: store what is new, such as a checkpoint, while work goes on."""
        if self.mirror is not None and self.holds(folder):
            self.mirror.save(folder)

    def discard(self, folder: Path, unwanted: Callable[[str], bool]) -> None:
        """Delete files below a folder by their names relative to it, in the store alone."""
        if self.mirror is not None and self.holds(folder):
            self.mirror.discard(folder, unwanted)

    def holds(self, folder: Path) -> bool:
        """Whether a folder lies in the store."""
        return folder.is_relative_to(self.root)

    def shown(self, folder: Path) -> str:
        """A folder of the store as it may be printed: of a URI, not that of the mirror."""
        if self.mirror is None or not self.holds(folder):
            return str(folder)
        return f"{self.place}/{folder.relative_to(self.root).as_posix()}"

    def pull(self, folder: Path, wanted: Callable[[str], bool] = for_readers) -> None:
        """Bring the files of a trial whose names (relative to its folder) are wanted."""
        if self.mirror is not None:
            self.mirror.pull(folder, wanted)

    def push(self, folder: Path) -> None:
        """Store what is new in a trial's folder."""
        if self.mirror is not None:
            self.mirror.push(folder)

    @contextmanager
    def only_driver(self, folder: Path | None = None, patience: float = 0.0) -> Iterator[None]:
        """Run trials on the store, or a search in one of its folders; while another driver does, wait so many
        seconds, then refuse with a UserError."""
        place = self.root if folder is None else folder
        if self.mirror is None or not self.holds(place):
            yield
            return
        with only_driver(self.mirror.files, place.relative_to(self.root).as_posix().strip("."), patience):
            yield

    def sizes(self, folder: Path) -> dict[str, int]:
        """Bytes of every file of a trial by its name relative to the folder, in the store itself."""
        if self.mirror is not None:
            return {name: size for name, (size, _) in self.mirror.listed(folder).items()}
        files = (f for f in folder.rglob("*") if f.is_file())
        return {f.relative_to(folder).as_posix(): f.stat().st_size for f in files}

    @staticmethod
    def write_record(folder: Path, data: Mapping[str, Any]) -> Record:
        """Write ``record.json``, last of all files of a trial."""
        write_json(folder / "record.json", {"schema": SCHEMA, **data})
        return Record(folder, {"schema": SCHEMA, **data})

    @staticmethod
    def write_evaluation(
        folder: Path, per_image: PerImage, data: Mapping[str, Any], boundary: Any = None
    ) -> EvaluationRecord:
        """Write an evaluation below a trial's folder: counts first (``boundary``: those near boundaries, a
        :class:`harness.evaluation.boundary.Boundary`), the JSON last."""
        place = folder / "evaluations" / f"{data['name']}-{data['digest']}"
        if boundary is not None:
            boundary.save(place / "boundary.npz")
        per_image.save(place / "per_image.npz")
        write_json(place / "evaluation.json", {"schema": SCHEMA, **data})
        return EvaluationRecord(place, {"schema": SCHEMA, **data})
