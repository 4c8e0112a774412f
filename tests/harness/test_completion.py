"""What a shell completes, asked as shells ask, and in a live bash: names that there are, at once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import BashComplete, ShellComplete

from harness.cli import completing
from harness.cli.main import cli
from harness.recipes.resolving import recipe_names, suites


def completed(*words: str) -> list[tuple[str, str]]:
    """Kind and value of what the last of the words behind ``wsss`` may become."""
    shell = ShellComplete(cli, {}, "wsss", "_WSSS_COMPLETE")
    return [(one.type, one.value) for one in shell.get_completions(list(words[:-1]), words[-1])]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("run pce/mini-s", "pce/mini-scribble"),
        ("run agmm/mini-point mini-c", "mini-claims"),
        ("show agmm/mini-p", "agmm/mini-point"),
        ("search pce/mini-s", "pce/mini-scribble"),
        ("predict pce/mini-s", "pce/mini-scribble"),
        ("export pce/mini-s", "pce/mini-scribble"),
        ("evaluate pce/mini-s", "pce/mini-scribble"),
        ("evaluate --dataset voc", "voc2012"),
        ("compare pce/mini-scribble agmm/mini-s", "agmm/mini-scribble"),
        ("leaderboard --suite mini-c", "mini-claims"),
        ("report --dataset ade", "ade20k"),
        ("claims --suite mini-c", "mini-claims"),
        ("data verify city", "cityscapes"),
        ("data verify own --for pce/own-s", "pce/own-scribble"),
        ("data labels coco", "coco2014"),
        ("list recipes agmm/mini-p", "agmm/mini-point"),
        ("verify-", "verify-store"),
        ("data pre", "prepare"),
    ],
)
def test_every_verb_completes_what_it_takes(words: str, wanted: str) -> None:
    assert wanted in [value for _, value in completed(*words.split())]


@pytest.mark.parametrize("verb", ["run", "show", "predict", "export"])
def test_a_path_is_left_to_the_shell(verb: str) -> None:
    assert completed(verb, "./mine") == [("file", "./mine")]


def test_names_are_those_that_the_verbs_know() -> None:
    assert completing.suite_names() == sorted(suites())
    assert completing.names_of_recipes() == recipe_names()


def test_every_argument_that_takes_a_name_completes() -> None:
    """One that is added later too; names that the user makes up are left to him."""
    made_up = {"wsss new: name", "wsss freeze: name"}
    takes_a_name = ("recipe", "targets", "dataset", "suites", "name", "first", "second", "source")
    mute: list[str] = []

    def walk(command: click.Command, name: str) -> None:
        context = click.Context(command)
        if isinstance(command, click.Group):
            for one in command.list_commands(context):
                found = command.get_command(context, one)
                assert found is not None
                walk(found, f"{name} {one}")
            return
        mute.extend(
            f"{name}: {parameter.name}"
            for parameter in command.params
            if parameter.name in takes_a_name
            and isinstance(parameter.type, click.types.StringParamType)
            and not parameter.shell_complete(context, "")
        )

    walk(cli, "wsss")
    assert set(mute) <= made_up


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_live_bash_completes_and_does_not_wait_for_torch(tmp_path: Path) -> None:
    source = BashComplete(cli, {}, "wsss", "_WSSS_COMPLETE").source()
    script = tmp_path / "completion.bash"
    script.write_text(source, encoding="utf-8")
    program = tmp_path / "wsss"
    program.write_text(
        f'#!/bin/sh\nexec "{sys.executable}" -X importtime -m wsss_bench "$@"\n', encoding="utf-8"
    )
    program.chmod(0o755)
    asked = (
        f"source {script}; complete -p wsss; COMP_WORDS=(wsss run pce/mini-s); COMP_CWORD=2; "
        "_wsss_completion wsss; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(
        ["bash", "--norc", "--noprofile", "-c", asked], capture_output=True, text=True, check=True,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}, timeout=120,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "pce/mini-scribble"
    assert "-F _wsss_completion" in done.stdout
    read = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "harness.cli.completing" in read
    assert not read & {"torch", "numpy", "pandas", "pydantic", "scipy", "rich"}
