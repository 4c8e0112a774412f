"""Values of a recipe that a user's own pictures choose: ``crop`` and ``batch.per_group``, as ``"pictures"``.

They follow from the sizes and the number of the pictures of the training split, and from nothing else: the
same pictures give the same values on every machine, and what was chosen stands in the record as a number.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from typing import Any

from harness.basics.errors import UserError
from harness.basics.registry import DATASETS

#: The word in a recipe.
FROM_PICTURES = "pictures"
#: Name of the data set in recipes that are made for any pictures: ``--data-root own=FOLDER`` says which.
OWN = "own"

#: [our choice] A crop is a multiple of this many pixels, as transformers and strides of 32 want it.
_CELL = 32
_SIDES = (64, 512)
#: [our choice] Pixels of a batch: eight crops of 512, which train on a GPU of 12 GB with a ResNet-50.
_PIXELS = 8 * 512**2
_SAMPLES = (4, 16)
#: Pictures whose size is looked at, evenly spread.
_LOOKED_AT = 1000
#: What is used on data sets that are not a user's own.
_USUAL = (320, 8)


def fitted(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The values of a recipe with a number wherever they say :data:`FROM_PICTURES`.

    Args:
        values: the tables of a recipe, not validated.

    Returns:
        The values, and by dotted key what each number was chosen from.
    """
    values, batch = dict(values), values.get("batch")
    wanted = ["crop"] if values.get("crop") == FROM_PICTURES else []
    wanted += (
        ["batch.per_group"] if isinstance(batch, Mapping) and batch.get("per_group") == FROM_PICTURES else []
    )
    if not wanted:
        return values, {}
    crop, samples, why = _chosen(values.get("dataset"), values.get("train_split", "train"))
    if "crop" in wanted:
        values["crop"] = crop
    if "batch.per_group" in wanted and isinstance(batch, Mapping):
        side = values["crop"] if isinstance(values["crop"], int) else crop
        fit = _per_batch(side, samples) if samples else _USUAL[1]
        values["batch"] = {**batch, "per_group": fit}
    return values, dict.fromkeys(wanted, why)


def forget_pictures() -> None:
    """Look at pictures anew."""
    _look.cache_clear()


def _chosen(dataset: object, split: object) -> tuple[int, int, str]:
    """Side of the crop, number of pictures (0 where it is not known), and what they follow from."""
    known = DATASETS.get(dataset) if isinstance(dataset, str) and dataset in DATASETS else None
    file = getattr(known, "file", None)
    if known is None or file is None:
        return _USUAL[0], 0, "usual, as no pictures of your own are named"
    with suppress(UserError):  # a list or a picture that is wrong: checks before training say which
        height, width, number = _look(known, str(split))
        least, most = _SIDES
        side = min(max(min(height, width) // _CELL * _CELL, least), most)
        return side, number, f"{number} pictures of {width}x{height} pixels (median)"
    return _USUAL[0], 0, "usual, as the pictures cannot be read"


def _per_batch(side: int, pictures: int) -> int:
    """Samples in a batch: as many as its pixels allow, and no more than there are pictures."""
    least, most = _SAMPLES
    return max(1, min(max(_PIXELS // max(side, 1) ** 2, least), most, pictures))


@cache
def _look(known: Any, split: str) -> tuple[int, int, int]:
    """Median height and width of the pictures of a split, and how many there are."""
    dataset = known(known.file.parent)
    ids = dataset.ids(split)
    number = min(len(ids), _LOOKED_AT)
    sizes = [dataset.picture_size(ids[k * len(ids) // number]) for k in range(number)]
    heights, widths = (sorted(side) for side in zip(*sizes, strict=True))
    return heights[number // 2], widths[number // 2], len(ids)
