"""Values as ``wsss show`` prints them and as users mistype them; recipes that report nothing."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import only, wsss

from harness.basics.errors import UserError
from harness.recipes.resolving import explain, parse_overrides, resolve
from harness.recipes.specs import EvaluationSpec, Recipe

RECIPES = ["agmm/voc-point-r101", "fsr/mini-image", "blpseg/voc-scribble-r101", "dfr/mini-scribble"]


def _values(resolved):
    return {key: value for key, value, _, _ in explain(resolved)}


@pytest.mark.parametrize("name", RECIPES)
def test_every_printed_value_is_taken_back_and_changes_nothing(name):
    resolved = resolve(name)
    for key, value, _, _ in explain(resolved):
        overrides = parse_overrides([f"{key}={json.dumps(value)}"])
        again = resolve(name, overrides)
        assert _values(again) == _values(resolved), key


def test_all_printed_values_together_are_the_recipe():
    resolved = resolve(RECIPES[0])
    printed = [f"{key}={json.dumps(value)}" for key, value, _, _ in explain(resolved)]
    assert _values(resolve(RECIPES[0], parse_overrides(printed))) == _values(resolved)


def test_a_length_that_is_not_set_leaves_the_other_one():
    changed = resolve("agmm/mini-scribble", parse_overrides(["schedule.epochs=3", "schedule.steps=null"]))
    assert (changed.recipe.schedule.steps, changed.recipe.schedule.epochs) == (None, 3)
    with pytest.raises(UserError, match="exactly one of 'steps' and 'epochs'"):
        resolve("agmm/mini-scribble", {"schedule.steps": None, "schedule.epochs": None})


@pytest.mark.parametrize("value", ["5", "[1, 2]", "word", "true", "null", "[{ a = 1 }]", "{ nonsense = 1 }"])
def test_any_key_given_something_else_is_a_value_or_an_error_that_names_it(value):
    keys = [f.name for f in fields(Recipe)]
    keys += [k for k, *_ in explain(resolve("agmm/mini-scribble"))]
    for key in keys:
        overrides = parse_overrides([f"{key}={value}"])
        with suppress(UserError):  # anything else would be a crash
            resolve("agmm/mini-scribble", overrides)


@pytest.mark.parametrize("value", ["5", "word", "[1]"])
def test_a_table_replaced_by_a_value_names_the_key(value):
    for table in ("schedule", "optimiser", "batch", "augment", "config", "labels"):
        with pytest.raises(UserError, match=f"key '{table}"):
            resolve("agmm/mini-scribble", parse_overrides([f"{table}={value}"]))


def test_a_recipe_that_reports_nothing_is_scored_by_the_defaults():
    assert resolve("agmm/mini-scribble", {"evaluation": []}).recipe.usual_evaluation == EvaluationSpec()


def test_every_verb_takes_a_record_without_evaluations(small, tmp_path, capsys):
    place = ["--results", tmp_path / "results"]
    tiny = ["--set", "schedule.steps=1", "--set", "batch.per_group=2", "--set", "evaluation=[]"]
    data = ["--data-root", small, "--device", "cpu"]
    assert wsss("run", "full/mini-full", "--seeds", "1", "--local", *data, *place, *tiny) == 0
    assert not only(tmp_path / "results").evaluations
    picture = tmp_path / "a.png"
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(picture)
    assert (
        wsss(
            "predict", "full/mini-full", picture, "--out", tmp_path / "out", *place, *tiny, "--device", "cpu"
        )
        == 0
    )
    assert (tmp_path / "out" / "a.png").exists()
    assert (
        wsss("export", "full/mini-full", "--split", "val", "--out", tmp_path / "x", *data, *place, *tiny) == 0
    )
    assert wsss("leaderboard", *place) == 0
    assert wsss("report", "--no-plots", "--out", tmp_path / "report", *place) == 0
    assert wsss("evaluate", "full/mini-full", *data, *place, *tiny) == 0
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("text", [".steps=5", "schedule.=5", "schedule..steps=5", " =5", ". =5", ".=5"])
def test_a_key_with_an_empty_part_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="cannot read"):
        parse_overrides([text])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("schedule=5", "schedule.steps=2"),
        ("schedule.steps=2", "schedule=5"),
        ('config="x"', "config.dropout=0.1"),
        ("evaluation=[]", "evaluation.protocol=single"),
        ("schedule.steps=2", "schedule.epochs=2"),
        ("schedule.epochs=2", "schedule.steps=2"),
    ],
)
def test_of_two_assignments_none_is_dropped_in_silence(first: str, second: str) -> None:
    with pytest.raises(UserError, match="cannot both be set"):
        parse_overrides([first, second])


def test_assignments_that_agree_are_read_in_any_order() -> None:
    for given in (["selection=null", "selection.split=train"], ["selection.split=train", "selection={}"]):
        selection = resolve("full/mini-full", parse_overrides(given)).recipe.selection
        assert selection is not None
        assert selection.split == "train"


def test_a_file_of_values_gives_way_to_what_is_set_beside_it(tmp_path: Path) -> None:
    (tmp_path / "best.toml").write_text("[schedule]\nsteps = 100\n")
    recipe = resolve("full/mini-full", parse_overrides([f"@{tmp_path / 'best.toml'}", "schedule.epochs=3"]))
    assert (recipe.recipe.schedule.steps, recipe.recipe.schedule.epochs) == (None, 3)


@pytest.mark.parametrize(
    "value",
    ['[{"split": "val"}, {"split": "val"}]', '[{}, {"tolerance": 1.0}]', '[{"output": "segmentation"}, {}]'],
)
def test_two_evaluations_of_one_name_are_refused(value: str) -> None:
    with pytest.raises(UserError, match="two evaluations are 'val-single'"):
        resolve("full/mini-full", parse_overrides([f"evaluation={value}"]))
