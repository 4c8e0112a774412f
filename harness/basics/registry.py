"""Names to classes through entry points, so that another package can add methods and data sets.

A package of somebody else's may be broken, or take a name that is taken. Then that name alone cannot be
used, with an error that says whose it is; every other name works.
"""

from __future__ import annotations

import functools
import importlib
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import wsss_bench
from harness.basics.errors import UserError, nearest, words


class Registry:
    """The entry points of one group, loaded when asked for.

    Args:
        group: entry point group, such as ``wsss.methods``.
        noun: what one entry is called in messages.
        kind: what an entry must be: ``module:class`` of which it is a subclass or an instance, or
            ``package``. A name and not a class, as the harness imports no method by itself.
    """

    def __init__(self, group: str, noun: str, kind: str) -> None:
        self.group, self.noun, self.kind = group, noun, kind
        self._registered: dict[str, Any] = {}

    @property
    def _entries(self) -> dict[str, tuple[EntryPoint, ...]]:
        return _entry_points(self.group)

    def names(self) -> list[str]:
        """All registered names, sorted; those too that cannot be used (:meth:`problems`)."""
        return sorted({*self._entries, *self._registered})

    def register(self, name: str, value: Any) -> Any:
        """Add an entry for this process (tests, notebooks); packages use an entry point instead."""
        self._registered[name] = value
        return value

    def registered(self) -> dict[str, Any]:
        """What this process has registered, by name."""
        return dict(self._registered)

    def forget(self, name: str) -> None:
        """Take an entry of this process away."""
        self._registered.pop(name, None)

    def __contains__(self, name: str) -> bool:
        return name in self._registered or name in self._entries

    def entries(self) -> dict[str, tuple[EntryPoint, ...]]:
        """What packages bring by name; several entry points where a name is brought twice."""
        return dict(self._entries)

    def entry(self, name: str) -> EntryPoint | None:
        """The entry point that brings a name; None for one that this process has registered."""
        return None if name in self._registered else next(iter(self._entries.get(name, ())), None)

    def sole(self, name: str) -> EntryPoint | None:
        """The only entry point that brings a name; None where several do, or this process registered it."""
        entries = self._entries.get(name, ())
        return entries[0] if len(entries) == 1 and name not in self._registered else None

    def get(self, name: str) -> Any:
        """The class behind a name.

        Raises:
            UserError: unknown name; two packages bring it; the module that should hold it cannot be
                imported, whatever that raises; or it is not what it should be.
        """
        if name in self._registered:
            return self._fit(name, self._registered[name], None)
        entries = self._entries.get(name)
        if not entries:
            raise UserError(f"unknown {self.noun} {name!r}", remedy=nearest(name, self.names()))
        if len(entries) > 1:
            raise self.conflict(name, [who(entry) for entry in entries])
        return self._fit(name, self._loaded(entries[0]), entries[0])

    def problems(self) -> dict[str, UserError]:
        """What is wrong with every name that cannot be used."""
        found = {}
        for name in self.names():
            try:
                self.get(name)
            except UserError as error:
                found[name] = error
        return found

    def conflict(self, name: str, places: list[str], noun: str = "") -> UserError:
        """The error for a name that several packages bring, all of them named."""
        return UserError(
            f"two packages bring a {noun or self.noun} {name!r}",
            where="; ".join(places),
            remedy="rename one of them, or uninstall the package that you do not need",
        )

    def _loaded(self, entry: EntryPoint) -> Any:
        error = _failure(entry)
        if error is not None:
            problem = f"the {self.noun} {entry.name!r} cannot be imported: {error[0]}"
            raise UserError(problem, where=error[1], remedy=error[2])
        return _value(entry)

    def _fit(self, name: str, value: Any, entry: EntryPoint | None) -> Any:
        """The value, if it is what an entry of this registry must be; without an entry point, this process
        has registered it."""
        fault = ""
        if self.kind == "package":
            if not isinstance(value, ModuleType) or not hasattr(value, "__path__"):
                fault = "no package, which is a folder of files"
        else:
            module, _, attribute = self.kind.partition(":")
            wanted = getattr(importlib.import_module(module), attribute)
            if not isinstance(value, wanted) and not (isinstance(value, type) and issubclass(value, wanted)):
                fault = f"no {module}.{attribute}"
            elif isinstance(value, type) and (lacking := _lacking(value, wanted)):
                fault = f"not whole: it lacks {' and '.join(lacking)}"
            elif isinstance(value, type) and hasattr(value, "misdeclared"):
                try:
                    fault = value.misdeclared()
                except Exception as error:
                    fault = f"declared with something that raises {type(error).__name__}: {words(error)}"
        if fault:
            shown = getattr(value, "__qualname__", None) or repr(value)[:80]
            raise UserError(
                f"the {self.noun} {name!r} cannot be used: {shown} is {fault}",
                where="registered in this process" if entry is None else who(entry),
                remedy="see docs/methods.md",
            )
        return value


def _lacking(cls: type, base: type) -> list[str]:
    """What a class must define to be used: the abstract functions and the values its base only declares."""
    declared = [
        name for name, text in vars(base).get("__annotations__", {}).items() if "ClassVar" in str(text)
    ]
    return sorted({*getattr(cls, "__abstractmethods__", ()), *(n for n in declared if not hasattr(cls, n))})


def who(entry: EntryPoint) -> str:
    """The package and the object that an entry point names."""
    package = f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else "an unknown package"
    return f"{package} ({entry.value})"


@cache
def _failure(entry: EntryPoint) -> tuple[str, str, str] | None:
    """Why an entry point cannot be loaded (problem, where, remedy), found out once; None if it can."""
    try:
        _value(entry)
        return None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a module may raise anything, or try to end the process
        if (taken := _taken(entry)) is not None:
            return taken
        where, remedy = who(entry), "mend it, or uninstall the package"
        text = f"{type(error).__name__}: {words(error)}".strip(": ")
        if isinstance(error, SyntaxError):
            where += f": {error.filename}, line {error.lineno}"
        elif (frame := _frame(error)) is not None:
            where += f": {frame.filename}, line {frame.lineno}"
        if isinstance(error, ModuleNotFoundError):
            own = error.name is not None and f"{_module(entry)}.".startswith(f"{error.name}.")
            remedy = "mend the entry point, or install the package again" if own else "install what it needs"
        elif isinstance(error, ImportError):
            remedy = "install what its package needs"
        if isinstance(error, ImportError) and _module(entry).partition(".")[0] not in wsss_bench.OURS:
            if str(error.name).partition(".")[0] in wsss_bench.OURS:
                remedy = "take names of this project from `wsss`: modules inside it move (docs/python.md)"
        elif isinstance(error, _Missing):
            text, remedy = str(error), error.remedy
        return text, where, remedy


def _module(entry: EntryPoint) -> str:
    """The module that an entry point names, well written or not."""
    return entry.value.partition(":")[0].strip()


@contextmanager
def _contained() -> Iterator[None]:
    """What a package does while it is imported stays with it: what it prints goes to stderr, since a program
    may read the output of a verb, and torch's defaults, by which other methods compute, are put back."""
    before = _defaults()
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        if before != (after := _defaults()):
            import torch

            dtype, device, grad = before or (torch.float32, torch.device("cpu"), True)
            torch.set_default_dtype(dtype)
            torch.set_grad_enabled(grad)
            if after is not None and after[1] != device:
                torch.set_default_device(device)


def _defaults() -> tuple[Any, Any, bool] | None:
    """torch's default type and device, and whether it takes gradients; None while nobody has imported it."""
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "get_default_device"):
        return None
    return torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled()


class _Missing(AttributeError):
    """A module without the object that an entry point names."""

    remedy = ""


def _value(entry: EntryPoint) -> Any:
    """The object behind an entry point; raises whatever its module raises."""
    with _contained():
        module = importlib.import_module(entry.module)
    try:
        return functools.reduce(getattr, filter(None, (entry.attr or "").split(".")), module)
    except AttributeError:
        error = _Missing(f"{entry.module} has no {entry.attr!r}")
        error.remedy = nearest(entry.attr, [n for n in vars(module) if not n.startswith("_")])
        raise error from None


def _frame(error: BaseException) -> traceback.FrameSummary | None:
    """Where in the code of a package an error arose; None where importing itself failed."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != __file__ and "importlib" not in frame.filename
    ]
    return frames[-1] if frames else None


def _taken(entry: EntryPoint) -> tuple[str, str, str] | None:
    """What to say where this process knows another package by the name of one of ours."""
    name = _module(entry).partition(".")[0]
    if name not in wsss_bench.OURS or (place := wsss_bench.taken().get(name)) is None:
        return None
    return (
        f"this process has imported another module of the name {name!r}",
        place,
        f"import harness before it, in a new process, or give the other {name!r} a name of its own",
    )


@cache
def _entry_points(group: str) -> dict[str, tuple[EntryPoint, ...]]:
    """Entry points by name; those that name one and the same object count once."""
    found: dict[str, dict[str, EntryPoint]] = {}
    for entry in entry_points(group=group):
        found.setdefault(entry.name, {}).setdefault(entry.value.replace(" ", ""), entry)
    return {name: tuple(by_value.values()) for name, by_value in found.items()}


METHODS = Registry("wsss.methods", "method", "harness.engine.method:Method")
DECLARATIONS = Registry(
    "wsss.declarations", "declaration of the method", "harness.recipes.declared:Declaration"
)
DATASETS = Registry("wsss.datasets", "data set", "harness.data.base:Dataset")
RECIPE_PACKAGES = Registry("wsss.recipes", "recipe package", "package")
METRICS = Registry("wsss.metrics", "metric", "leaderboards.rows.metrics:Metric")
PLOTS = Registry("wsss.plots", "plot", "leaderboards.plots.plotting:Plot")
COMMANDS = Registry("wsss.commands", "command", "click:Command")
PUBLISHED_PACKAGES = Registry("wsss.published", "package of published cells", "package")
CLAIM_PACKAGES = Registry("wsss.claims", "package of claims", "package")
PROTOCOL_PACKAGES = Registry("wsss.protocols", "package of protocols", "package")


_T = TypeVar("_T")


def toml_files(registry: Registry) -> Iterator[tuple[str, Path]]:
    """The TOML files of a registry of packages, each with the name of its package, which can be imported."""
    for name in registry.names():
        try:
            package = registry.get(name)
        except UserError:
            continue  # among `Registry.problems`
        for folder in dict.fromkeys(Path(place).resolve() for place in package.__path__):
            yield from ((name, file) for file in sorted(folder.glob("*.toml")))


def added(
    registry: Registry, ours: Mapping[str, _T], read: Callable[[Path], Mapping[str, _T]], noun: str
) -> tuple[dict[str, _T], dict[str, UserError]]:
    """What our own files hold by name, and what the files of other packages add to it.

    Args:
        registry: of the packages.
        ours: of our own files.
        read: the same from a file; raises UserError for one that cannot be used.
        noun: what one entry is called in messages.

    Returns:
        Entries by name; and by package or file what is wrong with those left out: a file that cannot be read,
        or that brings a name which is there already.
    """
    found = dict(ours)
    wrong = {f"{registry.noun} {name}": error for name, error in registry.problems().items()}
    brought: dict[str, Path] = {}
    for _, file in toml_files(registry):
        try:
            more = read(file)
            if twice := next((key for key in more if key in found), None):
                place = brought.get(twice, "wsss itself")
                raise registry.conflict(twice, [str(place), str(file)], noun)
        except UserError as error:
            wrong[f"{file.name}, {registry.noun.partition(' of ')[2]}"] = error
            continue
        found |= more
        brought |= dict.fromkeys(more, file)
    return found, wrong


#: What must be forgotten when packages change: modules that keep what they read add to it.
FORGET: list[Callable[[], object]] = [_entry_points.cache_clear, _failure.cache_clear]


def refresh() -> None:
    """Look again at what is installed, for a process that has just installed a package."""
    for forget in FORGET:
        forget()
