"""Methods with equal budgets: expected best scores, and rows as published beside rows equally tuned."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from harness.recipes.resolving import resolve
from harness.recipes.row_names import values_text
from harness.running.search.tuning import Tuned, Tuning
from leaderboards.rows.configurations import Configurations
from leaderboards.rows.row import Row
from leaderboards.rows.statistics import Interval, two_level_difference
from leaderboards.rows.tables import leaderboard


def expected_best(values: Sequence[float], first: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of the best of the first n trials, for every n.

    Trials are drawn from those that were run, without replacement: with m values in ascending order, the
    best of n is the i-th with probability C(i - 1, n - 1) / C(m, n). That mean is unbiased for n trials of
    random search, which the estimate of Dodge et al. (EMNLP 2019, "Show Your Work", section 3), who draw
    with replacement, is not (Tang et al., ACL 2020, "Showing Your Work Doesn't Always Work").

    Args:
        values: scores of the m trials that could have come in any order.
        first: the score of a trial that always comes first, such as that of a recipe's own values.

    Returns:
        Two arrays of length m, or m + 1 with a first trial; the best of all has no deviation.
    """
    ordered, m = sorted(values), len(values)
    start = -math.inf if first is None else first
    means = [] if first is None else [first]
    deviations = [] if first is None else [0.0]
    best = np.maximum(np.array(ordered, dtype=np.float64), start)
    for n in range(1, m + 1):
        i = np.arange(n, m, dtype=np.float64)  # from the highest down, C(i - 1, n - 1) / C(i, n - 1)
        shares = n / m * np.append(((i - n + 1) / i)[::-1].cumprod()[::-1], 1.0)
        mean = float(shares @ best[n - 1 :])
        means.append(mean)
        deviations.append(math.sqrt(float(shares @ (best[n - 1 :] - mean) ** 2)))
    return np.array(means), np.array(deviations)


@dataclass(frozen=True)
class BudgetRow:
    """A recipe as it is and equally tuned. Figures in percent or points of mIoU; NaN where there is none.

    Attributes:
        tuned: the recipe and its search.
        published, best: rows of either configuration; None where it has no record.
        difference: best minus published over images and seeds; None where one is missing, or both are one.
        places: of either mean among the recipes of this data set and supervision, 1 for the highest.
        mean, std: of the best score for each number of trials, on the pictures that trials were compared on;
            the trial of the recipe's own values comes first.
        drawn, drawn_std: the same without that trial: what a search alone finds.
        masks: pictures whose masks the search has seen; the recipe as it is needs none of them.
        search_hours, training_hours: of all trials of the search, and of the trainings at the end.
        changed: the values that the search has chosen.
    """

    tuned: Tuned
    published: Row | None
    best: Row | None
    difference: Interval | None
    places: tuple[int, int]
    mean: np.ndarray
    std: np.ndarray
    drawn: np.ndarray
    drawn_std: np.ndarray
    masks: int
    search_hours: float
    training_hours: float
    changed: str


def trial_score(trial: Mapping[str, Any]) -> float | None:
    """What counts of a trial: its last measurement, 0 for one that diverged before any; None for one that
    failed. One that was stopped early counts with what it had reached."""
    if trial["state"] not in ("finished", "pruned", "diverged"):
        return None
    measured = {int(percent): value for percent, value in trial["measured"].items()}
    return float(measured[max(measured)]) if measured else 0.0


def budget_rows(
    frame: pd.DataFrame, tuning: Tuning, recipes: Mapping[str, Any], resamples: int = 1000
) -> list[BudgetRow]:
    """One row for each recipe, in the order asked for.

    Args:
        frame: from :func:`leaderboards.rows.gathering.gather_records`.
        tuning: what was searched and trained.
        recipes: name to ``Resolved``: what counts as stale.
        resamples: of the intervals over images.
    """
    known = Configurations(frame)
    found = []
    for one in tuning.recipes:
        own = {one.recipe: recipes[one.recipe]} if one.recipe in recipes else {}
        sides = [
            _standing(known, one.recipe, values, own, tuning.seeds, resamples)
            for values in (one.overrides, one.overrides if one.own else one.best)
        ]
        found.append(_row(one, *sides))
    return [_placed(row, found) for row in found]


def _standing(
    known: Configurations,
    recipe: str,
    values: Mapping[str, Any],
    recipes: Mapping[str, Any],
    seeds: Sequence[int],
    resamples: int,
) -> Row | None:
    lines = known.with_values(recipe, values)
    if lines.empty:
        return None
    name = resolve(recipe, values).recipe.usual_evaluation.name
    lines = lines[lines["seed"].isin(seeds) & (lines["evaluation"] == name)]
    rows = leaderboard(lines, recipes, resamples=resamples) if len(lines) else []
    return next((row for row in rows if row.n and row.verdict != "stale"), None)


def _row(one: Tuned, published: Row | None, best: Row | None) -> BudgetRow:
    difference = None
    if published is not None and best is not None and not one.own:
        runs = [[run.per_image for run in row.runs] for row in (best, published)]
        classes = best.runs[0].data["protocol"]["classes"]
        difference = two_level_difference(*runs, classes=classes).difference
    scores = [(trial["own"], trial_score(trial)) for trial in one.found.trials]
    first = next((score for own, score in scores if own and score is not None), None)
    others = [s for own, s in scores if not own and s is not None]
    mean, std = expected_best(others, first)
    drawn, drawn_std = expected_best(others)
    seconds = sum(float(trial["seconds"] or 0.0) for trial in one.found.trials)
    trained = sum(
        float(record.data.get("seconds") or 0.0)
        for row in ((published,) if one.own else (published, best))
        if row is not None
        for record in row.records
    )
    chosen = {k: v for k, v in one.best.items() if k not in one.overrides}
    rounded = {k: float(f"{v:.3g}") if isinstance(v, float) else v for k, v in chosen.items()}
    return BudgetRow(
        tuned=one,
        published=published,
        best=best,
        difference=difference,
        places=(0, 0),
        mean=mean,
        std=std,
        drawn=drawn,
        drawn_std=drawn_std,
        masks=one.found.pictures,
        search_hours=seconds / 3600,
        training_hours=trained / 3600,
        changed="" if one.own else values_text(rounded),
    )


def _placed(row: BudgetRow, rows: Sequence[BudgetRow]) -> BudgetRow:
    places = []
    for side in ("published", "best"):
        own = getattr(row, side)
        if own is None:
            places.append(0)
            continue
        others = [getattr(other, side) for other in rows]
        table = (own.dataset, own.supervision)
        higher = [
            r for r in others if r is not None and (r.dataset, r.supervision) == table and r.mean > own.mean
        ]
        places.append(1 + len(higher))
    return replace(row, places=(places[0], places[1]))


def budget_lines(rows: Sequence[BudgetRow]) -> list[dict[str, Any]]:
    """Plain values: one line for each recipe and number of trials."""
    lines = []
    for row in rows:
        states = [trial["state"] for trial in row.tuned.found.trials]
        base: dict[str, Any] = {"recipe": row.tuned.recipe}
        for side, own in (("published", row.published), ("tuned", row.best)):
            for key in ("mean", "std", "low", "high"):
                base[f"{side}_{key}"] = math.nan if own is None else getattr(own, key)
            base[f"{side}_n"] = 0 if own is None else own.n
        for key in ("estimate", "low", "high"):
            base[f"difference_{key}"] = math.nan if row.difference is None else getattr(row.difference, key)
        base |= {
            "place_published": row.places[0],
            "place_tuned": row.places[1],
            "changed": row.changed,
            "masks": row.masks,
            "search_hours": row.search_hours,
            "training_hours": row.training_hours,
            "stopped_early": states.count("pruned") + states.count("diverged"),
        }
        lines += [
            base
            | {"trials": n, "expected_best": float(mean), "expected_best_std": float(std)}
            | {
                key: float(values[n - 1]) if n <= len(values) else math.nan
                for key, values in (("drawn_best", row.drawn), ("drawn_best_std", row.drawn_std))
            }
            for n, (mean, std) in enumerate(zip(row.mean, row.std, strict=True), 1)
        ]
    return lines
