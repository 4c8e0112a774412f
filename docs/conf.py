"""Sphinx: the pages of this folder, and an API reference from the docstrings. Built by ``nox -s docs``."""

from __future__ import annotations

import re
from typing import Any

import harness
import harness.basics.compat  # before timm and torchvision

project = "wsss-bench"
author = "the wsss-bench authors"
version = release = harness.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
# Literal["paper"] in a signature is no reference to an attribute of that name.
suppress_warnings = ["ref.python"]

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = "wsss-bench"
html_show_copyright = False


_SECTION = re.compile(r"(Args|Attributes|Returns|Raises|Yields|Example|Examples|Note):$")
_ALIGNED = re.compile(r"``[^`]+``  +\S")


def _marked(line: str) -> str:
    """`code` in single backticks as code, |x| as a magnitude: docstrings are read in the terminal too."""
    parts = re.split(r"(``.+?``)", line)
    for place in range(0, len(parts), 2):
        single = re.sub(r"(?<![:`\w])`([^`<>]+)`(?!_)", r"``\1``", parts[place])
        halves = re.split(r"(``.+?``)", single)
        halves[::2] = [half.replace("|", r"\|") for half in halves[::2]]
        parts[place] = "".join(halves)
    return "".join(parts)


def _paragraphs(lines: list[str]) -> list[list[str]]:
    """Runs of lines between blank ones."""
    found: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return [paragraph for paragraph in found if paragraph]


def _plain(lines: list[str]) -> list[str]:
    """Indented formulas and aligned tables, ahead of the first section, are set as they stand."""
    start = next((i for i, line in enumerate(lines) if _SECTION.match(line)), len(lines))
    done: list[str] = []
    for paragraph in _paragraphs(lines[:start]):
        if done and done[-2].endswith("::") and paragraph[0].startswith(" "):
            done += [*paragraph, ""]
        elif paragraph[0].startswith(" ") or any(_ALIGNED.match(line) for line in paragraph):
            done += ["::", "", *("    " + line for line in paragraph), ""]
        else:
            done += [*map(_marked, paragraph), ""]
    return [*done, *map(_marked, lines[start:])]


def before_napoleon(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Napoleon takes "words: more words" in an attribute's first line for its type: keep these from it."""
    lines[:] = _plain(lines)
    if what == "attribute":
        app.env.temp_data[f"attribute {name}"] = list(lines)


def after_napoleon(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """See :func:`before_napoleon`."""
    if what == "attribute":
        lines[:] = app.env.temp_data.pop(f"attribute {name}")


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", before_napoleon, priority=400)
    app.connect("autodoc-process-docstring", after_napoleon, priority=600)
