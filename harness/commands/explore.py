"""``wsss list``, ``wsss show`` and ``wsss doctor``."""

from __future__ import annotations

import json
import textwrap
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click
from tabulate import tabulate

from harness.commands.options import DATA_ROOT, left_out
from harness.commands.usage import Verb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.errors import UserError
    from harness.registry import Registry

_KINDS = ("methods", "datasets", "recipes", "suites", "protocols")


@click.command(
    cls=Verb,
    name="list",
    epilog="""\b
Examples:
  wsss list                     everything
  wsss list recipes             all recipes
  wsss list recipes 'agmm/*'    those of one method
  wsss list suites""",
)
@click.argument("kind", type=click.Choice(_KINDS), required=False)
@click.argument("pattern", default="*")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def list_(kind: str | None, pattern: str, as_json: bool) -> None:
    """Methods, data sets, recipes, suites and protocols."""
    from fnmatch import fnmatch

    makers = {
        "methods": _methods,
        "datasets": _datasets,
        "recipes": _recipes,
        "suites": _suites,
        "protocols": _protocols,
    }
    tables = {k: [r for r in makers[k]() if fnmatch(r["name"], pattern)] for k in _KINDS if kind in (None, k)}
    if as_json:
        click.echo(json.dumps(tables if kind is None else tables[kind], indent=1))
        return
    for name, rows in tables.items():
        click.secho(f"{name} ({len(rows)})", bold=True)
        click.echo(
            tabulate(rows, headers="keys", tablefmt="plain", disable_numparse=True) if rows else "none"
        )
        click.echo()


def _each(registry: Registry) -> Iterator[tuple[str, Any]]:
    """Name and class of every entry that can be used; the others are named on stderr."""
    wrong = registry.problems()
    left_out({f"{registry.noun} {name}": error for name, error in wrong.items()})
    yield from ((name, registry.get(name)) for name in registry.names() if name not in wrong)


def _methods() -> list[dict[str, str]]:
    from harness.registry import METHODS

    rows = []
    for name, cls in _each(METHODS):
        paper = "baseline"
        if cls.paper is not None:
            first = cls.paper.authors.split(",")[0].removesuffix(" et al.")
            paper = f"{first} et al., {cls.paper.venue} {cls.paper.year}"
        rows.append(
            {
                "name": name,
                "title": cls.title,
                "paper": paper,
                "supervision": ", ".join(sorted(cls.supervision)),
            }
        )
    return rows


def _datasets() -> list[dict[str, str]]:
    from harness.registry import DATASETS

    rows = []
    for name, cls in _each(DATASETS):
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
    from harness.recipes import awaits_pictures, inherited, recipe_names, usable

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
    from harness.recipes import suites

    return [{"name": name, "recipes": ", ".join(recipes)} for name, recipes in suites().items()]


def _protocols() -> list[dict[str, str]]:
    from harness.evaluation import protocols

    return [{"name": name, "about": p.about} for name, p in protocols().items()]


@click.command(
    cls=Verb,
    epilog="""\b
Examples:
  wsss show agmm/voc-point-r101
  wsss show agmm/voc-point-r101 --docs
  wsss show agmm/mini-scribble --set optimiser.lr=0.02
  wsss show agmm/mini-scribble --set dataset=birds --data-root birds=~/birds
  wsss show ./mine.toml                         a recipe file of your own""",
)
@click.argument("recipe")
@click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Override a value; repeatable."
)
@DATA_ROOT
@click.option("--docs", is_flag=True, help="Explain every key.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def show(
    recipe: str, assignments: tuple[str, ...], data_roots: tuple[str, ...], docs: bool, as_json: bool
) -> None:
    """Every effective value of a recipe with its origin: default, file, command line, and its source."""
    from harness.given import one
    from harness.recipes import documented, explain, parse_overrides, resolve

    asked = one(recipe, parse_overrides(assignments))
    resolved = resolve(asked.name, asked.overrides)
    resolved = replace(resolved, origins={**resolved.origins, **asked.origins})
    rows = [
        {"key": key, "value": json.dumps(value), "origin": origin, "printed in": source}
        for key, value, origin, source in explain(resolved)
    ]
    if as_json:
        click.echo(
            json.dumps({"name": asked.name, "values": rows, "remarks": resolved.recipe.remarks}, indent=1)
        )
        return
    if docs:
        explained = documented(resolved)
        for row in rows:
            click.secho(f"{row['key']} = {row['value']}", bold=True)
            text = explained.get(row["key"], "")
            if text:
                click.echo(textwrap.indent(textwrap.fill(text, 96), "    "))
            click.echo(f"    from {row['origin']}" + (f"; {row['printed in']}" if row["printed in"] else ""))
    else:
        click.echo(tabulate(rows, headers="keys", tablefmt="plain", disable_numparse=True))
    for remark in resolved.recipe.remarks:
        click.echo(textwrap.fill(f"- {remark}", 100, subsequent_indent="  "))


@click.command(cls=Verb, epilog="\b\nExample:\n  wsss doctor --data-root ~/data")
@DATA_ROOT
def doctor(data_roots: tuple[str, ...]) -> None:
    """What this machine can run, what is missing, and how to get it."""
    import shutil

    import torch

    from harness import compat, devices, provenance
    from harness.errors import UserError
    from harness.files import cache_folder
    from harness.recipes import usable
    from harness.registry import COMMANDS, DATASETS, METHODS
    from harness.runs.trial import open_dataset

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts = provenance.hardware(device) | provenance.code()
    rows: list[tuple[str, str, str]] = []
    rows.append(("machine", f"{facts['processor']}, {facts['cores']} cores", ""))
    found = devices.machine(thoroughly=True)
    gpus = [torch.cuda.get_device_name(i) for i in range(found.count)]
    built = f"torch {torch.__version__}, " + (f"CUDA {found.built}" if found.built else "CPU build")
    if found.present and not gpus:
        state, remark = "unusable", f"{devices.why_unusable(found)}; {devices.remedy(found)}"
    elif gpus:
        state, remark = ", ".join(gpus), devices.without_kernels(found)
    else:
        state, remark = "none", f"{built}: the mini suite runs; papers need a GPU"
    rows.append(("GPU", state, remark))
    driver = "none" if found.driver is None and found.driver_cuda is None else found.driver or "unknown"
    newest = (
        "" if found.driver_cuda is None else f"supports CUDA up to {'.'.join(map(str, found.driver_cuda))}"
    )
    rows.append(("NVIDIA driver", driver, newest))
    rows.append(("torch build", built, " ".join(found.architectures)))
    rows.append(
        ("torchvision", "cured", "see harness/compat.py") if compat.cured() else ("torchvision", "sound", "")
    )
    for name, version in provenance.environment()["packages"].items():
        rows.append((name, version or "missing", "" if version else f"pip install {name}"))
    cache = cache_folder()
    place = next(p for p in (cache, *cache.parents) if p.exists())
    rows.append(
        (
            "cache",
            str(cache),
            f"{shutil.disk_usage(place).free / 2**30:.0f} GiB free; set WSSS_CACHE to move it",
        )
    )
    broken = METHODS.problems()
    rows += [(f"method {name}", "ready", "") for name in METHODS.names() if name not in broken]
    rows += [(f"method {name}", "broken", _line(error)) for name, error in broken.items()]
    rows += [(f"verb {name}", "broken", _line(error)) for name, error in COMMANDS.problems().items()]
    rows += [(name, "broken", _line(error)) for name, error in usable()[1].items()]
    broken = DATASETS.problems()
    rows += [(f"data {name}", "broken", _line(error)) for name, error in broken.items()]
    for name in DATASETS.names():
        if name in broken:
            continue
        try:
            dataset = open_dataset(name, data_roots, cache)
            present = [f"{s} {len(dataset.ids(s)):,}/{n:,}" for s, n in dataset.info.splits.items()]
            rows.append((f"data {name}", "found", ", ".join(present)))
        except UserError as error:
            rows.append((f"data {name}", "missing", f"{error.problem}; {error.remedy}"))
    click.echo(tabulate(rows, headers=("what", "state", "remark"), tablefmt="plain", disable_numparse=True))


def _line(error: UserError) -> str:
    """An error on one line."""
    return "; ".join(part for part in (error.problem, error.where, error.remedy) if part)
