"""Names that a recipe or a verb gives: each is checked in one place, before anything is written.

``where`` is the recipe's file, or the option on the command line.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from harness.basics.errors import UserError, nearest
from harness.basics.registry import DATASETS, METHODS
from harness.basics.text import one_line

if TYPE_CHECKING:
    from harness.engine.method import Method
    from harness.recipes.declared import Declaration
    from harness.recipes.protocols import Protocol
    from harness.recipes.resolving import Resolved


def check_protocol(name: str, where: str = "--protocol") -> Protocol:
    """The protocol of that name. Raises UserError for an unknown one."""
    from harness.recipes.protocols import protocols

    check_known(name, protocols(), "unknown protocol", where)
    return protocols()[name]


def configuration_name(called: str, overrides: Mapping[str, Any]) -> str:
    """A name for a configuration, on one line; empty for none.

    Raises:
        UserError: it names no configuration, or nobody could read it in a table.
    """
    name = one_line(called).strip()
    if called and (not name or len(name) > 60):
        raise UserError("a name has 1 to 60 characters", where="--name", remedy="choose a short one")
    if name and not overrides:
        raise UserError(
            f"{name!r} would name the recipe as it stands, which has a name",
            where="--name",
            remedy="leave it out, or say what is different with --set KEY=VALUE or --set @FILE",
        )
    return name


def run_command(recipe: str, overrides: Mapping[str, Any], *more: str, called: str = "") -> str:
    """The command line that trains a recipe with these values, and finds its data set.

    Args:
        recipe: its name.
        overrides: values by dotted key.
        more: further options, such as ``--seed 1``.
        called: what tables call it.
    """
    from harness.recipes.resolving import as_assignments

    words = ["wsss run", recipe, as_assignments(overrides), *more, data_root(recipe, overrides)]
    words += [f"--name {shlex.quote(called)}"] if called else []
    return " ".join(filter(None, words))


def data_root(recipe: str, overrides: Mapping[str, Any]) -> str:
    """The option by which a command finds the data set of a recipe: the file of a user's own, or a folder
    that this process was given; empty where it was given none."""
    from harness.data.sets.own import given_roots
    from harness.recipes.resolving import inherited

    try:
        dataset: str = overrides.get("dataset") or inherited(recipe, "recipe name").get("dataset", "")
        file = getattr(DATASETS.get(dataset), "file", None) if dataset in DATASETS else None
    except UserError:  # whose values are legal no more
        return ""
    if place := file or given_roots.get(dataset):
        return f"--data-root {shlex.quote(f'{dataset}={place}')}"
    return f"--data-root {shlex.quote(str(given_roots['']))}" if "" in given_roots else ""


def check_network(method: Declaration | type[Method], name: str, where: str = "--network") -> None:
    """Raises UserError where the method has no such network."""
    check_known(name, method.networks, f"{method.name} has no network", where)


def check_split(dataset: str, name: str, where: str = "--split") -> None:
    """Raises UserError where the data set has no such split."""
    check_known(name, DATASETS.get(dataset).info.splits, f"{dataset} has no split", where)


def check_table(resolved: Resolved, name: str, where: str = "--table") -> None:
    """Raises UserError where the recipe's method reads no checkpoints of that code."""
    method = METHODS.get(resolved.recipe.method)
    check_known(name, method.key_tables(), f"{resolved.recipe.method} reads no checkpoints of", where)


def check_known(name: str, known: Collection[str], problem: str, where: str) -> None:
    """Raises UserError for a name that is not among those known; ``problem`` says of what."""
    if name not in known:
        raise UserError(f"{problem} {name!r}", where=where, remedy=nearest(name, known))
