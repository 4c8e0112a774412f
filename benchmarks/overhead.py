"""What the harness costs beside the work: over a bare loop, for one more trial, and for a thousand.

``python benchmarks/overhead.py`` prints all figures (some 20 minutes on an idle machine of two cores);
``minute``, ``slope`` or ``thousand`` after it measure one. Everything runs on Ray as ``wsss run`` does by
default, in processes of their own, with one thread each.

- minute: wall seconds of trials of about a minute (training, evaluation of 100 pictures, record,
  checkpoints every 60 s), from the end of one to the end of the next in the same session, over a plain
  loop of the same steps with the same loader that scores the same pictures. Machines are not steady: two
  runs of the same loop, one after the other, differ by far more than what is to be found. So the two take
  turns of about a second in the same worker process, and each one's turns are summed. Processor seconds
  of all other processes of the run (driver, Ray's own) are shown beside it: with a core to spare they
  cost nothing, without one they add to the overhead. Ray's start, once for a session, is left out.
- slope: wall seconds of ``wsss run`` with many trials of no work less those with few, for each trial,
  one at a time; and the median between the ends of two. No work: one step of two pictures of 32 pixels,
  and one picture to score.
- thousand: a thousand of them, as many at a time as there are cores, then the leaderboard; memory of the
  driver over time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from harness.running.trials.trial import Prepared

#: A recipe that most of the suite resembles.
RECIPE = "agmm/mini-scribble"
#: Overrides that leave nothing to do but what every trial needs.
NO_WORK = {
    "dataset": "tiny",
    "crop": 32,
    "batch.per_group": 2,
    "schedule.steps": 1,
}


def settings(values: dict[str, object]) -> list[str]:
    """Overrides as command-line arguments."""
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


def tiny_data(folder: Path) -> str:
    """A data set of two training pictures and one to score; returns its ``--data-root``."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    for name in ("a", "b", "c"):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / "images" / f"{name}.png")
        mask = np.repeat(np.arange(7, dtype=np.uint8), 5)[:32]
        Image.fromarray(np.tile(mask, (32, 1))).save(folder / "masks" / f"{name}.png")
    (folder / "train.txt").write_text("a\nb\n")
    (folder / "val.txt").write_text("c\n")
    names = '", "'.join(("ground", "one", "two", "three", "four", "five", "six"))
    (folder / "dataset.toml").write_text(f'classes = ["{names}"]\nbackground = "ground"\n')
    return f"tiny={folder}"


@dataclass
class Run:
    """A command that has ended.

    Attributes:
        seconds: of the wall.
        memory: (time of the clock, resident MiB of its process), once a second.
        processor: (time of the clock, seconds of the processor by process), its children's too.
        output: what it printed.
    """

    seconds: float
    memory: list[tuple[float, float]]
    processor: list[tuple[float, dict[int, float]]]
    output: str

    def processor_seconds(self, start: float, end: float) -> list[float]:
        """What each process took between two times of the clock, the busiest first."""
        times = [time for time, _ in self.processor]

        def between(pid: int) -> float:
            # A process that has ended keeps what it had at the last look.
            values = np.maximum.accumulate([known.get(pid, 0.0) for _, known in self.processor])
            return float(np.interp(end, times, values) - np.interp(start, times, values))

        pids = {pid for _, known in self.processor for pid in known}
        return sorted(map(between, pids), reverse=True)


def family(pid: int) -> dict[int, float]:
    """Processor seconds of a process and all that it and its children have started.

    Ray's own processes leave the family; they are known by the name of its session, which ends in ``_<pid>``.
    """
    own = re.compile(rf"/session_[^/ ]*_{pid}\b".encode())
    parents: dict[int, tuple[int, float]] = {}
    tick = os.sysconf("SC_CLK_TCK")
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = file.read_text().rpartition(")")[2].split()  # proc(5): from the third field on
        except OSError:
            continue
        parents[int(file.parent.name)] = int(fields[1]), (int(fields[11]) + int(fields[12])) / tick
    found = {pid}
    for other in parents:
        with contextlib.suppress(OSError):
            if own.search(Path(f"/proc/{other}/cmdline").read_bytes()):
                found.add(other)
    while more := {p for p, (parent, _) in parents.items() if parent in found} - found:
        found |= more
    return {p: parents[p][1] for p in found if p in parents}


def command(*arguments: str) -> Run:
    """Run a command with one thread; raises when it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    start = time.monotonic()
    memory: list[tuple[float, float]] = []
    processor: list[tuple[float, dict[int, float]]] = []
    process = subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )

    def watch() -> None:
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status")
            try:
                line = next(x for x in status.read_text().splitlines() if x.startswith("VmRSS"))
            except (OSError, StopIteration):
                return
            memory.append((time.time(), int(line.split()[1]) / 1024))
            processor.append((time.time(), family(process.pid)))
            time.sleep(1)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    out, err = process.communicate()
    seconds = time.monotonic() - start
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{err[-2000:]}")
    return Run(seconds, memory, processor, out)


def wsss(*arguments: str) -> Run:
    """Run a ``wsss`` command in a process of its own."""
    return command(sys.executable, "-m", "harness.cli.main", *arguments)


# --- over a bare loop --------------------------------------------------------------------------------


def bare_loop(prepared: Prepared) -> Iterator[int]:
    """The loop that anybody would write; yields after each step. Scoring comes after the last one."""
    from harness.engine.loader import StepSampler, TrainingSet, training_loader
    from harness.engine.networks import build_method
    from harness.engine.training import Progress, create_optimiser, lr_factor
    from harness.evaluation import evaluator
    from harness.recipes import protocols

    recipe, dataset, steps = prepared.resolved.recipe, prepared.dataset, prepared.steps
    method = build_method(prepared.resolved, prepared.device, 0)
    optimiser = create_optimiser(method.parameter_groups(), recipe.optimiser)
    data = TrainingSet(dataset, dataset.ids(recipe.train_split), prepared.labels, recipe, 0, method.views())
    sampler = StepSampler(len(data), recipe.batch.size, steps, 0)
    loader = training_loader(data, sampler, recipe.batch.groups, workers=0, pin=False)
    method.train()
    for step, groups in enumerate(loader):
        for group in optimiser.param_groups:
            group["lr"] = recipe.optimiser.lr * group["lr_scale"] * lr_factor(recipe.schedule, step, steps)
        optimiser.zero_grad()
        for batch in (packed.to(prepared.device) for packed in groups):
            terms = method(batch, Progress(step, steps, sampler.steps_per_epoch))
            (sum(terms.values()) / len(groups)).backward()
        optimiser.step()
        method.after_step(Progress(step, steps, sampler.steps_per_epoch))
        yield step + 1
    total = np.zeros((3, dataset.info.num_classes), np.int64)
    for spec in recipe.evaluation:
        found = evaluator.predictions(method, dataset, spec.split, protocols.protocol(spec.protocol))
        for _, prediction, mask in found:
            total += np.stack(evaluator.count(prediction, mask, dataset.info.num_classes))


def bare(steps: int) -> float:
    """Seconds of the bare loop, in this process."""
    import torch

    from harness.running.trials.trial import Options, Trial, prepare

    torch.set_num_threads(1)
    prepared = prepare(Trial(RECIPE, 0, {"schedule.steps": steps}), Options(device="cpu"))
    clock = time.monotonic()
    for _ in bare_loop(prepared):
        pass
    return time.monotonic() - clock


def in_turns(steps: int, trials: int, place: Path) -> None:
    """Run trials as ``wsss run`` does, each in turn with a bare loop of its steps, in this process and
    Ray's; leaves ``<seed>.json`` for each: when it ended, and the seconds of the bare loop's turns."""
    from harness.running.jobs import on_ray
    from harness.running.jobs.job import Resources
    from harness.running.trials.execution import execute
    from harness.running.trials.trial import Options, Trial

    class Both(on_ray.Worker):
        """After every turn of the trial (about a second) the loop makes the steps that it is behind."""

        def setup(self, config: dict) -> None:
            super().setup(config)
            self.loop: Iterator[int] | None = None
            self.seconds = 0.0

        def step(self) -> dict[str, Any]:
            report = super().step()
            clock = time.monotonic()
            prepared, status = self.job.ready, report["event"].status
            if self.loop is None:
                self.loop = bare_loop(prepared)
            reached = prepared.steps if status.note else status.step
            for step in self.loop:
                if step >= reached and not report["done"]:
                    break
            self.seconds += time.monotonic() - clock
            if report["done"]:
                file = place / f"{prepared.trial.seed}.json"
                file.write_text(json.dumps({"ended": time.time(), "bare": self.seconds}))
            return report

    on_ray.Worker = Both  # type: ignore[misc]
    execute(
        [Trial(RECIPE, seed, {"schedule.steps": steps}) for seed in range(trials)],
        Options(results=place / "results", device="cpu"),
        Resources(max_concurrent=1),
    )


def minute(seconds: float = 60.0, trials: int = 5) -> dict[str, float]:
    """The harness over a bare loop.

    Args:
        seconds: about how long the bare loop takes.
        trials: how many are measured, after a first one that is not.
    """
    this = (sys.executable, __file__)
    first = 60
    rate = first / float(command(*this, "bare", "--steps", str(first)).output.split()[-1])
    steps = max(round(rate * seconds / 10) * 10, 10)
    with tempfile.TemporaryDirectory() as place:
        run = command(*this, "in_turns", "--steps", str(steps), "--trials", str(trials + 1), "--out", place)
        rows = [json.loads((Path(place) / f"{n}.json").read_text()) for n in range(trials + 1)]
    rows.sort(key=lambda row: row["ended"])
    ends = np.array([row["ended"] for row in rows])
    loops = np.array([row["bare"] for row in rows[1:]])
    ours = np.diff(ends) - loops
    others = sum(run.processor_seconds(ends[0], ends[-1])[1:])
    return {
        "steps": steps,
        "trials": trials,
        "bare_seconds": float(loops.mean()),
        "trial_seconds": float(ours.mean()),
        "overhead": float(ours.sum() / loops.sum() - 1),
        "overhead_lowest": float((ours / loops).min() - 1),
        "overhead_highest": float((ours / loops).max() - 1),
        "other_processes": float(others / np.diff(ends).sum()),
    }


def times_of_records(results: Path) -> np.ndarray:
    """When trials ended, in order."""
    return np.sort([file.stat().st_mtime for file in results.rglob("record.json")])


# --- one more trial, and a thousand ------------------------------------------------------------------


def no_work(trials: int, data: str, results: Path, *options: str) -> Run:
    """A run of trials without work."""
    return wsss(
        *("run", RECIPE, "--seeds", str(trials), "--device", "cpu", "--data-root", data),
        *("--results", str(results), *settings(NO_WORK), *options),
    )


def slope(few: int = 5, many: int = 105, rounds: int = 2) -> dict[str, float]:
    """Seconds for each additional trial."""
    walls: dict[int, list[float]] = {few: [], many: []}
    between: list[float] = []
    with tempfile.TemporaryDirectory() as place:
        data = tiny_data(Path(place) / "data")
        for number in range(rounds):
            for trials in (few, many):
                results = Path(place) / f"{number}-{trials}"
                walls[trials].append(no_work(trials, data, results, "--max-concurrent", "1").seconds)
            between.append(float(np.median(np.diff(times_of_records(results)))))
    best = {trials: min(seconds) for trials, seconds in walls.items()}
    return {
        "few": few,
        "few_seconds": best[few],
        "many": many,
        "many_seconds": best[many],
        "seconds_per_trial": (best[many] - best[few]) / (many - few),
        "median_between_ends": min(between),
    }


def thousand(trials: int = 1000) -> dict[str, float]:
    """Trials without work from nothing to the leaderboard."""
    with tempfile.TemporaryDirectory() as place:
        data = tiny_data(Path(place) / "data")
        results = Path(place) / "results"
        run = no_work(trials, data, results)
        ends = times_of_records(results)
        gather = wsss("leaderboard", "--results", str(results), "--out", str(Path(place) / "reports"))
        written = len(list((Path(place) / "reports").iterdir()))
    times, sizes = (np.array(column) for column in zip(*run.memory, strict=True))
    late = times > ends[len(ends) // 4]  # by then everything is imported and every worker has come
    done = np.searchsorted(ends, times[late])
    growth = np.polyfit(done, sizes[late], 1)[0] if len(set(done.tolist())) > 2 else 0.0
    return {
        "trials": trials,
        "records": len(ends),
        "run_seconds": run.seconds,
        "seconds_per_trial": run.seconds / trials,
        "leaderboard_seconds": gather.seconds,
        "leaderboard_files": written,
        "driver_mib_at_a_quarter": float(sizes[late][0]),
        "driver_mib_at_the_end": float(np.median(sizes[-5:])),
        "driver_mib_largest": float(sizes.max()),
        "driver_kib_per_trial": float(growth * 1024),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is asked for and print it as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", default=["minute", "slope", "thousand"])
    parser.add_argument("--trials", type=int, help="of minute (default 5) and thousand (1000)")
    parser.add_argument("--rounds", type=int, default=3, help="of slope")
    parser.add_argument("--steps", type=int, default=60, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    for what in given.what:
        if what == "bare":
            print(bare(given.steps))
            continue
        if what == "in_turns":
            in_turns(given.steps, given.trials, given.out)
            continue
        figures = {
            "minute": lambda: minute(trials=given.trials or 5),
            "slope": lambda: slope(rounds=given.rounds),
            "thousand": lambda: thousand(given.trials or 1000),
        }[what]()
        print(what, json.dumps({k: round(v, 3) for k, v in figures.items()}), flush=True)


if __name__ == "__main__":
    main()
