"""Ray Tune as the hands of a search: the study decides, Tune places and starts again. Imports Ray."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler

from harness import devices, faults, interruption
from harness.cluster.session import Resources
from harness.cluster.tune import REPORT_SECONDS, Supplier, Worker, fit, tried
from harness.search.objective import Event, Job, events
from harness.search.study import Study


class Actor(Worker):
    """Runs trials of a search."""

    def setup(self, config: dict) -> None:
        """Note the trial; it begins with its first step."""
        interruption.leave_to_driver()
        self.work = events(config["job"], again=True)  # in another process

    def step(self) -> dict[str, Any]:
        """Go on for a while, or up to a measurement, so that no step is taken before it is judged."""
        until = time.monotonic() + REPORT_SECONDS
        last = None
        try:
            for event in self.work:
                last = event
                if event.values or time.monotonic() > until:
                    break
        except BaseException as error:
            if interruption.asked(error):
                raise
            if faults.transient(error):  # any other class may not survive the way
                raise faults.TransientFault(faults.first_line(error)) from error
            return {"event": Event(ended="failed", reason=faults.first_line(error)), "done": True}
        return {"event": last} if last is not None else {"event": Event(), "done": True}


class Suggestions(Supplier):
    """Tune's view of the study.

    Args:
        study: decides what comes next.
        gpus: booked for each trial.
    """

    def __init__(self, study: Study, gpus: float) -> None:
        super().__init__()  # no metric: the study reads events
        self.study, self.gpus = study, gpus
        self.jobs: dict[str, Job] = {}

    def suggest(self, trial_id: str) -> Any:
        """The next trial."""
        job = self.study.next()
        if job is None:
            return Supplier.FINISHED
        self.jobs[trial_id] = job
        device = devices.of_workers(job.options.device, self.gpus)
        return {"job": replace(job, options=replace(job.options, device=device))}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Tell the study of an end that no event has told it of; of a worker's, :class:`Obituary` does."""
        if not error and result and "event" in result:
            self.study.absorb(self.jobs[trial_id].number, result["event"])


class Obituary(tune.Callback):
    """Tells the study why a trial was given up whose worker died, or met a fault, too often.

    Args:
        study: hears of it.
        retries: how often Tune starts a trial again.
    """

    def __init__(self, study: Study, retries: int) -> None:
        self.study, self.retries = study, retries

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks to disk; nobody reads that."""
        return {}

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Its last words."""
        ended = Event(ended="failed", reason=tried(self.retries, trial))
        self.study.absorb(trial.config["job"].number, ended)


class Judge(FIFOScheduler):
    """Stops a trial when the study says so.

    Args:
        study: decides.
        progress: hears of every event.
    """

    def __init__(self, study: Study, progress: Callable[[Job, Event], None]) -> None:
        super().__init__()
        self.study, self.progress = study, progress

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its scheduler to disk; a terminal cannot be pickled."""
        return {}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        """Whether the trial goes on."""
        job, event = trial.config["job"], result["event"]
        self.progress(job, event)
        return self.STOP if self.study.absorb(job.number, event) else self.CONTINUE


def run_search(study: Study, resources: Resources, progress: Callable[[Job, Event], None]) -> None:
    """Run the trials of a study on the Ray that is up.

    Args:
        study: what is left of it is run.
        resources: of each trial.
        progress: hears of every event.
    """
    fits = [
        ray.cluster_resources().get(kind, 0) // wanted
        for kind, wanted in (("CPU", resources.cpus_per_process), ("GPU", resources.gpus_per_process))
        if wanted
    ]
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    fit(
        Actor,
        {"cpu": resources.cpus_per_process, "gpu": resources.gpus_per_process},
        Suggestions(study, resources.gpus_per_process),
        resources.retries,
        [Obituary(study, resources.retries)],
        scheduler=Judge(study, progress),
        num_samples=study.left,
        # Never ask for a suggestion before there is room for it: it would know less.
        max_concurrent_trials=resources.max_concurrent or max(int(min(fits, default=1)), 1),
    )
