"""What an executor knows: jobs, the source that gives them, and what is heard of them.

Trials of a run, trials of a search, smoke runs and evaluations are jobs. An executor knows nothing else of
them: it asks a :class:`Source` for the next :class:`Job`, lets it work in this process
(:mod:`.run`) or elsewhere (:mod:`.on_ray`), and hands each :class:`Event` on to the source.
Whatever goes wrong with a job becomes its last event; what another attempt may not meet is tried again.
"""

from __future__ import annotations

import gc
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from harness.basics import devices, interruption
from harness.basics.files import whole_file
from harness.engine import faults
from harness.recipes import foreign

if TYPE_CHECKING:
    from harness.engine.training import Status
    from harness.recipes.specs import Recipe
    from harness.running.trials.trial import Options

#: Trace of a failure, in the folder of the job.
ERROR = "error.txt"


@dataclass(frozen=True)
class Resources:
    """What jobs may use on Ray.

    Attributes:
        cpus_per_process: cores of each process of a job, its loader workers included.
        gpus_per_process: GPUs of each process of a job; a fraction lets jobs share one (bookkeeping,
            not a limit of memory).
        max_concurrent: most jobs at a time; as many as fit by default.
        address: a running Ray cluster to join; a local Ray starts without it.
        retries: how often a job whose worker died, or met a transient fault, is started again.
    """

    cpus_per_process: float = 1.0
    gpus_per_process: float = 0.0
    max_concurrent: int | None = None
    address: str | None = None
    retries: int = faults.RETRIES


@dataclass(frozen=True)
class Event:
    """What happened to a job.

    Attributes:
        status: where its work stands.
        values: (percent of training, measured value) that the source decides on before the work goes on.
        ended: the state that it has ended in, such as ``finished`` or ``failed``; empty while it goes on.
        reason: of the end, as a user reads it.
        trace: where in the code a failure arose, empty where that does not matter; None where all has been
            written down.
        seconds: that the work took, at its end.
        lost: whether the process that did it can no longer use its GPU.
        result: what the work gives, if it is more than files.
    """

    status: Status | None = None
    values: tuple[tuple[int, float], ...] = ()
    ended: str = ""
    reason: str = ""
    trace: str | None = None
    seconds: float = 0.0
    lost: bool = False
    result: Any = None

    def after(self, earlier: Event) -> Event:
        """This one with the status of an earlier one, where it has none of its own."""
        if earlier.status is None:
            return self
        return replace(self, status=self.status.after(earlier.status) if self.status else earlier.status)


def _nothing() -> None:
    pass


@dataclass
class Job(ABC):
    """A piece of work that can be sent to another process, and begun anew there.

    Attributes:
        number: its own within its source.
        processes: that do it together (:mod:`harness.engine.distributed`).
    """

    number: int
    processes: int = field(default=1, kw_only=True)

    def __getstate__(self) -> dict[str, Any]:
        """With the methods that were typed into this process: no worker could import them."""
        return {**self.__dict__, **({"_carried": typed} if (typed := foreign.typed_in()) else {})}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Register the methods that it brings."""
        foreign.adopt(state.pop("_carried", []))
        self.__dict__.update(state)

    @property
    @abstractmethod
    def label(self) -> str:
        """What a user calls it."""

    @property
    @abstractmethod
    def place(self) -> Path:
        """The folder that a failure is noted in; known when the job has begun."""

    @property
    def recipe(self) -> Recipe | None:
        """Whose values remedies name."""
        return None

    def begin(self, gpus: float | None = None) -> torch.device:
        """Find what can be found before other processes of the job are waited for.

        Args:
            gpus: booked for this process on Ray; None in the process of the driver.

        Returns:
            Where the job computes.
        """
        return torch.device("cpu")

    @abstractmethod
    def work(self, alone: Callable[[], None] = _nothing) -> Iterator[Event]:
        """Do it, from wherever an earlier attempt has come to. Every process of the job does.

        Args:
            alone: called by the first process when it needs the others no more.
        """

    def failed(self, error: BaseException) -> Event:
        """The last event of a job that an error ended; what can be written down of it is."""
        reason, whole = faults.told(error, self.recipe)
        if not whole:
            reason += write_trace(self.place, error)
        return Event(ended="failed", reason=reason, lost=faults.poisons(error))


class InFolder(Job):
    """A job that knows its folder from the start, and whose options say where it computes.

    Attributes:
        options: where and how; the device is that of the process, once the job has begun.
        folder: for its files, and what is noted of its failures.
    """

    options: Options
    folder: Path

    @property
    def place(self) -> Path:
        """The folder."""
        return self.folder

    def begin(self, gpus: float | None = None) -> torch.device:
        """Find the device. Arguments as in :meth:`Job.begin`."""
        self.options = replace(self.options, device=on(self.options.device, gpus))
        return devices.device_named(self.options.device, devices.machine())


class Source(ABC):
    """Who sends jobs, and decides on what is heard of them.

    Attributes:
        processes: of its largest job.
        ahead: whether it may be asked for jobs before there is room for them.
        reused: whether a worker process may do one job after another.
    """

    processes: int = 1
    ahead: bool = True
    reused: bool = True

    @abstractmethod
    def next(self) -> Job | None:
        """A job that can be done now; None while there is none."""

    @abstractmethod
    def take(self, job: Job, event: Event) -> bool:
        """Hear of a job; True where it shall not go on."""

    @abstractmethod
    def again(self, job: Job, why: str) -> None:
        """A job is started again, since its process died or met a transient fault."""

    def gave_up(self, job: Job, fault: faults.TransientFault, trace: str) -> Event:
        """The last event of a job whose process died too often; what can be written down of it is."""
        return Event(ended="failed", reason=faults.printable(str(fault)))

    def wait(self) -> bool:
        """Nothing can be done and nothing is being done: wait for what may change that; False at the end."""
        return False


def on(device: str, gpus: float | None) -> str:
    """The device of a job's process: that of the options, or what Ray has booked for it."""
    return device if gpus is None else devices.of_workers(device, gpus)


def attempt(job: Job, work: Iterator[Event], *, again: bool) -> Iterator[Event]:
    """The events of a job's work, the last of which says how it has ended; an error becomes one.

    Args:
        job: whose work it is.
        work: :meth:`Job.work`, or what stands for it.
        again: whether the job can be started once more, so that a transient fault is raised.

    Raises:
        Exception: a transient fault, where ``again`` is true.
        KeyboardInterrupt: this process was asked to stop.
    """
    clock, event = time.monotonic(), Event()
    try:
        while not event.ended:
            try:
                event = next(work)
            except StopIteration:
                event = Event(ended="finished")
            except BaseException as error:
                if interruption.asked(error):
                    raise
                if faults.transient(error):
                    interruption.stop_if_noted()  # a signal that ends a group of processes breaks much else
                    if again:
                        raise
                event = job.failed(error)
            if event.ended:
                event = replace(event, seconds=time.monotonic() - clock)
                if event.ended == "failed":
                    release()
            yield event
    finally:
        work.close()  # type: ignore[attr-defined]


def release() -> None:
    """Give back what nobody refers to any more: frames of an error may have kept tensors alive."""
    gc.collect()
    if torch.cuda.is_initialized():
        with suppress(RuntimeError):  # of a GPU that is lost
            torch.cuda.empty_cache()


def write_trace(folder: Path, trace: str | BaseException) -> str:
    """Keep where in the code an error arose; returns a line that says where, or why it is not kept."""
    if isinstance(trace, BaseException):
        trace = faults.trace_of(trace)
    try:
        with whole_file(folder / ERROR) as stream:
            stream.write(trace)
    except Exception as error:
        return f"\n  (trace not kept: {getattr(error, 'problem', None) or faults.first_line(error)})"
    return f"\n  trace:  {folder / ERROR}"
