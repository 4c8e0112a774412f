"""What a verb was given as a recipe: the name of one, or a file of the user's own that changes or writes one.

A file comes to a recipe's name and values on top of it, as if each had been given with ``--set``, and to a
name for the whole. So the values travel with a trial and stand in its record: the file is not needed again,
and a changed file is another configuration.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.basics.errors import UserError, nearest
from harness.basics.files import expanded, read_toml
from harness.basics.schema import fields
from harness.basics.text import cleaned, one_line
from harness.recipes import recipe_files
from harness.recipes.resolving import expand, flattened, inherited, merged, recipe_names, resolve
from harness.recipes.row_names import row_overrides, row_parts
from harness.recipes.specs import Recipe

_ENDING = ".toml"


@dataclass(frozen=True)
class Given:
    """A recipe with values on top of it.

    Attributes:
        name: of the recipe, ``<method>/<table>``.
        overrides: dotted key to value: those of the file, and those of the command line over them.
        called: what tables call it; empty for the recipe as it stands.
        origins: dotted key to the file and table that a value stands in.
    """

    name: str
    overrides: Mapping[str, Any]
    called: str = ""
    origins: Mapping[str, str] = field(default_factory=dict)


#: Rows of a recipe that somebody has named, by what stands in brackets: that name, and their values; see
#: :func:`harness.records.called.called_rows`.
Called = Callable[[str], Mapping[str, tuple[str, Mapping[str, Any]]]]


def is_recipe_file(target: str | Path) -> bool:
    """Whether a target is the path of a TOML file, with ``:table`` behind it or not."""
    return _parts(str(target))[0].lower().endswith(_ENDING)


def given(
    target: str | Path, overrides: Mapping[str, Any] | None = None, called: Called | None = None
) -> list[Given]:
    """What a target names: a recipe, a pattern of them, a suite, a row of a table, or the tables of a file.

    Args:
        target: as on the command line; ``mine.toml`` for all tables of a file, ``mine.toml:table`` for one,
            or for those that a pattern fits; ``METHOD/RECIPE (crop=48, ...)`` for a row by its name.
        overrides: dotted key to value, over those of the file.
        called: of a record store, so that ``METHOD/RECIPE (mine)`` names a row too.

    Raises:
        UserError: it names nothing, or what the file says is no recipe; the file is named.
    """
    overrides = dict(overrides or {})
    if (row := row_parts(str(target))) is not None:
        return [_of_row(*row, overrides, called)]
    if not is_recipe_file(target):
        return [Given(name, overrides) for name in expand([str(target)])]
    path, chosen = _parts(str(target))
    file = expanded(path)
    if not file.is_file():
        raise UserError("there is no such recipe file", where=file, remedy="check the path")
    tables = _tables(file)
    public = [name for name in tables if not name.startswith("_")]
    names = public if not chosen else [n for n in public if n == chosen or fnmatch.fnmatchcase(n, chosen)]
    if not names:
        remedy = nearest(chosen, public) if public else "write one: extends = 'METHOD/RECIPE' and values"
        raise UserError(f"no recipe {chosen!r}" if chosen else "no recipe", where=file, remedy=remedy)
    return [_read(file, tables, name, overrides) for name in names]


def one(
    target: str | Path, overrides: Mapping[str, Any] | None = None, called: Called | None = None
) -> Given:
    """As :func:`given`, for a verb that takes a single recipe; a name is not looked up.

    Raises:
        UserError: likewise, or a file has several recipes.
    """
    if (row := row_parts(str(target))) is not None:
        return _of_row(*row, overrides or {}, called)
    if not is_recipe_file(target):
        return Given(str(target), dict(overrides or {}))
    found = given(target, overrides)
    if len(found) > 1:
        file = _parts(str(target))[0]
        names = [name for name in _tables(expanded(file)) if not name.startswith("_")]
        raise UserError(
            f"{len(found)} recipes, of which one is needed",
            where=file,
            remedy=f"name it, as in {file}:{names[0]}; there are {', '.join(names[:8])}",
        )
    return found[0]


def _of_row(name: str, inside: str, overrides: Mapping[str, Any], called: Called | None) -> Given:
    """What a row of a table was trained with, by its name; values of the command line over its own."""
    values: Mapping[str, Any] | None = row_overrides(inside)
    label = ""
    if called is not None and (values is None or not _legal(name, values)):
        known = called(name)
        if (found := _named(inside, known)) is not None:
            label, values = found
        elif values is None:
            asked, rows = f"{name} ({inside})", [f"{name} ({text})" for text in known]
            remedy = nearest(asked, rows) if rows else f"write its values, as in '{name} (crop=48)'"
            raise UserError(f"no row is called {asked!r}", where="recipe name", remedy=remedy)
    if values is None:
        raise UserError(
            f"{inside!r} is what a configuration was called, and does not say its values",
            where=f"{name} ({inside})",
            remedy=f"write them, as in '{name} (crop=48)', or name the folder of its record",
        )
    own = {k: v for k, v in values.items() if not _replaced(k, overrides)}
    return Given(name, {**own, **overrides}, "" if overrides else label)


def _legal(name: str, values: Mapping[str, Any]) -> bool:
    try:
        resolve(name, values)
    except UserError:
        return False
    return True


def _named(
    inside: str, known: Mapping[str, tuple[str, Mapping[str, Any]]]
) -> tuple[str, Mapping[str, Any]] | None:
    """The row that is called so, with what its evaluation alone has behind the name."""
    if inside in known:
        return known[inside]
    for text, (label, values) in known.items():
        if inside.startswith(f"{text}, ") and (more := row_overrides(inside[len(text) + 2 :])) is not None:
            return label, {**values, **more}
    return None


def _parts(target: str) -> tuple[str, str]:
    """Path and table."""
    path, colon, table = target.rpartition(":")
    return (path, table) if colon and path.lower().endswith(_ENDING) else (target, "")


def _tables(file: Path) -> dict[str, Any]:
    """The recipes of a file by table; of one whose values stand in no table, by the empty name."""
    values = read_toml(file)
    if (
        any(not isinstance(value, Mapping) for value in values.values())
        or fields(Recipe).keys() & values.keys()
    ):
        return {"": values}
    return values


def _read(file: Path, tables: Mapping[str, Any], name: str, overrides: Mapping[str, Any]) -> Given:
    where = f"{file} [{name}]" if name else str(file)
    called = one_line(f"{file.stem}:{name}" if name else file.stem)
    if len(called) > 60:
        raise UserError(
            "the name of a configuration has 60 characters at most", where=where, remedy="call it otherwise"
        )
    base, values = _based(_layers(tables, name, where), where)
    own = {key: cleaned(value) for key, value in flattened(values).items()}
    whole = {**{k: v for k, v in own.items() if not _replaced(k, overrides)}, **overrides}
    try:
        resolve(base, whole)
    except UserError as error:
        try:
            resolve(base, own)
        except UserError as inside:
            raise UserError(inside.problem, where=where, remedy=inside.remedy) from None
        raise error from None
    origins = {key: where for key in whole if key not in overrides}
    return Given(base, whole, called if own else "", origins)


def _replaced(key: str, overrides: Mapping[str, Any]) -> bool:
    """Whether the command line gives a value, its whole table, or the length of a schedule otherwise."""
    lengths = {"schedule.steps", "schedule.epochs"}
    if key in lengths and any(overrides.get(other) is not None for other in lengths):
        return True
    return any(key == k or key.startswith(f"{k}.") for k in overrides)


def _layers(
    tables: Mapping[str, Any], name: str, where: str, seen: Sequence[str] = ()
) -> list[tuple[str, Mapping[str, Any]]]:
    """What a table consists of, the last above all others: packaged tables by name, own values without."""
    if name in seen:
        raise UserError(
            f"recipe {name!r} extends itself: {' -> '.join((*seen, name))}",
            where=where,
            remedy="let one of them extend a recipe of wsss list recipes",
        )
    values = recipe_files.checked_table(tables[name], name, where)
    parents = values.pop("extends", [])
    layers: list[tuple[str, Mapping[str, Any]]] = []
    for parent in [parents] if isinstance(parents, str) else parents:
        if parent in tables and parent:
            layers += _layers(tables, parent, where, (*seen, name))
        elif "/" in parent and not is_recipe_file(parent):
            layers.append((parent, {}))
        else:
            known = [*(t for t in tables if t), *recipe_names()]
            raise UserError(f"extends: no recipe {parent!r}", where=where, remedy=nearest(parent, known))
    return [*layers, ("", values)]


def _based(layers: Sequence[tuple[str, Mapping[str, Any]]], where: str) -> tuple[str, dict[str, Any]]:
    """The recipe that values stand on top of, and the values. A file that starts from no recipe, or from
    shared tables, stands on a recipe without values of its method."""
    named = [name for name, _ in layers if name]
    if len(named) == 1 and layers[0][0] and named[0] in recipe_names():
        base, above = named[0], layers[1:]
    else:
        base, above = "", layers
    values: dict[str, Any] = {}
    for name, own in above:
        values = merged(values, inherited(name, where) if name else own)
    method = values.get("method")
    if base:
        if method is not None and method != recipe_files.method_of(base):
            raise UserError(
                f"method {method!r}, and {base} is of another one",
                where=where,
                remedy="leave it out, or extend a recipe of that method",
            )
        return base, {key: value for key, value in values.items() if key != "method"}
    stems = {recipe_files.method_of(name) for name in named if not name.startswith("_")}
    if method is None and len(stems) != 1:
        raise UserError(
            "it does not say which recipe it changes",
            where=where,
            remedy="add extends = 'METHOD/RECIPE', or method and all values (wsss show METHOD/RECIPE)",
        )
    method = next(iter(stems)) if method is None else method
    return recipe_files.blank(str(method)), {k: v for k, v in values.items() if k != "method"}
