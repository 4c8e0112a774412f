"""Metrics from the counts of records, each against a computation of its own from pixels."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from installed import installed
from runs import wsss
from sklearn.metrics import accuracy_score, f1_score, jaccard_score, precision_score, recall_score
from synthetic import Factory

import wsss as door
from harness.basics.errors import UserError
from harness.evaluation.boundary import WIDTHS, Boundary, BoundaryCounter
from harness.evaluation.evaluator import tally
from harness.records.records import Record
from leaderboards.judge.checking import check_package
from leaderboards.rows.metrics import ClassCounts, Metric, metric_names, metrics

K = 5


def pixels(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Truths and predictions ``(N, H, W)``: a class is never predicted, one never labelled, one neither."""
    rng = np.random.default_rng(seed)
    truth = rng.choice([0, 1, 2, 255], p=[0.5, 0.3, 0.1, 0.1], size=(4, 24, 31)).repeat(2, 1)
    guess = np.where(rng.random(truth.shape) < 0.6, truth, rng.choice([0, 1, 3], size=truth.shape))
    return truth.astype(np.uint8), np.where(guess == 255, 0, np.where(guess == 2, 1, guess)).astype(np.uint8)


def counted(truth: np.ndarray, guess: np.ndarray) -> ClassCounts:
    found = tally([(str(i), g, t) for i, (g, t) in enumerate(zip(guess, truth, strict=True))], K)
    parts = [part.sum(0) for part in (found.intersection, found.predicted, found.labelled)]
    return ClassCounts(*parts, parts[1] + parts[2] > 0)


@pytest.mark.parametrize("seed", range(3))
def test_figures_are_those_of_scikit_learn(seed: int) -> None:
    truth, guess = pixels(seed)
    valid = truth != 255
    y, p = truth[valid], guess[valid]
    used = sorted({*y.tolist(), *p.tolist()})
    options = {"labels": used, "average": "macro", "zero_division": 0}
    iou = jaccard_score(y, p, labels=used, average=None, zero_division=0)
    weights = np.array([(y == k).mean() for k in used])
    expected = {
        "precision": precision_score(y, p, **options),
        "recall": recall_score(y, p, **options),
        "f1": f1_score(y, p, **options),
        "fwiou": float((iou * weights).sum()),
        "pixel-accuracy": accuracy_score(y, p),
    }
    for metric in metrics(list(expected)):
        assert metric.of(counted(truth, guess)) == pytest.approx(100 * expected[metric.name], abs=1e-9)


@pytest.mark.parametrize("width", [WIDTHS[0], WIDTHS[3]])
def test_a_band_is_that_of_pixels_near_another_value(width: int) -> None:
    truth, guess = pixels(7)
    counter = BoundaryCounter(K)
    kept = []
    for one, other in zip(truth, guess, strict=True):
        counter.add(other, one)
        edge = np.zeros(one.shape, bool)
        for y, x in np.ndindex(one.shape):
            near = [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
            edge[y, x] = any(
                0 <= a < one.shape[0] and 0 <= b < one.shape[1] and one[a, b] != one[y, x] for a, b in near
            )
        places = np.argwhere(edge)
        for y, x in np.argwhere(one != 255):
            if np.sqrt(((places - (y, x)) ** 2).sum(1)).min() + 1 <= width:
                kept.append((one[y, x], other[y, x]))
    y, p = np.array(kept).T
    used = sorted({*y.tolist(), *p.tolist()})
    bands = counter.result()
    at = WIDTHS.index(width)
    parts = [part[at] for part in (bands.intersection, bands.predicted, bands.labelled)]
    (metric,) = metrics([f"trimap-{width}"])
    found = metric.of(ClassCounts(*parts, parts[1] + parts[2] > 0))
    assert found == pytest.approx(100 * jaccard_score(y, p, labels=used, average="macro", zero_division=0))


def test_boundary_iou_is_that_of_pixels_near_either_contour() -> None:
    truth, guess = pixels(3)
    counter = BoundaryCounter(K)
    hit, either = np.zeros(K), np.zeros(K)
    for one, other in zip(truth, guess, strict=True):
        counter.add(other, one)
        valid = one != 255
        near = []
        for labels in (one, other):
            padded = np.pad(np.where(valid, labels.astype(int), -1), 1, constant_values=-2)
            around = [np.roll(padded, (a, b), (0, 1))[1:-1, 1:-1] for a in (-1, 0, 1) for b in (-1, 0, 1)]
            near.append(valid & np.any([(part != labels) & (part != -1) for part in around], axis=0))
        for k in range(K):
            regions = [(one == k) & near[0], (other == k) & near[1]]
            hit[k] += (regions[0] & regions[1]).sum()
            either[k] += (regions[0] | regions[1]).sum()
    contours = counter.result().contours
    assert contours is not None
    (metric,) = metrics(["boundary-iou"])
    found = metric.of(ClassCounts(*contours, contours[1] + contours[2] > 0))
    assert found == pytest.approx(100 * (hit[either > 0] / either[either > 0]).mean())


def counted_near_boundaries(record: Record, contours: bool) -> Path:
    """Counts near boundaries of a synthetic record, as a run writes them."""
    (run,) = record.evaluations.values()
    counts = run.per_image
    totals = np.stack([a.sum(0) for a in (counts.intersection, counts.predicted, counts.labelled)])
    bands, file = np.stack([totals // 3] * len(WIDTHS), 1), run.path / "boundary.npz"
    Boundary(np.array(WIDTHS), *bands, contours=totals // 4 if contours else None).save(file)
    return file


@pytest.fixture
def near(factory: Factory, monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, int], Path]:
    """Two recipes: one with both kinds of counts near boundaries, one seed of the other without contours."""
    monkeypatch.setattr("harness.cli.report._recipes", dict)
    files = {}
    for name, seed in (("agmm/mini-point", 0), ("agmm/mini-point", 1), ("pce/mini-point", 0)):
        record = factory.record(factory.resolved(name), seed, quality=0.8 if name[0] == "a" else 0.5)
        files[name, seed] = counted_near_boundaries(record, contours=name[0] == "a")
    return files


BOTH = ["--metric", "boundary-iou", "--metric", "trimap-4"]


def test_figures_near_boundaries_stand_wherever_metrics_do_and_older_records_say_so(
    near: dict,
    tmp_path: Path,
    factory: Factory,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root, out = str(factory.store.root), tmp_path / "out"
    where = ["--results", root, "--out", str(out)]
    assert wsss("leaderboard", *where, *BOTH, "--format", "md,csv,tex,json") == 0
    said = capsys.readouterr().out
    assert "Boundary IoU (%)" in said
    assert "not counted" in said
    lines = {r["recipe"]: r for r in csv.DictReader((out / "leaderboard.csv").open()) if r["n"] != "0"}
    assert float(lines["agmm/mini-point"]["boundary-iou"]) > 0
    assert float(lines["agmm/mini-point"]["boundary-iou_std"]) >= 0
    assert lines["pce/mini-point"]["boundary-iou"] == ""
    assert float(lines["pce/mini-point"]["trimap-4"]) > 0
    text = (out / "leaderboard.md").read_text()
    assert "2 % of the picture's diagonal" in text
    assert "'not counted' where a record is older" in text
    monkeypatch.setenv("COLUMNS", "60")
    assert wsss("leaderboard", *where, *BOTH) == 0
    assert "no room here for mIoU within 4 px (%)" in capsys.readouterr().out.replace("\n", " ")
    assert wsss("report", *where, "--no-plots", *BOTH) == 0
    assert "Boundary IoU (%)" in (out / "report.html").read_text()
    capsys.readouterr()
    pair = ["agmm/mini-point", "pce/mini-point", "--results", root]
    assert wsss("compare", *pair, *BOTH) == 0
    said = capsys.readouterr().out
    assert "not counted" in said
    assert "mIoU within 4 px (%)" in said
    assert wsss("compare", *pair, *BOTH, "--json") == 0
    (plain,) = json.loads(capsys.readouterr().out)
    assert plain["boundary-iou_worse"] is None
    assert plain["trimap-4_better"] > plain["trimap-4_worse"] > 0
    assert wsss("compare", *pair, "--metric", "boundary_iou") == 2
    assert "did you mean 'boundary-iou'" in capsys.readouterr().err


def test_damaged_counts_near_boundaries_are_left_out_and_named(
    near: dict, tmp_path: Path, factory: Factory, capsys: pytest.CaptureFixture
) -> None:
    file = near["agmm/mini-point", 1]
    file.write_bytes(b"PK")
    where = ["--results", str(factory.store.root), "--out", str(tmp_path / "out")]
    assert wsss("leaderboard", *where, *BOTH) == 1
    said = capsys.readouterr()
    assert "not counted" in said.out
    assert str(file) in said.err


def test_where_nothing_was_counted_there_is_no_figure() -> None:
    none = np.zeros(K, np.int64)
    for metric in metrics(metric_names()):
        assert math.isnan(metric.of(ClassCounts(none, none, none, none > 0)))


def test_tables_show_a_metric_that_is_asked_for(
    tmp_path: Path, factory: Factory, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.cli.report._recipes", dict)
    for seed in range(2):
        factory.record(factory.resolved("pce/mini-point"), seed, quality=0.5)
    root, out = str(factory.store.root), tmp_path / "out"
    asked = ["--metric", "f1", "--metric", "trimap-4"]
    where = ["--results", root, "--out", str(out)]
    assert wsss("leaderboard", *where, *asked, "--format", "md,csv,tex,json") == 0
    assert "F1 (%)" in capsys.readouterr().out
    (line,) = [r for r in csv.DictReader((out / "leaderboard.csv").open()) if r["n"] != "0"]
    frame = door.table(root, metrics=["f1"])
    assert float(line["f1"]) == pytest.approx(frame["f1"][0])
    assert float(line["f1"]) > float(line["mean"])
    assert line["trimap-4"] == ""  # of records without bands
    text = (out / "leaderboard.md").read_text()
    assert "F1 (%)" in text
    assert "harmonic mean" in text
    assert "F1" in (out / "leaderboard.tex").read_text()
    assert json.loads((out / "leaderboard.json").read_text())["rows"][0]["f1"]
    assert wsss("report", *where, "--no-plots", *asked) == 0
    assert "F1 (%)" in (out / "report.html").read_text()
    assert wsss("leaderboard", *where, "--metric", "precison") == 2
    assert "did you mean 'precision'" in capsys.readouterr().err


OWN = """
from wsss import Metric

METRIC = Metric("mine", "Mine (%)", lambda counts: float(counts.labelled.max()), "what is mine")
WRONG = Metric("wrong", "Wrong", lambda counts: counts.nothing)
NAMED = Metric("other", "Other", lambda counts: "text")
"""


def test_a_metric_of_another_package_is_a_column(
    tmp_path: Path, factory: Factory, capsys: pytest.CaptureFixture
) -> None:
    factory.record(factory.resolved("pce/mini-point"), 0, quality=0.5)
    root = str(factory.store.root)
    entries = {
        "metrics": {"mine": "mine_metrics:METRIC", "wrong": "mine_metrics:WRONG", "f1": "mine_metrics:NAMED"}
    }
    with installed(tmp_path / "p", "mine-metrics", {"mine_metrics.py": OWN}, entries):
        assert "mine" in door.table(root, metrics=["mine"])
        assert wsss("list", "metrics", "mine") == 0
        said = capsys.readouterr()
        assert "what is mine" in said.out
        assert "left out: metric f1: two packages" in said.err
        with pytest.raises(UserError, match="the metric 'wrong' cannot be computed: AttributeError"):
            door.table(root, metrics=["wrong"])
        with pytest.raises(UserError, match="two packages bring a metric 'f1'"):
            door.table(root, metrics=["f1"])
        said = "\n".join(map(str, check_package("mine-metrics").breaches))
        assert "metric wrong: AttributeError" in said
        assert "metric f1: it says name = 'other'" in said
        assert "metric mine" not in said
    assert isinstance(metrics(["f1"])[0], Metric)


MISSES = """
from wsss import Metric

def misses(counts):
    return 100.0 * float(1 - counts.intersection.sum() / counts.labelled.sum())

METRIC = Metric("misses", "Misses (%)", misses, "pixels that are predicted wrong", best="low")
"""


def test_the_lowest_figure_is_marked_where_the_lowest_is_best(
    tmp_path: Path, factory: Factory, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("harness.cli.report._recipes", dict)
    for name, quality in (("agmm/mini-a", 0.9), ("pce/mini-a", 0.6), ("dfr/mini-a", 0.3)):
        factory.record(factory.resolved(name), 0, quality=quality)
    out = tmp_path / "out"
    command = ["--results", factory.store.root, "--out", out, "--metric", "misses"]
    with installed(tmp_path / "p", "m", {"misses.py": MISSES}, {"metrics": {"misses": "misses:METRIC"}}):
        assert wsss("leaderboard", *command, "--format", "md,tex,json") == 0
        printed = capsys.readouterr().out
        assert wsss("report", *command, "--no-plots") == 0
    rows = json.loads((out / "leaderboard.json").read_text())["rows"]
    best, second, third = sorted(f"{row['misses']:.2f} (one seed)" for row in rows if row["n"])
    assert f"{best} *" in printed
    assert f"{second} +" in printed
    assert f"{third}\n" in printed
    markdown, printed_table = (out / "leaderboard.md").read_text(), (out / "leaderboard.tex").read_text()
    assert f"**{best}**" in markdown
    assert f" *{second}*" in markdown
    assert f"\\textbf{{{best}}}" in printed_table
    assert re.search(f'class="first">(<[^>]*>)?{re.escape(best)}<', (out / "report.html").read_text())


PLOT = """
from matplotlib.figure import Figure
from wsss import Plot

def draw(rows):
    figure = Figure()
    figure.subplots().bar([r.recipe for r in rows], [r.mean for r in rows])
    return figure

BARS = Plot(("dataset",), draw)
WRONG = Plot(("dataset",), lambda rows: rows.nothing)
"""


def test_a_plot_of_another_package_is_drawn(
    tmp_path: Path, factory: Factory, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.cli.report._recipes", dict)
    factory.record(factory.resolved("pce/mini-point"), 0, quality=0.5)
    where = ["--results", str(factory.store.root), "--out", str(tmp_path / "out"), "--format", "svg"]
    entries = {"plots": {"bars": "mine_plots:BARS", "wrong": "mine_plots:WRONG", "none": "mine_plots:draw"}}
    with installed(tmp_path / "p", "mine-plots", {"mine_plots.py": PLOT}, entries):
        assert wsss("plot", "--kind", "bars", *where) == 0
        assert list((tmp_path / "out/plots").glob("bars-*.svg"))
        assert wsss("plot", "--kind", "wrong", *where) == 2
        assert "the plot 'wrong' cannot be drawn: AttributeError" in capsys.readouterr().err
        assert wsss("plot", "--kind", "none", *where) == 2
        assert "cannot be used" in capsys.readouterr().err
