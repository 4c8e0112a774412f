"""Tables of numbers that are copied to a device once and stay there."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

#: Numbers, and rows of them.
Table = float | tuple["Table", ...]

_kept: dict[tuple[Table, torch.device, torch.dtype], Tensor] = {}


def constant(values: Table, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor of these values: the same one whenever it is asked for, so that no step waits for a copy.

    Args:
        values: numbers in tuples; a tuple makes a dimension.
        device: where it is needed.
        dtype: of the tensor.

    Returns:
        A tensor without gradient, which nobody may change.
    """
    key = (values, device, dtype)
    if torch.compiler.is_compiling() or key not in _kept:  # of a program it becomes a part
        with torch.inference_mode(False):  # or no later step could differentiate with it
            made = torch.tensor(values, dtype=dtype, device=device)
        if torch.compiler.is_compiling() or isinstance(made, FakeTensor):  # of an estimate, without values
            return made
        _kept[key] = made
    return _kept[key]
