"""A method that was typed into a notebook: it trains, other processes get it, and records hold its source."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from ray import cloudpickle

import wsss
from harness.basics.errors import UserError
from harness.basics.registry import METHODS, refresh
from harness.recipes import foreign
from harness.recipes.resolving import resolve
from harness.running.trials.execution import TrialJob
from harness.running.trials.trial import Trial

CELL = '''
import wsss


@wsss.schema
class Config(wsss.DeepLabConfig):
    """Values."""

    weight: float = 1.5
    """Of the loss."""


class Typed(wsss.DeepLabMethod):
    name, title = "typed", "Typed"
    supervision = frozenset({"scribble"})
    Config = Config

    def loss(self, batch, progress):
        logits = self.network(batch.images).logits
        return {"seg": self.config.weight * wsss.partial_cross_entropy(logits.float(), batch.labels)}
'''
RECIPE = """
method = "typed"
extends = "_shared/mini-deeplab"
supervision = "scribble"
crop = 32
batch = { per_group = 2 }
schedule = { steps = 2 }
"""


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type]:
    """The class, as a notebook's kernel makes it: of ``__main__``, without a file, with its text at hand."""
    kernel = ModuleType("__main__")
    name = "<cell 1>"
    monkeypatch.setitem(linecache.cache, name, (len(CELL), None, CELL.splitlines(keepends=True), name))
    monkeypatch.setitem(sys.modules, "__main__", kernel)
    exec(compile(CELL, name, "exec"), vars(kernel))
    (tmp_path / "typed.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    yield wsss.register_method(kernel.Typed)
    METHODS.forget("typed")
    refresh()


def test_it_trains_here_and_its_source_is_in_the_record(typed: type) -> None:
    (outcome,) = wsss.run("typed.toml", seeds=1)
    assert outcome.status == "finished"
    (record,) = wsss.Store("results").records()
    (package,) = record.data["code"]["packages"]
    assert "def loss(self, batch, progress)" in package["source"]


def test_another_process_gets_it_with_its_work(typed: type) -> None:
    overrides = {"dataset": "mini", "supervision": "scribble", "backbone": "mini_cnn"}
    job = TrialJob(0, Trial("typed/file", 0, overrides), wsss.Options())
    identity = foreign.code_identity(foreign.packages_of(resolve("typed/file", overrides)))
    sent = cloudpickle.dumps(job)
    METHODS.forget("typed")
    refresh()
    with pytest.raises(UserError):
        METHODS.get("typed")
    cloudpickle.loads(sent)
    there = METHODS.get("typed")
    assert there.Config().weight == 1.5
    packages = foreign.packages_of(resolve("typed/file", overrides))
    assert foreign.code_identity(packages) == identity
    assert "class" in packages[0]["source"] or "def loss" in packages[0]["source"]


def test_a_name_that_is_taken_or_a_class_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match="there is a method 'pce' already"):
        wsss.register_method(type("Mine", (wsss.DeepLabMethod,), {"name": "pce"}))
    with pytest.raises(UserError, match="it lacks"):
        wsss.register_method(type("Mine", (wsss.DeepLabMethod,), {"name": "nobodys"}))
    assert "nobodys" not in METHODS


def test_places_are_sent_from_the_root_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "a=b").mkdir()
    monkeypatch.chdir(tmp_path)
    roots = ("here", "voc2012=here", "a=b")
    options = wsss.Options(results="results", data_roots=roots)
    sent = cloudpickle.loads(cloudpickle.dumps(options))
    assert sent.results == tmp_path / "results"
    assert sent.data_roots == (f"{tmp_path}/here", f"voc2012={tmp_path}/here", f"{tmp_path}/a=b")
    assert cloudpickle.loads(cloudpickle.dumps(wsss.Options(results="s3://b/p"))).results == "s3://b/p"


@pytest.mark.faults
def test_it_trains_on_ray(typed: type) -> None:
    outcomes = wsss.run("typed.toml", seeds=2, resources=wsss.Resources(cpus_per_process=1))
    assert [o.status for o in outcomes] == ["finished", "finished"]
    record, _ = wsss.Store("results").records()
    assert "def loss" in record.data["code"]["packages"][0]["source"]
    again = wsss.run("typed.toml", seeds=2)
    assert [o.status for o in again] == ["kept", "kept"]
    assert not any("other code" in (o.reason or "") for o in again)
