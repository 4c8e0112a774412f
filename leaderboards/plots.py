"""Plots for a paper: IoU by class, training curves, overview. Vector and PNG, safe for the colour-blind.

Figures are made without pyplot, so nothing global changes. Widths are those of a two-column page.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harness.data.base import SUPERVISIONS
from harness.errors import UserError, nearest
from harness.files import write_with
from leaderboards.gathering import dataset_title
from leaderboards.statistics import spread
from leaderboards.tables import Row, class_iou

#: Okabe and Ito's palette, told apart under every common colour vision; yellow last, it is weak on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#F0E442")
_HATCHES = ("", "////", "....", "xxxx")
_MARKERS = ("o", "s", "^", "D")

#: Width in inches of a page with two columns of text.
WIDTH = 7.0

_STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.labelsize": 8,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "lines.linewidth": 1.3,
    "hatch.linewidth": 0.5,
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "wsss-bench",
    "savefig.dpi": 200,
}

#: Classes in one line of bars; more go on further lines.
_CLASSES_PER_LINE = 24


def style(index: int) -> tuple[str, str, str]:
    """Colour, hatch and marker of the index-th series; no two of the first 32 are alike."""
    turn = index // len(COLOURS)
    return COLOURS[index % len(COLOURS)], _HATCHES[turn % 4], _MARKERS[turn % 4]


def save(figure: Figure, stem: Path, formats: Sequence[str]) -> list[Path]:
    """Write ``stem.<format>`` for each format, without dates, so that equal plots are equal files."""
    dates: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with mpl.rc_context(_STYLE):
        figure.draw_without_rendering()
    figure.set_layout_engine("none")  # one layout, whatever the format
    files = []
    for name in formats:
        file = stem.with_name(f"{stem.name}.{name}")
        with mpl.rc_context(_STYLE):
            write_with(file, lambda f, n=name: figure.savefig(f, format=n, metadata=dates.get(n)))  # type: ignore[misc]
        files.append(file)
    return files


@dataclass(frozen=True)
class Entry:
    """How a training appears in every figure of its data set.

    Attributes:
        label: in legends.
        index: of its :func:`style`; equal labels have equal styles.
    """

    label: str
    index: int


Entries = Mapping[tuple[str, str], Entry]


def entries_of(rows: Sequence[Row]) -> dict[tuple[str, str], Entry]:
    """Legend entries of a data set's rows by (recipe, overrides).

    The label is the method's title; where one supervision has several recipes of a method, the recipe
    follows, and overrides stand in brackets.
    """
    recipes: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        recipes.setdefault((row.supervision, row.title), set()).add(row.recipe)
    indices: dict[str, int] = {}
    found = {}
    for row in rows:
        several = len(recipes[row.supervision, row.title]) > 1
        label = f"{row.title} {row.recipe.partition('/')[2]}" if several else row.title
        label += f" ({row.overrides})" if row.overrides else ""
        found[row.recipe, row.overrides] = Entry(label, indices.setdefault(label, len(indices)))
    return found


def _entry(entries: Entries, row: Row) -> Entry:
    return entries[row.recipe, row.overrides]


def _standing(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.n and row.verdict not in ("stale", "not run")]


def _caption(row: Row, supervision: bool = True) -> str:
    words = [dataset_title(row.dataset), row.runs[0].data["spec"]["split"]]
    if row.images != row.official_images:
        words[1] += f" ({row.images} of {row.official_images} images)"
    if supervision:
        words.append(f"{row.supervision} supervision")
    output = row.runs[0].data["spec"]["output"]
    words += [f"protocol {row.protocol}", *([output] if output != "segmentation" else [])]
    return ", ".join(words)


def _legend(figure: Figure, axes: Axes, title: str) -> None:
    """Legend above the axes, in as many columns as fit the width."""
    handles, names = axes.get_legend_handles_labels()
    letters = [len(name) + 7 for name in names]
    columns = len(names) if sum(letters) <= 125 else max(1, 125 // max(letters))
    figure.legend(
        handles, names, loc="outside upper left", ncols=columns, columnspacing=1.4, handlelength=1.4,
        title=title, title_fontsize=7, alignment="left",
    )  # fmt: skip


# --- IoU by class --------------------------------------------------------------------------------------


def per_class_figure(rows: Sequence[Row], entries: Entries | None = None) -> Figure:
    """Grouped bars: IoU by class and its mean, one colour a row, error bars over seeds.

    Args:
        rows: rows of one data set, supervision and evaluation, all with records.
        entries: from :func:`entries_of` over all rows of the data set; of these rows by default.
    """
    entries = entries_of(rows) if entries is None else entries
    shown = [_entry(entries, row) for row in rows]
    names = list(rows[0].runs[0].data["classes"])
    lines = math.ceil((len(names) + 1) / _CLASSES_PER_LINE)
    per_line = math.ceil((len(names) + 1) / lines)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, 0.75 + 2.1 * lines), layout="constrained")
        panels = figure.subplots(lines, 1, squeeze=False)[:, 0]
        values = [np.column_stack([class_iou(row), [run.miou for run in row.runs]]) for row in rows]
        for start, axes in zip(range(0, len(names) + 1, per_line), panels, strict=True):
            here = [*names, "mean"][start : start + per_line]
            _bars(axes, [v[:, start : start + per_line] for v in values], here, shown)
            axes.set_xlim(-0.6, per_line - 0.4 if lines > 1 else len(here) - 0.4)
        panels[0].set_title(_caption(rows[0]))
        seeds = {row.n for row in rows}
        number = f"n = {seeds.pop()}" if len(seeds) == 1 else f"n = {min(seeds)} to {max(seeds)}"
        _legend(figure, panels[0], f"mean over seeds ({number}), error bars: standard deviation")
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
        axes.bar(
            places[present], means[present], width * 0.92, color=colour, hatch=hatch, edgecolor="white",
            linewidth=0.3, label=entry.label,
        )  # fmt: skip
        several = ~np.isnan(stds)
        axes.errorbar(
            places[several], means[several], stds[several], fmt="none", ecolor="#333333", elinewidth=0.7,
            capsize=min(2.0, 12 * width),
        )  # fmt: skip
        for place in places[~present]:
            axes.text(
                place, 1.0, "absent", rotation=90, ha="center", va="bottom", fontsize=6, color="#555555"
            )
    if names[-1] == "mean":
        axes.axvline(len(names) - 1.5, color="#888888", linewidth=0.6)
    axes.set_ylim(0, 100)
    axes.set_ylabel("IoU (%)")
    crowded = len(names) > 8
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
    columns = [c for c in histories[0].columns if c not in ("lr", "steps_per_second")]
    found = {}
    for column in columns:
        if any(column not in h for h in histories):
            continue
        stacked = np.stack([h.loc[shared, column].to_numpy(dtype=np.float64) for h in histories])
        found[column] = (stacked.mean(0), stacked.min(0), stacked.max(0))
    return shared, found


def curves_figure(rows: Sequence[Row], entries: Entries | None = None) -> Figure | None:
    """Loss over steps, one panel a row: the total and each term, mean and range over seeds.

    Returns:
        None when no row has a history.
    """
    entries = entries_of(rows) if entries is None else entries
    drawn = [(row, _entry(entries, row).label, *curves(row)) for row in rows]
    drawn = [entry for entry in drawn if entry[3]]
    if not drawn:
        return None
    columns = min(3, len(drawn))
    lines = math.ceil(len(drawn) / columns)
    width = WIDTH if columns > 1 else WIDTH * 0.6
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, 0.5 + 2.1 * lines), layout="constrained")
        panels = figure.subplots(lines, columns, squeeze=False)
        for axes, (row, label, steps, terms) in zip(panels.flat, drawn, strict=False):
            order = ["loss", *(t for t in terms if t != "loss")] if len(terms) != 2 else ["loss"]
            for index, term in enumerate(t for t in order if t in terms):
                mean, low, high = terms[term]
                total = term == "loss"
                colour = "#000000" if total else [c for c in COLOURS if c != "#000000"][(index - 1) % 7]
                dashes = "-" if index < 8 else "--"
                axes.plot(steps, mean, dashes, color=colour, label="total" if total else term, zorder=3)
                if len(row.records) > 1:
                    axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
            axes.set_title(f"{label}, n = {row.n}")
            if all(low.min() >= 0 for _, low, _ in terms.values()):
                axes.set_ylim(bottom=0)
            axes.set_xlim(0, float(steps[-1]))
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.legend(loc="best", fontsize=7, handlelength=1.2, labelspacing=0.3)
        for axes in panels.flat[len(drawn) :]:
            axes.set_axis_off()
        for index, axes in enumerate(panels.flat[: len(drawn)]):
            if index + columns >= len(drawn):
                axes.set_xlabel("optimiser step")
        for axes in panels[:, 0]:
            axes.set_ylabel("loss")
        first = drawn[0][0]
        band = "; band: range over seeds" if any(len(d[0].records) > 1 for d in drawn) else ""
        where = f"{dataset_title(first.dataset)}, {first.records[0].recipe['train_split']}"
        title = f"{where}, {first.supervision} supervision{band}"
        figure.suptitle(title, x=0.01, ha="left", fontsize=9)
    return figure


# --- overview ------------------------------------------------------------------------------------------


def overview_figure(rows: Sequence[Row], entries: Entries | None = None) -> Figure:
    """mIoU by supervision: a line at the mean, a dot for each seed, a diamond at the published value.

    Args:
        rows: rows of one data set and evaluation, of any supervision, all with records.
        entries: from :func:`entries_of` over all rows of the data set; of these rows by default.
    """
    entries = entries_of(rows) if entries is None else entries
    shown = [_entry(entries, row) for row in rows]
    kinds = [s for s in SUPERVISIONS if any(row.supervision == s for row in rows)]
    width = max(4.8, min(WIDTH, 2.2 + 1.15 * len(kinds)))
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, 3.0), layout="constrained")
        axes = figure.subplots()
        for place, kind in enumerate(kinds):
            here = [(row, entry) for row, entry in zip(rows, shown, strict=True) if row.supervision == kind]
            here.sort(key=lambda pair: pair[1].index)
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
        axes.set_title(_caption(rows[0], supervision=False))
        handles, found = axes.get_legend_handles_labels()
        unique = dict(zip(found, handles, strict=True))
        order = {entry.label: entry.index for entry in shown}
        names = sorted(unique, key=lambda name: order.get(name, len(order)))  # `published` last
        figure.legend(
            [unique[name] for name in names], names, loc="outside right upper", handletextpad=0.3,
            title="dot: seed, line: mean", title_fontsize=7, alignment="left",
        )  # fmt: skip
    return figure


def _dots(axes: Axes, row: Row, x: float, half: float, entry: Entry) -> None:
    """One row of the overview: line at the mean, dots side by side, the published value."""
    colour, _, marker = style(entry.index)
    axes.plot([x - half, x + half], [row.mean, row.mean], color=colour, linewidth=2.0, zorder=3)
    scores = [run.miou for run in row.runs]
    places = x + np.linspace(-0.7, 0.7, len(scores)) * half if len(scores) > 1 else [x]
    axes.plot(
        places, scores, linestyle="none", marker=marker, markersize=4, color=colour, zorder=4,
        markeredgecolor="white", markeredgewidth=0.4, label=entry.label,
    )  # fmt: skip
    if not math.isnan(row.published):
        axes.plot(
            x, row.published, linestyle="none", marker="D", markersize=5, zorder=5,
            markerfacecolor="none", color="#333333", label="published",
        )  # fmt: skip


# --- all of them ---------------------------------------------------------------------------------------

KINDS = ("per-class", "curves", "overview")


def _plots(kind: str, rows: Sequence[Row]) -> dict[str, Figure]:
    """File stem to figure."""

    def key(row: Row, *parts: str) -> tuple[str, ...]:
        return tuple(getattr(row, p) for p in parts)

    entries = {
        name: entries_of(list(members)) for name, members in groupby(rows, key=lambda row: row.dataset)
    }
    groups: dict[str, tuple[tuple[str, ...], Callable[[list[Row]], Figure | None]]] = {
        "per-class": (
            ("dataset", "supervision", "evaluation"),
            lambda r: per_class_figure(r, entries[r[0].dataset]),
        ),
        "curves": (("dataset", "supervision"), lambda r: curves_figure(_trainings(r), entries[r[0].dataset])),
        "overview": (("dataset", "evaluation"), lambda r: overview_figure(r, entries[r[0].dataset])),
    }
    parts, draw = groups[kind]
    ordered = sorted(rows, key=lambda r: key(r, *parts))
    found = {}
    for name, members in groupby(ordered, key=lambda r: key(r, *parts)):
        figure = draw(list(members))
        if figure is not None:
            found["-".join([kind, *name])] = figure
    return found


def _trainings(rows: Sequence[Row]) -> list[Row]:
    """One row for each training, whatever number of evaluations hangs on it."""
    return list({(row.recipe, row.digest): row for row in rows}.values())


def write_plots(
    rows: Sequence[Row], out: Path, *, kind: str = "all", formats: Sequence[str] = ("png", "svg")
) -> list[Path]:
    """Draw and write plots of the rows that stand (neither stale nor holes).

    Args:
        rows: from :func:`leaderboards.tables.leaderboard`.
        out: folder; files are ``<kind>-<dataset>-....<format>``.
        kind: ``per-class``, ``curves``, ``overview`` or ``all``.
        formats: of ``png``, ``svg``, ``pdf``.

    Raises:
        UserError: an unknown kind or format, or nothing to draw.
    """
    if kind not in ("all", *KINDS):
        raise UserError(
            f"unknown kind of plot {kind!r}", where="--kind", remedy=nearest(kind, ["all", *KINDS])
        )
    for name in formats:
        if name not in ("png", "svg", "pdf"):
            raise UserError(f"unknown format {name!r}", where="--format", remedy="png, svg or pdf")
    standing = _standing(rows)
    files = []
    for one in KINDS if kind == "all" else (kind,):
        for stem, figure in sorted(_plots(one, standing).items()):
            files += save(figure, out / stem, formats)
    if not files:
        raise UserError(
            "there is nothing to draw: no finished, evaluated record",
            remedy="run a recipe first, such as `wsss run mini`; `wsss leaderboard` shows what is stale",
        )
    return files
