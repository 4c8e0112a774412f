"""SIGKILL at any moment, then the same command: the numbers of an undisturbed run, bit for bit."""

from __future__ import annotations

import os
import random
import shutil
import signal

import pytest
from fault_tools import die_at, drafts, driver, exit_code, wait_for
from runs import ONE, RECIPE, TINY, assert_same_numbers, only, wsss

from harness.basics.reading import read_json
from harness.records.records import Store

pytestmark = pytest.mark.faults

_rng = random.Random(2026)
#: Ten moments: steps, a row of the history, checkpoints, the evaluation, its files and the record.
MOMENTS = [
    *(("step", n) for n in sorted(_rng.sample(range(1, 31), 3))),
    ("row", _rng.randint(1, 3)),
    *(("last.pt", n) for n in sorted(_rng.sample(range(1, 5), 2))),  # after each row, and at the end
    ("count", _rng.randint(1, 6)),
    ("per_image.npz", 1),
    ("evaluation.json", 1),
    ("record.json", 1),
]


@pytest.fixture(scope="module")
def first(tmp_path_factory, small):
    """The record of an undisturbed run."""
    results = tmp_path_factory.mktemp("first")
    assert wsss("run", RECIPE, *TINY, *ONE, "--data-root", small, "--results", results) == 0
    return only(results)


@pytest.mark.parametrize(("moment", "number"), MOMENTS)
def test_a_run_killed_at_any_moment_ends_with_the_same_numbers(tmp_path, first, small, moment, number):
    command = ["run", RECIPE, *TINY, *ONE, "--data-root", small, "--results", tmp_path]
    command += ["--checkpoint-seconds", 0]
    process = driver(*command, prepare=die_at, options=(moment, number))
    assert exit_code(process) == -signal.SIGKILL
    assert not list(Store(tmp_path).records()), "the run was over before it was killed"
    assert wsss(*command) == 0
    assert_same_numbers(only(tmp_path), first)
    assert moment in ("step", "row", "last.pt") or only(tmp_path).data["resumed"] == 30
    assert not drafts(tmp_path)


def test_a_run_killed_again_and_again_ends_with_the_same_numbers(tmp_path, first, small):
    command = ["run", RECIPE, *TINY, *ONE, "--data-root", small, "--results", tmp_path]
    command += ["--checkpoint-seconds", 0]
    for moment, number in (("last.pt", 2), ("step", 12), ("last.pt", 2), ("count", 3)):
        process = driver(*command, prepare=die_at, options=(moment, number))
        assert exit_code(process) == -signal.SIGKILL
    assert wsss(*command) == 0
    assert_same_numbers(only(tmp_path), first)


# --- two drivers -------------------------------------------------------------------------------------


def _slow(results, log, number, ends) -> None:
    """Note who writes records; in the first trial wait until all others are recorded, then go on or die."""
    import os

    from fault_tools import At, die

    import harness.engine.training
    from harness.records.records import Store as Records

    write = Records.write_record

    def noted(folder, data):
        with log.open("a") as stream:
            stream.write(f"{os.getpid()} {folder} {data['status']}\n")
        return write(folder, data)

    Records.write_record = staticmethod(noted)
    if number:

        def pause() -> None:
            wait_for(lambda: len(list(Records(results).records())) == 3)
            if not ends:
                die()

        trainer = harness.engine.training.Trainer
        trainer.optimise = At(trainer.optimise, number, pause)


@pytest.mark.parametrize("ends", [True, False], ids=["the other ends", "the other dies"])
def test_two_drivers_share_a_store(tmp_path, first, small, ends):
    results, log = tmp_path / "results", tmp_path / "log"
    command = ["run", RECIPE, "pce/mini-scribble", *TINY, "--seeds", 2, "--local", "--device", "cpu"]
    command += ["--data-root", small, "--results", results, "--checkpoint-seconds", 0]
    one = driver(*command, prepare=_slow, options=(results, log, 15, ends))
    wait_for(lambda: list(results.glob("*/*/*/*/checkpoint/last.pt")))
    two = driver(*command, prepare=_slow, options=(results, log, 0, True))
    assert exit_code(one) == (0 if ends else -signal.SIGKILL)
    assert exit_code(two) == 0
    written = [line.split() for line in log.read_text().splitlines()]
    assert len(written) == 4
    assert len({folder for _, folder, _ in written}) == 4, "every trial once"
    assert {status for _, _, status in written} == {"finished"}
    by_one = {folder for process, folder, _ in written if process == str(one.pid)}
    assert by_one == ({str(next(Store(results).records("agmm/*")).path)} if ends else set())
    records = list(Store(results).records())
    assert [(r.name, r.seed) for r in records] == [
        ("agmm/mini-scribble", 0),
        ("agmm/mini-scribble", 1),
        ("pce/mini-scribble", 0),
        ("pce/mini-scribble", 1),
    ]
    assert_same_numbers(records[0], first)
    assert (records[0].data["resumed"] > 0) == (not ends)
    assert not drafts(results)


def _empty_cache(folder: str) -> None:
    """Ends at the first step, when everything has been prepared."""
    os.environ["WSSS_CACHE"] = folder
    die_at("step", 1)


def test_three_drivers_begin_with_an_empty_cache(tmp_path):
    """All of them find neither the generated scenes nor prepared labels: they are made once."""
    cache = tmp_path / "cache"
    command = ["run", "pce/mini-scribble", "--local", "--device", "cpu", "--results", tmp_path / "results"]
    drivers = [
        driver(*command, "--seed", seed, prepare=_empty_cache, options=(str(cache),)) for seed in range(3)
    ]
    assert [exit_code(d) for d in drivers] == [-signal.SIGKILL] * 3
    assert len(list(cache.rglob("JPEGImages"))) == 1
    assert len(list((cache / "labels" / "mini").iterdir())) == 1
    assert not list(cache.rglob("*.part"))


def test_two_drivers_make_the_labels_of_a_source_once(tmp_path, small, short_sources):
    """Both find the source finished and its labels missing."""
    results = tmp_path / "results"
    tiny = ["--set", "schedule.steps=2", "--seed", 0, "--local", "--device", "cpu"]
    tiny += ["--data-root", small, "--results", results]
    assert wsss("run", "pce/mini-image", *tiny) == 0
    (target,) = Store(results).records("pce/*")
    (labels,) = results.glob("cam/*/*/*/pseudo_labels")
    before = {f.name: f.read_bytes() for f in labels.rglob("*.png")}
    shutil.rmtree(labels)
    shutil.rmtree(target.path)
    drivers = [driver("run", "pce/mini-image", *tiny) for _ in range(2)]
    assert [exit_code(d) for d in drivers] == [0, 0]
    assert {f.name: f.read_bytes() for f in labels.rglob("*.png")} == before
    (again,) = Store(results).records("pce/*")
    assert_same_numbers(again, target)
    assert read_json(next(labels.rglob("complete.json")))["split"] == "train"
