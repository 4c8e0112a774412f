"""The live table at several widths, plain lines off a terminal, and estimates of the time that is left."""

from __future__ import annotations

import io
import sys
import time

import pytest
from rich.console import Console

from harness.basics.progress import PLAIN_SECONDS
from harness.engine.training import Status
from harness.running.watching.board import Board, Work, duration, shortened_line

LONG = "dskd_gc/voc-image-vitb-keep-background seed 12"


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def terminal(width: int, height: int = 24) -> Console:
    return Console(file=io.StringIO(), width=width, height=height, force_terminal=True, highlight=False)


def shown(board: Board, width: int, height: int = 24) -> list[str]:
    """What the table looks like, line by line."""
    console = Console(file=io.StringIO(), width=width, height=height, record=True)
    board.console = console
    console.print(board.picture())
    return console.export_text().splitlines()


@pytest.fixture
def board():
    """Three running trials, one of which evaluates; two ended; two wait."""
    clock = Clock()
    names = ["agmm/mini-scribble seed 0", LONG, "cam/mini-image seed 1", "a/b", "c/d", "e/f", "g/h"]
    works = {n: Work(n, n.split()[0], 100.0) for n in names}
    board = Board(len(works), works, console=terminal(80), clock=clock)
    board.end("a/b", "kept", "kept     a/b")
    board.end("c/d", "failed", "failed   c/d\n  because")
    for second in range(1, 21):
        clock.now = second
        board.update(names[0], Status(10 * second, 400, 10.0, {"ce": 0.25, "tree": 0.5}))
        board.update(LONG, Status(19_000 + second, 20_000, 1.0, {"ce": 1.0}, miou=61.234, memory_mib=10231.4))
    board.update(names[2], Status(0, 200, 0.0))
    board.update(LONG, Status(200, 1449, 48.0, note="evaluating val-agmm-voc"))
    yield board
    board.close()


def test_at_80_columns_every_line_fits_and_says_all_that_runs(board):
    lines = shown(board, 80)
    assert all(len(line) <= 80 for line in lines)
    assert lines[0].split() == ["trial", "step", "per", "s", "left", "mIoU", "GPU", "MiB"]
    rows = [line.rstrip() for line in lines]
    assert rows[1].split() == ["agmm/mini-scribble", "seed", "0", "200/400", "10.0", "0:20", "-", "-"]
    assert rows[2].endswith("eval 200/1449   48.0     0:26  61.23    10231")
    assert rows[2].startswith("dskd_gc/voc-")
    assert "seed 12 " in rows[2], "the seed is not cut off"
    assert rows[3].split()[-5:] == ["0/200", "-", "-", "-", "-"]
    assert "  0 finished  1 failed  1 kept  2 waiting  " in rows[4]
    assert rows[4].endswith(" left")
    assert "━━━" in rows[4]
    assert len(rows[4]) <= 78, "where a terminal echoes ^C"
    assert len(rows) == 5


def test_at_120_columns_there_is_room_for_the_loss_and_the_note(board):
    lines = shown(board, 120)
    assert all(len(line) <= 120 for line in lines)
    assert "loss" in lines[0].split()
    assert "0.75" in lines[1].split()
    assert lines[2].rstrip().endswith("evaluating val-agmm-voc")
    assert "200/1449" in lines[2]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 109, 110, 200])
def test_no_width_breaks_a_line(board, width):
    lines = shown(board, width)
    assert all(len(line) <= width for line in lines)
    assert len(lines) == 5


def test_more_trials_than_lines_are_counted(board):
    for number in range(50):
        board.update(number, Status(1, 10, 1.0), Work(f"trial {number}"))
    lines = shown(board, 80, height=20)
    assert len(lines) <= 19, "the terminal's last line stays free"
    assert lines[-2] == "and 38 more"
    assert "waiting" in lines[-1]


def test_the_terminal_is_left_as_it_was(board):
    before = sys.stderr
    console = terminal(80)
    with pytest.raises(KeyboardInterrupt):
        try:
            second = Board(1, console=console)
            second.update("a", Status(1, 2, 1.0))
            raise KeyboardInterrupt
        finally:
            second.close()
    written = console.file.getvalue()
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l"), "the cursor is visible again"
    assert sys.stderr is before
    board.close()


def test_what_ended_stands_above_the_table(board):
    written = board.console.file.getvalue()
    assert "because" in written
    board.end("e/f", "finished", "finished e/f  [val] 45.20 mIoU")
    board.close()
    assert "[val] 45.20 mIoU" in board.console.file.getvalue(), "brackets are no markup"


def test_off_a_terminal_there_are_plain_lines_alone(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as CI sets it
    clock = Clock()
    works = {n: Work(n) for n in ("a/b seed 0", "a/b seed 1")}
    board = Board(2, works, clock=clock)
    for second in range(100):
        clock.now = second
        board.update("a/b seed 0", Status(second, 200, 1.0))
    board.end("a/b seed 0", "finished", "finished a/b seed 0  val-single 45.20 mIoU  (100 s)")
    board.close()
    written = capsys.readouterr().err
    assert "\r" not in written
    assert "\x1b" not in written
    lines = written.splitlines()
    assert len(lines) == 1 + 99 // PLAIN_SECONDS
    assert lines[0] == (
        "progress 0/2 trials, 1 running, 0 finished, 1 waiting, 6:10 left; a/b seed 0 30/200 at 1.00/s"
    )
    assert lines[-1].startswith("finished a/b seed 0")


def test_the_time_left_comes_from_rates_and_from_trials_of_the_kind():
    clock = Clock()
    works = {"a0": Work("a0", "a", 100), "a1": Work("a1", "a", 100), "b0": Work("b0", "b", 200)}
    board = Board(3, works, console=terminal(80), clock=clock)
    assert board.remaining() is None
    board.update("a0", Status(50, 100, 5.0))
    assert board.remaining() == pytest.approx(10 + 20 + 40), "a step of b is taken to cost as one of a"
    clock.now = 30.0
    board.end("a0", "finished", "")
    assert board.remaining() == pytest.approx(30 + 60), "with its evaluation a took 30 s"
    board.update("a1", Status(0, 100, 0.0))
    board.update("b0", Status(0, 100, 0.0))
    assert board.remaining() == pytest.approx(60), "two at a time, the longer one decides"
    board.close()


def test_a_rate_is_smoothed_over_ten_seconds_and_begins_anew_with_an_evaluation():
    clock = Clock()
    board = Board(1, {"a": Work("a")}, console=terminal(80), clock=clock)
    for second in range(200):
        clock.now = second
        board.update("a", Status(second, 1000, 8.0 if second % 2 else 12.0))
    assert board.rows["a"].rate == pytest.approx(10.0, abs=0.2)
    clock.now += 1
    board.update("a", Status(10, 100, 50.0, note="evaluating val"))
    assert board.rows["a"].rate == 50.0
    board.close()


def test_a_warning_is_told_once(capsys):
    board = Board(2, {"a": Work("a"), "b": Work("b")})
    for key in ("a", "b", "a"):
        board.update(key, Status(1, 2, 1.0, warnings=("wandb failed: no network",)))
    board.close()
    assert capsys.readouterr().err.count("no network") == 1


def test_trials_that_are_made_up_for_still_wait():
    board = Board(4, console=terminal(80), states=("finished", "pruned", "failed"), again=("failed",))
    board.count("pruned", 1)
    board.update(1, Status(1, 2, 1.0), Work("trial 1"))
    board.end(1, "failed", "failed   trial 1")
    assert "1 pruned  1 failed  3 waiting" in shown(board, 80)[-1]
    board.close()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0:00"), (59.6, "1:00"), (754, "12:34"), (3754, "1:02:34"), (86400 * 3 + 3600 * 4, "3d 04h")],
)
def test_durations_are_short(seconds, text):
    assert duration(seconds) == text


def test_a_long_label_loses_its_middle():
    assert shortened_line("short", 8) == "short"
    cut = shortened_line(LONG, 30)
    assert len(cut) == 30
    assert cut.startswith("dskd_gc/voc")
    assert cut.endswith("seed 12")


def test_a_state_keeps_what_the_next_one_does_not_say():
    first = Status(10, 100, 1.0, miou=40.0, memory_mib=5.0, warnings=("w",))
    later = Status(20, 100, 1.0, memory_mib=6.0, warnings=("w", "x")).after(first)
    assert (later.step, later.miou, later.memory_mib, later.warnings) == (20, 40.0, 6.0, ("w", "x"))


def test_thousands_of_trials_cost_the_driver_little():
    works = {n: Work(f"a/b seed {n}", f"kind {n % 20}", 1.0 + n) for n in range(10_000)}
    board = Board(len(works), works, console=terminal(80))
    began = time.process_time()
    for number in range(9_000):
        board.end(number, "kept", f"kept     a/b seed {number}")
    for step in range(100):
        for number in range(9_000, 9_050):
            board.update(number, Status(step, 100, 1.0))
    board.close()
    assert time.process_time() - began < 10.0
    written = board.console.file.getvalue()
    assert all(f"     a/b seed {number}\n" in written for number in range(9_000))


def test_trials_that_become_ready_later_count_from_the_start():
    board = Board(4, {"a": Work("a", "k", 10.0)}, console=terminal(80))
    board.update("a", Status(50, 100, 5.0))
    for _ in range(2):  # said twice, it counts once
        board.add("b", Work("b", "k", 10.0))
    assert "3 waiting" in shown(board, 80)[-1]
    assert board.remaining() == pytest.approx(10 + 20 + 2 * 20)
    for key in ("b", "c", "d"):
        board.end(key, "kept", "")
    assert board.remaining() == pytest.approx(10)
    board.close()


@pytest.mark.parametrize(("waiting", "said"), [(0.05, ""), (0.4, "40% waiting for pictures")])
def test_it_is_said_when_training_waits_for_its_pictures(waiting: float, said: str) -> None:
    board = Board(2, console=terminal(140))
    board.update("a", Status(3, 9, 1.0, waiting=waiting), Work("a"))
    line = next(line for line in shown(board, 140) if line.startswith("a "))
    assert line.rstrip().endswith(said or "-")
    assert board.plain().endswith(f"a 3/9 at 1.00/s ({said})" if said else "a 3/9 at 1.00/s")
    board.update("a", Status(3, 9, 1.0, note="evaluating val", waiting=waiting))
    assert "waiting for" not in board.plain()
    board.close()
