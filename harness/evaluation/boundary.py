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
from harness.evaluation.counting import class_pairs, pair_counts

#: Half widths of the bands in pixels [our choice].
WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


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


def band_of_each_pixel(mask: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """The narrowest band around the boundaries of a mask that holds each pixel.

    A pixel with a neighbour of another value is at distance 1, others one farther than the nearest of those.
    Void counts as a value: on VOC it runs along the boundaries. Distances matter as far as the widest band
    reaches, so that squares of whole numbers, row by row, give in a fraction of the time what a distance
    transform of the picture does.

    Args:
        mask: ``(H, W)`` integers.
        widths: ``(W,)`` half widths in pixels, ascending.

    Returns:
        ``(H, W)`` uint8 index into ``widths``, W beyond the widest.
    """
    reach = int(widths[-1]) - 1
    kind = np.int16 if reach < 120 else np.int32  # holds the sum of two squares
    edge = np.zeros(mask.shape, dtype=bool)
    for axis in (0, 1):
        before, after = ([slice(None), slice(None)] for _ in "ab")
        before[axis], after[axis] = slice(None, -1), slice(1, None)
        change = mask[tuple(before)] != mask[tuple(after)]
        edge[tuple(before)] |= change
        edge[tuple(after)] |= change
    far = reach + 1
    height, width = mask.shape
    row = np.arange(height, dtype=np.int32)[:, None]
    above = np.maximum.accumulate(np.where(edge, row, -far), axis=0)
    below = np.minimum.accumulate(np.where(edge, row, height + far)[::-1], axis=0)[::-1]
    # Columns of far away values between the rows let one shift of the flat array move all rows at once.
    squares = np.full((height, width + reach), far * far, dtype=kind)
    column = np.minimum(np.minimum(row - above, below - row), far)  # to the nearest edge in it
    np.multiply(column, column, out=squares[:, :width], casting="unsafe")
    flat, moved = squares.ravel(), np.empty(squares.size, dtype=kind)
    nearest = flat.copy()
    for shift in range(1, min(reach + 1, width)):
        np.add(flat, kind(shift * shift), out=moved)
        np.minimum(nearest[shift:], moved[:-shift], out=nearest[shift:])
        np.minimum(nearest[:-shift], moved[shift:], out=nearest[:-shift])
    nearest = nearest.reshape(squares.shape)[:, :width]
    limits = (np.asarray(widths, dtype=np.int64) - 1) ** 2
    table = np.searchsorted(limits, np.arange(int(nearest.max(initial=0)) + 1)).astype(np.uint8)
    return table.take(nearest)


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
        band = band_of_each_pixel(mask, self.widths)
        inside = band < w  # beyond the widest a pixel is counted in none
        size = (k + 2) * (k + 1)
        pairs = band[inside].astype(np.int64) * size + class_pairs(prediction, mask, k)[inside]
        found = np.bincount(pairs, minlength=w * size).reshape(w, size)
        self.counts += np.stack(pair_counts(found, k))

    def result(self) -> Boundary:
        """Counts of cumulative bands."""
        return Boundary(self.widths, *self.counts.cumsum(axis=1))
