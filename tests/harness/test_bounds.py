"""Values that make no sense are refused by the recipe's own types, each by its key."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest

from harness.basics.errors import UserError
from harness.basics.registry import METHODS
from harness.basics.schema import load
from harness.data.sets.own import OwnSpec
from harness.recipes.protocols import Protocol
from harness.recipes.resolving import parse_overrides, resolve
from harness.recipes.specs import Recipe
from tests.runs import RECIPE

TOCO, DSKD, FSR = "toco/mini-image", "dskd_gc/mini-image", "fsr/mini-image"


@pytest.mark.parametrize(
    ("recipe", "assignment"),
    [
        (RECIPE, "augment.scale=[0, 0]"),
        (RECIPE, "augment.scale=[2.0, 0.5]"),
        (RECIPE, "augment.scale=[-1, 1]"),
        (RECIPE, "augment.scale=[1, 1e9]"),
        (RECIPE, "augment.area=[0.5, 1.5]"),
        (RECIPE, "augment.aspect=[0, 1]"),
        (RECIPE, "augment.jitter_strength=[0.5, 0.5, -1, 0.1]"),
        (RECIPE, "augment.jitter_strength=[0.5, 0.5, 0.5, 0.6]"),
        (RECIPE, "augment.blur_sigma=[2, 1]"),
        (RECIPE, "augment.shift_range=[10, -10]"),
        (RECIPE, "augment.flip=1.5"),
        (RECIPE, "optimiser.weight_decay=-1"),
        (RECIPE, "optimiser.momentum=1"),
        (RECIPE, "optimiser.momentum=-0.1"),
        (RECIPE, "optimiser.betas=[0.9, 1.0]"),
        (RECIPE, "optimiser.lr=0"),
        (RECIPE, "schedule.steps=true"),
        (RECIPE, "schedule.steps=0"),
        (RECIPE, "schedule.steps=999999999999"),
        (RECIPE, "schedule.power=-1"),
        (RECIPE, "schedule.warmup_factor=2"),
        (RECIPE, "schedule.floor=1.5"),
        (RECIPE, "batch.groups=true"),
        (RECIPE, "batch.per_group=99999999999"),
        (RECIPE, "accumulate=0"),
        (RECIPE, "crop=0"),
        (RECIPE, "crop=1000000000"),
        (RECIPE, "crop=[64, true]"),
        (RECIPE, "labels.stroke=0"),
        (RECIPE, "labels.unlabelled=256"),
        (RECIPE, "labels.block_share=0"),
        (RECIPE, "evaluation=[{tolerance = -1}]"),
        (RECIPE, "config.aspp_rates=[0, 1, 2]"),
        (RECIPE, "config.output_stride=-8"),
        (RECIPE, "config.head_width=1000000000"),
        (RECIPE, "config.self_weight=true"),
        (TOCO, "config.low=0.9"),
        (TOCO, "config.cam_scales=[0]"),
        (TOCO, "config.refine_dilations=[]"),
        (TOCO, "config.refine_dilations=[-1]"),
        (TOCO, "config.seg_start=-1"),
        (DSKD, "config.roi_low=0.8"),
        (DSKD, "config.gc_theta_low=0.9"),
        (DSKD, "config.dino_target_temperatures=[0, 0.1]"),
        (FSR, "config.uncertain_low=0.8"),
        (FSR, "config.uncertain_start=true"),
    ],
)
def test_nonsense_is_refused_by_its_key(recipe: str, assignment: str):
    key = assignment.partition("=")[0]
    with pytest.raises(UserError) as caught:
        resolve(recipe, parse_overrides([assignment]))
    text = str(caught.value)
    assert key.rpartition(".")[2] in text
    assert len(text.splitlines()) <= 6


@pytest.mark.parametrize(
    "values", [{"scales": []}, {"scales": [0]}, {"window": [0, 64]}, {"squash": [64, -1]}, {"flip": 2}]
)
def test_a_protocol_makes_sense(values: dict[str, Any]):
    with pytest.raises(UserError):
        load(Protocol, values, "protocol")


def numbers(annotation: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Every place of a type where a number stands, and a maker of a value that is far below it."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from numbers(get_args(annotation)[0], place)
    elif origin in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from numbers(part, place)
    elif origin is tuple:
        parts = [p for p in get_args(annotation) if p is not Ellipsis]
        for index in range(len(parts)):
            for _, make in numbers(parts[index], place):
                filled = [make] * len(parts)
                yield f"{place}[{index}]", filled
    elif annotation in (int, float):
        yield place, -(10**15)


def schemas() -> dict[str, type]:
    """The types of recipes and protocols, and of every method's configuration."""
    found: dict[str, type] = {"Recipe": Recipe, "Protocol": Protocol, "OwnSpec": OwnSpec}
    for field in dataclasses.fields(Recipe):
        if dataclasses.is_dataclass(default := field.default):
            found[type(default).__name__] = type(default)
    found |= {f"{name}.Config": METHODS.get(name).Config for name in METHODS.names()}
    return found


#: Any number means something there.
FREE = {("LabelSpec", "seed")}


#: Values without defaults.
NEEDED: dict[str, dict[str, Any]] = {
    "Recipe": {"method": "agmm", "dataset": "mini", "supervision": "point", "backbone": "mini_cnn"},
    "OwnSpec": {"classes": ["a", "b"]},
}


@pytest.mark.parametrize("name", sorted(schemas()))
def test_every_number_has_a_lower_bound(name: str):
    cls = schemas()[name]
    for field, annotation in typing.get_type_hints(cls, include_extras=True).items():
        if get_origin(annotation) is Literal or (name, field) in FREE or field.startswith("_"):
            continue
        for place, value in numbers(annotation, field):
            with pytest.raises(UserError) as caught:
                load(cls, {**NEEDED.get(name, {}), field: value}, name)
            assert f"key '{field}" in str(caught.value), (place, str(caught.value))
