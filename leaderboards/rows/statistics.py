"""How sure are we: seeds, and a bootstrap over images, from per-image confusion counts.

A bootstrap resample draws N of N images with replacement. That is one weight per image, so the counts
of all resamples are one matrix product ``counts (columns, N) @ weights (N, R)``. It is exact: in float32
where all sums stay below 2^24, else in float64 (below 2^53).

Two levels can move a difference: other images and other seeds. Images are resampled. Three seeds cannot
be (27 resamples, and a spread that is a third too small), so the level of seeds is drawn from the
Student distribution that the spread over seeds implies, see :func:`two_level_difference`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from harness.basics.errors import UserError
from harness.records.counts import PerImage

#: Resamples of every interval in tables [our choice].
RESAMPLES = 1000
#: Seed of the resampling, so that equal records give equal tables.
BOOTSTRAP_SEED = 20_120_601
#: Random swaps of the permutation test: p-values are multiples of 1 / (1 + PERMUTATIONS) [our choice].
PERMUTATIONS = 1999
#: Seeds from which on a p-value over seeds is given: 2^5 sign patterns cannot reach 0.05, 2^6 can.
SEEDS_FOR_P = 6
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


@dataclass(frozen=True)
class TwoLevel:
    """A difference with the uncertainty of images and of seeds.

    Attributes:
        difference: interval of mIoU(a) - mIoU(b) in points; over images alone where ``seed_error`` is NaN.
        seed_error: standard error of the difference over seeds; NaN if a or b has one seed only.
        freedom: degrees of freedom of that error (Welch, Satterthwaite); NaN likewise.
        seeds: number of seeds of a and of b.
    """

    difference: Interval
    seed_error: float
    freedom: float
    seeds: tuple[int, int]


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
    order = _order(first.ids)
    if len(set(order)) != len(order) or any(_order(r.ids) != order for r in runs):
        raise UserError(
            "the evaluations hold different images", remedy="compare evaluations of the same split"
        )
    out = []
    for run in runs:
        if run.ids == order:
            out.append(run)
            continue
        rows = np.argsort(np.array(run.ids))
        arrays = (getattr(run, k)[rows] for k in ("intersection", "predicted", "labelled"))
        out.append(PerImage(order, *arrays))
    return out


@lru_cache(maxsize=64)
def _order(ids: tuple[str, ...]) -> tuple[str, ...]:
    """Image ids sorted; runs of one split share the tuple."""
    return tuple(sorted(ids))


def _stacked(runs: Sequence[PerImage], seeds: Seeds, classes: Classes) -> np.ndarray:
    """``(C, S, K, N)`` counts; S = 1 after pooling.

    C are intersection and union and, where the mean goes over labelled classes, labelled pixels. The type
    is the narrowest in which every sum of N of these integers is exact.
    """
    images, number = runs[0].intersection.shape
    parts = 2 if classes == "occurring" else 3
    counts = np.empty((parts, len(runs), number, images), dtype=np.int64)
    for own, run in zip(counts.swapaxes(0, 1), runs, strict=True):
        own[0] = run.intersection.T
        np.subtract((run.predicted + run.labelled).T, own[0], out=own[1])
        if parts == 3:
            own[2] = run.labelled.T
    if seeds == "pooled":
        counts = counts.sum(axis=1, keepdims=True)
    largest = int(counts.max(initial=0)) * images
    return counts.astype(np.float32 if largest < 2**24 else np.float64)


def _scores(summed: np.ndarray, classes: Classes) -> np.ndarray:
    """mIoU in percent of each seed, ``(C, S, K, ...)`` to ``(S, ...)``.

    The figures of ``harness.basics.scores.iou_from_counts``, which has the classes last: here sums go over
    long rows.
    """
    summed = summed.astype(np.float64, copy=False)
    intersection, union = summed[:2]
    iou = 100.0 * intersection / np.maximum(union, 1)
    counted = union if classes == "occurring" else summed[2]
    if counted.min() > 0:
        return iou.sum(axis=1) / iou.shape[1]
    used = counted > 0
    number = used.sum(axis=1)
    return np.where(number > 0, np.where(used, iou, 0.0).sum(axis=1) / np.maximum(number, 1), np.nan)


def _statistic(summed: np.ndarray, classes: Classes) -> np.ndarray:
    """Mean over seeds of mIoU in percent, ``(C, S, K, ...)`` to ``(...)``."""
    return _scores(summed, classes).mean(axis=0)


@lru_cache(maxsize=4)
def _only_block(images: int, resamples: int, seed: int, dtype: np.dtype) -> np.ndarray:
    """Weights that fit one block: the rows of a table share them."""
    drawn = weights(images, resamples, np.random.default_rng(seed)).astype(dtype)
    drawn.setflags(write=False)
    return drawn


def _blocks(images: int, resamples: int, seed: int, dtype: np.dtype) -> Iterator[np.ndarray]:
    rows = max(1, _BLOCK // images)
    if resamples <= rows:
        yield _only_block(images, resamples, seed, dtype)
        return
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, rows):
        yield weights(images, min(rows, resamples - start), rng).astype(dtype, copy=False)


def _resampled(counts: Sequence[np.ndarray], classes: Classes, resamples: int, seed: int) -> list[np.ndarray]:
    """The statistic of each group of runs on the same resamples, each ``(R,)``."""
    images = counts[0].shape[-1]
    found: list[list[np.ndarray]] = [[] for _ in counts]
    for drawn in _blocks(images, resamples, seed, np.result_type(*counts)):
        for values, own in zip(found, counts, strict=True):
            summed = (own.reshape(-1, images) @ drawn.T).reshape(*own.shape[:-1], len(drawn))
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
    seed: int = BOOTSTRAP_SEED,
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
    counts = _stacked(aligned(runs), seeds, classes)
    estimate = float(_statistic(counts.sum(axis=-1), classes))
    values = _resampled([counts], classes, resamples, seed)[0]
    return _interval(estimate, values, level, counts.shape[-1])


def paired_bootstrap(
    a: Sequence[PerImage],
    b: Sequence[PerImage],
    *,
    classes: Classes = "occurring",
    seeds: Seeds = "mean",
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = BOOTSTRAP_SEED,
) -> Comparison:
    """Compare two rows on the same resamples of the same images (arguments as in bootstrap_miou).

    Raises:
        UserError: the runs hold different images.
    """
    both = aligned([*a, *b])
    counts = [_stacked(part, seeds, classes) for part in (both[: len(a)], both[len(a) :])]
    estimates = [float(_statistic(c.sum(axis=-1), classes)) for c in counts]
    values = _resampled(counts, classes, resamples, seed)
    differences = values[0] - values[1]
    interval = _interval(estimates[0] - estimates[1], differences, level, counts[0].shape[-1])
    return Comparison(interval, float((differences <= 0).mean()))


# --- two levels: images and seeds ----------------------------------------------------------------------


def welch(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Standard error and degrees of freedom of mean(a) - mean(b) (Welch 1947, Satterthwaite 1946).

    Args:
        a, b: scores of the seeds, one-dimensional; they are independent and may differ in number.

    Returns:
        NaN and NaN where either has fewer than two values.
    """
    if min(len(a), len(b)) < 2:
        return math.nan, math.nan
    parts = [float(x.var(ddof=1)) / len(x) for x in (a, b)]
    total = sum(parts)
    if total == 0:
        return 0.0, math.inf
    freedom = total**2 / sum(v**2 / (len(x) - 1) for v, x in zip(parts, (a, b), strict=True))
    return math.sqrt(total), freedom


def _student(freedom: float, resamples: int, seed: int) -> np.ndarray:
    """``(R,)`` Student's t in random order, one value from each of R equally probable strata."""
    from scipy.special import stdtrit

    places = np.random.default_rng([seed, 1]).permutation(resamples)
    return stdtrit(min(freedom, 1e9), (places + 0.5) / resamples)


def two_level_difference(
    a: Sequence[PerImage],
    b: Sequence[PerImage],
    *,
    classes: Classes = "occurring",
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = BOOTSTRAP_SEED,
) -> TwoLevel:
    """Interval of mIoU(a) - mIoU(b) when both the images and the seeds are drawn anew.

    Resample r is ``D_r + e t_r``: ``D_r`` is the difference of the means over seeds on the r-th resample
    of the images, the same images for all runs; ``e`` is Welch's standard error of the difference over
    seeds, and ``t_r`` follows Student's distribution with his degrees of freedom. Seeds of a and b count
    as independent. With one seed on either side nothing is known of that level: the interval is then
    over images alone and ``seed_error`` is NaN.

    Args:
        a, b: per-image counts of the seeds of each row, on the same images in any order.
        classes, level, resamples, seed: as in :func:`bootstrap_miou`.

    Raises:
        UserError: the runs hold different images or numbers of classes.
    """
    both = aligned([*a, *b])
    counts = [_stacked(part, "mean", classes) for part in (both[: len(a)], both[len(a) :])]
    scores = [_scores(c.sum(axis=-1), classes) for c in counts]
    values = _resampled(counts, classes, resamples, seed)
    differences = values[0] - values[1]
    error, freedom = welch(*scores)
    if not math.isnan(error):
        differences = differences + error * _student(freedom, resamples, seed)
    interval = _interval(float(scores[0].mean() - scores[1].mean()), differences, level, counts[0].shape[-1])
    return TwoLevel(interval, error, freedom, (len(a), len(b)))


def permutation_test(
    a: Sequence[PerImage],
    b: Sequence[PerImage],
    *,
    classes: Classes = "occurring",
    permutations: int = PERMUTATIONS,
    seed: int = BOOTSTRAP_SEED,
) -> float:
    """Two-sided p-value of mIoU(a) = mIoU(b) on these images, these trained networks given.

    Under the hypothesis it does not matter which of the two methods segmented an image, so each random
    permutation swaps the methods on about half of the images. Counts are averaged over the seeds of a
    method first. The p-value is ``(1 + hits) / (1 + permutations)`` and never 0.

    Args:
        a, b: per-image counts, on the same images in any order.
        classes: as in :func:`bootstrap_miou`.
        permutations: random swaps.
        seed: of the swaps.

    Raises:
        UserError: the runs hold different images or numbers of classes.
    """
    both = aligned([*a, *b])
    parts = (_stacked(part, "mean", classes) for part in (both[: len(a)], both[len(a) :]))
    one, other = (part.mean(axis=1, keepdims=True, dtype=np.float64) for part in parts)
    images = one.shape[-1]
    change = (other - one).reshape(-1, images)
    sums = [x.sum(axis=-1)[..., None] for x in (one, other)]

    def difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return (_scores(first, classes) - _scores(second, classes))[0]

    observed = abs(float(difference(*sums)[0]))
    rng = np.random.default_rng([seed, 2])
    hits, rows = 0, max(1, _BLOCK // images)
    for start in range(0, permutations, rows):
        swaps = rng.random((min(rows, permutations - start), images)) < 0.5
        moved = (change @ swaps.T.astype(np.float64)).reshape(*one.shape[:-1], len(swaps))
        hits += int((np.abs(difference(sums[0] + moved, sums[1] - moved)) >= observed - 1e-9).sum())
    return (1 + hits) / (1 + permutations)


def seed_test(a: Sequence[float], b: Sequence[float]) -> float:
    """Two-sided exact p-value of equal mIoU over seeds: the signs of the paired differences are flipped.

    Args:
        a, b: scores of the same seeds in the same order.

    Returns:
        NaN below :data:`SEEDS_FOR_P` seeds, where the smallest possible value (2 / 2^n, with three
        seeds 0.25) could not speak against the hypothesis; from 17 seeds on, 65,536 random patterns
        stand for all of them.

    Raises:
        ValueError: different numbers of seeds.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} seeds cannot be paired")
    if len(a) < SEEDS_FOR_P:
        return math.nan
    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    n, extra = len(differences), 0
    if n <= 16:
        patterns = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    else:
        patterns, extra = np.random.default_rng(BOOTSTRAP_SEED).integers(0, 2, size=(2**16, n)), 1
    sums = np.abs((1 - 2 * patterns) @ differences)
    hits = int((sums >= abs(differences.sum()) - 1e-9).sum())
    return (hits + extra) / (len(patterns) + extra)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values of a family of tests, adjusted by Holm's step-down method (Holm 1979); NaN stays NaN."""
    values = np.asarray(p_values, dtype=np.float64)
    tested = np.flatnonzero(~np.isnan(values))
    order = tested[np.argsort(values[tested], kind="stable")]
    adjusted = np.full(len(values), np.nan)
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * factors))
    return adjusted.tolist()
