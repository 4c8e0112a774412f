"""Typed configuration: frozen dataclasses, validated by pydantic, with errors a user can act on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import reprlib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform, get_origin, get_type_hints

import pydantic
from pydantic.dataclasses import dataclass as pydantic_dataclass

from harness.basics.errors import UserError, nearest
from harness.basics.files import read_toml

_T = TypeVar("_T")

#: How a wrong value is shown: whole, unless it is far too long.
_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = 100


@dataclasses.dataclass(frozen=True)
class Neutral:
    """Mark of an option at which value a table means what it meant before it had the option.

    ``sync_bn: Annotated[Literal["off", "all"], Neutral("off")] = "off"``: at that value the option stays out
    of every digest, and whoever compares recorded values takes it for the value of records that do not
    know the option. It need not be the default: an option whose default changes numbers gives new digests.
    """

    value: Any


@dataclasses.dataclass(frozen=True)
class Aside:
    """Mark of a value that describes and decides nothing: it never enters a digest."""


@dataclasses.dataclass(frozen=True)
class InferenceOnly:
    """Mark of a value of a method's ``Config`` that training never reads, such as a threshold of maps: set on
    the command line, it is part of what is scored and not of what was trained."""


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Mark of a value of a method's ``Config`` that decides what given weights predict, or what pseudo labels
    they give, such as a dilation or a scale of activation maps: weights are refused under another value.
    Where a ``Config`` marks none, all of its values count, but for those of the other two marks."""


@dataclasses.dataclass(frozen=True)
class TrainingOnly:
    """Mark of a value of a method's ``Config`` that is read where the network is built, or on the way to a
    prediction, and changes none of given weights, such as dropout. Values that only the loss reads need no
    mark."""


@dataclass_transform(frozen_default=True, kw_only_default=True)
def schema(cls: type[_T]) -> type[_T]:
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


def is_schema(cls: Any) -> bool:
    """Whether a class is a frozen dataclass that pydantic validates, as :func:`schema` makes them."""
    frozen = getattr(getattr(cls, "__dataclass_params__", None), "frozen", False)
    return isinstance(cls, type) and frozen and "__pydantic_fields__" in vars(cls)


def load(cls: type[_T], values: Mapping[str, Any], where: object) -> _T:
    """Build ``cls`` from plain values.

    Raises:
        UserError: on an unknown key (with the nearest valid one), or a value of the wrong type or range;
            on a number that is not finite, or an integer of more than 64 bits, at any depth.
    """
    for path, number in _unusable(values):  # also where a field takes any value
        raise UserError(
            f"key {'.'.join(path)!r}: {_UNUSABLE}, got {_brief.repr(number)}",
            where=where,
            remedy=_remedy(cls, path),
        )
    try:
        made = pydantic.TypeAdapter(cls).validate_python(dict(values))
    except pydantic.ValidationError as error:
        unknown = ("unexpected_keyword_argument", "extra_forbidden")
        found = error.errors()  # what is missing may stand there under a misspelt key
        first = next((one for one in found if one["type"] in unknown), found[0])
        path = [str(p) for p in first["loc"] if isinstance(p, int) or not _is_tag(p)]
        key = ".".join(path) or "(whole table)"
        if first["type"] in unknown:
            here = _keys_at(cls, path[:-1])
            within = [f"{k}.{path[-1]}" for k in here if path[-1] in _keys_at(cls, [*path[:-1], k])]
            remedy = nearest(within[0] if within else path[-1], within or here)
            raise UserError(f"unknown key {key!r}", where=where, remedy=remedy) from None
        message = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        if first["type"] in ("dataclass_type", "dict_type"):
            message = "a table is wanted"
        elif first["msg"].startswith("Input"):
            message = f"it should be {message}"
        unfit = getattr(first.get("ctx", {}).get("error"), "remedy", None)
        silent = first["type"] == "missing" or not path or unfit is not None
        shown = "" if silent else f", got {_brief.repr(first['input'])}"
        raise UserError(
            f"key {key!r}: {message}{shown}", where=where, remedy=unfit or _remedy(cls, path)
        ) from None
    for path in _booleans(values, made):  # pydantic takes true for 1, and the record would say 1
        key = ".".join(path)
        raise UserError(
            f"key {key!r}: a number is wanted, not true or false", where=where, remedy=_remedy(cls, path)
        )
    return made


def _booleans(values: Any, made: Any, path: tuple[str, ...] = ()) -> Iterator[list[str]]:
    """Keys of truth values that became numbers."""
    if isinstance(values, bool):
        if isinstance(made, int | float) and not isinstance(made, bool):
            yield list(path)
    elif isinstance(values, Mapping):
        for key, inner in values.items():
            after = made.get(key) if isinstance(made, Mapping) else getattr(made, str(key), None)
            yield from _booleans(inner, after, (*path, str(key)))
    elif isinstance(values, list | tuple) and isinstance(made, list | tuple):
        for index, (inner, after) in enumerate(zip(values, made, strict=False)):
            yield from _booleans(inner, after, (*path, str(index)))


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


def load_tables(cls: type[_T], file: Path) -> dict[str, _T]:
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
    """A short, stable hash of plain values or dataclasses: equal :func:`essential` content, equal digest."""
    text = json.dumps(essential(value), sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def file_name(text: str, longest: int = 80) -> str:
    """A text as the name of a file or folder, of ASCII letters, digits, ``.``, ``_`` and ``-``; one that had
    to be changed carries a hash of what it was."""
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", text)[:longest]
    return plain if plain == text else f"{plain}-{digest(text, 6)}"


# --- what values decide --------------------------------------------------------------------------------


def marks(cls: type, kind: type[_T]) -> dict[str, _T]:
    """The fields of a dataclass that are marked so (``Annotated[..., kind(...)]``), with their marks."""
    return {name: m for name, noted in _noted(cls).items() for m in noted if isinstance(m, kind)}


@cache
def _noted(cls: type) -> dict[str, tuple[Any, ...]]:
    """What the annotations of a dataclass's fields hold beside types, where they hold anything."""
    known = getattr(cls, "__pydantic_fields__", None)
    if known is not None:
        noted = {name: tuple(info.metadata) for name, info in known.items()}
    else:
        hints = get_type_hints(cls, include_extras=True)
        noted = {name: getattr(hints[name], "__metadata__", ()) for name in fields(cls)}
    return {name: own for name, own in noted.items() if own}


def essential(value: Any) -> Any:
    """Plain values as :func:`dump` gives them, without what decides nothing: values marked :class:`Aside`,
    and options at the value that they are marked :class:`Neutral` at."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        neutral, aside = marks(type(value), Neutral), marks(type(value), Aside)
        own = {k: essential(getattr(value, k)) for k in fields(type(value)) if k not in aside}
        return {k: v for k, v in own.items() if k not in neutral or not same(v, essential(neutral[k].value))}
    if isinstance(value, Mapping):
        return {str(k): essential(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [essential(v) for v in value]
    return dump(value)


def same(one: Any, other: Any) -> bool:
    """Whether two plain values are equal; ``False`` is not 0, but 1 is 1.0."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def neutral_values(value: Any) -> dict[str, Any]:
    """Dotted key to neutral value of every marked option in a dataclass and the tables within it."""
    found: dict[str, Any] = {}
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return found
    for name in fields(type(value)):
        found |= {f"{name}.{k}": v for k, v in neutral_values(getattr(value, name)).items()}
    plain = {name: mark.value for name, mark in marks(type(value), Neutral).items()}
    return found | flatten(dump(plain))


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key to value of nested tables."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping)
        found |= flatten(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return found


def differing(then: Mapping[str, Any], now: Mapping[str, Any], neutral: Mapping[str, Any]) -> list[str]:
    """Dotted keys of ``now`` whose value in ``then`` is another one.

    An option that ``then`` does not know had its neutral value; a key that it does not know and that is no
    such option is left alone, as nothing can be said of it.

    Args:
        then: recorded values, flat (:func:`flatten`).
        now: present values, flat.
        neutral: of the present values' options (:func:`neutral_values`).
    """
    return list(_differing(then, now, neutral))


def _differing(then: Mapping[str, Any], now: Mapping[str, Any], neutral: Mapping[str, Any]) -> Iterator[str]:
    for key, value in now.items():
        if key in then:
            changed = then[key] != value
        elif key in neutral:
            changed = not same(value, neutral[key])
        else:  # a table that was none then, or is none now
            parents = (key.rsplit(".", i)[0] for i in range(1, key.count(".") + 1))
            changed = any(p in then for p in parents)
            changed = changed or (value is None and any(k.startswith(f"{key}.") for k in then))
        if changed:
            yield key


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


def _remedy(cls: type, path: list[str]) -> str | None:
    """What a value at a key is, and one that is legal; for a table, its keys."""
    while path and not (path[-1].isidentifier() and path[-1] in _keys_at(cls, path[:-1])):
        path = path[:-1]  # a place in a list, or a key of a table of any keys
    if not path:
        return None
    inner = _descend(cls, path[:-1])
    info = inner.__pydantic_fields__[path[-1]]
    if get_origin(info.annotation) not in (tuple, list) and (inside := _keys_at(cls, path)):
        return f"set what is inside: {', '.join(f'{path[-1]}.{k}' for k in inside)}"
    legal = ""
    if isinstance(info.default, bool | int | float | str | tuple) and info.default not in ("", ()):
        legal = f"For instance {path[-1]} = {json.dumps(dump(info.default))}"
    return " ".join(filter(None, [documentation(inner).get(path[-1], ""), legal if len(legal) < 100 else ""]))
