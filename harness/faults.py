"""What went wrong with a trial: which errors are worth another attempt, and what a user can do about others.

A fault is *transient* where the same trial, started again from its checkpoint in a new process, has a
chance: a loader worker was killed, or a GPU or a connection between GPUs broke. A full disk, a lack of
memory and a loss that is not finite come back; they end the trial, with a remedy.
"""

from __future__ import annotations

import errno

import torch

from harness.errors import UserError
from harness.files import refusal
from harness.specs import Recipe

#: How often a trial whose process died, or that met a transient fault, is started again.
RETRIES = 3

#: Words of torch, CUDA, C++ and the kernel for a lack of memory.
_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "std::bad_alloc",
    "alloc_failed",  # CUBLAS_STATUS_ALLOC_FAILED, CUDNN_STATUS_ALLOC_FAILED
    "unable to mmap",
)
#: Words for a loader worker that died, or that shared memory was too small for.
_LOADER = (
    "dataloader worker",
    "pin memory thread exited",
    "unable to write to file </torch_",
    "unable to open shared memory object",
)
#: Words for a GPU whose context is lost: nothing more can be computed in this process.
_POISON = ("cuda error", "cuda driver error", "cudnn error", "cudnn_status_", "cublas_status_")
#: Words for a broken connection between the processes of one trial.
_CONNECTION = ("nccl", "gloo", "connection closed by peer", "connection reset by peer", "socket timeout")


class TransientFault(RuntimeError):
    """A fault that another attempt may not meet; the message is that of the error behind it."""


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".lower()


def out_of_memory(error: BaseException) -> bool:
    """Whether memory of the GPU or of the machine ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in _text(error) for words in _MEMORY)


def poisons(error: BaseException) -> bool:
    """Whether this process can no longer use its GPU."""
    return (
        isinstance(error, RuntimeError)
        and not out_of_memory(error)
        and any(words in _text(error) for words in _POISON)
    )


def transient(error: BaseException) -> bool:
    """Whether the trial may be started again from its checkpoint, see the module."""
    if isinstance(error, TransientFault):
        return True
    if not isinstance(error, RuntimeError | ConnectionError) or out_of_memory(error):
        return False
    return poisons(error) or any(words in _text(error) for words in (*_LOADER, *_CONNECTION))


def explained(error: BaseException, recipe: Recipe) -> UserError | None:
    """What a user can do about an error; None where only its trace helps."""
    if isinstance(error, UserError):
        return error
    first = first_line(error)
    if out_of_memory(error):
        batch, (height, width) = recipe.batch, recipe.crop_size
        pieces = f" in {recipe.accumulate} pieces" if recipe.accumulate > 1 else ""
        return UserError(
            f"out of memory: {first}",
            where=f"{batch.groups} x {batch.per_group} pictures of {height} x {width} per step{pieces}",
            remedy=f"--set accumulate={recipe.accumulate * 2}, --set amp=bf16, fewer --workers, or more "
            "memory for the trial: a smaller --max-concurrent, whole GPUs (--gpus-per-trial 1)",
        )
    if any(words in _text(error) for words in _LOADER):
        return UserError(
            f"a loader worker died: {first}",
            where="--workers",
            remedy="fewer --workers, more memory, or a larger /dev/shm; --workers 0 needs none of them",
        )
    return refusal(error)


def told(error: BaseException, recipe: Recipe) -> tuple[str, bool]:
    """What a user is told of an error, and whether that is all there is to know: else its trace helps."""
    clear = explained(error, recipe)
    return str(clear or first_line(error)), clear is error


def first_line(error: BaseException) -> str:
    """Kind and first line of an error."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
