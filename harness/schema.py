"""Typed configuration: frozen dataclasses, validated by pydantic, with errors a user can act on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

import pydantic
from pydantic.dataclasses import dataclass as pydantic_dataclass

from harness.errors import UserError, nearest
from harness.files import read_toml

T = TypeVar("T")

#: How a wrong value is shown: whole, unless it is far too long.
_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = 100


@dataclass_transform(frozen_default=True, kw_only_default=True)
def schema(cls: type[T]) -> type[T]:
    """Class decorator: a frozen keyword-only dataclass that refuses unknown keys.

    The docstring below a field is its documentation, shown by ``wsss show``; end it with the source
    of the default in square brackets (paper, equation, table, file of the authors' code, or
    ``[our choice]``).
    """
    config = pydantic.ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,  # no record can hold them, and no training survives them
    )
    made: Any = pydantic_dataclass(frozen=True, kw_only=True, config=config)(cls)
    for base in cls.__mro__[1:]:  # pydantic reads the docstrings of a class's own source only
        for name, info in vars(base).get("__pydantic_fields__", {}).items():
            own = made.__pydantic_fields__[name]
            own.description = own.description or info.description
    return made


def load(cls: type[T], values: Mapping[str, Any], where: object) -> T:
    """Build ``cls`` from plain values.

    Raises:
        UserError: on an unknown key (with the nearest valid one), or a value of the wrong type or range;
            on a number that is not finite, or an integer of more than 64 bits, at any depth.
    """
    for path, number in _unusable(values):  # also where a field takes any value
        raise UserError(
            f"key {'.'.join(path)!r}: {_UNUSABLE}, got {_brief.repr(number)}",
            where=where,
            remedy=_document(cls, path),
        )
    try:
        return pydantic.TypeAdapter(cls).validate_python(dict(values))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        path = [str(p) for p in first["loc"] if isinstance(p, int) or not _is_tag(p)]
        key = ".".join(path) or "(whole table)"
        if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            remedy = nearest(path[-1], _keys_at(cls, path[:-1]))
            raise UserError(f"unknown key {key!r}", where=where, remedy=remedy) from None
        message = first["msg"].removeprefix("Value error, ")
        shown = "" if first["type"] == "missing" else f", got {_brief.repr(first['input'])}"
        raise UserError(f"key {key!r}: {message}{shown}", where=where, remedy=_document(cls, path)) from None


_UNUSABLE = "a number must be finite and fit into 64 bits"


def _unusable(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[list[str], float]]:
    """Numbers among plain values that nothing can compute with or record, with their keys."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _unusable(inner, (*path, str(key)))
    elif isinstance(value, list | tuple | set | frozenset):
        for index, inner in enumerate(value):
            yield from _unusable(inner, (*path, str(index)))
    elif isinstance(value, float):
        if not math.isfinite(value):
            yield list(path), value
    elif isinstance(value, int) and value.bit_length() > 63:
        yield list(path), value


def load_tables(cls: type[T], file: Path) -> dict[str, T]:
    """Every table of a TOML file as a ``cls``, by name; ``extends`` takes over another table's values."""
    tables = read_toml(file)

    def inherited(name: str) -> dict[str, Any]:
        own = dict(tables[name])
        parent = own.pop("extends", None)
        return {**(inherited(parent) if parent else {}), **own}

    return {name: load(cls, inherited(name), f"{file} [{name}]") for name in tables}


def _is_tag(part: str) -> bool:
    """Whether pydantic names a union's member here, and not a key."""
    return part in ("int", "float", "str", "bool") or not part.isidentifier()


def fields(cls: type) -> dict[str, dataclasses.Field]:
    """The dataclass fields by name."""
    return {f.name: f for f in dataclasses.fields(cls)}


def documentation(cls: type) -> dict[str, str]:
    """The docstring of every field, on one line each."""
    described = getattr(cls, "__pydantic_fields__", {})
    return {name: " ".join((info.description or "").split()) for name, info in described.items()}


def dump(value: Any) -> Any:
    """Plain JSON-ready values, nested dataclasses included."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: dump(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): dump(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        items = sorted(value) if isinstance(value, (set, frozenset)) else value
        return [dump(v) for v in items]
    return value


def digest(value: Any, length: int = 12) -> str:
    """A short, stable hash of plain values or dataclasses: equal content, equal digest."""
    text = json.dumps(dump(value), sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def _descend(cls: Any, path: list[str]) -> Any:
    for name in path:
        if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
            return cls
        info = getattr(cls, "__pydantic_fields__", {}).get(name)
        if info is None:
            continue  # an index into a list, or a union member's tag
        cls = info.annotation
        candidates = [cls, *getattr(cls, "__args__", ())]
        cls = next((c for c in candidates if isinstance(c, type) and dataclasses.is_dataclass(c)), cls)
    return cls


def _keys_at(cls: type, path: list[str]) -> list[str]:
    inner = _descend(cls, path)
    return list(fields(inner)) if isinstance(inner, type) and dataclasses.is_dataclass(inner) else []


def _document(cls: type, path: list[str]) -> str | None:
    inner = _descend(cls, path[:-1]) if path else cls
    if isinstance(inner, type) and dataclasses.is_dataclass(inner):
        return documentation(inner).get(path[-1]) or None
    return None
