"""The rule that fills networks for golden comparisons, and their inputs."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

#: Seeds of the standard normal pictures by file.
SEEDS = {"65x65": 0, "97x81": 1, "train": 3, "321x321": 4}


@cache
def filled(key: str, shape: tuple[int, ...]) -> Tensor:
    """The value of one state-dict entry, a function of its name alone; float32.

    Drawn once: networks of several data sets differ in their last layers. Never to be changed in place.
    """
    noise = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
    if key.endswith("num_batches_tracked"):
        return torch.tensor(0)
    if key.endswith("running_mean"):
        value = 0.1 * noise
    elif key.endswith("running_var"):
        value = 1 + 0.1 * abs(noise)
    elif key.endswith(".weight") and len(shape) >= 2:
        value = noise / np.sqrt(np.prod(shape[1:]))
    elif re.search(r"(^|\.)layer[1-4]\.\d+\.bn3\.weight$", key):
        value = 0.25 * (1 + 0.1 * noise)
    elif key.endswith(".weight"):
        value = 1 + 0.1 * noise
    else:
        value = 0.1 * noise
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


@cache
def state_dict(keys: Path) -> dict[str, Tensor]:
    """A whole state dict under the authors' names, as their code would save it."""
    entries = json.loads(keys.read_text())["entries"]
    return {e["key"]: filled(e["key"], tuple(e["shape"])) for e in entries}


def picture(kind: str, *shape: int) -> Tensor:
    """Standard normal pictures ``(N, 3, H, W)``."""
    noise = np.random.RandomState(SEEDS[kind]).standard_normal(shape)
    return torch.from_numpy(noise.astype(np.float32))


def drawn(seed: int, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The other rule, of golden/blpseg: all entries from one generator, in the order of the state dict."""
    rng = np.random.RandomState(seed)
    values = {}
    for key, shape in shapes.items():
        if key.endswith("num_batches_tracked"):
            continue
        if key.endswith("running_var"):
            value = rng.uniform(0.5, 1.5, shape)
        elif len(shape) >= 2:
            value = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif key.endswith(".weight"):
            value = 1 + 0.1 * rng.standard_normal(shape)
        else:
            value = 0.1 * rng.standard_normal(shape)
        values[key] = torch.from_numpy(np.asarray(value, dtype=np.float32))
    return values
