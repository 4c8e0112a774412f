"""Grids of configurations: a recipe, and several values for some of its keys."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from harness.basics.errors import UserError
from harness.basics.schema import digest
from harness.recipes.given import Called, one
from harness.recipes.resolving import parse_overrides, resolve, value_text
from harness.recipes.row_names import comma_parts, row_name

#: Configurations of a grid, at most.
MOST_POINTS = 10_000


@dataclass(frozen=True)
class AblationGrid:
    """A recipe, and all combinations of some values.

    Attributes:
        recipe: its name.
        fixed: values by dotted key that all points have.
        axes: several values by dotted key.
    """

    recipe: str
    fixed: Mapping[str, Any]
    axes: Mapping[str, tuple[Any, ...]]

    @property
    def points(self) -> list[dict[str, Any]]:
        """The overrides of every point, the last axis running fastest."""
        return [
            {**self.fixed, **dict(zip(self.axes, values, strict=True))}
            for values in product(*self.axes.values())
        ]


def parse_grid(recipe: str, assignments: Iterable[str], called: Called | None = None) -> AblationGrid:
    """``config.a=1,2,4`` and the like to a grid.

    Values are parted by commas outside of quotes and brackets and read as ``--set`` of ``wsss run`` reads
    them: ``crop=[48, 64],[64, 64]`` has two lists, ``labels_from="a,b","c"`` two texts. A key with one value,
    and all values of ``@FILE``, are the same for all points.

    Args:
        recipe: its name, a row's name, or a recipe file.
        assignments: as on the command line.
        called: as for :func:`harness.recipes.given.given`.

    Raises:
        UserError: a key or a value that the recipe does not take, no key with several values, a point that
            stands twice, or more than :data:`MOST_POINTS`.
    """
    fixed: dict[str, Any] = {}
    axes: dict[str, tuple[Any, ...]] = {}
    given: list[str] = []
    for text in assignments:
        key, equals, whole = text.partition("=")
        key, values = key.strip(), comma_parts(whole)
        if text.startswith("@") or not equals or len(values) == 1:
            fixed |= parse_overrides([text])
            given.append(text)
            continue
        if "" in values:
            raise UserError(
                "a value between two commas is missing", where=f"--set {text}", remedy='write "" for no text'
            )
        if key in axes:
            raise UserError(f"{key} has values twice", where=f"--set {text}", remedy="write them in one list")
        axes[key] = tuple(parse_overrides([f"{key}={value}"])[key] for value in values)
    if both := fixed.keys() & axes.keys():
        key = min(both)
        raise UserError(f"{key} has one value, and several", where=f"--set {key}", remedy="leave out one")
    if not axes:
        raise UserError(
            "no key has several values", where="--set", remedy="part them by commas, as in crop=48,64"
        )
    number = math.prod(map(len, axes.values()))
    if number > MOST_POINTS:
        raise UserError(
            f"{number:,} configurations are more than {MOST_POINTS:,}",
            where="--set",
            remedy="take fewer values",
        )
    # of assignments that exclude one another, none is ignored
    parse_overrides([*given, *(f"{key}={value_text(values[0])}" for key, values in axes.items())])
    asked = one(recipe, fixed, called)
    grid = AblationGrid(asked.name, asked.overrides, axes)
    seen: dict[str, str] = {}
    for point in grid.points:
        resolved = resolve(grid.recipe, point)
        same = {"crop": resolved.recipe.crop_size}  # 48 and [48, 48] are two digests of one training
        own = digest([resolved.essential_values() | same, resolved.inference])
        name = row_name(grid.recipe, point)
        if own in seen:
            raise UserError(
                f"two points are the same configuration: {seen[own]} and {name}",
                where="--set",
                remedy="leave out one of the values",
            )
        seen[own] = name
    return grid
