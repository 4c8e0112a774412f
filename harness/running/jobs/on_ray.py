"""Jobs on Ray Tune. Importing this module imports Ray.

Tune places jobs, starts them again and counts. Its own checkpoints and states stay empty: jobs keep what they
need on disk, and what is to be done next follows from that.
"""

from __future__ import annotations

import logging
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from harness.basics import interruption
from harness.engine import faults
from harness.engine.faults import TransientFault
from harness.running.jobs.job import Event, Job, Resources, Source, attempt
from harness.running.jobs.ranks import Ranks, bundles, word

#: Seconds between two reports of a running job.
REPORT_SECONDS = 1.0


class Worker(tune.Trainable):
    """A process that does one job after another, in pieces of about :data:`REPORT_SECONDS`."""

    #: Whether this process can no longer use its GPU.
    lost = False
    job: Job
    events: Iterator[Event] | None = None

    def setup(self, config: dict) -> None:
        """Note the job; it begins with the first step."""
        interruption.leave_to_driver()
        self._let_go()
        self.job, self.gpus, self.run = config["job"], config["gpus"], config["run"]
        self.last = Event()

    def step(self) -> dict[str, Any]:
        """Go on for a while, or up to a measurement, so that no step is taken before it is judged."""
        if self.lost:
            raise TransientFault("this process has lost its GPU; another one takes the job")
        if self.events is None:
            self.events = attempt(self.job, self._work(), again=True)
        until = time.monotonic() + REPORT_SECONDS
        try:
            for event in self.events:
                self.last = event.after(self.last)
                if event.ended or event.values or time.monotonic() > until:
                    break
        except Exception as error:  # a transient fault ends this process: Tune starts the job in another
            raise TransientFault(
                faults.first_line(error)
            ) from error  # any other class may not survive the way
        self.lost = self.last.lost
        if self.last.ended:
            self._let_go()
        return {"event": self.last, "done": bool(self.last.ended)}

    def _work(self) -> Iterator[Event]:
        """The work of the job, with other processes where it is for several."""
        device = self.job.begin(self.gpus)
        if told := word(self.job, self.run):
            yield told
        elif self.job.processes > 1:
            yield from Ranks(self.job, device, self.gpus, self.run).work()
        else:
            yield from self.job.work()

    def _let_go(self) -> None:
        events, self.events = self.events, None
        if events is not None:
            events.close()  # type: ignore[attr-defined]

    def reset_config(self, new_config: dict) -> bool:
        """Take another job."""
        self.setup(new_config)
        return True

    def cleanup(self) -> None:
        """The run is interrupted, the job was stopped, or there is no other to do. A job that stands between
        two steps of training writes a checkpoint; one that waits for a verdict was told not to go on."""
        if self.events is not None and self.last.status is not None and not self.last.values:
            interruption.note()
            try:
                next(self.events, None)
            except KeyboardInterrupt:
                pass
            finally:
                interruption.forget()
        self._let_go()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: jobs write their own."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: jobs find their own."""


class _Supplier(Searcher):
    """Gives Tune one job after another; nothing is optimised by Tune itself.

    Args:
        source: of the jobs.
        first: a job that it has given already.
        gpus: booked for each process of a job.
    """

    def __init__(self, source: Source, first: Job, gpus: float) -> None:
        super().__init__()  # no metric: sources read events
        self.source, self.gpus, self.run = source, gpus, uuid.uuid4().hex
        self._given_back: list[Job] = [first]
        self.open: dict[int, Job] = {}
        #: Whether the source has been asked to the end.
        self.exhausted = False

    def suggest(self, trial_id: str) -> Any:
        """The next job; None while there is none, but may be when another has ended."""
        job = self._given_back.pop() if self._given_back else self.source.next()
        if job is None:
            self.exhausted = not self.open
            return Searcher.FINISHED if self.exhausted else None
        self.open[job.number] = job
        return {"job": job, "gpus": self.gpus, "run": self.run}

    def take(self, number: int, event: Event) -> bool:
        """Hand an event to the source; True where the job shall not go on."""
        job = self.open.get(number)
        if job is None:
            return True
        if event.ended:
            del self.open[number]
        stop = self.source.take(job, event)
        if stop:
            self.open.pop(number, None)
        return stop

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher to disk; nobody reads that."""
        return {}

    def set_search_properties(self, metric: Any, mode: Any, config: dict, **spec: Any) -> bool:
        """Nothing to set."""
        return True

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Nothing: :class:`_Listener` hears of it."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the state is on disk already."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the state is on disk already."""


class _Verdicts(FIFOScheduler):
    """Stops a job when its source says so.

    Args:
        supplier: knows the source.
    """

    def __init__(self, supplier: _Supplier) -> None:
        super().__init__()
        self.supplier = supplier

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its scheduler to disk; a terminal cannot be pickled."""
        return {}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict) -> str:
        """Whether the job goes on; Tune does not ask after its last report."""
        stop = self.supplier.take(trial.config["job"].number, result["event"])
        return self.STOP if stop else self.CONTINUE


class _Listener(tune.Callback):
    """Tells the source of ends, and of workers that died.

    Args:
        supplier: knows the source.
        retries: how often a job is started again.
    """

    def __init__(self, supplier: _Supplier, retries: int) -> None:
        self.supplier, self.retries = supplier, retries

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks to disk; a terminal cannot be pickled and is not needed there."""
        return {}

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        """The last report of a job."""
        if result.get("done") and "event" in result:
            self.supplier.take(trial.config["job"].number, result["event"])

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Let go of what Tune keeps of every metric that was ever reported; nobody asks for it."""
        trial.metric_analysis.clear()
        trial.metric_n_steps.clear()

    def on_trial_recover(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """A job that is started again."""
        if (job := self.supplier.open.get(trial.config["job"].number)) is not None:
            self.supplier.source.again(job, last_words(trial))

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """A job whose worker died, or met a fault, too often; nobody else can write that down."""
        job = self.supplier.open.get(trial.config["job"].number)
        if job is None:
            return
        fault = TransientFault(told_attempts(self.retries, trial))
        event = word(job, self.supplier.run) or self.supplier.source.gave_up(job, fault, all_words(trial))
        self.supplier.take(job.number, event)


def run_on_ray(source: Source, first: Job, resources: Resources) -> None:
    """Do jobs on the Ray that is up, until their source has none and all have ended.

    Args:
        source: of the jobs.
        first: a job that it has given already.
        resources: of each process of a job.

    Raises:
        KeyboardInterrupt: the jobs were interrupted.
    """
    each = (resources.cpus_per_process, resources.gpus_per_process)
    supplier = _Supplier(source, first, resources.gpus_per_process)
    most = resources.max_concurrent or (None if source.ahead else _room(resources, source.processes))
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="wsss-tune-", ignore_cleanup_errors=True) as scratch:
        tune.Tuner(
            tune.with_resources(Worker, lambda config: bundles(config["job"].processes, *each)),
            tune_config=tune.TuneConfig(
                search_alg=supplier,
                scheduler=_Verdicts(supplier),
                num_samples=-1,
                max_concurrent_trials=most,
                reuse_actors=source.reused,
                trial_name_creator=_short_name,
                trial_dirname_creator=_short_name,
            ),
            run_config=tune.RunConfig(
                name="wsss",
                storage_path=scratch,
                verbose=0,
                callbacks=[_Listener(supplier, resources.retries)],
                failure_config=tune.FailureConfig(max_failures=resources.retries),
            ),
        ).fit()
    if supplier.open or not supplier.exhausted:  # Tune swallows Ctrl-C and returns
        raise interruption.error()


def _room(resources: Resources, processes: int) -> int:
    """How many jobs of some processes find room at a time."""
    there = ray.cluster_resources()
    wanted = {"CPU": resources.cpus_per_process, "GPU": resources.gpus_per_process}
    fits = [there.get(kind, 0) // (each * processes) for kind, each in wanted.items() if each]
    return max(int(min(fits, default=1)), 1)


def _short_name(trial: Any) -> str:
    return f"job-{trial.config['job'].number}"


def all_words(trial: Any) -> str:
    """What Tune has noted about the failed attempts of a job."""
    try:
        return faults.printable_lines(Path(trial.error_file).read_text(encoding="utf-8", errors="replace"))
    except (OSError, TypeError):
        return "its worker died"


def last_words(trial: Any) -> str:
    """Why the last attempt of a job failed, in one line: the error itself, or how its worker died."""
    try:
        error = trial.get_pickled_error()
    except Exception:  # it may be of a class that cannot be made again
        error = None
    if isinstance(getattr(error, "cause", None), BaseException):
        return faults.first_line(error.cause).removeprefix("TransientFault: ")
    last = faults.printable(all_words(trial).rpartition("Failure # ")[2])
    lines = [line.strip() for line in last.splitlines()[1:] if line.strip()]
    memory = [line for line in lines[1:] if "memory" in line.lower()]
    return " ".join([*lines[:1], *memory[:1]]) or "its worker died"


def told_attempts(retries: int, trial: Any) -> str:
    """How often a job was tried, and why it failed in the end."""
    times = "once" if retries == 0 else f"{retries + 1} times"
    return f"tried {times}: {last_words(trial)}"
