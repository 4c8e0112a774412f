"""Text in figures as it is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def as_written(figure: Figure) -> None:
    """Print the dollar signs of names and titles as such: between two of them matplotlib reads formulas,
    and stops at one that it cannot read. Ticks of logarithmic axes keep theirs."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if isinstance(text, Text) and "\\mathdefault" not in text.get_text():
            text.set_parse_math(False)
