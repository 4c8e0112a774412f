"""The leaderboard on paper: Markdown and CSV from rows, always the same text for the same records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd

import harness
from harness.errors import UserError, nearest
from harness.files import whole_file
from harness.provenance import code
from harness.records import Store
from leaderboards import claims
from leaderboards.claims import Judged, judge
from leaderboards.columns import NOTES, explained, sections
from leaderboards.gathering import dataset_title, gather
from leaderboards.published import Cell, Published, published
from leaderboards.tables import Row, as_frame, leaderboard, per_class
from leaderboards.text import DASH, escaped, pipe_table

FORMATS = ("md", "csv")

#: Head of ``claims.md``: what the columns mean.
CLAIMS_HEADER = """# Claims

Generated: do not edit. A difference is the mean over seeds of the first recipe minus that of the second, in
points of mIoU, on the same images.

- **95 % interval**: images are resampled together for both recipes, the spread over seeds enters by
  Student's t.
- **Verdict**: `holds`: the interval lies above the margin; `does not hold`: it lies at or below it;
  `undecided`: the margin lies inside, or a recipe has one seed.
- **p images**: permutation test, methods swapped image by image; it speaks of these trained networks only.
- **p seeds**: signs of the paired differences over seeds, exact; from six seeds on.
- **Holm**: adjusted for all comparisons of this table.
"""


@dataclass(frozen=True)
class Written:
    """What :func:`write_leaderboard` left behind.

    Attributes:
        rows: the rows of all tables.
        tables: the Markdown tables, without header.
        files: files written.
    """

    rows: list[Row]
    tables: str
    files: list[Path]


def write_leaderboard(
    store: Store,
    out: Path,
    *,
    recipes: Mapping[str, Any] | None = None,
    known: Published | None = None,
    dataset: str | None = None,
    formats: Sequence[str] = FORMATS,
) -> Written:
    """Compute the leaderboard of a store and write it.

    Args:
        store: where the records are.
        out: folder for ``leaderboard.md``, ``leaderboard.csv``, ``per_class.csv`` and ``published.md``.
        recipes: what should have been run, ``harness.recipes.all_recipes()``; without it, no holes.
        known: published cells, the packaged ones by default.
        dataset: only this data set.
        formats: of ``md`` and ``csv``.

    Raises:
        UserError: the store holds no records, or none of this data set; an unknown format.
    """
    check_formats(formats, FORMATS)
    known = published() if known is None else known
    frame = gather(store)
    require_records(frame, store, dataset)
    rows = leaderboard(frame, recipes, known)
    if dataset is not None:
        rows = [row for row in rows if row.dataset == dataset]
        frame = frame[frame["dataset"] == dataset]
    tables = markdown(rows)
    files = []
    if "md" in formats:
        files.append(_write(out / "leaderboard.md", f"{header(frame)}\n{tables}"))
        files.append(_write(out / "published.md", published_markdown(known, dataset)))
    if "csv" in formats:
        for name, table in (("leaderboard.csv", as_frame(rows)), ("per_class.csv", per_class(rows))):
            text = table.to_csv(index=False, float_format="%.6f", lineterminator="\n")
            files.append(_write(out / name, text))
    return Written(rows, tables, files)


@dataclass(frozen=True)
class WrittenClaims:
    """What :func:`write_claims` left behind.

    Attributes:
        judged: the comparisons.
        tables: the Markdown text, without header.
        files: files written.
    """

    judged: list[Judged]
    tables: str
    files: list[Path]


def write_claims(
    store: Store,
    out: Path,
    *,
    recipes: Mapping[str, Any],
    suites: Sequence[str] = (),
    formats: Sequence[str] = FORMATS,
) -> WrittenClaims:
    """Judge the claims by the records of a store and write ``claims.md`` and ``claims.csv``.

    Args:
        store: where the records are; it may be empty, every claim is then not run.
        out: folder for the files.
        recipes: ``harness.recipes.all_recipes()``.
        suites: only claims of these suites.
        formats: of ``md`` and ``csv``.

    Raises:
        UserError: an unknown suite or format.
    """
    check_formats(formats, FORMATS)
    judged = judge(gather(store), recipes, suites_wanted=suites)
    tables = claims.markdown(judged)
    files = []
    if "md" in formats:
        files.append(_write(out / "claims.md", f"{CLAIMS_HEADER}\n{tables}"))
    if "csv" in formats:
        text = claims.as_frame(judged).to_csv(index=False, float_format="%.6f", lineterminator="\n")
        files.append(_write(out / "claims.csv", text))
    return WrittenClaims(judged, tables, files)


def check_formats(wanted: Sequence[str], possible: Sequence[str]) -> None:
    """Raises UserError for a format that is not possible."""
    for name in wanted:
        if name not in possible:
            raise UserError(f"unknown format {name!r}", where="--format", remedy=nearest(name, possible))


def require_records(frame: pd.DataFrame, store: Store, dataset: str | None = None) -> None:
    """Raises UserError when there is nothing to show."""
    remedy = "run a recipe first, such as `wsss run mini`, or name another folder with --results"
    if not store.root.is_dir():
        raise UserError("there is no results folder", where=store.root, remedy=remedy)
    if frame.empty:
        raise UserError("the results folder holds no records", where=store.root, remedy=remedy)
    if dataset is not None and dataset not in set(frame["dataset"]):
        remedy = nearest(dataset, set(frame["dataset"]))
        raise UserError(f"no record of the data set {dataset!r}", where=store.root, remedy=remedy)


def _write(path: Path, text: str) -> Path:
    with whole_file(path) as stream:
        stream.write(text)
    return path


# --- text ----------------------------------------------------------------------------------------------


def header(frame: pd.DataFrame) -> str:
    """Title, provenance and the meaning of the columns."""
    records = frame[["name", "digest", "seed", "finished"]].drop_duplicates()
    failed = int((~records["finished"]).sum())
    origin = code()
    commit = f", commit {origin['commit'][:9]}" if origin["commit"] else ""
    commit += " with uncommitted changes" if origin["dirty"] else ""
    count = f"{len(records)} record" + ("" if len(records) == 1 else "s")
    lines = [
        "# Leaderboard",
        "",
        f"Computed from {count}"
        + (f", {failed} of them failed," if failed else "")
        + f" by wsss-bench {harness.__version__}{commit}. Generated: do not edit.",
        "",
        "IoU comes from pixel counts summed over the split. Every published cell, with source and caveats: "
        "[published.md](published.md).",
        "",
        *(f"- **{name}**: {meaning}" for name, meaning in explained()),
    ]
    return "\n".join(lines) + "\n"


def _noted(notes: Mapping[str, int]) -> list[str]:
    return [f"{i}. {escaped(text)}" for text, i in notes.items()]


def markdown(rows: Sequence[Row]) -> str:
    """The tables of :func:`leaderboards.columns.sections`, each with its notes below."""
    parts: list[str] = []
    for section in sections(rows):
        noted = section.kind != "cost"
        notes: dict[str, int] = {}
        lines = []
        for row in section.rows:
            line = [escaped(column.text(row)) for column in section.columns]
            if noted:
                numbers = [notes.setdefault(note, len(notes) + 1) for note in row.notes]
                line.append(", ".join(map(str, numbers)))
            lines.append(line)
        names = [c.name for c in section.columns] + ([NOTES] if noted else [])
        align = [c.align for c in section.columns] + (["left"] if noted else [])
        parts.append(f"## {section.title}\n")
        parts.append(pipe_table(lines, names, align) + "\n")
        parts += ["\n".join(_noted(notes)) + "\n"] if notes else []
    return "\n".join(parts)


# --- published cells -----------------------------------------------------------------------------------


def _cell_line(cell: Cell, known: Published) -> list[str]:
    value = DASH if cell.value is None else f"{cell.value:g}"
    value += ".0" if value.isdigit() else ""
    value += f" ± {cell.std:g}" if cell.std is not None else ""
    caveat = cell.reason or cell.notes
    label = f"{cell.row} ({cell.variant})" if cell.variant else cell.row
    scored = cell.split if cell.output == "segmentation" else f"{cell.split}, {cell.output}"
    unit = "" if cell.metric == "miou" else f" {cell.metric}"
    kind = known.sources[cell.source].kind
    place = [cell.backbone or "not stated", scored, cell.protocol, value + unit]
    return [escaped(c) for c in (label, *place, kind, cell.id, caveat)]


def published_markdown(known: Published, dataset: str | None = None) -> str:
    """All published cells, by data set and supervision, and the sources they come from."""
    parts = ["# Published cells\n", "Percent. A dash is a figure that is not here; the caveat says why.\n"]
    cells = [c for c in known.cells.values() if dataset in (None, c.dataset)]
    names = ["Row", "Backbone", "Scored", "Protocol as printed", "Value", "Kind", "Cell", "Caveat"]
    align = ["left"] * 4 + ["right"] + ["left"] * 3
    for (data, supervision), group in groupby(
        sorted(cells, key=lambda c: (c.dataset, c.supervision)), key=lambda c: (c.dataset, c.supervision)
    ):
        parts.append(f"## {dataset_title(data)}, {supervision} supervision\n")
        parts.append(pipe_table((_cell_line(c, known) for c in group), names, align) + "\n")
    parts.append("## Sources\n")
    for key, source in known.sources.items():
        facts = [
            source.venue,
            source.doi and f"doi {source.doi}",
            source.arxiv and f"arXiv {source.arxiv}",
            source.place,
        ]
        parts.append(
            f"- **{key}** ({source.kind}): " + ". ".join([source.title, *(f for f in facts if f)]) + "."
        )
        parts += [f"    - {note}" for note in source.notes]
        parts += [f"    - not here: {group}: {why}" for group, why in source.missing.items()]
    return "\n".join(parts) + "\n"
