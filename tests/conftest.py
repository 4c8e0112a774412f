"""Shared fixtures: golden vectors, real samples, and a private cache for generated data."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
from pathlib import Path

import harness.basics.compat  # noqa: F401  # isort: skip  (before timm and torchvision)

import pytest
import torch
from cpu_seconds import CpuSeconds

from harness.data.sets.mini import Mini
from harness.recipes.specs import ScheduleSpec
from harness.running.jobs.job import Resources
from harness.running.jobs.session import start_ray

GOLDEN = Path(__file__).parent / "golden"

if "pretend_device" not in sys.modules:
    collect_ignore = ["pretended"]  # run by harness/test_on_a_pretended_gpu.py in processes of their own

os.environ.pop("COLUMNS", None)  # pytest-xdist sets it for its workers, and errors would be wrapped


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cpu", type=int, metavar="N", help="show the N tests that take the most CPU seconds")


def pytest_configure(config: pytest.Config) -> None:
    # The files of tests need not outlive a power failure, and a slow disk makes each of thousands wait.
    # What a test starts in a process of its own waits as it does for a user.
    os.fsync = os.fstat  # type: ignore[assignment]
    if config.option.cpu is not None:
        config.pluginmanager.register(CpuSeconds(config.option.cpu))


def pytest_collection_finish() -> None:
    """What has been imported stays: no later search for garbage goes through it again."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """The last bit of a sum depends on the number of threads."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden() -> Path:
    """The golden vectors that travel with the project."""
    return GOLDEN


@pytest.fixture(scope="session")
def full_golden() -> Path:
    """All golden vectors (tests marked ``golden``)."""
    place = os.environ.get("WSSS_GOLDEN")
    if not place:
        pytest.skip("set WSSS_GOLDEN to the folder of the full golden vectors")
    return Path(place)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The real image samples (tests marked ``real``)."""
    place = os.environ.get("WSSS_REAL_DATA")
    if not place:
        pytest.skip("set WSSS_REAL_DATA to the folder of the real samples")
    return Path(place)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated data goes to a folder of this test session, whatever the user's cache holds."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["WSSS_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory, cache) -> Path:
    """A copy of the miniature set with 16 training and 6 validation scenes."""
    whole = Mini.locate(None, cache)
    root = tmp_path_factory.mktemp("small") / "mini"
    kept = {name for split, number in (("train", 16), ("val", 6)) for name in whole.ids(split)[:number]}

    def others(folder: str, names: list[str]) -> list[str]:
        scenes = Path(folder).name in ("JPEGImages", "SegmentationClass")
        return [n for n in names if scenes and Path(n).stem not in kept]

    shutil.copytree(whole.root, root, ignore=others)
    for file in (root / "ImageSets" / "Segmentation").glob("*.txt"):
        file.write_text("".join(f"{name}\n" for name in file.read_text().split() if name in kept))
    return root.parent


@pytest.fixture
def no_ray() -> None:
    """None runs in this process when the test begins, so that it starts one with what it has set."""
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        sys.modules["ray"].shutdown()


@pytest.fixture
def local_ray(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ray of this machine that stays for later tests of this process, which starts it once."""
    import ray

    if not ray.is_initialized():
        monkeypatch.setenv("RAY_worker_niceness", "0")  # beside other work its workers would starve
        before = signal.getsignal(signal.SIGTERM)
        start_ray(Resources())
        signal.signal(signal.SIGTERM, before)  # Ray has taken it


@pytest.fixture
def short_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """No run takes more than ten steps; ``--set`` leaves those alone whose labels others train on."""
    total = ScheduleSpec.total_steps
    monkeypatch.setattr(ScheduleSpec, "total_steps", lambda self, epoch: min(total(self, epoch), 10))
