"""MSRC v2: 591 photographs of 23 kinds of things, in the release's folders or with cleaned masks as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from harness.basics.errors import UserError
from harness.data.base import IGNORE, DatasetInfo
from harness.data.picture_files import PictureFiles, in_any_case
from harness.data.sets.encoding import Encoding
from harness.data.sets.layout import FileDataset


class _Thing(NamedTuple):
    """One of the 23 names: its colour in the release's ground truth, and what the literature makes of it."""

    name: str
    colour: tuple[int, int, int]
    kind: Literal["object", "surroundings", "rare"]


#: In order of their numbers 1..23 in the cleaned masks; colours are the release's.
THINGS = (
    _Thing("building", (128, 0, 0), "surroundings"),
    _Thing("grass", (0, 128, 0), "surroundings"),
    _Thing("tree", (128, 128, 0), "surroundings"),
    _Thing("cow", (0, 0, 128), "object"),
    _Thing("horse", (128, 0, 128), "rare"),
    _Thing("sheep", (0, 128, 128), "object"),
    _Thing("sky", (128, 128, 128), "surroundings"),
    _Thing("mountain", (64, 0, 0), "rare"),
    _Thing("aeroplane", (192, 0, 0), "object"),
    _Thing("water", (64, 128, 0), "surroundings"),
    _Thing("face", (192, 128, 0), "object"),
    _Thing("car", (64, 0, 128), "object"),
    _Thing("bicycle", (192, 0, 128), "object"),
    _Thing("flower", (64, 128, 128), "object"),
    _Thing("sign", (192, 128, 128), "object"),
    _Thing("bird", (0, 64, 0), "object"),
    _Thing("book", (128, 64, 0), "object"),
    _Thing("chair", (0, 192, 0), "object"),
    _Thing("road", (128, 64, 128), "surroundings"),
    _Thing("cat", (0, 192, 128), "object"),
    _Thing("dog", (128, 192, 128), "object"),
    _Thing("body", (64, 64, 0), "object"),
    _Thing("boat", (192, 64, 0), "object"),
)
_BLACK = (0, 0, 0)


class MSRC(FileDataset):
    """MSRC v2 with the 21 classes of the literature; unlabelled pixels, horse and mountain are void.

    ::

        Images/<id>.bmp          GroundTruth/<id>_GT.bmp     as released: one colour for each name
        images/<id>.jpg          masks/<id>.png              or cleaned masks: 0 unlabelled, 1..23 the names
        lists/<split>.txt        (or <split>.txt) a list of your own, one id for each line

    Where both kinds of masks are there, the cleaned ones count. The lists are ours, drawn within each of the
    release's twenty groups (the first number of an id); ``test`` is whatever the folder holds beside them.
    A folder with lists of its own for ``train`` and ``val`` has another split. Nobody gave image tags: they
    are the classes that a picture's mask shows, as in the literature.
    """

    info = DatasetInfo(
        name="msrc",
        title="MSRC v2",
        classes=tuple(t.name for t in THINGS if t.kind != "rare"),
        palette=tuple(t.colour for t in THINGS if t.kind != "rare"),
        splits={"train": 334, "val": 99, "test": 158},
        background=None,
        folder="MSRC_ObjCategImageDatabase_v2",
        homepage="https://www.microsoft.com/en-us/research/project/image-understanding/",
        notes={"masks": "unlabelled, horse and mountain are void", "split": "ours, not TextonBoost's"},
    )
    obtain = (
        "MSRC_ObjCategImageDatabase_v2.zip (100 MB): Images and GroundTruth",
        "for non-commercial research",
    )
    other_folders = ("msrc", "MSRC")
    marker = "folder Images or images"
    list_folders = ("", "lists")
    legal = "0 (unlabelled) and 1..23"
    canonical_masks = False
    lists_of = "msrc"
    tags_of_masks = True
    mask_palette = ()

    @classmethod
    def holds(cls, folder: Path) -> bool:
        """Whether there are pictures, and masks of either kind."""
        return any((folder / name).is_dir() for name in ("Images", "images")) and any(
            (folder / name).is_dir() for name in ("GroundTruth", "masks")
        )

    @classmethod
    def label_of(cls, thing: _Thing) -> int:
        """The label of one of the names, 255 where it is not scored."""
        return cls.info.classes.index(thing.name) if thing.name in cls.info.classes else IGNORE

    @classmethod
    def values(cls) -> np.ndarray:
        """``(256,)`` int16: labels of the numbers in cleaned masks."""
        table = np.full(256, -1, np.int16)
        table[0] = IGNORE
        table[1 : len(THINGS) + 1] = [cls.label_of(thing) for thing in THINGS]
        return table

    @cached_property
    def _pictures(self) -> PictureFiles:
        places = (self.root / name for name in ("Images", "images"))
        return PictureFiles(next(place for place in places if place.is_dir()))

    @cached_property
    def _cleaned(self) -> bool:
        """Whether masks are numbers in PNGs, and not the release's colours."""
        return (self.root / "masks").is_dir()

    @cached_property
    def _colours(self) -> Encoding:
        labels: dict[int | tuple[int, int, int], int] = {t.colour: self.label_of(t) for t in THINGS}
        where = self.root / "GroundTruth"
        return Encoding({_BLACK: IGNORE, **labels}, self.info.classes, False, where)

    def _refuse_other_split(self, split: str, ids: Sequence[str], official: Sequence[str]) -> None:
        if not all(self.list_path(other).exists() for other in ("train", "val")):
            super()._refuse_other_split(split, ids, official)  # else the folder has a split of its own

    def _missing_list(self, split: str) -> tuple[str, ...]:
        if split != "test":
            return super()._missing_list(split)
        taken = {*self.ids("train"), *self.ids("val")}
        ids = tuple(i for i in self._pictures.ids() if i not in taken)
        if not ids:
            raise UserError(
                "all pictures that are here are in train and val: none is left for test",
                where=self._pictures.folder,
                remedy=f"score val, or complete the release (obtain it from {self.info.homepage})",
            )
        return ids

    def image_path(self, image_id: str) -> Path:
        """``Images/<id>.bmp``, or a picture of another format in its place."""
        return self._pictures.only(image_id)

    def mask_path(self, image_id: str, split: str) -> Path | None:
        """``masks/<id>.png`` where that folder is there, else ``GroundTruth/<id>_GT.bmp``."""
        self.check_split(split)
        if self._cleaned:
            return self.root / "masks" / f"{image_id}.png"
        return in_any_case(self.root / "GroundTruth" / f"{image_id}_GT.bmp")

    def read_mask(self, image_id: str, split: str) -> np.ndarray:
        """``(H, W)`` uint8: ``0..K-1`` class, 255 void.

        Raises:
            UserError: missing, corrupt, an illegal number, or a colour that is none of the release's.
        """
        path = self.mask_path(image_id, split)
        if self._cleaned or path is None:
            return super().read_mask(image_id, split)
        try:
            return self._colours.read(path)
        except UserError as error:
            if not path.exists():
                raise
            raise UserError(error.problem, where=path, remedy=self._illegal_remedy(())) from None

    def _illegal_remedy(self, illegal: Sequence[int]) -> str:
        return "take the masks from the release as they are: lossy and resized copies have other colours"


class MSRCObjects(MSRC):
    """MSRC v2 with its 15 kinds of objects and, as background, the surroundings that are labelled.

    For image tags: 84 % of the pictures show an object, most of them one kind. Building, grass, tree, sky,
    mountain, water and road are background; unlabelled pixels and horse (three pictures) are void.
    """

    info = DatasetInfo(
        name="msrc-objects",
        title="MSRC v2, objects",
        classes=("background", *(t.name for t in THINGS if t.kind == "object")),
        palette=(_BLACK, *(t.colour for t in THINGS if t.kind == "object")),
        splits=MSRC.info.splits,
        background=0,
        folder=MSRC.info.folder,
        homepage=MSRC.info.homepage,
        notes={
            "masks": "surroundings are background; unlabelled and horse are void",
            "split": MSRC.info.notes["split"],
        },
    )

    @classmethod
    def label_of(cls, thing: _Thing) -> int:
        """As of :class:`MSRC`, surroundings and mountain 0."""
        if thing.kind == "surroundings" or thing.name == "mountain":
            return 0
        return super().label_of(thing)
