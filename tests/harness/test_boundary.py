"""Bands around boundaries: distances by hand, counts against a loop, whole files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt

from harness.evaluation.boundary import WIDTHS, Boundary, BoundaryCounter, band_of_each_pixel


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
