"""The leaderboard for a paper: LaTeX tables with booktabs, best bold, second best underlined."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from leaderboards.rows.row import Row
from leaderboards.rows.text import number
from leaderboards.write.columns import PUBLISHED, Column, Section, missing_texts, places, sections

_HEAD = """% Generated: do not edit. Needs \\usepackage{booktabs} and \\usepackage{graphicx}.
% Best figure of an evaluation bold, second best underlined; stale rows are not ranked.
"""

#: What a caption says beside the title.
_CAPTIONS = {
    "scores": " Mean $\\pm$ standard deviation over $n$ seeds; interval: bootstrap over images.",
    "pseudo labels": " Mean $\\pm$ standard deviation over $n$ seeds; interval: bootstrap over images.",
}

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
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "–": "--",
    "−": "$-$",
    "±": r"$\pm$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "μ": r"$\mu$",
}
_PATTERN = re.compile("|".join(re.escape(c) for c in _SPECIAL))


def latex_escape(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return _PATTERN.sub(lambda match: _SPECIAL[match.group()], text)


def _cell(column: Column, row: Row, text: str, place: int) -> str:
    if column is PUBLISHED:  # the id of the cell stands in the other formats
        return "--" if math.isnan(row.published) else number(row.published)
    text = latex_escape(text)
    if place in (1, 2):
        return f"\\{'textbf' if place == 1 else 'underline'}{{{text}}}"
    return text


def _table(section: Section) -> str:
    """Rows in the columns that tell them apart; what all share, and what was not run, is said below."""
    layout, ranked = section.layout, places(section)
    printed = [i for i in layout.columns if section.columns[i].latex]
    columns = [section.columns[i] for i in printed]
    align = "".join("l" if column.align == "left" else "r" for column in columns)
    lines = [
        " & ".join(_cell(section.columns[k], row, texts[k], ranked.get((i, k), 0)) for k in printed)
        for i, (row, texts) in enumerate(zip(section.rows, section.texts, strict=True))
    ]
    hidden = tuple(f"{c.name}: " for c in section.columns if not c.latex)
    said = ("; ".join(p for p in text.split("; ") if not p.startswith(hidden)) for text in layout.said)
    below = [text for text in said if text]
    if section.missing:
        below.append(f"Not run: {', '.join(missing_texts(section.missing, section.rows))}")
    return "\n".join(
        [
            "\\begin{table}[t]",
            "\\centering",
            f"\\caption{{{latex_escape(section.title)}.{_CAPTIONS.get(section.kind, '')}}}",
            f"\\label{{tab:{section.id}}}",
            "\\smallskip",
            "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}{%",
            f"\\begin{{tabular}}{{@{{}}{align}@{{}}}}",
            "\\toprule",
            " & ".join(latex_escape(column.name) for column in columns) + r" \\",
            "\\midrule",
            *(line + r" \\" for line in lines),
            "\\bottomrule",
            "\\end{tabular}}",
            *([_below(below)] if below else []),
            "\\end{table}",
        ]
    )


def _below(texts: Sequence[str]) -> str:
    """Sentences below a table."""
    words = " ".join(latex_escape(f"{text[:1].upper()}{text[1:]}".rstrip(".")) + "." for text in texts)
    return f"\\par\\smallskip{{\\footnotesize\\raggedright {words}\\par}}"


def latex(rows: Sequence[Row], parts: Sequence[Section] | None = None) -> str:
    """One table environment for each section with records; what was not run at all is left out.

    Args:
        rows: from :func:`leaderboards.rows.tables.leaderboard`.
        parts: their :func:`leaderboards.write.columns.sections`, where they are at hand.
    """
    parts = sections(rows) if parts is None else parts
    shown = [section for section in parts if section.kind not in ("holes", "stale")]
    return "\n\n".join([_HEAD, *map(_table, shown)]) + "\n"
