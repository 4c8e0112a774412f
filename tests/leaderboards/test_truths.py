"""Evaluations of the same pictures have counted the same truth; what says otherwise is not shown."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from damage import changed
from synthetic import Factory, counts

from harness.cli.main import cli, invoke
from harness.data.prepare.verify import preflight
from harness.data.sets.mini import Mini
from harness.evaluation.evaluator import gather as counted
from harness.evaluation.verification import verify_store
from harness.records.records import PerImage, Store
from leaderboards.rows.gathering import gather_records

Change = Callable[[PerImage], PerImage]


def _times(factor: int) -> Change:
    return lambda c: PerImage(c.ids, *(factor * a for a in (c.intersection, c.predicted, c.labelled)))


def _first_times_two(c: PerImage) -> PerImage:
    factors = np.ones((len(c.ids), 1), np.int64)
    factors[0] = 2
    return PerImage(c.ids, *(factors * a for a in (c.intersection, c.predicted, c.labelled)))


#: Counts that agree with figures computed from them, and cannot be those of the pictures.
OTHER_TRUTHS: dict[str, Change] = {
    "times three": _times(3),
    "times a thousand": _times(1000),
    "one picture doubled": _first_times_two,
    "pictures exchanged": lambda c: PerImage(c.ids[::-1], c.intersection, c.predicted, c.labelled),
    "other pictures": lambda c: PerImage(
        tuple(f"x{i}" for i in c.ids), c.intersection, c.predicted, c.labelled
    ),
    "fewer pictures": lambda c: PerImage(c.ids[1:], c.intersection[1:], c.predicted[1:], c.labelled[1:]),
    "classes exchanged": lambda c: PerImage(
        c.ids, *(a[:, [0, 2, 1, 3]] for a in (c.intersection, c.predicted, c.labelled))
    ),
}


def shown(factory: Factory) -> list[int]:
    """Seeds whose figures are shown."""
    frame = gather_records(Store(factory.store.root))
    return frame.loc[frame["miou"].notna(), "seed"].tolist()


@pytest.mark.parametrize("change", OTHER_TRUTHS.values(), ids=OTHER_TRUTHS)
def test_counts_of_another_truth_are_named_and_left_out(factory: Factory, change: Change) -> None:
    for seed in range(3):
        one = counts(8, 0.6, seed)
        factory.record(seed=seed, per_image=change(one) if seed == 1 else one, official=8)
    assert shown(factory) == [0, 2]
    (error,) = _left_out(factory)
    assert "seed-1" in error
    assert "labelled pixels" in error


def _left_out(factory: Factory) -> list[str]:
    return gather_records(Store(factory.store.root)).attrs["left_out"]


def test_of_two_that_contradict_neither_is_believed(
    factory: Factory, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.cli.report._recipes", dict)
    factory.record(seed=0, images=8)
    factory.record(seed=1, per_image=_times(3)(counts(8, 0.6, 1)))
    assert shown(factory) == []
    assert len(_left_out(factory)) == 2
    factory.record(factory.resolved("pce/mini-point"), 0, images=8)  # a third one decides
    assert shown(factory) == [0, 0]
    arguments = ["leaderboard", "--results", str(factory.store.root), "--out", str(tmp_path / "out")]
    assert invoke(cli, arguments) == 1
    said = capsys.readouterr().err
    assert "seed-1" in said
    assert "Left out: 1" in (tmp_path / "out" / "leaderboard.md").read_text()


def test_other_data_may_have_another_truth(factory: Factory) -> None:
    factory.record(seed=0, images=8, fingerprint="one")
    factory.record(seed=0, images=9, fingerprint="two")
    other = factory.resolved(dataset="mini-own", evaluation=())
    factory.record(other, 0, images=7)
    assert _left_out(factory) == []


@pytest.mark.parametrize("known", [True, False])
def test_a_fingerprint_of_other_data_is_named(factory: Factory, known: bool) -> None:
    """Against what its record says of the split, or what other evaluations of those data have counted."""
    for seed in range(3):
        factory.record(seed=seed, images=8)
    record = next(iter(factory.store.records()))
    if known:
        place = record.path / "record.json"
        data = json.loads(place.read_text())
        data["data"]["splits"]["val"] = {"images": 8, "official": 8, "fingerprint": "data-1"}
        place.write_text(json.dumps(data))
    else:
        for seed in (3, 4):
            factory.record(seed=seed, images=9, fingerprint="data-2")
    (run,) = record.evaluations.values()
    changed(data_fingerprint="data-2")(run.path / "evaluation.json")
    (error,) = _left_out(factory)
    assert "seed-0" in error
    assert 0 not in shown(factory)


def test_a_later_evaluation_may_have_met_other_data(factory: Factory) -> None:
    splits = {"val": {"images": 8, "official": 8, "fingerprint": "before"}}
    factory.record(images=8, fingerprint="after", data={"dataset": "mini", "splits": splits}, ended="2024")
    assert _left_out(factory) == []


# --- against the data set ------------------------------------------------------------------------------


@pytest.fixture
def scored(factory: Factory, small: Path, cache: Path) -> tuple[Factory, Mini]:
    """Two seeds whose counts are those of the small miniature scenes."""
    dataset = Mini(small)
    fingerprint = preflight(dataset, ["val"], cache=cache)["val"]
    masks = [(i, dataset.read_mask(i, "val")) for i in dataset.ids("val")]
    for seed in range(2):
        found = counted([(i, np.roll(m, seed), m) for i, m in masks], dataset.info.num_classes)
        factory.record(seed=seed, per_image=found, fingerprint=fingerprint, classes=dataset.info.classes)
    return factory, dataset


def test_verify_store_counts_labelled_pixels_anew(scored: tuple[Factory, Mini], cache: Path) -> None:
    factory, dataset = scored
    done = verify_store(factory.store, lambda name: dataset, cache)
    assert (done.evaluations, done.breaches, done.unseen) == (2, {}, {})
    for record in factory.store.records():  # all of them, so that none contradicts another
        (run,) = record.evaluations.values()
        _times(3)(run.counts()).save(run.path / "per_image.npz")
    assert shown(factory) == [0, 1]
    done = verify_store(Store(factory.store.root), lambda name: dataset, cache)
    assert (done.evaluations, len(done.breaches)) == (0, 2)
    assert all("labelled pixels" in error.brief for error in done.breaches.values())


def test_verify_store_says_what_it_could_not_compare(
    scored: tuple[Factory, Mini],
    small: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    factory, dataset = scored
    arguments = ["verify-store", "--results", str(factory.store.root), "--data-root"]
    assert invoke(cli, [*arguments, f"mini={small}"]) == 0
    assert not capsys.readouterr().err
    other = tmp_path / "other"
    shutil.copytree(small, other)
    dataset = Mini(other)
    first = dataset.ids("val")[0]
    shutil.copyfile(dataset.image_path(dataset.ids("val")[1]), dataset.image_path(first))
    assert invoke(cli, [*arguments, f"mini={other}"]) == 0
    said = capsys.readouterr()
    assert "not compared with the data set: mini val: other pictures or masks" in said.err
    assert "2 evaluations" in said.out
