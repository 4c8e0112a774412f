"""Nobody waits for what is not used: which heavy packages a verb may import, asked in one new process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import wsss_bench
from harness.basics.registry import DECLARATIONS, METHODS, Registry
from harness.engine.method import Method
from harness.recipes.declared import Declaration, NoConfig, declared

#: Command lines in the order in which they run, and what each may import beyond those before it.
VERBS: list[tuple[str, set[str]]] = [
    ("--help", set()),
    ("list", set()),
    ("list recipes --json", set()),
    ("show agmm/mini-point", set()),
    ("show toco/voc-image-vitb --docs", set()),
    ("show full/voc-full-r101 --set optimiser.lr=0.1 --json", set()),
    ("completion bash", set()),
    ("doctor", set()),  # another process imports what it looks at
    *[(f"{verb} --help", set()) for verb in ("run", "search", "predict", "evaluate", "export", "report")],
    ("leaderboard --validate", {"pandas", "pyarrow"}),
    ("leaderboard --results {records}", {"pandas", "pyarrow", "scipy"}),
    ("claims --results {records}", {"pandas", "pyarrow", "scipy"}),
    ("run full/mini-full --dry-run", {"torch", "scipy", "rich"}),
]
HEAVY = {"torch", "torchvision", "timm", "scipy", "pandas", "pyarrow", "matplotlib", "optuna", "ray", "rich"}

ASK = """
import json, sys
from click.testing import CliRunner
from harness.cli.main import cli
for words in json.loads(sys.argv[1]):
    done = CliRunner().invoke(cli, words)
    heavy = sorted(set(json.loads(sys.argv[2])) & set(sys.modules))
    print(json.dumps([done.exit_code, heavy, str(done.exception)]))
"""


@pytest.fixture(scope="module")
def imported() -> list[tuple[int, set[str], str]]:
    places = {"records": Path(__file__).with_name("records") / "v1"}
    words = [line.format(**places).split() for line, _ in VERBS]
    arguments = [json.dumps(words), json.dumps(sorted(HEAVY))]
    done = subprocess.run(
        [sys.executable, "-c", ASK, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return [(code, set(heavy), error) for code, heavy, error in lines]


@pytest.mark.parametrize("index", range(len(VERBS)), ids=[line for line, _ in VERBS])
def test_a_verb_imports_what_it_uses(imported: list[tuple[int, set[str], str]], index: int) -> None:
    code, heavy, error = imported[index]
    allowed = set().union(*(more for _, more in VERBS[: index + 1]))
    assert code == 0, error
    assert heavy <= allowed


def test_a_declaration_says_what_the_class_says() -> None:
    """And every method of this project has one."""
    ours = [name for name in METHODS.names() if METHODS.get(name).__module__.startswith("methods.")]
    for name in ours:
        told, cls = DECLARATIONS.get(name), METHODS.get(name)
        assert declared(name) is told
        for field in told.__dataclass_fields__:
            assert getattr(told, field) is getattr(cls, field), (name, field)
        assert told.name == name


def test_a_class_takes_its_declaration_over_and_may_say_more() -> None:
    told = Declaration(name="short", title="Short", supervision=frozenset({"point"}), networks=("a", "b"))

    class Short(Method, declared=told):
        probe_steps = (0.5,)

    class Shorter(Short):
        title = "Shorter"

    assert (Short.name, Short.title, Short.networks, Short.Config) == ("short", "Short", ("a", "b"), NoConfig)
    assert (Shorter.title, Shorter.networks, Shorter.probe_steps) == ("Shorter", ("a", "b"), (0.5,))
    assert Short.misdeclared() == ""


def test_a_method_of_this_process_and_one_without_declaration_are_asked_themselves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Mine(METHODS.get("agmm")):
        title = "Mine"

    monkeypatch.setitem(METHODS._registered, "agmm", Mine)
    assert declared("agmm") is Mine
    monkeypatch.undo()
    none = Registry("wsss.no-such-group", "declaration", DECLARATIONS.kind)
    monkeypatch.setattr("harness.recipes.declared.DECLARATIONS", none)
    assert declared("agmm") is METHODS.get("agmm")


@pytest.mark.parametrize(("asked", "found"), [(None, "1"), ("3", "3")])
def test_the_command_multiplies_small_arrays_in_one_thread_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, asked: str | None, found: str
) -> None:
    seen: list[str | None] = []
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", asked or "")
    if asked is None:
        monkeypatch.delenv("OPENBLAS_NUM_THREADS")
    monkeypatch.setattr("harness.cli.main.main", lambda: seen.append(os.environ.get("OPENBLAS_NUM_THREADS")))
    wsss_bench.main()
    assert seen == [found]
