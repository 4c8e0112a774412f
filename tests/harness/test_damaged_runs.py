"""Runs on a store that was damaged meanwhile: what can be made again is, and nothing else is believed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from damage import ANY, changed
from runs import ONE, RECIPE, TINY, assert_same_numbers, only, wsss

from harness.evaluation.boundary import Boundary
from harness.records.records import Record


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, small: Path) -> Record:
    """The record of an undisturbed run."""
    results = tmp_path_factory.mktemp("first")
    assert wsss("run", RECIPE, *TINY, *ONE, "--data-root", small, "--results", results) == 0
    return only(results)


@pytest.fixture
def copy(first: Record, tmp_path: Path) -> Record:
    """The same record in a store of its own."""
    shutil.copytree(first.path.parents[3], tmp_path / "results")
    return only(tmp_path / "results")


def again(record: Record, small: Path) -> int:
    return wsss(
        "run", RECIPE, *TINY, *ONE, "--data-root", small, "--results", record.path.parents[3]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("record.json", "half"),
        ("record.json", "folder"),
        ("evaluation.json", "empty"),
        ("evaluation.json", "link loop"),
        ("per_image.npz", "half"),
        ("boundary.npz", "fifo"),
    ],
)
def test_what_can_be_made_again_is(
    first: Record, copy: Record, small: Path, capsys: pytest.CaptureFixture[str], file: str, name: str
) -> None:
    (place,) = copy.path.rglob(file)
    ANY[name](place)
    capsys.readouterr()
    assert again(copy, small) == 0
    said = capsys.readouterr()
    assert str(place) in said.out + said.err
    assert_same_numbers(first, only(copy.path.parents[3]))


@pytest.mark.parametrize("name", ["empty", "half"])
def test_a_record_says_which_rows_its_curve_lost(
    first: Record, copy: Record, small: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert "curve_lacks" not in first.data
    (copy.path / "record.json").unlink()
    ANY[name](copy.path / "history.csv")
    capsys.readouterr()
    assert again(copy, small) == 0
    said = capsys.readouterr()
    found = only(copy.path.parents[3])
    ((start, end),) = found.data["curve_lacks"]
    assert end == found.data["steps"]
    assert f"rows of steps {start} to {end}" in " ".join((said.out + said.err).split())
    rows = found.history()
    assert rows.empty or rows["step"].max() == start - 1
    scores = ({n: e.data["miou"] for n, e in record.evaluations.items()} for record in (first, found))
    assert next(scores) == next(scores)


def test_figures_that_their_counts_deny_are_computed_again(first: Record, copy: Record, small: Path) -> None:
    (place,) = copy.path.rglob("evaluation.json")
    changed(miou=96.34)(place)
    (place.parent / "boundary.npz").unlink()
    assert again(copy, small) == 0
    assert_same_numbers(first, only(copy.path.parents[3]))


def test_a_record_of_before_contours_were_counted_is_kept_as_it_is(copy: Record, small: Path) -> None:
    (file,) = copy.path.rglob("boundary.npz")
    counted = Boundary.load(file)
    assert counted is not None
    assert counted.contours is not None
    replace(counted, contours=None).save(file)
    before = {f: (f.read_bytes(), f.stat().st_mtime_ns) for f in copy.path.rglob("*") if f.is_file()}
    assert again(copy, small) == 0
    assert before == {f: (f.read_bytes(), f.stat().st_mtime_ns) for f in copy.path.rglob("*") if f.is_file()}


@pytest.mark.parametrize("values", [{"schema": 999}, {"seed": 5}, {"name": "agmm/other"}])
def test_a_newer_or_foreign_record_is_not_replaced(
    copy: Record, small: Path, values: dict[str, object]
) -> None:
    file = copy.path / "record.json"
    changed(**values)(file)
    before = file.read_bytes()
    assert again(copy, small) in (1, 2)
    assert file.read_bytes() == before


@pytest.mark.parametrize("verb", ["evaluate", "predict", "export"])
def test_no_verb_uses_a_checkpoint_that_was_not_recorded(
    copy: Record, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    file = copy.path / "checkpoint" / "last.pt"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)
    results = ["--results", copy.path.parents[3], "--device", "cpu", *TINY]
    more: dict[str, list[object]] = {
        "evaluate": [RECIPE, "--protocol", "agmm-voc", "--data-root", small],
        "predict": [RECIPE, next(small.rglob("*.png")), "--out", tmp_path / "out"],
        "export": [RECIPE, "--out", tmp_path / "out", "--data-root", small, "--output", "segmentation"],
    }
    capsys.readouterr()
    assert wsss(verb, *more[verb], *results) in (1, 2)
    said = capsys.readouterr().err
    assert "SHA-256" in said
    assert str(file) in said
    assert not (tmp_path / "out").exists()
