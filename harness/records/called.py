"""Rows that somebody has named (``wsss run --name``), with the values that their records have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.recipes.given import Called
from harness.recipes.row_names import values_text
from harness.records.records import Store


def called_rows(store: Store) -> Called:
    """What looks up the named rows of a recipe in a store, as :func:`harness.recipes.given.given` takes it.

    Rows of one name and several configurations are told apart as tables tell them: ``mine: crop=48``.
    """

    def of(name: str) -> Mapping[str, tuple[str, Mapping[str, Any]]]:
        meant: dict[str, dict[str, Mapping[str, Any]]] = {}
        for record in store.records(name):
            if label := record.data.get("called"):
                overrides = record.data["overrides"]
                meant.setdefault(label, {})[values_text(overrides)] = overrides
        return {
            label if len(rows) == 1 else f"{label}: {text}": (label, values)
            for label, rows in meant.items()
            for text, values in rows.items()
        }

    return of
