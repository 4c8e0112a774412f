"""How many cores make pictures as fast as one GPU trains on them."""

from __future__ import annotations

import io
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image

from harness.basics.registry import DATASETS
from harness.engine.footprint import Footprint, shipped
from harness.engine.loader import Collate, Slot, TrainingSet
from harness.engine.method import Method
from harness.recipes import resolving
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
#: A full-size recipe of each method, and of each data set.
_FULL_SIZE = (
    "agmm/voc-scribble-r101",
    "agmm/cityscapes-20clicks-r50",
    "blpseg/voc-scribble-r101",
    "cam/voc-image-r50",
    "dfr/voc-scribble-swinb",
    "dskd_gc/voc-image-vitb",
    "fsr/voc-image-vitb",
    "gated_crf/voc-scribble-r101",
    "pce/voc-scribble-r101",
    "rloss/voc-scribble-r101",
    "toco/voc-image-vitb",
    "tree_energy/voc-scribble-r101",
)
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

    Further pictures count by their share of a step's.

    Args:
        data: the training set; what it keeps in memory is kept before the clock starts.
        number: of pictures to try, spread over the set; so many of each kind of further ones.
    """
    each = pictures_of_step(data)
    spent = sum(size * _seconds(data, name, number) for name, size in each.items())
    return spent / sum(each.values())


def pictures_of_step(data: TrainingSet) -> dict[str, int]:
    """How many pictures a step takes, over all groups: labelled ones (``""``), and further ones by name."""
    batch = data.recipe.batch
    own = {name: (spec.per_group or batch.per_group) * batch.groups for name, spec in data.further.items()}
    return {"": batch.size, **own}


def _seconds(data: TrainingSet, name: str, number: int) -> float:
    length = len(data.ids_of(name))
    chosen = np.linspace(0, length - 1, number).round().astype(int)
    slots: list[Slot] = [(0, place, int(i), *([name] if name else [])) for place, i in enumerate(chosen)]  # type: ignore[misc]
    data[slots[0]]
    for index in chosen:
        data._read(int(index), name)
    batch = Collate(1)._groups
    clock = time.thread_time()
    batch([data[slot] for slot in slots])
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

    def ids(self, split: str) -> list[str]:
        """Names of pictures; every split has as many."""
        return [str(i) for i in range(len(self.tags))]

    def read(self, image_id: str) -> np.ndarray:
        """The label."""
        return self._label


def made_up_set(resolved: Resolved, method: Method | None = None) -> TrainingSet:
    """A training set of made-up photographs of the usual size, with the recipe's own augmentation and views.

    Args:
        resolved: the recipe.
        method: whose views each picture has, and whose further pictures a step, on any device; none without.
    """
    made: Any = _Photographs(resolved)
    asked = () if method is None else (method.views(), method.further())
    labels: Any = SimpleNamespace(read=made.read, tags=made.tags)
    return TrainingSet(made, made.ids(""), labels, resolved.recipe, 0, *(asked or ({},)))


# --- of what is known without a trial ------------------------------------------------------------------


def full_size_rows(gpus: Sequence[str]) -> list[tuple[str, str, str]]:
    """What training steps of full-size recipes take: memory, and cores that feed a GPU.

    Args:
        gpus: names of those that can compute.

    Returns:
        Rows of what, how much, and what is to be said of it.
    """
    there = [torch.cuda.get_device_properties(i).total_memory / 2**20 for i in range(len(gpus))]
    fits: dict[str, float] = {}
    needs: dict[str, int] = {}
    known = resolving.recipe_names()
    for name in (name for name in _FULL_SIZE if name in known):
        resolved = resolving.resolve(name)
        if (found := shipped(resolved)) is None:
            continue
        fits[name] = found.peak_mib
        if gpus and (seconds := step_seconds(found, resolved.recipe, gpus[0])) is not None:
            each = picture_seconds(made_up_set(resolved), 2)
            needs[name] = Feeding(each, resolved.recipe.batch.size, seconds, "").cores
    if not fits:
        return []
    large = max(fits, key=fits.__getitem__)
    said = f"by estimate, most for {large}"
    if there and (lacking := [name for name, mib in fits.items() if mib > 0.9 * min(there)]):
        said = f"too much for a GPU here: {', '.join(lacking)}"
    least, most = (f"{edge(fits.values()) / 1024:.1f}" for edge in (min, max))
    rows = [("full-size steps", f"{least} to {most} GiB", said)]
    if needs:
        greedy = max(needs, key=needs.__getitem__)
        cores = f"{min(needs.values())} to {needs[greedy]} loader processes"
        said = f"by rule of thumb, a core each, most for {greedy}; {os.cpu_count()} cores are here"
        rows.append(("to feed a GPU", cores, said))
    return rows
