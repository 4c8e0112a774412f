"""What goes to loader workers."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import numpy as np
import pytest

from harness.engine import loader
from harness.engine.batch import UNLABELLED
from harness.engine.loader import TrainingSet
from harness.recipes.specs import AugmentSpec


def test_a_worker_gets_names_and_tags_and_nothing_large():
    ids = [f"COCO_train2014_{number:012d}" for number in range(82_081)]
    tags = np.zeros((len(ids), 81), np.uint8)
    labels = SimpleNamespace(tags=tags, path=None)
    data = TrainingSet(SimpleNamespace(), ids, labels, None, 0, {})  # type: ignore[arg-type]
    assert len(pickle.dumps(data)) < 12 * 2**20, "COCO's 82,081 names and tags, no pictures"


@pytest.mark.parametrize(("most", "reads"), [(2**20, 1), (4 * 12 * 16 * 4, 1), (4 * 12 * 16 * 4 - 1, 3)])
def test_a_split_that_memory_holds_is_decoded_once(monkeypatch, most, reads):
    monkeypatch.setattr(loader, "KEPT_BYTES", most)
    pictures = {f"p{n}": np.random.default_rng(n).integers(0, 256, (12, 16, 3), np.uint8) for n in range(4)}
    seen = []

    def read_image(name):
        seen.append(name)
        return pictures[name].copy()

    def label(name):
        return None if name == "p0" else np.full((12, 16), int(name[1]), np.uint8)

    recipe = SimpleNamespace(crop_size=(8, 8), augment=AugmentSpec(scale=(0.8, 1.2), flip=0.5, jitter=1.0))
    labels = SimpleNamespace(tags=np.eye(4, dtype=np.uint8), read=label)
    data = TrainingSet(SimpleNamespace(read_image=read_image), list(pictures), labels, recipe, 3, {})  # type: ignore[arg-type]
    epochs = [[data[step, slot, slot] for slot in range(4)] for step in (7, 8, 7)]
    assert [seen.count(name) for name in pictures] == [reads] * 4
    for before, after in zip(epochs[0], epochs[2], strict=True):  # what was kept has not been painted over
        for part in ("image", "label", "valid"):
            np.testing.assert_array_equal(before[part], after[part])
    assert (epochs[2][0]["label"] >= UNLABELLED).all()
    assert (epochs[2][2]["label"] == 2).any()
