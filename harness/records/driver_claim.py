"""One driver at a time on a store under a URI, where files cannot be locked.

``driver.json`` beside the records says which process runs trials. It is written anew once a minute and
deleted in the end. A driver that died is taken over from at once on its own machine, elsewhere when its
last sign of life is :data:`STALE_SECONDS` old. Two that start within the same second may both get through:
the file is a warning, not a lock. One that would rather wait for its turn gives others that second.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from harness.basics.errors import UserError
from harness.basics.terminal import say
from harness.records.object_store import Files

NAME = "driver.json"
#: Seconds between two signs of life.
BEAT = 60.0
#: Seconds after the last sign of life at which a driver counts as dead.
STALE_SECONDS = 300.0


#: Claims of this process, which may have several threads that write.
_HELD: set[str] = set()
#: Seconds between two looks at the claim of another.
LOOK = 1.0


@contextmanager
def only_driver(files: Files, folder: str = "", patience: float = 0.0) -> Iterator[None]:
    """Hold the claim on a store, or on one folder of it, for the length of the block.

    Args:
        files: the store.
        folder: relative to it.
        patience: seconds to wait while another driver is at work.

    Raises:
        UserError: another driver is at work, or the store cannot be written to.
    """
    own = uuid.uuid4().hex
    _HELD.add(own)
    try:
        with _held(files, f"{folder}/{NAME}".lstrip("/"), own, patience):
            yield
    finally:
        _HELD.discard(own)


@contextmanager
def _held(files: Files, name: str, own: str, patience: float) -> Iterator[None]:
    deadline, told = time.monotonic() + patience, False
    while (other := _claimed(files, name, own, patience > 0)) is not None:
        if time.monotonic() >= deadline:
            _refuse(files, name, other)
        if not told:
            told = True
            say(f"waiting for process {other.get('pid')} on {other.get('host')}, which writes here too")
        time.sleep(LOOK)
    stop = threading.Event()
    thread = threading.Thread(target=_beat, args=(files, name, own, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=BEAT)
        with suppress(UserError):  # it goes stale by itself
            if _read(files, name).get("id") == own:
                files.delete(name)


def _claimed(files: Files, name: str, own: str, patient: bool) -> Mapping[str, Any] | None:
    """Whose the claim is, None where it is ours now."""
    other = _read(files, name)
    if other and _alive(other):
        return other
    _write(files, name, own)
    if patient:  # whoever has looked before us writes meanwhile, and the last one stays
        time.sleep(LOOK)
    other = _read(files, name)
    return other if other and other.get("id") != own else None


def _read(files: Files, name: str) -> Mapping[str, Any]:
    try:
        found = json.loads(files.read(name) or b"{}")
        if not found:
            return {}
        return {**found, "beat": float(found.get("beat", 0)), "pid": min(int(found.get("pid", 0)), _MOST_PID)}
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):  # nobody's claim
        return {}


#: No system has processes of greater numbers.
_MOST_PID = 2**31 - 1


def _write(files: Files, name: str, own: str) -> None:
    said = {"id": own, "host": platform.node(), "pid": os.getpid(), "beat": time.time()}
    files.write(name, json.dumps(said).encode())


def _alive(other: Mapping[str, Any]) -> bool:
    if time.time() - float(other.get("beat", 0)) > STALE_SECONDS:
        return False
    if other.get("host") != platform.node() or os.name != "posix":
        return True
    pid = int(other.get("pid", 0))
    if pid == os.getpid():  # containers start again with the same name and number
        return other.get("id") in _HELD
    try:
        os.kill(max(pid, 1), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _refuse(files: Files, name: str, other: Mapping[str, Any]) -> None:
    age = max(time.time() - float(other.get("beat", 0)), 0)
    raise UserError(
        f"another driver is at work here: process {other.get('pid')} on {other.get('host')}, "
        f"seen {age:.0f} s ago",
        where=f"{files.shown}/{name}",
        remedy=f"wait for it; if it was killed, start again in {STALE_SECONDS / 60:.0f} minutes, "
        "or delete that file",
    )


def _beat(files: Files, name: str, own: str, stop: threading.Event) -> None:
    while not stop.wait(BEAT):
        with suppress(UserError):  # a store out of reach is reported by those who need it
            if _read(files, name).get("id") not in (own, None):
                say(f"warning: another driver has begun to work on {files.shown}; end one of the two")
                return
            _write(files, name, own)
