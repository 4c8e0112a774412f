"""Where ``wsss`` starts: the one module of this project with a name that nobody else has.

``harness``, ``methods`` and ``leaderboards`` are names that other people's folders have too: one where the
user stands, on ``PYTHONPATH`` or beside a notebook would be imported in place of ours. :func:`prefer_ours`
sees to it that in this process the three names mean the packages beside this file. ``import harness`` calls
it; where a folder called ``harness`` is in the way, ``import wsss_bench`` before it does.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

#: Packages of this project.
OURS = ("harness", "leaderboards", "methods")
#: The module that others import.
DOOR = "wsss"
#: Folder that holds them and this file.
HOME = Path(__file__).resolve().parent
#: Environment variable of a worker: folders that Ray adds to its path and the driver's does not have.
ADDED = "WSSS_ADDED_PATH"


class _Ours(MetaPathFinder):
    """Finds our packages in :data:`HOME`, wherever else their names occur.

    Args:
        added: entries to take off ``sys.path`` whenever they stand there.
    """

    def __init__(self, added: Sequence[str] = ()) -> None:
        self.added = frozenset(added)

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The package for one of our names; None for all others, which are left to the usual search."""
        if self.added and not self.added.isdisjoint(sys.path):
            sys.path[:] = [entry for entry in sys.path if entry not in self.added]
        return PathFinder.find_spec(name, [str(HOME)], target) if name in (*OURS, DOOR) else None


def prefer_ours() -> None:
    """Let our names mean our packages in this process."""
    if not any(isinstance(finder, _Ours) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Ours())


def in_worker() -> None:
    """As :func:`prefer_ours`, in a process that Ray has started.

    Ray puts the folder where the driver stands in front of the path of its workers, so that a ``timm`` or a
    ``random.py`` in it would be used by them and not by the driver: it is taken off again.
    """
    added = os.environ.get(ADDED, "")
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Ours)]
    sys.meta_path.insert(0, _Ours([entry for entry in added.split(os.pathsep) if entry]))


def worker_environment() -> dict[str, object]:
    """The runtime environment of Ray that makes its workers import what this process imports."""
    here = {str(Path(entry or os.curdir).resolve()) for entry in sys.path}
    places = {os.path.abspath(os.curdir)}  # noqa: PTH100 - spelled as Ray spells it
    added = os.pathsep.join(sorted(p for p in places if str(Path(p).resolve()) not in here))
    return {"worker_process_setup_hook": "wsss_bench.in_worker", "env_vars": {ADDED: added}}


def begin(module: str, function: str, *arguments: object) -> None:
    """Call one of our functions in a process that was spawned: named by text, so that nothing of ours is
    looked for before this module has seen to where."""
    getattr(importlib.import_module(module), function)(*arguments)


def taken() -> dict[str, str]:
    """Our names that this process knows as something else, and the file or folder that it is."""
    found = {}
    for name in OURS:
        module = sys.modules.get(name)
        if module is None:
            continue
        places = (
            [module.__file__] if getattr(module, "__file__", None) else list(getattr(module, "__path__", []))
        )
        if not any(Path(str(place)).resolve().is_relative_to(HOME / name) for place in places):
            found[name] = str(next(iter(places), "a module without a file"))
    return found


def main() -> None:
    """The command ``wsss``.

    numpy multiplies here in one thread: its products are many and small (resamples of a table's rows), and
    threads that wait for each other double the time; torch has threads of its own.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from harness.cli.main import main as command

    command()


prefer_ours()

if __name__ == "__main__":
    main()
