"""The sixteen likeliest mistakes with data: each is one clear line with a remedy, before training starts.

And what looks odd but is legal: grey and CMYK JPEGs, EXIF orientation, Windows line ends, ids with blanks.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.cli.main import cli, invoke
from harness.data.images import save_index, write_index
from harness.data.prepare.miniatures import write_miniature
from harness.data.sets.voc2012 import VOC2012
from harness.records.records import Store

RUN = ["run", "agmm/mini-scribble", "--set", "dataset=voc2012", "--set", "schedule.steps=1"]
RUN += ["--set", "batch.per_group=2", "--set", "crop=48", "--seed", "0", "--local", "--device", "cpu"]


def wsss(*arguments: object) -> int:
    return invoke(cli, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    return write_miniature("voc2012", tmp_path_factory.mktemp("sound"), train=3, val=1)


@pytest.fixture
def voc(sound: Path, tmp_path: Path) -> VOC2012:
    """A copy that a test may damage; its root is ``tmp_path / "data"``."""
    shutil.copytree(sound, tmp_path / "data")
    return VOC2012(tmp_path / "data")


def mask_of(voc: VOC2012, index: int = 1) -> Path:
    path = voc.mask_path(voc.ids("train")[index], "train")
    assert path is not None
    return path


def picture_of(voc: VOC2012, index: int = 1) -> Path:
    return voc.image_path(voc.ids("train")[index])


def wrong_root(voc: VOC2012) -> None:
    voc.root.rename(voc.root.with_name("VOC2007"))


def zipped(voc: VOC2012) -> None:
    shutil.rmtree(voc.root / "JPEGImages")
    (voc.root / "VOCtrainval_11-May-2012.tar").write_bytes(b"")


def rgb_mask(voc: VOC2012) -> None:
    values = np.random.default_rng(0).integers(
        0, 255, (*voc.read_mask(voc.ids("train")[1], "train").shape, 3)
    )
    Image.fromarray(values.astype(np.uint8)).save(mask_of(voc))


def colour_coded(voc: VOC2012) -> None:
    with Image.open(mask_of(voc)) as image:
        coloured = image.convert("RGB")
    coloured.save(mask_of(voc))


def sixteen_bit(voc: VOC2012) -> None:
    mask = voc.read_mask(voc.ids("train")[1], "train")
    Image.fromarray(mask.astype(np.uint16)).save(mask_of(voc))


def no_list(voc: VOC2012) -> None:
    """Nothing is damaged: the split is asked for by a name that is none."""


def list_of_val(voc: VOC2012) -> None:
    voc.list_path("train").write_text(voc.list_path("val").read_text() + voc.list_path("train").read_text())


def other_ending(voc: VOC2012) -> None:
    picture_of(voc).rename(picture_of(voc).with_suffix(".JPEG"))


def empty(voc: VOC2012) -> None:
    picture_of(voc).write_bytes(b"")


def truncated(voc: VOC2012) -> None:
    data = picture_of(voc).read_bytes()
    picture_of(voc).write_bytes(data[: len(data) // 2])


def other_size(voc: VOC2012) -> None:
    save_index(mask_of(voc), np.zeros((20, 30), np.uint8), voc.info.palette)


def out_of_range(voc: VOC2012) -> None:
    mask = voc.read_mask(voc.ids("train")[1], "train").copy()
    mask[2, 2] = 77
    write_index(mask_of(voc), mask)


def twice(voc: VOC2012) -> None:
    text = voc.list_path("train").read_text()
    voc.list_path("train").write_text(text + text.splitlines()[0] + "\n")


def unreadable(voc: VOC2012) -> None:
    """Permissions do not bind the superuser, whom tests may run as: opening is refused below instead."""


def loop(voc: VOC2012) -> None:
    picture_of(voc).unlink()
    picture_of(voc).symlink_to(picture_of(voc))


MISTAKES: dict[str, tuple[Callable[[VOC2012], None], str, str]] = {
    "wrong root": (wrong_root, "no folder JPEGImages in", "VOCdevkit/VOC2012"),
    "zipped folder": (zipped, "not unpacked: there is VOCtrainval", "unpack it"),
    "RGB mask": (rgb_mask, "the mask is a colour PNG", "class numbers"),
    "colour-coded mask": (colour_coded, "colour PNG (RGB) in the colours of the classes", "class numbers"),
    "16-bit mask": (sixteen_bit, "the mask is a 16-bit PNG", "8-bit"),
    "missing split": (no_list, "has no split 'trian'", "did you mean 'train'"),
    "list of another split": (list_of_val, "belong to 'val'", "write the list of 'train'"),
    "another file ending": (other_ending, "beside its place stands", "rename"),
    "empty file": (empty, "empty file", "copy or unpack"),
    "truncated file": (truncated, "the picture is corrupt", "copy or unpack"),
    "mask of another size": (other_size, "the mask is 30x20 pixels", "same release"),
    "value out of range": (out_of_range, "holds [77]", "official archive"),
    "duplicate id": (twice, "stands on line 1 already", "list it once"),
    "unreadable file": (unreadable, "may not be read", "permissions"),
    "symbolic-link loop": (loop, "leads back to itself", "replace the link"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_one_line_with_its_remedy_before_training(
    mistake: str, voc: VOC2012, tmp_path: Path, capsys, monkeypatch
):
    damage, problem, remedy = MISTAKES[mistake]
    if mistake == "unreadable file":
        opened, refused = os.open, os.fspath(picture_of(voc))

        def open_or_refuse(path, *arguments, **options):
            if os.fspath(path) == refused:
                raise PermissionError(errno.EACCES, "Permission denied", path)
            return opened(path, *arguments, **options)

        monkeypatch.setattr(os, "open", open_or_refuse)
    damage(voc)
    asked = ["--set", "train_split=trian"] if mistake == "missing split" else []
    results = tmp_path / "results"
    root = tmp_path / "data"
    assert wsss(*RUN, *asked, "--data-root", root, "--results", results) == 2
    printed = capsys.readouterr().err
    lines = [line for line in printed.splitlines() if line.strip()]
    first = next(line for line in lines if line.startswith("error: "))
    assert problem in first
    assert remedy in next(line for line in lines if line.strip().startswith("remedy:"))
    assert "Traceback" not in printed
    assert not results.exists(), "nothing was trained"
    if asked == [] and mistake not in ("wrong root", "zipped folder"):
        assert wsss("data", "verify", "voc2012", "--split", "train", "--data-root", root) == 2
        printed_by_verify = capsys.readouterr()
        assert problem in printed_by_verify.out + printed_by_verify.err


def test_a_full_disk_while_labels_are_prepared_is_the_sixteenth(voc: VOC2012, tmp_path, capsys, monkeypatch):
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        command = ["data", "labels", "voc2012", "--kind", "point", "--data-root", tmp_path / "data"]
        assert wsss(*command, "--out", tmp_path / "labels") == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: the disk is full")
    assert "make room" in printed
    assert not list((tmp_path / "labels").glob("*")), "no half file is left"


def test_the_data_root_itself_may_be_the_archive(tmp_path: Path, capsys):
    archive = tmp_path / "VOCdevkit.zip"
    archive.write_bytes(b"PK")
    assert wsss(*RUN, "--data-root", archive, "--results", tmp_path / "results") == 2
    assert "unpack it" in capsys.readouterr().err


# --- odd, but legal ----------------------------------------------------------------------------------


def test_odd_but_legal_files_load_right_and_train(voc: VOC2012, tmp_path: Path, capsys):
    grey, cmyk, turned = voc.ids("train")
    expected = {i: voc.read_image(i) for i in voc.ids("train")}
    with Image.open(voc.image_path(grey)) as image:
        image.convert("L").save(voc.image_path(grey), quality=95)
    with Image.open(voc.image_path(cmyk)) as image:
        image.convert("CMYK").save(voc.image_path(cmyk), quality=95)
    with Image.open(voc.image_path(turned)) as image:
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned by a right angle
        image.save(voc.image_path(turned), quality=95, exif=exif)
    blank = "my picture 1"
    for path, folder in ((voc.image_path(turned), "JPEGImages"), (mask_of(voc, 2), "SegmentationClass")):
        shutil.copy(path, voc.root / folder / f"{blank}{path.suffix}")
    ids = [grey, cmyk, turned, blank]
    voc.list_path("train").write_bytes("\r\n".join(ids).encode() + b"\r\n\r\n")
    again = VOC2012(voc.root)
    assert list(again.ids("train")) == ids
    assert (np.diff(again.read_image(grey).astype(int), axis=2) == 0).all()
    assert np.abs(again.read_image(cmyk).astype(int) - expected[cmyk]).mean() < 12
    for image_id in (turned, blank):
        assert again.read_image(image_id).shape == expected[turned].shape, "pixels as stored"
        assert np.abs(again.read_image(image_id).astype(int) - expected[turned]).mean() < 12
    results = tmp_path / "results"
    code = wsss(*RUN, "--data-root", tmp_path / "data", "--results", results, "--save-predictions")
    assert code == 0, capsys.readouterr().err
    (record,) = Store(results).records()
    assert record.data["data"]["splits"]["train"]["images"] == 4
