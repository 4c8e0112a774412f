"""``wsss new``: a package of one's own, written from the templates beside this module."""

from __future__ import annotations

import importlib.util
import json
import keyword
import re
import shlex
import sys
import unicodedata
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from string import Template

import click

import wsss_bench
from harness.basics.errors import UserError
from harness.basics.files import check_writable, expanded
from harness.cli.usage import Verb

#: Build backends, of which the first that is here builds the package, so that nothing need be fetched.
_BACKENDS = ("setuptools", "hatchling")
_TEMPLATES = Path(__file__).with_name("templates")
#: Parts of a package: by option, the files (template to place) and the entry points (group to value).
_PARTS: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "method": (
        {
            "method.py": "$module/method.py",
            "recipes.toml": "$module/recipes/$module.toml",
            "published.toml": "$module/published/$module.toml",
            "claims.toml": "$module/claims/$module.toml",
        },
        {
            "methods": "$module.method:$cls",
            "recipes": "$module.recipes",
            "published": "$module.published",
            "claims": "$module.claims",
        },
    ),
    "dataset": ({"dataset.py": "$module/dataset.py"}, {"datasets": "$module.dataset:${cls}Data"}),
    "metric": ({"metric.py": "$module/metric.py"}, {"metrics": "$module.metric:METRIC"}),
    "verb": ({"verb.py": "$module/verb.py"}, {"commands": "$module.verb:verb"}),
}
#: What each part is, and the commands that use it.
_TOLD = {
    "method": (
        "a method with its recipes, published cells and claims",
        "wsss run $module/mini-scribble pce/mini-scribble --seeds 3\n"
        "wsss report\n"
        "wsss claims --suite $module\n",
    ),
    "dataset": ("a data set", "wsss data verify $module --data-root $module=FOLDER\n"),
    "metric": ("a metric", "wsss leaderboard --metric $module\n"),
    "verb": ("a verb", "wsss $module\n"),
}


@click.command(
    "new",
    cls=Verb,
    epilog="""\b
Examples:
  wsss new my-method                     a method with recipes, published cells, claims and tests
  wsss new my-method --title "My Method" --in ~/code
  wsss new birds --dataset               a data set alone
  wsss new worst-class --metric          a metric alone
  wsss new audit --verb                  a verb alone

Exit codes: 0 written, 2 refused: nothing was written.""",
)
@click.argument("name")
@click.option("--title", metavar="TEXT", help="Name in tables, in any script; made from NAME by default.")
@click.option(
    "--in",
    "folder",
    type=click.Path(path_type=Path),
    default=Path(),
    metavar="DIR",
    help="Folder in which the package's folder is made; here by default.",
)
@click.option("--dataset", is_flag=True, help="Write a data set, and no method.")
@click.option("--metric", is_flag=True, help="Write a metric, and no method.")
@click.option("--verb", is_flag=True, help="Write a verb, and no method.")
def new_verb(name: str, title: str | None, folder: Path, dataset: bool, metric: bool, verb: bool) -> None:
    """Write a package with a method of your own, which installs, runs and stands in the tables at once.

    NAME is the package and the method: letters, digits and dashes. The method is a sketch that trains, to be
    replaced by your idea. What to type next is printed, and stands in the package's README.
    """
    wanted = {"dataset": dataset, "metric": metric, "verb": verb}
    parts = [part for part, chosen in wanted.items() if chosen] or ["method"]
    names = _names(name, title)
    _refuse_taken(names["module"], names["distribution"], parts)
    place = expanded(folder) / names["distribution"]
    if place.is_symlink() or (place.exists() and not (place.is_dir() and not any(place.iterdir()))):
        raise UserError(
            "it exists, and is no empty folder", where=place, remedy="choose another name, or --in"
        )
    check_writable(place)
    for file, text in _files(parts, names).items():
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        (place / file).write_text(text, encoding="utf-8")
        click.echo(f"wrote {place / file}")
    commands = _filled("".join(_TOLD[part][1] for part in parts), names)
    click.echo(f"\nnext:\n{_install(place)}\nwsss check {names['distribution']}\n{commands}", nl=False)


def _names(name: str, title: str | None) -> dict[str, str]:
    """Everything that a package calls by its name. Raises UserError for one that nothing can be called by."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    shown = unicodedata.normalize("NFC", name).strip()
    lost = [c for c in unicodedata.normalize("NFKD", shown) if ord(c) > 127 and not unicodedata.combining(c)]
    words = re.findall(r"[a-z0-9]+", plain.lower())
    module = "_".join(words)
    problem = ""
    if lost or not words or re.search(r"[^A-Za-z0-9 ._-]", plain):
        problem = "it needs Latin letters, digits and dashes"
    elif module[0].isdigit():
        problem = "a Python package cannot begin with a digit"
    elif keyword.iskeyword(module) or module in ("test", "tests", "setup"):
        problem = "Python, or the tools around it, keep this word for themselves"
    elif len(module) > 60:
        problem = "it has more than 60 characters"
    if problem:
        remedy = "choose another one, such as wsss new my-method"
        raise UserError(f"{shown!r} cannot be the name of a package: {problem}", where="NAME",
                        remedy=f"{remedy} --title {shown!r}" if lost else remedy)  # fmt: skip
    if title is not None and not (title := " ".join(title.split())):
        raise UserError("a title without letters", where="--title", remedy="leave it out, or write one")
    if title is not None and (len(title) > 60 or not title.isprintable()):
        raise UserError("a title has 60 printable characters at most", where="--title", remedy="shorten it")
    cls = "".join(word.capitalize() for word in words)
    return {
        "module": module,
        "distribution": "-".join(words),
        "cls": cls,
        "title": title or " ".join(shown.replace("_", " ").replace("-", " ").split()),
        "year": str(datetime.now(UTC).year),
    }


def _refuse_taken(module: str, distribution_name: str, parts: list[str]) -> None:
    """Raise UserError where something of that name is there already."""
    from harness.basics.registry import COMMANDS, DATASETS, METHODS
    from harness.cli.main import own_verbs
    from harness.recipes import recipe_files

    taken = {
        "method": [*METHODS.names(), *recipe_files.files()],
        "dataset": DATASETS.names(),
        "verb": [*COMMANDS.names(), *own_verbs()],
    }
    what = next((f"a {part}" for part in parts if module in taken.get(part, ())), "")
    if not what and (module in sys.stdlib_module_names or module in (*wsss_bench.OURS, wsss_bench.DOOR)):
        what = "a module of Python or of this project"
    if not what:
        found = None
        try:
            found = importlib.util.find_spec(module)
        except (ImportError, ValueError):  # a module that was put together by hand has no spec
            what = "a module" if module in sys.modules else ""
        if found is not None and not (found.origin is None and found.loader is None):
            what = f"an installed module ({found.origin})"
    if not what:
        try:
            what = f"an installed package, version {distribution(distribution_name).version}"
        except PackageNotFoundError:
            return
    raise UserError(
        f"the name {module!r} is taken: there is {what}", where="NAME", remedy="choose another name"
    )


def _files(parts: list[str], names: dict[str, str]) -> dict[str, str]:
    """Every file of a package by its place."""
    module = names["module"]
    places: dict[str, str] = {}
    groups: dict[str, str] = {}
    for part in parts:
        files, entries = _PARTS[part]
        places |= {_filled(place, names): template for template, place in files.items()}
        groups |= {group: _filled(value, names) for group, value in entries.items()}
    points = "".join(
        f'\n[project.entry-points."wsss.{group}"]\n{module} = "{value}"\n' for group, value in groups.items()
    )
    backend = next((b for b in _BACKENDS if importlib.util.find_spec(b)), _BACKENDS[0])
    build = '[tool.hatch.build]\ndev-mode-dirs = ["."]\n\n'  # installs in place without a further package
    build += f'[tool.hatch.build.targets.wheel]\npackages = ["{module}"]'
    if backend == "setuptools":
        build = (
            f'[tool.setuptools]\npackages = ["{module}"]\n\n'
            f'[tool.setuptools.package-data]\n{module} = ["*/*.toml"]'
        )
    listed = {
        "method": f"`{module}/method.py` holds the idea, `{module}/recipes` how it is trained, "
        f"`{module}/published` what your paper prints and\n`{module}/claims` what it says.",
        "dataset": f"`{module}/dataset.py` says where pictures, masks and lists are.",
        "metric": f"`{module}/metric.py` computes it from counts.",
        "verb": f"`{module}/verb.py` is a click command.",
    }
    every = names | {
        "backend": backend,
        "backend_module": "hatchling.build" if backend == "hatchling" else "setuptools.build_meta",
        "entry_points": points,
        "build": build,
        "what": " and ".join(_TOLD[part][0] for part in parts),
        "install": _install(Path()),
        "commands": _filled("".join(_TOLD[part][1] for part in parts), names),
        "files": "\n".join(listed[part] for part in parts),
    }
    plain = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        f"tests/test_{module}.py": "test.py",
    }
    texts = {
        place: _filled((_TEMPLATES / f"{template}.txt").read_text(encoding="utf-8"), every)
        for place, template in (plain | places).items()
    }
    return texts | {f"{module}/__init__.py": _filled('"""$title, for wsss-bench."""\n', names)}


def _filled(text: str, values: dict[str, str]) -> str:
    """A template with its values; a title stands within quotes in TOML and Python alike."""
    quoted = {**values, "title": json.dumps(values["title"], ensure_ascii=False)[1:-1]}
    return Template(text).substitute(quoted)


def _install(place: Path) -> str:
    """The command that installs a folder without fetching anything."""
    tool = "python -m pip install"
    if importlib.util.find_spec("pip") is None:  # an environment that uv has made
        tool = f"uv pip install --python {shlex.quote(sys.executable)}"
    here = any(importlib.util.find_spec(backend) for backend in _BACKENDS)
    tool += " --no-build-isolation" if here else ""
    return f"{tool} --no-deps -e {shlex.quote(str(place))}"
