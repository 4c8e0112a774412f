"""Where in a method's code an error arose, and what the tensors were that it speaks of."""

from __future__ import annotations

import linecache
import re
import sys
import traceback
from dataclasses import dataclass
from types import FrameType

from torch import Tensor

from harness.basics.errors import UserError, words

#: Packages whose code is called by a method, and hardly ever at fault.
_LIBRARIES = frozenset({"torch", "torchvision", "timm", "numpy", "scipy", "PIL", *sys.stdlib_module_names})
#: This project's own. Its methods are to blame where nobody else's code was running.
_OURS = frozenset({"harness", "leaderboards", "wsss", "wsss_bench"})
#: Most tensors that are named.
_MOST = 6


@dataclass(frozen=True)
class Blamed:
    """A line of code.

    Attributes:
        file, line, function: the line and what it belongs to.
        tensors: type and shape of the tensors that the statement names, as text; empty if there is none.
    """

    file: str
    line: int
    function: str
    tensors: str = ""

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}, in {self.function}"


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def blamed(error: BaseException) -> Blamed | None:
    """The innermost line of an error that is neither a library's nor this project's own; else of a method of
    this project; else the innermost of all. None for an error that was never raised."""
    frames = list(traceback.walk_tb(error.__traceback__))
    for passed_over in (_LIBRARIES | _OURS | {"methods"}, _LIBRARIES | _OURS, frozenset()):
        found = [(frame, line) for frame, line in frames if _package(frame) not in passed_over]
        if found:
            frame, line = found[-1]
            function, file = frame.f_code.co_name, frame.f_code.co_filename
            return Blamed(file, line, function, _tensors(frame, line))
    return None


def on_purpose(error: BaseException) -> bool:
    """Whether the blamed line raises the error itself, so that its words are the author's."""
    where = blamed(error)
    return where is not None and linecache.getline(where.file, where.line).lstrip().startswith("raise")


def _tensors(frame: FrameType, line: int) -> str:
    """Tensors that a statement names, in its order."""
    # A statement of several lines is blamed by its first or its last one: what is within brackets counts.
    text = _statement(frame.f_code.co_filename, line)
    found: dict[str, str] = {}
    for name in re.findall(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*", text):
        first, *rest = name.split(".")
        value, path = frame.f_locals.get(first), first
        for part in rest:
            if isinstance(value, Tensor):
                break
            value, path = getattr(value, part, None), f"{path}.{part}"
        if isinstance(value, Tensor):
            found[path] = f"{path} is {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return ", ".join(list(found.values())[:_MOST])


def _statement(file: str, line: int) -> str:
    """The lines from one to where its brackets close, eight at most."""
    text = ""
    for number in range(line, line + 8):
        text += linecache.getline(file, number)
        if all(text.count(one) <= text.count(other) for one, other in ("()", "[]", "{}")):
            break
    return text


def told_with_place(what: str, error: BaseException) -> UserError:
    """An error of a method's code for its author: what cannot be done, why, on which line and with what.

    Args:
        what: cannot be done, in words that the kind of the error follows.
        error: of any kind.
    """
    first = next(iter(words(error).strip().splitlines()), "no message")
    where = blamed(error)
    remedy = "mend the method, or the recipe's values"
    if where is not None and where.tensors:
        remedy = f"mend the method, or the recipe's values; there, {where.tensors}"
    return UserError(f"{what}: {type(error).__name__}: {first}", where=where, remedy=remedy)
