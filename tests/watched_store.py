"""A filesystem of pyarrow that notes what is done and fails when told to, for tests of stores."""

from __future__ import annotations

from pathlib import Path

import pyarrow.fs


class Killed(BaseException):
    """The end of a process, as far as it can be had without ending one."""


class Watched:
    """A filesystem that notes what is done, and fails when told to.

    Args:
        base: where files really go.
        kind: pretended type; ``s3`` stores whole objects without folders and renames.
    """

    def __init__(self, base: pyarrow.fs.FileSystem, kind: str) -> None:
        self.base, self.type_name = base, kind
        self.done: list[tuple[str, str]] = []
        #: Raised by the next calls, one each.
        self.failures: list[Exception] = []
        #: Calls after which the process is dead.
        self.alive = 10**9

    def _call(self, what: str, *arguments: object, **options: object):
        self.done.append((what, str(arguments[0])))
        self.alive -= 1
        if self.alive < 0:
            raise Killed
        if self.failures and what != "create_dir":
            raise self.failures.pop(0)
        return getattr(self.base, what)(*arguments, **options)

    def __getattr__(self, name: str):
        return lambda *arguments, **options: self._call(name, *arguments, **options)

    def open_output_stream(self, path: str):
        if self.type_name == "s3":  # the filesystem behind wants folders
            self.base.create_dir(path.rpartition("/")[0], recursive=True)
        return self._call("open_output_stream", path)

    def stored(self) -> list[str]:
        """Names in the order in which they were uploaded; drafts by the name they get."""
        paths = [path.removeprefix("bucket/p/") for what, path in self.done if what == "open_output_stream"]
        return [path.replace("/.", "/").removesuffix(".part") for path in paths]

    def read(self, name: str) -> bytes:
        with self.base.open_input_stream(f"bucket/p/{name}") as stream:
            return stream.read()


def names_below(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
