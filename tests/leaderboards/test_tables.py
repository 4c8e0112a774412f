"""Rows from synthetic records: folding, verdicts, holes, and what must not be mixed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from synthetic import CLASSES, Factory, counts

from harness.basics.schema import dump
from harness.recipes.specs import EvaluationSpec
from leaderboards.rows.frames import class_frame, row_frame
from leaderboards.rows.gathering import changed_keys, gather_records, weak_label
from leaderboards.rows.published import Cell, CellSource, Published
from leaderboards.rows.row import Row
from leaderboards.rows.tables import leaderboard, verdict_on
from leaderboards.write.columns import sections
from leaderboards.write.html_report import html_report
from leaderboards.write.report import tables_markdown


def known(value: float | None = 60.0, **values: Any) -> Published:
    """One source with the cell ``paper/voc``."""
    base = {"id": "paper/voc", "source": "paper", "row": "AGMM", "dataset": "mini", "split": "val"}
    reason = {"reason": "not readable"} if value is None else {"value": value}
    cell = Cell(**base, supervision="point", **reason, **values)
    return Published({"paper": CellSource(title="A paper", kind="paper")}, {"paper/voc": cell})


def rows_of(factory: Factory, recipes: Any = None, cells: Published | None = None) -> list[Row]:
    return leaderboard(gather_records(factory.store), recipes, cells or known(), resamples=40)


def test_seeds_fold_into_mean_and_deviation(factory: Factory) -> None:
    scores = [next(iter(factory.record(seed=s).evaluations.values())).miou for s in range(3)]
    (row,) = rows_of(factory)
    assert (row.n, row.seeds) == (3, (0, 1, 2))
    assert row.mean == pytest.approx(sum(scores) / 3)
    assert row.std == pytest.approx(math.sqrt(sum((s - sum(scores) / 3) ** 2 for s in scores) / 2))
    assert row.low < row.mean < row.high
    assert row.commit == "a" * 9


def test_one_seed_has_no_deviation(factory: Factory) -> None:
    factory.record()
    (row,) = rows_of(factory)
    assert row.n == 1
    assert math.isnan(row.std)


@pytest.mark.parametrize(
    ("difference", "tolerance", "verdict"),
    [
        (1.0, 1.0, "reproduced"),
        (-1.0, 1.0, "reproduced"),
        (67.8 - 66.8, 1.0, "reproduced"),  # 1.0000000000000009 in binary
        (1.001, 1.0, "above"),
        (-1.001, 1.0, "below"),
        (0.0, 0.0, "reproduced"),
        (math.nan, 1.0, "not comparable"),
        (0.5, math.nan, "not comparable"),
    ],
)
def test_verdict_at_the_boundaries(difference: float, tolerance: float, verdict: str) -> None:
    assert verdict_on(difference, tolerance) == verdict


@pytest.mark.parametrize(
    ("offset", "verdict"), [(0.4, "reproduced"), (-0.4, "reproduced"), (2, "below"), (-2, "above")]
)
def test_verdict_of_a_row(factory: Factory, offset: float, verdict: str) -> None:
    resolved = factory.resolved(evaluation=(EvaluationSpec(cells=("paper/voc",), tolerance=0.5),))
    score = next(iter(factory.record(resolved).evaluations.values())).miou
    (row,) = rows_of(factory, cells=known(round(score + offset, 2)))
    assert row.verdict == verdict
    assert row.source == "paper/voc"
    assert row.difference == pytest.approx(-offset, abs=0.006)


def test_without_value_or_tolerance_nothing_is_judged(factory: Factory) -> None:
    factory.record(factory.resolved(evaluation=(EvaluationSpec(cells=("paper/voc",), tolerance=0.5),)))
    (row,) = rows_of(factory, cells=known(None))
    assert row.verdict == "no published value"
    assert any("no published value (not readable)" in note for note in row.notes)
    other = factory.resolved("agmm/mini-loose", evaluation=(EvaluationSpec(cells=("paper/voc",)),))
    factory.record(other)
    loose = next(r for r in rows_of(factory) if r.recipe == "agmm/mini-loose")
    assert loose.verdict == "not comparable"
    assert "no tolerance was fixed before the run" in loose.notes


def test_dice_is_no_miou(factory: Factory) -> None:
    factory.record(factory.resolved(evaluation=(EvaluationSpec(cells=("paper/voc",), tolerance=50.0),)))
    (row,) = rows_of(factory, cells=known(60.0, metric="dice"))
    assert row.verdict == "no published value"
    assert math.isnan(row.published)


def test_other_digests_are_other_rows(factory: Factory) -> None:
    for seed in range(2):
        factory.record(seed=seed)
    factory.record(seed=2, overrides={"config.gamma": 1.5})
    plain, overridden = rows_of(factory)
    assert {plain.n, overridden.n} == {1, 2}
    overridden = overridden if overridden.overrides else plain
    assert overridden.overrides == "config.gamma=1.5"
    assert overridden.seeds == (2,)
    assert overridden.verdict == "no published value"


def test_other_data_are_stale_beside_the_newest(factory: Factory) -> None:
    factory.record(seed=0, fingerprint="data-old", ended="2025-01-01T00:00:00+00:00")
    factory.record(seed=1, fingerprint="data-new", ended="2025-02-01T00:00:00+00:00")
    new, old = rows_of(factory)
    assert (new.seeds, old.seeds) == ((1,), (0,))
    assert new.verdict != "stale"
    assert old.verdict == "stale"
    assert "evaluation data" in old.notes[0]
    assert "training data" in old.notes[0]


def test_a_subset_does_not_supersede_the_whole(factory: Factory) -> None:
    factory.record(seed=0, images=30, fingerprint="whole", ended="2025-01-01T00:00:00+00:00")
    factory.record(seed=0, images=10, official=30, fingerprint="part", ended="2025-02-01T00:00:00+00:00")
    first, second = rows_of(factory)
    assert (first.images, first.verdict) == (30, "no published value")
    assert (second.images, second.verdict) == (10, "stale")


def test_another_protocol_under_the_same_name_is_stale(factory: Factory) -> None:
    factory.record(seed=0)
    factory.record(seed=1, protocol={"flip": True})
    now, old = rows_of(factory)
    assert now.seeds == (0,)
    assert old.verdict == "stale"
    assert old.notes[0] == "the protocol has changed since: flip"


def test_a_changed_recipe_makes_its_records_stale(factory: Factory) -> None:
    record = factory.record(overrides={"optimiser.lr": 0.5})
    changed = factory.resolved(optimiser={"lr": 0.1, "momentum": 0.5})
    assert changed_keys(record, changed) == ["optimiser.momentum"]
    assert changed_keys(record, factory.resolved()) == []
    rows = rows_of(factory, {changed.name: changed})
    assert [row.verdict for row in rows] == ["stale", "not run"]


def test_an_overridden_length_does_not_make_stale(factory: Factory) -> None:
    resolved = factory.resolved(schedule={"epochs": 3})
    record = factory.record(resolved, overrides={"schedule.epochs": 3})
    assert changed_keys(record, factory.resolved(schedule={"steps": 100})) == []


def test_a_subset_of_the_images_is_stamped_and_not_judged(factory: Factory) -> None:
    resolved = factory.resolved(evaluation=(EvaluationSpec(cells=("paper/voc",), tolerance=100.0),))
    factory.record(resolved, images=30, official=1449)
    (row,) = rows_of(factory)
    assert row.verdict == "not comparable"
    assert (row.images, row.official_images) == (30, 1449)
    assert "scored on 30 of 1449 images of val" in row.notes


def test_training_on_a_subset_is_stamped_and_not_judged(factory: Factory) -> None:
    resolved = factory.resolved(evaluation=(EvaluationSpec(cells=("paper/voc",), tolerance=100.0),))
    factory.record(resolved, trained=(200, 400))
    (row,) = rows_of(factory)
    assert row.verdict == "not comparable"
    assert "trained on 200 of 400 images" in row.notes


def test_absent_classes_are_listed_and_not_zero(factory: Factory) -> None:
    factory.unlabelled = (2,)
    factory.record(seed=0, absent=(2,))
    factory.record(seed=1)
    (row,) = rows_of(factory)
    assert any("ring (1 of 2 seeds)" in note for note in row.notes)
    table = class_frame([row]).set_index("class")
    assert list(table.index) == list(CLASSES)
    assert table.loc["ring", "n"] == 1
    assert table.loc["ring", "absent_seeds"] == 1
    seen = row.runs[1].iou[2]
    assert table.loc["ring", "mean"] == pytest.approx(seen)
    assert row.runs[0].miou == pytest.approx(np.mean(row.runs[0].iou[[0, 1, 3]]))


def test_holes_are_shown(factory: Factory) -> None:
    resolved = factory.resolved(
        evaluation=(EvaluationSpec(), EvaluationSpec(protocol="agmm-voc", cells=("paper/voc",)))
    )
    single = factory.resolved(evaluation=(EvaluationSpec(),))
    factory.record(single)
    never = factory.resolved("tel/mini-point")
    rows = rows_of(factory, {resolved.name: resolved, never.name: never})
    holes = {(r.recipe, r.evaluation): r for r in rows if r.verdict == "not run"}
    assert set(holes) == {("agmm/mini-point", "val-agmm-voc"), ("tel/mini-point", "val-single")}
    assert holes["agmm/mini-point", "val-agmm-voc"].published == 60.0
    assert "run again" not in " ".join(holes["tel/mini-point", "val-single"].notes)
    assert any("again to evaluate it" in note for note in holes["agmm/mini-point", "val-agmm-voc"].notes)


def test_failed_seeds_are_counted_out_and_named(factory: Factory) -> None:
    resolved = factory.resolved()
    factory.record(resolved, seed=0)
    factory.record(resolved, seed=1, status="failed", reason="loss term 'a' is nan\n  where: images x")
    (row,) = rows_of(factory, {resolved.name: resolved})
    assert row.n == 1
    assert row.notes[0] == "failed seeds 1: loss term 'a' is nan"


def test_only_failures_leave_a_hole_with_the_reason(factory: Factory) -> None:
    resolved = factory.resolved()
    factory.record(resolved, seed=4, status="failed", reason="broken")
    (row,) = rows_of(factory, {resolved.name: resolved})
    assert (row.verdict, row.n) == ("not run", 0)
    assert row.notes == ("failed seeds 4: broken",)


def test_share_of_full_supervision(factory: Factory) -> None:
    full = factory.resolved("full/mini", supervision="full")
    factory.record(full, quality=0.8)
    factory.record(quality=0.5)
    factory.record(factory.resolved("agmm/other-backbone", backbone="vit"))
    rows = {row.recipe: row for row in rows_of(factory)}
    assert rows["full/mini"].share == 100.0
    expected = 100 * rows["agmm/mini-point"].mean / rows["full/mini"].mean
    assert rows["agmm/mini-point"].share == pytest.approx(expected)
    assert math.isnan(rows["agmm/other-backbone"].share)


def test_best_checkpoint_is_stamped(factory: Factory) -> None:
    spec = (EvaluationSpec(checkpoint="best"),)
    factory.record(factory.resolved(evaluation=spec, selection={"split": "val"}))
    (row,) = rows_of(factory)
    assert "best checkpoint, selected on val" in row.notes


def test_every_row_says_which_network_was_chosen_and_what_the_choice_has_seen(factory: Factory) -> None:
    both = (
        EvaluationSpec(checkpoint="best"),
        EvaluationSpec(),
        EvaluationSpec(split="train", checkpoint="best"),
    )
    resolved = factory.resolved(evaluation=both, selection={"split": "val"})
    splits = {"val": {"images": 40, "official": 40, "masks": 30}, "train": {"images": 9, "official": 9}}
    factory.record(resolved, data={"dataset": "mini", "splits": splits})
    rows = rows_of(factory)
    assert {row.evaluation: row.selection for row in rows} == {
        "val-single-best": "best on val, the split reported here, by 30 masks of it",
        "val-single": "last",
        "train-single-best": "best on val, by 30 masks of it",
    }
    text = tables_markdown(rows, sections(rows))
    assert "the split reported here" in text
    assert "by 30 masks of it" in html_report(rows, [], known(), provenance="")


def test_where_nothing_was_chosen_it_is_said_once(factory: Factory) -> None:
    for name in ("agmm/mini-point", "pce/mini-point"):
        factory.record(factory.resolved(name))
    rows = rows_of(factory)
    assert tables_markdown(rows, sections(rows)).count("Selection: last") == 1


def test_an_unknown_cell_is_said_so(factory: Factory) -> None:
    factory.record(factory.resolved(evaluation=(EvaluationSpec(cells=("paper/none",), tolerance=1.0),)))
    (row,) = rows_of(factory)
    assert row.verdict == "no published value"
    assert "cites the cell paper/none, which does not exist" in row.notes


def test_order_and_plain_values(factory: Factory) -> None:
    factory.record(factory.resolved("pce/mini-point"), quality=0.3)
    factory.record(factory.resolved("agmm/mini-point"), quality=0.7)
    factory.record(factory.resolved("agmm/mini-scribble", supervision="scribble"), quality=0.7)
    rows = rows_of(factory)
    assert [row.recipe for row in rows] == ["agmm/mini-scribble", "agmm/mini-point", "pce/mini-point"]
    frame = row_frame(rows)
    assert list(frame["recipe"]) == [row.recipe for row in rows]
    assert frame["mean"].tolist() == [row.mean for row in rows]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"supervision": "full"}, "dense masks"),
        ({"supervision": "scribble"}, "simulated, 3 px"),
        ({"supervision": "block"}, "simulated"),
        ({"supervision": "image", "labels": {"source": "simulated"}}, "official image tags"),
        ({"supervision": "scribble", "labels": {"source": "official", "format": "png"}}, "official, PNG"),
        (
            {"supervision": "scribble", "labels": {"source": "official", "format": "xml", "stroke": 1}},
            "official, XML, 1 px",
        ),
        ({"supervision": "point", "labels_from": "cam/mini-image"}, "pseudo labels from cam/mini-image"),
    ],
)
def test_weak_label_in_words(factory: Factory, values: dict[str, Any], words: str) -> None:
    assert weak_label(dump(factory.resolved(**values).recipe)) == words


# --- pseudo labels and cost ------------------------------------------------------------------------------


def test_pseudo_labels_have_coverage_and_background(factory: Factory) -> None:
    resolved = factory.resolved(evaluation=(EvaluationSpec(split="train", output="cam"), EvaluationSpec()))
    runs = [counts(30, 0.6, seed) for seed in range(2)]
    for seed, run in enumerate(runs):
        factory.record(resolved, seed, per_image=run)
    rows = {row.output: row for row in rows_of(factory)}
    cam = rows["cam"]
    decided = [run.predicted.sum() for run in runs]
    labelled = [run.labelled.sum() for run in runs]
    assert cam.split == "train"
    assert cam.coverage == pytest.approx(np.mean([d / n for d, n in zip(decided, labelled, strict=True)]))
    background = [run.predicted[:, 0].sum() / d for run, d in zip(runs, decided, strict=True)]
    assert cam.background == pytest.approx(np.mean(background))
    truth = [run.labelled[:, 0].sum() / n for run, n in zip(runs, labelled, strict=True)]
    assert cam.true_background == pytest.approx(np.mean(truth))
    assert math.isnan(rows["segmentation"].background)
    assert rows["segmentation"].split == "val"


def test_cost_comes_from_the_records(factory: Factory) -> None:
    factory.record(seed=0, steps_per_second=4.0)
    factory.record(seed=1, steps_per_second=2.0)
    (row,) = rows_of(factory)
    assert (row.cost.parameters, row.cost.steps) == (1_230_000, 100)
    assert row.cost.seconds == pytest.approx((25 + 50) / 2)
    assert row.cost.memory_mib == 501.0
    assert row.cost.images_per_second == pytest.approx(30.0)
    assert row.cost.machine == "CPU 1, 1 thread"


def test_a_record_without_cost_has_none(factory: Factory) -> None:
    gone = dict.fromkeys(("parameters", "steps", "steps_per_second", "peak_memory_mib"))
    factory.record(**gone, hardware={})
    (row,) = rows_of(factory)
    assert math.isnan(row.cost.seconds)
    assert math.isnan(row.cost.memory_mib)
    assert row.cost.machine == ""


def test_without_resamples_no_counts_are_read(factory: Factory) -> None:
    record = factory.record()
    frame = gather_records(factory.store)  # reads and checks them
    next(record.path.glob("evaluations/*/per_image.npz")).unlink()
    (row,) = leaderboard(frame, None, known(), resamples=0)
    assert row.mean > 0
    assert math.isnan(row.low)
