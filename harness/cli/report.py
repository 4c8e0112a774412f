"""The verbs of leaderboards; what they do is imported when they are used."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from harness.basics.errors import UserError
from harness.cli.completing import A_DATA_SET, A_RECIPE, A_SUITE
from harness.cli.options import (
    DATA_ROOT,
    DEVICE,
    JSON,
    RESULTS,
    SET,
    OutputPath,
    RecordStore,
    aside,
    ended,
    left_out,
    together,
    undecided,
)
from harness.cli.usage import Verb

_OUT = click.option(
    "--out",
    type=OutputPath(),
    default=Path("reports"),
    show_default=True,
    help="Folder for the files; a selection has one of its own in the default one.",
)
_LABEL = click.option(
    "--label",
    metavar="TEXT",
    default="",
    help="Printed behind every title and below every plot, such as 'quick run'.",
)
_METRICS = click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME",
    help="A further column, of `wsss list metrics`; repeatable.",
)
_DATASET = click.option("--dataset", metavar="NAME", shell_complete=A_DATA_SET, help="Only this data set.")
_SUITE = click.option(
    "--suite",
    "suites",
    multiple=True,
    metavar="NAME",
    shell_complete=A_SUITE,
    help="Only recipes (or claims) of this suite; repeatable.",
)

_ROWS = click.option(
    "--recipe",
    "names",
    multiple=True,
    metavar="RECIPE|GLOB|ROW",
    shell_complete=A_RECIPE,
    help="Only these rows: recipes, patterns, or 'RECIPE (VALUES)' as tables print it; repeatable.",
)


def _place(out: Path, **chosen: Sequence[str] | str | None) -> Path:
    """Where files go: those of a selection, by option, do not replace those of all records, unless the user
    says where."""
    from harness.basics.schema import file_name

    if click.get_current_context().get_parameter_source("out") is ParameterSource.COMMANDLINE:
        return out
    given = {key: [value] if isinstance(value, str) else value for key, value in chosen.items() if value}
    words = ["-".join([key, *values]) for key, values in given.items()]
    return out / file_name("-".join(words)) if words else out


def _split(text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise UserError("no format is named", where="--format", remedy="separate formats by commas")
    return parts


def _recipes() -> dict[str, Any]:
    """Every recipe that can be used; what cannot, of recipes, cells and claims, is named and left out."""
    from harness.recipes.protocols import protocol_problems
    from harness.recipes.resolving import usable
    from leaderboards.judge.statements import claim_problems
    from leaderboards.rows.published import published_problems

    found, wrong = usable()
    left_out({**wrong, **published_problems(), **claim_problems(), **protocol_problems()})
    return found


@click.command(
    "leaderboard",
    cls=Verb,
    epilog="""\b
Examples:
  wsss leaderboard                               all records below ./results
  wsss leaderboard --dataset mini                those of a data set
  wsss leaderboard --suite mini                  those of a suite
  wsss leaderboard --recipe 'agmm/*' --recipe 'pce/mini-scribble (crop=48)'    rows by their printed names
  wsss leaderboard --results /data/results --out paper/tables --format tex,csv
  wsss leaderboard --metric f1 --metric trimap-4      further columns, for old records too
  wsss leaderboard --validate                    published cells and claims against recipes

Exit codes: 0 done, 1 done, and damaged files were left out (or --validate found a citation that does not
hold), 2 nothing to show.""",
)
@together(RESULTS, _OUT, _DATASET, _SUITE, _ROWS, _METRICS, _LABEL)
@click.option(
    "--format",
    "formats",
    default="md,csv",
    show_default=True,
    help="Files to write, separated by commas: md, csv, tex, json.",
)
@JSON
@click.option(
    "--validate", "check", is_flag=True, help="Compare published cells and claims with recipes instead."
)
def leaderboard_verb(
    results: Path | str,
    out: Path,
    dataset: str | None,
    suites: tuple[str, ...],
    names: tuple[str, ...],
    metrics: tuple[str, ...],
    label: str,
    formats: str,
    as_json: bool,
    check: bool,
) -> int:
    """Tables of records beside published values.

    One table for each data set and supervision: mean and deviation over seeds, a 95 % interval over
    images, the published value with its source, and a verdict. What was not run is shown as a hole.
    Writes leaderboard.md, published.md, leaderboard.csv and per_class.csv, on demand leaderboard.tex and
    leaderboard.json; `wsss report` writes everything.
    """
    from harness.records.records import Store
    from leaderboards.rows.metrics import metrics as metrics_named
    from leaderboards.rows.tables import row_lines
    from leaderboards.write import listings
    from leaderboards.write.report import plain_json, write_leaderboard

    if check:
        return _validate()
    store = Store(results)
    done = write_leaderboard(
        store,
        _place(out, dataset=dataset, suite=suites, recipe=names),
        recipes=_recipes(),
        dataset=dataset,
        suites=suites,
        names=names,
        formats=_split(formats),
        label=label,
        metrics=metrics,
    )
    if as_json:
        asked = metrics_named(metrics)
        click.echo(plain_json(done.rows, row_lines(done.rows, asked), done.frame, label), nl=False)
        return ended(store)
    click.echo(listings.leaderboard_listing(done.rows, done.parts) + "\n")
    _wrote(done.files)
    return ended(store)


#: So many files of a folder are named one by one.
_NAMED = 8


def _wrote(files: Sequence[Path]) -> None:
    """What was written: each file by its name, or folders that hold many of them; the page last."""
    pages = [file for file in files if file.suffix == ".html"]
    others = [file for file in files if file not in pages]
    for folder in dict.fromkeys(file.parent for file in others):
        inside = [file for file in others if file.parent == folder]
        kinds = " and ".join(sorted({file.suffix.removeprefix(".").upper() for file in inside}))
        many = f"{folder}{os.sep}: {len(inside)} files ({kinds})"
        for line in [many] if len(inside) > _NAMED else inside:
            click.echo(f"wrote {line}")
    for page in pages:
        click.echo(f"wrote {page}")


def _validate() -> int:
    from leaderboards.judge.statements import validate_claims
    from leaderboards.rows.published import row_means, validate_cells

    recipes = _recipes()
    findings = [*validate_cells(recipes), *row_means()]
    wrong = [f"claim: {text}" for text in validate_claims(recipes)]
    for finding in (*findings, *wrong):
        click.echo(str(finding))
    click.echo(f"{len(findings) + len(wrong)} findings")
    return 1 if wrong or any(f.kind in ("unknown cell", "disagreement") for f in findings) else 0


@click.command(
    "plot",
    cls=Verb,
    epilog="""\b
Examples:
  wsss plot                                  every plot of ./results, as PNG and SVG
  wsss plot --kind per-class --dataset mini
  wsss plot --kind curves --format pdf --out paper/figures
  wsss plot --kind qualitative --data-root ~/data    pictures, predictions and errors
  wsss plot --recipe 'agmm/*' --recipe 'pce/mini-scribble (crop=48)'    these rows, by the names of tables

Exit codes: 0 done, 1 done, and damaged files were left out, 2 nothing to draw.""",
)
@together(RESULTS, _OUT, _DATASET, _LABEL)
@click.option(
    "--kind",
    default="all",
    show_default=True,
    metavar="KIND",
    help="per-class, difference, overview, seeds, boundary, published, annotation, cost, curves, qualitative "
    "(pictures), or all (but pictures).",
)
@together(_ROWS, DATA_ROOT, DEVICE)
@click.option(
    "--format",
    "formats",
    default="png,svg",
    show_default=True,
    help="Files to write, separated by commas: png, svg, pdf.",
)
def plot_verb(
    results: Path | str,
    out: Path,
    dataset: str | None,
    label: str,
    kind: str,
    names: tuple[str, ...],
    formats: str,
    data_roots: tuple[str, ...],
    device: str,
) -> int:
    """Plots of records, ready for a paper.

    Error bars and bands are over seeds; colours stay with a method over all plots of a data set and
    can be told apart under every common colour vision. Stale records are left out.
    """
    from harness.records.records import Store
    from leaderboards.plots.plotting import check_kinds, write_plots
    from leaderboards.rows.choosing import picked_rows
    from leaderboards.rows.gathering import gather_records
    from leaderboards.rows.tables import leaderboard as rows_of
    from leaderboards.write.report import check_formats, require_records

    if kind != "qualitative":
        check_kinds(kind)
    wanted = _split(formats)
    check_formats(wanted, ("png", "svg", "pdf"))
    store = Store(results)
    frame = gather_records(store)
    require_records(frame, store, dataset)
    rows = [row for row in rows_of(frame, _recipes()) if dataset in (None, row.dataset)]
    rows = picked_rows(rows, names) if names else rows
    place = _place(out, dataset=dataset, recipe=names) / "plots"
    if kind == "qualitative":
        from leaderboards.plots.qualitative import write_grids

        files = write_grids(rows, place, wanted, data_roots, device=device, label=label, say=aside)
    else:
        files = write_plots(rows, place, kind=kind, formats=wanted, label=label, say=aside)
    _wrote(files)
    return ended(store)


@click.command(
    "claims",
    cls=Verb,
    epilog="""\b
Examples:
  wsss claims                        every claim, with the records of ./results
  wsss claims --suite mini-claims    those of one suite
  wsss run mini mini-claims          what the claims on miniature scenes need

Exit codes: 0 done, whatever the verdicts; 1 done, and damaged files were left out; 2 nothing to judge.""",
)
@together(RESULTS, _OUT, _SUITE)
@click.option(
    "--format",
    "formats",
    default="md,csv",
    show_default=True,
    help="Files to write, separated by commas: md, csv.",
)
@JSON
def claims_verb(results: Path | str, out: Path, suites: tuple[str, ...], formats: str, as_json: bool) -> int:
    """What the papers say, and whether the records bear it out.

    A claim is a comparison of two recipes on the same images. It `holds` where the 95 % interval of the
    difference, over images and seeds, lies above the margin, `does not hold` where it lies at or below
    it, and is `undecided` in between or with one seed. Writes claims.md and claims.csv.
    """
    from harness.records.records import Store
    from leaderboards.judge.claims import as_frame
    from leaderboards.write import listings
    from leaderboards.write.report import write_claims

    store = Store(results)
    place = _place(out, suite=suites)
    done = write_claims(store, place, recipes=_recipes(), suites=suites, formats=_split(formats))
    if as_json:
        click.echo(as_frame(done.judged).to_json(orient="records", indent=1, force_ascii=False))
        return ended(store)
    click.echo(listings.claims_listing(done.judged) + "\n")
    _wrote(done.files)
    return ended(store)


@click.command(
    "report",
    cls=Verb,
    epilog="""\b
Examples:
  wsss report                       everything on ./results: reports/report.html and the files beside it
  wsss report --dataset mini        that data set alone: reports/dataset-mini/report.html
  wsss report --no-plots            tables, claims and the page without plots
  wsss report --label "one seed"    what a reader must know, behind every title and below every plot

Exit codes: 0 done, 1 done, and damaged files were left out, 2 nothing to show.""",
)
@together(RESULTS, _OUT, _DATASET, _SUITE, _ROWS, _METRICS, _LABEL)
@together(DATA_ROOT, DEVICE)
@click.option("--plots/--no-plots", default=True, show_default=True, help="Draw, as PNG and SVG.")
def report_verb(
    results: Path | str,
    out: Path,
    dataset: str | None,
    suites: tuple[str, ...],
    names: tuple[str, ...],
    metrics: tuple[str, ...],
    label: str,
    data_roots: tuple[str, ...],
    device: str,
    plots: bool,
) -> int:
    """Tables, claims and plots, and one HTML page with all of it.

    The page needs no network and no other file: tables sort and filter, and every figure opens its
    provenance. Beside it stand the tables as Markdown, CSV, LaTeX and JSON and the plots as files.
    Pictures with predictions are shown of data sets that can be opened.
    """
    from harness.records.records import Store
    from leaderboards.write.report import write_report

    store = Store(results)
    done = write_report(
        store,
        _place(out, dataset=dataset, suite=suites, recipe=names),
        recipes=_recipes(),
        dataset=dataset,
        suites=suites,
        names=names,
        plots=plots,
        data_roots=data_roots,
        device=device,
        label=label,
        metrics=metrics,
        say=aside,
    )
    _wrote(done)
    return ended(store)


@click.command(
    "compare",
    cls=Verb,
    epilog="""\b
Examples:
  wsss compare agmm/mini-scribble pce/mini-scribble
  wsss compare agmm/voc-point-r101 external/their-method --evaluation val-agmm-voc
  wsss compare agmm/mini-scribble agmm/mini-scribble@3f9c    against its records of this digest
  wsss compare agmm/mini-scribble agmm/mini-scribble@mine    against the configuration that was called so
  wsss compare agmm/mini-scribble 'agmm/mini-scribble (crop=48)'    against a row as the tables print it
  wsss compare pce/mini-point agmm/mini-point --set dataset=birds --data-root birds=~/birds
  wsss compare agmm/mini-scribble pce/mini-scribble --metric boundary-iou    further figures of both

Exit codes: 0 done, whatever the verdict; 1 done, and damaged files were left out; 2 nothing to compare.""",
)
@click.argument("first", shell_complete=A_RECIPE)
@click.argument("second", shell_complete=A_RECIPE)
@click.option("--evaluation", metavar="NAME", help="Only this evaluation, such as val-single.")
@together(_METRICS, SET, DATA_ROOT, RESULTS, JSON)
def compare_verb(
    first: str,
    second: str,
    evaluation: str | None,
    metrics: tuple[str, ...],
    assignments: tuple[str, ...],
    data_roots: tuple[str, ...],
    results: Path | str,
    as_json: bool,
) -> int:
    """Two recipes on the same images: difference, interval, tests, and every class.

    FIRST and SECOND are recipes with records, or imported predictions (external/NAME). A name stands for
    records with the overrides of --set, by default without any; NAME@DIGEST for those of a digest, whatever
    was overridden, NAME@CALLED for a configuration that was named (wsss run --name), and 'NAME (VALUES)' for
    a row as tables print it. The interval is
    over images and seeds; with one seed on a side it is over images alone, and nothing is decided.
    """
    from harness.recipes.resolving import parse_overrides
    from harness.records.records import Store
    from leaderboards.judge.comparison import as_plain, compared_records
    from leaderboards.judge.comparison import compare as compared
    from leaderboards.rows.metrics import metrics as metrics_named
    from leaderboards.write import listings
    from leaderboards.write.report import require_records

    asked = metrics_named(metrics)
    store = Store(results)
    frame = compared_records(store, first, second)
    require_records(frame, store)
    found = compared(
        frame, _recipes(), first, second, evaluation=evaluation, overrides=parse_overrides(assignments)
    )
    click.echo(
        json.dumps([as_plain(one, asked) for one in found], indent=1)
        if as_json
        else listings.comparison(found, asked)
    )
    return ended(store)


@click.command(
    "import",
    cls=Verb,
    epilog="""\b
Examples:
  wsss import predictions/ --metadata theirs.toml --data-root ~/data
        <id>.png of every picture of the split; the metadata file says what they are
  wsss import /mnt/cluster/results
        records of another results folder (or URI), without their checkpoints

A metadata file:
  name = "their-method"            title = "Their method"
  dataset = "voc2012"              split = "val"
  supervision = "scribble"         backbone = "ResNet-101"
  encoding = "classes"             notes = "numbers 0..K-1; files: the data set's own"
  protocol = "multi-scale, CRF"    source = "https://..., commit abc"

Exit codes: 0 done, 1 done, and damaged files were left out, 2 refused.""",
)
@click.argument("folder", type=RecordStore(), metavar="FOLDER|URI")
@click.option("--metadata", type=click.Path(path_type=Path), help="TOML file about a folder of predictions.")
@together(DATA_ROOT, RESULTS)
def import_verb(
    folder: Path | str, metadata: Path | None, data_roots: tuple[str, ...], results: Path | str
) -> int:
    """Predictions or records from outside enter the tables.

    Predictions are scored by the same evaluator as everything else and marked as external.
    """
    from harness.basics.files import cache_folder
    from harness.data.sets.roots import open_dataset
    from harness.records.object_store import shown
    from harness.records.records import Store
    from leaderboards.rows.external import earlier, import_predictions, import_records, read_metadata

    store = Store(results)
    if metadata is None:
        origin = Store(folder)
        written, present = import_records(origin, store)
        click.echo(f"{len(written)} records imported, {len(present)} were there already")
        return ended(origin) | ended(store)
    if isinstance(folder, str):
        raise UserError("predictions are read from a folder", where=shown(folder), remedy="copy them first")
    known = read_metadata(metadata)
    dataset = open_dataset(known.dataset, data_roots, cache_folder())
    before = earlier(store, known)
    record = import_predictions(folder, known, dataset, store, say=aside)
    (run,) = record.evaluations.values()
    was = "" if before is None or before == run.miou else f" (in place of {before:.2f}, imported before)"
    click.echo(f"{record.name} seed {record.seed}: mIoU {run.miou:.2f} on {run.data['images']} pictures{was}")
    undecided(run.data.get("coverage"))
    click.echo(f"wrote {record.path}")
    return 0
