"""Predictions of any origin, beside the masks of a split."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from harness.data.base import Dataset
from harness.data.images import read_index
from harness.errors import UserError


def folder_pairs(dataset: Dataset, folder: Path, split: str) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(id, prediction, mask) of every picture of a split that has a mask, from ``<folder>/<id>.png``.

    Raises:
        UserError: the folder or a prediction is missing, of another size, or not an index map.
    """
    if not folder.is_dir():
        raise UserError("no folder of predictions", where=folder, remedy="check --predictions")
    ids = dataset.masked(split)
    missing = [i for i in ids if not (folder / f"{i}.png").exists()]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(ids)} predictions are missing, the first is {missing[0]}.png",
            where=folder,
            remedy=f"write one <id>.png for every picture of {split}",
        )
    for image_id in ids:
        prediction, mask = read_index(folder / f"{image_id}.png"), dataset.read_mask(image_id, split)
        if prediction.shape != mask.shape:
            (h, w), (rows, columns) = prediction.shape, mask.shape
            raise UserError(
                f"the prediction is {w}x{h} pixels, its mask {columns}x{rows}",
                where=folder / f"{image_id}.png",
                remedy="write predictions at the size of the picture",
            )
        yield image_id, prediction, mask
