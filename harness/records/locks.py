"""One process at a time runs a trial: a lock of the operating system on a file in the trial's folder.

The system releases the lock when its holder dies, however it dies. So drivers that share a store, a
driver that is started again while workers of the old one still live, and a worker that Ray has given
up although it lives, cannot run one trial at the same time. Locks work on local disks and on NFS; where
a file system has none (some Lustre mounts), one driver at a time may use the store.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from harness.basics.errors import UserError
from harness.basics.files import named, write_json
from harness.basics.reading import remembered

LOCK = "trial.lock"
#: Who holds the lock: host, process, since when. Means nothing when the lock is free.
HOLDER = "running.json"


class Elsewhere(Exception):
    """A trial is the business of another process.

    Attributes:
        status: ``busy`` while that process runs it, ``kept`` when it has finished it.
    """

    def __init__(self, status: str, reason: str = "") -> None:
        self.status = status
        super().__init__(status, reason)

    def __str__(self) -> str:
        return self.args[1]


#: The file system has no locks.
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


def _create(file: Path, timeout: float) -> BaseFileLock:
    try:  # a lock that is a file's mere existence would outlive its holder
        return FileLock(file, timeout=timeout, thread_local=False, fallback_to_soft=False)
    except TypeError:  # older versions have no such lock to fall back to
        return FileLock(file, timeout=timeout, thread_local=False)


@contextmanager
def locked(file: Path, timeout: float = -1) -> Iterator[None]:
    """Hold the lock on a file.

    Args:
        file: the lock file; it stays, since removing it would let two processes hold "the" lock.
        timeout: seconds to wait, -1 for as long as it takes.

    Raises:
        filelock.Timeout: another process holds it.
        UserError: the file cannot be made, or a link stands in its place.
    """
    lock = _create(file, timeout)
    if file.is_symlink():  # never followed
        raise UserError("a link stands where a lock file belongs", where=file, remedy="delete the link")
    with named(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except (NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
                raise
            warnings.warn(f"no file locks under {file.parent}: let one driver at a time use it", stacklevel=3)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def trial_lock(folder: Path, timeout: float = 0) -> Iterator[None]:
    """Hold a trial's folder while the trial runs.

    Raises:
        Elsewhere: another process runs the trial.
        UserError: the disk is full.
    """
    holder = folder / HOLDER
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / LOCK, timeout))
        except Timeout:
            raise Elsewhere("busy", f"runs elsewhere: {_describe(holder)}") from None
        _remove_drafts(folder)
        # A file made here also lets an NFS client see what others have written into the folder.
        now = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(holder, {"host": socket.gethostname(), "process": os.getpid(), "since": now})
        try:
            yield
        finally:
            holder.unlink(missing_ok=True)


def _remove_drafts(folder: Path) -> None:
    """Remove drafts of files whose writer was killed."""
    places = [folder, folder / "checkpoint"]
    if not (folder / "record.json").exists():  # else another command may add an evaluation just now
        places += (folder / "evaluations").glob("*")
    for place in places:
        for draft in place.glob(".*.part"):
            draft.unlink(missing_ok=True)


def is_free(folder: Path) -> bool:
    """Whether nobody runs the trial of a folder just now."""
    try:
        with locked(folder / LOCK, timeout=0):
            return True
    except Timeout:
        return False


def _describe(holder: Path) -> str:
    return remembered(
        holder,
        lambda found: f"process {found['process']} on {found['host']}, since {found['since']}",
        "by another process",
    )
