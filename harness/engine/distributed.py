"""One trial on several processes: who carries which groups, and what they tell each other.

A recipe fixes ``groups x samples``. One process loops over the groups; several take equal shares of
them and average gradients, so that the same training comes out on any hardware that the groups can
be shared by (up to the order of sums). With one process nothing here does anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from harness.basics.errors import UserError
from harness.recipes.specs import Recipe

_T = TypeVar("_T")

#: How long a process waits for another before it gives up. Rank 0 may write large files alone.
GROUP_PATIENCE = timedelta(minutes=30)


def rank() -> int:
    """Number of this process within its trial; 0 writes records."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Processes of this trial."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def first() -> bool:
    """Whether this process writes what the trial leaves."""
    return rank() == 0


@contextmanager
def session(address: str, number: int, world: int, device: torch.device) -> Iterator[None]:
    """Join the other processes of a trial: NCCL between GPUs, gloo for everything on the CPU.

    Args:
        address: ``host:port`` of rank 0.
        number: rank of this process.
        world: number of processes.
        device: where this process computes.
    """
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device.index or 0)  # it refuses a device without a number
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        init_method=f"tcp://{address}",
        rank=number,
        world_size=world,
        timeout=GROUP_PATIENCE,
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def check_groups(recipe: Recipe, processes: int, device: torch.device | None = None) -> None:
    """Refuse a number of processes that the recipe's groups cannot be shared by.

    Args:
        recipe: its groups and how it normalises.
        processes: of one trial.
        device: where it will run, None if that is not known here.

    Raises:
        UserError: the groups do not divide, or normalisation is synchronised over groups that would run
            one after the other.
    """
    groups = recipe.batch.groups
    if groups % processes:
        able = " or ".join(str(n) for n in range(1, groups + 1) if groups % n == 0)
        raise UserError(
            f"{groups} group{'s' * (groups > 1)} cannot be shared evenly by {processes} processes: "
            "every process takes whole groups, and gradients are averaged over groups",
            where="batch.groups",
            remedy=f"use {able} GPU{'s' * (groups > 1)} per trial, or --set batch.groups=...",
        )
    if recipe.batch.sync_bn == "off" or groups == 1:
        return
    if processes != groups:
        raise UserError(
            f"normalisation is synchronised over {groups} groups (batch.sync_bn), which takes one process "
            f"for each: groups that run one after the other cannot share their statistics; here "
            f"{'is' if processes == 1 else 'are'} {processes}",
            where="batch.sync_bn",
            remedy=f"--gpus-per-trial {groups}, or --set batch.sync_bn=off for statistics of one group "
            f"({recipe.batch.per_group} samples)",
        )
    if device is not None and device.type != "cuda":
        raise UserError(
            "synchronised normalisation needs GPUs",
            where="batch.sync_bn",
            remedy="--set batch.sync_bn=off",
        )


# --- collectives -------------------------------------------------------------------------------------


def own_groups(groups: int) -> slice:
    """Which groups of a step this process carries (:func:`check_groups` has made sure that they divide)."""
    number = groups // world_size()
    return slice(rank() * number, (rank() + 1) * number)


def share(items: Sequence[_T]) -> Sequence[_T]:
    """This process's part of some items: every n-th one, so that slow stretches are spread."""
    return items[rank() :: world_size()]


def collected(value: _T) -> list[_T]:
    """The values of all processes, by rank, on every process. Picklable, through the CPU."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


def of_all_processes(value: _T) -> list[_T]:
    """What every process of a trial has, by rank and so in the order of its groups, on every process.

    For what a method keeps of a step beside gradients (memory banks, prototypes): note it in ``loss``, group
    by group, and put it together in ``after_step``, which every process calls once a step.

    Args:
        value: anything picklable; tensors in lists, tuples and dictionaries are handed over on the CPU.

    Returns:
        One value for each process, ``[value]`` of a trial on one.
    """
    return [value] if world_size() == 1 else collected(_on_cpu(value))


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: _on_cpu(part) for key, part in value.items()}
    return type(value)(map(_on_cpu, value)) if type(value) in (list, tuple) else value


def unequal_buffers(method: nn.Module) -> list[str]:
    """Buffers of which processes hold different values; running statistics are put together elsewhere."""
    if world_size() == 1:
        return []
    layers = {name for name, module in method.named_modules() if isinstance(module, _BatchNorm)}
    persistent = method.state_dict().keys()
    own = {
        name: hashlib.sha256(value.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
        for name, value in method.named_buffers()
        if name in persistent and name.rpartition(".")[0] not in layers
    }
    everyone = collected(own)
    return sorted(name for name in own if any(theirs.get(name) != own[name] for theirs in everyone))


def from_first(value: _T) -> _T:
    """Rank 0's value, on every process. Picklable, through the CPU."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


@torch.no_grad()
def averaged(values: Tensor) -> Tensor:
    """Mean over all processes, of equal shape on each; NaN and infinity stay visible."""
    if world_size() > 1:
        dist.all_reduce(values)
        values /= world_size()
    return values


@torch.no_grad()
def broadcast_weights(module: nn.Module) -> None:
    """Give every process the parameters and buffers of rank 0."""
    if world_size() > 1:
        for value in module.state_dict().values():
            dist.broadcast(value, src=0)


# --- networks ----------------------------------------------------------------------------------------


class Parallel:
    """A method that is called on this process's groups; its gradients are averaged over processes.

    Args:
        method: the method, on its device.
    """

    def __init__(self, method: nn.Module) -> None:
        self.method = method
        self._parameters = list(method.parameters())
        self._wrapped: DistributedDataParallel | None = None
        self._trainable: list[bool] = []

    def __call__(self, *arguments: Any, last: bool) -> Any:
        """The method's output; ``last`` for the last call before the optimiser's step."""
        if world_size() == 1:
            return self.method(*arguments)
        wrapped = self._current()
        with nullcontext() if last else wrapped.no_sync():
            return wrapped(*arguments)

    def _current(self) -> DistributedDataParallel:
        """The wrapper, made anew when a stage of training froze or freed parameters."""
        trainable = [p.requires_grad for p in self._parameters]
        if self._wrapped is None or trainable != self._trainable:
            device = self._parameters[0].device
            self._wrapped = DistributedDataParallel(
                self.method,
                device_ids=[device] if device.type == "cuda" else None,
                broadcast_buffers=False,  # RunningStatistics does better
                gradient_as_bucket_view=True,  # no copy of the gradients beside those that are sent
                find_unused_parameters=True,  # losses reach other parts in other stages
            )
            self._trainable = trainable
        return self._wrapped


def synchronise_normalisation(method: nn.Module, where: str) -> nn.Module:
    """Batch normalisation over the samples of all processes, in place.

    Args:
        method: the method.
        where: ``all`` layers, or those of the ``head``: all outside encoders.

    Returns:
        The method with such layers.
    """
    from harness.nn.encoders import Encoder  # first: timm needs its cure
    from timm.layers import convert_sync_batchnorm  # isort: skip  (knows timm's own layers too)

    def convert(module: nn.Module) -> None:
        for name, child in module.named_children():
            if where == "head" and isinstance(child, Encoder):
                continue
            if isinstance(child, _BatchNorm):
                setattr(module, name, convert_sync_batchnorm(child))
            else:
                convert(child)

    convert(method)
    return method


class RunningStatistics:
    """Running means and variances as if one process had seen the groups of all, one after another.

    Each process moves them with its own groups, ``r -> a^n r + c`` for ``n`` updates with ``a = 1 -
    momentum``. Composed in the order of ranks, that is what a loop over all groups does, up to rounding.

    Args:
        method: the method; synchronised layers are left out, theirs are equal on all processes.
    """

    def __init__(self, method: nn.Module) -> None:
        self._values: list[Tensor] = []
        self._counters: list[Tensor] = []
        momenta: list[float] = []
        for m in method.modules():
            if not isinstance(m, _BatchNorm) or isinstance(m, nn.SyncBatchNorm) or m.momentum is None:
                continue
            if m.running_mean is None or m.running_var is None or m.num_batches_tracked is None:
                continue
            self._values += [m.running_mean, m.running_var]
            self._counters.append(m.num_batches_tracked)
            momenta.append(m.momentum)
        self._active = bool(momenta) and world_size() > 1
        self._sizes = [v.numel() for v in self._values]
        self._before = self._updates = torch.empty(0)
        if self._active:
            device = self._values[0].device
            layers = torch.arange(len(momenta), device=device).repeat_interleave(2)
            #: Which layer each value belongs to, and how much of it an update keeps.
            self._layer = layers.repeat_interleave(torch.tensor(self._sizes, device=device))
            self._keep = 1 - torch.tensor(momenta, dtype=torch.float64, device=device)[self._layer]

    def _flat(self) -> Tensor:
        return torch.cat([v.flatten() for v in self._values]).double()

    @torch.no_grad()
    def before(self) -> None:
        """Note where a step starts."""
        if self._active:
            self._before = self._flat()
            self._updates = torch.stack(self._counters)

    @torch.no_grad()
    def after(self) -> None:
        """Put together what the processes have added since :meth:`before`."""
        if not self._active:
            return
        own = torch.stack(self._counters) - self._updates
        everyone = [torch.empty_like(own) for _ in range(world_size())]
        dist.all_gather(everyone, own)
        number = torch.stack(everyone)
        later = number[rank() + 1 :].sum(0)
        added = self._flat() - self._keep ** own[self._layer] * self._before
        added *= self._keep ** later[self._layer]
        dist.all_reduce(added)
        result = self._keep ** number.sum(0)[self._layer] * self._before + added
        for value, part in zip(self._values, result.split(self._sizes), strict=True):
            value.copy_(part.view_as(value))
        for counter, value in zip(self._counters, self._updates + number.sum(0), strict=True):
            counter.copy_(value)
