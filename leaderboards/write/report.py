"""The leaderboard on disk, in every format: always the same text for the same records."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pandas as pd

import harness
from harness.basics.errors import UserError, nearest
from harness.basics.files import whole_file
from harness.basics.provenance import code
from harness.records.records import Store
from leaderboards.judge import claims
from leaderboards.judge.claims import Judged, judge
from leaderboards.judge.statements import check_suites, compared_recipes, recipe_of
from leaderboards.rows.choosing import chosen_rows
from leaderboards.rows.gathering import dataset_title, gather_records, without_collector
from leaderboards.rows.metrics import Metric
from leaderboards.rows.metrics import metrics as metrics_named
from leaderboards.rows.published import Cell, Published, published
from leaderboards.rows.row import Row
from leaderboards.rows.tables import CLASS_COLUMNS, class_lines, leaderboard, row_columns, row_lines
from leaderboards.rows.text import DASH, csv_table, escaped, pipe_table
from leaderboards.write.claims_text import claims_markdown
from leaderboards.write.columns import (
    NOTES,
    Section,
    meanings,
    missing_texts,
    places,
    sections,
    unasked_text,
)
from leaderboards.write.latex import latex

if TYPE_CHECKING:
    from leaderboards.plots.thumbnails import Look

#: Formats of tables.
TABLE_FORMATS = ("md", "csv", "tex", "json")
#: Formats of claims.
CLAIM_FORMATS = ("md", "csv")

#: Head of ``claims.md``: what the columns mean.
CLAIMS_HEADER = """
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
class WrittenTables:
    """What :func:`write_leaderboard` left behind.

    Attributes:
        rows: the rows of all tables.
        parts: the sections of all tables.
        tables: the Markdown tables, without header.
        frame: the records that they are made of.
        files: files written.
    """

    rows: list[Row]
    parts: list[Section]
    tables: str
    frame: pd.DataFrame
    files: list[Path]


@without_collector()
def write_leaderboard(
    store: Store,
    out: Path,
    *,
    recipes: Mapping[str, Any] | None = None,
    known: Published | None = None,
    dataset: str | None = None,
    suites: Sequence[str] = (),
    names: Sequence[str] = (),
    formats: Sequence[str] = TABLE_FORMATS,
    label: str = "",
    metrics: Sequence[str] = (),
) -> WrittenTables:
    """Compute the leaderboard of a store and write it.

    Args:
        store: where the records are.
        out: folder for ``leaderboard.md`` and ``published.md``, ``leaderboard.csv`` and ``per_class.csv``,
            ``leaderboard.tex``, ``leaderboard.json``.
        recipes: what should have been run, ``harness.recipes.resolving.all_recipes()``; without it, no holes.
        known: published cells, the packaged ones by default.
        dataset: only this data set.
        suites: only recipes of these suites.
        names: only rows of these names, see :func:`leaderboards.rows.choosing.picked_rows`.
        formats: of ``md``, ``csv``, ``tex`` and ``json``.
        label: stands behind every title, such as ``quick run``.
        metrics: names of further columns, see :mod:`leaderboards.rows.metrics`.

    Raises:
        UserError: the store holds no records, or none of this data set or suite; an unknown format or metric.
    """
    check_formats(formats, TABLE_FORMATS)
    asked = metrics_named(metrics)
    known = published() if known is None else known
    frame = gather_records(store)
    require_records(frame, store, dataset)
    rows = leaderboard(frame, recipes, known)
    rows, frame = chosen_rows(rows, frame, recipes or {}, dataset, suites, names)
    return _tables(rows, frame, known, out, dataset, formats, label, asked)


def _tables(
    rows: list[Row],
    frame: pd.DataFrame,
    known: Published,
    out: Path,
    dataset: str | None,
    formats: Sequence[str],
    label: str,
    asked: Sequence[Metric],
) -> WrittenTables:
    parts = sections(rows, label, asked)
    tables = tables_markdown(rows, parts)
    lines = row_lines(rows, asked) if {"csv", "json"} & set(formats) else []
    texts: dict[str, str] = {}
    if "md" in formats:
        texts["leaderboard.md"] = f"{header(frame, rows, label, asked)}\n{tables}"
        texts["published.md"] = published_markdown(known, dataset)
    if "csv" in formats:
        texts["leaderboard.csv"] = csv_table(lines, row_columns(asked))
        texts["per_class.csv"] = csv_table(class_lines(rows), CLASS_COLUMNS)
    if "tex" in formats:
        texts["leaderboard.tex"] = latex(rows, parts)
    if "json" in formats:
        texts["leaderboard.json"] = plain_json(rows, lines, frame, label)
    files = [_write(out / name, text) for name, text in texts.items()]
    return WrittenTables(rows, parts, tables, frame, files)


def plain_json(
    rows: Sequence[Row], lines: Sequence[Mapping[str, Any]], frame: pd.DataFrame, label: str = ""
) -> str:
    """The rows as JSON: ``label``, ``provenance`` (a text), ``rows`` (columns of the CSV) with IoU by class.

    NaN is ``null``; ``iou`` maps a class to its mean over the seeds where it occurs, ``null`` if none.
    ``lines`` are the rows' :func:`leaderboards.rows.tables.row_lines`.
    """
    texts = []
    for row, line in zip(rows, lines, strict=True):
        plain = {k: _finite(v) if isinstance(v, float) else v for k, v in line.items()}
        plain["iou"] = None
        if row.runs:
            means = map(_finite, row.class_spread[0].tolist())
            plain["iou"] = dict(zip(row.runs[0].data["classes"], means, strict=True))
        texts.append(orjson.dumps(plain).decode())
    head, name = (orjson.dumps(text).decode() for text in (provenance(frame, rows), label))
    return f'{{"label": {name},\n"provenance": {head},\n"rows": [\n' + ",\n".join(texts) + "\n]}\n"


def _finite(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


@without_collector()
def write_report(
    store: Store,
    out: Path,
    *,
    recipes: Mapping[str, Any],
    known: Published | None = None,
    dataset: str | None = None,
    suites: Sequence[str] = (),
    names: Sequence[str] = (),
    plots: bool = True,
    data_roots: tuple[str, ...] = (),
    device: str = "cpu",
    label: str = "",
    metrics: Sequence[str] = (),
    say: Callable[[str], None] = lambda text: None,
) -> list[Path]:
    """Everything: tables in all formats, claims, plots (PNG and SVG), and ``report.html`` with all of it.

    Args:
        store: where the records are.
        out: folder for the files; plots go to ``plots`` below it.
        recipes: ``harness.recipes.resolving.all_recipes()``.
        known: published cells, the packaged ones by default.
        dataset: only this data set.
        suites: only recipes of these suites.
        names: only rows of these names, see :func:`leaderboards.rows.choosing.picked_rows`.
        plots: whether to draw, pictures with predictions included.
        data_roots, device: where pictures are, and where networks predict them.
        label: stands behind every title and below every plot, such as ``quick run``.
        metrics: names of further columns, see :mod:`leaderboards.rows.metrics`.
        say: called with a sentence for pictures that are left out.

    Raises:
        UserError: the store holds no records, or none of this data set.
    """
    asked = metrics_named(metrics)
    known = published() if known is None else known
    frame = gather_records(store)
    require_records(frame, store, dataset)
    judged = judge(frame, recipes)
    rows, frame = chosen_rows(leaderboard(frame, recipes, known), frame, recipes, dataset, suites, names)
    if dataset is not None:
        judged = [j for j in judged if _dataset_of(j, recipes) == dataset]
    if suites or names:
        shown = {row.recipe for row in rows}
        judged = [j for j in judged if set(map(recipe_of, (j.pair.better, j.pair.worse))) <= shown]
    tables = _tables(rows, frame, known, out, dataset, TABLE_FORMATS, label, asked)
    files = [*tables.files, *_claims(judged, out, CLAIM_FORMATS, label).files]
    drawn: dict[str, bytes] = {}
    look: Look | None = None
    if plots:
        from leaderboards.plots import qualitative, thumbnails
        from leaderboards.plots.drawing import once, save_figure
        from leaderboards.plots.plotting import draw_plots, plot_kinds

        say = once(say)
        for kind in plot_kinds():
            for stem, figure in draw_plots(rows, kind):
                written = save_figure(figure, out / "plots" / stem, ("png", "svg"), label, say)
                drawn[stem] = written[1].read_bytes()
                files += written
        for stem, figure in qualitative.draw_grids(rows, data_roots, device=device, say=say):
            written = save_figure(figure, out / "plots" / stem, ("png", "pdf"), label, say)
            drawn[stem] = written[0].read_bytes()
            files += written
        look = partial(thumbnails.look_at, data_roots=data_roots, device=device, say=say)
    from leaderboards.write.html_report import html_report  # draws with matplotlib

    page = html_report(
        rows, judged, known, provenance=provenance(frame, rows), label=label, plots=drawn, parts=tables.parts,
        look=look, asked=asked,
    )  # fmt: skip
    return [*files, _write(out / "report.html", page)]


def _dataset_of(judged: Judged, recipes: Mapping[str, Any]) -> str:
    found = [recipes[n] for n in map(recipe_of, (judged.pair.better, judged.pair.worse)) if n in recipes]
    return found[0].recipe.dataset if found else ""


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


@without_collector()
def write_claims(
    store: Store,
    out: Path,
    *,
    recipes: Mapping[str, Any],
    suites: Sequence[str] = (),
    formats: Sequence[str] = CLAIM_FORMATS,
) -> WrittenClaims:
    """Judge the claims by the records of a store and write ``claims.md`` and ``claims.csv``.

    Args:
        store: where the records are; it may be empty, every claim is then not run.
        out: folder for the files.
        recipes: ``harness.recipes.resolving.all_recipes()``.
        suites: only claims of these suites.
        formats: of ``md`` and ``csv``.

    Raises:
        UserError: an unknown suite or format.
    """
    check_formats(formats, CLAIM_FORMATS)
    check_suites(suites)  # before the store is read
    frame = gather_records(store, *compared_recipes(suites))
    return _claims(judge(frame, recipes, suites_wanted=suites), out, formats)


def _claims(judged: list[Judged], out: Path, formats: Sequence[str], label: str = "") -> WrittenClaims:
    tables = claims_markdown(judged)
    files = []
    if "md" in formats:
        files.append(_write(out / "claims.md", f"{_titled('Claims', label)}{CLAIMS_HEADER}\n{tables}"))
    if "csv" in formats:
        files.append(
            _write(out / "claims.csv", csv_table(claims.comparison_lines(judged), claims.COMPARISON_COLUMNS))
        )
    return WrittenClaims(judged, tables, files)


def check_formats(wanted: Sequence[str], possible: Sequence[str]) -> None:
    """Raises UserError for a format that is not possible."""
    for name in wanted:
        if name not in possible:
            raise UserError(f"unknown format {name!r}", where="--format", remedy=nearest(name, possible))


def require_records(frame: pd.DataFrame, store: Store, dataset: str | None = None) -> None:
    """Raises UserError when there is nothing to show."""
    remedy = "run a recipe first, such as `wsss run mini`, or name another folder with --results"
    if store.mirror is None and not store.root.is_dir():
        raise UserError("there is no results folder", where=store.place, remedy=remedy)
    if frame.empty and store.left_out:
        first = next(iter(store.left_out.values()))
        raise UserError(
            f"no sound record is left: {len(store.left_out)} left out, such as {first.brief}",
            where=store.place,
            remedy="`wsss verify-store` names all of them",
        )
    if frame.empty:
        raise UserError("the results folder holds no records", where=store.place, remedy=remedy)
    if dataset is not None and dataset not in set(frame["dataset"]):
        remedy = nearest(dataset, set(frame["dataset"]))
        raise UserError(f"no record of the data set {dataset!r}", where=store.place, remedy=remedy)


def _write(path: Path, text: str) -> Path:
    with whole_file(path) as stream:
        stream.write(text)
    return path


# --- text ----------------------------------------------------------------------------------------------


def _titled(name: str, label: str) -> str:
    return f"# {name} ({label})\n" if label else f"# {name}\n"


def provenance(frame: pd.DataFrame, rows: Sequence[Row] = ()) -> str:
    """How many records and the code that computed them, and whether all rows rest on one seed."""
    records = frame[["name", "digest", "seed", "finished"]].drop_duplicates()
    failed = int((~records["finished"]).sum())
    origin = code()
    commit = f", commit {origin['commit'][:9]}" if origin["commit"] else ""
    commit += " with uncommitted changes" if origin["dirty"] else ""
    number = f"{len(records)} record" + ("" if len(records) == 1 else "s")
    failures = f", {failed} of them failed," if failed else ""
    single = {row.n for row in rows if row.n} == {1}
    seeds = " Every row rests on one seed: how far other seeds would move it is unknown." if single else ""
    left_out = left_out_text(frame.attrs.get("left_out", ()))
    return f"Computed from {number}{failures} by wsss-bench {harness.__version__}{commit}.{seeds}{left_out}"


#: Most places that a sentence names.
_NAMED = 5


def left_out_text(briefs: Sequence[str]) -> str:
    """A sentence that names what was damaged and left out, empty where nothing was."""
    if not briefs:
        return ""
    more = f"; and {len(briefs) - _NAMED} more" if len(briefs) > _NAMED else ""
    number = (
        "1 damaged or misplaced file" if len(briefs) == 1 else f"{len(briefs)} damaged or misplaced files"
    )
    return f" Left out: {number} ({'; '.join(briefs[:_NAMED])}{more})."


def header(
    frame: pd.DataFrame, rows: Sequence[Row] = (), label: str = "", asked: Sequence[Metric] = ()
) -> str:
    """Title, provenance and the meaning of the columns, those of metrics asked for included."""
    lines = [
        _titled("Leaderboard", label),
        f"{provenance(frame, rows)} Generated: do not edit.",
        "",
        "IoU comes from pixel counts summed over the split. Every published cell, with source and caveats: "
        "[published.md](published.md).",
        "",
        *(f"- **{name}**: {meaning}" for name, meaning in meanings(asked)),
    ]
    return "\n".join(lines) + "\n"


#: Around the best figure and the second best.
_MARKS = {1: "**", 2: "*"}


def tables_markdown(rows: Sequence[Row], parts: Sequence[Section] | None = None) -> str:
    """The tables of :func:`leaderboards.write.columns.sections` (``parts``), each with its notes below.

    The best figure of an evaluation is bold, the second best in italics.
    """
    texts: list[str] = []
    for section in sections(rows) if parts is None else parts:
        layout, ranked = section.layout, places(section)
        noted = bool(layout.notes)
        lines = []
        for place, cells in enumerate(section.texts):
            marks = [_MARKS.get(ranked.get((place, i), 0), "") for i in layout.columns]
            line = [f"{m}{escaped(cells[i])}{m}" for m, i in zip(marks, layout.columns, strict=True)]
            lines.append([*line, ", ".join(map(str, layout.numbers[place]))] if noted else line)
        shown = [section.columns[i] for i in layout.columns]
        names = [c.name for c in shown] + ([NOTES] if noted else [])
        align = [c.align for c in shown] + (["left"] if noted else [])
        texts.append(f"## {section.title}\n")
        texts.append(pipe_table(lines, names, align) + "\n")
        said = [*layout.said]
        if section.missing:
            said.append(f"not run: {', '.join(missing_texts(section.missing, section.rows))}")
        if said:
            texts.append("\n".join(f"- {escaped(text)}" for text in said) + "\n")
        if noted:
            texts.append("\n".join(f"{i}. {escaped(text)}" for text, i in layout.notes.items()) + "\n")
    if rest := unasked_text(rows):
        texts.append(f"{rest}; `leaderboard.csv` has a line for each.\n")
    return "\n".join(texts)


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
            source.where,
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
