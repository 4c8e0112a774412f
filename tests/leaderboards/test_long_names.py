"""Names of any length and script have their place in plots: nothing overlaps, nothing leaves the figure."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from synthetic import Factory

from harness.basics.listing import cells
from leaderboards.plots.drawing import NO_FONT, installed_fonts, save_figure
from leaderboards.plots.long_names import lines, shortened
from leaderboards.plots.plotting import PLOT_KINDS, draw_plots
from leaderboards.rows.gathering import gather_records
from leaderboards.rows.row import Row
from leaderboards.rows.tables import leaderboard

pytestmark = pytest.mark.filterwarnings("ignore:Glyph")  # where no font has them

TITLES = (
    "A method whose title takes eighty characters and that somebody wrote in a hurry ok",
    "弱教師あり領域分割のための確率的な手法とその長い名前の例をここに書いておく試み",
    "50 % off $x_1$ <b>bold</b> & co_op " * 3,
    "Averylongwordwithoutanyspacesinitthatgoesonforeightycharactersandalittlebitmoreofit",
)
CLASSES = ("background", "a_class_with_a_long_name" * 3, "分割された領域の名前" * 3, "50 % <b>$x_1$")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    from harness.records.records import Store

    factory = Factory(Store(tmp_path_factory.mktemp("results")))
    for kind in ("scribble", "point"):
        for k, (method, title) in enumerate(zip(("agmm", "pce", "toco", "cam"), TITLES, strict=True)):
            resolved = factory.resolved(f"{method}/mini-{kind}", supervision=kind)
            for seed in range(2):
                record = factory.record(
                    resolved, seed, quality=0.7 - 0.1 * k, title=title, classes=CLASSES,
                    overrides={"labels.folder": f"/data/{'deep/' * 15}x"} if k == 3 else None,
                )  # fmt: skip
                factory.history(record, {"a_term_with_a_long_name" * 3: np.linspace(2, 1, 5) + 0.1 * seed})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("leaderboards.rows.gathering.dataset_classes", lambda name: None)
        return leaderboard(gather_records(factory.store), resamples=5)


@pytest.mark.parametrize("kind", [kind for kind in PLOT_KINDS if kind not in ("boundary", "published")])
def test_long_names_have_their_place_in_plots(kind: str, rows: list[Row], tmp_path: Path) -> None:
    said: list[str] = []
    stem, figure = next(iter(draw_plots(rows, kind)))
    save_figure(figure, tmp_path / stem, ["svg"], say=said.append)
    assert said == ([] if installed_fonts() else [NO_FONT])
    check(figure)


def check(figure: Figure) -> None:
    """Texts lie within the figure, names of ticks beside one another; axes keep room for what they show."""
    FigureCanvasAgg(figure).draw()
    whole, width = figure.bbox, figure.bbox.width
    texts = [
        t for t in figure.findobj(Text) if isinstance(t, Text) and t.get_visible() and t.get_text().strip()
    ]
    beyond = {
        label
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_major_ticks()
        for label in (tick.label1, tick.label2)
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }  # of ticks out of sight, not drawn
    for text in set(texts) - beyond:
        box = text.get_window_extent()
        assert box.x0 > whole.x0 - 0.01 * width, text.get_text()
        assert box.x1 < whole.x1 + 0.02 * width, text.get_text()
        assert box.y0 > whole.y0 - 3, text.get_text()
        assert box.y1 < whole.y1 + 3, text.get_text()
    for axes in figure.axes:
        if axes.axison:
            assert axes.get_position().height * figure.get_size_inches()[1] > 0.3
            labels = [t for t in axes.get_xticklabels() if t.get_text() and not t.get_rotation()]
            for a, b in combinations([t.get_window_extent() for t in labels], 2):
                assert not a.overlaps(b)
    titles = [
        t.get_window_extent()
        for axes in figure.axes
        for t in axes.get_children()
        if isinstance(t, Text) and t.get_text() in {axes.get_title(loc) for loc in ("left", "center")} - {""}
    ]
    assert not any(a.overlaps(b) for a, b in combinations(titles, 2))


def test_a_plot_of_a_stranger_has_room_too(tmp_path: Path) -> None:
    figure = Figure(figsize=(3, 2), layout="constrained")
    axes = figure.subplots()
    axes.bar([name * 3 for name in TITLES[::2]], [1, 2], label=TITLES[0])
    axes.tick_params(axis="x", rotation=90)
    axes.set_title(TITLES[0] * 2)
    axes.legend()
    save_figure(figure, tmp_path / "plot", ["svg"])
    check(figure)


@pytest.mark.parametrize("text", [*TITLES, "short", "分割", "x" * 200, ""])
@pytest.mark.parametrize("most", [8, 26])
def test_a_shortened_name_keeps_its_beginning_and_its_end(text: str, most: int) -> None:
    found = shortened(text, most)
    assert cells(found) <= most
    assert found == text if cells(text) <= most else "…" in found and found[0] == text[0]
    assert all(cells(line) <= most for line in lines(text, most, 2).split("\n"))
    assert lines(text, most, 2).count("\n") < 2


def test_text_without_a_font_stays_text_in_svg(tmp_path: Path) -> None:
    """A browser has fonts of its own."""
    figure = Figure()
    figure.subplots().set_title("\N{LINEAR B SYLLABLE B008 A} <&>")
    (file,) = save_figure(figure, tmp_path / "plot", ["svg"])
    assert "\N{LINEAR B SYLLABLE B008 A} &lt;&amp;&gt;" in file.read_text(encoding="utf-8")
