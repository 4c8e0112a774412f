"""What a digest holds: kept ones stay as they are; an option at its neutral value is as good as absent."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
from pydantic import Field

from harness.basics.registry import DATASETS, METHODS
from harness.basics.schema import (
    Neutral,
    differing,
    digest,
    dump,
    essential,
    fields,
    flatten,
    load,
    marks,
    neutral_values,
    schema,
)
from harness.data.base import LabelSpec
from harness.data.labels import label_store
from harness.data.prepare.label_making import Making
from harness.recipes import protocols, specs
from harness.recipes.protocols import Protocol
from harness.recipes.resolving import _NOT_TRAINING, Resolved, resolve
from harness.recipes.specs import EvaluationSpec, Recipe
from harness.records.records import Store
from harness.running.smoke.report import values_digest
from harness.running.trials.trial import Prepared
from leaderboards.rows.gathering import Current, protocol_changes, stale_reason

#: Digests with all that they were made of, as records hold it. Never edit a line: add some.
KEPT = json.loads(Path(__file__).with_name("kept_digests.json").read_text())
RECORDS = Path(__file__).with_name("records")
PRINTS = ("data", "labels", "weights")


def as_recorded(cls: type, values: Mapping[str, Any]) -> Any:
    """A table from recorded values: options that were not known had their neutral value."""
    neutral = {name: mark.value for name, mark in marks(cls, Neutral).items()}
    return load(cls, {**neutral, **values}, "record")


def resolved_of(name: str, values: Mapping[str, Any]) -> Resolved:
    """The recipe that a record tells."""
    tables = {"batch": specs.BatchSpec, "optimiser": specs.OptimiserSpec, "schedule": specs.ScheduleSpec}
    tables |= {"augment": specs.AugmentSpec, "labels": LabelSpec}
    if values.get("selection"):
        tables["selection"] = specs.SelectionSpec
    inner = {key: as_recorded(cls, values[key]) for key, cls in tables.items()}
    config = as_recorded(METHODS.get(values["method"]).Config, values["config"])
    return Resolved(name, as_recorded(Recipe, {**values, **inner, "config": config}))


def evaluation_digest(spec: EvaluationSpec, fingerprint: str = "data") -> str:
    facts = {"data": {"splits": {spec.split: {"fingerprint": fingerprint}}}}
    return Prepared.evaluation_digest(
        SimpleNamespace(facts=facts, resolved=SimpleNamespace(inference={})), spec
    )  # type: ignore[arg-type]


def label_digest(spec: LabelSpec, supervision: str) -> str:
    info = DATASETS.get("mini").info
    dataset: Any = SimpleNamespace(info=info, mask_path=print, read_mask=print, label_files=print)
    return digest(label_store._source(dataset, "train", supervision, spec, None).facts)  # type: ignore[arg-type]


# --- kept digests --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", KEPT["training"], ids=lambda k: k["name"])
def test_a_kept_training_digest_is_found_again(kept: dict[str, Any]) -> None:
    assert resolved_of(kept["name"], kept["values"]).digest(*kept["fingerprints"]) == kept["digest"]


def test_kept_evaluation_digests_are_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for kept in KEPT["evaluations"]:
        recorded = as_recorded(Protocol, kept["protocol"])
        monkeypatch.setattr(protocols, "protocol", lambda name, p=recorded: p)
        spec = as_recorded(EvaluationSpec, kept["spec"])
        assert evaluation_digest(spec, kept["fingerprint"]) == kept["digest"], kept["spec"]


def test_kept_label_digests_are_found_again() -> None:
    for kept in KEPT["labels"]:
        spec = as_recorded(LabelSpec, kept["spec"])
        assert label_digest(spec, kept["supervision"]) == kept["digest"], kept
    for kept in KEPT["makings"]:
        assert digest(Making(**kept["making"]).facts(), 64) == kept["digest"], kept


@pytest.mark.parametrize("version", sorted(f.name for f in RECORDS.iterdir()))
def test_the_digest_of_a_kept_record_follows_from_its_values(version: str) -> None:
    for record in Store(RECORDS / version).records():
        data = record.data["data"]
        values = {k: v for k, v in record.recipe.items() if k != "evaluation"}
        prints = [data["splits"][values["train_split"]]["fingerprint"], data["labels"]["fingerprint"]]
        assert digest([values, *prints, record.data["weights"]["sha256"] or ""]) == record.digest


# --- what is on purpose in and out ---------------------------------------------------------------------


def test_every_value_of_a_recipe_is_on_purpose_in_the_training_digest_or_out_of_it() -> None:
    """Whoever adds a field decides here which it is."""
    assert set(_NOT_TRAINING) == {"evaluation", "overlap", "suites", "sources", "remarks"}
    inside = {
        "method", "dataset", "supervision", "backbone", "weights", "train_split", "crop", "labels",
        "labels_from", "batch", "config", "optimiser", "schedule", "augment", "amp", "accumulate",
        "selection",
    }  # fmt: skip
    options = set(marks(Recipe, Neutral))
    assert set(fields(Recipe)) == inside | set(_NOT_TRAINING) | options
    base = resolve("full/mini-full")
    assert set(base.essential_values()) == inside


# --- options that are added ----------------------------------------------------------------------------

TABLES = {
    "batch": specs.BatchSpec,
    "optimiser": specs.OptimiserSpec,
    "schedule": specs.ScheduleSpec,
    "augment": specs.AugmentSpec,
    "labels": LabelSpec,
    "selection": specs.SelectionSpec,
}


def with_option(cls: type) -> type:
    """The table with one more option, as someone would add it."""
    extra: Any = type(
        cls.__name__,
        (cls,),
        {
            "__annotations__": {"added": Annotated[Any, Neutral("off")]},
            "added": "off",
            "__module__": __name__,
        },
    )
    return schema(extra)


def values_of(table: Any) -> dict[str, Any]:
    return {name: getattr(table, name) for name in fields(type(table))}


@pytest.mark.parametrize("key", [*TABLES, "recipe", "config"])
def test_an_added_option_changes_training_digests_off_its_neutral_value_alone(key: str) -> None:
    name = "agmm/mini-scribble"
    base = resolve(name)
    base = replace(base, recipe=replace(base.recipe, selection=specs.SelectionSpec()))

    def added(value: str) -> Resolved:
        if key == "recipe":
            cls = with_option(Recipe)
            return replace(base, recipe=cls(**values_of(base.recipe), added=value))
        if key == "config":
            cls = with_option(type(base.config))
            config = cls(**values_of(base.config), added=value)
            return replace(base, recipe=replace(base.recipe, config=config))
        table = getattr(base.recipe, key)
        table = with_option(TABLES[key])(**values_of(table), added=value)
        recipe = Recipe(**values_of(base.recipe))
        object.__setattr__(recipe, key, table)
        return replace(base, recipe=recipe)

    off, on = added("off"), added("on")
    assert off.digest(*PRINTS) == base.digest(*PRINTS)
    assert values_digest(off) == values_digest(base)
    assert on.digest(*PRINTS) != base.digest(*PRINTS)
    assert values_digest(on) != values_digest(base)
    # A record from before the option is stale only where the recipe turns it on.
    record: Any = SimpleNamespace(name=name, recipe=base.training_values(), data={"overrides": {}})
    run: Any = SimpleNamespace(data={"spec": {"protocol": "single"}, "protocol": dump(Protocol())})
    assert stale_reason(record, run, Current({name: off})) == ""
    assert "added" in stale_reason(record, run, Current({name: on}))


def test_an_added_option_of_a_protocol_changes_evaluations_off_its_neutral_value_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec, before = EvaluationSpec(), evaluation_digest(EvaluationSpec())
    cls = with_option(Protocol)
    base = protocols.protocol("single")
    for value, unchanged in (("off", True), ("on", False)):
        p = cls(**values_of(base), added=value)
        monkeypatch.setattr(protocols, "protocol", lambda name, p=p: p)
        assert (evaluation_digest(spec) == before) is unchanged
        assert protocol_changes(dump(base), p) == ([] if unchanged else ["added"])


def test_an_added_option_of_an_evaluation_changes_its_digest_off_its_neutral_value_alone() -> None:
    before = evaluation_digest(EvaluationSpec())
    cls = with_option(EvaluationSpec)
    assert evaluation_digest(cls(added="off")) == before
    assert evaluation_digest(cls(added="on")) != before
    assert evaluation_digest(cls(cells=("x",), tolerance=1.0)) == before


@pytest.mark.parametrize("supervision", ["scribble", "point", "block", "box"])
@pytest.mark.parametrize("source", ["simulated", "official"])
def test_an_added_option_of_labels_makes_them_anew_off_its_neutral_value_alone(
    supervision: str, source: Any
) -> None:
    before = label_digest(LabelSpec(source=source, format="png"), supervision)
    cls = with_option(LabelSpec)
    assert label_digest(cls(source=source, format="png", added="off"), supervision) == before
    assert label_digest(cls(source=source, format="png", added="on"), supervision) != before
    making = Making("scribble", spec=LabelSpec())
    assert digest(replace(making, spec=cls(added="off")).facts()) == digest(making.facts())
    assert digest(replace(making, spec=cls(added="on")).facts()) != digest(making.facts())


@schema
class Inner:
    """A table within a table, with an option of its own."""

    size: int = 1
    """A size."""
    style: Annotated[str, Neutral("plain")] = "plain"
    """An option."""


@schema
class Outer:
    """Options of all kinds, as another package may have them."""

    width: int = 3
    """A value."""
    rate: Annotated[float, Neutral(0)] = Field(default=0.0, ge=0)
    """Its neutral value is written as an integer."""
    switch: Annotated[bool | int, Neutral(False)] = False
    """``False`` is not 0."""
    new: Annotated[str, Neutral("old")] = "new"
    """On by default: it changes numbers, and so digests."""
    table: Annotated[Inner, Neutral(Inner())] = Inner()
    """A whole table."""
    several: tuple[Inner, ...] = ()
    """Tables in a list."""
    scales: Annotated[tuple[float, ...], Neutral((1.0,))] = (1.0,)
    """A list."""


def test_neutral_values_of_every_kind() -> None:
    assert essential(Outer()) == {"width": 3, "new": "new", "several": []}
    assert essential(Outer(new="old")) == {"width": 3, "several": []}
    assert essential(Outer(rate=0.5))["rate"] == 0.5
    assert essential(Outer(switch=0))["switch"] == 0
    assert essential(Outer(table=Inner(style="bold")))["table"] == {"size": 1, "style": "bold"}
    assert essential(Outer(table=Inner(size=2)))["table"] == {"size": 2}
    assert essential(Outer(several=(Inner(), Inner(style="b"))))["several"] == [
        {"size": 1},
        {"size": 1, "style": "b"},
    ]
    assert essential(Outer(scales=(1.0, 2.0)))["scales"] == [1.0, 2.0]
    assert digest(Outer(new="old")) == digest({"width": 3, "several": []})
    assert neutral_values(Outer())["table.style"] == "plain"


@dataclasses.dataclass(frozen=True)
class Plain:
    """A Config that is a plain dataclass."""

    width: int = 3
    added: Annotated[str, Neutral("off")] = "off"


def test_a_plain_dataclass_may_mark_its_options_too() -> None:
    assert essential(Plain()) == {"width": 3}
    assert essential(Plain(added="on")) == {"width": 3, "added": "on"}


def test_a_table_that_comes_or_goes_is_a_change() -> None:
    without = flatten({"selection": None, "lr": 1})
    table = flatten({"selection": {"split": "val"}, "lr": 1})
    assert differing(without, table, {}) == ["selection.split"]
    assert differing(table, without, {}) == ["selection"]
    assert differing(flatten({"lr": 1}), table, {}) == []  # nothing can be said of what it did not know
