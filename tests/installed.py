"""Packages of other people, as they look when they are installed, without installing any."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent

from harness.basics import registry


@contextmanager
def installed(
    place: Path,
    name: str,
    files: Mapping[str, str],
    entries: Mapping[str, Mapping[str, str]],
    version: str = "1.0",
) -> Iterator[Path]:
    """A distribution on ``sys.path`` for the length of the block.

    Args:
        place: an empty folder, or one that does not exist; files and metadata are written here.
        name: of the distribution.
        files: text by path relative to ``place``.
        entries: entry points: group, without ``wsss.``, to name to value.
        version: of the distribution.
    """
    write(place, files)
    lines = [
        line
        for group, values in entries.items()
        for line in (f"[wsss.{group}]", *(f"{key} = {value}" for key, value in values.items()))
    ]
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    write(place, {f"{info}/METADATA": about, f"{info}/entry_points.txt": "\n".join(lines) + "\n"})
    sys.path.append(str(place))
    again()
    try:
        yield place
    finally:
        sys.path.remove(str(place))
        forget(place)


def write(place: Path, files: Mapping[str, str]) -> None:
    """Write text files below a folder."""
    for file, text in files.items():
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        (place / file).write_text(dedent(text), encoding="utf-8")


def again() -> None:
    """See what is installed now."""
    importlib.invalidate_caches()
    registry.refresh()


def forget(place: Path) -> None:
    """Drop the modules that were imported from a folder, as a new process would not have them."""
    gone = []
    for module_name, module in list(sys.modules.items()):
        known = getattr(module, "__dict__", {})
        places = [known.get("__file__"), *known.get("__path__", ())]
        if any(isinstance(p, str) and Path(p).is_relative_to(place) for p in places):
            gone.append(module_name)
    for module_name in gone:  # a folder without __init__.py asks the module above it for its place
        del sys.modules[module_name]
    again()


#: A method that trains as partial cross-entropy does.
METHOD = """
    from methods.baselines import PartialCrossEntropy

    class Mine(PartialCrossEntropy):
        name, title = "mine", "Mine"
"""
#: Recipes of it: one that is quick to train, and a variant.
RECIPES = """
    [mini-tiny]
    extends = "pce/mini-scribble"
    crop = 32
    suites = ["mine-suite"]
    batch = { groups = 1, per_group = 4 }
    schedule = { steps = 2 }

    [mini-other]
    extends = "mini-tiny"
    optimiser = { lr = 0.02 }
"""
#: The files and entry points of a package that brings both.
FILES = {"mine/__init__.py": "", "mine/method.py": METHOD, "mine/recipes/__init__.py": "",
         "mine/recipes/mine.toml": RECIPES}  # fmt: skip
ENTRIES = {"methods": {"mine": "mine.method:Mine"}, "recipes": {"mine": "mine.recipes"}}
