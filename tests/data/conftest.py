"""A small data set in the VOC layout, written into a temporary folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.basics.registry import DATASETS
from harness.data.sets.voc2012 import VOC2012, write_tags

Scenes = Mapping[str, np.ndarray]
Writer = Callable[..., VOC2012]


def scene(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A mask with two objects, their void borders, and background."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), np.uint8)
    for label in rng.choice(np.arange(1, 21), 2, replace=False):
        top, left = rng.integers(2, height // 2), rng.integers(2, width // 2)
        mask[top - 1 : top + 17, left - 1 : left + 21] = 255
        mask[top : top + 16, left : left + 20] = label
    return mask


def picture(mask: np.ndarray, seed: int = 0) -> Image.Image:
    """A noisy picture whose colours follow the mask."""
    rng = np.random.default_rng(seed)
    colours = np.random.default_rng(1).integers(0, 200, (256, 3))
    return Image.fromarray((colours[mask] + rng.integers(0, 50, (*mask.shape, 3))).astype(np.uint8))


def index_png(path: Path, mask: np.ndarray) -> None:
    """A palette PNG, as VOC's masks are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask.astype(np.uint8))
    image.putpalette([v for i in range(256) for v in (i, 255 - i, i // 2)])  # colours say nothing
    assert image.mode == "P"
    image.save(path)


@pytest.fixture
def write_voc(tmp_path: Path) -> Writer:
    """Writes masks, pictures, lists and tags; returns the data set."""

    def write(scenes: Scenes, lists: Mapping[str, Sequence[str]] | None = None) -> VOC2012:
        root = tmp_path / "VOCdevkit" / "VOC2012"
        (root / "JPEGImages").mkdir(parents=True, exist_ok=True)
        tags = np.zeros((len(scenes), 21), np.uint8)
        for row, (image_id, mask) in enumerate(scenes.items()):
            picture(mask).save(root / "JPEGImages" / f"{image_id}.jpg", quality=95)
            for folder in ("SegmentationClass", "SegmentationClassAug"):
                index_png(root / folder / f"{image_id}.png", mask)
            tags[row, np.unique(mask[(mask > 0) & (mask < 21)])] = 1
        folder = root / "ImageSets" / "Segmentation"
        folder.mkdir(parents=True, exist_ok=True)
        for split, ids in (lists or {"train": list(scenes), "val": list(scenes)}).items():
            (folder / f"{split}.txt").write_text("\n".join(ids) + "\n")
        write_tags(folder / "tags.npz", list(scenes), tags)
        return VOC2012(tmp_path)

    return write


@pytest.fixture
def tiny_voc(write_voc: Writer) -> VOC2012:
    """Six pictures."""
    return write_voc({f"2007_00000{i}": scene(i) for i in range(6)})


@pytest.fixture(autouse=True)
def forget_data_sets():
    """A data set that a test describes is not known to the next one."""
    before = dict(DATASETS._registered)
    yield
    DATASETS._registered.clear()
    DATASETS._registered.update(before)
