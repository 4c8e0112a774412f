"""Pictures for the log: which steps show some, what counts as one, and where they are kept.

They change no number. ``pictures/NAME-STEP.png`` in a trial's folder is the truth; trackers get copies.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from harness.basics.errors import UserError
from harness.basics.files import write_with
from harness.engine.contract import LOGGED, place

if TYPE_CHECKING:
    from harness.engine.method import Method

#: So many times a run shows pictures, at rows of its history; so many of them each time at most.
TIMES_SHOWN, MOST_SHOWN = 12, 8
#: Longest side of a picture that is kept; larger ones are reduced.
SIDE_SHOWN = 384
SHOWN_IN = "pictures"
_FILE = re.compile(r"(.+)-(\d{7,})\.png")


def is_due(done: int, total: int, every: int) -> bool:
    """Whether a step shows pictures.

    Args:
        done: steps that will have been made after it.
        total: steps of the run.
        every: steps between two rows of the history.
    """
    if done % every and done != total:
        return False
    rows, row = math.ceil(total / every), math.ceil(done / every)
    return rows <= TIMES_SHOWN or row * TIMES_SHOWN // rows > (row - 1) * TIMES_SHOWN // rows


def as_picture(name: Any, value: Tensor | Callable[[], Tensor], method: Method) -> np.ndarray | None:
    """What a method shows, as ``(H, W, 3)`` uint8; None where its values are not known (meta device).

    Args:
        name: letters, digits, ``_``, ``-`` and ``.``.
        value: ``(3, H, W)`` colours or ``(H, W)`` or ``(1, H, W)`` grey, floating point in ``[0, 1]``, uint8
            or bool; ``(H, W)`` int64 labels, which get the data set's colours. Or a function that makes one.
        method: whose it is.

    Raises:
        UserError: it is none of these.
    """
    shown = f"{place(method)}.show"
    if not isinstance(name, str) or not LOGGED.fullmatch(name):
        raise UserError(
            f"a picture cannot be called {name!r}", where=shown, remedy="use letters, digits, _, - and ."
        )
    made: Any = value
    if callable(value) and not isinstance(value, Tensor):
        cuda = [p.device for p in method.parameters() if p.device.type == "cuda"][:1]
        with torch.no_grad(), torch.random.fork_rng(devices=cuda):
            made = value()
    due = "(3, H, W) colours or (H, W) grey in [0, 1], uint8 or bool, or (H, W) int64 labels"
    if not isinstance(made, Tensor):
        raise UserError(f"the picture {name!r} is {type(made).__name__}", where=shown, remedy=f"show {due}")
    if made.dtype == torch.bool:
        made = made.float()
    if made.ndim == 3 and made.shape[0] == 1:
        made = made[0]
    labels = made.dtype == torch.int64 and made.ndim == 2
    colours = made.ndim == 2 or (made.ndim == 3 and made.shape[0] == 3)
    known = labels or (colours and (made.is_floating_point() or made.dtype == torch.uint8))
    if not known or 0 in made.shape:
        found = f"{made.dtype} of shape {tuple(made.shape)}"
        raise UserError(f"the picture {name!r} is {found}", where=shown, remedy=f"show one, {due}")
    if made.is_meta:
        return None
    made = made.detach()
    if labels:
        palette = np.zeros((256, 3), dtype=np.uint8) + 255  # what is no class is white
        own = np.asarray(method.build.dataset.palette, dtype=np.uint8)
        palette[: len(own)] = own
        return palette[made.clamp(0, 255).to(torch.uint8).cpu().numpy()]
    if made.is_floating_point():
        made = (made.float().nan_to_num(0.0).clamp(0, 1) * 255).round().to(torch.uint8)
    array = made.cpu().numpy()
    return np.stack([array] * 3, 2) if array.ndim == 2 else np.ascontiguousarray(array.transpose(1, 2, 0))


class Shown:
    """What a method shows in one step: the first picture of each name.

    Args:
        method: the method.
    """

    def __init__(self, method: Method) -> None:
        self.method = method
        self._taken: dict[str, np.ndarray] = {}

    def take(self) -> None:
        """Take what was shown since the last call, while it is what it was."""
        for name, value in self.method.take_pictures():
            if name in self._taken or len(self._taken) == MOST_SHOWN:
                continue
            picture = as_picture(name, value, self.method)
            if picture is not None:
                self._taken[name] = picture

    def save(self, folder: Path, step: int) -> None:
        """Keep them in a trial's folder."""
        for name, array in self._taken.items():
            _write(folder / SHOWN_IN / f"{name}-{step:07d}.png", array)


def _write(file: Path, array: np.ndarray) -> None:
    picture, data = Image.fromarray(array), io.BytesIO()
    picture.thumbnail((SIDE_SHOWN, SIDE_SHOWN))
    picture.save(data, "PNG")
    write_with(file, lambda stream: stream.write(data.getvalue()))


def shown_pictures(folder: Path, steps: Collection[int] | None = None) -> dict[int, dict[str, Path]]:
    """Pictures in a trial's folder by step and name, those of some steps or all."""
    found: dict[int, dict[str, Path]] = {}
    for file in sorted((folder / SHOWN_IN).glob("*.png")):
        match = _FILE.fullmatch(file.name)
        if match is not None and (steps is None or int(match[2]) in steps):
            found.setdefault(int(match[2]), {})[match[1]] = file
    return found
