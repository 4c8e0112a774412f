"""Recipes and their schema: mistakes are named before anything runs; every value has an origin."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.basics.errors import UserError
from harness.basics.schema import digest, documentation, dump, flatten, load
from harness.recipes import recipe_files, resolving
from harness.recipes.resolving import (
    awaits_pictures,
    expand,
    explain,
    parse_overrides,
    recipe_names,
    resolve,
    suites,
)
from harness.recipes.specs import Recipe


def make(**values):
    base = {"method": "m", "dataset": "d", "supervision": "point", "backbone": "b", "schedule": {"steps": 5}}
    return load(Recipe, base | values, "here.toml [x]")


def test_every_shipped_recipe_resolves_and_says_where_values_come_from():
    assert recipe_names()
    for name in (n for n in recipe_names() if not awaits_pictures(n)):
        resolved = resolve(name)
        rows = {key: origin for key, _, origin, _ in explain(resolved)}
        assert rows["dataset"] != "default"
        unknown = set(resolved.recipe.sources) - set(rows)
        assert not unknown, f"{name}: sources of keys that do not exist: {unknown}"


def test_every_recipe_key_is_documented():
    for name, text in documentation(Recipe).items():
        assert text, name


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bacbone": "x"}, "did you mean 'backbone'"),
        ({"schedule": {"stps": 3}}, "did you mean 'steps'"),
        ({"batch": {"per_group": 0}}, "batch.per_group"),
        ({"supervision": "points"}, "'point'"),
        ({"evaluation": [{"splt": "val"}]}, "did you mean 'split'"),
    ],
)
def test_mistakes_name_key_place_and_remedy(values, message):
    with pytest.raises(UserError) as caught:
        make(**values)
    assert message in str(caught.value)
    assert "here.toml" in str(caught.value)


def test_digest_ignores_what_cannot_change_the_network_and_nothing_else():
    name = next(n for n in recipe_names() if n.startswith("agmm/"))
    base = resolve(name)
    protocol = {"split": "val", "protocol": "agmm-voc"}
    assert resolve(name, {"evaluation": [protocol], "remarks": ["x"]}).digest() == base.digest()
    assert resolve(name, {"optimiser.lr": 0.0123}).digest() != base.digest()
    assert resolve(name, {"labels.stroke": 7}).digest() != base.digest()
    assert base.digest("fingerprint") != base.digest()
    field = next(iter(documentation(type(base.config))))
    assert field in base.training_values()["config"], "defaults of Config enter the digest"


def test_overrides_are_toml_values_and_reach_nested_keys():
    assert parse_overrides(["a.b=1.5", "c=true", "d=word", "e=[1, 2]"]) == {
        "a.b": 1.5,
        "c": True,
        "d": "word",
        "e": [1, 2],
    }
    with pytest.raises(UserError, match="KEY=VALUE"):
        parse_overrides(["oops"])
    name = recipe_names()[0]
    resolved = resolve(name, {"optimiser.lr": 0.5})
    assert resolved.recipe.optimiser.lr == 0.5
    assert {k: o for k, _, o, _ in explain(resolved)}["optimiser.lr"] == "command line"


def test_steps_on_the_command_line_replace_epochs_of_the_file():
    name = next(n for n in recipe_names() if resolve(n).recipe.schedule.epochs)
    resolved = resolve(name, {"schedule.steps": 7})
    assert resolved.recipe.schedule.total_steps(100) == 7


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"config.gama": 1}, "unknown key"),
        ({"steps": 60}, "did you mean 'schedule.steps'"),
        ({"lr": 0.1}, "did you mean 'optimiser.lr'"),
        ({"supervision": "full"}, "does not accept"),
        ({"supervision": "image", "labels_from": None}, "labels_from"),
        ({"dataset": "voc2021"}, "did you mean 'voc2012'"),
        ({"evaluation": [{"protocol": "agm-voc"}]}, "agmm-voc"),
        ({"evaluation": [{"checkpoint": "best"}]}, "selection"),
    ],
)
def test_a_wrong_override_is_refused(override, message):
    name = next(n for n in recipe_names() if n.startswith("pce/"))
    with pytest.raises(UserError, match=message):
        resolve(name, override)


@pytest.mark.parametrize(
    ("overrides", "remedy"),
    [
        ({"optimiser.nesterov": True, "optimiser.name": "adamw"}, "set nesterov to false, or name to sgd"),
        (
            {"optimiser.nesterov": True, "optimiser.name": "sgd", "optimiser.momentum": 0.0},
            "set momentum to 0.9, for instance, or nesterov to false",
        ),
        ({"augment.scale": [2.0, 0.5]}, "turn it round: [0.5, 2.0]"),
        ({"optimiser": 5}, "set what is inside: optimiser.name, optimiser.lr"),
        ({"batch": []}, "set what is inside: batch.groups, batch.per_group, batch.sync_bn"),
        ({"optimiser.momentum": -1}, "SGD only. For instance momentum = 0.9"),
        ({"optimiser.betas": [1, 2]}, "Adam and AdamW only. For instance betas = [0.9, 0.999]"),
        ({"config.aspp_rates": [1]}, "For instance aspp_rates = [6, 12, 18]"),
        ({"config.output_stride": True}, "For instance output_stride = 8"),
        ({"evaluation": 3}, "What is reported."),
        ({"evaluation": [{"split": 3}]}, 'Split of the data set. For instance split = "val"'),
        ({"schedule.warmup_factor": 2}, "For instance warmup_factor = 1e-06"),
    ],
)
def test_refused_values_come_with_what_can_be_set(overrides, remedy):
    with pytest.raises(UserError) as caught:
        resolve("agmm/mini-scribble", overrides)
    assert remedy in caught.value.remedy
    assert "Args" not in str(caught.value)


@pytest.mark.parametrize(
    "key", [k for k in flatten(dump(resolve("agmm/mini-scribble").recipe)) if "sources" not in k]
)
def test_every_key_has_a_remedy(key):
    with pytest.raises(UserError) as caught:
        resolve("agmm/mini-scribble", {key: {"nothing": 1}})
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("recipe", "low", "high"),
    [
        ("dskd_gc/mini-image", "roi_low", "roi_high"),
        ("dskd_gc/mini-image", "gc_theta_low", "gc_theta_high"),
        ("fsr/mini-image", "uncertain_low", "uncertain_high"),
        ("toco/mini-image", "low", "high"),
    ],
)
def test_ranges_of_configurations_say_which_end_to_move(recipe, low, high):
    with pytest.raises(UserError, match="must not be larger") as caught:
        resolve(recipe, {f"config.{low}": 0.9, f"config.{high}": 0.1})
    assert caught.value.remedy == f"set {low} to 0.1 at most, or {high} to 0.9 at least"


def test_globs_suites_and_names_expand_in_order_and_once():
    assert expand(["pce/*"]) == [n for n in recipe_names() if n.startswith("pce/")]
    assert set(expand(["mini"])) == set(suites()["mini"])
    assert len(expand(["mini", "*/mini-*", "mini"])) == len(set(expand(["*/mini-*", "mini"])))
    with pytest.raises(UserError, match="did you mean"):
        expand(["agmm/voc-points-r101"])


def test_inheritance_merges_tables_and_refuses_cycles(monkeypatch):
    tables = {
        "m": {
            "_base": {"optimiser": {"lr": 1.0, "momentum": 0.5}, "schedule": {"epochs": 3}},
            "child": {"extends": "_base", "optimiser": {"lr": 2.0}, "schedule": {"steps": 9}},
            "loop": {"extends": "loop"},
        }
    }
    monkeypatch.setattr(recipe_files, "files", lambda: {"m": {Path("m.toml"): "m"}})
    monkeypatch.setattr(recipe_files, "tables", lambda stem: tables[stem])
    values, origins = resolving._inherited("m/child")
    assert values["optimiser"] == {"lr": 2.0, "momentum": 0.5}
    assert values["schedule"] == {"steps": 9}
    assert origins["optimiser.momentum"] == "m.toml [_base]"
    assert origins["optimiser.lr"] == "m.toml [child]"
    with pytest.raises(UserError, match="extends itself"):
        resolving._inherited("m/loop")


def test_digest_is_stable_and_order_free():
    assert digest({"a": 1, "b": (1, 2)}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


@pytest.mark.parametrize(
    "assignment",
    [
        "optimiser.momentum=nan",
        "optimiser.momentum=NaN",  # no TOML, but what Python reads as a number
        'optimiser.weight_decay="-inf"',
        "optimiser.lr=1e309",
        f"optimiser.lr={'9' * 400}",
        f"schedule.steps={'9' * 30}",
        f"schedule.steps={'9' * 5000}",
        "schedule.steps=inf",
        "optimiser.betas=[nan, 0.999]",
        "augment.scale=[0.5, inf]",
        "crop=nan",
        "config.gamma=nan",
        "config={gamma = inf}",
        "config.nothing=nan",
        "labels.ratio=nan",
        "remarks=[nan]",
    ],
)
def test_numbers_that_are_not_finite_are_refused_wherever_they_stand(assignment):
    with pytest.raises(UserError) as refused:
        resolve("agmm/mini-scribble", parse_overrides([assignment]))
    key = assignment.partition("=")[0].split(".")[0]
    assert key in refused.value.problem
    assert len(str(refused.value)) < 600


def test_a_file_of_values_may_not_hold_such_numbers_either(tmp_path):
    file = tmp_path / "best.toml"
    file.write_text("[optimiser]\nlr = nan\n")
    with pytest.raises(UserError, match=r"optimiser\.lr"):
        resolve("agmm/mini-scribble", parse_overrides([f"@{file}"]))
    for text in ("a = " + "[" * 5000, f"a = {'9' * 5000}"):
        file.write_text(text)
        with pytest.raises(UserError, match="not valid TOML"):
            parse_overrides([f"@{file}"])


def test_all_on_the_tiny_transformer_learn_at_the_same_rates():
    on_it = [r for r in map(resolve, expand(["*/mini-*"])) if r.recipe.backbone == "mini_vit"]
    assert {r.recipe.method for r in on_it} >= {"toco", "fsr", "dskd_gc", "cam", "full"}
    for resolved in on_it:
        rate, config = resolved.recipe.optimiser.lr, resolved.config
        scales = (
            (1, config.head_lr_scale) if hasattr(config, "head_lr_scale") else (config.backbone_lr_scale, 1)
        )
        assert [rate * s for s in scales] == pytest.approx([5e-4, 5e-3]), resolved.recipe.method
