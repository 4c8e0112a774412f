"""A store to write synthetic records into."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic import Factory

from harness.store.records import Store


@pytest.fixture
def factory(tmp_path: Path) -> Factory:
    """A factory over an empty store."""
    return Factory(Store(tmp_path / "results"))
