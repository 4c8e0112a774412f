"""The Python of the documentation: it parses, what it imports exists, and takes the arguments it is given."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import wsss

ROOT = Path(__file__).parents[2]
OURS = ("wsss", "wsss_bench", "harness", "methods", "leaderboards")


def blocks():
    """Code blocks of the README and of every page."""
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = page.read_text(encoding="utf-8")
        for number, found in enumerate(re.finditer(r"^```python\n(.*?)^```", text, re.S | re.M)):
            yield pytest.param(found[1], id=f"{page.stem}-{number}")


def imported(tree: ast.Module):
    """Name in the block -> object, of everything that it imports from this project."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in OURS:
            module = importlib.import_module(node.module)
            for alias in node.names:
                yield alias.asname or alias.name, getattr(module, alias.name)


def called(function: ast.expr, known: dict[str, object]) -> object:
    """What of this project a call in an example calls; None for all else."""
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        return getattr(wsss, function.attr) if function.value.id == "wsss" else None
    return known.get(function.id) if isinstance(function, ast.Name) else None


@pytest.mark.parametrize("code", list(blocks()))
def test_examples_use_what_there_is(code):
    tree = ast.parse(code)
    known = dict(imported(tree))
    for node in ast.walk(tree):
        function = called(node.func, known) if isinstance(node, ast.Call) else None
        if function is None:
            continue
        whole = not any(isinstance(a, ast.Starred) for a in node.args) and all(k.arg for k in node.keywords)
        signature = inspect.signature(function)
        bind = signature.bind if whole else signature.bind_partial
        bind(*(None for a in node.args), **{k.arg: None for k in node.keywords if k.arg})


# --- the public names ----------------------------------------------------------------------------------


@pytest.mark.parametrize("code", list(blocks()))
def test_examples_import_the_public_names_alone(code):
    for node in ast.walk(ast.parse(code)):
        modules = [node.module] if isinstance(node, ast.ImportFrom) else []
        modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        private = [m for m in modules if m and m.split(".")[0] in OURS and m != "wsss"]
        assert not private


def test_the_page_of_names_lists_what_there_is():
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    table = page.partition("## The names")[2].partition("These names stay")[0]
    listed = re.findall(r"`(\w+)`", table)
    assert sorted(listed) == sorted(set(listed)), "each once"
    assert sorted(listed) == wsss.__all__


def test_every_public_name_is_there_and_documented():
    for name in wsss.__all__:
        value = getattr(wsss, name)
        if inspect.isclass(value) or inspect.isroutine(value):
            assert value.__doc__, name
    assert set(wsss.__all__) <= set(dir(wsss))
    with pytest.raises(AttributeError, match=r"docs/python.md"):
        wsss.recipies  # noqa: B018


def test_type_checkers_see_the_same_names():
    tree = ast.parse(inspect.getsource(wsss))
    (block,) = (n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    seen = {alias.asname: (n.module, alias.name) for n in block.body for alias in n.names}
    assert seen == wsss._MODULES


def test_importing_the_door_brings_nothing_heavy():
    heavy = {"torch", "pandas", "ray", "harness.recipes.resolving"}
    code = f"import sys, wsss; print(*({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
