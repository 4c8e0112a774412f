"""What verbs print fits the terminal, at 80 and at 60 columns; nothing is lost, and machines get JSON."""

from __future__ import annotations

import json
import re
import webbrowser
from pathlib import Path

import click
import pytest

from harness.basics import listing
from harness.basics.errors import UserError
from harness.basics.listing import Styled, cells, fitted_table, prose
from harness.basics.terminal import say
from harness.cli.main import cli, invoke
from harness.recipes.printed import printed
from harness.recipes.resolving import parse_overrides, recipe_names, resolve
from harness.running.smoke.forecast import Forecast

#: Lines that may be longer: a single path, or a command that is to be copied.
_COPIED = re.compile(r"\s*(\S*/\S*|wsss .*|wrote \S+|\S+: +\S*/\S*)\s*")


def too_long(text: str, width: int) -> list[str]:
    lines = click.unstyle(text).splitlines()
    return [line for line in lines if cells(line) > width and not _COPIED.fullmatch(line)]


VERBS = [
    "list",
    "list recipes agmm/*",
    "show agmm/voc-point-r101",
    "show fsr/voc-image-vitb --docs",
    "show dfr/voc-scribble-swinb --set optimiser.lr=1",
    "completion --help",
    "run mini --dry-run --local --device cpu",
]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials as a dry run finds them, without looking at data."""

    def found(trials, options, step_seconds=None) -> list[Forecast]:
        return [
            Forecast(
                trial, "new", 1000 * i, 60.0 * i, 12.5, "a smoke run of 2026-01-02, other values", "labels"
            )
            for i, trial in enumerate(trials)
        ]

    monkeypatch.setattr("harness.running.smoke.forecast.forecast", found)


@pytest.mark.parametrize("width", [80, 60])
@pytest.mark.parametrize("verb", VERBS)
def test_no_line_is_longer_than_the_terminal(
    verb: str, width: int, monkeypatch, tmp_path: Path, cache: Path, capsys
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("WSSS_CACHE", str(cache))
    words = verb.split()
    if "run" in words:
        words += ["--results", str(tmp_path / "results")]
    assert invoke(cli, words) == 0
    shown = capsys.readouterr().out
    assert shown.strip()
    assert not too_long(shown, width)


@pytest.mark.parametrize("width", [200, 80, 60, 34])
def test_every_word_of_a_table_is_shown_at_any_width(width: int, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    rows = [
        (
            "agmm/voc-scribble-r101-self-training",
            "holds",
            "a long remark on what was found there",
            "51.50 ± 0.49",
        ),
        ("骨格による分割/データ", "does not hold", "", "9.00"),
        ("x" * 30, "undecided", "short", "–"),
    ]
    shown = fitted_table(rows, ("recipe", "verdict", "remark", "mIoU (%)"), right=(3,))
    joined = "".join(click.unstyle(shown).split())
    for row in rows:
        for cell in row:
            for word in cell.split():
                assert word in joined
    assert not too_long(shown, width)


LONG = {
    "words": "a method whose title takes eighty characters and that somebody wrote in a hurry",
    "recipe": f"agmm/{'x' * 75}",
    "path": "/home/somebody/projects/segmentation/weights/of/the/network/resnet101_v1-0123.pth",
    "CJK": "弱教師あり領域分割のための確率的な手法とその長い名前の例をここに書いておく試みです",
    "signs": "50%_off_$x_1$_<b>bold</b>_&_co" * 3,
}


@pytest.mark.parametrize("width", [100, 80, 60])
@pytest.mark.parametrize("kind", LONG)
def test_a_long_name_leaves_a_table_a_table(kind: str, width: int, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    name = LONG[kind]
    rows = [(name, "holds", "51.50 ± 0.49"), ("pce/mini", "does not hold", "9.00 ± 0.10")]
    lines = click.unstyle(fitted_table(rows, ("recipe", "verdict", "mIoU (%)"), right=(2,))).splitlines()
    assert all(cells(line) <= width for line in lines)
    assert next(line.index("±") for line in lines if "±" in line) > 20
    columns = {cells(line[: line.index("±")]) for line in lines if "±" in line}
    assert len(columns) == 1  # figures stand below one another
    start = cells(lines[0][: lines[0].index("verdict")])
    shown = "".join(line if kind == "CJK" else line[:start] for line in lines[1:-1])
    assert "".join(name.split())[:30] in "".join(shown.replace("holds", "").split()).replace("51.50±0.49", "")


def test_a_recipe_file_far_away_is_named_once_and_its_values_stay_a_table(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    file = tmp_path / ("a folder that somebody chose/" * 3) / f"{'mine' * 10}.toml"
    file.parent.mkdir(parents=True)
    file.write_text('extends = "agmm/mini-scribble"\n[optimiser]\nlr = 0.02\n', encoding="utf-8")
    assert invoke(cli, ["show", str(file)]) == 0
    shown = click.unstyle(capsys.readouterr().out)
    assert "".join(shown.split()).count("".join(str(file).split())) == 1
    (line,) = (line for line in shown.splitlines() if "optimiser.lr " in line)
    (other,) = (line for line in shown.splitlines() if "optimiser.betas " in line)
    assert line.index("0.02") == other.index("[0.9")


def test_numbers_stand_below_one_another_and_empty_columns_go(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    rows = [("a", "9.10", "", Styled("holds", {"fg": "green"})), ("bb", "10.20", "", "x")]
    lines = click.unstyle(fitted_table(rows, ("name", "mIoU", "remark", "verdict"), right=(1,))).splitlines()
    assert [line.index(".") for line in lines[1:]] == [8, 8]
    assert "remark" not in lines[0]
    assert fitted_table([], ("a", "b")) == "none"


def test_wide_characters_take_two_columns() -> None:
    assert [cells(text) for text in ("abc", "分割", "é", "e\u0301", "🙂")] == [3, 4, 1, 1, 2]
    assert all(cells(line) <= 10 for line in listing.wrapped("弱教師あり領域分割の比較", 10))
    assert "".join(listing.wrapped("弱教師あり領域分割の比較", 10)) == "弱教師あり領域分割の比較"


def test_prose_keeps_paths_and_commands_whole(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    path = "/a/very/long/path/that/is/to/be/copied.toml"
    text = prose(f"the values stand in {path} and nowhere else", first="- ", indent="  ")
    assert path in text
    assert not too_long(text, 30)


# --- what differs from print ---------------------------------------------------------------------------


def test_a_value_that_is_no_longer_the_printed_one_is_marked(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert invoke(cli, ["show", "fsr/voc-image-vitb", "--set", "optimiser.lr=0.5"]) == 0
    shown = capsys.readouterr().out
    (line,) = (line for line in shown.splitlines() if "optimiser.lr " in line)
    assert line.startswith("!")
    assert "printed: 6e-05 (FSR train_voc.py)" in shown
    assert shown.index("\noptimiser\n") < shown.index("optimiser.lr") < shown.index("\nschedule\n")
    assert re.search(r"^remarks\n- ", shown, re.MULTILINE)


def test_a_recipe_that_extends_another_differs_where_it_changes_a_cited_value() -> None:
    plain, other = (printed(resolve(name)) for name in ("fsr/voc-image-vitb", "fsr/voc-image-vitb-mask-20"))
    assert not any(one.differs for one in plain.values())
    assert [(k, p.value) for k, p in other.items() if p.differs] == [("config.mask_ratio", 0.4)]
    tuples = printed(resolve("agmm/voc-point-r101", parse_overrides(["augment.scale=[0.5, 2.0]"])))
    assert not any(one.differs for one in tuples.values())  # the same value given again
    ours = printed(resolve("agmm/voc-point-r101", parse_overrides(["batch.groups=1"])))
    assert not ours["batch.groups"].differs  # nothing is printed of it


def test_every_shipped_recipe_can_be_asked_what_is_printed_of_it() -> None:
    """What differs has a value there: the source of a key speaks of the first table that sets it."""
    differ = {
        name: [p for p in printed(resolve(name)).values() if p.differs]
        for name in recipe_names()
        if "/own-" not in name
    }
    assert not any(p.value is None for members in differ.values() for p in members)
    for name in (
        "agmm/voc-point-r101",
        "blpseg/voc-scribble-r101",
        "toco/voc-image-vitb",
        "dskd_gc/voc-image-vitb",
    ):
        assert not differ[name]
    assert differ["toco/voc-image-vitb-no-ptc"]


# --- JSON, errors, completion, the page -----------------------------------------------------------------


@pytest.mark.parametrize(
    "verb",
    [
        "list recipes",
        "doctor",
        "show agmm/mini-scribble",
        "run agmm/mini-scribble --dry-run --local --device cpu",
    ],
)
def test_machines_get_json_and_nothing_else(
    verb: str, monkeypatch, tmp_path: Path, cache: Path, capsys
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("WSSS_CACHE", str(cache))
    where = ["--results", str(tmp_path)] if verb.startswith("run") else []
    assert invoke(cli, [*verb.split(), "--json", *where]) == 0
    assert json.loads(capsys.readouterr().out)


def test_errors_fit_a_terminal_and_stay_whole_in_a_log(monkeypatch, capsys) -> None:
    error = UserError("a problem " + "of many words " * 12, where="/a/b/" + "c" * 90, remedy="mend " * 30)
    monkeypatch.delenv("COLUMNS", raising=False)
    say(f"error: {error}")
    log = capsys.readouterr().err.splitlines()
    assert len(log) == 3
    monkeypatch.setenv("COLUMNS", "60")
    say(f"error: {error}")
    shown = capsys.readouterr().err
    assert not too_long(shown, 60)
    assert "".join(shown.split()) == "".join("".join(log).split())


def test_every_shell_has_its_completion(capsys) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert invoke(cli, ["completion", shell]) == 0
        assert "_WSSS_COMPLETE" in capsys.readouterr().out


def test_the_page_is_opened_and_its_path_is_printed(monkeypatch, tmp_path: Path, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert invoke(cli, ["open"]) == 2
    assert "wsss report" in capsys.readouterr().err
    page = tmp_path / "reports" / "report.html"
    page.parent.mkdir()
    page.write_text("<title>x</title>")
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda uri: not opened.append(uri))
    monkeypatch.setenv("DISPLAY", ":0")
    assert invoke(cli, ["open"]) == 0
    assert opened == [page.as_uri()]
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    assert invoke(cli, ["open", "reports"]) == 0
    said = capsys.readouterr()
    assert said.out.split() == [str(page), str(page)]
    assert "no browser" in said.err
    assert len(opened) == 1
