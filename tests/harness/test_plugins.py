"""Packages of other people: a broken one, or one that takes a name that is taken, stands in nobody's way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from installed import ENTRIES, FILES, METHOD, again, forget, installed, write
from runs import wsss

from harness.basics.errors import UserError
from harness.basics.registry import COMMANDS, DATASETS, METHODS, RECIPE_PACKAGES
from harness.cli.main import cli, invoke
from harness.engine.rehearsal import rehearse
from harness.recipes.resolving import expand, recipe_names, resolve, suites
from harness.running.search.plan import plan_search
from harness.running.trials.trial import Options

#: Modules that bring a method `bad` in ways that cannot work, and a word of the error.
BROKEN = {
    "class Mine(Method:\n": "SyntaxError",
    "raise RuntimeError('no licence')": "no licence",
    "raise SystemExit('no licence')": "no licence",
    "import a_module_that_nobody_has": "a_module_that_nobody_has",
    "from harness.engine.method import Metod": "Metod",
    "undefined_name": "undefined_name",
    "class Other: pass": "has no 'Mine'",
    "class Mine: pass": "no harness.engine.method.Method",
    "Mine = 5": "no harness.engine.method.Method",
    METHOD + "\n        title = property()\n        supervision = 'image'": "supervision 'image'",
    METHOD + "\n        supervision = frozenset({'scrible'})": "scrible",
    METHOD + "\n        paper = 'CVPR 2020'": "CVPR 2020",
    METHOD + "\n        Config = dict": "Config",
    "from harness.engine.method import Method\nclass Mine(Method):\n    name = 'bad'": "lacks",
}


def test_a_broken_method_is_named_with_its_package_and_stops_no_other(tmp_path: Path) -> None:
    files = {f"their_bad/m{i}.py": source for i, source in enumerate(BROKEN)}
    entries = {f"bad{i}": f"their_bad.m{i}:Mine" for i in range(len(BROKEN))}
    with installed(tmp_path, "their-bad", {"their_bad/__init__.py": "", **files}, {"methods": entries}):
        assert METHODS.get("pce").title
        assert set(METHODS.problems()) == set(entries)
        for name, word in zip(entries, BROKEN.values(), strict=True):
            with pytest.raises(UserError) as caught:  # asked again, it says the same
                METHODS.get(name)
            assert f"method {name!r}" in caught.value.problem
            assert word in str(caught.value)
            assert f"their-bad 1.0 ({entries[name]})" in str(caught.value)
            assert caught.value.remedy


def test_the_line_of_a_mistake_is_named(tmp_path: Path) -> None:
    files = {
        "their/__init__.py": "",
        "their/deep.py": "x = 1\nx.nothing\n",
        "their/m.py": "import their.deep",
    }
    with installed(tmp_path, "their", files, {"methods": {"bad": "their.m:Mine"}}):
        with pytest.raises(UserError, match=r"deep\.py, line 2"):
            METHODS.get("bad")
        write(tmp_path, {"their/m.py": METHOD})
        forget(tmp_path)  # mended, and a new process
        assert METHODS.get("bad").title == "Mine"


def test_an_entry_point_to_nothing_says_so_and_a_missing_dependency_says_what(tmp_path: Path) -> None:
    files = {"their.py": "import a_module_that_nobody_has"}
    entries = {"methods": {"gone": "their_gone.m:Mine", "needs": "their:Mine", "odd": "not a value:::"}}
    with installed(tmp_path, "their", files, entries):
        remedies = {name: error.remedy or "" for name, error in METHODS.problems().items()}
    assert "mend the entry point" in remedies["gone"]
    assert remedies["needs"] == "install what it needs"
    assert remedies["odd"]


def test_data_sets_verbs_and_recipe_packages_are_checked_alike(tmp_path: Path) -> None:
    files = {"their.py": "class Data: pass\ndef verb(): pass\n"}
    entries = {
        "datasets": {"odd": "their:Data"},
        "commands": {"odd": "their:verb"},
        "recipes": {"odd": "their", "gone": "their.recipes"},
    }
    with installed(tmp_path, "their", files, entries):
        assert "no harness.data.base.Dataset" in DATASETS.problems()["odd"].problem
        assert "no click.Command" in COMMANDS.problems()["odd"].problem
        assert set(RECIPE_PACKAGES.problems()) == {"odd", "gone"}
        assert recipe_names()


def test_every_command_works_beside_a_broken_package_and_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.recipes.resolving.recipe_names", lambda: _few(recipe_names()))
    files = {
        **FILES,
        "mine/bad.py": "raise SystemExit",
        "mine/recipes/torn.toml": "[mini-tiny\n",
        "mine/recipes/bad.toml": '[mini-a]\nextends = "pce/mini-scribble"\nsuites = ["mini"]\n',
        "mine/recipes/mine.toml": FILES["mine/recipes/mine.toml"]
        + '\n    [mini-typo]\n    extends = "mini-tiny"\n    crop = "wide"\n'
        + '\n    [mini-orphan]\n    extends = "nobody/nothing"\n    suites = ["mine-suite"]\n'
        + "\n    [mini-odd]\n    suites = 5\n",
    }
    entries = {
        "methods": {**ENTRIES["methods"], "bad": "mine.bad:Bad"},
        "recipes": {**ENTRIES["recipes"], "gone": "mine_gone"},
        "datasets": {"lost": "mine.lost:Lost"},
        "commands": {"broken": "mine.bad:verb"},
    }
    with installed(tmp_path, "mine", files, entries):
        assert wsss("list") == 0
        said = capsys.readouterr()
        for name in ("agmm/mini-scribble", "mine/mini-tiny", "Mine"):
            assert name in said.out
        for name in (
            "method bad",
            "data set lost",
            "torn",
            "mine/mini-typo",
            "mine/mini-orphan",
            "package gone",
        ):
            assert name in said.err, said.err
        assert "torn.toml" in said.err
        assert wsss("doctor") == 0
        told = " ".join(capsys.readouterr().out.split())
        for name in ("method bad", "data lost", "verb broken", "torn", "mine/mini-typo", "mine/mini-odd"):
            assert f"{name} " in told
        assert wsss("show", "mine/mini-tiny") == 0
        assert wsss("--help") == 0
        assert "unusable" in capsys.readouterr().out
        # Only what needs the broken thing fails, and says why.
        for target, word in (
            ("bad/mini-a", "method 'bad'"),
            ("torn/mini-tiny", "torn.toml"),
            ("mine/mini-typo", "crop"),
            ("mine/mini-orphan", "nobody/nothing"),
            ("mine/mini-odd", "suites"),
        ):
            assert wsss("show", target) == 2
            assert word in capsys.readouterr().err
        assert wsss("broken") == 2
        assert "'broken'" in capsys.readouterr().err
        assert "mine/mini-orphan" in suites()["mine-suite"], "not left out of a run without a word"
        with pytest.raises(UserError, match=r"torn\.toml"):
            expand(["torn/*"])


def _few(names: list[str]) -> list[str]:
    """A handful of our recipes and all of others: resolving them all takes seconds."""
    keep = ("agmm/mini-scribble", "pce/mini-scribble", "bad/", "mine/", "torn/")
    return [name for name in names if name.startswith(keep)]


# --- one name, two packages --------------------------------------------------------------------------


def test_two_packages_with_a_recipe_file_of_one_name_are_an_error_that_names_both(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    with (
        installed(one, "one", {f.replace("mine/", "one/"): t for f, t in FILES.items()},
                  {"recipes": {"one": "one.recipes"}, "methods": {"mine": "one.method:Mine"}}),
        installed(two, "two", {"two/__init__.py": "", "two/mine.toml": "[mini-else]\n"},
                  {"recipes": {"two": "two"}}),
    ):  # fmt: skip
        for name in ("mine/mini-tiny", "mine/mini-else"):
            assert name in recipe_names()
            with pytest.raises(UserError) as caught:
                resolve(name)
            assert str(one / "one/recipes/mine.toml") in str(caught.value)
            assert str(two / "two/mine.toml") in str(caught.value)
        with pytest.raises(UserError, match="two recipe files"):
            resolve(expand(["mine-suite"])[0])
        assert resolve("pce/mini-scribble")


@pytest.mark.parametrize("file", ["pce.toml", "_shared.toml"])
def test_a_recipe_file_of_ours_is_not_replaced(tmp_path: Path, file: str) -> None:
    files = {"their/__init__.py": "", f"their/{file}": "[mini-scribble]\n"}
    with installed(tmp_path, "their", files, {"recipes": {"their": "their"}}):
        with pytest.raises(UserError, match="two recipe files") as caught:
            resolve("pce/mini-scribble")
        assert str(tmp_path / "their" / file) in str(caught.value)
        assert f"methods/recipes/{file}" in str(caught.value)
        assert resolve("fsr/voc-image-vitb")
    assert resolve("pce/mini-scribble")


def test_folders_of_one_namespace_are_looked_at_together(tmp_path: Path) -> None:
    import sys

    write(tmp_path / "b", {"space/mine.toml": "[mini-b]\n"})
    sys.path.append(str(tmp_path / "b"))
    try:
        with installed(tmp_path / "a", "a", {"space/mine.toml": "[mini-a]\n"}, {"recipes": {"a": "space"}}):
            with pytest.raises(UserError) as caught:
                resolve("mine/mini-a")
            assert str(tmp_path / "b" / "space/mine.toml") in str(caught.value)
    finally:
        sys.path.remove(str(tmp_path / "b"))
        forget(tmp_path)


def test_one_folder_under_two_names_is_one(tmp_path: Path) -> None:
    entries = {**ENTRIES, "recipes": {"mine": "mine.recipes", "again": "mine.recipes"}}
    with installed(tmp_path, "mine", FILES, entries):
        assert resolve("mine/mini-tiny").recipe.method == "mine"


@pytest.mark.parametrize(
    ("group", "name", "registry"),
    [("methods", "pce", METHODS), ("datasets", "mini", DATASETS), ("commands", "report", COMMANDS),
     ("recipes", "methods", RECIPE_PACKAGES)],
)  # fmt: skip
def test_a_name_of_ours_taken_by_another_package_is_an_error_that_names_both(
    tmp_path: Path, group: str, name: str, registry: object
) -> None:
    with installed(tmp_path, "thief", {"thief.py": METHOD}, {group: {name: "thief:Mine"}}):
        with pytest.raises(UserError) as caught:
            registry.get(name)  # type: ignore[attr-defined]
        assert "two packages" in str(caught.value)
        assert "thief 1.0 (thief:Mine)" in str(caught.value)
        assert "wsss-bench" in str(caught.value)


def test_a_verb_of_ours_is_not_taken_silently(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with installed(tmp_path, "thief", {"thief.py": ""}, {"commands": {"run": "thief:run"}}):
        assert wsss("run", "pce/mini-scribble") == 2
        assert "thief" in capsys.readouterr().err
        assert wsss("show", "pce/mini-scribble") == 0


def test_the_same_object_named_twice_is_no_conflict(tmp_path: Path) -> None:
    entries = {"methods": {"pce": "methods.baselines:PartialCrossEntropy"}}
    with installed(tmp_path, "copy", {}, entries):
        assert METHODS.get("pce").name == "pce"
    again()


#: Modules that end, print, or change what all share while they are imported.
UNRULY = {
    "exit": ("raise SystemExit(0)", "SystemExit"),
    "generator": ("raise GeneratorExit", "GeneratorExit"),
    "base": ("class Own(BaseException): pass\nraise Own('base')", "Own: base"),
    "silent": (
        "class Own(Exception):\n    def __str__(self): raise ValueError\nraise Own",
        "cannot be shown",
    ),
    "lost": ("import sys\nsys.stdout = None", "no 'thing'"),
}


REGISTRIES = {"methods": METHODS, "datasets": DATASETS, "recipes": RECIPE_PACKAGES, "commands": COMMANDS}


@pytest.mark.parametrize("group", REGISTRIES)
@pytest.mark.parametrize("kind", UNRULY)
def test_whatever_a_module_raises_stops_no_other(group: str, kind: str, tmp_path: Path, capsys) -> None:
    code, told = UNRULY[kind]
    module = f"unruly_{kind}"
    value = module if group == "recipes" else f"{module}:thing"
    told = "no package" if (group, kind) == ("recipes", "lost") else told
    with installed(tmp_path / "p", "unruly", {f"{module}.py": code}, {group: {"thing": value}}):
        assert invoke(cli, ["list", "recipes", "pce/mini-*"]) == 0
        assert told in str(REGISTRIES[group].problems()["thing"])
    assert "pce/mini-scribble" in capsys.readouterr().out


def test_what_is_printed_on_import_does_not_mix_with_what_a_program_reads(tmp_path: Path, capsys) -> None:
    files = {"chatty.py": "print('hello')\nfrom methods.baselines import FullSupervision as Chatty"}
    with installed(tmp_path / "p", "chatty", files, {"methods": {"chatty": "chatty:Chatty"}}):
        assert invoke(cli, ["list", "methods", "--json"]) == 0
        captured = capsys.readouterr()
    assert json.loads(captured.out)
    assert "hello" in captured.err


def test_a_package_that_changes_torchs_defaults_changes_no_other_method(tmp_path: Path) -> None:
    code = """
        import torch
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        torch.set_grad_enabled(False)
        from methods.baselines import FullSupervision as Bold
    """
    with installed(tmp_path / "p", "bold", {"bold.py": code}, {"methods": {"bold": "bold:Bold"}}):
        assert METHODS.get("bold").name == "full"
        made = torch.zeros(1, requires_grad=True) * 1
    assert (made.dtype, made.device.type, made.requires_grad) == (torch.float32, "cpu", True)


@pytest.mark.parametrize(
    "line",
    [
        "from methods.base import Method",
        "from harness.errors import UserError",
        "from harness import recipes as r, spec",
    ],
)
@pytest.mark.parametrize("group", REGISTRIES)
def test_a_package_that_knows_older_modules_is_told_the_door(group: str, line: str, tmp_path: Path) -> None:
    value = "older" if group == "recipes" else "older:Thing"
    with installed(tmp_path / "p", "older", {"older.py": line}, {group: {"thing": value}}):
        assert "take names of this project from `wsss`" in str(REGISTRIES[group].problems()["thing"])


WRONG = {
    "networks = 'default'": "networks 'default', not a tuple of distinct names",
    "networks = ()": "networks",
    "networks = ('default', 'default')": "networks",
    "title = None": "a title that is no text",
    "probe_steps = (2.0,)": "not fractions of training",
    "probe_steps = None": "not fractions of training",
    "supervision = 5": "supervision 5",
    "needs_labels_from = 5": "needs_labels_from 5",
    "reference_recipe = 5": "no text",
    "misdeclared = classmethod(lambda cls: 1 / 0)": "raises ZeroDivisionError",
}


@pytest.mark.parametrize("line", WRONG)
def test_a_class_with_a_wrong_value_is_named(line: str, tmp_path: Path) -> None:
    files = {**FILES, "mine/method.py": METHOD + f"        {line}\n"}
    with installed(tmp_path / "p", "mine", files, ENTRIES), pytest.raises(UserError, match=WRONG[line]):
        METHODS.get("mine")


def test_recipes_of_a_class_with_a_wrong_value_stop_no_other(tmp_path: Path) -> None:
    files = {**FILES, "mine/method.py": METHOD + "        needs_labels_from = 5\n"}
    with installed(tmp_path / "p", "mine", files, ENTRIES):
        assert invoke(cli, ["list", "recipes"]) == 0


ENDS = {
    "def __init__(self, config, build): raise SystemExit(0)": "cannot be built: SystemExit",
    "def loss(self, batch, progress): raise SystemExit(0)": "cannot compute its loss: SystemExit",
    "def predict(self, images, network='default'): raise SystemExit(0)": "cannot predict",
    "def pseudo_labels(self, images, tags): raise GeneratorExit": "cannot make pseudo labels: GeneratorExit",
}


@pytest.mark.parametrize("line", ENDS)
def test_a_method_that_ends_the_process_is_refused_before_training(line: str, tmp_path: Path) -> None:
    files = {**FILES, "mine/method.py": METHOD + f"        {line}\n"}
    with (
        installed(tmp_path / "p", "mine", files, ENTRIES),
        pytest.raises(UserError, match=ENDS[line]),
    ):
        rehearse(resolve("mine/mini-tiny"))


@pytest.mark.parametrize(("code", "ended"), [("None", 0), ("0", 0), ("3", 3), ("'no'", 1)])
def test_a_verb_of_another_package_may_end_the_process(code: str, ended: int, tmp_path: Path) -> None:
    files = {"leave.py": f"import click, sys\n\n@click.command()\ndef go():\n    sys.exit({code})\n"}
    with installed(tmp_path / "p", "leave", files, {"commands": {"leave": "leave:go"}}):
        assert invoke(cli, ["leave"]) == ended


def test_code_that_ends_the_process_within_our_work_is_no_success(
    monkeypatch, tmp_path: Path, capsys
) -> None:
    monkeypatch.setattr("harness.recipes.recipe_files.names", lambda: exit(0))
    assert invoke(cli, ["list", "recipes"]) == 1
    assert "ended the process" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["[1]", "{'optimiser.lr': 5}", "1 / 0"])
def test_a_search_space_that_is_none_is_named(given: str, tmp_path: Path) -> None:
    files = {**FILES, "mine/method.py": METHOD + f"        search_space = classmethod(lambda cls: {given})\n"}
    with installed(tmp_path / "p", "mine", files, ENTRIES), pytest.raises(UserError, match="search_space"):
        plan_search("mine/mini-tiny", 1, overrides={}, options=Options(results=tmp_path, device="cpu"))
