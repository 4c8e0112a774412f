"""Files of somebody else: no FIFO is waited for, nothing inflates without bounds, errors name the file."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import ANY

from harness.basics.errors import UserError
from harness.data import images, lists
from harness.data.labels import annotations, importers

NAMES = {"background": 0, "disc": 1, "ring": 2}
READERS: dict[str, tuple[bytes, Callable[[Path], Any]]] = {
    "scribbles.xml": (
        b"<annotation><size><height>8</height><width>8</width></size><polygon><tag>disc</tag>"
        b"<point><X>1</X><Y>2</Y></point></polygon></annotation>",
        lambda p: annotations.read_xml(p, size=(8, 8), names=NAMES),
    ),
    "polyline.txt": (b"1,2,3,4,5\n", lambda p: annotations.read_polylines(p, 3)),
    "clicks.json": (
        b'{"a": [{"x": 1, "y": 2, "cls": 1}]}',
        lambda p: annotations.read_clicks([p], "a", 3),
    ),
    "boxes.xml": (
        b"<annotation><object><name>disc</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>4</xmax>"
        b"<ymax>4</ymax></bndbox></object></annotation>",
        lambda p: importers.voc_boxes(p, NAMES),
    ),
    "instances.json": (
        b'{"images": [{"id": 1}], "annotations": [{"bbox": [0, 0, 2, 2], "category_id": 1, "image_id": 1}]}',
        lambda p: importers.coco_boxes.__wrapped__(p, bytes(range(256))),
    ),
    "onehot.npy": (b"", lambda p: importers.read_onehot(p, 3)),
    "train.txt": (b"image-1\nimage-2\n", lists.read_list),
    "train.txt.gz": (gzip.compress(b"image-1\n"), lists.read_list),
    "tags.npz": (b"", lists.read_tags),
    "picture.png": (b"", images.read_rgb),
    "mask.png": (b"", images.read_index),
}


@pytest.fixture
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A sound file of the kind that a test is about."""
    path = tmp_path / request.param
    if request.param == "onehot.npy":
        np.save(path, {"a": np.ones(3, np.uint8)}, allow_pickle=True)
    elif request.param == "tags.npz":
        lists.write_tags(path, ["a"], np.ones((1, 3)))
    elif path.suffix == ".png":
        images.write_index(path, np.ones((9, 9), np.uint8))
    else:
        path.write_bytes(READERS[request.param][0])
    return path


@pytest.mark.parametrize("file", READERS, indirect=True)
def test_every_damage_is_named(file: Path, tmp_path: Path) -> None:
    """A sound file is read; a damaged one is named, and a FIFO does not hang."""
    read = READERS[file.name][1]
    read(file)
    sound = file.read_bytes()
    for name, damage in ANY.items():
        if name == "huge" and file.suffix == ".png":
            continue  # bytes behind the end of a picture mean nothing
        damage(file)
        if name in ("half", "no text", "one byte") and file.name.endswith("txt"):
            pass  # a list of other ids, or no numbers: still text
        elif not (name == "empty" and file.name == "polyline.txt"):  # no stroke
            with pytest.raises(UserError) as caught:
                read(file)
            assert file.name in str(caught.value), name
            assert len(str(caught.value)) < 1000, name
        if file.is_dir() and not file.is_symlink():
            file.rmdir()
        else:
            file.unlink()
        file.write_bytes(sound)


WRONG = {
    "clicks.json": [
        *(b"[]", b"null", b"7", b'{"a": 7}', b'{"a": {"x": 1}}', b'{"a": null}', b"[" * 100_000),
        *(b'{"a": [{"x": 1e300, "y": 2, "cls": 1}]}', b'{"a": [{"x": 1, "y": "inf", "cls": 1}]}'),
        *(b'{"a": [{"x": 1, "y": 2, "cls": "nan"}]}', b'{"a": [{"x": 1, "y": 2, "cls": 1e300}]}'),
        b'{"a": [{"x": 1' + b"0" * 400 + b', "y": 2, "cls": 1}]}',
    ],
    "polyline.txt": [b"1,1e300,2,3,4\n", b"1,nan,2\n", b"1e300,1,1\n"],
    "instances.json": [
        *(b"[]", b"null", b'{"images": 7}', b'{"images": [7], "annotations": []}', b'{"a":' * 100_000),
        *(
            json.dumps({"images": [{"id": 1}], "annotations": [a]}).encode()
            for a in (
                {"bbox": [0, 0, 2, 2], "category_id": 256, "image_id": 1},
                {"bbox": [0, 0, 2, 2], "category_id": 0, "image_id": 1},
                {"bbox": [0, 0, 2, 2], "category_id": -1, "image_id": 1},
                {"bbox": [0, 0, 2, 2], "category_id": "1", "image_id": 1},
                {"bbox": ["a", 0, 2, 2], "category_id": 1, "image_id": 1},
                {"bbox": [0, 0, 1e308, 1e308], "category_id": 1, "image_id": 1},
                {"bbox": 7, "category_id": 1, "image_id": 1},
                [],
            )
        ),
    ],
    "scribbles.xml": [
        READERS["scribbles.xml"][0].replace(b"<X>1<", b"<X>1" + b"0" * 30 + b"<"),
        READERS["scribbles.xml"][0].replace(b"<X>1<", b"<X>1" + b"0" * 5000 + b"<"),
        READERS["scribbles.xml"][0].decode().encode("utf-16"),
    ],
    "boxes.xml": [READERS["boxes.xml"][0].replace(b"<xmax>4", b"<xmax>1e300")],
}
BOMB = b'<!DOCTYPE a [<!ENTITY l0 "ha">%s]>' % b"".join(
    b'<!ENTITY l%d "%s">' % (n, b"&l%d;" % (n - 1) * 10) for n in range(1, 10)
)


@pytest.mark.parametrize("file", WRONG, indirect=True)
def test_other_content_is_named(file: Path) -> None:
    """Values of another type, or beyond every picture, are errors that name the file."""
    for content in WRONG[file.name]:
        file.write_bytes(content)
        with pytest.raises(UserError) as caught:
            READERS[file.name][1](file)
        assert file.name in str(caught.value), content[:60]


@pytest.mark.parametrize("file", ["scribbles.xml", "boxes.xml"], indirect=True)
def test_entities_are_not_expanded(file: Path) -> None:
    """Ten lines that would inflate to gigabytes, and an entity that would read another file."""
    sound = READERS[file.name][0]
    outside = b'<!DOCTYPE a [<!ENTITY l9 SYSTEM "file:///etc/hostname">]>'
    for head in (BOMB, outside):
        file.write_bytes(head + sound.replace(b"disc", b"&l9;"))
        with pytest.raises(UserError, match="not a "):
            READERS[file.name][1](file)


class _Runs:
    """An object whose pickle would make a folder."""

    def __init__(self, call: Callable[..., Any], *given: Any) -> None:
        self.call, self.given = call, given

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.given


def _attacks(mark: str) -> list[bytes]:
    """Pickles that would run code: by a class, by name, by the old opcodes, nested, and by setting state."""
    return [
        *(pickle.dumps(_Runs(os.mkdir, mark), protocol=p) for p in range(6)),
        pickle.dumps(_Runs(eval, f"__import__('os').mkdir({mark!r})")),
        pickle.dumps({"a": [_Runs(os.mkdir, mark)]}),
        b"cos\nmkdir\n(V" + mark.encode() + b"\ntR.",
        b"(V" + mark.encode() + b"\nios\nmkdir\n.",  # INST
        b"(cos\nmkdir\nV" + mark.encode() + b"\no.",  # OBJ
        b"cnumpy\nndarray.__init__.__globals__\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x15ndarray.__reduce_ex__\x93.",
        b"\x80\x02\x82\x01.",  # an extension that nobody registered
        b"(lp0\n" + b"(lp0\n" * 5000,
    ]


def test_no_pickle_runs(tmp_path: Path) -> None:
    """A one-hot file may be a pickle: whatever it asks for that is no part of an array is refused."""
    mark, file = tmp_path / "ran", tmp_path / "onehot.npy"
    np.save(file, {"a": np.ones(3, np.uint8)}, allow_pickle=True)
    head = file.read_bytes()[:128]
    for attack in _attacks(str(mark)):
        file.write_bytes(head + attack)
        with pytest.raises(UserError, match="onehot"):
            importers.read_onehot(file, 3)
        assert not mark.exists(), attack


def test_nothing_inflates_without_bounds(tmp_path: Path) -> None:
    """A list of 80 MiB in 80 KiB, tags that claim a billion classes, a picture of 10^10 pixels."""
    bomb = tmp_path / "train.txt.gz"
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    zeros = bytes(1 << 20)
    bomb.write_bytes(b"".join(packer.compress(zeros) for _ in range(80)) + packer.flush())
    with pytest.raises(UserError, match="inflates"):
        lists.read_list(bomb)
    tags = tmp_path / "tags.npz"
    for classes in (10**12, 0, -1):
        np.savez(tags, ids=np.array([b"a"]), bits=np.ones((1, 1), np.uint8), classes=np.int64(classes))
        with pytest.raises(UserError, match="classes"):
            lists.read_tags(tags)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    picture = tmp_path / "picture.png"
    picture.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    )
    for read in (images.read_rgb, images.read_index, images.image_size):
        with pytest.raises(UserError, match=r"picture\.png"):
            read(picture)
