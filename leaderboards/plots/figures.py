"""More plots for a paper: differences by class, published against reproduced, seeds, boundaries, costs.

Those of the first look, bars by class, training curves and the overview, stand in ``plots.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from harness.basics.scores import iou_from_counts
from harness.data.base import SUPERVISIONS
from leaderboards.plots.drawing import (
    COLOURS,
    STYLE,
    WIDTH,
    LegendEntries,
    caption,
    dashes,
    entries_of,
    entry_of,
    legend,
    seeds_text,
    style,
)
from leaderboards.plots.hover import figures_of, published_words, says
from leaderboards.rows.metrics import near_boundaries
from leaderboards.rows.row import Row
from leaderboards.rows.statistics import spread
from leaderboards.rows.text import mean_text, memory_text, number, time_text

#: Methods that others are compared with, the first that was run under a supervision.
BASELINES = ("pce", "cam", "full")


class Effort(NamedTuple):
    """What a weak label costs to draw.

    Attributes:
        seconds: of one picture.
        source: where that is printed.
    """

    seconds: float
    source: str


#: A. Bearman, O. Russakovsky, V. Ferrari, L. Fei-Fei: What's the Point, ECCV 2016, on PASCAL VOC 2012.
_BEARMAN = "Bearman et al. 2016, on VOC 2012"

#: Seconds of annotation per picture. Boxes and blocks have none: what is printed of boxes is time per box,
#: of blocks time on other data. Scribbles are the paper's squiggles, points one click per class.
ANNOTATION: dict[str, Effort] = {
    "full": Effort(239.7, _BEARMAN),
    "scribble": Effort(34.9, _BEARMAN),
    "point": Effort(22.1, _BEARMAN),
    "image": Effort(20.0, _BEARMAN),
}


# --- difference by class ---------------------------------------------------------------------------------


def reference_of(rows: Sequence[Row]) -> Row:
    """The row that others are compared with: the baseline of the supervision, else the lowest."""
    for name in BASELINES:
        found = [row for row in rows if row.method == name]
        if found:
            return found[0]
    return min(rows, key=lambda row: row.mean)


def difference_figure(rows: Sequence[Row], entries: LegendEntries | None = None) -> Figure | None:
    """Difference of IoU to the baseline by class, sorted, one panel for each other row.

    Error bars are the standard error of the difference over seeds.

    Args:
        rows: rows of one data set, supervision and evaluation, all with records.
        entries: from ``drawing.entries_of`` over all rows of the data set; of these rows by default.

    Returns:
        None when there is nothing to compare.
    """
    entries = entries_of(rows) if entries is None else entries
    reference = reference_of(rows)
    others = [row for row in rows if row is not reference]
    if not others:
        return None
    names = list(rows[0].runs[0].data["classes"])
    columns = min(3, len(others))
    lines = math.ceil(len(others) / columns)
    height = 0.75 + lines * (0.45 + 0.145 * len(names))
    base = reference.class_iou
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH if columns > 1 else WIDTH * 0.55, height), layout="constrained")
        panels = figure.subplots(lines, columns, squeeze=False, sharex=True)
        for axes, row in zip(panels.flat, others, strict=False):
            _difference_bars(axes, row.class_iou, base, names)
            lead = number(row.mean - reference.mean, sign=True)
            axes.set_title(f"{entry_of(entries, row).label}\n{lead} mIoU")
        for axes in panels.flat[len(others) :]:
            axes.set_axis_off()
        for index, axes in enumerate(panels.flat[: len(others)]):
            if index + columns >= len(others):
                axes.tick_params(axis="x", labelbottom=True)
                axes.set_xlabel("IoU difference (points)")
        label = entry_of(entries, reference).label
        gap = "\n" if columns == 1 else "; "
        title = f"{caption(rows[0])}{gap}against {label}"
        figure.suptitle(title, x=0.01, ha="left", fontsize=9 if columns > 1 else 8)
    return figure


def _difference_bars(axes: Axes, own: np.ndarray, base: np.ndarray, names: Sequence[str]) -> None:
    def folded(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        figures = [(*spread(c[~np.isnan(c)].tolist()), (~np.isnan(c)).sum()) for c in values.T]
        mean, std, n = np.array(figures, dtype=np.float64).T
        return mean, std / np.sqrt(np.maximum(n, 1))

    (mean, error), (other, other_error) = folded(own), folded(base)
    difference, bars = mean - other, np.hypot(error, other_error)
    present = np.flatnonzero(~np.isnan(difference))
    order = present[np.argsort(difference[present], kind="stable")]
    places = np.arange(len(order))
    colours = [COLOURS[0] if d >= 0 else COLOURS[1] for d in difference[order]]
    drawn = axes.barh(places, difference[order], 0.72, color=colours, edgecolor="white", linewidth=0.3)
    told = []
    for k in order:
        error_text = "" if np.isnan(bars[k]) else f" ± {bars[k]:.1f}"
        gap = number(difference[k], 1, sign=True)
        told.append(f"{names[k]}: {gap}{error_text} ({mean[k]:.1f} and {other[k]:.1f})")
    for bar, text in zip(drawn.patches, told, strict=True):
        says(bar, text)
    known = ~np.isnan(bars[order])
    error_bars = axes.errorbar(
        difference[order][known], places[known], xerr=bars[order][known], fmt="none", ecolor="#333333",
        elinewidth=0.7, capsize=1.5,
    )  # fmt: skip
    says(error_bars, "", [text for text, drawn_too in zip(told, known, strict=True) if drawn_too])
    axes.axvline(0, color="#333333", linewidth=0.6)
    axes.set_yticks(places, [names[i] for i in order])
    axes.set_ylim(-0.7, len(order) - 0.3)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")


# --- published against reproduced ------------------------------------------------------------------------


def published_figure(rows: Sequence[Row], entries: LegendEntries | None = None) -> Figure | None:
    """Reproduced against published mIoU, one point a row; filled where the verdict compares like with like.

    Args:
        rows: rows of one data set, of any supervision and evaluation.
        entries: from ``drawing.entries_of`` over all rows of the data set; of these rows by default.

    Returns:
        None when no row has a published value.
    """
    entries = entries_of(rows) if entries is None else entries
    shown = [row for row in rows if not math.isnan(row.published)]
    if not shown:
        return None
    values = np.array([[row.published, row.mean] for row in shown])
    low, high = values.min() - 3, values.max() + 3
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.2, 4.7), layout="constrained")
        axes = figure.subplots()
        axes.axline((low, low), slope=1, color="#888888", linewidth=0.8, zorder=1)
        for row in shown:
            colour, _, marker = style(entry_of(entries, row).index)
            judged = row.verdict in ("reproduced", "below", "above")
            told = published_words(row, f"{entry_of(entries, row).label}, {row.supervision}")
            point = axes.errorbar(
                row.published, row.mean, yerr=None if math.isnan(row.std) else row.std, fmt=marker,
                color=colour, markersize=5, markerfacecolor=colour if judged else "white", elinewidth=0.8,
                capsize=2, label=f"{entry_of(entries, row).label}, {row.supervision}", zorder=3,
            )  # fmt: skip
            says(point, told)
            if judged and not math.isnan(row.tolerance):
                band = axes.plot(
                    [row.published] * 2, [row.published - row.tolerance, row.published + row.tolerance],
                    color=colour, linewidth=4, alpha=0.25, solid_capstyle="butt", zorder=2,
                )  # fmt: skip
                says(band, f"{told}\ntolerance {row.tolerance:g}")
        axes.set(xlim=(low, high), ylim=(low, high))  # labels of an exact square are cut off
        axes.grid(visible=True, axis="x")
        axes.set_xlabel("published mIoU (%)")
        axes.set_ylabel("reproduced mIoU (%)")
        where = caption(shown[0], supervision=False).partition(",")[0]
        axes.set_title(where)
        handles, names = axes.get_legend_handles_labels()
        unique = dict(zip(names, handles, strict=True))
        figure.legend(
            list(unique.values()), list(unique), loc="outside upper left", ncols=2, fontsize=7,
            alignment="left",
            title="filled: comparable; band: tolerance; bars: deviation over seeds", title_fontsize=7,
        )  # fmt: skip
    return figure


# --- seeds ----------------------------------------------------------------------------------------------


def seeds_figure(rows: Sequence[Row], entries: LegendEntries | None = None) -> Figure:
    """Every seed, their mean and the 95 % interval over images, one line a row.

    Args:
        rows: rows of one data set, supervision and evaluation, all with records.
        entries: from ``drawing.entries_of`` over all rows of the data set; of these rows by default.
    """
    entries = entries_of(rows) if entries is None else entries
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH * 0.75, 1.05 + 0.27 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for place, row in enumerate(rows):
            colour, _, marker = style(entry_of(entries, row).index)
            drawn = []
            if not math.isnan(row.low):
                drawn += axes.plot(
                    [row.low, row.high], [place] * 2, color="#BBBBBB", linewidth=5, solid_capstyle="butt"
                )
            drawn += axes.plot(
                [row.mean] * 2, [place - 0.3, place + 0.3], color=colour, linewidth=1.6, zorder=3
            )
            scores = [run.miou for run in row.runs]
            drawn += axes.plot(
                scores, [place] * len(scores), linestyle="none", marker=marker, markersize=4.5, color=colour,
                markeredgecolor="white", markeredgewidth=0.5, zorder=4,
            )  # fmt: skip
            says(drawn, figures_of(row, entry_of(entries, row).label))
        axes.set_yticks(
            range(len(rows)), [f"{entry_of(entries, row).label} (n\u00a0=\u00a0{row.n})" for row in rows]
        )
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x")
        axes.set_xlabel("mIoU (%)")
        explained = "dot: seed, line: their mean, grey: 95 % interval over images"
        figure.suptitle(f"{caption(rows[0])}\n{explained}", x=0.01, ha="left", fontsize=8)
    return figure


# --- boundaries -----------------------------------------------------------------------------------------


def boundary_figure(rows: Sequence[Row], entries: LegendEntries | None = None) -> Figure | None:
    """mIoU within bands around the boundaries of the truth, mean and range over seeds.

    Args:
        rows: rows of one data set, supervision and evaluation, all with records.
        entries: from ``drawing.entries_of`` over all rows of the data set; of these rows by default.

    Returns:
        None when no record holds such counts (they are written since boundaries are counted).
    """
    entries = entries_of(rows) if entries is None else entries
    drawn = []
    for row in rows:
        found = [near_boundaries(run, record) for run, record in zip(row.runs, row.records, strict=True)]
        bands = [b for b in found if b is not None]
        if bands and len(bands) == len(found):
            drawn.append((row, bands))
    if not drawn:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH * 0.7, 2.9), layout="constrained")
        axes = figure.subplots()
        for row, bands in drawn:
            entry = entry_of(entries, row)
            colour, _, marker = style(entry.index)
            classes = row.runs[0].data["protocol"]["classes"]
            scores = np.stack(
                [iou_from_counts(b.intersection, b.predicted, b.labelled, classes)[1] for b in bands]
            )
            widths = bands[0].widths
            means, low, high = scores.mean(0), scores.min(0), scores.max(0)
            drawn_too = axes.plot(
                widths, means, dashes(entry.index), color=colour, marker=marker, markersize=3.5,
                label=entry.label,
            )  # fmt: skip
            told = [f"within {w:.0f} px: {m:.1f}" for w, m in zip(widths, means, strict=True)]
            if len(bands) > 1:
                told = [f"{t} ({a:.1f} to {b:.1f})" for t, a, b in zip(told, low, high, strict=True)]
                band = axes.fill_between(widths, low, high, color=colour, alpha=0.18, linewidth=0)
                says(band, "\n".join([entry.label, *told]))
            says(drawn_too, entry.label, told)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(widths.tolist()))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0f}"))
        axes.set_xlabel("half width of the band around boundaries (pixels)")
        axes.set_ylabel("mIoU within the band (%)")
        axes.set_title(caption(rows[0]))
        legend(figure, axes, seeds_text(rows, "band: their range"), width=WIDTH * 0.7)
    return figure


# --- cost -----------------------------------------------------------------------------------------------


def cost_figure(rows: Sequence[Row], entries: LegendEntries | None = None) -> Figure | None:
    """mIoU against training time, peak memory and parameters.

    Args:
        rows: rows of one data set, supervision and evaluation, all with records.
        entries: from ``drawing.entries_of`` over all rows of the data set; of these rows by default.

    Returns:
        None when the records hold none of them, or there is one row only.
    """
    entries = entries_of(rows) if entries is None else entries
    axes_of: dict[str, tuple[Callable[[Row], float], Callable[[float], str]]] = {
        "training time of a seed": (lambda r: r.cost.seconds, time_text),
        "peak memory": (lambda r: r.cost.memory_mib, memory_text),
        "parameters": (lambda r: r.cost.parameters, lambda v: f"{v / 1e6:.3g} M"),
    }
    shown = {
        name: (value, text)
        for name, (value, text) in axes_of.items()
        if any(not math.isnan(value(row)) for row in rows)
    }
    if not shown or len(rows) < 2:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
        panels = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
        for axes, (name, (value, text)) in zip(panels, shown.items(), strict=True):
            for row in rows:
                if math.isnan(value(row)):
                    continue
                entry = entry_of(entries, row)
                colour, _, marker = style(entry.index)
                point = axes.errorbar(
                    value(row), row.mean, yerr=None if math.isnan(row.std) else row.std, fmt=marker,
                    color=colour, markersize=5, markeredgecolor="white", markeredgewidth=0.5, elinewidth=0.8,
                    label=entry.label,
                )  # fmt: skip
                says(point, f"{entry.label}\nmIoU {mean_text(row)}\n{name}: {text(value(row))}")
            values = np.array([value(row) for row in rows])
            _scale(axes, values[~np.isnan(values)], text)
            axes.set_xlabel(name)
            axes.grid(visible=True, axis="x")
        panels[0].set_ylabel("mIoU (%)")
        panels[0].set_title(caption(rows[0]))
        legend(figure, panels[0], seeds_text(rows))
    return figure


def _scale(axes: Axes, values: np.ndarray, text: Callable[[float], str]) -> None:
    """An axis with few ticks in the words of the tables, logarithmic where the values span a lot."""
    low, high = values.min(), values.max()
    if high / low < 4:
        margin = 0.15 * (high - low) or 0.25 * high
        axes.set_xlim(low - margin, high + margin)
        axes.xaxis.set_major_locator(MaxNLocator(3))
    else:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.4, high * 1.4)
        decades = 10.0 ** np.arange(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
        steps = np.array([1, 2, 5]) if high / low < 100 else np.array([1])
        axes.xaxis.set_major_locator(FixedLocator((decades[:, None] * steps).ravel().tolist()))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: text(x)))


# --- annotation -----------------------------------------------------------------------------------------


def annotation_figure(rows: Sequence[Row], entries: LegendEntries | None = None) -> Figure | None:
    """mIoU against the time that the label of one picture takes to draw.

    Args:
        rows: rows of one data set and evaluation, of any supervision, all with records.
        entries: from ``drawing.entries_of`` over all rows of the data set; of these rows by default.

    Returns:
        None with fewer than two kinds of label whose time is known.
    """
    entries = entries_of(rows) if entries is None else entries
    kinds = [s for s in SUPERVISIONS if s in ANNOTATION and any(row.supervision == s for row in rows)]
    if len(kinds) < 2:
        return None
    left_out = sorted({row.supervision for row in rows} - set(kinds))
    shown = [row for row in rows if row.supervision in kinds]
    lines: dict[str, list[Row]] = {}
    for row in shown:
        lines.setdefault(entry_of(entries, row).label, []).append(row)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH * 0.78, 3.2), layout="constrained")
        axes = figure.subplots()
        for label, members in lines.items():
            members.sort(key=lambda row: ANNOTATION[row.supervision].seconds)
            index = entry_of(entries, members[0]).index
            colour, _, marker = style(index)
            seconds = [ANNOTATION[row.supervision].seconds for row in members]
            stds = [0.0 if math.isnan(row.std) else row.std for row in members]
            points = axes.errorbar(
                seconds, [row.mean for row in members], yerr=stds, color=colour, marker=marker, markersize=5,
                linewidth=0.9, linestyle=dashes(index), elinewidth=0.8, capsize=2, markeredgecolor="white",
                markeredgewidth=0.5, label=label,
            )  # fmt: skip
            told = [
                f"{row.supervision}, {s:g} s: {mean_text(row)}"
                for row, s in zip(members, seconds, strict=True)
            ]
            says(points, label, told)
        axes.set_xscale("log")
        axes.set_xlim(15, 320)
        places = [ANNOTATION[k].seconds for k in kinds]
        axes.xaxis.set_major_locator(FixedLocator(places))
        axes.xaxis.set_minor_locator(NullLocator())
        names = {ANNOTATION[k].seconds: k for k in kinds}
        near = {s: i % 2 for i, s in enumerate(sorted(places))}  # neighbours in two lines: they lie close
        axes.xaxis.set_major_formatter(
            FuncFormatter(
                lambda x, _: ("\n\n" if near.get(x) and x < 30 else "") + f"{names.get(x, '')}\n{x:g} s"
            )
        )
        sources = "; ".join(sorted({ANNOTATION[k].source for k in kinds}))
        axes.set_xlabel(f"annotation time per picture ({sources})")
        axes.set_ylabel("mIoU (%)")
        axes.grid(visible=True, axis="x")
        title = caption(rows[0], supervision=False)
        axes.set_title(title + (f"; no sourced time for {', '.join(left_out)}" if left_out else ""))
        legend(figure, axes, seeds_text(shown), width=WIDTH * 0.78)
    return figure
