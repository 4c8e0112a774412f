"""Names to classes through entry points, so that another package can add methods and data sets."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from harness.errors import UserError, nearest


class Registry:
    """The entry points of one group, loaded when asked for.

    Args:
        group: entry point group, such as ``wsss.methods``.
        noun: what one entry is called in messages.
    """

    def __init__(self, group: str, noun: str) -> None:
        self.group, self.noun = group, noun
        self._registered: dict[str, Any] = {}

    @property
    def _entries(self) -> dict[str, EntryPoint]:
        return _entry_points(self.group)

    def names(self) -> list[str]:
        """All registered names, sorted."""
        return sorted({*self._entries, *self._registered})

    def register(self, name: str, value: Any) -> Any:
        """Add an entry for this process (tests, notebooks); packages use an entry point instead."""
        self._registered[name] = value
        return value

    def __contains__(self, name: str) -> bool:
        return name in self._registered or name in self._entries

    def get(self, name: str) -> Any:
        """The class behind a name.

        Raises:
            UserError: unknown name, or the package that brings it cannot be imported.
        """
        if name in self._registered:
            return self._registered[name]
        entry = self._entries.get(name)
        if entry is None:
            raise UserError(f"unknown {self.noun} {name!r}", remedy=nearest(name, self.names()))
        try:
            return entry.load()
        except ImportError as error:
            raise UserError(
                f"the {self.noun} {name!r} cannot be imported: {error}",
                where=entry.value,
                remedy="install what its package needs",
            ) from error


@cache
def _entry_points(group: str) -> dict[str, EntryPoint]:
    return {e.name: e for e in entry_points(group=group)}


METHODS = Registry("wsss.methods", "method")
DATASETS = Registry("wsss.datasets", "data set")
RECIPE_PACKAGES = Registry("wsss.recipes", "recipe package")
COMMANDS = Registry("wsss.commands", "command")
