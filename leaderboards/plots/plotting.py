"""All plots of a leaderboard: which rows make a figure, what it is called, and writing it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from matplotlib.figure import Figure

from harness.basics.errors import UserError, nearest, words
from harness.basics.registry import PLOTS
from leaderboards.plots import figures, overview
from leaderboards.plots.drawing import LegendEntries, entries_of, once, save_figure, standing
from leaderboards.rows.row import Row, trainings

#: Rows in one figure: the best by mean mIoU; the tables have all of them.
MOST_ROWS = 10
#: Of each supervision, in a figure that shows several.
MOST_OF_EACH = 6

Draw = Callable[[Sequence[Row], LegendEntries], Figure | None]

#: By kind: what the rows of one figure share, and what draws them. Pseudo labels have bars by class only.
_KINDS: dict[str, tuple[tuple[str, ...], Draw]] = {
    "per-class": (("dataset", "supervision", "evaluation"), overview.per_class_figure),
    "difference": (("dataset", "supervision", "evaluation"), figures.difference_figure),
    "overview": (("dataset", "evaluation"), overview.overview_figure),
    "seeds": (("dataset", "supervision", "evaluation"), figures.seeds_figure),
    "boundary": (("dataset", "supervision", "evaluation"), figures.boundary_figure),
    "published": (("dataset",), figures.published_figure),
    "annotation": (("dataset", "evaluation"), figures.annotation_figure),
    "cost": (("dataset", "supervision", "evaluation"), figures.cost_figure),
    "curves": (("dataset", "supervision"), overview.curves_figure),
}
PLOT_KINDS = tuple(_KINDS)


@dataclass(frozen=True)
class Plot:
    """A kind of plot that a package brings (entry point ``wsss.plots``).

    Attributes:
        shared: what the rows of one figure have in common: ``dataset``, ``supervision``, ``evaluation``.
        draw: from these rows, the best first, to a matplotlib figure; None where there is nothing to draw.
    """

    shared: tuple[str, ...]
    draw: Callable[[Sequence[Row]], Figure | None]


def plot_kinds() -> tuple[str, ...]:
    """Every kind of plot: ours, and those of packages that can be used."""
    wrong = PLOTS.problems()
    return (*PLOT_KINDS, *(name for name in PLOTS.names() if name not in wrong and name not in _KINDS))


def _kind(name: str) -> tuple[tuple[str, ...], Draw]:
    if name in _KINDS:
        return _KINDS[name]
    own: Plot = PLOTS.get(name)

    def draw(rows: Sequence[Row], entries: LegendEntries) -> Figure | None:
        try:
            return own.draw(rows)
        except Exception as error:
            raise UserError(
                f"the plot {name!r} cannot be drawn: {type(error).__name__}: {words(error)}",
                where=own.draw.__module__,
                remedy="mend its function, which takes rows and gives a matplotlib figure",
            ) from error

    return own.shared, draw


def draw_plots(rows: Sequence[Row], kind: str) -> Iterator[tuple[str, Figure]]:
    """File stem and figure of every plot of a kind.

    Args:
        rows: from :func:`leaderboards.rows.tables.leaderboard`; stale ones and holes are left out.
        kind: of :data:`PLOT_KINDS`.
    """
    shown = standing(rows)
    entries = entries_of(shown)
    parts, figure_of = _kind(kind)
    if kind not in ("per-class", "curves"):
        shown = [row for row in shown if row.output == "segmentation"]

    def key(row: Row) -> tuple[str, ...]:
        return tuple(getattr(row, part) for part in parts)

    for name, group in groupby(sorted(shown, key=key), key=key):
        members = list(group)
        if kind == "curves":
            members = [row for row in trainings(members) if row.records]
        members.sort(key=lambda row: -row.mean)
        if "supervision" in parts or kind == "published":
            members = members[:MOST_ROWS]
        else:
            members = _best_of_each(members)
        figure = figure_of(members, entries) if members else None
        if figure is not None:
            yield "-".join([kind, *name]), figure


def _best_of_each(rows: Sequence[Row]) -> list[Row]:
    """The best of each supervision, in the order of the rows."""
    taken: Counter[str] = Counter()
    found = []
    for row in rows:
        taken[row.supervision] += 1
        if taken[row.supervision] <= MOST_OF_EACH:
            found.append(row)
    return found


def check_kinds(kind: str) -> tuple[str, ...]:
    """Kinds of plots that a name stands for. Raises UserError for an unknown one."""
    if kind == "all":
        return plot_kinds()
    if kind not in PLOT_KINDS and kind not in PLOTS:
        raise UserError(
            f"unknown kind of plot {kind!r}", where="--kind", remedy=nearest(kind, ["all", *plot_kinds()])
        )
    _kind(kind)
    return (kind,)


def write_plots(
    rows: Sequence[Row],
    out: Path,
    *,
    kind: str = "all",
    formats: Sequence[str] = ("png", "svg"),
    label: str = "",
    say: Callable[[str], None] = lambda text: None,
) -> list[Path]:
    """Draw and write plots of the rows that stand (neither stale nor holes).

    Args:
        rows: from :func:`leaderboards.rows.tables.leaderboard`.
        out: folder; files are ``<kind>-<dataset>-....<format>``.
        kind: of :data:`PLOT_KINDS`, or ``all``.
        formats: of ``png``, ``svg``, ``pdf``.
        label: printed below every figure.
        say: called with a sentence where a font is missing.

    Raises:
        UserError: an unknown kind or format, or nothing to draw.
    """
    kinds = check_kinds(kind)
    for name in formats:
        if name not in ("png", "svg", "pdf"):
            raise UserError(f"unknown format {name!r}", where="--format", remedy="png, svg or pdf")
    say = once(say)
    files = [
        file
        for one in kinds
        for stem, figure in draw_plots(rows, one)
        for file in save_figure(figure, out / stem, formats, label, say)
    ]
    if not files:
        wanted = "" if kind == "all" else f" for {kind}"
        raise UserError(
            f"there is nothing to draw: no finished, evaluated record{wanted}",
            remedy="run a recipe first, such as `wsss run mini`; `wsss leaderboard` shows what is stale",
        )
    return files
