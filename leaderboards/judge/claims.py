"""Claims: what a paper says, as comparisons of recipes, and whether the records bear it out.

:mod:`leaderboards.judge.statements` reads them; :func:`judge` takes them to the records of a store. Only
records that stand in the leaderboard are read: one digest, one protocol, one data fingerprint, not stale,
and no overrides but those that the claim itself names: a recipe may be the name of a row,
``METHOD/RECIPE (config.gamma=0, crop=48)``.
"""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import pandas as pd

from harness.basics.errors import nearest
from harness.basics.registry import METHODS
from harness.basics.schema import Aside, differing, marks, neutral_values
from harness.recipes.names import data_root
from harness.recipes.row_names import row_parts
from leaderboards.judge.statements import Claim, Pair, check_suites, known_claims, recipe_of
from leaderboards.rows.configurations import Configurations
from leaderboards.rows.row import Row
from leaderboards.rows.statistics import (
    PERMUTATIONS,
    RESAMPLES,
    holm,
    permutation_test,
    seed_test,
    two_level_difference,
)
from leaderboards.rows.tables import leaderboard
from leaderboards.rows.text import DASH

ClaimVerdict = Literal["holds", "does not hold", "undecided", "not run"]
VERDICTS: tuple[ClaimVerdict, ...] = get_args(ClaimVerdict)


@dataclass(frozen=True)
class Judged:
    """A comparison taken to the records. Figures are points of mIoU; NaN where there is none.

    Attributes:
        claim, pair: what was judged.
        verdict: ``holds``: the 95 % interval lies above the bound; ``does not hold``: it lies at or below
            it; ``undecided``: it holds the bound, or one side has one seed only; ``not run``.
        difference: mean over seeds of the first recipe minus that of the second.
        low, high: 95 % interval over images and seeds, over images alone where a side has one seed.
        seed_error: standard error of the difference over seeds.
        n: finished seeds of either side.
        images: number of images.
        p_images, p_images_holm: permutation test on the images, raw and adjusted over all comparisons
            judged together.
        p_seeds, p_seeds_holm: exact test over the seeds that both sides have, from six on.
        missing: recipes without a standing record.
        command: what runs them, empty when nothing is missing or nothing here can run it.
        notes: what a reader must know.
    """

    claim: Claim
    pair: Pair
    verdict: ClaimVerdict = "not run"
    difference: float = math.nan
    low: float = math.nan
    high: float = math.nan
    seed_error: float = math.nan
    n: tuple[int, int] = (0, 0)
    images: int = 0
    p_images: float = math.nan
    p_images_holm: float = math.nan
    p_seeds: float = math.nan
    p_seeds_holm: float = math.nan
    missing: tuple[str, ...] = ()
    command: str = ""
    notes: tuple[str, ...] = field(default=())


# --- judging -------------------------------------------------------------------------------------------


def decide(low: float, high: float, bound: float) -> ClaimVerdict:
    """``holds``: the interval lies above the bound; ``does not hold``: at or below it; else ``undecided``."""
    if low > bound:
        return "holds"
    return "does not hold" if high <= bound else "undecided"


def judge(
    frame: pd.DataFrame,
    recipes: Mapping[str, Any],
    *,
    suites_wanted: Sequence[str] = (),
    known: Mapping[str, Claim] | None = None,
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
) -> list[Judged]:
    """Take claims to the records.

    Args:
        frame: from :func:`leaderboards.rows.gathering.gather_records`.
        recipes: name to ``Resolved``: what can be run, and what counts as stale.
        suites_wanted: only comparisons of these suites.
        known: all claims by default.
        resamples, permutations: of the bootstrap and of the permutation test.

    Returns:
        One entry for each comparison, in file order.

    Raises:
        UserError: an unknown suite.
    """
    known = known_claims() if known is None else known
    check_suites(suites_wanted, known)
    chosen = [
        (claim, pair)
        for claim in known.values()
        for pair in claim.comparisons
        if not suites_wanted or set(suites_wanted) & set(pair.suites)
    ]
    needed = {name for _, pair in chosen for name in (pair.better, pair.worse)}
    own = frame[frame["name"].isin(needed) & (frame["overrides"] == "")] if len(frame) else frame
    rows = leaderboard(own, {n: r for n, r in recipes.items() if n in needed}, resamples=0)
    rows += _by_row_name([name for name in sorted(needed) if row_parts(name)], frame, recipes)
    judged = [_judge(claim, pair, rows, recipes, resamples, permutations) for claim, pair in chosen]
    adjusted = zip(holm([j.p_images for j in judged]), holm([j.p_seeds for j in judged]), strict=True)
    return [
        replace(j, p_images_holm=images, p_seeds_holm=seeds)
        for j, (images, seeds) in zip(judged, adjusted, strict=True)
    ]


def _by_row_name(names: Sequence[str], frame: pd.DataFrame, recipes: Mapping[str, Any]) -> list[Row]:
    """Rows with overrides that claims name, each under the name that the claim uses."""
    known = Configurations(frame)
    found: list[Row] = []
    for name in names if len(frame) else ():
        own = {recipe_of(name): recipes[recipe_of(name)]} if recipe_of(name) in recipes else {}
        lines = known.named(name)
        rows = leaderboard(lines, own, resamples=0) if len(lines) else []
        found += [replace(row, recipe=name) for row in rows if row.n]
    return found


def _judge(
    claim: Claim,
    pair: Pair,
    rows: Sequence[Row],
    recipes: Mapping[str, Any],
    resamples: int,
    permutations: int,
) -> Judged:
    names = (pair.better, pair.worse)
    found = [_standing(rows, name, pair.evaluation) for name in names]
    missing = tuple(dict.fromkeys(n for n, row in zip(names, found, strict=True) if row is None))
    if missing:
        return _not_run(claim, pair, missing, rows, recipes)
    a, b = (row for row in found if row is not None)
    return compare_rows(claim, pair, a, b, resamples=resamples, permutations=permutations)


def compare_rows(
    claim: Claim,
    pair: Pair,
    a: Row,
    b: Row,
    *,
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
) -> Judged:
    """Judge a pair by two standing rows: undecided, with the reason, where they cannot be compared."""
    notes = _obstacles(a, b)
    if notes:
        return Judged(claim, pair, "undecided", n=(a.n, b.n), notes=tuple(notes))
    runs = [[run.per_image for run in row.runs] for row in (a, b)]
    classes = a.runs[0].data["protocol"]["classes"]
    result = two_level_difference(*runs, classes=classes, resamples=resamples)
    interval = result.difference
    verdict = decide(interval.low, interval.high, pair.bound)
    if min(a.n, b.n) == 1:
        verdict = "undecided"
        notes.append(
            "one seed: how far other seeds would move it is unknown; the interval is over images alone"
        )
    for row in (a, b):
        if row.images != row.official_images:
            notes.append(f"{row.recipe}: scored on {row.images} of {row.official_images} images")
    shared = sorted(set(a.seeds) & set(b.seeds))
    scores = [[row.runs[row.seeds.index(s)].miou for s in shared] for row in (a, b)]
    return Judged(
        claim,
        pair,
        verdict,
        difference=interval.estimate,
        low=interval.low,
        high=interval.high,
        seed_error=result.seed_error,
        n=result.seeds,
        images=interval.images,
        p_images=permutation_test(*runs, classes=classes, permutations=permutations),
        p_seeds=seed_test(*scores),
        notes=tuple(notes),
    )


def _standing(rows: Sequence[Row], name: str, evaluation: str) -> Row | None:
    mine = (r for r in rows if r.recipe == name and r.evaluation == evaluation)
    return next((r for r in mine if r.n and r.verdict not in ("stale", "not run")), None)


def _obstacles(a: Row, b: Row) -> list[str]:
    """Why two standing rows cannot be compared."""
    one, other = a.runs[0].data, b.runs[0].data
    if one["data_fingerprint"] != other["data_fingerprint"]:
        return ["scored on different data"]
    from harness.recipes.protocols import Protocol

    neutral, aside = neutral_values(Protocol()), marks(Protocol, Aside)
    first, second = ({k: v for k, v in p["protocol"].items() if k not in aside} for p in (one, other))
    if differing(first, second, neutral) or differing(second, first, neutral):
        return ["scored by different versions of the protocol"]
    return []


def _not_run(
    claim: Claim, pair: Pair, missing: tuple[str, ...], rows: Sequence[Row], recipes: Mapping[str, Any]
) -> Judged:
    notes = []
    absent = False
    for name in missing:
        wanted = recipe_of(name)
        if wanted not in recipes:
            method = name.partition("/")[0]
            why = "" if method in METHODS else f", nor the method {method}"
            notes.append(f"this installation has no recipe {wanted}{why}{_meant(wanted, recipes)}")
            absent = True
            continue
        evaluations = [e.name for e in recipes[wanted].recipe.evaluation]
        if pair.evaluation not in evaluations:
            hint = nearest(pair.evaluation, evaluations)
            notes.append(f"{wanted} has no evaluation {pair.evaluation}; {hint}")
            absent = True
            continue
        mine = [r for r in rows if r.recipe == name and r.evaluation == pair.evaluation and r.notes]
        stale = next((r for r in mine if r.verdict == "stale"), None)
        hole = next((r for r in mine if r.verdict == "not run"), None)
        if stale is not None:
            notes.append(f"{name}: only stale records ({stale.notes[0]})")
        elif hole is not None:
            notes.append(f"{name}: {hole.notes[0]}")
    roots = dict.fromkeys(data_root(recipe_of(name), {}) for name in missing)
    command = "" if absent else " ".join(filter(None, ["wsss run", *map(shlex.quote, missing), *roots]))
    return Judged(claim, pair, missing=missing, command=command, notes=tuple(notes))


def _meant(name: str, known: Mapping[str, Any]) -> str:
    """The nearest names, to follow a sentence; nothing where none is near."""
    hint = nearest(name, known)
    return f"; {hint}" if hint.startswith("did you mean") else ""


# --- text ----------------------------------------------------------------------------------------------


def verdict_counts(judged: Sequence[Judged]) -> str:
    """``3 hold, 1 does not hold, 2 undecided, 4 not run``."""
    counted = Counter(j.verdict for j in judged)
    words = {"holds": "hold" if counted["holds"] != 1 else "holds"}
    words["does not hold"] = "does not hold" if counted["does not hold"] == 1 else "do not hold"
    return ", ".join(f"{counted[v]} {words.get(v, v)}" for v in VERDICTS)


#: Columns of :func:`comparison_lines`.
COMPARISON_COLUMNS = (
    "claim", "statement", "paper", "place", "better", "worse", "evaluation", "direction", "margin", "verdict",
    "difference", "low", "high", "seed_error", "n_better", "n_worse", "images", "p_images", "p_images_holm",
    "p_seeds", "p_seeds_holm", "suites", "command", "notes",
)  # fmt: skip


def comparison_lines(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """One line for each comparison, plain values."""
    return [
        {
            "claim": j.claim.id,
            "statement": j.claim.statement,
            "paper": j.claim.paper,
            "place": j.claim.place,
            "better": j.pair.better,
            "worse": j.pair.worse,
            "evaluation": j.pair.evaluation,
            "direction": j.pair.direction,
            "margin": j.pair.margin,
            "verdict": j.verdict,
            "difference": j.difference,
            "low": j.low,
            "high": j.high,
            "seed_error": j.seed_error,
            "n_better": j.n[0],
            "n_worse": j.n[1],
            "images": j.images,
            "p_images": j.p_images,
            "p_images_holm": j.p_images_holm,
            "p_seeds": j.p_seeds,
            "p_seeds_holm": j.p_seeds_holm,
            "suites": " ".join(j.pair.suites),
            "command": j.command,
            "notes": "; ".join(j.notes),
        }
        for j in judged
    ]


def as_frame(judged: Sequence[Judged]) -> pd.DataFrame:
    """:func:`comparison_lines` as a table."""
    return pd.DataFrame(comparison_lines(judged), columns=list(COMPARISON_COLUMNS))


def p_text(value: float, adjusted: float) -> str:
    """``0.004 (0.012)``, or a dash where there is no test."""
    return DASH if math.isnan(value) else f"{value:.4f} ({adjusted:.4f})"
