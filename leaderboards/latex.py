"""The leaderboard for a paper: LaTeX tables with booktabs, best bold, second best underlined."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from leaderboards.columns import MIOU, PUBLISHED, Column, Section, places, sections
from leaderboards.tables import Row
from leaderboards.text import number

_HEAD = """% Generated: do not edit. Needs \\usepackage{booktabs} and \\usepackage{graphicx}.
% Best mean of an evaluation bold, second best underlined; stale rows and holes are not ranked.
"""

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "−": "$-$",
    "±": r"$\pm$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "μ": r"$\mu$",
}
_PATTERN = re.compile("|".join(re.escape(c) for c in _SPECIAL))


def escape(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return _PATTERN.sub(lambda match: _SPECIAL[match.group()], text)


def _cell(column: Column, row: Row, text: str, place: int) -> str:
    if column is PUBLISHED:  # the id of the cell stands in the other formats
        return "--" if math.isnan(row.published) else number(row.published)
    text = escape(text)
    if column is MIOU and place in (1, 2):
        return f"\\{'textbf' if place == 1 else 'underline'}{{{text}}}"
    return text


def _table(section: Section) -> str:
    printed = [i for i, column in enumerate(section.columns) if column.latex]
    columns = [section.columns[i] for i in printed]
    ranked = places(section)
    align = "".join("l" if column.align == "left" else "r" for column in columns)
    lines = [
        " & ".join(_cell(section.columns[k], row, texts[k], ranked.get(i, 0)) for k in printed)
        for i, (row, texts) in enumerate(zip(section.rows, section.texts, strict=True))
    ]
    return "\n".join(
        [
            "\\begin{table}[t]",
            "\\centering",
            f"\\caption{{{escape(section.title)}.}}",
            f"\\label{{tab:{section.id}}}",
            "\\smallskip",
            "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%",
            f"\\begin{{tabular}}{{@{{}}{align}@{{}}}}",
            "\\toprule",
            " & ".join(escape(column.name) for column in columns) + r" \\",
            "\\midrule",
            *(line + r" \\" for line in lines),
            "\\bottomrule",
            "\\end{tabular}}",
            "\\end{table}",
        ]
    )


def latex(rows: Sequence[Row], parts: Sequence[Section] | None = None) -> str:
    """One table environment for each section with records; what was not run at all is left out.

    Args:
        rows: from :func:`leaderboards.tables.leaderboard`.
        parts: their :func:`leaderboards.columns.sections`, where they are at hand.
    """
    parts = sections(rows) if parts is None else parts
    shown = [section for section in parts if section.kind != "holes"]
    return "\n\n".join([_HEAD, *map(_table, shown)]) + "\n"
