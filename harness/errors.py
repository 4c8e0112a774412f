"""Errors that a user can mend: they name the thing, the place and the remedy, without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can mend. The command line prints it on one screen and exits with 2.

    Args:
        problem: what is wrong, naming the thing (one sentence, no full stop needed).
        where: the place: a file, a recipe key, an option.
        remedy: what to do about it.
    """

    def __init__(self, problem: str, *, where: object = None, remedy: str | None = None) -> None:
        self.problem = problem
        self.where = None if where is None else str(where)
        self.remedy = remedy
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


def _rebuild(cls: type, problem: str, where: str | None, remedy: str | None) -> UserError:
    return cls(problem, where=where, remedy=remedy)


class NonFiniteLossError(UserError):
    """A loss term became NaN or infinite; training stops and says at which step, term and images."""


def nearest(word: str, options: Iterable[str]) -> str:
    """A remedy sentence: the nearest valid spelling, else all that is valid (at most twenty)."""
    options = sorted(options)
    close = difflib.get_close_matches(word, options, n=3, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    shown = ", ".join(options[:20]) + (", ..." if len(options) > 20 else "")
    return f"valid: {shown}" if options else "nothing is registered under this name"
