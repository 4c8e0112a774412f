"""What a run would do and cost, from the records that are there: ``wsss run --dry-run``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from harness.errors import UserError
from harness.execution import Resources, waves
from harness.records import Record, Store
from harness.trial import Options, Trial, inspect, prepare


@dataclass(frozen=True)
class Forecast:
    """One trial before it runs.

    Attributes:
        trial: which.
        state: ``finished``, ``new``, ``goes on`` (a checkpoint is there), or ``waits`` for the labels of
            another trial.
        steps: optimiser steps of the whole run.
        seconds: left to do, from recorded rates; None where nothing like it was recorded, 0 when finished.
        mebibytes: what its record will take, from recorded ones; None likewise.
        basis: which records the estimate rests on.
    """

    trial: Trial
    state: str
    steps: int
    seconds: float | None
    mebibytes: float | None
    basis: str


def forecast(trials: Sequence[Trial], options: Options) -> list[Forecast]:
    """Check every trial as a run would, and estimate it.

    The estimate of a trial rests on finished records of its recipe: their median rate of steps and the
    time of their evaluations. Records of other overrides count where there are none of the same ones.

    Raises:
        UserError: a mistake that a run would be refused for.
    """
    finished = [r for r in Store(options.results).records() if r.finished]
    return [_one(trial, options, finished) for wave in waves(trials) for trial in wave]


def _one(trial: Trial, options: Options, finished: Sequence[Record]) -> Forecast:
    steps = inspect(trial, options).steps
    alike = [r for r in finished if r.name == trial.name and r.data.get("steps_per_second")]
    try:
        prepared = prepare(trial, options)
    except UserError:  # inspect has passed: its labels come from a trial that has not run
        state, same = "waits", alike
    else:
        same = [r for r in alike if r.digest == prepared.digest] or alike
        there = (prepared.folder / "checkpoint" / "last.pt").exists()
        state = "finished" if prepared.done else "goes on" if there else "new"
    if state == "finished":
        return Forecast(trial, state, steps, 0.0, 0.0, "")
    if not same:
        return Forecast(trial, state, steps, None, None, "no record of this recipe")
    seconds = median(
        steps / r.data["steps_per_second"] + sum(e.data["seconds"] for e in r.evaluations.values())
        for r in same
    )
    size = median(_size(r.path) for r in same)
    return Forecast(trial, state, steps, seconds, size, f"{len(same)} record{'s' * (len(same) > 1)}")


def _size(folder: Path) -> float:
    """MiB of all files below a folder."""
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 2**20


def concurrent(resources: Resources | None) -> int | None:
    """How many trials run at a time on this machine; None for a cluster, which was not asked."""
    if resources is None:
        return 1
    if resources.address is not None:
        return resources.max_concurrent
    fit = (os.cpu_count() or 1) / resources.cpus_per_trial
    if resources.gpus_per_trial:
        fit = min(fit, torch.cuda.device_count() / resources.gpus_per_trial)
    return max(min(int(fit), resources.max_concurrent or int(fit)), 1)


def wall_seconds(rows: Sequence[Forecast], at_a_time: int) -> float | None:
    """Time until all have ended, at least; None where a trial's is unknown."""
    left = [r.seconds for r in rows]
    known = [s for s in left if s is not None]
    if len(known) < len(left):
        return None
    return max(sum(known) / at_a_time, max(known, default=0.0))
