"""Recipes: one training run as a paper describes it, as typed data with a digest.

A recipe is a TOML table beside its method (``methods/recipes/<method>.toml``), addressed as
``<method>/<table>``. ``extends`` inherits from another table; unknown keys are errors that name the
nearest valid one; every effective value knows where it comes from (:class:`Resolved`).
"""

from __future__ import annotations

import fnmatch
import json
import shlex
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import Any

from harness.basics.errors import UnknownRecipeError, UserError, nearest
from harness.basics.files import expanded, read_toml
from harness.basics.registry import DATASETS, METHODS
from harness.basics.schema import (
    InferenceOnly,
    digest,
    documentation,
    dump,
    essential,
    fields,
    is_schema,
    load,
    marks,
    neutral_values,
)
from harness.basics.text import cleaned
from harness.recipes import recipe_files
from harness.recipes.declared import declared
from harness.recipes.fitting import OWN, fitted
from harness.recipes.names import check_network, check_protocol
from harness.recipes.specs import EvaluationSpec, Recipe, SelectionSpec

#: Fields that cannot change the trained network and stay out of the training digest.
_NOT_TRAINING = ("evaluation", "overlap", "suites", "sources", "remarks")


@dataclass(frozen=True)
class Resolved:
    """A validated recipe under its name, with the origin of every value.

    Attributes:
        name: ``<method>/<table>``.
        recipe: the validated recipe, with the validated ``Config`` of its method.
        origins: dotted key -> ``default``, ``file``, ``inherited from ...`` or ``command line``.
        file: the TOML file.
        chosen: dotted key -> what the user's pictures chose its value from, see
            :mod:`harness.recipes.fitting`.
        own: of values marked :class:`harness.basics.schema.InferenceOnly` that the command line changed, by
            their key in ``config``, what they are in the recipe itself.
    """

    name: str
    recipe: Recipe
    origins: Mapping[str, str] = field(default_factory=dict)
    file: str = ""
    own: Mapping[str, Any] = field(default_factory=dict)
    chosen: Mapping[str, str] = field(default_factory=dict)

    @property
    def config(self) -> Any:
        """The ``Config`` of its method."""
        return self.recipe.config

    @property
    def trained(self) -> Resolved:
        """As it is trained: values that only inference reads are those of the recipe itself."""
        if not self.own:
            return self
        return replace(self, recipe=replace(self.recipe, config=replace(self.config, **self.own)), own={})

    @property
    def inference(self) -> dict[str, Any]:
        """Values that only inference reads and the command line changed, by their key in ``config``."""
        return {key: dump(getattr(self.config, key)) for key in self.own}

    def training_values(self) -> dict[str, Any]:
        """Everything that may change the trained network, defaults spelled out."""
        return {k: v for k, v in dump(self.trained.recipe).items() if k not in _NOT_TRAINING}

    def neutral_values(self) -> dict[str, Any]:
        """Dotted key to neutral value of every option that has one, those of the method included."""
        return {k: v for k, v in neutral_values(self.recipe).items() if k.split(".")[0] not in _NOT_TRAINING}

    def essential_values(self) -> dict[str, Any]:
        """The training values without options at their neutral value: what digests are made of."""
        return {k: v for k, v in essential(self.trained.recipe).items() if k not in _NOT_TRAINING}

    def digest(self, *fingerprints: str) -> str:
        """Training digest over the values and the given fingerprints (data, labels, weights).

        Paths of files stay out: what they hold is in the fingerprints. So do options at their neutral
        value, as if there were no such option: records from before it stay valid. Values that only
        inference reads enter as the recipe itself has them, whatever the command line says.
        """
        values = self.essential_values()
        for key in ("weights", "labels_from"):
            if values[key] and Path(values[key]).exists():
                values[key] = "path"
        return digest([values, *fingerprints])


# --- reading tables ----------------------------------------------------------------------------------


def recipe_names() -> list[str]:
    """All recipe names, ``<method>/<table>``; tables that start with ``_`` are for inheritance only."""
    return recipe_files.names()


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables with dotted keys, as overrides are written; ``sources`` stays one value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value and key != "sources":
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def merged(base: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Tables merge key by key; anything else is replaced."""
    whole = dict(base)
    for key, value in extra.items():
        both = isinstance(whole.get(key), Mapping) and isinstance(value, Mapping)
        whole[key] = merged(whole[key], value) if both else value
    schedule, length = whole.get("schedule"), extra.get("schedule")
    if isinstance(schedule, dict) and isinstance(length, Mapping):
        for key, other in (("steps", "epochs"), ("epochs", "steps")):
            if length.get(key) is not None and length.get(other) is None:
                schedule.pop(other, None)  # a child's length replaces its parent's, in either unit
    return whole


def _inherited(name: str, seen: tuple[str, ...] = ()) -> tuple[dict[str, Any], dict[str, str]]:
    """Values of a table after inheritance, and the table each comes from."""
    if name in seen:
        raise UserError(f"recipe {name!r} extends itself: {' -> '.join((*seen, name))}")
    own = recipe_files.recipe_table(name, child=seen[-1] if seen else "recipe name")
    parents = own.pop("extends", [])
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for parent in [parents] if isinstance(parents, str) else parents:
        full = parent if "/" in parent else f"{name.partition('/')[0]}/{parent}"
        inherited, from_where = _inherited(full, (*seen, name))
        values = merged(values, inherited)
        origins |= from_where
    file = f"{name.partition('/')[0]}.toml [{name.partition('/')[2]}]"
    origins |= dict.fromkeys(flattened(own), file)
    return merged(values, own), origins


def inherited(name: str, where: str) -> dict[str, Any]:
    """Values of a table of a recipe file, after inheritance; tables that start with ``_`` are known too.

    Raises:
        UserError: there is none; ``where`` is named.
    """
    recipe_files.recipe_table(name, child=where)
    return _inherited(name)[0]


def lineage(name: str) -> list[str]:
    """A recipe and every table that it inherits from, the recipe first."""
    found = {name: None}
    parents = recipe_files.recipe_table(name, child="recipe name").get("extends", [])
    for parent in [parents] if isinstance(parents, str) else parents:
        full = parent if "/" in parent else f"{name.partition('/')[0]}/{parent}"
        found |= dict.fromkeys(lineage(full))
    return list(found)


#: Dots in a key, at most; the tables of recipes are two deep.
_DEEPEST = 16


def parse_overrides(assignments: Iterable[str]) -> dict[str, Any]:
    """``config.gamma=1.5`` to ``{"config.gamma": 1.5}``: values are TOML, a bare word is a string.

    What ``wsss show`` prints is read too: JSON, with ``null`` for a value that is not set.
    ``@FILE`` stands for all values of a TOML file, such as the ``best.toml`` of a search, whatever recipe it
    extends.
    """
    overrides: dict[str, Any] = {}
    given: dict[str, Any] = {}
    for text in assignments:
        if text.startswith("@"):
            values = read_toml(expanded(text[1:]))
            overrides |= flattened({k: v for k, v in values.items() if k != "extends"})
            continue
        key, equals, value = text.partition("=")
        if key.count(".") > _DEEPEST:
            raise UserError("no key of a recipe lies that deep", where=f"--set {key[:40]}...")
        if not equals or not all(part.strip() for part in key.split(".")):
            raise UserError(
                f"cannot read {text!r}", where="--set", remedy="write KEY=VALUE, as in optimiser.lr=0.005"
            )
        given[key.strip()] = cleaned(_value(value.strip()))
    _refuse_contradictions(given)
    return overrides | given


def as_assignments(overrides: Mapping[str, Any]) -> str:
    """The options of a command line that :func:`parse_overrides` reads as these values."""
    return " ".join(f"--set {shlex.quote(f'{k}={value_text(v)}')}" for k, v in overrides.items())


def value_text(value: Any) -> str:
    """A value as :func:`parse_overrides` reads it back: a word as it is, anything else as JSON."""
    return value if isinstance(value, str) and _value(value) == value else json.dumps(dump(value))


def _refuse_contradictions(given: Mapping[str, Any]) -> None:
    """Raise UserError for assignments of which one would be ignored for another one's sake."""
    lengths = [k for k in ("schedule.steps", "schedule.epochs") if given.get(k) is not None]
    pairs = [(lengths[0], lengths[1])] if len(lengths) == 2 else []
    for key in given:
        parents = (key.rsplit(".", i)[0] for i in range(1, key.count(".") + 1))
        pairs += [(p, key) for p in parents if p in given and not isinstance(given[p], Mapping | NoneType)]
    if pairs:
        first, second = pairs[0]
        raise UserError(f"{first} and {second} cannot both be set", where="--set", remedy="leave out one")


def _value(text: str) -> Any:
    """A value as it is written on the command line: TOML, else JSON, else a word."""
    for read in (_literal, json.loads):
        try:
            return read(text)
        except (ValueError, RecursionError):  # not this language, or beyond what Python reads
            continue
    return text


def _literal(text: str) -> Any:
    """The TOML value that a text is. Raises ValueError for one that is none, or more than one."""
    found = tomllib.loads(f"v = {text}")
    if set(found) != {"v"}:
        raise ValueError(text)
    return found["v"]


def resolve(name: str, overrides: Mapping[str, Any] | None = None) -> Resolved:
    """Read, inherit, override and validate one recipe.

    Args:
        name: ``<method>/<table>``.
        overrides: dotted key to value, as from :func:`parse_overrides`.

    Raises:
        UserError: unknown recipe, key, method, data set or protocol, a value of the wrong type, or a
            supervision that the method does not accept.
    """
    if name not in recipe_names() and not recipe_files.is_blank(name):
        _refuse_unusable(name)
        remedy = nearest(name, recipe_names())
        if name.partition("/")[0] not in recipe_files.files():
            remedy += " If a package of yours brings it, install that (again)."
        raise UnknownRecipeError.of(name, f"unknown recipe {name!r}", remedy)
    values, origins = _inherited(name)
    for key, value in (overrides or {}).items():
        *parents, last = key.split(".")
        nested: dict[str, Any] = {last: value}
        for parent in reversed(parents):
            nested = {parent: nested}
        values = merged(values, nested)
        origins[key] = "command line"
    resolved = _validated(name, values, origins)
    if not overrides or not marks(type(resolved.config), InferenceOnly):
        return resolved
    usual = load(type(resolved.config), _inherited(name)[0].get("config", {}), f"{resolved.file} config")
    keys = marks(type(resolved.config), InferenceOnly)
    own = {k: getattr(usual, k) for k in keys if getattr(usual, k) != getattr(resolved.config, k)}
    return replace(resolved, own=own)


def training_overrides(name: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides of a recipe that may change what is trained: those that a record is known by.

    Args:
        name: ``<method>/<table>``.
        overrides: dotted key to value.
    """
    only = marks(declared(recipe_files.method_of(name)).Config, InferenceOnly)
    kept: dict[str, Any] = {}
    for key, value in overrides.items():
        if key == "config" and isinstance(value, Mapping) and only.keys() & value.keys():
            kept |= {f"config.{k}": v for k, v in value.items() if k not in only}
        elif not (key.startswith("config.") and key.split(".")[1] in only):
            kept[key] = value
    return kept


def _validated(name: str, values: dict[str, Any], origins: dict[str, str]) -> Resolved:
    stem, method_name = name.partition("/")[0], recipe_files.method_of(name)
    where = f"{recipe_files.file_of(stem)} [{name.partition('/')[2]}]"
    if origins.get("method") == "command line" and values["method"] != method_name:
        raise UserError(
            f"method {values['method']!r} for a recipe of {method_name!r}",
            where=where,
            remedy="the method of a recipe stays: name a recipe of another method",
        )
    if method_name not in METHODS:
        raise UserError(
            f"unknown method {method_name or stem!r}",
            where=where,
            remedy="write method = 'NAME', extend a recipe of a method, or call the file after one; "
            f"{nearest(method_name or stem, METHODS.names())}",
        )
    values["method"] = method_name
    values, chosen = fitted(values)
    recipe = load(Recipe, values, where)
    method = declared(recipe.method)
    if recipe.dataset == OWN and OWN not in DATASETS:
        raise UserError(
            "this recipe trains on pictures of your own",
            where=f"{name}: dataset",
            remedy=f"name their folder, which holds dataset.toml: --data-root {OWN}=FOLDER "
            "(or --set dataset=NAME --data-root NAME=FOLDER); docs/own_pictures.md has it step by step",
        )
    if recipe.dataset not in DATASETS:
        raise UserError(
            f"unknown data set {recipe.dataset!r}",
            where=where,
            remedy=nearest(recipe.dataset, DATASETS.names()),
        )
    if recipe.supervision not in method.supervision:
        accepted = ", ".join(sorted(method.supervision))
        raise UserError(
            f"{recipe.method} does not accept {recipe.supervision!r} supervision",
            where=where,
            remedy=f"it accepts {accepted}; set supervision to one of them or choose another method",
        )
    if recipe.supervision in method.needs_labels_from and recipe.labels_from is None:
        raise UserError(
            f"{recipe.method} trains under {recipe.supervision!r} supervision on pseudo labels only",
            where=where,
            remedy="set labels_from to a folder of <id>.png pseudo labels, or to a recipe that makes them",
        )
    recipe = replace(recipe, config=_config(method, recipe, where))
    recipe.schedule.total_steps(1)
    if recipe.schedule.steps is not None:  # epochs are known with the data
        recipe.schedule.check(recipe.schedule.steps)
    scored: list[EvaluationSpec | SelectionSpec] = [*recipe.evaluation]
    names = [evaluation.name for evaluation in recipe.evaluation]
    if twice := next((n for n in names if names.count(n) > 1), None):
        # one folder of a record: the second's cells and tolerance would never be looked at
        raise UserError(f"two evaluations are {twice!r}", where=f"{where} evaluation", remedy="leave out one")
    if recipe.selection is not None:
        scored.append(recipe.selection)
    elif any(e.checkpoint == "best" for e in recipe.evaluation):
        raise UserError("an evaluation of the best checkpoint needs a [selection]", where=where)
    for evaluation in scored:
        check_protocol(evaluation.protocol, where)
        check_network(method, evaluation.network, where)
    origins = {**origins, **{key: f"chosen from {why}" for key, why in chosen.items()}}
    return Resolved(name=name, recipe=recipe, origins=origins, file=where, chosen=chosen)


def _config(method: Any, recipe: Recipe, where: str) -> Any:
    """The method's own hyper-parameters, validated."""
    if not is_schema(method.Config):
        raise UserError(
            f"the Config of the method {recipe.method!r} is no frozen dataclass of harness.basics.schema",
            where=f"{getattr(method, '__qualname__', method.name)}.Config",
            remedy="write it as docs/methods.md says: a class under @schema",
        )
    try:
        return load(method.Config, recipe.config, f"{where} config")
    except UserError:
        raise
    except Exception as error:  # a class of another package, which may be no schema
        raise UserError(
            f"the Config of the method {recipe.method!r} cannot be read: {type(error).__name__}: {error}",
            where=getattr(method, "__qualname__", method.name),
            remedy="write it as docs/methods.md says: a class under harness.basics.schema.schema",
        ) from error


def _refuse_unusable(target: str) -> None:
    """Raise what is wrong with the file that a recipe, or a glob over recipes, would stand in."""
    error = recipe_files.problems().get(target.partition("/")[0])
    if error is not None:
        raise error


def awaits_pictures(name: str) -> bool:
    """Whether a recipe is made for a user's own pictures, so that it says nothing before they are named."""
    with suppress(UserError):
        return _inherited(name)[0].get("dataset") == OWN
    return False


def usable() -> tuple[dict[str, Resolved], dict[str, UserError]]:
    """Every recipe that can be used here, resolved (those for pictures that are not here are not among
    them, see :func:`awaits_pictures`); and by name what is wrong with the others, and with whole
    files and packages of recipes."""
    found: dict[str, Resolved] = {}
    wrong = recipe_files.problems()
    for name in recipe_names():
        if name.partition("/")[0] in wrong or (OWN not in DATASETS and awaits_pictures(name)):
            continue  # said once for its file; or there is nothing that it could be used on
        try:
            found[name] = resolve(name)
        except UserError as error:
            wrong[name] = error
    return found, wrong


def all_recipes() -> dict[str, Resolved]:
    """Every recipe that can be used, resolved; :func:`usable` says what is wrong with others."""
    return usable()[0]


def suites() -> dict[str, list[str]]:
    """Suite name to recipe names, those included that cannot be used: running them says why."""
    found: dict[str, list[str]] = {}
    for name in recipe_names():
        for suite in _suites_of(name):
            found.setdefault(suite, []).append(name)
    return dict(sorted(found.items()))


def _suites_of(name: str) -> list[str]:
    """The suites of a recipe; of one that cannot be read whole, those that its own file names."""
    try:
        return _inherited(name)[0].get("suites", [])
    except UserError:
        pass
    stem, _, own = name.partition("/")
    found: list[str] = []
    for file in recipe_files.files().get(stem, ()):
        with suppress(UserError):
            values = read_toml(file).get(own)
            suites = values.get("suites") if isinstance(values, Mapping) else None
            found += [s for s in suites if isinstance(s, str)] if isinstance(suites, list) else []
    return list(dict.fromkeys(found))


def expand(targets: Sequence[str]) -> list[str]:
    """Recipe names of targets: a recipe, a glob such as ``*/mini-*``, or a suite; in order, each once.

    Raises:
        UserError: a target that names nothing.
    """
    names: dict[str, None] = {}
    for target in targets:
        if target in suites():
            names |= dict.fromkeys(suites()[target])
            continue
        matches = [n for n in recipe_names() if n == target or fnmatch.fnmatchcase(n, target)]
        matches += [target] if recipe_files.is_blank(target) else []
        if not matches:
            _refuse_unusable(target)
            options = [*recipe_names(), *suites()]
            raise UnknownRecipeError.of(target, f"no recipe or suite {target!r}", nearest(target, options))
        names |= dict.fromkeys(matches)
    return list(names)


def explain(resolved: Resolved) -> list[tuple[str, Any, str, str]]:
    """Every effective value of a recipe: (dotted key, value, origin, where it is printed)."""
    rows = []
    flat = flattened(dump(resolved.recipe))
    for key, value in flat.items():
        if key in ("sources", "remarks"):
            continue
        origin = resolved.origins.get(key) or _parent_origin(key, resolved.origins) or "default"
        rows.append((key, value, origin, resolved.recipe.sources.get(key, "")))
    return rows


def _parent_origin(key: str, origins: Mapping[str, str]) -> str | None:
    parents = [key.rsplit(".", i)[0] for i in range(1, key.count(".") + 1)]
    return next((origins[p] for p in parents if p in origins), None)


def documented(resolved: Resolved) -> dict[str, str]:
    """The documentation of every key of a recipe, dotted."""
    docs = dict(documentation(Recipe))
    for name, info in fields(Recipe).items():
        nested = info.default
        if hasattr(type(nested), "__pydantic_fields__"):
            docs |= {f"{name}.{k}": v for k, v in documentation(type(nested)).items()}
    docs |= {f"config.{k}": v for k, v in documentation(type(resolved.config)).items()}
    return docs
