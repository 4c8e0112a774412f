"""Methods with their networks: built for a recipe, or read from a checkpoint."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from harness.basics.errors import UserError
from harness.basics.registry import DATASETS, METHODS
from harness.engine import trained
from harness.engine.build import Build
from harness.nn.checkpoints import load_checkpoint
from harness.nn.torch_files import read_torch
from harness.recipes.names import check_table
from harness.recipes.resolving import Resolved
from harness.records.checkpoints import check_recorded

if TYPE_CHECKING:
    from harness.engine.method import Method


def build_method(resolved: Resolved, device: torch.device, seed: int) -> Method:
    """The method of a recipe with freshly initialised networks, on a device."""
    recipe = resolved.recipe
    info = DATASETS.get(recipe.dataset).info
    build = Build(info, recipe.supervision, recipe.crop_size, recipe.backbone, recipe.weights, recipe.pixels)
    torch.manual_seed(seed)
    return METHODS.get(recipe.method)(resolved.config, build).to(device)


def load_weights(method: Method, checkpoint: Path, *, asked: Collection[str] = ()) -> list[str]:
    """Load a checkpoint that this harness wrote; in a trial's folder, the one that was recorded.

    Args:
        method: the network, on any device.
        checkpoint: the file.
        asked: keys of the method's ``Config`` that were set on purpose, of those that only inference reads.

    Returns:
        What a reader of any result must know, see :func:`harness.engine.trained.compared`.

    Raises:
        UserError: the file is missing, damaged, not the one that was recorded, or of another network: of
            other shapes, or of values with which the same weights predict something else.
    """
    if not os.path.lexists(checkpoint):
        raise UserError("no checkpoint", where=checkpoint, remedy="train the recipe again: `wsss run RECIPE`")
    check_recorded(checkpoint)
    state = read_torch(checkpoint)
    try:
        notes = trained.compared(method, state.get(trained.NETWORK_KEY), checkpoint, asked=asked)
        method.load_state_dict(state["method"])
    except UserError:
        raise
    except Exception as error:  # a state of any origin: the errors have no common base
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"the checkpoint does not fit this recipe: {why}",
            where=checkpoint,
            remedy="name the recipe that it was trained with, or --table for another code's file",
        ) from error
    return notes


def load_network(
    resolved: Resolved,
    device: torch.device,
    checkpoint: Path,
    table: str | None,
    *,
    say: Callable[[str], None] = warnings.warn,
) -> Method:
    """A method in evaluation mode with the weights of a checkpoint.

    Args:
        resolved: the recipe that the network belongs to.
        device: where to put it.
        checkpoint: the file.
        table: None for this project's own, else the name of a key table of the method.
        say: is told what a reader of any result must know: values that the file does not say and that are
            assumed to be the recipe's, or that differ from those it was trained with.

    Raises:
        UserError: the file is missing, damaged or of another network, or the table is unknown.
    """
    untrained = replace(resolved, recipe=replace(resolved.recipe, weights="none"))
    method = build_method(untrained, device, seed=0)
    if table is None:
        notes = load_weights(method, checkpoint, asked=resolved.inference)
    else:
        tables = method.key_tables()
        check_table(resolved, table)
        check_recorded(checkpoint)
        load_checkpoint(method, checkpoint, tables[table])
        notes = [trained.assumed(method)]
    for note in notes:
        say(note)
    return method.eval()


def load_noted(
    resolved: Resolved,
    device: torch.device,
    checkpoint: Path,
    table: str | None,
    say: Callable[[str], None],
) -> tuple[Method, list[str]]:
    """:func:`load_network`, and what was said of it for whoever writes it down; ``say`` hears it, too."""
    notes: list[str] = []
    method = load_network(resolved, device, checkpoint, table, say=notes.append)
    for note in notes:
        say(f"note: {note}")
    return method, notes
