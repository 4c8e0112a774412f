"""Whole files under a URI: s3, gs, abfs, hdfs, file and ``fsspec+...``, through the filesystems of pyarrow.

:class:`Files` lists, uploads and downloads; ``harness.records.remote`` decides what. On object stores a file
appears when its upload is complete; elsewhere it is written beside its place and renamed. What may pass by
itself is tried again, everything else is a :class:`harness.basics.errors.UserError`.
"""

from __future__ import annotations

import random
import re
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from harness.basics.errors import UserError
from harness.basics.files import whole_file

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

_T = TypeVar("_T")

#: Size in bytes and time of modification in nanoseconds: a file that changed has another one.
Stamp = tuple[int, int]

#: Seconds between attempts, each made longer by up to a half at random; the client libraries try again too.
WAITS: tuple[float, ...] = (1, 2, 4, 8, 16)
#: Files that are under way at a time.
TRANSFERS = 16
#: Where an upload appears whole by itself, under its own name and without folders.
OBJECT_STORES = frozenset({"s3", "gcs", "abfs"})

_CHUNK = 8 * 2**20
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_DENIED = re.compile(
    r"ACCESS_DENIED|ACCESS_KEY|SIGNATURE|EXPIRED|PERMISSION_DENIED|UNAUTHENTICATED|OAuth2|[Cc]redential"
    r"|HTTP status 40[013]|[Pp]ermission denied"
)
_MISSING = re.compile(r"NO_SUCH_BUCKET|[Bb]ucket '?[^ ]*'? (does not exist|not found)|NoSuchBucket")
_LOG_IN = (
    "give credentials: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, for s3; "
    "GOOGLE_APPLICATION_CREDENTIALS for gs; on every node, with the right to list, read and write"
)


def is_uri(place: object) -> bool:
    """Whether a place is a URI, such as ``s3://bucket/prefix``, and not a folder."""
    return isinstance(place, str) and _SCHEME.match(place) is not None


def shown(uri: str) -> str:
    """A URI without its query and credentials, as it may be printed."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")


def beside(results: Path | str) -> Path:
    """The folder for what stands beside a record store: its parent, the current folder for a URI."""
    return Path() if isinstance(results, str) and is_uri(results) else Path(results).absolute().parent


def connect(uri: str) -> tuple[FileSystem, str]:
    """The filesystem of a URI, and the path of its prefix there.

    Raises:
        UserError: pyarrow is missing, the scheme is unknown, or the URI is not accepted.
    """
    try:
        from pyarrow.fs import FileSystem
    except ImportError as error:
        raise UserError(
            f"records under a URI need pyarrow, which cannot be imported: {error}",
            where=shown(uri),
            remedy="pip install pyarrow, or name a folder with --results",
        ) from None
    if uri.startswith(("gs://", "gcs://")) and "retry_limit_seconds" not in uri:
        # the client's own limit is a quarter of an hour, without credentials too
        uri += ("&" if "?" in uri else "?") + "retry_limit_seconds=20"
    try:
        files, path = FileSystem.from_uri(uri)
    except (OSError, ValueError, NotImplementedError, ImportError) as error:
        unknown = "nrecognized filesystem" in str(error) or isinstance(error, NotImplementedError)
        if unknown:
            scheme = uri.partition(":")[0]
            raise UserError(
                f"no filesystem is known for {scheme}://",
                where="--results",
                remedy="s3, gs, abfs, hdfs or file, or fsspec+NAME for one that fsspec has",
            ) from None
        raise explained_failure(error, shown(uri)) from None
    return files, path.rstrip("/")


def explained_failure(error: BaseException, where: object) -> UserError:
    """An error of a filesystem as one that a user can mend."""
    text = (str(error).splitlines() or [type(error).__name__])[0]
    if _MISSING.search(text):
        return UserError("there is no such bucket", where=where, remedy="create it, or check the URI")
    if isinstance(error, PermissionError):
        return UserError(f"access is refused: {text[:300]}", where=where, remedy="change its permissions")
    if _DENIED.search(text):
        return UserError(f"the store refuses access: {text[:300]}", where=where, remedy=_LOG_IN)
    return UserError(
        f"the store cannot be reached: {text[:300]}",
        where=where,
        remedy="check URI and network and run the same command again: what was stored before is whole",
    )


def _passing(error: BaseException) -> bool:
    """Whether the same attempt may succeed a little later."""
    if isinstance(error, PermissionError | ValueError | NotImplementedError):
        return False
    return not (_MISSING.search(str(error)) or _DENIED.search(str(error)))


def in_parallel(work: Callable[[_T], Any], items: Iterable[_T]) -> None:
    """``work(item)`` of all items, :data:`TRANSFERS` at a time; the first error ends it and is raised."""
    with ThreadPoolExecutor(TRANSFERS) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


class Files:
    """Whole files under one prefix. Names are relative to it, with ``/`` on every system.

    Args:
        uri: the prefix; nothing is opened before the first use.

    Every method raises UserError when the store refuses, or stays unreachable over all of :data:`WAITS`.
    """

    def __init__(self, uri: str) -> None:
        self.uri, self.shown = uri, shown(uri)
        self._opened: tuple[FileSystem, str] | None = None
        self._folders: set[str] = set()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.shown!r})"

    def _open(self) -> tuple[FileSystem, str]:
        if self._opened is None:
            self._opened = connect(self.uri)
        return self._opened

    @property
    def is_object_store(self) -> bool:
        """Whether uploads appear whole by themselves."""
        return self._open()[0].type_name in OBJECT_STORES

    def _path(self, name: str) -> str:
        prefix = self._open()[1]
        return f"{prefix}/{name}" if name else prefix

    def _tried(self, name: str, attempt: Callable[[FileSystem, str], _T], waits: Sequence[float]) -> _T:
        files, path = self._open()[0], self._path(name)
        for wait in (*waits, None):
            try:
                return attempt(files, path)
            except (OSError, ValueError, NotImplementedError) as error:
                if wait is None or not _passing(error):
                    raise explained_failure(error, f"{self.shown}/{name}".rstrip("/")) from error
                time.sleep(wait * random.uniform(1, 1.5))
        raise AssertionError("the last attempt returns or raises")

    # --- reading ----------------------------------------------------------------------------------

    def listing(self, folder: str = "", waits: Sequence[float] | None = None) -> dict[str, Stamp]:
        """Every file below a folder, by its name relative to the folder; hidden ones are left out.

        Args:
            folder: relative to the prefix; it need not exist.
            waits: instead of :data:`WAITS`.
        """

        def attempt(files: FileSystem, path: str) -> dict[str, Stamp]:
            from pyarrow.fs import FileSelector, FileType

            infos = files.get_file_info(FileSelector(path, allow_not_found=True, recursive=True))
            if not infos and not folder and self.is_object_store:
                bucket = path.partition("/")[0]  # an empty prefix of a missing bucket lists as well
                if files.get_file_info(bucket).type == FileType.NotFound:
                    raise OSError(f"bucket '{bucket}' does not exist")
            start = len(path) + 1
            found = ((info.path[start:], info) for info in infos if info.type == FileType.File)
            return {
                name: (info.size, info.mtime_ns or 0)
                for name, info in found
                if not name.rpartition("/")[2].startswith(".")
            }

        return self._tried(folder, attempt, WAITS if waits is None else waits)

    def download(self, name: str, target: Path, size: int | None = None) -> None:
        """Copy a file to disk, whole or not at all; ``size`` is checked where given."""

        def attempt(files: FileSystem, path: str) -> None:
            with whole_file(target, "wb") as out, files.open_input_stream(path) as source:
                shutil.copyfileobj(source, out, _CHUNK)
                if size is not None and out.tell() != size:
                    raise OSError(f"{out.tell()} of {size} bytes arrived")

        self._tried(name, attempt, WAITS)

    def read(self, name: str) -> bytes | None:
        """Content of a small file, None where there is none."""

        def attempt(files: FileSystem, path: str) -> bytes | None:
            try:
                with files.open_input_stream(path) as source:
                    return source.read()
            except FileNotFoundError:
                return None

        return self._tried(name, attempt, WAITS)

    # --- writing ----------------------------------------------------------------------------------

    def upload(self, source: Path, name: str) -> None:
        """Store a file under a name; an earlier one of that name stays until this one is whole."""

        def copy(out: Any) -> None:
            with source.open("rb") as stream:
                shutil.copyfileobj(stream, out, _CHUNK)

        self._put(name, copy)

    def write(self, name: str, content: bytes) -> None:
        """Store a small file."""
        self._put(name, lambda out: out.write(content))

    def _put(self, name: str, fill: Callable[[Any], Any]) -> None:
        def attempt(files: FileSystem, path: str) -> None:
            if self.is_object_store:
                with files.open_output_stream(path) as out:
                    fill(out)
                return
            folder, _, base = path.rpartition("/")
            if folder not in self._folders:
                files.create_dir(folder, recursive=True)
                self._folders.add(folder)
            part = f"{folder}/.{base}.part"
            try:
                with files.open_output_stream(part) as out:
                    fill(out)
                _replace(files, part, path)
            except OSError:
                self._folders.discard(folder)  # somebody may have removed it
                raise

        self._tried(name, attempt, WAITS)

    def delete(self, name: str) -> None:
        """Delete a file; nothing happens where there is none."""

        def attempt(files: FileSystem, path: str) -> None:
            try:
                files.delete_file(path)
            except FileNotFoundError:
                return

        self._tried(name, attempt, WAITS)


def _replace(files: FileSystem, part: str, path: str) -> None:
    """Rename over whatever is there."""
    try:
        files.move(part, path)
    except OSError:
        from pyarrow.fs import FileType

        if files.get_file_info(path).type != FileType.File:
            raise
        files.delete_file(path)  # HDFS does not rename over a file
        files.move(part, path)
