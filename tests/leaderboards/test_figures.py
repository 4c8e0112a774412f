"""The further plots: what is drawn is what was recorded, and nothing is drawn without it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic import CLASSES, Factory

from harness.basics.errors import UserError
from harness.evaluation.boundary import Boundary
from harness.evaluation.evaluator import iou_from_counts
from harness.recipes.specs import EvaluationSpec
from leaderboards.plots.drawing import save_figure
from leaderboards.plots.figures import (
    ANNOTATION,
    annotation_figure,
    boundary_figure,
    cost_figure,
    difference_figure,
    published_figure,
    reference_of,
    seeds_figure,
)
from leaderboards.plots.plotting import MOST_ROWS, PLOT_KINDS, check_kinds, draw_plots, write_plots
from leaderboards.rows.gathering import gather_records
from leaderboards.rows.row import Row
from leaderboards.rows.tables import leaderboard


def rows_of(factory: Factory) -> list[Row]:
    return leaderboard(gather_records(factory.store), resamples=20)


def fill(factory: Factory, seeds: int = 2) -> list[Row]:
    factory.unlabelled = (1,)
    for kind in ("full", "point"):
        for method, title, quality in (("agmm", "AGMM", 0.7), ("pce", "Partial", 0.5)):
            resolved = factory.resolved(f"{method}/mini-{kind}", supervision=kind)
            for seed in range(seeds):
                factory.record(resolved, seed, quality=quality, title=title, absent=(1,))
    return rows_of(factory)


def test_differences_are_sorted_and_against_the_baseline(factory: Factory) -> None:
    rows = [row for row in fill(factory) if row.supervision == "point"]
    own, base = (next(row for row in rows if row.method == m) for m in ("agmm", "pce"))
    assert reference_of(rows) is base
    figure = difference_figure(rows)
    assert figure is not None
    (axes,) = figure.axes
    differences = {
        name: own.class_iou[:, k].mean() - base.class_iou[:, k].mean()
        for k, name in enumerate(CLASSES)
        if k != 1
    }
    drawn = [t.get_text() for t in axes.get_yticklabels()]
    assert drawn == sorted(differences, key=differences.__getitem__)  # the absent class is left out
    widths = [patch.get_width() for patch in axes.patches]
    np.testing.assert_allclose(widths, sorted(differences.values()))
    assert "against Partial" in figure.get_suptitle()
    assert difference_figure([base]) is None


def test_without_a_baseline_the_lowest_is_the_reference(factory: Factory) -> None:
    for name, quality in (("agmm/mini-a", 0.7), ("blpseg/mini-a", 0.5)):
        factory.record(factory.resolved(name), quality=quality)
    assert reference_of(rows_of(factory)).method == "blpseg"


def test_published_against_reproduced(factory: Factory, tmp_path: Path) -> None:
    cited = EvaluationSpec(cells=("agmm-sass-repo/voc-point-val",), tolerance=100.0)
    factory.record(factory.resolved(evaluation=(cited,)))
    (row,) = rows_of(factory)
    figure = published_figure([row])
    assert figure is not None
    points = [line for line in figure.axes[0].lines if line.get_marker() not in ("None", "", "|", "_")]
    assert [(float(p.get_xdata()[0]), float(p.get_ydata()[0])) for p in points] == [(67.80, row.mean)]
    limits = figure.axes[0].get_xlim()
    assert limits == figure.axes[0].get_ylim()
    assert limits[0] < min(67.80, row.mean) < max(67.80, row.mean) < limits[1]
    for count in range(1, 6):  # a legend of any height leaves the labels of the axes their room
        many = [
            replace(row, title=f"Method number {k}, with a longer name", recipe=f"m/{k}")
            for k in range(count)
        ]
        drawn = published_figure(many)
        assert drawn is not None
        save_figure(drawn, tmp_path / "published", ["png"])
        label = drawn.axes[0].xaxis.label.get_window_extent()
        assert label.y0 > 0, count
    factory.record(factory.resolved("agmm/mini-other"))
    assert published_figure([r for r in rows_of(factory) if not r.source]) is None


def test_every_seed_is_a_dot(factory: Factory) -> None:
    rows = [row for row in fill(factory, seeds=3) if row.supervision == "point"]
    (axes,) = seeds_figure(rows).axes
    dots = sorted(float(x) for line in axes.lines if line.get_marker() == "o" for x in line.get_xdata())
    np.testing.assert_allclose(dots, sorted(run.miou for row in rows for run in row.runs))
    labels = [t.get_text().replace("\u00a0", " ") for t in axes.get_yticklabels()]
    assert labels == [f"{row.title} (n = 3)" for row in rows]


def test_boundary_curve(factory: Factory) -> None:
    rows = [row for row in fill(factory) if row.supervision == "point"]
    assert boundary_figure(rows) is None
    expected = []
    for index, row in enumerate(rows):
        for run in row.runs:
            bands = [
                getattr(run.per_image, k)[: 3 + index].cumsum(0)[-3:]
                for k in ("intersection", "predicted", "labelled")
            ]
            Boundary(np.array([1, 4, 16]), *bands).save(run.path / "boundary.npz")
            expected.append(iou_from_counts(*bands)[1])
    figure = boundary_figure(rows)
    assert figure is not None
    lines = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    for index, line in enumerate(lines):
        np.testing.assert_array_equal(line.get_xdata(), [1, 4, 16])
        np.testing.assert_allclose(line.get_ydata(), np.mean(expected[2 * index : 2 * index + 2], 0))


def test_cost_has_a_panel_for_what_is_known(factory: Factory) -> None:
    rows = [row for row in fill(factory) if row.supervision == "point"]
    figure = cost_figure(rows)
    assert figure is not None
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "training time of a seed",
        "peak memory",
        "parameters",
    ]
    times = [float(line.get_xdata()[0]) for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert times == [row.cost.seconds for row in rows]
    assert cost_figure(rows[:1]) is None


def test_annotation_time_is_that_of_the_source(factory: Factory) -> None:
    rows = fill(factory)
    figure = annotation_figure(rows)
    assert figure is not None
    seconds = sorted({float(x) for line in figure.axes[0].lines for x in line.get_xdata()})
    assert seconds == [ANNOTATION["point"].seconds, ANNOTATION["full"].seconds]
    assert "Bearman" in figure.axes[0].get_xlabel()
    assert annotation_figure([row for row in rows if row.supervision == "point"]) is None
    factory.record(factory.resolved("agmm/mini-box", supervision="box"))
    figure = annotation_figure(rows_of(factory))
    assert figure is not None
    assert "no sourced time for box" in figure.axes[0].get_title(loc="left")


@pytest.mark.parametrize("seeds", [1, 2])
def test_every_kind_is_written(factory: Factory, tmp_path: Path, seeds: int) -> None:
    rows = fill(factory, seeds)
    for kind in ("difference", "seeds", "annotation", "cost"):
        files = write_plots(rows, tmp_path, kind=kind, formats=["png"])
        assert all(file.stat().st_size > 5000 for file in files)
        assert all(file.name.startswith(kind) for file in files)


def test_a_figure_has_at_most_so_many_rows(factory: Factory) -> None:
    for index in range(MOST_ROWS + 3):
        factory.record(factory.resolved(f"agmm/mini-{index}"), quality=0.3 + 0.04 * index)
    rows = rows_of(factory)
    ((_, figure),) = draw_plots(rows, "seeds")
    assert len(figure.axes[0].get_yticklabels()) == MOST_ROWS
    best = max(rows, key=lambda row: row.mean)
    assert best.recipe.partition("/")[2] in figure.axes[0].get_yticklabels()[0].get_text()


def test_pseudo_labels_stay_out_of_comparisons(factory: Factory) -> None:
    specs = (EvaluationSpec(), EvaluationSpec(split="train", output="cam"))
    for name in ("cam/mini-a", "toco/mini-a"):
        factory.record(factory.resolved(name, evaluation=specs))
    rows = rows_of(factory)
    assert [stem for stem, _ in draw_plots(rows, "seeds")] == ["seeds-mini-point-val-single"]
    assert [stem for stem, _ in draw_plots(rows, "per-class")] == [
        "per-class-mini-point-train-single-cam",
        "per-class-mini-point-val-single",
    ]


def test_kinds() -> None:
    assert check_kinds("all") == PLOT_KINDS
    assert check_kinds("cost") == ("cost",)
    with pytest.raises(UserError, match="did you mean 'cost'"):
        check_kinds("costs")


def test_sourced_times_are_plain() -> None:
    assert all(math.isfinite(e.seconds) and e.source for e in ANNOTATION.values())
