"""The rooms of docs/architecture.md: every module stands in one, and imports point one way."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/architecture.md").read_text()
#: From the ground up.
ROOMS = re.findall(r"^\| `((?:harness|methods|leaderboards)(?:/[a-z]+)?)` \|", PAGE, re.MULTILINE)


def modules() -> dict[str, Path]:
    found = {}
    for top in ("harness", "methods", "leaderboards"):
        for file in (ROOT / top).rglob("*.py"):
            parts = file.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = modules()


def room(module: str) -> str:
    """The room of a module; a folder inside a room belongs to it, and a method may be a folder."""
    place = module.replace(".", "/")
    inside = [name for name in ROOMS if place == name or place.startswith(f"{name}/")]
    assert inside, f"{module} stands in no room of docs/architecture.md"
    return max(inside, key=len)


def imported(module: str) -> Iterator[tuple[str, int]]:
    """Modules of ours that a module imports anywhere in it, and the line; for types alone does not count."""
    tree = ast.parse(MODULES[module].read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in MODULES:
            for name in node.names:
                whole = f"{node.module}.{name.name}"
                yield (whole if whole in MODULES else node.module), node.lineno
        elif isinstance(node, ast.Import):
            yield from ((name.name, node.lineno) for name in node.names if name.name in MODULES)


def test_imports_point_one_way():
    wrong = [
        f"{module}:{line} imports {other}"
        for module in sorted(MODULES)
        if module not in ("harness", "leaderboards")  # empty but for words
        for other, line in imported(module)
        if other not in ("harness", "leaderboards")
        if ROOMS.index(room(other)) > ROOMS.index(room(module))
    ]
    assert wrong == []


def test_there_are_at_most_fifteen_rooms_and_each_is_lived_in():
    assert len(ROOMS) == len(set(ROOMS)) <= 15
    assert {room(m) for m in MODULES if m not in ("harness", "leaderboards")} == set(ROOMS)


def test_no_module_is_longer_than_five_hundred_lines():
    long = {m: n for m, file in MODULES.items() if (n := len(file.read_text().splitlines())) > 500}
    assert long == {}


def test_no_public_name_means_two_things():
    places: dict[str, list[str]] = {}
    for module, file in MODULES.items():
        for node in ast.parse(file.read_text()).body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            names = {target.id for target in targets if isinstance(target, ast.Name)}
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names = {node.name}
            for name in names:
                if not name.startswith("_"):
                    places.setdefault(name, []).append(module)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}
