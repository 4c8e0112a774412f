"""Checkpoints that are written while training goes on: from a copy, by a thread, one at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from copy import copy
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from harness.basics.errors import words


class Writer:
    """Writes one thing after the other beside the work that goes on.

    A process does not end before its thread has: what was begun is written, unless the process is killed.
    Left as a context, it waits; what could not be written is raised, or said with the error of work that has
    failed already.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, write: Callable[[], None]) -> None:
        """Begin to write, once the last one is written (:meth:`wait`)."""
        self.wait()

        def work() -> None:
            try:
                write()
            except BaseException as error:
                self._error = error

        self._thread = threading.Thread(target=work, name="checkpoint", daemon=False)
        self._thread.start()

    def ended(self) -> bool:
        """Whether something has been written that nobody has waited for; errors as in :meth:`wait`."""
        return self._thread is not None and not self._thread.is_alive() and self.wait()

    def wait(self) -> bool:
        """Wait until nothing is being written; False if nothing was.

        Raises:
            Exception: what the writing met, a full disk, say.
        """
        if self._thread is None:
            return False
        self._thread.join()
        self._thread, error, self._error = None, self._error, None
        if error is not None:
            raise error
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except Exception as own:
            if error is None or isinstance(error, GeneratorExit):
                raise
            error.add_note(f"the last checkpoint was not written either: {words(own)}")


def copied(value: Any, known: dict[int, Tensor] | None = None) -> Any:
    """A state as it is now, its tensors copied to the CPU, each one once."""
    known = {} if known is None else known
    if isinstance(value, Tensor):
        if id(value) not in known:
            known[id(value)] = value.detach().to("cpu", copy=True)
        return known[id(value)]
    if isinstance(value, dict):
        own = copy(value)  # with what a module's state says of its version
        own.update({key: copied(part, known) for key, part in value.items()})
        return own
    return type(value)(copied(part, known) for part in value) if type(value) in (list, tuple) else value
