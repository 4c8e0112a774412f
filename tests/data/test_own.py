"""A user's own data set, described by one TOML file: read, checked, labelled, trained on."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.basics.errors import UserError
from harness.basics.registry import DATASETS
from harness.cli.main import cli, invoke
from harness.data.images import write_index
from harness.data.sets import mini_scenes
from harness.data.sets.own import describe, register
from harness.records.records import Store

TOML = """
title = "Things on a table"
classes = ["nothing", "mug", "table", "fish", "umbrella", "kite", "spider"]
background = "nothing"
first_value = 10
void = [0, 255]
"""


def wsss(*arguments: object) -> int:
    return invoke(cli, [str(a) for a in arguments])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of three formats, ids with blanks and umlauts, Windows line ends, classes from value 10."""
    root = tmp_path / "things"
    (root / "images").mkdir(parents=True)
    lists: dict[str, list[str]] = {"train": [], "val": []}
    for split, count in (("train", 6), ("val", 2)):
        for index in range(count):
            picture, mask = mini_scenes.scene(0, split, index)
            image_id = f"{split} bild ä {index}"
            suffix = ("jpg", "png", "JPEG")[index % 3]
            Image.fromarray(picture).save(root / "images" / f"{image_id}.{suffix}", quality=95)
            write_index(root / "masks" / f"{image_id}.png", np.where(mask == 255, np.uint8(0), mask + 10))
            lists[split].append(image_id)
    for split, ids in lists.items():
        (root / f"{split}.txt").write_bytes("\r\n".join(ids).encode() + b"\r\n")
    (root / "dataset.toml").write_text(TOML)
    return root


def test_pictures_masks_and_lists_are_read_as_described(folder: Path):
    dataset = describe("things", folder)(folder)
    assert DATASETS.get("things") is type(dataset)
    assert dataset.info.title == "Things on a table"
    assert dict(dataset.info.splits) == {"train": 6, "val": 2}
    assert dataset.info.background == 0
    assert dataset.ids("train")[2] == "train bild ä 2"
    for split in ("train", "val"):
        for index, image_id in enumerate(dataset.ids(split)):
            picture, mask = mini_scenes.scene(0, split, index)
            np.testing.assert_array_equal(dataset.read_mask(image_id, split), mask)
            assert dataset.read_image(image_id).shape == picture.shape
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.ids("val") == dataset.ids("val")
    assert copy.info == dataset.info


def test_every_verb_takes_it_by_name(folder: Path, tmp_path: Path, capsys):
    root = f"things={folder}"
    assert wsss("data", "verify", "things", "--data-root", root) == 0
    out = tmp_path / "labels"
    command = [
        "data",
        "labels",
        "things",
        "--kind",
        "scribble",
        "--stroke",
        1,
        "--data-root",
        root,
        "--out",
        out,
    ]
    assert wsss(*command) == 0
    assert len(list(out.glob("train bild*.png"))) == 6
    assert (
        wsss("data", "show", "things", "--number", 2, "--data-root", root, "--out", tmp_path / "s.png") == 0
    )
    command = ["run", "agmm/mini-scribble", "--set", "dataset=things", "--set", "schedule.steps=2"]
    command += ["--set", "batch.per_group=3", "--set", "crop=48", "--set", "labels.source=official"]
    command += [
        "--set",
        "labels.format=png",
        "--set",
        f"labels.folder={out}",
        "--set",
        "labels.unlabelled=255",
    ]
    command += ["--data-root", f"things={folder / 'dataset.toml'}", "--results", tmp_path / "results"]
    assert wsss(*command, "--seed", 0, "--local", "--device", "cpu") == 0, capsys.readouterr().err
    (record,) = Store(tmp_path / "results").records()
    assert record.data["data"]["dataset"] == "things"
    assert record.data["data"]["splits"]["train"]["images"] == 6
    assert len(record.evaluations["val-single"].data["iou"]) == 7


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('background = "nothing"', 'background = "void"', "none of the classes"),
        ("void = [0, 255]", "void = [12]", "also that of a class"),
        ("first_value = 10", "first_value = 252", "0 to 255"),
        ('"mug", "table"', '"mug", "mug"', "different ones"),
        ("void = ", "vodi = ", "did you mean 'void'"),
        ("classes = [", "classes = [[", "not valid TOML"),
        ("first_value = 10", "first_value = 10\npalette = [[0, 0, 0]]", "1 colours for 7 classes"),
        ("void = [0, 255]", "void = [255]", "holds [0]"),
        ("first_value = 10", "first_value = 10\n[splits]\ntest = 'nowhere.txt'\n", "no list of split 'test'"),
    ],
)
def test_mistakes_in_the_description_are_named(folder: Path, capsys, old: str, new: str, problem: str):
    (folder / "dataset.toml").write_text(TOML.replace(old, new) if "splits" not in new else TOML + new[16:])
    assert wsss("data", "verify", "things", "--data-root", f"things={folder}") == 2
    printed = capsys.readouterr()
    assert problem in printed.err + printed.out
    assert str(folder) in printed.err + printed.out


def test_a_folder_without_description_or_lists_says_what_to_write(folder: Path, capsys):
    for path in folder.glob("*.txt"):
        path.unlink()
    assert wsss("data", "verify", "things", "--data-root", f"things={folder}") == 2
    assert "write train.txt and val.txt" in capsys.readouterr().err
    (folder / "dataset.toml").unlink()
    assert wsss("data", "verify", "things", "--data-root", f"things={folder}") == 2
    assert "dataset.toml" in capsys.readouterr().err


def test_names_of_other_data_sets_stay_theirs(folder: Path):
    from harness.data.sets.voc2012 import VOC2012

    register([f"voc2012={folder}", str(folder), "nothing=/nowhere/at/all"])
    assert DATASETS.get("voc2012") is VOC2012
    assert "nothing" not in DATASETS
    with pytest.raises(UserError, match="unknown data set 'nothing'"):
        DATASETS.get("nothing")


def test_what_of_own_pictures_is_not_read_is_said_before_training(folder: Path, tmp_path: Path, capsys):
    for path in sorted((folder / "images").glob("train*"))[:2]:
        exif = Image.Exif()
        exif[274] = 3
        Image.open(path).save(path, exif=exif)
    command = ["run", "agmm/mini-scribble", "--set", "dataset=things", "--set", "schedule.steps=1"]
    command += ["--set", "batch.per_group=3", "--set", "crop=48", "--data-root", f"things={folder}"]
    command += ["--results", tmp_path / "results", "--seed", 0, "--local", "--device", "cpu"]
    assert wsss(*command) == 0, capsys.readouterr().err
    printed = capsys.readouterr()
    said = '2 pictures with an EXIF orientation, which is ignored (exif = "apply" in dataset.toml turns them)'
    assert (printed.out + printed.err).count(said) == 1
