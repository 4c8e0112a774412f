"""Listings of records at the widths of terminals: nothing is longer, no figure is lost, JSON is whole."""

from __future__ import annotations

import json
import re

import click
import pytest
from synthetic import Factory

from harness.basics.listing import cells
from harness.cli.main import cli, invoke

#: Lines that may be longer: a single path, or a command that is to be copied.
_COPIED = re.compile(r"\s*(\S*/\S*|wsss .*|wrote \S+)\s*")


@pytest.fixture(autouse=True)
def unshipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Synthetic records are not those of the recipes that are shipped under their names."""
    monkeypatch.setattr("harness.cli.report._recipes", dict)


def fill(factory: Factory) -> None:
    for name, title, quality in (
        ("agmm/mini-scribble", "AGMM", 0.7),
        ("pce/mini-scribble", "Partial cross-entropy of a rather long title", 0.5),
        ("blpseg/mini-scribble-no-self-training", "弱教師あり領域分割 BLPSeg", 0.6),
    ):
        for seed in range(3):
            factory.record(
                factory.resolved(name, supervision="scribble"), seed, quality=quality, title=title,
                overrides={"optimiser.lr": 0.5} if "blp" in name else None,
            )  # fmt: skip


@pytest.mark.parametrize("width", [80, 60, 40])
@pytest.mark.parametrize(
    "verb",
    ["leaderboard", "claims", "claims --suite mini", "compare agmm/mini-scribble pce/mini-scribble"],
)
def test_no_line_is_longer_than_the_terminal(
    verb: str, width: int, factory: Factory, tmp_path, monkeypatch, capsys
) -> None:
    fill(factory)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.chdir(tmp_path)
    assert invoke(cli, [*verb.split(), "--results", str(factory.store.root)]) == 0
    shown = click.unstyle(capsys.readouterr().out).splitlines()
    assert len(shown) > 5
    assert [line for line in shown if cells(line) > width and not _COPIED.fullmatch(line)] == []


def test_a_narrow_terminal_shows_every_mean_and_marks_the_best(
    factory: Factory, tmp_path, monkeypatch, capsys
) -> None:
    fill(factory)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.chdir(tmp_path)
    where = ["--results", str(factory.store.root)]
    assert invoke(cli, ["leaderboard", *where]) == 0
    shown = click.unstyle(capsys.readouterr().out)
    assert invoke(cli, ["leaderboard", "--json", *where]) == 0
    rows = [row for row in json.loads(capsys.readouterr().out)["rows"] if row["n"]]
    assert len(rows) == 3
    for row in rows:
        assert f"{row['mean']:.2f} ± {row['std']:.2f}" in shown
    best = max(rows, key=lambda row: row["mean"])
    assert f"{best['mean']:.2f} ± {best['std']:.2f} *" in shown


@pytest.mark.parametrize("verb", ["claims", "compare agmm/mini-scribble pce/mini-scribble"])
def test_json_has_what_the_listing_says(verb: str, factory: Factory, tmp_path, monkeypatch, capsys) -> None:
    fill(factory)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    command = [*verb.split(), "--results", str(factory.store.root)]
    assert invoke(cli, command) == 0
    shown = capsys.readouterr().out
    assert invoke(cli, [*command, "--json"]) == 0
    judged = [one for one in json.loads(capsys.readouterr().out) if one["verdict"] != "not run"]
    assert judged
    for one in judged:
        assert one["verdict"] in shown
        assert f"{one['difference']:+.2f}".replace("-", "−") in shown


def test_a_name_of_eighty_characters_costs_no_other_column_its_place(
    factory: Factory, tmp_path, monkeypatch, capsys
) -> None:
    fill(factory)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    shown = []
    for name in ("pce/mini-short", f"pce/mini-{'long-' * 15}"):
        factory.record(factory.resolved(name, supervision="scribble"), title="分割" * 20)
        assert invoke(cli, ["leaderboard", "--results", str(factory.store.root)]) == 0
        shown.append(click.unstyle(capsys.readouterr().out).splitlines())
    heads = [next(line for line in lines if "mIoU" in line).split() for lines in shown]
    assert heads[0] == heads[1]
    assert all(cells(line) <= 120 for line in shown[1] if not _COPIED.fullmatch(line))
