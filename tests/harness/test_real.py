"""Real VOC pictures: train from real and simulated labels, score, recount; score a released checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from harness.cli.main import cli, invoke
from harness.records.records import Store

pytestmark = pytest.mark.real

#: The paper's recipe with a small encoder, a small crop and few steps.
SMALL = {
    "backbone": "mini_cnn",
    "weights": "packaged",
    "crop": 96,
    "batch.groups": 2,
    "batch.per_group": 4,
    "batch.sync_bn": "off",
    "schedule.steps": 30,
    "config.aspp_rates": "[1, 2, 3]",
    "config.head_width": 32,
    "config.low_width": 16,
    "config.backbone_lr_scale": 1.0,
}
CLICKS = {
    "labels.source": "official",
    "labels.format": "clicks",
    "labels.folder": "weak/points_whats_the_point.json",
    "labels.background": "weak/points_background_from_scribbles.json",
    "labels.unlabelled": None,
}


def wsss(*arguments: object) -> int:
    return invoke(cli, [str(a) for a in arguments])


def assignments(values: dict) -> list[str]:
    return [
        part for key, value in values.items() if value is not None for part in ("--set", f"{key}={value}")
    ]


def test_agmm_trains_on_real_pictures_and_its_score_is_an_independent_count(real_data, tmp_path, capsys):
    source = real_data / "voc" / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation"
    train, val = ((source / f"{split}.txt").read_text().split() for split in ("train_aug", "val"))
    root = subset(real_data, tmp_path / "data", train, val[:20])
    changes = assignments(SMALL | CLICKS | {"evaluation": '[{split = "val", protocol = "single"}]'})
    command = ["run", "agmm/voc-point-r101", *changes, "--seed", 0, "--local", "--device", "cpu"]
    command += ["--data-root", root, "--results", tmp_path, "--save-predictions"]
    assert wsss(*command) == 0, capsys.readouterr().err
    (record,) = Store(tmp_path).records()
    assert record.data["data"]["splits"]["val"] | {"fingerprint": "", "pictures": ""} == {
        "images": 20,
        "official": 1449,
        "fingerprint": "",
        "pictures": "",
        "masks": 20,
    }
    assert record.data["data"]["splits"]["train_aug"]["official"] == 10_582
    history = record.history()
    assert np.isfinite(history.to_numpy()).all()
    assert history.seg.iloc[1:].min() < history.seg.iloc[0]
    evaluation = record.evaluations["val-single"]
    layout = root / "VOCdevkit" / "VOC2012"
    confusion = np.zeros((21, 21), np.int64)
    for image_id in val[:20]:
        mask = np.array(Image.open(layout / "SegmentationClass" / f"{image_id}.png")).astype(int)
        prediction = np.array(Image.open(evaluation.path / "predictions" / f"{image_id}.png")).astype(int)
        assert prediction.shape == mask.shape
        inside = mask < 255
        np.add.at(confusion, (mask[inside], prediction[inside]), 1)
    union = confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    expected = [100 * int(i) / int(u) if u else None for i, u in zip(np.diag(confusion), union, strict=True)]
    assert evaluation.data["iou"] == expected
    per_image = evaluation.per_image
    np.testing.assert_array_equal(per_image.intersection.sum(0), np.diag(confusion))
    np.testing.assert_array_equal(per_image.predicted.sum(0), confusion.sum(0))
    capsys.readouterr()
    folder = Path(evaluation.path) / "predictions"
    assert wsss("evaluate", "--predictions", folder, "--dataset", "voc2012", "--data-root", root) == 0
    assert f"mIoU {evaluation.miou:.2f}" in capsys.readouterr().out
    assert wsss("leaderboard", "--results", tmp_path, "--out", tmp_path / "reports") == 0
    assert "20 of 1449" in (tmp_path / "reports" / "leaderboard.md").read_text()


# --- scribbles ---------------------------------------------------------------------------------------


def subset(real: Path, place: Path, train: list[str], val: list[str]) -> Path:
    """The real layout with lists of its own; files are linked."""
    source, layout = real / "voc" / "VOCdevkit" / "VOC2012", place / "VOCdevkit" / "VOC2012"
    lists = layout / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for name in ("JPEGImages", "SegmentationClass", "SegmentationClassAug", "weak"):
        (layout / name).symlink_to(source / name)
    for split, ids in {"train": train, "train_aug": train, "val": val}.items():
        (lists / f"{split}.txt").write_text("\n".join(ids) + "\n")
    return place


FAST = {"backbone": "mini_cnn", "weights": "packaged", "crop": 96, "amp": "off", "optimiser.lr": 0.003}
FAST |= {"batch.groups": 1, "batch.per_group": 2, "schedule.steps": 40, "schedule.warmup_steps": 0}
FAST |= {"evaluation": '[{split = "val", protocol = "single"}]'}
METHODS = {
    "blpseg/voc-scribble-r101": {"config.width": 16, "config.self_training_step": 35},
    "dfr/voc-scribble-r101": {
        "config.head_width": 16,
        "config.low_width": 8,
        "config.aspp_rates": "[1, 2, 3]",
        "config.deep_start": 5,
        "config.backbone_lr_scale": 1.0,
        "optimiser.lr": 0.05,
    },
}
LINES = {"labels.source": "official", "labels.folder": "weak/scribbles", "labels.format": "polyline"}
DRAWN = {"labels.source": "simulated", "labels.folder": "''", "labels.format": "''"}


@pytest.mark.parametrize("labels", [LINES, DRAWN], ids=["real", "simulated"])
@pytest.mark.parametrize("recipe", list(METHODS))
def test_scribble_methods_train_from_real_and_from_simulated_strokes(
    recipe, labels, real_data, tmp_path, capsys
):
    layout = real_data / "voc" / "VOCdevkit" / "VOC2012"
    val = (layout / "ImageSets" / "Segmentation" / "val.txt").read_text().split()
    files = sorted((layout / "weak" / "scribbles").glob("*_polyline.txt"))
    drawn = [f.stem.removesuffix("_polyline") for f in files]
    root = subset(real_data, tmp_path / "data", [i for i in drawn if i not in val], val[:2])
    changes = assignments(FAST | METHODS[recipe] | labels)
    command = ["run", recipe, *changes, "--seed", 0, "--local", "--device", "cpu"]
    assert wsss(*command, "--data-root", root, "--results", tmp_path / "results") == 0, capsys.readouterr()
    (record,) = Store(tmp_path / "results").records()
    history = record.history()
    assert np.isfinite(history.to_numpy()).all()
    assert history.seg.iloc[1:].min() < history.seg.iloc[0]
    assert record.evaluations["val-single"].data["images"] == 2


RELEASED = {
    "agmm-sass": ("agmm/voc-point-r101", "agmm/keys_voc_r101.json"),
    "blpseg": ("blpseg/voc-scribble-r101", "blpseg/keys_voc.json"),
    "toco": ("toco/voc-image-vitb", "toco/keys_voc.json"),
    "fsr": ("fsr/voc-image-vitb", "fsr/keys_voc.json"),
}


@pytest.mark.golden
@pytest.mark.parametrize("table", list(RELEASED))
def test_a_checkpoint_with_released_keys_is_scored(table, real_data, full_golden, tmp_path, capsys):
    """Small random weights under the names and shapes that the authors' code saves."""
    recipe, keys = RELEASED[table]
    listed = json.loads((full_golden / "networks" / keys).read_text())
    generator = torch.Generator().manual_seed(0)
    state = {}
    for entry in listed["entries"] if isinstance(listed, dict) else listed:
        name, shape = entry["key"], tuple(entry["shape"])
        if name == "distance_prob":  # 340 MB that nobody reads
            state[name] = torch.zeros(1).expand(shape)
        elif name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(1)
        elif name.endswith("running_var"):
            state[name] = torch.ones(shape)
        else:
            state[name] = torch.randn(shape, generator=generator) * 0.02
    torch.save(state, tmp_path / "released.pth")
    layout = real_data / "voc" / "VOCdevkit" / "VOC2012"
    val = (layout / "ImageSets" / "Segmentation" / "val.txt").read_text().split()[:1]
    root = subset(real_data, tmp_path / "data", ["2007_000032"], val)
    command = ["evaluate", recipe, "--checkpoint", tmp_path / "released.pth", "--table", table]
    command += ["--protocol", "single", "--data-root", root, "--device", "cpu"]
    assert wsss(*command) == 0, capsys.readouterr().err
    assert "mIoU" in capsys.readouterr().out
