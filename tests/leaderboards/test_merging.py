"""Bundles merged into stores of several people: under a URI, interrupted, and at the same time."""

from __future__ import annotations

import json
import threading
import zipfile
from pathlib import Path

import pyarrow.fs
import pytest
import torch
from synthetic import Factory

from harness.records import adding, driver_claim, object_store
from harness.records.bundles import open_bundle
from harness.records.locks import trial_lock
from harness.records.records import Store
from leaderboards.rows.gathering import gather_records
from leaderboards.rows.sharing import merge, pack
from leaderboards.rows.tables import leaderboard
from tests.runs import wsss
from tests.watched_store import Killed, Watched, names_below


@pytest.fixture(autouse=True)
def nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.evaluation.verification._classes", lambda record: None)
    monkeypatch.setattr(driver_claim, "LOOK", 0.01)


def bundle(place: Path, who: str, recipes: dict[str, float]) -> Path:
    """A bundle of somebody's records, with weights beside them that stay there."""
    factory = Factory(Store(place / who))
    for name, quality in recipes.items():
        record = factory.record(factory.resolved(name), quality=quality)
        (record.path / "checkpoint").mkdir()
        torch.save({"method": {"w": torch.ones(2)}}, record.path / "checkpoint" / "last.pt")
    pack(factory.store, place / f"{who}.wsss", made_by=who)
    return place / f"{who}.wsss"


@pytest.fixture
def both(tmp_path: Path) -> list[Path]:
    """Two people agree on one record and disagree on another."""
    ada = bundle(tmp_path, "Ada", {"agmm/ada": 0.5, "pce/same": 0.6, "pce/both": 0.7})
    return [ada, bundle(tmp_path, "Bob", {"agmm/bob": 0.5, "pce/same": 0.6, "pce/both": 0.6})]


def documents(root: Path) -> dict[str, dict]:
    return {f.relative_to(root).as_posix(): json.loads(f.read_text()) for f in root.rglob("record.json")}


def test_a_uri_gets_what_a_folder_gets_from_two_machines(both, tmp_path, monkeypatch, capsys) -> None:
    one, bucket = tmp_path / "folder", tmp_path / "bucket"
    for number, file in enumerate(both):
        wrong = number  # the second disagrees
        assert wsss("merge", file, "--results", one) == wrong
        monkeypatch.setenv("WSSS_CACHE", str(tmp_path / f"cache-{number}"))
        assert wsss("merge", file, "--results", bucket.as_uri()) == wrong
    assert documents(bucket) == documents(one)
    assert {n for n in names_below(one) if not n.endswith(".lock")} == names_below(bucket)
    rows = {r.recipe: r.notes for r in leaderboard(gather_records(Store(bucket.as_uri())), resamples=0)}
    assert {"made by Ada", "made by Bob"} <= set(rows["pce/same"])
    assert any("disagreement" in note for note in rows["pce/both"])
    assert wsss("report", "--no-plots", "--results", bucket.as_uri(), "--out", tmp_path / "out") == 0
    assert "made by Bob" in (tmp_path / "out" / "report.html").read_text()


def test_weights_and_predictions_are_packed_from_a_uri_and_what_is_missing_is_said(
    tmp_path, monkeypatch, capsys
) -> None:
    bundle(tmp_path, "Ada", {"agmm/a": 0.5, "agmm/b": 0.5})
    (picture,) = [
        next((tmp_path / "Ada").glob("agmm/a/*/*/evaluations/*")) / "predictions" / "image-0000.png"
    ]
    picture.parent.mkdir()
    picture.write_bytes(b"png")
    next((tmp_path / "Ada").glob("agmm/b/*/*/checkpoint/last.pt")).unlink()
    monkeypatch.setenv("WSSS_CACHE", str(tmp_path / "another machine"))
    file = tmp_path / "all.wsss"
    asked = ["--made-by", "Ada", "--weights", "--predictions", "--results", (tmp_path / "Ada").as_uri()]
    assert wsss("pack", file, *asked) == 0
    said = capsys.readouterr().err
    assert "agmm/b seed 0 has no weights" in said
    assert "agmm/b seed 0 has no predictions" in said
    assert "agmm/a seed 0 has no" not in said
    names = zipfile.ZipFile(file).namelist()
    assert sum(n.endswith("weights.safetensors") for n in names) == 1
    assert sum(n.endswith("predictions/image-0000.png") for n in names) == 1
    open_bundle(file)


def test_a_merge_killed_at_any_moment_goes_on(both, tmp_path, monkeypatch) -> None:
    """On the same machine or another one, into a bucket; no record is there by half, and nothing is lost."""
    monkeypatch.setattr(object_store, "WAITS", (0.0,))
    whole = None
    for alive in (10**9, *range(3, 90, 9)):
        base = pyarrow.fs.LocalFileSystem()
        place = tmp_path / str(alive)
        base.create_dir(str(place / "bucket" / "p"), recursive=True)
        watched = Watched(pyarrow.fs.SubTreeFileSystem(str(place), base), "s3")
        monkeypatch.setattr(object_store, "connect", lambda uri, watched=watched: (watched, "bucket/p"))
        watched.alive = alive
        try:
            merge(both, Store("s3://bucket/p", place / "a"))
        except Killed:
            watched.alive = 10**9
            for record in Store("s3://bucket/p", place / "reader").records():
                assert record.sound.keys() == record.evaluations.keys() != set()
            merge(both, Store("s3://bucket/p", place / ("a" if alive % 4 else "b")))
        found = documents(place / "bucket" / "p")
        whole = found if whole is None else whole
        assert found == whole
    assert len(whole) == 4


@pytest.mark.parametrize("kind", ["folder", "uri"])
def test_several_merge_at_once_and_nobody_is_lost(kind, tmp_path: Path) -> None:
    recipes = {f"agmm/{i}": 0.6 for i in range(4)}
    files = [bundle(tmp_path, who, recipes) for who in ("Ada", "Bob", "Cy")]
    place = tmp_path / "merged"
    root = place if kind == "folder" else place.as_uri()
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            merge(files[number:] + files[:number], Store(root, tmp_path / f"cache-{number}"))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    found = documents(place)
    assert len(found) == 4
    for data in found.values():
        assert sorted(one["made_by"] for one in data["shared"]) == ["Ada", "Bob", "Cy"]


def test_a_merge_waits_for_another_one_under_a_uri_and_for_no_trial(both, tmp_path, monkeypatch, capsys):
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    claim = {"id": "other", "host": "elsewhere", "pid": 1, "beat": 4e9}
    (bucket / "driver.json").write_text(json.dumps(claim))
    timer = threading.Timer(0.3, (bucket / "driver.json").unlink)
    timer.start()
    assert wsss("merge", both[0], "--results", bucket.as_uri()) == 0
    assert "waiting for process 1 on elsewhere" in capsys.readouterr().err
    (bucket / "driver.json").write_text(json.dumps(claim))
    monkeypatch.setattr("leaderboards.rows.sharing._PATIENCE", 0.1)
    before = names_below(bucket)
    assert wsss("merge", both[1], "--results", bucket.as_uri()) == 2
    assert "another driver is at work" in capsys.readouterr().err
    assert names_below(bucket) == before

    monkeypatch.setattr(adding, "_PATIENCE", 0.1)
    place = tmp_path / "folder"
    (record,) = Store(tmp_path / "Ada").records("agmm/ada")
    with trial_lock(Store(place).folder(record.name, record.digest, record.seed)):
        assert wsss("merge", both[0], "--results", place) == 1
    shown = capsys.readouterr()
    assert "left out: " in shown.err
    assert "this trial runs elsewhere" in shown.err
    assert "2 records are new" in shown.out
    assert wsss("merge", both[0], "--results", place) == 0
    assert len(documents(place)) == 3
