"""Miniatures of the large data sets: the scenes of ``mini`` in each one's official layout and encoding.

They let readers, preparing, labels and training be tried without the data, and whole runs be tested.
Names and lists are official ones, pictures and masks are generated (:mod:`harness.data.sets.mini_scenes`),
so numbers say nothing about the data set. The seven labels of a scene become seven of its classes.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from harness.basics.errors import UserError, nearest
from harness.basics.files import named, whole_file
from harness.data.images import save_index, write_index
from harness.data.lists import packaged_list, write_tags
from harness.data.sets import mini_scenes
from harness.data.sets.camvid import CamVid
from harness.data.sets.cityscapes import Cityscapes
from harness.data.sets.coco2014 import CATEGORIES, COCO2014
from harness.data.sets.msrc import MSRC, THINGS
from harness.data.sets.voc2012 import VOC2012

_VOID = 255
#: Which class a scene's labels 0..6 become: their numbers in the masks (COCO: in the annotations).
_NUMBERS: Mapping[str, Sequence[int]] = {
    "voc2012": (0, 2, 5, 8, 12, 15, 20),
    "coco2014": (0, 1, 13, 18, 44, 62, 90),
    "cityscapes": (7, 8, 11, 17, 24, 26, 33),
    "ade20k": (1, 2, 3, 13, 20, 100, 150),
    "msrc": (2, 4, 6, 9, 12, 17, 23),
    "msrc-objects": (2, 4, 6, 9, 12, 17, 23),
    "camvid": (3, 0, 1, 5, 8, 9, 10),
}
#: What a scene's void pixels become; in COCO they belong to no annotation.
_VOID_NUMBERS = {"voc2012": 255, "camvid": 11}  # 0 in the others

#: How ids of data sets without official lists begin.
_NAMED = {"train": "0001TP", "val": "0016E5"}


def write_miniature(name: str, root: Path | str, *, train: int = 8, val: int = 4, seed: int = 0) -> Path:
    """Write the miniature of a data set and return the folder to pass as ``--data-root``.

    Args:
        name: ``voc2012``, ``coco2014``, ``cityscapes``, ``ade20k``, ``msrc``, ``msrc-objects`` or ``camvid``.
        root: folder to write the official folder into.
        train, val: number of pictures; VOC's ``train`` is also its ``train_aug``.
        seed: of the scenes.

    Raises:
        UserError: there is no miniature of this data set, or the folder exists.
    """
    if name not in _WRITERS:
        raise UserError(f"there is no miniature of {name!r}", remedy=nearest(name, _WRITERS))
    root = Path(root)
    folder = root / _FOLDERS[name]
    if folder.exists():
        raise UserError("the folder is there already", where=folder, remedy="delete it, or name another")
    scenes = {}
    for split, count in (("train", train), ("val", val)):
        lists = "msrc" if name == "msrc-objects" else name
        official = packaged_list(lists, split) or [f"{_NAMED[split]}_{i:05d}" for i in range(count)]
        for index, image_id in enumerate(official[:count]):
            picture, mask = mini_scenes.scene(seed, split, index)
            numbers = np.full(256, _VOID_NUMBERS.get(name, 0), np.uint8)
            numbers[: len(_NUMBERS[name])] = _NUMBERS[name]
            scenes[image_id] = (split, picture, mask, numbers[mask])
    with named(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.", suffix=".part")
        with draft as place:  # half a data set would be taken for a whole one
            _WRITERS[name](Path(place) / folder.name, scenes)
            (Path(place) / folder.name).rename(folder)
    return root


Scenes = Mapping[str, tuple[str, np.ndarray, np.ndarray, np.ndarray]]  # split, picture, labels, numbers


def _picture(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, quality=95)


def _lists(folder: Path, scenes: Scenes, *, copies: Mapping[str, str] | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):
        text = "".join(f"{i}\n" for i, scene in scenes.items() if scene[0] == split)
        for name in (split, *(c for c, of in (copies or {}).items() if of == split)):
            (folder / f"{name}.txt").write_text(text, encoding="utf-8")


def _voc(folder: Path, scenes: Scenes) -> None:
    lists = folder / "ImageSets" / "Segmentation"
    _lists(lists, scenes, copies={"train_aug": "train"})
    tags = np.zeros((len(scenes), VOC2012.info.num_classes), np.uint8)
    for row, (image_id, (_, picture, _, numbers)) in enumerate(scenes.items()):
        _picture(folder / "JPEGImages" / f"{image_id}.jpg", picture)
        for kind in ("SegmentationClass", "SegmentationClassAug"):
            save_index(folder / kind / f"{image_id}.png", numbers, VOC2012.info.palette)
        tags[row, np.unique(numbers[(numbers > 0) & (numbers != _VOID)])] = 1
    write_tags(lists / "tags.npz", list(scenes), tags)


def _coco(folder: Path, scenes: Scenes) -> None:
    _lists(folder / "lists", scenes)
    names = {number: name for name, number in CATEGORIES.items()}
    for split in ("train", "val"):
        pictures: list[dict] = []
        annotations: list[dict] = []
        for image_id, (its_split, picture, mask, numbers) in scenes.items():
            if its_split != split:
                continue
            _picture(folder / f"{split}2014" / f"{image_id}.jpg", picture)
            number = int(image_id.rsplit("_", 1)[1])
            height, width = mask.shape
            pictures.append({"id": number, "height": height, "width": width, "file_name": f"{image_id}.jpg"})
            for category in np.unique(numbers[numbers > 0]).tolist():
                inside = numbers == category
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": category,
                        "iscrowd": 1,
                        "area": int(inside.sum()),
                        "bbox": _box(inside),
                        "segmentation": {"counts": _runs(inside), "size": [height, width]},
                    }
                )
        content = {
            "images": pictures,
            "annotations": annotations,
            "categories": [{"id": number, "name": name} for number, name in names.items()],
        }
        with whole_file(folder / "annotations" / f"instances_{split}2014.json") as stream:
            json.dump(content, stream)
    COCO2014(folder).prepare(None, 0, lambda line: None)


def _runs(inside: np.ndarray) -> list[int]:
    """Run lengths down the columns, outside first."""
    flat = inside.T.ravel()
    ends = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *ends.tolist(), len(flat)]).tolist()
    return [0, *runs] if flat[0] else runs


def _box(inside: np.ndarray) -> list[int]:
    """Left, top, width, height."""
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    top, left = int(rows[0]), int(columns[0])
    return [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]


def _cityscapes(folder: Path, scenes: Scenes) -> None:
    _lists(folder / "lists", scenes)
    for image_id, (split, picture, _, numbers) in scenes.items():
        city = image_id.split("_")[0]
        _picture(folder / "leftImg8bit" / split / city / f"{image_id}_leftImg8bit.png", picture)
        write_index(folder / "gtFine" / split / city / f"{image_id}_gtFine_labelIds.png", numbers)
        coarse = numbers.copy()
        coarse[::4] = 0
        write_index(folder / "gtCoarse" / split / city / f"{image_id}_gtCoarse_labelIds.png", coarse)


def _ade20k(folder: Path, scenes: Scenes) -> None:
    _lists(folder / "lists", scenes)
    for image_id, (split, picture, _, numbers) in scenes.items():
        part = {"train": "training", "val": "validation"}[split]
        _picture(folder / "images" / part / f"{image_id}.jpg", picture)
        write_index(folder / "annotations" / part / f"{image_id}.png", numbers)


def _msrc(folder: Path, scenes: Scenes) -> None:
    _lists(folder / "lists", scenes)
    colours = np.array([(0, 0, 0), *(thing.colour for thing in THINGS)], np.uint8)
    for image_id, (_, picture, _, numbers) in scenes.items():
        _picture(folder / "Images" / f"{image_id}.bmp", picture)
        _picture(folder / "GroundTruth" / f"{image_id}_GT.bmp", colours[numbers])


def _camvid(folder: Path, scenes: Scenes) -> None:
    for image_id, (split, picture, _, numbers) in scenes.items():
        _picture(folder / split / f"{image_id}.png", picture)
        write_index(folder / f"{split}annot" / f"{image_id}.png", numbers)
    for split in ("train", "val"):  # pairs of paths, as SegNet's code reads them
        ids = [image_id for image_id, scene in scenes.items() if scene[0] == split]
        places = [(f"/SegNet/CamVid/{split}/{i}.png", f"/SegNet/CamVid/{split}annot/{i}.png") for i in ids]
        text = "".join(f"{picture} {mask}\n" for picture, mask in places)
        (folder / f"{split}.txt").write_text(text, encoding="utf-8")


_WRITERS: Mapping[str, Callable[[Path, Scenes], None]] = {
    "voc2012": _voc,
    "coco2014": _coco,
    "cityscapes": _cityscapes,
    "ade20k": _ade20k,
    "msrc": _msrc,
    "msrc-objects": _msrc,
    "camvid": _camvid,
}
_FOLDERS = {
    "voc2012": VOC2012.info.folder,
    "coco2014": COCO2014.info.folder,
    "cityscapes": Cityscapes.info.folder,
    "ade20k": "ADEChallengeData2016",
    "msrc": MSRC.info.folder,
    "msrc-objects": MSRC.info.folder,
    "camvid": CamVid.info.folder,
}
