"""Smoke runs on Ray: each recipe in processes of its own, with the resources of a trial."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from harness import distributed, faults
from harness.cluster.ranks import free_address, met, placed
from harness.cluster.session import Resources
from harness.cost.smoke_report import Row
from harness.faults import TransientFault
from harness.runs.trial import choose_device

if TYPE_CHECKING:
    from harness.cost.smoke import Job

#: Seconds between looks at what has room to start.
POLL = 0.5
#: Seconds that the others may take after one process of a recipe has ended.
GRACE = 30.0


@dataclass
class _Running:
    """A recipe that is being tried.

    Attributes:
        group: its resources.
        tasks: one for each process, by rank; none before there is room.
        rows: of the processes that have ended, by rank.
        ended: when the first of them did.
    """

    job: Job
    group: PlacementGroup
    tasks: list[Any]
    rows: dict[int, Row]
    ended: float | None = None


def on_ray(
    jobs: Sequence[Job], resources: Resources, work: Callable[[Job], Row]
) -> Iterator[tuple[int, Row]]:
    """Try recipes, as many at a time as trials would run; yields number and row of each as it ends.

    Ray must run. A process that dies fails its recipe alone.

    Args:
        jobs: what to try.
        resources: of each process of a trial.
        work: tries a recipe in the process that it is called in.
    """
    waiting, running = list(jobs), list[_Running]()
    try:
        while waiting or running:
            while waiting and len(running) < (resources.max_concurrent or len(jobs)):
                job = waiting.pop(0)
                each = {"CPU": resources.cpus_per_process, "GPU": resources.gpus_per_process}
                bundle = {kind: amount for kind, amount in each.items() if amount}
                running.append(_Running(job, placement_group([bundle] * job.processes), [], {}))
            for one in list(running):
                row = _look(one, work)
                if row is not None:
                    running.remove(one)
                    _stop(one)
                    yield one.job.number, row
            open_tasks = [task for one in running for n, task in enumerate(one.tasks) if n not in one.rows]
            if open_tasks:
                ray.wait(open_tasks, num_returns=1, timeout=POLL)
            elif running:
                time.sleep(POLL)
    finally:
        for one in running:
            _stop(one)


def _look(one: _Running, work: Callable[[Job], Row]) -> Row | None:
    """Start a recipe that has room now; the row of one that has ended."""
    if not one.tasks:
        if one.group.wait(0):
            _start(one, work)
        return None
    for number, task in enumerate(one.tasks):
        if number not in one.rows and ray.wait([task], timeout=0)[0]:
            try:
                one.rows[number] = ray.get(task)
            except Exception as error:  # Ray's own, or one whose class it mixes with its own
                one.rows[number] = _dead(one.job, error)
            one.ended = one.ended or time.monotonic()
    whole = len(one.rows) == len(one.tasks)
    if not whole and (one.ended is None or time.monotonic() - one.ended < GRACE):
        return None
    if not whole and all(row.status == "passed" for row in one.rows.values()):
        return None  # the others are only slower
    return _merged(one.rows)


def _start(one: _Running, work: Callable[[Job], Row]) -> None:
    """One task for each process, in the bundles of the group."""
    world = one.job.processes

    def task(function: Callable[..., Any], number: int) -> Any:
        return ray.remote(max_calls=1, max_retries=0, **placed(one.group, number))(function)

    if world == 1:
        one.tasks.append(task(work, 0).remote(one.job))
        return
    address = task(free_address, 0).remote()  # on the node where rank 0 will be
    for number in range(world):
        one.tasks.append(task(_try_rank, number).remote(work, one.job, number, address))


def _try_rank(work: Callable[[Job], Row], job: Job, number: int, address: str) -> Row:
    """One process of several."""
    with (
        faults.sent(),
        distributed.session(address, number, job.processes, choose_device(job.options.device)),
    ):
        return work(job)


def _stop(one: _Running) -> None:
    """End what still runs, and give the resources back."""
    for number, task in enumerate(one.tasks):
        if number not in one.rows:
            ray.cancel(task, force=True)
    remove_placement_group(one.group)


def _dead(job: Job, error: Exception) -> Row:
    """The row of a process that gives none itself: it died, or met an error before it began."""
    stage = "starting"
    with suppress(OSError):
        stage = (job.place / "stage").read_text(encoding="utf-8")
    cause = met(error)
    if isinstance(cause, TransientFault):
        reason, trace = f"its worker process died (out of host memory?): {faults.first_line(error)}", ""
    else:
        sent = faults.relayed(cause)
        reason, trace = sent.text, sent.trace
    gone = faults.consequence(cause)
    return replace(job.row, status="failed", stage=stage, reason=reason, trace=trace, gone=gone)


def _merged(rows: dict[int, Row]) -> Row:
    """One row for all processes: rank 0's with the memory of all, or that of a failure."""
    failed = [row for row in rows.values() if row.status == "failed"]
    if failed:  # the others failed because of one, which did not only miss another
        return next((row for row in failed if not row.gone), failed[0])
    device = [row.device_mib for row in rows.values() if row.device_mib is not None]
    host = [row.host_mib for row in rows.values() if row.host_mib is not None]
    return replace(rows[0], device_mib=max(device, default=None), host_mib=sum(host) if host else None)
