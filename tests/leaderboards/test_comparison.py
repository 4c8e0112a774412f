"""``wsss compare`` and ``wsss import``: the same machinery, and strangers marked as such."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from synthetic import CLASSES, Factory

from harness.basics.errors import UserError
from harness.basics.files import cache_folder
from harness.cli.main import invoke
from harness.cli.report import compare_verb as compare_command
from harness.cli.report import import_verb as import_command
from harness.recipes.resolving import parse_overrides, resolve
from harness.recipes.specs import EvaluationSpec
from harness.records.records import PerImage, Store
from harness.running.inference.scoring import finished_records
from harness.running.trials.trial import open_dataset
from leaderboards.judge.claims import judge
from leaderboards.judge.comparison import compare, metric_lines
from leaderboards.judge.statements import read_claims
from leaderboards.rows.external import import_predictions, import_records, read_metadata
from leaderboards.rows.gathering import gather_records
from leaderboards.rows.metrics import metrics
from leaderboards.rows.tables import leaderboard
from leaderboards.write import listings

METADATA = """
name = "theirs"
title = "Theirs"
dataset = "mini"
supervision = "scribble"
backbone = "ResNet-50"
protocol = "multi-scale"
source = "their repository"
"""


def fill(factory: Factory) -> None:
    factory.unlabelled = (3,)
    for seed in range(3):
        factory.record(factory.resolved("agmm/mini-point"), seed, quality=0.8)
        factory.record(factory.resolved("pce/mini-point"), seed, quality=0.5, absent=(3,))


def test_a_comparison_equals_the_claim(factory: Factory, tmp_path: Path) -> None:
    fill(factory)
    frame = gather_records(factory.store)
    (found,) = compare(frame, {}, "agmm/mini-point", "pce/mini-point", resamples=100, permutations=99)
    file = tmp_path / "agmm.toml"
    file.write_text(
        '[c]\nstatement = "x."\n[[c.comparisons]]\nbetter = "agmm/mini-point"\nworse = "pce/mini-point"\n',
        encoding="utf-8",
    )
    (claim,) = judge(frame, {}, known=read_claims([file]), resamples=100, permutations=99)
    for name in ("verdict", "difference", "low", "high", "p_images", "p_images_holm", "n"):
        assert getattr(found.judged, name) == getattr(claim, name)
    (turned,) = compare(frame, {}, "pce/mini-point", "agmm/mini-point", resamples=100, permutations=99)
    assert turned.judged.difference == pytest.approx(-found.judged.difference)
    assert turned.judged.verdict == "does not hold"


def test_text_sorts_classes_and_names_figures(factory: Factory) -> None:
    fill(factory)
    found = compare(gather_records(factory.store), {}, "agmm/mini-point", "pce/mini-point", resamples=50)
    text = listings.comparison(found)
    judged = found[0].judged
    assert f"+{judged.difference:.2f}" in text
    assert "95 % interval over images and seeds" in text
    names = [
        line.split()[0]
        for line in text.partition("first")[2].partition("first")[2].partition("\n\n")[0].splitlines()[1:]
    ]
    assert set(names) == set(CLASSES)
    assert names[-1] == "cross"  # absent from one side: no difference, last


def test_records_with_overrides_are_named_by_their_digest(factory: Factory, capsys) -> None:
    fill(factory)
    for seed in range(3):
        for lr, quality in ((0.5, 0.6), (0.25, 0.3)):
            other = factory.resolved("agmm/mini-point", optimiser={"lr": lr})
            factory.record(other, seed, quality=quality, overrides={"optimiser.lr": lr})
    frame = gather_records(factory.store)
    digests = {
        o: d for d, o in zip(frame["digest"], frame["overrides"], strict=True) if "agmm" in frame["method"][0]
    }
    high, low = (f"agmm/mini-point@{digests[f'optimiser.lr={lr}'][:9]}" for lr in (0.5, 0.25))
    (found,) = compare(frame, {}, high, low, resamples=50)
    assert found.judged.difference > 0
    assert "agmm/mini-point (optimiser.lr=0.5)" in listings.comparison([found])
    (found,) = compare(frame, {}, "agmm/mini-point", high, resamples=50)
    assert (found.a.overrides, found.b.overrides) == ("", "optimiser.lr=0.5")
    for target, problem in (
        ("agmm/mini-point@", "several records' digests begin with ''"),
        ("agmm/mini-point@zzz", "no record's digest begins with 'zzz'"),
    ):
        with pytest.raises(UserError, match=problem) as caught:
            compare(frame, {}, target, "pce/mini-point")
        assert f"{high}" in caught.value.remedy
        assert "(optimiser.lr=0.25; seed 0, 1, 2)" in caught.value.remedy
    alone = frame[frame["overrides"] != ""]
    with pytest.raises(
        UserError, match="no standing record of 'agmm/mini-point' without overrides"
    ) as caught:
        compare(alone, {}, "agmm/mini-point", high)
    assert high in caught.value.remedy


def test_what_cannot_be_compared_is_said(factory: Factory) -> None:
    fill(factory)
    frame = gather_records(factory.store)
    with pytest.raises(UserError, match="did you mean 'agmm/mini-point'"):
        compare(frame, {}, "agmm/mini-points", "pce/mini-point")
    with pytest.raises(UserError, match="did you mean 'val-single'"):
        compare(frame, {}, "agmm/mini-point", "pce/mini-point", evaluation="val-singel")
    changed = factory.resolved("pce/mini-point", crop=99)
    with pytest.raises(UserError, match="the recipe has changed since: crop"):
        compare(frame, {changed.name: changed}, "agmm/mini-point", "pce/mini-point")
    cam = factory.resolved("cam/mini", evaluation=(EvaluationSpec(split="train", output="cam"),))
    factory.record(cam)
    with pytest.raises(UserError, match="share no evaluation"):
        compare(gather_records(factory.store), {}, "agmm/mini-point", "cam/mini")


def test_compare_command(factory: Factory, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("agmm/unshipped", "pce/unshipped"):
        factory.record(factory.resolved(name))
    arguments = ["--results", str(factory.store.root)]
    assert invoke(compare_command, ["agmm/unshipped", "pce/unshipped", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "95 % interval over images " in printed
    assert "over images and seeds" not in printed  # one seed each
    assert "undecided" in printed
    assert invoke(compare_command, ["agmm/unshipped", "nobody/x", *arguments]) == 2


# --- import ----------------------------------------------------------------------------------------------


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    """The truth of mini's val, every tenth column called background."""
    dataset = open_dataset("mini", (), cache_folder())
    folder = tmp_path / "predictions"
    folder.mkdir()
    for image_id in dataset.ids("val"):
        mask = dataset.read_mask(image_id, "val").copy()
        mask[:, ::10] = 0
        mask[mask == 255] = 0
        Image.fromarray(mask).save(folder / f"{image_id}.png")
    return folder


def metadata(tmp_path: Path, text: str = METADATA) -> Path:
    file = tmp_path / "theirs.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_predictions_enter_the_table_as_external(factory: Factory, predictions: Path, tmp_path: Path) -> None:
    dataset = open_dataset("mini", (), cache_folder())
    for seed in (0, 1):
        known = read_metadata(metadata(tmp_path, f"{METADATA}seed = {seed}\n"))
        record = import_predictions(predictions, known, dataset, factory.store)
    (row,) = leaderboard(gather_records(factory.store), {}, resamples=20)
    assert (row.recipe, row.title, row.verdict) == ("external/theirs", "Theirs (external)", "external")
    assert (row.n, row.images, row.official_images) == (2, 100, 100)
    assert (row.supervision, row.backbone, row.weak_label) == ("scribble", "ResNet-50", "not stated")
    assert 80 < row.mean < 100
    assert math.isnan(row.difference)
    assert "predictions from outside: source their repository" in row.notes
    truth = record.evaluations["val-external"].per_image
    hit = truth.intersection.sum(0)
    union = truth.predicted.sum(0) + truth.labelled.sum(0) - hit
    assert row.mean == pytest.approx(float(np.mean(100 * hit / union)))


def test_an_external_row_can_be_compared(factory: Factory, predictions: Path, tmp_path: Path) -> None:
    dataset = open_dataset("mini", (), cache_folder())
    record = import_predictions(predictions, read_metadata(metadata(tmp_path)), dataset, factory.store)
    run = record.evaluations["val-external"]
    theirs = run.per_image
    worse = PerImage(theirs.ids, theirs.intersection // 2, theirs.predicted, theirs.labelled)
    resolved = factory.resolved("pce/unshipped", supervision="scribble")
    fingerprint, classes = run.data["data_fingerprint"], run.data["classes"]
    factory.record(resolved, per_image=worse, fingerprint=fingerprint, classes=classes)
    (found,) = compare(gather_records(factory.store), {}, "external/theirs", "pce/unshipped", resamples=50)
    assert found.judged.difference == pytest.approx(found.a.mean - found.b.mean)
    assert found.judged.low > 0
    ((_, figure, other, _),) = metric_lines(found.a, found.b, metrics(["boundary-iou"]))
    assert 0 < float(figure.split()[0]) <= 100
    assert other == "not counted"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "theirs"', 'name = "a/b"', "is no folder name"),
        ("backbone", "bacbone", "unknown key 'bacbone'"),
        ('"scribble"', '"scribbles"', "key 'supervision'"),
        ('title = "Theirs"\n', "", "key 'title'"),
        ("name =", "name", "not valid TOML"),
    ],
)
def test_mistakes_in_metadata_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_metadata(metadata(tmp_path, METADATA.replace(old, new, 1)))


def test_a_missing_prediction_is_named(factory: Factory, predictions: Path, tmp_path: Path) -> None:
    first = sorted(predictions.iterdir())[0]
    first.unlink()
    arguments = [
        str(predictions),
        "--metadata",
        str(metadata(tmp_path)),
        "--results",
        str(factory.store.root),
    ]
    assert invoke(import_command, arguments) == 2
    assert not factory.store.root.exists()
    with pytest.raises(UserError, match="1 of 100 predictions are missing"):
        dataset = open_dataset("mini", (), cache_folder())
        import_predictions(predictions, read_metadata(metadata(tmp_path)), dataset, factory.store)


def test_import_command(predictions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results"
    arguments = [str(predictions), "--metadata", str(metadata(tmp_path)), "--results", str(results)]
    assert invoke(import_command, arguments) == 0
    assert "external/theirs seed 0: mIoU" in capsys.readouterr().out
    assert [r.name for r in Store(results).records()] == ["external/theirs"]


def test_records_of_another_store_are_copied_once(factory: Factory, tmp_path: Path) -> None:
    fill(factory)
    failed = factory.record(factory.resolved("dfr/mini"), status="failed", reason="x")
    for record in factory.store.records():
        (record.path / "checkpoint").mkdir()
        (record.path / "checkpoint" / "last.pt").write_bytes(b"x")
    target = Store(tmp_path / "mine")
    written, present = import_records(factory.store.root, target)
    assert (len(written), len(present)) == (6, 0)
    assert import_records(factory.store.root, target)[1] == written
    ours = leaderboard(gather_records(target), resamples=10)
    theirs = leaderboard(gather_records(factory.store, "*/mini-point"), resamples=10)
    assert [(r.recipe, r.mean, r.low) for r in ours] == [(r.recipe, r.mean, r.low) for r in theirs]
    assert not list(target.root.rglob("last.pt"))
    assert failed.name not in {r.name for r in target.records()}
    with pytest.raises(UserError, match="no finished record"):
        import_records(tmp_path / "empty", target)


def test_a_record_is_found_by_its_values_however_they_are_written(factory: Factory) -> None:
    name = "pce/mini-point"
    own = {"optimiser.lr": 0.5}
    for seed, overrides in ((0, own), (1, own), (2, {"schedule.steps": 7, "config.aspp_rates": [1, 2, 3]})):
        factory.record(resolve(name, overrides), seed, overrides=overrides)
    usual = resolve(name).recipe.optimiser.momentum
    for asked in (own, {"optimiser.lr": 0.50, "optimiser.momentum": usual}, {"optimiser": {"lr": 0.5}}):
        assert [r.seed for r in finished_records(name, factory.store, asked)] == [0, 1]
    with pytest.raises(UserError, match="with these values") as caught:
        finished_records(name, factory.store, {})
    told = caught.value.remedy
    assert "with --set optimiser.lr=0.5 (seed 0, 1)" in told
    given = re.findall(r"--set ('[^']*'|[^ ;]*)", told)
    third = parse_overrides([g.strip("'") for g in given[1:]])
    assert [r.seed for r in finished_records(name, factory.store, third)] == [2]
    with pytest.raises(UserError, match="seed 5") as caught:
        finished_records(name, factory.store, own, seed=5)
    assert caught.value.remedy == "there are records with --set optimiser.lr=0.5 (seed 0, 1)"
    with pytest.raises(UserError, match="train it first: wsss run agmm/mini-point"):
        finished_records("agmm/mini-point", factory.store, {})
