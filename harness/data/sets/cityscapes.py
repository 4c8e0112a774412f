"""Cityscapes: 19 classes of street scenes, fine and coarse annotations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from harness.basics.errors import UserError
from harness.data.base import IGNORE, DatasetInfo, LabelSpec
from harness.data.sets.layout import FileDataset


class _Class(NamedTuple):
    """A class with its number in ``labelIds`` files and its colour."""

    name: str
    id: int
    colour: tuple[int, int, int]


#: The classes that are scored, in order of their trainId (cityscapesScripts helpers/labels.py).
CLASSES = (
    _Class("road", 7, (128, 64, 128)),
    _Class("sidewalk", 8, (244, 35, 232)),
    _Class("building", 11, (70, 70, 70)),
    _Class("wall", 12, (102, 102, 156)),
    _Class("fence", 13, (190, 153, 153)),
    _Class("pole", 17, (153, 153, 153)),
    _Class("traffic light", 19, (250, 170, 30)),
    _Class("traffic sign", 20, (220, 220, 0)),
    _Class("vegetation", 21, (107, 142, 35)),
    _Class("terrain", 22, (152, 251, 152)),
    _Class("sky", 23, (70, 130, 180)),
    _Class("person", 24, (220, 20, 60)),
    _Class("rider", 25, (255, 0, 0)),
    _Class("car", 26, (0, 0, 142)),
    _Class("truck", 27, (0, 0, 70)),
    _Class("bus", 28, (0, 60, 100)),
    _Class("train", 31, (0, 80, 100)),
    _Class("motorcycle", 32, (0, 0, 230)),
    _Class("bicycle", 33, (119, 11, 32)),
)
#: The highest number in ``labelIds`` files; numbers of no class are not scored.
_LAST_ID = 33


class Cityscapes(FileDataset):
    """Cityscapes with its official file names; an id is ``<city>_<sequence>_<frame>``.

    ::

        leftImg8bit/<part>/<city>/<id>_leftImg8bit.png       part: train, val, test, train_extra
        gtFine/<part>/<city>/<id>_gtFine_labelIds.png        or ..._labelTrainIds.png
        gtCoarse/<part>/<city>/<id>_gtCoarse_labelIds.png
        lists/<split>.txt                                    a list of your own, one id for each line

    ``train`` and ``val`` (2,975 and 500 pictures) have fine masks. ``train_coarse`` is ``train`` with
    coarse masks, ``train_extra`` (19,998 pictures) has coarse masks only, ``test`` none. The lists of
    ``test`` and ``train_extra`` are what their folders hold. ``labelIds`` files hold 0..33, of which 19
    are classes and the rest is void; ``labelTrainIds`` files, read where there is no other, hold 0..18
    and 255.
    """

    info = DatasetInfo(
        name="cityscapes",
        title="Cityscapes",
        classes=tuple(c.name for c in CLASSES),
        palette=tuple(c.colour for c in CLASSES),
        splits={"train": 2975, "val": 500, "test": 1525, "train_coarse": 2975, "train_extra": 19998},
        background=None,
        folder="cityscapes",
        homepage="https://www.cityscapes-dataset.com/downloads/",
        notes={"masks": "labelIds 0..33 to 19 trainIds"},
    )
    obtain = (
        "leftImg8bit_trainvaltest.zip (11 GB), gtFine_trainvaltest.zip (0.2 GB), after registration",
        "for train_coarse and train_extra also gtCoarse.zip (1.3 GB) and leftImg8bit_trainextra.zip (44 GB)",
        "free for research under the Cityscapes licence; may not be passed on",
    )
    other_folders = ("Cityscapes",)
    marker = "folder leftImg8bit"
    legal = "0..33 (labelIds)"
    canonical_masks = False
    #: Folder of masks by split, None where a split has no public masks.
    mask_folders: ClassVar[Mapping[str, str | None]] = {
        "train": "gtFine",
        "val": "gtFine",
        "test": None,
        "train_coarse": "gtCoarse",
        "train_extra": "gtCoarse",
    }
    #: What may follow the id in names of annotators' files.
    endings: ClassVar[tuple[str, ...]] = (
        "_gtFine_labelTrainIds",
        "_leftImg8bit",
        "_gtFine_labelIds",
        "_gtCoarse_labelTrainIds",
    )

    @classmethod
    def holds(cls, folder: Path) -> bool:
        """Whether there is a ``leftImg8bit``."""
        return (folder / "leftImg8bit").is_dir()

    @classmethod
    def values(cls) -> np.ndarray:
        """``(256,)`` int16: labels of ``labelIds`` values."""
        table = np.full(256, -1, np.int16)
        table[: _LAST_ID + 1] = IGNORE
        table[[c.id for c in CLASSES]] = np.arange(len(CLASSES))
        return table

    def ids(self, split: str) -> Sequence[str]:
        """Image ids of a split, in list order; ``train_coarse`` has those of ``train``."""
        return super().ids("train" if split == "train_coarse" else split)

    def _missing_list(self, split: str) -> tuple[str, ...]:
        pictures = (self.root / "leftImg8bit" / split).glob("*/*_leftImg8bit.png")
        ids = tuple(sorted(p.name.removesuffix("_leftImg8bit.png") for p in pictures))
        if not ids:
            raise UserError(
                f"the split {split!r} of Cityscapes is not there",
                where=self.root / "leftImg8bit" / split,
                remedy=f"unpack it there (obtain it from {self.info.homepage})",
            )
        return ids

    @cached_property
    def _parts(self) -> Mapping[str, str]:
        """The part of every city; no city is in two of them."""
        folders = sorted((self.root / "leftImg8bit").glob("*/*/"))
        return {folder.name: folder.parent.name for folder in folders}

    def _place(self, image_id: str) -> tuple[str, str]:
        city = image_id.split("_")[0]
        if city not in self._parts:
            raise UserError(
                f"no folder of the city {city!r}, which the id {image_id!r} names",
                where=self.root / "leftImg8bit",
                remedy="unpack the part with this city, or take the id off the list",
            )
        return self._parts[city], city

    def image_path(self, image_id: str) -> Path:
        """``leftImg8bit/<part>/<city>/<id>_leftImg8bit.png``."""
        part, city = self._place(image_id)
        return self.root / "leftImg8bit" / part / city / f"{image_id}_leftImg8bit.png"

    def mask_path(self, image_id: str, split: str) -> Path | None:
        """``gtFine/<part>/<city>/<id>_gtFine_labelIds.png``, ``_labelTrainIds`` where only that is there."""
        self.check_split(split)
        kind = self.mask_folders[split]
        if kind is None:
            return None
        part, city = self._place(image_id)
        folder = self.root / kind / part / city
        path = folder / f"{image_id}_{kind}_labelIds.png"
        other = folder / f"{image_id}_{kind}_labelTrainIds.png"
        return other if other.exists() and not path.exists() else path

    def table_of(self, path: Path) -> tuple[np.ndarray, str]:
        """Labels of the values in a mask file, and the legal values in words."""
        if path.name.endswith("_labelTrainIds.png"):
            table = np.full(256, -1, np.int16)
            table[: len(CLASSES)] = np.arange(len(CLASSES))
            table[IGNORE] = IGNORE
            return table, "0..18 and 255 (labelTrainIds)"
        return super().table_of(path)

    def numbering_of(self, path: Path) -> Literal["classes", "files"] | None:
        """Whose numbers a file holds that has an official name."""
        if path.stem.endswith("_labelTrainIds"):
            return "classes"
        return "files" if path.stem.endswith("_labelIds") else None

    def label_files(self, image_id: str, spec: LabelSpec) -> tuple[Path, ...]:
        """Files that :meth:`read_official_label` opens: ``<id>.png``, or with an official ending."""
        usual = super().label_files(image_id, spec)
        if spec.format != "png":
            return usual
        folder = usual[0].parent
        names = [f"{image_id}{ending}.png" for ending in ("", *self.endings)]
        return (next((folder / name for name in names if (folder / name).exists()), usual[0]),)
