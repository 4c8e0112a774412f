"""A store to write synthetic records into."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic import Factory

from harness.records.records import Store


@pytest.fixture
def factory(tmp_path: Path) -> Factory:
    """A factory over an empty store."""
    return Factory(Store(tmp_path / "results"))


@pytest.fixture(autouse=True)
def any_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Synthetic records of the miniature scenes have classes of their own."""
    monkeypatch.setattr("leaderboards.rows.gathering.dataset_classes", lambda name: None)
