"""Memory of a trial: counted from its start, whatever the process did before."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.provenance import peak_memory_mib, reset_peak_memory

CPU = torch.device("cpu")


def peak() -> float:
    """The peak on a system that tells."""
    value = peak_memory_mib(CPU)
    assert value is not None
    return value


def test_the_peak_counts_a_large_array() -> None:
    reset_peak_memory(CPU)
    before = peak()
    array = np.ones(32 * 2**20)  # 256 MiB
    assert array.sum() > 0
    assert peak() > before + 200


@pytest.mark.skipif(
    sys.platform != "linux" or not Path("/proc/self/clear_refs").exists(), reason="proc(5) is Linux's"
)
def test_the_peak_of_an_earlier_trial_is_forgotten() -> None:
    array = np.ones(32 * 2**20)
    high = peak()
    assert array.sum() > 0
    del array
    reset_peak_memory(CPU)
    assert peak() < high - 200
