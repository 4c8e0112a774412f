"""Small methods and batches of every kind, for tests over the registry: those of ``wsss check``."""

from __future__ import annotations

from harness.engine.promises import SMALL_SIDE as SIDE
from harness.engine.promises import distinct_recipes
from harness.engine.promises import small_batch as make_batch
from harness.engine.promises import small_method as build
from harness.recipes.resolving import recipe_names

__all__ = ["SIDE", "build", "make_batch", "mini_recipes"]


def mini_recipes() -> list[str]:
    """The miniature recipes, those left out that differ from another in positive numbers alone."""
    return distinct_recipes(name for name in recipe_names() if "/mini-" in name)
