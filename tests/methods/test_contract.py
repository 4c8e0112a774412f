"""What every method promises, asked of all of ours by the functions that ``wsss check`` asks of others'."""

from __future__ import annotations

import pytest
import torch
from small_methods import mini_recipes

from harness.basics.registry import METHODS
from harness.basics.schema import InferenceOnly, marks
from harness.engine import promises
from harness.recipes.resolving import resolve


def test_every_method_has_a_miniature_recipe_for_every_supervision_it_accepts():
    covered = {(resolve(n).recipe.method, resolve(n).recipe.supervision) for n in mini_recipes()}
    for name in METHODS.names():
        for supervision in METHODS.get(name).supervision:
            assert (name, supervision) in covered, f"{name} has no miniature recipe under {supervision}"


#: In bfloat16 one recipe of each method and supervision; in float16, which is slow on a CPU, of each method.
HALVES = [
    (name, dtype)
    for dtype, depth in ((torch.bfloat16, 2), (torch.float16, 1))
    for name in {tuple(n.replace("/", "-").split("-")[::2][:depth]): n for n in mini_recipes()[::-1]}.values()
]
#: One recipe of each method and kind of labels, in every precision that a CPU has.
BARE = [(name, torch.float32) for name, dtype in HALVES if dtype == torch.bfloat16] + HALVES
#: One recipe of each method.
FIRST = {resolve(n).recipe.method: n for n in mini_recipes()[::-1]}.values()
WITH_INFERENCE = [n for n in mini_recipes() if marks(type(resolve(n).config), InferenceOnly)]


@pytest.mark.parametrize(("name", "dtype"), HALVES, ids=lambda v: str(v).removeprefix("torch."))
def test_mixed_precision_trains_and_predicts(name, dtype):
    assert list(promises.mixed_precision(name, dtype)) == []


@pytest.mark.parametrize(("name", "dtype"), BARE, ids=lambda v: str(v).removeprefix("torch."))
def test_crops_without_any_label_are_survived(name, dtype):
    assert list(promises.bare_crops(name, dtype)) == []


@pytest.mark.parametrize(
    ("promise", "name"),
    [
        *((p, n) for p in (promises.losses_reach, promises.predicts) for n in mini_recipes()),
        *((p, n) for p in (promises.state_survives, promises.parameters_are_grouped) for n in mini_recipes()),
        *((promises.inference_values_unread, n) for n in WITH_INFERENCE),
        *((p, n) for p in (promises.values_are_marked, promises.outputs_are_told) for n in FIRST),
    ],
    ids=lambda v: getattr(v, "__name__", v),
)
def test_a_recipe_of_every_kind_keeps_its_promises(promise, name):
    assert list(promise(name)) == []


@pytest.mark.parametrize("promise", promises.OF_METHODS, ids=lambda p: p.__name__)
@pytest.mark.parametrize("name", METHODS.names())
def test_every_method_keeps_its_promises(promise, name):
    assert list(promise(METHODS.get(name))) == []
