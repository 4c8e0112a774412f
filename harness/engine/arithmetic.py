"""How training steps compute: torch's switches as a recipe and its user want them, on during a step alone."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from harness.nn.compiling import compiling, try_compiler
from harness.recipes.specs import PrecisionSpec

if TYPE_CHECKING:
    from types import TracebackType

#: torch's words for an operation without a deterministic kernel.
_FREE = re.compile(r"(\S+) does not have a deterministic implementation")
#: What cuBLAS needs to give the same bits every time; read when it is first used.
_CUBLAS = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


class Arithmetic:
    """A context for training steps; what is outside it, scoring above all, computes as torch does by itself.

    Args:
        method: on its device; with ``channels_last`` its weights are laid out so until :meth:`end`.
        spec: of the recipe.
        device: where it computes.
        deterministic: ask torch for deterministic kernels.

    Attributes:
        free: operations that were met and have no deterministic kernel, by torch's name for them.

    Raises:
        UserError: something shall be compiled, and cannot.
    """

    def __init__(
        self, method: nn.Module, spec: PrecisionSpec, device: torch.device, *, deterministic: bool = False
    ) -> None:
        self.method, self.spec, self.deterministic = method, spec, deterministic
        self.free: list[str] = []
        self._told = 0
        self._stack = ExitStack()
        self._forward: list[tuple[nn.Module, Any]] = []
        if deterministic:
            os.environ.setdefault(*_CUBLAS)
        if spec.compile:
            try_compiler(device)
        if "encoder" in spec.compile:
            self._forward = [(m, torch.compile(m.forward)) for m in _encoders(method)]
        if spec.channels_last:
            method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(_switches(self.spec, self.deterministic))
            stack.enter_context(compiling(self.spec.compile))
            if self._forward:
                stack.enter_context(_replaced(self._forward))
            if self.deterministic:
                stack.enter_context(self._listening())
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def end(self) -> None:
        """Lay the weights out as they were: what is scored does not depend on how it was trained."""
        if self.spec.channels_last:
            self.method.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Keep the names of operations that torch warns of; other warnings pass."""
        with warnings.catch_warnings():
            shown = warnings.showwarning
            warnings.filterwarnings("always", message=_FREE.pattern)

            def show(message: Warning | str, *details: Any, **more: Any) -> None:
                if (found := _FREE.search(str(message))) is None:
                    shown(message, *details, **more)
                elif found[1] not in self.free:
                    self.free.append(found[1])

            warnings.showwarning = show
            yield

    def take_told(self) -> tuple[str, ...]:
        """A word on operations without a deterministic kernel that were met since this was asked last."""
        new, self._told = self.free[self._told :], len(self.free)
        return (nondeterministic(new),) if new else ()


def nondeterministic(operations: list[str]) -> str:
    """What a reader of a number must know of them."""
    return f"not deterministic, for want of such a kernel: {', '.join(operations)}"


def _encoders(method: nn.Module) -> Iterator[nn.Module]:
    """Networks that a backbone's weights are for, each once."""
    from harness.nn.encoders import Encoder
    from harness.nn.vit import ViTEncoder

    inner: set[int] = set()
    for module in method.modules():
        if isinstance(module, Encoder | ViTEncoder) and id(module) not in inner:
            inner.update(id(m) for m in module.modules())
            yield module


@contextmanager
def _replaced(forward: list[tuple[nn.Module, Any]]) -> Iterator[None]:
    """Networks with other forward passes; they are no part of a state dict."""
    for module, compiled in forward:
        module.forward = compiled
    try:
        yield
    finally:
        for module, _ in forward:
            del module.forward


@contextmanager
def _switches(spec: PrecisionSpec, deterministic: bool) -> Iterator[None]:
    """torch's own switches, put back at the end."""
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, products.allow_tf32, cudnn.benchmark
    strict, warned = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    cudnn.allow_tf32, products.allow_tf32 = spec.tf32 != "off", spec.tf32 == "all"
    cudnn.benchmark = spec.cudnn_benchmark and not deterministic
    if deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
        memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        cudnn.allow_tf32, products.allow_tf32, cudnn.benchmark = before
        if deterministic:
            torch.use_deterministic_algorithms(strict, warn_only=warned)
            memory.fill_uninitialized_memory = filled
