"""A run on the terminal: its trials on the board, and a line for each that has ended."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from rich.console import Console

from harness.runs.trial import Outcome, Prepared, Trial
from harness.training import Status
from harness.watching.board import Board, Work


class Display:
    """The board of a run: prepared trials, and how they ended.

    Args:
        prepared: what can run now.
        total: number of trials, those included that wait for others.
        console: standard error by default.
    """

    def __init__(
        self, prepared: Sequence[Prepared], total: int | None = None, console: Console | None = None
    ) -> None:
        works: dict[Hashable, Work] = {p.trial: _work(p) for p in prepared}
        self.board = Board(len(prepared) if total is None else total, works, console=console)

    def add(self, prepared: Prepared) -> None:
        """A trial can run now."""
        self.board.add(prepared.trial, _work(prepared))

    def update(self, trial: Trial, status: Status) -> None:
        """A running trial has come to a state."""
        self.board.update(trial, status)

    def say(self, line: str) -> None:
        """Something that happened to a trial that goes on."""
        self.board.write(line, "yellow")

    def end(self, prepared: Prepared, outcome: Outcome) -> None:
        """A trial has ended."""
        trial, record = prepared.trial, prepared.record
        line = f"{outcome.status:8s} {trial}"
        if record is not None and record.finished:
            line += "  " + "  ".join(f"{n} {e.miou:.2f} mIoU" for n, e in record.evaluations.items())
        if outcome.seconds:
            line += f"  ({outcome.seconds:.0f} s)"
        if outcome.reason:
            line += "\n" + "\n".join("  " + part for part in outcome.reason.splitlines())
        self.board.end(trial, outcome.status, line)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self.board.close()


def _work(prepared: Prepared) -> Work:
    return Work(str(prepared.trial), prepared.trial.name, prepared.cost)
