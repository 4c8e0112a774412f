"""Pictures as cameras, scanners and tools write them: turned, deep, layered, in folders, of any ending."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from harness.basics.errors import UserError
from harness.cli.main import cli, invoke
from harness.data.images import image_size, picture_notes, read_rgb, write_index
from harness.data.lists import read_list
from harness.data.prepare.verify import verify_split
from harness.data.sets.layout import FileDataset
from harness.data.sets.own import describe

#: Three by two pixels, no two alike.
PIXELS = np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 14


def own(folder: Path, ids: list[str], extra: str = "") -> FileDataset:
    (folder / "train.txt").write_text("\n".join(ids))
    (folder / "dataset.toml").write_text(f'classes = ["nothing", "mug"]\nbackground = "nothing"\n{extra}\n')
    return describe("own", folder)(folder)


def picture(path: Path, turn: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    form = {".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF"}.get(path.suffix.lower(), path.suffix[1:].upper())
    if form == "TIFF":
        Image.fromarray(PIXELS).save(path, form, tiffinfo={274: turn})
    else:
        exif = Image.Exif()
        exif[274] = turn
        options = {"quality": 100, "subsampling": 0} if form == "JPEG" else {"lossless": True}
        Image.fromarray(PIXELS).save(path, form, exif=exif, **(options if form != "PNG" else {}))


def expected(turn: int) -> np.ndarray:
    """What a viewer shows, by Pillow's own rule."""
    image, exif = Image.fromarray(PIXELS), Image.Exif()
    exif[274] = turn
    image.info["exif"] = exif.tobytes()
    image.getexif().load(exif.tobytes())
    return np.array(ImageOps.exif_transpose(image))


# --- orientation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp", ".tif"])
def test_orientation_is_applied_on_request_alone_and_noted(ending: str, turn: int, tmp_path: Path) -> None:
    path = tmp_path / f"a{ending}"
    picture(path, turn)
    np.testing.assert_allclose(read_rgb(path), PIXELS, atol=6 if ending == ".jpg" else 0)
    np.testing.assert_allclose(read_rgb(path, "apply"), expected(turn), atol=6 if ending == ".jpg" else 0)
    assert image_size(path) == (2, 3)
    assert image_size(path, "apply") == expected(turn).shape[:2]
    assert [n for n in picture_notes(path) if "ignored" in n] == (
        [] if turn == 1 else ["an EXIF orientation, which is ignored"]
    )
    assert bool(picture_notes(path, "apply")) == (turn > 1)


@pytest.mark.parametrize("turn", [0, 9, 65535])
def test_an_orientation_that_means_nothing_turns_nothing(turn: int, tmp_path: Path) -> None:
    picture(tmp_path / "a.png", turn)
    np.testing.assert_array_equal(read_rgb(tmp_path / "a.png", "apply"), PIXELS)
    assert picture_notes(tmp_path / "a.png") == ()


def test_a_turned_picture_fits_its_mask_where_the_description_says_so(tmp_path: Path, capsys) -> None:
    for image_id in ("a", "b"):
        picture(tmp_path / "images" / f"{image_id}.jpg", 6)
        write_index(tmp_path / "masks" / f"{image_id}.png", np.zeros((3, 2), np.uint8))  # as viewers show it
    dataset = own(tmp_path, ["a", "b"])
    report = verify_split(dataset, "train", cache=tmp_path / "cache")
    assert "the mask is 2x3 pixels, its picture 3x2" in report.offenders[0].problem
    turned = own(tmp_path, ["a", "b"], 'exif = "apply"')
    report = verify_split(turned, "train", cache=tmp_path / "cache")
    assert not report.offenders
    assert any("2 pictures with an EXIF orientation, which is applied" in note for note in report.notes)
    assert turned.decoding != dataset.decoding
    assert turned.picture_size("a") == turned.read_image("a").shape[:2] == (3, 2)
    with pytest.raises(UserError, match="'ignore' or 'apply'"):
        own(tmp_path, ["a"], 'exif = "aply"')


def test_what_is_ignored_is_said_once_with_its_remedy(tmp_path: Path) -> None:
    for k in range(3):
        picture(tmp_path / "images" / f"{k}.png", 8)
        write_index(tmp_path / "masks" / f"{k}.png", np.zeros((2, 3), np.uint8))
    for _ in range(2):  # and again where files are not read again
        report = verify_split(own(tmp_path, ["0", "1", "2"]), "train", cache=tmp_path / "cache")
        notes = [note for note in report.notes if "EXIF" in note]
        assert len(notes) == 1
        assert notes[0].startswith("3 pictures with an EXIF orientation, which is ignored (exif = ")


# --- depth, bands, pages, transparency ---------------------------------------------------------------


def deep_png(kind: int, channels: int) -> bytes:
    """A PNG of 16 bits a channel (PNG specification, 11.2.2), which Pillow cannot write for colours."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + np.arange(3 * channels, dtype=">u2").tobytes() for _ in range(2))
    head = struct.pack(">IIBBBBB", 3, 2, 16, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def tiff(bits: int, samples: int, extra: tuple[int, ...] = ()) -> bytes:
    """An uncompressed TIFF of three by two pixels (TIFF 6.0, section 2) with any number of bands."""
    data = np.arange(6 * samples, dtype=np.uint16 if bits == 16 else np.uint8).tobytes()
    tags: list[tuple[int, str, list[int]]] = [
        (256, "H", [3]),
        (257, "H", [2]),
        (258, "H", [bits] * samples),
        (259, "H", [1]),
        (262, "H", [2]),
        (273, "I", [0]),
        (277, "H", [samples]),
        (278, "H", [2]),
        (279, "I", [len(data)]),
        *([(338, "H", list(extra))] if extra else []),
    ]
    after = 8 + 2 + 12 * len(tags) + 4
    long = {tag: struct.pack(f"<{len(v)}{t}", *v) for tag, t, v in tags if struct.calcsize(t) * len(v) > 4}
    places, place = {}, after
    for tag, packed in long.items():
        places[tag], place = place, place + len(packed)
    entries = b""
    for tag, t, values in tags:
        if tag == 273:
            values = [place]
        entry = struct.pack("<I", places[tag]) if tag in long else struct.pack(f"<{len(values)}{t}", *values)
        entries += struct.pack("<HHI", tag, {"H": 3, "I": 4}[t], len(values)) + entry.ljust(4, b"\0")
    return (
        struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + b"".join(long.values()) + data
    )


@pytest.mark.parametrize(
    ("ending", "content"),
    [
        (".png", deep_png(0, 1)),
        (".png", deep_png(2, 3)),
        (".png", deep_png(4, 2)),
        (".png", deep_png(6, 4)),
        (".tif", tiff(16, 3)),
        (".tif", tiff(16, 4, (2,))),
    ],
    ids=["grey", "colour", "grey and alpha", "colour and alpha", "TIFF", "TIFF with alpha"],
)
def test_sixteen_bits_are_refused_for_colours_as_for_grey(
    ending: str, content: bytes, tmp_path: Path
) -> None:
    (tmp_path / f"a{ending}").write_bytes(content)
    with pytest.raises(UserError, match=r"no one meaning as 8-bit colours(.|\n)*convert it to an 8-bit"):
        read_rgb(tmp_path / f"a{ending}")


def _alpha(path: Path) -> None:
    Image.fromarray(np.dstack([PIXELS, np.full((2, 3), 9, np.uint8)])).save(path.with_suffix(".png"))


def _opaque(path: Path) -> None:
    Image.fromarray(np.dstack([PIXELS, np.full((2, 3), 255, np.uint8)])).save(path.with_suffix(".png"))


def _palette(path: Path) -> None:
    Image.fromarray(PIXELS).quantize(4).save(path.with_suffix(".png"), transparency=0)


def _pages(path: Path) -> None:
    pages = [Image.fromarray(PIXELS), Image.fromarray(PIXELS[::-1])]
    pages[0].save(path.with_suffix(".tif"), save_all=True, append_images=pages[1:])


def _frames(path: Path) -> None:
    pages = [Image.fromarray(PIXELS), Image.fromarray(PIXELS[::-1])]
    pages[0].save(path.with_suffix(".webp"), save_all=True, append_images=pages[1:], lossless=True)


def _cmyk(path: Path) -> None:
    Image.fromarray(PIXELS).convert("CMYK").save(path.with_suffix(".jpg"))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_alpha, "transparency"),
        (_palette, "transparency"),
        (_pages, "pages"),
        (_frames, "pages"),
        (lambda p: p.with_suffix(".tif").write_bytes(tiff(8, 4, (0,))), "bands"),
        (lambda p: p.with_suffix(".tif").write_bytes(tiff(8, 5, (0, 0))), "bands"),
        (lambda p: p.with_suffix(".tif").write_bytes(tiff(8, 3)), ""),
        (_opaque, ""),
        (_cmyk, ""),
    ],
)
def test_what_is_dropped_of_a_picture_is_said(
    make: Callable[[Path], object], words: str, tmp_path: Path
) -> None:
    make(tmp_path / "a")
    (path,) = tmp_path.iterdir()
    assert read_rgb(path).shape == (2, 3, 3)
    notes = picture_notes(path)
    assert len(notes) == bool(words)
    assert words in "".join(notes)


# --- names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ending", [".Jpg", ".jPEG", ".PNG", ".Png", ".BMP", ".TIF", ".Tiff", ".WEBP", ".WebP"]
)
def test_endings_are_found_in_any_case(ending: str, tmp_path: Path) -> None:
    picture(tmp_path / "images" / f"a.b{ending}")
    write_index(tmp_path / "masks" / "a.b.PNG", np.ones((2, 3), np.uint8))
    dataset = own(tmp_path, ["a.b"])
    assert dataset.read_image("a.b").shape == (2, 3, 3)
    assert dataset.read_mask("a.b", "train").all()


def test_folders_of_pictures_are_part_of_ids(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("WSSS_CACHE", str(tmp_path / "cache"))
    ids = ["cam 1/0001", "cam2/deep/0001", "0001"]
    for image_id in ids:
        picture(tmp_path / "images" / f"{image_id}.jpg")
        write_index(tmp_path / "masks" / f"{image_id}.png", np.ones((2, 3), np.uint8))
    (tmp_path / "images" / "cam2" / "._0001.jpg").write_bytes(b"macOS")
    dataset = own(tmp_path, ids)
    assert list(dataset.ids("train")) == ids
    root = f"own={tmp_path}"
    assert invoke(cli, ["data", "verify", "own", "--split", "train", "--data-root", root]) == 0
    command = [
        "data",
        "labels",
        "own",
        "--kind",
        "point",
        "--data-root",
        root,
        "--out",
        str(tmp_path / "out"),
    ]
    assert invoke(cli, command) == 0, capsys.readouterr().err
    assert sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("0*.png")) == [
        "0001.png",
        "cam 1/0001.png",
        "cam2/deep/0001.png",
    ]


@pytest.mark.parametrize("word", ["../a", "a/../../b", "/etc/a", "a//b", "a/./b", "a\\b", "..", "C:/a", "a/"])
def test_no_id_leads_out_of_its_folder(word: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(word)
    if word == "..":  # no folder: ...png
        assert read_list(tmp_path / "list.txt", folders=True) == ("..",)
        return
    with pytest.raises(UserError, match="is a path"):
        read_list(tmp_path / "list.txt", folders=True)


def test_official_lists_take_no_folders(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a/b")
    with pytest.raises(UserError, match=r"is a path(.|\n)*drop folders"):
        read_list(tmp_path / "list.txt")


@pytest.mark.parametrize("other", ["a.png", "a.JPG", "a.tif"])
def test_two_files_of_one_id_are_refused(other: str, tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.jpg")
    picture(tmp_path / "images" / other)
    dataset = own(tmp_path, ["a"])
    with pytest.raises(UserError) as caught:
        dataset.ids("train")
    assert "two files are the picture of 'a'" in str(caught.value)
    assert "a.jpg" in str(caught.value)
    assert other in str(caught.value)


def test_a_mask_beside_its_picture_is_no_second_picture(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    write_index(tmp_path / "a.png", np.ones((2, 3), np.uint8))
    dataset = own(tmp_path, ["a"], 'images = "."\nmasks = "."')
    assert dataset.ids("train") == ("a",)
    assert dataset.image_path("a").name == "a.jpg"
    assert dataset.read_mask("a", "train").all()


def test_an_id_with_its_ending_is_called_one(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.jpg")
    with pytest.raises(UserError, match=r"'a\.jpg' is the name of a file(.|\n)*without endings: a"):
        own(tmp_path, ["a.jpg"]).ids("train")


def test_another_reading_of_masks_outlives_no_memo(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    write_index(tmp_path / "masks" / "a.png", np.full((2, 3), 7, np.uint8))
    cache = tmp_path / "cache"
    assert not verify_split(own(tmp_path, ["a"], "void = [7]"), "train", cache=cache).offenders
    assert verify_split(own(tmp_path, ["a"], "void = [8]"), "train", cache=cache).offenders
