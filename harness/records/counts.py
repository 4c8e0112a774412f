"""What an evaluation counted, picture by picture."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from harness.basics.arrays import read_arrays
from harness.basics.files import write_with
from harness.basics.reading import damaged
from harness.data.naming import stays_inside

#: The arrays beside the ids.
COUNTS = ("intersection", "predicted", "labelled")


@dataclass(frozen=True)
class PerImage:
    """Confusion statistics of one evaluation, image by image.

    Attributes:
        ids: image ids, length N.
        intersection: ``(N, K)`` int64 pixels predicted and labelled as the class.
        predicted: ``(N, K)`` int64 predicted pixels among those counted.
        labelled: ``(N, K)`` int64 labelled pixels.
    """

    ids: tuple[str, ...]
    intersection: np.ndarray
    predicted: np.ndarray
    labelled: np.ndarray

    def save(self, path: Path) -> None:
        """Write an npz file."""
        arrays = {k: getattr(self, k) for k in COUNTS}
        write_with(path, lambda f: np.savez_compressed(f, ids=np.array(self.ids, dtype=np.str_), **arrays))

    @classmethod
    def load(cls, path: Path) -> PerImage:
        """Read an npz file.

        Raises:
            Damaged: missing, damaged, or other arrays.
        """
        found = read_arrays(path)
        missing = [name for name in ("ids", *COUNTS) if name not in found]
        if missing:
            raise damaged(path, f"it has no array {missing[0]!r}", "evaluate again")
        ids, counts = found["ids"], [found[k] for k in COUNTS]
        if ids.ndim != 1 or ids.dtype.kind != "U" or any(a.dtype.kind != "i" or a.ndim != 2 for a in counts):
            raise damaged(path, "its arrays are no ids and counts", "evaluate again")
        whole = (a.astype(np.int64, copy=False) for a in counts)
        try:
            return cls(_names(ids.tobytes(), ids.dtype.str), *whole)
        except ValueError as error:
            raise damaged(path, f"damaged file: {error}", "evaluate again") from None


@lru_cache(maxsize=64)
def _names(data: bytes, dtype: str) -> tuple[str, ...]:
    """Image ids of a split: evaluations of one split share the tuple.

    Raises:
        ValueError: they are no Unicode, or one would lead out of a folder of pictures.
    """
    names = tuple(np.frombuffer(data, dtype=dtype).tolist())
    for name in names:
        if ("/" in name or "\\" in name) and not stays_inside(name):
            raise ValueError(f"{name[:60]!r} is the id of no picture")
    return names
