"""A trial in a process of its own, for a process that has lost its GPU and cannot get it back."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from multiprocessing.connection import Connection

import wsss_bench
from harness import faults, interruption
from harness.errors import UserError
from harness.runs.running import run
from harness.runs.trial import Options, Prepared, Trial, prepare
from harness.specs import Recipe
from harness.store.locks import Elsewhere
from harness.training import Status


def run_apart(prepared: Prepared) -> Iterator[Status]:
    """As :func:`harness.runs.running.run`; errors of the other process are raised here.

    Raises:
        TransientFault: the process died.
    """
    ours, theirs = multiprocessing.Pipe()
    # Forking would copy the lost GPU along.
    process = multiprocessing.get_context("spawn").Process(
        target=wsss_bench.begin, args=(__name__, "_work", prepared.trial, prepared.options, theirs)
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


def _work(trial: Trial, options: Options, pipe: Connection) -> None:
    recipe: Recipe | None = None
    with interruption.handled():
        try:
            prepared = prepare(trial, options)
            recipe = prepared.resolved.recipe
            for status in run(prepared):
                pipe.send(status)
            pipe.send(None)
        except BaseException as error:
            if not interruption.asked(error):  # else the parent stops too
                plain = isinstance(error, UserError | Elsewhere)
                pipe.send(faults.portable(error) if plain else faults.relayed(error, recipe))
