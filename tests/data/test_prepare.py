"""``wsss data prepare``: COCO's maps and tags, VOC's augmented masks from SBD, interruptions, leaks."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from harness.basics.errors import UserError
from harness.cli.main import cli, invoke
from harness.data.prepare.miniatures import write_miniature
from harness.data.sets.coco2014 import CATEGORIES, COCO2014
from harness.data.sets.voc2012 import VOC2012

NAMES = ("voc2012", "coco2014", "cityscapes", "ade20k", "msrc-objects", "camvid")


def wsss(*arguments: object) -> int:
    return invoke(cli, [str(a) for a in arguments])


@pytest.fixture
def coco(tmp_path: Path) -> COCO2014:
    return COCO2014(write_miniature("coco2014", tmp_path))


def files(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()}


def test_coco_maps_and_tags_are_those_of_the_annotations(coco: COCO2014):
    for split in ("train", "val"):
        file = coco.root / "annotations" / f"instances_{split}2014.json"
        areas = {}
        for a in json.loads(file.read_text())["annotations"]:
            areas[a["image_id"], a["category_id"]] = a["area"]
        names = {number: label for label, number in enumerate([0, *CATEGORIES.values()])}
        for image_id in coco.ids(split):
            mask = coco.read_mask(image_id, split)
            number = int(image_id[-12:])
            expected = {names[c]: area for (i, c), area in areas.items() if i == number}
            counts = np.bincount(mask.ravel(), minlength=81)
            assert {k: counts[k] for k in expected} == expected
            assert counts.sum() - counts[0] == sum(expected.values())
            tags = coco.tags([image_id])[0]
            assert np.flatnonzero(tags).tolist() == sorted(expected)


def test_preparing_again_draws_nothing_and_a_stopped_one_goes_on(coco: COCO2014, capsys):
    maps = coco.root / "SegmentationClass"
    before = files(maps)
    assert wsss("data", "prepare", "coco2014", "--data-root", coco.root) == 0
    assert files(maps) == before
    gone = sorted(maps.rglob("*.png"))[3]
    gone.unlink()
    capsys.readouterr()
    assert wsss("data", "prepare", "coco2014", "--data-root", coco.root) == 0
    assert "1 maps drawn" in capsys.readouterr().out
    after = files(maps)
    assert after[gone][1] == before[gone][1]
    assert {p: v for p, v in after.items() if p != gone} == {p: v for p, v in before.items() if p != gone}


def test_other_annotations_draw_all_maps_again(coco: COCO2014):
    file = coco.root / "annotations" / "instances_val2014.json"
    content = json.loads(file.read_text())
    for annotation in content["annotations"]:
        annotation["category_id"] = 3
    file.write_text(json.dumps(content))
    coco.prepare(None, 0, lambda line: None)
    for image_id in coco.ids("val"):
        assert set(np.unique(coco.read_mask(image_id, "val"))) <= {0, 3}


def test_ready_made_maps_are_left_alone_and_give_tags_without_annotations(coco: COCO2014, capsys):
    maps = coco.root / "SegmentationClass"
    for note in maps.rglob("prepared.json"):
        note.unlink()
    expected = {i: coco.tags([i])[0] for i in coco.ids("train")}
    before = files(maps)
    coco.prepare(None, 0, print)
    assert "ready-made maps, they are left" in capsys.readouterr().out
    (coco.root / "lists" / "tags.npz").unlink()
    for file in (coco.root / "annotations").glob("*"):
        file.unlink()
    coco.prepare(None, 0, print)
    assert files(maps) == before
    dataset = COCO2014(coco.root)
    for image_id, tags in expected.items():
        np.testing.assert_array_equal(dataset.tags([image_id])[0], tags)


@pytest.mark.parametrize(
    ("damage", "problem", "remedy"),
    [
        (lambda file: file.unlink(), "neither annotations nor maps", "--from"),
        (lambda file: file.write_text("{"), "not a file of COCO annotations", "annotations_trainval2014.zip"),
        (lambda file: file.write_text('{"images": []}'), "not a file of COCO annotations", "unpack"),
        (lambda file: file.write_text('{"images": [], "annotations": []}'), "lack 8 pictures", "instances_"),
    ],
)
def test_unusable_annotations_are_named(coco: COCO2014, tmp_path: Path, damage, problem, remedy, capsys):
    shutil.rmtree(coco.root / "SegmentationClass")
    damage(coco.root / "annotations" / "instances_train2014.json")
    assert wsss("data", "prepare", "coco2014", "--data-root", coco.root) == 2
    error = capsys.readouterr().err
    assert problem in error
    assert remedy in error
    assert "instances_train2014.json" in error


def test_a_full_disk_is_one_line_and_leaves_no_half_file(coco: COCO2014, monkeypatch, capsys):
    for path in (coco.root / "SegmentationClass").rglob("*.png"):
        path.unlink()
    kept = os.fsync
    written = []

    def full(handle: int) -> None:
        written.append(handle)
        if len(written) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        kept(handle)

    monkeypatch.setattr(os, "fsync", full)
    assert wsss("data", "prepare", "coco2014", "--data-root", coco.root) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the disk is full")
    assert "remedy" in error
    assert not list(coco.root.rglob("*.part"))
    monkeypatch.undo()
    assert wsss("data", "prepare", "coco2014", "--data-root", coco.root) == 0
    assert len(list((coco.root / "SegmentationClass").rglob("*.png"))) == 12


# --- VOC ---------------------------------------------------------------------------------------------


def sbd(folder: Path, masks: dict[str, np.ndarray]) -> Path:
    """SBD's own files."""
    (folder / "dataset" / "cls").mkdir(parents=True)
    for image_id, mask in masks.items():
        content = {"GTcls": {"Segmentation": mask, "Boundaries": np.zeros((20, 1)), "CategoriesPresent": 1}}
        scipy.io.savemat(folder / "dataset" / "cls" / f"{image_id}.mat", content)
    (folder / "dataset" / "train.txt").write_text("".join(f"{i}\n" for i in masks))
    return folder


@pytest.fixture
def voc(tmp_path: Path) -> VOC2012:
    """A miniature whose train_aug has two pictures that only SBD annotates, and no augmented masks."""
    dataset = VOC2012(write_miniature("voc2012", tmp_path))
    shutil.rmtree(dataset.root / "SegmentationClassAug")
    for image_id in dataset.ids("train")[:2]:
        (dataset.root / "SegmentationClass" / f"{image_id}.png").unlink()
    return VOC2012(tmp_path)


def test_augmented_masks_come_from_voc_where_it_has_them_and_from_sbd_elsewhere(
    voc: VOC2012, tmp_path: Path, capsys
):
    ids = voc.ids("train_aug")
    theirs = {i: np.full(voc.read_image(i).shape[:2], 7, np.uint8) for i in ids[:4]}
    source = sbd(tmp_path / "benchmark_RELEASE", theirs | {voc.ids("val")[0]: np.zeros((3, 3), np.uint8)})
    assert wsss("data", "prepare", "voc2012", "--data-root", tmp_path, "--from", source) == 0
    printed = capsys.readouterr().out
    assert "1 of its 5 pictures are in VOC's val" in printed
    assert "6 masks of VOC and 2 of SBD written" in printed
    for place, image_id in enumerate(ids):
        mask = voc.read_mask(image_id, "train_aug")
        if place < 2:
            assert (mask == 7).all()
        else:
            np.testing.assert_array_equal(mask, voc.read_mask(image_id, "train"))
    before = files(voc.root / "SegmentationClassAug")
    assert wsss("data", "prepare", "voc2012", "--data-root", tmp_path) == 0
    assert files(voc.root / "SegmentationClassAug") == before
    assert "all 8 masks of train_aug" in capsys.readouterr().out


def test_a_training_list_with_pictures_of_val_is_refused(voc: VOC2012, tmp_path: Path, capsys):
    voc.list_path("train_aug").write_text(f"{voc.ids('train')[0]}\n{voc.ids('val')[0]}\n")
    assert wsss("data", "prepare", "voc2012", "--data-root", tmp_path) == 2
    assert "belong to 'val'" in capsys.readouterr().err
    unofficial = "not_an_official_name"  # known to no list that ships
    voc.list_path("train_aug").write_text(unofficial + "\n")
    voc.list_path("val").write_text(unofficial + "\n")
    with pytest.raises(UserError, match="1 pictures of val are in the training list"):
        VOC2012(tmp_path).prepare(None, 0, print)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "a mask of SBD is missing"),
        (b"nothing", "not one of SBD's cls files"),
        (np.full((4, 4), 21, np.uint8), "more than 0..20"),
        (np.full((4, 4), 1.5), "float64"),
    ],
)
def test_unusable_masks_of_sbd_are_named(voc: VOC2012, tmp_path: Path, content, problem: str):
    first, second = voc.ids("train_aug")[:2]
    size = voc.read_image(second).shape[:2]
    source = sbd(tmp_path / "sbd_files", {second: np.zeros(size, np.uint8)})
    path = source / "dataset" / "cls" / f"{first}.mat"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        scipy.io.savemat(path, {"GTcls": {"Segmentation": content}})
    with pytest.raises(UserError, match=problem) as caught:
        voc.prepare(source, 0, print)
    assert f"{first}.mat" in str(caught.value.where)


def test_without_sbd_it_is_said_where_it_is_looked_for(voc: VOC2012, tmp_path: Path, capsys):
    assert wsss("data", "prepare", "voc2012", "--data-root", tmp_path) == 2
    assert "benchmark.tgz" in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_where_to_obtain_what_may_not_be_fetched_is_said(name: str, tmp_path: Path, capsys):
    assert wsss("data", "prepare", name, "--data-root", tmp_path) == 2
    printed = capsys.readouterr()
    assert "Obtain from http" in printed.out
    assert " GB)" in printed.out or " MB)" in printed.out
    assert "error: " in printed.err


@pytest.mark.parametrize("name", ["cityscapes", "ade20k", "msrc", "camvid"])
def test_what_is_used_as_distributed_needs_nothing(name: str, tmp_path: Path, capsys):
    assert wsss("data", "miniature", name, tmp_path / "a") == 0
    assert wsss("data", "prepare", name, "--data-root", tmp_path / "a") == 0
    assert "nothing to prepare" in capsys.readouterr().out
    assert wsss("data", "miniature", name, tmp_path / "a") == 2
    assert "there already" in capsys.readouterr().err
