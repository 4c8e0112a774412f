"""The ADE20K reader: value 0 of a mask is void, value 1 the first class, value 150 the last."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.basics.errors import UserError
from harness.basics.registry import DATASETS
from harness.data.base import LabelSpec
from harness.data.images import write_index
from harness.data.labels.label_store import prepare_labels
from harness.data.sets.ade20k import ADE20K

IDS = {"train": "ADE_train_00000001", "val": "ADE_val_00000001"}
MASK = np.repeat(np.array([[0, 1, 150, 150]], np.uint8), 6, axis=0)


@pytest.fixture
def ade(tmp_path: Path) -> ADE20K:
    root = tmp_path / "ADEChallengeData2016"
    for split, folder in (("train", "training"), ("val", "validation")):
        (root / "images" / folder).mkdir(parents=True)
        Image.new("RGB", MASK.shape[::-1]).save(root / "images" / folder / f"{IDS[split]}.jpg")
        write_index(root / "annotations" / folder / f"{IDS[split]}.png", MASK)
    (root / "lists").mkdir()
    for split, image_id in IDS.items():
        (root / "lists" / f"{split}.txt").write_text(image_id + "\n")
    return ADE20K(tmp_path)


def test_it_is_registered_with_its_classes():
    assert DATASETS.get("ade20k") is ADE20K
    info = ADE20K.info
    assert info.num_classes == len(info.palette) == 150
    assert (info.classes[0], info.classes[12], info.classes[149]) == (
        "wall",
        "person, individual, someone, somebody, mortal, soul",
        "flag",
    )
    assert info.palette[0] == (120, 120, 120)
    assert info.background is None


@pytest.mark.parametrize("split", ["train", "val"])
def test_zero_is_void_and_the_first_class_is_one(ade: ADE20K, split: str):
    mask = ade.read_mask(IDS[split], split)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask[0], [255, 0, 149, 149])
    assert ade.read_image(IDS[split]).shape == (*MASK.shape, 3)


def test_void_stays_out_of_every_label_made_from_a_mask(ade: ADE20K, tmp_path: Path):
    full = prepare_labels(ade, "train", "full", LabelSpec(), cache=tmp_path)
    path = full.path(IDS["train"])
    assert path is not None
    assert path != ade.mask_path(IDS["train"], "train"), "masks on disk are no labels"
    np.testing.assert_array_equal(np.array(Image.open(path))[0], [255, 0, 149, 149])
    assert np.flatnonzero(full.tags[0]).tolist() == [0, 149]
    weak = prepare_labels(ade, "train", "scribble", LabelSpec(stroke=1), cache=tmp_path)
    path = weak.path(IDS["train"])
    assert path is not None
    assert (np.array(Image.open(path))[:, 0] == 254).all(), "void is never labelled"


@pytest.mark.parametrize(("split", "count"), [("train", 20_210), ("val", 2_000)])
def test_packaged_lists_have_the_official_numbers(tmp_path: Path, split: str, count: int):
    (tmp_path / "images" / "validation").mkdir(parents=True)
    assert ADE20K(tmp_path).coverage(split) == (count, count)


@pytest.mark.parametrize("value", [151, 255])
def test_other_values_are_refused(ade: ADE20K, value: int):
    path = ade.mask_path(IDS["val"], "val")
    assert path is not None
    write_index(path, np.where(MASK == 0, np.uint8(value), MASK))
    with pytest.raises(UserError, match=rf"holds \[{value}\]; legal are 0 \(void\) and 1\.\.150"):
        ade.read_mask(IDS["val"], "val")


def test_ids_of_the_full_data_set_are_refused(ade: ADE20K):
    with pytest.raises(UserError, match="scene parsing challenge"):
        ade.image_path("ADE_frame_00000001")


@pytest.mark.real
def test_the_real_sample_holds_classes_and_void(real_data: Path):
    dataset = ADE20K(real_data)
    sample = [f"ADE_val_0000000{i}" for i in (1, 2, 3)]
    assert set(sample) <= set(dataset.ids("val"))
    for image_id in sample:
        path = dataset.mask_path(image_id, "val")
        assert path is not None
        values = np.array(Image.open(path))
        mask = dataset.read_mask(image_id, "val")
        assert dataset.read_image(image_id).shape[:2] == mask.shape == values.shape
        assert ((mask == 255) == (values == 0)).all()
        assert (mask[values > 0] == values[values > 0] - 1).all()
        assert len(np.unique(mask)) > 5
