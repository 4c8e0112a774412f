"""The Cityscapes reader: official names, fine and coarse masks, numbers to classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.basics.errors import UserError
from harness.basics.registry import DATASETS
from harness.data.base import LabelSpec
from harness.data.images import write_index
from harness.data.sets.cityscapes import CLASSES, Cityscapes

TRAIN, VAL, TEST, EXTRA = (
    "aachen_000000_000019",
    "frankfurt_000000_000294",
    "berlin_000000_000019",
    "bad-honnef_000000_000000",
)
NUMBERS = np.arange(40, dtype=np.uint8).clip(0, 33).reshape(5, 8)


@pytest.fixture
def cityscapes(tmp_path: Path) -> Cityscapes:
    """One picture of every part, with every number that a mask may hold."""
    root = tmp_path / "cityscapes"
    for part, image_id, kinds in (
        ("train", TRAIN, ("gtFine", "gtCoarse")),
        ("val", VAL, ("gtFine",)),
        ("test", TEST, ()),
        ("train_extra", EXTRA, ("gtCoarse",)),
    ):
        city = image_id.split("_")[0]
        (root / "leftImg8bit" / part / city).mkdir(parents=True)
        Image.new("RGB", (8, 5)).save(root / "leftImg8bit" / part / city / f"{image_id}_leftImg8bit.png")
        for kind in kinds:
            numbers = NUMBERS if kind == "gtFine" else np.where(NUMBERS == 7, 7, 0).astype(np.uint8)
            write_index(root / kind / part / city / f"{image_id}_{kind}_labelIds.png", numbers)
    (root / "lists").mkdir()
    (root / "lists" / "train.txt").write_text(TRAIN + "\n")
    (root / "lists" / "val.txt").write_text(VAL + "\n")
    return Cityscapes(tmp_path)


def test_it_is_registered():
    assert DATASETS.get("cityscapes") is Cityscapes


def test_numbers_become_the_nineteen_classes_in_order_of_their_train_ids(cityscapes: Cityscapes):
    mask = cityscapes.read_mask(TRAIN, "train")
    assert mask.dtype == np.uint8
    by_number = dict(zip(NUMBERS.ravel().tolist(), mask.ravel().tolist(), strict=True))
    classes = [n for n, label in by_number.items() if label != 255]
    assert classes == [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    assert [by_number[n] for n in classes] == list(range(19))
    assert [c.name for c in CLASSES][13:16] == ["car", "truck", "bus"]
    assert by_number[26] == 13
    assert Cityscapes.info.background is None


@pytest.mark.parametrize(("split", "count"), [("train", 2975), ("val", 500)])
def test_packaged_lists_have_the_official_numbers(tmp_path: Path, split: str, count: int):
    (tmp_path / "leftImg8bit").mkdir()
    dataset = Cityscapes(tmp_path)
    assert dataset.coverage(split) == (count, count)
    cities = {i.split("_")[0] for i in dataset.ids(split)}
    assert len(cities) == {"train": 18, "val": 3}[split]


def test_every_part_is_found_by_the_city_in_the_id(cityscapes: Cityscapes):
    assert cityscapes.ids("train_extra") == (EXTRA,)
    assert cityscapes.ids("test") == (TEST,)
    assert cityscapes.ids("train_coarse") == cityscapes.ids("train") == (TRAIN,)
    for image_id in (TRAIN, VAL, TEST, EXTRA):
        assert cityscapes.read_image(image_id).shape == (5, 8, 3)
    with pytest.raises(UserError, match="city 'bogota'"):
        cityscapes.image_path("bogota_000000_000000")


def test_coarse_masks_are_splits_of_their_own(cityscapes: Cityscapes):
    assert set(np.unique(cityscapes.read_mask(TRAIN, "train_coarse"))) == {0, 255}
    assert set(np.unique(cityscapes.read_mask(EXTRA, "train_extra"))) == {0, 255}
    with pytest.raises(UserError, match="no public masks"):
        cityscapes.read_mask(TEST, "test")


def test_files_of_train_ids_are_read_where_there_is_no_other(cityscapes: Cityscapes):
    usual = cityscapes.mask_path(VAL, "val")
    assert usual is not None
    usual.unlink()
    other = usual.with_name(f"{VAL}_gtFine_labelTrainIds.png")
    labels = np.where(NUMBERS < 19, NUMBERS, 255).astype(np.uint8)
    write_index(other, labels)
    assert cityscapes.mask_path(VAL, "val") == other
    np.testing.assert_array_equal(cityscapes.read_mask(VAL, "val"), labels)
    write_index(other, NUMBERS)  # numbers 19..33 under the name of train ids
    with pytest.raises(UserError, match="labelTrainIds"):
        cityscapes.read_mask(VAL, "val")


def test_illegal_numbers_and_absent_parts_are_named(cityscapes: Cityscapes, tmp_path: Path):
    path = cityscapes.mask_path(VAL, "val")
    assert path is not None
    write_index(path, np.full((5, 8), 34, np.uint8))
    with pytest.raises(UserError, match=r"holds \[34\]; legal are 0\.\.33"):
        cityscapes.read_mask(VAL, "val")
    (tmp_path / "other" / "leftImg8bit").mkdir(parents=True)
    with pytest.raises(UserError, match="split 'test' of Cityscapes is not there"):
        Cityscapes(tmp_path / "other").ids("test")
    with pytest.raises(UserError, match="no official image tags"):
        cityscapes.tags([TRAIN])


@pytest.mark.parametrize(
    "name", [f"{TRAIN}.png", f"{TRAIN}_gtFine_labelTrainIds.png", f"{TRAIN}_leftImg8bit.png"]
)
def test_clicks_are_found_under_the_names_in_use(cityscapes: Cityscapes, name: str):
    label = np.full((5, 8), 19, np.uint8)
    label[2, 3] = 13
    write_index(cityscapes.root / "50clicks" / name, label)
    spec = LabelSpec(source="official", format="png", folder="50clicks", unlabelled=19)
    read = cityscapes.read_official_label(TRAIN, "point", spec)
    assert read[2, 3] == 13
    assert np.count_nonzero(read == 254) == 39
