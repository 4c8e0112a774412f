"""Plots of a search. Drawn here, as Optuna's leave out what was stopped early: with a scheduler, most trials.

Where hyper-parameters are compared, the value is that at the point of training which most trials have
reached (:class:`harness.running.search.analysis.CommonPoint`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from harness.basics.drawn_text import as_written
from harness.basics.files import write_with
from harness.running.search.analysis import CommonPoint
from harness.running.search.study import Study, own_trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Colours of Okabe and Ito, which people with colour-blindness can tell apart.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#808080"
#: Panels side by side.
PANEL_COLUMNS = 4


def write_study_plots(study: Study, comparison: CommonPoint) -> list[Path]:
    """Every plot that the trials allow, as PNG in ``plots/``; none before two trials were measured."""
    if len(_measured(study)) < 2:
        return []
    draw: dict[str, Callable[[CommonPoint], Figure | None]] = {
        "history": history,
        "intermediate": intermediate,
        "slices": slices,
        "parallel": parallel,
        "importances": importance_bars,
    }
    written = []
    for name, function in draw.items():
        figure = function(comparison)
        if figure is None:
            continue
        figure.suptitle(f"{study.plan.recipe}: {study.plan.objective.stamp}", fontsize=10)
        file = study.plan.folder / "plots" / f"{name}.png"
        as_written(figure)
        write_with(file, partial(figure.savefig, dpi=120))
        written.append(file)
    return written


def _measured(study: Study) -> list[FrozenTrial]:
    return [trial for trial in study.trials if trial.intermediate_values]


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _axes(figure: Figure, *place: int) -> Axes:
    axes = figure.add_subplot(*place)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    return axes


def _label(study: Study) -> str:
    return f"mIoU (%), {study.plan.objective.split}"


def _split(
    rows: Sequence[tuple[FrozenTrial, float]],
) -> Iterator[tuple[str, str, list[tuple[FrozenTrial, float]]]]:
    """Legend, fill and rows of trials that were stopped, and of those that finished."""
    done = [row for row in rows if row[0].state == TrialState.COMPLETE]
    rest = [row for row in rows if row[0].state != TrialState.COMPLETE]
    if rest:
        yield "stopped early", "white", rest
    if done:
        yield "finished", BLUE, done


# --- over trials -------------------------------------------------------------------------------------


def history(comparison: CommonPoint) -> Figure:
    """The last value of every trial, and the best of those finished so far."""
    from matplotlib.ticker import MaxNLocator

    study = comparison.study
    figure = _figure(8, 4.5)
    axes = _axes(figure, 1, 1, 1)
    rows = [(t, t.intermediate_values[max(t.intermediate_values)]) for t in _measured(study)]
    for label, face, some in _split(rows):
        edge = BLUE if face == BLUE else GREY
        x, y = [t.number for t, _ in some], [v for _, v in some]
        axes.scatter(x, y, s=36, facecolor=face, edgecolor=edge, label=label, zorder=3)
        if face == "white":
            for trial, value in some:
                at = max(trial.intermediate_values)
                axes.annotate(
                    f"{at} %", (trial.number, value), (0, -12), textcoords="offset points", ha="center",
                    fontsize=7, color=GREY,
                )  # fmt: skip
    done = sorted((t.number, v) for t, v in rows if t.state == TrialState.COMPLETE)
    if done:
        best = np.maximum.accumulate([v for _, v in done])
        axes.step([n for n, _ in done], best, where="post", color=BLUE, linewidth=1.5, label="best so far")
    own = own_trial(study)
    if own is not None:
        axes.axhline(own.value or 0.0, color=ORANGE, linestyle="--", linewidth=1, label="recipe's own values")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(y=0.12)
    axes.set(xlabel="trial (percent: training done when it was stopped)", ylabel=_label(study))
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def intermediate(comparison: CommonPoint) -> Figure:
    """Values during training, a line for each trial."""
    study = comparison.study
    trials = _measured(study)
    figure = _figure(8, 4.5)
    axes = _axes(figure, 1, 1, 1)
    own, told = own_trial(study), set[str]()
    for trial in trials:
        points = sorted(trial.intermediate_values.items())
        kind = "finished" if trial.state == TrialState.COMPLETE else "stopped early"
        colour = BLUE if kind == "finished" else GREY
        if own is not None and trial.number == own.number:
            kind, colour = "recipe's own values", ORANGE
        axes.plot(
            *zip(*points, strict=True),
            marker="o",
            markersize=4,
            color=colour,
            linewidth=1.5 if kind != "stopped early" else 0.8,
            label=None if kind in told else kind,
        )
        told.add(kind)
    ticks = sorted({p for t in trials for p in t.intermediate_values})
    axes.set_xticks(ticks)
    axes.set(xlabel="training done (%)", ylabel=_label(study))
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


# --- over hyper-parameters ---------------------------------------------------------------------------


def slices(comparison: CommonPoint) -> Figure:
    """The value over each hyper-parameter."""
    study, rows = comparison.study, comparison.rows
    space = study.plan.space
    columns = min(len(space), PANEL_COLUMNS)
    lines = math.ceil(len(space) / columns)
    figure = _figure(3.1 * columns + 0.6, 2.7 * lines + 0.9)
    own = own_trial(study)
    for number, (name, distribution) in enumerate(space.items()):
        axes = _axes(figure, lines, columns, number + 1)
        scale = _Scale(distribution)
        for _, face, some in _split(rows):
            # Trials of one category stand side by side.
            aside = [0.0 if scale.numeric else (t.number % 7 - 3) * 0.05 for t, _ in some]
            x = [scale.place(t.params[name]) + a for (t, _), a in zip(some, aside, strict=True)]
            mine = [own is not None and t.number == own.number for t, _ in some]
            faces, edges = [ORANGE if m else face for m in mine], [ORANGE if m else BLUE for m in mine]
            axes.scatter(x, [v for _, v in some], s=26, facecolor=faces, edgecolor=edges, zorder=3)
        axes.set_xlim(scale.low - 0.05 * scale.width, scale.high + 0.05 * scale.width)
        places, texts = scale.ticks()
        axes.set_xticks(places, texts)
        axes.set_title(name, fontsize=9)
        if number % columns == 0:
            axes.set_ylabel(_label(study), fontsize=9)
        axes.tick_params(labelsize=8)
    legend = f"{comparison.when}, {len(rows)} trials: filled finished, hollow were stopped here or later"
    figure.supxlabel(legend + ("; orange: the recipe's own values" if own is not None else ""), fontsize=9)
    return figure


def parallel(comparison: CommonPoint) -> Figure:
    """One line for each trial over all hyper-parameters, coloured by its value."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    space = comparison.study.plan.space
    rows = sorted(comparison.rows, key=lambda row: row[1])
    values = [v for _, v in rows]
    norm = Normalize(min(values), max(max(values), min(values) + 1e-9))
    colours = colormaps["viridis_r"]
    scales = {name: _Scale(distribution) for name, distribution in space.items()}
    figure = _figure(max(1.5 * len(space) + 2, 6), 4.8)
    axes = figure.add_subplot()
    for trial, value in rows:  # the best is drawn last
        heights = [s.share(s.place(trial.params[name])) for name, s in scales.items()]
        done = trial.state == TrialState.COMPLETE
        axes.plot(
            range(len(space)), heights, color=colours(norm(value)), linewidth=2.2 if done else 1.0,
            alpha=0.95 if done else 0.7,
        )  # fmt: skip
    for x, scale in enumerate(scales.values()):
        axes.axvline(x, color="#404040", linewidth=0.8, zorder=0)
        for place, text in zip(*scale.ticks(), strict=True):
            axes.text(
                x + 0.04, scale.share(place), text, fontsize=7, va="center", color="#303030",
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
            )  # fmt: skip
    axes.set_xticks(range(len(space)), list(space), rotation=20, ha="right", fontsize=8)
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(space) - 0.6)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=axes, pad=0.01)
    bar.set_label(f"{_label(comparison.study)}, {comparison.when}", fontsize=9)
    axes.set_title(f"{len(rows)} trials, those that finished are thick", fontsize=9)
    return figure


def importance_bars(comparison: CommonPoint) -> Figure | None:
    """Importances, the largest on top; None where there are none."""
    found = comparison.importances
    if not found:
        return None
    figure = _figure(8, 0.32 * len(found) + 1.6)
    axes = _axes(figure, 1, 1, 1)
    names = list(found)[::-1]
    bars = axes.barh(names, [found[n] for n in names], color=BLUE, height=0.65)
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.margins(x=0.1)
    axes.tick_params(labelsize=9)
    rests = f"mIoU {comparison.when}, {len(comparison.rows)} trials"
    axes.set_xlabel(f"importance (PED-ANOVA) for {rests}", fontsize=9)
    return figure


class _Scale:
    """Where the values of a hyper-parameter stand on an axis.

    Args:
        distribution: numbers lie between its ends, in the logarithm where it is logarithmic; categories
            side by side.
    """

    def __init__(self, distribution: BaseDistribution) -> None:
        self.distribution = distribution
        self.numeric = isinstance(distribution, FloatDistribution | IntDistribution)
        if isinstance(distribution, CategoricalDistribution):
            self.low, self.high = -0.3, len(distribution.choices) - 0.7
        else:
            assert isinstance(distribution, FloatDistribution | IntDistribution)
            self.low, self.high = self.place(distribution.low), self.place(distribution.high)

    @property
    def width(self) -> float:
        """Length of the axis."""
        return max(self.high - self.low, 1e-9)

    def place(self, value: object) -> float:
        """Where a value stands."""
        if isinstance(self.distribution, CategoricalDistribution):
            return float(self.distribution.choices.index(value))
        number = float(value)  # type: ignore[arg-type]
        return math.log10(number) if self.distribution.log else number  # type: ignore[attr-defined]

    def share(self, place: float) -> float:
        """A place in 0..1."""
        return (place - self.low) / self.width

    def ticks(self) -> tuple[list[float], list[str]]:
        """Places and texts: all categories, or the ends and the middle."""
        if isinstance(self.distribution, CategoricalDistribution):
            choices = self.distribution.choices
            return [float(i) for i in range(len(choices))], [str(c) for c in choices]
        places = [self.low, (self.low + self.high) / 2, self.high]
        log = isinstance(self.distribution, FloatDistribution | IntDistribution) and self.distribution.log
        return places, [f"{10**p if log else p:.3g}" for p in places]
