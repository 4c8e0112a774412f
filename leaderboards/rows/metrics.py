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
from harness.basics.reading import Damaged, damaged
from harness.basics.registry import METRICS
from harness.basics.scores import iou_from_counts
from harness.evaluation.boundary import WIDTHS, Boundary
from harness.records.records import EvaluationRecord, Record
from leaderboards.rows.row import Row
from leaderboards.rows.statistics import spread
from leaderboards.rows.text import spread_text

#: Stands in place of a figure for which records were written before its counts were kept.
UNCOUNTED = "not counted"


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
        contours: only pixels of a class near its contour in the same map count, those of the prediction as
            predicted and those of the truth as labelled (:func:`harness.evaluation.boundary.contour_counts`).
    """

    name: str
    title: str
    of: Callable[[ClassCounts], float]
    meaning: str = ""
    best: Literal["", "high", "low"] = "high"
    band: int | None = None
    contours: bool = False

    @property
    def told(self) -> str:
        """Its meaning, with what a reader of a column must know."""
        if self.band is None and not self.contours:
            return self.meaning
        return f"{self.meaning}; {UNCOUNTED!r} where a record is older than these counts"


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
    Metric(
        "boundary-iou",
        "Boundary IoU (%)",
        _miou,
        "IoU of the pixels of a class near its contour (2 % of the picture's diagonal) in the prediction and "
        "in the truth, mean over classes",
        contours=True,
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


def near_boundaries(run: EvaluationRecord, record: Record) -> Boundary | None:
    """Counts near boundaries; None where there are none, or damaged ones, which are noted."""
    file = run.path / "boundary.npz"
    try:
        found = Boundary.load(file)
        if found is not None:
            counts = run.counts()
            if not found.fits((counts.intersection.sum(0), counts.predicted.sum(0), counts.labelled.sum(0))):
                raise damaged(file, "more pixels lie in its bands than were counted", "evaluate again")
    except Damaged as error:
        record.note(error)
        return None
    return found


def metric_value(metric: Metric, run: EvaluationRecord, record: Record) -> float:
    """A metric of one evaluation; NaN where there is none, or its counts are not on disk or damaged.

    Raises:
        UserError: the function of a package raises, or gives no number.
    """
    counts = _counts(metric, run, record)
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
    return spread([metric_value(metric, *pair) for pair in zip(row.runs, row.records, strict=True)])


def metric_text(metric: Metric, row: Row) -> str:
    """The cell of a metric: mean and deviation over seeds, or that records hold no counts for it."""
    figures = metric_spread(metric, row)
    pairs = zip(row.runs, row.records, strict=True)
    if math.isnan(figures[0]) and any(_counts(metric, *pair) is None for pair in pairs):
        return UNCOUNTED
    return spread_text(row.n, *figures)


def _counts(metric: Metric, run: EvaluationRecord, record: Record) -> ClassCounts | None:
    """What a metric is computed from; None where the evaluation was scored before such counts were kept."""
    if metric.band is None and not metric.contours:
        read = run.counts()
        parts = [part.sum(0) for part in (read.intersection, read.predicted, read.labelled)]
    else:
        near = near_boundaries(run, record)
        found = None if near is None else near.contours if metric.contours else near.within(metric.band)
        if found is None:
            return None
        parts = list(found)
    hit, predicted, labelled = parts
    iou, _ = iou_from_counts(hit, predicted, labelled, run.data["protocol"]["classes"])
    return ClassCounts(hit, predicted, labelled, ~np.isnan(iou))
