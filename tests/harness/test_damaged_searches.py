"""The journal of a search, damaged in every way: named in a few lines, never waited for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from damage import ANY
from searches import finish, plan

from harness.basics.errors import UserError
from harness.basics.reading import Damaged
from harness.running.search.study import open_study


def _lines(*values: object) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


OTHER = {
    "list": b"[]",
    "list in a line": b"[]\n",
    "null in a line": b"null\n",
    "object of another kind": _lines({"a": 1}),
    "unknown operation": _lines({"op_code": 999, "worker_id": "w"}),
    "operation of text": _lines({"op_code": "0"}),
    "trial of no study": _lines({"op_code": 4, "worker_id": "w", "study_id": 7}),
    "deep": b"[" * 100_000 + b"\n",
}


def test_a_damaged_journal_is_named_and_kept(options, quick, tmp_path: Path) -> None:
    """Going on with a study, and learning from one: the file, what is wrong and a remedy."""
    search = plan(options, trials=2, out=tmp_path / "a")
    done = finish(search)
    journal = search.folder / "optuna.log"
    sound = journal.read_bytes()
    middle = sound.index(b"\n", len(sound) // 2)
    damages = {
        **{name: ANY[name] for name in ANY if name not in ("empty", "half")},  # new, and cut by a kill
        **{name: lambda path, data=data: path.write_bytes(data) for name, data in OTHER.items()},
        "head cut off": lambda path: path.write_bytes(sound[sound.index(b"\n") + 1 :]),
        "hole": lambda path: path.write_bytes(sound[: middle - 20] + b"\0" * 20 + sound[middle:]),
    }
    for name, damage in damages.items():
        damage(journal)
        with pytest.raises(Damaged, match=r"optuna\.log") as caught, open_study(search):
            pass
        assert len(str(caught.value)) < 1000, name
        other = plan(options, trials=2, seed=1, out=tmp_path / "b" / name.replace(" ", "-"))
        with open_study(other) as study, pytest.raises(UserError, match=r"optuna\.log"):
            study.warm_start(search.folder)
        if journal.is_dir() and not journal.is_symlink():
            journal.rmdir()
        else:
            journal.unlink()
        journal.write_bytes(sound)
    journal.write_bytes(sound + b'{"op_code": 5, "wor')  # killed while it wrote
    assert finish(search) == done
