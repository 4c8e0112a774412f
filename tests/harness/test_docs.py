"""The Python of the documentation: it parses, what it imports exists, and takes the arguments it is given."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = ("harness", "methods", "leaderboards")


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


@pytest.mark.parametrize("code", list(blocks()))
def test_examples_use_what_there_is(code):
    tree = ast.parse(code)
    known = dict(imported(tree))
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in known):
            continue
        whole = not any(isinstance(a, ast.Starred) for a in node.args) and all(k.arg for k in node.keywords)
        signature = inspect.signature(known[node.func.id])
        bind = signature.bind if whole else signature.bind_partial
        bind(*(None for a in node.args), **{k.arg: None for k in node.keywords if k.arg})
