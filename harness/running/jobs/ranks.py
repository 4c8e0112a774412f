"""The processes of one job on Ray. Importing this module imports Ray.

A job of several processes holds a placement group with one bundle for each. Rank 0 is the job's own
worker, which works and writes as it does alone; the others are actors in the other bundles, on the same
node or not, which do their share of the same work and write nothing.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import ray
import torch
from ray import tune
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from harness.basics import interruption
from harness.basics.errors import UserError
from harness.basics.files import write_json
from harness.basics.reading import read_json
from harness.engine import distributed, faults
from harness.engine.faults import TransientFault
from harness.running.jobs.job import Event, Job, write_trace

#: Seconds that rank 0 may take to notice by itself that another rank has died, before it ends too.
GRACE = 20.0
#: Word, in a job's folder, that an attempt left which could not report that it has failed.
GAVE_UP = "given-up.json"


@ray.remote(max_restarts=0, max_task_retries=0)
class Rank:
    """A process of a job, other than the one that writes."""

    def begin(self, job: Job, gpus: float) -> None:
        """Find what can be found before the others are waited for."""
        interruption.leave_to_driver()
        self.job = job
        with faults.sent():
            self.device = job.begin(gpus)

    def work(self, number: int, world: int, address: str) -> None:
        """Do this rank's share from the last checkpoint to the end."""
        with (
            faults.sent(self.job.recipe),
            distributed.session(address, number, world, self.device),
        ):
            for event in self.job.work():
                if event.ended:
                    break


class Ranks:
    """All processes of a job, from rank 0's point of view; :meth:`stop` ends the others.

    Should one of them die, this process notices by a broken connection, or, where a GPU waits for ever,
    ends itself: the job is then started again from its checkpoint, all processes new. Should one of them
    meet an error, that error is the job's (:meth:`cause`).

    Args:
        job: of more than one process, begun in this one.
        device: where this process computes.
        gpus: booked for each process.
        run: name of the run that the job belongs to.

    Raises:
        Exception: what any of the processes met before they worked together.
    """

    def __init__(self, job: Job, device: torch.device, gpus: float, run: str) -> None:
        world = job.processes
        address = free_address()
        group = ray.util.get_current_placement_group()
        assert group is not None, "a job of several processes runs in a placement group"
        self._stack = ExitStack()
        self._stopped = threading.Event()
        self._broken = threading.Event()
        self._errors: list[BaseException] = []
        self._job, self._run = job, run
        self._actors = [
            Rank.options(**placed(group, number)).remote()  # type: ignore[attr-defined]
            for number in range(1, world)
        ]
        try:
            try:
                ray.get([actor.begin.remote(job, gpus) for actor in self._actors])
            except ray.exceptions.RayError as error:
                raise met(error) from error
            self._work = [
                actor.work.remote(number, world, address) for number, actor in enumerate(self._actors, 1)
            ]
            threading.Thread(target=self._watch, name="ranks", daemon=True).start()
            try:
                self._stack.enter_context(distributed.session(address, 0, world, device))
            except Exception as error:
                cause = self.cause(error)
                if cause is error:
                    raise
                raise cause from error
        except BaseException:
            self.stop()
            raise

    def cause(self, error: BaseException) -> BaseException:
        """What led to an error of this process: the error itself, or, where it only says that another process
        has gone, what ended that one; waits a moment for the news."""
        if faults.consequence(error):
            self._broken.wait(GRACE / 4)
        return faults.first_cause([error, *self._errors])

    def work(self) -> Iterator[Event]:
        """The events of the job, to which the others do their share."""
        try:
            yield from self._job.work(self.stop)
        except GeneratorExit:
            raise
        except BaseException as error:
            cause = self.cause(error)
            if cause is error:
                raise
            raise cause from error
        finally:
            self.stop()

    def stop(self) -> None:
        """End the other processes and leave the group; may be called twice."""
        self._stopped.set()
        for actor in self._actors:
            ray.kill(actor)
        with contextlib.suppress(Exception):  # connections to the dead cannot be closed politely
            self._stack.close()

    def _watch(self) -> None:
        """Notice the end of another rank; in a thread."""
        open_work = list(self._work)
        while open_work and not self._stopped.is_set():
            ended, open_work = ray.wait(open_work, num_returns=1, timeout=1.0)
            for one in ended:
                try:
                    ray.get(one)
                except Exception as error:
                    if self._stopped.is_set():
                        return
                    self._errors.append(met(error))
                    self._hear_also(open_work)
                    self._broken.set()
                    if not self._stopped.wait(GRACE):
                        self._end()
                    return

    def _hear_also(self, open_work: list[Any]) -> None:
        """What others met meanwhile: the first to be heard may be one that only lost its connection."""
        if not faults.consequence(self._errors[0]):
            return
        for one in ray.wait(open_work, num_returns=len(open_work), timeout=1.0)[0] if open_work else ():
            try:
                ray.get(one)
            except Exception as error:
                self._errors.append(met(error))

    def _end(self) -> None:
        """Rank 0 waits for a dead one: leave word and end, as nothing else interrupts a GPU."""
        error = faults.first_cause(self._errors)
        if faults.transient(error):
            write_trace(self._job.place, error)
        else:
            event = self._job.failed(error)
            write_json(self._job.place / GAVE_UP, {"run": self._run, "reason": event.reason})
        os._exit(1)


def word(job: Job, run: str) -> Event | None:
    """What an attempt of the same run has left word of: that the job cannot succeed, and why. Heard once."""
    file = job.place / GAVE_UP
    if file.exists():
        with suppress(OSError, UserError):
            found = read_json(file)
            file.unlink()
            if isinstance(found, dict) and found.get("run") == run:
                return Event(ended="failed", reason=str(found.get("reason", "")))
    return None


def met(error: Exception) -> BaseException:
    """What ended another process, from what Ray says of it: its own error, or, where the process is gone, a
    fault worth another try."""
    if isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, BaseException):
        return error.cause
    if isinstance(error, ray.exceptions.RayActorError | ray.exceptions.WorkerCrashedError):
        return TransientFault(f"another process of the trial died{_of_memory(str(error))}")
    return TransientFault(faults.first_line(error))


def _of_memory(text: str) -> str:
    """A word on memory, if Ray has one."""
    lines = [line.strip() for line in text.splitlines() if "memory" in line.lower()]
    return f": {lines[0]}" if lines else ""


def placed(group: PlacementGroup, number: int) -> dict[str, Any]:
    """Options of a Ray task or actor that is the only one in a bundle, and has all of it."""
    bundle = group.bundle_specs[number]
    return {
        "num_cpus": bundle.get("CPU", 0),
        "num_gpus": bundle.get("GPU", 0),
        "scheduling_strategy": PlacementGroupSchedulingStrategy(group, number),
    }


def bundles(processes: int, cpus: float, gpus: float) -> Any:
    """The resources of a job, as Tune asks for them: as much for each of its processes."""
    each = {"CPU": cpus, "GPU": gpus}
    if processes == 1:
        return tune.PlacementGroupFactory([each])
    return tune.PlacementGroupFactory([each] * processes, strategy="PACK")


def free_address() -> str:
    """``host:port`` of this node, for the processes of one job to meet at."""
    with socket.socket() as s:
        s.bind(("", 0))
        return f"{ray.util.get_node_ip_address()}:{s.getsockname()[1]}"
