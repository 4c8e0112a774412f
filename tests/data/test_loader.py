"""What goes to loader workers."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import numpy as np

from harness.data.loader import TrainingSet


def test_a_worker_gets_names_and_tags_and_nothing_large():
    ids = [f"COCO_train2014_{number:012d}" for number in range(82_081)]
    tags = np.zeros((len(ids), 81), np.uint8)
    labels = SimpleNamespace(tags=tags, path=None)
    data = TrainingSet(SimpleNamespace(), ids, labels, None, 0, {})  # type: ignore[arg-type]
    assert len(pickle.dumps(data)) < 12 * 2**20, "COCO's 82,081 names and tags, no pictures"
