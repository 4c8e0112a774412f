"""Faults at chosen moments: code that breaks, or dies, at the n-th call; and drivers to let it happen to.

Drivers run in processes that are forked from a server which has imported everything, so that a test
costs no start of Python.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import harness.basics.files
import harness.cli.run
import harness.engine.training
import harness.evaluation.evaluator
import harness.nn.encoders
import harness.records.history
import harness.running.trials.execution
from harness.basics.reading import read_json
from harness.cli.main import cli, invoke
from harness.records.locks import HOLDER
from harness.records.records import Record, Store

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        "harness.cli.run",
        "harness.running.trials.execution",
        "harness.nn.encoders",
        "methods.agmm",
        "methods.baselines",
    ]
)


class At:
    """Calls ``action`` in place of, or after, the n-th call of a function, and at no other call."""

    def __init__(self, function: Callable, number: int, action: Callable[[], Any], *, after: bool = False):
        self.function, self.number, self.action, self.after = function, number, action, after
        self.calls = 0

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        """Stands for a method too."""
        return self if instance is None else lambda *a, **k: self(instance, *a, **k)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        if self.calls == self.number and not self.after:
            self.action()
        result = self.function(*arguments, **options)
        if self.calls == self.number and self.after:
            self.action()
        return result


def die() -> None:
    """As by the kernel: no handler, no cleaning up."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(moment: str, number: int) -> None:
    """Let this process kill itself at the n-th

    - ``step``: optimiser step, which has changed the weights but is not counted yet;
    - ``row``: row of the history, half written;
    - ``count``: picture of an evaluation;
    - a file's name: writing of this file, complete but not yet in its place.
    """
    if moment == "step":
        trainer = harness.engine.training.Trainer
        trainer.optimise = At(trainer.optimise, number, die, after=True)
    elif moment == "count":
        harness.evaluation.evaluator.count = At(harness.evaluation.evaluator.count, number, die)
    elif moment == "row":
        append = harness.records.history.append

        def half(path: Path, text: str) -> None:
            nonlocal number
            number -= 1
            append(path, text if number else text[: len(text) // 2])
            if not number:
                die()

        harness.records.history.append = half
    else:
        whole_file = harness.basics.files.whole_file

        @contextmanager
        def dying(path: Path, mode: str = "w", **options: Any) -> Iterator[Any]:
            nonlocal number
            with whole_file(path, mode, **options) as stream:
                yield stream
                number -= path.name == moment
                if path.name == moment and number == 0:
                    stream.flush()
                    die()

        harness.basics.files.whole_file = dying


def die_when(place: Path, pattern: str) -> None:
    """Let this process kill itself after the first step at which a file is there."""
    trainer = harness.engine.training.Trainer
    optimise = trainer.optimise

    def watched(self: Any, *arguments: Any) -> Any:
        result = optimise(self, *arguments)
        if any(place.glob(pattern)):
            die()
        return result

    trainer.optimise = watched  # type: ignore[method-assign]


def _drive(arguments: list[str], prepare: Callable[..., None] | None, *options: Any) -> None:
    if prepare is not None:
        prepare(*options)
    os._exit(invoke(cli, arguments))


def driver(*arguments: object, prepare: Callable[..., None] | None = None, options: tuple = ()) -> Any:
    """A process that runs the command, started; ``prepare(*options)`` is called in it first."""
    process = _SERVER.Process(target=_drive, args=([str(a) for a in arguments], prepare, *options))
    process.start()
    return process


def exit_code(process: Any, seconds: float = 300) -> int:
    """Wait for a driver."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"the driver did not end within {seconds:g} s")
    return process.exitcode


def wait_for(condition: Callable[[], Any], seconds: float = 240) -> Any:
    """Poll until something is true; its value."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.01)
    raise AssertionError(f"did not happen within {seconds:g} s")


def holders(results: Path) -> dict[Path, int]:
    """Folders of running trials, and the processes that run them."""
    found = {}
    for file in results.glob(f"*/*/*/*/{HOLDER}"):
        try:
            found[file.parent] = read_json(file)["process"]
        except (OSError, ValueError):
            continue
    return found


def parent(process: int) -> int:
    """The process that started another one (Linux)."""
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def settled(results: Path) -> list[Record]:
    """Records of trials that are over: finished, and no process holds their folder any more.

    A record is written while its trial is still held: what lies beside it may go a moment later.
    """
    return [r for r in Store(results).records() if r.finished and not (r.path / HOLDER).exists()]


def files_of(records: Iterable[Record]) -> dict[Path, int]:
    """Every file of records, and when it was last written."""
    return {f: f.stat().st_mtime_ns for r in records for f in r.path.rglob("*") if f.is_file()}


def drafts(results: Path) -> list[Path]:
    """What must not be left behind: half-written files and notes of running trials."""
    return [*results.rglob(".*.part"), *results.rglob(HOLDER)]
