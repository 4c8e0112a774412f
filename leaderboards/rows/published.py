"""Published cells: every printed number with its source, and nothing of ours.

``published/<method>.toml`` holds one table for each source (a paper, a repository, a training log) and
below it the cells, ``<source>/<slug>``. A cell has a value, or the reason why it has none; values that
all cells of a source share stand once in its ``common`` table. Recipes cite cells by id, and
:func:`validate_cells` compares the two.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from harness.basics.errors import UserError, nearest
from harness.basics.files import read_toml
from harness.basics.registry import FORGET, PUBLISHED_PACKAGES, added
from harness.basics.schema import load, schema
from harness.data.base import Supervision

#: Folder of the packaged tables.
CELLS_FOLDER = Path(__file__).parents[1] / "published"

#: Suite of everything published.
PAPER_SUITE = "paper"

#: What a cell holds where its source does not say; a recipe that cites it may be of any.
NOT_STATED = "not stated"

#: Largest |mean of the printed class values - printed mIoU| that rounding to one decimal explains.
ROUNDING = 0.1


@schema
class CellSource:
    """Where printed numbers come from."""

    title: str
    """Title of the paper, or name of the repository, file or list."""
    kind: Literal["paper", "repository", "log", "secondary"]
    """`paper` and `repository` are the authors' own; `log` a training log of theirs; `secondary` is
    what somebody else reports about the method."""
    venue: str = ""
    """Journal or conference, volume, pages, year. A paper without it, and without `doi`, `arxiv` and `place`,
    is in preparation, and printed so."""
    doi: str = ""
    """As printed."""
    arxiv: str = ""
    """As printed."""
    place: str = ""
    """File, line, issue or page where the numbers stand."""
    missing: dict[str, str] = Field(default_factory=dict)
    """Groups of figures that the source has, or may have, and that are not here, with the reason."""
    notes: tuple[str, ...] = ()
    """What a reader of all of its cells must know."""
    common: dict[str, Any] = Field(default_factory=dict)
    """Values shared by all cells; a cell overrides them."""
    cells: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Cells by slug."""

    @property
    def where(self) -> str:
        """The venue in words; empty where none is known and something else says where it is."""
        findable = self.doi or self.arxiv or self.place or self.kind != "paper"
        return self.venue or ("" if findable else "in preparation")


@schema
class Cell:
    """One printed number, or the reason why it is not here."""

    id: str
    """`<source>/<slug>`, unique over all files."""
    source: str
    """Key of the source."""
    row: str
    """Label of the row: the method as the source names it."""
    dataset: str
    """Name of the data set, our registry name where we have it."""
    split: str
    """Split, `not stated` where the source does not say."""
    supervision: Supervision
    """Kind of weak label."""
    table: str = ""
    """Table or list within the source."""
    variant: str = ""
    """Setting of an ablation, size of the weak labels, stage: what tells rows of one method apart."""
    backbone: str | None = None
    """As printed; absent where the source does not say."""
    metric: Literal["miou", "dice"] = "miou"
    """Percent in both cases."""
    output: str = "segmentation"
    """What was scored: the segmentation, or a kind of pseudo label."""
    scales: Literal["single", "multi"] | tuple[float, ...] | None = None
    """Test scales as printed; absent where the source does not say."""
    flip: bool | None = None
    """Mirrored pictures at test time; absent where the source does not say."""
    crf: bool | None = None
    """Dense-CRF post-processing; absent where the source does not say."""
    value: float | None = Field(default=None, ge=0, le=100, allow_inf_nan=False)
    """Percent."""
    std: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Printed standard deviation."""
    iou: dict[str, float] = Field(default_factory=dict)
    """Printed IoU in percent by class."""
    reason: str = ""
    """Why there is no value."""
    context: bool = False
    """True: stands beside our numbers only; no recipe is expected to reproduce it."""
    notes: str = ""
    """Caveats."""

    @property
    def protocol(self) -> str:
        """The test protocol as printed, in words."""
        scales = "scales not stated"
        if self.scales is not None:
            named = isinstance(self.scales, str)
            scales = f"{self.scales} scale" if named else "scales " + ", ".join(map(str, self.scales))
        flip = {None: "flip not stated", True: "flip", False: "no flip"}[self.flip]
        crf = {None: "CRF not stated", True: "CRF", False: "no CRF"}[self.crf]
        return f"{scales}, {flip}, {crf}"


@dataclass(frozen=True)
class Published:
    """All sources and cells.

    Attributes:
        sources: by key.
        cells: by id, in file order.
    """

    sources: Mapping[str, CellSource]
    cells: Mapping[str, Cell]

    def find(self, cell_id: str) -> Cell:
        """A cell by id. Raises UserError for an unknown one."""
        if cell_id not in self.cells:
            raise UserError(f"unknown published cell {cell_id!r}", remedy=nearest(cell_id, self.cells))
        return self.cells[cell_id]


@dataclass(frozen=True)
class Finding:
    """Something that the validator objects to.

    Attributes:
        kind: ``unknown cell`` and ``disagreement`` are mistakes; ``cell without recipe``, ``recipe without
            cell``, ``no tolerance`` and ``row mean`` are what is open, or wrong in print.
        cell: cell id, empty where none is involved.
        recipe: recipe name, empty where none is involved.
        text: one sentence.
    """

    kind: Literal[
        "cell without recipe",
        "recipe without cell",
        "unknown cell",
        "disagreement",
        "no tolerance",
        "row mean",
    ]
    cell: str
    recipe: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


def read_cells(files: Iterable[Path]) -> Published:
    """Read and validate tables of published cells.

    Raises:
        UserError: invalid TOML, an unknown key, a value of the wrong type or range, a cell with both or
            neither of ``value`` and ``reason``, a source or cell that stands twice.
    """
    found: dict[str, _Read] = {}
    for file in files:
        for key, read in _read(file).items():
            if key in found:
                raise UserError(
                    f"the source {key!r} stands twice", where=f"{file.name} [{key}]", remedy="rename one"
                )
            found[key] = read
    return _whole(found)


#: A source, and its cells by id.
_Read = tuple[CellSource, dict[str, Cell]]


def _read(file: Path) -> dict[str, _Read]:
    """The sources of a file by key, with their cells."""
    found = {}
    for key, table in read_toml(file).items():
        where = f"{file.name} [{key}]"
        if not isinstance(table, Mapping):
            raise UserError(f"{key!r} is no table", where=file.name, remedy="write [source] tables")
        source = load(CellSource, table, where)
        cells = {
            f"{key}/{slug}": _cell(key, slug, {**source.common, **own}, where)
            for slug, own in source.cells.items()
        }
        found[key] = (source, cells)
    return found


def _whole(found: Mapping[str, _Read]) -> Published:
    cells = {cell_id: cell for _, own in found.values() for cell_id, cell in own.items()}
    return Published({key: source for key, (source, _) in found.items()}, cells)


def _cell(source: str, slug: str, values: Mapping[str, Any], where: str) -> Cell:
    where = f"{where} {slug}"
    cell = load(Cell, {**values, "id": f"{source}/{slug}", "source": source}, where)
    if (cell.value is None) == (not cell.reason):
        problem = (
            "neither a value nor a reason" if cell.value is None else "a value and a reason for having none"
        )
        raise UserError(f"the cell has {problem}", where=where, remedy="give exactly one of value, reason")
    return cell


def published() -> Published:
    """All cells: the packaged ones, and those of other packages (entry point ``wsss.published``)."""
    return _published()[0]


def published_problems() -> dict[str, UserError]:
    """Files of cells of other packages that cannot be used, and why."""
    return _published()[1]


@cache
def _published() -> tuple[Published, dict[str, UserError]]:
    ours: dict[str, _Read] = {}
    for file in sorted(CELLS_FOLDER.glob("*.toml")):
        ours |= _read(file)
    found, wrong = added(PUBLISHED_PACKAGES, ours, _read, "source of published cells")
    return _whole(found), wrong


FORGET.append(_published.cache_clear)


def validate_cells(recipes: Mapping[str, Any], known: Published | None = None) -> list[Finding]:
    """Compare recipes with published cells, both ways, in a fixed order.

    Args:
        recipes: name to :class:`harness.recipes.resolving.Resolved`, as ``all_recipes()`` there gives.
        known: all cells by default.

    Returns:
        Cells (context aside) that no recipe cites, recipes of the suite ``paper`` that cite none, ids that
        recipes cite and nobody defines, citations whose data set, split, supervision or output is not the
        cell's, and cited mIoU values for which no tolerance is fixed.
    """
    known = published() if known is None else known
    findings: list[Finding] = []
    cited: set[str] = set()
    for name in sorted(recipes):
        recipe = recipes[name].recipe
        for spec in recipe.evaluation:
            for cell_id in spec.cells:
                cited.add(cell_id)
                cell = known.cells.get(cell_id)
                if cell is None:
                    hint = nearest(cell_id, known.cells)
                    text = f"{name} cites {cell_id!r}, which stands nowhere; {hint}"
                    findings.append(Finding("unknown cell", cell_id, name, text))
                    continue
                ours = {
                    "dataset": recipe.dataset,
                    "supervision": recipe.supervision,
                    "split": spec.split,
                    "output": spec.output,
                }
                differ = [
                    f"{k} {v!r} against {getattr(cell, k)!r}"
                    for k, v in ours.items()
                    if getattr(cell, k) not in (v, NOT_STATED)
                ]
                if differ:
                    text = f"{name} cites {cell_id!r}: " + ", ".join(differ)
                    findings.append(Finding("disagreement", cell_id, name, text))
                if cell.value is not None and cell.metric == "miou" and spec.tolerance is None:
                    text = f"{name} cites {cell_id!r} and fixes no tolerance, so nothing is judged"
                    findings.append(Finding("no tolerance", cell_id, name, text))
        if PAPER_SUITE in recipe.suites and not any(spec.cells for spec in recipe.evaluation):
            findings.append(Finding("recipe without cell", "", name, f"{name} cites no published cell"))
    for cell_id, cell in known.cells.items():
        if cell_id not in cited and not cell.context:
            text = f"no recipe cites {cell_id!r}"
            findings.append(Finding("cell without recipe", cell_id, "", text))
    return findings


def row_means(known: Published | None = None) -> list[Finding]:
    """Cells whose printed class values do not average to their printed mIoU."""
    known = published() if known is None else known
    findings = []
    for cell_id, cell in known.cells.items():
        if not cell.iou or cell.value is None:
            continue
        mean = math.fsum(cell.iou.values()) / len(cell.iou)
        if abs(mean - cell.value) > ROUNDING:
            text = (
                f"{cell_id}: {len(cell.iou)} class values average {mean:.2f}, printed beside {cell.value:g}"
            )
            findings.append(Finding("row mean", cell_id, "", text))
    return findings


def cited(ids: Iterable[str], known: Published) -> tuple[float, str, list[str]]:
    """The first cited cell with a value (value and id; NaN if none), and notes on all of them."""
    value, source, notes = math.nan, "", []
    for cell_id in ids:
        cell = known.cells.get(cell_id)
        if cell is None:
            notes.append(f"cites the cell {cell_id}, which does not exist")
        elif cell.value is None:
            notes.append(f"{cell_id}: no published value ({cell.reason})")
        elif not source and cell.metric == "miou":
            value, source = cell.value, cell_id
            notes.append(f"{cell_id}: {cell.protocol}" + (f"; {cell.notes}" if cell.notes else ""))
        else:
            notes.append(
                f"{cell_id}: also {cell.value:.2f} ({cell.metric})"
                + (f"; {cell.notes}" if cell.notes else "")
            )
    return value, source, notes
