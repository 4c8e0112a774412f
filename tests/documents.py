"""The least that ``record.json`` and ``evaluation.json`` must say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

RECIPE = {
    "dataset": "birds",
    "supervision": "point",
    "backbone": "small-cnn",
    "weights": "packaged",
    "train_split": "train",
}


def record(name: str, seed: int, digest: str = "d" * 12) -> dict[str, Any]:
    """A finished record."""
    own = {"name": name, "seed": seed, "digest": digest, "status": "finished", "recipe": RECIPE}
    return {**own, "method": name.partition("/")[0], "title": "M"}


def evaluation(miou: float, iou: Sequence[float | None], images: int) -> dict[str, Any]:
    """An evaluation of classes ``c0``, ``c1``, ..."""
    names = [f"c{k}" for k in range(len(iou))]
    return {
        "name": "val-single",
        "digest": "e",
        "spec": {"split": "val", "protocol": "single"},
        "protocol": {"classes": "occurring"},
        "official_images": images,
        "data_fingerprint": "f",
        "written": "1",
        "images": images,
        "classes": names,
        "miou": miou,
        "iou": list(iou),
        "absent": [name for name, value in zip(names, iou, strict=True) if value is None],
    }
