"""A job in a process of its own, for a process that has lost its GPU and cannot get it back."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from multiprocessing.connection import Connection

import wsss_bench
from harness.basics import interruption
from harness.basics.errors import UserError
from harness.engine import faults
from harness.records.locks import Elsewhere
from harness.running.jobs.job import Event, Job


def apart(job: Job) -> Iterator[Event]:
    """The events of a job's work in another process; errors of that process are raised here.

    Raises:
        TransientFault: the process died.
    """
    ours, theirs = multiprocessing.Pipe()
    # Forking would copy the lost GPU along.
    process = multiprocessing.get_context("spawn").Process(
        target=wsss_bench.begin, args=(__name__, "_work", job, theirs)
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
            if isinstance(got, BaseException):
                raise got
            if got is None:
                return
            yield got
    finally:
        process.terminate()  # nothing where it has ended; else it writes a checkpoint and goes
        process.join()


def _work(job: Job, pipe: Connection) -> None:
    with interruption.handled():
        try:
            job.begin()
            for event in job.work():
                pipe.send(event)
            pipe.send(None)
        except BaseException as error:
            if not interruption.asked(error):  # else the parent stops too
                plain = isinstance(error, UserError | Elsewhere)
                pipe.send(faults.portable(error) if plain else faults.relayed(error, job.recipe))
