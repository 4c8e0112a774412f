"""A run at work, followed by its trackers: what they lack they are given, nothing twice.

The truth is what a run keeps on disk: ``history.csv`` and its evaluations. Trackers are given copies, a
few seconds late. One that fails is left out until the run is started again, and the run goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from harness.basics.errors import UserError
from harness.basics.files import write_json
from harness.basics.reading import remembered
from harness.engine import distributed
from harness.engine.faults import first_line
from harness.engine.shown import shown_pictures
from harness.engine.training import Status
from harness.records.history import read_rows
from harness.running.watching.trackers import TRACKERS, Point, ShownPictures, Subject, Tracker

#: Seconds between two deliveries.
FLUSH_SECONDS = 5.0


class Following:
    """Gives the points of a run to trackers. A context: it ends with the run.

    Args:
        names: of :data:`TRACKERS`; only the first process of a trial heeds them.
        subject: the run.
        scores: reads all evaluations that are on disk, with their steps.
    """

    def __init__(self, names: Sequence[str], subject: Subject, scores: Callable[[], Sequence[Point]]) -> None:
        self.names = tuple(names) if distributed.first() else ()
        self.subject, self.read_scores = subject, scores
        self.file = subject.folder / "trackers.json"
        self.trackers: dict[str, Tracker] = {}
        self._failed: set[str] = set()
        self._messages: list[str] = []
        self._there: dict[str, int] = {}
        self._rows: list[Point] = []
        self._scored: set[tuple[int, str]] = set()
        self._note = ""
        self._flushed = time.monotonic()

    def __enter__(self) -> Following:
        return self

    def take_messages(self) -> tuple[str, ...]:
        """What the user shall be told, once."""
        told, self._messages = tuple(self._messages), []
        return told

    def rows(self, work: Iterator[Status]) -> Iterator[Status]:
        """Pass states through; rows of the training curve are noted on the way."""
        for status in work:
            if self.names:
                self._take(status)
                status = replace(status, warnings=(*status.warnings, *self.take_messages()))
            yield status

    def _take(self, status: Status) -> None:
        row = not status.note
        if row:
            self._rows.append((status.step, _values(status)))
        if not self.trackers:
            self._begin(status.step if row else None)
        # An evaluation is whole when the note changes; to look for it at every row would be waste.
        changed, self._note = status.note != self._note, status.note
        if changed or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush(scores=changed)

    def _begin(self, first: int | None) -> None:
        """Open all trackers, and give them the earlier rows that they lack.

        Args:
            first: the first row of this start; None where training was over.
        """
        states = _read_states(self.file)
        history = read_history(self.subject.folder / "history.csv")
        start = first if first is not None else max((s for s, _ in history), default=0) + 1
        earlier = [p for p in history if p[0] < start]
        for name in self.names:
            tracker = self.trackers[name] = TRACKERS[name](self.subject, states.get(name, {}))

            def begin(name: str = name, tracker: Tracker = tracker) -> None:
                there = self._there[name] = tracker.open(start)
                lacking = [p for p in earlier if p[0] > there]
                tracker.rows(lacking, self._pictures(lacking))
                tracker.state["step"] = max([there, *(s for s, _ in earlier)])

            self._try(name, begin)
        self._write_states()

    def flush(self, *, scores: bool = True) -> None:
        """Deliver what has come in, and the evaluations that are new on disk."""
        if not self.trackers:
            return
        self._flushed = time.monotonic()
        rows, self._rows = self._rows, []
        points: list[Point] = []
        for step, values in self.read_scores() if scores else ():
            if new := {k: v for k, v in values.items() if (step, k) not in self._scored}:
                points.append((step, new))
                self._scored |= {(step, k) for k in new}
        for name, tracker in self.trackers.items():

            def deliver(name: str = name, tracker: Tracker = tracker) -> None:
                if late := [p for p in rows if p[0] > self._there[name]]:
                    tracker.rows(late, self._pictures(late))
                    tracker.state["step"] = late[-1][0]
                if points:
                    tracker.scores(points)

            self._try(name, deliver)
        self._write_states()

    def _pictures(self, points: Sequence[Point]) -> ShownPictures:
        """What the run has shown at these steps."""
        return shown_pictures(self.subject.folder, {step for step, _ in points}) if points else {}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.names or (not self.trackers and kind is not None):
            return
        if not self.trackers:
            self._begin(None)
        self.flush()
        status = "finished" if kind is None else "failed" if issubclass(kind, Exception) else "stopped"
        for name, tracker in self.trackers.items():
            self._try(name, partial(tracker.close, status))

    def _try(self, name: str, work: Callable[[], None]) -> None:
        """A tracker that fails is left out until the run is started again."""
        if name in self._failed:
            return
        try:
            work()
        except Exception as error:
            self._failed.add(name)
            self._messages.append(f"{name} failed, trials go on without it: {first_line(error)}")

    def _write_states(self) -> None:
        states = _read_states(self.file) | {n: t.state for n, t in self.trackers.items()}
        with suppress(OSError, UserError):  # a full disk is the trial's to report
            write_json(self.file, states)


def _read_states(file: Path) -> dict[str, dict[str, Any]]:
    return remembered(file, lambda found: {name: dict(state) for name, state in found.items()}, {})


def _values(status: Status) -> dict[str, float]:
    found = {f"train/{name}": value for name, value in status.terms.items()}
    found["train/loss"] = sum(status.terms.values())
    found |= {f"train/{name}": value for name, value in status.noted.items()}
    if status.lr is not None:
        found["train/lr"] = status.lr
    found["train/steps_per_second"] = status.steps_per_second
    found["train/waiting_for_pictures"] = status.waiting
    if status.miou is not None and status.miou >= 0:
        found["validation/miou"] = status.miou
    return found


def read_history(file: Path) -> list[Point]:
    """The training curve of a run as points; none where there is no file."""
    return [
        (int(row["step"]), {f"train/{k}": float(v) for k, v in row.items() if k != "step" and v})
        for row in read_rows(file)
    ]
