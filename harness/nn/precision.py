"""Where losses and statistics leave automatic mixed precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def outside_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context in which operations compute in the dtype of their inputs, whatever the networks used.

    Networks that are only tried, on the meta device, have no mixed precision to leave.
    """
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
