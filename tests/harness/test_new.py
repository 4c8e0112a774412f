"""``wsss new``: what it writes keeps its promises and trains; a name works, or is refused in one line."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from installed import installed
from runs import wsss

from harness.basics.registry import COMMANDS, DATASETS, METRICS
from leaderboards.judge.checking import check_package


def written(place: Path) -> dict[str, str]:
    return {str(f.relative_to(place)): f.read_text() for f in place.rglob("*") if f.is_file()}


def entries(place: Path) -> dict[str, dict[str, str]]:
    project = tomllib.loads((place / "pyproject.toml").read_text())["project"]
    return {group.removeprefix("wsss."): values for group, values in project["entry-points"].items()}


@pytest.mark.parametrize(
    ("name", "folder", "module"),
    [
        ("my-method", "my-method", "my_method"),
        ("My Method", "my-method", "my_method"),
        ("Grüne_Katze.2", "grune-katze-2", "grune_katze_2"),
        ("-x--y-", "x-y", "x_y"),
    ],
)
def test_a_name_becomes_folder_module_and_title(name: str, folder: str, module: str, tmp_path: Path) -> None:
    assert wsss("new", "--in", str(tmp_path), "--", name) == 0
    files = written(tmp_path / folder)
    assert f"{module}/method.py" in files
    assert tomllib.loads(files["pyproject.toml"])["project"]["name"] == folder
    compile(files[f"{module}/method.py"], "method.py", "exec")


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("方法", "--title '方法'"),
        ("class", "keep this word"),
        ("tests", "keep this word"),
        ("torch", "is taken"),
        ("json", "is taken"),
        ("wsss", "is taken"),
        ("methods", "is taken"),
        ("agmm", "there is a method"),
        ("pce", "there is a method"),
        ("3d-cam", "begin with a digit"),
        ("../there", "Latin letters"),
        ("a/b", "Latin letters"),
        ("", "Latin letters"),
        ("a" * 80, "60 characters"),
        ("there", "no empty folder"),
    ],
)
def test_a_name_that_cannot_be_is_refused_and_nothing_is_written(
    name: str, word: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there/file").touch()
    assert wsss("new", "--in", str(tmp_path), "--", name) == 2
    assert word in capsys.readouterr().err
    assert written(tmp_path) == {"there/file": ""}


def test_a_title_of_any_script_and_with_quotes_stands_in_every_file(tmp_path: Path) -> None:
    title = 'Der "große" \\ 方法'
    assert wsss("new", "mine-own", "--title", title, "--in", str(tmp_path)) == 0
    place = tmp_path / "mine-own"
    for file in place.rglob("*.toml"):
        tomllib.loads(file.read_text())
    with installed(place, "mine-own", {}, entries(place)):
        from harness.basics.registry import METHODS

        assert METHODS.get("mine_own").title == title


def test_what_is_written_keeps_its_promises(tmp_path: Path) -> None:
    assert wsss("new", "mine-own", "--in", str(tmp_path)) == 0
    place = tmp_path / "mine-own"
    with installed(place, "mine-own", {}, entries(place)):
        found = check_package("mine_own")
        assert found.breaches == ()
        assert found.counts == {"methods": 1, "recipes": 2, "published cells": 1, "claims": 1}


@pytest.mark.parametrize("part", ["dataset", "metric", "verb"])
def test_a_part_alone_is_written_and_registered(part: str, tmp_path: Path) -> None:
    assert wsss("new", "mine-own", f"--{part}", "--in", str(tmp_path)) == 0
    place = tmp_path / "mine-own"
    assert not (place / "mine_own/method.py").exists()
    with installed(place, "mine-own", {}, entries(place)):
        assert {"dataset": DATASETS, "metric": METRICS, "verb": COMMANDS}[part].get("mine_own")
        assert check_package("mine-own").breaches == ()
