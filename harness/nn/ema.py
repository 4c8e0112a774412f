"""Exponential moving averages of networks (teachers)."""

from __future__ import annotations

import copy
import math
from typing import TypeVar

import torch
from torch import nn

_M = TypeVar("_M", bound=nn.Module)


def ema_copy(network: _M) -> _M:
    """A deep copy that takes no gradient: the start of an averaged network."""
    return copy.deepcopy(network).requires_grad_(False)


@torch.no_grad()
def ema_update(average: nn.Module, network: nn.Module, momentum: float) -> None:
    """Move an averaged network: ``average <- momentum * average + (1 - momentum) * network``.

    Parameters are averaged; buffers (running statistics of batch normalisation) are copied, since an
    average of counters means nothing (our choice where a paper is silent).

    Args:
        average: a network from :func:`ema_copy`.
        network: the trained network.
        momentum: in ``[0, 1]``.

    Raises:
        ValueError: momentum out of range, or the networks differ in their parameters.
    """
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum {momentum} is not in [0, 1]")
    old, new = dict(average.named_parameters()), dict(network.named_parameters())
    if old.keys() != new.keys():
        raise ValueError(f"the networks differ in parameters: {sorted(old.keys() ^ new.keys())[:8]}")
    if old:
        torch._foreach_lerp_(list(old.values()), [new[k].detach() for k in old], 1 - momentum)
    buffers = dict(network.named_buffers())
    for name, buffer in average.named_buffers():
        buffer.copy_(buffers[name])


def cosine_momentum(start: float, step: int, total: int) -> float:
    """Momentum that rises from ``start`` at step 0 to 1 at step ``total`` along half a cosine.

    ``1 + (start - 1) (1 + cos(pi step / total)) / 2`` (FSR utils/pyutils.py).
    """
    return 1 + (start - 1) * (1 + math.cos(math.pi * step / total)) / 2
