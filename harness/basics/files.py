"""Files that exist only when they are whole: written beside their place, then renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import tempfile
import threading
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import platformdirs

from harness.basics import interruption
from harness.basics.errors import UserError, causes
from harness.basics.reading import check_regular, read_text
from harness.basics.text import cleaned


def cache_folder() -> Path:
    """Where generated data and prepared labels live: ``$WSSS_CACHE``, else the user's cache folder."""
    return Path(os.environ.get("WSSS_CACHE") or platformdirs.user_cache_dir("wsss-bench"))


def expanded(path: Path | str) -> Path:
    """A path with ``~`` and ``~user`` filled in. Raises UserError for a user without a home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(
            "there is no home folder that ~ could mean here", where=path, remedy="write the path out"
        ) from None


def read_toml(file: Path) -> dict[str, Any]:
    """The content of a TOML file, its text cleaned (:mod:`harness.basics.text`).

    Raises:
        UserError: it cannot be read, or is not valid TOML in UTF-8.
    """
    try:
        return cleaned(tomllib.loads(read_text(file, _MOST_TOML)))
    except (ValueError, RecursionError) as error:  # also numbers beyond what Python reads
        raise UserError(f"not valid TOML: {error}", where=file, remedy="mend the file") from None


#: Largest TOML file: descriptions that people write.
_MOST_TOML = 16 << 20


#: The system tells a process its mask by replacing it: two threads at once could leave none.
_UMASK = threading.Lock()


@contextmanager
def whole_file(path: Path, mode: str = "w", *, durable: bool = True) -> Iterator[IO[Any]]:
    """Open a file that appears under ``path`` only if the block succeeds, with everything on disk.

    Args:
        path: the file.
        mode: how it is opened.
        durable: wait for the disk, which takes milliseconds. Without, the file may be broken after a power
            failure: for what its reader checks and makes again.
    """
    name: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with interruption.held():  # or a signal between the two would leave the draft behind
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as stream:
            yield stream
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        with _UMASK:
            umask = os.umask(0)
            os.umask(umask)
        Path(name).chmod(0o666 & ~umask)  # mkstemp makes private files
        Path(name).replace(path)
    except BaseException as error:
        if name is not None:
            with interruption.held():
                Path(name).unlink(missing_ok=True)
        _name(error, path)
        raise


def check_writable(place: Path, *, file: bool = False) -> None:
    """Refuse a folder or file that cannot be written, before work whose result would be lost there.

    Nothing stays behind: of a folder that is still to be made, the nearest one that exists is tried.

    Args:
        place: a folder.
        file: it is a file instead, as :func:`whole_file` writes one.

    Raises:
        UserError: nothing can be made there, with why.
    """
    draft = f".{place.name}." if file else ".wsss-"
    with named(place):
        missing = []
        there = place.absolute().parent if file else place.absolute()
        while True:
            try:
                there.lstat()
                break
            except FileNotFoundError:
                missing.append(there.name)
                there = there.parent
        try:
            with interruption.held():
                Path(tempfile.mkdtemp(dir=there, prefix=draft, suffix=".part")).rmdir()
        except FileNotFoundError:  # a link that leads nowhere, or a file system of the kernel's
            raise UserError("nothing can be made here", where=place, remedy="choose another place") from None
        for name in missing:  # the system looks at no name below one that is missing
            with suppress(FileNotFoundError):
                (there / name).lstat()
        if file and place.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(place))


def append(path: Path, text: str) -> None:
    """Add text to the end of a file; errors as in :func:`named`."""
    with named(path), path.open("a", encoding="utf-8") as stream:
        stream.write(text)


def sync(path: Path) -> None:
    """Bring what was appended to a file to the disk; nothing where there is no such file."""
    if path.exists():
        with named(path), path.open("rb+") as stream:
            os.fsync(stream.fileno())


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Say what a user can do where the system refuses to write to ``path``.

    Raises:
        UserError: the disk is full, a limit is reached, or the place may not be written to. Other errors
            pass as they are.
    """
    try:
        yield
    except Exception as error:
        _name(error, path)
        raise


def refusal(error: BaseException, path: Path | None = None) -> UserError | None:
    """The line that a user can act on for a full or locked disk; None for any other error.

    Args:
        error: what was raised; an error of the system that led to it counts too (``torch.save`` raises
            one of its own on top).
        path: the file that was being written; without it, only a lack of room is recognised.
    """
    for found in causes(error):
        if isinstance(found, UserError):
            return None
        if isinstance(found, OSError) and found.errno in _REFUSALS:
            if path is None and found.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                return None  # it may have been read
            problem, remedy = _REFUSALS[found.errno]
            return UserError(problem, where=path or found.filename, remedy=remedy)
    return None


_ROOM = "make room and run the same command again: what is written already is kept"
_RIGHTS = "change its permissions, or use a copy"
_REFUSALS = {
    errno.ENOSPC: ("the disk is full", _ROOM),
    errno.EDQUOT: ("the disk quota is used up", _ROOM),
    errno.EFBIG: ("the file would be larger than this system allows (ulimit -f)", "raise the limit"),
    errno.EACCES: ("this place may not be written to", _RIGHTS),
    errno.EPERM: ("this place may not be written to", _RIGHTS),
    errno.EROFS: ("this place may not be written to", _RIGHTS),
    errno.ENOTDIR: ("a part of this path is a file, not a folder", "choose another place"),
    errno.EEXIST: ("a file stands where a folder is needed", "choose another place"),
    errno.EISDIR: ("a folder stands where this file belongs", "choose another place, or remove the folder"),
    errno.ENAMETOOLONG: ("the name is longer than the 255 bytes that file systems take", "shorten it"),
    errno.ELOOP: ("a symbolic link here leads back to itself", "replace the link"),
}


def _name(error: BaseException, path: Path) -> None:
    if isinstance(error, Exception) and (clear := refusal(error, path)) is not None:
        raise clear from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole; NaN is refused (an absent class is ``null``).

    Raises:
        ValueError: a value that JSON does not hold, with its place.
    """
    with whole_file(path) as stream:
        try:
            json.dump(value, stream, indent=1, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            where, what = next(_unrecordable(value), ("", error))
            raise ValueError(f"{path.name} cannot hold {where or 'a value'}: {what}") from error
        stream.write("\n")


def _unrecordable(value: Any, place: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    """Places and descriptions of values that JSON does not hold."""
    if depth > 100:
        yield place, "nested too deeply"
    elif isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str | int | float | bool | None):
                yield place, f"a key of type {type(key).__name__}"
            yield from _unrecordable(inner, f"{place}.{key}".lstrip("."), depth + 1)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _unrecordable(inner, f"{place}.{index}".lstrip("."), depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        yield place, str(value)
    elif not isinstance(value, str | int | float | bool | None):
        yield place, f"a value of type {type(value).__name__}"


def recordable(value: Any, depth: int = 0) -> Any:
    """The nearest to a value that JSON holds: what it does not hold becomes a text that says its type."""
    if isinstance(value, dict) and depth <= 100:
        return {str(key): recordable(inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, list | tuple) and depth <= 100:
        return [recordable(inner, depth + 1) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return f"({type(value).__name__})"


def write_with(path: Path, save: Callable[[IO[bytes]], Any], *, durable: bool = True) -> None:
    """Let ``save(stream)`` write a binary file whole (``torch.save``, ``numpy.savez``)."""
    with whole_file(path, "wb", durable=durable) as stream:
        save(stream)


def sha256_of(path: Path) -> str:
    """Content hash of a regular file. Raises Damaged where there is none."""
    check_regular(path)
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
