"""Bands around boundaries and regions along contours: by hand, counts against loops, whole files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_erosion, distance_transform_edt

from harness.basics.reading import Damaged
from harness.evaluation.boundary import (
    WIDTHS,
    Boundary,
    BoundaryCounter,
    band_of_each_pixel,
    contour_counts,
    near_contours,
)
from harness.evaluation.counting import count


def distances(mask: np.ndarray) -> np.ndarray:
    """Of all pixels, by a transform of the whole picture."""
    padded = np.pad(mask.astype(int), 1, mode="edge")
    middle = padded[1:-1, 1:-1]
    around = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    inner = np.all([middle == other for other in around], axis=0)
    return np.full(mask.shape, np.inf) if inner.all() else distance_transform_edt(inner) + 1.0


def test_distances_by_hand() -> None:
    mask = np.zeros((1, 6), dtype=np.uint8)
    mask[0, 4:] = 1
    one, two, four = np.array([1]), np.array([1, 2]), np.array([1, 2, 3, 4])
    assert band_of_each_pixel(mask, four).tolist() == [[3, 2, 1, 0, 0, 1]]
    assert band_of_each_pixel(mask, two).tolist() == [[2, 2, 1, 0, 0, 1]]
    assert band_of_each_pixel(mask, one).tolist() == [[1, 1, 1, 0, 0, 1]]
    assert (band_of_each_pixel(np.zeros((3, 3), dtype=np.uint8), two) == 2).all()
    void = np.array([[0, 0, 255, 1]], dtype=np.uint8)
    assert band_of_each_pixel(void, four).tolist() == [[1, 0, 0, 0]]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([WIDTHS, (1,), (5,), (3, 40, 150), (2, 7, 9)]))
def test_bands_are_those_of_a_distance_transform(seed: int, widths: tuple[int, ...]) -> None:
    """Of pictures of any proportions, and bands wider than they are."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(rng.integers(1, 70, 2), dtype=np.uint8)
    for _ in range(rng.integers(0, 5)):
        top, left = (int(rng.integers(0, side)) for side in mask.shape)
        mask[top : top + 9, left : left + 9] = rng.integers(0, 256)
    expected = np.searchsorted(np.array(widths), distances(mask))
    np.testing.assert_array_equal(band_of_each_pixel(mask, np.array(widths)), expected)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_counts_equal_a_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    widths, k = (1, 2, 4), 3
    counter = BoundaryCounter(k, widths)
    expected = np.zeros((3, len(widths), k), dtype=int)
    for _ in range(2):
        mask = rng.choice([0, 1, 2, 255], (9, 7), p=[0.6, 0.2, 0.1, 0.1]).astype(np.uint8)
        mask[:4] = 0
        prediction = rng.choice([0, 1, 2, 254], mask.shape).astype(np.uint8)
        counter.add(prediction, mask)
        away = distances(mask)
        for (y, x), truth in np.ndenumerate(mask):
            for index, width in enumerate(widths):
                if truth == 255 or away[y, x] > width:
                    continue
                expected[2, index, truth] += 1
                if prediction[y, x] < k:
                    expected[1, index, prediction[y, x]] += 1
                if prediction[y, x] == truth:
                    expected[0, index, truth] += 1
    found = counter.result()
    np.testing.assert_array_equal([found.intersection, found.predicted, found.labelled], expected)


def test_file(tmp_path: Path) -> None:
    counter = BoundaryCounter(2)
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[:, 4:] = 1
    counter.add(mask, mask)
    saved = counter.result()
    saved.save(tmp_path / "boundary.npz")
    loaded = Boundary.load(tmp_path / "boundary.npz")
    assert loaded is not None
    for name, value in vars(saved).items():
        np.testing.assert_array_equal(getattr(loaded, name), value)
    assert loaded.labelled[0].tolist() == [8, 8]
    assert loaded.labelled[-1].tolist() == [32, 32]
    assert Boundary.load(tmp_path / "none.npz") is None


# --- contours ----------------------------------------------------------------------------------------

K = 3


def scenes(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A truth with void, and a prediction with pixels that it does not decide, of any proportions."""
    rng = np.random.default_rng(seed)
    truth = np.zeros(rng.integers(1, 90, 2), dtype=np.uint8)
    for _ in range(rng.integers(0, 6)):
        top, left = (int(rng.integers(0, side)) for side in truth.shape)
        truth[top : top + int(rng.integers(1, 30)), left : left + 20] = rng.choice([0, 1, 2, 255])
    guess = np.roll(truth, rng.integers(-3, 4, 2), (0, 1))
    guess[rng.random(truth.shape) < 0.02] = 255
    return truth, guess


def reach_of(shape: tuple[int, ...]) -> int:
    return max(1, round(0.02 * math.sqrt(shape[0] ** 2 + shape[1] ** 2)))


def pixel_loop(labels: np.ndarray, void: np.ndarray, reach: int) -> np.ndarray:
    """Pixels with another value, or the frame, at most so many rows and columns away."""
    found = np.zeros(labels.shape, dtype=bool)
    for (y, x), value in np.ndenumerate(labels):
        for a in range(y - reach, y + reach + 1):
            for b in range(x - reach, x + reach + 1):
                inside = 0 <= a < labels.shape[0] and 0 <= b < labels.shape[1]
                found[y, x] |= not inside or (not void[a, b] and labels[a, b] != value)
    return found & ~void


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_counts_along_contours_equal_a_loop(seed: int) -> None:
    truth, guess = (part[:24, :30] for part in scenes(seed))
    void, reach = truth == 255, reach_of(truth.shape)
    mine, theirs = (pixel_loop(np.minimum(part, K), void, reach) for part in (guess, truth))
    expected = [
        [int((mine & theirs & (guess == c) & (truth == c)).sum()) for c in range(K)],
        [int((mine & (guess == c)).sum()) for c in range(K)],
        [int((theirs & (truth == c)).sum()) for c in range(K)],
    ]
    np.testing.assert_array_equal(contour_counts(guess, truth, K), expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_without_void_they_are_what_erosions_take_away(seed: int, reach: int) -> None:
    """The authors' way: each class's region, with a frame of nothing, eroded by a square of 3 x 3."""
    labels = scenes(seed)[1]
    found = near_contours(labels, np.zeros(labels.shape, dtype=bool), reach)
    for value in np.unique(labels):
        region = np.pad(labels == value, 1)
        inner = binary_erosion(region, np.ones((3, 3)), iterations=reach)[1:-1, 1:-1]
        np.testing.assert_array_equal(found & (labels == value), (labels == value) & ~inner)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_what_holds_of_every_picture(seed: int) -> None:
    truth, guess = scenes(seed)
    hit, predicted, labelled = counts = contour_counts(guess, truth, K)
    assert (counts <= np.stack(count(guess, truth, K))).all()
    assert (hit <= np.minimum(predicted, labelled)).all()
    same = contour_counts(truth, truth, K)
    assert (same == same[0]).all()  # equal maps: IoU is 1
    np.testing.assert_array_equal(labelled, same[0])  # whatever is predicted
    for turned in (np.flipud, np.fliplr, np.transpose):
        np.testing.assert_array_equal(contour_counts(turned(guess), turned(truth), K), counts)
    other = np.array([2, 0, 1, *range(3, 256)], dtype=np.uint8)
    np.testing.assert_array_equal(contour_counts(other[guess], other[truth], K)[:, other[:K]], counts)
    whole = np.where(truth == 255, 0, truth)
    decided = np.where(guess == 255, 0, guess)
    np.testing.assert_array_equal(
        contour_counts(decided, whole, K)[[0, 2, 1]], contour_counts(whole, decided, K)
    )


def test_a_prediction_that_leaks_over_the_boundary_gains_nothing() -> None:
    """Trimap bands and mIoU forgive a blob; its contour lies elsewhere."""
    truth = np.zeros((200, 300), dtype=np.uint8)
    truth[60:140, 60:240] = 1
    blob = np.zeros_like(truth)
    blob[45:155, 45:255] = 1
    hit, predicted, labelled = contour_counts(blob, truth, 2)
    assert hit[1] == 0 < min(predicted[1], labelled[1])
    assert (blob == truth).mean() > 0.8


def test_files_without_contours_load_and_impossible_ones_do_not(tmp_path: Path) -> None:
    counter = BoundaryCounter(K)
    truth, guess = scenes(4)
    counter.add(guess, truth)
    saved, file = counter.result(), tmp_path / "boundary.npz"
    whole = tuple(np.array(part) for part in count(guess, truth, K))
    assert saved.fits(whole)
    Boundary(saved.widths, saved.intersection, saved.predicted, saved.labelled).save(file)
    old = Boundary.load(file)
    assert old is not None
    assert old.contours is None
    assert old.fits(whole)
    assert saved.contours is not None
    more = Boundary(*list(vars(saved).values())[:4], contours=saved.contours + 10**6)
    assert not more.fits(whole)
    for wrong in (saved.contours[:, :2], -1 - saved.contours, saved.contours[[2, 1, 0]] + [[1], [0], [0]]):
        Boundary(*list(vars(saved).values())[:4], contours=wrong).save(file)
        with pytest.raises(Damaged, match="contradict"):
            Boundary.load(file)


def test_counters_of_several_processes_add_up() -> None:
    pairs = [(str(seed), *scenes(seed)[::-1]) for seed in range(4)]
    whole, parts = BoundaryCounter(K), [BoundaryCounter(K), BoundaryCounter(K)]
    assert list(whole.following(pairs)) == pairs
    for number, part in enumerate(parts):
        list(part.following([*pairs[number::2], ("none", pairs[0][1], None)]))
    parts[0].together(parts)
    for name, value in vars(whole.result()).items():
        np.testing.assert_array_equal(getattr(parts[0].result(), name), value)
