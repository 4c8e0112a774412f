"""The package of docs/first_hour.md, taken from the page and run from a folder of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from installed import installed
from PIL import Image
from runs import wsss

import wsss as door
from harness.basics.registry import DATASETS
from harness.engine.promises import small_batch
from harness.recipes.resolving import resolve
from harness.records.records import Store
from leaderboards.judge.checking import check_package

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/first_hour.md").read_text(encoding="utf-8")
SHORT = ["--set", "schedule.steps=10", "--set", "crop=32", "--set", "batch.per_group=4", "--local"]


def files() -> dict[str, str]:
    """Every block of the page that names its file in a comment at its head."""
    found = re.findall(r"^```(?:python|toml)\n# (\S+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    return {name: text for name, text in found} | {"steady/__init__.py": ""}  # noqa: C416


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    written = files()
    points = tomllib.loads(written["pyproject.toml"])["project"]["entry-points"]
    entries = {group.removeprefix("wsss."): values for group, values in points.items()}
    with installed(tmp_path / "package", "steady", written, entries) as place:
        monkeypatch.chdir(tmp_path)
        yield place


def block(with_: str) -> str:
    """The block of Python on the page that holds some text and belongs to no file."""
    return next(b for b in re.findall(r"^```python\n((?!# ).*?)^```", PAGE, re.DOTALL | re.M) if with_ in b)


def row_of(rows: pd.DataFrame, recipe: str) -> Any:
    (row,) = rows[(rows["recipe"] == recipe) & (rows["evaluation"] == "val-single")].itertuples()
    return row


def test_the_example_of_the_readme_trains() -> None:
    block = next(
        b
        for b in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
        if "class MyMethod" in b
    )
    names: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), names)
    info = DATASETS.get("mini").info
    method = names["MyMethod"](names["MyMethod"].Config(), door.Build(info, "scribble", (48, 48), "mini_cnn"))
    terms = method(small_batch(method, "scribble"), door.Progress(0, 1, 1))
    assert terms["seg"].requires_grad


def test_the_package_of_the_page_keeps_its_promises(package: Path) -> None:
    found = check_package("steady")
    assert found.breaches == ()
    assert found.counts == {"methods": 2, "recipes": 4, "published cells": 1, "claims": 1, "metrics": 1}


def test_the_teacher_of_the_page_stays_in_evaluation_mode_and_has_phases(package: Path) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(block("class CalmSteady"), "first_hour.md", "exec"), names)
    calm, info = names["CalmSteady"], DATASETS.get("mini").info
    method = calm(calm.Config(sure=0.0), door.Build(info, "scribble", (48, 48), "mini_cnn")).train()
    assert method.network.training
    assert not any(module.training for module in method.teacher.modules())
    batch = small_batch(method, "scribble")
    early, late = (method(batch, door.Progress(int(f * 10), 10, 10)) for f in calm.probe_steps)
    assert early.keys() == late.keys()
    assert early["teacher"].item() == 0 < late["teacher"].item()


def test_it_is_listed_trained_compared_judged_and_exported(
    package: Path, capsys: pytest.CaptureFixture
) -> None:
    assert wsss("list", "methods", "steady") == 0
    assert "Steady" in capsys.readouterr().out
    short = {"schedule.steps": 10, "crop": 32, "batch.per_group": 4}
    for name in ("steady/mini-scribble", "two_sizes/mini-image"):
        assert wsss("run", name, "--seed", "0", *SHORT) == 0
    assert resolve("steady_stages/mini-from-two-sizes").recipe.method == "pce"
    steady, sizes = sorted(Store("results").records(), key=lambda r: r.name)
    assert set(steady.evaluations) == {"val-single", "val-single-teacher"}
    assert "note.taught" in steady.history()
    assert set(sizes.evaluations) == {"val-single", "train-single-cam"}
    rows = door.table("results", metrics=["f1", "boundary-iou", "worst-class"])
    assert (rows["worst-class"] <= rows["mean"]).all()
    assert (rows["boundary-iou"] > 0).all()  # of pseudo labels too
    (row,) = rows[
        (rows["recipe"] == "steady/mini-scribble") & (rows["evaluation"] == "val-single")
    ].itertuples()
    assert row.published == 50.0
    assert row.f1 > row.mean > 0
    (other,) = rows[
        (rows["recipe"] == "two_sizes/mini-image") & (rows["evaluation"] == "val-single")
    ].itertuples()
    assert other.verdict == "no published value"
    picture = next((Path(door.open_dataset("mini").root)).rglob("*.png"), None)
    segmenter = door.Segmenter("steady/mini-scribble", overrides=short, device="cpu")
    labels = segmenter(picture)
    assert labels.ndim == 2
    assert segmenter.coloured(labels).size == labels.shape[::-1]
    Image.open(picture).convert("RGB").save("one.jpg")
    one = 'Segmenter("steady/mini-scribble"'
    exec(block(one).replace(one, f'{one}, overrides={short}, device="cpu"'), {})
    assert Image.open("one.png").size == labels.shape[::-1]
    assert (
        wsss(
            "export", "two_sizes/mini-image", "--output", "cam", "--split", "val", "--out", "cams", *SHORT[:6]
        )
        == 0
    )
    with Image.open(next(Path("cams").rglob("*.png"))) as label:
        assert set(np.unique(np.array(label))) <= {*range(7), 255}
    capsys.readouterr()
    assert wsss("leaderboard", "--metric", "worst-class") == 0
    assert "Worst class (%)" in capsys.readouterr().out
    capsys.readouterr()
    assert wsss("claims", "--suite", "steady", "--json") == 0
    (judged,) = json.loads(capsys.readouterr().out)
    assert judged["verdict"] == "not run"
    assert "pce/mini-scribble" in judged["command"]


def command(package: Path, *arguments: str) -> str:
    """A command line of its own, whose workers find the package as if it were installed."""
    done = subprocess.run(
        [sys.executable, "-m", "wsss", *arguments],
        env={**os.environ, "PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.faults
def test_under_ray_it_is_trained_searched_and_reproduced(
    package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = ["steady/mini-scribble", "pce/mini-scribble"]
    with (package / "steady" / "recipes" / "steady.toml").open("a", encoding="utf-8") as recipes:
        recipes.write("\n[mini-scribble.schedule]\nsteps = 20\n")  # the way is what is tested
    command(package, "run", *pair, "--seeds", "2")
    row = row_of(door.table("results"), pair[0])
    assert row.verdict == "reproduced"
    assert row.low < row.mean < row.high
    capsys.readouterr()
    assert wsss("compare", *pair, "--metric", "worst-class") == 0
    assert wsss("report", "--metric", "worst-class", "--no-plots") == 0
    assert "Worst class (%)" in Path("reports/report.html").read_text(encoding="utf-8")
    said = capsys.readouterr().out
    assert "interval" in said
    assert "Worst class (%)" in said
    assert wsss("claims", "--suite", "steady", "--json") == 0
    (judged,) = json.loads(capsys.readouterr().out)
    assert judged["verdict"] in ("holds", "does not hold", "undecided")
    assert wsss("export", pair[0], "--seed", "1", "--model", "--out", "deployed") == 0
    assert Path("deployed/model.pt2").is_file()
    command(package, "search", pair[0], "--trials", "2", *SHORT[:6])
