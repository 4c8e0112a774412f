"""Which column of image tags is which class."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from harness.basics.errors import UserError


def placed_tags(
    rows: Mapping[str, np.ndarray], num_classes: int, background: int | None, where: object
) -> dict[str, np.ndarray]:
    """Rows of tags as ``(K,)`` uint8 with 0 for background, wherever that stands.

    Args:
        rows: by picture, ``(K,)`` numbers in the order of the classes, or ``(K - 1,)`` without background.
        num_classes: K.
        background: label of the background class, None where there is none.
        where: the file, for errors.

    Raises:
        UserError: another number of columns, rows of several lengths, or a negative number.
    """
    wanted = {num_classes} if background is None else {num_classes, num_classes - 1}
    widths = {len(row) for row in rows.values()}
    if len(widths) > 1 or not widths <= wanted:
        without = "" if background is None else f", or {num_classes - 1} without background,"
        given = ", ".join(map(str, sorted(widths)))
        raise UserError(
            f"the file has rows of {given} classes; {num_classes}{without} are wanted",
            where=where,
            remedy="use the file made for this data set: one column for each class, in the order of classes",
        )
    tags = {}
    for picture, row in rows.items():
        if (row < 0).any():
            raise UserError(f"a tag of {picture!r} is negative", where=where, remedy="write 0 or 1")
        places = [k for k in range(num_classes) if len(row) == num_classes or k != background]
        tags[picture] = np.zeros(num_classes, np.uint8)
        tags[picture][places] = row > 0
        if background is not None:
            tags[picture][background] = 0
    return tags
