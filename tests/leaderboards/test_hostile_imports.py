"""Stores of somebody else that hold bombs, hard links and hostile names: nothing of them arrives."""

from __future__ import annotations

import json
import os
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from synthetic import Factory

from harness.basics.errors import UserError
from harness.cli.main import cli, invoke
from harness.records.records import Store
from leaderboards.rows.external import import_records


def _json_bomb(place: Path) -> None:
    (place / "record.json").write_text('{"a":' + "[" * 3_000_000 + "]" * 3_000_000 + "}")


def _hole(name: str) -> Callable[[Path], None]:
    def write(place: Path) -> None:
        (found,) = place.rglob(name)
        with found.open("r+b") as stream:
            stream.truncate(9 << 30)

    return write


def _inflates(lies: bool) -> Callable[[Path], None]:
    """An array of 64 MiB in 64 KiB, whose directory says so or says 64 bytes."""

    def write(place: Path) -> None:
        (found,) = place.rglob("per_image.npz")
        with zipfile.ZipFile(found, "w", zipfile.ZIP_DEFLATED) as archive:
            with archive.open("ids.npy", "w", force_zip64=True) as stream:
                for _ in range(64):
                    stream.write(b"\0" * (1 << 20))
            if lies:
                archive.getinfo("ids.npy").file_size = 64

    return write


def _many_members(place: Path) -> None:
    (found,) = place.rglob("per_image.npz")
    with zipfile.ZipFile(found, "w") as archive:
        for number in range(5000):
            archive.writestr(f"a{number}.npy", b"")


def _up_and_away(place: Path) -> None:
    """Members whose names lead out of the archive."""
    (found,) = place.rglob("per_image.npz")
    with zipfile.ZipFile(found, "w") as archive:
        archive.writestr("../../../../evil.npy", b"x")
        archive.writestr("/tmp/evil.npy", b"x")


BOMBS: dict[str, Callable[[Path], None]] = {
    "nested": _json_bomb,
    "a record of gigabytes": _hole("record.json"),
    "an evaluation of gigabytes": _hole("evaluation.json"),
    "counts of gigabytes": _hole("per_image.npz"),
    "counts that inflate": _inflates(lies=False),
    "counts that say less than they inflate to": _inflates(lies=True),
    "thousands of arrays": _many_members,
    "arrays that lead out": _up_and_away,
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_left_behind(
    factory: Factory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("harness.basics.arrays.MOST_ARRAY", 32 << 20)
    factory.record(factory.resolved("pce/mini-point"), images=4)
    BOMBS[name](factory.record(images=4).path)
    origin, target = Store(factory.store.root), Store(tmp_path / "target")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    written, _ = import_records(origin, target)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10
    assert len(origin.left_out) == 1
    assert all("pce" in str(place) or not list(place.rglob("*.npz")) for place in written)
    assert not list(tmp_path.rglob("evil*"))


@pytest.mark.parametrize("file", ["record.json", "evaluation.json", "per_image.npz", "history.csv"])
def test_a_hard_link_to_something_else_is_not_copied(factory: Factory, tmp_path: Path, file: str) -> None:
    """It cannot be told from a file; what is no such file inside stays behind, and the copy is one."""
    record = factory.record(images=4)
    factory.history(record, {"cls": np.linspace(1, 0.5, 4)})
    (tmp_path / "secret").write_text("root:x:0:0\n")
    (place,) = record.path.rglob(file)
    place.unlink()
    os.link(tmp_path / "secret", place)
    target = tmp_path / "target"
    origin = Store(factory.store.root)
    try:
        import_records(origin, Store(target))
    except UserError:
        assert file == "record.json"
    assert str(place) in origin.left_out or str(place.with_name("evaluation.json")) in origin.left_out
    for copied in (p for p in target.rglob("*") if p.is_file()):
        assert "root:x" not in copied.read_text(errors="replace")
        assert copied.stat().st_nlink == 1


@pytest.mark.parametrize(
    "name", ["..", ".hidden", "a/../../b", "a\x1b[31m", "a\u202eb", "-rf", "x" * 300, "con:", "a\nb", ""]
)
def test_hostile_names_of_evaluations_stay_behind(factory: Factory, tmp_path: Path, name: str) -> None:
    record = factory.record(images=4)
    (run,) = record.evaluations.values()
    file = run.path / "evaluation.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"name": name}))
    origin, target = Store(factory.store.root), tmp_path / "target"
    import_records(origin, Store(target))
    (error,) = origin.left_out.values()
    assert not {"\x1b", "\u202e", "\n"} & set(error.brief)
    assert not list(target.rglob("evaluation.json"))


def test_hostile_names_of_other_files_are_not_copied(
    factory: Factory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = factory.record(images=4)
    (run,) = record.evaluations.values()
    for place in (record.path, run.path, factory.store.root):
        for name in ("-rf", "a\x1b[2J", "a\nb", "$(touch x)", "evil.pth", "sitecustomize.py", ".bashrc"):
            (place / name).write_text("x")
    target = tmp_path / "target"
    assert invoke(cli, ["import", str(factory.store.root), "--results", str(target)]) == 0
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    names = {p.name for p in target.rglob("*") if p.is_file()}
    assert names <= {"record.json", "evaluation.json", "per_image.npz", "trial.lock"}
