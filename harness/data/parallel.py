"""Work on many files at once, with progress and results in order."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Literal, TypeVar

import wsss_bench
from harness.basics.progress import counted

_T = TypeVar("_T")
R = TypeVar("R")

#: Below this many items a pool of processes costs more than it brings.
_WORTH_PROCESSES = 200


def ordered_map(
    function: Callable[[_T], R],
    items: Sequence[_T],
    *,
    workers: int,
    kind: Literal["threads", "processes"],
    what: str,
) -> Iterator[R]:
    """Results of ``function`` in the order of ``items``, and how far that is.

    Threads suit decoding and hashing, which leave Python's lock; processes suit everything else and
    are started afresh (``spawn``), since forking a process that runs Ray or CUDA is not safe.

    Args:
        function: picklable where processes are used.
        items: what it is called with.
        workers: threads or processes beside this one; 0 works in this thread.
        kind: threads or processes.
        what: what is done, for the line of progress.
    """
    with ExitStack() as stack:
        results: Iterator[R]
        if workers <= 0 or (kind == "processes" and len(items) < _WORTH_PROCESSES):
            results = map(function, items)
        else:
            pool: Executor
            if kind == "threads":
                pool = ThreadPoolExecutor(workers)
            else:
                spawn = multiprocessing.get_context("spawn")
                # Read before anything of ours is: it sees to where that is found.
                pool = ProcessPoolExecutor(workers, spawn, initializer=wsss_bench.prefer_ours)
            stack.callback(pool.shutdown, wait=True, cancel_futures=True)
            results = pool.map(function, items, chunksize=16)
        yield from counted(results, len(items), what, "files")
