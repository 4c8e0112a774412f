"""A search from its first trial to its report: what ``wsss search`` does."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from harness.running.jobs.job import Event, Resources
from harness.running.search.analysis import compared_trials
from harness.running.search.objective import HELD_OUT, SearchJob
from harness.running.search.plan import plan_search
from harness.running.search.plots import write_study_plots
from harness.running.search.report import (
    best_overrides,
    importance_table,
    run_line,
    trial_rows,
    verdict,
    write_study_report,
    write_tables,
)
from harness.running.search.study import Study, best_trial, open_study, run_study
from harness.running.trials.trial import Options
from harness.running.watching.trackers import require


class SearchDisplay(Protocol):
    """What shows a search while it runs."""

    def update(self, job: SearchJob, event: Event) -> None:
        """A trial has come to a step, or was measured."""

    def close(self) -> None:
        """The search has ended, or was interrupted."""


class _Silent:
    def __init__(self, study: Study) -> None:
        pass

    def update(self, job: SearchJob, event: Event) -> None:
        """Nothing is shown."""

    def close(self) -> None:
        """Nothing is left."""


def silent(study: Study) -> SearchDisplay:
    """A display that shows nothing."""
    return _Silent(study)


@dataclass(frozen=True)
class Searched:
    """What a search has found.

    Attributes:
        folder: journal, tables, plots and ``best.toml``.
        shown: the folder as a user knows it, a URI where the store has one.
        best: overrides of the best trial; empty where none has finished.
        miou: of the best trial, in percent, on what the search measures; None where none has finished.
        verdict: whether the recipe's own values were beaten, in one sentence.
        importances: share of each hyper-parameter, as a text table.
        command: what trains the best configuration; empty where none has finished.
        counts: trials by state, over all runs of this search.
        failed: trials that failed in this run.
        trials: every trial in its order, as :func:`harness.running.search.report.trial_rows` gives it.
        stamp: what the best was selected on.
        pictures: number of pictures with masks that trials were compared on.
    """

    folder: Path
    shown: str
    best: Mapping[str, Any]
    miou: float | None
    verdict: str
    importances: str
    command: str
    counts: Mapping[str, int]
    failed: int
    trials: Sequence[Mapping[str, Any]]
    stamp: str
    pictures: int


def search(
    recipe: str,
    trials: int = 16,
    *,
    overrides: Mapping[str, Any] | None = None,
    sampler: str = "tpe",
    scheduler: str = "asha",
    seed: int = 0,
    objective_split: str = HELD_OUT,
    share: float = 0.2,
    grid_points: int = 3,
    warm_start: Sequence[Path] = (),
    options: Options | None = None,
    resources: Resources | None = None,
    out: Path | None = None,
    say: Callable[[str], None] = warnings.warn,
    display: Callable[[Study], SearchDisplay] = silent,
) -> Searched:
    """Search hyper-parameters of a recipe until so many trials have finished; continues an earlier search.

    Args:
        recipe, trials, overrides, sampler, scheduler, seed, objective_split, share, grid_points, options,
            out: as :func:`harness.running.search.plan.plan_search` takes them.
        warm_start: folders of earlier searches, whose finished trials the sampler learns from.
        resources: of each trial on Ray; None searches in this process.
        say: is told what was taken over, and how large a grid is.
        display: makes what shows the search.

    Raises:
        UserError: what :func:`plan_search` refuses; a damaged or foreign journal; Ray cannot be used.
    """
    plan = plan_search(
        recipe,
        trials,
        overrides=overrides,
        sampler=sampler,
        scheduler=scheduler,
        seed=seed,
        objective_split=objective_split,
        share=share,
        grid_points=grid_points,
        options=options,
        out=out,
    )
    with open_study(plan) as study:
        for earlier in warm_start:
            say(f"{study.warm_start(earlier.absolute())} trials taken over from {earlier}")
        if study.wanted < trials:
            say(f"the grid has {study.wanted} trials")
        require(plan.options.trackers, plan.options.tracking)
        failed_before = study.counts()["failed"]
        board = display(study)
        try:
            run_study(study, board.update, resources)
        finally:
            board.close()
            write_tables(study)
        comparison = compared_trials(study)
        write_study_report(study, comparison)
        write_study_plots(study, comparison)
        counts, best, finished = study.counts(), best_overrides(study), best_trial(study)
        return Searched(
            folder=plan.folder,
            shown=plan.store.shown(plan.folder),
            best=best,
            miou=None if finished is None else finished.value,
            verdict=verdict(study),
            importances=importance_table(comparison),
            command=run_line(study) if best else "",
            counts=dict(counts),
            failed=counts["failed"] - failed_before,
            trials=trial_rows(study),
            stamp=plan.objective.stamp,
            pictures=plan.pictures,
        )
