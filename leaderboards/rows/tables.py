"""From records to rows: seeds gathered, set beside published cells, judged, and written.

``gathering.gather`` reads a store; ``leaderboard`` folds seeds into rows.
Only records of one recipe, one training digest, one evaluation digest, the same data and, where code of
other packages takes part, the same code fold together.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from harness.data.base import SUPERVISIONS
from harness.recipes.foreign import absent
from harness.records.counts import PerImage
from harness.records.records import EvaluationRecord, Record
from leaderboards.rows.cost import Cost, cost_of
from leaderboards.rows.gathering import Current, Line, data_identity, lines_of, stale_reason
from leaderboards.rows.holes import holes, unscored, with_asked, with_failures
from leaderboards.rows.metrics import Metric, metric_spread
from leaderboards.rows.published import Published, cited, published
from leaderboards.rows.row import UNPUBLISHED, Row, Verdict, makers, remarks, selection_text
from leaderboards.rows.statistics import bootstrap_miou, spread

#: Slack for the last bit where |difference| equals the tolerance.
_SLACK = 1e-9


# --- rows ----------------------------------------------------------------------------------------------


def verdict_on(difference: float, tolerance: float) -> Verdict:
    """``reproduced`` if \\|difference\\| <= tolerance, else ``below`` or ``above``.

    ``not comparable`` where either is NaN: other values or data than those published, or no tolerance fixed.
    """
    if math.isnan(difference) or math.isnan(tolerance):
        return "not comparable"
    if abs(difference) <= tolerance + _SLACK:
        return "reproduced"
    return "below" if difference < 0 else "above"


def _spec(recipes: Mapping[str, Any], name: str, evaluation: str) -> Any | None:
    specs = recipes[name].recipe.evaluation if name in recipes else ()
    return next((s for s in specs if s.name == evaluation), None)


def _absent(runs: Sequence[EvaluationRecord]) -> str:
    counted = Counter(name for run in runs for name in run.data["absent"])
    words = [
        name if number == len(runs) else f"{name} ({number} of {len(runs)} seeds)"
        for name, number in sorted(counted.items())
    ]
    return f"neither labelled nor predicted, left out of the mean: {', '.join(words)}" if words else ""


def _backgrounds(counts: Sequence[PerImage], classes: Sequence[str]) -> tuple[float, float]:
    """Shares of background among decided and among labelled pixels, mean over seeds; NaN without one."""
    if "background" not in classes:
        return math.nan, math.nan
    index = list(classes).index("background")
    totals = np.array([[c.predicted.sum(0), c.labelled.sum(0)] for c in counts], dtype=np.float64)
    sums = totals.sum(-1)
    shares = np.where(sums > 0, totals[..., index] / np.maximum(sums, 1), math.nan)
    decided, labelled = shares.mean(0)
    return float(decided), float(labelled)


def _seeds(group: Sequence[Line]) -> list[Line]:
    """One line for each seed, in their order: of predictions that were imported twice, the newer."""
    newest = {line["seed"]: line for line in sorted(group, key=lambda line: line["ended"])}
    return [newest[seed] for seed in sorted(newest)]


def _fold(group: Sequence[Line], current: Current, known: Published, resamples: int) -> Row:
    """One row from the seeds of one training digest and one evaluation."""
    first = group[0]
    runs: tuple[EvaluationRecord, ...] = tuple(line["run"] for line in group)
    records: tuple[Record, ...] = tuple(line["record"] for line in group)
    mean, std = spread([line["miou"] for line in group])
    low, high, background, true_background = (math.nan,) * 4
    pseudo = runs[0].data["spec"]["output"] != "segmentation"
    if resamples:
        # read for this row and dropped with it: all counts of a large store do not fit into memory
        counts = [run.counts() for run in runs]
        interval = bootstrap_miou(counts, classes=runs[0].data["protocol"]["classes"], resamples=resamples)
        low, high = interval.low, interval.high
        if pseudo:
            background, true_background = _backgrounds(counts, runs[0].data["classes"])
    coverages = [math.nan if run.data.get("coverage") is None else run.data["coverage"] for run in runs]
    now = _spec(current.recipes, first["name"], first["evaluation"])
    value, source, cell_notes = cited(now.cells if now else runs[0].data["spec"]["cells"], known)
    tolerances = [run.data["spec"]["tolerance"] for run in runs]
    tolerance = math.nan if None in tolerances else float(min(tolerances))

    notes: list[str] = []
    obstacles: list[str] = []
    if first["overrides"]:
        obstacles.append(f"the recipe was overridden: {first['overrides']}")
    images, official = int(first["images"]), int(first["official_images"])
    if images != official:
        obstacles.append(f"scored on {images} of {official} images of {first['split']}")
    if first["train_images"] != first["train_official"]:
        obstacles.append(f"trained on {first['train_images']} of {first['train_official']} images")
    notes += dict.fromkeys(note for run in runs for note in run.data.get("notes", ()))
    spec, selection = runs[0].data["spec"], records[0].recipe.get("selection")
    if spec["checkpoint"] == "best" and selection:
        notes.append(f"best checkpoint, selected on {selection['split']}")
    if pseudo and spec["split"] != records[0].recipe["train_split"]:
        notes.append(f"pseudo labels of {spec['split']}: made with the image tags of {spec['split']} itself")
    elif runs[0].data["protocol"].get("absent") == "suppress":
        notes.append(f"classes that the image tags of {spec['split']} do not name were suppressed")
    stale = "" if records[0].data.get("external") else stale_reason(records[0], runs[0], current)
    if source and math.isnan(tolerance):
        notes.append("no tolerance was fixed before the run")
    difference = math.nan if obstacles else mean - value
    verdict: Verdict = UNPUBLISHED if math.isnan(value) else verdict_on(difference, tolerance)
    verdict = "stale" if stale else verdict
    external = records[0].data.get("external")
    if external:
        verdict = "external"
        notes += [f"predictions from outside: {text}" for text in remarks(records, "external")]
    gone = dict.fromkeys(name for record in records for name in absent(record.data))
    notes += [f"{name} is not installed here" for name in gone]
    notes += [*makers(records), *remarks(records, "notes")]
    return Row(
        **{k: first[k] for k in ("dataset", "supervision", "method", "title", "backbone", "weights")},
        **{k: first[k] for k in ("weak_label", "evaluation", "protocol", "overrides", "digest")},
        recipe=first["name"],
        selection=selection_text(records[0], runs[0]),
        n=len(group),
        seeds=tuple(int(line["seed"]) for line in group),
        mean=mean,
        std=std,
        low=low,
        high=high,
        published=value,
        source=source,
        difference=difference,
        tolerance=tolerance,
        verdict=verdict,
        images=images,
        official_images=official,
        split=first["split"],
        output=spec["output"],
        coverage=float(np.mean(coverages)),
        background=background,
        true_background=true_background,
        cost=cost_of(records, runs),
        commit=", ".join(sorted({line["commit"] for line in group})),
        notes=tuple(n for n in [stale, *obstacles, *notes, _absent(runs), *cell_notes] if n),
        runs=runs,
        records=records,
    )


def _mark_superseded(rows: list[Row]) -> list[Row]:
    """Of rows of one recipe, overrides and evaluation, one stands: most images, then the newest."""
    standing: dict[tuple[str, str, str], Row] = {}

    def rank(row: Row) -> tuple:
        splits = row.records[0].data.get("data", {}).get("splits", {})
        trained = splits.get(row.records[0].recipe["train_split"], {}).get("images", 0)
        return trained, row.images, max(r.data.get("ended") or "" for r in row.records), row.digest

    for row in rows:
        key = (row.recipe, row.overrides, row.evaluation)
        if row.verdict != "stale" and (key not in standing or rank(row) > rank(standing[key])):
            standing[key] = row
    marked = []
    for row in rows:
        best = standing.get((row.recipe, row.overrides, row.evaluation))
        if row.verdict != "stale" and best is not None and row is not best:
            ours, theirs = (data_identity(r.records[0], r.runs[0]) for r in (row, best))
            other = [k for k in ours if ours[k] != theirs[k]] or ["code or configuration"]
            than = best.digest if row.digest != best.digest else f"newer records ({best.commit})"
            reason = f"other {' and '.join(other)} than in {than}"
            row = dataclasses.replace(row, verdict="stale", notes=(reason, *row.notes))
        marked.append(row)
    return marked


def _with_share(rows: list[Row]) -> list[Row]:
    def key(row: Row, overrides: str) -> tuple:
        evaluation = (row.evaluation, row.runs[0].data["digest"], row.runs[0].data["data_fingerprint"])
        return (row.dataset, row.backbone, row.weights, overrides, *evaluation)

    full: dict[tuple, float] = {}
    ranked = sorted(rows, key=lambda r: (r.method != "full", r.recipe))
    for row in ranked:
        if row.supervision == "full" and row.verdict != "stale":
            full.setdefault(key(row, row.overrides), row.mean)
    out = []
    for row in rows:
        reference = full.get(key(row, row.overrides), full.get(key(row, ""), math.nan))
        positive = reference > 0 and row.verdict != "stale"
        out.append(dataclasses.replace(row, share=100 * row.mean / reference if positive else math.nan))
    return out


def leaderboard(
    frame: pd.DataFrame,
    recipes: Mapping[str, Any] | None = None,
    known: Published | None = None,
    *,
    resamples: int = 1000,
) -> list[Row]:
    """Fold the lines of :func:`.gathering.gather_records` into rows, ordered as tables show them.

    Args:
        frame: from :func:`leaderboards.rows.gathering.gather_records`.
        recipes: name to ``Resolved`` (``harness.recipes.resolving.all_recipes()``): what should have been
            run, and what counts as stale. Without them there are no holes.
        known: published cells, the packaged ones by default.
        resamples: of the bootstrap; 0 leaves the intervals out, and no counts are read.

    Returns:
        Rows by data set, supervision (strongest label first) and evaluation; in each, standing rows from
        the highest mean down, then stale ones, then holes.
    """
    recipes = {} if recipes is None else recipes
    known = published() if known is None else known
    rows: list[Row] = []
    if not frame.empty:
        current = Current(recipes)
        groups: dict[tuple[str, ...], list[Line]] = {}
        for line in lines_of(frame[frame["evaluation"] != ""]):
            key = tuple(str(line[k]) for k in ("name", "digest", "overrides", "evaluation", "key", "code"))
            groups.setdefault(key, []).append(line)
        rows = [_fold(_seeds(groups[key]), current, known, resamples) for key in sorted(groups)]
    rows = _with_share(_mark_superseded(rows))
    missing = with_asked(holes(rows, frame, recipes, known), rows, recipes)
    return sorted(with_failures([*rows, *missing, *unscored(frame)], frame), key=_order)


def _order(row: Row) -> tuple:
    place = {"not run": 2, "stale": 1}.get(row.verdict, 0)
    height = math.inf if math.isnan(row.mean) else -row.mean
    table = (row.dataset, SUPERVISIONS.index(row.supervision))
    return (*table, row.evaluation, place, height, row.recipe, row.overrides, row.digest)


#: Attributes of a row that are figures or text.
_NAMES = tuple(f.name for f in dataclasses.fields(Row) if f.name not in ("asked", "runs", "records", "cost"))
_COSTS = tuple(f.name for f in dataclasses.fields(Cost))
#: Columns of :func:`row_lines`.
ROW_COLUMNS = (*_NAMES, *_COSTS)


def row_columns(asked: Sequence[Metric] = ()) -> tuple[str, ...]:
    """Columns of :func:`row_lines`: each metric asked for adds two, its name and ``<name>_std``."""
    return (*ROW_COLUMNS, *(key for metric in asked for key in (metric.name, f"{metric.name}_std")))


def row_lines(rows: Sequence[Row], asked: Sequence[Metric] = ()) -> list[dict[str, Any]]:
    """The rows as plain values, cost included; seeds joined by spaces, notes by semicolons."""
    lines = []
    for row in rows:
        line = {name: getattr(row, name) for name in _NAMES}
        line["seeds"] = " ".join(map(str, row.seeds))
        line["notes"] = "; ".join(row.notes)
        line |= {name: getattr(row.cost, name) for name in _COSTS}
        for metric in asked:
            line[metric.name], line[f"{metric.name}_std"] = metric_spread(metric, row)
        lines.append(line)
    return lines


#: Columns of :func:`class_lines`.
CLASS_COLUMNS = (
    "dataset", "supervision", "method", "recipe", "overrides", "digest", "evaluation", "class", "n", "mean",
    "std", "absent_seeds",
)  # fmt: skip


def class_lines(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """IoU by class of every row with records: mean and deviation over the seeds where it occurs."""
    lines = []
    for row in rows:
        if not row.runs:
            continue
        base = {name: getattr(row, name) for name in CLASS_COLUMNS[:7]}
        figures = (part.tolist() for part in row.class_spread)
        for name, mean, std, n in zip(row.runs[0].data["classes"], *figures, strict=True):
            own = {"class": name, "n": n, "mean": mean, "std": std, "absent_seeds": row.n - n}
            lines.append(base | own)
    return lines
