"""Weak labels prepared once: whatever a recipe names becomes index PNGs in one encoding.

Prepared labels live in ``<cache>/labels/<dataset>/<split>-<supervision>-<digest>/``; the digest covers
everything that they follow from, with the size and time of change of the files they are made of. Each
file is written whole, so preparing can stop and go on at any moment, and two processes may prepare the
same labels at once. The index is written last: labels are prepared when it exists.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from harness.basics.arrays import read_arrays
from harness.basics.errors import UserError
from harness.basics.files import expanded, write_with
from harness.basics.reading import Damaged, damaged, set_damaged_aside
from harness.basics.schema import digest, essential
from harness.data import numbering, sense
from harness.data.base import IGNORE, UNLABELLED, Dataset, LabelSpec, Supervision
from harness.data.images import read_index, write_index
from harness.data.labels import weak_labels
from harness.data.labels.annotations import check_size, illegal_values
from harness.data.labels.painting import tags_from_mask
from harness.data.parallel import ordered_map

#: Values of :class:`LabelSpec` that the simulator does not read.
_OFFICIAL = ("source", "format", "folder", "background", "unlabelled", "encoding")

#: Source and format of labels whose files hold numbers, which may be others' numbers.
_NUMBERED = (("official", "png"), ("official", "yolo"))

#: Layout of prepared labels; raised when the files of an older version must not be used.
_VERSION = 2


@dataclass(frozen=True)
class LabelStore:
    """Prepared labels of one split.

    Attributes:
        ids: image ids in list order.
        folder: where the label PNGs are; None where the data set's own masks serve, or there are no
            labels but tags.
        tags: ``(N, K)`` uint8 multi-hot in the order of ``ids``: the official tags under ``image``,
            otherwise the classes of the whole weak label.
        fingerprint: SHA-256 over ids, label values and tags, independent of files and their format.
        masks: image id to the data set's own mask, where those serve.
        hashes: image id to the SHA-256 of its prepared label, which :meth:`read` compares.
        statistics: ``images``; ``labelled_share`` (of all pixels, those with a class);
            ``without_label`` (number of images with no labelled pixel; every image under ``image``);
            ``classes``, for each class that occurs the number of ``pictures`` and of labelled ``pixels``.
        warnings: what is likely a mistake, see :mod:`harness.data.sense`.
    """

    ids: tuple[str, ...]
    folder: Path | None
    tags: np.ndarray
    fingerprint: str
    statistics: Mapping[str, Any]
    masks: Mapping[str, Path]
    hashes: Mapping[str, bytes]
    warnings: tuple[str, ...] = ()

    def read(self, image_id: str) -> np.ndarray | None:
        """``(H, W)`` uint8 label of an image, as it was prepared; None if there is none.

        Raises:
            Damaged: it is not what was prepared. It is deleted, and the next start makes it again.
        """
        path = self.path(image_id)
        if path is None:
            return None
        label, expected = read_index(path), self.hashes.get(image_id)
        if expected is not None and self.folder is not None and _content(label) != expected:
            path.unlink(missing_ok=True)
            raise damaged(path, "the label is not the one that was prepared", "run the same command again")
        return label

    def path(self, image_id: str) -> Path | None:
        """The index PNG of an image (``0..K-1``, 254, and 255 for void under ``full``), None if none."""
        return self.masks.get(image_id) if self.folder is None else self.folder / f"{image_id}.png"


class _Source(NamedTuple):
    """How the labels of a split come to be; both functions go to worker processes.

    Attributes:
        facts: what decides the labels beside the files.
        files: image id to the files that its label is made of.
        label: image id to its label in canonical encoding.
        tags: image id and label to ``(K,)`` tags.
    """

    facts: Mapping[str, Any]
    files: Callable[[str], Iterable[Path]]
    label: Callable[[str], np.ndarray]
    tags: Callable[[str, np.ndarray], np.ndarray]


class _Row(NamedTuple):
    """What the index keeps of one label."""

    sha256: bytes
    tags: np.ndarray
    classes: np.ndarray
    pixels: int
    bytes: int

    @property
    def labelled(self) -> int:
        """Pixels with a class."""
        return int(self.classes.sum())


def prepare_labels(
    dataset: Dataset,
    split: str,
    supervision: Supervision,
    spec: LabelSpec,
    *,
    cache: Path,
    workers: int = 0,
    labels_from: str | None = None,
) -> LabelStore:
    """Bring the weak labels of a split into one encoding, once.

    Args:
        dataset: where pictures, masks and annotators' files are.
        split: which pictures.
        supervision: kind of weak label.
        spec: simulated or official, and how.
        cache: folder of prepared labels.
        workers: processes; 0 works in this one.
        labels_from: a folder of dense pseudo labels ``<id>.png`` (255 uncertain) in place of weak labels.

    Raises:
        UserError: a file is missing or malformed, a value is illegal, or a label does not fit its
            picture; the file is named.
    """
    ids = tuple(dataset.ids(split))
    if supervision == "image" and labels_from is None:
        return _tags_only(dataset, split, ids)
    require_masks(dataset, split, supervision, spec, labels_from)
    source = _source(dataset, split, supervision, spec, labels_from)
    own_masks = supervision == "full" and labels_from is None and dataset.canonical_masks
    folder = cache / "labels" / dataset.info.name / f"{split}-{supervision}-{_key(dataset, ids, source)}"
    rows = _read_index(folder, ids, with_files=not own_masks)
    if rows is None:
        legal = (UNLABELLED, IGNORE) if supervision == "full" and labels_from is None else (UNLABELLED,)
        pseudo = None if labels_from is None else expanded(labels_from)
        known = numbering.settled(dataset, ids, spec, folder=pseudo, workers=workers)
        work = partial(
            _prepare,
            _source(dataset, split, supervision, known, labels_from).label,
            source.tags,
            None if own_masks else folder,
            dataset.info.num_classes,
            legal,
        )
        what = f"labels of {split} ({supervision})"
        rows = list(ordered_map(work, ids, workers=workers, kind="processes", what=what))
        _write_index(folder, ids, rows)
    counts = np.stack([row.classes for row in rows])
    official = supervision == "image"
    tags = np.asarray(dataset.tags(ids), np.uint8) if official else np.stack([row.tags for row in rows])
    numbered = labels_from is not None or (spec.source, spec.format) in _NUMBERED
    odd = numbering.labels_fit(dataset, split, lambda i: read_index(folder / f"{i}.png")) if numbered else ""
    masks = {i: p for i in ids if (p := dataset.mask_path(i, split)) is not None} if own_masks else {}
    return LabelStore(
        ids=ids,
        folder=None if own_masks else folder,
        tags=tags,
        fingerprint=_fingerprint(ids, [row.sha256 for row in rows], tags),
        statistics={
            "images": len(ids),
            "labelled_share": sum(r.labelled for r in rows) / max(sum(r.pixels for r in rows), 1),
            "without_label": sum(r.labelled == 0 for r in rows),
            "classes": sense.by_class(dataset.info, (counts > 0).sum(0), counts.sum(0)),
        },
        masks=masks,
        hashes={} if own_masks else {i: row.sha256 for i, row in zip(ids, rows, strict=True)},
        warnings=sense.of_labels(
            dataset.info,
            split,
            supervision if labels_from is None else "pseudo",
            counts,
            np.array([row.pixels for row in rows]),
        )
        + ((f"labels of {split}: {odd}",) if odd else ()),
    )


def reads_masks(supervision: Supervision, spec: LabelSpec, labels_from: str | None) -> bool:
    """Whether labels are dense masks, or drawn from them."""
    return (
        labels_from is None
        and supervision != "image"
        and (supervision == "full" or spec.source == "simulated")
    )


def require_masks(
    dataset: Dataset, split: str, supervision: Supervision, spec: LabelSpec, labels_from: str | None
) -> None:
    """Refuse to train on masks, or on labels that are drawn from them, where masks lack.

    Raises:
        UserError: how many lack, the first place where one should be, and what to do.
    """
    if not reads_masks(supervision, spec, labels_from):
        return
    ids, there = dataset.ids(split), set(dataset.masked(split))
    lacking = [i for i in ids if i not in there]
    if not lacking:
        return
    if supervision == "full":
        why, other = "full supervision trains on them", "train on weak labels"
    else:
        why = f"{supervision} labels are simulated from them"
        other = "name a folder of drawn labels: --set labels.source=official --set labels.folder=DIR"
    raise UserError(
        f"{len(lacking)} of the {len(ids)} pictures of {split} have no mask, and {why}",
        where=dataset.mask_path(lacking[0], split) or f"{dataset.info.name} {split}",
        remedy=f"put the masks there, leave these pictures out of the list, or {other}",
    )


def _tags_only(dataset: Dataset, split: str, ids: tuple[str, ...]) -> LabelStore:
    tags = np.asarray(dataset.tags(ids), np.uint8)
    present = tags > 0
    statistics = {
        "images": len(ids),
        "labelled_share": 0.0,
        "without_label": len(ids),
        "classes": sense.by_class(dataset.info, present.sum(0)),
    }
    return LabelStore(
        ids=ids,
        folder=None,
        tags=tags,
        fingerprint=_fingerprint(ids, [b""] * len(ids), tags),
        statistics=statistics,
        masks={},
        hashes={},
        warnings=sense.of_tags(dataset.info, split, present),
    )


def _fingerprint(ids: Sequence[str], hashes: Sequence[bytes], tags: np.ndarray) -> str:
    whole = hashlib.sha256()
    for image_id, sha256, row in zip(ids, hashes, tags, strict=True):
        whole.update(f"{image_id}\0".encode() + sha256 + row.tobytes())
    return whole.hexdigest()


def _key(dataset: Dataset, ids: Sequence[str], source: _Source) -> str:
    """Hash of everything that the labels follow from."""
    info = dataset.info
    whole = hashlib.sha256(digest([_VERSION, info.num_classes, info.background, source.facts]).encode())
    whole.update(dataset.reading.encode())
    drawn = source.facts["from"] in ("annotators", "pseudo labels")
    if drawn and len(numbering.numberings(dataset)) > 1:  # older labels took all numbers for classes
        whole.update(b"numbering")
    for image_id in ids:
        stamps = " ".join(_stamp(file) for file in source.files(image_id))
        whole.update(f"{image_id}\0{stamps}\0".encode())
    return whole.hexdigest()[:12]


def _stamp(file: Path) -> str:
    try:
        stat = file.stat()
    except OSError:
        return f"{file.name} missing"  # reading it says so with a remedy
    return f"{file.name} {stat.st_size} {stat.st_mtime_ns}"


# --- where labels come from --------------------------------------------------------------------------


def _source(
    dataset: Dataset, split: str, supervision: Supervision, spec: LabelSpec, labels_from: str | None
) -> _Source:
    def mask_files(image_id: str) -> Iterable[Path]:
        path = dataset.mask_path(image_id, split)
        return () if path is None else (path,)

    info = dataset.info
    tags = partial(_label_tags, info.num_classes)
    if labels_from is not None:
        pseudo = expanded(labels_from)
        if not pseudo.is_dir():
            raise UserError(
                "no folder of pseudo labels", where=pseudo, remedy="export them first, or mend labels_from"
            )
        files = partial(_one_file, pseudo)
        said = {} if spec.encoding == "found" else {"encoding": spec.encoding}
        facts: dict[str, Any] = {"from": "pseudo labels", **said}
        return _Source(facts, files, partial(_pseudo, dataset, pseudo, spec.encoding), tags)
    if supervision == "full":
        return _Source({"from": "masks"}, mask_files, partial(dataset.read_mask, split=split), tags)
    if spec.source == "official":
        facts = {"from": "annotators", **essential(spec)}
        files = partial(dataset.label_files, spec=spec)
        tags = partial(_official_tags, dataset, supervision, spec)
        return _Source(facts, files, partial(_official, dataset, supervision, spec), tags)
    shape = {"block": "block_share", "box": "box_inside"}.get(supervision, "stroke")
    unread = {*_OFFICIAL, "stroke", "block_share", "box_inside"} - {shape}
    facts = {"from": "simulator", "version": weak_labels.LABEL_VERSION}
    facts |= {k: v for k, v in essential(spec).items() if k not in unread}
    label = partial(_simulated, dataset, split, supervision, spec)
    if supervision == "box":
        tags = partial(_box_tags, dataset, split)
    return _Source(facts, mask_files, label, tags)


def _one_file(folder: Path, image_id: str) -> tuple[Path, ...]:
    return (folder / f"{image_id}.png",)


def _simulated(
    dataset: Dataset, split: str, supervision: Supervision, spec: LabelSpec, image_id: str
) -> np.ndarray:
    mask = dataset.read_mask(image_id, split)
    return weak_labels.simulate_as(spec, dataset.info, mask, supervision, image_id)


def _official(dataset: Dataset, supervision: Supervision, spec: LabelSpec, image_id: str) -> np.ndarray:
    return dataset.read_official_label(image_id, supervision, spec)


def _official_tags(
    dataset: Dataset, supervision: Supervision, spec: LabelSpec, image_id: str, label: np.ndarray
) -> np.ndarray:
    return dataset.label_tags(image_id, supervision, spec, label)


def _pseudo(
    dataset: Dataset, folder: Path, encoding: Literal["found", "classes", "files"], image_id: str
) -> np.ndarray:
    path = folder / f"{image_id}.png"
    label = read_index(path)
    check_size(label, dataset.picture_size(image_id), path)
    tables = numbering.numberings(dataset)
    own = encoding if encoding in tables else "classes"
    table = tables[own].copy()
    table[[UNLABELLED, IGNORE]] = UNLABELLED, IGNORE
    illegal = np.flatnonzero((np.bincount(label.ravel(), minlength=256) > 0) & (table < 0)).tolist()
    if illegal:
        raise UserError(
            f"the pseudo label holds {illegal}; legal are {numbering.in_words(tables[own])} and 255",
            where=path,
            remedy="export class numbers, with 255 where the label is uncertain",
        )
    return np.where(table == IGNORE, UNLABELLED, table).astype(np.uint8)[label]


def _label_tags(num_classes: int, image_id: str, label: np.ndarray) -> np.ndarray:
    return tags_from_mask(label, num_classes)


def _box_tags(dataset: Dataset, split: str, image_id: str, label: np.ndarray) -> np.ndarray:
    mask, info = dataset.read_mask(image_id, split), dataset.info
    return weak_labels.simulated_tags(mask, label, "box", info.num_classes, info.background)


# --- files -------------------------------------------------------------------------------------------


def _prepare(
    make: Callable[[str], np.ndarray],
    tags: Callable[[str, np.ndarray], np.ndarray],
    folder: Path | None,
    num_classes: int,
    legal: tuple[int, ...],
    image_id: str,
) -> _Row:
    """One label, written unless an earlier or another run has; what the index keeps of it."""
    path = None if folder is None else folder / f"{image_id}.png"
    label = None if path is None else _whole(path)
    if label is None:
        label = make(image_id)
        illegal = illegal_values(label, num_classes, *legal)
        if illegal:
            raise UserError(
                f"the label of {image_id} holds {illegal}; legal are 0..{num_classes - 1} and "
                + ", ".join(map(str, legal)),
                remedy="mend the label, or the data set's reader",
            )
        if path is not None:
            write_index(path, label, durable=False)  # a broken one is made again
    return _Row(
        sha256=_content(label),
        tags=tags(image_id, label),
        classes=np.bincount(label.ravel(), minlength=256)[:num_classes],
        pixels=label.size,
        bytes=0 if path is None else path.stat().st_size,
    )


def _content(label: np.ndarray) -> bytes:
    """SHA-256 of a label's size and values, whatever its file."""
    shape = np.array(label.shape, np.int64).tobytes()
    return hashlib.sha256(shape + np.ascontiguousarray(label).tobytes()).digest()


def _whole(path: Path) -> np.ndarray | None:
    """A label that a run wrote before; None if there is none, or a broken one."""
    try:
        return read_index(path) if path.exists() else None
    except UserError:
        return None


def _write_index(folder: Path, ids: Sequence[str], rows: Sequence[_Row]) -> None:
    columns: dict[str, Any] = {
        "ids": np.array([i.encode() for i in ids], np.bytes_),
        "sha256": np.stack([np.frombuffer(row.sha256, np.uint8) for row in rows]),
        "tags": np.stack([row.tags for row in rows]),
        "classes": np.stack([row.classes for row in rows]).astype(np.int64),
        "pixels": np.array([row.pixels for row in rows], np.int64),
        "bytes": np.array([row.bytes for row in rows], np.int64),
    }
    write_with(folder / "index.npz", lambda stream: np.savez_compressed(stream, **columns))


def _read_index(folder: Path, ids: Sequence[str], *, with_files: bool) -> list[_Row] | None:
    """The rows of prepared labels; None where they are not prepared, or files have gone since."""
    file = folder / "index.npz"
    try:
        columns = read_arrays(file)
        if set(columns) != set(_COLUMNS) or {len(columns[name]) for name in _COLUMNS} != {len(ids)}:
            return None
        if [i.decode() for i in columns["ids"].tolist()] != list(ids):
            return None
        written = file.stat().st_mtime_ns
    except (Damaged, OSError, ValueError, TypeError, AttributeError):
        return None
    tables = (columns["tags"], columns["classes"])
    if columns["sha256"].shape != (len(ids), 32) or any(table.ndim != 2 for table in tables):
        return None
    rows = [
        _Row(sha256.tobytes(), tags, classes, int(pixels), int(size))
        for sha256, tags, classes, pixels, size in zip(*(columns[name] for name in _COLUMNS[1:]), strict=True)
    ]
    if with_files:
        changed = [
            path
            for image_id, row in zip(ids, rows, strict=True)
            if not _as_prepared(path := folder / f"{image_id}.png", row, written)
        ]
        for path in changed:
            if os.path.lexists(path):
                warnings.warn(f"{path} has changed since it was prepared: it is made again", stacklevel=2)
                set_damaged_aside(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        if changed:
            return None
    return rows


#: Arrays of an index, ids first.
_COLUMNS = ("ids", "sha256", "tags", "classes", "pixels", "bytes")


def _as_prepared(path: Path, row: _Row, written: int) -> bool:
    """Whether a label is what its index says: by its size, and by its content where it is newer than that.

    Whatever else was changed is found when the label is read (:meth:`LabelStore.read`).
    """
    try:
        status = path.stat()
        if status.st_size != row.bytes:
            return False
        return status.st_mtime_ns <= written or _content(read_index(path)) == row.sha256
    except (OSError, UserError):
        return False
