"""``wsss list``, ``wsss show``, ``wsss open`` and ``wsss completion``."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.basics.listing import Styled, fitted_table, heading, prose, remark
from harness.cli.completing import A_RECIPE, EVERYTHING
from harness.cli.options import DATA_ROOT, JSON, left_out
from harness.cli.usage import Verb

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.basics.registry import Registry
    from harness.recipes.printed import Printed

_KINDS = ("methods", "datasets", "recipes", "suites", "protocols", "metrics")


@click.command(
    "list",
    cls=Verb,
    epilog="""\b
Examples:
  wsss list                     everything
  wsss list recipes             all recipes
  wsss list recipes 'agmm/*'    those of one method
  wsss list suites""",
)
@click.argument("kind", type=click.Choice(_KINDS), required=False)
@click.argument("pattern", default="*", shell_complete=EVERYTHING)
@JSON
def list_verb(kind: str | None, pattern: str, as_json: bool) -> None:
    """Methods, data sets, recipes, suites, protocols and metrics."""
    from fnmatch import fnmatch

    makers = {
        "methods": _methods,
        "datasets": _datasets,
        "recipes": _recipes,
        "suites": _suites,
        "protocols": _protocols,
        "metrics": _metrics,
    }
    tables = {k: [r for r in makers[k]() if fnmatch(r["name"], pattern)] for k in _KINDS if kind in (None, k)}
    if as_json:
        click.echo(json.dumps(tables if kind is None else tables[kind], indent=1))
        return
    for name, rows in tables.items():
        click.echo(heading(f"{name} ({len(rows)})"))
        headers = list(rows[0]) if rows else []
        lines = [[*row.values()] for row in rows]
        if name == "suites" and kind is None:  # their members are most of the recipes that stand above
            lines = [[*line[:-1], f"{len(line[-1].split(', '))} recipes"] for line in lines]
        click.echo(fitted_table(lines, headers))
        click.echo("see `wsss list suites` for their members\n" if name == "suites" and kind is None else "")


def _each(registry: Registry, get: Callable[[str], Any]) -> dict[str, Any]:
    """By name what ``get`` gives for every entry that can be used; the others are named on stderr."""
    from harness.basics.errors import UserError

    found, wrong = {}, {}
    for name in registry.names():
        try:
            found[name] = get(name)
        except UserError as error:
            wrong[f"{registry.noun} {name}"] = error
    left_out(wrong)
    return found


def _methods() -> list[dict[str, str]]:
    from harness.basics.registry import METHODS
    from harness.recipes.declared import declared

    rows = []
    for name, cls in _each(METHODS, declared).items():
        rows.append(
            {
                "name": name,
                "title": cls.title,
                "paper": "baseline" if cls.paper is None else str(cls.paper),
                "supervision": ", ".join(sorted(cls.supervision)),
            }
        )
    return rows


def _datasets() -> list[dict[str, str]]:
    from harness.basics.registry import DATASETS

    rows = []
    for name, cls in _each(DATASETS, DATASETS.get).items():
        info = cls.info
        splits = ", ".join(f"{k} {v:,}" for k, v in info.splits.items())
        rows.append(
            {
                "name": name,
                "title": info.title,
                "classes": str(info.num_classes),
                "splits": splits,
                "folder": info.folder,
            }
        )
    return rows


def _recipes() -> list[dict[str, str]]:
    from harness.recipes.resolving import awaits_pictures, inherited, recipe_names, usable

    found, wrong = usable()
    left_out(wrong)
    waiting = {n: inherited(n, n) for n in recipe_names() if n not in {*found, *wrong} and awaits_pictures(n)}
    rows = [
        {
            "name": name,
            "data set": r.recipe.dataset,
            "supervision": r.recipe.supervision,
            "backbone": r.recipe.backbone,
            "suites": ", ".join(r.recipe.suites),
        }
        for name, r in found.items()
    ]
    rows += [
        {
            "name": name,
            "data set": values["dataset"],
            "supervision": values["supervision"],
            "backbone": values["backbone"],
            "suites": "",
        }
        for name, values in waiting.items()
    ]
    return sorted(rows, key=lambda row: row["name"].partition("/")[0])


def _suites() -> list[dict[str, str]]:
    from harness.recipes.resolving import suites

    return [{"name": name, "recipes": ", ".join(recipes)} for name, recipes in suites().items()]


def _protocols() -> list[dict[str, str]]:
    from harness.recipes.protocols import protocols

    return [{"name": name, "about": p.about} for name, p in protocols().items()]


def _metrics() -> list[dict[str, str]]:
    from leaderboards.rows.metrics import metric_names, metric_problems, metrics

    wrong = metric_problems()
    left_out({f"metric {name}": error for name, error in wrong.items()})
    found = metrics([name for name in metric_names() if name not in wrong])
    return [{"name": m.name, "title": m.title, "about": m.meaning} for m in found]


@click.command(
    "show",
    cls=Verb,
    epilog="""\b
Examples:
  wsss show agmm/voc-point-r101
  wsss show agmm/voc-point-r101 --docs
  wsss show agmm/mini-scribble --set optimiser.lr=0.02
  wsss show agmm/mini-scribble --set dataset=birds --data-root birds=~/birds
  wsss show ./mine.toml                         a recipe file of your own""",
)
@click.argument("recipe", shell_complete=A_RECIPE)
@click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Override a value; repeatable."
)
@DATA_ROOT
@click.option("--docs", is_flag=True, help="Explain every key.")
@JSON
def show_verb(
    recipe: str, assignments: tuple[str, ...], data_roots: tuple[str, ...], docs: bool, as_json: bool
) -> None:
    """Every effective value of a recipe with its origin: default, file, command line, and its source."""
    from harness.recipes.given import one
    from harness.recipes.printed import printed
    from harness.recipes.resolving import documented, explain, parse_overrides, resolve

    asked = one(recipe, parse_overrides(assignments))
    resolved = resolve(asked.name, asked.overrides)
    resolved = replace(resolved, origins={**resolved.origins, **asked.origins})
    rows = explain(resolved)
    known = printed(resolved)
    remarks = resolved.recipe.remarks
    if as_json:
        values = []
        for key, value, origin, source in rows:
            line = {"key": key, "value": json.dumps(value), "origin": origin, "printed in": source}
            differs = key in known and known[key].differs
            values.append(line | {"differs": differs} | ({"printed": known[key].value} if differs else {}))
        click.echo(json.dumps({"name": asked.name, "values": values, "remarks": remarks}, indent=1))
        return
    click.echo(heading(f"{asked.name} ({resolved.recipe.method}, {resolved.file})"))
    for file in dict.fromkeys(_file(origin) for origin in asked.origins.values()):
        click.echo(prose(f"with values of {file}") if file else "", nl=bool(file))
    explained = documented(resolved) if docs else {}
    sections: dict[str, list[tuple[str, Any, str, str]]] = {}
    for row in rows:
        sections.setdefault(row[0].partition(".")[0] if "." in row[0] else "recipe", []).append(row)
    for section, members in sections.items():
        click.echo(f"\n{heading(section)}")
        if docs:
            for key, value, origin, _ in members:
                click.echo(prose(f"{key} = {_told(value)}", first="  ", indent="      "))
                for text in (explained.get(key, ""), f"from {origin}", _said(known.get(key))):
                    click.echo(prose(text, first="      ", indent="      ") if text else "", nl=bool(text))
        else:
            click.echo(
                fitted_table([_value_line(*row, known.get(row[0])) for row in members], ("", "", "", ""))
            )
    if any(one.differs for one in known.values()):
        click.echo(
            "\n" + prose(f"{_DIFFERS} differs from what the source gives for the recipe that it describes")
        )
    if remarks:
        click.echo(f"\n{heading('remarks')}")
    for text in remarks:
        click.echo(remark(text))


#: Marks a value that is not the printed one.
_DIFFERS = "!"


def _told(value: Any) -> str:
    """A value as it is written on the command line; of a list of tables, one in a line."""
    if isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
        return "\n".join(", ".join(f"{k}={json.dumps(v)}" for k, v in one.items()) for one in value)
    return json.dumps(value, ensure_ascii=False)


def _said(known: Printed | None) -> str:
    """What is printed of a value."""
    if known is None:
        return ""
    if not known.differs:
        return known.source
    there = "another value" if known.value is None else json.dumps(known.value)
    return f"printed: {there} ({known.source})"


def _file(origin: str) -> str:
    """The recipe file of one's own that an origin names, empty for every other origin."""
    return origin if origin.partition(" [")[0].lower().endswith(".toml") else ""


def _value_line(key: str, value: Any, origin: str, source: str, known: Printed | None) -> list[str | Styled]:
    differs = known is not None and known.differs
    style = {"fg": "yellow"} if differs else {}
    file, _, table_of = origin.partition(" [")
    short = Path(file).name if _file(origin) else file  # the whole path stands above
    said = _said(known) or ("" if origin == "default" else f"[{table_of}" if table_of else short)
    if differs and origin == "command line":
        said += "; command line"
    return [
        _DIFFERS if differs else " ",
        Styled(key, style),
        Styled(_told(value), style),
        Styled(said, {"dim": True}),
    ]


@click.command(
    "open",
    cls=Verb,
    epilog="""\b
Examples:
  wsss open                     ./reports/report.html, which `wsss report` writes
  wsss open reports-quick       that of another folder""",
)
@click.argument("folder", type=click.Path(path_type=Path), default=Path("reports"))
def open_verb(folder: Path) -> None:
    """Open the report in a browser; its path is printed, for where there is none."""
    import webbrowser

    from harness.basics.errors import UserError

    page = folder if folder.suffix == ".html" else folder / "report.html"
    if not page.is_file():
        raise UserError(
            "there is no report", where=page, remedy="`wsss report` writes it: --out names a folder"
        )
    place = page.absolute()
    screen = sys.platform != "linux" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    click.echo(str(place))
    if not screen or not webbrowser.open(place.as_uri()):
        click.echo("no browser could be opened here", err=True)


@click.command(
    "completion",
    cls=Verb,
    epilog="""\b
Examples:
  wsss completion bash >> ~/.bashrc
  wsss completion zsh >> ~/.zshrc
  wsss completion fish > ~/.config/fish/completions/wsss.fish""",
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_verb(context: click.Context, shell: str) -> None:
    """Print what makes a shell complete verbs, options, recipes and suites."""
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    assert made is not None
    click.echo(made(context.find_root().command, {}, "wsss", "_WSSS_COMPLETE").source())
