"""What runs on a GPU runs on one that is pretended (``tests/pretended``): in processes of their own, since
torch must find that device when it is imported."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("g++") is None, reason="the device is compiled with g++ on Linux"
)


@pytest.mark.parametrize("part", ["test_methods.py", "test_commands.py"])
def test_on_a_pretended_gpu(part: str, cache: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "pretend_device", "-p", "no:cacheprovider"]
    command.append(str(TESTS / "pretended" / part))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    environment |= {"PYTHONPATH": str(TESTS), "WSSS_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command,
        env=environment,
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert re.search(r"\d+ passed", done.stdout)
    assert "skipped" not in done.stdout
