"""How sure are we: seeds, and a bootstrap over images, from per-image confusion counts.

A bootstrap resample draws N of N images with replacement. That is one weight per image, so the counts
of all resamples are one matrix product ``weights (R, N) @ counts (N, columns)`` (exact in float64: the
sums stay far below 2^53).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from harness.errors import UserError
from harness.evaluation import iou_from_counts
from harness.records import PerImage

#: Resamples of every interval in tables [our choice].
RESAMPLES = 1000
#: Seed of the resampling, so that equal records give equal tables.
SEED = 20_120_601
#: Entries of one block of weights: bounds memory whatever the number of images.
_BLOCK = 4_000_000

Seeds = Literal["mean", "pooled"]
Classes = Literal["occurring", "labelled"]


@dataclass(frozen=True)
class Interval:
    """A bootstrap percentile interval.

    Attributes:
        estimate: the statistic on the images as they are.
        low, high: its 2.5 and 97.5 percentiles (for ``level`` 0.95).
        level: coverage aimed at.
        resamples: number of resamples.
        images: number of images.
    """

    estimate: float
    low: float
    high: float
    level: float
    resamples: int
    images: int


@dataclass(frozen=True)
class Comparison:
    """A paired comparison of two methods on the same images.

    Attributes:
        difference: interval of mIoU(a) - mIoU(b), in points.
        worse: share of resamples in which a does not lie above b.
    """

    difference: Interval
    worse: float


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation over seeds (divisor n - 1; NaN for fewer than two values)."""
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        return math.nan, math.nan
    return float(array.mean()), float(array.std(ddof=1)) if array.size > 1 else math.nan


def weights(images: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """``(resamples, images)`` float64: how often each image occurs in each resample; rows sum to N."""
    drawn = rng.integers(0, images, size=(resamples, images))
    drawn += np.arange(resamples)[:, None] * images
    return (
        np.bincount(drawn.ravel(), minlength=resamples * images).reshape(resamples, images).astype(np.float64)
    )


def aligned(runs: Sequence[PerImage]) -> list[PerImage]:
    """The same runs with their images in one order.

    Raises:
        UserError: they do not hold the same images, or not the same number of classes.
    """
    first = runs[0]
    if any(r.intersection.shape[1] != first.intersection.shape[1] for r in runs):
        raise UserError(
            "the evaluations have different numbers of classes", remedy="compare within a data set"
        )
    order = sorted(first.ids)
    if len(set(order)) != len(order) or any(sorted(r.ids) != order for r in runs):
        raise UserError(
            "the evaluations hold different images", remedy="compare evaluations of the same split"
        )
    out = []
    for run in runs:
        rows = np.argsort(np.array(run.ids))
        arrays = (getattr(run, k)[rows] for k in ("intersection", "predicted", "labelled"))
        out.append(PerImage(tuple(run.ids[i] for i in rows), *arrays))
    return out


def _stacked(runs: Sequence[PerImage], seeds: Seeds) -> np.ndarray:
    """``(N, S, 3, K)`` float64 counts; S = 1 after pooling."""
    counts = np.stack([np.stack([r.intersection, r.predicted, r.labelled], axis=1) for r in runs], axis=1)
    if seeds == "pooled":
        counts = counts.sum(axis=1, keepdims=True)
    return counts.astype(np.float64)


def _statistic(summed: np.ndarray, classes: Classes) -> np.ndarray:
    """Mean over seeds of mIoU in percent, ``(..., S, 3, K)`` to ``(...)``."""
    intersection, predicted, labelled = (summed[..., i, :] for i in range(3))
    return iou_from_counts(intersection, predicted, labelled, classes)[1].mean(axis=-1)


@lru_cache(maxsize=2)
def _only_block(images: int, resamples: int, seed: int) -> np.ndarray:
    """Weights that fit one block: the rows of a table share them."""
    drawn = weights(images, resamples, np.random.default_rng(seed))
    drawn.setflags(write=False)
    return drawn


def _blocks(images: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    rows = max(1, _BLOCK // images)
    if resamples <= rows:
        yield _only_block(images, resamples, seed)
        return
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, rows):
        yield weights(images, min(rows, resamples - start), rng)


def _resampled(counts: Sequence[np.ndarray], classes: Classes, resamples: int, seed: int) -> list[np.ndarray]:
    """The statistic of each group of runs on the same resamples, each ``(R,)``."""
    images = counts[0].shape[0]
    found: list[list[np.ndarray]] = [[] for _ in counts]
    for drawn in _blocks(images, resamples, seed):
        for values, own in zip(found, counts, strict=True):
            summed = (drawn @ own.reshape(images, -1)).reshape(len(drawn), *own.shape[1:])
            values.append(_statistic(summed, classes))
    return [np.concatenate(values) for values in found]


def _interval(estimate: float, values: np.ndarray, level: float, images: int) -> Interval:
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return Interval(estimate, float(low), float(high), level, len(values), images)


def bootstrap_miou(
    runs: Sequence[PerImage],
    *,
    classes: Classes = "occurring",
    seeds: Seeds = "mean",
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Interval:
    """Percentile interval of mIoU (percent) when the images are drawn anew.

    Args:
        runs: per-image counts of the runs (seeds) of one row, on the same images in any order.
        classes: over which classes the mean goes, as in the protocol; a class that does not occur in a
            resample is left out of that resample's mean.
        seeds: ``mean`` takes the mean over runs of each run's mIoU, the figure in the tables; ``pooled``
            adds the counts of all runs first. Both use the same resample for all runs, so the interval
            speaks of images and not of seeds.
        level: coverage.
        resamples: R.
        seed: of the resampling.

    Raises:
        UserError: the runs hold different images.
    """
    counts = _stacked(aligned(runs), seeds)
    estimate = float(_statistic(counts.sum(axis=0), classes))
    values = _resampled([counts], classes, resamples, seed)[0]
    return _interval(estimate, values, level, counts.shape[0])


def paired_bootstrap(
    a: Sequence[PerImage],
    b: Sequence[PerImage],
    *,
    classes: Classes = "occurring",
    seeds: Seeds = "mean",
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Comparison:
    """Compare two rows on the same resamples of the same images (arguments as in bootstrap_miou).

    Raises:
        UserError: the runs hold different images.
    """
    both = aligned([*a, *b])
    counts = [_stacked(both[: len(a)], seeds), _stacked(both[len(a) :], seeds)]
    estimates = [float(_statistic(c.sum(axis=0), classes)) for c in counts]
    values = _resampled(counts, classes, resamples, seed)
    differences = values[0] - values[1]
    interval = _interval(estimates[0] - estimates[1], differences, level, counts[0].shape[0])
    return Comparison(interval, float((differences <= 0).mean()))
