"""Records and predictions from elsewhere: equal digests mean equal numbers, and seeds fold."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic import Factory

from harness.basics.errors import UserError
from harness.basics.schema import load
from harness.data.sets.mini import Mini
from harness.records.records import Store
from leaderboards.rows.external import External, import_predictions, import_records, saved_notes
from leaderboards.rows.gathering import external_digest, gather_records
from leaderboards.rows.row import Row
from leaderboards.rows.tables import leaderboard

SPEC = {"split": "val", "protocol": "single"}
MAPS = {"split": "val", "protocol": "single", "output": "cam"}


def other(tmp_path: Path) -> Factory:
    return Factory(Store(tmp_path / "other"))


def rows(factory: Factory) -> list[Row]:
    return leaderboard(gather_records(factory.store), resamples=0)


def package(sha256: str) -> dict:
    found = {"module": "mine", "distribution": "their-methods", "version": "1.0", "brings": ["method mine"]}
    return {**found, "commit": None, "dirty": None, "sha256": sha256}


def code(*sha256: str) -> dict:
    return {"version": "0.1.0", "commit": "a" * 40, "dirty": False, "packages": [package(s) for s in sha256]}


# --- import ------------------------------------------------------------------------------------------


def test_other_numbers_of_equal_digest_are_refused_and_both_are_named(
    factory: Factory, tmp_path: Path
) -> None:
    theirs, recipe = other(tmp_path), factory.resolved(evaluation=[SPEC])
    ours = factory.record(recipe, quality=0.6, code=code("a" * 64))
    found = theirs.record(recipe, quality=0.5, code=code("b" * 64))
    new = theirs.record(recipe, seed=1)
    with pytest.raises(UserError) as caught:
        import_records(theirs.store.root, factory.store)
    text = str(caught.value)
    for record, place in ((ours, "here"), (found, "there")):
        assert f"{record.evaluations['val-single'].miou:.2f} {place}" in text
    assert "agmm/mini-point seed 0, val-single" in text
    assert "code here: their-methods 1.0 (sources aaaaaaaa); there: their-methods 1.0 (sources bbbb" in text
    assert "--results" in text
    assert not factory.store.folder(new.name, new.digest, 1).exists(), "nothing was imported"


def test_a_difference_that_rounds_away_is_one(factory: Factory, tmp_path: Path) -> None:
    theirs, recipe = other(tmp_path), factory.resolved(evaluation=[SPEC])
    numbers = factory.record(recipe).evaluations["val-single"].per_image
    predicted = numbers.predicted.copy()
    predicted[0, 0] += 1
    theirs.record(recipe, per_image=replace(numbers, predicted=predicted))
    with pytest.raises(UserError, match="differ"):
        import_records(theirs.store.root, factory.store)


def test_equal_numbers_are_there_already_and_new_evaluations_are_added(
    factory: Factory, tmp_path: Path
) -> None:
    theirs, recipe = other(tmp_path), factory.resolved(evaluation=[SPEC])
    ours = factory.record(recipe)
    more = theirs.resolved(evaluation=[SPEC, {**SPEC, "split": "train"}])
    theirs.record(more)
    assert import_records(theirs.store.root, factory.store) == ([], [ours.path])
    (merged,) = factory.store.records()
    assert set(merged.evaluations) == {"val-single", "train-single"}
    assert len(merged.evaluations["train-single"].per_image.ids) == 30


def test_an_evaluation_of_another_network_is_not_added(factory: Factory, tmp_path: Path) -> None:
    theirs = other(tmp_path)
    factory.record(factory.resolved(evaluation=[SPEC]))
    found = theirs.record(theirs.resolved(evaluation=[{**SPEC, "split": "train"}]))
    file = found.evaluations["train-single"].path / "evaluation.json"
    file.write_text(file.read_text().replace("0" * 64, "1" * 64))
    with pytest.raises(UserError, match="another trained network"):
        import_records(theirs.store.root, factory.store)


def test_a_record_that_failed_here_is_replaced(factory: Factory, tmp_path: Path) -> None:
    theirs, recipe = other(tmp_path), factory.resolved(evaluation=[SPEC])
    factory.record(recipe, status="failed", reason="no memory")
    theirs.record(recipe)
    written, _ = import_records(theirs.store.root, factory.store)
    (record,) = factory.store.records()
    assert (record.path, record.finished) == (written[0], True)


# --- rows --------------------------------------------------------------------------------------------


def test_records_of_other_code_do_not_share_a_row_and_old_ones_have_none(factory: Factory) -> None:
    recipe = factory.resolved(evaluation=[SPEC])
    factory.record(recipe, seed=0)  # written before code was recorded
    factory.record(recipe, seed=1, code=code("a" * 64), ended="2025-01-02T00:00:00+00:00")
    factory.record(recipe, seed=2, code=code("b" * 64), ended="2025-01-03T00:00:00+00:00")
    factory.record(recipe, seed=3, code=code("b" * 64), ended="2025-01-03T00:00:00+00:00")
    begun = {**code("b" * 64), "begun_with": [[package("a" * 64)]]}
    factory.record(recipe, seed=4, code=begun)
    found = rows(factory)
    assert (found[0].seeds, found[0].verdict == "stale") == ((2, 3), False)
    assert sorted(row.seeds for row in found[1:]) == [(0,), (1,), (4,)]
    assert all(row.verdict == "stale" for row in found[1:])
    assert "their-methods 1.0 (sources bbbbbbbb)" in found[0].commit
    mixed = next(row for row in found if row.seeds == (4,))
    assert "begun with their-methods 1.0 (sources aaaaaaaa)" in mixed.commit


def test_a_network_scored_by_other_code_has_a_row_of_its_own(factory: Factory) -> None:
    recipe = factory.resolved(evaluation=[SPEC])
    for seed in (0, 1):
        factory.record(recipe, seed=seed, code=code("a" * 64))
    file = next(factory.store.root.rglob("seed-1/**/evaluation.json"))
    text = file.read_text().rstrip().removesuffix("}")
    file.write_text(text + ', "packages": [{"module": "mine", "sha256": "%s"}]}' % ("b" * 64))
    assert sorted(row.seeds for row in rows(factory)) == [(0,), (1,)]


def external(factory: Factory, seed: int, notes: str, ended: str = "2025-01-01", **values: object) -> None:
    """What an import of predictions writes, under the digest that took the notes in."""
    known = {"name": "theirs", "title": "T", "dataset": "mini", "protocol": "single", "notes": notes}
    recipe = factory.resolved("external/theirs", evaluation=[SPEC], backbone=notes or "small-cnn")
    factory.record(
        recipe, seed, external=["source a", "made with single", notes], metadata=known, ended=ended, **values
    )


def test_imported_seeds_fold_whatever_is_noted_of_each(factory: Factory) -> None:
    external(factory, 0, "")
    external(factory, 1, "one node died")
    external(factory, 2, "from the log of May")
    (row,) = rows(factory)
    assert (row.seeds, row.verdict) == ((0, 1, 2), "external")
    text = "; ".join(row.notes)
    assert "one node died (seed 1)" in text
    assert "from the log of May (seed 2)" in text
    assert text.count("source a") == 1


def test_of_a_seed_that_was_imported_twice_the_newer_counts(factory: Factory) -> None:
    external(factory, 0, "", quality=0.4)
    external(factory, 0, "now with the right maps", ended="2025-02-01", quality=0.7)
    (row,) = rows(factory)
    assert row.n == 1
    assert "now with the right maps" in "; ".join(row.notes)


def test_notes_are_no_part_of_an_imports_identity_and_the_protocol_is() -> None:
    known = {"name": "a", "protocol": "single", "notes": "x", "seed": 1}
    assert external_digest(known) == external_digest({**known, "notes": "", "seed": 2})
    assert external_digest(known) != external_digest({**known, "protocol": "multi"})


def test_notes_of_a_saved_evaluation_come_along_with_its_predictions(small: Path, tmp_path: Path) -> None:
    masks, saved = small / "mini/SegmentationClass", tmp_path / "saved"
    (saved / "predictions").mkdir(parents=True)
    for name in (small / "mini/ImageSets/Segmentation/val.txt").read_text().split():
        (saved / "predictions" / f"{name}.png").write_bytes((masks / f"{name}.png").read_bytes())
    facts = {"notes": ["assumed, so to say"], "miou": 1.0}
    (saved / "evaluation.json").write_text(json.dumps(facts))
    metadata = load(
        External, {"name": "a", "title": "A", "dataset": "mini", "supervision": "image"}, "metadata"
    )
    store, dataset = Store(tmp_path / "results"), Mini(small)
    import_predictions(saved / "predictions", metadata, dataset, store)
    (row,) = [row for row in leaderboard(gather_records(store), resamples=20) if row.n]
    assert any("assumed, so to say" in note for note in row.notes)
    (saved / "evaluation.json").write_text("half")
    with pytest.raises(UserError, match=r"evaluation\.json"):
        import_predictions(saved / "predictions", metadata, dataset, store)
    (saved / "predictions").rename(tmp_path / "elsewhere")
    assert saved_notes(tmp_path / "elsewhere") == []


def test_maps_of_a_split_that_was_not_trained_on_say_that_they_saw_its_tags(factory: Factory) -> None:
    recipe = factory.resolved("cam/mini-image", evaluation=[MAPS, {**MAPS, "split": "train"}, SPEC])
    factory.record(recipe)
    notes = {row.evaluation: "; ".join(row.notes) for row in rows(factory)}
    assert "made with the image tags of val itself" in notes["val-single-cam"]
    assert "image tags" not in notes["train-single-cam"]
    assert "image tags" not in notes["val-single"]


def test_suppressed_classes_say_that_they_saw_tags(factory: Factory) -> None:
    factory.record(factory.resolved(evaluation=[SPEC]), protocol={"absent": "suppress"})
    (row,) = rows(factory)
    assert any("image tags of val" in note for note in row.notes)
