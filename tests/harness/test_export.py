"""``wsss export``: label maps, activation maps and the archive of VOC's server."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from harness.cli.export import export_verb
from harness.cli.main import invoke
from harness.data.lists import packaged_list
from harness.data.prepare.miniatures import write_miniature
from harness.data.sets.mini import Mini
from harness.engine.networks import build_method
from harness.recipes.resolving import parse_overrides, resolve

CAM = "cam/mini-image"


def wsss_export(*arguments: object) -> int:
    return invoke(export_verb, [str(a) for a in arguments])


def save_network(recipe: str, file: Path, *assignments: str) -> Path:
    """A checkpoint of freshly initialised networks."""
    method = build_method(resolve(recipe, parse_overrides(assignments)), torch.device("cpu"), seed=0)
    torch.save({"method": method.state_dict()}, file)
    return file


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_network(CAM, tmp_path_factory.mktemp("network") / "cam.pt")


def test_pseudo_labels_as_palette_pngs(tmp_path, small, checkpoint):
    arguments = (CAM, "--checkpoint", checkpoint, "--data-root", small, "--out", tmp_path / "labels")
    assert wsss_export(*arguments) == 0
    data = Mini(small)
    files = sorted((tmp_path / "labels").glob("*.png"))
    assert [f.stem for f in files] == sorted(data.ids("train"))
    tags = dict(zip(data.ids("train"), data.tags(data.ids("train")), strict=True))
    for file in files:
        with Image.open(file) as image:
            assert image.mode == "P"
            assert image.getpalette()[:6] == [v for colour in data.info.palette[:2] for v in colour]
            label = np.array(image)
        assert label.shape == data.read_mask(file.stem, "train").shape
        assert set(np.unique(label)) <= {0, *np.flatnonzero(tags[file.stem])}
    facts = json.loads((tmp_path / "labels" / "export.json").read_text())
    assert facts["output"] == "cam"
    assert facts["split"] == "train"
    assert facts["pictures"] == 16


def test_activation_maps_give_the_labels_that_the_method_makes_of_them(tmp_path, small, checkpoint):
    common = (CAM, "--checkpoint", checkpoint, "--data-root", small, "--split", "val")
    assert wsss_export(*common, "--out", tmp_path / "maps", "--format", "npy") == 0
    assert wsss_export(*common, "--out", tmp_path / "labels", "--output", "cam") == 0
    data, config = Mini(small), resolve(CAM).config
    files = sorted((tmp_path / "maps").glob("*.npy"))
    assert [f.stem for f in files] == sorted(data.ids("val"))
    for file in files:
        maps = np.load(file, allow_pickle=True).item()
        present = np.flatnonzero(data.tags([file.stem])[0])
        assert sorted(maps) == [k - 1 for k in present]  # without the background
        scores = np.zeros((data.info.num_classes, *data.read_mask(file.stem, "val").shape), np.float32)
        scores[0] = config.background_score
        for k, value in maps.items():
            assert value.dtype == np.float32
            assert 0 <= value.min() <= value.max() <= 1
            scores[k + 1] = value
        with Image.open(tmp_path / "labels" / f"{file.stem}.png") as image:
            np.testing.assert_array_equal(np.array(image), scores.argmax(0))


def test_segmentations_are_scored_like_the_network_itself(tmp_path, small, checkpoint, capsys):
    from harness.cli.score import evaluate_verb

    arguments = (
        "--checkpoint",
        checkpoint,
        "--data-root",
        small,
        "--split",
        "val",
        "--output",
        "segmentation",
    )
    assert wsss_export(CAM, *arguments, "--out", tmp_path) == 0
    capsys.readouterr()
    assert invoke(evaluate_verb, [CAM, *(str(a) for a in arguments)]) == 0
    direct = capsys.readouterr().out.strip().splitlines()[-1]
    folder = ["--predictions", str(tmp_path), "--dataset", "mini", "--split", "val"]
    assert invoke(evaluate_verb, [*folder, "--data-root", str(small)]) == 0
    assert capsys.readouterr().out.strip().splitlines()[-1] == direct


@pytest.fixture(scope="module")
def voc(tmp_path_factory) -> tuple[Path, list[str], list[str]]:
    """A miniature of VOC with a test split, a recipe for it, and its network."""
    root = write_miniature("voc2012", tmp_path_factory.mktemp("voc"))
    lists = next(root.rglob("ImageSets/Segmentation"))
    pictures = sorted((lists.parents[1] / "JPEGImages").glob("*.jpg"))[:3]
    ids = list(packaged_list("voc2012", "test"))[:3]
    for name, picture in zip(ids, pictures, strict=True):
        shutil.copy(picture, picture.with_stem(name))
    (lists / "test.txt").write_text("\n".join(ids) + "\n")
    options = ["backbone=mini_cnn", "weights=none", "config.output_stride=8"]
    file = save_network("cam/voc-image-r50", root / "cam.pt", *options)
    overrides = [text for option in options for text in ("--set", option)]
    return root, ids, ["cam/voc-image-r50", "--checkpoint", str(file), "--data-root", str(root), *overrides]


def test_the_servers_archive(tmp_path, voc, capsys):
    _, ids, arguments = voc
    assert wsss_export(*arguments, "--format", "server", "--out", tmp_path / "a") == 0
    said = capsys.readouterr().out
    assert "only its evaluation server can score" in said
    labels = {}
    with tarfile.open(tmp_path / "a" / "comp6_test_cls.tar.gz") as archive:
        for member in archive:
            folder, _, name = member.name.rpartition("/")
            assert folder == "results/VOC2012/Segmentation/comp6_test_cls"
            with Image.open(archive.extractfile(member)) as image:
                assert image.mode == "P"
                labels[Path(name).stem] = np.array(image)
    assert list(labels) == ids
    assert (
        wsss_export(*arguments, "--split", "test", "--output", "segmentation", "--out", tmp_path / "b") == 0
    )
    assert "only its evaluation server can score" in capsys.readouterr().out
    for name, label in labels.items():
        with Image.open(tmp_path / "b" / f"{name}.png") as image:
            np.testing.assert_array_equal(np.array(image), label)
        assert label.max() < 21


def test_mistakes_end_with_one_screen_and_leave_nothing(tmp_path, small, checkpoint, voc, capsys):
    common = ("--checkpoint", checkpoint, "--data-root", small)
    cases = {
        "no evaluation server": (CAM, *common, "--format", "server"),
        "no output 'refined'": (CAM, *common, "--output", "refined"),
        "is no activation map": (CAM, *common, "--output", "segmentation", "--format", "npy"),
        "no network 'teacher'": (CAM, *common, "--network", "teacher"),
        "no finished record": (CAM, "--data-root", small, "--results", tmp_path / "none"),
    }
    for text, arguments in cases.items():
        assert wsss_export(*arguments, "--out", tmp_path / "out") == 2
        assert text in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_a_method_without_maps_says_so(tmp_path, small, capsys):
    file = save_network("pce/mini-point", tmp_path / "pce.pt")
    arguments = ("pce/mini-point", "--checkpoint", file, "--data-root", small, "--out", tmp_path / "out")
    assert wsss_export(*arguments, "--format", "npy") == 2
    assert "makes no activation maps" in capsys.readouterr().err
    assert wsss_export(*arguments, "--split", "val") == 0  # without pseudo labels the segmentation
    assert json.loads((tmp_path / "out" / "export.json").read_text())["output"] == "segmentation"
