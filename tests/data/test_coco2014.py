"""The COCO reader: layouts, lists, which maps it takes, and what it refuses."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.basics.errors import UserError
from harness.basics.registry import DATASETS
from harness.data.images import write_index
from harness.data.sets.coco2014 import CATEGORIES, COCO2014, contiguous

IDS = {"train": "COCO_train2014_000000000009", "val": "COCO_val2014_000000000042"}


def write(root: Path, pictures: str = "{part}2014", masks: str = "SegmentationClass/{part}2014") -> COCO2014:
    """One picture and map of each part in one of the layouts in use."""
    for part, image_id in IDS.items():
        for folder in (pictures, masks):
            (root / folder.format(part=part)).mkdir(parents=True)
        Image.new("RGB", (9, 4), (10, 20, 30)).save(root / pictures.format(part=part) / f"{image_id}.jpg")
        labels = np.arange(36, dtype=np.uint8).reshape(4, 9) + 45
        labels[0, 0] = 255
        write_index(root / masks.format(part=part) / f"{image_id}.png", labels)
    (root / "lists").mkdir()
    for part, image_id in IDS.items():
        (root / "lists" / f"{part}.txt").write_text(image_id + "\r\n")
    return COCO2014(root)


def test_it_is_registered():
    assert DATASETS.get("coco2014") is COCO2014


def test_eighty_classes_in_the_official_order():
    info = COCO2014.info
    assert info.num_classes == len(set(info.classes)) == len(set(info.palette)) == 81
    assert info.classes[:3] == ("background", "person", "bicycle")
    assert info.classes[-1] == "toothbrush"
    numbers = list(CATEGORIES.values())
    assert numbers == sorted(set(numbers))
    unused = set(range(1, 91)) - set(numbers)
    assert unused == {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    table = contiguous()
    assert [int(table[n]) for n in (1, 11, 13, 25, 27, 90)] == [1, 11, 12, 24, 25, 80]
    assert set(np.flatnonzero(table).tolist()) == set(numbers)


@pytest.mark.parametrize(("split", "count"), [("train", 82_081), ("val", 40_137), ("val_part", 5_000)])
def test_packaged_lists_are_the_field_s(tmp_path: Path, split: str, count: int):
    (tmp_path / "train2014").mkdir()
    dataset = COCO2014(tmp_path)
    assert dataset.coverage(split) == (count, count)
    part = "train" if split == "train" else "val"
    assert all(i.startswith(f"COCO_{part}2014_") and len(i) == len(IDS[part]) for i in dataset.ids(split))
    if split == "val_part":
        assert set(dataset.ids(split)) < set(dataset.ids("val"))


@pytest.mark.parametrize(
    ("pictures", "masks"),
    [
        ("{part}2014", "SegmentationClass/{part}2014"),
        ("images/{part}2014", "SegmentationClass/{part}"),
        ("JPEGImages/{part}2014", "SegmentationClass/{part}2014"),
        ("JPEGImages/{part}", "SegmentationClass/{part}"),
    ],
)
@pytest.mark.parametrize("parent", ["coco2014", "MSCOCO", ""])
def test_the_layouts_in_use_are_read(tmp_path: Path, pictures: str, masks: str, parent: str):
    write(tmp_path / parent, pictures, masks)
    dataset = pickle.loads(pickle.dumps(COCO2014(tmp_path)))
    for split, image_id in IDS.items():
        assert dataset.ids(split) == (image_id,)
        assert dataset.read_image(image_id).shape == (4, 9, 3)
        mask = dataset.read_mask(image_id, split)
        assert mask.dtype == np.uint8
        assert (mask[0, 0], mask[0, 1], mask[3, 8]) == (255, 46, 80)


def test_maps_of_category_numbers_are_told_from_labels(tmp_path: Path):
    dataset = write(tmp_path)
    path = dataset.mask_path(IDS["train"], "train")
    assert path is not None
    write_index(path, np.full((4, 9), 84, np.uint8))
    with pytest.raises(UserError, match=r"holds \[84\]") as caught:
        dataset.read_mask(IDS["train"], "train")
    assert "1..90" in str(caught.value.remedy)
    write_index(path, np.full((4, 9), 200, np.uint8))
    with pytest.raises(UserError, match=r"holds \[200\]") as caught:
        dataset.read_mask(IDS["train"], "train")
    assert "1..90" not in str(caught.value.remedy)


def test_missing_maps_lead_to_prepare(tmp_path: Path):
    dataset = write(tmp_path, masks="elsewhere/{part}")
    with pytest.raises(UserError, match="maps of COCO 2014") as caught:
        dataset.read_mask(IDS["train"], "train")
    assert "wsss data prepare coco2014" in str(caught.value.remedy)


def test_names_of_2017_are_refused(tmp_path: Path):
    dataset = write(tmp_path)
    (tmp_path / "lists" / "train.txt").write_text("000000000009\n")
    (image_id,) = COCO2014(tmp_path).ids("train")
    with pytest.raises(UserError, match="no picture of COCO 2014") as caught:
        dataset.read_image(image_id)
    assert "COCO_train2014_" in str(caught.value.remedy)


def test_a_list_of_the_other_split_is_refused(tmp_path: Path):
    dataset = write(tmp_path)
    (tmp_path / "lists" / "train.txt").write_text(f"{IDS['train']}\n{IDS['val']}\n")
    with pytest.raises(UserError, match="1 of the 2 ids in the list of 'train' belong to 'val'") as caught:
        dataset.ids("train")
    assert str(tmp_path / "lists" / "train.txt") in str(caught.value.where)


def test_an_archive_in_place_of_the_folder_is_named(tmp_path: Path):
    (tmp_path / "train2014.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"not unpacked: there is train2014\.zip") as caught:
        COCO2014(tmp_path)
    assert "unpack" in str(caught.value.remedy)


def test_tags_come_from_prepare(tmp_path: Path):
    dataset = write(tmp_path)
    with pytest.raises(UserError, match="no official image tags") as caught:
        dataset.tags([IDS["train"]])
    assert "wsss data prepare coco2014" in str(caught.value.remedy)
