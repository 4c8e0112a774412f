"""What the marks of a plot say below the pointer, where the plot is part of a page.

The name of a mark's group in the SVG carries its text, and the page's script reads it there. A plot gives its
marks texts (:func:`says`); a mark without one says what can be read off its axes (:func:`tell`, called for
every figure that is written), so that no plot is mute.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import Collection, LineCollection, PathCollection
from matplotlib.container import BarContainer, Container
from matplotlib.figure import Figure
from matplotlib.lines import AxLine, Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogFormatter, NullFormatter, ScalarFormatter

from leaderboards.rows.row import Row
from leaderboards.rows.text import mean_text, number

#: Seeds that are named one by one.
_SEEDS = 6
#: Points that are told one by one; of a longer line, its ends and extremes.
_POINTS = 200
_PREFIX = "says-"
#: Before what each point says, and between points.
_HEAD, _POINT = "\x1e", "\x1f"

#: Left, right, bottom and top of a mark or of one of its points, in data.
MarkBox = tuple[float, float, float, float]


def says(mark: Any, text: str, points: Sequence[str] = ()) -> None:
    """Have a mark say a text below the pointer.

    Args:
        mark: an artist, or what holds several, such as the container that ``errorbar`` returns.
        text: what all of it says.
        points: what each marker, bar or segment says below that, in the order in which they are drawn.
    """
    whole = text + (_HEAD + _POINT.join(points) if points else "")
    for artist in _artists(mark):
        artist.set_gid(_PREFIX + whole.encode().hex())


def figures_of(row: Row, label: str) -> str:
    """What the marks of a row say: its mean, its interval and every seed."""
    lines = [label, f"mIoU {mean_text(row)}"]
    if not math.isnan(row.low):
        lines.append(f"95 % interval {row.low:.2f} to {row.high:.2f}")
    if 1 < row.n <= _SEEDS:
        lines += [f"seed {seed}: {run.miou:.2f}" for seed, run in zip(row.seeds, row.runs, strict=True)]
    return "\n".join(lines)


def published_words(row: Row, label: str) -> str:
    """What a mark at the published value of a row says."""
    here = f"here {mean_text(row)}, {number(row.difference, sign=True)}"
    return f"{label}\npublished {row.published:g}" + ("" if math.isnan(row.difference) else f"\n{here}")


def tell(figure: Figure) -> None:
    """Have every mark of a figure say something, each under a name of its own."""
    taken: Counter[str] = Counter()
    for axes in figure.axes:
        labels = {id(a): c for c in axes.containers for a in _artists(c)}
        for mark in plot_marks(axes):
            if not (mark.get_gid() or "").startswith(_PREFIX):
                _read_off(axes, mark, labels.get(id(mark)))
            name = str(mark.get_gid()).partition("_")[0]
            mark.set_gid(f"{name}_{taken[name]}" if taken[name] else name)
            taken[name] += 1


def plot_marks(axes: Axes) -> list[Artist]:
    """What shows data in axes; lines across all of them, such as those of ``axvline``, only guide the eye."""
    found: list[Artist] = []
    for artist in axes.get_children():
        if isinstance(artist, AxLine) or not isinstance(artist, Line2D | Patch | Collection):
            continue
        at = artist.get_offset_transform() if isinstance(artist, PathCollection) else artist.get_transform()
        if all(at.contains_branch_seperately(axes.transData)):
            found.append(artist)
    return found


def _artists(mark: Any) -> Iterator[Artist]:
    if isinstance(mark, Artist):
        yield mark
    elif isinstance(mark, tuple | list):
        for part in mark:
            yield from _artists(part)


# --- what can be read off the axes ---------------------------------------------------------------------


def _read_off(axes: Axes, mark: Artist, holder: Container | None) -> None:
    """Have a mark say its label, and where it or each of its points lies."""
    label = next(
        (str(n) for n in (mark.get_label(), holder and holder.get_label()) if n and str(n)[:1] != "_"),
        axes.get_title(loc="left") or axes.get_title(),
    )
    if isinstance(holder, BarContainer):
        told = [_bar(axes, mark, holder)]
    else:
        boxes = _boxes(axes, mark)
        several = not isinstance(mark, Line2D) or mark.get_marker() not in ("", " ", "None", None)
        told = [_place(axes, box) for box in (boxes if several else _outstanding(boxes))]
    if len(told) == 1 or len(told) > _POINTS:
        says(mark, "\n".join(filter(None, [label, told[0]])) if len(told) == 1 else label)
    else:
        says(mark, label, told)


def _bar(axes: Axes, mark: Artist, holder: BarContainer) -> str:
    index = next(i for i, patch in enumerate(holder.patches) if patch is mark)
    box, lying = holder.patches[index].get_bbox(), holder.orientation == "horizontal"
    value = float(np.asarray(holder.datavalues)[index])
    x, y = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
    return _place(axes, (value, value, y, y) if lying else (x, x, value, value))


def _boxes(axes: Axes, mark: Artist) -> list[MarkBox]:
    """Where the points of a mark lie: vertices of a line, segments, markers; else all of it."""
    if isinstance(mark, Line2D):
        points = np.asarray(mark.get_xydata(), dtype=np.float64)
        return [(x, x, y, y) for x, y in points.tolist() if math.isfinite(x) and math.isfinite(y)]
    if isinstance(mark, PathCollection):
        return [(x, x, y, y) for x, y in np.ma.filled(mark.get_offsets(), np.nan).tolist()]
    if isinstance(mark, LineCollection):
        return [_extent(np.asarray(segment)) for segment in mark.get_segments()]
    if isinstance(mark, Collection):
        return [_extent(path.vertices) for path in mark.get_paths()]
    assert isinstance(mark, Patch)
    path = mark.get_path().transformed(mark.get_transform() - axes.transData)
    return [_extent(path.vertices)]


def _extent(points: Any) -> MarkBox:
    (left, bottom), (right, top) = np.nanmin(points, axis=0), np.nanmax(points, axis=0)
    return float(left), float(right), float(bottom), float(top)


def _outstanding(boxes: Sequence[MarkBox]) -> list[MarkBox]:
    """Of a line without markers: its ends, and its lowest and highest points."""
    if len(boxes) <= _SEEDS:
        return list(boxes)
    ends = [boxes[0], min(boxes, key=lambda b: b[2]), max(boxes, key=lambda b: b[2]), boxes[-1]]
    return sorted(set(ends))


def _place(axes: Axes, box: MarkBox) -> str:
    left, right, bottom, top = box
    parts = [_on_axis(axes.xaxis, left, right), _on_axis(axes.yaxis, bottom, top)]
    return "; ".join(filter(None, parts))


def _on_axis(axis: Axis, low: float, high: float) -> str:
    name, ends = " ".join(axis.get_label_text().split()), (_value(axis, low), _value(axis, high))
    text = ends[0] if ends[0] == ends[1] else " to ".join(ends)
    return f"{name}: {text}" if name and text else text


def _value(axis: Axis, value: float) -> str:
    """A value as the axis writes it: the name of a class, a time, a number."""
    formatter = axis.get_major_formatter()
    if isinstance(formatter, ScalarFormatter | LogFormatter | NullFormatter):
        return f"{value:.4g}".replace("-", "−")
    ticks = np.asarray(axis.get_majorticklocs(), dtype=np.float64)
    near = ticks[np.abs(ticks - value) < 0.5]  # of names, the one beside the mark
    return " ".join((formatter(value) or (formatter(near[0]) if near.size else "")).split())
