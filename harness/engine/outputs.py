"""What a trained network gives: names of outputs that a verb asks for are checked before the work."""

from __future__ import annotations

from harness.basics.errors import UserError
from harness.basics.registry import METHODS
from harness.engine.method import Method
from harness.recipes.names import check_known, check_network, check_protocol, check_split, check_table
from harness.recipes.resolving import Resolved, recipe_names, resolve

#: The output that every method has.
SEGMENTATION = "segmentation"


def check_output(resolved: Resolved, name: str, where: str = "--output") -> None:
    """Raises UserError where the recipe's method gives no such output."""
    if name == SEGMENTATION:
        return
    check_known(name, [SEGMENTATION, *outputs(resolved)], f"{resolved.recipe.method} gives no output", where)


def check_labels_from(labels_from: str, where: str = "labels_from") -> None:
    """Raises UserError where ``labels_from`` names a recipe that gives no such pseudo labels."""
    recipe, _, output = labels_from.partition(":")
    if recipe not in recipe_names():
        return  # a folder
    known = outputs(resolve(recipe))
    if not known:
        raise UserError(
            f"the recipe {recipe} makes no pseudo labels", where=where, remedy="name a recipe that does"
        )
    if output:
        check_known(output, known, f"{recipe} gives no pseudo label", where)


def outputs(resolved: Resolved) -> tuple[str, ...]:
    """Names of the pseudo labels that a recipe's method gives, in its order.

    Raises:
        UserError: its networks cannot be built, see :mod:`harness.engine.rehearsal`.
    """
    from harness.engine.rehearsal import tried  # imports torch.nn; listing recipes does not need it

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
