"""The interface of a data set: official files in, uint8 arrays in one label encoding out."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import Field

from harness.basics.bounds import Byte
from harness.basics.errors import UserError, nearest
from harness.basics.schema import Neutral, schema
from harness.data.images import Exif, image_size, picture_notes

#: A pixel of the picture that nobody annotated. Under weak supervision void borders carry it too.
UNLABELLED = 254
#: A pixel that is not part of the picture (padding), or void under full supervision.
IGNORE = 255

Supervision = Literal["full", "scribble", "point", "block", "box", "image"]
BoxInside = Literal["inner", "fill", "unlabelled"]
SUPERVISIONS: tuple[Supervision, ...] = ("full", "scribble", "point", "block", "box", "image")


@schema
class LabelSpec:
    """Which weak labels a recipe trains on. Everything here enters the training digest."""

    source: Literal["simulated", "official"] = "simulated"
    """Drawn from the dense masks by `harness.data.labels.weak_labels`, or read from annotators' files."""
    format: Literal["", "png", "xml", "polyline", "clicks", "labelme", "coco", "voc", "yolo", "csv"] = ""
    """Official files only: palette or grey PNG, ScribbleSup XML, polyline text, What's-the-Point JSON;
    LabelMe JSON, COCO JSON, VOC XML, YOLO text, clicks as CSV."""
    folder: str = ""
    """Official files only: their folder (or JSON file), relative to the data set's own folder or absolute."""
    background: str = ""
    """Clicks only: a second JSON file holding background clicks, which What's the Point lacks."""
    stroke: int = Field(default=3, ge=1, le=1000)
    """Width in pixels of drawn strokes and diameter of drawn clicks (1 in BLPSeg, 3 in rloss and TEL)."""
    unlabelled: Byte | None = None
    """PNG only: the value that means 'not annotated': 255 (TEL, rloss, BLPSeg) or K (AGMM)."""
    encoding: Annotated[Literal["found", "classes", "files"], Neutral("found")] = "found"
    """PNG only, pseudo labels included: whose numbers they hold, those of the `classes` (0..K-1) or those of
    the data set's own `files` (ADE20K 1..150, Cityscapes' labelIds, COCO's category ids, an own set from
    `first_value` on). It is found where it can be only one, and refused where it can be either."""
    box_inside: BoxInside = "inner"
    """Simulated boxes only: the inner fifth of a box carries its class and the rest nothing (Box^i of
    Khoreva et al., CVPR 2017), the whole box carries it, or nothing does. Outside all boxes is
    background. [our choice]"""
    seed: int = 0
    """Simulated labels only: seed of the simulator, beside the image id."""
    block_share: float = Field(default=0.1, gt=0, le=1)
    """Simulated blocks only: share of each class's pixels that blocks cover (TEL: 0.1, 0.2, 0.5)."""


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set before a file is opened.

    Attributes:
        name: registry name.
        title: name in tables.
        classes: class names in label order.
        palette: ``(K, 3)`` colours, 0..255.
        splits: official number of images by split name.
        background: label of the background class, None where there is none.
        folder: the official folder below the data root.
        homepage: where to obtain it.
        notes: what a reader of its tables must know, by split or label.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    splits: Mapping[str, int]
    background: int | None
    folder: str
    homepage: str = ""
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classes)


def class_numbers(num_classes: int, *, void: bool) -> np.ndarray:
    """``(256,)`` int16: label of every value in class numbers, -1 for others, 255 of itself if ``void``."""
    table = np.full(256, -1, np.int16)
    table[:num_classes] = np.arange(num_classes)
    if void:
        table[IGNORE] = IGNORE
    return table


class Dataset(ABC):
    """One data set in its official on-disk layout, read-only.

    Args:
        root: a parent folder holding the official folder, or the official folder itself.
    """

    info: ClassVar[DatasetInfo]
    #: Masks on disk are index maps of ``0..K-1`` and 255, so that full supervision needs no copies.
    canonical_masks: ClassVar[bool] = False
    #: Colours of the values in palette masks, where masks of other colours are likely others; none where
    #: files use several.
    mask_palette: ClassVar[Sequence[tuple[int, int, int]] | None] = None
    #: What a user must fetch from ``info.homepage``, and under which terms, in words.
    obtain: ClassVar[tuple[str, ...]] = ()

    #: Whether pictures are turned as their EXIF orientation says.
    exif: ClassVar[Exif] = "ignore"

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    @classmethod
    def locate(cls, root: Path | None, cache: Path) -> Self:
        """Open the data set under a root; generated data sets need none and live in ``cache``.

        Raises:
            UserError: a root is needed and none was given.
        """
        if root is None:
            info = cls.info
            raise UserError(
                f"no data root for {info.name}",
                where="--data-root",
                remedy=f"pass --data-root DIR, where DIR holds {info.folder}"
                + (f" (obtain it from {info.homepage})" if info.homepage else ""),
            )
        return cls(root)

    @abstractmethod
    def ids(self, split: str) -> Sequence[str]:
        """Image ids of a split, in list order. Raises UserError for an unknown split or missing list."""

    def unofficial(self, split: str) -> list[str]:
        """Ids of a split that the official list does not have; none where there is no official list."""
        return []

    @abstractmethod
    def image_path(self, image_id: str) -> Path:
        """The picture's file."""

    @abstractmethod
    def mask_path(self, image_id: str, split: str) -> Path | None:
        """Where the dense mask's file is or would be; None where the split has no public masks (VOC test)."""

    def has_mask(self, image_id: str, split: str) -> bool:
        """Whether the dense mask is here: masks may lack, all of them or some."""
        path = self.mask_path(image_id, split)
        return path is not None and os.path.lexists(path)  # a link to nothing is a fault, not an absence

    def masked(self, split: str) -> list[str]:
        """Ids of a split whose masks are here, in list order: those that can be scored."""
        return [image_id for image_id in self.ids(split) if self.has_mask(image_id, split)]

    @abstractmethod
    def read_image(self, image_id: str) -> np.ndarray:
        """``(H, W, 3)`` uint8 RGB, decoded whole; UserError names a missing or corrupt file."""

    def picture_size(self, image_id: str) -> tuple[int, int]:
        """``(H, W)`` of :meth:`read_image`, from the file's header."""
        return image_size(self.image_path(image_id), self.exif)

    def picture_notes(self, image_id: str) -> tuple[str, ...]:
        """What of a picture is not read, see :func:`harness.data.images.picture_notes`."""
        return picture_notes(self.image_path(image_id), self.exif)

    def numbers(self) -> np.ndarray:
        """``(256,)`` int16: label of every number that the data set's own files use, 255 for no class, -1 for
        numbers that do not occur. Class numbers by default."""
        return class_numbers(self.info.num_classes, void=True)

    def numbering_of(self, path: Path) -> Literal["classes", "files"] | None:
        """Whose numbers a label file holds, where its name says it."""
        return None

    @property
    def decoding(self) -> str:
        """How files are read where their owner chose another way than the usual. It enters fingerprints."""
        return ""

    @property
    def reading(self) -> str:
        """Everything that an owner may change about how files are read, so that no memo outlives it."""
        return self.decoding

    @abstractmethod
    def read_mask(self, image_id: str, split: str) -> np.ndarray:
        """``(H, W)`` uint8: ``0..K-1`` class, 255 void. UserError on an illegal value."""

    @abstractmethod
    def read_official_label(self, image_id: str, supervision: Supervision, spec: LabelSpec) -> np.ndarray:
        """``(H, W)`` uint8: ``0..K-1`` annotated class, 254 elsewhere, from annotators' files."""

    def label_tags(
        self, image_id: str, supervision: Supervision, spec: LabelSpec, label: np.ndarray
    ) -> np.ndarray:
        """``(K,)`` uint8 multi-hot: what an official label ``(H, W)`` tells about the whole picture."""
        return (np.bincount(label.ravel(), minlength=256)[: self.info.num_classes] > 0).astype(np.uint8)

    def label_files(self, image_id: str, spec: LabelSpec) -> tuple[Path, ...]:
        """Files that :meth:`read_official_label` opens; prepared labels are redone when they change."""
        return ()

    @abstractmethod
    def tags(self, image_ids: Sequence[str]) -> np.ndarray:
        """``(N, K)`` uint8 multi-hot official image tags (foreground only; background column 0)."""

    def prepare(self, source: Path | None, workers: int, report: Callable[[str], None]) -> None:
        """Write the files that are derived from official ones (``wsss data prepare``).

        What is there already is kept, so that preparing can stop and go on.

        Args:
            source: where the official files are that it reads; found by itself by default.
            workers: processes.
            report: told what happened, one line at a time.
        """
        report(f"{self.info.title} is used as it is distributed: nothing to prepare")

    def coverage(self, split: str) -> tuple[int, int]:
        """Images present in this copy's list, and the official number."""
        return len(self.ids(split)), self.info.splits[split]

    def check_split(self, split: str) -> None:
        """Raises UserError when the data set has no such split."""
        if split not in self.info.splits:
            raise UserError(
                f"{self.info.name} has no split {split!r}", remedy=nearest(split, self.info.splits)
            )
