"""Signals in verbs that train nothing: the documented exit code, and no draft of a file left behind."""

from __future__ import annotations

import os
import signal
from itertools import pairwise
from pathlib import Path

import pytest
from runs import wsss

from harness import files

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@pytest.fixture(autouse=True)
def heeds_signals():
    """A test session in the background of a shell ignores Ctrl-C, one under nohup SIGHUP."""
    before = {number: signal.getsignal(number) for number in CODES}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


def interrupted(monkeypatch, moment: int, first: int, second: int | None) -> None:
    """Send one signal at the n-th writing of a file, and another one while its draft is removed."""
    sync, unlink, left = os.fsync, Path.unlink, [moment]

    def syncing(handle):
        sync(handle)
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), first)

    def unlinking(path, missing_ok=False):
        if path.name.endswith(".part") and second is not None and left[0] <= 0:
            os.kill(os.getpid(), second)
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(files.os, "fsync", syncing)
    monkeypatch.setattr(Path, "unlink", unlinking)


ORDERS = [*((s, None) for s in CODES), *((s, s) for s in CODES), *pairwise([*CODES, signal.SIGINT])]
CASES = [*(("leaderboard", *order) for order in ORDERS), *(("report", *order) for order in ORDERS[3:6])]


@pytest.mark.parametrize(("verb", "first", "second"), CASES)
def test_signals_end_a_verb_with_its_code_and_leave_no_draft(
    factory, tmp_path, monkeypatch, capsys, verb, first, second
):
    for seed in range(3):
        factory.record(factory.resolved(), seed=seed)
    before = [signal.getsignal(number) for number in CODES]
    with monkeypatch.context() as patch:
        interrupted(patch, 2 if verb == "report" else 1, first, second)
        command = [verb, "--results", factory.store.root, "--out", tmp_path / "out"]
        command += ["--no-plots"] if verb == "report" else []
        assert wsss(*command) == CODES[first]
    printed = capsys.readouterr().err
    assert "the same command goes on" in printed
    assert "Traceback" not in printed
    assert not list(tmp_path.rglob("*.part"))
    assert [signal.getsignal(number) for number in CODES] == before
