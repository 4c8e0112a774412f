"""Confusion statistics of one picture."""

from __future__ import annotations

import numpy as np

from harness.engine.batch import IGNORE


def count(prediction: np.ndarray, mask: np.ndarray, num_classes: int) -> tuple[np.ndarray, ...]:
    """Confusion statistics of one picture.

    Args:
        prediction: ``(H, W)`` integers, ``0..K-1``; any other value is 'no decision'.
        mask: ``(H, W)`` integers, ``0..K-1``; pixels with 255 are not counted.
        num_classes: K.

    Returns:
        Intersection, predicted and labelled pixels by class, each ``(K,)`` int64.

    Raises:
        ValueError: the shapes differ.
    """
    if prediction.shape != mask.shape:
        raise ValueError(f"prediction {prediction.shape} and mask {mask.shape} differ in size")
    counted = mask != IGNORE
    truth = mask[counted].astype(np.int64)
    predicted = prediction[counted].astype(np.int64)
    decided = (predicted >= 0) & (predicted < num_classes)
    agree = predicted == truth

    def histogram(values: np.ndarray) -> np.ndarray:
        return np.bincount(values, minlength=num_classes)[:num_classes].astype(np.int64)

    return histogram(truth[agree]), histogram(predicted[decided]), histogram(truth)
