"""What all figures share: style, colours, legends, captions, files.

Figures are made without pyplot, so nothing global changes. Widths are those of a two-column page.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.layout_engine import ConstrainedLayoutEngine

from harness.basics.drawn_text import as_written
from harness.basics.files import write_with
from harness.basics.listing import cells
from leaderboards.plots.hover import tell
from leaderboards.plots.long_names import LEGEND, arrange, without_boxes
from leaderboards.rows.gathering import dataset_title
from leaderboards.rows.row import Row

#: Okabe and Ito's palette, told apart under every common colour vision, without its yellow (weak on white);
#: and Tol's wine and a grey: nine methods without a colour twice.
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#882255", "#8C8C8C",
)  # fmt: skip
_HATCHES = ("", "////", "\\\\\\\\", "xxxx")  # dots would be a megabyte of SVG
_MARKERS = ("o", "s", "^", "D")
_DASHES = ("-", "--", ":", "-.")

#: Width in inches of a page with two columns of text.
WIDTH = 7.0

#: Fonts for scripts that matplotlib's own font lacks, by how well they go with it.
_FONTS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans CJK TC", "Noto Sans CJK KR", "Source Han Sans",
    "Hiragino Sans", "PingFang SC", "Yu Gothic", "Microsoft YaHei", "Malgun Gothic", "WenQuanYi Zen Hei",
    "IPAGothic", "Droid Sans Fallback", "Noto Sans Devanagari", "Noto Sans Thai", "Arial Unicode MS",
)  # fmt: skip


def installed_fonts() -> list[str]:
    """Those of them that are here: matplotlib takes a character from the first font that has it."""
    here = {font.name for font in fontManager.ttflist}
    return [name for name in _FONTS if name in here]


STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", *installed_fonts()],
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
    "text.hinting": "no_hinting",
    "savefig.dpi": 200,
}


def style(index: int) -> tuple[str, str, str]:
    """Colour, hatch and marker of the index-th series; no two of the first 28 are alike."""
    turn = index // len(COLOURS)
    return COLOURS[index % len(COLOURS)], _HATCHES[turn % 4], _MARKERS[turn % 4]


def dashes(index: int) -> str:
    """The line of the index-th series: a colour comes back with another one."""
    return _DASHES[index // len(COLOURS) % 4]


NO_FONT = (
    "names have characters that no font here has: PNG and PDF show boxes; "
    "install one that has them, such as Noto Sans CJK"
)

#: Height in inches of the line that a mark takes below a figure.
_MARK = 0.16


def save_figure(
    figure: Figure,
    stem: Path,
    formats: Sequence[str],
    mark: str = "",
    say: Callable[[str], None] = lambda text: None,
) -> list[Path]:
    """Write ``stem.<format>`` for each format, without dates, so that equal plots are equal files.

    A mark, such as ``quick run``, stands in small print below the figure. Where no font here has a character,
    it is a box in the plot, ``say`` is told, and SVG keeps its text, for fonts of where it is looked at.
    """
    dates: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    lacking: set[str] = set()
    with mpl.rc_context(STYLE), without_boxes(lacking):
        tell(figure)
        if mark:
            _marked(figure, mark)
        as_written(figure)
        figure.set_dpi(STYLE["savefig.dpi"])  # text is as wide in the layout as in the file
        arrange(figure)
        with mpl.rc_context({"figure.constrained_layout.use": False, "figure.autolayout": False}):
            figure.set_layout_engine(None)  # one layout for all formats; "none" would draw each file twice
        files = []
        for name in formats:
            file = stem.with_name(f"{stem.name}.{name}")
            with mpl.rc_context({"svg.fonttype": "none" if lacking else "path"}):
                write_with(file, lambda f, n=name: figure.savefig(f, format=n, metadata=dates.get(n)))  # type: ignore[misc]
            files.append(file)
    if lacking:
        say(NO_FONT)
    return files


def once(say: Callable[[str], None]) -> Callable[[str], None]:
    """What says each text once, however often it is told."""
    said: set[str] = set()

    def told(text: str) -> None:
        if text not in said:
            said.add(text)
            say(text)

    return told


def _marked(figure: Figure, mark: str) -> None:
    """Make room for a mark below a figure and print it."""
    width, height = figure.get_size_inches()
    engine = figure.get_layout_engine()
    if not isinstance(engine, ConstrainedLayoutEngine):  # tiles of fixed size, see the qualitative grid
        figure.text(0.995, 0.06 / height, mark, ha="right", va="bottom", fontsize=6.5, color="#444444")
        return
    share = _MARK / (height + _MARK)
    figure.set_size_inches(width, height + _MARK)
    engine.set(rect=(0, share, 1, 1 - share))
    figure.text(0.995, 0.25 * share, mark, ha="right", va="bottom", fontsize=6.5, color="#444444")


def seeds_text(rows: Sequence[Row], bars: str = "error bars: standard deviation") -> str:
    """``mean over seeds (n = 3), error bars: ...``, or ``one seed, no error bars``."""
    numbers = sorted({row.n for row in rows})
    if numbers == [1]:
        return "one seed, no error bars"
    words = f"n = {numbers[0]}" if len(numbers) == 1 else f"n = {numbers[0]} to {numbers[-1]}"
    return f"mean over seeds ({words}), {bars}"


@dataclass(frozen=True)
class Entry:
    """How a training appears in every figure of its data set.

    Attributes:
        label: in legends.
        index: of its :func:`style`; equal labels have equal styles.
    """

    label: str
    index: int


LegendEntries = Mapping[tuple[str, str], Entry]


def entries_of(rows: Sequence[Row]) -> dict[tuple[str, str], Entry]:
    """Legend entries of rows by (recipe, overrides).

    The label is the method's title; where one supervision has several recipes of a method, the recipe
    follows, and overrides stand in brackets. Recipes of one method have one colour, and different marks.
    """
    recipes: dict[tuple[str, str, str], set[str]] = {}
    for row in rows:
        recipes.setdefault((row.dataset, row.supervision, row.title), set()).add(row.recipe)
    indices: dict[str, int] = {}
    colours: dict[str, int] = {}
    taken: Counter[int] = Counter()  # how many labels have a colour already
    found = {}
    for row in rows:
        several = len(recipes[row.dataset, row.supervision, row.title]) > 1
        label = f"{row.title} {row.recipe.partition('/')[2]}" if several else row.title
        label += f" ({row.overrides})" if row.overrides else ""
        if label not in indices:
            colour = colours.setdefault(row.title, len(colours) % len(COLOURS))
            indices[label] = colour + len(COLOURS) * taken[colour]
            taken[colour] += 1
        found[row.recipe, row.overrides] = Entry(label, indices[label])
    return found


def entry_of(entries: LegendEntries, row: Row) -> Entry:
    """The entry of a row."""
    return entries[row.recipe, row.overrides]


def standing(rows: Sequence[Row]) -> list[Row]:
    """Rows with records that are neither stale nor holes."""
    return [row for row in rows if row.n and row.verdict not in ("stale", "not run")]


def usual_evaluation(rows: Sequence[Row]) -> str:
    """The evaluation that most rows have; of several, the one with the shortest name."""
    counted = Counter(row.evaluation for row in rows)
    return min(counted, key=lambda name: (-counted[name], len(name), name))


def caption(row: Row, supervision: bool = True) -> str:
    """Data set, split, supervision, protocol and, where unusual, network and output of a figure."""
    words = [dataset_title(row.dataset), row.runs[0].data["spec"]["split"]]
    if row.images != row.official_images:
        words[1] += f" ({row.images} of {row.official_images} images)"
    if supervision:
        words.append(f"{row.supervision} supervision")
    spec = row.runs[0].data["spec"]
    words.append(f"protocol {row.protocol}")
    if spec["network"] != "default":
        words.append(f"network {spec['network']}")
    if spec["output"] != "segmentation":
        words.append(spec["output"])
    return ", ".join(words)


def legend(figure: Figure, axes: Axes, title: str, width: float = WIDTH) -> None:
    """Legend above the axes, in as many columns as fit a width in inches."""
    handles, names = axes.get_legend_handles_labels()
    letters = [min(cells(name), LEGEND) + 7 for name in names]
    room = int(125 * width / WIDTH)
    columns = len(names) if sum(letters) <= room else max(1, room // max(letters))
    figure.legend(
        handles, names, loc="outside upper left", ncols=columns, columnspacing=1.4, handlelength=1.4,
        title=title, title_fontsize=7, alignment="left",
    )  # fmt: skip
