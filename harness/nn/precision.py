"""Where losses and statistics leave automatic mixed precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def outside_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context in which operations compute in the dtype of their inputs, whatever the networks used.

    Networks that are only tried, on the meta device, have no mixed precision to leave.
    """
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision to float32; float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
