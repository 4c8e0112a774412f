"""Which rows are shown: of a data set, of suites, and by the names that tables print."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pandas as pd

from harness.basics.errors import UserError, nearest
from harness.recipes.row_names import row_overrides, row_parts
from harness.records.records import Record, Store
from leaderboards.rows.gathering import gather_records
from leaderboards.rows.row import Row


def row_text(row: Row) -> str:
    """The name of a row as tables print it."""
    return printed_name(row.recipe, row.overrides)


def printed_name(recipe: str, overrides: str) -> str:
    """The name of a row as tables print it, from the text of its values or what it was called."""
    return f"{recipe} ({overrides})" if overrides else recipe


def picked_rows(rows: Sequence[Row], names: Collection[str]) -> list[Row]:
    """The rows with records that are named, in their order.

    Args:
        rows: from :func:`leaderboards.rows.tables.leaderboard`.
        names: recipes, for all their rows; patterns of recipes; or names of rows as tables print them, whose
            values may be written otherwise.

    Raises:
        UserError: a name that is no row's.
    """
    there = [row for row in rows if row.n]
    found = _picked({(row.recipe, row.overrides) for row in there}, names)
    return [row for row in there if (row.recipe, row.overrides) in found]


def record_chooser(store: Store, names: Collection[str]) -> Callable[[Record], bool]:
    """Which records of a store are in the rows that are named, see :func:`picked_rows`.

    Raises:
        UserError: a name that is no row's.
    """
    if not names:
        return lambda record: True
    frame = gather_records(store)
    frame = frame[frame["finished"]] if len(frame) else frame
    rows = list(zip(frame["name"], frame["overrides"], strict=True)) if len(frame) else []
    found = _picked(set(rows), names)
    places: set[Path] = {
        record.path for record, row in zip(frame["record"], rows, strict=True) if row in found
    } if rows else set()  # fmt: skip
    return lambda record: record.path in places


def _picked(rows: Collection[tuple[str, str]], names: Collection[str]) -> set[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    for name in names:
        mine = {row for row in rows if _is_named(*row, name)}
        if not mine:
            known = sorted(printed_name(*row) for row in rows)
            raise UserError(f"no row is called {name!r}", where="--recipe", remedy=nearest(name, known))
        found |= mine
    return found


def _is_named(recipe: str, overrides: str, name: str) -> bool:
    if name == printed_name(recipe, overrides) or fnmatchcase(recipe, name):
        return True
    parts = row_parts(name)
    if parts is None or parts[0] != recipe or not overrides:
        return False
    values = row_overrides(parts[1])
    return values is not None and values == row_overrides(overrides)


def chosen_rows(
    rows: list[Row],
    frame: pd.DataFrame,
    recipes: Mapping[str, Any],
    dataset: str | None,
    suites: Sequence[str],
    names: Collection[str] = (),
) -> tuple[list[Row], pd.DataFrame]:
    """What of rows and records is of a data set and of suites, and is named; a hole of a suite that is named
    was asked for.

    Raises:
        UserError: an unknown suite, one of which there is no record, or a name that is no row's.
    """
    if dataset is not None:
        rows = [row for row in rows if row.dataset == dataset]
        frame = frame[frame["dataset"] == dataset]
    if names:
        rows = picked_rows(rows, names)
        kept = {(row.recipe, row.overrides) for row in rows}
        frame = frame[[pair in kept for pair in zip(frame["name"], frame["overrides"], strict=True)]]
    if not suites:
        return rows, frame
    members = {name for name, r in recipes.items() if set(suites) & set(r.recipe.suites)}
    known = {suite for r in recipes.values() for suite in r.recipe.suites}
    for suite in suites:
        if suite not in known:
            raise UserError(f"unknown suite {suite!r}", where="--suite", remedy=nearest(suite, known))
    frame = frame[frame["name"].isin(members)]
    if frame.empty:
        wanted = ", ".join(suites)
        raise UserError(
            f"no record of the suite {wanted}", where="--suite", remedy=f"wsss run {' '.join(suites)}"
        )
    return [replace(row, asked=True) for row in rows if row.recipe in members], frame
