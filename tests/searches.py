"""Searches whose trials cost nothing, and what they leave."""

from __future__ import annotations

import json
import math

from harness.running.jobs.job import Event
from harness.running.search.objective import END
from harness.running.search.plan import plan_search
from harness.running.search.report import write_tables
from harness.running.search.study import open_study, run_study

RECIPE = "pce/mini-scribble"
TINY = {"schedule.steps": 40, "batch.per_group": 4, "crop": 32, "weights": "none"}
SET = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]


def nothing(job, event) -> None:
    """No display."""


def value_of(values) -> float:
    """A smooth function of the hyper-parameters with its maximum, 80, inside the space."""
    distance = (math.log10(values["optimiser.lr"]) + 2.2) ** 2
    return 80 - 20 * distance - 5 * (values["config.backbone_lr_scale"] - 0.5) ** 2


def pretend(job):
    """A trial without training: half its value at the middle, its value at the end."""
    value = value_of(job.trial.overrides)
    for point in job.points:
        yield Event(values=((point, value * point / 100),))
    yield Event(values=((END, value),))


def plan(options, trials=12, **changes):
    return plan_search(RECIPE, trials, overrides=TINY, options=options, **changes)


def finish(plan):
    with open_study(plan) as study:
        run_study(study, nothing)
        write_tables(study)
        return [(t.number, t.state.name, t.params, t.value) for t in study.trials]


def table(plan):
    return json.loads((plan.folder / "search.json").read_text())
