"""A helper network that a method asks and never trains, such as CLIP or SAM."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn


class Frozen(nn.Module):
    """A network kept as it is: in evaluation mode, without gradient, and in no checkpoint.

    Its weights are none of the method's parameters, so that neither optimiser, checkpoints nor the number of
    parameters in tables hold them. They move between devices and types with the method, and their hash stands
    in the record. Every process must make it with the same weights: read them from a file.

    Args:
        network: any module, with its weights.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        # Not registered: modules that are registered have their state saved and their mode changed.
        self.__dict__["network"] = network.requires_grad_(False).eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the network's, without gradient."""
        with torch.no_grad():
            return self.__dict__["network"](*args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.__dict__["network"]._apply(fn, recurse)
        return super()._apply(fn, recurse)

    @property
    def sha256(self) -> str:
        """Of names, types, shapes and values of its state."""
        found = hashlib.sha256()
        for name, value in sorted(self.__dict__["network"].state_dict().items()):
            plain = value.detach().cpu().contiguous()
            found.update(f"{name} {plain.dtype} {tuple(plain.shape)} ".encode())
            found.update(plain.flatten().view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
        return found.hexdigest()


def frozen_hashes(module: nn.Module) -> dict[str, str]:
    """Name within a module to hash, of every :class:`Frozen` in it."""
    return {name: part.sha256 for name, part in module.named_modules() if isinstance(part, Frozen)}
