"""Names of any length and script in figures: wrapped or shortened where they have no room.

The whole of a shortened name stands in the tables, and below the pointer in the page.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.layout_engine import LayoutEngine
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogFormatter, NullFormatter, ScalarFormatter

from harness.basics.listing import cells, wrapped

#: Columns of text that an entry of a legend, and the name of a tick, may take.
LEGEND, TICK = 36, 26
#: Lines of a legend's entry, and of a title.
_ENTRY, _TITLE = 2, 3
#: Share of the height of its part of a figure that axes have at least.
_LEAST = 0.3
#: So often a figure grows, at most.
_GROWTHS = 6
#: Width of a usual letter as a share of the size of its font.
_LETTER = 0.6


def shortened(text: str, most: int) -> str:
    """A text of at most ``most`` columns: its beginning and its end, which tells names apart."""
    if cells(text) <= most:
        return text
    start, end = wrapped(text, max(1, most - most // 3 - 1))[0], ""
    for character in reversed(text):
        if cells(start + character + end) >= most:
            break
        end = character + end
    return f"{start}…{end.lstrip()}"


def lines(text: str, room: int, most: int) -> str:
    """A text whose lines are wrapped, each into at most ``most`` lines of ``room`` columns."""
    found: list[str] = []
    for line in text.split("\n"):
        parts = wrapped(line, room, whole=False) if cells(line) > room else [line]
        if len(parts) > most:
            parts = [*parts[: most - 1], shortened(" ".join(parts[most - 1 :]), room)]
        found += parts
    return "\n".join(found)


def arrange(figure: Figure) -> None:
    """Give names, titles and labels of a figure the room that there is, and lay it out.

    It grows in height where names leave its axes no room.
    """
    width, intended = map(float, figure.get_size_inches())
    for text in figure.texts:
        place = text.get_position()[0]
        room = {"left": 1 - place, "right": place}.get(str(text.get_horizontalalignment()), 1.0)
        _wrap(text, room * width)
    titles: list[tuple[Axes, Text, str]] = []
    for axes in figure.axes:
        spec = axes.get_subplotspec()
        own = width / (spec.get_gridspec().ncols if spec is not None else 1)
        titles += [(axes, text, text.get_text()) for text in _titles(axes)]
        for text in [*_titles(axes), axes.xaxis.label]:
            _wrap(text, 0.94 * own)
        for axis, most in ((axes.xaxis, 1), (axes.yaxis, 2)):
            _shorten(axis, min(TICK, int(7 * own)), most)
    for legend in [*figure.legends, *(axes.get_legend() for axes in figure.axes)]:
        for text in legend.get_texts() if legend is not None else ():
            room = min(LEGEND, int(5.5 * width)) if legend in figure.legends else TICK
            text.set_text(lines(text.get_text(), room, _ENTRY))
    if (engine := figure.get_layout_engine()) is None:
        return
    done: bool | None = _execute(engine, figure)
    before = [text.get_text() for _, text, _ in titles]
    for axes, text, whole in titles:  # axes are now about as wide as they will be
        text.set_text(whole)
        _wrap(text, (_right_of(axes, figure) - axes.get_position().x0) * width)
    if before != [text.get_text() for _, text, _ in titles]:
        done = None  # the layout is of other titles
    for _ in range(_GROWTHS):
        done = _execute(engine, figure) if done is None else done
        height = float(figure.get_size_inches()[1])
        missing = max((_missing(axes, intended, height) for axes in figure.axes), default=0.0)
        if done and missing <= 0:
            break
        figure.set_size_inches(width, height + max(missing, 0.0 if done else 0.3 * height))
        done = None


def _titles(axes: Axes) -> list[Text]:
    names = {axes.get_title(loc) for loc in ("left", "center", "right")} - {""}
    return [t for t in axes.get_children() if isinstance(t, Text) and t.get_text() in names]


def _wrap(text: Text, inches: float) -> None:
    room = max(8, math.floor(inches * 72 / (_LETTER * float(text.get_fontsize()))))
    text.set_text(lines(text.get_text(), room, _TITLE))


def _shorten(axis: Axis, room: int, most: int) -> None:
    """Names of ticks that are not numbers, each in so many lines at most."""
    whole = axis.get_major_formatter()
    if not isinstance(whole, ScalarFormatter | LogFormatter | NullFormatter):

        def short(value: float, place: int | None) -> str:
            return lines(whole(value, place), room, most)

        whole.set_locs([float(v) for v in axis.get_majorticklocs()])
        axis.set_major_formatter(FuncFormatter(short))


def _right_of(axes: Axes, figure: Figure) -> float:
    """Where the title of axes must end: at the next title or a legend to its right, else with the figure."""
    box = axes.get_position()
    limits = [1.0, box.x0 + 1.8 * box.width]  # with its middle beyond the axes, a title would move them
    for other in figure.axes:
        place = other.get_position()
        if place.x0 > box.x0 and abs(place.y1 - box.y1) < box.height / 2 and _titles(other):
            limits.append(place.x0 - 0.01)
    for legend in figure.legends:
        place = legend.get_window_extent().transformed(figure.transFigure.inverted())
        if place.x0 > box.x0 and place.y0 < box.y1:
            limits.append(place.x0 - 0.01)
    return min(limits)


def _execute(engine: LayoutEngine, figure: Figure) -> bool:
    """Whether there was room for a layout."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        engine.execute(figure)
    failed = [w for w in caught if "constrained_layout not applied" in str(w.message)]
    for warning in caught:
        if warning not in failed:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return not failed


def _missing(axes: Axes, intended: float, height: float) -> float:
    """Inches that a figure lacks for axes to be :data:`_LEAST` of the height that was intended for them."""
    spec = axes.get_subplotspec()
    if spec is None or not axes.axison:
        return 0.0
    rows = spec.get_gridspec().nrows
    return rows * (_LEAST * intended / rows - axes.get_position().height * height)


@contextmanager
def without_boxes(lacking: set[str]) -> Iterator[None]:
    """Collect the characters that no font here has, in place of a warning for each of them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        text = str(warning.message)
        if text.startswith("Glyph ") and "missing from" in text:
            lacking.add(chr(int(text.split()[1])))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
