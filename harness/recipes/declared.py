"""What is known of a method without its code, so that listing and showing recipes need no torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING

from harness.basics.errors import UserError
from harness.basics.registry import DECLARATIONS, METHODS
from harness.basics.schema import schema
from harness.data.base import Supervision

if TYPE_CHECKING:
    from harness.engine.method import Method


@dataclass(frozen=True)
class Paper:
    """Where a method comes from. ``arxiv`` and ``doi`` as printed, ``code`` a repository and commit.

    Without ``venue`` and without any of these three it is in preparation, and printed so.
    """

    title: str
    authors: str
    year: int | None = None
    venue: str = ""
    doi: str = ""
    arxiv: str = ""
    code: str = ""

    @property
    def in_preparation(self) -> bool:
        """Whether nobody but its authors has it yet."""
        return not (self.venue or self.doi or self.arxiv or self.code)

    def __str__(self) -> str:
        """``Wu et al., CVPR 2023``; ``Wu et al., in preparation``."""
        first = self.authors.split(",")[0].removesuffix(" et al.")
        more = " et al." if first != self.authors else ""
        place = self.venue or ("in preparation" if self.in_preparation else "")
        return ", ".join(filter(None, [first + more, f"{place} {self.year or ''}".strip()]))


@schema
class NoConfig:
    """A method without hyper-parameters of its own."""


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """The class attributes of a method that recipes and tables read; a module that imports no torch has it.

    The class takes them over: ``class Mine(Method, declared=MINE)``. An entry point of the group
    ``wsss.declarations`` under the method's name, of the same package, lets the command line find it.

    Attributes:
        name, title, paper, supervision, needs_labels_from, Config, reference_recipe, networks: see
            :class:`harness.engine.method.Method`.
    """

    name: str
    title: str
    paper: Paper | None = None
    supervision: frozenset[Supervision]
    needs_labels_from: frozenset[Supervision] = frozenset()
    Config: type = NoConfig
    reference_recipe: str = ""
    networks: tuple[str, ...] = ("default",)


def declared(name: str) -> Declaration | type[Method]:
    """What is known of a method: its declaration where its package gives one, else its class.

    Raises:
        UserError: as :meth:`harness.basics.registry.Registry.get`.
    """
    method, told = METHODS.sole(name), DECLARATIONS.sole(name)
    known = method is not None and told is not None and _of_one_package(method, told)
    return DECLARATIONS.get(name) if known else METHODS.get(name)


def require_agreement(name: str) -> None:
    """Refuse a method whose class is not what its declaration says: recipes are read by the one, and trained
    by the other.

    Raises:
        UserError: they differ, or as :func:`declared`.
    """
    told, cls = declared(name), METHODS.get(name)
    if not isinstance(told, Declaration):
        return
    if other := [f.name for f in fields(told) if getattr(cls, f.name, None) != getattr(told, f.name)]:
        raise UserError(
            f"the class of the method {name!r} and its declaration differ in {' and '.join(other)}",
            where=f"{cls.__module__}.{cls.__qualname__}",
            remedy="let the class take the values over: class Mine(Method, declared=MINE)",
        )


@cache
def _of_one_package(*entries: EntryPoint) -> bool:
    """Whether one package brings all of them; the name of a package is read from its metadata."""
    return len({entry.dist and entry.dist.name for entry in entries} | {None}) == 2
