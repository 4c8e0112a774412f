"""Fixtures of the tests of searches."""

from __future__ import annotations

import pytest
from searches import pretend

import harness.running.search.objective
from harness.running.trials.trial import Options


@pytest.fixture
def options(small, tmp_path) -> Options:
    return Options(results=tmp_path / "results", data_roots=(str(small),), device="cpu", checkpoint_seconds=0)


@pytest.fixture
def quick(monkeypatch):
    """Trials cost nothing."""
    monkeypatch.setattr(harness.running.search.objective, "measure", pretend)
