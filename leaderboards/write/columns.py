"""Columns and sections of the leaderboard: one description for Markdown, LaTeX and HTML."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Literal

from leaderboards.rows.choosing import row_text
from leaderboards.rows.gathering import dataset_title
from leaderboards.rows.metrics import Metric, metric_spread, metric_text
from leaderboards.rows.row import Row, trainings
from leaderboards.rows.text import DASH, mean_text, memory_text, number, time_text

#: Heading of the numbers of a row's notes; every writer fills it in itself.
NOTES = "Notes"


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: heading, unit included.
        align: of the text.
        text: a row's cell.
        value: what it sorts by, NaN where the row has none; by text if there is no function.
        meaning: explained above the tables, empty where the heading says it.
        best: which end is marked as best.
        latex: whether the printed table has it.
    """

    name: str
    align: Literal["left", "right"]
    text: Callable[[Row], str]
    value: Callable[[Row], float] | None = None
    meaning: str = ""
    best: Literal["", "high", "low"] = ""
    latex: bool = True


Kind = Literal["scores", "pseudo labels", "stale", "cost", "holes"]


@dataclass(frozen=True)
class Layout:
    """What of a section is shown, and how often.

    Attributes:
        columns: places of the columns that say something about a single row.
        said: what holds for all rows, once: texts of the other columns, notes.
        empty: names of columns without any figure.
        notes: those of single rows, by number.
        numbers: of each row's notes.
    """

    columns: tuple[int, ...]
    said: tuple[str, ...]
    empty: tuple[str, ...]
    notes: Mapping[str, int]
    numbers: tuple[tuple[int, ...], ...]


#: Columns that name a row, shown even where all rows say the same.
_NAMES = ("Method", "Recipe")
_UNPUBLISHED = re.compile(r"(?P<cell>\S+): no published value \((?P<why>.*)\)", re.DOTALL)


@dataclass(frozen=True)
class Section:
    """A titled table.

    Attributes:
        title: heading.
        columns: without the notes.
        rows: in order.
        kind: ``scores``, ``pseudo labels``, ``stale``, ``cost`` or ``holes``.
        missing: what belongs to it and was asked for, and has no figure.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    kind: Kind
    missing: tuple[Row, ...] = ()

    @cached_property
    def texts(self) -> list[list[str]]:
        """Every cell of every row as text."""
        return [[column.text(row) for column in self.columns] for row in self.rows]

    @cached_property
    def layout(self) -> Layout:
        """What every writer shows: no column without a figure, and nothing that is the same in all rows."""
        shown: list[int] = []
        facts: list[str] = []
        empty: list[str] = []
        for i, column in enumerate(self.columns):
            texts = {line[i] for line in self.texts}
            if texts == {DASH}:
                empty.append(column.name)
            elif len(texts) == 1 and column.value is None and column.name not in _NAMES:
                facts.append(f"{column.name}: {texts.pop()}")
            else:
                shown.append(i)
        said = ["; ".join(facts)] if facts else []
        notes = [list(row.notes) for row in self.rows] if self.kind != "cost" else [[] for _ in self.rows]
        unpublished: dict[str, list[str]] = {}
        for own in notes:
            for note in list(own):
                if match := _UNPUBLISHED.fullmatch(note):
                    unpublished.setdefault(match["why"], []).append(match["cell"])
                    own.remove(note)
        if len(notes) > 1:
            common = [note for note in notes[0] if all(note in own for own in notes)]
            said += common
            notes = [[note for note in own if note not in common] for own in notes]
        said += [
            f"no published value for {', '.join(dict.fromkeys(ids))} ({why})"
            for why, ids in unpublished.items()
        ]
        numbered: dict[str, int] = {}
        numbers = [tuple(numbered.setdefault(note, len(numbered) + 1) for note in own) for own in notes]
        return Layout(tuple(shown), tuple(said), tuple(empty), numbered, tuple(numbers))

    @property
    def id(self) -> str:
        """Its title in lower case with dashes."""
        return "-".join("".join(c if c.isalnum() else " " for c in self.title.lower()).split())


def missing_texts(rows: Sequence[Row], beside: Sequence[Row] = ()) -> list[str]:
    """Recipes without a figure, each once, with what failed.

    The evaluation is named where others of the recipe stand in ``beside``.
    """
    scored = {row.recipe for row in beside}
    words = []
    for row in rows:
        name = f"{recipe_text(row)} ({row.evaluation})" if row.recipe in scored else recipe_text(row)
        told = [note for note in row.notes if note.startswith(("failed seeds", "trained (seed"))]
        words.append(f"{name}: {told[0]}" if told else name)
    return list(dict.fromkeys(words))


def unasked_text(rows: Sequence[Row]) -> str:
    """A sentence on what nobody asked for, empty where there is nothing."""
    names = {row.recipe for row in rows if not row.n and not row.asked}
    if not names:
        return ""
    one = len(names) == 1
    return f"{len(names)} recipe{'' if one else 's'} of other suites {'has' if one else 'have'} no records"


def recipe_text(row: Row) -> str:
    """Recipe name with overrides in brackets."""
    return row_text(row)


def images_text(row: Row) -> str:
    """`` [30 of 1449 images]`` where the copy is not whole, else nothing."""
    return "" if row.images == row.official_images else f" [{row.images} of {row.official_images} images]"


def interval_text(row: Row) -> str:
    """``55.10 to 57.24``."""
    return DASH if math.isnan(row.low) else f"{row.low:.2f} to {row.high:.2f}"


def published_text(row: Row) -> str:
    """Value and cell id."""
    return DASH if not row.source else f"{row.published:.2f} ({row.source})"


def percent(value: float) -> str:
    """A share of 1 in percent."""
    return number(100 * value, 1)


METHOD = Column("Method", "left", lambda r: r.title)
RECIPE = Column(
    "Recipe", "left", recipe_text, None,
    "what was trained, as `wsss show` explains it; overrides stand in brackets",
)  # fmt: skip
BACKBONE = Column("Backbone", "left", lambda r: r.backbone)
WEAK_LABEL = Column(
    "Weak label", "left", lambda r: r.weak_label, None,
    "where the training labels come from, and the width of drawn strokes", latex=False,
)  # fmt: skip
EVALUATION = Column(
    "Evaluation", "left", lambda r: r.evaluation + images_text(r), None,
    "split and protocol, network and output where they are not the usual ones",
)  # fmt: skip
SELECTION = Column(
    "Selection", "left", lambda r: r.selection, None,
    "which network of a training is scored: the `last` one, which nothing chose, or the best on a split, and "
    "what the choice has seen", latex=False,
)  # fmt: skip
SEEDS = Column("n", "right", lambda r: str(r.n), lambda r: float(r.n), "seeds that finished")
MIOU = Column(
    "mIoU (%)", "right", mean_text, lambda r: r.mean,
    "mean ± standard deviation over seeds (divisor n - 1); `one seed` where n = 1", "high",
)  # fmt: skip
INTERVAL = Column(
    "95 % interval", "right", interval_text, lambda r: r.low,
    "bootstrap over images of the mean over seeds: it says how far other pictures would move the figure, "
    "not how far other seeds would",
)  # fmt: skip
PUBLISHED = Column(
    "Published", "right", published_text, lambda r: r.published, "the printed value, with the id of its cell"
)
DIFFERENCE = Column(
    "Difference", "right", lambda r: number(r.difference, sign=True), lambda r: r.difference,
    "mean minus published, in points",
)  # fmt: skip
SHARE_COLUMN = Column(
    "Full (%)", "right", lambda r: number(r.share, 1), lambda r: r.share,
    "share of full supervision: same data set, backbone, weights and evaluation",
)  # fmt: skip
VERDICT = Column(
    "Verdict", "left", lambda r: r.verdict, None,
    "`reproduced`: |difference| within the tolerance that the recipe fixed before the run; `below`, "
    "`above`; `no published value`: nobody has printed one; `not comparable`: other values or data; "
    "`stale`: recipe, protocol or data have changed since; `not run`: a hole; `external`: predictions from "
    "outside, scored here",
)  # fmt: skip
COMMIT = Column("Commit", "left", lambda r: r.commit or DASH, None, "code that trained it", latex=False)
SPLIT_COLUMN = Column("Split", "left", lambda r: r.split + images_text(r))
OUTPUT = Column("Output", "left", lambda r: r.output, None, "which pseudo label was scored")
COVERAGE = Column(
    "Coverage (%)", "right", lambda r: percent(r.coverage), lambda r: r.coverage,
    "pixels that the pseudo label decides, of those with a truth; the others count as misses",
)  # fmt: skip
BACKGROUND = Column(
    "Background (%)", "right", lambda r: percent(r.background), lambda r: r.background,
    "of the decided pixels, those called background",
)  # fmt: skip
TRUE_BACKGROUND = Column(
    "True background (%)", "right", lambda r: percent(r.true_background), lambda r: r.true_background,
    "background pixels of the truth",
)  # fmt: skip
DATASET = Column("Data set", "left", lambda r: dataset_title(r.dataset))
SUPERVISION = Column("Supervision", "left", lambda r: r.supervision)
PARAMETERS = Column(
    "Parameters (M)", "right", lambda r: number(r.cost.parameters / 1e6, 2), lambda r: r.cost.parameters,
    "of everything that the method owns, heads for training included", "low",
)  # fmt: skip
STEPS_COLUMN = Column("Steps", "right", lambda r: number(r.cost.steps, 0), lambda r: r.cost.steps)
TRAINING = Column(
    "Training", "right", lambda r: time_text(r.cost.seconds), lambda r: r.cost.seconds,
    "time of one seed, mean over seeds: steps divided by the recorded rate, evaluation not included", "low",
)  # fmt: skip
MEMORY = Column(
    "Peak memory", "right", lambda r: memory_text(r.cost.memory_mib), lambda r: r.cost.memory_mib,
    "largest over seeds: allocated on the GPU, or the whole process on the CPU", "low",
)  # fmt: skip
SPEED = Column(
    "Images/s", "right", lambda r: number(r.cost.images_per_second, 1), lambda r: r.cost.images_per_second,
    "evaluated pictures per second under the first evaluation, decoding included", "high",
)  # fmt: skip
MACHINE = Column("Machine", "left", lambda r: r.cost.machine or DASH, None, "", latex=False)

SCORES = (
    METHOD, RECIPE, BACKBONE, WEAK_LABEL, EVALUATION, SELECTION, SEEDS, MIOU, INTERVAL, PUBLISHED, DIFFERENCE,
    SHARE_COLUMN, VERDICT, COMMIT,
)  # fmt: skip
PSEUDO_LABELS = (
    METHOD, RECIPE, BACKBONE, OUTPUT, SPLIT_COLUMN, SELECTION, SEEDS, MIOU, INTERVAL, COVERAGE, BACKGROUND,
    TRUE_BACKGROUND, PUBLISHED, DIFFERENCE, VERDICT, COMMIT,
)  # fmt: skip
COST = (
    METHOD,
    RECIPE,
    SUPERVISION,
    BACKBONE,
    SEEDS,
    PARAMETERS,
    STEPS_COLUMN,
    TRAINING,
    MEMORY,
    SPEED,
    MACHINE,
)
STALE_COLUMNS = (METHOD, RECIPE, SUPERVISION, EVALUATION, SEEDS, MIOU, INTERVAL, COMMIT)
HOLES = (DATASET, SUPERVISION, RECIPE, BACKBONE, EVALUATION, PUBLISHED)


def metric_column(metric: Metric) -> Column:
    """The column of a metric: mean and deviation over seeds, as mIoU has them."""
    return Column(
        metric.title,
        "right",
        lambda row: metric_text(metric, row),
        lambda row: metric_spread(metric, row)[0],
        metric.told,
        metric.best,
    )


def meanings(asked: Sequence[Metric] = ()) -> list[tuple[str, str]]:
    """Every column with a meaning, those of metrics asked for included: name and meaning."""
    every = (*SCORES, *map(metric_column, asked), *PSEUDO_LABELS, *COST)
    return list({c.name: (c.name, c.meaning) for c in every if c.meaning}.values())


def _with_metrics(columns: tuple[Column, ...], asked: Sequence[Metric]) -> tuple[Column, ...]:
    """Columns with those of metrics behind the interval of mIoU."""
    at = columns.index(INTERVAL) + 1
    return (*columns[:at], *map(metric_column, asked), *columns[at:])


def sections(rows: Sequence[Row], label: str = "", asked: Sequence[Metric] = ()) -> list[Section]:
    """The tables of a leaderboard.

    Args:
        rows: from :func:`leaderboards.rows.tables.leaderboard`, in its order.
        label: stands in brackets behind every title, such as ``quick run``.
        asked: metrics that scores and pseudo labels show too.

    Returns:
        For each data set and supervision with records: scores, and pseudo labels where there are some, each
        with what was asked for and is missing; after the last supervision of a data set its stale rows and
        its costs; at the end what was asked for elsewhere and not run.
    """
    behind = f" ({label})" if label else ""
    scores, pseudo_labels = (_with_metrics(columns, asked) for columns in (SCORES, PSEUDO_LABELS))
    found: list[Section] = []
    untouched: list[Row] = []
    for dataset, members in groupby(rows, key=lambda r: r.dataset):
        own = list(members)
        title = dataset_title(dataset)
        for supervision, group in groupby(own, key=lambda r: r.supervision):
            here = [row for row in group if row.n or row.asked]
            if not any(row.n for row in here):
                untouched += here
                continue
            heading = f"{title}, {supervision} supervision"
            standing = [row for row in here if row.verdict != "stale"]
            kinds: list[tuple[Kind, str, tuple[Column, ...], list[Row]]] = [
                ("scores", heading, scores, [r for r in standing if r.output == "segmentation"]),
                (
                    "pseudo labels",
                    f"{heading}: pseudo labels",
                    pseudo_labels,
                    [r for r in standing if r.output != "segmentation"],
                ),
            ]
            for kind, name, columns, part in kinds:
                ran = tuple(row for row in part if row.n)
                missing = tuple(row for row in part if not row.n)
                if ran:
                    found.append(Section(name + behind, columns, ran, kind, missing))
                else:
                    untouched += missing
        stale = tuple(row for row in own if row.verdict == "stale")
        if stale:
            found.append(Section(f"{title}: stale{behind}", STALE_COLUMNS, stale, "stale"))
        costly = [r for r in own if r.n and r.verdict != "stale" and r.cost.known]
        if costly:
            found.append(Section(f"{title}: cost{behind}", COST, tuple(trainings(costly)), "cost"))
    if untouched:
        found.append(Section(f"Not run{behind}", HOLES, tuple(untouched), "holes"))
    return found


def places(section: Section) -> dict[tuple[int, int], int]:
    """By row and column, the place of a figure, 1 the best, within each evaluation and over standing rows: of
    mIoU, and of every metric that says which end is the better one.

    Equal figures (to the two digits shown) share a place. A section of costs has none.
    """
    found: dict[tuple[int, int], int] = {}
    if section.kind not in ("scores", "pseudo labels"):
        return found
    ranked = [(i, c.value, c.best == "high") for i, c in enumerate(section.columns) if c.best]
    for name in {row.evaluation for row in section.rows}:
        here = [
            (index, row)
            for index, row in enumerate(section.rows)
            if row.evaluation == name and row.n and row.verdict not in ("stale", "not run")
        ]
        for column, value, highest in ranked:
            figures = {index: round(value(row), 2) for index, row in here if value is not None}
            known = {index: figure for index, figure in figures.items() if not math.isnan(figure)}
            if len(known) < 2:
                continue  # nothing to be better than
            order = sorted(set(known.values()), reverse=highest)
            found |= {(index, column): order.index(figure) + 1 for index, figure in known.items()}
    return found
