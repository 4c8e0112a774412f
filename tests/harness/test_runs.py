"""Whole runs from the command line on the miniature set: records, determinism, mistakes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import ONE, RECIPE, TINY, assert_same_numbers, only, weights, wsss

from harness.data.sets.mini import Mini
from harness.records.records import Store


@pytest.fixture(scope="module")
def first(tmp_path_factory, small):
    """The record of an undisturbed run."""
    results = tmp_path_factory.mktemp("first")
    assert wsss("run", RECIPE, *TINY, *ONE, "--data-root", small, "--results", results) == 0
    return only(results)


def test_a_record_carries_its_provenance(first):
    data = first.data
    assert data["status"] == "finished"
    assert data["recipe"]["schedule"]["steps"] == 30
    assert data["overrides"]["schedule.steps"] == 30
    assert data["recipe"]["config"]["spread"] == "unit", "defaults are spelled out"
    assert data["code"]["version"]
    assert data["environment"]["packages"]["torch"] == torch.__version__
    assert data["hardware"]["device"] == "cpu"
    assert data["data"]["splits"]["train"]["images"] == 16
    assert len(data["data"]["splits"]["train"]["fingerprint"]) >= 16
    assert data["data"]["labels"]["fingerprint"]
    assert len(data["weights"]["sha256"]) == 64
    assert data["parameters"] > 1000
    assert 0 <= first.evaluations["val-single"].miou <= 100
    assert len(first.history()) == 3


@pytest.mark.parametrize("same", [True, False])
def test_an_evaluation_of_another_checkpoint_is_made_again_after_a_stop(tmp_path, small, first, same):
    shutil.copytree(first.path.parents[3], tmp_path / "results")
    trial = only(tmp_path / "results").path
    (trial / "record.json").unlink()  # stopped while it was scored
    (file,) = trial.glob("evaluations/val-single-*/evaluation.json")
    scored = json.loads(file.read_text())
    if not same:
        file.write_text(json.dumps(scored | {"checkpoint_sha256": "2" * 64}))
    assert wsss("run", RECIPE, *TINY, *ONE, "--data-root", small, "--results", tmp_path / "results") == 0
    again = only(tmp_path / "results")
    assert again.data["resumed"] == 30
    assert again.sound["val-single"].data["checkpoint_sha256"] == again.data["checkpoint"]["sha256"]
    assert (again.sound["val-single"].data["written"] == scored["written"]) is same
    assert again.sound["val-single"].miou == first.evaluations["val-single"].miou


def test_the_recorded_miou_equals_a_count_of_the_saved_predictions(tmp_path, small, first, capsys):
    results = tmp_path / "results"
    shutil.copytree(first.path.parents[3], results)
    shutil.rmtree(only(results).path / "evaluations")
    assert (
        wsss("run", RECIPE, *TINY, *ONE, "--data-root", small, "--results", results, "--save-predictions")
        == 0
    )
    evaluation = only(results).evaluations["val-single"]
    dataset = Mini(small)
    hits = sizes = 0
    per_class = {k: [0, 0] for k in range(7)}
    for image_id in dataset.ids("val"):
        prediction = np.array(Image.open(evaluation.path / "predictions" / f"{image_id}.png"))
        mask = dataset.read_mask(image_id, "val")
        for k in range(7):
            inside = mask != 255
            per_class[k][0] += int(((prediction == k) & (mask == k) & inside).sum())
            per_class[k][1] += int((((prediction == k) | (mask == k)) & inside).sum())
        hits += int((prediction == mask)[mask != 255].sum())
        sizes += int((mask != 255).sum())
    expected = [100 * i / u if u else None for i, u in per_class.values()]
    assert evaluation.data["iou"] == expected
    assert evaluation.miou == np.mean([v for v in expected if v is not None])
    assert evaluation.data["pixel_accuracy"] == 100 * hits / sizes
    capsys.readouterr()
    folder = evaluation.path / "predictions"
    assert wsss("evaluate", "--predictions", folder, "--dataset", "mini", "--data-root", small) == 0
    assert f"mIoU {evaluation.miou:.2f}" in capsys.readouterr().out


def test_running_again_trains_nothing_and_touches_nothing(first, small):
    before = {p: p.stat().st_mtime_ns for p in first.path.rglob("*") if p.is_file()}
    results = first.path.parents[3]
    assert wsss("run", RECIPE, *TINY, *ONE, "--data-root", small, "--results", results) == 0
    assert {p: p.stat().st_mtime_ns for p in first.path.rglob("*") if p.is_file()} == before


def test_two_loader_workers_give_the_same_bits(tmp_path, first, small):
    arguments = [*TINY, *ONE, "--workers", "2", "--data-root", small, "--results", tmp_path]
    assert wsss("run", RECIPE, *arguments) == 0
    assert_same_numbers(only(tmp_path), first)


@pytest.mark.faults
def test_ray_gives_the_same_bits_and_the_exit_code_of_the_worst_trial(tmp_path, first, small, local_ray):
    arguments = [*TINY, "--device", "cpu", "--data-root", small, "--results", tmp_path]
    assert wsss("run", RECIPE, *arguments, "--seeds", "2") == 0
    records = list(Store(tmp_path).records())
    assert [r.seed for r in records] == [0, 1]
    assert_same_numbers(records[0], first)
    assert not torch.equal(weights(records[0]), weights(records[1]))
    code = wsss("run", "pce/mini-scribble", *arguments, "--seeds", "1", "--set", "optimiser.lr=1e30")
    assert code == 1
    (failed,) = Store(tmp_path).records("pce/*")
    assert failed.data["status"] == "failed"
    assert "optimiser.lr" in failed.data["reason"]


@pytest.mark.faults
def test_two_processes_on_ray_train_and_evaluate_one_trial(tmp_path, small, capsys, local_ray):
    groups = [*TINY, "--set", "batch.groups=2", "--set", "batch.per_group=2"]
    groups += ["--device", "cpu", "--seed", "0"]
    places = ["--data-root", small, "--results"]
    assert wsss("run", RECIPE, *groups, *places, tmp_path / "one", "--local") == 0
    assert wsss("run", RECIPE, *groups, *places, tmp_path / "two", "--processes-per-trial", "2") == 0
    one, two = only(tmp_path / "one"), only(tmp_path / "two")
    assert (one.data["hardware"]["processes"], two.data["hardware"]["processes"]) == (1, 2)
    assert one.digest == two.digest
    a, b = one.history(), two.history()
    np.testing.assert_allclose(a.loss, b.loss, rtol=1e-2)  # sums in another order
    assert np.abs(a.loss.iloc[0] / b.loss.iloc[0] - 1) < 1e-4
    assert two.evaluations["val-single"].per_image.ids == one.evaluations["val-single"].per_image.ids
    assert two.evaluations["val-single"].miou == pytest.approx(one.evaluations["val-single"].miou, abs=3)
    capsys.readouterr()
    refused = [*groups, *places, tmp_path / "two", "--set", "batch.groups=3", "--processes-per-trial", "2"]
    assert wsss("run", RECIPE, *refused) == 2
    assert "3 groups cannot be shared evenly by 2 processes" in capsys.readouterr().err


def test_a_protocol_is_added_without_training(tmp_path, first, small, capsys):
    results = tmp_path / "results"
    shutil.copytree(first.path.parents[3], results)
    before = only(results).data
    arguments = [
        "--protocol",
        "agmm-voc",
        "--data-root",
        small,
        "--results",
        results,
        "--device",
        "cpu",
        *TINY,
    ]
    assert wsss("evaluate", RECIPE, *arguments) == 0
    record = only(results)
    assert set(record.evaluations) == {"val-single", "val-agmm-voc"}
    assert record.data == before
    assert f"mIoU {record.evaluations['val-agmm-voc'].miou:.2f}" in capsys.readouterr().out


def test_a_checkpoint_file_is_scored_like_its_record(first, small, tmp_path, capsys):
    file = shutil.copy(first.path / "checkpoint" / "last.pt", tmp_path / "mine.pt")
    assert (
        wsss(
            "evaluate",
            RECIPE,
            "--checkpoint",
            file,
            "--data-root",
            small,
            "--device",
            "cpu",
            "--save",
            tmp_path / "out",
        )
        == 0
    )
    saved = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert saved["miou"] == first.evaluations["val-single"].miou
    assert len(list((tmp_path / "out" / "predictions").glob("*.png"))) == 6


def test_pictures_of_any_size_are_segmented(first, small, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name, size in (("wide.jpg", (91, 40)), ("tall.png", (33, 70))):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3)).astype(np.uint8)).save(
            pictures / name
        )
    out = tmp_path / "out"
    checkpoint = first.path / "checkpoint" / "last.pt"
    assert wsss("predict", RECIPE, pictures, "--out", out, "--checkpoint", checkpoint, "--device", "cpu") == 0
    labels = Image.open(out / "wide.png")
    assert (labels.size, labels.mode) == ((91, 40), "P")
    assert np.array(labels).max() < 7
    assert Image.open(out / "tall_overlay.png").size == (33, 70)


# --- mistakes ----------------------------------------------------------------------------------------


def broken(small: Path, tmp_path: Path) -> Path:
    root = tmp_path / "data"
    shutil.copytree(small, root)
    return root


def cut_picture(root):
    file = sorted((root / "mini" / "JPEGImages").glob("*"))[0]
    file.write_bytes(file.read_bytes()[:200])
    return file.stem


def remove_picture(root):
    file = sorted((root / "mini" / "JPEGImages").glob("*"))[0]
    file.unlink()
    return file.stem


def shrink_mask(root):
    file = sorted((root / "mini" / "SegmentationClass").glob("*"))[0]
    Image.open(file).resize((10, 10), 0).save(file)
    return file.stem


def illegal_label(root):
    file = sorted((root / "mini" / "SegmentationClass").glob("*"))[0]
    image = Image.open(file)
    values = np.array(image)
    values[3, 3] = 99
    changed = Image.fromarray(values).convert("P")
    changed.putpalette(image.getpalette())
    changed.save(file)
    return "99"


def empty_list(root):
    (root / "mini" / "ImageSets" / "Segmentation" / "train.txt").write_text("")
    return "train"


@pytest.mark.parametrize("damage", [cut_picture, remove_picture, shrink_mask, illegal_label, empty_list])
def test_bad_data_is_named_before_training_starts(damage, small, tmp_path, capsys):
    root = broken(small, tmp_path)
    named = damage(root)
    results = tmp_path / "results"
    assert wsss("run", RECIPE, *TINY, *ONE, "--data-root", root, "--results", results) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert named in message
    assert "remedy:" in message
    assert len(message.splitlines()) <= 6
    assert not results.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "agmm/mini-scribbles"], "agmm/mini-scribble"),
        (["run", RECIPE, "--set", "config.spred=unit"], "did you mean 'spread'"),
        (["run", RECIPE, "--set", "config.spread=wide"], "'unit', 'pred' or 'plain'"),
        (["run", RECIPE, "--set", "supervision=full"], "does not accept 'full'"),
        (["run", RECIPE, "--set", "batch.per_group=5000"], "batch"),
        (["run", RECIPE, "--data-root", "/nowhere/at/all"], "/nowhere/at/all"),
        (["run", RECIPE, "--device", "cuda"], "CUDA"),
        (["run", RECIPE, "--set", "weights=/nowhere.pth"], "/nowhere.pth"),
        (["run", RECIPE, "--set", "backbone=resnet5O"], "resnet5"),
        (["run", "agmm/voc-point-r101"], "--data-root"),
        (["evaluate", "--predictions", "/nowhere", "--dataset", "mini"], "/nowhere"),
        (["predict", RECIPE, "/nowhere.jpg"], "/nowhere.jpg"),
        (["show", "agmm/nothing"], "unknown recipe"),
        (["rum", "mini"], "did you mean 'run'"),
        (["run", RECIPE, "--sed", "1"], "--seed"),
        (["run", RECIPE, "--processes-per-trial", "2"], "drop --local"),
        (["search", RECIPE, "--processes-per-trial", "2"], "cannot be shared evenly"),
        (["run", RECIPE, "--gpus-per-trial", "1.5"], "cannot be shared out"),
        (["run", RECIPE, "--gpus-per-trial", "some"], "neither a number nor 'groups'"),
        (["run", RECIPE, "--gpus-per-trial", "4", "--processes-per-trial", "2"], "each takes one of its own"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU that must not be there")
def test_mistakes_get_one_clear_message_and_exit_code_2(arguments, message, tmp_path, capsys):
    where = ["--results", str(tmp_path / "results")] if arguments[0] in ("run", "predict") else []
    local = ["--local"] if arguments[0] == "run" and "--gpus-per-trial" not in arguments else []
    assert wsss(*arguments, *where, *local) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    "verb",
    [
        [],
        ["list"],
        ["show"],
        ["run"],
        ["predict"],
        ["evaluate"],
        ["leaderboard"],
        ["plot"],
        ["doctor"],
        ["data"],
        ["search"],
    ],
)
def test_every_verb_explains_itself(verb, capsys):
    assert wsss(*verb, "--help") == 0
    text = capsys.readouterr().out
    assert "Usage:" in text
    if verb and verb != ["data"]:
        assert "Example" in text


def test_list_and_show_say_what_there_is(capsys):
    assert wsss("list") == 0
    assert "agmm/mini-scribble" in capsys.readouterr().out
    assert wsss("list", "recipes", "agmm/*", "--json") == 0
    assert all(r["name"].startswith("agmm/") for r in json.loads(capsys.readouterr().out))
    assert wsss("show", RECIPE, "--set", "optimiser.lr=0.02") == 0
    shown = capsys.readouterr().out
    assert "command line" in shown
    assert "default" in shown
    assert wsss("show", RECIPE, "--docs") == 0
    assert "exp(-D^2)" in capsys.readouterr().out


def test_labels_of_another_recipe_come_from_its_trial_of_the_same_seed(tmp_path, small, short_sources):
    arguments = ["--set", "schedule.steps=2", "--seeds", "2", "--local", "--device", "cpu"]
    assert wsss("run", "pce/mini-image", *arguments, "--data-root", small, "--results", tmp_path) == 0
    sources = {r.seed: r for r in Store(tmp_path).records("cam/*")}
    records = list(Store(tmp_path).records("pce/*"))
    assert sorted(sources) == [r.seed for r in records] == [0, 1]
    assert len({r.digest for r in records}) == 1, "seeds of one recipe share a digest"
    content = [r.data["data"]["labels"]["content"] for r in records]
    assert content[0] != content[1], "each seed has the labels of its own source"
    for record in records:
        source = sources[record.seed]
        assert source.digest in record.data["data"]["labels"]["fingerprint"]
        labels = sorted((source.path / "pseudo_labels" / "train-cam").glob("*.png"))
        assert len(labels) == 16
        assert set(np.unique(np.array(Image.open(labels[0])))) <= {*range(7), 255}


def test_a_dry_run_lists_what_would_run_and_estimates_it_from_records(first, small, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # one line for each trial
    results = first.path.parents[3]
    before = sorted(results.rglob("*"))
    command = ["run", RECIPE, "agmm/mini-image", *TINY, "--local", "--device", "cpu", "--data-root", small]
    assert wsss(*command, "--seeds", 2, "--results", results, "--dry-run") == 0
    out = capsys.readouterr().out
    lines = {line.split("  ")[0].strip(): line for line in out.splitlines()}
    assert "finished" in lines[f"{RECIPE} seed 0"]
    assert "1 record" in lines[f"{RECIPE} seed 1"]
    assert "unknown" not in lines[f"{RECIPE} seed 1"]
    assert "waits" in lines["agmm/mini-image seeds 0, 1"]
    assert "unknown" in lines["cam/mini-image seeds 0, 1"]  # comes along, has no record
    assert "5 of 6 trials to run, 1 at a time" in out
    assert sorted(results.rglob("*")) == before
    assert wsss(*command, "--set", "crop=-3", "--dry-run", "--results", results) == 2
