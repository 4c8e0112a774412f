"""Confusion statistics of one picture."""

from __future__ import annotations

import numpy as np

from harness.data.base import IGNORE


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
    size = (num_classes + 2) * (num_classes + 1)
    pairs = np.bincount(class_pairs(prediction, mask, num_classes).ravel(), minlength=size)
    return pair_counts(pairs, num_classes)


def class_pairs(prediction: np.ndarray, mask: np.ndarray, num_classes: int) -> np.ndarray:
    """``(H, W)`` uint16: one number for every pair of a label and a prediction, for one count of them all.

    The label decides the row, of K + 2: classes, no class, not counted. The prediction decides the column, of
    K + 1: classes, no decision.
    """
    labels = as_bytes(mask, num_classes)
    rows = np.minimum(labels, num_classes)
    rows += labels == IGNORE
    found = np.multiply(rows, num_classes + 1, dtype=np.uint16)
    found += np.minimum(as_bytes(prediction, num_classes), num_classes)
    return found


def pair_counts(pairs: np.ndarray, num_classes: int) -> tuple[np.ndarray, ...]:
    """Intersection, predicted and labelled pixels ``(..., K)`` int64, from how often each of
    :func:`class_pairs` occurs, ``(..., (K + 2) * (K + 1))``."""
    k = num_classes
    counted = pairs.reshape(*pairs.shape[:-1], k + 2, k + 1)[..., : k + 1, :].astype(np.int64)
    both = np.diagonal(counted, axis1=-2, axis2=-1)[..., :k]
    return both.copy(), counted.sum(-2)[..., :k], counted.sum(-1)[..., :k]


def as_bytes(values: np.ndarray, num_classes: int) -> np.ndarray:
    """Integers as bytes: classes and 255 as they are, any other one as a number that is no class."""
    if values.dtype == np.uint8:
        return values
    known = ((values >= 0) & (values < num_classes)) | (values == IGNORE)
    return np.where(known, values, num_classes).astype(np.uint8)
