"""PASCAL-Context: VOC 2010 pictures labelled densely, 59 classes and background."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from harness.basics.errors import UserError
from harness.data.base import DatasetInfo
from harness.data.sets.voc2012 import VOCLayout, bit_palette

#: The 59 classes in the order of the distribution's ``59_labels.txt`` (label 1 first), each with its
#: number in ``labels.txt``, the list of 459 names that the masks are written in.
_CLASSES: Mapping[str, int] = {
    "aeroplane": 2,
    "bicycle": 23,
    "bird": 25,
    "boat": 31,
    "bottle": 34,
    "bus": 45,
    "car": 59,
    "cat": 65,
    "chair": 72,
    "cow": 98,
    "table": 397,
    "dog": 113,
    "horse": 207,
    "motorbike": 258,
    "person": 284,
    "pottedplant": 308,
    "sheep": 347,
    "sofa": 368,
    "train": 416,
    "tvmonitor": 427,
    "bag": 9,
    "bed": 18,
    "bench": 22,
    "book": 33,
    "building": 44,
    "cabinet": 46,
    "ceiling": 68,
    "cloth": 80,
    "computer": 85,
    "cup": 104,
    "door": 115,
    "fence": 144,
    "floor": 158,
    "flower": 159,
    "food": 162,
    "grass": 187,
    "ground": 189,
    "keyboard": 220,
    "light": 232,
    "mountain": 259,
    "mouse": 260,
    "curtain": 105,
    "platform": 296,
    "sign": 355,
    "plate": 295,
    "road": 324,
    "rock": 326,
    "shelves": 349,
    "sidewalk": 354,
    "sky": 360,
    "snow": 366,
    "bedclothes": 19,
    "track": 415,
    "tree": 420,
    "truck": 424,
    "wall": 440,
    "water": 445,
    "window": 454,
    "wood": 458,
}

#: Names in ``labels.txt``.
_NAMES = 459

Mapping459 = Literal["official", "blpseg-inplace"]


@cache
def label_table(mapping: Mapping459) -> np.ndarray:
    """``(460,)`` uint8: the label of every number that a mask may hold.

    ``official``: the 59 classes, everything else background. ``blpseg-inplace``: what the released code
    of BLPSeg evaluates against. It replaces numbers in the mask itself, in ascending order, so that a
    label equal to a number still to come is replaced again: bag and bedclothes become background, bed and
    bench bicycle, and these four classes never occur (BLPSeg lib/datasets/ContextDataset.py).
    """
    table = np.zeros(_NAMES + 1, np.int64)
    table[list(_CLASSES.values())] = np.arange(1, len(_CLASSES) + 1)
    if mapping == "blpseg-inplace":
        current = np.arange(_NAMES + 1)
        for number in range(_NAMES + 1):
            current[current == number] = table[number]
        table = np.where(current > len(_CLASSES), 0, current)
    table = table.astype(np.uint8)
    table.flags.writeable = False
    return table


class PascalContext(VOCLayout):
    """PASCAL-Context with 60 classes, in the layout of the released code of BLPSeg.

    ::

        JPEGImages/<id>.jpg
        SegmentationClass/<id>.mat            LabelMap of 459 names, as distributed
        ImageSets/Segmentation/<split>.txt    one id for each line

    ``train`` (4998 pictures) and ``val`` (5105) use the official mapping to 60 classes. ``val_blpseg``
    holds the pictures of ``val`` with the masks as the released code of BLPSeg maps them
    (:func:`label_table`); numbers of the two splits cannot be compared. There is no void label.
    """

    info = DatasetInfo(
        name="pascal_context",
        title="PASCAL-Context",
        classes=("background", *_CLASSES),
        palette=bit_palette(len(_CLASSES) + 1),
        splits={"train": 4998, "val": 5105, "val_blpseg": 5105},
        background=0,
        folder="VOCdevkit/Context",
        homepage="https://cs.stanford.edu/~roozbeh/pascal-context/",
        notes={"val_blpseg": "val with masks mapped as in the released code of BLPSeg"},
    )
    #: How each split's masks are mapped.
    mappings: ClassVar[Mapping[str, Mapping459]] = {
        "train": "official",
        "val": "official",
        "val_blpseg": "blpseg-inplace",
    }
    aliases: ClassVar[Mapping[str, str]] = {  # names of ScribbleSup's files (BLPSeg data/xml2png_context.py)
        "plane": "aeroplane",
        "bike": "bicycle",
        "plant": "pottedplant",
        "monitor": "tvmonitor",
    }
    canonical_masks = False

    def ids(self, split: str) -> Sequence[str]:
        """Image ids of a split, in list order. Raises UserError as for every VOC layout."""
        return super().ids("val" if split == "val_blpseg" else split)

    def mask_path(self, image_id: str, split: str) -> Path | None:
        """``SegmentationClass/<id>.mat``."""
        self.check_split(split)
        return self.root / "SegmentationClass" / f"{image_id}.mat"

    def read_mask(self, image_id: str, split: str) -> np.ndarray:
        """``(H, W)`` uint8 ``0..59``, mapped as the split says.

        Raises:
            UserError: the file is missing, no MAT file with a ``LabelMap``, or holds illegal numbers.
        """
        path = self.mask_path(image_id, split)
        assert path is not None
        numbers = _label_map(path)
        if numbers.size and (numbers.min() < 0 or numbers.max() > _NAMES):
            raise UserError(
                f"the mask holds numbers from {numbers.min()} to {numbers.max()}; legal are 0..{_NAMES}",
                where=path,
                remedy=f"take the masks from {self.info.homepage}",
            )
        return label_table(self.mappings[split])[numbers]


def _label_map(path: Path) -> np.ndarray:
    import scipy.io

    try:
        content = scipy.io.loadmat(str(path), variable_names=["LabelMap"])
    except FileNotFoundError:
        raise UserError(
            "the mask is missing", where=path, remedy="put the distribution's .mat files into this folder"
        ) from None
    except Exception as error:  # scipy raises whatever the damaged bytes lead it to
        raise UserError(f"not a readable MAT file: {error}", where=path, remedy="copy it again") from None
    numbers = content.get("LabelMap")
    if numbers is None or numbers.ndim != 2:
        raise UserError(
            "the MAT file has no two-dimensional 'LabelMap'",
            where=path,
            remedy="use PASCAL-Context's masks of 459 names, not those of parts or objects",
        )
    return numbers.astype(np.int64)
