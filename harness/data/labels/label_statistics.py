"""What weak labels cover, and where annotators would have drawn them: the annotation bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from harness.data.base import DatasetInfo

#: Distances to the boundary are counted in whole pixels up to this one, which takes all that is farther.
FARTHEST = 64


@dataclass(frozen=True)
class Counts:
    """Sums over the labels of any number of images.

    Attributes:
        images: number of images.
        without_label: images with nothing labelled.
        pixels: all pixels.
        labelled: ``(K,)`` int64 labelled pixels of each class.
        images_with: ``(K,)`` int64 images with a labelled pixel of each class.
        present: ``(K,)`` int64 pixels of each class in the dense masks.
        distance: ``(2, FARTHEST + 1)`` int64 pixels by distance to the boundary of their class, labelled
            ones and all, without background; all zero where there are no masks.
    """

    images: int
    without_label: int
    pixels: int
    labelled: np.ndarray
    images_with: np.ndarray
    present: np.ndarray
    distance: np.ndarray

    @classmethod
    def none(cls, num_classes: int) -> Counts:
        """Of no image."""
        zeros = np.zeros(num_classes, np.int64)
        return cls(0, 0, 0, zeros, zeros, zeros, np.zeros((2, FARTHEST + 1), np.int64))

    @classmethod
    def of_tags(cls, tags: np.ndarray) -> Counts:
        """Of ``(N, K)`` image tags, which label no pixel."""
        none = cls.none(tags.shape[1])
        return cls(
            len(tags), len(tags), 0, none.labelled, tags.astype(np.int64).sum(0), none.present, none.distance
        )

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.images + other.images,
            self.without_label + other.without_label,
            self.pixels + other.pixels,
            self.labelled + other.labelled,
            self.images_with + other.images_with,
            self.present + other.present,
            self.distance + other.distance,
        )

    def mean_distance(self) -> tuple[float | None, float | None]:
        """Mean distance to the boundary in pixels (64 and more count as 64), of labelled and of all."""
        steps = np.arange(FARTHEST + 1)
        sums = [int(row.sum()) for row in self.distance]
        means = [float(row @ steps) / s if s else None for row, s in zip(self.distance, sums, strict=True)]
        return means[0], means[1]

    def summary(self, classes: Sequence[str]) -> dict[str, Any]:
        """Plain values for ``labels.json``."""
        ours, every = self.mean_distance()
        return {
            "images": self.images,
            "images_without_label": self.without_label,
            "labelled_share": int(self.labelled.sum()) / max(self.pixels, 1),
            "mean_distance_to_boundary": {"labelled": ours, "all": every},
            "classes": {
                name: {
                    "labelled_pixels": int(self.labelled[k]),
                    "images": int(self.images_with[k]),
                    "share_of_class": self.labelled[k] / self.present[k] if self.present[k] else None,
                }
                for k, name in enumerate(classes)
                if self.images_with[k] or self.present[k]
            },
        }


def count_label(
    label: np.ndarray, mask: np.ndarray | None, num_classes: int, background: int | None
) -> Counts:
    """Count one label.

    Args:
        label: ``(H, W)`` uint8: ``0..K-1``, anything else unlabelled.
        mask: ``(H, W)`` uint8 dense mask where there is one: ``0..K-1``, anything else void.
        num_classes: K.
        background: label of the background class, None where there is none.
    """
    labelled = np.bincount(label.ravel(), minlength=256)[:num_classes].astype(np.int64)
    none = Counts.none(num_classes)
    present, distance = none.present, none.distance
    if mask is not None:
        present = np.bincount(mask.ravel(), minlength=256)[:num_classes].astype(np.int64)
        near = boundary_distance(mask)
        objects = [
            (of < num_classes) & (of != (-1 if background is None else background)) for of in (label, mask)
        ]
        distance = np.stack([np.bincount(near[o], minlength=FARTHEST + 1) for o in objects]).astype(np.int64)
    return Counts(
        images=1,
        without_label=int(not labelled.any()),
        pixels=label.size,
        labelled=labelled,
        images_with=(labelled > 0).astype(np.int64),
        present=present,
        distance=distance,
    )


def boundary_distance(mask: np.ndarray) -> np.ndarray:
    """``(H, W)`` int64: whole pixels to the nearest pixel of another value, at most :data:`FARTHEST`.

    A pixel beside another value has distance 1; the picture's frame is no boundary.
    """
    edge = np.zeros(mask.shape, bool)
    for axis in (0, 1):
        differs = np.diff(mask.astype(np.int16), axis=axis) != 0
        if axis == 0:
            edge[:-1] |= differs
            edge[1:] |= differs
        else:
            edge[:, :-1] |= differs
            edge[:, 1:] |= differs
    if not edge.any():
        return np.full(mask.shape, FARTHEST, np.int64)
    return np.minimum(ndimage.distance_transform_edt(~edge).astype(np.int64) + 1, FARTHEST)


def plot_statistics(counts: Counts, info: DatasetInfo, kind: str, path: Path) -> None:
    """Draw how much of each class is labelled, and how far from boundaries labels lie.

    Args:
        counts: statistics.
        info: class names and colours.
        kind: kind of weak label, for the title.
        path: PNG file.
    """
    from matplotlib.figure import Figure

    from harness.basics.drawn_text import as_written
    from harness.basics.files import write_with

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    shown = np.flatnonzero((counts.images_with > 0) | (counts.present > 0))
    shown = shown[np.argsort(-counts.images_with[shown], kind="stable")][:40]
    colours = np.array(info.palette)[shown] / 255
    left.bar(range(len(shown)), counts.images_with[shown], color=colours, edgecolor="black", linewidth=0.4)
    names = [info.classes[k].split(",")[0] for k in shown]
    left.set_xticks(range(len(shown)), names, rotation=90, fontsize=7)
    left.set_ylabel("images with a label of the class")
    share = int(counts.labelled.sum()) / max(counts.pixels, 1)
    left.set_title(f"{info.title}, {kind}: {counts.images} images, {100 * share:.2f} % of pixels")
    for row, name, style in ((1, "all pixels of objects", "--"), (0, "labelled ones", "-")):
        whole = counts.distance[row].sum()
        if whole:
            right.plot(np.cumsum(counts.distance[row])[:FARTHEST] / whole, style, label=name)
    if counts.distance.any():
        right.legend()
    else:
        right.text(0.5, 0.5, "no pixels or no masks", ha="center", transform=right.transAxes)
    right.set_xlabel("distance to the boundary of the class, pixels")
    right.set_ylabel("share of pixels at most so far")
    right.set_title("annotation bias: where on objects labels lie")
    as_written(figure)
    write_with(path, lambda stream: figure.savefig(stream, format="png", dpi=110))
