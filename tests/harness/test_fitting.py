"""Recipes for a user's own pictures, and the values that the pictures choose."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from runs import wsss

from harness.basics.errors import UserError
from harness.basics.registry import DATASETS
from harness.data.sets.own import describe
from harness.engine.rehearsal import rehearse
from harness.recipes import fitting
from harness.recipes.resolving import all_recipes, awaits_pictures, recipe_names, resolve

OWN = [name for name in recipe_names() if awaits_pictures(name)]
TRY = {"backbone": "mini_cnn", "weights": "none"}


def pictures(folder: Path, sizes: list[tuple[int, int]], classes: int = 3) -> Path:
    """A data set of grey pictures of some sizes (width, height), without labels."""
    (folder / "images").mkdir(parents=True)
    for number, size in enumerate(sizes):
        Image.new("RGB", size).save(folder / "images" / f"p{number}.png")
    (folder / "train.txt").write_text("".join(f"p{i}\n" for i in range(len(sizes))))
    names = ", ".join(f'"c{k}"' for k in range(classes))
    (folder / "dataset.toml").write_text(f'classes = [{names}]\nbackground = "c0"\n')
    return folder


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    DATASETS.forget("own")
    fitting.forget_pictures()


@pytest.mark.parametrize(
    ("sizes", "crop", "samples"),
    [
        ([(64, 48)] * 4, 64, 4),
        ([(500, 375)] * 30, 352, 16),
        ([(4000, 3000)] * 9, 512, 8),
        ([(500, 375), (375, 500), (20, 20)], 352, 3),
        ([(2000, 40)] * 5, 64, 5),
        ([(300, 300)], 288, 1),
        ([(10, 10)] * 20, 64, 16),
    ],
)
def test_crop_and_batch_follow_from_the_pictures(tmp_path: Path, sizes, crop: int, samples: int) -> None:
    describe("own", pictures(tmp_path / "birds", sizes))
    resolved = resolve("pce/own-scribble")
    assert (resolved.recipe.crop, resolved.recipe.batch.per_group) == (crop, samples)
    assert set(resolved.chosen) == {"crop", "batch.per_group"}
    assert resolved.origins["crop"].startswith("chosen from")
    by_hand = resolve("pce/own-scribble", {"crop": crop, "batch.per_group": samples})
    assert by_hand.digest() == resolved.digest()  # what counts is the number
    assert not by_hand.chosen


def test_a_value_that_is_set_is_not_chosen(tmp_path: Path) -> None:
    describe("own", pictures(tmp_path / "birds", [(500, 375)] * 30))
    recipe = resolve("agmm/own-point", {"crop": 256}).recipe
    assert (recipe.crop, recipe.batch.per_group) == (256, 16)
    assert resolve("agmm/own-point", {"batch": {"per_group": 2}}).recipe.batch.per_group == 2
    assert resolve("agmm/mini-point", {"crop": "pictures"}).recipe.crop == 320  # pictures of nobody's own


def test_pictures_that_cannot_be_read_are_left_to_the_checks(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "birds", [(64, 48)] * 2)
    (folder / "images" / "p0.png").write_bytes(b"no picture")
    describe("own", folder)
    assert resolve("pce/own-scribble").recipe.crop == 320


def test_without_pictures_they_are_listed_and_say_what_they_need(capsys) -> None:
    assert not set(OWN) & set(all_recipes())
    with pytest.raises(UserError, match="pictures of your own") as error:
        resolve(OWN[0])
    assert "--data-root own=FOLDER" in error.value.remedy
    assert wsss("list", "recipes", "*/own-*") == 0
    shown = capsys.readouterr()
    assert all(name in shown.out for name in OWN)
    assert "left out" not in shown.err


@pytest.mark.parametrize(("name", "classes"), [("agmm/own-point", 2), *((name, 254) for name in OWN)])
def test_every_one_can_be_built_for_any_number_of_classes(tmp_path: Path, name: str, classes: int) -> None:
    describe("own", pictures(tmp_path / "birds", [(64, 48)] * 2, classes))
    rehearse(resolve(name, TRY))


def test_they_are_used_under_any_name(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "birds", [(200, 200)] * 6)
    try:
        describe("birds", folder)
        recipe = resolve("pce/own-point", {"dataset": "birds"}).recipe
        assert (recipe.dataset, recipe.crop, recipe.batch.per_group) == ("birds", 192, 6)
    finally:
        DATASETS.forget("birds")
