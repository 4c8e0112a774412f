"""All plots of a leaderboard: which rows make a figure, what it is called, and writing it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from matplotlib.figure import Figure

from harness.basics.errors import UserError, nearest
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


def draw_plots(rows: Sequence[Row], kind: str) -> Iterator[tuple[str, Figure]]:
    """File stem and figure of every plot of a kind.

    Args:
        rows: from :func:`leaderboards.rows.tables.leaderboard`; stale ones and holes are left out.
        kind: of :data:`PLOT_KINDS`.
    """
    shown = standing(rows)
    entries = entries_of(shown)
    parts, figure_of = _KINDS[kind]
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
    if kind not in ("all", *PLOT_KINDS):
        raise UserError(
            f"unknown kind of plot {kind!r}", where="--kind", remedy=nearest(kind, ["all", *PLOT_KINDS])
        )
    return PLOT_KINDS if kind == "all" else (kind,)


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
