"""Plots for a paper: IoU by class, training curves, overview. Vector and PNG, safe for the colour-blind.

Figures are made without pyplot, so nothing global changes. Widths are those of a two-column page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harness.basics.listing import cells
from harness.data.base import SUPERVISIONS
from leaderboards.judge.collapse import collapsed
from leaderboards.plots.drawing import (
    COLOURS,
    STYLE,
    WIDTH,
    Entry,
    LegendEntries,
    caption,
    entries_of,
    entry_of,
    legend,
    seeds_text,
    style,
)
from leaderboards.plots.hover import figures_of, published_words, says
from leaderboards.rows.gathering import dataset_title
from leaderboards.rows.row import Row
from leaderboards.rows.statistics import spread

#: Classes in one line of bars; more go on further lines.
_CLASSES_PER_LINE = 24


# --- IoU by class --------------------------------------------------------------------------------------


def per_class_figure(rows: Sequence[Row], entries: LegendEntries | None = None) -> Figure:
    """Grouped bars: IoU by class and its mean, one colour a row, error bars over seeds.

    Args:
        rows: rows of one data set, supervision and evaluation, all with records.
        entries: from :func:`entries_of` over all rows of the data set; of these rows by default.
    """
    entries = entries_of(rows) if entries is None else entries
    shown = [entry_of(entries, row) for row in rows]
    names = list(rows[0].runs[0].data["classes"])
    lines = math.ceil((len(names) + 1) / _CLASSES_PER_LINE)
    per_line = math.ceil((len(names) + 1) / lines)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.75 + 2.1 * lines), layout="constrained")
        panels = figure.subplots(lines, 1, squeeze=False)[:, 0]
        values = [np.column_stack([row.class_iou, [run.miou for run in row.runs]]) for row in rows]
        for start, axes in zip(range(0, len(names) + 1, per_line), panels, strict=True):
            here = [*names, "mean"][start : start + per_line]
            _bars(axes, [v[:, start : start + per_line] for v in values], here, shown)
            axes.set_xlim(-0.6, per_line - 0.4 if lines > 1 else len(here) - 0.4)
        panels[0].set_title(caption(rows[0]))
        legend(figure, panels[0], seeds_text(rows))
    return figure


def _bars(
    axes: Axes,
    values: Sequence[np.ndarray],
    names: Sequence[str],
    entries: Sequence[Entry],
) -> None:
    width = 0.8 / len(values)
    centres = np.arange(len(names), dtype=np.float64)
    for index, (own, entry) in enumerate(zip(values, entries, strict=True)):
        figures = [spread(column[~np.isnan(column)].tolist()) for column in own.T]
        means, stds = np.array(figures).T
        places = centres + (index - (len(values) - 1) / 2) * width
        colour, hatch, _ = style(entry.index)
        present = ~np.isnan(means)
        drawn = axes.bar(
            places[present], means[present], width * 0.92, color=colour, hatch=hatch, edgecolor="white",
            linewidth=0.3, label=entry.label,
        )  # fmt: skip
        told = [
            f"{name}: {mean:.1f}" + ("" if np.isnan(std) else f" ± {std:.1f}")
            for name, mean, std in zip(names, means, stds, strict=True)
        ]
        for bar, k in zip(drawn.patches, np.flatnonzero(present).tolist(), strict=True):
            says(bar, f"{entry.label}\n{told[k]}")
        several = ~np.isnan(stds)
        error_bars = axes.errorbar(
            places[several], means[several], stds[several], fmt="none", ecolor="#333333", elinewidth=0.7,
            capsize=min(2.0, 12 * width),
        )  # fmt: skip
        says(error_bars, entry.label, [told[k] for k in np.flatnonzero(several)])
        for place in places[~present]:
            axes.text(
                place, 1.0, "absent", rotation=90, ha="center", va="bottom", fontsize=6, color="#555555"
            )
    if names[-1] == "mean":
        axes.axvline(len(names) - 1.5, color="#888888", linewidth=0.6)
    axes.set_ylim(0, 100)
    axes.set_ylabel("IoU (%)")
    crowded = len(names) > 8 or max(map(cells, names)) > 90 / len(names)
    axes.set_xticks(centres, names, rotation=45 if crowded else 0, ha="right" if crowded else "center")
    if crowded:
        for tick in axes.get_xticklabels():
            tick.set_rotation_mode("anchor")
    axes.tick_params(axis="x", length=0)


# --- training curves -----------------------------------------------------------------------------------


def curves(row: Row) -> tuple[pd.Index, dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """Steps, and (mean, lowest, highest) over seeds for each loss column, at steps that all seeds logged."""
    histories = [h.set_index("step") for h in (r.history() for r in row.records) if len(h)]
    if not histories:
        return pd.Index([]), {}
    shared = histories[0].index
    for history in histories[1:]:
        shared = shared.intersection(history.index)
    beside = ("note.", "amp.")
    columns = [c for c in histories[0].columns if c not in ("lr", "steps_per_second")]
    columns = [c for c in columns if not c.startswith(beside)]
    found = {}
    for column in columns:
        if any(column not in h for h in histories):
            continue
        stacked = np.stack([h.loc[shared, column].to_numpy(dtype=np.float64) for h in histories])
        found[column] = (stacked.mean(0), stacked.min(0), stacked.max(0))
    return shared, found


def curves_figure(rows: Sequence[Row], entries: LegendEntries | None = None) -> Figure | None:
    """Loss over steps, one panel a row: the total of every seed, and mean and range of each term.

    Returns:
        None when no row has a history.
    """
    entries = entries_of(rows) if entries is None else entries
    drawn = [(row, entry_of(entries, row).label, *curves(row)) for row in rows]
    drawn = [entry for entry in drawn if entry[3]]
    if not drawn:
        return None
    columns = min(3, len(drawn))
    lines = math.ceil(len(drawn) / columns)
    width = WIDTH if columns > 1 else WIDTH * 0.6
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, 0.5 + 2.1 * lines), layout="constrained")
        panels = figure.subplots(lines, columns, squeeze=False)
        for axes, (row, label, steps, terms) in zip(panels.flat, drawn, strict=False):
            order = ["loss", *(t for t in terms if t != "loss")] if len(terms) != 2 else ["loss"]
            for index, term in enumerate(t for t in order if t in terms):
                mean, low, high = terms[term]
                total = term == "loss"
                others = [c for c in COLOURS if c != "#000000"]
                colour = "#000000" if total else others[(index - 1) % len(others)]
                line = "-" if index <= len(others) else "--"
                name = "total" if total else term
                (drawn_line,) = axes.plot(steps, mean, line, color=colour, label=name, zorder=3)
                last = f"{name} loss, mean over seeds\nlast {mean[-1]:.3g}, lowest {mean.min():.3g}"
                says(drawn_line, f"{label}\n{last}")
                if total and len(row.records) > 1:
                    _every_seed(axes, row, steps)
                elif len(row.records) > 1:
                    band = axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
                    says(
                        band, f"{label}\n{term} loss, range over seeds\nlast {low[-1]:.3g} to {high[-1]:.3g}"
                    )
            axes.set_title(f"{label}, n = {row.n}")
            if all(low.min() >= 0 for _, low, _ in terms.values()):
                axes.set_ylim(bottom=0)
            axes.set_xlim(0, float(steps[-1]))
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            named = len(axes.get_legend_handles_labels()[1])
            two = 2 if named > 5 else 1
            box = {"frameon": True, "framealpha": 0.85, "edgecolor": "none"}  # lines run below a long legend
            axes.legend(loc="upper right", fontsize=7, handlelength=1.2, labelspacing=0.3, ncols=two, **box)
            low, high = axes.get_ylim()  # room for the legend above the curves
            axes.set_ylim(low, high + 0.09 * (high - low) * math.ceil(named / two))
        for axes in panels.flat[len(drawn) :]:
            axes.set_axis_off()
        for index, axes in enumerate(panels.flat[: len(drawn)]):
            if index + columns >= len(drawn):
                axes.set_xlabel("optimiser step")
        for axes in panels[:, 0]:
            axes.set_ylabel("loss")
        first = drawn[0][0]
        band = "; thin: seeds, band: range" if any(len(d[0].records) > 1 for d in drawn) else ""
        where = f"{dataset_title(first.dataset)}, {first.records[0].recipe['train_split']}"
        title = f"{where}, {first.supervision} supervision{band}"
        figure.suptitle(title, x=0.01, ha="left", fontsize=9)
    return figure


def _every_seed(axes: Axes, row: Row, steps: pd.Index) -> None:
    """The total loss of each seed, thin; dashed and named where the seed collapsed."""
    fallen = {one.seed: one for one in collapsed([row])}
    for record in row.records:
        history = record.history().set_index("step")["loss"].loc[steps]
        own = record.seed in fallen
        (line,) = axes.plot(
            steps, history, "--" if own else "-", color=COLOURS[1] if own else "#777777", linewidth=0.7,
            label=f"seed {record.seed}: collapsed" if own else None, zorder=2,
        )  # fmt: skip
        told = (
            fallen[record.seed].text
            if own
            else f"seed {record.seed}, total loss; last {history.iloc[-1]:.3g}"
        )
        says(line, f"{row.label}\n{told}")


# --- overview ------------------------------------------------------------------------------------------


def overview_figure(rows: Sequence[Row], entries: LegendEntries | None = None) -> Figure:
    """mIoU by supervision: a line at the mean, its interval, a dot for each seed, a diamond for print.

    Args:
        rows: rows of one data set and evaluation, of any supervision, all with records.
        entries: from :func:`entries_of` over all rows of the data set; of these rows by default.
    """
    entries = entries_of(rows) if entries is None else entries
    shown = [entry_of(entries, row) for row in rows]
    kinds = [s for s in SUPERVISIONS if any(row.supervision == s for row in rows)]
    width = max(4.8, min(WIDTH, 2.2 + 1.15 * len(kinds)))
    with mpl.rc_context(STYLE):
        height = max(3.0, 0.8 + 0.155 * len({entry.label for entry in shown}))  # the legend's
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
        for place, kind in enumerate(kinds):
            here = [(row, entry) for row, entry in zip(rows, shown, strict=True) if row.supervision == kind]
            here.sort(key=lambda pair: -pair[0].mean)
            gap = 0.8 / len(here)
            for index, (row, entry) in enumerate(here):
                x = place + (index - (len(here) - 1) / 2) * gap
                _dots(axes, row, x, min(gap * 0.36, 0.14), entry)
        for edge in range(1, len(kinds)):
            axes.axvline(edge - 0.5, color="#DDDDDD", linewidth=0.5)
        axes.set_xlim(-0.5, len(kinds) - 0.5)
        axes.set_xticks(range(len(kinds)), kinds)
        axes.tick_params(axis="x", length=0)
        axes.set_xlabel("supervision")
        axes.set_ylabel("mIoU (%)")
        axes.margins(y=0.1)
        axes.set_title(caption(rows[0], supervision=False))
        handles, found = axes.get_legend_handles_labels()
        unique = dict(zip(found, handles, strict=True))
        names = sorted(unique, key=lambda name: name == "published")  # as they come, print last
        figure.legend(
            [unique[name] for name in names], names, loc="outside right upper", handletextpad=0.3,
            title="dot: seed, line: mean,\ngrey: 95 % interval", title_fontsize=7, alignment="left",
        )  # fmt: skip
    return figure


def _dots(axes: Axes, row: Row, x: float, half: float, entry: Entry) -> None:
    """One row of the overview: line at the mean, dots side by side, the published value."""
    colour, _, marker = style(entry.index)
    drawn = []
    if not math.isnan(row.low):
        drawn += axes.plot(
            [x, x], [row.low, row.high], color="#BBBBBB", linewidth=3.0, solid_capstyle="butt", zorder=2
        )
    drawn += axes.plot([x - half, x + half], [row.mean, row.mean], color=colour, linewidth=2.0, zorder=3)
    scores = [run.miou for run in row.runs]
    places = x + np.linspace(-0.7, 0.7, len(scores)) * half if len(scores) > 1 else [x]
    drawn += axes.plot(
        places, scores, linestyle="none", marker=marker, markersize=4, color=colour, zorder=4,
        markeredgecolor="white", markeredgewidth=0.4, label=entry.label,
    )  # fmt: skip
    says(drawn, figures_of(row, entry.label))
    if not math.isnan(row.published):
        diamond = axes.plot(
            x, row.published, linestyle="none", marker="D", markersize=5, zorder=5,
            markerfacecolor="none", color="#333333", label="published",
        )  # fmt: skip
        says(diamond, published_words(row, entry.label))
