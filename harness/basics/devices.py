"""Which device a process computes on, whether torch can use it, and what to say where it cannot.

What is decided here follows from :class:`Machine` alone, so that it can be tried for machines that are not at
hand; :func:`machine` looks at this one.
"""

from __future__ import annotations

import ctypes
import math
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from harness.basics.errors import UserError

if TYPE_CHECKING:
    import torch

_OPTION = "--device"
#: Loader processes beyond which a GPU is seldom fed faster [our choice].
_MOST_LOADERS = 8


@dataclass(frozen=True)
class Machine:
    """What is known of the GPUs of a machine, and of this torch.

    Attributes:
        built: CUDA that torch is built for, such as ``13.0``; None for a build without CUDA.
        count: GPUs that torch can use.
        present: GPUs that the driver knows.
        driver: version of NVIDIA's driver, None without one.
        driver_cuda: newest CUDA that the driver supports, None if it does not tell.
        visible: ``CUDA_VISIBLE_DEVICES``; None if it is not set.
        capabilities: of the GPUs that torch can use, as (major, minor).
        architectures: that torch holds kernels for, as ``sm_80`` or, to be compiled, ``compute_90``.
    """

    built: str | None = None
    count: int = 0
    present: int = 0
    driver: str | None = None
    driver_cuda: tuple[int, int] | None = None
    visible: str | None = None
    capabilities: Sequence[tuple[int, int]] = ()
    architectures: Sequence[str] = ()


# --- decisions ---------------------------------------------------------------------------------------


def why_unusable(machine: Machine) -> str:
    """Why torch sees no GPU, with the versions that matter."""
    if machine.built is None:
        return "this torch is built without CUDA" + (
            f", while the machine has {machine.present} GPU(s)" if machine.present else ""
        )
    text = f"torch is built for CUDA {machine.built}"
    if machine.driver_cuda is not None and machine.driver_cuda < _version(machine.built):
        driver = f" {machine.driver}" if machine.driver else ""
        newest = ".".join(map(str, machine.driver_cuda))
        return f"{text}, and the driver{driver} supports CUDA {newest} at most: it is too old"
    if machine.visible is not None and (machine.present or machine.driver):
        return f"{text}, and CUDA_VISIBLE_DEVICES={machine.visible!r} leaves it no GPU"
    if machine.driver is None and machine.driver_cuda is None:
        return f"{text}, and there is no NVIDIA driver"
    return f"{text} but sees no GPU (driver {machine.driver or 'unknown'})"


def remedy(machine: Machine) -> str:
    """What to do where torch sees no GPU."""
    if machine.built is None and machine.present:
        return "install a torch that is built with CUDA, or use --device cpu"
    if machine.driver_cuda is not None and machine.built and machine.driver_cuda < _version(machine.built):
        newest = ".".join(map(str, machine.driver_cuda))
        return f"a newer driver, a torch for CUDA {newest} or older, or --device cpu"
    return "use --device cpu, or see `wsss doctor`"


def _version(text: str) -> tuple[int, int]:
    """Major and minor number; the minor does not matter, as drivers support all of a major's."""
    major = re.match(r"\d+", text)
    return (int(major[0]) if major else 0, 0)


def covered(capability: tuple[int, int], architectures: Sequence[str]) -> bool:
    """Whether torch holds kernels that a GPU can run: of its major version and no later minor, or of an
    earlier one in a form that the driver compiles."""
    for name in architectures:
        found = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name)
        if found is None:
            continue
        built = (int(found[2]), int(found[3]))
        if found[4] == "a":  # for this one and no other
            runs = built == capability
        else:
            runs = built <= capability and (found[1] == "compute" or built[0] == capability[0])
        if runs:
            return True
    return not architectures


def without_kernels(machine: Machine) -> str:
    """A word on GPUs that torch sees and has no kernels for; empty where there are none."""
    bad = [c for c in machine.capabilities if not covered(c, machine.architectures)]
    if not bad:
        return ""
    of = ", ".join(dict.fromkeys(f"{a}.{b}" for a, b in bad))
    built = " ".join(machine.architectures)
    return f"torch has no kernels for compute capability {of}: it is built for {built}"


def device_named(name: str, machine: Machine) -> torch.device:
    """The device that a name stands for: ``auto`` is the first GPU where torch can use one, else the CPU.

    Raises:
        UserError: an unknown name, or a device that this machine lacks or this torch cannot use.
    """
    import torch

    if name == "auto":
        return torch.device("cuda", 0) if machine.count else torch.device("cpu")
    found = re.fullmatch(r"(cpu|cuda)(?::([0-9]{1,3}))?", name)
    if found is None or (found[1] == "cpu" and int(found[2] or 0)):
        raise UserError(f"unknown device {name!r}", where=_OPTION, remedy="auto, cpu, cuda or cuda:N")
    if found[1] == "cpu":
        return torch.device("cpu")
    if not machine.count:
        raise UserError(f"no CUDA device: {why_unusable(machine)}", where=_OPTION, remedy=remedy(machine))
    index = int(found[2] or 0)
    if index >= machine.count:
        raise UserError(
            f"there is no {name}: torch sees {machine.count} GPU(s)",
            where=_OPTION,
            remedy=f"cuda:0 to cuda:{machine.count - 1}" if machine.count > 1 else "cuda",
        )
    return torch.device("cuda", index)


def check_kernels(machine: Machine) -> None:
    """Refuse to train where torch has no kernels for a GPU.

    Raises:
        UserError: with the GPU's capability and what torch is built for.
    """
    if text := without_kernels(machine):
        raise UserError(text, where=_OPTION, remedy="a torch for this GPU, or --device cpu")


def of_workers(name: str, gpus: float) -> str:
    """What a worker is told to compute on: the GPU that was booked for it, and no other.

    Args:
        name: as on the command line.
        gpus: booked for each process.

    Raises:
        UserError: the two contradict each other.
    """
    kind, _, index = name.partition(":")
    if kind == "cuda" and index not in ("", "0"):
        raise UserError(
            f"Ray gives each process a GPU of its own, which it sees as cuda:0, not {name}",
            where=_OPTION,
            remedy=f"--device cuda, with CUDA_VISIBLE_DEVICES={index} in front of wsss; or --local",
        )
    if kind == "cuda" and not gpus:
        raise UserError(
            f"trials shall run on {name}, and no GPU is booked for them",
            where="--gpus-per-trial 0",
            remedy="--gpus-per-trial 1, or a fraction to share one; or --device cpu",
        )
    if name != "auto":
        return name
    return "cuda" if gpus else "cpu"


def idle(gpus: float, there: float) -> str:
    """A word on GPUs of a cluster that no trial asks for; empty where there are none."""
    if gpus or not there:
        return ""
    return f"{there:g} GPU(s) stand idle: trials run on the CPU unless --gpus-per-trial asks for more than 0"


def unused(name: str, machine: Machine) -> str:
    """A word on GPUs that ``auto`` passes over since torch cannot use them; empty where there are none."""
    if name != "auto" or machine.count or not machine.present or machine.visible is not None:
        return ""
    return f"{machine.present} GPU(s) are not used: {why_unusable(machine)}; {remedy(machine)}"


def loader_processes(gpus: float, machine: Machine, cores: float, room: float) -> int:
    """How many loader processes a training process has unless told otherwise; numbers do not depend on it.

    Args:
        gpus: of the process.
        machine: where it runs.
        cores: of that machine.
        room: bytes of shared memory that are free there.

    Returns:
        0 without a GPU, where they would only share the cores with the training itself; else its share of the
        cores but the one that it takes, at most :data:`_MOST_LOADERS`, and one for each GiB of room.
    """
    if not gpus or not machine.count:
        return 0
    share = cores * min(gpus / machine.count, 1.0)
    return max(min(int(share) - 1, int(min(room, 2**40) / 2**30), _MOST_LOADERS), 0)


def cores_here() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def shared_room() -> float:
    """Bytes of shared memory that are free; endless where it has no limit of its own."""
    place = Path("/dev/shm")
    return shutil.disk_usage(place).free if place.is_dir() else math.inf


# --- this machine ------------------------------------------------------------------------------------


def machine(*, thoroughly: bool = False) -> Machine:
    """This machine, as this process sees it.

    Args:
        thoroughly: ask the GPUs too what they can, which starts CUDA in this process.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    driver, driver_cuda, present = driver_here()
    return Machine(
        built=torch.version.cuda,
        count=count,
        present=present,
        driver=driver,
        driver_cuda=driver_cuda,
        visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
        capabilities=_capabilities(count) if thoroughly else (),
        architectures=tuple(torch.cuda.get_arch_list()) if count else (),
    )


@cache
def _capabilities(count: int) -> tuple[tuple[int, int], ...]:
    import torch

    return tuple(torch.cuda.get_device_capability(i) for i in range(count))


@cache
def driver_here() -> tuple[str | None, tuple[int, int] | None, int]:
    """Version of the driver, newest CUDA that it supports, and GPUs that it knows; without starting CUDA."""
    version = None
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
        found = re.search(r"Kernel Module\D*(\d+(?:\.\d+)+)", text)
        version = found[1] if found else None
    except OSError:
        pass
    try:
        present = len(list(Path("/proc/driver/nvidia/gpus").iterdir()))
    except OSError:
        present = 0
    number = ctypes.c_int(0)
    try:
        failed = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number))
    except (OSError, AttributeError):
        failed = 1
    supported = None if failed else (number.value // 1000, number.value % 1000 // 10)
    return version, supported, present
