"""The optimiser of a run: the recipe's, or one that the method brings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from harness.engine.contract import check_optimiser
from harness.recipes.specs import OptimiserSpec

if TYPE_CHECKING:
    from harness.engine.method import Method


def create_optimiser(
    groups: Sequence[dict[str, Any]], spec: OptimiserSpec, method: Method | None = None
) -> Optimizer:
    """The optimiser over a method's parameter groups; each group keeps its ``lr_scale``.

    On a GPU one kernel makes the step of many parameters (torch's ``fused``). A state is loaded whatever
    kernels it was saved with, and this optimiser keeps its own.

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
        own = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
        usual = {"lr_scale": 1.0, "weight_decay": spec.weight_decay}
        prepared.append({**usual, **group, "params": own, "lr": spec.lr})
    brought = None if method is None else method.make_optimiser([dict(group) for group in prepared], spec)
    if brought is not None:
        assert method is not None
        check_optimiser(brought, method)
        return brought
    on_gpu = all(p.is_cuda for group in prepared for p in group["params"])
    common: dict[str, Any] = {"lr": spec.lr, "fused": on_gpu or None}
    made: Optimizer
    if spec.name == "sgd":
        made = torch.optim.SGD(prepared, momentum=spec.momentum, nesterov=spec.nesterov, **common)
    else:
        cls = torch.optim.AdamW if spec.name == "adamw" else torch.optim.Adam
        made = cls(prepared, betas=spec.betas, **common)
    made.register_load_state_dict_pre_hook(_with_own_kernels)
    return made


def _with_own_kernels(optimiser: Optimizer, state: dict[str, Any]) -> None:
    """Let a state that is loaded leave the kernels as they are: it may come from another device."""
    if len(state["param_groups"]) != len(optimiser.param_groups):
        return  # which torch refuses
    state["param_groups"] = [
        saved | {key: own[key] for key in ("fused", "foreach")}
        for saved, own in zip(state["param_groups"], optimiser.param_groups, strict=True)
    ]
