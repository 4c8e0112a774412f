"""Confusion statistics in bands around object boundaries (the trimap plot of Kohli et al., IJCV 2009).

Krähenbühl and Koltun (NIPS 2011) and most of the field since plot accuracy against the width of a band
around the boundaries of the truth. Counts are summed over the split and bands are cumulative, so that one
small file holds the whole curve.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.basics.arrays import read_arrays
from harness.basics.files import write_with
from harness.basics.reading import damaged

#: Half widths of the bands in pixels [our choice].
WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
_IGNORE = 255


@dataclass(frozen=True)
class Boundary:
    """Counts of one evaluation by band, summed over its images.

    Attributes:
        widths: ``(W,)`` largest distance in pixels to a boundary of the truth, ascending.
        intersection, predicted, labelled: ``(W, K)`` int64 pixels within the band.
    """

    widths: np.ndarray
    intersection: np.ndarray
    predicted: np.ndarray
    labelled: np.ndarray

    def save(self, path: Path) -> None:
        """Write an npz file."""
        write_with(path, lambda f: np.savez_compressed(f, **vars(self)))

    @classmethod
    def load(cls, path: Path) -> Boundary | None:
        """Read an npz file; None where there is none.

        Raises:
            Damaged: unreadable, or counts that cannot be.
        """
        if not os.path.lexists(path):
            return None
        found = read_arrays(path)
        if set(found) != set(cls.__annotations__):
            raise damaged(path, "it does not hold the counts of bands", "evaluate again")
        widths, *counts = (found[name] for name in cls.__annotations__)
        hit, predicted, labelled = counts
        sound = (
            all(array.dtype.kind == "i" for array in found.values())
            and widths.ndim == 1
            and {array.ndim for array in counts} == {2}
            and {array.shape for array in counts} == {(len(widths), hit.shape[1])}
            and min(int(array.min(initial=0)) for array in counts) >= 0
            and not (hit > predicted).any()
            and not (hit > labelled).any()
            and all(bool((np.diff(array, axis=0) >= 0).all()) for array in counts)
        )
        if not sound:
            raise damaged(path, "its counts of bands contradict each other", "evaluate again")
        return cls(**found)

    def fits(self, totals: tuple[np.ndarray, np.ndarray, np.ndarray]) -> bool:
        """Whether the bands lie within what was counted on whole pictures.

        Args:
            totals: ``(K,)`` intersection, predicted and labelled pixels.
        """
        bands = (self.intersection, self.predicted, self.labelled)
        return all(
            b.shape[1:] == t.shape and bool((b <= t).all()) for b, t in zip(bands, totals, strict=True)
        )


def distances(mask: np.ndarray) -> np.ndarray:
    """``(H, W)`` float64: pixels to the nearest pixel with a neighbour of another value, which is at 1.

    Void counts as a value: on VOC it runs along the boundaries. Infinite where there is no boundary.
    """
    inner = np.ones(mask.shape, dtype=bool)
    for axis in (0, 1):
        change = np.diff(mask.astype(np.int16), axis=axis) != 0
        before, after = ([slice(None), slice(None)] for _ in "ab")
        before[axis], after[axis] = slice(None, -1), slice(1, None)
        inner[tuple(before)] &= ~change
        inner[tuple(after)] &= ~change
    if inner.all():
        return np.full(mask.shape, np.inf)
    from scipy.ndimage import distance_transform_edt

    return distance_transform_edt(inner) + 1.0


class BoundaryCounter:
    """Adds up counts by band, image by image.

    Args:
        num_classes: K.
        widths: half widths of the bands in pixels, ascending.
    """

    def __init__(self, num_classes: int, widths: tuple[int, ...] = WIDTHS) -> None:
        self.widths = np.array(widths, dtype=np.int64)
        self.num_classes = num_classes
        #: ``(3, W, K)`` int64 intersection, predicted, labelled pixels whose narrowest band it is; of
        #: several counters they add up.
        self.counts = np.zeros((3, len(widths), num_classes), dtype=np.int64)

    def add(self, prediction: np.ndarray, mask: np.ndarray) -> None:
        """Count one image.

        Args:
            prediction: ``(H, W)`` integers, ``0..K-1``; any other value is 'no decision'.
            mask: ``(H, W)`` uint8, ``0..K-1``; pixels with 255 are not counted.
        """
        k, w = self.num_classes, len(self.widths)
        # the narrowest band that holds a pixel; beyond the widest it is counted in none
        band = np.searchsorted(self.widths, distances(mask))
        counted = (mask != _IGNORE) & (band < w)
        place = band[counted] * k
        truth, predicted = mask[counted].astype(np.int64), prediction[counted].astype(np.int64)
        decided = (predicted >= 0) & (predicted < k)
        agree = predicted == truth
        for index, chosen in enumerate(
            (place[agree] + truth[agree], (place + predicted)[decided], place + truth)
        ):
            self.counts[index] += np.bincount(chosen, minlength=w * k).reshape(w, k)

    def result(self) -> Boundary:
        """Counts of cumulative bands."""
        return Boundary(self.widths, *self.counts.cumsum(axis=1))
