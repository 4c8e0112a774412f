"""What a search is: recipe, space, sampler, scheduler and objective, checked before the first trial."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)

from harness.basics.errors import UserError, nearest, words
from harness.basics.registry import METHODS
from harness.basics.schema import digest
from harness.data.sets.own import register
from harness.engine import distributed
from harness.engine.loader import StepSampler
from harness.recipes.given import one
from harness.recipes.resolving import explain, resolve
from harness.records.called import called_rows
from harness.records.object_store import beside
from harness.records.records import Store
from harness.running.search.objective import HELD_OUT, Objective, choose_objective, held_out
from harness.running.trials.trial import Options, Trial, forget_data, prepare

SAMPLERS = ("tpe", "cmaes", "random", "grid", "gp")
#: Scheduler -> percent of training at which trials are compared. [our choice; weakly supervised methods
#: often start with a warm-up phase, so none is judged before a quarter of its training]
SCHEDULERS: Mapping[str, tuple[int, ...]] = {"asha": (25, 50), "median": (25, 50, 75), "none": ()}


@dataclass(frozen=True)
class SearchPlan:
    """A checked search.

    Attributes:
        recipe: recipe name.
        overrides: dotted key to value, the same for all trials; keys of the space that stand here are
            not searched.
        space: dotted key to distribution.
        own: the recipe's own values of the space; None where they lie outside of it.
        trials: how many trials shall have finished or been pruned in the end.
        sampler, scheduler: names of :data:`SAMPLERS` and :data:`SCHEDULERS`.
        seed: seed of the sampler, and of every trial: trials differ in hyper-parameters alone.
        objective: what is maximised.
        pictures: number of pictures that it is measured on.
        options: where and how trials run.
        folder: the study's folder.
        digest: over all that defines the study, the number of trials left out.
        grid_points: grid sampler: values per number; categories are all taken.
    """

    recipe: str
    overrides: Mapping[str, Any]
    space: Mapping[str, BaseDistribution]
    own: Mapping[str, Any] | None
    trials: int
    sampler: str
    scheduler: str
    seed: int
    objective: Objective
    pictures: int
    options: Options
    folder: Path
    digest: str
    grid_points: int = 3

    @property
    def store(self) -> Store:
        """The record store of the search's trials."""
        return self.options.store

    @property
    def processes(self) -> int:
        """Processes that share the groups of each trial."""
        return self.options.processes or resolve(self.recipe, self.overrides).recipe.batch.groups


def _space_of(method: Any) -> Mapping[str, Any]:
    """What a method's class gives as its search space. Raises UserError where it is none."""
    where = f"{method.__module__}.{method.__qualname__}.search_space"
    try:
        space = method.search_space()
    except Exception as error:
        problem = f"search_space() of {method.name!r} raises {type(error).__name__}: {words(error)}"
        raise UserError(problem, where=where, remedy="see docs/searching.md") from error
    if not isinstance(space, Mapping) or not all(
        isinstance(k, str) and isinstance(d, BaseDistribution) for k, d in space.items()
    ):
        raise UserError(
            f"search_space() of {method.name!r} gives no distributions by name",
            where=where,
            remedy='return, for instance, {"optimiser.lr": FloatDistribution(1e-4, 1e-1, log=True)}',
        )
    return space


def plan_search(
    recipe: str,
    trials: int,
    *,
    overrides: Mapping[str, Any] | None = None,
    sampler: str = "tpe",
    scheduler: str = "asha",
    seed: int = 0,
    objective_split: str = HELD_OUT,
    share: float = 0.2,
    grid_points: int = 3,
    options: Options | None = None,
    out: Path | None = None,
) -> SearchPlan:
    """Check a search as far as can be done without training.

    Args:
        recipe: recipe name.
        trials: number of trials, at least 1; fewer for a grid that is smaller.
        overrides: dotted key to value.
        sampler: one of :data:`SAMPLERS`.
        scheduler: one of :data:`SCHEDULERS`.
        seed: of the sampler and of every trial.
        objective_split: ``held-out`` or a split of the data set.
        share: held-out part of the training split.
        grid_points: values per number of the grid sampler.
        options: where and how trials run.
        out: folder of the study; by default ``search/<recipe>/<digest>`` beside the record store, within a
            store under a URI.

    Raises:
        UserError: an unknown name, a method without a search space, a sampler whose package is missing,
            or anything that a trial of the recipe itself would be refused for.
    """
    forget_data()
    options = options or Options()
    register(options.data_roots)
    asked = one(recipe, overrides, called_rows(options.store))
    recipe, overrides = asked.name, dict(asked.overrides)
    for name, known, option in ((sampler, SAMPLERS, "sampler"), (scheduler, SCHEDULERS, "scheduler")):
        if name not in known:
            raise UserError(f"unknown {option} {name!r}", where=f"--{option}", remedy=nearest(name, known))
    if sampler == "cmaes" and importlib.util.find_spec("cmaes") is None:
        raise UserError(
            "the sampler 'cmaes' needs the package cmaes", where="--sampler", remedy="pip install cmaes"
        )
    if trials < 1:
        raise UserError(f"a search needs at least one trial, not {trials}", where="--trials")
    resolved = resolve(recipe, overrides)
    distributed.check_groups(resolved.recipe, options.processes or resolved.recipe.batch.groups)
    method = METHODS.get(resolved.recipe.method)
    whole = {k if "." in k else f"config.{k}": d for k, d in _space_of(method).items()}
    if not whole:
        raise UserError(
            f"the method {resolved.recipe.method!r} has no search space",
            where=recipe,
            remedy="give its class a search_space(), see docs/searching.md",
        )
    space = {k: d for k, d in whole.items() if k not in overrides}
    if not space:
        raise UserError("every key of the search space is fixed by --set", where="--set")
    values = {row[0]: row[1] for row in explain(resolved)}
    unknown = [k for k in space if k not in values]
    if unknown:
        raise UserError(
            f"search_space() of {resolved.recipe.method!r} names {unknown[0]!r}, not a value of the recipe",
            where=recipe,
            remedy=nearest(unknown[0], values),
        )
    own = {k: values[k] for k in space}
    objective = choose_objective(resolved.recipe, objective_split, share)
    inside = objective_split == HELD_OUT
    prepared = prepare(Trial(recipe, seed, overrides), options, (objective.spec,))
    ids = prepared.dataset.ids(objective.spec.split)
    scored = set(prepared.dataset.masked(objective.spec.split))
    chosen = held_out(ids, share) if inside else np.ones(len(ids), dtype=bool)
    pictures = sum(i in scored for i, out in zip(ids, chosen, strict=True) if out)
    if not pictures:
        raise UserError(
            f"none of the {int(chosen.sum())} pictures that would be held out has a mask",
            where="--held-out",
            remedy="hold out a larger share, or name a split with masks: --objective-split val",
        )
    if inside:  # refuses a rest smaller than a step
        StepSampler(len(ids) - int(chosen.sum()), resolved.recipe.batch.size, 1, seed)
    data = prepared.facts["data"]
    trained = data["splits"][resolved.recipe.train_split]["fingerprint"]
    weights = prepared.facts["weights"]["sha256"] or ""
    parts = [
        prepared.resolved.digest(trained, data["labels"]["fingerprint"], weights),
        {k: distribution_to_json(d) for k, d in space.items()},
        [sampler, grid_points if sampler == "grid" else None, scheduler, seed],
        objective.values(),
        data["splits"][objective.spec.split]["fingerprint"],
    ]
    name = digest([*parts, prepared.resolved.inference] if prepared.resolved.inference else parts)
    store = options.store
    place = beside(options.results) if store.mirror is None else store.root
    return SearchPlan(
        recipe=recipe,
        overrides=overrides,
        space=space,
        own=own if all(contains(space[k], v) for k, v in own.items()) else None,
        trials=trials,
        sampler=sampler,
        scheduler=scheduler,
        seed=seed,
        objective=objective,
        pictures=pictures,
        options=options,
        folder=(out or place / "search" / recipe / name).absolute(),
        digest=name,
        grid_points=grid_points,
    )


def contains(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a value lies in a distribution."""
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and distribution.low <= value <= distribution.high


def grid_values(distribution: BaseDistribution, points: int) -> list[Any]:
    """Values of one hyper-parameter in a grid: all categories, or numbers from low to high, evenly
    spaced (in the logarithm where the distribution is logarithmic), on the distribution's steps."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = distribution.low, distribution.high
    spaced = np.geomspace(low, high, points) if distribution.log else np.linspace(low, high, points)
    spaced = np.clip(spaced, low, high)
    if distribution.step is not None and not distribution.log:
        spaced = low + np.floor((spaced - low) / distribution.step + 1e-9) * distribution.step
    kind = int if isinstance(distribution, IntDistribution) else float
    return list(dict.fromkeys(kind(v) for v in spaced.tolist()))
