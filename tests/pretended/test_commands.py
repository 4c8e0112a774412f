"""The command line on a GPU that is pretended: whatever computes with a network stays on one device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pretend_device import Pretend
from runs import only, wsss

from harness.records.records import Store

ON_GPU = ("--device", "cuda", "--local")
SHORT = ("schedule.steps=4", "batch.per_group=2", "crop=32")


def settings(*values: str) -> tuple[str, ...]:
    return tuple(part for value in values for part in ("--set", value))


@pytest.fixture
def network(gpu: Pretend, small: Path, tmp_path: Path) -> tuple[object, ...]:
    """A network of image tags that was trained on the device: what names it on a command line."""
    named = ("cam/mini-image", *settings(*SHORT), "--results", tmp_path / "results")
    assert wsss("run", *named, *ON_GPU, "--seeds", 1, "--data-root", small) == 0
    assert not gpu.mixed
    return named


def test_a_network_is_trained_scored_exported_and_asked(
    network: tuple[object, ...], gpu: Pretend, small: Path, tmp_path: Path
) -> None:
    record = only(tmp_path / "results")
    assert record.data["hardware"]["device"] == "cuda"
    where = ("--device", "cuda", "--data-root", small)
    assert wsss("evaluate", *network, *where, "--protocol", "single-crf") == 0
    assert wsss("evaluate", *network, *where, "--output", "cam", "--split", "train") == 0
    assert (
        wsss("export", *network, *where, "--format", "npy", "--split", "val", "--out", tmp_path / "npy") == 0
    )
    assert wsss("export", *network, *where, "--split", "val", "--out", tmp_path / "png") == 0
    picture = tmp_path / "picture.png"
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(picture)
    assert wsss("predict", *network, picture, "--device", "cuda", "--scores", "--out", tmp_path / "out") == 0
    scored = {"train-single-cam", "val-single", "val-single-crf"}
    assert scored == only(tmp_path / "results").evaluations.keys()
    assert not gpu.mixed


def test_a_search_measures_on_the_device(gpu: Pretend, small: Path, tmp_path: Path) -> None:
    command = ("search", "pce/mini-scribble", "--trials", 2, *settings(*SHORT), *ON_GPU, "--data-root", small)
    assert wsss(*command, "--results", tmp_path, "--out", tmp_path / "search") == 0
    assert not gpu.mixed


@pytest.mark.usefixtures("short_sources")
def test_labels_of_one_network_teach_another(gpu: Pretend, small: Path, tmp_path: Path) -> None:
    command = ("run", "agmm/mini-image", *settings("crop=32", "batch.per_group=2"), *ON_GPU, "--seeds", 1)
    assert wsss(*command, "--data-root", small, "--results", tmp_path) == 0
    assert {record.name for record in Store(tmp_path).records()} == {"agmm/mini-image", "cam/mini-image"}
    assert not gpu.mixed
