"""Bands around boundaries: distances by hand, counts against a loop, whole files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.evaluation.boundary import Boundary, BoundaryCounter, distances


def test_distances_by_hand() -> None:
    mask = np.zeros((1, 6), dtype=np.uint8)
    mask[0, 4:] = 1
    assert distances(mask).tolist() == [[4, 3, 2, 1, 1, 2]]
    assert np.isinf(distances(np.zeros((3, 3), dtype=np.uint8))).all()
    void = np.array([[0, 0, 255, 1]], dtype=np.uint8)
    assert distances(void).tolist() == [[2, 1, 1, 1]]


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
