"""What went wrong with a trial: which errors are worth another attempt, and what a user can do about others.

A fault is *transient* where the same trial, started again from its checkpoint in a new process, has a
chance: a loader worker was killed, or a GPU or a connection between processes broke. A full disk, a lack of
memory and a loss that is not finite come back, as do mistakes in a method; they end the trial, with a
remedy where there is one.

Errors come from anybody's code: they may lead back to themselves, have no message that can be shown, or
not survive pickling. Nothing here depends on their good behaviour.
"""

from __future__ import annotations

import errno
import math
import pickle
import re
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from harness.basics import interruption
from harness.basics.errors import UserError, causes, words
from harness.basics.files import refusal
from harness.basics.text import clean
from harness.recipes.specs import Recipe

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
#: Words for a loader worker that died.
_LOADER = ("dataloader worker", "pin memory thread exited")
#: Words for shared memory that a loader's batches do not fit into; it will not grow.
_SHARED = (
    "unable to write to file </torch_",
    "unable to open shared memory object",
    "unable to allocate shared memory",
    "unable to resize shared memory",
    "out of shared memory",
)
#: Words for a GPU whose context is lost: nothing more can be computed in this process.
_POISON = (
    "cuda error",
    "cuda driver error",
    "cudnn error",
    "cudnn_status_",
    "cublas_status_",
    "acceleratorerror",
)
#: Words for a broken connection between the processes of one trial.
_CONNECTION = (
    "nccl",
    "gloo",
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "socket timeout",
    "timed out waiting for clients",
)
#: Words for what a GPU or a connection refuses every time.
_LASTING = (
    "no kernel image",
    "invalid device",
    "device-side assert",
    "driver version is insufficient",
    "unsupported toolchain",
    "invalid configuration argument",
    "invalid argument",
    "invalid usage",
    "duplicate gpu",
    "unable to find address",
    "no device",
)
#: Most characters of a message that are kept.
_MOST = 2000


class TransientFault(RuntimeError):
    """A fault that another attempt may not meet; the message is that of the error behind it."""


@dataclass(frozen=True)
class _Kind:
    """What is known of a relayed error."""

    transient: bool
    memory: bool
    poison: bool
    consequence: bool


class Relayed(Exception):
    """An error of another process as text, which always survives the way.

    Args:
        text: what a user is told.
        trace: where it arose; empty where a user can mend it.
        kind: of the error itself.
    """

    def __init__(self, text: str, trace: str, kind: _Kind) -> None:
        super().__init__(text)
        self.text, self.trace, self.kind = text, trace, kind

    def __reduce__(self) -> tuple:
        return (Relayed, (self.text, self.trace, self.kind))


def relayed(error: BaseException, recipe: Recipe | None = None) -> Relayed:
    """An error in a form that can be sent to another process."""
    if isinstance(error, Relayed):
        return error
    text, whole = told(error, recipe)
    kind = _Kind(transient(error), out_of_memory(error), poisons(error), consequence(error))
    return Relayed(text, "" if whole else trace_of(error), kind)


@contextmanager
def sent(recipe: Recipe | None = None) -> Iterator[None]:
    """Let errors leave a process in a form that arrives; an exit of the code of a trial is one of them.

    Raises:
        Relayed: in place of any other error.
    """
    try:
        yield
    except BaseException as error:
        if interruption.asked(error):
            raise
        raise relayed(error, recipe) from None


def portable(error: BaseException) -> Exception:
    """The error itself where pickle gives it back as it is, else :func:`relayed`; a StopIteration never
    passes, since it would end loops."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration | StopAsyncIteration):
        try:
            again = pickle.loads(pickle.dumps(error))
            if type(again) is type(error) and words(again) == words(error):
                return error
        except Exception:
            pass
    return relayed(error)


def trace_of(error: BaseException) -> str:
    """The traceback as text."""
    if isinstance(error, Relayed):
        return error.trace
    try:
        return printable_lines("".join(traceback.format_exception(error)))
    except Exception as other:  # of its own way of showing itself
        return f"{type(error).__name__}, whose trace cannot be shown: {type(other).__name__}"


def printable(text: str, most: int = _MOST) -> str:
    """:func:`harness.basics.text.clean` text that is not endless."""
    if len(text) > most:
        text = f"{text[:most]} [... {len(text) - most} more characters]"
    return clean(text)


def printable_lines(text: str) -> str:
    """:func:`printable` for a trace, line by line."""
    return "\n".join(map(printable, text[: 2**20].split("\n")))


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {words(error)[:100_000]}".lower()


def _says(error: BaseException, any_of: Iterable[str]) -> bool:
    text = _text(error)
    return any(w in text for w in any_of)


def _led_to(error: BaseException) -> Iterable[BaseException]:
    """The error, what it was explicitly raised from, and members of groups."""
    own = {id(error)}
    for found in causes(error):
        if id(found) in own:
            yield found
            own.update(id(e) for e in getattr(found, "exceptions", ()) if isinstance(e, BaseException))
            own.add(id(found.__cause__))


def out_of_memory(error: BaseException) -> bool:
    """Whether memory of the GPU or of the machine ran out."""
    return any(map(_lacks_memory, _led_to(error)))


def _lacks_memory(error: BaseException) -> bool:
    if isinstance(error, Relayed):
        return error.kind.memory
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and _says(error, _MEMORY)


def poisons(error: BaseException) -> bool:
    """Whether this process can no longer use its GPU."""
    if isinstance(error, Relayed):
        return error.kind.poison
    return isinstance(error, RuntimeError) and not out_of_memory(error) and _says(error, _POISON)


def transient(error: BaseException) -> bool:
    """Whether the trial may be started again from its checkpoint, see the module."""
    if isinstance(error, TransientFault):
        return True
    if isinstance(error, Relayed):
        return error.kind.transient
    if isinstance(error, ConnectionError):
        return True
    ours = isinstance(error, NotImplementedError | RecursionError)  # no fault of a device or a connection
    if not isinstance(error, RuntimeError) or ours or out_of_memory(error):
        return False
    if _says(error, (*_LASTING, *_SHARED)) or _of_a_loader(error):
        return False
    return poisons(error) or _says(error, (*_LOADER, *_CONNECTION))


def consequence(error: BaseException) -> bool:
    """Whether an error says only that another process of the trial has gone."""
    if isinstance(error, Relayed):
        return error.kind.consequence
    broken = isinstance(error, TransientFault | ConnectionError) or _says(error, _CONNECTION)
    return broken and transient(error)


def first_cause(errors: Iterable[BaseException]) -> BaseException:
    """Of the errors of several processes, in the order of their arrival, the one that led to the others."""
    found = list(errors)
    return next((e for e in found if not consequence(e)), found[0])


def _of_a_loader(error: BaseException) -> re.Match[str] | None:
    """An error that a loader worker met and lived to tell; its message is its trace."""
    return re.match(r"Caught (\w+) in [^\n]*\.\nOriginal Traceback", words(error))


def remedy_of(error: BaseException, recipe: Recipe | None) -> UserError | None:
    """What a user can do about an error; None where only its trace helps."""
    if isinstance(error, UserError):
        return error if not _of_a_loader(error) else UserError(_message(error)[1])
    if isinstance(error, Relayed):
        return None if error.trace else UserError(error.text)
    first = first_line(error)
    if recipe is not None and isinstance(error, ValueError) and _says(error, (ONE_VALUE,)):
        return one_picture(recipe)
    if out_of_memory(error):
        return _more_memory(first, recipe)
    if _says(error, _SHARED):
        return UserError(
            f"no shared memory for loader workers: {first}", where="--workers", remedy=WORKERS_REMEDY
        )
    if isinstance(error, RuntimeError) and _says(error, _LOADER) and not _of_a_loader(error):
        return UserError(f"a loader worker died: {first}", where="--workers", remedy=WORKERS_REMEDY)
    return refusal(error)


WORKERS_REMEDY = "fewer --workers, more memory, or a larger /dev/shm; --workers 0 needs none of them"


def _more_memory(first: str, recipe: Recipe | None) -> UserError:
    remedy = "memory for the trial: a smaller --max-concurrent, whole GPUs (--gpus-per-trial 1)"
    if recipe is None:
        return UserError(f"out of memory: {first}", remedy=f"fewer --workers, or more {remedy}")
    batch, (height, width) = recipe.batch, recipe.crop_size
    pieces = f" in {recipe.accumulate} pieces" if recipe.accumulate > 1 else ""
    ways = [f"--set accumulate={more}"] if (more := _more_pieces(recipe)) else []
    ways += ["--set amp=bf16"] if recipe.amp == "off" else []
    ways, takes = [*ways, "a smaller crop"], ""
    if (there := _capacity_mib(first)) and (known := _estimated(recipe, there)):
        takes, ways = (
            f", {known[0]:,.0f} MiB by estimate",
            [f"--set {way} ({needed:,.0f} MiB)" for way, needed in known[1].items()]
            or ["no single one of accumulate, amp and crop fits by estimate: several together"],
        )
    return UserError(
        f"out of memory: {first}",
        where=f"{batch.groups} x {batch.per_group} pictures of {height} x {width} per step{pieces}{takes}",
        remedy=f"{', '.join(ways)}, fewer --workers, or more {remedy}",
    )


def _capacity_mib(text: str) -> float | None:
    """Memory of the GPU that an error of torch speaks of."""
    found = re.search(r"total capacity of ([0-9.]+) ([GM])iB", text)
    return None if found is None else float(found[1]) * (1024 if found[2] == "G" else 1)


def _estimated(recipe: Recipe, there: float) -> tuple[float, dict[str, float]] | None:
    """What a step takes and what would fit; None where that cannot be found out."""
    from harness.engine.footprint import fitting

    try:
        return fitting(recipe, there)
    except Exception:  # the error that is being told of matters more
        return None


#: torch's words where batch normalisation meets a single value of a channel.
ONE_VALUE = "more than 1 value per channel"


def smallest_piece(recipe: Recipe) -> int:
    """Least number of pictures that a network sees at once in training, its groups taken one by one."""
    return min(len(piece) for piece in torch.arange(recipe.batch.per_group).chunk(recipe.accumulate))


def smaller_pieces(recipe: Recipe) -> list[int]:
    """Numbers of more and smaller pieces of a group, each about twice the one before it."""
    found = []
    while (more := _more_pieces(recipe)) is not None:
        found.append(more)
        recipe = replace(recipe, accumulate=more)
    return found


def _more_pieces(recipe: Recipe) -> int | None:
    """More and smaller pieces of a group; None where they would be one picture, which batch normalisation
    cannot train on."""
    now = math.ceil(recipe.batch.per_group / recipe.accumulate)
    for number in range(2 * recipe.accumulate, recipe.accumulate, -1):
        smaller = math.ceil(recipe.batch.per_group / number) < now
        if smaller and smallest_piece(replace(recipe, accumulate=number)) > 1:
            return number
    return None


def one_picture(recipe: Recipe) -> UserError:
    """The error for batch normalisation over a single value."""
    batch, pieces = recipe.batch, recipe.accumulate
    whole = batch.per_group > 1
    fewer = range(1, min(pieces, batch.per_group // 2 + 1))
    most = max((n for n in fewer if smallest_piece(replace(recipe, accumulate=n)) > 1), default=1)
    return UserError(
        "batch normalisation cannot train on one picture: a layer sees one value per channel",
        where=f"batch.per_group = {batch.per_group}" + (f", accumulate = {pieces}" if pieces > 1 else ""),
        remedy=f"give every piece of a group two pictures or more: --set accumulate={most}"
        if whole
        else "give every group two pictures or more: a larger batch.per_group",
    )


def told(error: BaseException, recipe: Recipe | None) -> tuple[str, bool]:
    """What a user is told of an error, and whether that is all there is to know: else its trace helps."""
    if isinstance(error, Relayed):
        return error.text, not error.trace
    clear = remedy_of(error, recipe)
    return printable(words(clear) if clear else first_line(error)), isinstance(error, UserError)


def first_line(error: BaseException) -> str:
    """Kind and first line of an error; of the first member of a group, and of what ended a generator."""
    if isinstance(error, Relayed):
        return error.text.strip().splitlines()[0] if error.text.strip() else "an error without words"
    if isinstance(error, BaseExceptionGroup):
        return f"{type(error).__name__}: {error.message} -> {first_line(error.exceptions[0])}"
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, StopIteration | StopAsyncIteration):
        error = error.__cause__  # Python puts "generator raised StopIteration" in its place (PEP 479)
    name, text = _message(error)
    text = printable(text).strip()
    return f"{name}: {text.splitlines()[0]}" if text else name


def _message(error: BaseException) -> tuple[str, str]:
    """Kind and message of an error; those that a loader worker met where it brings its trace along."""
    name, text = type(error).__name__, words(error)
    if (caught := _of_a_loader(error)) is None:
        return name, text
    name = caught[1]
    last = list(re.finditer(rf"^(?:\w+\.)*{name}(?:: |$)", text, re.MULTILINE))
    return (name, text[last[-1].end() :]) if last else (name, text)
