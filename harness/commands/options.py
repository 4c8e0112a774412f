"""Options that several verbs share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

RESULTS = click.option(
    "--results",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("results"),
    show_default=True,
    help="Folder of the record store.",
)
DATA_ROOT = click.option(
    "--data-root",
    "data_roots",
    multiple=True,
    metavar="[NAME=]DIR",
    help="Parent of the official data folders, or one data set's own; repeatable.",
)
DEVICE = click.option(
    "--device", default="auto", show_default=True, help="auto (CUDA where there is one), cpu, cuda, cuda:N."
)
WORKERS = click.option(
    "--workers", type=click.IntRange(0), default=0, show_default=True, help="Loader processes per trial."
)
SET = click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a value of the recipe, as in --set optimiser.lr=0.005; repeatable.",
)


def together(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator, in the order given."""

    def decorate(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate
