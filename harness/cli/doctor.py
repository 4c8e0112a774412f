"""``wsss doctor``: what this machine can run, asked in another process, which may be broken off.

A torch for another processor or driver may not only fail to be imported but end its process, and so may any
package. Everything that imports one is therefore looked at in a process apart, thing after thing; the verb
itself imports nothing that can be broken.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout, suppress
from multiprocessing.connection import Connection
from typing import Any

import click

import wsss_bench
from harness.basics.errors import UserError, words
from harness.basics.listing import fitted_table, state
from harness.basics.text import one_line
from harness.cli.options import DATA_ROOT, JSON
from harness.cli.usage import Verb

#: What is looked at, its state, and what is to be said of it.
_Row = tuple[str, str, str]

#: Seconds that one thing may take: a cold network drive gives torch in minutes, a hung driver never answers.
_PATIENCE = 300
#: Packages of another name than the module that is imported.
_MODULES = {"pillow": "PIL", "tensorboardx": "tensorboardX"}
#: What to do about a package that is there and cannot be imported, and about what needs it.
_REMEDY, _ABOVE = "install it again", "see the packages of this list"


@click.command("doctor", cls=Verb, epilog="\b\nExample:\n  wsss doctor --data-root ~/data")
@DATA_ROOT
@JSON
def doctor_verb(data_roots: tuple[str, ...], as_json: bool) -> None:
    """What this machine can run, what is missing or broken, and how to get it."""
    rows = examined([*_things(data_roots)])
    if as_json:
        names = ("what", "state", "remark")
        click.echo(json.dumps([dict(zip(names, row, strict=True)) for row in rows], indent=1))
        return
    told = [(what, state(f"{found}: {said}" if said else found)) for what, found, said in rows]
    click.echo(fitted_table(told, ("what", "state")))


def _things(data_roots: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """Names of what is looked at (:data:`_LOOKS`), in the order of the rows, and what is said to each."""
    yield from [("machine",), ("NVIDIA driver",), *[("package", name) for name in requirements()]]
    yield from [("GPU",), ("full-size steps",), ("cache",), ("methods",), ("verbs",), ("tables",)]
    yield ("data", tuple(data_roots))


# --- another process ----------------------------------------------------------------------------------


def examined(things: Sequence[tuple[Any, ...]]) -> list[_Row]:
    """Rows of several things, each looked at even where another ends the process that looks."""
    rows: list[_Row] = []
    left = list(things)
    while left:
        ours, theirs = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("spawn").Process(
            target=wsss_bench.begin, args=(__name__, "_answer", left, theirs), daemon=True
        )
        process.start()
        theirs.close()
        said = f"gives no answer in {_PATIENCE} s"
        try:
            while left and ours.poll(_PATIENCE):
                rows += ours.recv()
                del left[0]
        except EOFError:
            process.join()
            said = f"ends the process that imports it ({_ending(process.exitcode)})"
        finally:
            ours.close()
            process.kill()
            process.join()
        if left:
            name, *arguments = left.pop(0)
            what = arguments[0] if name == "package" else name
            rows.append((what, "broken", f"{said}; {_REMEDY if name == 'package' else _ABOVE}"))
    return rows


def _ending(code: int | None) -> str:
    """An exit code in words."""
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"


def _answer(things: Sequence[tuple[Any, ...]], pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever asked ends this process
    with suppress(OSError):
        os.dup2(2, 1)  # what packages print is not what was asked
    with redirect_stdout(sys.stderr):
        for name, *arguments in things:
            try:
                rows = _LOOKS[name](*arguments)
            except BaseException as error:  # a module may try to end the process
                rows = [(name, "unknown", f"{_told(error)}; {_ABOVE}")]
            pipe.send(rows)


def _told(error: BaseException) -> str:
    said = _line(error) if isinstance(error, UserError) else f"{type(error).__name__}: {words(error)}"
    return one_line(said, 300)


def _line(error: UserError) -> str:
    return "; ".join(part for part in (error.problem, error.where, error.remedy) if part)


# --- what is looked at ---------------------------------------------------------------------------------


def requirements() -> list[str]:
    """Packages that this one needs; those whose version is recorded where it was not installed by pip."""
    from importlib.metadata import PackageNotFoundError, requires

    from harness.basics.provenance import PACKAGES

    try:
        needed = requires("wsss-bench") or PACKAGES
    except PackageNotFoundError:
        needed = PACKAGES
    names = [re.split(r"[^\w.-]", line)[0].lower() for line in needed if "extra ==" not in line]
    return sorted(names, key=lambda name: (PACKAGES.index(name) if name in PACKAGES else len(PACKAGES), name))


def _package(name: str) -> list[_Row]:
    """Version of a package, once it is imported."""
    from importlib import import_module
    from importlib.metadata import PackageNotFoundError, version

    from harness.basics import compat

    try:
        there = version(name)
    except PackageNotFoundError:
        return [(name, "missing", f"pip install {name}")]
    try:
        if name == "torchvision" and compat.cured():
            return [(name, there, "cured, see harness/basics/compat.py")]
        import_module(_MODULES.get(name, name.replace("-", "_")))
    except BaseException as error:  # a module may try to end the process
        return [(name, "broken", f"{there} cannot be imported: {_told(error)}; {_REMEDY}")]
    return [(name, there, "")]


def _machine() -> list[_Row]:
    from harness.basics import provenance

    return [("machine", f"{provenance.processor()}, {os.cpu_count()} cores", "")]


def driver_rows() -> list[_Row]:
    """NVIDIA's driver; without torch."""
    from harness.basics import devices

    version, supported, _ = devices.driver_here()
    newest = "" if supported is None else f"supports CUDA up to {'.'.join(map(str, supported))}"
    return [
        ("NVIDIA driver", "none" if version is None and supported is None else version or "unknown", newest)
    ]


def gpu_rows() -> list[_Row]:
    """GPUs that torch can use, and what it is built for."""
    import torch

    from harness.basics import devices

    found = devices.machine(thoroughly=True)
    gpus = [torch.cuda.get_device_name(i) for i in range(found.count)]
    built = f"torch {torch.__version__}, " + (f"CUDA {found.built}" if found.built else "CPU build")
    if found.present and not gpus:
        cards, said = "unusable", f"{devices.why_unusable(found)}; {devices.remedy(found)}"
    elif gpus:
        cards, said = ", ".join(gpus), devices.without_kernels(found)
    else:
        cards, said = "none", f"{built}: the mini suite runs; papers need a GPU"
    return [("GPU", cards, said), ("torch build", built, " ".join(found.architectures))]


def _full_size() -> list[_Row]:
    import torch

    from harness.basics import devices
    from harness.running.smoke import feeding

    found = devices.machine(thoroughly=True)
    usable = 0 if devices.without_kernels(found) else found.count
    return feeding.full_size_rows([torch.cuda.get_device_name(i) for i in range(usable)])


def _cache() -> list[_Row]:
    import shutil

    from harness.basics.files import cache_folder

    cache = cache_folder()
    place = next(p for p in (cache, *cache.parents) if p.exists())
    room = f"{shutil.disk_usage(place).free / 2**30:.0f} GiB free; set WSSS_CACHE to move it"
    return [("cache", str(cache), room)]


def _methods() -> list[_Row]:
    from harness.basics.registry import METHODS

    broken = METHODS.problems()
    ready: list[_Row] = [(f"method {name}", "ready", "") for name in METHODS.names() if name not in broken]
    return ready + _broken("method ", broken)


def _verbs() -> list[_Row]:
    from harness.basics.registry import COMMANDS

    return _broken("verb ", COMMANDS.problems())


def _tables() -> list[_Row]:
    """What stands in recipe files and tables and cannot be used."""
    from harness.recipes.protocols import protocol_problems
    from harness.recipes.resolving import usable
    from leaderboards.judge.statements import claim_problems
    from leaderboards.rows.published import published_problems

    return _broken("", {**usable()[1], **published_problems(), **claim_problems(), **protocol_problems()})


def _data(data_roots: tuple[str, ...]) -> list[_Row]:
    from harness.basics.files import cache_folder
    from harness.basics.registry import DATASETS
    from harness.data.sets import own
    from harness.data.sets.roots import open_dataset

    own.register(data_roots)
    broken = DATASETS.problems()
    rows = _broken("data ", broken)
    for name in (name for name in DATASETS.names() if name not in broken):
        try:
            dataset = open_dataset(name, data_roots, cache_folder())
            present = [f"{s} {len(dataset.ids(s)):,}/{n:,}" for s, n in dataset.info.splits.items()]
            rows.append((f"data {name}", "found", ", ".join(present)))
        except UserError as error:
            rows.append((f"data {name}", "missing", f"{error.problem}; {error.remedy}"))
    return rows


def _broken(noun: str, problems: dict[str, UserError]) -> list[_Row]:
    return [(f"{noun}{name}", "broken", _line(error)) for name, error in problems.items()]


_LOOKS: dict[str, Callable[..., list[_Row]]] = {
    "machine": _machine,
    "NVIDIA driver": driver_rows,
    "package": _package,
    "GPU": gpu_rows,
    "full-size steps": _full_size,
    "cache": _cache,
    "methods": _methods,
    "verbs": _verbs,
    "tables": _tables,
    "data": _data,
}
