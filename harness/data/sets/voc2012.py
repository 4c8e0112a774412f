"""PASCAL VOC 2012 segmentation, and its on-disk layout for data sets that share it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

from harness.data.base import DatasetInfo
from harness.data.lists import read_list, read_tags, write_tags
from harness.data.sets.layout import FileDataset, bit_palette

__all__ = ["VOC2012", "VOCLayout", "bit_palette", "read_list", "read_tags", "write_tags"]


class VOCLayout(FileDataset):
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
    marker = "folder JPEGImages"
    list_folders = ("ImageSets/Segmentation",)

    @classmethod
    def holds(cls, folder: Path) -> bool:
        """Whether there is a ``JPEGImages``."""
        return (folder / "JPEGImages").is_dir()

    def image_path(self, image_id: str) -> Path:
        """``JPEGImages/<id>.jpg``."""
        return self.root / "JPEGImages" / f"{image_id}.jpg"

    def mask_path(self, image_id: str, split: str) -> Path | None:
        """The dense mask, None for splits without public masks."""
        self.check_split(split)
        folder = self.mask_folders.get(split, "SegmentationClass")
        return None if folder is None else self.root / folder / f"{image_id}.png"


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
    obtain = (
        "VOCtrainval_11-May-2012.tar (2 GB)",
        "for train_aug: benchmark.tgz of SBD (1.4 GB), "
        "http://home.bharathh.info/pubs/codes/SBD/download.html, "
        "or a ready-made SegmentationClassAug",
        "pictures are Flickr's, for research; SBD asks for citation",
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

    def prepare(self, source: Path | None, workers: int, report: Callable[[str], None]) -> None:
        """Build ``SegmentationClassAug`` from VOC and SBD, see :mod:`harness.data.sets.sbd`."""
        from harness.data.sets import sbd

        sbd.prepare_masks(self, source, workers, report)
