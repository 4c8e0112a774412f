"""The main job on real VOC pictures: train AGMM from real clicks and from scribbles, score, recount."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.cli import cli, invoke
from harness.records import Store

pytestmark = [pytest.mark.real, pytest.mark.slow]

#: The paper's recipe with a small encoder, a small crop and few steps.
SMALL = {
    "backbone": "mini_cnn",
    "weights": "packaged",
    "crop": 128,
    "batch.groups": 2,
    "batch.per_group": 4,
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


@pytest.mark.parametrize("supervision", ["point", "scribble"])
def test_agmm_trains_on_real_pictures_and_its_score_is_an_independent_count(
    supervision, real_data, tmp_path, capsys
):
    root = real_data / "voc"
    labels = CLICKS if supervision == "point" else {"labels.source": "simulated", "labels.format": "''"}
    changes = assignments(
        SMALL
        | labels
        | {"evaluation": '[{split = "val", protocol = "single"}]', "selection": "{every_steps = 20}"}
    )
    command = ["run", f"agmm/voc-{supervision}-r101", *changes, "--seed", 0, "--local", "--device", "cpu"]
    command += ["--data-root", root, "--results", tmp_path, "--save-predictions", "--workers", 1]
    assert wsss(*command) == 0, capsys.readouterr().err
    (record,) = Store(tmp_path).records()
    assert record.data["data"]["splits"]["val"] | {"fingerprint": ""} == {
        "images": 87,
        "official": 1449,
        "fingerprint": "",
    }
    assert record.data["data"]["splits"]["train_aug"]["official"] == 10_582
    history = record.history()
    assert np.isfinite(history.to_numpy()).all()
    assert history.seg.iloc[-1] < history.seg.iloc[0]
    evaluation = record.evaluations["val-single"]
    layout = root / "VOCdevkit" / "VOC2012"
    ids = (layout / "ImageSets" / "Segmentation" / "val.txt").read_text().split()
    confusion = np.zeros((21, 21), np.int64)
    for image_id in ids:
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
    assert "87 of 1449" in (tmp_path / "reports" / "leaderboard.md").read_text()
