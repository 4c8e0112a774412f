"""What a shell completes: recipes, suites and data sets, from the names of files and entry points alone.

A shell asks at every press of a key, so nothing here imports what takes long (torch, methods, data sets).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import click
from click.shell_completion import CompletionItem

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def names_of_recipes() -> list[str]:
    """All recipes."""
    from harness.recipes import recipe_files

    return recipe_files.names()


def suite_names() -> list[str]:
    """Suites that any table names, those included that others inherit from."""
    from harness.basics.errors import UserError
    from harness.recipes import recipe_files

    found: set[str] = set()
    for stem in recipe_files.files():
        try:
            tables = recipe_files.tables(stem).values()
        except UserError:  # the verb says what is wrong with it
            continue
        for table in tables:
            named = table.get("suites", ()) if isinstance(table, dict) else ()
            found.update(name for name in named if isinstance(name, str))
    return sorted(found)


def data_set_names() -> list[str]:
    """All data sets."""
    from harness.basics.registry import DATASETS

    return sorted(DATASETS.names())


def _of(names: Callable[[], Iterable[str]], *, files: bool = False) -> Complete:
    """Names that begin as the word does; with ``files``, paths where none does."""

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        found = [CompletionItem(name) for name in names() if name.startswith(incomplete)]
        return found or ([CompletionItem(incomplete, type="file")] if files else [])

    return complete


#: For what a parameter takes: a recipe, or a record or checkpoint by its path; these or a suite; and so on.
A_RECIPE = _of(names_of_recipes, files=True)
RECIPES = _of(lambda: [*suite_names(), *names_of_recipes()], files=True)
A_SUITE = _of(suite_names)
A_DATA_SET = _of(data_set_names)
EVERYTHING = _of(lambda: [*names_of_recipes(), *suite_names(), *data_set_names()])
