"""``wsss check``."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click

from harness.basics.errors import UserError
from harness.cli.options import DATA_ROOT, JSON, aside, together
from harness.cli.usage import Verb


@click.command(
    "check",
    cls=Verb,
    epilog="""\b
Examples:
  wsss check                    every installed package that brings something, but this project
  wsss check my-method          one package: its distribution, or its top-level module
  wsss check my-data --data-root birds=~/birds    and the files of its data set

Exit codes: 0 all promises are kept, 1 some are not, 2 there is no such package.""",
)
@click.argument("package", required=False)
@together(DATA_ROOT, JSON)
def check_verb(package: str | None, data_roots: Sequence[str], as_json: bool) -> int:
    """Whether what a package brings keeps its promises, one line for each that is broken.

    Methods are built with random weights and tried on small pictures: losses reach every trainable parameter
    and are finite, predictions repeat themselves, the state is whole. Recipes, data sets, published cells,
    claims, protocols and verbs are checked as the commands that use them would. docs/methods.md lists what
    is asked.
    """
    from leaderboards.judge.checking import check_package, packages

    names = [package] if package is not None else packages()
    if not names:
        raise UserError(
            "no other package brings anything",
            where="PACKAGE",
            remedy="write one with `wsss new NAME` and install it; `wsss check wsss-bench` checks ours",
        )
    found = [check_package(name, data_roots, say=aside) for name in names]
    if as_json:
        told = [
            {
                "package": one.package,
                "checked": one.counts,
                "breaches": [{"of": b.of, "problem": b.problem, "where": b.where} for b in one.breaches],
                "remarks": list(one.remarks),
            }
            for one in found
        ]
        click.echo(json.dumps(told, indent=1, ensure_ascii=False))
    else:
        for one in found:
            for line in (*one.breaches, *(f"remark: {text}" for text in one.remarks)):
                click.echo(str(line))
            what = ", ".join(
                f"{number} {kind if number != 1 else kind.removesuffix('s')}"
                for kind, number in one.counts.items()
            )
            n = len(one.breaches)
            verdict = "keeps its promises" if not n else f"{n} broken promise{'s' if n > 1 else ''}"
            click.echo(f"{one.package}: {verdict} ({what})")
    return 1 if any(one.breaches for one in found) else 0
