"""Methods with their networks: built for a recipe, or read from a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

import torch

from harness.build import Build
from harness.errors import UserError, nearest
from harness.nn.checkpoints import load_checkpoint
from harness.recipes import Resolved
from harness.registry import DATASETS, METHODS

if TYPE_CHECKING:
    from methods.base import Method


def build_method(resolved: Resolved, device: torch.device, seed: int) -> Method:
    """The method of a recipe with freshly initialised networks, on a device."""
    recipe = resolved.recipe
    info = DATASETS.get(recipe.dataset).info
    build = Build(info, recipe.supervision, recipe.crop_size, recipe.backbone, recipe.weights)
    torch.manual_seed(seed)
    return METHODS.get(recipe.method)(resolved.config, build).to(device)


def load_weights(method: Method, checkpoint: Path) -> None:
    """Load a checkpoint that this harness wrote.

    Raises:
        UserError: the file is missing, damaged, or of another network.
    """
    if not checkpoint.exists():
        raise UserError("no checkpoint", where=checkpoint, remedy="train the recipe again: `wsss run RECIPE`")
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        method.load_state_dict(state["method"])
    except (RuntimeError, KeyError, EOFError, ValueError, UnpicklingError) as error:
        raise UserError(
            f"the checkpoint does not fit this recipe: {str(error).splitlines()[0]}",
            where=checkpoint,
            remedy="name the recipe that it was trained with, or --table for another code's file",
        ) from error


def load_network(resolved: Resolved, device: torch.device, checkpoint: Path, table: str | None) -> Method:
    """A method in evaluation mode with the weights of a checkpoint.

    Args:
        resolved: the recipe that the network belongs to.
        device: where to put it.
        checkpoint: the file.
        table: None for this project's own, else the name of a key table of the method.

    Raises:
        UserError: the file is missing, damaged or of another network, or the table is unknown.
    """
    untrained = replace(resolved, recipe=replace(resolved.recipe, weights="none"))
    method = build_method(untrained, device, seed=0)
    if table is None:
        load_weights(method, checkpoint)
    else:
        tables = method.key_tables()
        if table not in tables:
            raise UserError(
                f"{resolved.recipe.method} reads no checkpoints of {table!r}",
                where="--table",
                remedy=nearest(table, tables),
            )
        load_checkpoint(method, checkpoint, tables[table])
    return method.eval()
