"""Tests on a pretended GPU, in a process of their own: see ``tests/harness/test_on_a_pretended_gpu.py``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pretend_device import Pretend


@pytest.fixture
def gpu() -> Iterator[Pretend]:
    """A device ``cuda`` while a test runs, and what is seen of it."""
    with Pretend() as seen:
        yield seen
