"""Names of rows: ``agmm/mini-scribble (config.confidence=0.8, crop=48)`` as tables print and verbs read them.

What stands in brackets are the values that were given with ``--set``, or the name that a configuration was
given. Commas part values only outside of quotes and brackets, here and in the values of a grid.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from harness.basics.errors import UserError
from harness.basics.schema import digest
from harness.recipes.resolving import parse_overrides, value_text

_PAIRS = {"(": ")", "[": "]", "{": "}"}
_ROW = re.compile(r"(?P<name>[^\s()]+/[^\s()]+)\s+\((?P<inside>.+)\)\s*", re.DOTALL)


def values_text(overrides: Mapping[str, Any]) -> str:
    """Overrides as they stand in the name of a row, in the order of their keys."""
    return ", ".join(f"{key}={_shown(value)}" for key, value in sorted(overrides.items()))


def _shown(value: Any) -> str:
    text = value_text(value)
    try:
        return text if comma_parts(text) == [text] else json.dumps(text)
    except UserError:  # a bracket or quote that nothing closes
        return json.dumps(text)


def row_name(name: str, overrides: Mapping[str, Any]) -> str:
    """The name of a row."""
    return f"{name} ({values_text(overrides)})" if overrides else name


def row_stem(name: str, overrides: Mapping[str, Any]) -> str:
    """The beginning of a file's name for a row: short, and its own."""
    stem = name.replace("/", "-")
    return f"{stem}-{digest(dict(overrides))[:8]}" if overrides else stem


def row_parts(target: str) -> tuple[str, str] | None:
    """The recipe and what stands in brackets behind it; None where a target is no such name."""
    match = _ROW.fullmatch(target)
    return (match["name"], match["inside"]) if match else None


def row_overrides(inside: str) -> dict[str, Any] | None:
    """The values that stand in brackets; None where it is a name that somebody gave, and no values."""
    try:
        parts = comma_parts(inside)
    except UserError:
        return None
    if not all(re.match(r"[\w.-]+=", part) for part in parts):
        return None
    return parse_overrides(parts)


def comma_parts(text: str) -> list[str]:
    """The parts of a text between commas outside of quotes and brackets, without the space around them.

    Raises:
        UserError: a quote or a bracket is opened and not closed, or closed and not opened.
    """
    parts, closing, quote, begin, i = [], [], "", 0, 0
    while i < len(text):
        letter = text[i]
        if quote:
            i += letter == "\\" and quote == '"'
            quote = "" if letter == quote else quote
        elif letter in "\"'" and (not text[begin:i].strip(" =") or text[i - 1] in " =,([{:"):
            quote = letter  # not an apostrophe within a word
        elif letter in _PAIRS:
            closing.append(_PAIRS[letter])
        elif letter in _PAIRS.values():
            if not closing or closing.pop() != letter:
                raise UserError(f"{letter} closes nothing", where=text, remedy="quote the value")
        elif letter == "," and not closing:
            parts.append(text[begin:i].strip())
            begin = i + 1
        i += 1
    if quote or closing:
        raise UserError(f"{quote or closing[-1]} is missing", where=text, remedy="close what was opened")
    return [*parts, text[begin:].strip()]
