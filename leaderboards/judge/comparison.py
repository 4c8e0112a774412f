"""Any two rows set against each other, on the same images: the machinery of claims without a claim."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from harness.basics.errors import UserError, nearest
from harness.recipes.given import is_recipe_file, one
from harness.recipes.names import run_command
from harness.recipes.row_names import row_parts
from harness.records.records import Store
from leaderboards.judge.claims import Judged, compare_rows, comparison_lines
from leaderboards.judge.differing import what_differs
from leaderboards.judge.statements import Claim, Pair
from leaderboards.rows.choosing import printed_name
from leaderboards.rows.configurations import Configurations
from leaderboards.rows.gathering import gather_records
from leaderboards.rows.metrics import Metric, metric_spread, metric_text
from leaderboards.rows.row import Row
from leaderboards.rows.statistics import PERMUTATIONS, RESAMPLES, holm
from leaderboards.rows.tables import leaderboard
from leaderboards.rows.text import number


@dataclass(frozen=True)
class Compared:
    """Two rows and how they differ.

    Attributes:
        a, b: standing rows of the same split and output.
        judged: the difference a - b with its interval and tests.
    """

    a: Row
    b: Row
    judged: Judged


def compare(
    frame: pd.DataFrame,
    recipes: Mapping[str, Any],
    first: str,
    second: str,
    *,
    evaluation: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
) -> list[Compared]:
    """Compare two recipes, or predictions from outside (``external/<name>``), by their standing records.

    Args:
        frame: from :func:`leaderboards.rows.gathering.gather_records`.
        recipes: name to ``Resolved``: what counts as stale.
        first, second: recipe names, which stand for records with ``overrides``; ``<name>@<digest>`` for those
            of a training digest (or its first characters), whatever was overridden; ``<name>@<called>`` for a
            configuration that was given a name; a row as tables print it, ``<name> (crop=48)``; or recipe
            files.
        evaluation: name of the first's evaluation; by default all of its evaluations that the second
            shares. An imported prediction is met by every evaluation of its split.
        overrides: values by dotted key that recipes named without ``@`` were trained with; none by default.
        resamples, permutations: of the bootstrap and of the permutation test.

    Raises:
        UserError: an unknown name, no standing record, or no evaluation in common.
    """
    sides = [_Side.named(frame, target, overrides or {}) for target in (first, second)]
    known = {side.name: recipes[side.name] for side in sides if side.name in recipes}
    ours, theirs = (side.standing(frame, known) for side in sides)
    pairs = [(a, b) for a in ours for b in theirs if _alike(a, b) and evaluation in (None, a.evaluation)]
    if not pairs:
        options = sorted({row.evaluation for row in ours})
        problem = f"{first} and {second} share no evaluation" + (f" {evaluation!r}" if evaluation else "")
        remedy = nearest(evaluation, options) if evaluation else f"{first} has {', '.join(options)}"
        raise UserError(problem, where="--evaluation", remedy=remedy)
    judged = []
    for a, b in pairs:
        pair = Pair(better=first, worse=second, evaluation=a.evaluation)
        claim = Claim(
            id="comparison", method="", statement=f"{first} lies above {second}.", comparisons=(pair,)
        )
        judged.append(compare_rows(claim, pair, a, b, resamples=resamples, permutations=permutations))
    adjusted = zip(holm([j.p_images for j in judged]), holm([j.p_seeds for j in judged]), strict=True)
    judged = [replace(j, p_images_holm=i, p_seeds_holm=s) for j, (i, s) in zip(judged, adjusted, strict=True)]
    return [Compared(a, b, j) for (a, b), j in zip(pairs, judged, strict=True)]


def compared_records(store: Store, *sides: str) -> pd.DataFrame:
    """The records of the recipes that a comparison names; all of a store where one of them has none, so that
    it can be said which have."""
    names = {one(s).name if is_recipe_file(s) else (row_parts(s) or s.split("@"))[0] for s in sides}
    frame = gather_records(store, *names)
    return frame if len(frame) and names <= set(frame["name"]) else gather_records(store)


@dataclass(frozen=True)
class _Side:
    """One side of a comparison: a recipe, or external predictions; the digest or row where one is named."""

    name: str
    digest: str
    overrides: Mapping[str, Any]
    row: str = ""

    @classmethod
    def named(cls, frame: pd.DataFrame, target: str, overrides: Mapping[str, Any]) -> _Side:
        """The side that a target on the command line means. Raises UserError where it has no record."""
        if is_recipe_file(target):
            asked = one(target, overrides)
            target, overrides = asked.name, asked.overrides
        row = row_parts(target)
        name, at, digest = (row[0], "", "") if row else target.partition("@")
        names = sorted(set(frame["name"])) if len(frame) else []
        if name not in names:
            raise UserError(f"no record of {name!r}", where="results", remedy=nearest(name, names))
        if row:
            return cls(name, "", {}, target)
        own = frame[frame["name"] == name]
        called = own["record"].map(lambda record: record.data.get("called", "")) == digest
        whole = sorted(set(own.loc[called, "digest"])) if digest else []
        whole = whole or sorted({d for d in own["digest"] if d.startswith(digest)})
        if at and (len(whole) != 1 or not digest):
            found = "several records' digests begin" if whole else "no record's digest begins"
            raise UserError(f"{found} with {digest!r}", where=target, remedy=_remedy(frame, name, overrides))
        return cls(name, whole[0] if at else "", {} if at or name.startswith("external/") else overrides)

    def standing(self, frame: pd.DataFrame, recipes: Mapping[str, Any]) -> list[Row]:
        """Its rows that stand. Raises UserError where there is none."""
        own = frame[frame["name"] == self.name]
        if self.row:
            mine = Configurations(frame).named(self.row)
        elif self.digest:
            mine = own[own["digest"] == self.digest]
        elif self.overrides:
            mine = Configurations(frame).with_values(self.name, self.overrides)
        else:
            mine = own[own["overrides"] == ""]
        rows = leaderboard(mine, recipes, resamples=0) if len(mine) else []
        standing = [row for row in rows if row.n and row.verdict not in ("stale", "not run")]
        if standing:
            return standing
        reasons = [row.notes[0] for row in rows if row.recipe == self.name and row.notes]
        which = " with these values" if self.overrides or self.row else " without overrides"
        why = f" ({reasons[0]})" if len(mine) and reasons else "" if self.digest else which
        remedy = _remedy(frame, self.name, self.overrides)
        if self.row:
            remedy = nearest(self.row, {printed_name(self.name, text) for text in own["overrides"]})
        raise UserError(f"no standing record of {self.row or self.name!r}{why}", remedy=remedy)


def _remedy(frame: pd.DataFrame, name: str, asked: Mapping[str, Any]) -> str:
    """How the records that a recipe has are named."""
    own = frame[(frame["name"] == name) & frame["finished"]]
    seeds: dict[tuple[str, str], set[int]] = {}
    for digest, overrides, seed in zip(own["digest"], own["overrides"], own["seed"], strict=True):
        seeds.setdefault((digest, overrides), set()).add(int(seed))
    found = [
        f"{name}@{digest} ({overrides or 'no overrides'}; seed {', '.join(map(str, sorted(having)))})"
        for (digest, overrides), having in seeds.items()
    ]
    more = f", and {len(found) - 6} more" if len(found) > 6 else ""
    return f"name one of {', '.join(found[:6])}{more}" if found else f"run it: {run_command(name, asked)}"


def _alike(a: Row, b: Row) -> bool:
    if (a.split, a.output) != (b.split, b.output):
        return False
    return a.evaluation == b.evaluation or "external" in (a.verdict, b.verdict)


def as_plain(compared: Compared, asked: Sequence[Metric] = ()) -> dict[str, Any]:
    """A comparison as plain values: columns of the claims' table, IoU by class, metrics, and what differs."""
    (line,) = comparison_lines([compared.judged])
    left_out = ("claim", "statement", "paper", "place", "suites", "command", "direction", "margin")
    plain = {k: None if v != v else v for k, v in line.items() if k not in left_out}
    for side, row in (("better", compared.a), ("worse", compared.b)):
        means = [None if v != v else round(v, 6) for v in row.class_spread[0].tolist()]
        plain[f"iou_{side}"] = dict(zip(row.runs[0].data["classes"], means, strict=True))
        for metric in asked:
            mean = metric_spread(metric, row)[0]
            plain[f"{metric.name}_{side}"] = None if math.isnan(mean) else mean
    plain["differing"] = [
        dict(zip(("what", "better", "worse"), one, strict=True))
        for one in what_differs(compared.a, compared.b)
    ]
    return plain


def metric_lines(a: Row, b: Row, asked: Sequence[Metric]) -> list[list[str]]:
    """Metric, its figure over the seeds of either row, and the difference of their means."""
    return [
        [
            metric.title,
            *(metric_text(metric, row) for row in (a, b)),
            number(metric_spread(metric, a)[0] - metric_spread(metric, b)[0], sign=True),
        ]
        for metric in asked
    ]


def difference_lines(a: Row, b: Row) -> list[list[str]]:
    """Class, IoU of either row and their difference, the largest gain first; none where classes differ."""
    names = a.runs[0].data["classes"]
    if list(names) != list(b.runs[0].data["classes"]):
        return []
    means = [row.class_spread[0] for row in (a, b)]
    difference = means[0] - means[1]
    order = sorted(range(len(names)), key=lambda k: (math.isnan(difference[k]), -difference[k]))
    return [
        [names[k], number(means[0][k], 1), number(means[1][k], 1), number(difference[k], 1, sign=True)]
        for k in order
    ]
