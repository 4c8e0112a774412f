"""Text from outside, cleaned once where it is read: what is printed shows what is there, and nothing more.

A recipe, a data set's description, a record of somebody else, a file's name: each may hold characters that
move the cursor, turn the direction of writing, or cannot be seen or encoded. None of them means anything in
a name or a sentence, and a terminal, a table or a page can be made to show something else by them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

#: Longest text that is kept of one value; a title, a note and a path are far shorter.
LONGEST_TEXT = 20_000

# Escape sequences of terminals (ECMA-48): CSI, strings such as OSC up to their end, and two-character ones.
_SEQUENCES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|(?:\x1b[P\]X^_]|[\x90\x9d\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
)
_NEWLINES = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
# Control characters but tab and newline; formatting ones (soft hyphen, zero-width, direction, tags,
# byte-order marks, variation of invisible ones); noncharacters.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5"
    "\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    "\ufdd0-\ufdef\ufffe\uffff\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff]"
)
_SURROGATES = re.compile("[\ud800-\udfff]")


def clean(text: str) -> str:
    """Text without characters that are no part of it; line breaks become ``\\n``.

    Escape sequences of terminals, control and invisible formatting characters (direction marks, zero-width
    ones) are left out, half surrogate pairs become U+FFFD, and more than :data:`LONGEST_TEXT`
    characters are cut.
    """
    if text.isascii() and text.isprintable() and len(text) <= LONGEST_TEXT:
        return text
    text = _NEWLINES.sub("\n", _SEQUENCES.sub("", text))
    text = _SURROGATES.sub("\ufffd", _INVISIBLE.sub("", text))
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"


def one_line(text: str, longest: int = 300) -> str:
    """:func:`clean` text on one line, for a name, a title or a table's cell."""
    text = " ".join(clean(text).split())
    return text if len(text) <= longest else text[: longest - 1] + "…"


def cleaned(value: Any) -> Any:
    """Plain values with every text in them :func:`clean`, keys included."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Mapping):
        return {clean(k) if isinstance(k, str) else k: cleaned(v) for k, v in value.items()}
    if isinstance(value, list):
        return [cleaned(v) for v in value]
    return value


def needs_cleaning(data: bytes) -> bool:
    """Whether JSON may hold text that :func:`clean` changes; quick, for many files."""
    return b"\\" in data or not data.isascii() or b"\x7f" in data or _OVERLONG.search(data) is not None


_OVERLONG = re.compile(rb'[^"]{%d}' % LONGEST_TEXT)


def csv_cell(value: Any) -> Any:
    """A cell that a spreadsheet shows as text and does not compute: ``'=1+1`` for ``=1+1``.

    Numbers, also those written as text, stay as they are.
    """
    if isinstance(value, str) and value[:1] in tuple("=+-@\t\r\n|") and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value


_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")


def duration(seconds: float) -> str:
    """As in ``0:07``, ``12:34``, ``1:02:34`` or ``3d 04h``."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24}d {hours % 24:02d}h"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
