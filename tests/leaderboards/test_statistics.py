"""Intervals against a slow loop with the same weights; spread over seeds; pairing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from synthetic import counts

from harness.errors import UserError
from harness.records import PerImage
from leaderboards import statistics
from leaderboards.statistics import aligned, bootstrap_miou, paired_bootstrap, spread, weights


def slow_miou(run: PerImage, drawn: np.ndarray, classes: str = "occurring") -> float:
    """mIoU of a resample, class by class in plain Python."""
    values = []
    for k in range(run.intersection.shape[1]):
        hit = predicted = labelled = 0
        for i, times in enumerate(drawn):
            hit += int(times) * int(run.intersection[i, k])
            predicted += int(times) * int(run.predicted[i, k])
            labelled += int(times) * int(run.labelled[i, k])
        union = predicted + labelled - hit
        if (union if classes == "occurring" else labelled) > 0:
            values.append(100.0 * hit / union)
    return sum(values) / len(values)


def percentiles(values: list[float]) -> tuple[float, float]:
    """2.5 and 97.5 percentiles by linear interpolation between order statistics."""
    ordered = sorted(values)

    def at(q: float) -> float:
        place = q * (len(ordered) - 1)
        low = math.floor(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])

    return at(0.025), at(0.975)


@pytest.mark.parametrize("classes", ["occurring", "labelled"])
def test_interval_equals_a_loop_with_the_same_weights(classes: str) -> None:
    runs = [counts(12, 0.6, seed) for seed in range(3)]
    runs[0].predicted[:, 2] += 5
    for run in runs:
        run.labelled[1:, 3] = 0  # a class of one picture only: absent from many resamples
        run.intersection[1:, 3] = 0
        run.predicted[1:, 3] = 0
    drawn = weights(12, 50, np.random.default_rng(4))
    expected = [sum(slow_miou(run, w, classes) for run in runs) / 3 for w in drawn]
    found = bootstrap_miou(runs, classes=classes, resamples=50, seed=4)
    ones = np.ones(12)
    assert found.estimate == pytest.approx(sum(slow_miou(run, ones, classes) for run in runs) / 3, rel=1e-12)
    assert (found.low, found.high) == pytest.approx(percentiles(expected), rel=1e-12)
    assert (found.images, found.resamples) == (12, 50)


def test_pooled_counts_are_added_over_seeds() -> None:
    runs = [counts(9, 0.5, 0), counts(9, 0.8, 1)]
    added = PerImage(
        runs[0].ids,
        runs[0].intersection + runs[1].intersection,
        runs[0].predicted + runs[1].predicted,
        runs[0].labelled + runs[1].labelled,
    )
    drawn = weights(9, 40, np.random.default_rng(1))
    expected = percentiles([slow_miou(added, w) for w in drawn])
    found = bootstrap_miou(runs, seeds="pooled", resamples=40, seed=1)
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-12)


def test_weights_are_multinomial() -> None:
    drawn = weights(7, 4000, np.random.default_rng(0))
    assert (drawn.sum(1) == 7).all()
    np.testing.assert_allclose(drawn.mean(0), 1.0, atol=0.06)
    np.testing.assert_allclose(drawn.var(0), 1 - 1 / 7, atol=0.08)


def test_blocks_of_weights_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [counts(15, 0.6, 0)]
    whole = bootstrap_miou(runs, resamples=64, seed=3)
    monkeypatch.setattr(statistics, "_BLOCK", 15 * 10)
    assert bootstrap_miou(runs, resamples=64, seed=3) == whole


def test_order_of_images_does_not_matter() -> None:
    run, other = counts(20, 0.6, 0), counts(20, 0.7, 1)
    turned = PerImage(other.ids[::-1], other.intersection[::-1], other.predicted[::-1], other.labelled[::-1])
    assert bootstrap_miou([run, other], resamples=30) == bootstrap_miou([run, turned], resamples=30)


def test_different_images_are_refused() -> None:
    with pytest.raises(UserError, match="different images"):
        bootstrap_miou([counts(5, 0.5, 0), counts(6, 0.5, 0)])
    with pytest.raises(UserError, match="numbers of classes"):
        aligned([counts(5, 0.5, 0, classes=3), counts(5, 0.5, 0, classes=4)])


def test_coverage_on_simulated_images() -> None:
    """Intervals from samples of a population hold its mIoU about as often as they claim."""
    population = counts(20_000, 0.6, 7)
    truth = miou_of(population, np.arange(20_000))
    rng = np.random.default_rng(5)
    hits = 0
    for trial in range(120):
        rows = rng.choice(20_000, 150, replace=False)
        sample = PerImage(
            tuple(population.ids[i] for i in rows),
            *(getattr(population, k)[rows] for k in ("intersection", "predicted", "labelled")),
        )
        found = bootstrap_miou([sample], resamples=200, seed=trial)
        hits += found.low <= truth <= found.high
    assert 0.87 <= hits / 120 <= 1.0


def miou_of(run: PerImage, rows: np.ndarray) -> float:
    """mIoU of some images."""
    hit, predicted, labelled = (
        getattr(run, k)[rows].sum(0) for k in ("intersection", "predicted", "labelled")
    )
    return float(np.mean(100 * hit / (predicted + labelled - hit)))


def test_spread() -> None:
    mean, std = spread([50.0, 52.0, 57.0])
    assert mean == 53.0
    assert std == pytest.approx(math.sqrt((9 + 1 + 16) / 2))
    assert spread([50.0])[0] == 50.0
    assert math.isnan(spread([50.0])[1])
    assert all(math.isnan(v) for v in spread([]))


def test_paired_comparison_uses_the_same_resamples() -> None:
    a, b = counts(25, 0.7, 0), counts(25, 0.6, 0)
    drawn = weights(25, 60, np.random.default_rng(2))
    differences = [slow_miou(a, w) - slow_miou(b, w) for w in drawn]
    found = paired_bootstrap([a], [b], resamples=60, seed=2)
    assert (found.difference.low, found.difference.high) == pytest.approx(percentiles(differences), rel=1e-9)
    assert found.worse == sum(d <= 0 for d in differences) / 60
    same = paired_bootstrap([a], [a], resamples=60)
    assert (same.difference.low, same.difference.high, same.worse) == (0.0, 0.0, 1.0)
