"""What verbs print, in one visual language: headings, tables and prose that fit the terminal.

A table whose columns do not fit is wrapped within its cells, numbers never. Words with a slash (paths,
recipes, commands) are to be copied: prose never breaks them, a table only where it would be none otherwise.
Where that does not do either, its rows become paragraphs.
Colours are click's, which leaves them out where the output is no terminal.
"""

from __future__ import annotations

import math
import re
import shutil
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import click

#: Columns where there is no terminal, as of most terminals when they open.
USUAL = 80
#: Prose is no wider than this: longer lines are hard to read.
_PROSE = 100
_GAP = 2
#: How a table makes room, step by step: texts up to so many columns are not wrapped (verdicts, ranges of
#: numbers); words without a slash, and words with one, that are longer than this may be broken.
_STEPS = ((14, math.inf, math.inf), (9, math.inf, math.inf), (9, 20, math.inf), (9, 20, 26))
#: The last step of a table without a head, whose paragraphs would have no names.
_ANY = (9, 9, 9)

#: How a state is shown, whatever verb says it.
_STATES: dict[str, dict[str, Any]] = {
    name: {"fg": colour}
    for colour, names in (
        ("green", ("holds", "reproduced", "sound", "passed", "finished", "ready", "found")),
        ("red", ("failed", "does not hold", "broken", "unusable", "wrong", "missing")),
        ("yellow", ("undecided", "below", "above", "stale", "cured")),
    )
    for name in names
}


class Styled(NamedTuple):
    """Text with the style (``click.style``) of all its lines."""

    text: str
    style: dict[str, Any] = {}  # noqa: RUF012  never changed


def state(text: str) -> Styled:
    """A verdict or state in the colour that it has everywhere."""
    return Styled(text, _STATES.get(text.partition(":")[0], {}))


def columns() -> int:
    """Columns of the terminal (``COLUMNS`` where that is set), :data:`USUAL` where there is none."""
    return max(20, shutil.get_terminal_size((USUAL, 24)).columns)


def cells(text: str) -> int:
    """Columns that a text takes: two for each wide character (Chinese, Japanese, Korean, emoji)."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


#: What lines are broken at: all but the no-break space.
_SPACES = re.compile(r"[^\S\u00a0]+")


def wrapped(text: str, width: int, *, whole: bool = True) -> list[str]:
    """Lines of at most ``width`` columns, broken at spaces that may be broken at; longer words are cut,
    best behind a dash.

    ``whole``: words with a slash are not cut, and may be longer than a line.
    """
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for word in (
            piece for one in _SPACES.split(paragraph.strip()) for piece in _pieces(one, width, whole)
        ):
            longer = f"{line} {word}" if line else word
            if line and cells(longer) > width:
                lines.append(line)
                line = word
            else:
                line = longer
        lines.append(line)
    return lines


def _pieces(word: str, width: int, whole: bool) -> list[str]:
    if cells(word) <= width or (whole and "/" in word):
        return [word]
    pieces, piece = [], ""
    for character in word:
        if piece and cells(piece + character) > width:
            at = max(piece.rfind(mark) for mark in "/-_.") + 1
            at = at if at > len(piece) // 2 else len(piece)
            pieces.append(piece[:at])
            piece = piece[at:]
        piece += character
    return [*pieces, piece]


def prose(text: str, *, first: str = "", indent: str = "") -> str:
    """A paragraph; ``first`` stands before its first line, ``indent`` before the others."""
    width = min(columns(), _PROSE) - max(cells(first), cells(indent))
    lines = wrapped(text, max(width, 12))
    return "\n".join([first + lines[0], *(indent + line for line in lines[1:])])


def say_paragraph(text: str) -> None:
    """Print a paragraph of results."""
    click.echo(prose(text))


def remark(text: str, mark: str = "-") -> str:
    """One remark of several, behind a dash."""
    return prose(text, first=f"{mark} ", indent=" " * (len(mark) + 1))


def heading(text: str) -> str:
    """The title of what follows."""
    return click.style("\n".join(wrapped(text, columns())), bold=True)


def fitted_table(
    rows: Iterable[Sequence[str | Styled]],
    headers: Sequence[str],
    *,
    right: Iterable[int] = (),
    indent: str = "",
) -> str:
    """A table that fits the terminal; columns without any text are left out.

    Args:
        rows: cells as text, or styled.
        headers: one for each column; all of them empty for a table without a head.
        right: places of columns that are aligned to the right: numbers.
        indent: before every line.
    """
    body = [[cell if isinstance(cell, Styled) else Styled(str(cell)) for cell in row] for row in rows]
    kept = [i for i in range(len(headers)) if any(row[i].text for row in body)]
    if not kept:
        return indent + "none"
    body, names = [[row[i] for i in kept] for row in body], [headers[i] for i in kept]
    aligned = {place for place, i in enumerate(kept) if i in set(right)}
    room = columns() - cells(indent)
    for step in _STEPS if any(names) else (*_STEPS, _ANY):
        widths, whole = _widths(body, names, aligned, room, step), step[2] == math.inf
        if widths is not None:
            break
    if widths is None:
        return "\n".join(_paragraph(row, names, indent) for row in body)
    lines = (
        _line([Styled(n, {"bold": True}) for n in names], widths, aligned, indent, whole)
        if any(names)
        else []
    )
    for row in body:
        lines += _line(row, widths, aligned, indent, whole)
    return "\n".join(lines)


def _widths(
    body: Sequence[Sequence[Styled]],
    names: Sequence[str],
    right: set[int],
    room: int,
    step: tuple[int, float, float],
) -> list[int] | None:
    """Widths of the columns; None where not even numbers and the longest words fit beside one another."""
    short, plain, slashed = step
    texts = [[name, *(row[i].text for row in body)] for i, name in enumerate(names)]
    widths = [max(cells(line) for text in column for line in text.split("\n")) for column in texts]
    least = []
    for i, (column, width) in enumerate(zip(texts, widths, strict=True)):
        words = (min(cells(w), slashed if "/" in w else plain) for text in column for w in text.split())
        least.append(width if i in right else min(width, int(max([short, *words]))))
    room -= _GAP * (len(names) - 1)
    if sum(least) > room:
        return None
    while sum(widths) > room:
        spare = [w - m for w, m in zip(widths, least, strict=True)]
        widest = max((i for i, s in enumerate(spare) if s), key=lambda i: widths[i])
        widths[widest] -= 1
    return widths


def _line(
    row: Sequence[Styled], widths: Sequence[int], right: set[int], indent: str, whole: bool
) -> list[str]:
    parts = [wrapped(cell.text, width, whole=whole) for cell, width in zip(row, widths, strict=True)]
    lines = []
    for k in range(max(map(len, parts))):
        line = indent
        for i, (part, width, cell) in enumerate(zip(parts, widths, row, strict=True)):
            text = part[k] if k < len(part) else ""
            space = " " * (width - cells(text))
            shown = click.style(text, **cell.style) if text and cell.style else text
            line += (space + shown if i in right else shown + space) + " " * _GAP
        lines.append(line.rstrip())
    return lines


def _paragraph(row: Sequence[Styled], names: Sequence[str], indent: str) -> str:
    """A row whose cells do not fit beside one another: the first, below it the others with their names."""
    first, *others = row
    lines = [
        indent + click.style(line, **{"bold": True, **first.style})
        for line in wrapped(first.text or names[0], columns() - cells(indent))
    ]
    rest = "; ".join(
        f"{name} {' '.join(cell.text.split())}".lstrip()
        for name, cell in zip(names[1:], others, strict=True)
        if cell.text
    )
    return "\n".join([*lines, prose(rest, first=f"{indent}  ", indent=f"{indent}  ")] if rest else lines)
