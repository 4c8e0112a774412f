"""The same search for every recipe of a table, then training anew: what ``wsss tune`` does."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.basics.errors import UserError
from harness.basics.text import one_line
from harness.data.sets.own import register
from harness.recipes.given import Given, given
from harness.recipes.resolving import resolve
from harness.records.called import called_rows
from harness.running.jobs.job import Resources
from harness.running.search.objective import HELD_OUT, choose_objective
from harness.running.search.plan import SAMPLERS, plan_search
from harness.running.search.searching import SearchDisplay, Searched, search, silent
from harness.running.search.study import Study
from harness.running.trials.display import Outcome
from harness.running.trials.execution import execute
from harness.running.trials.trial import Options, Trial

#: Samplers that give every recipe the trials asked for, however small its space.
BUDGET_SAMPLERS = tuple(name for name in SAMPLERS if name != "grid")


@dataclass(frozen=True)
class Tuned:
    """A recipe and what its search has found.

    Attributes:
        recipe: its name.
        overrides: values of the command line, the same for all trials.
        best: those of the best trial, the command line's among them.
        own: whether the best trial is that of the recipe's own values.
        found: the search.
    """

    recipe: str
    overrides: Mapping[str, Any]
    best: Mapping[str, Any]
    own: bool
    found: Searched


@dataclass(frozen=True)
class Tuning:
    """What became of all recipes.

    Attributes:
        recipes: in the order asked for.
        trials: of each search.
        seeds: that each configuration was trained with in the end.
        sampler, scheduler: of all searches.
        outcomes: of the last trainings; empty while a search lacks trials.
        failed: trials of searches that have failed.
    """

    recipes: tuple[Tuned, ...]
    trials: int
    seeds: tuple[int, ...]
    sampler: str
    scheduler: str
    outcomes: tuple[Outcome, ...]
    failed: int


def tune(
    targets: Sequence[str],
    trials: int = 16,
    seeds: int = 3,
    *,
    overrides: Mapping[str, Any] | None = None,
    sampler: str = "random",
    scheduler: str = "asha",
    seed: int = 0,
    objective_split: str = HELD_OUT,
    share: float = 0.2,
    options: Options | None = None,
    resources: Resources | None = None,
    say: Callable[[str], None] = warnings.warn,
    display: Callable[[Study], SearchDisplay] = silent,
) -> Tuning:
    """Search every recipe with the same budget, then train it as it is and with the best values found.

    All searches have the same number of trials, sampler, scheduler and seed, and measure on the same part
    of the training split, or on the same split that no recipe reports on. Each of them is the one that
    ``wsss search`` would run, and goes on where it stopped.

    Args:
        targets: recipes, patterns of recipes, suites, or recipe files.
        trials: of each search.
        seeds: of each configuration in the end, from 0 on.
        overrides: values by dotted key, for all of them.
        sampler: one of :data:`BUDGET_SAMPLERS`.
        scheduler, seed, objective_split, share: as for :func:`harness.running.search.searching.search`.
        options: where and how; usual ones by default.
        resources: of each trial on Ray; None runs one trial after another in this process.
        say: is told what a user should know before it starts.
        display: makes what shows each search.

    Raises:
        UserError: a recipe that cannot be searched, or a split that one reports on; before any trial.
    """
    options = options or Options()
    register(options.data_roots)
    if sampler == "grid":
        raise UserError(
            "a grid has as many trials as a space is large, which is no equal budget",
            where="--sampler",
            remedy=f"one of {', '.join(BUDGET_SAMPLERS)}",
        )
    asked = {
        _key(one): one for target in targets for one in given(target, overrides, called_rows(options.store))
    }
    usual: dict[str, Any] = {
        "sampler": sampler,
        "scheduler": scheduler,
        "seed": seed,
        "objective_split": objective_split,
        "share": share,
        "options": options,
    }
    for one in asked.values():
        if choose_objective(resolve(one.name, one.overrides).recipe, objective_split, share).reported:
            raise UserError(
                f"{one.name} reports numbers on {objective_split!r}: whatever is selected on it is no result",
                where="--objective-split",
                remedy=f"use {HELD_OUT!r}, or a split that is not reported",
            )
    for one in asked.values():
        if plan_search(one.name, trials, overrides=one.overrides, **usual).own is None:
            say(f"note: the own values of {one.name} lie outside of its search space: no trial has them")
    tuned, failed = [], 0
    for place, one in enumerate(asked.values(), 1):
        say(f"search {place} of {len(asked)}: {one.name}")
        found = search(
            one.name, trials, overrides=one.overrides, resources=resources, say=say, display=display, **usual
        )
        missing = trials - found.counts.get("finished", 0) - found.counts.get("pruned", 0)
        if missing and not found.failed:
            say(f"note: the space of {one.name} has {missing} trials fewer than were asked for")
        failed += found.failed
        best = max(
            (t for t in found.trials if t["miou"] is not None),
            key=lambda t: (t["miou"], -t["number"]),
            default=None,
        )
        own = best is None or best["own"]
        tuned.append(Tuned(one.name, one.overrides, dict(found.best) or one.overrides, own, found))
    last: list[Trial] = []
    for each in tuned if not failed else ():
        last += [Trial(each.recipe, number, dict(each.overrides)) for number in range(seeds)]
        if not each.own:
            called = one_line(f"tuned by {trials} trials on {_where(each.found.stamp)}", 60)
            last += [Trial(each.recipe, number, dict(each.best), called) for number in range(seeds)]
    outcomes = tuple(execute(last, options, resources)) if last else ()
    return Tuning(tuple(tuned), trials, tuple(range(seeds)), sampler, scheduler, outcomes, failed)


def _where(stamp: str) -> str:
    """What a search compared its trials on, in fewer words than its stamp."""
    return stamp.removeprefix("selected on ").replace("the split ", "").replace("'", "")


def _key(one: Given) -> tuple[str, str]:
    return one.name, repr(sorted(one.overrides.items()))
