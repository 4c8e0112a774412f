"""What a method may bring of its own beside losses: an optimiser, a frozen helper, numbers for the log; and
recipes of any method in a file of any name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from installed import installed
from runs import wsss
from torch import nn

from harness.basics.errors import UserError
from harness.engine.rehearsal import rehearse
from harness.nn.frozen import Frozen, frozen_hashes
from harness.recipes.resolving import resolve, suites
from harness.records.records import Store

METHOD = '''
import torch
from torch import nn

import wsss


class Lion(torch.optim.Optimizer):
    """Signs of a moving average."""

    def __init__(self, groups, lr):
        super().__init__(groups, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    kept = self.state[p].setdefault("mean", torch.zeros_like(p))
                    kept.mul_(0.9).add_(p.grad, alpha=0.1)
                    p.sub_(kept.sign() * group["lr"])


class Own(wsss.Method):
    name, title = "own_parts", "Own parts"
    supervision = frozenset({"scribble"})
    reference_recipe = "own_parts/mini-tiny"

    def __init__(self, config, build):
        super().__init__(config, build)
        self.net = nn.Conv2d(3, build.num_classes, 1)
        helper = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Dropout(0.5))
        for p in helper.parameters():
            nn.init.constant_(p, 0.5)
        self.helper = wsss.Frozen(helper)

    def predict(self, images, network="default"):
        return self.net(images)

    def loss(self, batch, progress):
        seen = self.helper(batch.images)
        assert not seen.requires_grad and not self.helper.network.training
        if progress.step % 2:
            self.note("odd", float(progress.step))
        self.note("labelled", (batch.labels < 254).float().mean())
        return {"seg": wsss.partial_cross_entropy(self.net(batch.images + seen), batch.labels)}

    def make_optimiser(self, groups, spec):
        return Lion(groups, spec.lr)
'''
TINY = """
[mini-tiny]
dataset = "mini"
supervision = "scribble"
backbone = "mini_cnn"
crop = 32
batch = { per_group = 2 }
schedule = { steps = 20 }
"""
STAGES = """
[first]
extends = "pce/mini-scribble"
suites = ["stages"]

[second]
extends = "first"
optimiser = { lr = 0.02 }

[named]
method = "agmm"
extends = "agmm/mini-scribble"

[nobody]
dataset = "mini"
"""
FILES = {"own_parts/__init__.py": "", "own_parts/method.py": METHOD, "own_parts/recipes/own_parts.toml": TINY,
         "own_parts/recipes/stages.toml": STAGES}  # fmt: skip
ENTRIES = {"methods": {"own_parts": "own_parts.method:Own"}, "recipes": {"own_parts": "own_parts.recipes"}}


@pytest.fixture
def package(tmp_path: Path):
    with installed(tmp_path / "package", "own-parts", FILES, ENTRIES) as place:
        yield place


def test_a_method_trains_with_its_own_optimiser_helper_and_notes(package: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    assert wsss("run", "own_parts/mini-tiny", "--local", "--seeds", "1", "--results", str(results)) == 0
    (record,) = Store(results).records()
    state = torch.load(record.path / "checkpoint/last.pt", weights_only=False)["method"]
    assert set(state) == {"net.weight", "net.bias"}
    assert record.data["frozen"].keys() == {"helper"}
    assert record.data["parameters"] == sum(v.numel() for v in state.values())
    history = record.history()
    assert history["note.odd"].tolist() == [5.0, 15.0]  # means of 1, 3, ..., 9 and 11, ..., 19
    assert 0 < history["note.labelled"][0] < 1
    assert history["loss"].tolist() == pytest.approx(history["seg"].tolist())
    assert json.loads((record.path / "record.json").read_text())["status"] == "finished"


def test_a_file_of_any_name_holds_recipes_of_any_method(package: Path) -> None:
    assert resolve("stages/first").recipe.method == "pce"
    assert resolve("stages/second").recipe.method == "pce"
    assert resolve("stages/named").recipe.method == "agmm"
    assert suites()["stages"] == ["stages/first", "stages/second"]
    theirs = resolve("pce/mini-scribble", {"suites": ["stages"]})
    assert resolve("stages/first").digest() == theirs.digest()
    with pytest.raises(UserError, match="unknown method 'stages'"):
        resolve("stages/nobody")
    with pytest.raises(UserError, match="for a recipe of 'pce'"):
        resolve("stages/first", {"method": "agmm"})


def test_a_helper_moves_with_the_method_and_is_known_by_its_weights() -> None:
    whole = nn.Sequential(nn.Linear(2, 2), Frozen(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))))
    first = frozen_hashes(whole)
    whole.train().double()
    inside = whole[1].network
    assert not inside.training
    assert inside[0].weight.dtype == torch.float64
    assert not any(p.requires_grad for p in inside.parameters())
    assert len(list(whole.parameters())) == len(whole.state_dict()) == 2
    out = whole(torch.ones(1, 2, dtype=torch.float64, requires_grad=True))
    assert not out.requires_grad
    assert frozen_hashes(whole).keys() == first.keys() == {"1"}
    assert frozen_hashes(whole) != first
    assert frozen_hashes(whole.float()) == first


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("return Lion(groups, spec.lr)", "return 5", "gives int, no torch.optim.Optimizer"),
        ("return Lion(groups, spec.lr)", "return Lion([self.net.bias], spec.lr)", "does not hold net.weight"),
        (
            "return Lion(groups, spec.lr)",
            "return Lion([{'params': g['params']} for g in groups], spec.lr)",
            "groups without 'lr_scale'",
        ),
        ('self.note("odd", float(progress.step))', "pass", ""),
        ("(batch.labels < 254).float().mean()", "batch.labels", "the note 'labelled' is a tensor"),
        ('"labelled", ', '"two words", ', "a note cannot be called 'two words'"),
    ],
)
def test_mistakes_are_named_before_training(old: str, new: str, said: str, tmp_path: Path) -> None:
    files = {**FILES, "own_parts/method.py": METHOD.replace(old, new)}
    with installed(tmp_path, "own-parts", files, ENTRIES):
        if not said:
            rehearse(resolve("own_parts/mini-tiny"))
            return
        with pytest.raises(UserError, match=said):
            rehearse(resolve("own_parts/mini-tiny"))
