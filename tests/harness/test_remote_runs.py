"""Whole runs into stores under a URI, from the command line: kills, other machines, readers, mistakes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from fault_tools import die_when, driver, exit_code
from watched_store import names_below

from harness.cli.main import cli, invoke
from harness.records.records import Store

RECIPE = "agmm/mini-scribble"
TINY = ["--set", "schedule.steps=30", "--set", "batch.per_group=4", "--set", "crop=48"]
ONE = ["--seed", "0", "--local", "--device", "cpu"]


def wsss(*arguments: object) -> int:
    return invoke(cli, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def folder_record(tmp_path_factory, small):
    """The record of an undisturbed run into a folder."""
    results = tmp_path_factory.mktemp("folder")
    assert wsss("run", RECIPE, *TINY, *ONE, "--data-root", small, "--results", results) == 0
    (record,) = Store(results).records()
    return record


@pytest.fixture(scope="module")
def bucket(tmp_path_factory, small) -> str:
    """The URI of a store that holds the same run."""
    uri = (tmp_path_factory.mktemp("bucket") / "prefix").as_uri()
    assert wsss("run", RECIPE, *TINY, *ONE, "--data-root", small, "--results", uri) == 0
    return uri


def numbers(record) -> tuple:
    evaluation = record.evaluations["val-single"]
    return record.digest, evaluation.data["iou"], evaluation.per_image.intersection.tolist()


def test_a_run_leaves_the_same_record_under_a_uri(bucket, folder_record, tmp_path, small, capsys):
    place = Path(bucket.removeprefix("file://"))
    (stored,) = Store(place).records()  # a file:// store is a folder after all
    assert numbers(stored) == numbers(folder_record)
    assert names_below(stored.path) == {n for n in names_below(folder_record.path) if n != "trial.lock"}
    assert not (place / "driver.json").exists()
    before = {p: p.stat().st_mtime_ns for p in place.rglob("*") if p.is_file()}
    assert wsss("run", RECIPE, *TINY, *ONE, "--data-root", small, "--results", bucket) == 0
    assert {p: p.stat().st_mtime_ns for p in place.rglob("*") if p.is_file()} == before
    assert wsss("run", RECIPE, *TINY, *ONE, "--data-root", small, "--results", bucket, "--dry-run") == 0
    assert "finished" in capsys.readouterr().out


def test_another_machine_reads_a_uri(bucket, folder_record, tmp_path, small, monkeypatch, capsys):
    copy = (tmp_path / "copy").as_uri()
    shutil.copytree(bucket.removeprefix("file://"), tmp_path / "copy")
    monkeypatch.setenv("WSSS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    assert wsss("leaderboard", "--results", copy, "--out", tmp_path / "out") == 0
    assert f"{folder_record.evaluations['val-single'].miou:.2f}" in capsys.readouterr().out
    assert not list((tmp_path / "cache" / "stores").rglob("last.pt"))
    assert wsss("compare", RECIPE, RECIPE, "--results", copy) in (0, 2)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    shutil.copy(sorted((small / "mini" / "JPEGImages").iterdir())[0], pictures)
    arguments = [*TINY, "--results", copy, "--device", "cpu"]
    assert wsss("predict", RECIPE, pictures, "--out", tmp_path / "predicted", *arguments) == 0
    assert len(list((tmp_path / "predicted").glob("*.png"))) == 2
    arguments += ["--data-root", small]
    assert wsss("evaluate", RECIPE, "--protocol", "agmm-voc", *arguments) == 0
    (record,) = Store(tmp_path / "copy").records()
    assert set(record.evaluations) == {"val-single", "val-agmm-voc"}
    assert wsss("import", copy, "--results", (tmp_path / "imported").as_uri()) == 0
    (imported,) = Store(tmp_path / "imported").records()
    assert numbers(imported) == numbers(record)


def _other_machine(cache: str, place: Path) -> None:
    """With a cache of its own; it dies as soon as a checkpoint is in the store."""
    os.environ["WSSS_CACHE"] = cache
    die_when(place, "*/*/*/*/checkpoint/last.pt")


@pytest.mark.faults
def test_a_run_killed_on_one_machine_goes_on_on_another(tmp_path, small, folder_record):
    place = tmp_path / "bucket"
    command = ["run", RECIPE, *TINY, *ONE, "--data-root", small, "--results", place.as_uri()]
    cache = tmp_path / "cache"
    shutil.copytree(os.environ["WSSS_CACHE"], cache, ignore=shutil.ignore_patterns("stores"))
    process = driver(*command, "--checkpoint-seconds", 0, prepare=_other_machine, options=(str(cache), place))
    assert exit_code(process) == -signal.SIGKILL
    assert list(place.glob("driver.json")), "a killed driver cannot take its claim back"
    assert not list(place.glob("*/*/*/*/record.json")), "the run was over before it could be killed"
    assert wsss(*command) == 0
    (record,) = Store(place).records()
    assert numbers(record) == numbers(folder_record)
    np.testing.assert_array_equal(record.history().to_numpy(), folder_record.history().to_numpy())
    assert record.data["resumed"] > 0


def test_labels_of_another_recipe_come_through_the_store(tmp_path, small, monkeypatch, short_sources):
    uri = (tmp_path / "bucket").as_uri()
    arguments = ["--set", "schedule.steps=2", *ONE, "--data-root", small]
    assert wsss("run", "pce/mini-image", *arguments, "--results", uri) == 0
    (source,) = Store(tmp_path / "bucket").records("cam/*")
    assert len(list((source.path / "pseudo_labels" / "train-cam").glob("*.png"))) == 16
    (first,) = Store(tmp_path / "bucket").records("pce/*")
    shutil.rmtree(first.path)
    monkeypatch.setenv(
        "WSSS_CACHE", str(tmp_path / "cache")
    )  # another machine has neither labels nor network
    assert wsss("run", "pce/mini-image", *arguments, "--results", uri) == 0
    (second,) = Store(tmp_path / "bucket").records("pce/*")
    assert numbers(second)[0] == numbers(first)[0]
    assert second.data["data"]["labels"]["content"] == first.data["data"]["labels"]["content"]


@pytest.mark.faults
def test_a_search_goes_on_on_another_machine(tmp_path, small, monkeypatch):
    place = tmp_path / "bucket"
    arguments = [
        "search",
        RECIPE,
        "--set",
        "schedule.steps=20",
        "--set",
        "batch.per_group=4",
        "--set",
        "crop=32",
    ]
    arguments += ["--set", "weights=none", "--sampler", "random", "--scheduler", "none", "--local"]
    arguments += ["--device", "cpu", "--data-root", small, "--results", place.as_uri()]
    assert wsss(*arguments, "--trials", 1) == 0
    (folder,) = place.glob("search/agmm/mini-scribble/*")
    first = json.loads((folder / "search.json").read_text())["trials"]
    monkeypatch.setenv("WSSS_CACHE", str(tmp_path / "cache"))
    assert wsss(*arguments, "--trials", 2) == 0
    trials = json.loads((folder / "search.json").read_text())["trials"]
    assert [t["state"] for t in trials] == ["finished", "finished"]
    assert trials[0] == first[0], "what was measured is not measured again"
    names = names_below(folder)
    assert {"optuna.log", "best.toml", "trials/0000/objective.json", "trials/0001/history.csv"} <= names
    assert not [n for n in names if "checkpoint" in n or n.endswith((".lock", "driver.json"))]
    assert list(Store(place.as_uri()).records()) == []


# --- mistakes ----------------------------------------------------------------------------------------

NOWHERE = "s3://k:s@bucket/p?scheme=http&endpoint_override=127.0.0.1:1&region=us-east-1"


@pytest.mark.parametrize(
    ("verb", "uri", "said"),
    [
        (["run", RECIPE, *ONE], "foo://bucket/x", "no filesystem is known for foo://"),
        (["evaluate", RECIPE, *ONE[-2:]], "foo://bucket/x", "no filesystem is known for foo://"),
        (["leaderboard"], "s3://bucket?unknown=1", "Unexpected"),
        (["report"], NOWHERE, "cannot be reached"),
    ],
)
def test_a_wrong_uri_gets_one_clear_message(verb, uri, said, capsys):
    assert wsss(*verb, "--results", uri) == 2
    message = capsys.readouterr().err
    assert said in message
    assert "k:s@" not in message
    assert len(message.splitlines()) <= 6
    assert not Path(uri.partition("/")[0]).exists()


def test_a_missing_pyarrow_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyarrow.fs", None)
    assert wsss("leaderboard", "--results", "s3://bucket/x") == 2
    message = capsys.readouterr().err
    assert "need pyarrow" in message
    assert "pip install pyarrow" in message
