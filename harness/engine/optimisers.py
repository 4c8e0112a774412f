"""The optimiser of a run: the recipe's, or one that the method brings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from harness.engine.contract import check_optimiser
from harness.recipes.specs import OptimiserSpec

if TYPE_CHECKING:
    from harness.engine.method import Method


def create_optimiser(
    groups: Sequence[dict[str, Any]], spec: OptimiserSpec, method: Method | None = None
) -> Optimizer:
    """The optimiser over a method's parameter groups; each group keeps its ``lr_scale``.

    Args:
        groups: of the method.
        spec: of the recipe.
        method: whose own optimiser is asked for first.

    Raises:
        ValueError: a parameter stands in two groups, or a group has an unknown key.
        UserError: the method's own optimiser does not hold its groups.
    """
    prepared = []
    for group in groups:
        unknown = set(group) - {"params", "lr_scale", "weight_decay"}
        if unknown:
            raise ValueError(f"unknown keys of a parameter group: {sorted(unknown)}")
        prepared.append({"lr_scale": 1.0, "weight_decay": spec.weight_decay, **group, "lr": spec.lr})
    own = None if method is None else method.make_optimiser([dict(group) for group in prepared], spec)
    if own is not None:
        assert method is not None
        check_optimiser(own, method)
        return own
    if spec.name == "sgd":
        return torch.optim.SGD(prepared, lr=spec.lr, momentum=spec.momentum, nesterov=spec.nesterov)
    cls = torch.optim.AdamW if spec.name == "adamw" else torch.optim.Adam
    return cls(prepared, lr=spec.lr, betas=spec.betas)
