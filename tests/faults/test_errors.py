"""Errors inside a trial: what comes back is recorded with a remedy, what may pass is tried again."""

from __future__ import annotations

import errno
import os
import signal
from contextlib import ExitStack
from pathlib import Path

import fault_tools
import pytest
import torch
from fault_tools import At, driver, exit_code
from runs import ONE, RECIPE, TINY, assert_same_numbers, only, wsss

import harness.engine.loader
import harness.engine.training
import harness.running.trials.execution
from harness.basics import files
from harness.basics.errors import NonFiniteLossError, UserError
from harness.engine import faults
from harness.recipes.resolving import parse_overrides, resolve
from harness.records.locks import Elsewhere, is_free, trial_lock
from harness.records.records import Store
from harness.running.jobs.run import run_jobs as run_jobs
from harness.running.trials.execution import Trials
from harness.running.trials.trial import Options, Trial, prepare


@pytest.fixture
def command(small, tmp_path):
    arguments = ["run", RECIPE, *TINY, *ONE, "--data-root", small, "--results", tmp_path]
    return [*arguments, "--checkpoint-seconds", 0]


@pytest.fixture(scope="module")
def first(tmp_path_factory, small):
    """The record of an undisturbed run."""
    results = tmp_path_factory.mktemp("first")
    assert wsss("run", RECIPE, *TINY, *ONE, "--data-root", small, "--results", results) == 0
    return only(results)


def outcome_of(prepared, retries=3):
    """How a trial ends that is prepared already."""
    with ExitStack() as session:
        trials = Trials([prepared.trial], prepared.options, False, session)
        trials.prepared[prepared.trial] = prepared
        run_jobs(trials, None, retries)
    return trials.ended[prepared.trial]


def fail_with(error: Exception):
    def action():
        raise error

    return action


def at_step(monkeypatch, number, action):
    trainer = harness.engine.training.Trainer
    monkeypatch.setattr(trainer, "optimise", At(trainer.optimise, number, action))


# --- which errors are which --------------------------------------------------------------------------

CUDA = "an illegal memory access was encountered\nCUDA kernel errors might be asynchronously reported"


@pytest.mark.parametrize(
    ("error", "memory", "transient", "poison"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True, False, False),
        (RuntimeError("CUDA error: out of memory"), True, False, False),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"),
            True,
            False,
            False,
        ),
        (MemoryError(), True, False, False),
        (RuntimeError("std::bad_alloc"), True, False, False),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True, False, False),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True, False, False),
        (RuntimeError(f"CUDA error: {CUDA}"), False, True, True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), False, True, True),
        (
            RuntimeError("NCCL error in: ProcessGroupNCCL.cpp:1970, remote exited"),
            False,
            True,
            False,
        ),
        (
            RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer"),
            False,
            True,
            False,
        ),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), False, True, False),
        (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), False, True, False),
        (OSError(errno.ENOSPC, "No space left on device"), False, False, False),
        (NonFiniteLossError("loss term 'ce' is nan at step 7: CUDA error"), False, False, False),
        (UserError("out of memory"), False, False, False),
        (ValueError("CUDA error"), False, False, False),
        (ZeroDivisionError(), False, False, False),
    ],
    ids=lambda v: str(v)[:30] if isinstance(v, Exception) else "",
)
def test_errors_are_told_apart(error, memory, transient, poison):
    assert faults.out_of_memory(error) == memory
    assert faults.transient(error) == transient
    assert faults.poisons(error) == poison


def test_a_remedy_names_the_batch_and_what_makes_it_smaller():
    recipe = resolve(RECIPE, parse_overrides(["batch.per_group=6", "crop=48", "accumulate=2"])).recipe
    clear = faults.remedy_of(torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB."), recipe)
    assert "6 pictures of 48 x 48 per step in 2 pieces" in str(clear)
    for part in (
        "Tried 2 GiB",
        "accumulate=4",
        "amp=bf16",
        "--workers",
        "--max-concurrent",
        "--gpus-per-trial",
    ):
        assert part in str(clear)
    assert faults.remedy_of(ZeroDivisionError(), recipe) is None


# --- out of memory, and any other error -------------------------------------------------------------


@pytest.mark.faults
def test_out_of_memory_fails_the_trial_with_a_remedy_and_the_next_run_tries_again(
    command, tmp_path, first, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        at_step(patch, 15, lambda: torch.empty(2**50))  # more than any machine has
        assert wsss(*command) == 1
    printed = capsys.readouterr().err
    failed = only(tmp_path)
    assert failed.data["status"] == "failed"
    for text in (failed.data["reason"], printed):
        assert "out of memory" in text
        assert "--set accumulate=2" in text
    assert "torch.empty" in (failed.path / "error.txt").read_text()
    assert "1 of 1 trials failed" in printed
    assert wsss(*command) == 0
    assert_same_numbers(only(tmp_path), first)
    assert only(tmp_path).data["resumed"] == 10
    assert not (failed.path / "error.txt").exists()


@pytest.mark.faults
def test_an_unexpected_error_is_recorded_with_its_trace_and_the_others_go_on(
    command, tmp_path, monkeypatch, capsys
):
    at_step(monkeypatch, 3, fail_with(ZeroDivisionError("in the middle")))
    assert wsss(*command, "--seed", 1) == 1
    records = {r.seed: r.data for r in Store(tmp_path).records()}
    assert records[0]["status"] == "failed"
    assert "ZeroDivisionError: in the middle" in records[0]["reason"]
    assert {"name", "method", "recipe", "seed", "digest", "code", "hardware", "data"} <= records[0].keys()
    (trace,) = tmp_path.rglob("error.txt")
    assert "in action\n    raise error" in trace.read_text()
    assert records[1]["status"] == "finished"
    assert "1 of 2 trials failed" in capsys.readouterr().err


@pytest.mark.faults
def test_an_evaluation_that_fails_leaves_a_finished_record_alone(small, tmp_path, first, monkeypatch):
    options = Options(results=tmp_path, data_roots=(str(small),), device="cpu", checkpoint_seconds=0)
    trial = Trial(RECIPE, 0, parse_overrides([a for a in TINY if a != "--set"]))
    assert outcome_of(prepare(trial, options)).status == "finished"
    before = only(tmp_path).data
    spec = prepare(trial, options).resolved.recipe.evaluation[0]
    more = type(spec)(split="val", protocol="agmm-voc")
    monkeypatch.setattr(
        harness.evaluation.evaluator, "count", lambda *a: (_ for _ in ()).throw(MemoryError())
    )
    outcome = outcome_of(prepare(trial, options, (spec, more)))
    assert outcome.status == "failed"
    assert "out of memory" in outcome.reason
    assert only(tmp_path).data == before
    assert_same_numbers(only(tmp_path), first)


# --- what may pass ----------------------------------------------------------------------------------


def _killed_worker(flag: Path | None) -> None:
    """A loader worker kills itself at step 25, once if there is a flag to raise, else each time."""
    read = harness.engine.loader.TrainingSet.__getitem__

    def dying(self, slot):
        if slot[0] == 25 and slot[1] == 0 and not (flag and flag.exists()):
            if flag:
                flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, slot)

    harness.engine.loader.TrainingSet.__getitem__ = dying


@pytest.mark.faults
def test_a_killed_loader_worker_costs_a_restart_and_no_number(command, tmp_path, first, monkeypatch, capfd):
    monkeypatch.setattr(
        harness.engine.loader.TrainingSet, "__getitem__", harness.engine.loader.TrainingSet.__getitem__
    )
    _killed_worker(tmp_path / "flag")
    assert wsss(*command, "--workers", 2) == 0
    assert "again    agmm/mini-scribble seed 0: RuntimeError: DataLoader worker" in capfd.readouterr().err
    assert_same_numbers(only(tmp_path), first)
    assert only(tmp_path).data["resumed"] > 0


@pytest.mark.faults
def test_loader_workers_that_die_every_time_fail_the_trial_with_a_remedy(small, tmp_path, monkeypatch):
    monkeypatch.setattr(
        harness.engine.loader.TrainingSet, "__getitem__", harness.engine.loader.TrainingSet.__getitem__
    )
    _killed_worker(None)
    options = Options(results=tmp_path, data_roots=(str(small),), device="cpu", workers=1)
    trial = Trial(RECIPE, 0, parse_overrides([a for a in TINY if a != "--set"]))
    outcome = outcome_of(prepare(trial, options), retries=1)
    assert outcome.status == "failed"
    assert "fewer --workers" in outcome.reason
    assert "a loader worker died" in only(tmp_path).data["reason"]  # torch has several words for how


@pytest.mark.faults
def test_a_process_that_lost_its_gpu_lets_others_do_the_work(command, tmp_path, first, monkeypatch, capfd):
    """The fault is met in this process alone: the other one has real steps."""
    at_step(monkeypatch, 15, fail_with(RuntimeError(f"CUDA error: {CUDA}")))
    assert wsss(*command, "--seed", 1) == 0
    assert "again    agmm/mini-scribble seed 0: RuntimeError: CUDA error" in capfd.readouterr().err
    records = list(Store(tmp_path).records())
    assert [r.seed for r in records] == [0, 1]
    assert_same_numbers(records[0], first)
    assert records[0].data["resumed"] == 10


# --- no room on the disk ----------------------------------------------------------------------------


class FullDisk:
    """Every write from the n-th on fails, as on a full disk, until there is room."""

    def __init__(self, patch) -> None:
        self.left = 10**9
        self.named: list[str] = []
        for name in ("fsync", "open"):
            patch.setattr(files.os, name, self._checked(getattr(os, name), name))

    def _checked(self, function, name):
        def call(*arguments, **options):
            if name == "fsync" or arguments[1] & os.O_CREAT:
                self.left -= 1
                if self.left <= 0:
                    raise OSError(errno.ENOSPC, "No space left on device")
            return function(*arguments, **options)

        return call


@pytest.mark.faults
def test_a_disk_that_is_full_at_any_moment_loses_nothing(command, tmp_path, first, monkeypatch, capsys):
    """Each run gets a little further than the one before: files are made and synced one more time."""
    codes = []
    for moment in range(1, 200):
        with monkeypatch.context() as patch:
            FullDisk(patch).left = moment
            codes.append(wsss(*command))
        printed = capsys.readouterr().err
        if codes[-1] == 0:
            break
        assert "the disk is full" in printed, printed
        assert "make room" in printed
        assert "Traceback" not in printed
        assert not any(r.finished for r in Store(tmp_path).records())
    assert len(codes) > 10
    assert set(codes[:-1]) <= {1, 2}
    assert_same_numbers(only(tmp_path), first)
    assert not fault_tools.drafts(tmp_path)


def _small_files(limit: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


@pytest.mark.faults
@pytest.mark.skipif(os.name != "posix", reason="a limit of POSIX systems")
def test_the_systems_own_refusal_to_write_is_named(command, tmp_path, first, capfd):
    """Not even the checkpoint of a tiny network fits below this limit."""
    process = driver(*command, prepare=_small_files, options=(20_000,))
    assert exit_code(process) == 1
    printed = capfd.readouterr().err
    assert "ulimit -f" in printed
    assert "last.pt" in printed
    assert only(tmp_path).data["status"] == "failed"
    assert wsss(*command) == 0
    assert_same_numbers(only(tmp_path), first)


SCRIPT = """
mount -t tmpfs -o size=80k tmpfs "$ROOM" || exit 77
python=$1; shift
"$python" -c '
import os, subprocess, sys
from runs import wsss
print("first", wsss(*sys.argv[1:]))
subprocess.run(["mount", "-o", "remount,size=64m", os.environ["ROOM"]], check=True)
print("second", wsss(*sys.argv[1:]))
' "$@" && cp -r "$ROOM" "$ROOM.copy"
"""


@pytest.mark.faults
def test_a_small_file_system_that_fills_up(small, tmp_path, first):
    import subprocess
    import sys

    room = tmp_path / "room"
    room.mkdir()
    command = ["run", RECIPE, *TINY, *ONE, "--data-root", small, "--results", room]
    tests = Path(__file__).parents[1]
    paths = os.pathsep.join([str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")])
    try:
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", SCRIPT, "sh", sys.executable, *map(str, command)],
            env={**os.environ, "ROOM": str(room), "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            timeout=300,
        )
    except FileNotFoundError:
        pytest.skip("needs unshare (util-linux)")
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("this user may not mount")
    assert "first 1" in done.stdout, done.stderr
    assert "second 0" in done.stdout, done.stderr
    assert "the disk is full" in done.stderr
    assert_same_numbers(only(tmp_path / "room.copy"), first)


# --- locks ------------------------------------------------------------------------------------------


def _hold(folder: Path) -> None:
    lock = trial_lock(folder)
    lock.__enter__()
    (folder / "held").touch()
    fault_tools.wait_for(lambda: (folder / "die").exists())
    fault_tools.die()


def test_a_lock_is_free_as_soon_as_its_holder_is_dead(tmp_path):
    folder = tmp_path / "trial"
    assert is_free(folder)
    process = driver("list", prepare=_hold, options=(folder,))
    fault_tools.wait_for(lambda: (folder / "held").exists())
    assert not is_free(folder)
    with pytest.raises(Elsewhere, match=f"process {process.pid} on") as caught, trial_lock(folder):
        raise AssertionError("two hold one lock")
    assert caught.value.status == "busy"
    (folder / "die").touch()
    assert exit_code(process) == -signal.SIGKILL
    assert is_free(folder)
    with trial_lock(folder):
        assert not is_free(folder)
    assert is_free(folder)


def test_a_file_system_without_locks_is_used_with_a_warning(tmp_path, monkeypatch):
    import filelock

    def unable(self):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(filelock.FileLock, "_acquire", unable)
    with pytest.warns(UserWarning, match="one driver at a time"), trial_lock(tmp_path):
        pass
