"""Every kind of exception, wherever it is raised: a failed record with the true reason, tried once, and the
other trials go on."""

from __future__ import annotations

from collections import Counter

import pytest
from troubles import KINDS, PLACES, troubled_package

from harness.records.records import Store
from harness.running.jobs.job import Resources
from harness.running.smoke.recipes import smoke
from harness.running.trials.execution import execute
from harness.running.trials.trial import Options, Trial

#: Each kind somewhere, each place with several kinds.
MIXED = [(kind, PLACES[number % len(PLACES)]) for number, kind in enumerate(KINDS)]


@pytest.fixture
def troubled(tmp_path, monkeypatch, no_ray):
    monkeypatch.setenv("TROUBLES", str(tmp_path / "troubles.txt"))
    monkeypatch.setenv("RAY_worker_niceness", "0")  # beside other work its workers would starve
    with troubled_package(tmp_path / "packages"):
        yield tmp_path


def trial(kind: str, place: str, rank: int = 0) -> Trial:
    return Trial("troubled/mini", 0, {"config.kind": kind, "config.place": place, "config.rank": rank})


def check(folder, trials, outcomes, undisturbed: int) -> None:
    """Failures are recorded with what was raised, and nothing was tried twice."""
    said = {o.trial.overrides["config.kind"]: o for o in outcomes}
    assert len(said) == len(trials)
    records = {r.recipe["config"]["kind"]: r for r in Store(folder / "results").records()}
    for one in trials:
        kind = one.overrides["config.kind"]
        if kind == "none":
            assert said[kind].status == "finished", said[kind].reason
            assert records[kind].finished
            continue
        assert said[kind].status == "failed", kind
        for text in (said[kind].reason, records[kind].data["reason"]):
            assert KINDS[kind][1] in text, text
            assert len(text) < 4000
            text.encode()
        assert not records[kind].finished
        if "trace:" in said[kind].reason:
            assert "troubles.py" in (records[kind].path / "error.txt").read_text() or kind == "wordless"
    met = Counter((folder / "troubles.txt").read_text().splitlines())
    assert set(met.values()) == {1}, met
    assert sum(o.status == "finished" for o in outcomes) == undisturbed


def test_in_this_process(troubled, small):
    trials = [trial(*mixed) for mixed in MIXED]
    trials.insert(-2, trial("none", "none"))  # after those that have lost the GPU, each costs a process
    options = Options(results=troubled / "results", data_roots=(str(small),), device="cpu")
    check(troubled, trials, execute(trials, options, None), 1)


@pytest.mark.faults
@pytest.mark.parametrize("processes", [1, 2])
def test_on_ray(troubled, small, processes):
    """Of two processes, the first and the second meet errors by turns; which one it was does not matter."""
    kinds = MIXED[::3] if processes == 1 else MIXED[::5]  # all of them in one process, above
    ranks = [n % processes if place in ("set-up", "step") else 0 for n, (_, place) in enumerate(kinds)]
    trials = [trial(*mixed, rank) for mixed, rank in zip(kinds, ranks, strict=True)]
    trials.append(trial("none", "none"))
    options = Options(
        results=troubled / "results", data_roots=(str(small),), device="cpu", processes=processes
    )
    outcomes = execute(trials, options, Resources(cpus_per_process=0.5))
    check(troubled, trials, outcomes, 1)


@pytest.mark.faults
def test_smoke_on_two_processes_says_the_cause(troubled, small):
    """Whichever process met it, and whatever the other one says of a connection that broke."""
    mixed = [("value", "set-up", 1), ("key", "step", 1)]
    options = Options(results=troubled / "results", data_roots=(str(small),), device="cpu", processes=2)
    rows = smoke([trial(*one) for one in mixed], options, Resources(cpus_per_process=0.5))
    for (kind, place, _), row in zip(mixed, rows, strict=True):
        assert row.status == "failed"
        assert KINDS[kind][1] in row.reason, row.reason
        assert "died" not in row.reason
        assert place != "step" or row.stage == "steps 0 to 1", row.stage
    assert not (troubled / "results").exists()
