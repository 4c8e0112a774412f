"""The code of a trial that is not this project's: whose it is, and exactly which sources.

A method, a data set or recipes may come from another package, from a file beside a notebook, or from the
notebook itself. Each top-level module that takes part is described by a *package*, a dict of ``module``,
``brings`` (what it is needed for), ``distribution``, ``version`` (None where it is not installed), ``commit``
and ``dirty`` (None outside a git checkout) and ``sha256``, a hash of all its sources.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import os
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import EntryPoint, packages_distributions, version
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any, TypeVar

import wsss_bench
from harness.basics.errors import UserError
from harness.basics.files import sha256_of, write_json
from harness.basics.provenance import git
from harness.basics.reading import read_json
from harness.basics.registry import DATASETS, FORGET, METHODS, RECIPE_PACKAGES
from harness.recipes import recipe_files
from harness.recipes.resolving import Resolved, lineage

#: Endings of files that are code.
_SOURCES = (".py", ".pyx", ".so", ".pyd", ".c", ".cc", ".cpp", ".cu", ".cuh", ".h", ".hpp")

Package = dict[str, Any]
#: The packages of a state of the code.
_State = TypeVar("_State", bound=Iterable[Mapping[str, Any]])


def packages_of(resolved: Resolved) -> list[Package]:
    """Every package but ours whose code a trial of a recipe runs, or whose recipes it reads.

    These are the modules of its method (bases and ``Config`` included) and of its data set, what they use
    of modules that lie outside the libraries' folder, and the packages of all recipe files it inherits from.
    """
    found: dict[str, Package] = {}
    method, dataset = resolved.recipe.method, resolved.recipe.dataset
    for what, cls, entry in (
        (f"method {method}", METHODS.get(method), METHODS.entry(method)),
        (f"method {method}", METHODS.get(method).Config, METHODS.entry(method)),
        (f"data set {dataset}", DATASETS.get(dataset), DATASETS.entry(dataset)),
    ):
        for base in inspect.getmro(cls):
            if base.__module__.partition(".")[0] in _needed(base):
                _add(found, base, what, entry)
    for name in dict.fromkeys(_recipe_packages(resolved)):
        module = RECIPE_PACKAGES.get(name)
        if not _known(module.__name__):
            _add(found, module, f"recipes {name}", RECIPE_PACKAGES.entry(name))
    return [found[name] for name in sorted(found)]


def text(packages: Iterable[Mapping[str, Any]]) -> str:
    """Packages in a few words, such as ``their-methods 1.0 (3bb09490a)``; empty for none."""
    return ", ".join(_text(package) for package in packages)


def code_identity(packages: Iterable[Mapping[str, Any]]) -> str:
    """Equal for equal code: the names of the modules and the hashes of their sources."""
    return " ".join(f"{p.get('module')}={p.get('sha256')}" for p in packages)


def difference(data: Mapping[str, Any], resolved: Resolved) -> str:
    """In what the code that made a record differs from that which is here now; empty if in nothing.

    Args:
        data: of the record.
        resolved: its recipe.
    """
    now = packages_of(resolved)
    if now and "packages" not in data.get("code", {}):
        return f"trained with code that was not recorded; here is {text(now)}"
    if made_by(data) == code_identity(now):
        return ""
    return f"trained with other code: {told_packages(data) or 'none but ours'}; here is {text(now) or 'none'}"


def begun(known: Sequence[Mapping[str, Any]] | None, resolved: Resolved) -> str:
    """In what the code that something was begun with differs from that which is here; empty if in nothing.

    Args:
        known: packages that were noted then; None where nothing was.
        resolved: the recipe.
    """
    now = packages_of(resolved)
    if known is None:
        return f"begun with code that was not recorded; here is {text(now)}" if now else ""
    return _differs("begun", [known], now)


def gone_on(folder: Path, resolved: Resolved) -> str:
    """In what the code that trained a checkpoint differs from that which is here; empty if in nothing.

    Args:
        folder: of the trial, on this disk.
        resolved: its recipe.
    """
    now = packages_of(resolved)
    known = _noted(folder)
    if known is None:
        return begun(None, resolved)
    return _differs("trained", known, now)


def _differs(done: str, states: Sequence[Sequence[Mapping[str, Any]]], now: list[Package]) -> str:
    """What is said of states of the code that are not here any more, and of what they did (a participle);
    empty if all are."""
    other = _others(states, now)
    told = ", then ".join(text(packages) or "none but ours" for packages in other)
    return f"{done} with other code: {told}; here is {text(now) or 'none'}" if other else ""


def _others(states: Iterable[_State], now: Iterable[Mapping[str, Any]]) -> list[_State]:
    """The states of the code that are not that of now."""
    return [state for state in states if code_identity(state) != code_identity(now)]


def made_by(data: Mapping[str, Any]) -> str:
    """:func:`code_identity` of all code of other packages that trained a record, from its first step on."""
    code = data.get("code", {})
    return "; ".join(code_identity(p) for p in (code.get("packages", ()), *code.get("begun_with", ())))


def told_packages(data: Mapping[str, Any]) -> str:
    """:func:`text` of all code of other packages that trained a record."""
    code = data.get("code", {})
    begun = "".join(f", begun with {text(p) or 'none'}" for p in code.get("begun_with", ()))
    return text(code.get("packages", ())) + begun


def absent(data: Mapping[str, Any]) -> list[str]:
    """The packages that trained a record and are not installed here, each with its version. Classes that were
    typed into a notebook are in their record, and lack nothing."""
    packages = [p for p in data.get("code", {}).get("packages", ()) if not p.get("source")]
    return [_text(p) for p in packages if not _importable(str(p.get("module")))]


@cache
def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return module in sys.modules


FORGET.append(_importable.cache_clear)


def _text(package: Mapping[str, Any]) -> str:
    name = package.get("distribution") or package.get("module")
    commit, sources = package.get("commit"), f"sources {str(package.get('sha256'))[:8]}"
    state = commit[:9] if commit else sources
    if commit and package.get("dirty"):
        state += f" + changes, {sources}"
    return " ".join(filter(None, (name, package.get("version")))) + f" ({state})"


# --- which modules -----------------------------------------------------------------------------------


@cache
def _libraries() -> tuple[Path, ...]:
    """Folders of installed libraries and of Python itself."""
    places = [sysconfig.get_paths()[kind] for kind in ("purelib", "platlib", "stdlib")]
    return tuple({Path(p).resolve() for p in (*places, site.getusersitepackages(), *site.getsitepackages())})


def _known(module: str) -> bool:
    """Whether a module is ours, or Python's."""
    top = module.partition(".")[0]
    ours = (*wsss_bench.OURS, wsss_bench.DOOR, wsss_bench.__name__)
    return top in ours or (top in sys.stdlib_module_names and top != "__main__")


def _needed(cls: type) -> set[str]:
    """Top-level names of foreign modules that a class comes from; none for ours and what we build on."""
    top = cls.__module__.partition(".")[0]
    return set() if _known(cls.__module__) or top in ("torch", "pydantic", "timm", "numpy") else {top}


def _recipe_packages(resolved: Resolved) -> Iterator[str]:
    """The recipe packages that the tables of a recipe's lineage stand in."""
    for name in lineage(resolved.name):
        yield from recipe_files.files().get(name.partition("/")[0], {}).values()


def _add(found: dict[str, Package], start: Any, what: str, entry: EntryPoint | None) -> None:
    """Describe what a class or module belongs to, and the local modules that it uses."""
    if (known := _CARRIED.get(start)) is not None:
        for name, package in known.items():
            _typed(found, name, package, what)
        return
    own = start.__name__ if isinstance(start, ModuleType) else start.__module__
    module = sys.modules.get(own)
    if module is None or not _places(module):  # a notebook's
        name = own.partition(".")[0]
        _typed(found, name, _package(name, None, _live(start)) | _shown_source(start), what)
        if module is None:
            return
    for name in _reached(module):
        if sys.modules[name] is module and not _places(module):
            continue
        dist = entry.dist if entry is not None and name == own.partition(".")[0] else None
        package = _described(name, None if dist is None else (dist.name, dist.version))
        brings = found.setdefault(name, {**package, "brings": []})["brings"]
        if what not in brings:
            brings.append(what)


def _typed(found: dict[str, Package], name: str, package: Package, what: str) -> None:
    """Add the package of a class that was typed in."""
    found.setdefault(name, package | {"brings": []})["brings"].append(what)
    if package["sha256"] != found[name]["sha256"]:  # two classes of one notebook
        both = f"{found[name]['sha256']}{package['sha256']}".encode()
        found[name]["sha256"] = hashlib.sha256(both).hexdigest()
        sources = dict.fromkeys(filter(None, (found[name].get("source"), package.get("source"))))
        found[name] |= {"source": "\n\n".join(sources)} if sources else {}


def _shown_source(start: Any) -> dict[str, str]:
    """The text of a class that was typed in, where Python still has it: whole, or its functions."""
    parts: list[str] = []
    for one in (start, *(vars(start).values() if isinstance(start, type) else ())):
        one = getattr(one, "__func__", one)
        if isinstance(one, type | FunctionType):
            with suppress(OSError, TypeError):
                parts.append(inspect.getsource(one))
        if parts and one is start:
            break
    return {"source": "\n".join(parts)} if parts else {}


#: What is known of classes that another process has sent here, by class: its packages by name.
_CARRIED: dict[Any, dict[str, Package]] = {}

#: A method's name and class, and the packages of each class that it is made of.
Carried = list[tuple[str, type, list[tuple[type, dict[str, Package]]]]]


def typed_in() -> Carried:
    """Methods that this process registered and that no other can import: those of a notebook or a script."""
    found: Carried = []
    for name, cls in METHODS.registered().items():
        if not isinstance(cls, type) or cls.__module__ != "__main__":
            continue
        own = []
        for base in dict.fromkeys((*inspect.getmro(cls), *inspect.getmro(cls.Config))):  # type: ignore[attr-defined]
            if base.__module__ == "__main__":
                packages: dict[str, Package] = {}
                _add(packages, base, "", None)
                own.append((base, {k: {**p, "brings": []} for k, p in packages.items()}))
        found.append((name, cls, own))
    return found


def adopt(methods: Carried) -> None:
    """Register methods that another process has sent, under the code that they had there."""
    for name, cls, own in methods:
        METHODS.register(name, cls)
        _CARRIED.update(own)


def _places(module: ModuleType) -> list[Path]:
    """The folders of a package, or the file of a module; none for what was typed in."""
    paths = list(getattr(module, "__path__", ())) or [getattr(module, "__file__", None)]
    return [Path(p).resolve() for p in paths if isinstance(p, str) and Path(p).exists()]


def _reached(module: ModuleType) -> list[str]:
    """Top-level names of a module and of the local modules that it uses, whatever way round."""
    todo, seen = [module], {module.__name__}
    tops = {module.__name__.partition(".")[0]: None}
    while todo:
        for value in list(vars(todo.pop()).values()):
            owner = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
            if not isinstance(owner, str) or owner in seen or _known(owner):
                continue
            seen.add(owner)
            other = sys.modules.get(owner)
            if other is None or not (owner.partition(".")[0] in tops or _local(other)):
                continue
            todo.append(other)
            tops[owner.partition(".")[0]] = None
    return [name for name in tops if name in sys.modules]


def _local(module: ModuleType) -> bool:
    """Whether a module lies outside the folders of libraries."""
    places = _places(module)
    return bool(places) and not any(p.is_relative_to(lib) for p in places for lib in _libraries())


# --- what they are -----------------------------------------------------------------------------------


@cache
def _described(name: str, installed: tuple[str, str] | None) -> Package:
    """A top-level module that has files; looked at once, as code is imported once."""
    module = sys.modules[name]
    places = _places(module)
    whole = hashlib.sha256()
    for file, relative in _files(places):
        whole.update(f"{relative}={sha256_of(file)}\n".encode())
    local = _local(module)
    if installed is None and not local:
        names = packages_distributions().get(name, [])
        installed = (names[0], version(names[0])) if names else None
    return _package(name, installed, whole.hexdigest(), places if local else ())


FORGET.append(_described.cache_clear)


def _files(places: Sequence[Path]) -> list[tuple[Path, str]]:
    """Source files below some folders, or the files themselves, with their names there; in order."""
    found = []
    for place in places:
        if place.is_file():
            found.append((place, place.name))
            continue
        for folder, inside, names in os.walk(place):
            inside[:] = [n for n in inside if n != "__pycache__" and not n.startswith(".")]
            files = [Path(folder, n) for n in names if n.endswith(_SOURCES)]
            found += [(file, file.relative_to(place).as_posix()) for file in files]
    return sorted(found, key=lambda pair: (pair[1], str(pair[0])))


def _package(
    name: str, installed: tuple[str, str] | None, sha256: str, checkout: Sequence[Path] = ()
) -> Package:
    commit, dirty = None, None
    for place in checkout[:1]:
        folder = place if place.is_dir() else place.parent
        commit = git(folder, "rev-parse", "HEAD")
        changes = git(folder, "status", "--porcelain", "--", str(place)) if commit else None
        dirty = None if changes is None else bool(changes)
    known = installed or (None, None)
    return {
        "module": name,
        "distribution": known[0],
        "version": known[1],
        "commit": commit,
        "dirty": dirty,
        "sha256": sha256,
    }


# --- what has no file --------------------------------------------------------------------------------


def _live(start: Any) -> str:
    """Hash of the source of a class, and of all functions, classes and plain values of its module that it
    uses by name; of the compiled code where there is no source."""
    own, todo, seen = start.__module__, [start], dict[int, tuple[str, str]]()
    while todo:
        one = inspect.unwrap(todo.pop()) if callable(todo[-1]) else todo.pop()
        if isinstance(one, property):
            todo += [part for part in (one.fget, one.fset) if part is not None]
            continue
        one = getattr(one, "__func__", one)
        if id(one) in seen or getattr(one, "__module__", None) != own:
            continue
        name = getattr(one, "__qualname__", "")
        if isinstance(one, type):
            values = {k: v for k, v in vars(one).items() if not k.startswith("__")}
            seen[id(one)] = (name, _plain(values))
            todo += [*vars(one).values(), *one.__bases__]
        elif isinstance(one, FunctionType):
            values = {n: one.__globals__[n] for n in _names(one.__code__) if n in one.__globals__}
            seen[id(one)] = (name, f"{_source(one)}{_plain(values)}")
            todo += values.values()
    return hashlib.sha256(repr(sorted(seen.values())).encode()).hexdigest()


def _plain(values: Mapping[str, Any]) -> str:
    """Those of some values that are numbers, texts or tuples."""
    return repr(sorted((k, repr(v)) for k, v in values.items() if isinstance(v, (int, float, str, tuple))))


def _names(code: CodeType) -> set[str]:
    """Names that a function and those within it look up."""
    inner = (c for c in code.co_consts if isinstance(c, CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _source(function: FunctionType) -> str:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return _compiled(function.__code__)


def _compiled(code: CodeType) -> str:
    constants = [_compiled(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {constants}"


def note_start(folder: Path, resolved: Resolved) -> dict[str, Any]:
    """:func:`recorded_packages` for a trial that starts, or goes on, in its folder now.

    ``begun_with`` lists other states of the code that have trained it up to its checkpoint; ``code.json``
    in the folder remembers them.
    """
    file, own = folder / _NOTED, recorded_packages(resolved)
    now = own.get("packages", [])
    states: list[list[Package]] = []
    if (folder / "checkpoint" / "last.pt").exists():
        states = _others(_noted(folder) or (), now)
    if now or states or file.exists():
        write_json(file, [*states, now])
    return own | ({"packages": now, "begun_with": states} if states else {})


#: The file of a trial that remembers the packages of each state of the code that has trained it.
_NOTED = "code.json"


def _noted(folder: Path) -> list[list[Package]] | None:
    """What :func:`note_start` has noted; None where it noted nothing, or nothing that can be read."""
    if (folder / _NOTED).exists():
        with suppress(UserError):  # a damaged note is no reason not to train
            found = read_json(folder / _NOTED)
            lists = [part for part in found if isinstance(part, list)] if isinstance(found, list) else []
            return [p for p in lists if all(isinstance(one, dict) for one in p)]
    return None


def recorded_packages(resolved: Resolved) -> dict[str, Any]:
    """:func:`packages_of` as records hold it: nothing at all where all code is ours."""
    try:
        packages = packages_of(resolved)
    except UserError:  # of a trial that failed for this very reason
        packages = []
    return {"packages": packages} if packages else {}
