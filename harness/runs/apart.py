"""A trial in a process of its own, for a process that has lost its GPU and cannot get it back."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection

from harness import faults, interruption
from harness.runs.running import run
from harness.runs.trial import Options, Prepared, Trial, prepare
from harness.training import Status


def run_apart(prepared: Prepared) -> Iterator[Status]:
    """As :func:`harness.runs.running.run`; errors of the other process are raised here.

    Raises:
        TransientFault: the process died.
    """
    ours, theirs = multiprocessing.Pipe()
    # Forking would copy the lost GPU along.
    process = multiprocessing.get_context("spawn").Process(
        target=_work, args=(prepared.trial, prepared.options, theirs)
    )
    process.start()
    theirs.close()
    try:
        while True:
            try:
                got = ours.recv()
            except EOFError:
                process.join()
                raise faults.TransientFault(f"its process died with exit code {process.exitcode}") from None
            if isinstance(got, Exception):
                raise got
            if got is None:
                return
            yield got
    finally:
        process.terminate()  # nothing where it has ended; else it writes a checkpoint and goes
        process.join()


def _work(trial: Trial, options: Options, pipe: Connection) -> None:
    with interruption.handled():
        try:
            for status in run(prepare(trial, options)):
                pipe.send(status)
            pipe.send(None)
        except Exception as error:
            trace = traceback.format_exc()
            if faults.transient(error):
                error = faults.TransientFault(faults.first_line(error))
            error.add_note(trace)
            try:
                pipe.send(error)
            except Exception:  # one that cannot be pickled
                pipe.send(RuntimeError(trace))
        except KeyboardInterrupt:
            pass  # the parent stops too
