"""Memory of a trial: counted from its start, whatever the process did before."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

#: Runs in a process of its own: what a test session holds and frees would blur the figures.
SCRIPT = """
import numpy as np, torch
from harness.basics.provenance import peak_memory_mib, reset_peak_memory

cpu = torch.device("cpu")
reset_peak_memory(cpu)
before = peak_memory_mib(cpu)
array = np.ones(32 * 2**20)  # 256 MiB
assert array.sum() > 0
high = peak_memory_mib(cpu)
del array
reset_peak_memory(cpu)
print(before, high, peak_memory_mib(cpu))
"""


@pytest.fixture(scope="module")
def peaks() -> tuple[float, ...]:
    """Peak in MiB before a large array, with it, and after it was freed and the peak reset."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    return tuple(float(x) for x in done.stdout.split())


def test_the_peak_counts_a_large_array(peaks: tuple[float, ...]) -> None:
    assert peaks[1] > peaks[0] + 200


@pytest.mark.skipif(
    sys.platform != "linux" or not Path("/proc/self/clear_refs").exists(), reason="proc(5) is Linux's"
)
def test_the_peak_of_an_earlier_trial_is_forgotten(peaks: tuple[float, ...]) -> None:
    assert peaks[2] < peaks[1] - 200
