"""Errors of the system, and those that nobody foresaw, in a few lines."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from harness.basics.errors import UserError
from harness.basics.files import write_json
from harness.basics.terminal import LINES, say
from harness.cli.main import guarded
from tests.runs import wsss


def fail(error: BaseException) -> int:
    def work() -> None:
        raise error

    return guarded(work)


def test_an_unforeseen_error_is_short_and_leaves_its_traceback(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("WSSS_CACHE", str(tmp_path))
    monkeypatch.delenv("WSSS_DEBUG", raising=False)
    assert fail(ZeroDivisionError("x\x1b[2J")) == 1
    error = capsys.readouterr().err
    assert "ZeroDivisionError" in error
    assert "\x1b" not in error
    assert len(error.splitlines()) <= LINES
    (file,) = (tmp_path / "traces").iterdir()
    assert str(file) in error
    assert "Traceback" in file.read_text()
    monkeypatch.setenv("WSSS_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        fail(ZeroDivisionError())


@pytest.mark.parametrize(
    "number", [errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.EMFILE]
)
def test_an_error_of_the_system_names_the_file(number: int, capsys):
    assert fail(OSError(number, "reason", "/some/file")) == 2
    error = capsys.readouterr().err
    assert "/some/file" in error
    assert "remedy" in error


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "x.json", tmp_path / ("a" * 300), tmp_path):
        with pytest.raises(UserError, match="where:"):
            write_json(place, {})


def test_messages_have_an_end(capsys):
    say("\n".join(map(str, range(100))))
    assert len(capsys.readouterr().err.splitlines()) <= LINES
    assert wsss("show", "nul\0byte") == 2
    assert "NUL" in capsys.readouterr().err
