"""``wsss check``: every mistake of docs/methods.md is said; a package that makes none is told so."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest
from installed import ENTRIES, FILES, installed
from runs import wsss

from harness.basics.errors import UserError
from harness.engine.rehearsal import rehearse
from harness.recipes.declared import Paper
from harness.recipes.resolving import resolve
from leaderboards.judge.checking import Breach, check_package
from leaderboards.rows.published import published
from leaderboards.write.provenance_facts import _published
from leaderboards.write.report import published_markdown

PAGE = Path(__file__).parents[2] / "docs/methods.md"

#: A small method; each mistake is made in a subclass of it.
BASE = '''
from typing import Annotated

import torch
from torch import nn

from wsss import InferenceOnly, Method, Paper, outside_autocast, partial_cross_entropy, schema


@schema
class Config:
    """Values."""

    weight: float = 1.0
    """Of the loss."""
    threshold: Annotated[float, InferenceOnly()] = 0.5
    """Of pseudo labels."""


class Base(Method):
    title = "Base"
    supervision = frozenset({"scribble"})
    Config = Config

    def __init__(self, config, build):
        super().__init__(config, build)
        self.net = nn.Conv2d(3, build.num_classes, 1)

    def predict(self, images, network="default"):
        return self.net(images)

    def loss(self, batch, progress):
        logits = self.net(batch.images)
        with outside_autocast(logits.device):
            return {"seg": self.config.weight * partial_cross_entropy(logits.float(), batch.labels)}
'''
_LOSS = "def loss(self, batch, progress):\n"
_TERM = "super().loss(batch, progress)['seg']"
_PREDICT = "def predict(self, images, network='default'):\n"
_EXTRA = (
    "def __init__(self, config, build):\n"
    "        super().__init__(config, build)\n"
    "        self.extra = nn.Conv2d(3, 3, 1)\n"
)
_CAM = (
    "def pseudo_labels(self, images, tags):\n"
    '        """``other``: one."""\n'
    "        return {'cam': (self.net(images).amax(1) > self.config.threshold)"
)
#: By the first column of the table: the name of a method, and what its class has.
MISTAKES: dict[str, tuple[str, str]] = {
    "a layer stands in no parameter group": (
        "no_group",
        _EXTRA + "    def parameter_groups(self):\n        return [{'params': [*self.net.parameters()]}]",
    ),
    "a layer stands in two parameter groups": (
        "two_groups",
        "def parameter_groups(self):\n"
        "        return [{'params': [self.net.bias, self.net.weight]}, {'params': [*self.net.parameters()]}]",
    ),
    "a layer that no loss reaches": ("unreached", _EXTRA),
    "`loss` returns a tensor, not a dictionary": ("tensor", f"{_LOSS}        return {_TERM}"),
    "`loss` returns an empty dictionary": ("empty", f"{_LOSS}        return {{}}"),
    "a loss term with several values": (
        "vector",
        f"{_LOSS}        return {{'seg': self.net(batch.images).mean((1, 2))}}",
    ),
    "a loss term that is a Python number": ("number", f"{_LOSS}        return {{'seg': 0.5}}"),
    "a loss term called like a column of the history": ("step", f"{_LOSS}        return {{'step': {_TERM}}}"),
    "a loss term in half precision under autocast": (
        "half",
        f"{_LOSS}        return {{'seg': self.net(batch.images).mean()}}",
    ),
    "a loss that is NaN where no pixel has a label": (
        "nan",
        f"{_LOSS}        seen = batch.labels < 254\n"
        f"        return {{'seg': {_TERM} + 0 * self.net(batch.images).float().mean(1)[seen].mean()}}",
    ),
    "a misspelt field of the batch": ("field", f"{_LOSS}        return {{'seg': batch.lables}}"),
    "a misspelt value of the configuration": (
        "value",
        f"{_LOSS}        return {{'seg': self.config.wieght * {_TERM}}}",
    ),
    "a view that `views` does not ask for": (
        "view",
        f"{_LOSS}        return {{'seg': self.net(batch.views['half'].images).float().mean()}}",
    ),
    "further pictures that `further` does not ask for": (
        "more",
        f"{_LOSS}        return {{'seg': self.net(batch.further['more'].images).float().mean()}}",
    ),
    "`further` names a split that the data set does not have": (
        "trian",
        "def further(self):\n        from wsss import FurtherSpec\n"
        "        return {'more': FurtherSpec(split='trian')}",
    ),
    "`further` gives anything but specifications": (
        "nospec",
        "def further(self):\n        return {'more': 'train'}",
    ),
    "`order` gives indices that do not exist": (
        "beyond",
        "def order(self, pool, epoch, rng):\n        return [i + 1 for i in range(len(pool))]",
    ),
    "`order` leaves pictures out without replacing them": (
        "fewer",
        "def order(self, pool, epoch, rng):\n        return [i for i in range(1, len(pool))]",
    ),
    "`order` draws from a generator of its own": (
        "drawn",
        "def order(self, pool, epoch, rng):\n        return torch.randperm(len(pool))",
    ),
    "`order` follows what training moves": (
        "follows",
        "def order(self, pool, epoch, rng):\n"
        "        shift = int(self.net.weight.abs().sum() * 1000)\n"
        "        return [(i + shift) % len(pool) for i in range(len(pool))]",
    ),
    "a picture for the log that is none": (
        "shows",
        f"{_LOSS}        self.show('cam', self.net(batch.images)[0, :2])\n        return {{'seg': {_TERM}}}",
    ),
    "a note that is no number": (
        "notes",
        f"{_LOSS}        self.note('kept', self.net.weight[:2])\n        return {{'seg': {_TERM}}}",
    ),
    "a loss whose shapes do not fit": (
        "shapes",
        f"{_LOSS}        half = self.net(batch.images[..., ::2])\n"
        f"        return {{'seg': (half - self.net(batch.images)).float().mean()}}",
    ),
    "a loss whose labels have the wrong type": (
        "kind",
        f"{_LOSS}        scores = self.net(batch.images).float()\n"
        f"        return {{'seg': nn.functional.cross_entropy(scores, batch.labels.float())}}",
    ),
    "a loss that takes 254 for a class": (
        "beyond_classes",
        f"{_LOSS}        scores = self.net(batch.images).float()\n"
        f"        return {{'seg': nn.functional.cross_entropy(scores, batch.labels)}}",
    ),
    "a loss that looks for a key that is not there": (
        "lost_key",
        f"{_LOSS}        return {{'seg': super().loss(batch, progress)['sge']}}",
    ),
    "`predict` whose layers do not fit": (
        "layers",
        f"{_PREDICT}        return self.net(self.net(images))",
    ),
    "`predict` gives too few classes": ("classes", f"{_PREDICT}        return self.net(images)[:, 1:]"),
    "`predict` gives half the size": ("size", f"{_PREDICT}        return self.net(images)[..., ::2, ::2]"),
    "`predict` draws random numbers": (
        "random",
        f"{_PREDICT}        return self.net(images + torch.rand_like(images))",
    ),
    "`predict` looks at the whole batch": (
        "whole",
        f"{_PREDICT}        return self.net(images - images.mean())",
    ),
    "pseudo labels that are no integers": ("floats", _CAM + ".float()}"),
    "pseudo labels that the docstring does not name": ("untold", _CAM + ".long()}"),
    "something that training moves is in no buffer": (
        "moves",
        "steps = 0\n"
        f"    {_LOSS}        self.steps += 1\n        return {{'seg': self.steps * {_TERM}}}",
    ),
    "training reads a value that is marked `InferenceOnly`": (
        "inference",
        f"{_LOSS}        return {{'seg': self.config.threshold * {_TERM}}}",
    ),
    "`predict` reads a value without mark": (
        "unmarked",
        f"{_PREDICT}        return self.config.weight * self.net(images)",
    ),
    "a field of `Config` without docstring": (
        "undocumented",
        "@schema\n    class Config:\n        weight: float = 1.0\n"
        "        threshold: float = 0.5\n        \"\"\"Told.\"\"\"",
    ),
    "defaults that are not those of the reference recipe": (
        "other_defaults",
        "@schema\n    class Config:\n        weight: float = 2.0\n        \"\"\"Told.\"\"\"\n"
        "        threshold: float = 0.5\n        \"\"\"Told.\"\"\"",
    ),
    "no reference recipe": ("no_reference", "reference_recipe = ''"),
    "a search space over a key that does not exist": (
        "space",
        "@classmethod\n    def search_space(cls):\n"
        "        from optuna.distributions import FloatDistribution\n"
        "        return {'wieght': FloatDistribution(0, 1)}",
    ),
    "a paper that nobody can find": ("paper", "paper = Paper('T', 'A', 2020, 'V')"),
    "a kind of supervision without recipe": ("kinds", "supervision = frozenset({'scribble', 'point'})"),
    "another name in the class than in the entry point": ("named", "name = 'another'"),
    "a recipe that evaluates an output which is not made": ("output", "pass"),
    "a recipe with a misspelt key": ("key", "pass"),
    "a recipe that cites a cell which does not exist": ("cell", "pass"),
}  # fmt: skip
_MORE = {
    "output": 'evaluation = [{ output = "camm" }]\n',
    "key": "[mini-other]\nextends = 'mini-scribble'\nschedul = { steps = 1 }\n",
    "cell": 'evaluation = [{ cells = ["nobody/nothing"] }]\n',
    "other_defaults": "config = { weight = 1.0 }\n",
}


def recipe_text(name: str) -> str:
    return (
        '[mini-scribble]\ndataset = "mini"\nsupervision = "scribble"\nbackbone = "mini_cnn"\ncrop = 64\n'
        f"batch = {{ per_group = 2 }}\nschedule = {{ steps = 2 }}\n{_MORE.get(name, '')}"
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Breach, ...]]:
    files = {"mistakes/__init__.py": "", "mistakes/base.py": BASE, "mistakes/recipes/__init__.py": ""}
    lines = ["from mistakes.base import *", "from mistakes.base import Base"]
    for name, body in MISTAKES.values():
        usual = f'    name = "{name}"\n    reference_recipe = "{name}/mini-scribble"\n'
        lines.append(f"class M_{name}(Base):\n{usual}    {body}\n")
        files[f"mistakes/recipes/{name}.toml"] = recipe_text(name)
    files["mistakes/methods.py"] = "\n".join(lines)
    entries = {
        "methods": {name: f"mistakes.methods:M_{name}" for name, _ in MISTAKES.values()},
        "recipes": {"mistakes": "mistakes.recipes"},
    }
    with installed(tmp_path_factory.mktemp("mistakes"), "mistakes", files, entries):
        yield check_package("mistakes").breaches


def told() -> dict[str, tuple[str, bool]]:
    """By mistake: what the page says is said, and whether a run says it too."""
    section = PAGE.read_text().partition("## What a method may do wrong")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (•?) ?\|$", section, re.MULTILINE)
    return {mistake: (said, bool(dot)) for mistake, said, dot in rows if mistake not in ("mistake", "---")}


def test_the_table_has_every_mistake() -> None:
    assert set(told()) == set(MISTAKES)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_said_as_the_page_says(mistake: str, found: tuple[Breach, ...]) -> None:
    name = MISTAKES[mistake][0]
    said, at_run = told()[mistake]
    own = [b for b in found if re.search(rf"\b{name}\b", b.of)]
    assert any(said in str(b) for b in own), [str(b) for b in own]
    assert len({str(b) for b in own}) <= 3, [str(b) for b in own]  # one cause is not told again and again
    try:
        rehearse(resolve(f"{name}/mini-scribble"))
    except UserError:
        assert at_run
    else:
        assert not at_run


#: A package that keeps what it promises, tables included.
SOUND = {
    **FILES,
    "mine/method.py": FILES["mine/method.py"]
    + "        supervision = frozenset({'scribble'})\n        reference_recipe = 'pce/voc-point-r101'\n"
    + "        needs_labels_from = frozenset()\n",
    "mine/published/__init__.py": "",
    "mine/published/mine.toml": """
        [mine2026]
        title = "Mine"
        kind = "paper"
        cells.tiny = { row = "Mine", dataset = "mini", split = "val", supervision = "scribble", value = 50.0 }
    """,
    "mine/claims/__init__.py": "",
    "mine/claims/mine.toml": """
        [mine-lead]
        paper = "mine2026"
        statement = "Mine beats partial cross-entropy."
        comparisons = [{ better = "mine/mini-tiny", worse = "pce/mini-scribble" }]
    """,
    "mine/recipes/mine.toml": FILES["mine/recipes/mine.toml"].replace(
        'suites = ["mine-suite"]',
        'suites = ["mine-suite"]\n    evaluation = [{ cells = ["mine2026/tiny"], tolerance = 1.0 }]',
    ),
}
TABLES = {**ENTRIES, "published": {"mine": "mine.published"}, "claims": {"mine": "mine.claims"}}


def test_a_package_that_keeps_its_promises_is_told_so(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with installed(tmp_path, "my-mine", SOUND, TABLES):
        assert wsss("check", "my_mine") == 0
        said = capsys.readouterr().out
        assert "my_mine: keeps its promises (1 method, 2 recipes, 1 published cell, 1 claim)" in said
        assert wsss("check", "my-mine", "--json") == 0
        (one,) = json.loads(capsys.readouterr().out)
        assert one["package"] == "my-mine"
        assert one["breaches"] == []
        assert wsss("check", "my-min") == 2
        assert "did you mean 'my-mine'" in capsys.readouterr().err
    monkeypatch.setattr("leaderboards.judge.checking.packages", list)
    assert wsss("check") == 2
    assert "wsss new" in capsys.readouterr().err


def test_a_file_that_is_called_after_no_method_says_whose_it_trains(
    tmp_path: Path, small: Path, capsys: pytest.CaptureFixture
) -> None:
    """Either is meant so, or somebody forgot to register a method."""
    own = '[mini-a]\nextends = "mini-b"\n[mini-b]\nextends = "pce/mini-scribble"\n'
    said = '[mini-a]\nextends = "mini-b"\n[mini-b]\nextends = "pce/mini-scribble"\nmethod = "pce"\n'
    files = {"oops/__init__.py": "", "oops/recipes/oops_two.toml": own, "oops/recipes/stages.toml": said}
    entries = {"recipes": {"oops": "oops.recipes"}}
    words = ["--dry-run", "--device", "cpu", "--data-root", small, "--results", tmp_path / "results"]
    with installed(tmp_path / "package", "oops", files, entries):
        assert wsss("check", "oops") == 1
        printed = " ".join(capsys.readouterr().out.split())
        assert printed.count("trains pce, the method of the recipe that it extends") == 2
        assert "stages/" not in printed
        for name, borrows in (("oops_two/mini-a", True), ("stages/mini-a", False)):
            assert wsss("run", name, *words) == 0
            told = capsys.readouterr()
            assert ("there is no method 'oops_two'" in " ".join((told.out + told.err).split())) == borrows


def test_broken_tables_and_data_sets_are_named_by_file_and_line(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    files = {
        **SOUND,
        "mine/published/torn.toml": "[x\n",
        "mine/published/taken.toml": '[agmm-cvpr2023]\ntitle = "T"\nkind = "paper"\n',
        "mine/claims/odd.toml": "[mine-odd]\nstatement = 'S'\n"
        'comparisons = [{ better = "mine/mini-tiny", worse = "pce/mini-scribbel" }]\n',
        "mine/protocols/__init__.py": "",
        "mine/protocols/p.toml": '[single]\nabout = "Taken."\n',
        "mine/data.py": """
            from wsss import Dataset, DatasetInfo
            class Data(Dataset):
                info = DatasetInfo("birds", "Birds", ("a", "a", "b"), ((0, 0, 0),), {"train": 0}, 9, "birds")
                def ids(self, split): return []
                def image_path(self, image_id): ...
                def mask_path(self, image_id, split): ...
                def read_image(self, image_id): ...
                def read_mask(self, image_id, split): ...
                def read_official_label(self, image_id, supervision, spec): ...
                def tags(self, image_ids): ...
        """,
        "mine/verb.py": "import click\n@click.command()\ndef verb(): pass\n",
    }
    entries = {
        **TABLES,
        "protocols": {"mine": "mine.protocols"},
        "datasets": {"birdies": "mine.data:Data"},
        "commands": {"mine": "mine.verb:verb"},
    }
    with installed(tmp_path, "mine", files, entries):
        assert wsss("check", "mine") == 1
        said = capsys.readouterr().out
        for text in (
            "torn.toml",
            "two packages bring a source of published cells 'agmm-cvpr2023'",
            "claim mine-odd: unknown recipe 'pce/mini-scribbel'; did you mean 'pce/mini-scribble'",
            "two packages bring a protocol 'single'",
            "its info says name = 'birds'",
            "classes are two or more distinct names",
            "the palette has 1 colours for 3 classes",
            "background is class 9 of 3",
            "verb mine: it has no help",
            "data set birdies: its files were not read",
        ):
            assert text in said, said
        assert wsss("list", "protocols", "single") == 0  # ours goes on
        assert "whole picture" in capsys.readouterr().out.lower()


def test_a_paper_in_preparation_is_declared_and_printed_so(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    paper = "        paper = wsss.Paper('A better way', 'Ada Lovelace, Grace Hopper')\n"
    files = {
        **SOUND,
        "mine/method.py": "import wsss\n" + dedent(SOUND["mine/method.py"] + paper),
        "mine/recipes/mine.toml": SOUND["mine/recipes/mine.toml"],
    }
    with installed(tmp_path, "mine", files, TABLES):
        assert wsss("check", "mine") == 0, capsys.readouterr().out
        capsys.readouterr()
        assert wsss("list", "methods", "mine") == 0
        assert "Ada Lovelace et al., in preparation" in " ".join(capsys.readouterr().out.split())
        whole = published()
        assert whole.sources["mine2026"].where == "in preparation"
        assert "- **mine2026** (paper): Mine. in preparation." in published_markdown(whole)
        assert ("Where", "in preparation") in _published("mine2026/tiny", whole)


def test_papers_are_told_with_what_is_known_of_them() -> None:
    assert str(Paper("T", "A. Wu, B. Li", 2023, "CVPR")) == "A. Wu et al., CVPR 2023"
    assert str(Paper("T", "A. Wu et al.", 2023, "CVPR")) == "A. Wu et al., CVPR 2023"
    assert str(Paper("T", "A. Wu")) == "A. Wu, in preparation"
    assert str(Paper("T", "A. Wu", 2026)) == "A. Wu, in preparation 2026"
    assert str(Paper("T", "A. Wu", arxiv="2601.1")) == "A. Wu"
