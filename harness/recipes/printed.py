"""What a recipe's values are in print, and which of its values differ from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from harness.basics.schema import dump
from harness.recipes import recipe_files
from harness.recipes.resolving import Resolved, flattened, inherited, lineage

#: How a source begins that says that nothing is printed.
_OURS = "our choice"


@dataclass(frozen=True)
class Printed:
    """What a source says of a key.

    Attributes:
        source: where: section, table, file of the authors' code.
        value: what stands there, None where the recipe is as it is there.
        differs: whether the recipe's value is another one.
    """

    source: str
    value: Any = None
    differs: bool = False


def printed(resolved: Resolved) -> dict[str, Printed]:
    """By dotted key: the source of its value, and what stands there where the value is another one.

    A source speaks of the value of the table that names it, or of the first one below that sets it: a recipe
    that extends that table, or a command line, may have changed the value since. ``our choice`` is no source,
    and nothing differs from it.
    """
    now = flattened(dump(resolved.recipe))
    sources: dict[str, str] = {}
    there: dict[str, Any] = {}
    for name in reversed(lineage(resolved.name)):  # ancestors first: a descendant's source replaces theirs
        own = recipe_files.recipe_table(name, child=name).get("sources", {})
        sources |= own
        for key in own:
            there.pop(key, None)
        values = flattened(inherited(name, name)) if set(sources) - set(there) else {}
        there |= {key: values[key] for key in sources if key not in there and key in values}
    found = {}
    for key, source in sources.items():
        given = resolved.origins.get(key) is not None
        same = _plain(there[key]) == _plain(now.get(key)) if key in there else not given
        differs = not source.startswith(_OURS) and not same
        found[key] = Printed(source, _plain(there.get(key)) if differs else None, differs)
    return found


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
