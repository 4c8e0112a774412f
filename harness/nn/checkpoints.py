"""Checkpoints that other code saved, through key tables that account for every key."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from harness.basics.errors import UserError
from harness.nn.weights import read_state_dict


@dataclass(frozen=True)
class KeyTable:
    """Renames the keys of a foreign state dict; a key that no rule knows is an error.

    Attributes:
        rules: pairs of a regular expression that matches a whole key and its replacement, which may
            use groups; the first match counts.
        unused: regular expressions of keys that are knowingly left aside.
    """

    rules: tuple[tuple[str, str], ...]
    unused: tuple[str, ...] = ()

    def __call__(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors under our names.

        Raises:
            UserError: a key that neither a rule nor ``unused`` knows, or two keys with the same new name.
        """
        renamed: dict[str, Tensor] = {}
        unknown = []
        for key, value in state.items():
            if any(re.fullmatch(pattern, key) for pattern in self.unused):
                continue
            name = self._rename(key)
            if name is None:
                unknown.append(key)
            elif name in renamed:
                raise UserError(f"two keys of the checkpoint mean {name!r}, one of them {key!r}")
            else:
                renamed[name] = value
        if unknown:
            raise UserError(f"the checkpoint has unknown keys: {first_keys(unknown)}")
        return renamed

    def _rename(self, key: str) -> str | None:
        for pattern, replacement in self.rules:
            match = re.fullmatch(pattern, key)
            if match:
                return match.expand(replacement)
        return None


def load_checkpoint(
    module: nn.Module,
    path: Path | str,
    table: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = None,
) -> None:
    """Load a whole network from a file, every key accounted for.

    The file is read without executing anything in it; wrappers and a ``module.`` prefix are understood
    (:func:`harness.nn.weights.read_state_dict`).

    Args:
        module: the method or network that takes the tensors, in place, on its own device.
        path: ``.pth``, ``.pt``, ``.bin`` or ``.safetensors``.
        table: from their names to ours, such as a :class:`KeyTable`; none if the names are ours.

    Raises:
        UserError: unreadable file, unknown, missing or surplus keys, or shapes that differ; the module
            is then unchanged.
    """
    state = read_state_dict(path)
    try:
        renamed = dict(state) if table is None else table(state)
    except UserError as error:
        raise UserError(error.problem, where=path, remedy=error.remedy) from error
    own = module.state_dict()
    missing = [k for k in own if k not in renamed]
    surplus = [k for k in renamed if k not in own]
    shapes = [
        f"{k} {tuple(renamed[k].shape)} for {tuple(own[k].shape)}"
        for k in own
        if k in renamed and renamed[k].shape != own[k].shape
    ]
    problems = [
        f"{name}: {first_keys(keys)}"
        for name, keys in (("missing", missing), ("surplus", surplus), ("other shape", shapes))
        if keys
    ]
    if problems:
        raise UserError(
            "the checkpoint does not fit the network; " + "; ".join(problems),
            where=path,
            remedy="build the network with the recipe that the checkpoint was trained with (classes, "
            "backbone, head width), and name the code that saved it",
        )
    module.load_state_dict(renamed)


def first_keys(keys: Iterable[str], most: int = 8) -> str:
    """The first keys of a list and the number of the others."""
    keys = list(keys)
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")
