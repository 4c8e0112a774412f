"""What a training step takes, found without a GPU and without computing it: memory, kernels, bytes.

A step of the recipe's own batch, forwards, backwards and the optimiser's, is made with tensors that have a
shape and no values (torch's ``FakeTensor``), while every storage is counted from its birth to its death.
Autograd, autocast and the optimiser are torch's own: what is kept for the backward pass is what would be.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils.flop_counter import flop_registry

from harness.basics.errors import UserError
from harness.basics.schema import digest
from harness.engine import faults
from harness.engine.batch import Batch, Progress
from harness.engine.made_up import Answers, made_up_batch
from harness.engine.networks import build_method
from harness.engine.shapes import PlainMode, ShapeTable
from harness.engine.training import Trainer
from harness.recipes.resolving import Resolved
from harness.recipes.specs import PrecisionSpec

if TYPE_CHECKING:
    from harness.engine.method import Method
    from harness.recipes.specs import Recipe

_META, _CPU = torch.device("meta"), torch.device("cpu")
#: Memory comes from CUDA's allocator in pieces of so many bytes.
_PIECE = 512
#: Shares of elements that satisfy a condition, which values alone could tell: of a list (lattice points that
#: are the first in their cell), and of anything else (classes by pictures). Measured steps lie near.
_LISTED, _MASKED = 0.75, 0.25
#: Operations that take masks as indices.
_INDEXED = {torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_}
_INDEXED |= {torch.ops.aten._index_put_impl_, torch.ops.aten._unsafe_index}
#: Operations that start no kernel.
_FREE = {"empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "_local_scalar_dense"}


@dataclass(frozen=True)
class Footprint:
    """What a process needs for one step of training.

    Attributes:
        peak_mib: largest memory of tensors at a time, on the device.
        fixed_mib: of it, what stays from step to step: parameters, buffers, the optimiser's state.
        batch_mib: of the pictures and labels of a step as they lie on the device, all groups together.
        operations: kernels, about: operations that are no views, of the last phase, all groups together.
        tflop: 10^12 additions and multiplications of convolutions, matrix products and attention, likewise.
    """

    peak_mib: float
    fixed_mib: float
    batch_mib: float
    operations: int
    tflop: float


class Live(PlainMode):
    """Counts the memory of tensors while it is entered, those with values as those without.

    Attributes:
        now: bytes that are alive.
        most: the largest that has been.
        operations: that were carried out, views aside.
        flop: of convolutions, matrix products and attention.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = self.operations = self.flop = 0
        self._known: dict[int, int] = {}

    def hold(self, *tensors: Tensor) -> None:
        """Count tensors that were there before."""
        for tensor in tensors:
            self._count(tensor)

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        size = -(-storage.nbytes() // _PIECE) * _PIECE
        grown = size - self._known.get(key, 0)
        if key not in self._known:
            weakref.finalize(storage, self._gone, key)
        self._known[key] = size
        self.now += grown
        self.most = max(self.most, self.now)

    def _gone(self, key: int) -> None:
        self.now -= self._known.pop(key, 0)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations += _is_kernel(func)
        if (formula := flop_registry.get(func.overloadpacket)) is not None:
            self.flop += formula(*args, **(kwargs or {}), out_val=result)
        for value in pytree.tree_leaves(result):
            if isinstance(value, Tensor):
                self._count(value)
        return result


@cache
def _is_kernel(func: Any) -> bool:
    """Whether an operation computes something: it is no view, no allocation and no question."""
    views = (r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
    return func.namespace == "aten" and func.overloadpacket.__name__ not in _FREE and not any(views)


class _Values(Answers):
    """Answers for tensors that have a device and no values."""

    def some(self, tensor: Tensor) -> int:
        """How many elements satisfy a condition."""
        return max(int(tensor.numel() * (_LISTED if tensor.ndim == 1 else _MASKED)), 1)

    def lacks_values(self, tensor: Any) -> bool:
        """Whether a tensor has none."""
        return isinstance(tensor, FakeTensor)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping | None = None
    ) -> Any:
        if func.overloadpacket in _INDEXED and any(_is_mask(index) for index in args[1]):
            args = (args[0], [n for index in args[1] for n in self._places(index)], *args[2:])
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _places(self, index: Any) -> Iterator[Any]:
        """An index, a mask as the places that it selects."""
        if not _is_mask(index):
            yield index
            return
        for _ in range(index.ndim):
            yield index.new_empty((self.some(index),), dtype=torch.long)


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


@contextmanager
def _no_values() -> Iterator[FakeTensorMode]:
    """New tensors have no values, and what reads some gets made-up ones."""
    numpy = FakeTensor.numpy
    FakeTensor.numpy = _made_up_array  # type: ignore[method-assign, assignment]
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            yield mode
    finally:
        FakeTensor.numpy = numpy  # type: ignore[method-assign]


def _made_up_array(tensor: Tensor, **_: Any) -> np.ndarray:
    """Random numbers of the shape and type of a tensor."""
    kind = str(tensor.dtype).removeprefix("torch.")
    return np.random.default_rng(0).random(tensor.shape).astype(kind)


class _Length:
    """As much of a training set as a trainer asks for before its first step."""

    def __len__(self) -> int:
        return 1 << 20


_found: dict[str, Footprint] = {}


#: Values of a recipe that decide what a step takes, as ``config`` does; kinds of label do not.
_DECIDING = ("method", "dataset", "backbone", "crop", "batch", "accumulate", "amp")
#: Footprints of the recipes that come with this project, by :func:`key_of`: made by ``benchmarks/gpu.py``.
SHIPPED = Path(__file__).with_name("footprints.json")


def key_of(resolved: Resolved) -> str:
    """Digest of all that a step's footprint depends on, the code of its method aside."""
    values, optimiser = resolved.essential_values(), resolved.recipe.optimiser
    parts = [values[name] for name in (*_DECIDING, "config")]
    return digest([*parts, optimiser.name, optimiser.momentum > 0, resolved.recipe.labels_from is None])


@cache
def _shipped() -> dict[str, list[float]]:
    return json.loads(SHIPPED.read_text(encoding="utf-8")) if SHIPPED.exists() else {}


def shipped(resolved: Resolved) -> Footprint | None:
    """The footprint of a recipe that comes with this project, None where it is none or has other values."""
    if (kept := _shipped().get(key_of(resolved))) is None:
        return None
    peak, fixed, batch, operations, tflop = kept
    return Footprint(peak, fixed, batch, int(operations), tflop)


def footprint(resolved: Resolved, *, anew: bool = False) -> Footprint:
    """The footprint of a recipe's step in one process: looked up for recipes that come with this project,
    found in seconds for others, once per process.

    Args:
        resolved: the recipe.
        anew: whether it is found in any case.

    Raises:
        UserError: the loss needs values, and cannot go on with made-up ones.
    """
    if not anew and (known := shipped(resolved)) is not None:
        return known
    key = key_of(resolved)
    if key not in _found:
        with torch.random.fork_rng(devices=[]):
            _found[key] = _measured(resolved)
    return _found[key]


def _measured(resolved: Resolved) -> Footprint:
    recipe = plain(resolved.recipe)
    with ShapeTable(), _META:
        method = build_method(
            replace(resolved, recipe=replace(recipe, weights="none")), _META, seed=0
        ).train()
    groups = resolved.recipe.batch.groups
    with _no_values() as mode, _Values():
        _without_values(method, mode)
        batch = made_up_batch(method, recipe, _CPU, size=recipe.batch.per_group)
        try:
            found = step_of(method, recipe, batch)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"a step cannot be estimated: {type(error).__name__}: {str(error)[:200]}", where=resolved.name
            ) from error
    return replace(
        found,
        batch_mib=found.batch_mib * groups,
        operations=found.operations * groups,
        tflop=found.tflop * groups,
    )


def plain(recipe: Recipe) -> Recipe:
    """One group of a recipe, as one process steps through it."""
    return replace(recipe, batch=replace(recipe.batch, groups=1, sync_bn="off"), precision=PrecisionSpec())


def step_of(method: Method, recipe: Recipe, batch: Batch) -> Footprint:
    """The footprint of steps that are made, in every phase, with tensors that have values or none.

    Args:
        method: in training mode.
        recipe: of one group (:func:`plain`).
        batch: of that group.
    """
    live = Live()
    live.hold(*method.parameters(), *method.buffers())
    trainer = Trainer(method, recipe, _Length(), seed=0, folder=Path("nowhere"))  # type: ignore[arg-type]
    with live:
        _with_states(trainer)
        fixed = live.now
        live.most = 0
        for fraction in method.probe_steps:
            live.operations = live.flop = 0
            trainer.optimise([batch], Progress(int(fraction * 1000), 1000, 10))
    sent = sum(t.numel() * t.element_size() for t in _tensors(batch))
    return Footprint(
        peak_mib=(live.most + sent) / 2**20,  # the copy on the device is not among those that are born
        fixed_mib=fixed / 2**20,
        batch_mib=sent / 2**20,
        operations=live.operations,
        tflop=live.flop / 1e12,
    )


def _with_states(trainer: Trainer) -> None:
    """Let the optimiser make what it keeps, as it does in the first step of a run."""
    for group in trainer.optimiser.param_groups:
        if "foreach" in group:
            group["foreach"] = True  # as on a GPU
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    trainer.optimiser.step()
    trainer.optimiser.zero_grad(set_to_none=True)


def _tensors(batch: Batch) -> list[Tensor]:
    views = [value for view in batch.views.values() for value in (view.images, view.raw, view.valid)]
    further = [tensor for other in batch.further.values() for tensor in _tensors(other)]
    return [batch.images, batch.labels, batch.tags, batch.raw, batch.valid, *views, *further]


def _without_values(method: nn.Module, mode: FakeTensorMode) -> None:
    """Put tensors without values, that say they are on the CPU, in the place of those of the meta device."""
    made: dict[int, Any] = {}
    for module in method.modules():
        for table in (module._parameters, module._buffers):
            for name, value in table.items():
                if value is None:
                    continue
                if id(value) not in made:
                    inner = FakeTensor(mode, value.detach(), _CPU)
                    shared = isinstance(value, nn.Parameter)
                    made[id(value)] = nn.Parameter(inner, value.requires_grad) if shared else inner
                table[name] = made[id(value)]


def fitting(recipe: Recipe, most_mib: float) -> tuple[float, dict[str, float]]:
    """Which other values of a recipe would let its step fit into memory, by the estimate.

    Args:
        recipe: with the ``Config`` of its method.
        most_mib: that there is; a tenth of it is left to what no estimate knows of.

    Returns:
        What the recipe takes, in MiB; and what it would take with each ``KEY=VALUE`` that fits, the gentlest
        of a key.

    Raises:
        UserError: as :func:`footprint`.
    """

    def takes(**values: Any) -> float:
        return footprint(Resolved("", replace(recipe, **values))).peak_mib

    ways: list[list[tuple[str, dict[str, Any]]]] = [
        [(f"accumulate={n}", {"accumulate": n}) for n in faults.smaller_pieces(recipe)],
        [("amp=bf16", {"amp": "bf16"})] if recipe.amp == "off" else [],
        [(f"crop={_said(c)}", {"crop": c}) for c in _smaller_crops(recipe.crop_size)],
    ]
    fits: dict[str, float] = {}
    for way in ways:
        for said, values in way:
            with suppress(UserError):  # what cannot be built so
                if (needed := takes(**values)) <= 0.9 * most_mib:
                    fits[said] = needed
                    break
    return takes(), fits


def _smaller_crops(crop: tuple[int, int]) -> list[tuple[int, int]]:
    """Crops of three quarters and of half the sides, in whole cells of 32 pixels."""
    found = [tuple(max(round(side * share / 32) * 32, 32) for side in crop) for share in (0.75, 0.5)]
    return [(h, w) for h, w in found if h < crop[0]]


def _said(crop: tuple[int, int]) -> str:
    return str(crop[0]) if crop[0] == crop[1] else f"[{crop[0]},{crop[1]}]"
