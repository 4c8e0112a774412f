"""What a step takes is estimated as it is measured; what fits into memory is named where memory ran out."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from harness.basics.errors import UserError
from harness.engine import faults
from harness.engine.footprint import Footprint, Live, fitting, footprint, key_of, plain, step_of
from harness.engine.made_up import coloured_batch
from harness.engine.networks import build_method
from harness.recipes.resolving import Resolved, resolve
from tests.small_methods import mini_recipes

CPU = torch.device("cpu")
#: A miniature recipe of each method.
RECIPES = {name.partition("/")[0]: name for name in mini_recipes()[::-1]}


def measured(resolved: Resolved) -> Footprint:
    """The same counted while a step is made with values."""
    recipe = plain(resolved.recipe)
    torch.manual_seed(0)
    method = build_method(replace(resolved, recipe=replace(recipe, weights="none")), CPU, seed=0).train()
    batch = coloured_batch(method, recipe.supervision, recipe.crop_size[0], recipe.batch.per_group)
    return step_of(method, recipe, batch)


@pytest.mark.parametrize("name", RECIPES.values())
def test_memory_of_every_method_is_estimated_within_a_quarter(name: str) -> None:
    resolved = resolve(name)
    found, real = footprint(resolved, anew=True), measured(resolved)
    assert found.peak_mib == pytest.approx(real.peak_mib, rel=0.25)
    assert found.fixed_mib == pytest.approx(real.fixed_mib, rel=0.01)
    assert found.tflop == pytest.approx(real.tflop, rel=0.1)
    assert found.batch_mib == pytest.approx(real.batch_mib)
    shipped = footprint(resolved)  # benchmarks/gpu.py --footprints writes them anew
    assert shipped.peak_mib == pytest.approx(found.peak_mib, rel=0.05)
    assert shipped.operations == pytest.approx(found.operations, rel=0.1)


@pytest.mark.parametrize("values", [{"amp": "bf16"}, {"accumulate": 2}, {"optimiser.name": "sgd"}])
def test_values_that_decide_memory_are_estimated(values: dict) -> None:
    resolved = resolve("pce/mini-scribble", values)
    assert key_of(resolved) != key_of(resolve("pce/mini-scribble"))
    assert footprint(resolved).peak_mib == pytest.approx(measured(resolved).peak_mib, rel=0.1)


def test_values_that_decide_nothing_are_not_estimated_again() -> None:
    plain_key = key_of(resolve("pce/mini-scribble"))
    assert key_of(resolve("pce/mini-scribble", {"schedule.steps": 3, "optimiser.lr": 0.5})) == plain_key


def test_tensors_are_counted_from_birth_to_death() -> None:
    with Live() as live:
        first = torch.ones(1024)
        view = first[:10]
        second = first * 2
        assert live.now == 2 * 4096
        del first
        assert live.now == 2 * 4096  # the view still holds it
        del view, second
    assert (live.now, live.most) == (0, 2 * 4096)


def test_out_of_memory_says_what_would_fit() -> None:
    recipe = resolve("pce/mini-scribble").recipe
    needed = footprint(Resolved("", recipe)).peak_mib
    error = torch.OutOfMemoryError(
        f"CUDA out of memory. GPU 0 has a total capacity of {needed:.2f} MiB of which"
    )
    said = faults.remedy_of(error, recipe)
    assert said is not None
    assert f"{needed:,.0f} MiB by estimate" in str(said.where)
    ways = dict(re.findall(r"--set (\S+) \((\d+) MiB\)", said.remedy))
    assert {key.partition("=")[0] for key in ways} == {"accumulate", "amp", "crop"}
    assert all(float(mib) <= 0.9 * needed + 1 for mib in ways.values())
    key, value = next(iter(ways)).split("=")
    changed = Resolved("", replace(recipe, **{key: int(value)}))
    assert footprint(changed).peak_mib == pytest.approx(float(ways[f"{key}={value}"]), abs=1)


def test_where_nothing_fits_alone_that_is_said() -> None:
    recipe = resolve("pce/mini-scribble").recipe
    _, fits = fitting(recipe, 1.0)
    assert fits == {}
    error = torch.OutOfMemoryError("CUDA out of memory. GPU 0 has a total capacity of 1.00 MiB of which")
    assert "several together" in str(faults.remedy_of(error, recipe))


def test_a_loss_that_needs_values_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type(build_method(resolve("cam/mini-image"), torch.device("meta"), seed=0))
    monkeypatch.setattr(kind, "loss", lambda self, batch, progress: {"x": batch.images.data_ptr() / 0})
    with pytest.raises(UserError, match="cannot be estimated"):
        footprint(resolve("cam/mini-image", {"batch.per_group": 7}))
