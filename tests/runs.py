"""What tests of whole runs share: the command line, and the comparison of two records bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from harness.cli.main import cli, invoke
from harness.records.records import Record, Store

RECIPE = "agmm/mini-scribble"
#: Fewer steps of smaller batches; everything else is the recipe's.
TINY = ["--set", "schedule.steps=30", "--set", "batch.per_group=4", "--set", "crop=48"]
ONE = ["--seed", "0", "--local", "--device", "cpu"]


def wsss(*arguments: object) -> int:
    """Exit code of the command."""
    return invoke(cli, [str(a) for a in arguments])


def only(results: Path) -> Record:
    """The one record of a store."""
    (record,) = Store(results).records()
    return record


def weights(record: Record) -> torch.Tensor:
    """All weights of a trained network, one after another."""
    state = torch.load(record.path / "checkpoint" / "last.pt", weights_only=True)["method"]
    return torch.cat([v.flatten().double() for v in state.values()])


def assert_same_numbers(a: Record, b: Record) -> None:
    """Weights, metrics, counts of every picture and training curve are equal bit for bit."""
    assert torch.equal(weights(a), weights(b))
    assert a.digest == b.digest
    assert a.evaluations.keys() == b.evaluations.keys()
    for name, evaluation in a.evaluations.items():
        other = b.evaluations[name]
        assert evaluation.data["miou"] == other.data["miou"]
        assert evaluation.data["iou"] == other.data["iou"]
        for part in ("ids", "intersection", "predicted", "labelled"):
            np.testing.assert_array_equal(getattr(evaluation.per_image, part), getattr(other.per_image, part))
    left, right = (r.history() for r in (a, b))
    np.testing.assert_array_equal(left.to_numpy(), right.to_numpy())
