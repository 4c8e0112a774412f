"""What runs, on the terminal: one table of the running trials, and a line for each one that has ended.

Off a terminal (a file, a pipe, CI) there are plain lines alone: one for each trial that has ended, and
one of progress every :data:`PLAIN_SECONDS`.
"""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from harness.basics.progress import PLAIN_SECONDS
from harness.basics.text import duration
from harness.engine.training import Status

#: Seconds between two pictures of the table.
BOARD_REFRESH_SECONDS = 0.5
#: Seconds between two times that lines are put above it: many trials may end at once.
WRITE_SECONDS = 0.1
#: Seconds over which a rate is smoothed.
SMOOTH_SECONDS = 10.0
#: From this many columns on there is room for the loss and for notes in full.
WIDE = 110

_STYLES = {"finished": "green", "failed": "bold red", "kept": "dim", "pruned": "yellow", "diverged": "yellow"}


@dataclass(frozen=True)
class Work:
    """What is to be done.

    Attributes:
        label: its name on the screen.
        kind: works of one kind take about as long for the same cost.
        cost: in any unit, the same for all works.
    """

    label: str
    kind: str = ""
    cost: float = 1.0


@dataclass
class _Row:
    """A running work: its last state, and its smoothed rate in steps/s (None before the first)."""

    work: Work
    begun: float
    status: Status
    rate: float | None = None
    noted: float = -math.inf

    def take(self, status: Status, now: float) -> None:
        """Take in a new state."""
        same = status.note == self.status.note
        if status.steps_per_second > 0:
            weight = -math.expm1(-(now - self.noted) / SMOOTH_SECONDS) if same and self.rate else 1.0
            self.rate = (self.rate or 0.0) * (1 - weight) + weight * status.steps_per_second
            self.noted = now
        elif not same:
            self.rate = None
        self.status = status.after(self.status)

    @property
    def share(self) -> float:
        """Part of the training that is done, in 0..1."""
        return 1.0 if self.status.note else self.status.step / max(self.status.total, 1)

    @property
    def left(self) -> float | None:
        """Seconds to the end of what the row shows: training, or an evaluation."""
        return None if not self.rate else max(self.status.total - self.status.step, 0) / self.rate


class Board:
    """Shows works that run, counts those that ended, and estimates the time that is left.

    Nothing runs in the background: the picture is drawn anew when a report comes in, at most every
    :data:`BOARD_REFRESH_SECONDS`.

    Args:
        total: number of works.
        waiting: those that will come, where they are known by now.
        states: how works can end; each has a place in the last line.
        again: those of them after which another work takes the place.
        unit: the plural of what is counted.
        console: standard error by default.
        clock: seconds.
    """

    def __init__(
        self,
        total: int,
        waiting: Mapping[Hashable, Work] | None = None,
        *,
        states: Sequence[str] = ("finished", "failed", "kept"),
        again: Sequence[str] = (),
        unit: str = "trials",
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total, self.unit, self.again, self.clock = total, unit, again, clock
        self.waiting: dict[Hashable, Work] = {}
        self.rows: dict[Hashable, _Row] = {}
        self._later: dict[str, float] = {}  # kind -> cost of all that wait
        self._known, self._known_cost = 0, 0.0
        for key, work in (waiting or {}).items():
            self.add(key, work)
        self.counts: Counter[str] = Counter(dict.fromkeys(states, 0))
        self._ended_cost = 0.0
        self._seconds: dict[str, tuple[float, int]] = {}  # kind -> sum of seconds for a cost of 1, number
        self._slots = 1
        self._lines: list[Text] = []
        self._told: set[str] = set()
        self._drawn = clock()
        # rich would also take FORCE_COLOR, which CI sets, for a terminal.
        self.console = console or Console(stderr=True, force_terminal=sys.stderr.isatty(), highlight=False)
        self._live: Live | None = None
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            self._live = Live(
                console=self.console,
                get_renderable=self.picture,
                auto_refresh=False,
                transient=True,
                vertical_overflow="crop",
                redirect_stdout=sys.stdout.isatty(),  # a file must get what is written to it
            )
            self._live.start(refresh=True)

    # --- what happens -------------------------------------------------------------------------------

    def add(self, key: Hashable, work: Work) -> None:
        """A work that waits; nothing new where it is known."""
        if key in self.waiting or key in self.rows:
            return
        self.waiting[key] = work
        self._later[work.kind] = self._later.get(work.kind, 0.0) + work.cost
        self._known, self._known_cost = self._known + 1, self._known_cost + work.cost

    def _take(self, key: Hashable) -> Work | None:
        work = self.waiting.pop(key, None)
        if work is not None:
            self._later[work.kind] -= work.cost
        return work

    def count(self, state: str, number: int) -> None:
        """Works that had ended in this state before."""
        self.counts[state] += number
        self._ended_cost += number * self._mean_cost()

    def update(self, key: Hashable, status: Status, work: Work | None = None) -> None:
        """A work has begun, or has come to a state.

        Args:
            key: which one.
            status: where it stands.
            work: what it is, where it was not among those that wait.
        """
        now = self.clock()
        if key not in self.rows:
            if key not in self.waiting:
                self.add(key, work or Work(str(key)))
            known = self._take(key)
            assert known is not None
            self.rows[key] = _Row(known, now, Status(0, status.total, 0.0))
            self._slots = max(self._slots, len(self.rows))
        self.rows[key].take(status, now)
        for warning in status.warnings:
            if warning not in self._told:
                self._told.add(warning)
                self.write(f"warning  {warning}", "yellow")
        self._draw(now)

    def end(self, key: Hashable, state: str, lines: str) -> None:
        """A work has ended.

        Args:
            key: which one.
            state: one of the states.
            lines: what the user reads of it.
        """
        now = self.clock()
        row = self.rows.pop(key, None)
        known = row.work if row else self._take(key)
        self.counts[state] += 1
        if known is not None and state not in self.again:
            self._ended_cost += known.cost
        if row is not None and state != "failed":
            seconds, number = self._seconds.get(row.work.kind, (0.0, 0))
            self._seconds[row.work.kind] = (seconds + (now - row.begun) / row.work.cost, number + 1)
        self.write(lines, _STYLES.get(state, ""))

    def write(self, lines: str, style: str = "") -> None:
        """Put lines above the table; the first word is coloured."""
        if self._live is None:
            print(lines, file=self.console.file, flush=True)
            return
        text = Text(lines)
        text.stylize(style, 0, len(lines.split(" ", 1)[0]))
        self._lines.append(text)
        self._draw(self.clock(), pause=WRITE_SECONDS)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._live is not None:
            self._draw(math.inf)
            self._live.stop()

    def _draw(self, now: float, *, pause: float = BOARD_REFRESH_SECONDS) -> None:
        if self._live is not None:
            if now - self._drawn >= pause:
                self._drawn = now
                if self._lines:
                    self.console.print(Text("\n").join(self._lines), soft_wrap=True)
                    self._lines.clear()
                self._live.refresh()
        elif now - self._drawn >= PLAIN_SECONDS:
            self._drawn = now
            self.write(self.plain())

    # --- how long it takes --------------------------------------------------------------------------

    def _paces(self) -> dict[str, float]:
        """Seconds for a cost of 1, by kind: of works that ended, else of those that train."""
        found = {kind: seconds / number for kind, (seconds, number) in self._seconds.items()}
        for row in self.rows.values():
            if row.work.kind not in found and row.rate and not row.status.note:
                found[row.work.kind] = row.status.total / row.rate / row.work.cost
        return found

    def remaining(self) -> float | None:
        """Seconds to the end of all works; None while nothing is known, or nothing is left."""
        paces = self._paces()
        usual = fmean(paces.values()) if paces else None
        running = []
        for row in self.rows.values():
            pace = paces.get(row.work.kind, usual)
            if row.left is None and pace is None:
                return None
            running.append(
                row.left if row.left is not None else row.work.cost * (pace or 0) * (1 - row.share)
            )
        unstarted = self._unstarted()
        if (unstarted and usual is None) or not (unstarted or running):
            return None
        unnamed = max(unstarted - len(self.waiting), 0) * self._mean_cost()
        later = [cost * paces.get(kind, usual or 0) for kind, cost in self._later.items()]
        at_once = max(min(self._slots, len(running) + unstarted), 1)
        return max([*running, (sum(running) + sum(later) + unnamed * (usual or 0)) / at_once])

    def _mean_cost(self) -> float:
        return self._known_cost / self._known if self._known else 1.0

    def _ended(self) -> int:
        return sum(n for state, n in self.counts.items() if state not in self.again)

    def _unstarted(self) -> int:
        return max(self.total - self._ended() - len(self.rows), 0)

    # --- how it looks -------------------------------------------------------------------------------

    def _tally(self) -> list[str]:
        shown = [f"{n} {state}" for state, n in self.counts.items() if n or state == "finished"]
        left = self.remaining()
        return [
            *shown,
            f"{self._unstarted()} waiting",
            *([] if left is None else [f"{duration(left)} left"]),
        ]

    def plain(self) -> str:
        """The line of progress off a terminal."""
        parts = [f"{self._ended()}/{self.total} {self.unit}", f"{len(self.rows)} running", *self._tally()]
        line = "progress " + ", ".join(parts)
        if len(self.rows) <= 4:
            rows = (
                f"{r.work.label} {_place(r.status, short=False)}"
                + (f" at {_rate(r.rate)}/s" if r.rate else "")
                + (f" ({waited})" if (waited := _waited(r.status)) else "")
                for r in self.rows.values()
            )
            line += "".join(f"; {r}" for r in rows)
        return line

    def picture(self) -> RenderableType:
        """The table of what runs and the line below it, for the console's width and height."""
        width, height = self.console.size
        most = max(height - 5, 1)
        rows = list(self.rows.values())
        hidden = len(rows) - most if len(rows) > most else 0
        parts: list[RenderableType] = []
        if rows:
            parts.append(_table(rows[: len(rows) - hidden], width))
        if hidden:
            parts.append(Text(f"and {hidden} more", style="dim"))
        done = self._ended_cost + sum(r.work.cost * r.share for r in rows)
        # A terminal echoes ^C behind the last line: it must not wrap there.
        line = Table.grid(padding=(0, 2), expand=True)
        line.width = max(width - 2, 1)
        line.add_column(ratio=1)
        line.add_column(no_wrap=True)
        everything = max(self.total * self._mean_cost(), 1e-9)
        bar = ProgressBar(total=everything, completed=min(done, everything))
        line.add_row(bar, Text("  ".join(self._tally())))
        return Group(*parts, line)


def _table(rows: Iterable[_Row], width: int) -> Table:
    rows = list(rows)
    wide = width >= WIDE
    places = [_place(r.status, short=not wide) for r in rows]
    heads = ["step", "per s", "left", *(["loss"] if wide else []), "mIoU", "GPU MiB"]
    cells = [
        [
            place,
            "-" if not row.rate else _rate(row.rate),
            "-" if row.left is None else duration(row.left),
            *([f"{sum(row.status.terms.values()):.4g}" if row.status.terms else "-"] if wide else []),
            "-" if row.status.miou is None else f"{row.status.miou:.2f}",
            "-" if row.status.memory_mib is None else f"{row.status.memory_mib:.0f}",
        ]
        for row, place in zip(rows, places, strict=True)
    ]
    least = (11 if wide else 14, 5, 7, *([7] if wide else []), 5, 7)
    widths = [max(least[i], len(head), *(len(row[i]) for row in cells)) for i, head in enumerate(heads)]
    room = max(width - sum(widths) - 2 * len(widths) - (26 if wide else 0), 8)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold", expand=False)
    table.add_column("trial", width=min(room, max(len(r.work.label) for r in rows)), no_wrap=True)
    for head, size in zip(heads, widths, strict=True):
        table.add_column(head, justify="right", width=size, no_wrap=True)
    if wide:
        table.add_column("", no_wrap=True, overflow="ellipsis")
    for row, values in zip(rows, cells, strict=True):
        note = [Text(row.status.note or _waited(row.status), style="dim")] if wide else []
        table.add_row(Text(shortened_line(row.work.label, room)), *(Text(v) for v in values), *note)
    return table


#: Share of the time from which on it is said that training waits for its pictures.
_WAITS = 0.1


def _waited(status: Status) -> str:
    """How much of the time a training waits for its loader, where more workers would help; else empty."""
    if status.note or status.waiting < _WAITS:
        return ""
    return f"{min(status.waiting, 1.0):.0%} waiting for pictures"


def _place(status: Status, *, short: bool) -> str:
    """Where a work stands, as in ``120/400``, ``eval 50/1449``."""
    place = f"{status.step}/{status.total}"
    if not status.note:
        return place
    if short:
        return f"eval {place}" if status.note.startswith("evaluating") else status.note[:14]
    return place


def _rate(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 99.95 else f"{rate:.1f}" if rate >= 9.995 else f"{rate:.2f}"


def shortened_line(label: str, width: int) -> str:
    """A label that is not wider than this; its middle is left out where it is."""
    if len(label) <= width:
        return label
    tail = (width - 1) * 2 // 5
    return label[: width - 1 - tail] + "…" + label[len(label) - tail :]
