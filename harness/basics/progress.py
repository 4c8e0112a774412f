"""How far a long piece of work is, said in one way by every verb: what, a bar, how many of all, time left.

On a terminal it is one line of the error stream that is gone in the end; elsewhere (a file, a pipe, CI) a
line of progress every :data:`PLAIN_SECONDS`. Trials have a board of their own (``harness.running.watching``)
in the same look.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from harness.basics.text import duration

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

T = TypeVar("T")

#: Seconds between two pictures of the line, and between two lines off a terminal.
REFRESH_SECONDS = 0.2
PLAIN_SECONDS = 30.0
#: Columns of the bar, at most.
_BAR = 40


class Bar:
    """A count that goes up, from any thread.

    Args:
        what: what is done, such as ``scoring``.
        total: how often it is done.
        unit: the plural of what is counted.
        clock: seconds.
    """

    def __init__(
        self, what: str, total: int, unit: str = "pictures", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.what, self.total, self.unit, self.clock = what, total, unit, clock
        self.done = 0
        self._begun = self._drawn = clock()
        self._live: Live | None = None

    def __enter__(self) -> Bar:
        from rich.console import Console
        from rich.live import Live

        console = Console(stderr=True, force_terminal=sys.stderr.isatty(), highlight=False)
        if console.is_terminal and not console.is_dumb_terminal and self.total > 1:
            self._live = Live(
                console=console, get_renderable=self._picture, auto_refresh=False, transient=True,
                redirect_stdout=sys.stdout.isatty(),  # a file must get what is written to it
            )  # fmt: skip
            self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def advance(self) -> None:
        """One more is done."""
        self.done += 1
        now = self.clock()
        if now - self._drawn < (REFRESH_SECONDS if self._live is not None else PLAIN_SECONDS):
            return
        self._drawn = now
        if self._live is not None:
            self._live.refresh()
        else:
            print(f"progress {self.what}, {self.text()}", file=sys.stderr, flush=True)

    def text(self) -> str:
        """``120 of 1,000 pictures, 0:40 left``."""
        spent = self.clock() - self._begun
        left = spent / self.done * (self.total - self.done) if self.done else None
        more = "" if left is None else f", {duration(left)} left"
        return f"{self.done:,} of {self.total:,} {self.unit}{more}"

    def _picture(self) -> Table:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        line = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=max(self.total, 1), completed=min(self.done, self.total), width=_BAR)
        line.add_row(Text(self.what), bar, Text(self.text(), no_wrap=True, overflow="ellipsis"))
        return line


def counted(items: Iterable[T], total: int, what: str, unit: str = "pictures") -> Iterator[T]:
    """The items, while a :class:`Bar` counts them."""
    with Bar(what, total, unit) as bar:
        for item in items:
            yield item
            bar.advance()
