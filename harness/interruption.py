"""Ctrl-C and SIGTERM: work stops at once, or, while a network trains, where it can go on from.

Slurm and Kubernetes send SIGTERM some seconds before they kill. A trial that trains finishes its step and
writes a checkpoint, if both take no longer than :data:`PATIENCE`; a second signal stops it at once.
"""

from __future__ import annotations

import _thread
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: Seconds that the rest of a step and a checkpoint may take after a signal. Ray Tune gives its workers
#: the same time.
PATIENCE = 5.0


class Terminated(KeyboardInterrupt):
    """SIGTERM; otherwise like Ctrl-C. The command line exits with 143 in place of 130."""


class _State:
    """What this process has been asked to do."""

    def __init__(self) -> None:
        self.first: int | None = None
        self.waits = False
        self.worker = False
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
    _state.first = None


def asked(found: BaseException) -> bool:
    """Whether an exception is somebody's wish that work or this process stop, and nothing that a trial raised
    of its own accord."""
    if isinstance(found, Terminated) or hasattr(found, "ray_terminate_msg"):  # Ray's SystemExit for SIGTERM
        return True
    told = noted() or not (_state.worker or signal.getsignal(signal.SIGINT) is _handle)
    return isinstance(found, KeyboardInterrupt) and told


def leave_to_driver() -> None:
    """This process is a worker: Ctrl-C is for its driver, so that none is meant for this one."""
    _state.worker = True


def error() -> KeyboardInterrupt:
    """What to raise: :class:`Terminated` after SIGTERM, else KeyboardInterrupt."""
    return Terminated() if _state.first == signal.SIGTERM else KeyboardInterrupt()


def stop_if_noted() -> None:
    """Stop here if that was asked for."""
    if noted():
        raise error()


def _handle(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGTERM and signal.getsignal(signal.SIGINT) not in _NOBODY:
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


#: Who may hold Ctrl-C without wanting to hear of SIGTERM.
_NOBODY = (_handle, signal.SIG_IGN, signal.SIG_DFL, signal.default_int_handler, None)


def _insist() -> None:
    """The second signal, from the timer's thread."""
    if hasattr(signal, "pthread_kill"):  # this one also ends a wait of the main thread
        signal.pthread_kill(threading.main_thread().ident or 0, _state.first or signal.SIGINT)
    else:
        _thread.interrupt_main()


def install() -> None:
    """Take both signals; again after a library has taken one (``ray.init`` takes SIGTERM). Nothing in
    another thread than the main one."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _handle)


@contextmanager
def handled() -> Iterator[None]:
    """Handle both signals as the module says; in another thread than the main one, as Python does."""
    if threading.current_thread() is not threading.main_thread() or _handle in (
        signal.getsignal(signal.SIGINT),
        signal.getsignal(signal.SIGTERM),
    ):
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
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
