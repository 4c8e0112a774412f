"""Ctrl-C and SIGTERM: a checkpoint where there is time for one, the exit code, and the next run."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch
from fault_tools import At, drafts
from runs import ONE, RECIPE, TINY, assert_same_numbers, only, wsss

import harness.engine.training
from harness.basics import interruption
from harness.evaluation import evaluator
from harness.records.records import Store

pytestmark = pytest.mark.faults


@pytest.fixture(autouse=True)
def heeds_ctrl_c():
    """A test session in the background of a shell ignores Ctrl-C, and so would these runs."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def first(tmp_path_factory, small):
    """The record of an undisturbed run."""
    results = tmp_path_factory.mktemp("first")
    assert wsss("run", RECIPE, *TINY, *ONE, "--data-root", small, "--results", results) == 0
    return only(results)


@pytest.fixture
def command(small, tmp_path):
    return ["run", RECIPE, *TINY, *ONE, "--data-root", small, "--results", tmp_path]


def at_step(monkeypatch, number, action):
    trainer = harness.engine.training.Trainer
    monkeypatch.setattr(trainer, "optimise", At(trainer.optimise, number, action))


def send(number):
    return lambda: os.kill(os.getpid(), number)


def checkpoints(results):
    return list(results.glob("*/*/*/*/checkpoint/last.pt"))


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
    ids=["Ctrl-C", "SIGTERM"],
)
@pytest.mark.parametrize("step", [13, 20])
def test_training_stops_at_a_checkpoint_and_goes_on(
    command, tmp_path, first, monkeypatch, capsys, number, code, word, step
):
    """Step 13 lies between two rows of the history, step 20 on one."""
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        at_step(patch, step, send(number))
        assert wsss(*command) == code
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert f"{word}: the same command goes on" in capsys.readouterr().err
    (checkpoint,) = checkpoints(tmp_path)
    assert torch.load(checkpoint, weights_only=True)["step"] == step
    assert not list(Store(tmp_path).records()), "an interrupted trial has not failed"
    assert not drafts(tmp_path)
    assert wsss(*command) == 0
    assert_same_numbers(only(tmp_path), first)
    assert only(tmp_path).data["resumed"] == step


def test_a_step_that_takes_too_long_is_not_waited_for(command, tmp_path, first, monkeypatch):
    def slow():
        send(signal.SIGTERM)()
        time.sleep(60)

    with monkeypatch.context() as patch:
        patch.setattr(interruption, "PATIENCE", 0.3)
        at_step(patch, 13, slow)
        clock = time.monotonic()
        assert wsss(*command) == 143
        assert time.monotonic() - clock < 30
    assert not checkpoints(tmp_path)
    assert wsss(*command) == 0
    assert_same_numbers(only(tmp_path), first)


def test_sigterm_reaches_a_run_under_nohup(command, tmp_path, monkeypatch):
    """A background job of a shell ignores Ctrl-C from its start."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        at_step(monkeypatch, 13, send(signal.SIGTERM))
        assert wsss(*command) == 143
    finally:
        assert signal.signal(signal.SIGINT, before) == signal.SIG_IGN
    assert checkpoints(tmp_path)
    assert not interruption.noted()


def test_a_second_signal_stops_at_once(command, tmp_path, monkeypatch):
    def twice():
        send(signal.SIGINT)()
        send(signal.SIGINT)()

    at_step(monkeypatch, 13, twice)
    assert wsss(*command) == 130
    assert not checkpoints(tmp_path)
    assert not drafts(tmp_path)


def test_an_evaluation_stops_at_once_and_keeps_the_network(command, tmp_path, first, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(
            evaluator,
            "count",
            At(evaluator.count, 4, send(signal.SIGTERM)),
        )
        assert wsss(*command) == 143
    (checkpoint,) = checkpoints(tmp_path)
    assert torch.load(checkpoint, weights_only=True)["final"]
    assert wsss(*command) == 0
    assert_same_numbers(only(tmp_path), first)


def test_a_search_stops_at_a_checkpoint_and_ends_as_an_undisturbed_one(small, tmp_path, monkeypatch):
    import json

    def search(out):
        return wsss(
            *("search", "pce/mini-scribble", "--trials", 2, "--scheduler", "asha", "--local"),
            *("--set", "schedule.steps=40", "--set", "batch.per_group=4", "--set", "crop=32"),
            *("--set", "weights=none", "--device", "cpu", "--data-root", small, "--out", out),
        )

    assert search(tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        at_step(patch, 53, send(signal.SIGTERM))  # the 13th of the second trial
        assert search(tmp_path / "cut") == 143
    assert list((tmp_path / "cut").glob("trials/0001/checkpoint/last.pt"))
    assert search(tmp_path / "cut") == 0
    whole, cut = (
        [
            (t["values"], t["measured"], t["state"])
            for t in json.loads((tmp_path / name / "search.json").read_text())["trials"]
        ]
        for name in ("whole", "cut")
    )
    assert cut == whole
