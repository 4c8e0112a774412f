"""A grid of configurations as tables: a row and a column for the values of two axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import pandas as pd

from harness.recipes.grids import AblationGrid
from harness.recipes.resolving import value_text
from harness.recipes.row_names import row_name
from leaderboards.rows.configurations import Configurations
from leaderboards.rows.row import Row
from leaderboards.rows.tables import leaderboard


@dataclass(frozen=True)
class PivotCell:
    """A point of a grid in one evaluation.

    Attributes:
        at: values of the axes, by dotted key.
        name: that tables give it.
        row: what its records say; None before there is one.
        failed: why its seeds have failed, where there is no figure.
    """

    at: Mapping[str, Any]
    name: str
    row: Row | None
    failed: str = ""


@dataclass(frozen=True)
class Pivot:
    """One table.

    Attributes:
        title: the values of all further axes; empty where there are two at most.
        down, across: keys of the axes; ``across`` is empty for a single axis.
        heads: values of the axis ``across`` as text.
        lines: the value of ``down`` as text, and the cells.
    """

    title: str
    down: str
    across: str
    heads: tuple[str, ...]
    lines: tuple[tuple[str, tuple[PivotCell, ...]], ...]


def cells_of(
    frame: pd.DataFrame,
    grid: AblationGrid,
    recipes: Mapping[str, Any],
    evaluation: str,
    resamples: int = 1000,
) -> list[PivotCell]:
    """Every point of a grid in the order of its points, with its standing records.

    Args:
        frame: from :func:`leaderboards.rows.gathering.gather_records`.
        grid: the points.
        recipes: name to ``Resolved``: what counts as stale.
        evaluation: as the recipe names it.
        resamples: of the intervals over images.
    """
    known = Configurations(frame)
    own = {name: found for name, found in recipes.items() if name == grid.recipe}
    cells = []
    for point in grid.points:
        lines = known.with_values(grid.recipe, point)
        rows = leaderboard(lines, own, resamples=resamples) if len(lines) else []
        standing = [r for r in rows if r.n and r.verdict != "stale" and r.evaluation == evaluation]
        failed = [str(text) for text in lines.loc[~lines["finished"], "reason"]] if len(lines) else []
        values = {key: point[key] for key in grid.axes}
        why = failed[0].partition("\n")[0] or "no reason is recorded" if failed and not standing else ""
        cells.append(PivotCell(values, row_name(grid.recipe, point), standing[0] if standing else None, why))
    return cells


def pivots(grid: AblationGrid, cells: Sequence[PivotCell]) -> list[Pivot]:
    """The tables of a grid: one for each combination of all axes but the first two.

    Of these two, the one with fewer values runs across.
    """
    axes = {key: [value_text(v) for v in values] for key, values in grid.axes.items()}
    found = {tuple(value_text(v) for v in cell.at.values()): cell for cell in cells}
    down, across, *rest = [*axes, ""] if len(axes) == 1 else list(axes)
    if across and len(axes[across]) > len(axes[down]):
        down, across = across, down
    heads = tuple(axes[across]) if across else ("",)
    tables = []
    for others in product(*(axes[key] for key in rest)):
        fixed = dict(zip(rest, others, strict=True))
        lines = []
        for value in axes[down]:
            at = [{**fixed, down: value, across: head} for head in heads]
            lines.append((value, tuple(found[tuple(one[key] for key in axes)] for one in at)))
        title = ", ".join(f"{key}={value}" for key, value in fixed.items())
        tables.append(Pivot(title, down, across, heads if across else (), tuple(lines)))
    return tables


def pivot_lines(cells: Sequence[PivotCell], evaluation: str) -> list[dict[str, Any]]:
    """One line for each point, plain values; figures in percent, None where there is none."""
    lines = []
    for cell in cells:
        row = cell.row
        figures = dict.fromkeys(("mean", "std", "low", "high"))
        if row is not None:
            figures = {key: _plain(getattr(row, key)) for key in figures}
        lines.append(
            {
                "row": cell.name,
                **{key: value_text(value) for key, value in cell.at.items()},
                "evaluation": evaluation,
                "n": row.n if row is not None else 0,
                "seeds": " ".join(map(str, row.seeds)) if row is not None else "",
                **figures,
                "digest": row.digest if row is not None else "",
                "failed": cell.failed,
            }
        )
    return lines


def _plain(value: float) -> float | None:
    return None if value != value else value
