"""Preflight: finds what is wrong before training, remembers what is sound."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.basics.errors import UserError
from harness.data.images import write_index
from harness.data.prepare.verify import preflight, verify_split
from harness.data.sets.voc2012 import VOC2012


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def _mask(dataset: VOC2012, image_id: str) -> Path:
    path = dataset.mask_path(image_id, "train")
    assert path is not None
    return path


def test_sound_data_gets_a_fingerprint_for_each_split(tiny_voc: VOC2012, place: Path) -> None:
    found = preflight(tiny_voc, ["train", "val"], cache=place)
    assert set(found) == {"train", "val"}
    assert found["train"] == found["val"]  # the same pictures and masks
    assert len(found["train"]) == 64
    assert preflight(tiny_voc, ["train"], cache=place / "other", workers=3)["train"] == found["train"]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize(
    ("damage", "problem", "file"),
    [
        (lambda d: _cut(d.image_path("2007_000002")), "picture is corrupt", "JPEGImages/2007_000002.jpg"),
        (lambda d: d.image_path("2007_000002").unlink(), "picture is missing", "JPEGImages/2007_000002.jpg"),
        (
            lambda d: write_index(_mask(d, "2007_000002"), np.full((48, 64), 77, np.uint8)),
            r"holds \[77\]",
            "SegmentationClass/2007_000002.png",
        ),
        (
            lambda d: write_index(_mask(d, "2007_000002"), np.zeros((64, 48), np.uint8)),
            "48x64 pixels, its picture 64x48",
            "SegmentationClass/2007_000002.png",
        ),
        (
            lambda d: Image.new("RGB", (64, 48)).save(_mask(d, "2007_000002")),
            "colour PNG",
            "SegmentationClass/2007_000002.png",
        ),
    ],
)
@pytest.mark.parametrize("workers", [0, 2])
def test_the_offender_is_named(
    tiny_voc: VOC2012, place: Path, damage, problem: str, file: str, workers: int
) -> None:
    damage(tiny_voc)
    with pytest.raises(UserError, match=problem) as caught:
        preflight(tiny_voc, ["train"], cache=place, workers=workers)
    assert caught.value.where == str(tiny_voc.root / file)
    assert caught.value.remedy
    assert "more of" not in caught.value.problem


def test_the_first_offender_stands_for_all(tiny_voc: VOC2012, place: Path) -> None:
    for image_id in ("2007_000004", "2007_000001", "2007_000005"):
        tiny_voc.image_path(image_id).write_bytes(b"")
    with pytest.raises(UserError, match="and 2 more of the 6 images of train") as caught:
        preflight(tiny_voc, ["train"], cache=place, workers=2)
    assert "2007_000001" in str(caught.value.where)


def test_only_new_and_changed_files_are_decoded(
    tiny_voc: VOC2012, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    decode = VOC2012.read_image

    def counted(self: VOC2012, image_id: str) -> np.ndarray:
        read.append(image_id)
        return decode(self, image_id)

    monkeypatch.setattr(VOC2012, "read_image", counted)
    first = preflight(tiny_voc, ["train"], cache=place)["train"]
    assert len(read) == 6
    assert preflight(tiny_voc, ["train"], cache=place)["train"] == first
    assert len(read) == 6
    path = tiny_voc.image_path("2007_000003")
    content = path.read_bytes()
    Image.new("RGB", (64, 48)).save(path)
    changed = preflight(tiny_voc, ["train"], cache=place)["train"]
    assert read[6:] == ["2007_000003"]
    assert changed != first
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    assert preflight(tiny_voc, ["train"], cache=place)["train"] == first  # content, not time, is hashed


def test_offenders_are_looked_at_again_and_sound_ones_are_not(
    tiny_voc: VOC2012, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_voc.image_path("2007_000003")
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(UserError):
        preflight(tiny_voc, ["train"], cache=place)
    path.write_bytes(content)
    read: list[str] = []
    decode = VOC2012.read_image
    monkeypatch.setattr(VOC2012, "read_image", lambda self, i: (read.append(i), decode(self, i))[1])
    preflight(tiny_voc, ["train"], cache=place)
    assert read == ["2007_000003"]


def test_a_broken_memory_is_no_obstacle(tiny_voc: VOC2012, place: Path) -> None:
    first = preflight(tiny_voc, ["train"], cache=place)
    (memory,) = place.rglob("*.json")
    for content in ("", "[1, 2]", '{"2007_000000": [1]}', '{"2007_000000": null}'):
        memory.write_text(content)
        assert preflight(tiny_voc, ["train"], cache=place) == first


def test_masks_may_lack_and_count_where_they_are(tiny_voc: VOC2012, place: Path) -> None:
    pictures = verify_split(tiny_voc, "train", cache=place, with_masks=False)
    whole = verify_split(tiny_voc, "train", cache=place)
    assert pictures.fingerprint == whole.of_pictures != whole.fingerprint
    assert whole.masks == 6
    assert whole.pixels.sum() == 6 * 48 * 64
    _mask(tiny_voc, "2007_000002").unlink()
    some = verify_split(tiny_voc, "train", cache=place)
    assert some.masks == 5
    assert not some.offenders
    assert some.of_pictures == pictures.fingerprint
    assert some.fingerprint != whole.fingerprint
    for image_id in tiny_voc.ids("train"):
        _mask(tiny_voc, image_id).unlink(missing_ok=True)
    none = verify_split(tiny_voc, "train", cache=place)
    assert (none.masks, none.fingerprint) == (0, pictures.fingerprint)
    _mask(tiny_voc, "2007_000002").symlink_to("nowhere.png")
    assert verify_split(tiny_voc, "train", cache=place).offenders


@pytest.mark.real
def test_the_real_sample_is_sound(real_data: Path, place: Path) -> None:
    dataset = VOC2012(real_data / "voc")
    found = preflight(dataset, ["train", "val", "train_aug"], cache=place, workers=2)
    assert len(set(found.values())) == 3
