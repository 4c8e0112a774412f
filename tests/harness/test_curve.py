"""``wsss curve``: one pass gives what every threshold alone gives."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_methods import build, make_batch

from harness.evaluation.counting import count
from harness.evaluation.thresholds import labels_above, strongest, sweep_counts
from harness.records.records import Store
from tests.runs import wsss

THRESHOLDS = np.unique(np.float32([*np.arange(0, 1, 0.05), 0.35, 1.0]))


def test_a_sweep_counts_what_each_threshold_alone_gives() -> None:
    rng = np.random.default_rng(0)
    value = rng.choice(np.concatenate([THRESHOLDS, rng.random(30).astype(np.float32)]), (40, 30))
    best, mask = rng.integers(1, 5, (40, 30)), rng.integers(0, 5, (40, 30))
    mask[rng.random(mask.shape) < 0.2] = 255
    for background in (0, 4):
        called = np.where(best == background, 0, best)
        sweep = sweep_counts(value, called, mask, THRESHOLDS, background, 5)
        for i, threshold in enumerate(THRESHOLDS):
            alone = count(labels_above(value, called, threshold, background), mask, 5)
            for part, whole in zip(alone, (sweep.intersection, sweep.predicted, sweep.labelled), strict=True):
                np.testing.assert_array_equal(whole[i], part)


@pytest.mark.parametrize(
    "recipe", ["cam/mini-image", "toco/mini-image", "fsr/mini-image", "dskd_gc/mini-image"]
)
def test_labels_of_a_method_are_its_maps_at_that_threshold(recipe: str) -> None:
    """To the pixel, for every method that makes maps, at thresholds that values hit exactly, too."""
    method = build(recipe)
    method.eval()
    batch = make_batch(method, "image")
    with torch.no_grad():
        maps = method.class_maps(batch.images, batch.tags)
        assert maps is not None
        value, best = strongest(maps[0], 0)
        exact = [float(v) for v in np.quantile(value, [0.3, 0.6], method="nearest")]
        for threshold in (0.0, 0.1, 0.35, 0.7, 1.0, *exact):
            method.config = replace(method.config, background_score=threshold)
            label = method.pseudo_labels(batch.images, batch.tags)["cam"][0].numpy()
            np.testing.assert_array_equal(label, labels_above(value, best, threshold, 0))


def test_precision_and_recall_are_means_over_classes() -> None:
    value, best = np.float32([[0.2, 0.6], [0.8, 0.1]]), np.array([[1, 1], [2, 1]])
    mask = np.array([[0, 1], [1, 0]])
    sweep = sweep_counts(value, best, mask, np.float32([0.5]), 0, 3)
    miou, precision, recall, iou = sweep.scores()
    assert precision[0] == pytest.approx((100 + 100 + 0) / 3)  # background, class 1, class 2
    assert recall[0] == pytest.approx((100 + 50) / 2)  # class 2 is not labelled
    assert miou[0] == pytest.approx((100 + 50 + 0) / 3)
    np.testing.assert_allclose(iou[0], [100, 50, 0])


def test_a_curve_of_records(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The record's own evaluation is the point at the recipe's own threshold; the best is an oracle's."""
    store = ["--results", tmp_path / "results", "--data-root", small, "--device", "cpu"]
    tiny = [
        "--set",
        "schedule.steps=4",
        "--set",
        "batch.per_group=4",
        "--set",
        "crop=48",
        "--set",
        "weights=none",
    ]
    assert wsss("run", "cam/mini-image", "--seeds", 2, "--local", *tiny, *store) == 0
    capsys.readouterr()
    assert wsss("evaluate", "cam/mini-image", "--split", "val", "--output", "cam", *tiny, *store) == 0
    capsys.readouterr()
    arguments = ["curve", "cam/mini-image", "--split", "val", *tiny, *store, "--out", tmp_path / "out"]
    assert wsss(*arguments) == 0
    shown = capsys.readouterr().out
    assert "the recipe's own" in shown
    assert "oracle (has seen masks)" in shown
    assert {f.suffix for f in (tmp_path / "out").iterdir()} == {".csv", ".md", ".png", ".svg"}
    assert wsss(*arguments, "--json") == 0
    lines = json.loads(capsys.readouterr().out)
    own = next(line for line in lines if "own" in line["mark"])
    best = next(line for line in lines if "oracle" in line["mark"])
    assert best["miou"] == max(line["miou"] for line in lines)
    scored = [r.evaluations["val-single-cam"].miou for r in Store(tmp_path / "results").records()]
    assert own["miou"] == pytest.approx(np.mean(scored))


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["pce/mini-scribble"], "makes no activation maps"),
        (["cam/mini-image", "--split", "vall"], "did you mean 'val'"),
        (["cam/mini-image"], "no finished record"),
        (["cam/mini-image", "--step", "0"], "--step"),
        (["cam/mini-imag"], "did you mean"),
    ],
)
def test_what_has_no_curve_is_refused(arguments, problem, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert wsss("curve", *arguments) == 2
    assert problem in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
