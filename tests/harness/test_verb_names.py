"""Every name that a verb takes is checked before anything is read at length or written."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.basics.errors import UserError
from harness.engine.outputs import check_labels_from, outputs
from harness.recipes.resolving import resolve
from tests.runs import RECIPE, wsss

CAM = "cam/mini-image"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["evaluate", RECIPE, "--network", "studnet"], "--network"),
        (["evaluate", RECIPE, "--protocol", "singel"], "did you mean 'single'"),
        (["evaluate", RECIPE, "--split", "vall"], "did you mean 'val'"),
        (["evaluate", RECIPE, "--output", "cma"], "--output"),
        (["evaluate", CAM, "--output", "cma"], "did you mean 'cam'"),
        (["evaluate", RECIPE, "--checkpoint", "c", "--table", "agmm-sas"], "--table"),
        (["evaluate", RECIPE, "--device", "gpu"], "--device"),
        (["evaluate", "dskd_gc/mini-image", "--network", "studnet"], "did you mean"),
        (["predict", RECIPE, "a.png", "--network", "studnet"], "--network"),
        (["predict", RECIPE, "a.png", "--protocol", "singel"], "--protocol"),
        (["predict", RECIPE, "a.png", "--checkpoint", "c", "--table", "x"], "--table"),
        (["export", RECIPE, "--out", "o", "--network", "studnet"], "--network"),
        (["export", CAM, "--out", "o", "--output", "cma"], "--output"),
        (["export", CAM, "--out", "o", "--split", "vall"], "--split"),
        (["run", "full/mini-full", "--set", 'evaluation=[{network = "x"}]'], "has no network 'x'"),
        (["run", "full/mini-full", "--set", 'evaluation=[{output = "x"}]', "--dry-run"], "no output 'x'"),
        (["plot", "--format", ","], "--format"),
    ],
)
def test_a_misspelt_name_is_refused_at_once(arguments, named, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert wsss(*arguments) == 2
    error = capsys.readouterr().err
    assert named in error
    assert "remedy" in error
    assert not list(tmp_path.iterdir())


def test_outputs_are_known_without_weights():
    assert outputs(resolve(RECIPE)) == ()
    assert outputs(resolve(CAM)) == ("cam",)


def test_labels_from_names_a_pseudo_label_that_is_made():
    check_labels_from(CAM)
    check_labels_from(f"{CAM}:cam")
    check_labels_from("some/folder")
    with pytest.raises(UserError, match="gives no pseudo label 'cma'"):
        check_labels_from(f"{CAM}:cma")
    with pytest.raises(UserError, match="makes no pseudo labels"):
        check_labels_from(RECIPE)


@pytest.mark.parametrize("named", [True, False])
def test_a_printed_command_finds_the_data_that_this_one_was_given(
    named: bool, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = f"mini={small}" if named else str(small)
    where = ["--results", str(tmp_path / "none"), "--data-root", root]
    for verb in (
        ["evaluate", "pce/mini-point"],
        ["export", "pce/mini-point", "--out", str(tmp_path / "out")],
    ):
        assert wsss(*verb, *where) == 2
        assert f"wsss run pce/mini-point --data-root {root}" in capsys.readouterr().err
    assert wsss("evaluate", "pce/mini-point", *where[:2]) == 2
    assert "--data-root" not in capsys.readouterr().err, "each command has its own"
