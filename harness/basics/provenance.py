"""What a number depends on beside recipe, seed and data: code, packages, machine."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness

if TYPE_CHECKING:
    import torch

#: Packages whose version can change a number.
PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy", "pillow", "ray", "optuna", "safetensors")


@cache
def code() -> dict[str, Any]:
    """Version of this package, and commit and dirty flag where it runs from a git checkout."""
    root = Path(harness.__file__).parents[1]
    found: dict[str, Any] = {"version": harness.__version__, "commit": None, "dirty": None}
    if (root / ".git").exists():
        found["commit"] = git(root, "rev-parse", "HEAD")
        status = git(root, "status", "--porcelain", "--untracked-files=no")
        found["dirty"] = None if status is None else bool(status)
    return found


def git(root: Path, *arguments: str) -> str | None:
    """What git says in a folder; None outside a checkout, or without git."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@cache
def environment() -> dict[str, Any]:
    """Python and package versions; None for a package that is not installed."""
    packages: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    return {"python": platform.python_version(), "packages": packages}


def hardware(device: torch.device) -> dict[str, Any]:
    """The machine and the device that a trial ran on, and torch's switches as they are now."""
    import torch

    from harness.basics import devices

    found: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device.type,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["gpu"] = properties.name
        found["gpu_memory_gib"] = round(properties.total_memory / 2**30, 1)
        found["cuda"] = torch.version.cuda
        found["cudnn"] = torch.backends.cudnn.version()
        found["driver"] = devices.machine().driver
        found["tf32_convolutions"] = torch.backends.cudnn.allow_tf32
        found["tf32_matrix_products"] = torch.backends.cuda.matmul.allow_tf32
        found["cudnn_benchmark"] = torch.backends.cudnn.benchmark
    return found


@cache
def processor() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def reset_peak_memory(device: torch.device) -> None:
    """Let :func:`peak_memory_mib` count from now: a worker process takes one trial after another.

    On the CPU this needs Linux; elsewhere the peak is that of the process.
    """
    if device.type == "cuda":
        import torch

        torch.cuda.init()  # a device with a number does not start CUDA by itself
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # proc(5): resets VmHWM


def peak_memory_mib(device: torch.device) -> float | None:
    """Largest memory since :func:`reset_peak_memory`: allocated on the GPU, or resident in this process.

    None where the system does not tell.
    """
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**20
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 2**10
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if platform.system() == "Darwin" else 2**10)


def children_memory_mib() -> float:
    """Memory that the processes started by this one (loader workers) hold alone; 0 where the system does
    not tell (Linux does)."""
    total = 0
    with contextlib.suppress(OSError):
        for task in Path("/proc/self/task").iterdir():
            for child in (task / "children").read_text(encoding="utf-8").split():
                with contextlib.suppress(OSError):
                    text = Path(f"/proc/{child}/smaps_rollup").read_text(encoding="utf-8")
                    private = (line for line in text.splitlines() if line.startswith("Private_"))
                    total += sum(int(line.split()[1]) for line in private)
    return total / 2**10
