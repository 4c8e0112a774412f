"""Independent pieces of work whose results are wanted together: records to score, and what is like it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.basics.errors import UserError
from harness.engine import faults
from harness.running.jobs.job import Event, InFolder, Job, Resources, Source
from harness.running.jobs.run import run_jobs
from harness.running.watching.board import Board, Work

if TYPE_CHECKING:
    from harness.running.trials.trial import Options


@dataclass
class Call(InFolder):
    """A function that is called where there is room.

    Attributes:
        name: what a user calls it.
        function: takes options and yields events, the last of which has a result. It is sent to workers.
        options: where and how; the device is that of the worker.
        folder: that a failure is noted in.
    """

    name: str
    function: Callable[[Options], Iterator[Event]]
    options: Options
    folder: Path

    @property
    def label(self) -> str:
        """Its name."""
        return self.name

    def work(self, alone: Callable[[], None] = lambda: None) -> Iterator[Event]:
        """Call it."""
        return self.function(self.options)

    def failed(self, error: BaseException) -> Event:
        """An error that a user can mend is the result, for the caller to judge."""
        if isinstance(error, UserError):
            return Event(ended="failed", reason=str(error), result=faults.portable(error))
        return super().failed(error)


class _Calls(Source):
    """Calls in their order.

    Args:
        calls: what to do.
        board: shows them.
    """

    def __init__(self, calls: Sequence[Call], board: Board) -> None:
        self.waiting, self.board = list(calls), board
        self.results: dict[int, Any] = {}

    def next(self) -> Job | None:
        """The next one."""
        return self.waiting.pop(0) if self.waiting else None

    def take(self, job: Job, event: Event) -> bool:
        """Show where it stands; keep its result."""
        if event.status is not None and not event.ended:
            self.board.update(job.number, event.status)
        if event.ended:
            failed = event.ended == "failed"
            self.results[job.number] = event.result or (UserError(event.reason) if failed else None)
            self.board.end(job.number, event.ended, f"{event.ended:8s} {job.label}")
        return False

    def again(self, job: Job, why: str) -> None:
        """It begins anew, or where it was."""
        self.board.write(f"again    {job.label}: {why}", "yellow")


def results(calls: Sequence[Call], resources: Resources | None, unit: str) -> list[Any]:
    """Call functions, on Ray or one after another in this process.

    Args:
        calls: numbered from 0.
        resources: of each on Ray; None for this process.
        unit: the plural of what is counted on the terminal.

    Returns:
        The result of each; a UserError where it failed.
    """
    board = Board(len(calls), states=("finished", "failed"), unit=unit)
    for call in calls:
        board.add(call.number, Work(call.label))
    try:
        source = _Calls(calls, board)
        run_jobs(source, resources)
    finally:
        board.close()
    return [source.results[call.number] for call in calls]
