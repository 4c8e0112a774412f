"""Nonsense on the command line: exit code 0, 1 or 2, at most eight lines, and nothing unforeseen."""

from __future__ import annotations

import contextlib
import io
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.cli.main import cli, invoke
from tests.harness.test_usage import VERBS
from tests.runs import RECIPE

#: A command line of each verb that is right.
RIGHT: dict[str, list[str]] = {
    "list": [],
    "show": [RECIPE],
    "run": [RECIPE, "--local", "--seed", "0", "--device", "cpu"],
    "curve": ["cam/mini-image", "--device", "cpu"],
    "grid": [RECIPE, "--set", "crop=48,64", "--local", "--seed", "0", "--device", "cpu"],
    "search": [RECIPE, "--local", "--device", "cpu"],
    "tune": [RECIPE, "--local", "--device", "cpu"],
    "predict": [RECIPE, "picture.png", "--device", "cpu"],
    "export": [RECIPE, "--out", "out", "--device", "cpu"],
    "evaluate": [RECIPE, "--device", "cpu"],
    "data prepare": ["mini"],
    "data verify": ["mini"],
    "data labels": ["mini", "--kind", "point", "--out", "out"],
    "data show": ["mini"],
    "data miniature": ["voc2012", "small"],
    "data pretrain-mini": [],
    "completion": ["bash"],
    "leaderboard": [],
    "plot": [],
    "claims": [],
    "report": [],
    "compare": [RECIPE, "pce/mini-scribble"],
    "import": ["empty"],
    "verify-store": [],
    "pack": ["bundle.wsss", "--made-by", "me"],
    "check-bundle": ["file"],
    "merge": ["file"],
    "freeze": ["spring"],
    "check": ["nobody"],
    "new": ["somebodys-own"],
}
#: `data mini` takes nothing, and `doctor` has one option that others share.
LEFT_OUT = {"data mini", "doctor", "open"}

NONSENSE = [
    *("", " ", "-", "--", ".", "..", "/", "~", "~nobody-here/x", "/proc/self/mem", "/dev/null", "/dev/full"),
    *("nan", "inf", "-inf", "-1", "0", "1e309", "1e9", "0x10", "9" * 30, "9" * 5000, "1.5", "true", "None"),
    *("a" * 300, "a/" * 2500, "ü" * 200, "\udcff", "nul\0byte", "\x1b[2J", "\u202e", "a\nb", "a\rb", "%s%n"),
    *("empty", "empty.toml", "loop", "broken.toml", "utf16.toml", "file", "file/below", "noise.png", "list"),
    *(
        "=1",
        "a=",
        "a=b=c",
        "schedule=5",
        "config=[]",
        "a.b.c=1",
        "a..b=1",
        "x=[[[",
        "@",
        "@loop",
    ),
    *("@empty", "@broken.toml", "optimiser.lr=nan", "schedule.steps=1e400", "weights=file", "weights=empty/"),
    *("labels_from=loop", "labels_from=cam/mini-image:nothing", "crop=[1,2,3]", "backbone=", "dataset=x"),
    *(
        "cuda:99",
        "cuda:-1",
        "meta",
        "cpu:7",
        "s3://",
        "file://",
        "http://x",
        "mini=",
        "=x",
        "mini=empty",
        "x=loop",
    ),
    *(
        "single",
        "default",
        "cam",
        "val",
        "train",
        "mini",
        "*",
        "[",
        "?",
        RECIPE,
        "agmm/",
        "/",
        "md,,",
        ",",
        "png,x",
    ),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of things that are not what they should be, where the commands run; nothing trains."""
    folder = tmp_path_factory.mktemp("nonsense")
    (folder / "empty").mkdir()
    (folder / "list").mkdir()
    (folder / "list" / "train.txt").write_text("")
    for name, content in {
        "empty.toml": b"",
        "broken.toml": b"a = [",
        "utf16.toml": "a = 1".encode("utf-16"),
        "file": b"\x00\x01",
        "noise.png": random.Random(0).randbytes(500),
        "picture.png": b"",
    }.items():
        (folder / name).write_bytes(content)
    (folder / "loop").symlink_to("loop")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("harness.running.trials.execution.execute", lambda *_, **__: [])
        patch.setattr("harness.running.smoke.recipes.smoke", lambda *_: [])
        patch.setattr(
            "harness.recipes.resolving.usable", lambda: ({}, {})
        )  # every recipe of every package: slow
        patch.setattr("harness.cli.report._recipes", dict)
        patch.setattr("harness.engine.mini_pretraining.pretrain", lambda *_, **__: None)
        patch.setattr("harness.data.prepare.miniatures.write_miniature", lambda *_, **__: None)
        patch.setattr("harness.running.search.searching.plan_search", _planned)
        patch.setattr("harness.running.search.tuning.plan_search", _planned)
        made = SimpleNamespace(maker="", result="", counts=SimpleNamespace(summary=lambda _: SUMMARY))
        patch.setattr("harness.data.prepare.label_making.make_labels", lambda *_, **__: made)
        patch.setattr("harness.data.sets.mini.Mini.locate", classmethod(_located))
        yield folder


SUMMARY = {
    "images": 0,
    "images_without_label": 0,
    "labelled_share": 0.0,
    "mean_distance_to_boundary": {"labelled": None, "all": None},
}


def _planned(*_: Any, **__: Any) -> Any:
    from harness.basics.errors import UserError

    raise UserError("planned")


def _located(cls: Any, *_: Any) -> Any:
    from harness.basics.errors import UserError

    raise UserError("located")


def answer(arguments: list[str]) -> tuple[int, str]:
    """Exit code and what is printed as an error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = invoke(cli, arguments)
    return code, err.getvalue()


def check(arguments: list[str]) -> None:
    """The promise of the command line."""
    code, error = answer(arguments)
    said = (arguments, error)
    assert code in (0, 1, 2), said
    assert "should not have happened" not in error, said
    assert "Traceback" not in error, said
    # What is left out of a listing has a line of its own, before the error.
    lines = [line for line in error.splitlines() if not line.startswith(("left out:", "Usage:", "Try "))]
    assert len(lines) <= 8, said
    assert not any(c in error for c in "\x1b\u202e\0"), said


def options(verb: str) -> list[click.Option]:
    return [p for p in VERBS[verb].params if isinstance(p, click.Option) and not p.is_flag]


def places(verb: str) -> list[int]:
    """Where the positional arguments stand in a right command line."""
    right = RIGHT[verb]
    return [
        i for i in range(len(right)) if not right[max(i - 1, 0)].startswith("--") and right[i][:2] != "--"
    ]


def test_every_verb_takes_part():
    assert {*RIGHT, *LEFT_OUT} == set(VERBS)


CASES = [(verb, option.opts[0]) for verb in RIGHT for option in options(verb)]
CASES += [(verb, index) for verb in RIGHT for index in places(verb)]  # type: ignore[misc]


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(case=st.sampled_from(CASES), value=st.sampled_from(NONSENSE) | st.text(max_size=30))
def test_nonsense_is_answered(place: Path, case: tuple[str, str | int], value: str):
    verb, where = case
    arguments = list(RIGHT[verb])
    if isinstance(where, int):
        arguments[where] = value
    else:
        arguments += [where, value]
    check([*verb.split(), *arguments])


@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_name_is_answered_wherever_one_is_asked_for(place: Path, value: str):
    for verb in RIGHT:
        for where in places(verb):
            arguments = list(RIGHT[verb])
            arguments[where] = value
            check([*verb.split(), *arguments])
