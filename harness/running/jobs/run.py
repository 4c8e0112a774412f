"""The jobs of a source, done one after another in this process, or on Ray."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from harness.basics import interruption
from harness.engine import faults
from harness.running.jobs.apart import apart
from harness.running.jobs.job import Event, Job, Resources, Source, attempt
from harness.running.jobs.session import ray_session


def run_jobs(source: Source, resources: Resources | None, retries: int = faults.RETRIES) -> None:
    """Do all jobs of a source.

    Args:
        source: of the jobs.
        resources: for Ray, which is started, or joined, with the first job; None does one job after another
            in this process.
        retries: how often a job that meets a transient fault is started again in this process.

    Raises:
        UserError: Ray cannot start, or one job asks for more than there is.
        KeyboardInterrupt: the jobs were interrupted;
            :class:`harness.basics.interruption.Terminated` by SIGTERM.
    """
    with interruption.handled(), ExitStack() as session:
        here = Here(source, retries)
        while True:
            job = source.next()
            if job is None:
                if not source.wait():
                    return
            elif resources is None:
                here.do(job)
            else:
                session.enter_context(ray_session(resources, source.processes))  # once for all
                from harness.running.jobs.on_ray import run_on_ray  # imports Ray

                run_on_ray(source, job, resources)


class Here:
    """Does jobs in this process; in others, one at a time, when this one has lost its GPU.

    Args:
        source: hears of them.
        retries: how often a job that meets a transient fault is started again.
    """

    def __init__(self, source: Source, retries: int) -> None:
        self.source, self.retries, self.lost = source, retries, False

    def do(self, job: Job) -> None:
        """Do a job, whatever becomes of it."""
        interruption.stop_if_noted()
        for left in range(self.retries, -1, -1):
            fault = self._attempt(job, again=left > 0)
            if fault is None:
                return
            self.lost = self.lost or faults.poisons(fault)
            self.source.again(job, faults.first_line(fault))

    def _attempt(self, job: Job, *, again: bool) -> Exception | None:
        """One attempt; the transient fault that another one may not meet."""
        work = apart(job) if self.lost else _begun(job)
        events = attempt(job, work, again=again)
        try:
            while True:
                try:
                    event = next(events)
                except Exception as fault:
                    if not faults.transient(fault):
                        raise
                    return fault
                self.lost = self.lost or event.lost
                if self.source.take(job, event) or event.ended:
                    return None
        finally:
            events.close()  # type: ignore[attr-defined]


def _begun(job: Job) -> Iterator[Event]:
    job.begin()
    yield from job.work()
