"""The processes of one trial on Ray. Importing this module imports Ray.

A trial of several processes holds a placement group with one bundle for each. Rank 0 is the trial's own
worker, which trains, evaluates and writes as it does alone; the others are actors in the other bundles,
on the same node or not, which do their share of the same steps and write nothing.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from contextlib import ExitStack
from typing import Any

import ray
from ray import tune
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from harness import distributed
from harness.faults import TransientFault
from harness.runs.running import run, write_trace
from harness.runs.trial import Options, Prepared, Trial, prepare

#: Seconds that rank 0 may take to notice by itself that another rank has died, before it ends too.
GRACE = 20.0


@ray.remote(max_restarts=0, max_task_retries=0)
class Rank:
    """A process of a trial, other than the one that writes."""

    def work(self, trial: Trial, options: Options, number: int, world: int, address: str) -> None:
        """Do this rank's share from the last checkpoint to the end."""
        prepared = prepare(trial, options)
        with distributed.session(address, number, world, prepared.device):
            for _ in run(prepared):
                pass


class Ranks:
    """All processes of a trial, from rank 0's point of view; :meth:`stop` ends the others.

    Should one of them die, this process notices by a broken connection, or, where a GPU waits for ever,
    ends itself: the trial is then started again from its checkpoint, all processes new.

    Args:
        prepared: a trial of more than one process.
    """

    def __init__(self, prepared: Prepared) -> None:
        world = prepared.processes
        address = free_address()
        group = ray.util.get_current_placement_group()
        assert group is not None, "a trial of several processes runs in a placement group"
        self._stack = ExitStack()
        self._actors = []
        self._work = []
        for number in range(1, world):
            actor = Rank.options(**placed(group, number)).remote()  # type: ignore[attr-defined]
            self._actors.append(actor)
            self._work.append(actor.work.remote(prepared.trial, prepared.options, number, world, address))
        self._stopped = threading.Event()
        self._broken = threading.Event()
        self._cause: BaseException | None = None
        self._folder = prepared.folder
        threading.Thread(target=self._watch, name="ranks", daemon=True).start()
        try:
            self._stack.enter_context(distributed.session(address, 0, world, prepared.device))
        except Exception as error:
            cause = self.cause()
            self.stop()
            raise cause or error from error

    def cause(self) -> BaseException | None:
        """Why another rank ended, where that is what broke this one; waits a moment for the news."""
        self._broken.wait(GRACE / 4)
        return self._cause

    def stop(self) -> None:
        """End the other processes and leave the group; may be called twice."""
        self._stopped.set()
        for actor in self._actors:
            ray.kill(actor)
        with contextlib.suppress(Exception):  # connections to the dead cannot be closed politely
            self._stack.close()

    def _watch(self) -> None:
        """Notice the death of another rank; in a thread."""
        open_work = list(self._work)
        while open_work and not self._stopped.is_set():
            ended, open_work = ray.wait(open_work, num_returns=1, timeout=1.0)
            for one in ended:
                try:
                    ray.get(one)
                except Exception as error:
                    if self._stopped.is_set():
                        return
                    self._cause = _why(error)
                    self._broken.set()
                    if not self._stopped.wait(GRACE):
                        self._end()
                    return

    def _end(self) -> None:
        """Rank 0 waits for a dead one: leave word and end, as nothing else interrupts a GPU."""
        write_trace(self._folder, self._cause or "another process of the trial died")
        os._exit(1)


def _why(error: Exception) -> BaseException:
    """What ended another rank: its own error, or, where its process is gone, a fault worth another try."""
    if isinstance(error, ray.exceptions.RayActorError):
        return TransientFault("another process of the trial died")
    return getattr(error, "cause", None) or error


def placed(group: PlacementGroup, number: int) -> dict[str, Any]:
    """Options of a Ray task or actor that is the only one in a bundle, and has all of it."""
    bundle = group.bundle_specs[number]
    return {
        "num_cpus": bundle.get("CPU", 0),
        "num_gpus": bundle.get("GPU", 0),
        "scheduling_strategy": PlacementGroupSchedulingStrategy(group, number),
    }


def bundles(processes: int, cpus: float, gpus: float) -> Any:
    """The resources of a trial, as Tune asks for them: as much for each of its processes."""
    each = {"CPU": cpus, "GPU": gpus}
    if processes == 1:
        return tune.PlacementGroupFactory([each])
    return tune.PlacementGroupFactory([each] * processes, strategy="PACK")


def free_address() -> str:
    """``host:port`` of this node, for the processes of one trial to meet at."""
    with socket.socket() as s:
        s.bind(("", 0))
        return f"{ray.util.get_node_ip_address()}:{s.getsockname()[1]}"
