"""The record store: what a trial leaves behind. Leaderboards are computed from it alone.

Layout of a trial's folder, ``<root>/<method>/<recipe>/<digest>/seed-<n>/``::

    history.csv                                 loss terms, learning rate, rate of every logged step
    checkpoint/last.pt                          resumable until the run is finished, then weights only
    evaluations/<name>-<digest>/per_image.npz   ids; per image and class: intersection, predicted, labelled
    evaluations/<name>-<digest>/boundary.npz    the same within bands around boundaries, summed (segmentation)
    evaluations/<name>-<digest>/evaluation.json the number with everything that defines it
    record.json                                 written last: the record exists when this file does

Every JSON is written last and by rename: what exists is whole. A store under a URI is worked on through a
local mirror of it (:mod:`harness.store.remote`).
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.errors import UserError
from harness.files import cache_folder, read_json, write_json, write_with
from harness.store.driver_claim import only_driver
from harness.store.object_store import is_uri
from harness.store.remote import Mirror, for_readers, mirror_of

#: Version of both JSON files. Readers accept every version ever written.
SCHEMA = 1


@dataclass(frozen=True)
class PerImage:
    """Confusion statistics of one evaluation, image by image.

    Attributes:
        ids: image ids, length N.
        intersection: ``(N, K)`` int64 pixels predicted and labelled as the class.
        predicted: ``(N, K)`` int64 predicted pixels among those counted.
        labelled: ``(N, K)`` int64 labelled pixels.
    """

    ids: tuple[str, ...]
    intersection: np.ndarray
    predicted: np.ndarray
    labelled: np.ndarray

    def save(self, path: Path) -> None:
        """Write an npz file."""
        arrays = {k: getattr(self, k) for k in ("intersection", "predicted", "labelled")}
        write_with(path, lambda f: np.savez_compressed(f, ids=np.array(self.ids, dtype=np.str_), **arrays))

    @classmethod
    def load(cls, path: Path) -> PerImage:
        """Read an npz file."""
        found = read_arrays(path)
        counts = (found[k].astype(np.int64, copy=False) for k in ("intersection", "predicted", "labelled"))
        return cls(_names(found["ids"].tobytes(), found["ids"].dtype.str), *counts)


@lru_cache(maxsize=64)
def _names(data: bytes, dtype: str) -> tuple[str, ...]:
    """Image ids of a split: evaluations of one split share the tuple."""
    return tuple(np.frombuffer(data, dtype=dtype).tolist())


@lru_cache(maxsize=256)
def _header(text: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and type of an array, from the head of its npy file."""
    stream = io.BytesIO(text)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(stream)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an npz file, read-only; several times as fast as ``numpy.load`` for small ones.

    ``numpy.load`` opens a stream for every array and parses its head as Python; the heads of equal arrays
    are equal.

    Raises:
        UserError: the file is damaged.
    """
    found = {}
    try:
        data = path.read_bytes()
        for name, packed, checksum, size, local in _members(data):
            start = local + 30 + sum(_LENGTHS.unpack_from(data, local + 26))  # APPNOTE 4.3.7
            inflate = _known_member if size < 2**16 else _member
            found[name.removesuffix(".npy")] = inflate(data[start : start + size], packed, checksum)
    except (zipfile.BadZipFile, zlib.error, struct.error, ValueError) as error:
        raise UserError(f"damaged file: {error}", where=path, remedy="evaluate again") from None
    return found


#: Zip files (APPNOTE 4.3.7, 4.3.12, 4.3.16): lengths of name and extra field in the head before a member,
#: an entry of the directory of members, and the end of that directory.
_LENGTHS = struct.Struct("<HH")
_ENTRY = struct.Struct("<4s6xH4xIII3H8xI")
_END = struct.Struct("<4s4xHHII2x")


def _members(data: bytes) -> Iterator[tuple[str, int, int, int, int]]:
    """Name, method, checksum, size and place of each member; ``zipfile`` takes several times as long."""
    end = len(data) - _END.size
    if end >= 0 and data.startswith(b"PK\x05\x06", end):  # no comment, as numpy writes them
        _, _, number, _, place = _END.unpack_from(data, end)
        for _ in range(number):
            mark, packed, checksum, size, _, *lengths, local = _ENTRY.unpack_from(data, place)
            if mark != b"PK\x01\x02" or 2**32 - 1 in (size, local):
                raise ValueError("directory of members")
            place += _ENTRY.size
            yield data[place : place + lengths[0]].decode(), packed, checksum, size, local
            place += sum(lengths)
        return
    for member in zipfile.ZipFile(io.BytesIO(data)).infolist():
        packed, checksum = member.compress_type, member.CRC
        yield member.filename, packed, checksum, member.compress_size, member.header_offset


def _member(raw: bytes, packed: int, checksum: int) -> np.ndarray:
    """The array of a member of an npz file."""
    data = zlib.decompress(raw, -zlib.MAX_WBITS) if packed else raw
    if zlib.crc32(data) != checksum:
        raise ValueError("checksum")
    return _array(data)


#: Records of one split have the same ids and the same truth: these are inflated once.
_known_member = lru_cache(maxsize=64)(_member)


def _array(data: bytes) -> np.ndarray:
    """An array from the bytes of an npy file."""
    wide = data[6] > 1  # version 2 has four bytes for the length of the head, version 1 two
    start = (12 if wide else 10) + int.from_bytes(data[8 : 12 if wide else 10], "little")
    shape, fortran, dtype = _header(data[:start])
    return np.frombuffer(data, dtype=dtype, offset=start).reshape(shape, order="F" if fortran else "C")


@dataclass(frozen=True)
class EvaluationRecord:
    """One evaluation on disk.

    Keys of ``data``: ``schema, name, digest, spec`` (split, protocol, network, output, checkpoint, cells,
    tolerance), ``protocol`` (every value), ``images, official_images, classes, miou`` (percent),
    ``iou`` (percent per class, None where absent), ``absent`` (class names), ``pixel_accuracy``,
    ``coverage`` (share of pixels with a decision), ``data_fingerprint, checkpoint_sha256, seconds``.
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
        return PerImage.load(self.path / "per_image.npz")


@dataclass(frozen=True)
class Record:
    """One trial on disk.

    Keys of ``data``: ``schema, name, method, title, recipe`` (after overrides, config included),
    ``overrides, seed, digest, status`` (``finished`` or ``failed``), ``reason``, ``code`` (version,
    commit, dirty), ``environment`` (python, packages), ``hardware``, ``data`` (dataset, per-split
    ``images``, ``official``, ``fingerprint``; ``labels`` fingerprint and statistics), ``weights``
    (name, sha256), ``parameters``, ``started, ended`` (ISO 8601, UTC), ``seconds, steps,
    steps_per_second, peak_memory_mib, resumed, checkpoint`` (file, sha256).
    """

    path: Path
    data: Mapping[str, Any]

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
    def evaluations(self) -> dict[str, EvaluationRecord]:
        """Evaluations by name; where a protocol changed, the one written last."""
        found = [
            EvaluationRecord(file.parent, read_json(file))
            for place in entries(self.path / "evaluations")
            if (file := place / "evaluation.json").exists()
        ]
        found.sort(key=lambda e: (e.data.get("written", ""), e.path.name))
        return {e.name: e for e in found}

    def history(self) -> pd.DataFrame:
        """Training curve: ``step, lr, steps_per_second`` and one column for each loss term."""
        file = self.path / "history.csv"
        return pd.read_csv(file) if file.exists() else pd.DataFrame()


def entries(place: Path) -> list[Path]:
    """What a folder holds, by name; nothing where there is no such folder."""
    try:
        return sorted(place.iterdir(), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []


class Store:
    """Records in a folder, or under a URI that pyarrow opens.

    Args:
        root: the ``results`` folder, which may not exist yet, or a URI such as ``s3://bucket/prefix``.
        cache: where the mirror of a URI lies, the user's cache folder by default.

    Attributes:
        root: the folder of records; of a URI, that of its mirror.
        place: the folder or URI, as it may be printed.
    """

    def __init__(self, root: Path | str, cache: Path | None = None) -> None:
        self.mirror: Mirror | None = None
        if is_uri(root):
            self.mirror = mirror_of(str(root), cache or cache_folder())
        self.root = Path(root) if self.mirror is None else self.mirror.root
        self.place = str(self.mirror or self.root)

    def folder(self, name: str, digest: str, seed: int) -> Path:
        """Where a trial keeps its files."""
        return self.root / name / digest / f"seed-{seed}"

    def get(self, folder: Path) -> Record | None:
        """The record in a trial's folder, None when it does not exist (yet)."""
        file = folder / "record.json"
        if self.mirror is not None and file.name not in self.mirror.listed(folder):
            return None
        return Record(folder, _checked(read_json(file), file)) if file.exists() else None

    def records(self, pattern: str = "*") -> Iterator[Record]:
        """All records whose recipe name matches a glob, in a fixed order."""
        self.refresh(pattern)
        for method in entries(self.root):
            for recipe in entries(method):
                if not fnmatch(f"{method.name}/{recipe.name}", pattern):
                    continue
                for digest in entries(recipe):
                    found = (self.get(trial) for trial in entries(digest) if trial.name.startswith("seed-"))
                    yield from (record for record in found if record is not None)

    # --- under a URI (in a folder, none of these does anything) ---------------------------------------

    def refresh(self, *patterns: str) -> None:
        """See what is there now, and bring what readers need of the records whose recipe matches a glob.

        Raises:
            UserError: the store is not there, refuses, or cannot be reached; so of all that follow.
        """
        if self.mirror is not None:
            self.mirror.refresh(*patterns)

    @contextmanager
    def work(self, folder: Path) -> Iterator[None]:
        """Hold a trial's folder to write in it: up to date in the beginning, stored in the end."""
        with self.mirror.work(folder) if self.mirror is not None and self.holds(folder) else nullcontext():
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
    def only_driver(self, folder: Path | None = None) -> Iterator[None]:
        """Run trials on the store, or a search in one of its folders; another driver that does is refused
        with a UserError."""
        place = self.root if folder is None else folder
        if self.mirror is None or not self.holds(place):
            yield
            return
        with only_driver(self.mirror.files, place.relative_to(self.root).as_posix().strip(".")):
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
    def write_evaluation(folder: Path, per_image: PerImage, data: Mapping[str, Any]) -> EvaluationRecord:
        """Write an evaluation below a trial's folder: counts first, the JSON last."""
        place = folder / "evaluations" / f"{data['name']}-{data['digest']}"
        per_image.save(place / "per_image.npz")
        write_json(place / "evaluation.json", {"schema": SCHEMA, **data})
        return EvaluationRecord(place, {"schema": SCHEMA, **data})


def _checked(data: Mapping[str, Any], file: Path) -> Mapping[str, Any]:
    if data.get("schema", 0) > SCHEMA:
        raise UserError(
            f"record of schema {data.get('schema')}, newer than this version reads ({SCHEMA})",
            where=file,
            remedy="update wsss-bench",
        )
    return data
