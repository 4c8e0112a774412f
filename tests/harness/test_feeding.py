"""How many cores one GPU needs, tried with a GPU that is played by a sleep; a smoke run counts waiting."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.engine.build import FurtherSpec
from harness.engine.footprint import Footprint
from harness.engine.loader import StepSampler, TrainingSet, training_loader
from harness.engine.loading import Waits
from harness.engine.networks import build_method
from harness.engine.training import Status
from harness.recipes.resolving import resolve
from harness.recipes.specs import AugmentSpec
from harness.running.smoke import feeding, trying
from harness.running.smoke.feeding import (
    Feeding,
    made_up_set,
    picture_seconds,
    pictures_of_step,
    step_seconds,
)
from tests.runs import ONE, RECIPE, wsss


@pytest.mark.parametrize(("each", "pictures", "step", "cores"), [(0.015, 64, 0.32, 3), (0.001, 8, 1.0, 1)])
def test_cores_are_those_that_make_a_step_in_the_time_of_a_step(
    each: float, pictures: int, step: float, cores: int
) -> None:
    assert Feeding(each, pictures, step, "as given").cores == cores


def waiting(workers: int, each: float, step: float, monkeypatch: pytest.MonkeyPatch) -> float:
    """Share of the time in which a GPU waits for its pictures, once all loader processes are at work."""
    real = TrainingSet.__getitem__

    def slowly(self: TrainingSet, slot: Any) -> dict:
        time.sleep(each)
        return real(self, slot)

    monkeypatch.setattr(TrainingSet, "__getitem__", slowly)
    monkeypatch.setattr(feeding, "_USUAL_SIZE", (40, 50))  # which cost nothing
    data = made_up_set(resolve("pce/mini-scribble", {"crop": 32}))
    sampler = StepSampler(len(data), 4, 20 + workers, 0)
    waits = Waits(training_loader(data, sampler, 1, workers=workers, pin=False))
    began = time.monotonic()
    for done, _ in enumerate(waits):
        if done == workers:  # each has made one
            waits.taken()
            began = time.monotonic()
        time.sleep(step)
    monkeypatch.undo()
    return waits.taken() / (time.monotonic() - began)


def test_as_many_loader_processes_as_are_said_keep_a_gpu_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    each, step = 0.1, 0.2
    cores = Feeding(each, 4, step, "as given").cores
    assert cores == 2
    few, enough = (waiting(n, each, step, monkeypatch) for n in (1, cores))
    assert few > 0.35  # a step is made in 0.4 s, used in 0.2
    assert enough < few - 0.2


def test_a_picture_is_timed_in_seconds_of_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    data = made_up_set(resolve("pce/mini-scribble", {"crop": 64}))
    small = picture_seconds(data)
    large = picture_seconds(made_up_set(resolve("pce/mini-scribble", {"crop": 512})))
    assert 0 < small < large
    real = TrainingSet.__getitem__

    def sleeps(self: TrainingSet, slot: Any) -> dict:
        time.sleep(0.05)
        return real(self, slot)

    monkeypatch.setattr(TrainingSet, "__getitem__", sleeps)
    assert picture_seconds(data) < 0.05  # a core that sleeps is free


def test_a_step_is_guessed_for_gpus_that_are_known() -> None:
    found, recipe = Footprint(1, 1, 1, 1000, 16.5), resolve(RECIPE).recipe
    assert step_seconds(found, recipe, "NVIDIA H200") == pytest.approx(0.1)
    assert step_seconds(found, replace(recipe, amp="bf16"), "NVIDIA H200") == pytest.approx(0.05)
    assert step_seconds(replace(found, tflop=0.0), recipe, "NVIDIA H200") == pytest.approx(0.005)
    assert step_seconds(found, recipe, "a card of tomorrow") is None


def test_a_dry_run_says_how_many_cores_feed_a_gpu(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("run", RECIPE, *ONE, "--data-root", small, "--results", tmp_path, "--dry-run")
    assert wsss(*command, "--step-seconds", "0.0001") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"to feed one GPU, {RECIPE}: 16 pictures of" in said
    assert "for every 0 ms (as given)" in said
    assert "MiB" in said.partition("memory")[2]
    assert wsss(*command[:-1], "--step-seconds", "1") == 2


class _Run:
    """A trainer whose loader hands out the first steps of its processes at once, and then waits."""

    def __init__(self, workers: int) -> None:
        self.workers, self.step, self.total = workers, 0, 100

    def run(self) -> Iterator[Status]:
        while self.step < self.total:
            self.step += trying.ROW
            slow = self.step > self.workers
            yield Status(self.step, self.total, 1.0 if slow else 10.0, waiting=0.9 if slow else 0.0)


@pytest.mark.parametrize(("workers", "steps"), [(0, 10), (5, 10), (12, 20)])
def test_a_smoke_run_times_more_steps_than_were_made_ahead(workers: int, steps: int) -> None:
    trainer: Any = _Run(workers)
    phase = trying._train(trainer, 0, 10, SimpleNamespace(workers_mib=0.0))  # type: ignore[arg-type]
    assert phase.steps == steps
    if workers == 12:
        assert phase.rate == pytest.approx(15 / (0.5 + 10), rel=0.01)
        assert phase.waiting == pytest.approx(0.9 * 10 / 10.5, rel=0.01)


def test_a_phase_says_that_it_waited() -> None:
    from harness.running.smoke.report import Phase, SmokeRow, smoke_table

    row = SmokeRow("a/b", phases=(Phase(0, 10, 2.0, 0.5), Phase(10, 10, 3.0)), estimated_mib=2048.0)
    assert "2 (50 % waiting) / 3" in smoke_table([row])
    assert "2.0 GiB" in smoke_table([row])


def test_made_up_photographs_have_the_views_of_a_method() -> None:
    resolved = resolve("toco/mini-image", {"weights": "none"})
    with torch.device("meta"):
        method = build_method(resolved, torch.device("meta"), 0)
    assert made_up_set(resolved, method)[(0, 0, 0)]["views"].keys() == method.views().keys()


def test_further_pictures_are_timed_and_counted_with_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    more = {"more": FurtherSpec("extra", 48, AugmentSpec(blur=1.0))}
    method: Any = SimpleNamespace(views=dict, further=lambda: more)
    data = made_up_set(resolve("pce/mini-scribble", {"crop": 32}), method)
    assert pictures_of_step(data) == {"": 16, "more": 48}
    assert data[(0, 0, 7, "more")]["id"] == "7"
    monkeypatch.setattr(feeding, "_seconds", lambda data, name, number: 0.002 if name else 0.006)
    assert picture_seconds(data) == pytest.approx(0.003)
    monkeypatch.undo()
    asked: list[str] = []
    read = TrainingSet._read
    monkeypatch.setattr(
        TrainingSet, "_read", lambda self, index, name="": (asked.append(name), read(self, index, name))[1]
    )
    assert picture_seconds(data, 2) > 0
    assert set(asked) == {"", "more"}
