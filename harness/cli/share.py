"""``wsss pack``, ``wsss check-bundle``, ``wsss merge`` and ``wsss freeze``."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import click

from harness.basics import listing
from harness.basics.text import one_line
from harness.cli.completing import A_RECIPE
from harness.cli.options import (
    DATA_ROOT,
    RESULTS,
    OutputPath,
    aside,
    ended,
    left_out,
    opened_dataset,
    together,
)
from harness.cli.usage import Verb

#: So many breaches of a bundle are printed.
_SHOWN = 100
_FILES = click.argument(
    "files", nargs=-1, required=True, metavar="BUNDLE...", type=click.Path(path_type=Path)
)


@click.command(
    "pack",
    cls=Verb,
    epilog="""\b
Examples:
  wsss pack ours.wsss --made-by "Ada Lovelace, ada@example.org"
  wsss pack agmm.wsss --recipe 'agmm/*' --made-by "Ada Lovelace" --notes "two seeds of three"
  wsss pack all.wsss --made-by "Ada Lovelace" --weights --predictions

A bundle is a zip file of records, with a manifest of hashes; equal records and times give equal bundles.
Exit codes: 0 done, 1 done, and damaged files were left out, 2 refused.""",
)
@click.argument("file", type=OutputPath(file=True), metavar="FILE")
@click.option("--made-by", metavar="TEXT", required=True, help="Who answers for it: a name and an address.")
@click.option("--notes", metavar="TEXT", default="", help="What a reader must know.")
@click.option(
    "--recipe",
    "names",
    multiple=True,
    metavar="RECIPE|GLOB|ROW",
    shell_complete=A_RECIPE,
    help="Only records of these rows: recipes, patterns, or 'RECIPE (VALUES)' as tables print it.",
)
@click.option("--weights", is_flag=True, help="With the weights of each, as safetensors.")
@click.option("--predictions", is_flag=True, help="With label maps that --save-predictions kept.")
@RESULTS
def pack_verb(
    file: Path,
    made_by: str,
    notes: str,
    names: tuple[str, ...],
    weights: bool,
    predictions: bool,
    results: Path | str,
) -> int:
    """Write finished records into one file, to share them.

    Configuration, provenance, counts of every picture, figures and training curves travel; weights and
    predictions on request.
    """
    from harness.records.records import Store
    from leaderboards.rows.choosing import record_chooser
    from leaderboards.rows.sharing import pack

    store = Store(results)
    done = pack(
        store,
        file,
        made_by=made_by,
        notes=notes,
        chosen=record_chooser(store, names),
        weights=weights,
        predictions=predictions,
    )
    for text in done.lacking:
        aside(one_line(text, 600))
    click.echo(f"{done.records} records in {done.file}, {done.file.stat().st_size:,} bytes")
    click.echo(f"sha256 {done.sha256}")
    return ended(store)


@click.command(
    "check-bundle",
    cls=Verb,
    epilog="""\b
Examples:
  wsss check-bundle ours.wsss
  wsss check-bundle bundles/*.wsss --data-root ~/data    counts masks and predictions anew

Exit codes: 0 all is sound, 1 something is not, 2 nothing could be read.""",
)
@together(_FILES, DATA_ROOT)
def check_bundle_verb(files: tuple[Path, ...], data_roots: tuple[str, ...]) -> int:
    """Compare everything that bundles say with what is in them.

    Every byte is read: form and hashes, schemas, figures against counts, counts against data sets that are
    here and against predictions that are inside. A bundle is a stranger's file: nothing in it is run or
    unpickled.
    """
    from harness.basics.reading import Damaged
    from leaderboards.rows.sharing import check_bundle

    wrong: dict[str, Damaged] = {}
    breaches = 0
    for file in files:
        try:
            found = check_bundle(file, lambda name: opened_dataset(name, data_roots))
        except Damaged as error:
            wrong[one_line(str(file), 400)] = error
            click.echo(listing.remark(error.brief))
            continue
        manifest = found.bundle.manifest
        click.echo(listing.heading(f"{file}: {one_line(manifest.made_by)}, {one_line(manifest.made)}"))
        for where, why in islice(found.breaches.items(), _SHOWN):
            click.echo(listing.remark(f"{one_line(where, 600)}: {one_line(why, 600)}"))
        if len(found.breaches) > _SHOWN:
            click.echo(listing.remark(f"and {len(found.breaches) - _SHOWN:,} more"))
        for text in found.remarks:
            click.echo(listing.remark(text))
        for what, why in found.unseen.items():
            aside(f"not compared with the data set: {one_line(what)}: {one_line(why)}")
        said = f"{found.records} records and {found.evaluations} evaluations are sound"
        click.echo(listing.prose(f"{said}, {len(found.breaches)} breaches; sha256 {found.bundle.sha256}"))
        breaches += len(found.breaches)
    if len(wrong) == len(files) == 1:
        raise next(iter(wrong.values()))
    return 1 if breaches or wrong else 0


@click.command(
    "merge",
    cls=Verb,
    epilog="""\b
Examples:
  wsss merge bundles/*.wsss --results merged
  wsss report --results merged --out public      the tables and the page of all of them

Exit codes: 0 done, 1 done, and equal digests disagree or damaged files were left out, 2 refused, and nothing
was written.""",
)
@together(_FILES, RESULTS)
def merge_verb(files: tuple[Path, ...], results: Path | str) -> int:
    """Bring many people's bundles into one record store.

    All bundles are checked before anything is written. Tables say who made a row. Where two records of one
    recipe, values, data and seed have other numbers, the first stands, and the row says what the others say.
    """
    from harness.records.records import Store
    from leaderboards.rows.sharing import merge

    store = Store(results)
    done = merge(files, store, say=aside)
    rows = [(one_line(who), str(number)) for who, number in done.makers.items()]
    click.echo(listing.fitted_table(rows, ("made by", "records"), right=(1,)))
    for one in done.disagreements:
        click.echo(listing.remark(f"{one_line(one.record)}: {one_line(one.text, 600)}"))
    click.echo(
        listing.prose(
            f"{done.written} records are new in {store.place}, {done.present} were there with the same "
            f"numbers, {len(done.disagreements)} disagreements"
        )
    )
    return 1 if done.disagreements else ended(store)


@click.command(
    "freeze",
    cls=Verb,
    epilog="""\b
Examples:
  wsss freeze 2026-spring                keeps the rows of ./results in frozen/2026-spring.json
  wsss freeze 2026-spring --compare      what has become of them since

Exit codes: 0 done (with --compare: nothing has changed), 1 rows have changed or are gone, 2 refused.""",
)
@click.argument("name")
@click.option("--compare", is_flag=True, help="Compare the present rows with those that were kept.")
@click.option(
    "--out", type=OutputPath(), default=Path("frozen"), show_default=True, help="Folder of frozen boards."
)
@RESULTS
def freeze_verb(name: str, compare: bool, out: Path, results: Path | str) -> int:
    """Keep a leaderboard, to compare a later one with."""
    from harness.recipes.resolving import usable
    from harness.records.records import Store
    from leaderboards.rows.frozen import freeze, since, thaw
    from leaderboards.rows.gathering import gather_records
    from leaderboards.rows.tables import leaderboard
    from leaderboards.rows.text import DASH, number
    from leaderboards.write.report import require_records

    board = thaw(name, out) if compare else None
    store = Store(results)
    frame = gather_records(store)
    require_records(frame, store)
    recipes, wrong = usable()
    left_out(wrong)
    rows = leaderboard(frame, recipes, resamples=0)
    if board is None:
        click.echo(f"wrote {freeze(rows, name, out)}")
        return ended(store)
    found = since(board, rows)
    table = [
        (
            one.what,
            one_line(one.name),
            one_line(one.evaluation),
            DASH if one.before is None else number(one.before),
            DASH if one.after is None else number(one.after),
        )
        for one in found
        if one.what != "same"
    ]
    if table:
        click.echo(listing.fitted_table(table, ("", "row", "evaluation", "then", "now"), right=(3, 4)))
    same = sum(one.what == "same" for one in found)
    click.echo(f"{same} of {len(board.rows)} rows are the same as when {one_line(board.name)} was frozen")
    changed = any(one.what in ("changed", "gone") for one in found)
    return 1 if changed else ended(store)
