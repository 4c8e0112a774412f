"""No plot of the page is mute: every mark says its numbers below the pointer."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import AxLine
from matplotlib.ticker import FuncFormatter
from synthetic import Factory

from harness.evaluation.boundary import Boundary
from harness.recipes.specs import EvaluationSpec
from leaderboards.plots.drawing import save_figure
from leaderboards.plots.plotting import PLOT_KINDS, draw_plots
from leaderboards.rows.gathering import gather_records
from leaderboards.rows.row import Row
from leaderboards.rows.tables import leaderboard
from leaderboards.write.inline_plots import PLOT_WORDS

_SVG = "{http://www.w3.org/2000/svg}"


def said(file: Path) -> list[tuple[str, list[str]]]:
    """What the marks of an SVG say: the text of each, and of each of its points."""
    found = []
    for coded in re.findall(r'id="says-([0-9a-f]+)', file.read_text(encoding="utf-8")):
        text, _, points = bytes.fromhex(coded).decode().partition("\x1e")
        found.append((text, points.split("\x1f") if points else []))
    return found


def silent(file: Path, figure: Figure) -> list[str]:
    """Groups of an SVG that show data and say nothing: a reading of the file that knows no mark by its name.

    Axes hold their ground and frame, their axis, text and a legend, and straight lines across all of them.
    """
    found = []
    root = ET.parse(file).getroot()
    for number, axes in enumerate(figure.axes, 1):
        group = next(g for g in root.iter(f"{_SVG}g") if g.get("id") == f"axes_{number}")
        allowed = {"patch": 1 + sum(s.get_visible() for s in axes.spines.values()), "line2d": _guides(axes)}
        for child in group:
            kind, _, rest = child.get("id", "").partition("_")
            if kind in ("text", "legend", "matplotlib.axis") or kind.startswith("says-"):
                continue
            allowed[kind] = allowed.get(kind, 0) - 1
            if allowed[kind] < 0:
                found.append(f"{kind} {rest} of axes {number}")
    return found


def _guides(axes: Axes) -> int:
    whole = [(0.0, 1.0), [0, 1], [0.0, 1.0]]
    return sum(
        isinstance(line, AxLine) or any(list(d) in whole or tuple(d) in whole for d in line.get_data())
        for line in axes.lines
    )


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """Rows with all that any plot draws: seeds, histories, boundaries, published values, several labels."""
    from harness.records.records import Store

    factory = Factory(Store(tmp_path_factory.mktemp("results")), unlabelled=(1,))
    cited = EvaluationSpec(cells=("agmm-sass-repo/voc-point-val",), tolerance=100.0)
    for kind in ("full", "point"):
        for name, quality in (("agmm", 0.7), ("pce", 0.5)):
            resolved = factory.resolved(f"{name}/mini-{kind}", supervision=kind, evaluation=(cited,))
            for seed in range(3):
                record = factory.record(resolved, seed, quality=quality, title=name.upper(), absent=(1,))
                terms = {"partial": np.linspace(2, 1, 8) + 0.1 * seed, "other": np.linspace(0.5, 0.1, 8)}
                factory.history(record, terms)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("leaderboards.rows.gathering.dataset_classes", lambda name: None)
        found = leaderboard(gather_records(factory.store), resamples=20)
    for row in found:
        for run in row.runs:
            own = run.counts()
            sums = [a.sum(0) for a in (own.intersection, own.predicted, own.labelled)]
            bands = [np.stack([np.minimum(part, s) for s in (200, 800)] + [part]) for part in sums]
            Boundary(np.array([1, 4, 16]), *bands).save(run.path / "boundary.npz")
    return found


@pytest.mark.parametrize("kind", PLOT_KINDS)
def test_every_mark_of_every_plot_says_its_numbers(kind: str, rows: list[Row], tmp_path: Path) -> None:
    figures = dict(draw_plots(rows, kind))
    assert figures
    assert kind in PLOT_WORDS  # the page shows it
    for stem, figure in figures.items():
        (file,) = save_figure(figure, tmp_path / stem, ["svg"])
        assert silent(file, figure) == []
        texts = ["\n".join([text, *points]) for text, points in said(file)]
        assert all(re.search(r"\d", text) for text in texts), texts
        for axes in figure.axes:
            assert not axes.axison or texts
        ids = re.findall(r'id="(says-[^"]+)"', file.read_text(encoding="utf-8"))
        assert len(set(ids)) == len(ids)


def test_what_marks_say_is_what_was_recorded(rows: list[Row], tmp_path: Path) -> None:
    row = next(r for r in rows if r.recipe == "agmm/mini-point")
    wanted = {
        "boundary": "within 4 px: ",
        "cost": "training time of a seed: 20 s",
        "published": "published 67.8",
        "annotation": f"point, 22.1 s: {row.mean:.2f}",
        "seeds": f"seed 2: {row.runs[2].miou:.2f}",
        "overview": "published 67.8",
    }
    for kind, figure_said in wanted.items():
        figures = dict(draw_plots([r for r in rows if r.supervision in ("point", "full")], kind))
        texts = []
        for stem, figure in figures.items():
            (file,) = save_figure(figure, tmp_path / stem, ["svg"])
            texts += ["\n".join([text, *points]) for text, points in said(file)]
        assert any(figure_said in text and "AGMM" in text for text in texts), (kind, texts)


def test_a_plot_of_a_stranger_says_what_its_axes_say(tmp_path: Path) -> None:
    """Plain calls of matplotlib, by someone who has never heard of it."""
    figure = Figure()
    first, second, third, fourth = figure.subplots(1, 4)
    first.plot([1, 2, 3], [0.5, 0.25, np.nan], "o-", label="Größe $x$ 分割")
    first.scatter([4, 5], [6, 7], label="cloud")
    first.fill_between([1, 2], [0, 1], [2, 3], label="band")
    first.plot(np.arange(500), np.cos(np.arange(500)), label="long")
    first.axhline(2.0)
    first.set(xlabel="steps", ylabel="loss")
    second.bar(["disc", "ring"], [40.5, 50.25], label="mIoU")
    fourth.barh([5, 6], [7, 8])
    fourth.set_title("a title", loc="left")
    third.errorbar([10, 100], [20, 30], [1, 2], capsize=2, fmt="s", label="bars")
    third.set_xscale("log")
    third.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.0f} s"))
    third.hist([1, 1, 2], label="counts")
    (file,) = save_figure(figure, tmp_path / "plot", ["svg"])
    assert silent(file, figure) == []
    found = dict(said(file))
    assert found["Größe $x$ 分割"] == ["steps: 1; loss: 0.5", "steps: 2; loss: 0.25"]
    assert found["cloud"] == ["steps: 4; loss: 6", "steps: 5; loss: 7"]
    assert "band\nsteps: 1 to 2; loss: 0 to 3" in found
    assert len(found["long"]) <= 4
    assert {"mIoU\ndisc; 40.5", "mIoU\nring; 50.25"} <= set(found)
    assert "a title\n8; 6" in found
    assert ["10; 19 s to 21 s", "100; 28 s to 32 s"] in [
        points for text, points in said(file) if text == "bars"
    ]


def test_a_figure_that_is_written_twice_keeps_its_names(tmp_path: Path) -> None:
    figure = Figure()
    figure.subplots().plot([1, 2], [3, 4], "o")
    for place in ("a", "b"):
        (file,) = save_figure(figure, tmp_path / place, ["svg"])
    assert said(file) == [("", ["1; 3", "2; 4"])]
