"""Expected best scores over the number of trials."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from leaderboards.plots.drawing import STYLE, WIDTH, dashes, style
from leaderboards.plots.hover import says
from leaderboards.rows.budgets import BudgetRow


def budget_figure(rows: Sequence[BudgetRow], pictures: str) -> Figure:
    """One line for each recipe, its band the deviation over orders of the trials; dotted, the drawn trials
    without that of the recipe's own values.

    Args:
        rows: from :func:`leaderboards.rows.budgets.budget_rows`.
        pictures: what trials were compared on, in a few words.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(0.85 * WIDTH, 3.2), layout="constrained")
        axes = figure.subplots()
        for index, row in enumerate(rows):
            n, (colour, _, marker) = np.arange(1, len(row.mean) + 1), style(index)
            (line,) = axes.plot(
                n, row.mean, dashes(index), color=colour, marker=marker, markersize=3, label=row.tuned.recipe
            )
            says(line, row.tuned.recipe, [f"{k} trials: {v:.2f}" for k, v in zip(n, row.mean, strict=True)])
            m = np.arange(1, len(row.drawn) + 1)
            (alone,) = axes.plot(m, row.drawn, ":", color=colour, linewidth=1)
            says(alone, f"{row.tuned.recipe}, drawn alone")
            low, high = row.mean - row.std, row.mean + row.std
            axes.fill_between(n, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set_xlabel(f"trials, {pictures}; dotted: without the recipe's own values")
        axes.set_ylabel("expected best mIoU (%)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(loc="outside lower center", ncols=2)
    return figure
