"""Loader processes: their errors arrive as what they were, and a lack of shared memory never hangs."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset

import harness.engine.batch
from harness.basics.errors import UserError
from harness.engine import faults, loading
from harness.engine.loading import loaded


class Held(Exception):
    """Cannot be pickled."""

    def __init__(self, text: str, lock: object) -> None:
        super().__init__(text)
        self.lock = lock


class Bad(Dataset):
    def __init__(self, make) -> None:
        self.make = make

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index):
        if index == 2:
            raise self.make()
        return torch.full((3,), index)


def as_is(sample):
    return sample


ERRORS = {
    "user": lambda: UserError("a damaged picture", where="a.png", remedy="copy it again"),
    "value": lambda: ValueError("first\nsecond"),
    "runtime": lambda: RuntimeError("no fault of the worker"),
    "key": lambda: KeyError("name"),
    "held": lambda: Held("with a lock", threading.Lock()),
    "exit": lambda: SystemExit(3),
    "stop": lambda: StopIteration("early"),
    "wordless": lambda: type("Wordless", (Exception,), {"__str__": lambda self: 1 / 0})(),
}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", ERRORS)
def test_errors_arrive_as_they_were_and_end_nothing_early(kind, workers):
    seen = []
    with pytest.raises(BaseException) as raised:
        for batch in loaded(Bad(ERRORS[kind]), as_is, workers=workers, batch_size=None):
            seen.append(batch.tolist())
    assert len(seen) == 2
    error = raised.value
    said, whole = faults.told(error, None)
    expected = {
        "user": "a damaged picture\n  where:  a.png\n  remedy: copy it again",
        "value": "ValueError: first",
        "runtime": "RuntimeError: no fault of the worker",
        "key": "KeyError: 'name'",
        "held": "Held: with a lock",
        "exit": "SystemExit: 3",
        "stop": "StopIteration: early",
        "wordless": "Wordless: (its message cannot be shown: ZeroDivisionError)",
    }
    assert said == expected[kind]
    assert whole == (kind == "user")
    assert not faults.transient(error)


def test_torchs_own_words_for_a_workers_error_are_read_too():
    """Loaders of other packages wrap errors; the last words of the trace are the error's."""
    for kind in ("user", "value", "runtime", "key"):
        with pytest.raises(Exception) as raised:
            list(torch.utils.data.DataLoader(Bad(ERRORS[kind]), num_workers=1))
        said, _ = faults.told(raised.value, None)
        assert "Caught" not in said
        assert "Traceback" not in said
        assert not faults.transient(raised.value)


def test_a_lack_of_shared_memory_is_an_error_with_a_remedy_and_comes_back(monkeypatch):
    """Moved there in the worker, and not in a thread that drops what does not fit."""
    batch = harness.engine.batch.PackedBatch(*(torch.ones(2) for _ in range(3)), ["a", "b"], torch.ones(2))

    def full(tensor):
        raise RuntimeError("unable to write to file </torch_7_8_9>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(RuntimeError) as raised:
        list(loaded([0, 1], lambda samples: batch.share_memory(), workers=1, batch_size=2))
    assert not faults.transient(raised.value)
    said, _ = faults.told(raised.value, None)
    assert "no shared memory for loader workers" in said
    assert "/dev/shm" in said
    assert "--workers 0" in said


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EAGAIN, errno.ENOSYS, errno.ENOMEM, errno.EMFILE])
def test_workers_that_cannot_be_started_are_no_full_disk(monkeypatch, code):
    def refuse(*arguments, **options):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(loading.DataLoader, "__iter__", refuse)
    with pytest.raises(UserError, match="cannot be started") as refused:
        list(loaded([0], list, workers=2))
    assert "/dev/shm" in str(refused.value)


SCRIPT = """
mount -t tmpfs -o size=$SIZE tmpfs /dev/shm || exit 77
exec "$@"
"""


@pytest.mark.faults
@pytest.mark.parametrize("size", ["64k", "4m"])
def test_a_small_dev_shm_ends_in_the_remedy_and_never_hangs(small, tmp_path, size):
    tests = Path(__file__).parents[1]
    code = "import sys; from runs import wsss; sys.exit(wsss(*sys.argv[1:]))"
    command = ["run", "pce/mini-scribble", "--local", "--seed", "0", "--device", "cpu", "--workers", "2"]
    command += ["--set", "schedule.steps=30", "--set", "crop=96", "--data-root", str(small)]
    command += ["--results", str(tmp_path)]
    try:
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", SCRIPT, "sh", sys.executable, "-c", code, *command],
            env={**os.environ, "SIZE": size, "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("needs unshare (util-linux)")
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("this user may not mount")
    assert done.returncode == 1, done.stderr
    assert "/dev/shm" in done.stderr
    assert "--workers 0" in done.stderr
    assert "again    " not in done.stderr, "it comes back: one attempt is enough"
    assert "Traceback" not in done.stderr
