"""Trying recipes before a run: what is found, what is written, and what is left alone."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.basics import provenance
from harness.cli.main import cli, invoke
from harness.data.base import UNLABELLED
from harness.data.images import read_index
from harness.data.sets.mini import Mini
from harness.engine.training import Trainer
from harness.records.records import Store
from harness.running.jobs.job import Resources
from harness.running.smoke import recipes, trying
from harness.running.smoke.report import Pass, Phase, SmokeRow, read_smoke_rows, smoke_table, write_row
from harness.running.smoke.stand_in import bands, stand_in_labels
from harness.running.smoke.trying import ROW, SMOKE_STEPS, STAND_IN, segments
from harness.running.trials.execution import plan
from harness.running.trials.trial import Options, Trial, exported, prepare
from methods.agmm import AGMM

RECIPE = "agmm/mini-scribble"
TINY = {"schedule.steps": 40, "batch.per_group": 2, "crop": 48}
OVERRIDES = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]


def wsss(*arguments: object) -> int:
    return invoke(cli, [str(a) for a in arguments])


def files(folder: Path) -> list[str]:
    return sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())


@pytest.fixture
def options(tmp_path, small, cache):
    return Options(results=tmp_path / "results", data_roots=(str(small),), cache=cache, device="cpu")


def tried(targets, options, **more):
    rows = recipes.smoke(plan(targets, [0, 1, 2], TINY | more), options, None)
    return {row.name: row for row in rows}


# --- which steps -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "fractions", "expected"),
    [
        (20_000, (0.0,), [(0, 10), (10, 10)]),
        (20_000, (0.0, 0.9), [(0, 10), (18_000, 10)]),
        (20_000, (0.5,), [(0, 10), (10_000, 10)]),
        (30_000, (0.001, 0.99), [(30, 10), (29_700, 10)]),
        (20_000, (0.0, 0.2, 0.6, 0.9), [(0, 5), (4000, 5), (12_000, 5), (18_000, 5)]),
        (30, (0.0, 0.9), [(0, 10), (20, 10)]),
        (12, (0.0, 0.9), [(0, 10), (0, 10)]),
        (3, (0.0,), [(0, 3), (0, 3)]),
    ],
)
def test_steps_are_spread_over_the_phases_and_stay_within_the_run(total, fractions, expected):
    assert segments(total, fractions) == expected


@pytest.mark.parametrize("total", [1, 2, 7, 19, 20, 21, 40, 999])
@pytest.mark.parametrize("fractions", [(0.0,), (0.5,), (0.0, 0.9), (0.0, 0.3, 0.6, 0.8, 0.95)])
def test_segments_are_within_the_run_and_never_more_than_twenty_steps(total, fractions):
    found = segments(total, fractions)
    assert len(found) >= 2, "one of them is resumed"
    assert all(start % ROW == 0 and steps >= 1 and start + steps <= total for start, steps in found)
    assert sum(steps for _, steps in found) <= SMOKE_STEPS


# --- one recipe --------------------------------------------------------------------------------------


def test_a_recipe_is_trained_resumed_and_scored_and_only_figures_are_kept(options, tmp_path, monkeypatch):
    resumed = []
    before = Trainer.resume

    def watched(self):
        before(self)
        resumed.append(self.step)

    monkeypatch.setattr(Trainer, "resume", watched)
    row = tried([RECIPE], options)[RECIPE]
    assert (row.status, row.reason, row.trials, row.total) == ("passed", "", 3, 40)
    assert [(p.first, p.steps) for p in row.phases] == [(0, 10), (10, 10)]
    assert resumed == [0, 10], "the second half starts from the checkpoint of the first"
    assert all(p.rate > 0 for p in row.phases)
    assert [(p.name, p.pictures, p.times) for p in row.passes] == [("val-single", 6, 1)]
    assert row.passes[0].seconds > 0
    assert row.device_mib is None
    assert 50 < row.host_mib < 20_000
    assert 0 < row.final_mib < row.checkpoint_mib
    assert row.seconds() == pytest.approx(40 / row.rate + 6 * row.passes[0].seconds, rel=0.2)
    assert not options.results.exists(), "the record store is left alone"
    assert files(tmp_path) == [f"smoke/{RECIPE}/{row.values}.json", "smoke/table.md"]
    assert read_smoke_rows(options.results) == [row]
    assert RECIPE in (tmp_path / "smoke" / "table.md").read_text()


def test_recipes_are_tried_on_the_command_line(options, small, tmp_path, capsys):
    where = ["--data-root", small, "--results", options.results, "--device", "cpu", "--local"]
    names = ["full/mini-full", "toco/mini-image", "fsr/mini-image", "agmm/mini-image"]
    code = wsss("run", *names, *OVERRIDES, "--seeds", 2, "--smoke", *where)
    out = capsys.readouterr().out
    assert code == 0, out
    found = read_smoke_rows(options.results)
    rows = {row.name: row for row in found if row.total == 40}
    assert set(rows) == set(names)
    assert [row.name for row in found if row.total != 40] == ["cam/mini-image"], "the source of another"
    assert all(row.status == "passed" and row.trials == 2 for row in found)
    assert f"none of {len(rows) + 1} recipes failed" in out
    late = {n: r.phases[-1].first for n, r in rows.items() if n.startswith(("toco/", "fsr/"))}
    assert set(late.values()) == {30}, "the last phase is tried"
    assert not options.results.exists()


def test_labels_of_an_unfinished_source_are_stood_in_for_and_the_row_says_so(options):
    rows = tried(["agmm/mini-image"], options)
    assert list(rows) == ["cam/mini-image", "agmm/mini-image"]
    assert [row.status for row in rows.values()] == ["passed", "passed"]
    assert rows["agmm/mini-image"].notes == (STAND_IN,)
    assert rows["cam/mini-image"].notes == ()
    made = [p for p in rows["cam/mini-image"].passes if p.name == "labels for others: cam"]
    assert [(p.pictures, p.times) for p in made] == [(16, 1)]
    assert STAND_IN in smoke_table(list(rows.values()))


def test_stand_in_labels_show_the_tags_and_are_the_same_each_time(tmp_path, small):
    dataset = Mini(small)
    made = [stand_in_labels(dataset, "train", tmp_path / name) for name in ("a", "b")]
    image_id = made[0].ids[3]
    first, second = (store.path(image_id) for store in made)
    assert first.read_bytes() == second.read_bytes()
    assert files(tmp_path / "a") == [f"{image_id}.png"], "written when asked for"
    label = read_index(first)
    assert label.shape == dataset.read_image(image_id).shape[:2]
    assert set(np.unique(label)) == {0, *np.flatnonzero(dataset.tags([image_id])[0]), UNLABELLED}
    assert set(np.unique(bands(np.array([2]), (4, 7), None))) == {2, UNLABELLED}
    assert (bands(np.array([], int), (4, 7), None) == UNLABELLED).all()


# --- failures ----------------------------------------------------------------------------------------


def test_an_error_of_a_late_phase_is_found_and_the_others_go_on(options, small, monkeypatch, capsys):
    plain = AGMM.loss

    def broken(self, batch, progress):
        if progress.fraction > 0.8:
            raise ZeroDivisionError("only in the last phase")
        return plain(self, batch, progress)

    monkeypatch.setattr(AGMM, "loss", broken)
    monkeypatch.setattr(AGMM, "probe_steps", (0.0, 0.9))
    where = ["--data-root", small, "--results", options.results, "--device", "cpu", "--local"]
    assert wsss("run", RECIPE, "pce/mini-scribble", *OVERRIDES, "--smoke", *where) == 1
    out = capsys.readouterr().out
    rows = {row.name: row for row in read_smoke_rows(options.results)}
    assert rows["pce/mini-scribble"].status == "passed"
    failed = rows[RECIPE]
    assert (failed.status, failed.stage) == ("failed", "steps 30 to 39")
    assert failed.reason == "ZeroDivisionError: only in the last phase"
    assert "in broken" in failed.trace
    assert failed.seconds() is None
    assert f"failed {RECIPE}, steps 30 to 39" in out
    assert "1 of 2 recipes failed" in out


def test_a_loss_that_is_not_finite_is_reported_and_no_checkpoint_stays(options):
    row = tried([RECIPE], options, **{"optimiser.lr": 1e30})[RECIPE]
    assert (row.status, row.stage) == ("failed", "steps 0 to 9")
    assert "optimiser.lr" in row.reason
    assert not list((options.results.parent / "smoke").rglob("*.pt"))


def test_what_a_run_would_be_refused_for_is_a_row_beside_others_and_an_error_alone(options, small, capsys):
    trials = [*plan([RECIPE], [0], TINY), *plan(["pce/mini-scribble"], [0], TINY | {"batch.per_group": 999})]
    rows = recipes.smoke(trials, options, None)
    assert [row.status for row in rows] == ["passed", "failed"]
    assert (rows[1].stage, "per_group" in rows[1].reason) == ("checking", True)
    where = ["--data-root", small, "--results", options.results, "--device", "cpu", "--local"]
    assert wsss("run", RECIPE, "--set", "batch.per_group=999", "--smoke", *where) == 2
    assert "remedy" in capsys.readouterr().err
    assert wsss("run", RECIPE, "--smoke", "--dry-run", *where) == 2


def test_memory_that_does_not_suffice_is_said_with_a_remedy(options, monkeypatch):
    def full(self, batch, progress):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB. More.")

    monkeypatch.setattr(AGMM, "loss", full)
    row = tried([RECIPE], options, **{"batch.per_group": 4})[RECIPE]
    assert row.reason.startswith("out of memory: ")
    assert "4 pictures of 48 x 48" in row.reason
    assert "accumulate=2" in row.reason


@pytest.mark.faults
def test_on_ray_recipes_run_in_their_processes_and_one_that_dies_fails_alone(options, monkeypatch, local_ray):
    class Dying(trying.SmokeJob):
        def work(self, alone=lambda: None):
            if self.trial.name == RECIPE:
                self.place.mkdir(parents=True)
                (self.place / "stage").write_text("steps 0 to 9")
                os.kill(os.getpid(), 9)
            yield from super().work(alone)

    monkeypatch.setattr(recipes, "SmokeJob", Dying)
    trials = [Trial(RECIPE, 0, TINY), Trial("pce/mini-scribble", 0, TINY | {"batch.groups": 2})]
    resources = Resources(cpus_per_process=0.5)
    rows = recipes.smoke(trials, replace(options, processes=0), resources)
    assert (rows[0].status, rows[0].stage) == ("failed", "steps 0 to 9")
    assert "worker process died" in rows[0].reason
    assert (rows[1].status, rows[1].reason) == ("passed", "")
    assert [(p.first, p.steps) for p in rows[1].phases] == [(0, 10), (10, 10)]
    assert rows[1].host_mib > 300, "two processes"
    assert rows[1].final_mib > 0
    assert not list((options.results.parent / "smoke").rglob("*.pt"))


# --- nothing twice -----------------------------------------------------------------------------------


def test_what_passed_is_not_tried_again_unless_something_changed(options, monkeypatch):
    clean = {"version": "1", "commit": "abc", "dirty": False}
    monkeypatch.setattr(provenance, "code", lambda: clean)
    first = tried([RECIPE], options)[RECIPE]
    again: list[str] = []

    def stages(job, found):
        again.append(job.trial.name)
        raise ValueError("tried again")

    monkeypatch.setattr(trying, "_stages", stages)
    assert tried([RECIPE], options)[RECIPE] == first
    assert not again
    for changed in (
        replace(options, workers=1),
        replace(options, threads=2),
    ):
        tried([RECIPE], changed)
    tried([RECIPE], options, crop=40)
    monkeypatch.setattr(provenance, "code", lambda: clean | {"dirty": True})
    tried([RECIPE], options)
    assert len(again) == 4


def test_finished_trials_are_left_alone_and_seeds_to_run_are_counted(options, small, tmp_path, monkeypatch):
    where = ["--data-root", small, "--results", options.results, "--device", "cpu", "--local"]
    assert wsss("run", RECIPE, *OVERRIDES, "--seed", 1, *where) == 0
    before = {f: (options.results / f).stat().st_mtime_ns for f in files(options.results)}
    row = tried([RECIPE], options)[RECIPE]
    assert (row.status, row.trials) == ("passed", 2)
    shutil.rmtree(tmp_path / "smoke")
    monkeypatch.setattr(trying, "_stages", lambda job, found: pytest.fail("tried"))
    (row,) = recipes.smoke(plan([RECIPE], [1], TINY), options, None)
    assert (row.status, row.trials, row.seconds()) == ("finished", 0, None)
    assert {f: (options.results / f).stat().st_mtime_ns for f in files(options.results)} == before


def test_a_finished_source_is_exported_neither_by_trying_nor_by_a_dry_run(options, small):
    where = ["--data-root", small, "--results", options.results, "--device", "cpu", "--local"]
    assert wsss("run", "cam/mini-image", "--set", "schedule.steps=2", "--seed", 0, *where) == 0
    short = next(Store(options.results).records()).path
    place = prepare(Trial("cam/mini-image", 0), options).folder  # as if it had made all of its steps
    place.parent.mkdir()
    short.rename(place)
    record = json.loads((place / "record.json").read_text())
    (place / "record.json").write_text(json.dumps(record | {"digest": place.parent.name}))
    before = files(options.results)
    target = ["agmm/mini-image", *OVERRIDES, "--seed", 0, *where]
    assert wsss("run", *target, "--smoke") == 0
    assert wsss("run", *target, "--dry-run") == 0
    assert files(options.results) == before
    (row,) = [row for row in read_smoke_rows(options.results) if row.name == "agmm/mini-image"]
    assert row.notes == (STAND_IN,)
    exported("cam/mini-image", 0, "train", options)
    assert wsss("run", *target, "--smoke") == 0
    (row,) = [row for row in read_smoke_rows(options.results) if row.name == "agmm/mini-image"]
    assert row.notes == (), "its labels are there now"


# --- forecasts ---------------------------------------------------------------------------------------

ROW_OF_A_DAY = SmokeRow(
    RECIPE,
    values="other",
    total=1000,
    phases=(Phase(0, 10, 4.0), Phase(900, 10, 2.0)),
    passes=(Pass("val-single", 100, 0.5), Pass("selection val", 10, 0.1, times=5)),
    checkpoint_mib=300.0,
    final_mib=100.0,
    save_seconds=3.0,
    written="2026-01-02T00:00:00+00:00",
    trials=3,
)


def test_a_forecast_takes_the_slowest_phase_checkpoints_and_evaluations():
    assert ROW_OF_A_DAY.rate == 2.0
    assert ROW_OF_A_DAY.seconds() == 500 + 500 / 60 * 3 + 50 + 5
    assert ROW_OF_A_DAY.seconds(10) == 5 + 5 / 60 * 3 + 50 + 5
    often = replace(ROW_OF_A_DAY, checkpoint_seconds=0.0)
    assert often.seconds() == 500 + 100 * 3 + 55, "at each row of the history"
    assert replace(ROW_OF_A_DAY, status="failed").seconds() is None
    shown = smoke_table([ROW_OF_A_DAY, replace(ROW_OF_A_DAY, device_mib=20_480.0, host_mib=900.0)])
    assert "4 / 2" in shown
    assert "9 min 40 s" in shown
    assert "3 x, 29 min 00 s" in shown
    assert "20.0 GiB" in shown


def test_a_dry_run_estimates_from_a_smoke_run_where_there_is_no_record(options, small, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    write_row(ROW_OF_A_DAY, options.results)
    where = ["--data-root", small, "--results", options.results, "--device", "cpu"]
    command = ["run", RECIPE, "--set", "schedule.steps=1000", "--dry-run", *where]
    assert wsss(*command, "--local") == 0
    out = capsys.readouterr().out
    assert out.count("9 min 40 s") == 1, "the seeds of a recipe are one line"
    assert "smoke run of 2026-01-02, other values" in out
    assert "3 of 3 trials to run, 1 at a time: about 29 min 00 s" in out
    assert "disk: 500 MiB" in out, "three final checkpoints and what one running trial needs more"
    assert wsss(*command, "--cpus-per-trial", 2, "--gpus-per-trial", 0) == 0
    assert "each trial takes 2 CPU, 0 GPU" in capsys.readouterr().out
    assert not options.results.exists()


def test_rows_that_cannot_be_read_are_made_again(options):
    write_row(ROW_OF_A_DAY, options.results)
    (file,) = (options.results.parent / "smoke").glob("*/*/*.json")
    data = json.loads(file.read_text())
    file.write_text(json.dumps(data | {"schema": 99}))
    assert read_smoke_rows(options.results) == []
    file.write_text("{")
    assert read_smoke_rows(options.results) == []
