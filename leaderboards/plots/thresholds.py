"""The curve of pseudo labels over the threshold of activation maps."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from harness.recipes.row_names import row_name
from harness.running.inference.curves import ThresholdCurve
from leaderboards.plots.drawing import COLOURS, STYLE, WIDTH
from leaderboards.plots.hover import says
from leaderboards.rows.statistics import spread


def threshold_figure(curve: ThresholdCurve) -> Figure:
    """mIoU, precision and recall over the threshold; bands are the deviation over seeds.

    The recipe's own threshold is marked, and the best one as an oracle's.
    """
    x = curve.thresholds
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(0.6 * WIDTH, 2.8), layout="constrained")
        axes = figure.subplots()
        for name, values, colour, dash in (
            ("mIoU", curve.miou, COLOURS[0], "-"),
            ("precision", curve.precision, COLOURS[1], "--"),
            ("recall", curve.recall, COLOURS[2], ":"),
        ):
            mean = values.mean(0)
            (line,) = axes.plot(x, mean, color=colour, linestyle=dash, label=name)
            says(line, name)
            if len(values) > 1:
                std = values.std(0, ddof=1)
                axes.fill_between(x, mean - std, mean + std, color=colour, alpha=0.15, linewidth=0)
        if curve.own is not None:
            axes.axvline(x[curve.own], color="#555555", linewidth=0.8)
            axes.text(
                x[curve.own], 1.01, "the recipe's own", transform=axes.get_xaxis_transform(), ha="center",
                va="bottom", fontsize=6.5, color="#444444",
            )  # fmt: skip
        best, height = curve.oracle, float(curve.miou.mean(0)[curve.oracle])
        (mark,) = axes.plot(
            [x[best]], [height], "o", color=COLOURS[0], markerfacecolor="white",
            label="oracle: has seen the masks",
        )  # fmt: skip
        says(mark, f"oracle: {height:.2f} mIoU at {x[best]:.3g}")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 100)
        axes.set_xlabel("threshold of the activation maps")
        axes.set_ylabel("%")
        seeds = f"n = {len(curve.seeds)}" if len(curve.seeds) > 1 else "one seed"
        axes.set_title(f"{row_name(curve.recipe, curve.overrides)}\n{curve.split}, {seeds}\n", fontsize=7.5)
        figure.legend(loc="outside lower center", ncols=4)
    return figure


def threshold_lines(curve: ThresholdCurve) -> list[dict[str, object]]:
    """One line for each threshold, plain values: mean and deviation over seeds, and IoU by class."""
    lines = []
    for i, threshold in enumerate(curve.thresholds):
        line: dict[str, object] = {"threshold": round(float(threshold), 6), "mark": _mark(curve, i)}
        for name, values in (
            ("miou", curve.miou),
            ("precision", curve.precision),
            ("recall", curve.recall),
        ):
            mean, std = spread(values[:, i].tolist())
            line |= {name: mean, f"{name}_std": std}
        with np.errstate(invalid="ignore"):
            for k, name in enumerate(curve.classes):
                own = curve.iou[:, i, k]
                line[f"iou {name}"] = float(own[~np.isnan(own)].mean()) if (~np.isnan(own)).any() else np.nan
        lines.append(line)
    return lines


def _mark(curve: ThresholdCurve, place: int) -> str:
    own = "own" if place == curve.own else ""
    return " ".join(filter(None, [own, "oracle" if place == curve.oracle else ""]))
