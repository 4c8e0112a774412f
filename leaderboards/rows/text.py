"""Figures and tables as text, the same in every output."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from harness.basics.text import csv_cell

if TYPE_CHECKING:
    from leaderboards.rows.row import Row

#: Stands where there is no figure.
DASH = "–"


def number(value: float, digits: int = 2, sign: bool = False) -> str:
    """A figure in a table, a dash for NaN."""
    if math.isnan(value):
        return DASH
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def mean_text(row: Row) -> str:
    """``57.32 ± 0.81``, ``57.32 (one seed)``, or a dash."""
    return spread_text(row.n, row.mean, row.std)


def spread_text(n: int, mean: float, std: float) -> str:
    """As :func:`mean_text`, of any figure over n seeds."""
    if n == 0 or math.isnan(mean):
        return DASH
    return f"{mean:.2f} (one seed)" if n == 1 else f"{mean:.2f} ± {std:.2f}"


def time_text(seconds: float) -> str:
    """``47 s``, ``12.3 min`` or ``5.2 h``."""
    if math.isnan(seconds):
        return DASH
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def memory_text(mib: float) -> str:
    """``412 MiB`` or ``11.3 GiB``."""
    if math.isnan(mib):
        return DASH
    return f"{mib:.0f} MiB" if mib < 2048 else f"{mib / 1024:.1f} GiB"


def escaped(text: str) -> str:
    """Text that keeps a Markdown table whole and makes no link, picture or HTML in it."""
    if _MARKDOWN.search(text) is None:
        return text
    text = text.replace("|", "\\|").replace("\n", " ").replace("](", "]\\(").replace("][", "]\\[")
    return _TAG.sub("&lt;", text)


_MARKDOWN = re.compile(r"[|\n<]|\]\(|\]\[")
#: Opens an element, a comment or an automatic link; ``< 0.01`` does not.
_TAG = re.compile(r"<(?=[A-Za-z/!?])")


def pipe_table(lines: Iterable[Sequence[str]], names: Sequence[str], align: Sequence[str]) -> str:
    """A Markdown table; ``align`` is ``left`` or ``right`` for each column."""
    columns = [[str(cell) for cell in column] for column in zip(names, *lines, strict=True)]
    rule, padded = [], []
    for column, side in zip(columns, align, strict=True):
        width = max(3, *map(len, column))
        place = str.rjust if side == "right" else str.ljust
        padded.append([place(cell, width) for cell in column])
        rule.append("-" * (width + 1) + ":" if side == "right" else ":" + "-" * (width + 1))
    head, *body = ("| " + " | ".join(row) + " |" for row in zip(*padded, strict=True))
    return "\n".join([head, "|" + "|".join(rule) + "|", *body])


def csv_table(lines: Iterable[Mapping[str, Any]], names: Sequence[str]) -> str:
    """A CSV table with at least two columns: six digits after the point, nothing for NaN."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(names)
    pick = itemgetter(*names)
    writer.writerows(
        [("" if v != v else f"{v:.6f}") if isinstance(v, float) else v for v in map(csv_cell, pick(line))]
        for line in lines
    )
    return stream.getvalue()
