"""Predictions of any origin, beside the masks of a split."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from harness.basics.errors import UserError
from harness.data import numbering
from harness.data.base import IGNORE, Dataset
from harness.data.images import read_index
from harness.data.numbering import Numbering


class FolderPredictions:
    """Label maps ``<folder>/<id>.png`` of the pictures with masks, in class numbers; read as it is iterated.

    Args:
        dataset: whose classes and masks.
        folder: the label maps; 255 is 'no decision' in any numbering.
        split: which pictures.
        encoding: whose numbers they hold; found by default, from the note that this project writes beside
            its own, or where the values can be only one.
        say: how the numbering is said, with ``{}`` for its name, for errors.

    Attributes:
        encoding: whose numbers they hold.

    Raises:
        UserError: the folder or a prediction is missing, or the numbering can be either or neither.
    """

    def __init__(
        self,
        dataset: Dataset,
        folder: Path,
        split: str,
        encoding: Numbering | None = None,
        *,
        say: str = "--encoding {}",
    ) -> None:
        if not folder.is_dir():
            raise UserError("no folder of predictions", where=folder, remedy="check --predictions")
        self._dataset, self._folder, self._split = dataset, folder, split
        self._ids = dataset.masked(split)
        missing = [i for i in self._ids if not self._file(i).exists()]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(self._ids)} predictions are missing, the first is {missing[0]}.png",
                where=folder,
                remedy=f"write one <id>.png for every picture of {split}",
            )
        legal = numbering.numberings(dataset)
        found = encoding or numbering.said_beside(folder)
        if len(legal) == 1:
            found = "classes"
        elif found is None:
            values = numbering.values_present(map(self._file, self._ids), what="numbering of predictions")
            found = numbering.chosen_numbering(
                dataset, values, free=(IGNORE,), what="these predictions", where=folder, say=say
            )
        self.encoding: Numbering = found
        self._table = legal[found].copy()
        self._legal = numbering.in_words(legal[found])
        if self._table[IGNORE] < 0:
            self._table[IGNORE] = IGNORE
            self._legal += f", and {IGNORE} for no decision"
        self._confusion = np.zeros((256, dataset.info.num_classes), np.int64)

    def _file(self, image_id: str) -> Path:
        return self._folder / f"{image_id}.png"

    def __iter__(self) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """(id, prediction, mask) of every picture: ``(H, W)`` uint8 ``0..K-1``, 255 no decision.

        Raises:
            UserError: a prediction is of another size, no index map, or holds values that are no class.
        """
        self._confusion[:] = 0
        table = np.where(self._table < 0, IGNORE, self._table).astype(np.uint8)
        for image_id in self._ids:
            file = self._file(image_id)
            values, mask = read_index(file), self._dataset.read_mask(image_id, self._split)
            if values.shape != mask.shape:
                (h, w), (rows, columns) = values.shape, mask.shape
                raise UserError(
                    f"the prediction is {w}x{h} pixels, its mask {columns}x{rows}",
                    where=file,
                    remedy="write predictions at the size of the picture",
                )
            present = np.bincount(values.ravel(), minlength=256) > 0
            illegal = np.flatnonzero(present & (self._table < 0)).tolist()
            if illegal:
                raise UserError(
                    f"the prediction holds {numbering.ranges(illegal)}; legal are {self._legal}",
                    where=file,
                    remedy="write the class of every pixel"
                    + (
                        ", or say whose numbers they are"
                        if len(numbering.numberings(self._dataset)) > 1
                        else ""
                    ),
                )
            self._confusion += numbering.count_values(values, mask, self._dataset.info.num_classes)
            yield image_id, table[values], mask

    def warning(self) -> str:
        """Whether all that was read would fit its masks far better in other numbers; empty if not."""
        return numbering.better_fit(self._confusion, self._dataset, self._table)


def folder_pairs(
    dataset: Dataset, folder: Path, split: str, encoding: Numbering | None = None
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(id, prediction, mask) of every picture of a split that has a mask, from ``<folder>/<id>.png``.

    Args:
        dataset: whose classes and masks.
        folder: the label maps.
        split: which pictures.
        encoding: ``classes`` or ``files``, whose numbers they hold; found by default.

    Yields:
        Image id, and two ``(H, W)`` uint8: ``0..K-1``, with 255 for no decision and for void.

    Raises:
        UserError: as :class:`FolderPredictions`.
    """
    yield from FolderPredictions(dataset, folder, split, encoding)
