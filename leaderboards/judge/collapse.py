"""Seeds that lie far below the others of their row, and when their losses left those of the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from leaderboards.rows.row import Row
from leaderboards.rows.text import number

#: A seed has collapsed where it lies this many points below all others, and more than _TIMES their range.
POINTS = 5.0
_TIMES = 2.0
#: Points of the log at the end of which a loss must lie outside, at least.
_LAST = 3


@dataclass(frozen=True)
class Collapsed:
    """A seed far below the others.

    Attributes:
        row: where it is.
        seed: its number.
        miou: its mIoU in percent.
        others: mean mIoU of the others.
        step: optimiser step from which on its loss lies outside those of the others; None where it does not.
    """

    row: Row
    seed: int
    miou: float
    others: float
    step: int | None

    @property
    def text(self) -> str:
        """A sentence."""
        when = (
            "its loss stays among theirs"
            if self.step is None
            else f"its loss leaves theirs at step {self.step:,}"
        )
        name = f"{self.row.label} ({self.row.recipe})"
        return (
            f"{name}: seed {self.seed} reaches {number(self.miou)}, the others {number(self.others)}; {when}"
        )


def collapsed(rows: Sequence[Row]) -> list[Collapsed]:
    """Of rows with three seeds or more, those seeds that lie far below all others."""
    found = []
    for row in rows:
        scores = np.array([run.miou for run in row.runs], dtype=np.float64)
        if row.n < 3 or np.isnan(scores).any():
            continue
        for place, (seed, own) in enumerate(zip(row.seeds, scores.tolist(), strict=True)):
            others = np.delete(scores, place)
            if own < others.min() - max(POINTS, _TIMES * float(np.ptp(others))):
                found.append(Collapsed(row, seed, own, float(others.mean()), _left_at(row, place)))
    return found


def _left_at(row: Row, place: int) -> int | None:
    """First step of the last stretch in which the loss of a seed lies outside the range of the others'."""
    if len(row.records) != row.n:
        return None
    histories = [record.history() for record in row.records]
    if any(not len(history) or "loss" not in history for history in histories):
        return None
    losses = [history.set_index("step")["loss"] for history in histories]
    shared = losses[0].index
    for other in losses[1:]:
        shared = shared.intersection(other.index)
    values = np.stack([loss.loc[shared].to_numpy(dtype=np.float64) for loss in losses])
    own, others = values[place], np.delete(values, place, axis=0)
    inside = (own >= others.min(0)) & (own <= others.max(0))
    last = int(np.flatnonzero(inside)[-1]) + 1 if inside.any() else 0
    return int(shared[last]) if len(own) - last >= _LAST else None
