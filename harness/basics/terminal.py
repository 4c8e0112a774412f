"""The process's door: its standard streams, and what is said of an error that nobody foresaw."""

from __future__ import annotations

import errno
import io
import os
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path

from harness.basics.errors import UserError
from harness.basics.files import cache_folder

#: Lines of an error message, at most.
LINES = 8


def prepare_streams() -> None:
    """Give the process streams that it can write to, whatever it was started with.

    A closed stream (``>&-``) is replaced by the null device: a file opened later would take its number, and
    receive what libraries print. Characters that the terminal's encoding lacks are written as escapes.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):
                opened = os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
                if opened != number:
                    os.dup2(opened, number)
                    os.close(opened)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            with suppress(OSError, ValueError):
                stream.reconfigure(errors="backslashreplace")


def flush_streams(code: int) -> int:
    """Write out what is buffered; the exit code, which is 1 where the reader is gone or the disk is full."""
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except (OSError, ValueError) as error:
            with suppress(OSError):  # the interpreter flushes once more in the end
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, 1 if name == "stdout" else 2)
                os.close(null)
            if getattr(error, "errno", None) == errno.ENOSPC and name == "stdout":
                say("error: the disk is full: not everything was printed")
            code = code or 1
    return code


def say(text: str) -> None:
    """Print to the error stream, at most :data:`LINES` lines; nothing where it cannot be written to."""
    lines = text.splitlines()
    if len(lines) > LINES:
        lines = [*lines[: LINES - 3], "  ...", *lines[-2:]]
    with suppress(OSError, ValueError, AttributeError):
        print("\n".join(_fitted(lines)), file=sys.stderr, flush=True)


def _fitted(lines: list[str]) -> list[str]:
    """Lines wrapped below where they begin, and their first word in its colour, for who reads them."""
    terminal = sys.stderr.isatty()
    if not terminal and "COLUMNS" not in os.environ:
        return lines  # a log: one line stays one line
    from harness.basics.listing import prose

    fitted = []
    for line in lines:
        text = line.lstrip()
        start = " " * (len(line) - len(text))
        name = next((n for n in ("where:  ", "remedy: ") if text.startswith(n)), "")
        fitted.append(prose(text.removeprefix(name), first=start + name, indent=f"{start}{' ' * len(name)}"))
    for word, colour in _COLOURS.items() if terminal and fitted else ():
        if fitted[0].startswith(word):
            fitted[0] = f"\x1b[{colour}m{word}\x1b[0m{fitted[0].removeprefix(word)}"
    return fitted


#: First words of what is said aside, in the colours of the same states in listings (ANSI: red, yellow, dim).
_COLOURS = {"error:": 31, "warning:": 33, "left out:": 33, "not compared with the data set:": 33, "note:": 2}


def of_system(error: OSError) -> UserError | None:
    """What a user can act on in an error of the operating system; None where it names no file."""
    if error.filename is None and error.errno not in _PLACELESS:
        return None
    what = os.strerror(error.errno).lower() if error.errno else str(error)
    remedy = _REMEDIES.get(error.errno or 0, "check that the path is right and may be read and written")
    where = error.filename
    if isinstance(where, bytes):
        where = os.fsdecode(where)
    return UserError(f"the system refuses: {what}", where=where, remedy=remedy)


_PLACELESS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO)
_REMEDIES = {
    errno.EMFILE: "raise the limit of open files (ulimit -n), or take fewer --workers",
    errno.ENFILE: "close other programs: the system has too many open files",
    errno.ENOMEM: "free memory, or take fewer --workers",
    errno.ENAMETOOLONG: "choose a shorter name: file systems take 255 bytes",
    errno.ELOOP: "replace the link that leads back to itself",
    errno.ENOTDIR: "a part of the path is a file: choose another place",
    errno.EEXIST: "a file stands where a folder is needed: choose another place",
    errno.EISDIR: "a folder stands where a file is needed: choose another place",
}


def of_unforeseen(error: BaseException) -> str:
    """A short message about an error that is this project's mistake; the traceback goes to a file."""
    summary = traceback.format_exception_only(error)[-1].strip()
    problem = f"this should not have happened: {summary}"
    text = "".join(traceback.format_exception(error))
    for place in (cache_folder() / "traces", Path(tempfile.gettempdir())):
        file = place / f"wsss-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
        with suppress(OSError, ValueError):
            place.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8", errors="backslashreplace")
            remedy = "report it with that file; WSSS_DEBUG=1 shows the traceback here"
            return str(UserError(problem, where=file, remedy=remedy))
    return str(UserError(problem, remedy="report it; WSSS_DEBUG=1 shows the traceback"))
