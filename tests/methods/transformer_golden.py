"""The rule that fills ToCo's and FSR's networks for golden comparisons, and their inputs."""

from __future__ import annotations

import json
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

#: Seeds of the standard normal pictures by case.
SEEDS = {"s64": 101, "s96x80": 102, "odd75x100": 103, "s224": 104, "s448": 105}


@cache
def filled(key: str, shape: tuple[int, ...]) -> Tensor:
    """The value of one state-dict entry, a function of its name (without ``module.``); float32.

    Drawn once: both methods have one encoder, and data sets differ in the last layers. Never to be changed
    in place.
    """
    noise = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    last = key.rpartition(".")[2]
    if last == "weight_g" or (last == "weight" and len(shape) == 1):
        value = 1 + 0.1 * noise
    elif last in ("weight", "weight_v"):
        value = noise / np.sqrt(np.prod(shape[1:]))
    elif last == "bias":
        value = 0.1 * noise
    else:
        value = 0.02 * noise
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def shapes(keys: Path) -> dict[str, tuple[int, ...]]:
    """Names, as the authors' scripts save them, and shapes."""
    return {e["key"]: tuple(e["shape"]) for e in json.loads(keys.read_text())}


@cache
def state_dict(keys: Path) -> dict[str, Tensor]:
    """A whole state dict as the authors' code would save it, ``module.`` prefix removed."""
    return {
        key: filled(key, shape)
        for key, shape in ((k.removeprefix("module."), s) for k, s in shapes(keys).items())
    }


def picture(seed: int, *shape: int) -> Tensor:
    """Standard normal pictures ``(N, 3, H, W)``."""
    noise = np.random.RandomState(seed).standard_normal(shape)
    return torch.from_numpy(noise.astype(np.float32))
