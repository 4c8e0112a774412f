"""Errors that a user can mend: they name the thing, the place and the remedy, without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator

from harness.basics.text import clean


class UserError(Exception):
    """A mistake that the user can mend. The command line prints it on one screen and exits with 2.

    Args:
        problem: what is wrong, naming the thing (one sentence, no full stop needed).
        where: the place: a file, a recipe key, an option.
        remedy: what to do about it.
    """

    def __init__(self, problem: str, *, where: object = None, remedy: str | None = None) -> None:
        self.problem = _shown(problem)
        self.where = None if where is None else _shown(str(where))
        self.remedy = None if remedy is None else _shown(remedy)
        super().__init__(str(self))

    def __str__(self) -> str:
        text = self.problem
        if self.where:
            text += f"\n  where:  {self.where}"
        if self.remedy:
            text += f"\n  remedy: {self.remedy}"
        return text

    def __reduce__(self) -> tuple:  # survives the trip through a Ray worker
        return (_rebuild, (type(self), self.problem, self.where, self.remedy))


#: Characters of one part of a message; names and paths from outside may be of any length.
_LONGEST = 1200


def _shown(text: str) -> str:
    """A part of a message as a terminal may show it."""
    text = clean(text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"


def _rebuild(cls: type, problem: str, where: str | None, remedy: str | None) -> UserError:
    return cls(problem, where=where, remedy=remedy)


class UnknownRecipeError(UserError):
    """No recipe is called so here. Records of it may tell which package brought it.

    Attributes:
        name: what was asked for; empty after a trip to another process.
    """

    name = ""

    @classmethod
    def of(cls, name: str, problem: str, remedy: str) -> UnknownRecipeError:
        """The error for a name."""
        error = cls(problem, where="recipe name", remedy=remedy)
        error.name = name
        return error


class NonFiniteError(UserError):
    """Something that decides a number is NaN or infinite: what was trained has diverged."""


class NonFiniteLossError(NonFiniteError):
    """A loss term became NaN or infinite; training stops and says at which step, term and images."""


class NonFiniteWeightsError(NonFiniteError):
    """A step, of which no later loss tells, left weights that are not finite."""


class NonFiniteScoresError(NonFiniteError):
    """Scores of a picture decide nothing: NaN, plus infinity, or no possible class."""


def words(error: BaseException) -> str:
    """The message of an error, whatever its class does."""
    try:
        return str(error)
    except Exception as other:
        return f"(its message cannot be shown: {type(other).__name__})"


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what led to it, each once: its cause or else its context, and members of groups.

    Ends on any chain, one that leads back to itself included.
    """
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        found = waiting.pop(0)
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        waiting += found.exceptions if isinstance(found, BaseExceptionGroup) else ()
        waiting.append(found.__cause__ or found.__context__)


def nearest(word: str, options: Iterable[str]) -> str:
    """A remedy sentence: the nearest valid spelling, else all that is valid (at most twenty)."""
    options = sorted(set(options))
    close = difflib.get_close_matches(word, options, n=3, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    shown = ", ".join(options[:20]) + (", ..." if len(options) > 20 else "")
    return f"valid: {shown}" if options else "nothing is registered under this name"
