"""The training curve of a trial, ``history.csv``: written row by row, read after a kill, with its gaps."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.basics.files import append, whole_file
from harness.basics.reading import Damaged, damaged, read_text

if TYPE_CHECKING:
    import pandas as pd

#: Largest training curve: ten million steps, a row of 300 bytes every ten.
_MOST_CURVE = 300 << 20


def read_rows(history: Path) -> list[dict[str, str]]:
    """Rows of a training curve on disk; a last line that a kill cut is left out.

    Raises:
        Damaged: it is no such file.
    """
    if not os.path.lexists(history):
        return []
    try:
        text = read_text(history)
        rows = [row for row in csv.DictReader(io.StringIO(text, "")) if None not in row.values()]
        if text.strip() and not text.startswith("step,"):
            raise ValueError("its first column is not step")
        if any(not row["step"].isdecimal() for row in rows):
            raise ValueError("a step is no number")
    except (csv.Error, KeyError, AttributeError, ValueError) as error:
        raise damaged(history, f"it is no training curve: {error}") from None
    return rows


class History:
    """The training curve on disk, one row every ``LOG_EVERY`` steps.

    Args:
        path: CSV file.
        upto: rows of later steps are dropped (a resumed run writes them again).
    """

    def __init__(self, path: Path, upto: int) -> None:
        self.path = path
        self.columns: list[str] | None = None
        kept = [row for row in read_rows(path) if int(row["step"]) <= upto]
        if kept:
            self.columns = list(kept[0])
            with whole_file(path) as stream:
                writer = csv.DictWriter(stream, self.columns, lineterminator="\n")
                writer.writeheader()
                writer.writerows(kept)
        else:
            path.unlink(missing_ok=True)

    def add(self, row: dict[str, Any]) -> None:
        """Append a row; the first one fixes the columns, later new terms get a column of their own."""
        if self.columns is None or not set(row) <= set(self.columns):
            self._widen(list(row))
        assert self.columns is not None
        line = io.StringIO()
        csv.DictWriter(line, self.columns, lineterminator="\n").writerow(row)
        append(self.path, line.getvalue())

    def _widen(self, names: list[str]) -> None:
        old = read_rows(self.path) if self.columns else []
        self.columns = [*(self.columns or []), *(n for n in names if n not in (self.columns or []))]
        with whole_file(self.path) as stream:
            writer = csv.DictWriter(stream, self.columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(old)


def gaps(history: Path, upto: int, every: int) -> list[tuple[int, int]]:
    """First and last steps of which a training curve has no row, because the file was cut or lost.

    Args:
        history: the CSV file; one that is missing or no curve has no rows.
        upto: the last step that should have one.
        every: steps between two rows.
    """
    try:
        steps = [int(row["step"]) for row in read_rows(history)]
    except Damaged:
        steps = []
    found, last = [], 0
    for step in steps:
        before = (step - 1) // every * every  # a row speaks of the steps since then
        if before > last and step <= upto:
            found.append((last + 1, before))
        last = max(last, step)
    return [*found, (last + 1, upto)] if last < upto else found


def read_curve(file: Path, upto: int | None = None) -> pd.DataFrame:
    """A training curve.

    Args:
        file: the CSV file.
        upto: its last step, where that is known.

    Raises:
        Damaged: it is no table of numbers by ascending steps, or it is cut.
    """
    import pandas as pd

    text = read_text(file, _MOST_CURVE)
    try:
        found = pd.read_csv(io.StringIO(text))
        steps = found["step"].to_numpy()
        numbers = all(kind.kind in "if" for kind in found.dtypes)
    except (ValueError, KeyError, pd.errors.ParserError, OverflowError) as error:
        raise damaged(file, f"it is no training curve: {str(error).splitlines()[0]}") from None
    if not numbers or steps.dtype.kind != "i" or (steps < 1).any() or (np.diff(steps) <= 0).any():
        raise damaged(file, "it is no training curve: numbers by ascending steps are wanted")
    if not np.isfinite(found.to_numpy(dtype=np.float64, na_value=0.0)).all():
        raise damaged(file, "it holds numbers that are not finite")
    if not text.endswith("\n") or (upto is not None and len(steps) and steps[-1] != upto):
        raise damaged(file, f"it is cut{'' if upto is None else f': step {upto} is its last one'}")
    return found
