"""Pieces of HTML that the sections of the page share: escaped text, tables that sort, buttons, intervals."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from html import escape as escape_always
from typing import Any

import orjson

_MARKUP = re.compile("[&<>\"']")


#: What could end a script, open a comment in it, or end a line of JavaScript.
_IN_SCRIPT = {c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}
_SCRIPT = re.compile(f"[{''.join(_IN_SCRIPT)}]")


def script_data(value: Any) -> str:
    """JSON that a ``<script>`` element may hold, whatever text is in it."""
    return _SCRIPT.sub(lambda match: _IN_SCRIPT[match.group()], orjson.dumps(value).decode())


def html_escape(text: str, quote: bool = True) -> str:
    """``html.escape``; most cells have nothing to escape, and are many."""
    return escape_always(text, quote) if _MARKUP.search(text) else text


def breakable(text: str) -> str:
    """Escaped text whose long words may be broken, so that no name makes a table wider than a phone."""
    return "".join(
        "<wbr>".join(html_escape(word[k : k + 12]) for k in range(0, len(word), 12))
        if len(word) > _LONG
        else html_escape(word)
        for word in _WORDS.split(text)
    )


#: Letters of a word that is not broken.
_LONG = 18
_WORDS = re.compile(r"(?<=[\s/-])")


def code_words(text: str) -> str:
    """Escaped text whose words in backquotes are code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html_escape(text))


def sort_value(value: float) -> str:
    """What a cell sorts by."""
    return "" if math.isnan(value) else f"{value:.6g}"


def table_head(names: Sequence[tuple[str, bool]], minor: Collection[str] = ()) -> str:
    """Head cells that sort; a name and whether its column holds numbers. Minor ones are hidden on phones."""
    cells = []
    for name, numeric in names:
        kind = ' data-kind="number"' if numeric else ""
        classes = " ".join([*(["r"] if numeric else []), *(["minor"] if name in minor else [])])
        kind += f' class="{classes}"' if classes else ""
        cells.append(
            f'<th scope="col" aria-sort="none"{kind}><button type="button">{html_escape(name)}</button></th>'
        )
    return f"<thead><tr>{''.join(cells)}</tr></thead>"


def framed(title: str, caption: str, head: str, body: Sequence[str]) -> str:
    """A table that scrolls within its frame."""
    label = html_escape(title, quote=True)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{label}"><table>'
        f"<caption><span>{caption}</span></caption>{head}<tbody>{''.join(body)}</tbody></table></div>"
    )


def part_of(text: str) -> str:
    """A table with its heading and notes, hidden where the filter leaves no row of it."""
    return f'<div class="part">{text}</div>'


def row_tag(verdict: str, words: Sequence[str], index: int | None = None) -> str:
    """The start of a row that is filtered by its words; with a number, every cell opens those facts."""
    text = html_escape(" ".join([*words, verdict]).lower(), quote=True)
    opens = "" if index is None else f' data-row="{index}"'
    return f'<tr class="v-{verdict.replace(" ", "-")}" data-verdict="{verdict}" data-text="{text}"{opens}>'


def opener(text: str, index: int) -> str:
    """A button that opens the provenance of a row; the text is escaped."""
    return f'<button type="button" data-row="{index}" aria-haspopup="dialog">{text}</button>'


def badge(verdict: str) -> str:
    """A verdict in its colour."""
    return f'<span class="badge v-{verdict.replace(" ", "-")}">{html_escape(verdict)}</span>'


def drawn_interval(
    low: float, value: float, high: float, limits: tuple[float, float], zero: float = math.nan
) -> str:
    """An interval as a small picture on a scale from one limit to the other, with a line at ``zero``.

    It says nothing that does not stand beside it as text, and is hidden from those who hear the page.
    """
    start, end = limits
    span = (end - start) or 1.0

    def at(x: float) -> str:
        return f"{100 * min(max((x - start) / span, 0.0), 1.0):.1f}"

    if math.isnan(value):
        return ""
    parts = ""
    if not math.isnan(zero):
        parts += f'<line class="zero" x1="{at(zero)}" x2="{at(zero)}" y1="0" y2="12"/>'
    if not math.isnan(low):
        parts += f'<line class="range" x1="{at(low)}" x2="{at(high)}" y1="6" y2="6"/>'
    parts += f'<line class="mean" x1="{at(value)}" x2="{at(value)}" y1="2" y2="10"/>'
    box = 'viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true"'
    return f'<svg class="interval" {box}>{parts}</svg>'
