"""Files of a data set and of annotators, damaged in every way: a UserError that names the file, at once."""

from __future__ import annotations

import gzip
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import ANY
from PIL import Image

from harness.basics.errors import UserError
from harness.data.images import image_size, palette_note, read_index, read_rgb
from harness.data.labels.annotations import read_clicks, read_polylines, read_xml
from harness.data.labels.importers import coco_boxes, read_onehot, voc_boxes
from harness.data.lists import read_list, read_tags, write_tags

SCRIBBLE = (
    "<annotation><size><width>9</width><height>7</height></size>"
    "<polygon><tag>cat</tag><point><X>{x}</X><Y>1</Y></point></polygon></annotation>"
)
BOX = (
    "<annotation><object><name>cat</name><bndbox><xmin>1</xmin><ymin>1</ymin>"
    "<xmax>{x}</xmax><ymax>4</ymax></bndbox></object></annotation>"
)
INSTANCES: dict[str, Any] = {
    "images": [{"id": 1}],
    "annotations": [{"image_id": 1, "category_id": 2, "bbox": [0, 0, 3, 3]}],
}


def _onehot(content: Any) -> bytes:
    """An .npy file of one pickled object."""
    head = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }"
    head += b" " * (-(10 + len(head) + 1) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head + content


def _object(value: Any) -> bytes:
    return pickle.dumps(np.array(value, dtype=object), protocol=2)


#: Writer and reader of every kind of file.
KINDS: dict[str, tuple[Callable[[Path], Any], Callable[[Path], Any]]] = {
    "list": (lambda p: p.write_text("a\nb\n"), read_list),
    "tags": (lambda p: write_tags(p, ["a"], np.ones((1, 3))), read_tags),
    "picture": (lambda p: Image.new("RGB", (9, 7)).save(p, "PNG"), read_rgb),
    "size": (lambda p: Image.new("RGB", (9, 7)).save(p, "PNG"), image_size),
    "mask": (lambda p: Image.new("L", (9, 7)).save(p, "PNG"), read_index),
    "scribbles": (
        lambda p: p.write_text(SCRIBBLE.format(x=2)),
        lambda p: read_xml(p, size=(7, 9), names={"cat": 1}),
    ),
    "polylines": (lambda p: p.write_text("1,2,3,4,5"), lambda p: read_polylines(p, 3)),
    "clicks": (
        lambda p: p.write_text(json.dumps({"a": [{"x": 1, "y": 2, "cls": 1}]})),
        lambda p: read_clicks([p], "a", 3),
    ),
    "boxes": (lambda p: p.write_text(BOX.format(x=3)), lambda p: voc_boxes(p, {"cat": 1})),
    "instances": (
        lambda p: p.write_text(json.dumps(INSTANCES)),
        lambda p: coco_boxes.__wrapped__(p, bytes([0, 1, 2] + [0] * 253)),
    ),
    "one-hot": (
        lambda p: p.write_bytes(_onehot(_object({"a": np.ones(3)}))),
        lambda p: read_onehot(p, 3),
    ),
}


#: Damage that leaves a file of that kind.
SOUND = {
    ("list", "half"),
    ("list", "one byte"),
    ("polylines", "empty"),
    ("polylines", "half"),
    ("size", "half"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_damage_of_any_kind_is_named(kind: str, tmp_path: Path) -> None:
    write, read = KINDS[kind]
    for number, (damage, make) in enumerate(ANY.items()):
        if (kind, damage) in SOUND:
            continue
        file = tmp_path / f"file{number}"
        write(file)
        read(file)
        make(file)
        with pytest.raises(UserError) as caught:
            read(file)
        assert str(file) in str(caught.value), damage
        assert len(str(caught.value).splitlines()) <= 8, damage
    assert palette_note(tmp_path / "file8", [(0, 0, 0)]) == ""


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _instances(**values: Any) -> bytes:
    return _json(INSTANCES | {"annotations": [INSTANCES["annotations"][0] | values]})


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("list", b"\0\0\0"),
        ("scribbles", SCRIBBLE.format(x="9" * 400).encode()),
        ("scribbles", SCRIBBLE.format(x=-(10**9)).encode()),
        ("polylines", b"1,1e308,2"),
        ("polylines", b"1,2e9,2"),
        ("polylines", b"1,1e400,2"),
        ("clicks", b"[" * 100_000),
        ("clicks", b'{"a": 7}'),
        ("clicks", b'{"a": null}'),
        ("clicks", b'{"a": {"x": 1}}'),
        ("clicks", b'{"a": [7]}'),
        ("clicks", _json({"a": [{"x": 1e300, "y": 1, "cls": 1}]})),
        ("clicks", b'{"a": [{"x": 1, "y": 1, "cls": NaN}]}'),
        ("clicks", b'{"a": [{"x": 1, "y": 1, "cls": Infinity}]}'),
        ("clicks", b'{"a": [{"x": 1%s, "y": 1, "cls": 1}]}' % (b"0" * 400)),
        ("boxes", BOX.format(x="1e300").encode()),
        ("boxes", BOX.format(x="inf").encode()),
        ("instances", b"[" * 100_000),
        ("instances", b"[]"),
        ("instances", _json({"images": [{"id": 1}], "annotations": ["a"]})),
        ("instances", _json({"images": [{"id": 1}], "annotations": [None]})),
        ("instances", _instances(category_id=999)),
        ("instances", _instances(category_id=-1)),
        ("instances", _instances(category_id="2")),
        ("instances", _instances(bbox=[0, 0, float("nan"), 1])),
        ("instances", _instances(bbox=[0, 0, float("inf"), 1])),
        ("instances", _instances(bbox=["a", "b", "c", "d"])),
        ("instances", _instances(bbox=[1e300, 0, 1, 1])),
        ("one-hot", _onehot(b"")),
        ("one-hot", _onehot(b"R.")),
        ("one-hot", _onehot(b"(dp0\n0h\x05.")),
        ("one-hot", _onehot(b"\x80\x02cnumpy\nndarray\nU\x01x\x85R.")),
        ("one-hot", _onehot(_object({"a": "text"}))),
        ("one-hot", _onehot(_object({"a": [None, None]}))),
        ("one-hot", _onehot(_object([1, 2]))),
        ("one-hot", _onehot(_object({"a": [[1], [1, 2]]}))),
    ],
)
def test_values_that_cannot_be_are_refused(kind: str, content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        KINDS[kind][1](file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    "arrays",
    [
        {"ids": np.array([b"a"]), "bits": np.zeros((1, 1), np.uint8)},
        {"ids": np.array([b"a"]), "bits": np.zeros((1, 1)), "classes": np.int64(3)},
        {"ids": np.array([1]), "bits": np.zeros((1, 1), np.uint8), "classes": np.int64(3)},
        {"ids": np.array([b"a"]), "bits": np.zeros((2, 1), np.uint8), "classes": np.int64(3)},
        {"ids": np.array([b"a"]), "bits": np.zeros((1, 1), np.uint8), "classes": np.int64(10**12)},
        {"ids": np.array([b"a"]), "bits": np.zeros((1, 1), np.uint8), "classes": np.zeros(3, np.int64)},
        {"ids": np.array([b"a"]), "bits": np.zeros(1, np.uint8), "classes": np.int64(3)},
        {"ids": np.array([b"\xff"]), "bits": np.zeros((1, 1), np.uint8), "classes": np.int64(3)},
    ],
)
def test_tags_of_other_arrays_are_refused(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    np.savez(tmp_path / "tags.npz", **arrays)
    with pytest.raises(UserError, match=r"tags\.npz"):
        read_tags(tmp_path / "tags.npz")


def test_a_list_does_not_inflate(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "train.txt.gz", "wb") as stream:
        for _ in range(80):
            stream.write(bytes(1 << 20))
    with pytest.raises(UserError, match="inflates"):
        read_list(tmp_path / "train.txt.gz")
