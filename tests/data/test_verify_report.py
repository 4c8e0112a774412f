"""``wsss data verify``: the report of a whole data set."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.basics.registry import DATASETS
from harness.cli.main import cli, invoke
from harness.data.images import save_index
from harness.data.prepare.miniatures import write_miniature
from harness.data.prepare.report import verify_dataset
from harness.data.sets.voc2012 import VOC2012

NAMES = ("voc2012", "coco2014", "cityscapes", "ade20k", "msrc-objects", "camvid")


def wsss(*arguments: object) -> int:
    return invoke(cli, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> dict[str, Path]:
    return {name: write_miniature(name, tmp_path_factory.mktemp(name)) for name in NAMES}


@pytest.fixture
def voc(roots: dict[str, Path], tmp_path: Path) -> VOC2012:
    """A copy that a test may damage."""
    shutil.copytree(roots["voc2012"], tmp_path / "data")
    return VOC2012(tmp_path / "data")


@pytest.mark.parametrize("name", NAMES)
def test_every_miniature_is_sound_and_counted_against_the_official_numbers(name: str, roots, tmp_path: Path):
    dataset = DATASETS.get(name)(roots[name])
    report = verify_dataset(dataset, cache=tmp_path)
    text = "\n".join(report.lines())
    assert report.sound, text
    assert report.fingerprint
    by_name = {s.split: s for s in report.splits}
    assert by_name["train"].images == 8
    assert f"(a subset of {dataset.info.splits['train']:,})" in text
    again = verify_dataset(dataset, cache=tmp_path, workers=2)
    assert again.fingerprint == report.fingerprint
    assert sum(s.looked_at for s in again.splits) == 0, "unchanged files are not read again"


def test_the_report_names_the_first_offenders_and_counts_the_rest(voc: VOC2012, tmp_path: Path, capsys):
    ids = voc.ids("train")
    for image_id in ids[:6]:
        voc.image_path(image_id).write_bytes(b"")
    save_index(voc.mask_path(ids[6], "train"), np.zeros((3, 3), np.uint8), voc.info.palette)  # type: ignore[arg-type]
    out = tmp_path / "report.json"
    assert wsss("data", "verify", "voc2012", "--data-root", voc.root, "--split", "train", "--json", out) == 2
    printed = " ".join(capsys.readouterr().out.split())  # wrapped to the terminal
    assert "7 OFFENDERS" in printed
    assert f"the picture is an empty file: {voc.image_path(ids[0])}" in printed
    assert "and 2 more" in printed
    assert "fingerprint: none" in printed
    content = json.loads(out.read_text())
    assert not content["sound"]
    offenders = content["splits"]["train"]["offenders"]
    assert len(offenders) == 7
    assert all(o["remedy"] and o["where"] for o in offenders)
    assert "3x3 pixels" in offenders[-1]["problem"]


def test_sound_data_exit_with_zero_and_say_what_is_not_here(voc: VOC2012, capsys):
    assert wsss("data", "verify", "voc2012", "--data-root", voc.root) == 0
    printed = capsys.readouterr().out
    assert "test: not here (none of its pictures)" in printed
    assert "train_aug: 8 pictures (a subset of 10,582), all with masks, sound" in printed
    assert wsss("data", "verify", "voc2012", "--data-root", voc.root, "--split", "tain") == 2
    assert "did you mean 'train'" in capsys.readouterr().err


def test_pictures_in_training_and_validation_are_an_overlap(voc: VOC2012, tmp_path: Path):
    train, val = voc.ids("train")[0], voc.ids("val")[0]
    # The same picture and mask under names that no official list knows.
    for name in ("mine_1", "mine_2"):
        shutil.copy(voc.image_path(train), voc.image_path(name))
        shutil.copy(voc.mask_path(train, "train"), voc.mask_path(name, "train"))  # type: ignore[arg-type]
    voc.list_path("train").write_text(f"{train}\nmine_1\n")
    voc.list_path("val").write_text(f"{val}\nmine_1\nmine_2\n")
    report = verify_dataset(VOC2012(voc.root), cache=tmp_path, splits=["train", "val"])
    assert not report.sound
    assert any("1 ids of val are in train, such as mine_1" in o for o in report.overlaps)
    assert any("copies of pictures of train, such as mine_2" in o for o in report.overlaps)
    assert any("copies of others in the split" in n for s in report.splits for n in s.notes)


def test_another_palette_is_a_note_that_is_remembered(voc: VOC2012, tmp_path: Path):
    path = voc.mask_path(voc.ids("val")[1], "val")
    assert path is not None
    with Image.open(path) as image:
        values = np.array(image)
    shutil.copy(path, tmp_path / "kept.png")
    save_index(path, values, [(i, i, i) for i in range(21)])
    for _ in range(2):
        report = verify_dataset(voc, cache=tmp_path, splits=["val"])
        assert report.sound
        assert any("1 masks with another palette" in n for n in report.splits[0].warnings)


@pytest.mark.real
def test_the_real_voc_sample_is_sound(real_data: Path, tmp_path: Path):
    report = verify_dataset(VOC2012(real_data / "voc"), cache=tmp_path, workers=2)
    assert report.sound, "\n".join(report.lines())
    assert {s.split: s.images for s in report.splits}["val"] == 87
    assert not any("palette" in text for s in report.splits for text in s.warnings)
