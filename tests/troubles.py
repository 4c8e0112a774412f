"""A method of another package that raises what it is told to, where it is told to; for tests of failures.

``troubled_package`` puts it on the path as a package would.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from installed import installed
from torch import nn

from harness.basics.schema import schema
from harness.data.base import Supervision
from harness.engine import distributed
from harness.engine.method import Method


class Unpicklable(Exception):
    """Cannot be made again from its arguments, and holds a lock."""

    def __init__(self, problem: str, code: int) -> None:
        super().__init__(problem)
        self.code, self.lock = code, threading.Lock()


class Wordless(Exception):
    """Cannot be shown."""

    def __str__(self) -> str:
        raise KeyError("no words")

    __repr__ = __str__


def _cycle() -> Exception:
    error = ValueError("its own cause")
    error.__cause__ = error
    return error


def _asserted() -> Exception:
    return AssertionError(torch.arange(3))


#: Kind to (what makes the error, what must be said of it).
KINDS: dict[str, tuple[Any, str]] = {
    "value": (lambda: ValueError("crops of 96 pixels"), "ValueError: crops of 96 pixels"),
    "key": (lambda: KeyError("missing"), "KeyError: 'missing'"),
    "assert": (_asserted, "AssertionError: tensor([0, 1, 2])"),
    "cycle": (_cycle, "ValueError: its own cause"),
    "unpicklable": (lambda: Unpicklable("held", 7), "Unpicklable: held"),
    "wordless": (Wordless, "Wordless: (its message cannot be shown: KeyError)"),
    "huge": (lambda: ValueError("much " * 200_000), "more characters"),
    "bytes": (
        lambda: ValueError("\udcff \x1b[31mred\x1b[0m \x07 caf\xe9"),
        "ValueError: \ufffd red  caf\xe9",
    ),
    "group": (lambda: ExceptionGroup("two", [ValueError("a"), KeyError("b")]), "two -> ValueError: a"),
    "stop": (lambda: StopIteration("early"), "StopIteration: early"),
    "stop-async": (lambda: StopAsyncIteration("early"), "StopAsyncIteration: early"),
    "exit": (lambda: SystemExit("usage: wrong"), "SystemExit: usage: wrong"),
    "generator": (lambda: GeneratorExit("closed"), "GeneratorExit: closed"),
    "interrupt": (lambda: KeyboardInterrupt("own"), "KeyboardInterrupt: own"),
    "recursion": (lambda: RecursionError("maximum recursion depth"), "RecursionError: maximum"),
    "abstract": (lambda: NotImplementedError("gloo"), "NotImplementedError: gloo"),
    "warning": (lambda: UserWarning("turned into an error"), "UserWarning: turned"),
    "memory": (lambda: torch.OutOfMemoryError("CUDA out of memory."), "out of memory"),
    "kernel": (
        lambda: RuntimeError("CUDA error: no kernel image is available for execution on the device"),
        "no kernel image",
    ),
    "assertion": (lambda: RuntimeError("CUDA error: device-side assert triggered"), "device-side assert"),
}
PLACES = ("set-up", "step", "evaluation", "record")


@schema
class TroubledConfig:
    """What goes wrong."""

    kind: str = "none"
    """A key of KINDS, or none."""
    place: str = "none"
    """One of PLACES, or none."""
    rank: int = 0
    """In which process of the trial."""


class Troubled(Method):
    """One layer."""

    name = "troubled"
    title = "Troubled"
    supervision: ClassVar[frozenset[Supervision]] = frozenset({"scribble"})
    Config = TroubledConfig

    def __init__(self, config: Any, build: Any) -> None:
        super().__init__(config, build)
        self.layer = nn.Conv2d(3, build.num_classes, 1)
        self._meet("set-up")

    def _meet(self, place: str) -> None:
        rehearsal = self.layer.weight.is_meta  # before a run, which it would stop
        if not rehearsal and (place, distributed.rank()) == (self.config.place, self.config.rank):
            note = os.environ.get("TROUBLES")
            if note:
                with Path(note).open("a") as stream:
                    stream.write(f"{self.config.kind} {place}\n")
            raise KINDS[self.config.kind][0]()

    def loss(self, batch: Any, progress: Any) -> dict[str, torch.Tensor]:
        """Nothing that learns."""
        if progress.step == 1:
            self._meet("step")
        return {"square": self.layer(batch.images).square().mean()}

    def predict(self, images: torch.Tensor, network: str = "default") -> torch.Tensor:
        """Its layer."""
        self._meet("evaluation")
        return self.layer(images)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Those of its layer; asked for once more when the record is written."""
        if sys._getframe(1).f_code.co_name == "_run":
            self._meet("record")
        return super().parameters(recurse)


#: Its one recipe.
_RECIPES = """
    [mini]
    dataset = "mini"
    supervision = "scribble"
    backbone = "none"
    crop = 32
    batch = {per_group = 2, groups = 2}
    schedule = {steps = 2}
    evaluation = [{split = "val", protocol = "single"}]
"""


@contextmanager
def troubled_package(place: Path) -> Iterator[None]:
    """The method and its recipe, ``troubled/mini``, as a package that workers find too."""
    files = {"troubled_recipes/__init__.py": "", "troubled_recipes/troubled.toml": _RECIPES}
    entries = {"methods": {"troubled": "troubles:Troubled"}, "recipes": {"troubled": "troubled_recipes"}}
    paths = [str(place), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    with pytest.MonkeyPatch.context() as patch, installed(place, "troubled", files, entries):
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        yield
