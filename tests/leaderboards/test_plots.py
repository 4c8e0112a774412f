"""Plots: what is drawn is what was recorded; colours stay; nothing global changes."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image
from synthetic import CLASSES, Factory

from harness.basics.errors import UserError
from harness.recipes.specs import EvaluationSpec
from leaderboards.judge.collapse import collapsed
from leaderboards.plots.drawing import caption, installed_fonts, save_figure
from leaderboards.plots.figures import seeds_figure
from leaderboards.plots.overview import (
    COLOURS,
    curves,
    curves_figure,
    entries_of,
    overview_figure,
    per_class_figure,
    style,
)
from leaderboards.plots.plotting import MOST_OF_EACH, draw_plots, write_plots
from leaderboards.rows.gathering import gather_records
from leaderboards.rows.published import published
from leaderboards.rows.row import Row
from leaderboards.rows.tables import leaderboard
from leaderboards.write.html_report import html_report


def rows_of(factory: Factory) -> list[Row]:
    return leaderboard(gather_records(factory.store), resamples=20)


def fill(factory: Factory) -> list[Row]:
    for kind in ("point", "scribble"):
        for method, title, quality in (("agmm", "AGMM", 0.7), ("pce", "Partial cross-entropy", 0.5)):
            resolved = factory.resolved(f"{method}/mini-{kind}", supervision=kind)
            for seed in range(2):
                record = factory.record(resolved, seed, quality=quality, title=title, absent=(1,))
                terms = {"partial": np.linspace(2, 1, 5) + seed, "contrast": np.linspace(0.5, 0.1, 5)}
                factory.history(record, terms)
    return rows_of(factory)


def test_bars_have_the_recorded_heights(factory: Factory) -> None:
    rows = [row for row in fill(factory) if row.supervision == "point"]
    axes = per_class_figure(rows).axes[0]
    assert [t.get_text() for t in axes.get_xticklabels()] == [*CLASSES, "mean"]
    expected = [np.mean([run.iou for run in row.runs], axis=0)[[0, 2, 3]] for row in rows]
    heights = [[bar.get_height() for bar in group] for group in axes.containers if hasattr(group, "patches")]
    for row, found, iou in zip(rows, heights, expected, strict=True):
        np.testing.assert_allclose(found, [*iou, row.mean])
    assert [t.get_text() for t in axes.texts] == ["absent"] * 2
    assert axes.get_ylabel() == "IoU (%)"
    assert "point supervision" in axes.get_title(loc="left")
    assert "protocol single" in axes.get_title(loc="left")


def test_a_figure_names_the_network_and_the_output_where_they_are_unusual(factory: Factory) -> None:
    specs = (EvaluationSpec(), EvaluationSpec(network="teacher"), EvaluationSpec(output="cam"))
    factory.record(factory.resolved("fsr/mini-image", supervision="image", evaluation=specs))
    shown = {row.evaluation: caption(row).partition("protocol single")[2] for row in rows_of(factory)}
    assert shown == {"val-single": "", "val-single-teacher": ", network teacher", "val-single-cam": ", cam"}


def test_many_classes_go_on_several_lines(factory: Factory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leaderboards.plots.overview._CLASSES_PER_LINE", 3)
    figure = per_class_figure([r for r in fill(factory) if r.supervision == "point"])
    shown = [t.get_text() for axes in figure.axes for t in axes.get_xticklabels()]
    assert len(figure.axes) == 2
    assert shown == [*CLASSES, "mean"]


def test_curves_are_means_over_seeds(factory: Factory) -> None:
    row = next(row for row in fill(factory) if row.recipe == "agmm/mini-point")
    steps, terms = curves(row)
    assert list(steps) == [10, 20, 30, 40, 50]
    mean, low, high = terms["partial"]
    np.testing.assert_allclose(mean, np.linspace(2, 1, 5) + 0.5)
    np.testing.assert_allclose(high - low, 1.0)
    figure = curves_figure([row])
    assert figure is not None
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert labels == ["total", "partial", "contrast"]
    assert figure.axes[0].get_xlabel() == "optimiser step"


def test_without_history_there_is_no_curve(factory: Factory) -> None:
    factory.record()
    assert curves_figure(rows_of(factory)) is None
    with pytest.raises(UserError, match="nothing to draw"):
        write_plots(rows_of(factory), Path("unused"), kind="curves")


def test_overview_shows_every_seed(factory: Factory) -> None:
    rows = fill(factory)
    axes = overview_figure(rows).axes[0]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["scribble", "point"]
    drawn = sorted(float(y) for line in axes.lines if line.get_marker() == "o" for y in line.get_ydata())
    np.testing.assert_allclose(drawn, sorted(run.miou for row in rows for run in row.runs))


def test_an_overview_of_many_rows_shows_the_best_of_each_supervision(
    factory: Factory, tmp_path: Path
) -> None:
    """Its legend stays within the figure, and hatches do not make a file of megabytes."""
    for kind in ("point", "scribble"):
        for k in range(MOST_OF_EACH + 3):
            name = f"agmm/mini-{kind}-{k}"
            factory.record(factory.resolved(name, supervision=kind), quality=0.8 - 0.03 * k, title="A")
    rows = rows_of(factory)
    ((_, figure),) = draw_plots(rows, "overview")
    labels = {t.get_text() for t in figure.legends[0].get_texts()}
    best = sorted((r for r in rows if r.supervision == "point"), key=lambda r: -r.mean)
    assert {f"A mini-point-{k}" for k in range(MOST_OF_EACH)} <= labels
    assert len(labels) == 2 * MOST_OF_EACH
    assert best[-1].recipe.partition("/")[2] not in str(labels)
    save_figure(figure, tmp_path / "overview", ["svg"])
    box = figure.legends[0].get_window_extent()
    assert box.y0 >= 0
    for _, bars in draw_plots(rows, "per-class"):
        (file,) = save_figure(bars, tmp_path / "bars", ["svg"])
        assert file.stat().st_size < 400_000


def test_a_method_keeps_its_colour(factory: Factory) -> None:
    rows = fill(factory)
    entries = entries_of(rows)
    assert entries["agmm/mini-point", ""] == entries["agmm/mini-scribble", ""]
    assert entries["agmm/mini-point", ""].index != entries["pce/mini-point", ""].index
    for kind in ("point", "scribble"):
        here = [row for row in rows if row.supervision == kind and row.method == "pce"]
        axes = per_class_figure(here, entries).axes[0]
        colour = to_hex(axes.patches[0].get_facecolor()).upper()
        assert colour == style(entries["pce/mini-point", ""].index)[0]


def test_recipes_of_one_method_are_told_apart(factory: Factory) -> None:
    for name in ("agmm/mini-point", "agmm/mini-point-long"):
        factory.record(factory.resolved(name), title="AGMM")
    factory.record(overrides={"config.gamma": 2.0}, title="AGMM")
    found = {entry.label for entry in entries_of(rows_of(factory)).values()}
    assert found == {"AGMM mini-point", "AGMM mini-point-long", "AGMM mini-point (config.gamma=2.0)"}


def test_recipes_of_one_method_share_its_colour_over_all_data_sets(factory: Factory) -> None:
    """More methods than there are colours, some with several recipes, on two data sets."""
    for k in range(9):
        for name in (f"m{k}/mini-a", f"m{k}/mini-b")[: 1 + k % 2]:
            factory.record(factory.resolved(name), title=f"Method {k}")
    factory.record(factory.resolved("m3/voc-a", dataset="voc2012"), title="Method 3")
    entries = entries_of(rows_of(factory))
    for k in range(9):
        mine = [style(entry.index) for (name, _), entry in entries.items() if name.startswith(f"m{k}/")]
        assert len({colour for colour, _, _ in mine}) == 1
    by_label = {entry.label: style(entry.index) for entry in entries.values()}
    assert len(set(by_label.values())) == len(by_label)


def test_marks_say_their_numbers(factory: Factory, tmp_path: Path) -> None:
    """What the page shows below the pointer is in the SVG, whatever characters a name has."""
    factory.record(factory.resolved("agmm/mini-point"), title="Größe $x$ 分割 <&>")
    rows = rows_of(factory)
    for make in (overview_figure, seeds_figure, per_class_figure):
        (file,) = save_figure(make(rows), tmp_path / make.__name__, ["svg"])
        said = [
            bytes.fromhex(text).decode()
            for text in re.findall(r'id="says-([0-9a-f]+)', file.read_text(encoding="utf-8"))
        ]
        assert said
        assert all("Größe $x$ 分割 <&>" in text for text in said)
        figure = rows[0].class_spread[0][0] if make is per_class_figure else rows[0].mean
        assert any(f"{figure:.1f}" in text for text in said)


def test_the_overview_draws_the_interval_of_every_mean(factory: Factory) -> None:
    rows = fill(factory)
    lines = [sorted(map(float, line.get_ydata())) for line in overview_figure(rows).axes[0].lines]
    for row in rows:
        assert [row.low, row.high] in lines


def test_a_collapsed_seed_is_named_with_the_step_at_which_it_left(factory: Factory) -> None:
    for seed, quality in enumerate((0.7, 0.72, 0.2)):
        record = factory.record(factory.resolved("agmm/mini-point"), seed, quality=quality, title="AGMM")
        loss = np.linspace(2, 1, 8) + 0.01 * seed
        if seed == 2:
            loss[0], loss[4:] = 2.005, 3.0
        factory.history(record, {"a": loss})
        factory.record(factory.resolved("pce/mini-point"), seed, quality=0.6 + 0.02 * seed)  # an usual spread
    rows = rows_of(factory)
    (found,) = collapsed(rows)
    assert (found.row.recipe, found.seed) == ("agmm/mini-point", 2)
    assert found.step is not None
    assert "seed 2 reaches" in found.text
    figure = curves_figure([found.row])
    assert figure is not None
    assert "seed 2: collapsed" in figure.axes[0].get_legend_handles_labels()[1]
    page = html_report(rows, [], published(), provenance="")
    assert "Collapsed seeds" in page.partition('id="tables"')[0]
    assert collapsed(rows[:0]) == []


def test_fonts_for_other_scripts_are_taken_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    fonts = [SimpleNamespace(name="DejaVu Sans"), SimpleNamespace(name="Noto Sans CJK SC")]
    monkeypatch.setattr("leaderboards.plots.drawing.fontManager", SimpleNamespace(ttflist=fonts))
    assert installed_fonts() == ["Noto Sans CJK SC"]


def test_styles_do_not_repeat() -> None:
    assert len({style(i) for i in range(4 * len(COLOURS))}) == 4 * len(COLOURS)


def test_written_files(factory: Factory, tmp_path: Path) -> None:
    rows = fill(factory)
    before = dict(mpl.rcParams)
    first = write_plots(rows, tmp_path / "a")
    assert dict(mpl.rcParams) == before
    stems = {f.stem for f in first}
    kinds = ("per-class", "difference", "seeds", "cost")
    assert stems == {
        *(f"{kind}-mini-{s}-val-single" for kind in kinds for s in ("point", "scribble")),
        *(f"curves-mini-{s}" for s in ("point", "scribble")),
        *(f"{kind}-mini-val-single" for kind in ("overview", "annotation")),
    }
    assert {f.suffix for f in first} == {".png", ".svg"}
    for file in first:
        if file.suffix == ".png":
            with Image.open(file) as image:
                assert image.width >= 700
    second = write_plots(rows, tmp_path / "b", kind="overview", formats=["svg"])
    assert second[0].read_bytes() == (tmp_path / "a" / second[0].name).read_bytes()


@pytest.mark.parametrize("kind", ["overview", "published", "cost"])
def test_a_label_is_printed_below_a_plot_and_changes_nothing_else(
    factory: Factory, tmp_path: Path, kind: str
) -> None:
    cited = EvaluationSpec(cells=("agmm-sass-repo/voc-point-val",), tolerance=1.0)
    for name in ("agmm/mini-a", "pce/mini-a"):
        factory.record(factory.resolved(name, evaluation=(cited,)))
    rows = rows_of(factory)
    sizes = []
    for place, label in (("a", ""), ("b", "quick run")):
        (file,) = write_plots(rows, tmp_path / place, kind=kind, formats=["png"], label=label)
        with Image.open(file) as image:
            sizes.append(image.size)
            pixels = np.asarray(image.convert("L"))
        if label:
            assert (pixels[-20:, -150:] < 128).any()  # the label
            assert (pixels[-20:, :-300] > 250).all()  # beside it nothing
    assert sizes[1][0] == sizes[0][0]
    assert sizes[1][1] == pytest.approx(sizes[0][1] + 32, abs=1)  # 0.16 inch


def test_one_seed_is_said_in_place_of_error_bars(factory: Factory) -> None:
    factory.record(factory.resolved("agmm/mini-a"))
    factory.record(factory.resolved("pce/mini-a"))
    legend = per_class_figure(rows_of(factory)).legends[0]
    assert legend.get_title().get_text() == "one seed, no error bars"


def test_stale_rows_are_not_drawn(factory: Factory, tmp_path: Path) -> None:
    factory.record(protocol={"flip": True})
    with pytest.raises(UserError, match="nothing to draw"):
        write_plots(rows_of(factory), tmp_path)


def test_unknown_kind_and_format(factory: Factory, tmp_path: Path) -> None:
    factory.record()
    with pytest.raises(UserError, match="did you mean 'curves'"):
        write_plots(rows_of(factory), tmp_path, kind="curve")
    with pytest.raises(UserError, match="unknown format"):
        write_plots(rows_of(factory), tmp_path, formats=["gif"])


def test_a_figure_is_laid_out_once_and_drawn_once_for_each_format(tmp_path, monkeypatch):
    """Whatever stands in it: to draw 20 plots is most of the time that a report takes."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    from leaderboards.plots.drawing import STYLE, save_figure

    drawn, laid = [], []
    draw, execute = Figure.draw, ConstrainedLayoutEngine.execute
    monkeypatch.setattr(Figure, "draw", lambda self, renderer: drawn.append(1) or draw(self, renderer))
    monkeypatch.setattr(ConstrainedLayoutEngine, "execute", lambda s, f: laid.append(1) or execute(s, f))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5, 3), layout="constrained")
        axes = figure.subplots(1, 2)
        axes[0].bar(["one", "two"], [1, 2])
        axes[0].set_title("short")
    files = save_figure(figure, tmp_path / "plot", ("png", "svg"))
    assert len(laid) == 1
    assert len(drawn) == len(files) == 2
