"""From records to rows: seeds gathered, set beside published cells, judged, and written.

``gathering.gather`` reads a store; ``leaderboard`` folds seeds into rows.
Only records of one recipe, one training digest, one evaluation digest, the same data and, where code of
other packages takes part, the same code fold together.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd

from harness.data.base import SUPERVISIONS
from harness.schema import dump
from harness.store.records import EvaluationRecord, PerImage, Record
from leaderboards.cost import Cost, cost_of
from leaderboards.gathering import Current, identity, lines_of, method_title, stale_reason, weak_label
from leaderboards.published import Published, published
from leaderboards.statistics import bootstrap_miou, spread

Verdict = Literal["reproduced", "below", "above", "not comparable", "external", "stale", "not run"]

#: Slack for the last bit where |difference| equals the tolerance.
_SLACK = 1e-9


@dataclass(frozen=True)
class Row:
    """One line of a leaderboard. Figures are percent or points of mIoU; NaN where there is none.

    Attributes:
        dataset, supervision: the table that it belongs to.
        method, title, recipe: registry name, name in tables, recipe name.
        overrides: what the command line changed, empty for the recipe as it stands.
        digest: training digest, empty for a hole.
        backbone, weights, weak_label: what was trained, from what, on what.
        evaluation, protocol: name of the evaluation and of its protocol.
        n: finished seeds.
        seeds: their numbers.
        mean, std: over seeds (divisor n - 1; NaN for n = 1).
        low, high: 95 % bootstrap interval over images, see ``statistics.bootstrap_miou``.
        published, source: published value and its cell id.
        difference: mean - published; NaN where recipe or data are not the published ones.
        tolerance: largest |difference| that counts as reproduced, as recorded by the run.
        share: percent of the ``full`` row of the same data set, backbone, weights and evaluation.
        verdict: see :func:`judge`; ``stale`` and ``not run`` come before it.
        images, official_images: evaluated, and in the official split.
        split, output: of the evaluation; every output but ``segmentation`` is a pseudo label.
        coverage: share of the labelled pixels with a decision, mean over seeds.
        background: of pseudo labels, share of the decided pixels called background, mean over seeds.
        true_background: of pseudo labels, share of the labelled pixels that are background.
        cost: of the training, see :class:`Cost`.
        commit: of the code that trained, every one of them.
        notes: what a reader must know.
    """

    dataset: str
    supervision: str
    method: str
    title: str
    recipe: str
    backbone: str
    weights: str
    weak_label: str
    evaluation: str
    protocol: str
    overrides: str = ""
    digest: str = ""
    n: int = 0
    seeds: tuple[int, ...] = ()
    mean: float = math.nan
    std: float = math.nan
    low: float = math.nan
    high: float = math.nan
    published: float = math.nan
    source: str = ""
    difference: float = math.nan
    tolerance: float = math.nan
    share: float = math.nan
    verdict: Verdict = "not run"
    images: int = 0
    official_images: int = 0
    split: str = ""
    output: str = "segmentation"
    coverage: float = math.nan
    background: float = math.nan
    true_background: float = math.nan
    cost: Cost = field(default_factory=Cost)
    commit: str = ""
    notes: tuple[str, ...] = ()
    runs: tuple[EvaluationRecord, ...] = field(default=(), repr=False, compare=False)
    records: tuple[Record, ...] = field(default=(), repr=False, compare=False)

    @property
    def label(self) -> str:
        """Title, with the overrides where there are any."""
        return f"{self.title} ({self.overrides})" if self.overrides else self.title

    @cached_property
    def class_iou(self) -> np.ndarray:
        """``(n, K)`` IoU in percent of each seed, NaN where absent."""
        return np.stack([run.iou for run in self.runs])

    @cached_property
    def class_spread(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean, standard deviation and number, each ``(K,)``, over the seeds where a class occurs.

        NaN: the mean of none, the deviation of fewer than two.
        """
        values = self.class_iou
        absent = np.isnan(values)
        number = len(values) - absent.sum(0)
        mean = np.where(number > 0, np.where(absent, 0.0, values).sum(0) / np.maximum(number, 1), np.nan)
        squares = np.where(absent, 0.0, (values - mean) ** 2).sum(0)
        std = np.where(number > 1, np.sqrt(squares / np.maximum(number - 1, 1)), np.nan)
        return mean, std, number


# --- rows ----------------------------------------------------------------------------------------------


def judge(difference: float, tolerance: float) -> Verdict:
    """``reproduced`` if \\|difference\\| <= tolerance, else ``below`` or ``above``.

    ``not comparable`` where either is NaN: no published value for these data, or no tolerance fixed.
    """
    if math.isnan(difference) or math.isnan(tolerance):
        return "not comparable"
    if abs(difference) <= tolerance + _SLACK:
        return "reproduced"
    return "below" if difference < 0 else "above"


def _cells(ids: Iterable[str], known: Published) -> tuple[float, str, list[str]]:
    """The first cited cell with a value (value and id; NaN if none), and notes on all of them."""
    value, source, notes = math.nan, "", []
    for cell_id in ids:
        cell = known.cells.get(cell_id)
        if cell is None:
            notes.append(f"cites the cell {cell_id}, which does not exist")
        elif cell.value is None:
            notes.append(f"{cell_id}: no published value ({cell.reason})")
        elif not source and cell.metric == "miou":
            value, source = cell.value, cell_id
            notes.append(f"{cell_id}: {cell.protocol}" + (f"; {cell.notes}" if cell.notes else ""))
        else:
            notes.append(
                f"{cell_id}: also {cell.value:.2f} ({cell.metric})"
                + (f"; {cell.notes}" if cell.notes else "")
            )
    return value, source, notes


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


Line = Mapping[str, Any]  # of the frame that ``gathering.gather`` gives


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
    value, source, cell_notes = _cells(now.cells if now else runs[0].data["spec"]["cells"], known)
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
    verdict: Verdict = "stale" if stale else judge(difference, tolerance)
    external = records[0].data.get("external")
    if external:
        verdict = "external"
        notes += [f"predictions from outside: {text}" for text in _words(records, "external")]
    return Row(
        **{k: first[k] for k in ("dataset", "supervision", "method", "title", "backbone", "weights")},
        **{k: first[k] for k in ("weak_label", "evaluation", "protocol", "overrides", "digest")},
        recipe=first["name"],
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
        notes=tuple(
            n for n in [stale, *obstacles, *notes, *_words(records, "notes"), _absent(runs), *cell_notes] if n
        ),
        runs=runs,
        records=records,
    )


def _words(records: Sequence[Record], key: str) -> list[str]:
    """Remarks of records under a key: each text once, those of some seeds alone with the seeds."""
    seeds: dict[str, list[int]] = {}
    for record in records:
        for text in filter(None, record.data.get(key) or ()):
            seeds.setdefault(text, []).append(record.seed)
    return [
        text if len(own) == len(records) else f"{text} (seed {', '.join(map(str, own))})"
        for text, own in seeds.items()
    ]


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
            ours, theirs = (identity(r.records[0], r.runs[0]) for r in (row, best))
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


def _titles(frame: pd.DataFrame) -> dict[str, str]:
    return {} if frame.empty else dict(zip(frame["method"], frame["title"], strict=True))


def _holes(
    rows: Sequence[Row], frame: pd.DataFrame, recipes: Mapping[str, Any], known: Published
) -> list[Row]:
    """A row for every evaluation of a recipe that no standing, unchanged record answers."""
    answered = {(r.recipe, r.evaluation) for r in rows if r.verdict != "stale" and not r.overrides}
    outdated = {(r.recipe, r.evaluation) for r in rows if r.verdict == "stale"}
    titles = _titles(frame)
    plain = frame[frame["finished"] & (frame["overrides"] == "")] if len(frame) else frame
    trained = set(plain["name"]) if len(plain) else set()
    holes = []
    for name in sorted(recipes):
        recipe = recipes[name].recipe
        for spec in recipe.evaluation:
            if (name, spec.name) in answered:
                continue
            value, source, notes = _cells(spec.cells, known)
            if name in trained and (name, spec.name) not in outdated:
                notes.insert(0, f"trained; run `wsss run {name}` again to evaluate it")
            holes.append(
                Row(
                    dataset=recipe.dataset,
                    supervision=recipe.supervision,
                    method=recipe.method,
                    title=method_title(recipe.method, titles),
                    recipe=name,
                    backbone=recipe.backbone,
                    weights=recipe.weights,
                    weak_label=weak_label(dump(recipe)),
                    evaluation=spec.name,
                    protocol=spec.protocol,
                    split=spec.split,
                    output=spec.output,
                    published=value,
                    source=source,
                    tolerance=math.nan if spec.tolerance is None else spec.tolerance,
                    notes=tuple(notes),
                )
            )
    return holes


def _unscored(frame: pd.DataFrame) -> list[Row]:
    """A row for each training digest that was trained and never scored, of which there is no hole."""
    if frame.empty:
        return []
    groups: dict[tuple[str, str, str], list[Line]] = {}
    for line in lines_of(frame[frame["finished"] & (frame["evaluation"] == "")]):
        groups.setdefault((line["name"], line["overrides"], line["digest"]), []).append(line)
    rows = []
    for (name, overrides, digest), group in groups.items():
        first = group[0]
        notes = _words([line["record"] for line in group], "notes")
        if not notes:
            continue  # nothing kept it from being evaluated: its hole says how
        values = {k: first[k] for k in ("dataset", "supervision", "method", "title", "backbone", "weights")}
        seeds = ", ".join(str(line["seed"]) for line in group)
        rows.append(
            Row(
                **values,
                weak_label=first["weak_label"],
                recipe=name,
                overrides=overrides,
                digest=digest,
                evaluation="none",
                protocol="",
                split="",
                output="segmentation",
                published=math.nan,
                source="",
                tolerance=math.nan,
                notes=(f"trained (seed {seeds}), nothing evaluated", *notes),
            )
        )
    return rows


def _with_failures(rows: list[Row], frame: pd.DataFrame) -> list[Row]:
    if frame.empty:
        return rows
    failed: dict[tuple[str, str], list[Line]] = {}
    for line in lines_of(frame[~frame["finished"]]):
        failed.setdefault((line["name"], line["overrides"]), []).append(line)
    out = []
    for row in rows:
        mine = failed.get((row.recipe, row.overrides), [])
        mine = [line for line in mine if row.digest in ("", line["digest"])]
        if mine:
            reason = str(mine[0]["reason"]).partition("\n")[0]
            seeds = ", ".join(str(s) for s in sorted(line["seed"] for line in mine))
            row = dataclasses.replace(row, notes=(f"failed seeds {seeds}: {reason}", *row.notes))
        out.append(row)
    return out


def leaderboard(
    frame: pd.DataFrame,
    recipes: Mapping[str, Any] | None = None,
    known: Published | None = None,
    *,
    resamples: int = 1000,
) -> list[Row]:
    """Fold the lines of :func:`leaderboards.gathering.gather` into rows, ordered as tables show them.

    Args:
        frame: from :func:`leaderboards.gathering.gather`.
        recipes: name to ``Resolved`` (``harness.recipes.all_recipes()``): what should have been run, and
            what counts as stale. Without them there are no holes.
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
    rows = _with_failures([*rows, *_holes(rows, frame, recipes, known), *_unscored(frame)], frame)
    return sorted(rows, key=_order)


def _order(row: Row) -> tuple:
    place = {"not run": 2, "stale": 1}.get(row.verdict, 0)
    height = math.inf if math.isnan(row.mean) else -row.mean
    table = (row.dataset, SUPERVISIONS.index(row.supervision))
    return (*table, row.evaluation, place, height, row.recipe, row.overrides, row.digest)


#: Attributes of a row that are figures or text.
_NAMES = tuple(f.name for f in dataclasses.fields(Row) if f.name not in ("runs", "records", "cost"))
_COSTS = tuple(f.name for f in dataclasses.fields(Cost))
#: Columns of :func:`as_lines`.
COLUMNS = (*_NAMES, *_COSTS)


def as_lines(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows as plain values, cost included; seeds joined by spaces, notes by semicolons."""
    lines = []
    for row in rows:
        line = {name: getattr(row, name) for name in _NAMES}
        line["seeds"] = " ".join(map(str, row.seeds))
        line["notes"] = "; ".join(row.notes)
        lines.append(line | {name: getattr(row.cost, name) for name in _COSTS})
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
