"""Readers of a store while others write to it: every reader sees whole records, old or new, and no error."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fault_tools import files_of, settled
from synthetic import Factory

from harness.basics.files import append
from harness.basics.schema import digest
from harness.recipes.resolving import resolve
from harness.records import records
from harness.records.aside import set_aside
from harness.records.locks import trial_lock
from harness.records.records import Store
from leaderboards.judge.comparison import compare, compared_records
from leaderboards.judge.statements import Claim, Pair
from leaderboards.rows.gathering import gather_records
from leaderboards.rows.tables import leaderboard
from tests.runs import wsss

SECONDS = 1.5
NAMES = ("agmm/mini-point", "pce/mini-point")
SEEDS = range(3)


def _write(factory: Factory, name: str, turn: int) -> None:
    """What runs do to a store: train on, fail, finish, and begin anew after the record was set aside."""
    resolved, seed = factory.resolved(name), turn % len(SEEDS)
    folder = factory.store.folder(name, resolved.digest("data-1", digest({})), seed)
    if turn % 4 == 3 and folder.exists():
        set_aside(factory.store, folder)
    if turn % 5 == 4:
        factory.record(resolved, seed, status="failed", reason="nothing")
    if not (folder / "history.csv").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for step in range(0, 101, 10):
            append(folder / "history.csv", f"{step},0.01,1.0,1.0\n" if step else "step,lr,loss,ce\n")
    assert factory.record(resolved, seed).path == folder


def _tables(store: Store) -> None:
    for row in leaderboard(gather_records(store), {}):
        assert not row.mean <= 0


def _comparison(store: Store) -> None:
    frame = gather_records(store)
    names = set(frame[frame["finished"]]["name"]) if len(frame) else set()
    if names == set(NAMES):
        compare(frame, {}, *NAMES)


def _everything(store: Store) -> None:
    for record in store.records():
        record.history()
        assert all(run.per_image.ids for run in record.sound.values())


def test_what_was_set_aside_to_train_anew_is_nobodys_record(factory):
    aside = set_aside(factory.store, factory.record().path)
    factory.record(seed=1)
    copy = factory.record(seed=2).path
    copy.rename(copy.with_name("before-seed-2"))
    store = Store(factory.store.root)
    assert [record.seed for record in store.records()] == [1]
    assert list(store.left_out) == [str(copy.with_name("before-seed-2") / "record.json")]
    aside.rename(aside.with_name("seed-0"))
    assert [record.seed for record in store.records()] == [0, 1]


def test_a_trial_that_moves_away_while_it_is_read_is_no_damage(factory):
    record, other = (factory.record(seed=seed) for seed in range(2))
    store = Store(factory.store.root)
    read = {one.seed: one for one in store.records()}
    set_aside(factory.store, record.path)
    (next((other.path / "evaluations").iterdir()) / "per_image.npz").unlink()
    assert not read[0].sound
    assert not read[1].sound
    assert list(store.left_out) == [str(next((other.path / "evaluations").iterdir()) / "per_image.npz")]


def test_a_finished_record_is_settled_when_nobody_holds_it(factory):
    held, free = (factory.record(seed=seed) for seed in range(2))
    factory.record(seed=2, status="failed", reason="nothing")
    with trial_lock(held.path):
        assert [r.seed for r in settled(factory.store.root)] == [free.seed]
        assert held.path not in {f.parent for f in files_of(settled(factory.store.root))}
    assert [r.seed for r in settled(factory.store.root)] == [held.seed, free.seed]


def test_four_readers_beside_two_writers_meet_nothing_torn(factory):
    wrong: list[BaseException | str] = []
    turns: dict[str, int] = {}
    end = time.monotonic() + SECONDS

    def going(name: str, work: Callable[[int], None]) -> None:
        try:
            for turn in itertools.count():
                work(turn)
                turns[name] = turn + 1
                if time.monotonic() > end or wrong:
                    return
        except BaseException as error:
            wrong.append(error)

    def reading(read: Callable[[Store], None]) -> Callable[[int], None]:
        def work(_: int) -> None:
            store = Store(factory.store.root)
            read(store)
            wrong.extend(error.brief for error in store.left_out.values())

        return work

    for name in NAMES:
        _write(factory, name, 0)
    jobs: dict[str, Callable[[int], None]] = {
        n: lambda turn, n=n: _write(factory, n, turn)
        for n in NAMES  # type: ignore[misc]
    }
    jobs |= {f"{r.__name__} {k}": reading(r) for r, k in ((_tables, 0), (_tables, 1), (_comparison, 0))}
    jobs["_everything 0"] = reading(_everything)
    mask = os.umask(0o022)
    threads = [threading.Thread(target=going, args=job) for job in jobs.items()]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert os.umask(0o022) == 0o022, "writers have changed who may read what this process writes"
    finally:
        os.umask(mask)
    assert not wrong, wrong[0]
    assert set(turns) == set(jobs)
    assert min(turns[name] for name in NAMES) >= 5
    assert not list(factory.store.root.rglob("*.part"))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The recipes whose records are read."""
    found: list[str] = []
    read = records.read_record

    def noted(folder: Path, *arguments: Any) -> Any:
        found.append("/".join(folder.parts[-4:-2]))
        return read(folder, *arguments)

    monkeypatch.setattr(records, "read_record", noted)
    return found


AGMM_AHEAD = Claim(
    id="c",
    method="agmm",
    statement="x.",
    comparisons=(Pair(better="agmm/mini-scribble", worse="pce/mini-scribble", evaluation="val-single"),),
)


def test_verbs_read_the_records_that_they_are_about(
    factory: Factory, small: Path, opened: list[str], tmp_path: Path, monkeypatch, capsys
) -> None:
    for name in ("agmm/mini-scribble", "pce/mini-scribble", "pce/mini-point", "cam/mini-image"):
        factory.record(resolve(name))
    where = ["--results", factory.store.root]
    both = {"agmm/mini-scribble", "pce/mini-scribble"}
    for second in ("pce/mini-scribble", "pce/mini-scribble@mine", "pce/mini-scribble (crop=48)"):
        opened.clear()
        assert set(compared_records(factory.store, "agmm/mini-scribble", second)["name"]) == both
        assert set(opened) == both
    opened.clear()
    dry = [
        "run",
        "pce/mini-point",
        "--dry-run",
        "--seed",
        1,
        "--local",
        "--data-root",
        small,
        "--device",
        "cpu",
    ]
    assert wsss(*dry, *where) == 0
    assert set(opened) == {"pce/mini-point"}
    opened.clear()
    monkeypatch.setattr("leaderboards.write.report.judge", lambda *arguments, **options: [])
    monkeypatch.setattr("leaderboards.judge.statements.known_claims", lambda: {"c": AGMM_AHEAD})
    assert wsss("claims", *where, "--out", tmp_path) == 0
    assert set(opened) == both
    capsys.readouterr()
    assert wsss("compare", "agmm/mini-scribble", "cam/mini-imag", *where) == 2
    assert "did you mean 'cam/mini-image'" in capsys.readouterr().err
