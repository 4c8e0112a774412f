"""Memos that only save work, and locks: damaged in every way, made again or named, and nothing hangs."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from damage import ANY, JSON

from harness.basics.errors import UserError
from harness.basics.files import sha256_of, write_json
from harness.basics.reading import set_damaged_aside
from harness.cli.main import cli, invoke
from harness.data.prepare import verify
from harness.data.sets import coco_prepare, mini
from harness.records import locks, remote
from harness.records.locks import HOLDER, LOCK, locked, trial_lock
from harness.running.smoke import report
from harness.running.trials.mending import is_whole
from harness.running.watching import following

#: Name below a folder: its content, and what reads it there.
MEMOS: dict[str, tuple[Any, Callable[[Path], Any]]] = {
    "states.json": ({"wandb": {"run": "1"}}, following._read_states),
    "verified.json": ({"a": ["1.2", "3.4", ""]}, verify._recall),
    "prepared.json": ({"size": 1, "time": 2}, lambda f: coco_prepare._stamp(f.parent)),
    "state.json": (
        {"remote": {"a": [1, "t"]}, "local": {}},
        lambda f: remote._State.load(f).remote,
    ),
    HOLDER: ({"process": 1, "host": "here", "since": "now"}, locks._describe),
    "complete.json": ({"sha256": {"a": ""}}, lambda f: is_whole(f.parent, ["a"])),
    "smoke/agmm/mini/row.json": (None, lambda f: report.read_smoke_rows(f.parents[3] / "results")),
}


@pytest.fixture
def memo(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A sound memo."""
    file = tmp_path / request.param
    if request.param.startswith("smoke"):
        row = report.SmokeRow(name="agmm/mini", values="row", status="passed", phases=(), passes=())
        report.write_row(row, tmp_path / "results")
    else:
        content = MEMOS[request.param][0]
        if request.param == "complete.json":
            (tmp_path / "a.png").write_bytes(b"a label")
            content = {"sha256": {"a": sha256_of(tmp_path / "a.png")}}
        write_json(
            file, {"schema": 1, "name": "a", "digest": "b", **content} if "sha256" in content else content
        )
    return file


@pytest.mark.parametrize("memo", MEMOS, indirect=True)
def test_a_damaged_memo_is_as_good_as_none(memo: Path) -> None:
    read = MEMOS[str(memo.relative_to(memo.parents[3] if "smoke" in memo.parts else memo.parent))][1]
    known, sound = read(memo), memo.read_bytes()
    assert known
    memo.unlink()
    nothing = read(memo)
    assert nothing != known
    for name, damage in JSON.items():
        memo.write_bytes(sound)
        try:
            damage(memo)
        except KeyError:  # it has no such key
            memo.write_bytes(sound)
            continue
        found = read(memo)
        changed = ("schema", "name", "digest", "newer")  # keys that a memo need not have
        assert found == nothing or any(word in name for word in changed) or name == "another object", name
        set_damaged_aside(memo)


@pytest.mark.parametrize("name", ANY)
@pytest.mark.parametrize("file", [LOCK, HOLDER])
def test_a_damaged_lock_is_held_or_named(tmp_path: Path, file: str, name: str) -> None:
    """Its content means nothing; what is no file in its place is named."""
    place = tmp_path / file
    place.write_text("{}")
    ANY[name](place)
    named = name in ("folder", "link loop", "dangling link", "device") and (file == LOCK or name == "folder")
    expected = pytest.raises(UserError, match=re.escape(str(place))) if named else nullcontext()
    with expected, trial_lock(tmp_path):
        pass


def test_a_lock_is_no_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("")
    (tmp_path / "lock").symlink_to("real")
    with pytest.raises(UserError, match="a link stands"), locked(tmp_path / "lock"):
        pass


@pytest.mark.parametrize("name", JSON)
def test_generated_pictures_with_a_damaged_manifest_are_refused(tmp_path: Path, name: str) -> None:
    """Nobody else's folder is taken for them, or deleted."""
    file = tmp_path / mini._MANIFEST
    write_json(file, {"schema": 1, "name": "mini", "digest": "x", "seed": 0})
    JSON[name](file)
    with pytest.raises(UserError, match="does not hold"):
        mini._checked(tmp_path, {"seed": 0, "splits": {}})


def test_verify_store_reads_what_no_record_speaks_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A list of code is sound; ids that lead elsewhere, odd hashes and pipes are breaches, each on a line."""
    trial = tmp_path / "agmm" / "mini" / "abc" / "seed-0"
    write_json(trial / "code.json", [[]])
    assert invoke(cli, ["verify-store", "--results", str(tmp_path)]) == 0
    outside = tmp_path / "outside.png"
    outside.write_bytes(b"x")
    labels = trial / "pseudo_labels" / "train-a"
    contents = [{"../../../../../../outside": sha256_of(outside)}, {"a": 7}, {"b": None}, {"": ""}, []]
    for content in contents:
        write_json(labels / "complete.json", {"sha256": content})
        assert invoke(cli, ["verify-store", "--results", str(tmp_path)]) == 1
        said = capsys.readouterr().out
        assert str(labels) in said
        assert "1 breaches" in said
    for name, damage in JSON.items():
        write_json(labels / "complete.json", {"schema": 1, "name": "a", "digest": "b", "sha256": {"a": "0"}})
        damage(labels / "complete.json")
        assert invoke(cli, ["verify-store", "--results", str(tmp_path)]) in (0, 1), name
        assert "Traceback" not in "".join(capsys.readouterr())
        set_damaged_aside(labels / "complete.json")
