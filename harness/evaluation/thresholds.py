"""Pseudo labels at many thresholds of activation maps, counted in one pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from harness.basics.scores import iou_from_counts
from harness.engine.batch import IGNORE


@dataclass(frozen=True)
class Sweep:
    """Pixels by threshold and class; each ``(T, K)`` int64.

    Attributes:
        intersection: labelled as the class and called so.
        predicted: called so, among those that are labelled.
        labelled: labelled as the class, the same at each threshold.
    """

    intersection: np.ndarray
    predicted: np.ndarray
    labelled: np.ndarray

    def __add__(self, other: Sweep) -> Sweep:
        return Sweep(
            self.intersection + other.intersection,
            self.predicted + other.predicted,
            self.labelled + other.labelled,
        )

    def scores(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """mIoU, precision and recall ``(T,)`` and IoU ``(T, K)``, in percent.

        Precision is the mean over the classes that are called at all at a threshold, recall over those that
        are labelled; mIoU over classes that are either. NaN where there is none.
        """
        iou, miou = iou_from_counts(self.intersection, self.predicted, self.labelled)
        return miou, _mean_share(self.intersection, self.predicted), self.recall(), iou

    def recall(self) -> np.ndarray:
        """``(T,)`` percent, see :meth:`scores`."""
        return _mean_share(self.intersection, self.labelled)


def _mean_share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    used = whole > 0
    shares = np.where(used, 100.0 * part / np.maximum(whole, 1), 0.0).sum(-1)
    number = used.sum(-1)
    return np.where(number > 0, shares / np.maximum(number, 1), np.nan)


def strongest(maps: Tensor, background: int) -> tuple[np.ndarray, np.ndarray]:
    """The strongest foreground class of every pixel of one picture.

    Args:
        maps: ``(K, H, W)`` in [0, 1], 0 for classes without tag.
        background: its channel, which is not looked at.

    Returns:
        Its value ``(H, W)`` float32, and its number ``(H, W)`` int64.
    """
    foreground = [k for k in range(len(maps)) if k != background]
    value, place = maps[foreground].float().max(0)
    return value.cpu().numpy(), torch.tensor(foreground)[place.cpu()].numpy()


def labels_above(value: np.ndarray, best: np.ndarray, threshold: float, background: int) -> np.ndarray:
    """Labels ``(H, W)`` at one threshold: values up to it are background.

    Args:
        value, best: from :func:`strongest`.
        threshold: compared as float32, as methods compare it.
        background: what the rest is called.
    """
    return np.where(value > np.float32(threshold), best, background)


def sweep_counts(
    value: np.ndarray,
    best: np.ndarray,
    mask: np.ndarray,
    thresholds: np.ndarray,
    background: int,
    classes: int,
) -> Sweep:
    """Counts of one picture at every threshold, those of :func:`labels_above` at each of them.

    Args:
        value, best: from :func:`strongest`.
        mask: ``(H, W)`` integers; pixels with 255 are not counted.
        thresholds: ``(T,)`` float32, ascending.
        background: number of that class.
        classes: K.
    """
    counted = mask != IGNORE
    truth, called = mask[counted].astype(np.int64), best[counted]
    below = np.searchsorted(thresholds, value[counted], side="left")  # thresholds that a value exceeds

    def over(chosen: np.ndarray) -> np.ndarray:
        """``(T, K)`` chosen pixels that exceed each threshold, by the class that they are called."""
        places = below[chosen] * classes + called[chosen]
        found = np.bincount(places, minlength=(len(thresholds) + 1) * classes)
        exceeding = found.reshape(-1, classes)[::-1].cumsum(0)[::-1]
        return exceeding[1:].astype(np.int64)

    predicted, intersection = over(np.ones_like(truth, dtype=bool)), over(called == truth)
    at_background = over(truth == background).sum(-1)
    predicted[:, background] = len(truth) - predicted.sum(-1)
    intersection[:, background] = (truth == background).sum() - at_background
    labelled = np.bincount(truth, minlength=classes)[:classes].astype(np.int64)
    return Sweep(intersection, predicted, np.tile(labelled, (len(thresholds), 1)))
