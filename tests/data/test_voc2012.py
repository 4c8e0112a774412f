"""The VOC reader: lists, decoding, what it refuses, and the real sample."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.basics.errors import UserError
from harness.data.base import LabelSpec
from harness.data.images import image_size, read_index, read_rgb, write_index
from harness.data.sets.voc2012 import VOC2012, bit_palette, read_list, read_tags, write_tags

# --- where it is, which pictures ---------------------------------------------------------------------


@pytest.mark.parametrize("below", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_root_may_be_any_of_the_nested_folders(tiny_voc: VOC2012, tmp_path: Path, below: str) -> None:
    dataset = VOC2012(tmp_path / below)
    assert dataset.root == tiny_voc.root
    assert dataset.ids("train") == tuple(f"2007_00000{i}" for i in range(6))


def test_wrong_root_says_what_was_tried(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="JPEGImages") as caught:
        VOC2012(tmp_path)
    assert "VOCdevkit/VOC2012" in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("split", "count"),
    [("train", 1464), ("train_aug", 10582), ("val", 1449), ("trainval", 2913), ("test", 1456)],
)
def test_packaged_lists_have_the_official_numbers(tmp_path: Path, split: str, count: int) -> None:
    (tmp_path / "JPEGImages").mkdir()
    dataset = VOC2012(tmp_path)
    assert dataset.coverage(split) == (count, count)


def test_packaged_lists_relate_as_the_field_uses_them(tmp_path: Path) -> None:
    (tmp_path / "JPEGImages").mkdir()
    dataset = VOC2012(tmp_path)
    train, aug, val, test = (set(dataset.ids(s)) for s in ("train", "train_aug", "val", "test"))
    assert train < aug
    assert not aug & val
    assert not test & (aug | val)
    assert list(dataset.ids("trainval")) == sorted(train | val)
    tags = dataset.tags(dataset.ids("train_aug"))
    assert tags.shape == (10582, 21)
    assert tags.dtype == np.uint8
    assert not tags[:, 0].any()
    assert tags.any(1).all()
    with pytest.raises(UserError, match="no official image tags"):
        dataset.tags(dataset.ids("test"))


def test_own_list_wins_and_a_subset_is_counted(tiny_voc: VOC2012) -> None:
    assert tiny_voc.coverage("train") == (6, 1464)
    assert len(tiny_voc.ids("train_aug")) == 10582  # no list of its own


def test_unknown_split_names_the_nearest(tiny_voc: VOC2012) -> None:
    with pytest.raises(UserError) as caught:
        tiny_voc.ids("trainaug")
    assert "train_aug" in str(caught.value.remedy)


def test_lists_tolerate_line_ends_blanks_and_byte_order_marks(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_bytes(b"\xef\xbb\xbf2007_000032 \r\n\r\n2007_000039\t\r\n  2007_000063")
    assert read_list(path) == ("2007_000032", "2007_000039", "2007_000063")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"a.jpg a.png\n", "2 columns"),
        (b"a\nb 1\n", "2 columns"),
        (b"JPEGImages/a.jpg\n", "is a path"),
        (b"a\nb\na\n", "stands on line 1 already"),
        (b"\n \r\n", "holds no ids"),
        (b"\xff\xfe\x00a", "not UTF-8"),
    ],
)
def test_malformed_lists_are_refused_with_the_reason(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "train.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=problem) as caught:
        read_list(path)
    assert str(path) in str(caught.value.where)


def test_tags_survive_a_round_trip_and_foreign_files_are_refused(tmp_path: Path) -> None:
    tags = np.random.default_rng(0).integers(0, 2, (7, 21)).astype(np.uint8)
    ids = [f"bild_ä{i}" for i in range(7)]
    write_tags(tmp_path / "tags.npz", ids, tags)
    read = read_tags(tmp_path / "tags.npz")
    assert list(read) == ids
    np.testing.assert_array_equal(np.stack(list(read.values())), tags)
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(UserError, match="image tags"):
        read_tags(tmp_path / "broken.npz")
    np.savez(tmp_path / "pickled.npz", ids=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UserError, match="image tags"):
        read_tags(tmp_path / "pickled.npz")


def test_palette_follows_the_bit_rule() -> None:
    palette = bit_palette(256)
    assert palette[:4] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
    assert palette[20] == (0, 64, 128)
    assert palette[255] == (224, 224, 192)
    assert len(set(palette)) == 256


def test_the_reader_can_be_sent_to_a_worker(tiny_voc: VOC2012) -> None:
    tiny_voc.tags(tiny_voc.ids("train"))
    copy = pickle.loads(pickle.dumps(tiny_voc))
    np.testing.assert_array_equal(copy.read_image("2007_000001"), tiny_voc.read_image("2007_000001"))


# --- pictures ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_grey_and_cmyk_jpegs_become_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.jpg"
    Image.new("RGB", (20, 10), (90, 90, 90)).convert(mode).save(path, quality=95)
    image = read_rgb(path)
    assert image.shape == (10, 20, 3)
    assert image.dtype == np.uint8
    assert np.abs(image.astype(int) - 90).max() <= 3


def test_exif_orientation_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a right angle
    Image.new("RGB", (20, 10)).save(path, exif=exif)
    assert Image.open(path).getexif()[0x0112] == 6
    assert read_rgb(path).shape == (10, 20, 3)
    assert image_size(path) == (10, 20)


def _cut(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.95])
@pytest.mark.parametrize("kind", ["picture", "mask"])
def test_truncated_files_are_named(tiny_voc: VOC2012, share: float, kind: str) -> None:
    is_mask = kind == "mask"
    path = tiny_voc.mask_path("2007_000002", "train") if is_mask else tiny_voc.image_path("2007_000002")
    assert path is not None
    _cut(path, share)
    with pytest.raises(UserError, match=kind) as caught:
        tiny_voc.read_mask("2007_000002", "train") if is_mask else tiny_voc.read_image("2007_000002")
    assert caught.value.where == str(path)
    assert caught.value.remedy


def test_missing_files_are_named(tiny_voc: VOC2012) -> None:
    with pytest.raises(UserError, match="picture is missing") as caught:
        tiny_voc.read_image("2007_999999")
    assert "2007_999999.jpg" in str(caught.value.where)
    with pytest.raises(UserError, match="mask is missing"):
        tiny_voc.read_mask("2007_999999", "val")


def test_sixteen_bit_pictures_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.full((4, 4), 1000, np.uint16)).save(path)
    with pytest.raises(UserError, match="mode I;16"):
        read_rgb(path)


# --- masks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palette_masks_give_indices_whatever_their_depth(tmp_path: Path, bits: int) -> None:
    labels = np.random.default_rng(bits).integers(0, 2**bits, (9, 13)).astype(np.uint8)
    image = Image.fromarray(labels)
    image.putpalette([v for i in range(2**bits) for v in (255 - i, 7, i)])
    image.save(tmp_path / "a.png", bits=bits)
    np.testing.assert_array_equal(read_index(tmp_path / "a.png"), labels)


def test_index_maps_survive_a_round_trip(tmp_path: Path) -> None:
    labels = np.arange(256, dtype=np.uint8).reshape(8, 32)
    write_index(tmp_path / "a.png", labels)
    np.testing.assert_array_equal(read_index(tmp_path / "a.png"), labels)
    first = (tmp_path / "a.png").read_bytes()
    write_index(tmp_path / "a.png", labels)
    assert (tmp_path / "a.png").read_bytes() == first


def _grey_of_four_bits() -> bytes:
    """A 4-bit grey PNG of 2x1 pixels, values 1 and 2, which Pillow cannot write."""
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 2, 1, 4, 0, 0, 0, 0)
    pixels = zlib.compress(bytes([0, 0x12]))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _saved(image: Image.Image, form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, form)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (lambda: _saved(Image.new("RGB", (4, 4))), "colour PNG"),
        (lambda: _saved(Image.new("RGBA", (4, 4))), "colour PNG"),
        (lambda: _saved(Image.fromarray(np.zeros((4, 4), np.uint16))), "16-bit PNG"),
        (lambda: _saved(Image.new("1", (4, 4))), "black-and-white"),
        (lambda: _saved(Image.new("L", (4, 4)), "JPEG"), "JPEG file"),
        (_grey_of_four_bits, "fewer than 8 bits"),
    ],
)
def test_masks_that_are_no_index_maps_are_refused(
    tiny_voc: VOC2012, content: Callable[[], bytes], problem: str
) -> None:
    path = tiny_voc.mask_path("2007_000000", "train")
    assert path is not None
    path.write_bytes(content())
    with pytest.raises(UserError, match=problem) as caught:
        tiny_voc.read_mask("2007_000000", "train")
    assert caught.value.where == str(path)


def test_illegal_values_are_named(tiny_voc: VOC2012) -> None:
    path = tiny_voc.mask_path("2007_000000", "train")
    assert path is not None
    write_index(path, np.array([[0, 20, 21], [254, 255, 0]], np.uint8))
    with pytest.raises(UserError, match=r"\[21, 254\]"):
        tiny_voc.read_mask("2007_000000", "train")


def test_mask_folder_follows_the_split(tiny_voc: VOC2012) -> None:
    folders = {s: tiny_voc.mask_path("x", s) for s in tiny_voc.info.splits}
    assert folders["train_aug"] == tiny_voc.root / "SegmentationClassAug" / "x.png"
    assert folders["train"] == folders["val"] == tiny_voc.root / "SegmentationClass" / "x.png"
    assert folders["test"] is None
    with pytest.raises(UserError, match="no public masks"):
        tiny_voc.read_mask("x", "test")


# --- the real sample ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_voc(real_data: Path) -> VOC2012:
    return VOC2012(real_data / "voc")


@pytest.mark.real
def test_all_pairs_of_the_real_sample_load(real_voc: VOC2012) -> None:
    splits = {split: real_voc.ids(split) for split in ("train", "val", "train_aug")}
    assert {s: len(ids) for s, ids in splits.items()} == {"train": 85, "val": 87, "train_aug": 117}
    pictures = {i for ids in splits.values() for i in ids}
    assert len(pictures) == 204
    for split, ids in splits.items():
        for image_id in ids:
            mask = real_voc.read_mask(image_id, split)
            assert mask.shape == real_voc.read_image(image_id).shape[:2]


@pytest.mark.real
def test_tags_of_the_real_sample_are_the_classes_of_its_masks(real_voc: VOC2012) -> None:
    ids = [*real_voc.ids("train_aug"), *real_voc.ids("val")]
    masks = [real_voc.read_mask(i, "train_aug") for i in ids]
    present = np.stack([np.bincount(m.ravel(), minlength=256)[:21] > 0 for m in masks])
    equal = (present[:, 1:] == real_voc.tags(ids)[:, 1:].astype(bool)).all(1)
    assert equal.sum() == 203


@pytest.mark.real
def test_real_scribbles_and_clicks_load(real_voc: VOC2012) -> None:
    png = LabelSpec(source="official", format="png", folder="weak/scribbles", unlabelled=255)
    line = LabelSpec(source="official", format="polyline", folder="weak/scribbles")
    for spec, ids in (
        (png, ["2007_000032", "2007_000033"]),
        (line, ["2007_009897", "2008_000003", "2008_000008", "2011_003223"]),
    ):
        for image_id in ids:
            label = real_voc.read_official_label(image_id, "scribble", spec)
            mask = real_voc.read_mask(image_id, "train_aug")
            drawn = (label != 254) & (mask != 255)
            assert label.shape == mask.shape
            assert 0.001 < drawn.mean() < 0.1
            assert (label[drawn] == mask[drawn]).mean() > 0.9  # people draw a little over the edge
            expected = set(np.unique(mask)) - {255}
            assert set(np.unique(label)) - {254} <= expected
