"""Tables of Markdown as their readers find their way in them: by the heads of columns."""

from __future__ import annotations


def rows(text: str) -> list[dict[str, str]]:
    """The rows of the first table of a text, cells by the head of their column."""
    lines = [line for line in text.splitlines() if line.lstrip().startswith("|")]
    heads, _, *others = ([cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines)
    return [dict(zip(heads, cells, strict=True)) for cells in others]
