"""ADE20K scene parsing: 150 classes, no background; value 0 of a mask is not a class."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np

from harness.basics.errors import UserError
from harness.data.base import IGNORE, DatasetInfo
from harness.data.lists import PACKAGED
from harness.data.sets.layout import FileDataset


@cache
def _classes() -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """Names and colours of the 150 classes in label order, from a packaged table."""
    rows = (PACKAGED / "ade20k" / "classes.csv").read_text(encoding="utf-8").splitlines()
    cells = [row.split(",", 3) for row in rows]
    return tuple(c[3] for c in cells), tuple((int(c[0]), int(c[1]), int(c[2])) for c in cells)


class ADE20K(FileDataset):
    """ADE20K in the layout of the scene parsing challenge (``ADEChallengeData2016``).

    ::

        images/training/ADE_train_<number>.jpg          validation/ADE_val_<number>.jpg
        annotations/training/ADE_train_<number>.png     validation/ADE_val_<number>.png
        lists/<split>.txt                               a list of your own, one id for each line

    Masks hold 0 for what is none of the 150 classes, and 1..150 for the classes. Here 0 is void (255)
    and the classes are labels 0..149, as in the benchmark, which does not score value 0.
    """

    info = DatasetInfo(
        name="ade20k",
        title="ADE20K",
        classes=_classes()[0],
        palette=_classes()[1],
        splits={"train": 20210, "val": 2000},
        background=None,
        folder="ADEChallengeData2016",
        homepage="https://groups.csail.mit.edu/vision/datasets/ADE20K/",
        notes={"masks": "value 0 is void, values 1..150 are labels 0..149"},
    )
    obtain = (
        "ADEChallengeData2016.zip (1 GB), the scene parsing benchmark; not the full ADE20K",
        "pictures: for research and education only; annotations: BSD-3-Clause",
    )
    other_folders = ("ade20k", "ADE20K")
    marker = "folder images/training or images/validation"
    legal = "0 (void) and 1..150"
    canonical_masks = False
    #: Folder by the beginning of an id.
    parts: ClassVar[dict[str, str]] = {"ADE_train_": "training", "ADE_val_": "validation"}

    @classmethod
    def holds(cls, folder: Path) -> bool:
        """Whether pictures of one of the two parts are there."""
        return any((folder / "images" / part).is_dir() for part in cls.parts.values())

    @classmethod
    def values(cls) -> np.ndarray:
        """``(256,)`` int16: 0 is void, value v in 1..150 is label v - 1."""
        table = np.full(256, -1, np.int16)
        table[0] = IGNORE
        table[1 : cls.info.num_classes + 1] = np.arange(cls.info.num_classes)
        return table

    def _part(self, image_id: str) -> str:
        for beginning, part in self.parts.items():
            if image_id.startswith(beginning):
                return part
        raise UserError(
            f"{image_id!r} is no picture of ADE20K's scene parsing challenge",
            where="list of image ids",
            remedy="write ids as ADE_train_00000001 or ADE_val_00000001",
        )

    def image_path(self, image_id: str) -> Path:
        """``images/training/<id>.jpg``."""
        return self.root / "images" / self._part(image_id) / f"{image_id}.jpg"

    def mask_path(self, image_id: str, split: str) -> Path | None:
        """``annotations/training/<id>.png``."""
        self.check_split(split)
        return self.root / "annotations" / self._part(image_id) / f"{image_id}.png"

    def _illegal_remedy(self, illegal: Sequence[int]) -> str:
        return (
            "take the masks of ADEChallengeData2016 as they are, neither shifted by one nor the full ADE20K"
        )
