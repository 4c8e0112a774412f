"""Files that others wrote, or that a disk has damaged: read within bounds, typed, and named in every error.

All readers of a store, a cache or somebody's files go through here. What is no regular file is never opened
for long (a FIFO would wait for ever), what is too large is not read, and whatever is wrong becomes a
:class:`Damaged` that names the file.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

import orjson

from harness.basics.errors import UserError
from harness.basics.text import cleaned, needs_cleaning

_T = TypeVar("_T")

#: Largest JSON or text file that is read: the records of a trial take some kilobytes, the annotations of
#: COCO's training split 450 MiB.
MOST_TEXT = 1 << 30
#: Largest record, evaluation or memo.
MOST_DOCUMENT = 64 << 20


class Damaged(UserError):
    """A file that cannot be believed: unreadable, not whole, or not what was recorded.

    Attributes:
        mendable: whether a run may move it aside and make it again.
    """

    mendable = True

    @property
    def brief(self) -> str:
        """The file and what is wrong with it, on one line."""
        return f"{self.where}: {' '.join(self.problem.split())}"


class Newer(Damaged):
    """A file that a newer version of this project wrote: not damaged, and never to be replaced."""

    mendable = False


class Misplaced(Damaged):
    """A sound file of something else than its place says, such as a copy: never to be replaced."""

    mendable = False


_AGAIN = "restore the file, or delete it where it can be made again"
_WHY = {
    errno.ENOENT: "it is missing, or a link that leads nowhere",
    errno.ELOOP: "it is a link that leads back to itself",
    errno.EACCES: "it may not be read",
    errno.EPERM: "it may not be read",
    errno.ENOTDIR: "a part of its path is no folder",
    errno.ENXIO: "it is no regular file",
}


def damaged(path: Path, problem: str, remedy: str = _AGAIN) -> Damaged:
    """The error for a file."""
    return Damaged(problem, where=path, remedy=remedy)


def read_bytes(path: Path, most: int = MOST_TEXT) -> bytes:
    """The content of a regular file of at most ``most`` bytes.

    Raises:
        Damaged: missing, a folder, a FIFO or another thing that is no file, unreadable, or larger.
    """
    try:
        with opened(path, most) as stream:
            return stream.read()
    except OSError as error:
        raise unreadable(path, error) from None


@contextmanager
def opened(path: Path, most: int = MOST_TEXT) -> Iterator[IO[bytes]]:
    """A regular file of at most ``most`` bytes, open for reading; nothing waits for a FIFO.

    Raises:
        OSError: the system does not give it.
        Damaged: a folder, a FIFO or another thing that is no file, or larger.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        check_kind(path, os.fstat(handle), most)
        with os.fdopen(handle, "rb", buffering=0, closefd=False) as stream:
            yield stream
    finally:
        os.close(handle)


def unreadable(path: Path, error: OSError) -> Damaged:
    """The error for a file that the system does not give."""
    why = _WHY.get(error.errno or 0, f"it cannot be read ({error.strerror or error})")
    return damaged(path, why, "check the path and its permissions")


def check_kind(path: Path, status: os.stat_result, most: int) -> None:
    """Raises Damaged for what is no regular file, or a larger one than ``most`` bytes."""
    if stat.S_ISDIR(status.st_mode):
        raise damaged(path, "it is a folder, a file is wanted", "move the folder away")
    if not stat.S_ISREG(status.st_mode):
        raise damaged(path, "it is no regular file", "move it away")
    if status.st_size > most:
        raise damaged(path, f"it has {status.st_size:,} bytes, {most:,} are the most that is read here")


def check_regular(path: Path, most: int = 1 << 50) -> None:
    """Raises Damaged unless a path leads to a regular file of at most ``most`` bytes."""
    try:
        check_kind(path, path.stat(), most)
    except OSError as error:
        raise unreadable(path, error) from None


def read_text(path: Path, most: int = MOST_TEXT) -> str:
    """A UTF-8 text, with or without a byte order mark.

    Raises:
        Damaged: as :func:`read_bytes`, or other bytes.
    """
    try:
        return read_bytes(path, most).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise damaged(path, "it is no UTF-8 text") from None


def read_json(path: Path, most: int = MOST_DOCUMENT) -> Any:
    """The value of a JSON file, its text cleaned (:mod:`harness.basics.text`); NaN and Infinity are refused.

    Raises:
        Damaged: as :func:`read_bytes`, or not JSON.
    """
    data = read_bytes(path, most)
    try:
        value = orjson.loads(data)
    except ValueError as error:  # too deeply nested, too
        why = "it is empty" if not data.strip(b"\0 \r\n\t") else f"not valid JSON: {error}"
        raise damaged(path, why) from None
    return cleaned(value) if needs_cleaning(data) else value


def read_object(path: Path, most: int = MOST_DOCUMENT, *, newest: int | None = None) -> dict[str, Any]:
    """The object of a JSON file.

    Args:
        path: the file.
        most: largest number of bytes.
        newest: the newest ``schema`` that can be read; None where the file has none.

    Raises:
        Damaged: as :func:`read_json`, or another value than an object.
        Newer: a newer version wrote it.
    """
    value = read_json(path, most)
    if not isinstance(value, dict):
        raise damaged(path, f"it holds {_kind(value)} and no object of keys and values")
    if newest is not None:
        version = value.get("schema", 0)
        if type(version) is not int or version < 0:
            raise damaged(path, f"key 'schema': a whole number is wanted, got {str(version)[:40]!r}")
        if version > newest:
            raise Newer(
                f"it has schema {version}, newer than this version reads ({newest})",
                where=path,
                remedy="update wsss-bench",
            )
    return value


def remembered(path: Path, understand: Callable[[dict[str, Any]], _T], nothing: _T) -> _T:
    """What a memo says, and ``nothing`` where there is no sound one: it only saves work.

    Args:
        path: a JSON file.
        understand: its object to what is wanted; it may raise whatever wrong types make it raise.
        nothing: the value for a missing or damaged memo.
    """
    try:
        return understand(read_object(path))
    except (Damaged, ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError):
        return nothing


#: A name that is one part of a path on every system: no separator, control character or leading dot or dash.
PART = r"[^\x00-\x20\x7f/\\:*?\"<>|.-][^\x00-\x1f\x7f/\\:*?\"<>|]*"
#: Longest such name.
LONGEST_NAME = 200


def check_part(name: str, what: str, where: object) -> str:
    """A name from somebody's file that becomes part of a path.

    Raises:
        UserError: it could lead elsewhere, or is no name of a file.
    """
    if len(name) > LONGEST_NAME or not re.fullmatch(PART, name):
        raise UserError(
            f"{what} {name[:60]!r} cannot be part of a path",
            where=where,
            remedy="letters, digits, - and _, not beginning with a dot or a dash",
        )
    return name


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    return {list: "a list", str: "a text", bool: "a truth value"}.get(type(value), "a number")


def set_damaged_aside(path: Path) -> Path | None:
    """Move whatever stands at a path out of the way, as ``<name>.damaged``; None where nothing stands.

    Works on folders, links that lead nowhere and FIFOs alike; nothing is deleted.
    """
    if not os.path.lexists(path):
        return None
    target, number = path.with_name(f"{path.name}.damaged"), 1
    while os.path.lexists(target):
        number += 1
        target = path.with_name(f"{path.name}.damaged-{number}")
    path.rename(target)
    return target
