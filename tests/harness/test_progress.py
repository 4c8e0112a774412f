"""How far a verb is: one look on a terminal, few plain lines elsewhere, and nothing on stdout."""

from __future__ import annotations

import io
import sys

import pytest

from harness.basics.progress import PLAIN_SECONDS, Bar, counted
from harness.basics.terminal import say


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    return Terminal()


def test_a_terminal_shows_what_how_many_and_the_time_left(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", terminal)
    now = 0.0
    with Bar("scoring", 1200, clock=lambda: now) as bar:
        for _ in range(300):
            now += 0.1
            bar.advance()
    shown = terminal.getvalue()
    assert "scoring" in shown
    assert "━" in shown
    assert "300 of 1,200 pictures, 1:30 left" in shown


def test_what_is_said_meanwhile_stands_above_the_line(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", terminal)
    for number in counted(range(3), 3, "predicting"):
        if number == 1:
            print("note: a picture is large", file=sys.stderr)
    assert "note: a picture is large\n" in terminal.getvalue()


def test_a_log_gets_a_line_now_and_then_and_a_short_work_none(capsys: pytest.CaptureFixture) -> None:
    assert list(counted("abc", 3, "exporting")) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")
    now = 0.0
    with Bar("fetching", 10, "records", clock=lambda: now) as bar:
        for _ in range(6):
            now += PLAIN_SECONDS / 2
            bar.advance()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0] == "progress fetching, 2 of 10 records, 2:00 left"
    assert len(err.splitlines()) == 3


def test_a_bar_ends_with_its_work(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal)
    with pytest.raises(ValueError, match="wrong"):
        for number in counted(range(3), 3, "predicting"):
            if number:
                raise ValueError("wrong")
    say("error: this is wrong")
    assert terminal.getvalue().endswith("\x1b[31merror:\x1b[0m this is wrong\n")


@pytest.mark.parametrize("word", ["warning:", "left out:", "note:"])
def test_what_is_said_aside_has_the_look_of_errors(
    word: str, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", terminal)
    say(f"{word} " + "a sentence that goes on " * 8)
    first, *others = terminal.getvalue().splitlines()
    assert first.startswith("\x1b[")
    assert others
    assert all(len(line) <= 80 for line in others)
