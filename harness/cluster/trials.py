"""Trials as Ray Tune trainables. Importing this module imports Ray."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ray import tune

from harness import faults, interruption
from harness.cluster.ranks import Ranks, bundles
from harness.cluster.session import Resources
from harness.cluster.tune import REPORT_SECONDS, Supplier, Worker, all_words, fit, last_words, tried
from harness.errors import UserError
from harness.faults import TransientFault
from harness.files import write_json
from harness.reading import read_json
from harness.runs.execution import Rounds, guarded, kept, record_error
from harness.runs.running import record_failure, run
from harness.runs.trial import Options, Outcome, Prepared, Trial, prepare
from harness.store.remote import reported
from harness.training import Status


@dataclass(frozen=True)
class Job:
    """A trial, as a worker receives it.

    Attributes:
        number: in the order of starting.
        trial: which.
        options: where and how it runs.
        processes: that share its groups.
        dependents: trials that train on its labels.
        run: the run that it belongs to; no other has this name.
    """

    number: int
    trial: Trial
    options: Options
    processes: int
    dependents: tuple[Trial, ...]
    run: str


class GivenUp(Exception):
    """An earlier attempt of the same run has found that a trial cannot succeed; says why, as recorded."""


#: Word, in a trial's folder, that an attempt left which could not report that it has failed.
WORD = "given-up.json"


class Steps:
    """A trial in pieces of about :data:`REPORT_SECONDS`, as a Tune trainable reports them.

    Args:
        job: the trial, where and how it runs, and the trials that train on its labels.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.prepared = prepare(job.trial, job.options)
        self._heed_earlier()
        self.ranks = Ranks(self.prepared, self._give_up) if self.prepared.processes > 1 else None
        self.work: Iterator[Status] = self._work()
        self.status, self.clock = Status(0, self.prepared.steps, 0.0), time.monotonic()
        self.begun = False

    def _give_up(self, error: BaseException) -> None:
        """Record a failure, for an attempt whose process must end and cannot report it."""
        reason = record_error(self.prepared, error)
        write_json(self.prepared.folder / WORD, {"run": self.job.run, "reason": reason})

    def _heed_earlier(self) -> None:
        word = self.prepared.folder / WORD
        if not word.exists():
            return
        with suppress(OSError, UserError):
            found = read_json(word)
            word.unlink()
            if isinstance(found, dict) and found.get("run") == self.job.run:
                raise GivenUp(found.get("reason", ""))

    def _work(self) -> Iterator[Status]:
        """Train, evaluate, record; then write labels for those that train on them, while the GPU is here."""
        try:
            yield from run(self.prepared)
        except GeneratorExit:
            raise
        except BaseException as error:
            cause = self.ranks.cause(error) if self.ranks is not None else error
            if cause is error:
                raise
            raise cause from error
        self.stop()
        for trial in self.job.dependents:
            yield Status(0, self.prepared.steps, 0.0, note="writing labels")
            with suppress(Exception):  # the driver meets it again, and reports it
                prepare(trial, self.job.options)

    def stop(self) -> None:
        """End the other processes of the trial."""
        if self.ranks is not None:
            self.ranks.stop()

    def piece(self) -> tuple[dict[str, Any], bool]:
        """Go on for a while; returns the report, whose last says ``done``, and whether the GPU is lost."""
        until = time.monotonic() + REPORT_SECONDS
        ended, self.begun = False, True

        def work() -> None:
            nonlocal ended
            for status in self.work:
                self.status = status.after(self.status)
                if time.monotonic() > until:
                    return
            ended = True

        # A transient fault ends this process: Tune starts the trial again in a new one.
        try:
            other = guarded(self.prepared, work, again=True)
        except Exception as error:
            self.stop()
            raise TransientFault(faults.first_line(error)) from error  # any other may not survive the way
        except BaseException:
            self.stop()
            raise
        ended = ended or other is not None
        self.begun = not ended
        if ended:
            self.stop()
        report = _report(self.status, ended, time.monotonic() - self.clock, other)
        return report, other is not None and other.lost

    def leave(self) -> None:
        """Let a trial that stands between two pieces write a checkpoint."""
        if self.begun:
            interruption.note()
            try:
                next(self.work, None)
            except KeyboardInterrupt:
                pass
            finally:
                interruption.forget()
        self.stop()


def _report(
    status: Status | None, done: bool, wall: float, other: Outcome | None = None, trace: str = ""
) -> dict[str, Any]:
    """What a worker tells the driver; ``other`` is an outcome that is not ``finished``."""
    ended = None if other is None else (other.status, other.reason, trace)
    return {"status": status, "done": done, "wall": wall, "other": ended}


class Actor(Worker):
    """Runs trials."""

    #: Whether this process can no longer use its GPU.
    lost = False

    def setup(self, config: dict) -> None:
        """Note the trial; it is prepared with its first step."""
        interruption.leave_to_driver()
        self.steps: Steps | None = None
        self.job: Job = config["job"]

    def step(self) -> dict[str, Any]:
        """Go on for about :data:`REPORT_SECONDS`."""
        if self.steps is None:
            if self.lost:
                raise TransientFault("this process has lost its GPU; another one takes the trial")
            try:
                self.steps = Steps(self.job)
            except BaseException as error:
                if interruption.asked(error):
                    raise
                if faults.transient(error):
                    raise TransientFault(faults.first_line(error)) from error
                return self._refused(error)
        report, self.lost = self.steps.piece()
        return report

    def _refused(self, error: BaseException) -> dict[str, Any]:
        """A trial that could not begin; the driver records it, which knows what it is."""
        if isinstance(error, GivenUp):
            return _report(None, True, 0.0, Outcome(self.job.trial, "failed", str(error)))
        sent = faults.relayed(error)
        self.lost = sent.kind.poison
        return _report(None, True, 0.0, Outcome(self.job.trial, "failed", sent.text), sent.trace)

    def cleanup(self) -> None:
        """The run is interrupted, or there is no other trial to take."""
        if self.steps is not None:
            self.steps.leave()


class Queue(Supplier):
    """Gives Tune the next trial when there is room for one.

    One trial of each recipe comes first; then those that take longest, as far as that is known from the
    first ones, so that no long trial runs alone at the end.

    Args:
        rounds: knows which trials wait for others.
        gpus: booked for each process of a trial.
    """

    def __init__(self, rounds: Rounds, gpus: float = 0.0) -> None:
        super().__init__()  # no metric: nothing is optimised
        self.rounds, self.gpus = rounds, gpus
        self.waiting: dict[Trial, Prepared] = {}
        #: Trials by number.
        self.begun: list[Prepared] = []
        self.run = uuid.uuid4().hex
        self._names: set[str] = set()
        self.open = 0
        self._seconds: dict[str, float] = {}
        self._pace = 1.0  # seconds per unit of cost

    def add(self, prepared: Prepared) -> None:
        """A trial can run now."""
        self.waiting[prepared.trial] = prepared

    def ended(self, prepared: Prepared, seconds: float) -> None:
        """A trial has ended, after some seconds of work (0 where that says nothing)."""
        self.open -= 1
        if seconds:
            self._seconds[prepared.trial.name] = seconds  # the last is as good as a mean
            self._pace = seconds / prepared.cost

    def suggest(self, trial_id: str) -> Any:
        """The next trial; None while none can run yet."""
        if not self.waiting:
            return None if self.open else Supplier.FINISHED
        chosen = max(self.waiting.values(), key=self._priority)
        del self.waiting[chosen.trial]
        dependents = self.rounds.dependents.get(chosen.trial, [])
        job = Job(
            len(self.begun), chosen.trial, chosen.options, chosen.processes, tuple(dependents), self.run
        )
        self.begun.append(chosen)
        self._names.add(chosen.trial.name)
        self.open += 1
        return {"job": job}

    def _priority(self, prepared: Prepared) -> tuple[bool, float]:
        name = prepared.trial.name
        feeds = bool(self.rounds.dependents.get(prepared.trial))
        seconds = self._seconds.get(name, prepared.cost * self._pace)
        return feeds or name not in self._names, seconds


class Watch(tune.Callback):
    """Passes Tune's events to the display and to the rounds, and trials that become ready to the queue.

    Args:
        queue: trials by number.
        rounds: what takes outcomes, and shows them.
        retries: how often a dead worker's trial is started again.
    """

    def __init__(self, queue: Queue, rounds: Rounds, retries: int) -> None:
        self.queue, self.rounds, self.retries = queue, rounds, retries
        self.display = rounds.display
        self._ended: set[int] = set()

    def admit(self, prepared: Sequence[Prepared]) -> None:
        """Trials that can run now; what is done already ends at once."""
        for one in prepared:
            self.display.add(one)
            if one.done:
                outcome = kept(one)
                self.display.end(one, outcome)
                self.admit(self.rounds.take(outcome))
            else:
                self.queue.add(one)

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks to disk; a terminal cannot be pickled and is not needed there."""
        return {}

    def _end(self, number: int, outcome: Outcome) -> None:
        if number in self._ended:
            return
        self._ended.add(number)
        one = self.queue.begun[number]
        self.display.end(one, outcome)
        self.queue.ended(one, outcome.seconds)
        self.admit(self.rounds.take(outcome))

    def _look(self, number: int) -> None:
        """See what a trial has left that may have run on another node."""
        with reported():
            self.queue.begun[number].store.pull(self.queue.begun[number].folder)

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        """Progress, or the last report of a trial."""
        if "status" not in result:
            return
        number = trial.config["job"].number
        own = self.queue.begun[number].trial
        if result["done"]:
            self._look(number)
        if result["other"] is not None:
            status, reason, trace = result["other"]
            one = self.queue.begun[number]
            if result["status"] is None and status == "failed" and not _recorded(one, reason):
                reason = record_failure(one, reason, trace)  # the worker could not prepare it
            self._end(number, Outcome(own, status, reason))
        elif result["done"]:
            self._end(number, Outcome(own, "finished", seconds=result["wall"]))
        else:
            self.display.update(own, result["status"])

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Let go of what Tune keeps of every metric that was ever reported; nobody asks for it."""
        trial.metric_analysis.clear()
        trial.metric_n_steps.clear()

    def on_trial_recover(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """A trial that is started again."""
        own = self.queue.begun[trial.config["job"].number].trial
        self.display.say(f"again    {own}: {last_words(trial)}")

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """A trial whose worker died too often; nobody else can record it."""
        number = trial.config["job"].number
        one = self.queue.begun[number]
        self._look(number)
        fault = TransientFault(tried(self.retries, trial))
        self._end(number, Outcome(one.trial, "failed", record_error(one, fault, all_words(trial))))


def _recorded(prepared: Prepared, reason: str) -> bool:
    """Whether a failure stands in the record."""
    try:
        record = prepared.record
        return record is not None and record.data.get("reason") == reason
    except Exception:  # whatever became of the file
        return False


def run_trials(prepared: Sequence[Prepared], resources: Resources, rounds: Rounds) -> None:
    """Run trials on the Ray that is up, and those that become ready because of them.

    Args:
        prepared: what can run now.
        resources: of each process of a trial.
        rounds: takes outcomes, tells what has become ready, and shows both.
    """
    queue = Queue(rounds, resources.gpus_per_process)
    watch = Watch(queue, rounds, resources.retries)
    watch.admit(prepared)
    if not queue.waiting:
        return

    def request(config: dict) -> Any:
        job: Job = config["job"]
        return bundles(job.processes, resources.cpus_per_process, resources.gpus_per_process)

    most = resources.max_concurrent
    fit(Actor, request, queue, resources.retries, [watch], num_samples=-1, max_concurrent_trials=most)
