"""``wsss leaderboard`` and ``wsss plot`` as a user types them."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from synthetic import Factory

from harness.cli.main import invoke
from harness.cli.report import claims_verb, leaderboard_verb, plot_verb, report_verb


def test_leaderboard_prints_and_writes(
    factory: Factory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    factory.record(factory.resolved("agmm/unshipped"), title="AGMM")
    out = tmp_path / "reports"
    assert invoke(leaderboard_verb, ["--results", str(factory.store.root), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "AGMM    agmm/unshipped" in printed
    assert f"wrote {out / 'leaderboard.md'}" in printed
    assert (out / "leaderboard.csv").exists()


def test_plot_writes_what_was_asked_for(factory: Factory, tmp_path: Path) -> None:
    factory.record(factory.resolved("agmm/unshipped"))
    out = tmp_path / "reports"
    arguments = ["--results", str(factory.store.root), "--out", str(out), "--kind", "overview"]
    assert invoke(plot_verb, [*arguments, "--format", "png"]) == 0
    assert [f.name for f in (out / "plots").iterdir()] == ["overview-mini-val-single.png"]


SELECTIONS = {
    "suite-mini/leaderboard.md": (leaderboard_verb, "--suite", "mini"),
    "dataset-mini/leaderboard.md": (leaderboard_verb, "--dataset", "mini"),
    "recipe-agmm_mini-scribble-ea6824/leaderboard.md": (leaderboard_verb, "--recipe", "agmm/mini-scribble"),
    "suite-mini/claims.md": (claims_verb, "--suite", "mini"),
    "suite-mini/report.html": (report_verb, "--no-plots", "--suite", "mini"),
    "dataset-mini/plots/overview-mini-val-single.png": (plot_verb, "--kind", "overview", "--dataset", "mini"),
}


@pytest.mark.parametrize("file", SELECTIONS)
def test_part_of_the_rows_does_not_take_the_place_of_all(
    file: str, factory: Factory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    factory.record(factory.resolved("agmm/mini-scribble"))
    factory.record(factory.resolved("agmm/unshipped"))
    monkeypatch.chdir(tmp_path)
    verb, *selection = SELECTIONS[file]
    assert invoke(verb, selection) == 0
    assert [str(f.relative_to("reports")) for f in Path("reports").rglob(Path(file).name)] == [file]
    assert invoke(verb, [*selection, "--out", "reports"]) == 0, "where the user says"
    assert Path("reports", *Path(file).parts[1:]).exists()


@pytest.mark.parametrize("command", [leaderboard_verb, plot_verb])
def test_missing_results_end_with_2_and_a_remedy(
    command: click.Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(command, ["--results", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "there is no results folder" in error
    assert "wsss run" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [leaderboard_verb, plot_verb])
def test_help_has_examples(command: click.Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(command, ["--help"]) == 0
    assert "Examples:" in capsys.readouterr().out


def test_shipped_recipes_cite_cells_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(leaderboard_verb, ["--validate"]) == 0, capsys.readouterr().out
