"""A place that nothing can be written to is refused before work whose result would be lost there."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import click
import pytest
import torch

from harness.basics.errors import UserError
from harness.basics.files import check_writable
from harness.cli.options import OutputPath
from harness.engine.mini_pretraining import pretrain
from harness.records.records import Store
from harness.running.search import objective
from harness.running.smoke import trying
from harness.running.trials import execution
from tests.harness.test_usage import VERBS
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
        "late long name": tmp_path / "new" / ("x" * 300),
        "long path": tmp_path / Path(*["x" * 200] * 40),
    }


PLACES = [
    *("below a file", "link loop", "dangling link", "device", "kernel", "process", "system"),
    *("long name", "late long name", "long path"),
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


#: Verbs that write to an option or argument, with what else they need to be called.
WRITING = {
    "search": ["x"],
    "predict": ["x", "y.png"],
    "evaluate": ["x", "--checkpoint", "y"],
    "export": ["x"],
    "export --model": ["x"],
    "data verify": ["x"],
    "data miniature": ["voc2012"],
    "data pretrain-mini": [],
    "data labels": ["x", "--kind", "point"],
    "data show": ["x"],
    "leaderboard": [],
    "plot": [],
    "claims": [],
    "report": [],
    "curve": ["x"],
    "grid": ["x", "--set", "a=1"],
    "tune": ["x"],
    "pack": ["--made-by", "x"],
    "freeze": ["x"],
}


def _output(command: click.Command) -> list[click.Parameter]:
    return [p for p in command.params if isinstance(p.type, OutputPath)]


def test_the_list_holds_every_verb_that_names_its_output() -> None:
    verbs = {verb.removesuffix(" --model") for verb in WRITING}
    assert verbs == {verb for verb, command in VERBS.items() if _output(command)}
    read = {"checkpoint", "predictions", "pictures", "source", "warm_start", "folders", "metadata"}
    read |= {"folder", "files"}  # a report that is opened, bundles
    for verb, command in VERBS.items():
        paths = [p for p in command.params if isinstance(p.type, click.Path)]
        assert {p.name for p in paths} <= {p.name for p in _output(command)} | read, verb


@pytest.mark.parametrize("verb", WRITING)
def test_no_verb_begins_without_a_place_for_its_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    def began(**_: object) -> None:
        raise AssertionError("began")

    command = VERBS[verb.removesuffix(" --model")]
    (option,) = _output(command)
    monkeypatch.setattr(command, "callback", began)
    places = _unwritable(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for name in ("below a file", "dangling link", "kernel", "link loop", "late long name"):
        spelt = [max(option.opts, key=len)] if isinstance(option, click.Option) else []
        assert wsss(*verb.split(), *WRITING[verb], *spelt, places[name]) == 2, name
        said = capsys.readouterr().err
        assert "began" not in said
        assert "remedy:" in said
    assert sorted(tmp_path.rglob("*")) == before


def test_what_a_mode_does_not_write_is_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``--validate`` writes nothing: the usual folder may be one that nobody can write to."""
    (tmp_path / "reports").write_text("x")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("harness.cli.report._validate", lambda: 0)
    assert wsss("leaderboard", "--validate") == 0
    assert wsss("leaderboard") == 2


def test_a_file_is_tried_under_its_own_name(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "sheet.png", file=True)
    (tmp_path / "there.png").write_text("x")
    check_writable(tmp_path / "there.png", file=True)
    (tmp_path / "folder.png").mkdir()
    for name in ("folder.png", "x" * 250, "there.png/below"):
        with pytest.raises(UserError, match="remedy:"):
            check_writable(tmp_path / name, file=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.png", "there.png"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting is for root")
def test_a_file_system_that_is_mounted_read_only_is_refused(
    tmp_path: Path, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "archive"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro,size=64k", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("nothing can be mounted here")
    try:
        commands = [
            ["leaderboard", "--out", place / "reports"],
            ["data", "show", "mini", "--out", place / "sheet.png"],
            ["data", "miniature", "voc2012", place],
            ["predict", RECIPE, __file__, "--out", place],
            ["run", RECIPE, *TINY, *ONE, "--data-root", small, "--results", place],
        ]
        for command in commands:
            assert wsss(*command) == 2
            assert "may not be written to" in capsys.readouterr().err
    finally:
        subprocess.run(["umount", str(place)], check=True)


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

    for job in (execution.TrialJob, trying.SmokeJob, objective.SearchJob):
        monkeypatch.setattr(job, "work", trained)
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

    monkeypatch.setattr("harness.basics.files.tempfile.mkdtemp", read_only)
    assert wsss("run", *command, "--seed", 0, "--local", *where, *stored) == 0
    capsys.readouterr()

    def scored(*_: object, **__: object) -> None:
        raise AssertionError("scored")

    monkeypatch.setattr("harness.running.inference.scoring.evaluate_into_record", scored)
    monkeypatch.setattr("harness.running.inference.export.load_noted", scored)
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
