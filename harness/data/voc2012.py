"""PASCAL VOC 2012 segmentation, and its on-disk layout for data sets that share it."""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from harness.data.annotations import illegal_values, label_files, read_label
from harness.data.base import IGNORE, Dataset, DatasetInfo, LabelSpec, Supervision
from harness.data.images import image_size, read_index, read_rgb
from harness.errors import UserError
from harness.files import write_with

_PACKAGED = Path(__file__).parent / "lists"


def bit_palette(count: int) -> tuple[tuple[int, int, int], ...]:
    """``count`` colours by VOC's bit rule: bits 0, 1, 2 of the label, and again of label >> 3, and so
    on, become the bits of red, green and blue from the highest down (VOCdevkit VOClabelcolormap.m)."""
    labels = np.arange(count)[:, None, None]
    steps = np.arange(8)[None, :, None]
    bits = (labels >> (3 * steps + np.arange(3))) & 1
    return tuple(tuple(int(v) for v in colour) for colour in (bits << (7 - steps)).sum(1))  # type: ignore[misc]


class VOCLayout(Dataset):
    """Reader of the VOC layout; a data set that shares it sets ``info`` and, where needed, the rest.

    ::

        JPEGImages/<id>.jpg
        SegmentationClass/<id>.png            index maps, 255 void
        SegmentationClassAug/<id>.png         the same for the augmented list
        ImageSets/Segmentation/<split>.txt    one id for each line
        ImageSets/Segmentation/tags.npz       optional image tags, see write_tags

    Lists and tags in this folder win over those that ship with the project. Nothing is written.

    Args:
        root: the folder that holds ``JPEGImages``, or one of its parents as far as ``info.folder``
            reaches (for VOC the parent of ``VOCdevkit``, ``VOCdevkit``, or ``VOC2012``).

    Raises:
        UserError: no such folder below ``root``.
    """

    #: Folder of dense masks by split, None where a split has no public masks.
    mask_folders: ClassVar[Mapping[str, str | None]] = {}
    #: Names that annotators' files use besides the class names.
    aliases: ClassVar[Mapping[str, str]] = {}
    canonical_masks = True

    def __init__(self, root: Path | str) -> None:
        super().__init__(_folder_below(Path(root), self.info))
        self._ids: dict[str, tuple[str, ...]] = {}
        self._tags: dict[str, np.ndarray] | None = None

    # --- lists ---------------------------------------------------------------------------------------

    def list_path(self, split: str) -> Path:
        """Where a list of this copy's own would stand."""
        return self.root / "ImageSets" / "Segmentation" / f"{split}.txt"

    def ids(self, split: str) -> Sequence[str]:
        """Image ids of a split, in list order.

        Raises:
            UserError: unknown split, no list, or a list that is not one id for each line.
        """
        self.check_split(split)
        if split not in self._ids:
            own = self.list_path(split)
            packaged = _PACKAGED / self.info.name / f"{split}.txt.gz"
            if own.exists():
                self._ids[split] = read_list(own)
            elif packaged.exists():
                self._ids[split] = read_list(packaged)
            else:
                self._ids[split] = self._missing_list(split)
        return self._ids[split]

    def _missing_list(self, split: str) -> tuple[str, ...]:
        raise UserError(
            f"{self.info.name} has no list of split {split!r}",
            where=self.list_path(split),
            remedy="write one image id for each line into this file",
        )

    # --- files ---------------------------------------------------------------------------------------

    def image_path(self, image_id: str) -> Path:
        """``JPEGImages/<id>.jpg``."""
        return self.root / "JPEGImages" / f"{image_id}.jpg"

    def mask_path(self, image_id: str, split: str) -> Path | None:
        """The dense mask, None for splits without public masks."""
        self.check_split(split)
        folder = self.mask_folders.get(split, "SegmentationClass")
        return None if folder is None else self.root / folder / f"{image_id}.png"

    def read_image(self, image_id: str) -> np.ndarray:
        """``(H, W, 3)`` uint8 RGB, decoded whole. EXIF orientation is ignored, as in the masks."""
        return read_rgb(self.image_path(image_id))

    def read_mask(self, image_id: str, split: str) -> np.ndarray:
        """``(H, W)`` uint8: ``0..K-1`` class, 255 void.

        Raises:
            UserError: missing, corrupt or not an index map, an illegal value, or a split without masks.
        """
        path = self.mask_path(image_id, split)
        if path is None:
            raise UserError(
                f"split {split!r} of {self.info.name} has no public masks",
                remedy="export predictions for the official server, or score another split",
            )
        mask = read_index(path)
        illegal = illegal_values(mask, self.info.num_classes, IGNORE)
        if illegal:
            raise UserError(
                f"the mask holds {illegal}; legal are 0..{self.info.num_classes - 1} and 255 (void)",
                where=path,
                remedy=f"take the mask from the official archive of {self.info.title}",
            )
        return mask

    def read_official_label(self, image_id: str, supervision: Supervision, spec: LabelSpec) -> np.ndarray:
        """``(H, W)`` uint8: ``0..K-1`` annotated class, 254 elsewhere, from annotators' files.

        Raises:
            UserError: see :func:`harness.data.annotations.read_label`.
        """
        return read_label(
            self.root,
            image_id,
            supervision,
            spec,
            size=image_size(self.image_path(image_id)),
            names=self.annotator_names(),
        )

    def label_files(self, image_id: str, spec: LabelSpec) -> tuple[Path, ...]:
        """Files that :meth:`read_official_label` opens."""
        return label_files(self.root, image_id, spec)

    def annotator_names(self) -> dict[str, int]:
        """Class names and their aliases to labels."""
        labels = {name: label for label, name in enumerate(self.info.classes)}
        return labels | {alias: labels[name] for alias, name in self.aliases.items()}

    # --- tags ----------------------------------------------------------------------------------------

    def tags(self, image_ids: Sequence[str]) -> np.ndarray:
        """``(N, K)`` uint8 multi-hot official image tags; the background column is 0.

        Raises:
            UserError: no tags ship for this data set, or an image has none (VOC test).
        """
        if self._tags is None:
            own = self.root / "ImageSets" / "Segmentation" / "tags.npz"
            self._tags = read_tags(own if own.exists() else _PACKAGED / self.info.name / "tags.npz")
        missing = [i for i in image_ids if i not in self._tags]
        if missing:
            raise UserError(
                f"no official image tags of {missing[0]!r}"
                + (f" and {len(missing) - 1} more pictures" if len(missing) > 1 else ""),
                where=self.root,
                remedy="train on a split whose tags are public, or write ImageSets/Segmentation/tags.npz",
            )
        rows = [self._tags[i] for i in image_ids]
        return np.stack(rows) if rows else np.zeros((0, self.info.num_classes), np.uint8)


class VOC2012(VOCLayout):
    """PASCAL VOC 2012 with the SBD-augmented training list.

    ``train`` and ``val`` are the official lists with masks from ``SegmentationClass``; ``train_aug``
    (SBD without val, 10,582 pictures) takes its masks from ``SegmentationClassAug``. Tags come from
    the one-hot file that image-level methods share (as in ToCo).
    """

    info = DatasetInfo(
        name="voc2012",
        title="PASCAL VOC 2012",
        classes=(
            "background",
            "aeroplane",
            "bicycle",
            "bird",
            "boat",
            "bottle",
            "bus",
            "car",
            "cat",
            "chair",
            "cow",
            "diningtable",
            "dog",
            "horse",
            "motorbike",
            "person",
            "pottedplant",
            "sheep",
            "sofa",
            "train",
            "tvmonitor",
        ),
        palette=bit_palette(21),
        splits={"train": 1464, "train_aug": 10582, "val": 1449, "trainval": 2913, "test": 1456},
        background=0,
        folder="VOCdevkit/VOC2012",
        homepage="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
    )
    mask_folders: ClassVar[Mapping[str, str | None]] = {"train_aug": "SegmentationClassAug", "test": None}
    aliases: ClassVar[
        Mapping[str, str]
    ] = {  # names of ScribbleSup's files (BLPSeg data/xml2png_voc.py), and spellings in use
        "plane": "aeroplane",
        "bike": "bicycle",
        "table": "diningtable",
        "dining table": "diningtable",
        "plant": "pottedplant",
        "potted plant": "pottedplant",
        "monitor": "tvmonitor",
        "tv": "tvmonitor",
        "tv/monitor": "tvmonitor",
    }

    def _missing_list(self, split: str) -> tuple[str, ...]:
        if split == "trainval":
            return tuple(sorted({*self.ids("train"), *self.ids("val")}))
        return super()._missing_list(split)


def _folder_below(root: Path, info: DatasetInfo) -> Path:
    parts = Path(info.folder).parts
    tried = [root.joinpath(*parts[skip:]) for skip in range(len(parts) + 1)]
    found = next((folder for folder in tried if (folder / "JPEGImages").is_dir()), None)
    if found is not None:
        return found
    raise UserError(
        f"no {info.title} below the data root: no folder JPEGImages in "
        + ", ".join(str(folder) for folder in tried),
        where=root,
        remedy=f"pass the folder that holds {info.folder}"
        + (f" (obtain it from {info.homepage})" if info.homepage else ""),
    )


def read_list(path: Path) -> tuple[str, ...]:
    """Image ids of a list, one for each line; blank lines, trailing blanks and Windows line ends pass.

    Args:
        path: a text file, or a gzip-compressed one (``.gz``).

    Raises:
        UserError: further columns, an id with a path, an id twice, not a single id, or not text.
    """
    data = path.read_bytes()
    try:
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError("the list is not UTF-8 text", where=path, remedy="save it as plain text") from None
    seen: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words:
            continue
        where = f"{path}, line {number}"
        if len(words) > 1:
            raise UserError(
                f"the list has {len(words)} columns, one id for each line is wanted",
                where=where,
                remedy="keep the ids only, without paths, labels or second columns",
            )
        word = words[0]
        if "/" in word or "\\" in word:
            raise UserError(
                f"{word!r} is a path, an image id is wanted",
                where=where,
                remedy="drop folders and file endings",
            )
        if word in seen:
            raise UserError(
                f"the id {word!r} stands on line {seen[word]} already", where=where, remedy="list it once"
            )
        seen[word] = number
    if not seen:
        raise UserError("the list holds no ids", where=path, remedy="write one image id for each line")
    return tuple(seen)


def write_tags(path: Path, image_ids: Sequence[str], tags: np.ndarray) -> None:
    """Write ``(N, K)`` multi-hot image tags: an npz of ids, bits packed along K, and K."""
    names = np.array([i.encode() for i in image_ids], dtype=np.bytes_)
    bits = np.packbits(np.asarray(tags, dtype=bool), axis=1)
    write_with(path, lambda f: np.savez_compressed(f, ids=names, bits=bits, classes=np.int64(tags.shape[1])))


def read_tags(path: Path) -> dict[str, np.ndarray]:
    """Image id to ``(K,)`` uint8 tags, from a file of :func:`write_tags`.

    Raises:
        UserError: the file is missing or not such a file.
    """
    if not path.exists():
        raise UserError(
            "no official image tags", where=path, remedy="choose another supervision, or provide them"
        )
    try:
        with np.load(path, allow_pickle=False) as data:
            tags = np.unpackbits(data["bits"], axis=1, count=int(data["classes"]))
            return dict(zip((i.decode() for i in data["ids"].tolist()), tags, strict=True))
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise UserError(f"not a file of image tags: {error}", where=path, remedy="write it again") from None
