"""Confusion statistics near object boundaries, summed over a split, so that one small file holds them all.

In *bands* around the boundaries of the truth (the trimap plot of Kohli et al., IJCV 2009): Krähenbühl and
Koltun (NIPS 2011) and most of the field since plot accuracy against the width of such a band.

Along the *contours* of either map (Boundary IoU, Cheng et al., CVPR 2021): the pixels of a class near its
contour in the prediction against those near its contour in the truth, so that a prediction that leaks far
over a boundary gains nothing by covering the band.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.basics.arrays import read_arrays
from harness.basics.files import write_with
from harness.basics.reading import damaged
from harness.data.base import IGNORE
from harness.evaluation.counting import as_bytes, class_pairs, pair_counts

#: Half widths of the bands in pixels [our choice].
WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
#: How far from its contour a pixel lies at most, as a share of the picture's diagonal [Cheng et al.].
CONTOUR_SHARE = 0.02


#: An id, its prediction, its mask where it has one.
_Pair = tuple[str, np.ndarray, np.ndarray | None]


@dataclass(frozen=True)
class Boundary:
    """Counts of one evaluation by band, summed over its images.

    Attributes:
        widths: ``(W,)`` largest distance in pixels to a boundary of the truth, ascending.
        intersection, predicted, labelled: ``(W, K)`` int64 pixels within the band.
        contours: ``(3, K)`` int64 intersection, predicted and labelled pixels of the classes near their own
            contours; None in files of before they were counted.
    """

    widths: np.ndarray
    intersection: np.ndarray
    predicted: np.ndarray
    labelled: np.ndarray
    contours: np.ndarray | None = None

    def save(self, path: Path) -> None:
        """Write an npz file."""
        arrays = {name: array for name, array in vars(self).items() if array is not None}
        write_with(path, lambda f: np.savez_compressed(f, **arrays))

    @classmethod
    def load(cls, path: Path) -> Boundary | None:
        """Read an npz file; None where there is none.

        Raises:
            Damaged: unreadable, or counts that cannot be.
        """
        if not os.path.lexists(path):
            return None
        found = read_arrays(path)
        if set(found) | {"contours"} != set(cls.__annotations__):
            raise damaged(path, "it does not hold the counts of bands", "evaluate again")
        widths, *counts = (found[name] for name in cls.__annotations__ if name != "contours")
        hit, predicted, labelled = counts
        contours = found.get("contours")
        sound = (
            all(array.dtype.kind == "i" for array in found.values())
            and widths.ndim == 1
            and {array.ndim for array in counts} == {2}
            and {array.shape for array in counts} == {(len(widths), hit.shape[1])}
            and min(int(array.min(initial=0)) for array in counts) >= 0
            and not (hit > predicted).any()
            and not (hit > labelled).any()
            and all(bool((np.diff(array, axis=0) >= 0).all()) for array in counts)
            and (contours is None or _sound_contours(contours, hit.shape[1]))
        )
        if not sound:
            raise damaged(path, "its counts of bands contradict each other", "evaluate again")
        return cls(**found)

    def within(self, width: int | None) -> np.ndarray | None:
        """``(3, K)`` intersection, predicted and labelled pixels of one band; None if it was not counted."""
        at = np.flatnonzero(self.widths == width)
        if not at.size:
            return None
        return np.stack([part[at[0]] for part in (self.intersection, self.predicted, self.labelled)])

    def fits(self, totals: tuple[np.ndarray, np.ndarray, np.ndarray]) -> bool:
        """Whether the bands lie within what was counted on whole pictures.

        Args:
            totals: ``(K,)`` intersection, predicted and labelled pixels.
        """
        bands = (self.intersection, self.predicted, self.labelled)
        contours = bands if self.contours is None else self.contours[:, None]
        return all(
            b.shape[1:] == t.shape and bool((b <= t).all() and (c <= t).all())
            for b, c, t in zip(bands, contours, totals, strict=True)
        )


def _sound_contours(contours: np.ndarray, classes: int) -> bool:
    """Whether counts along contours can be."""
    if contours.shape != (3, classes) or (contours < 0).any():
        return False
    hit, predicted, labelled = contours
    return bool((hit <= predicted).all() and (hit <= labelled).all())


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


def near_contours(labels: np.ndarray, void: np.ndarray, reach: int) -> np.ndarray:
    """Pixels with another value, or the picture's frame, at most ``reach`` rows and columns away.

    Those are, for every value at once, what ``reach`` erosions of its region by a square of 3 x 3 take away,
    as the authors' code has it. Void pixels have no value: none of them is near a contour, and they make none
    [our choice: the truth then says of both maps alike what they may be, and equal maps score 100].

    Args:
        labels: ``(H, W)`` uint8.
        void: ``(H, W)`` bool.
        reach: pixels, 1 or more.

    Returns:
        ``(H, W)`` bool.
    """
    height, width = labels.shape
    row = width + 2 * reach  # margins, so that shifts of the flat array never meet another row

    def farthest(choose: np.ufunc, none: int) -> np.ndarray:
        """The largest or smallest value within reach of each pixel."""
        wide = np.full((height + 2 * reach, row), none, dtype=np.uint8)
        wide[reach : reach + height, reach : reach + width] = np.where(void, none, labels)
        flat = wide.ravel()
        for step in (1, row):  # along rows, then columns; windows double until they are wide enough
            size, due = 1, 2 * reach + 1
            while size < due:
                more = min(size, due - size)
                flat = choose(flat[: -more * step], flat[more * step :])
                size += more
        return np.lib.stride_tricks.as_strided(flat, (height, width), (row, 1), writeable=False)

    near = farthest(np.maximum, 0) != labels
    near |= farthest(np.minimum, 255) != labels
    near[:reach] = near[-reach:] = True
    near[:, :reach] = near[:, -reach:] = True
    near &= ~void
    return near


def contour_counts(prediction: np.ndarray, mask: np.ndarray, num_classes: int) -> np.ndarray:
    """``(3, K)`` int64 intersection, predicted and labelled pixels near contours of their class.

    Args:
        prediction, mask: as for :func:`harness.evaluation.counting.count`.
        num_classes: K.
    """
    k, void = num_classes, mask == IGNORE
    reach = max(1, round(CONTOUR_SHARE * math.hypot(*mask.shape)))
    maps = [np.minimum(as_bytes(values, k), k) for values in (prediction, mask)]
    mine, truth = (near_contours(values, void, reach) for values in maps)
    both = mine & truth & (maps[0] == maps[1])
    chosen = (maps[1][both], maps[0][mine], maps[1][truth])
    return np.stack([np.bincount(values, minlength=k + 1)[:k] for values in chosen])


class BoundaryCounter:
    """Adds up counts by band and along contours, image by image.

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
        #: ``(3, K)`` int64 see :func:`contour_counts`; they add up as well.
        self.contours = np.zeros((3, num_classes), dtype=np.int64)

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
        self.contours += contour_counts(prediction, mask, k)

    def following(self, pairs: Iterable[_Pair]) -> Iterator[_Pair]:
        """The same (id, prediction, mask), each counted; one without a mask is passed on."""
        for name, prediction, mask in pairs:
            if mask is not None:
                self.add(prediction, mask)
            yield name, prediction, mask

    def together(self, parts: Sequence[BoundaryCounter]) -> None:
        """Take over the sum of several counters, such as those of all processes."""
        self.counts = sum((part.counts for part in parts), np.zeros_like(self.counts))
        self.contours = sum((part.contours for part in parts), np.zeros_like(self.contours))

    def result(self) -> Boundary:
        """Counts of cumulative bands, and along contours."""
        hit, predicted, labelled = self.counts.cumsum(axis=1)
        return Boundary(self.widths, hit, predicted, labelled, self.contours)
