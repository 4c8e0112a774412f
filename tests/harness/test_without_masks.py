"""A user's own pictures with weak labels and no masks, or with some: nothing is read that is not there."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import wsss

from harness.data.lists import write_tags
from harness.records.records import Store
from harness.running.trials.splits import look
from harness.running.trials.trial import Options, Trial, prepare

TINY = ("schedule.steps=3", "batch.per_group=2", "crop=32", "weights=none")
SCRIBBLES = (
    "labels.source=official",
    "labels.format=png",
    "labels.folder=scribbles",
    "labels.unlabelled=255",
)


def sets(*values: str) -> list[str]:
    return [part for value in values for part in ("--set", value)]


@pytest.fixture
def birds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four pictures, four scribble PNGs, no masks."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "birds"
    for folder in ("images", "scribbles"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(4):
        picture = rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(picture).save(root / "images" / f"p{i}.png")
        label = np.full((48, 64), 255, np.uint8)
        label[5, 5:60], label[30, 25:50] = 0, 1
        Image.fromarray(label).save(root / "scribbles" / f"p{i}.png")
    (root / "train.txt").write_text("p0\np1\np2\np3\n")
    (root / "dataset.toml").write_text('classes = ["background", "bird"]\nbackground = "background"\n')
    return root


def run(birds: Path, *values: str, recipe: str = "pce/mini-scribble") -> int:
    options = ("--seeds", 1, "--local", "--device", "cpu", "--data-root", f"birds={birds}")
    return wsss("run", recipe, *options, *sets("dataset=birds", *TINY, *values))


def draw_masks(birds: Path, ids: list[str], folder: str = "masks") -> None:
    (birds / folder).mkdir(exist_ok=True)
    mask = np.zeros((48, 64), np.uint8)
    mask[20:40, 20:50] = 1
    for name in ids:
        Image.fromarray(mask).save(birds / folder / f"{name}.png")


def only() -> dict:
    (record,) = Store("results").records()
    return record


def test_scribbles_alone(birds, capsys):
    assert wsss("data", "verify", "birds", "--data-root", f"birds={birds}") == 0
    assert "4 pictures, 0 with masks, sound" in capsys.readouterr().out
    assert (
        wsss("data", "show", "birds", "--data-root", f"birds={birds}", "--labels", birds / "scribbles") == 0
    )
    assert run(birds, *SCRIBBLES) == 0
    assert "birds has no split 'val': val-single is not evaluated" in capsys.readouterr().err
    record = only()
    assert record.data["notes"] == ["birds has no split 'val': val-single is not evaluated"]
    assert record.data["data"]["labels"]["classes"] == {
        "background": {"pictures": 4, "pixels": 220},
        "bird": {"pictures": 4, "pixels": 100},
    }
    assert run(birds, *SCRIBBLES) == 0
    assert "kept" in capsys.readouterr().err, "there is nothing left to do"
    assert wsss("report", "--no-plots") == 0
    assert "trained (seed 0), nothing evaluated" in Path("reports/leaderboard.md").read_text()


def test_a_mask_that_nobody_reads_changes_nothing(birds):
    assert run(birds, *SCRIBBLES) == 0
    before = only().digest
    draw_masks(birds, ["p1"])
    assert run(birds, *SCRIBBLES) == 0
    assert only().digest == before, "trained once"


def test_a_validation_split_with_some_masks(birds, capsys):
    for i in range(4, 7):
        shutil.copy(birds / "images" / "p0.png", birds / "images" / f"p{i}.png")
        picture = np.full((48, 64, 3), 30 * i, np.uint8)
        Image.fromarray(picture).save(birds / "images" / f"p{i}.png")
    (birds / "val.txt").write_text("p4\np5\np6\n")
    assert run(birds, *SCRIBBLES) == 0
    assert "no picture of val has a mask" in capsys.readouterr().err
    draw_masks(birds, ["p5"])
    assert run(birds, *SCRIBBLES) == 0
    assert "1 of 3 pictures of val have masks: those are scored" in capsys.readouterr().err
    record = only()
    (evaluation,) = record.evaluations.values()
    assert (evaluation.data["images"], evaluation.data["official_images"]) == (1, 3)
    assert wsss("leaderboard") == 0
    capsys.readouterr()
    assert wsss("verify-store", "--data-root", f"birds={birds}") == 0
    said = capsys.readouterr()
    assert "not compared" not in said.out + said.err
    draw_masks(birds, ["p4", "p6"])
    assert run(birds, *SCRIBBLES) == 0, "scored again, not trained again"
    assert {e.data["images"] for e in only().all_evaluations} == {1, 3}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (("labels.source=simulated",), "4 of the 4 pictures of train have no mask, and scribble labels"),
        ((*SCRIBBLES, 'evaluation=[{split="val"}]'), "birds has no split 'val'"),
        ((*SCRIBBLES, 'evaluation=[{split="train"}]'), "no picture of train has a mask"),
    ],
)
def test_what_needs_masks_is_refused_before_training(birds, capsys, values, said):
    assert run(birds, *values) == 2
    assert said in capsys.readouterr().err
    assert not list(Store("results").records())


def test_full_supervision_needs_every_mask(birds, capsys):
    draw_masks(birds, ["p0", "p1", "p2"])
    assert run(birds, recipe="full/mini-full") == 2
    error = capsys.readouterr().err
    assert "1 of the 4 pictures of train have no mask, and full supervision trains on them" in error
    assert "masks/p3.png" in error


def test_pictures_of_val_in_train_are_refused_unless_it_is_meant(birds, capsys):
    draw_masks(birds, ["p3"])
    (birds / "val.txt").write_text("p3\n")
    assert run(birds, *SCRIBBLES) == 2
    assert "1 ids of val are in train, such as p3" in capsys.readouterr().err
    assert run(birds, *SCRIBBLES, "overlap=allow") == 0
    assert "1 ids of val are in train, such as p3" in only().data["notes"]
    assert wsss("leaderboard") == 0
    assert "1 ids of val are in train, such as p3" in Path("reports/leaderboard.md").read_text()


def test_copies_under_another_name_are_found(birds, capsys):
    shutil.copy(birds / "images" / "p0.png", birds / "images" / "other.png")
    draw_masks(birds, ["other"])
    (birds / "val.txt").write_text("other\n")
    assert run(birds, *SCRIBBLES) == 2
    assert "1 pictures of val are copies of pictures of train, such as other of p0" in capsys.readouterr().err


def test_labels_of_which_nothing_is_legal_to_learn_from(birds, capsys):
    for file in (birds / "scribbles").iterdir():
        Image.fromarray(np.full((48, 64), 255, np.uint8)).save(file)
    assert run(birds, *SCRIBBLES) == 2
    assert "not one pixel of the 4 pictures of train is labelled" in capsys.readouterr().err


def test_the_second_stage_is_on_the_data_of_the_first(birds, capsys, short_sources):
    """Labels of another recipe are made on the user's pictures, not on those of its table."""
    for i in range(4, 16):
        picture = np.full((48, 64, 3), 16 * i, np.uint8)
        Image.fromarray(picture).save(birds / "images" / f"p{i}.png")
    ids = [f"p{i}" for i in range(16)]
    (birds / "train.txt").write_text("\n".join(ids))
    write_tags(birds / "tags.npz", ids, np.array([[0, 1]] * 16, np.uint8))
    assert run(birds, recipe="pce/mini-image") == 0, capsys.readouterr().err
    found = {r.name: r for r in Store("results").records()}
    assert set(found) == {"cam/mini-image", "pce/mini-image"}
    assert {r.recipe["dataset"] for r in found.values()} == {"birds"}
    (labels,) = Path("results/cam").glob("*/*/*/pseudo_labels/train-cam")
    assert sorted(f.stem for f in labels.glob("*.png")) == sorted(ids)
    capsys.readouterr()
    curve = ["cam/mini-image", *sets("dataset=birds"), "--data-root", f"birds={birds}"]
    assert wsss("curve", *curve, "--device", "cpu") == 2
    error = capsys.readouterr().err
    assert "no picture of train has a mask" in error


def test_results_of_an_older_digest_are_gone_on_with(small, tmp_path, cache):
    """Before, masks of the training split counted in the digest, whatever was trained on."""
    options = Options(results=tmp_path / "results", data_roots=(str(small),), cache=cache, device="cpu")
    trial = Trial("agmm/mini-scribble", 1)
    now = prepare(trial, options)
    masks = look(now.dataset, "train", cache, 0, True).fingerprint
    labels, weights = now.facts["data"]["labels"]["fingerprint"], now.facts["weights"]["sha256"]
    earlier = now.resolved.digest(masks, labels, weights)
    assert earlier != now.digest
    options.store.folder(trial.name, earlier, 0).mkdir(parents=True)
    assert prepare(trial, options).digest == earlier, "another seed of it, too"
    options.store.folder(trial.name, now.digest, 0).mkdir(parents=True)
    assert prepare(trial, options).digest == now.digest
