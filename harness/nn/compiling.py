"""Functions that torch.compile may turn into kernels of their own, where a recipe asks for it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import ParamSpec, TypeVar

import torch

from harness.basics.errors import UserError, words

_P = ParamSpec("_P")
_T = TypeVar("_T")

_wanted: ContextVar[frozenset[str]] = ContextVar("compiled parts", default=frozenset())
_WHERE = "precision.compile"
_REMEDY = "install one, or leave precision.compile at its default"


def compiled(part: str, function: Callable[_P, _T]) -> Callable[_P, _T] | None:
    """A function of tensors, compiled, where ``precision.compile`` names the part that it belongs to."""
    return _compiled(function) if part in _wanted.get() else None


@cache
def _compiled(function: Callable[_P, _T]) -> Callable[_P, _T]:
    return torch.compile(function)


@contextmanager
def compiling(parts: Collection[str]) -> Iterator[None]:
    """While this is entered, functions of these parts are compiled ones."""
    token = _wanted.set(frozenset(parts))
    try:
        yield
    finally:
        _wanted.reset(token)


def check_compiler(device: torch.device) -> None:
    """Refuse to compile for a device where what torch.compile needs is not installed.

    Raises:
        UserError: naming it.
    """
    lacking = []
    if device.type == "cuda":
        from torch.utils._triton import has_triton

        lacking += [] if has_triton() else ["Triton"]
    names = [os.environ.get("CXX", "g++"), "clang++", "c++"]
    lacking += [] if any(map(shutil.which, names)) else [f"a C++ compiler ({' or '.join(names)})"]
    if lacking:
        raise UserError(f"torch.compile needs {' and '.join(lacking)}", where=_WHERE, remedy=_REMEDY)


@cache
def try_compiler(device: torch.device) -> None:
    """Compile a line, once per process: headers, or rights, may be missing too.

    Raises:
        UserError: as :func:`check_compiler`; or with the first line of what the compiler says.
    """
    check_compiler(device)
    try:
        torch.compile(_line)(torch.ones(2, device=device))
    except Exception as error:
        first = next(iter(words(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"torch.compile does not work here: {first}", where=_WHERE, remedy=_REMEDY) from error


def _line(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + 1
