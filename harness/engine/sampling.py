"""Which pictures stand in which step: the plan of a run, and what a method may have to say on it.

The plan follows from the seed and the step alone. So a run can start at any step, with any number of loader
workers and processes, and sees the same.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.basics.errors import UserError
from harness.engine.build import FurtherSpec
from harness.engine.contract import LOGGED, place

if TYPE_CHECKING:
    from harness.engine.method import Method
    from harness.recipes.specs import Recipe


@dataclass(frozen=True)
class Pool:
    """The training split as :meth:`harness.engine.method.Method.order` sees it.

    Attributes:
        ids: of its pictures.
        tags: ``(N, K)`` multi-hot image tags, over each picture's whole weak label.
    """

    ids: tuple[str, ...]
    tags: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


class Stream:
    """Endless permutations of a split, one after another, from which each step takes the next samples.

    Args:
        name: sets streams of one split apart.
        length: pictures of the split, 1 or more.
        size: samples of a step, over all groups.
        seed: seed of the run.
        slots: which samples of each step are taken here.
    """

    def __init__(self, name: str, length: int, size: int, seed: int, slots: range) -> None:
        self.name, self.length, self.size, self.seed, self.slots = name, length, size, seed, slots
        self._pass, self._permutation = -1, np.empty(0, dtype=np.int64)

    def at(self, step: int) -> Iterator[tuple[int, int, int, str]]:
        """Step, slot in the step, index into the split, name."""
        for slot in self.slots:
            number, index = divmod(step * self.size + slot, self.length)
            if number != self._pass:
                seeds = [self.seed, number, zlib.crc32(self.name.encode())]
                order = np.random.Generator(np.random.PCG64(seeds)).permutation(self.length)
                self._pass, self._permutation = number, order
            yield step, slot, int(self._permutation[index]), self.name


def ordered(method: Method, pool: Pool, epoch: int, rng: np.random.Generator) -> np.ndarray:
    """The order in which a method has its pictures drawn in one pass over them.

    Returns:
        ``(N,)`` int64 indices into the pool.

    Raises:
        UserError: it gives anything else.
    """
    given: Any = method.order(pool, epoch, rng)
    shown, remedy = f"{place(method)}.order", f"{len(pool)} indices into pool.ids are due, repeated ones too"
    try:
        found = np.asarray(given)
    except (TypeError, ValueError, RuntimeError):
        found = np.empty(0)
    if found.ndim != 1 or found.dtype.kind not in "iu" or len(found) != len(pool):
        what = type(given).__name__ + (f" of {found.dtype} {found.shape}" if found.size else "")
        raise UserError(f"order gives {what} for {len(pool)} pictures", where=shown, remedy=remedy)
    if wrong := [int(i) for i in found if not 0 <= i < len(pool)]:
        raise UserError(f"order gives index {wrong[0]} of {len(pool)} pictures", where=shown, remedy=remedy)
    return found.astype(np.int64)


def check_further(method: Method, recipe: Recipe) -> None:
    """``further`` gives specifications by name, of splits that the data set has.

    Raises:
        UserError: naming what is wrong.
    """
    given: Any = method.further()
    shown = f"{place(method)}.further"
    if not isinstance(given, Mapping) or not all(isinstance(f, FurtherSpec) for f in given.values()):
        raise UserError(
            "further gives no FurtherSpec by name",
            where=shown,
            remedy='return, for instance, {"unlabelled": FurtherSpec(split="extra")}',
        )
    splits = method.build.dataset.splits
    for name, spec in given.items():
        if not isinstance(name, str) or not LOGGED.fullmatch(name):
            raise UserError(
                f"further pictures cannot be called {name!r}",
                where=shown,
                remedy="use letters, digits, _, - and .",
            )
        if not isinstance(spec.split, str) or type(spec.per_group) is not int or spec.per_group < 0:
            raise UserError(
                f"the further pictures {name!r} have split {spec.split!r} and per_group {spec.per_group!r}",
                where=shown,
                remedy="name a split ('' for that of the recipe), and a number (0 for that of the recipe)",
            )
        if spec.split and spec.split not in splits:
            raise UserError(
                f"the further pictures {name!r} are of split {spec.split!r}, which "
                f"{method.build.dataset.name} does not have",
                where=shown,
                remedy=f"it has {', '.join(splits)}; leave the split out for that of the recipe",
            )
        number = spec.per_group or recipe.batch.per_group
        if number < recipe.accumulate:
            raise UserError(
                f"{number} further pictures {name!r} cannot be cut into {recipe.accumulate} pieces",
                where=shown,
                remedy="ask for more, or make accumulate smaller",
            )
