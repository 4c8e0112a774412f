"""Signals in verbs that train nothing: the documented exit code, and no draft of a file left behind."""

from __future__ import annotations

import os
import signal
from itertools import cycle, pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image
from runs import wsss

from harness.basics import files
from harness.engine.networks import build_method
from harness.recipes.resolving import resolve

NETWORK = "full/mini-full"
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
CASES = [
    *(("leaderboard", *order) for order in ORDERS),
    *(("report", *order) for order in ORDERS[3:6]),
    *(("plot", *order) for order in ORDERS[:2]),
    *(("claims", *order) for order in ORDERS[2:4]),
]
#: What each verb needs beside its store, and the writing of a file at which it is interrupted.
WORDS = {
    "leaderboard": ([], 1),
    "report": (["--no-plots"], 2),
    "plot": (["--kind", "per-class"], 1),
    "claims": ([], 1),
}


@pytest.mark.parametrize(("verb", "first", "second"), CASES)
def test_signals_end_a_verb_with_its_code_and_leave_no_draft(
    factory, tmp_path, monkeypatch, capsys, verb, first, second
):
    for seed in range(3):
        factory.record(factory.resolved(), seed=seed)
    monkeypatch.setattr("harness.cli.report._recipes", dict)
    before = [signal.getsignal(number) for number in CODES]
    with monkeypatch.context() as patch:
        words, moment = WORDS[verb]
        interrupted(patch, moment, first, second)
        command = [verb, "--results", factory.store.root, "--out", tmp_path / "out", *words]
        assert wsss(*command) == CODES[first]
    printed = capsys.readouterr().err
    assert "the same command goes on" in printed
    assert "Traceback" not in printed
    assert not list(tmp_path.rglob("*.part"))
    assert [signal.getsignal(number) for number in CODES] == before


#: Other verbs, and the writings of a file at which they are interrupted: the first, and one in the middle.
OTHERS = {
    "evaluate": (f"{NETWORK} --checkpoint {{weights}} --device cpu --save {{out}}", 1, 3),
    "export": (f"{NETWORK} --checkpoint {{weights}} --device cpu --output segmentation --out {{out}}", 1, 5),
    "predict": (f"{NETWORK} {{pictures}} --checkpoint {{weights}} --device cpu --out {{out}}", 1, 4),
    "data labels": ("mini --kind scribble --out {out}", 1, 7),
    "data show": ("mini --number 1 --out {out}/sheet.png", 1),
    "data verify": ("mini --json {out}/report.json", 1, 2),
    "data miniature": ("voc2012 {out}", 1, 9),
}
MOMENTS = [(verb, moment) for verb, (_, *moments) in OTHERS.items() for moment in moments]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A checkpoint of a network that nobody has trained."""
    method = build_method(resolve(NETWORK), torch.device("cpu"), seed=0)
    file = tmp_path_factory.mktemp("network") / "last.pt"
    torch.save({"method": method.state_dict()}, file)
    return file


@pytest.mark.parametrize(
    ("verb", "moment", "first", "second"),
    [(verb, n, *order) for (verb, n), order in zip(MOMENTS, cycle(ORDERS), strict=False)],
)
def test_signals_end_work_on_pictures_and_the_same_command_goes_on(
    small, weights, tmp_path, monkeypatch, capsys, verb, moment, first, second
):
    monkeypatch.setenv("WSSS_CACHE", str(tmp_path / "cache"))
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    pictures.mkdir()
    for number in range(3):
        Image.new("RGB", (40, 30), (number, 90, 200)).save(pictures / f"{number}.png")
    words = OTHERS[verb][0].format(weights=weights, out=out, pictures=pictures).split()
    command = [
        *verb.split(),
        *words,
        *([] if verb in ("predict", "data miniature") else ["--data-root", small]),
    ]
    with monkeypatch.context() as patch:
        interrupted(patch, moment, first, second)
        assert wsss(*command) == CODES[first]
    printed = capsys.readouterr().err
    assert "the same command goes on" in printed
    assert "Traceback" not in printed
    assert not list(tmp_path.rglob("*.part"))
    assert wsss(*command) == 0, capsys.readouterr().err
