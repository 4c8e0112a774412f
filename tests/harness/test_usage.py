"""An option that would be ignored is refused: the table of verbs, options and modes, tested whole."""

from __future__ import annotations

import fnmatch
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest

from harness.cli.completing import A_RECIPE
from harness.cli.main import cli
from harness.cli.usage import TABLE, Verb
from harness.data.sets.mini import Mini
from harness.recipes.resolving import recipe_names, suites
from tests.runs import RECIPE, wsss


def leaves(group: click.Group = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Every verb by its words."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from leaves(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


VERBS = dict(leaves())


def test_the_table_names_every_verb():
    assert set(TABLE) == set(VERBS)


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_the_table_names_every_parameter_of_a_verb(verb: str):
    command = VERBS[verb]
    assert isinstance(command, Verb)
    assert {p.name for p in command.params} == TABLE[verb].names()


def examples() -> list[tuple[str, str]]:
    """Every command line of a verb's help, with the verb."""
    found = []
    for verb, command in VERBS.items():
        for line in (command.epilog or "").splitlines():
            words = re.split(r"\s{2,}| >>? ", line.strip())[0]
            if words.startswith(f"wsss {verb} "):
                found.append((verb, words.removeprefix(f"wsss {verb} ")))
    return found


@contextmanager
def suppress_missing_files() -> Iterator[None]:
    """An example may name a file of the reader's."""
    try:
        yield
    except click.BadParameter as error:
        if "does not exist" not in error.message:
            raise


@pytest.mark.parametrize(("verb", "words"), examples())
def test_examples_of_the_help_are_taken_and_name_recipes_that_are_there(verb, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = VERBS[verb]
    with suppress_missing_files():
        given = command.make_context(verb, shlex.split(words)).params
        known = {*recipe_names(), *suites()}
        for parameter in command.params:
            value = given.get(parameter.name) or ()
            if parameter._custom_shell_complete is A_RECIPE:
                for name in [value] if isinstance(value, str) else value:
                    plain = re.split(" [(]|@", name)[0]
                    own = plain.endswith((".toml", ".pth", ".pt")) or plain.startswith(
                        ("results/", "external/")
                    )
                    assert own or fnmatch.filter(known, plain), name


ON_RAY: dict[str, list[str]] = {
    "--ray": [],
    "--max-concurrent": ["2"],
    "--gpus-each": ["0"],
    "--address": ["host:6379"],
}

#: Words that put a verb into a mode, and what may not stand beside them: spelling and value.
REFUSED: list[tuple[str, dict[str, list[str]]]] = [
    (
        "evaluate --predictions x --dataset mini",
        {
            RECIPE: [],
            "--protocol": ["nonsense"],
            "--save": ["y"],
            "--output": ["cam"],
            "--network": ["default"],
            "--table": ["t"],
            "--checkpoint": ["c"],
            "--set": ["a=1"],
            "--results": ["r"],
            "--device": ["cpu"],
            "--workers": ["0"],
            **ON_RAY,
        },
    ),
    (f"evaluate {RECIPE}", {"--dataset": ["mini"], "--table": ["t"], "--save": ["y"]}),
    (
        f"evaluate {RECIPE} --checkpoint c",
        {"--dataset": ["mini"], "--results": ["r"], "--encoding": ["files"], **ON_RAY},
    ),
    (f"predict {RECIPE} a.png", {"--table": ["t"], **ON_RAY}),
    (f"predict {RECIPE} a.png --every-seed", {"--seed": ["0"]}),
    (f"predict {RECIPE} a.png --seed 3 --seed 3", ON_RAY),
    (
        f"predict {Path(__file__)} a.png",
        {"--checkpoint": ["c"], "--table": ["t"], "--seed": ["0"], "--every-seed": [], "--results": ["r"]},
    ),
    (
        f"predict {RECIPE} a.png --checkpoint c",
        {"--seed": ["0"], "--every-seed": [], "--results": ["r"], **ON_RAY},
    ),
    (f"export {RECIPE} --out o", {"--table": ["t"], **ON_RAY}),
    (f"export {RECIPE} --out o --every-seed", {"--seed": ["0"]}),
    (
        f"export {Path(__file__)} --out o",
        {"--checkpoint": ["c"], "--table": ["t"], "--seed": ["0"], "--every-seed": [], "--results": ["r"]},
    ),
    (
        f"export {RECIPE} --out o --model",
        {
            "--split": ["val"],
            "--output": ["cam"],
            "--format": ["png"],
            "--protocol": ["single"],
            "--encoding": ["files"],
            "--device": ["cpu"],
            "--workers": ["0"],
        },
    ),
    (
        f"export {RECIPE} --out o --checkpoint c",
        {"--seed": ["0"], "--every-seed": [], "--results": ["r"], **ON_RAY},
    ),
    (
        f"export {RECIPE} --out o --format npy",
        {"--protocol": ["single"], "--network": ["default"], "--encoding": ["files"]},
    ),
    (f"export {RECIPE} --out o --output cam", {"--protocol": ["single"], "--network": ["default"]}),
    (
        f"run {RECIPE} --local",
        {
            "--max-concurrent": ["1"],
            "--cpus-per-trial": ["1"],
            "--gpus-per-trial": ["0"],
            "--processes-per-trial": ["1"],
            "--address": ["auto"],
        },
    ),
    (f"search {RECIPE} --local", {"--max-concurrent": ["1"], "--address": ["auto"]}),
    (f"grid {RECIPE} --set crop=48,64 --seed 1", {"--seeds": ["3"]}),
    (f"grid {RECIPE} --set crop=48,64 --only-tables", {"--tensorboard": [], "--track": ["mlflow"]}),
    (f"grid {RECIPE} --set crop=48,64 --local", {"--max-concurrent": ["1"], "--address": ["auto"]}),
    (f"run {RECIPE} --seed 1", {"--seeds": ["3"], "--json": [], "--step-seconds": ["1"]}),
    (f"run {RECIPE} --dry-run", {"--smoke": []}),
    (
        f"run {RECIPE} --smoke",
        {"--again": [], "--save-predictions": [], "--tensorboard": [], "--track": ["mlflow"]},
    ),
    (f"search {RECIPE}", {"--grid-points": ["3"]}),
    (f"search {RECIPE} --objective-split val", {"--held-out": ["0.2"]}),
    (f"tune {RECIPE} --objective-split test", {"--held-out": ["0.2"]}),
    (f"tune {RECIPE} --local", {"--max-concurrent": ["1"], "--address": ["auto"]}),
    (f"show {RECIPE} --json", {"--docs": []}),
    ("data prepare mini", {"--from": ["."], "--workers": ["1"]}),
    (
        "data labels mini --kind scribble --out o",
        {
            "--folder": ["f"],
            "--background": ["b"],
            "--unlabelled": ["255"],
            "--encoding": ["files"],
            "--block-share": ["0.1"],
            "--box-inside": ["fill"],
            "--clicks": ["3"],
        },
    ),
    ("data labels mini --kind point --out o --clicks 3", {"--stroke": ["3"]}),
    ("data verify mini", {"--set": ["a=1"]}),
    ("data labels mini --kind point --out o --format png", {"--clicks": ["3"], "--seed": ["1"]}),
    ("data labels mini --kind block --out o --format png", {"--block-share": ["0.1"], "--stroke": ["1"]}),
    ("data labels mini --kind box --out o --format png", {"--box-inside": ["fill"]}),
    (
        "data labels mini --kind image --out o",
        {"--keep": ["0.5"], "--strokes": ["0.5"], "--images": ["0.5"], "--seed": ["1"], "--stroke": ["1"]},
    ),
    ("data show mini --id x", {"--number": ["3"]}),
    (
        "leaderboard --validate",
        {
            "--json": [],
            "--results": ["r"],
            "--out": ["o"],
            "--dataset": ["mini"],
            "--suite": ["mini"],
            "--recipe": ["agmm/*"],
            "--metric": ["f1"],
            "--label": ["l"],
            "--format": ["md"],
        },
    ),
    ("plot", {"--data-root": ["."], "--device": ["cpu"]}),
    ("report --no-plots", {"--data-root": ["."], "--device": ["cpu"]}),
    ("import folder", {"--data-root": ["."]}),
]


@pytest.mark.parametrize(
    ("mode", "option", "value"),
    [(mode, option, value) for mode, options in REFUSED for option, value in options.items()],
)
def test_an_ignored_option_is_named_with_its_mode_and_where_it_applies(
    mode: str, option: str, value: list[str], tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert wsss(*mode.split(), option, *value) == 2
    error = capsys.readouterr().err
    assert "not used" in error
    assert (option if option != RECIPE else "recipe") in error.lower()
    assert "appl" in error
    assert not list(tmp_path.iterdir())


def test_every_conditional_option_is_refused_somewhere():
    """The list above covers the table."""
    covered: dict[str, set[str]] = {}
    for mode, options in REFUSED:
        verb = max((v for v in VERBS if mode.split()[: len(v.split())] == v.split()), key=len)
        command = VERBS[verb]
        names = {o: p.name for p in command.params for o in p.opts}
        covered.setdefault(verb, set()).update(names.get(o, "recipe") or "" for o in options)
    shared = {"cpus_per_trial", "gpus_per_trial", "processes_per_trial"}  # seen with run
    for verb, usage in TABLE.items():
        conditional = {name for rule in usage.only for name in rule.names}
        seen = covered.get(verb, set()) | (shared if verb in ("search", "grid", "tune") else set())
        assert conditional <= seen, verb


def test_what_applies_is_taken(tmp_path, capsys):
    """The same options in the modes that use them fail, if at all, for another reason."""
    place = str(tmp_path / "none")
    for command in (
        ["predict", RECIPE, "a.png", "--checkpoint", place, "--table", "agmm-sass"],
        ["evaluate", RECIPE, "--checkpoint", place, "--save", place],
        ["evaluate", "--predictions", place, "--dataset", "mini", "--split", "val"],
        ["plot", "--kind", "qualitative", "--device", "cpu", "--results", place],
    ):
        wsss(*command)
        assert "not used" not in capsys.readouterr().err


def test_a_seed_of_simulated_labels_is_refused_where_nothing_is_simulated(
    tmp_path, small, monkeypatch, capsys
):
    arguments = ["data", "show", "mini", "--data-root", str(small), "--out", str(tmp_path / "a.png")]
    assert wsss(*arguments, "--seed", 3) == 0
    monkeypatch.setattr(Mini, "mask_path", lambda *a: None)
    assert wsss(*arguments, "--seed", 3) == 2
    assert "--seed is not used without masks" in capsys.readouterr().err
    assert wsss(*arguments) == 0
