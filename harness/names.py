"""Names that a recipe or a verb gives: each is checked in one place, before anything is written.

``where`` is the recipe's file, or the option on the command line.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from harness.errors import UserError, nearest
from harness.registry import DATASETS, METHODS
from harness.text import one_line

if TYPE_CHECKING:
    from harness.evaluation import Protocol
    from harness.recipes import Resolved
    from methods.base import Method

SEGMENTATION = "segmentation"


def check_protocol(name: str, where: str = "--protocol") -> Protocol:
    """The protocol of that name. Raises UserError for an unknown one."""
    from harness.evaluation import protocols  # imports torch.nn; listing recipes does not need it

    _known(name, protocols(), "unknown protocol", where)
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
    from harness.recipes import as_assignments

    words = ["wsss run", recipe, as_assignments(overrides), *more, data_root(recipe, overrides)]
    words += [f"--name {shlex.quote(called)}"] if called else []
    return " ".join(filter(None, words))


def data_root(recipe: str, overrides: Mapping[str, Any]) -> str:
    """The option by which a command finds the data set of a recipe: the file of a user's own, or a folder
    that this process was given; empty where it was given none."""
    from harness.data.own import given
    from harness.recipes import resolve

    try:
        dataset = resolve(recipe, overrides).recipe.dataset
        file = getattr(DATASETS.get(dataset), "file", None) if dataset in DATASETS else None
    except UserError:  # whose values are legal no more
        return ""
    if place := file or given.get(dataset):
        return f"--data-root {shlex.quote(f'{dataset}={place}')}"
    return f"--data-root {shlex.quote(str(given['']))}" if "" in given else ""


def check_network(method: type[Method], name: str, where: str = "--network") -> None:
    """Raises UserError where the method has no such network."""
    _known(name, method.networks, f"{method.name} has no network", where)


def check_split(dataset: str, name: str, where: str = "--split") -> None:
    """Raises UserError where the data set has no such split."""
    _known(name, DATASETS.get(dataset).info.splits, f"{dataset} has no split", where)


def check_table(resolved: Resolved, name: str, where: str = "--table") -> None:
    """Raises UserError where the recipe's method reads no checkpoints of that code."""
    method = METHODS.get(resolved.recipe.method)
    _known(name, method.key_tables(), f"{resolved.recipe.method} reads no checkpoints of", where)


def check_output(resolved: Resolved, name: str, where: str = "--output") -> None:
    """Raises UserError where the recipe's method gives no such output."""
    if name == SEGMENTATION:
        return
    _known(name, [SEGMENTATION, *outputs(resolved)], f"{resolved.recipe.method} gives no output", where)


def check_labels_from(labels_from: str, where: str = "labels_from") -> None:
    """Raises UserError where ``labels_from`` names a recipe that gives no such pseudo labels."""
    from harness.recipes import recipe_names, resolve

    recipe, _, output = labels_from.partition(":")
    if recipe not in recipe_names():
        return  # a folder
    known = outputs(resolve(recipe))
    if not known:
        raise UserError(
            f"the recipe {recipe} makes no pseudo labels", where=where, remedy="name a recipe that does"
        )
    if output:
        _known(output, known, f"{recipe} gives no pseudo label", where)


def outputs(resolved: Resolved) -> tuple[str, ...]:
    """Names of the pseudo labels that a recipe's method gives, in its order.

    Raises:
        UserError: its networks cannot be built, see :mod:`harness.rehearsal`.
    """
    from harness.rehearsal import tried  # imports torch.nn; listing recipes does not need it
    from methods.base import Method

    if METHODS.get(resolved.recipe.method).pseudo_labels is Method.pseudo_labels:
        return ()
    return tried(resolved).outputs


def check_scored(
    resolved: Resolved,
    *,
    split: str | None = None,
    protocol: str | None = None,
    network: str = "default",
    output: str | None = None,
    table: str | None = None,
) -> None:
    """Everything that a verb names about a trained network; None is not checked."""
    method = METHODS.get(resolved.recipe.method)
    if split is not None:
        check_split(resolved.recipe.dataset, split)
    if protocol is not None:
        check_protocol(protocol)
    check_network(method, network)
    if table is not None:
        check_table(resolved, table)
    if output is not None:
        check_output(resolved, output)


def _known(name: str, known: Collection[str], problem: str, where: str) -> None:
    if name not in known:
        raise UserError(f"{problem} {name!r}", where=where, remedy=nearest(name, known))
