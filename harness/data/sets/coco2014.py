"""MS COCO 2014 as weakly supervised segmentation uses it: 80 object classes and background."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar

import numpy as np

from harness.basics.errors import UserError
from harness.basics.files import check_writable
from harness.data.base import IGNORE, DatasetInfo
from harness.data.lists import packaged_list
from harness.data.parallel import ordered_map
from harness.data.sets.layout import FileDataset, bit_palette, mask_tags

#: The 80 classes in the order of ``instances_*.json``, each with its category id in 1..90 there.
CATEGORIES: Mapping[str, int] = {
    "person": 1, "bicycle": 2, "car": 3, "motorcycle": 4, "airplane": 5, "bus": 6, "train": 7, "truck": 8,
    "boat": 9, "traffic light": 10, "fire hydrant": 11, "stop sign": 13, "parking meter": 14, "bench": 15,
    "bird": 16, "cat": 17, "dog": 18, "horse": 19, "sheep": 20, "cow": 21, "elephant": 22, "bear": 23,
    "zebra": 24, "giraffe": 25, "backpack": 27, "umbrella": 28, "handbag": 31, "tie": 32, "suitcase": 33,
    "frisbee": 34, "skis": 35, "snowboard": 36, "sports ball": 37, "kite": 38, "baseball bat": 39,
    "baseball glove": 40, "skateboard": 41, "surfboard": 42, "tennis racket": 43, "bottle": 44,
    "wine glass": 46, "cup": 47, "fork": 48, "knife": 49, "spoon": 50, "bowl": 51, "banana": 52,
    "apple": 53, "sandwich": 54, "orange": 55, "broccoli": 56, "carrot": 57, "hot dog": 58, "pizza": 59,
    "donut": 60, "cake": 61, "chair": 62, "couch": 63, "potted plant": 64, "bed": 65, "dining table": 67,
    "toilet": 70, "tv": 72, "laptop": 73, "mouse": 74, "remote": 75, "keyboard": 76, "cell phone": 77,
    "microwave": 78, "oven": 79, "toaster": 80, "sink": 81, "refrigerator": 82, "book": 84, "clock": 85,
    "vase": 86, "scissors": 87, "teddy bear": 88, "hair drier": 89, "toothbrush": 90,
}  # fmt: skip


def contiguous() -> np.ndarray:
    """``(256,)`` uint8: label 1..80 of every category id 1..90; 0 (background) for all other numbers."""
    table = np.zeros(256, np.uint8)
    table[list(CATEGORIES.values())] = np.arange(1, len(CATEGORIES) + 1)
    table.flags.writeable = False
    return table


class COCO2014(FileDataset):
    """MS COCO 2014 with the lists of the field: pictures that have at least one annotation.

    ::

        train2014/COCO_train2014_<number>.jpg         also in images/ or JPEGImages/, or as train/
        val2014/COCO_val2014_<number>.jpg
        annotations/instances_{train,val}2014.json    only `wsss data prepare coco2014` reads these
        SegmentationClass/train2014/<id>.png          maps 0..80, 255 void; also as SegmentationClass/train/
        lists/<split>.txt                             a list of your own, one id for each line
        lists/tags.npz                                image tags

    Maps and tags are written by ``wsss data prepare coco2014`` from the instances, or are ready-made
    ones of other projects. ``train`` and ``val`` (82,081 and 40,137 pictures) and ``val_part`` (5,000 of
    ``val``, for validation during training) are the lists of ToCo.
    """

    info = DatasetInfo(
        name="coco2014",
        title="MS COCO 2014",
        classes=("background", *CATEGORIES),
        palette=bit_palette(81),
        splits={"train": 82081, "val": 40137, "val_part": 5000},
        background=0,
        folder="coco2014",
        homepage="https://cocodataset.org/#download",
        notes={
            "masks": "drawn from instances by wsss data prepare coco2014: smaller ones on top, with crowds"
        },
    )
    obtain = (
        "train2014.zip (13 GB), val2014.zip (6 GB), annotations_trainval2014.zip (0.2 GB)",
        "annotations are CC BY 4.0; pictures are Flickr's, each under its own licence",
    )
    other_folders = ("MSCOCO", "coco")
    marker = "folder train2014 or val2014"
    #: Where pictures stand, by the part that an id names.
    picture_folders: ClassVar[tuple[str, ...]] = (
        "{part}2014",
        "images/{part}2014",
        "JPEGImages/{part}2014",
        "JPEGImages/{part}",
    )
    parts: ClassVar[tuple[str, ...]] = ("train", "val")

    @classmethod
    def holds(cls, folder: Path) -> bool:
        """Whether pictures of one of the two parts are there."""
        return any((folder / f.format(part=p)).is_dir() for f in cls.picture_folders for p in cls.parts)

    def ids(self, split: str) -> Sequence[str]:
        """Image ids of a split, in list order; ``val_part`` of a subset is what it has of it."""
        if split == "val_part" and self.list_path("val").exists() and not self.list_path(split).exists():
            official = set(packaged_list(self.info.name, split) or ())
            return [i for i in self.ids("val") if i in official] or self._missing_list(split)
        return super().ids(split)

    def numbers(self) -> np.ndarray:
        """``(256,)`` int16: label of every category id of the instances; 0 is background, 255 void."""
        table = np.full(256, -1, np.int16)
        table[[0, IGNORE]] = 0, IGNORE
        table[list(CATEGORIES.values())] = np.arange(1, len(CATEGORIES) + 1)
        return table

    @staticmethod
    def part(image_id: str) -> str:
        """``train`` or ``val``, as the id says.

        Raises:
            UserError: the id is not one of COCO 2014.
        """
        for part in COCO2014.parts:
            if image_id.startswith(f"COCO_{part}2014_"):
                return part
        raise UserError(
            f"{image_id!r} is no picture of COCO 2014",
            where="list of image ids",
            remedy="write ids as COCO_train2014_000000000009; pictures of 2017 lack the first part",
        )

    @cached_property
    def _pictures(self) -> Mapping[str, Path]:
        """The folder of each part's pictures."""
        found = {}
        for part in self.parts:
            places = [self.root / f.format(part=part) for f in self.picture_folders]
            found[part] = next((p for p in places if p.is_dir()), places[0])
        return found

    @cached_property
    def _masks(self) -> Mapping[str, Path]:
        """The folder of each part's maps."""
        found = {}
        for part in self.parts:
            places = [self.root / "SegmentationClass" / name for name in (f"{part}2014", part)]
            found[part] = next((p for p in places if p.is_dir()), places[0])
        return found

    def image_path(self, image_id: str) -> Path:
        """``train2014/COCO_train2014_<number>.jpg``."""
        return self._pictures[self.part(image_id)] / f"{image_id}.jpg"

    def mask_path(self, image_id: str, split: str) -> Path | None:
        """``SegmentationClass/train2014/<id>.png``."""
        self.check_split(split)
        return self._masks[self.part(image_id)] / f"{image_id}.png"

    def read_mask(self, image_id: str, split: str) -> np.ndarray:
        """``(H, W)`` uint8: 0 background, ``1..80`` class, 255 void. UserError as for every data set."""
        path = self.mask_path(image_id, split)
        if path is not None and not path.parent.is_dir():
            raise UserError(
                "the maps of COCO 2014 are not there",
                where=path.parent,
                remedy="draw them from the instances: wsss data prepare coco2014 --data-root DIR",
            )
        return super().read_mask(image_id, split)

    def tags(self, image_ids: Sequence[str]) -> np.ndarray:
        """``(N, 81)`` uint8 multi-hot: categories of a picture's annotations, crowds among them.

        Raises:
            UserError: they have not been prepared, or a picture has none.
        """
        if not self.tags_path.exists():
            raise UserError(
                "no official image tags of COCO 2014",
                where=self.tags_path,
                remedy="collect them from the instances: wsss data prepare coco2014 --data-root DIR",
            )
        return super().tags(image_ids)

    def prepare(self, source: Path | None, workers: int, report: Callable[[str], None]) -> None:
        """Draw maps from the instances and collect image tags, see :mod:`harness.data.sets.coco_prepare`.

        Ready-made maps are left as they are; without annotations the tags are the classes they show.

        Raises:
            UserError: neither annotations nor maps are there, or the annotations do not fit.
        """
        from harness.data.sets import coco_prepare

        here = [p for p in self.parts if self._pictures[p].is_dir()]
        check_writable(self.tags_path, file=True)
        for part in here:
            places = (
                [self.root / "annotations", self.root.parent / "annotations"] if source is None else [source]
            )
            names = [f"{kind}_{part}2014.json" for kind in ("instances", "panoptic")]
            files = [place / name for place in places for name in names]
            found = next((f for f in files if f.is_file()), None)
            ids = self.ids(part)
            if found is not None:
                labels, maps = contiguous(), self._masks[part]
                tags = coco_prepare.prepare_part(
                    self.info, part, found, maps, labels, wanted=ids, workers=workers, report=report
                )
            elif self._masks[part].is_dir():
                read = partial(mask_tags, self, part)
                rows = ordered_map(read, ids, workers=workers, kind="threads", what="image tags")
                tags = dict(zip(ids, rows, strict=True))
                report(
                    f"{part}: ready-made maps in {self._masks[part]}; image tags are the classes they show"
                )
            else:
                raise UserError(
                    f"neither annotations nor maps of {part}2014",
                    where=files[0],
                    remedy="unpack annotations_trainval2014.zip there, or name its folder with --from DIR",
                )
            coco_prepare.add_tags(self.tags_path, tags)
            report(f"{part}: image tags of {len(tags)} pictures in {self.tags_path}")

    def _illegal_remedy(self, illegal: Sequence[int]) -> str:
        if max(v for v in illegal if v < 255) <= 90:
            return "these maps hold category ids 1..90: draw them again with wsss data prepare coco2014"
        return "draw the maps again: wsss data prepare coco2014"
