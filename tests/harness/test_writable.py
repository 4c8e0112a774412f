"""A place that nothing can be written to is refused before work whose result would be lost there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from harness.cost import smoke
from harness.errors import UserError
from harness.files import check_writable
from harness.nn.mini_pretraining import pretrain
from harness.runs import execution
from harness.store.records import Store
from tests.runs import ONE, RECIPE, TINY, wsss


def _unwritable(tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    return {
        "below a file": tmp_path / "file" / "below" / "it",
        "link loop": tmp_path / "loop" / "results",
        "dangling link": tmp_path / "dangling" / "results",
        "device": Path("/dev/full/results"),
        "kernel": Path("/proc/results"),
        "process": Path("/proc/self/results"),
        "system": Path("/sys/kernel/results"),
        "long name": tmp_path / ("x" * 300) / "results",
        "long path": tmp_path / Path(*["x" * 200] * 40),
    }


PLACES = [
    *("below a file", "link loop", "dangling link", "device", "kernel", "process", "system"),
    *("long name", "long path"),
]


@pytest.mark.parametrize("name", PLACES)
def test_a_place_without_a_way_to_write_is_named(tmp_path: Path, name: str) -> None:
    place = _unwritable(tmp_path)[name]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="remedy:") as caught:
        check_writable(place)
    assert str(place)[:200] in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_place_that_is_still_to_be_made_is_left_so(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["run", "smoke", "search"])
def test_no_verb_trains_without_a_place_for_its_results(
    tmp_path: Path,
    small: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: str,
) -> None:
    def trained(*_: object, **__: object) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr(execution, "run_local", trained)
    monkeypatch.setattr(smoke, "try_recipe", trained)
    monkeypatch.setattr("harness.search.searching.search_local", trained)
    one = ["--local", "--device", "cpu"]
    command = {
        "run": ["run", RECIPE, *TINY, *ONE],
        "smoke": ["run", RECIPE, *TINY, *ONE, "--smoke"],
        "search": ["search", RECIPE, *TINY, *one, "--trials", 1],
    }[verb]
    for place in (tmp_path / "file" / "x", Path("/proc/results/x")):
        (tmp_path / "file").write_text("x")
        assert wsss(*command, "--data-root", small, "--results", place) == 2
        said = capsys.readouterr().err
        assert str(place.parent) in said
        assert "Traceback" not in said


def test_finished_trials_need_no_place(
    tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An archive that nobody may write to is read, and refused where something would be added to it."""
    command = [RECIPE, "--set", "schedule.steps=2", "--set", "batch.per_group=2", "--set", "crop=48"]
    where = ["--device", "cpu", "--data-root", small]
    stored = ["--results", tmp_path / "results"]
    assert wsss("run", *command, "--seed", 0, "--local", *where, *stored) == 0
    (record,) = Store(tmp_path / "results").records()

    def read_only(prefix: str, suffix: str, dir: Path) -> str:
        raise PermissionError(13, os.strerror(13), str(dir))

    monkeypatch.setattr("harness.files.tempfile.mkdtemp", read_only)
    assert wsss("run", *command, "--seed", 0, "--local", *where, *stored) == 0
    capsys.readouterr()

    def scored(*_: object, **__: object) -> None:
        raise AssertionError("scored")

    monkeypatch.setattr("harness.scoring.evaluate_into_record", scored)
    monkeypatch.setattr("harness.export.load_noted", scored)
    weights = ["--checkpoint", record.path / "checkpoint" / "last.pt"]
    for verb in (
        ["run", *command, "--seed", 1, "--local", *stored],
        ["evaluate", *command, "--split", "train", *stored],
        ["evaluate", *command, *weights, "--save", tmp_path / "saved"],
        ["export", *command, "--out", tmp_path / "exported", *stored],
    ):
        assert wsss(*verb, *where) == 2
        assert "may not be written to" in capsys.readouterr().err
    monkeypatch.setattr(torch.nn.Module, "parameters", scored)
    with pytest.raises(UserError, match="may not be written to"):
        pretrain("mini_cnn", out=tmp_path, steps=1)
