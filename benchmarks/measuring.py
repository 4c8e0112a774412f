"""What the benchmarks measure by, so that a figure does not depend on what ran before it or beside it."""

from __future__ import annotations

import resource
from collections.abc import Callable
from typing import Any

import torch

from harness.basics.provenance import peak_memory_mib, reset_peak_memory

_CPU = torch.device("cpu")


def user_seconds() -> float:
    """Seconds of this process outside the kernel: page faults of a formulation that allocates much are not
    its arithmetic, and cost more the busier the machine is."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_utime


def reset_peak() -> float:
    """Let :func:`peak_mib` count from now; returns what is resident, in MiB.

    A peak of the whole process would be that of whatever ran before, and a child inherits its parent's.
    """
    reset_peak_memory(_CPU)
    return peak_mib()


def peak_mib() -> float:
    """Largest resident memory since :func:`reset_peak`."""
    found = peak_memory_mib(_CPU)
    assert found is not None, "this system does not tell"
    return found


def rise_mib(run: Callable[[], Any]) -> float:
    """By how many MiB memory rises above what is resident while something runs; more than 0."""
    before = reset_peak()
    run()
    return max(peak_mib() - before, 2**-8)  # a page
