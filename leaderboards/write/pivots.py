"""Grids of configurations on the terminal and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from harness.basics.listing import Styled, fitted_table, heading, prose
from leaderboards.rows.pivot import Pivot, PivotCell
from leaderboards.rows.text import DASH, escaped, mean_text, number, pipe_table


def cell_text(cell: PivotCell, seeds: int, join: str) -> str:
    """Mean, deviation and interval; how many seeds, where that is not the number wanted."""
    row = cell.row
    if row is None:
        return "failed" if cell.failed else DASH
    text = mean_text(row)
    if row.n < seeds and row.n > 1:
        text += f" (n = {row.n})"
    return text if math.isnan(row.low) else f"{text}{join}[{number(row.low)}, {number(row.high)}]"


def _best(tables: Sequence[Pivot]) -> PivotCell | None:
    cells = [cell for table in tables for _, line in table.lines for cell in line]
    return max(cells, key=_height, default=None)


def _height(cell: PivotCell) -> float:
    return -math.inf if cell.row is None or math.isnan(cell.row.mean) else cell.row.mean


def pivot_listing(tables: Sequence[Pivot], title: str, seeds: int) -> str:
    """The tables as a terminal shows them, the highest mean in bold."""
    best, texts = _best(tables), [heading(title)]
    for table in tables:
        if table.title:
            texts.append(heading(table.title))
        if table.across:
            texts.append(prose(f"across: {table.across}"))
        lines: list[list[str | Styled]] = [
            [value, *(Styled(cell_text(c, seeds, "\n"), {"bold": True} if c is best else {}) for c in cells)]
            for value, cells in table.lines
        ]
        texts.append(fitted_table(lines, (table.down, *(table.heads or ("mIoU (%)",)))))
    return "\n".join(texts)


def pivot_markdown(tables: Sequence[Pivot], title: str, seeds: int) -> str:
    """The tables as Markdown, the highest mean in bold."""
    best, texts = _best(tables), [f"## {escaped(title)}"]
    for table in tables:
        if table.title:
            texts.append(f"### {escaped(table.title)}")
        corner = f"{table.down} \\ {table.across}" if table.across else table.down
        lines = [
            [
                escaped(value),
                *(
                    f"**{cell_text(c, seeds, ' ')}**" if c is best else cell_text(c, seeds, " ")
                    for c in cells
                ),
            ]
            for value, cells in table.lines
        ]
        heads = [escaped(text) for text in (corner, *(table.heads or ("mIoU (%)",)))]
        texts.append(pipe_table(lines, heads, ["left", *["right"] * (len(heads) - 1)]))
    return "\n\n".join(texts) + "\n"
