"""``wsss data labels``: weak labels of a split as a folder that a recipe can name, with statistics.

The folder holds ``<id>.png`` (class, 255 not annotated), or ``tags.npz`` for image tags, and
``labels.json``: what made them, hashes of the maker and of the result, statistics. It is what
``labels.source = "official"``, ``labels.format = "png"``, ``labels.unlabelled = 255`` reads.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from harness.basics.errors import UserError
from harness.basics.files import check_writable, expanded, write_json
from harness.basics.schema import digest, essential
from harness.data import numbering
from harness.data.base import UNLABELLED, Dataset, LabelSpec, Supervision
from harness.data.images import write_index
from harness.data.labels import importers, label_statistics, label_tools, weak_labels
from harness.data.labels.label_statistics import Counts
from harness.data.labels.tags import tags_by_picture
from harness.data.lists import write_tags
from harness.data.parallel import ordered_map
from harness.data.sets.layout import mask_tags

MadeFrom = Literal["simulated", "official", "voc-boxes", "coco-boxes", "onehot"]
#: Value of pixels without annotation in the files written.
FILE_UNLABELLED = 255


@dataclass(frozen=True)
class Making:
    """How labels are made.

    Attributes:
        kind: kind of weak label.
        source: drawn from masks, or read from annotators' files of some format.
        spec: simulator's or file's settings.
        place: boxes and tags only: the file or folder, absolute or relative to the data set's folder.
        clicks: points only: this number of clicks on each picture, in place of one for each object.
        keep: share of every stroke's length that stays.
        strokes: probability of each stroke to stay.
        images: share of the images that keep their label.
    """

    kind: Supervision
    source: MadeFrom = "simulated"
    spec: LabelSpec = field(default_factory=LabelSpec)
    place: str = ""
    clicks: int | None = None
    keep: float = 1.0
    strokes: float = 1.0
    images: float = 1.0

    def facts(self) -> dict[str, Any]:
        """Plain values of all that decides the labels, with the versions of what makes them."""
        values = essential(self)
        for key in ("folder", "background"):  # places; the result has its own hash
            values["spec"].pop(key)
        values.pop("place")
        return values | {"simulator": weak_labels.LABEL_VERSION, "tools": label_tools.TOOLS_VERSION}


@dataclass(frozen=True)
class Made:
    """What was made.

    Attributes:
        folder: where.
        maker: SHA-256 over :meth:`Making.facts`.
        result: SHA-256 over ids and label values (tags for ``image``).
        counts: statistics.
    """

    folder: Path
    maker: str
    result: str
    counts: Counts


class _Row(NamedTuple):
    sha256: bytes
    counts: Counts


def make_labels(dataset: Dataset, split: str, making: Making, folder: Path, *, workers: int = 0) -> Made:
    """Make the labels of a split and write them with their statistics.

    Args:
        dataset: pictures, masks, annotators' files.
        split: which pictures.
        making: how.
        folder: to write into.
        workers: processes; the labels do not depend on it.

    Raises:
        UserError: a source that cannot carry this kind, or whose files are missing or malformed.
    """
    _refuse_nonsense(dataset, split, making)
    check_writable(folder)
    ids = tuple(dataset.ids(split))
    if making.source == "official":
        spec = numbering.settled(dataset, ids, making.spec, workers=workers, say="--encoding {}")
        making = replace(making, spec=spec)
    maker = digest(making.facts(), 64)
    if making.kind == "image":
        counts, result = _tags(dataset, split, making, ids, folder, workers)
    else:
        kept = label_tools.labelled_images(ids, making.images, making.spec.seed)
        work = partial(_one, dataset, split, making, folder, kept)
        rows = list(ordered_map(work, ids, workers=workers, kind="processes", what=f"{making.kind} labels"))
        whole = hashlib.sha256()
        for image_id, row in zip(ids, rows, strict=True):
            whole.update(f"{image_id}\0".encode() + row.sha256)
        result = whole.hexdigest()
        counts = sum((row.counts for row in rows), Counts.none(dataset.info.num_classes))
    made = Made(folder, maker, result, counts)
    write_json(
        folder / "labels.json",
        {
            "dataset": dataset.info.name,
            "split": split,
            "images": len(ids),
            "official": dataset.coverage(split)[1],
            "making": making.facts(),
            "maker_sha256": maker,
            "result_sha256": result,
            "unlabelled": FILE_UNLABELLED,
            "statistics": counts.summary(dataset.info.classes),
        },
    )
    label_statistics.plot_statistics(counts, dataset.info, making.kind, folder / "statistics.png")
    return made


def _refuse_nonsense(dataset: Dataset, split: str, making: Making) -> None:
    kinds = {"voc-boxes": "box", "coco-boxes": "box", "onehot": "image"}
    needed = kinds.get(making.source)
    if needed is not None and needed != making.kind:
        raise UserError(f"{making.source} files carry {needed} labels, not {making.kind}", where="--kind")
    if making.kind == "image" and making.source == "official":
        raise UserError(
            "image tags are read from one-hot files or simulated", where="--format", remedy="--format onehot"
        )
    if making.kind == "full":
        raise UserError("full supervision needs no weak labels", where="--kind", remedy="use the masks")
    if making.kind == "box" and dataset.info.background is None:
        raise UserError(
            f"box labels say what is background, and {dataset.info.name} has no such class",
            where="--kind",
            remedy="choose another kind",
        )
    if making.source == "simulated" and not dataset.masked(split):
        why = (
            "no public masks" if dataset.mask_path(dataset.ids(split)[0], split) is None else "no masks here"
        )
        raise UserError(
            f"split {split!r} of {dataset.info.name} has {why} to draw labels from",
            where="--split",
            remedy="import labels, or choose another split",
        )
    if making.clicks is not None and (making.kind != "point" or making.source != "simulated"):
        raise UserError("a number of clicks is for simulated points", where="--clicks", remedy="--kind point")


def _one(
    dataset: Dataset, split: str, making: Making, folder: Path, kept: frozenset[str], image_id: str
) -> _Row:
    """Make and write one label; its hash and statistics."""
    info, spec = dataset.info, making.spec
    has_mask = dataset.has_mask(image_id, split)
    mask = dataset.read_mask(image_id, split) if has_mask else None
    label = importers.empty(dataset.picture_size(image_id))
    if image_id in kept:
        label = _label(dataset, split, making, image_id, mask)
        if making.strokes < 1:
            label = label_tools.drop(
                label, making.strokes, image_id=image_id, seed=spec.seed, num_classes=info.num_classes
            )
        label = label_tools.shorten(
            label, making.keep, image_id=image_id, seed=spec.seed, num_classes=info.num_classes
        )
    write_index(folder / f"{image_id}.png", np.where(label == UNLABELLED, np.uint8(FILE_UNLABELLED), label))
    content = np.array(label.shape, np.int64).tobytes() + np.ascontiguousarray(label).tobytes()
    return _Row(
        hashlib.sha256(content).digest(),
        label_statistics.count_label(label, mask, info.num_classes, info.background),
    )


def _label(
    dataset: Dataset, split: str, making: Making, image_id: str, mask: np.ndarray | None
) -> np.ndarray:
    info, spec = dataset.info, making.spec
    if making.source == "official":
        return dataset.read_official_label(image_id, making.kind, spec)
    if making.source in ("voc-boxes", "coco-boxes"):
        size = dataset.picture_size(image_id)
        assert info.background is not None
        return importers.draw_boxes(_boxes(dataset, making, image_id), size, info.background, spec.box_inside)
    if mask is None:
        return importers.empty(dataset.picture_size(image_id))
    if making.clicks is not None:
        return label_tools.n_clicks(
            mask, making.clicks, image_id=image_id, seed=spec.seed, num_classes=info.num_classes
        )
    return weak_labels.simulate_as(spec, info, mask, making.kind, image_id)


def _place(dataset: Dataset, making: Making, usual: str) -> Path:
    path = dataset.root / expanded(making.place or usual)
    if not path.exists():
        raise UserError("no such folder or file of labels", where=path, remedy="name it with --folder")
    return path


def _boxes(dataset: Dataset, making: Making, image_id: str) -> list[importers.Box]:
    if making.source == "voc-boxes":
        names = {name: label for label, name in enumerate(dataset.info.classes)}
        return importers.voc_boxes(_place(dataset, making, "Annotations") / f"{image_id}.xml", names)
    from harness.data.sets.coco2014 import COCO2014, contiguous

    if not isinstance(dataset, COCO2014):
        raise UserError(
            f"coco-boxes are those of COCO 2014's ids, {dataset.info.name} has ids of its own",
            where="--format",
            remedy="--format coco finds pictures by their file names",
        )
    part = COCO2014.part(image_id)
    place = _place(dataset, making, "annotations")
    file = place / f"instances_{part}2014.json" if place.is_dir() else place
    boxes, number = importers.coco_boxes(file, contiguous().tobytes()), int(image_id.rsplit("_", 1)[1])
    if number not in boxes:
        raise UserError(f"no boxes of picture {image_id!r}", where=file, remedy="use the file of this split")
    return boxes[number]


def _tags(
    dataset: Dataset, split: str, making: Making, ids: tuple[str, ...], folder: Path, workers: int
) -> tuple[Counts, str]:
    info = dataset.info
    if making.source == "onehot":
        file = _place(dataset, making, "cls_labels_onehot.npy")
        known = tags_by_picture(file, info)
        found = [known.get(i) for i in ids]
        missing = [i for i, row in zip(ids, found, strict=True) if row is None]
        if missing:
            raise UserError(
                f"no tags of {missing[0]!r} and {len(missing) - 1} more pictures",
                where=making.place,
                remedy="use the file made for this data set and split",
            )
        tags = np.stack([row for row in found if row is not None])
    else:
        shown = ordered_map(
            partial(mask_tags, dataset, split), ids, workers=workers, kind="threads", what="image tags"
        )
        tags = np.stack(list(shown))
    write_tags(folder / "tags.npz", ids, tags)
    whole = hashlib.sha256()
    for image_id, row in zip(ids, tags, strict=True):
        whole.update(f"{image_id}\0".encode() + row.tobytes())
    return Counts.of_tags(tags), whole.hexdigest()
