"""Changes to weak labels that studies of robustness make, and clicks by number.

Everything follows from the label, the picture's id and a seed, in whatever process it is made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from scipy import ndimage
from scipy.sparse.csgraph import dijkstra

from harness.data.base import UNLABELLED
from harness.data.labels.weak_labels import grid_graph, label_generator

#: Part of the hash of what makes labels; raised whenever equal labels may be changed otherwise.
TOOLS_VERSION = 1

_AROUND = np.ones((3, 3), bool)


def strokes(label: np.ndarray, num_classes: int) -> Iterator[tuple[tuple[slice, slice], np.ndarray]]:
    """The strokes of a drawn label: connected pixels of one class.

    Args:
        label: ``(H, W)`` uint8.
        num_classes: K.

    Yields:
        The bounding box of a stroke and its ``(h, w)`` bool pixels therein.
    """
    places = ndimage.find_objects(np.where(label < num_classes, label.astype(np.int32) + 1, 0), num_classes)
    for k, place in enumerate(places):
        if place is None:
            continue
        regions, _ = ndimage.label(label[place] == k, structure=_AROUND)
        for number, box in enumerate(ndimage.find_objects(regions), 1):
            rows, columns = (
                slice(p.start + b.start, p.start + b.stop) for p, b in zip(place, box, strict=True)
            )
            yield (rows, columns), regions[box] == number


def shorten(label: np.ndarray, keep: float, *, image_id: str, seed: int, num_classes: int) -> np.ndarray:
    """Keep one piece of every stroke, ``keep`` of its length, at a random place along it.

    Length is measured along the stroke: from one end, the pixel farthest from its middle, to the
    farthest other one. A stroke keeps at least one pixel. Strokes of one class that touch are one.

    Args:
        label: ``(H, W)`` uint8: ``0..K-1``, 254 elsewhere.
        keep: share of the length, in ``(0, 1]``.
        image_id: the picture; beside ``seed`` the source of all randomness.
        seed: seed of the places.
        num_classes: K.
    """
    if keep >= 1:
        return label.copy()
    rng = label_generator(image_id, "shorten", seed)
    shorter = np.full_like(label, UNLABELLED)
    for place, inside in strokes(label, num_classes):
        way = _along(inside)
        length = way.max()
        start = rng.uniform(0, 1 - keep) * length
        kept = (way >= start) & (way <= start + keep * length)
        if not kept.any():
            kept[np.argmin(np.abs(way - start))] = True
        piece = np.zeros(inside.shape, bool)
        piece[inside] = kept
        shorter[place][piece] = label[place][piece]
    return shorter


def _along(inside: np.ndarray) -> np.ndarray:
    """``(N,)`` float64 distance of a stroke's pixels from one of its ends, along the stroke."""
    count = int(np.count_nonzero(inside))
    if count == 1:
        return np.zeros(1)
    number = np.full(inside.shape, -1)
    number[inside] = np.arange(count)
    graph = grid_graph(number, np.ones(inside.shape))
    end = int(np.argmax(dijkstra(graph, indices=0)))
    return dijkstra(graph, indices=end)


def drop(label: np.ndarray, share: float, *, image_id: str, seed: int, num_classes: int) -> np.ndarray:
    """Keep each stroke with probability ``share``, whatever becomes of the others.

    Args and encoding as :func:`shorten`.
    """
    rng = label_generator(image_id, "drop", seed)
    fewer = np.full_like(label, UNLABELLED)
    for place, inside in strokes(label, num_classes):
        if rng.random() < share:
            fewer[place][inside] = label[place][inside]
    return fewer


def labelled_images(image_ids: Sequence[str], share: float, seed: int) -> frozenset[str]:
    """The images that keep their label: ``share`` of them, rounded.

    A smaller share is part of a larger one, and the order of the list plays no role.
    """
    ranked = sorted(image_ids, key=lambda i: hashlib.sha256(f"{seed}/images/{i}".encode()).digest())
    return frozenset(ranked[: round(share * len(ranked))])


def n_clicks(mask: np.ndarray, clicks: int, *, image_id: str, seed: int, num_classes: int) -> np.ndarray:
    """A given number of single-pixel clicks on a picture, as in Cityscapes' 20, 50 and 100 clicks.

    How those were spread is not said; ours: the classes present share the clicks evenly (larger classes
    get the rest), each class at least one, at uniformly random pixels of the class.

    Args:
        mask: ``(H, W)`` uint8: ``0..K-1`` class, anything else void.
        clicks: how many; fewer where classes have fewer pixels, more where there are more classes.
        image_id, seed, num_classes: as in :func:`shorten`.

    Returns:
        ``(H, W)`` uint8: ``0..K-1`` clicked class, 254 elsewhere.
    """
    rng = label_generator(image_id, "clicks", seed)
    flat = mask.ravel()
    counts = np.bincount(flat, minlength=256)[:num_classes]
    present = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    label = np.full(flat.shape, UNLABELLED, np.uint8)
    for place, k in enumerate(present.tolist()):
        wanted = max(clicks // len(present) + (place < clicks % len(present)), 1)
        pixels = np.flatnonzero(flat == k)
        label[rng.choice(pixels, min(wanted, len(pixels)), replace=False)] = k
    return label.reshape(mask.shape)
