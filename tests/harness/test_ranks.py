"""A trial of several processes on Ray: a rank dies, and the trial ends with the same numbers."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from fault_tools import parent

from harness.cli.main import cli, invoke
from harness.records.records import Record, Store

RECIPE = "agmm/mini-scribble"


def run(results: Path, data: Path, *more: str) -> Record:
    values = {"schedule.steps": 40, "batch.groups": 2, "batch.per_group": 2, "crop": 48}
    command = ["run", RECIPE, "--seed", "0", "--device", "cpu", "--processes-per-trial", "2"]
    command += [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    command += ["--data-root", str(data), "--results", str(results), "--checkpoint-seconds", "0", *more]
    assert invoke(cli, command) == 0
    (record,) = Store(results).records()
    return record


def ranks() -> list[int]:
    """Processes that do another rank's work just now, for the Ray that this process has started."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if not (place / "cmdline").read_bytes().startswith(b"ray::Rank.work"):
                continue
            process = int(place.name)
            while process > 1 and process != os.getpid():
                process = parent(process)
        except OSError:  # it has ended meanwhile
            continue
        if process == os.getpid():  # another test on this machine may have ranks too
            found.append(int(place.name))
    return found


def kill_once(results: Path, killed: list[int], stop: threading.Event) -> None:
    """SIGKILL the second process of the trial when training is under way."""
    while not stop.is_set():
        rows = [len(f.read_text().splitlines()) for f in results.glob("*/*/*/*/history.csv")]
        if rows and rows[0] >= 2 and (pids := ranks()):
            os.kill(pids[0], signal.SIGKILL)
            killed.append(pids[0])
            return
        time.sleep(0.01)


@pytest.mark.faults
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="reads Linux's /proc")
def test_a_killed_rank_restarts_its_trial_from_the_checkpoint_with_the_same_numbers(
    tmp_path, small, local_ray
):
    whole = run(tmp_path / "whole", small)
    killed: list[int] = []
    stop = threading.Event()
    killer = threading.Thread(target=kill_once, args=(tmp_path / "broken", killed, stop))
    killer.start()
    try:
        broken = run(tmp_path / "broken", small)
    finally:
        stop.set()
        killer.join()
    assert killed, "the run was over before a rank could be killed"
    assert broken.data["hardware"]["processes"] == 2
    assert broken.data["resumed"] > 0
    states = [
        torch.load(r.path / "checkpoint" / "last.pt", weights_only=True)["method"] for r in (whole, broken)
    ]
    assert all(torch.equal(states[1][k], v) for k, v in states[0].items())
    np.testing.assert_array_equal(whole.history().to_numpy(), broken.history().to_numpy())
    a, b = (r.evaluations["val-single"].per_image for r in (whole, broken))
    np.testing.assert_array_equal(a.intersection, b.intersection)
