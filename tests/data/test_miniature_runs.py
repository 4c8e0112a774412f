"""Methods on miniatures of the data sets they support: from files in the official layout to a record."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from harness.basics.registry import DATASETS
from harness.cli.main import cli, invoke
from harness.data.prepare.miniatures import write_miniature
from harness.records.records import Store

#: What makes a run of a paper's recipe small; everything else is the recipe's.
SMALL = {
    "schedule.steps": 2,
    "batch.groups": 1,
    "batch.per_group": 3,
    "crop": 48,
    "backbone": "mini_cnn",
    "weights": "packaged",
    "config.aspp_rates": "[1, 2, 3]",
    "config.multi_grid": "[]",
    "config.head_width": 32,
    "config.low_width": 16,
    "selection": "{ every_steps = 2 }",
    "evaluation": '[{ split = "val", protocol = "single" }]',
}
MINI = {"schedule.steps": 2, "batch.per_group": 3, "crop": 48}
IMAGE = {"schedule.steps": 2, "schedule.warmup_steps": 0, "batch.per_group": 2}
SIMULATED = {"labels.source": "simulated", "labels.format": "''"}
CLICKS = {"labels.folder": "50clicks", "labels.unlabelled": 255}
#: Data set, recipe, changes.
RUNS = [
    ("voc2012", "agmm/voc-point-r101", SMALL | SIMULATED),
    ("coco2014", "agmm/mini-scribble", MINI),
    ("cityscapes", "agmm/cityscapes-50clicks-r50", SMALL | CLICKS),
    ("ade20k", "agmm/mini-block", MINI),
    ("voc2012", "fsr/mini-image", IMAGE),
    ("coco2014", "fsr/mini-image", IMAGE),
    ("voc2012", "dskd_gc/mini-image", IMAGE),
    ("coco2014", "dskd_gc/mini-image", IMAGE),
]


def wsss(*arguments: object) -> int:
    return invoke(cli, [str(a) for a in arguments])


@pytest.mark.parametrize(("name", "recipe", "changes"), RUNS)
def test_a_method_trains_and_is_scored_on_a_miniature(
    name: str, recipe: str, changes: dict, tmp_path: Path, capsys
):
    root = write_miniature(name, tmp_path / "data", train=6, val=2)
    dataset = DATASETS.get(name)(root)
    if name == "cityscapes":  # the paper's labels are a folder; ours are made by number of clicks
        command = ["data", "labels", name, "--kind", "point", "--clicks", 50, "--data-root", root]
        assert wsss(*command, "--out", dataset.root / "50clicks") == 0
    changes = changes | {"dataset": name}
    command = ["run", recipe, "--data-root", root, "--results", tmp_path / "results", "--seed", 0, "--local"]
    for key, value in changes.items():
        command += ["--set", f"{key}={value}"]
    assert wsss(*command, "--device", "cpu") == 0, capsys.readouterr().err
    (record,) = Store(tmp_path / "results").records()
    assert record.data["status"] == "finished"
    split = record.data["recipe"]["train_split"]
    assert record.data["data"]["splits"][split]["images"] == 6
    assert len(record.data["data"]["splits"]["val"]["fingerprint"]) == 64
    assert np.isfinite(record.history().to_numpy()).all()
    evaluation = record.evaluations["val-single"]
    # What is counted are the pixels of classes: void and what no label stands for are not scored.
    masks = [dataset.read_mask(i, "val") for i in dataset.ids("val")]
    wanted = sum(np.bincount(m[m != 255], minlength=dataset.info.num_classes) for m in masks)
    np.testing.assert_array_equal(evaluation.per_image.labelled.sum(0), wanted)
