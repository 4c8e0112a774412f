"""Files that exist only when they are whole: written beside their place, then renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import platformdirs

from harness.errors import UserError


def cache_folder() -> Path:
    """Where generated data and prepared labels live: ``$WSSS_CACHE``, else the user's cache folder."""
    return Path(os.environ.get("WSSS_CACHE") or platformdirs.user_cache_dir("wsss-bench"))


def read_toml(file: Path) -> dict[str, Any]:
    """The content of a TOML file. Raises UserError for one that cannot be read or is not valid."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=file, remedy="check the path") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"not valid TOML: {error}", where=file, remedy="mend the file") from None


@contextmanager
def whole_file(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that appears under ``path`` only if the block succeeds, with everything on disk."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    except OSError as error:
        _name(error, path)
        raise
    try:
        with os.fdopen(handle, mode, encoding=None if "b" in mode else "utf-8") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)  # mkstemp makes private files
        Path(name).replace(path)
    except OSError as error:
        Path(name).unlink(missing_ok=True)
        _name(error, path)
        raise
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _name(error: OSError, path: Path) -> None:
    """Raise a line that a user can act on for a full or locked disk; other errors are left alone."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "make room and run the same command again: what is written already is kept"
        raise UserError("the disk is full", where=path, remedy=remedy) from error
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = "change its permissions, or use a copy"
        raise UserError("this folder may not be written to", where=path.parent, remedy=remedy) from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole; NaN is refused (an absent class is ``null``)."""
    with whole_file(path) as stream:
        json.dump(value, stream, indent=1, allow_nan=False)
        stream.write("\n")


def write_with(path: Path, save: Callable[[IO[bytes]], Any]) -> None:
    """Let ``save(stream)`` write a binary file whole (``torch.save``, ``numpy.savez``)."""
    with whole_file(path, "wb") as stream:
        save(stream)


def read_json(path: Path) -> Any:
    """Parse a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def sha256_of(path: Path) -> str:
    """Content hash of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
