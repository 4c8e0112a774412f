"""Every way in which a file of a store or a cache can be damaged, as functions of its path."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Damage = Callable[[Path], None]


def _bytes(content: bytes) -> Damage:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


def _half(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _instead(make: Callable[[Path], Any]) -> Damage:
    def replace(path: Path) -> None:
        path.unlink()
        make(path)

    return replace


def _flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def _huge(path: Path) -> None:
    with path.open("r+b") as stream:
        stream.truncate(3 << 30)  # a hole, no bytes on disk


#: Damage that any file can take.
ANY: dict[str, Damage] = {
    "empty": _bytes(b""),
    "half": _half,
    "one byte": _bytes(b"x"),
    "zeros": _bytes(b"\0" * 500),
    "no text": _bytes(b"\xff\xfe\x00\xd8" * 50),
    "folder": _instead(Path.mkdir),
    "link loop": _instead(lambda path: path.symlink_to(path.name)),
    "dangling link": _instead(lambda path: path.symlink_to("nowhere")),
    "fifo": _instead(os.mkfifo),
    "device": _instead(lambda path: path.symlink_to("/dev/zero")),
    "huge": _huge,
}


def changed(**values: Any) -> Damage:
    """Keys of a JSON object set to other values; dots go down."""

    def write(path: Path) -> None:
        content = json.loads(path.read_text())
        for key, value in values.items():
            inner, *parts = content, *key.split("__")
            for part in parts[:-1]:
                inner = inner[part]
            inner[parts[-1]] = value
        path.write_text(json.dumps(content))

    return write


def _without(key: str) -> Damage:
    def write(path: Path) -> None:
        content = json.loads(path.read_text())
        del content[key]
        path.write_text(json.dumps(content))

    return write


#: Damage that a JSON object of a schema can take.
JSON: dict[str, Damage] = {
    **ANY,
    "list": _bytes(b"[]"),
    "null": _bytes(b"null"),
    "text": _bytes(b'"text"'),
    "number": _bytes(b"7"),
    "deep": _bytes(b"[" * 100_000),
    "deep object": _bytes(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "another object": _bytes(b'{"a": 1}'),
    "newer": changed(schema=999),
    "schema of text": changed(schema="1"),
    "NaN": _bytes(b'{"schema": 1, "seed": NaN}'),
    "no name": _without("name"),
    "no digest": _without("digest"),
    "name of a number": changed(name=7),
    "digest null": changed(digest=None),
}

RECORD: dict[str, Damage] = {
    **JSON,
    "seed of text": changed(seed="0"),
    "seed negative": changed(seed=-1),
    "seed true": changed(seed=True),
    "recipe a list": changed(recipe=[]),
    "status unknown": changed(status="done"),
    "splits a list": changed(data__splits=[1]),
    "images of text": changed(data__splits__train__images="many"),
    "code a text": changed(code="abc"),
    "overrides a list": changed(overrides=["a"]),
    "rate negative": changed(steps_per_second=-4.0),
    "ended a number": changed(ended=7),
    "metadata a list": changed(metadata=[1]),
    "metadata a text": changed(metadata="a"),
    "title a list": changed(title=["a"]),
    "name leads out": changed(name="../x"),
    "digest leads out": changed(digest="../../x"),
    "another name": changed(name="agmm/other"),
    "another seed": changed(seed=11),
    "another digest": changed(digest="abc"),
}

EVALUATION: dict[str, Damage] = {
    **JSON,
    "mIoU too high": changed(miou=96.34),
    "mIoU beyond": changed(miou=500),
    "mIoU negative": changed(miou=-5),
    "mIoU of text": changed(miou="50"),
    "mIoU none": changed(miou=None),
    "mIoU true": changed(miou=True),
    "IoU short": changed(iou=[50.0]),
    "IoU all 90": changed(iou=[90.0] * 4, miou=90.0),
    "classes renamed twice": changed(classes=["a", "b"]),
    "images fewer": changed(images=3),
    "images more than official": changed(official_images=1),
    "coverage beyond": changed(coverage=1.5),
    "accuracy wrong": changed(pixel_accuracy=99.9),
    "absent invented": changed(absent=["disc"]),
    "mean over other classes": changed(protocol__classes="none"),
    "spec a list": changed(spec=[]),
    "split leads out": changed(spec__split="../../x"),
    "fingerprint null": changed(data_fingerprint=None),
    "another evaluation": changed(name="val-other"),
}


@contextmanager
def no_rights(monkeypatch: Any, path: Path) -> Iterator[None]:
    """As if a file may not be read, also for root."""
    known = os.open

    def refuse(file: Any, *args: Any, **kwargs: Any) -> int:
        if Path(os.fsdecode(file)) == path:
            raise PermissionError(13, "Permission denied", str(file))
        return known(file, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        yield


def copy(source: Path, target: Path) -> None:
    """Copy a folder or a file."""
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True)
    else:
        shutil.copyfile(source, target)
