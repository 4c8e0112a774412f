"""Synthetic records, written through the store as a run would leave them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.basics.schema import digest, dump
from harness.evaluation import evaluator
from harness.recipes import protocols
from harness.recipes.resolving import Resolved
from harness.recipes.specs import Recipe
from harness.records.records import PerImage, Record, Store

CLASSES = ("background", "disc", "ring", "cross")


def counts(
    images: int,
    quality: float,
    seed: int,
    classes: int = 4,
    absent: tuple[int, ...] = (),
    unlabelled: tuple[int, ...] = (),
) -> PerImage:
    """Counts of a network that hits about ``quality`` of each labelled class; all see the same truth.

    Classes that are ``unlabelled`` are predicted by mistake, those ``absent`` neither labelled nor predicted.
    """
    truth, rng = np.random.default_rng(0), np.random.default_rng(seed)
    labelled = truth.integers(50, 500, (images, classes)) * (truth.random((images, classes)) < 0.7)
    labelled[0] = 100  # every class occurs
    labelled[:, list(unlabelled)] = 0
    intersection = np.floor(labelled * np.clip(rng.normal(quality, 0.1, labelled.shape), 0, 1)).astype(
        np.int64
    )
    predicted = intersection + rng.integers(0, 40, labelled.shape)
    for array in (labelled, intersection, predicted):
        array[:, list(absent)] = 0
    labelled[:, 0] += 40 * classes  # room for whatever is wrong
    return PerImage(tuple(f"image-{i:04d}" for i in range(images)), intersection, predicted, labelled)


@dataclass
class Factory:
    """Writes records into one store, whose data have no pixel of the classes ``unlabelled``."""

    store: Store
    unlabelled: tuple[int, ...] = ()

    def resolved(self, name: str = "agmm/mini-point", **values: Any) -> Resolved:
        """A recipe as the registry would give it."""
        base: dict[str, Any] = {
            "method": name.partition("/")[0],
            "dataset": "mini",
            "supervision": "point",
            "backbone": "small-cnn",
            "weights": "packaged",
            "schedule": {"steps": 100},
        }
        recipe = Recipe(**{**base, **values})
        return Resolved(name=name, recipe=recipe)

    def record(
        self,
        resolved: Resolved | None = None,
        seed: int = 0,
        *,
        quality: float = 0.6,
        images: int = 30,
        official: int | None = None,
        trained: tuple[int, int] = (400, 400),
        overrides: Mapping[str, Any] | None = None,
        status: str = "finished",
        fingerprint: str = "data-1",
        absent: tuple[int, ...] = (),
        per_image: PerImage | None = None,
        protocol: Mapping[str, Any] | None = None,
        scored: str = "0" * 64,
        title: str = "",
        classes: Sequence[str] = CLASSES,
        **values: Any,
    ) -> Record:
        """Write one record and the evaluations of its recipe."""
        resolved = resolved or self.resolved()
        recipe = resolved.recipe
        own = resolved.digest(fingerprint, digest(dict(overrides or {})))
        folder = self.store.folder(resolved.name, own, seed)
        p = protocols.protocols()
        for spec in recipe.evaluation if status == "finished" else ():
            numbers = per_image or counts(images, quality, seed, absent=absent, unlabelled=self.unlabelled)
            shown = {**dump(p[spec.protocol]), **(protocol or {})}
            self.store.write_evaluation(
                folder,
                numbers,
                {
                    "name": spec.name,
                    "digest": digest([dump(spec), shown]),
                    "spec": dump(spec),
                    "protocol": shown,
                    "official_images": official or len(numbers.ids),
                    "data_fingerprint": fingerprint,
                    "checkpoint_sha256": scored,
                    "seconds": 1.0,
                    "written": "2025-01-01T00:00:00+00:00",
                    **evaluator.summarise(numbers, classes, p[spec.protocol]),
                },
            )
        splits = {"train": {"images": trained[0], "official": trained[1], "fingerprint": fingerprint}}
        data = {
            "name": resolved.name,
            "method": recipe.method,
            "title": title or recipe.method.upper(),
            "recipe": resolved.training_values() | {"evaluation": dump(recipe.evaluation)},
            "overrides": dict(overrides or {}),
            "seed": seed,
            "digest": own,
            "status": status,
            "code": {"version": "0.1.0", "commit": "a" * 40, "dirty": False},
            "data": {"dataset": recipe.dataset, "splits": splits, "labels": {"fingerprint": "labels-1"}},
            "weights": {"name": recipe.weights, "backbone": recipe.backbone, "sha256": "1" * 64},
            "hardware": {"processor": "CPU 1", "cores": 2, "threads": 1, "device": "cpu"},
            "parameters": 1_230_000,
            "steps": 100,
            "steps_per_second": 4.0,
            "peak_memory_mib": 500.0 + seed,
            "ended": "2025-01-01T00:00:00+00:00",
            **values,
        }
        return self.store.write_record(folder, data)

    def history(self, record: Record, terms: Mapping[str, np.ndarray], every: int = 10) -> None:
        """Write a training curve."""
        columns = list(terms)
        total = np.sum([terms[c] for c in columns], axis=0)
        lines = [",".join(["step", "lr", "loss", *columns])]
        for i, loss in enumerate(total):
            values = ",".join(f"{terms[c][i]:.6f}" for c in columns)
            lines.append(f"{(i + 1) * every},0.01,{loss:.6f},{values}")
        self.store.write_record(record.path, {**record.data, "steps": len(total) * every})
        (record.path / "history.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
