"""Where a trained network comes from: its record and its checkpoint say it, so that nobody repeats it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from harness.basics.errors import UserError
from harness.basics.reading import damaged
from harness.basics.registry import DATASETS
from harness.basics.schema import dump
from harness.data.base import Dataset, DatasetInfo, LabelSpec, Supervision
from harness.recipes.foreign import absent, told_packages
from harness.recipes.given import is_recipe_file, one
from harness.recipes.resolving import Resolved, recipe_names
from harness.records.called import called_rows
from harness.records.checkpoints import record_beside
from harness.records.records import Record, Store, read_record

#: Key in a checkpoint.
ORIGIN_KEY = "origin"


def carried(resolved: Resolved, overrides: Mapping[str, Any], dataset: Dataset) -> dict[str, Any]:
    """What a checkpoint says of its origin, in plain values: the recipe with its overrides, and of the data
    set everything that is needed to name and colour classes and to read pictures as in training."""
    info = dataset.info
    return {
        "recipe": resolved.name,
        "overrides": dump(dict(overrides)),
        "dataset": {
            "name": info.name,
            "title": info.title,
            "classes": list(info.classes),
            "palette": [[int(v) for v in colour] for colour in info.palette],
            "background": info.background,
            "exif": dataset.exif,
        },
    }


@dataclass(frozen=True)
class Origin:
    """A checkpoint and what was trained.

    Attributes:
        recipe: name of the recipe.
        overrides: values by dotted key that it was trained with.
        checkpoint: the file.
        dataset: what the checkpoint says of its data set; empty where it is older than that.
    """

    recipe: str
    overrides: Mapping[str, Any]
    checkpoint: Path
    dataset: Mapping[str, Any] = field(default_factory=dict)


def brought_by(store: Store, name: str) -> str:
    """Which packages made a store's records of a recipe that is not here, a sentence; empty where there are
    no such records, or none of other packages."""
    for record in store.records(name):
        held = f"{store.root} holds records of it, made by"
        if gone := absent(record.data):
            return f"{held} {', '.join(gone)}, which is not installed: install it again"
        if packages := told_packages(record.data):
            return f"{held} {packages}, which brings it no longer"
    return ""


def is_network_file(source: str) -> bool:
    """Whether a text names a record or a checkpoint, and no recipe."""
    named = bool(source.strip()) and source not in recipe_names() and not is_recipe_file(source)
    return named and Path(source).exists()


def found(source: Path) -> Origin:
    """The origin of a network.

    Args:
        source: a trial's folder, its ``record.json``, or a checkpoint of this project.

    Raises:
        UserError: the record is not finished, the file is damaged, or it does not say where it comes from.
    """
    record: Record | None
    if source.is_dir() or source.name == "record.json":
        folder = source if source.is_dir() else source.parent
        if not (folder / "record.json").exists():
            raise UserError(
                "this folder is no record: it holds no record.json",
                where=folder,
                remedy="name a trial's folder, a checkpoint or a recipe",
            )
        record = read_record(folder)
        if not record.finished:
            raise UserError(
                f"{record.name} seed {record.seed} is not finished",
                where=folder,
                remedy="run it to its end, or name its checkpoint",
            )
        checkpoint = folder / "checkpoint" / "last.pt"
    else:
        checkpoint, record = source, record_beside(source)
    from harness.nn.torch_files import read_torch

    state = read_torch(checkpoint)
    said = state.get(ORIGIN_KEY) if isinstance(state, dict) else None
    if said is not None:
        return _read(said, checkpoint)
    if record is None:
        raise UserError(
            "the checkpoint does not say which recipe it was trained with",
            where=checkpoint,
            remedy="name the recipe, and the file with --checkpoint (of another code also --table)",
        )
    return Origin(record.name, record.data["overrides"], checkpoint)


def origin_of(
    source: str | Path, overrides: Mapping[str, Any] | None, checkpoint: Path | None, store: Store
) -> tuple[Origin | None, str, dict[str, Any], Path | None]:
    """What a recipe, record or checkpoint stands for: its origin (None for a recipe), the recipe's name, its
    overrides with those given on top, and the checkpoint (None: that of the recipe's record in the store).

    Raises:
        UserError: as :func:`found`.
    """
    if not is_network_file(str(source)):
        recipe = one(source, overrides, called_rows(store))
        return None, recipe.name, dict(recipe.overrides), checkpoint
    came = found(Path(source))
    return came, came.recipe, {**came.overrides, **(overrides or {})}, came.checkpoint


def _read(said: Any, checkpoint: Path) -> Origin:
    try:
        dataset = dict(said["dataset"])
        names, palette = dataset["classes"], dataset["palette"]
        sound = all(isinstance(n, str) for n in (dataset["name"], dataset["title"], *names))
        if not sound or np.array(palette).shape != (len(names), 3) or not isinstance(said["recipe"], str):
            raise ValueError("its data set has no names or colours")
        return Origin(said["recipe"], dict(said["overrides"]), checkpoint, dataset)
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(checkpoint, f"what it says of its origin cannot be read: {error}") from None


class _Elsewhere(Dataset):
    """A data set that is not here: its names and colours alone."""

    def _none(self) -> UserError:
        return UserError(
            f"the data set {self.info.name} is not here",
            where="--data-root",
            remedy=f"pass --data-root {self.info.name}=DIR",
        )

    def ids(self, split: str) -> Sequence[str]:
        """Raises UserError, as all of these."""
        raise self._none()

    def image_path(self, image_id: str) -> Path:
        """Raises UserError."""
        raise self._none()

    def mask_path(self, image_id: str, split: str) -> Path | None:
        """Raises UserError."""
        raise self._none()

    def read_image(self, image_id: str) -> np.ndarray:
        """Raises UserError."""
        raise self._none()

    def read_mask(self, image_id: str, split: str) -> np.ndarray:
        """Raises UserError."""
        raise self._none()

    def read_official_label(self, image_id: str, supervision: Supervision, spec: LabelSpec) -> np.ndarray:
        """Raises UserError."""
        raise self._none()

    def tags(self, image_ids: Sequence[str]) -> np.ndarray:
        """Raises UserError."""
        raise self._none()


@contextmanager
def standing_in(origin: Origin | None) -> Iterator[None]:
    """Know the data set of a network by what its checkpoint says, where it is not known here."""
    said = {} if origin is None else origin.dataset
    if not said or said["name"] in DATASETS:
        yield
        return
    info = DatasetInfo(
        name=said["name"],
        title=said["title"],
        classes=tuple(said["classes"]),
        palette=tuple((int(r), int(g), int(b)) for r, g, b in said["palette"]),
        splits={"train": 0, "val": 0},
        background=said["background"],
        folder="",
    )
    made: Any = type(info.name, (_Elsewhere,), {"info": info, "exif": said.get("exif", "ignore")})
    DATASETS.register(info.name, made)
    try:
        yield
    finally:
        DATASETS.forget(info.name)
