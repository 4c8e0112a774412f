"""Further figures of an evaluation, from the counts that every record keeps: old records have them too.

A metric is one :class:`Metric`; tables show it as a column (``wsss leaderboard --metric NAME``). Packages
bring theirs through the entry point ``wsss.metrics``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from harness.basics.errors import UserError, nearest, words
from harness.basics.registry import METRICS
from harness.basics.scores import iou_from_counts
from harness.evaluation.boundary import WIDTHS, Boundary
from harness.records.records import EvaluationRecord
from leaderboards.rows.row import Row
from leaderboards.rows.statistics import spread


@dataclass(frozen=True)
class ClassCounts:
    """Pixels of one evaluation by class, summed over pictures. Void pixels are in none of them.

    Attributes:
        intersection: ``(K,)`` int64, predicted and labelled as the class.
        predicted: ``(K,)`` int64, predicted as the class; pixels without a decision are in no class.
        labelled: ``(K,)`` int64, labelled as the class.
        used: ``(K,)`` bool, classes over which the mean IoU goes: those that occur, by the protocol.
    """

    intersection: np.ndarray
    predicted: np.ndarray
    labelled: np.ndarray
    used: np.ndarray

    def mean(self, values: np.ndarray) -> float:
        """Mean over the used classes; NaN if there is none."""
        return float(values[self.used].mean()) if self.used.any() else math.nan

    def share(self, part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        """``(K,)`` percent; 0 where the whole is 0, as for the precision of a class never predicted."""
        return np.where(whole > 0, 100.0 * part / np.maximum(whole, 1), 0.0)


@dataclass(frozen=True)
class Metric:
    """A figure of an evaluation, and the column that shows it.

    Attributes:
        name: on the command line, in CSV and JSON.
        title: heading of the column, with its unit.
        of: from counts to the figure; NaN where there is none.
        meaning: one sentence, shown above the tables.
        best: which end is the better one.
        band: only pixels at most so far from a boundary of the truth count (one of
            :data:`harness.evaluation.boundary.WIDTHS`); all of them by default.
    """

    name: str
    title: str
    of: Callable[[ClassCounts], float]
    meaning: str = ""
    best: Literal["", "high", "low"] = "high"
    band: int | None = None


def _precision(c: ClassCounts) -> float:
    return c.mean(c.share(c.intersection, c.predicted))


def _recall(c: ClassCounts) -> float:
    return c.mean(c.share(c.intersection, c.labelled))


def _f1(c: ClassCounts) -> float:
    return c.mean(c.share(2 * c.intersection, c.predicted + c.labelled))


def _miou(c: ClassCounts) -> float:
    return c.mean(c.share(c.intersection, c.predicted + c.labelled - c.intersection))


def _frequency_weighted(c: ClassCounts) -> float:
    total = int(c.labelled.sum())
    iou = c.share(c.intersection, c.predicted + c.labelled - c.intersection)
    return float((iou * c.labelled).sum() / total) if total else math.nan


def _pixel_accuracy(c: ClassCounts) -> float:
    total = int(c.labelled.sum())
    return 100.0 * int(c.intersection.sum()) / total if total else math.nan


_OURS = (
    Metric(
        "precision",
        "Precision (%)",
        _precision,
        "pixels of a class among those predicted as it, mean over classes",
    ),
    Metric(
        "recall",
        "Recall (%)",
        _recall,
        "pixels predicted as a class among those labelled so, mean over classes",
    ),
    Metric("f1", "F1 (%)", _f1, "harmonic mean of precision and recall of a class (Dice), mean over classes"),
    Metric(
        "fwiou",
        "FwIoU (%)",
        _frequency_weighted,
        "IoU of classes, weighted by their share of the labelled pixels",
    ),
    Metric(
        "pixel-accuracy",
        "Pixel accuracy (%)",
        _pixel_accuracy,
        "labelled pixels that are predicted right",
    ),
    *(
        Metric(
            f"trimap-{w}",
            f"mIoU within {w} px (%)",
            _miou,
            f"mIoU of pixels at most {w} px from a boundary of the truth",
            band=w,
        )
        for w in WIDTHS
    ),
)


def metric_names() -> list[str]:
    """Names of all metrics, ours first, those of packages that cannot be used included."""
    return [*(m.name for m in _OURS), *METRICS.names()]


def metric_problems() -> dict[str, UserError]:
    """Metrics of packages that cannot be used, those with a name of ours included, and why."""
    found = METRICS.problems()
    for metric in _OURS:
        if metric.name in METRICS:
            entry = METRICS.entry(metric.name)
            places = ["wsss itself", entry.value if entry else "this process"]
            found[metric.name] = METRICS.conflict(metric.name, places)
    return found


def metrics(names: Sequence[str]) -> tuple[Metric, ...]:
    """Metrics by name, each once.

    Raises:
        UserError: unknown, or its package is broken.
    """
    ours = {m.name: m for m in _OURS}
    found = []
    for name in dict.fromkeys(names):
        if name in METRICS and (wrong := metric_problems().get(name)):
            raise wrong
        if name not in ours and name not in METRICS:
            raise UserError(
                f"unknown metric {name!r}", where="--metric", remedy=nearest(name, metric_names())
            )
        metric = ours.get(name) or METRICS.get(name)
        found.append(metric() if isinstance(metric, type) else metric)
    return tuple(found)


def metric_value(metric: Metric, run: EvaluationRecord) -> float:
    """A metric of one evaluation; NaN where its counts are not on disk.

    Raises:
        UserError: the function of a package raises, or gives no number.
    """
    counts = _counts(run, metric.band)
    if counts is None:
        return math.nan
    try:
        return float(metric.of(counts))
    except Exception as error:
        raise UserError(
            f"the metric {metric.name!r} cannot be computed: {type(error).__name__}: {words(error)}",
            where=run.path,
            remedy="mend its function, which takes a ClassCounts and gives a number",
        ) from error


@lru_cache(maxsize=1024)
def metric_spread(metric: Metric, row: Row) -> tuple[float, float]:
    """Mean and standard deviation over the seeds of a row; NaN where there is none."""
    return spread([metric_value(metric, run) for run in row.runs]) if row.runs else (math.nan, math.nan)


def _counts(run: EvaluationRecord, band: int | None) -> ClassCounts | None:
    classes = run.data["protocol"]["classes"]
    if band is None:
        read = run.counts()
        totals = [part.sum(0) for part in (read.intersection, read.predicted, read.labelled)]
    else:
        bands = Boundary.load(run.path / "boundary.npz")
        if bands is None or band not in bands.widths:
            return None
        at = int(np.flatnonzero(bands.widths == band)[0])
        totals = [part[at] for part in (bands.intersection, bands.predicted, bands.labelled)]
    iou, _ = iou_from_counts(totals[0], totals[1], totals[2], classes)
    return ClassCounts(totals[0], totals[1], totals[2], ~np.isnan(iou))
