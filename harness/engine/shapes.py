"""Shapes of results on the meta device, each found once: they follow from the arguments alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

#: Results by operation and arguments. A network repeats its blocks, and a method its passes.
_known: dict[Any, Any] = {}
#: Entries after which all are forgotten; a large transformer's training step needs about 2,000.
_MOST = 50_000


class _Unknown(Exception):
    """Something else than plain tensors of the meta device takes part."""


class PlainMode(TorchDispatchMode):
    """A mode that no compiled code runs under.

    Of other modes torch tells its compiler to leave them alone at every operation, which imports the compiler
    and takes longer than a shape.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class ShapeTable(PlainMode):
    """Operations on the meta device give a tensor like the one that they gave for like arguments before.

    Torch works out the shapes of many operations in Python, step by step (a batch normalisation takes
    milliseconds); a second time they are looked up. Gradients are recorded as ever, since they are dealt
    with above. An operation that fills its first argument and leaves its shape (``relu_``) succeeds as it did
    before; what fails, changes anything else or gives a view is not remembered.
    """

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping | None = None
    ) -> Any:
        options = kwargs or {}
        fills = _fills(func)
        if not (fills or _pure(func)):
            return func(*args, **options)
        try:
            key = (func, _described(args), _described(tuple(options.items())))
            found = _known.get(key)
        except (_Unknown, TypeError):  # or what has no hash
            return func(*args, **options)
        if found is None:
            result = func(*args, **options)
            try:
                described = _described(result)
            except _Unknown:
                return result
            if len(_known) >= _MOST:
                _known.clear()
            _known[key] = (type(result), described)
            return result
        if fills:
            return args[0]
        kind, described = found
        return _empty(described) if issubclass(kind, Tensor) else kind(_empty(d) for d in described)


@cache
def _pure(func: Any) -> bool:
    """Whether an operation gives new tensors and leaves its arguments alone."""
    schema = func._schema
    return (
        not schema.is_mutable
        and bool(schema.returns)
        and all(
            r.alias_info is None and str(r.type) in ("Tensor", "Tensor[]", "List[Tensor]")
            for r in schema.returns
        )
    )


@cache
def _fills(func: Any) -> bool:
    """Whether an operation gives its first argument with other values in it, and alters nothing else."""
    schema = func._schema
    changed = [i for i, a in enumerate(schema.arguments) if a.alias_info is not None]
    return (
        changed == [0]
        and schema.arguments[0].alias_info.is_write
        and len(schema.returns) == 1
        and schema.returns[0].alias_info is not None
        and torch.Tag.inplace_view not in func.tags
    )


def _described(value: Any) -> Any:
    """What a result may depend on, to be compared with that of another call."""
    if isinstance(value, Tensor):
        if type(value) not in (Tensor, nn.Parameter) or not value.is_meta or value.layout != torch.strided:
            raise _Unknown
        if value.dtype.is_complex or value.is_quantized:  # may be conjugated later
            raise _Unknown
        return (Tensor, value.shape, value.stride(), value.dtype)
    if isinstance(value, list | tuple):
        return tuple([_described(v) for v in value])
    return (type(value), value)  # True, 1 and 1.0 are equal


def _empty(described: Any) -> Tensor:
    _, shape, stride, dtype = described
    return torch.empty_strided(shape, stride, dtype=dtype, device="meta")
