"""Ctrl-C, SIGTERM and SIGHUP: work stops at once, or, while a network trains, where it can go on from.

Slurm and Kubernetes send SIGTERM some seconds before they kill; a terminal that is closed sends SIGHUP. A
trial that trains finishes its step and writes a checkpoint, if both take no longer than :data:`PATIENCE`; a
second signal stops it at once. What has begun to stop is left :data:`TIDYING` to remove its drafts: a
further signal within it changes nothing.
"""

from __future__ import annotations

import _thread
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: Seconds that the rest of a step and a checkpoint may take after a signal. Ray Tune gives its workers
#: the same time.
PATIENCE = 5.0
#: Seconds for which work that has begun to stop hears of no other signal.
TIDYING = 2.0

#: Signals that are taken: Ctrl-C, and those that end a process from outside (Windows has no SIGHUP).
ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
SIGNALS = (signal.SIGINT, *ENDING)


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP; otherwise like Ctrl-C. The command line exits with 143 or 129 in place of 130.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__()
        self.number = number


class _State:
    """What this process has been asked to do."""

    def __init__(self) -> None:
        self.first: int | None = None
        self.waits = False
        self.worker = False
        self.raised = -TIDYING
        self.held = 0
        self.late: int | None = None
        self.timer: threading.Timer | None = None


_state = _State()


def noted() -> bool:
    """Whether to stop at the next point that work can go on from."""
    return _state.first is not None


def note() -> None:
    """Ask work in this process to stop where it can go on from, as a signal does."""
    _state.first = _state.first or signal.SIGINT


def forget() -> None:
    """The work that was asked to stop has stopped; other work may begin."""
    _state.first, _state.raised, _state.late = None, -TIDYING, None


def asked(found: BaseException) -> bool:
    """Whether an exception is somebody's wish that work or this process stop, and nothing that a trial raised
    of its own accord."""
    if isinstance(found, Terminated) or hasattr(found, "ray_terminate_msg"):  # Ray's SystemExit for SIGTERM
        return True
    # Where Ctrl-C comes here it is noted; in a background job (nohup, &) it is ignored.
    nobodys = _state.worker or signal.getsignal(signal.SIGINT) in (_handle, signal.SIG_IGN)
    told = noted() or not nobodys
    return isinstance(found, KeyboardInterrupt) and told


def leave_to_driver() -> None:
    """This process is a worker: Ctrl-C is for its driver, so that none is meant for this one."""
    _state.worker = True


def ignore() -> None:
    """This process ends because of a signal: another Ctrl-C shall not interrupt how it does."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if number != signal.SIGTERM:
                signal.signal(number, signal.SIG_IGN)


def error() -> KeyboardInterrupt:
    """What to raise: :class:`Terminated` after SIGTERM and SIGHUP, else KeyboardInterrupt."""
    _state.raised = time.monotonic()
    first = _state.first or signal.SIGINT
    return Terminated(first) if first in ENDING else KeyboardInterrupt()


def stop_if_noted() -> None:
    """Stop here if that was asked for."""
    if noted():
        raise error()


def _handle(number: int, frame: FrameType | None) -> None:
    if _state.held:
        _state.late = number
        return
    if time.monotonic() - _state.raised < TIDYING:
        return
    if number in ENDING and signal.getsignal(signal.SIGINT) not in _NOBODY:
        _state.first = number
        signal.raise_signal(signal.SIGINT)  # to whom Ctrl-C belongs for now: Ray Tune
        return
    again = noted()
    _state.first = _state.first or number
    if again or not _state.waits:
        raise error()
    _state.timer = threading.Timer(PATIENCE, _insist)
    _state.timer.daemon = True
    _state.timer.start()


@contextmanager
def held() -> Iterator[None]:
    """Let a few instructions be whole: a signal that comes meanwhile is heard at their end. Signals come to
    the main thread alone, so that others have nothing to hold."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _state.held += 1
    try:
        yield
    finally:
        _state.held -= 1
    if not _state.held and _state.late is not None:
        late, _state.late = _state.late, None
        _handle(late, None)


#: Who may hold Ctrl-C without wanting to hear of SIGTERM.
_NOBODY = (_handle, signal.SIG_IGN, signal.SIG_DFL, signal.default_int_handler, None)


def _insist() -> None:
    """The second signal, from the timer's thread."""
    if hasattr(signal, "pthread_kill"):  # this one also ends a wait of the main thread
        signal.pthread_kill(threading.main_thread().ident or 0, _state.first or signal.SIGINT)
    else:
        _thread.interrupt_main()


def install() -> None:
    """Take the signals; again after a library has taken one (``ray.init`` takes SIGTERM). Nothing in
    another thread than the main one."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _handle)


@contextmanager
def handled() -> Iterator[None]:
    """Handle the signals as the module says; in another thread than the main one, as Python does."""
    if threading.current_thread() is not threading.main_thread() or _handle in map(signal.getsignal, SIGNALS):
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    forget()
    install()
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # one that Python did not set cannot be set again
                signal.signal(number, handler)
        forget()


@contextmanager
def at_boundaries() -> Iterator[None]:
    """Within it the first signal is only noted, for work that asks :func:`noted` at every step."""
    _state.waits = True
    try:
        yield
    finally:
        _state.waits = False
        if _state.timer is not None:
            _state.timer.cancel()
            _state.timer = None
