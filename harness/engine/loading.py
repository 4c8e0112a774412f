"""Loader processes: what goes wrong in one is raised where its batches are used, as what it was.

torch's own loaders lose much: an error arrives with its trace as its message, a StopIteration ends the loop
as if the data had ended, and where a batch does not fit into shared memory a thread drops it, and everybody
waits for ever. Here errors travel as values; collate functions move their tensors into shared memory
themselves (:func:`in_worker`), so that a lack of it is an error like any other.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from harness.basics.errors import UserError
from harness.engine import faults


@dataclass(frozen=True)
class Failure:
    """What a loader process gives in place of a sample or batch that it could not make."""

    error: BaseException


class Careful(TorchDataset):
    """A data set whose errors become values.

    Args:
        data: with ``__getitem__`` and ``__len__``.
    """

    def __init__(self, data: TorchDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def __getitem__(self, index: Any) -> Any:
        return _caught(self.data.__getitem__, index)


class Gathered:
    """A collate function that passes failures on.

    Args:
        collate: samples to a batch, or a sample to a sample.
    """

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: Any) -> Any:
        """A batch, or the first failure among the samples."""
        several = samples if isinstance(samples, list) else [samples]
        failed = next((s for s in several if isinstance(s, Failure)), None)
        return failed or _caught(self.collate, samples)


def in_worker() -> bool:
    """Whether this is a loader process."""
    return torch.utils.data.get_worker_info() is not None


def _caught(work: Callable[[Any], Any], argument: Any) -> Any:
    try:
        return work(argument)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return Failure(faults.portable(error) if in_worker() else error)


def loaded(
    data: TorchDataset, collate: Callable[[Any], Any], *, workers: int, pin: bool = False, **choices: Any
) -> Iterator[Any]:
    """Batches of a data set, made by loader processes.

    Args:
        data: the data set.
        collate: samples to a batch.
        workers: loader processes; none for 0.
        pin: copy to page-locked memory for a GPU.
        choices: of torch's loader: ``batch_sampler``, or ``batch_size=None`` and so on.

    Raises:
        UserError: loader processes cannot be started, for lack of shared memory, say.
        Exception: of the data set, as in this process.
    """
    loader: DataLoader[Any] = DataLoader(
        Careful(data), collate_fn=Gathered(collate), num_workers=workers, pin_memory=pin, **choices
    )
    for batch in _started(loader) if workers else loader:
        if isinstance(batch, Failure):
            error = batch.error
            if isinstance(error, StopIteration | StopAsyncIteration):
                raise RuntimeError(f"the data set raised {faults.first_line(error)}") from error
            raise error
        yield batch


def _started(loader: DataLoader[Any]) -> Iterator[Any]:
    """The loader at work."""
    try:
        return iter(loader)
    except OSError as error:  # semaphores take shared memory, processes memory and a number
        if error.errno not in (errno.ENOSPC, errno.ENOSYS, errno.EAGAIN, errno.ENOMEM, errno.EMFILE):
            raise
        raise UserError(
            f"loader workers cannot be started: {faults.first_line(error)}",
            where="--workers",
            remedy=faults.WORKERS_REMEDY,
        ) from error


class Waits:
    """What a loader gives, and the seconds for which it was waited for."""

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader, self.seconds = loader, 0.0

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.loader)
        while True:
            began = time.monotonic()
            batch = next(batches, None)
            self.seconds += time.monotonic() - began
            if batch is None:
                return
            yield batch

    def taken(self) -> float:
        """Seconds since this was asked last."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds
