"""Files that want to run something or fill the memory: nothing runs or inflates, and the file is named."""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from harness.basics.errors import UserError
from harness.data.images import image_size, read_index, read_rgb
from harness.engine.networks import load_weights
from harness.evaluation.boundary import Boundary
from harness.nn.torch_files import read_torch
from harness.nn.weights import read_state_dict
from harness.records.records import PerImage


class _Made:
    """Pickles to whatever it is told to."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


class _State:
    """Takes a state when it is made again."""


def _pickles(mark: Path) -> dict[str, bytes]:
    """Pickles that make a folder if anything in them is called."""
    name = str(mark).encode()
    text, code = b"V" + name + b"\n", f"__import__('os').mkdir({str(mark)!r})".encode()
    short = b"\x8c" + bytes([len(name)]) + name
    return {
        **{
            f"reduce, protocol {p}": pickle.dumps(_Made(os.mkdir, (str(mark),)), protocol=p) for p in range(6)
        },
        "eval": pickle.dumps(_Made(eval, (code.decode(),))),
        "exec": pickle.dumps(_Made(exec, (code.decode(),))),
        "in a list": pickle.dumps([{"method": _Made(os.mkdir, (str(mark),))}]),
        "as a key": pickle.dumps({_Made(os.mkdir, (str(mark),)): 1}),
        "state": pickle.dumps(_Made(_State, (), {"a": _Made(os.mkdir, (str(mark),))})),
        "items": pickle.dumps(_Made(dict, (), None, None, iter([("a", _Made(os.mkdir, (str(mark),)))]))),
        "global": b"cos\nmkdir\n(" + text + b"tR.",
        "stack global": b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93" + short + b"\x85R.",
        "inst": b"(" + text + b"ios\nmkdir\n.",
        "obj": b"(cos\nmkdir\n" + text + b"o.",
        "new object": b"\x80\x02cpathlib\nPath\n" + text + b"\x85\x81.",
        "new object, keywords": b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93" + short + b"\x85}\x92.",
        "build": b"\x80\x02cos\nmkdir\n}b.",
        "getattr": b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93\x8c\x02os\x8c\x05mkdir\x86R.",
        "dotted name": b"\x80\x04\x8c\x05torch\x8c\x14serialization.os.sep\x93.",
        "torch's own loader": b"ctorch.hub\nload\n(" + text + b"tR.",
        "extension": b"\x80\x02\x82\x01.",
        "deep": b"(l" * 20_000 + b".",
        "memory": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b".",
    }


PICKLES = sorted(_pickles(Path("/x")))


def _raw(content: bytes, place: Path) -> None:
    """As a bare pickle."""
    place.write_bytes(content)


def _zip(content: bytes, place: Path) -> None:
    """As torch writes it now."""
    with zipfile.ZipFile(place, "w") as archive:
        for name, data in {"data.pkl": content, "version": b"3\n", "byteorder": b"little"}.items():
            archive.writestr(f"{place.stem}/{name}", data)


def _old(content: bytes, place: Path) -> None:
    """As torch wrote it before: magic number, version and system, each a pickle, then the object."""
    head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    place.write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in head) + content)


def _in_magic(content: bytes, place: Path) -> None:
    """In the place of the magic number."""
    place.write_bytes(content + pickle.dumps({}, protocol=2))


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # torch: odd pickles; Pillow: odd TIFFs

FORMS: list[Callable[[bytes, Path], None]] = [_raw, _zip, _old, _in_magic]


@pytest.mark.parametrize("name", PICKLES)
def test_nothing_in_a_checkpoint_or_in_weights_runs(tmp_path: Path, name: str) -> None:
    mark, file, network = tmp_path / "ran", tmp_path / "x.pth", torch.nn.Linear(2, 2)
    content = _pickles(mark)[name]
    for form in FORMS:
        form(content, file)
        for read in (
            read_torch,
            read_state_dict,
            lambda path: load_weights(network, path),  # type: ignore[arg-type]
        ):
            with pytest.raises(UserError) as caught:
                read(file)
            assert str(file) in str(caught.value), (form.__name__, name)
            assert len(str(caught.value).splitlines()) <= 8
            assert "weights_only" not in str(caught.value), "torch's advice to run what is in the file"
            assert not mark.exists(), (form.__name__, name)


def _npy(content: bytes) -> bytes:
    head = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }".ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + content


@pytest.mark.parametrize("name", PICKLES)
def test_nothing_in_counts_runs(tmp_path: Path, name: str) -> None:
    mark, file = tmp_path / "ran", tmp_path / "per_image.npz"
    content = _npy(_pickles(mark)[name])
    for names in (("ids", "intersection", "predicted", "labelled"), ("ids",), ("widths", "union")):
        with zipfile.ZipFile(file, "w") as archive:
            for array in names:
                archive.writestr(f"{array}.npy", content)
        for read in (PerImage.load, Boundary.load):
            with pytest.raises(UserError, match=r"per_image\.npz"):
                read(file)
        assert not mark.exists()


# --- pictures --------------------------------------------------------------------------------------------


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, *extra: bytes, rows: bytes = b"\0" * 100, colour: int = 2) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    parts = [_chunk(b"IHDR", head), *extra, _chunk(b"IDAT", zlib.compress(rows)), _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _zeros(size: int) -> bytes:
    """So many zeros, packed."""
    packer = zlib.compressobj(9)
    return b"".join([*(packer.compress(b"\0" * (1 << 20)) for _ in range(size >> 20)), packer.flush()])


def _header(kind: str, patch: Callable[[bytearray], None]) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, kind)
    content = bytearray(stream.getvalue())
    patch(content)
    return bytes(content)


def _put(place: int, form: str, *values: int) -> Callable[[bytearray], None]:
    return lambda content: struct.pack_into(form, content, place, *values)


BOMBS: dict[str, bytes] = {
    "gigapixels": _png(60_000, 60_000),
    "more pixels than memory": _png(2**31 - 1, 2**31 - 1),
    "masks of gigapixels": _png(60_000, 60_000, colour=0),
    "text": _png(8, 8, *(_chunk(b"zTXt", b"a\0\0" + _zeros(64 << 20)) for _ in range(2))),
    "profile": _png(8, 8, _chunk(b"iCCP", b"a\0\0" + _zeros(64 << 20))),
    "BMP": _header("BMP", _put(18, "<ii", 60_000, 60_000)),
    "GIF": _header("GIF", _put(6, "<HH", 65_535, 65_535)),
    "PPM": b"P6 60000 60000 255\n" + b"\0" * 100,
    "TIFF": _header("TIFF", lambda c: c.__setitem__(slice(None), c.replace(b"\x08\0\0\0", b"\x60\xea\0\0"))),
}


@pytest.mark.parametrize("name", BOMBS)
def test_no_picture_inflates_without_bounds(tmp_path: Path, name: str) -> None:
    import resource

    file = tmp_path / "a.png"
    file.write_bytes(BOMBS[name])
    assert file.stat().st_size < 1 << 20
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for read in (read_rgb, read_index, image_size):
        try:
            found, said = read(file), str(file)
        except UserError as error:
            found, said = (), str(error)
        assert str(file) in said
        # What else it inflates to is no part of the picture, and a head may say any size.
        assert read is image_size or np.asarray(found).size <= 8 * 8 * 3
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 300 << 10, f"{grown >> 10} MiB"


@pytest.fixture(autouse=True)
def _no_folder_is_left(tmp_path: Path) -> Iterator[None]:
    """Whatever was tried, nothing was called."""
    yield
    assert not [place for place in tmp_path.rglob("*") if place.is_dir()]


@pytest.mark.parametrize("name", ["picture.png", "picture.jpg"])
def test_a_program_called_a_picture_is_not_run(tmp_path: Path, name: str, monkeypatch) -> None:
    """Pillow hands PostScript to Ghostscript, where that is installed."""
    file = tmp_path / name
    head = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"
    file.write_bytes(head + b"(x) (w) file closefile\nshowpage\n%%EOF\n")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *a, **k: pytest.fail("it was run"))
    for read in (read_rgb, read_index):
        with pytest.raises(UserError, match="no picture that can be decoded"):
            read(file)
