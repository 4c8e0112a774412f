"""A run on the terminal: its trials on the board, and a line for each that has ended."""

from __future__ import annotations

from dataclasses import dataclass

from harness.engine.training import Status
from harness.running.trials.trial import Prepared, Trial
from harness.running.watching.board import Board, Work


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: ``finished``, ``kept`` (it was finished before, or elsewhere) or ``failed``;
    ``busy`` while another process runs it."""

    trial: Trial
    status: str
    reason: str = ""
    seconds: float = 0.0


class RunDisplay:
    """The board of a run: its trials, and how they ended.

    Args:
        total: number of trials, those included that wait for others.
    """

    def __init__(self, total: int) -> None:
        self.board = Board(total, again=("busy",))

    def add(self, prepared: Prepared) -> None:
        """A trial can run now."""
        work = Work(str(prepared.trial), prepared.trial.name, prepared.cost)
        self.board.add(prepared.trial, work)

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

    def fail(self, trial: Trial, reason: str) -> None:
        """A trial that could not be prepared, or failed elsewhere."""
        self.board.end(trial, "failed", f"failed   {trial}\n{reason}")

    def close(self) -> None:
        """Leave the terminal as it was."""
        self.board.close()
