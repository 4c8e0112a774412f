"""Stand-in pseudo labels: dense, drawn from image tags alone, for trying a recipe before its source ran."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.data.base import UNLABELLED, Dataset
from harness.data.images import write_index
from harness.data.labels.label_store import LabelStore


@dataclass(frozen=True, kw_only=True)
class StandIn(LabelStore):
    """Labels that are written when they are asked for; two processes may ask at once.

    Attributes:
        dataset: whose pictures they fit.
    """

    dataset: Dataset

    def path(self, image_id: str) -> Path | None:
        """The index PNG of an image."""
        assert self.folder is not None
        file = self.folder / f"{image_id}.png"
        if not file.exists():
            size = self.dataset.picture_size(image_id)
            present = np.flatnonzero(self.tags[self.ids.index(image_id)])
            write_index(file, bands(present, size, self.dataset.info.background))
        return file


def bands(classes: np.ndarray, size: tuple[int, int], background: int | None) -> np.ndarray:
    """Upright bands of equal width, one for each class of a picture, beside background and no label.

    Args:
        classes: ``(n,)`` integers.
        size: (H, W).
        background: its label, None where there is none.

    Returns:
        ``(H, W)`` uint8, ``0..K-1`` and 254.
    """
    first = [] if background is None else [background]
    values = np.array([*first, *(c for c in classes if c != background), UNLABELLED], np.uint8)
    height, width = size
    row = values[np.arange(width) * len(values) // width]
    return np.broadcast_to(row, (height, width)).copy()


def stand_in_labels(dataset: Dataset, split: str, folder: Path) -> StandIn:
    """Stand-in labels of a split.

    Args:
        dataset: with its official image tags.
        split: which pictures.
        folder: where labels are written when they are asked for.
    """
    ids = tuple(dataset.ids(split))
    return StandIn(
        ids=ids,
        folder=folder,
        tags=np.asarray(dataset.tags(ids), np.uint8),
        fingerprint="stand-in",
        statistics={"images": len(ids)},
        masks={},
        hashes={},
        dataset=dataset,
    )
