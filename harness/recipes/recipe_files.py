"""The TOML files that recipes stand in, from every package that brings some.

A file is known by its stem, so each stem has one file. Where two packages bring a stem, or a file cannot be
read, its recipes alone cannot be used; all others can.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from harness.basics.errors import UserError, nearest
from harness.basics.files import read_toml
from harness.basics.registry import FORGET, METHODS, RECIPE_PACKAGES, toml_files


@cache
def files() -> dict[str, dict[Path, str]]:
    """By stem, its files (one, if all is well) and the recipe package that each belongs to.

    A package that cannot be imported has none; see :func:`problems`.
    """
    found: dict[str, dict[Path, str]] = {}
    for name, file in toml_files(RECIPE_PACKAGES):
        found.setdefault(file.stem, {}).setdefault(file, name)
    return found


@cache
def tables(stem: str) -> dict[str, Any]:
    """The tables of a stem.

    Raises:
        UserError: the file cannot be read; or two packages bring it, and both files are named.
    """
    places = list(files()[stem])
    if len(places) > 1:
        raise UserError(
            f"two recipe files have the name {stem!r}",
            where=" and ".join(map(str, places)),
            remedy="rename one of them (after its method; one that others inherit from after its package, "
            "such as _mypackage.toml), or uninstall the package that you do not need",
        )
    return read_toml(places[0])


FORGET.extend((files.cache_clear, tables.cache_clear))


def names() -> list[str]:
    """All recipe names, ``<method>/<table>``, those of a stem with two files included; tables and files
    that start with ``_`` are for inheritance only."""
    found: dict[str, None] = {}
    for stem, places in sorted(files().items()):
        if stem.startswith("_"):
            continue
        for file in places:
            try:
                inside = tables(stem) if len(places) == 1 else read_toml(file)
            except UserError:
                continue
            found |= dict.fromkeys(
                f"{stem}/{recipe_table}" for recipe_table in inside if not recipe_table.startswith("_")
            )
    return list(found)


def recipe_table(name: str, child: str) -> dict[str, Any]:
    """The values of a table as its file has them.

    Args:
        name: ``<stem>/<table>``.
        child: the table that inherits from it, for the message.

    Raises:
        UserError: there is no such table, its file cannot be used, or it is not a table of recipe values.
    """
    stem, _, own = name.partition("/")
    if is_blank(name):
        return {}
    if stem not in files() or own not in tables(stem):
        options = [f"{s}/{t}" for s in files() if s not in problems() for t in tables(s)]
        raise UserError(f"recipe table {name!r} does not exist", where=child, remedy=nearest(name, options))
    return checked_table(tables(stem)[own], own, f"{file_of(stem)} [{own}]")


def checked_table(values: Any, own: str, where: str) -> dict[str, Any]:
    """The values of a table, if they are those of a recipe as far as its own keys go.

    Args:
        values: what TOML holds under the name.
        own: the name.
        where: file and table, for the message.

    Raises:
        UserError: it is no table, or names of parents or suites are none.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{own!r} is no table", where=where, remedy=f"write the recipe below [{own}]")
    for key, wanted in (("extends", (str, list)), ("suites", (list,)), ("sources", (dict,))):
        value = values.get(key, wanted[0]())
        texts = value if isinstance(value, list) else []
        if not isinstance(value, wanted) or not all(isinstance(text, str) for text in texts):
            what = {"extends": "a name or a list of names", "suites": "a list of names"}.get(key, "a table")
            raise UserError(
                f"key {key!r}: {what} is needed, got {value!r}",
                where=where,
                remedy="write it so, or leave it out",
            )
    return dict(values)


def method_of(name: str) -> str:
    """The method of a recipe: that which its table names, or a table of the same file that it extends; else
    the method that its file is called after; else that of the first table it extends which has one.

    So a file of any name may hold recipes of any method. Empty where nothing names one.
    """
    return _method_of(name, ())


def _method_of(name: str, seen: tuple[str, ...]) -> str:
    if name in seen:
        return ""  # told where values are inherited
    stem = name.partition("/")[0]
    table = recipe_table(name, child=seen[-1] if seen else "recipe name")
    if isinstance(named := table.get("method"), str):
        return named
    parents = _parents(stem, table)
    own = [p for p in parents if p.partition("/")[0] == stem]
    found = [m for p in own if (m := _method_of(p, (*seen, name)))]
    if found or stem in METHODS:
        return found[-1] if found else stem
    return next((m for p in parents if p not in own and (m := _method_of(p, (*seen, name)))), "")


def _parents(stem: str, table: Mapping[str, Any]) -> list[str]:
    """Whole names of what a table of a file extends."""
    given = table.get("extends", [])
    return [p if "/" in p else f"{stem}/{p}" for p in ([given] if isinstance(given, str) else given)]


def borrowed_method(name: str) -> str:
    """What a reader must know of a recipe that has the method of another file's recipe without saying so.

    That is meant where a file gathers recipes of several methods, and a mistake where it is called after a
    method that nobody has registered. Empty for all others.
    """
    stem = name.partition("/")[0]
    if is_blank(name) or stem in METHODS or _says_method(name, ()):
        return ""
    method = method_of(name)
    return (
        f"{name} trains {method}, the method of the recipe that it extends, for there is no method {stem!r}; "
        f"if that is meant, write method = {method!r}, else register {stem!r} and install its package again"
    )


def _says_method(name: str, seen: tuple[str, ...]) -> bool:
    if name in seen:
        return False
    stem = name.partition("/")[0]
    table = recipe_table(name, child=seen[-1] if seen else "recipe name")
    own = [p for p in _parents(stem, table) if p.partition("/")[0] == stem]
    return isinstance(table.get("method"), str) or any(_says_method(p, (*seen, name)) for p in own)


#: Table of the recipe without values that every method has, under which files of users stand.
_BLANK = "file"


def blank(method: str) -> str:
    """The recipe of a method that has no value: what a file of a user's own that extends none stands on."""
    return f"{method}/{_BLANK}"


def is_blank(name: str) -> bool:
    """Whether a name is that of a recipe without values, of a method that there is."""
    stem, _, own = name.partition("/")
    return own == _BLANK and stem in METHODS and _BLANK not in (tables(stem) if stem in files() else ())


def file_of(stem: str) -> Path:
    """The file of a stem; of a method without recipes, what it would be called."""
    return next(iter(files().get(stem, ())), Path(f"{stem}.toml"))


def problems() -> dict[str, UserError]:
    """Recipe packages and files that cannot be used, by name, and why."""
    found = {f"recipe package {name}": error for name, error in RECIPE_PACKAGES.problems().items()}
    for stem in files():
        try:
            tables(stem)
        except UserError as error:
            found[stem] = error
    return found
