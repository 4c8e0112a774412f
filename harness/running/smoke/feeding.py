"""How many cores make pictures as fast as one GPU trains on them."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from harness.basics.registry import DATASETS
from harness.engine.footprint import Footprint
from harness.engine.loader import Collate, TrainingSet
from harness.engine.method import Method
from harness.recipes.resolving import Resolved
from harness.recipes.specs import Recipe

#: 10^12 operations a second that training keeps up, about a third of what is printed for dense TF32 (float32
#: where a GPU has no TF32), by a part of the GPU's name; in half precision twice that.
_TERA = {
    "B200": 380, "H200": 165, "H100": 165, "A100": 52, "L40": 60, "6000 Ada": 60, "4090": 28, "5090": 35,
    "A6000": 25, "A40": 25, "3090": 12, "A10": 20, "L4": 20, "V100": 5, "2080": 4, "T4": 3,
}  # fmt: skip
#: Seconds in which a GPU starts one kernel after another, at best.
_LAUNCH = 5e-6
#: Height and width of a picture of a data set whose files are not here.
_SIZES = {"cityscapes": (1024, 2048)}
_USUAL_SIZE = (375, 500)


@dataclass(frozen=True)
class Feeding:
    """What it takes to keep one GPU busy.

    Attributes:
        picture_seconds: of one core, for one picture.
        pictures: in a step.
        step_seconds: that the GPU takes for a step.
        basis: where the latter comes from.
    """

    picture_seconds: float
    pictures: int
    step_seconds: float
    basis: str

    @property
    def cores(self) -> int:
        """Loader processes that make pictures as fast as they are used, each on a core of its own."""
        return max(math.ceil(self.picture_seconds * self.pictures / self.step_seconds - 1e-9), 1)

    def __str__(self) -> str:
        return (
            f"{self.pictures} pictures of {1e3 * self.picture_seconds:.1f} ms for every "
            f"{1e3 * self.step_seconds:.0f} ms ({self.basis}): {self.cores} loader "
            f"process{'es' * (self.cores > 1)} on cores of their own"
        )


def picture_seconds(data: TrainingSet, number: int = 6) -> float:
    """Seconds of this core for one picture: read, augmented, made a tensor, as loader processes do it.

    Args:
        data: the training set; what it keeps in memory is kept before the clock starts.
        number: of pictures to try, spread over the set.
    """
    chosen = np.linspace(0, len(data) - 1, number).round().astype(int)
    slots = [(0, place, int(index)) for place, index in enumerate(chosen)]
    data[slots[0]]
    collate = Collate(1)
    for index in chosen:
        data._read(int(index))
    clock = time.thread_time()
    collate([data[slot] for slot in slots])
    return (time.thread_time() - clock) / number


def step_seconds(found: Footprint, recipe: Recipe, gpu: str) -> float | None:
    """A step on a GPU by rule of thumb, within a factor of two; None for a GPU that is not known.

    Args:
        found: of the step, all groups on one GPU.
        recipe: for its precision.
        gpu: its name.
    """
    tera = next((rate for name, rate in _TERA.items() if name in gpu), None)
    if tera is None:
        return None
    return max(found.tflop / (tera * (1 if recipe.amp == "off" else 2)), found.operations * _LAUNCH)


# --- without data --------------------------------------------------------------------------------------


class _Photographs:
    """A data set and its labels: one picture in as many bytes as a photograph has, decoded every time."""

    def __init__(self, resolved: Resolved) -> None:
        self.info = DATASETS.get(resolved.recipe.dataset).info
        height, width = _SIZES.get(resolved.recipe.dataset.partition("-")[0], _USUAL_SIZE)
        coarse = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        stream = io.BytesIO()
        picture.save(stream, "PNG" if height > 1000 else "JPEG")
        self._bytes = stream.getvalue()
        self._label = np.full((height, width), 254, np.uint8)
        self._label[height // 3 : height // 2] = 1
        self.tags = np.ones((10_000, self.info.num_classes), np.uint8)

    def read_image(self, image_id: str) -> np.ndarray:
        """The picture."""
        return np.array(Image.open(io.BytesIO(self._bytes)).convert("RGB"))

    def read(self, image_id: str) -> np.ndarray:
        """The label."""
        return self._label


def made_up_set(resolved: Resolved, method: Method | None = None) -> TrainingSet:
    """A training set of made-up photographs of the usual size, with the recipe's own augmentation and views.

    Args:
        resolved: the recipe.
        method: whose views each picture has, on any device; none without.
    """
    made: Any = _Photographs(resolved)
    ids: Sequence[str] = [str(i) for i in range(len(made.tags))]
    views = {} if method is None else method.views()
    labels: Any = SimpleNamespace(read=made.read, tags=made.tags)
    return TrainingSet(made, ids, labels, resolved.recipe, 0, views)
