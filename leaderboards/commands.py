"""``wsss leaderboard`` and ``wsss plot``; what they do is imported when they are used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from harness.commands.options import RESULTS, together

_OUT = click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("reports"),
    show_default=True,
    help="Folder for the files.",
)
_DATASET = click.option("--dataset", metavar="NAME", help="Only this data set.")


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _recipes() -> dict[str, Any]:
    """Every recipe that resolves; one that does not is named and left out."""
    from harness.errors import UserError
    from harness.recipes import recipe_names, resolve

    found = {}
    for name in recipe_names():
        try:
            found[name] = resolve(name)
        except UserError as error:
            click.echo(f"left out: {name}: {error.problem}", err=True)
    return found


@click.command(
    epilog="""\b
Examples:
  wsss leaderboard                               all records below ./results
  wsss leaderboard --dataset mini
  wsss leaderboard --results /data/results --out paper/tables --format csv
  wsss leaderboard --validate                    published cells against recipes

Exit codes: 0 done, 1 --validate found a citation that does not hold, 2 nothing to show."""
)
@together(RESULTS, _OUT, _DATASET)
@click.option(
    "--format",
    "formats",
    default="md,csv",
    show_default=True,
    help="Files to write, separated by commas: md, csv.",
)
@click.option("--validate", "check", is_flag=True, help="Compare published cells with recipes instead.")
def leaderboard(results: Path, out: Path, dataset: str | None, formats: str, check: bool) -> int:
    """Tables of records beside published values.

    One table for each data set and supervision: mean and deviation over seeds, a 95 % interval over
    images, the published value with its source, and a verdict. What was not run is shown as a hole.
    Writes leaderboard.md, published.md, leaderboard.csv and per_class.csv.
    """
    from harness.records import Store
    from leaderboards.report import write_leaderboard

    if check:
        return _validate()
    done = write_leaderboard(
        Store(results), out, recipes=_recipes(), dataset=dataset, formats=_split(formats)
    )
    click.echo(done.tables)
    for file in done.files:
        click.echo(f"wrote {file}")
    return 0


def _validate() -> int:
    from leaderboards.published import row_means, validate

    findings = [*validate(_recipes()), *row_means()]
    for finding in findings:
        click.echo(str(finding))
    click.echo(f"{len(findings)} findings")
    return 1 if any(f.kind in ("unknown cell", "disagreement") for f in findings) else 0


@click.command(
    epilog="""\b
Examples:
  wsss plot                                  every plot of ./results, as PNG and SVG
  wsss plot --kind per-class --dataset mini
  wsss plot --kind curves --format pdf --out paper/figures

Exit codes: 0 done, 2 nothing to draw."""
)
@together(RESULTS, _OUT, _DATASET)
@click.option(
    "--kind",
    type=click.Choice(["per-class", "curves", "overview", "all"]),
    default="all",
    show_default=True,
    help="IoU by class; losses over steps; mIoU by supervision.",
)
@click.option(
    "--format",
    "formats",
    default="png,svg",
    show_default=True,
    help="Files to write, separated by commas: png, svg, pdf.",
)
def plot(results: Path, out: Path, dataset: str | None, kind: str, formats: str) -> None:
    """Plots of records, ready for a paper.

    Error bars and bands are over seeds; colours stay with a method over all plots of a data set and
    can be told apart under every common colour vision. Stale records are left out.
    """
    from harness.records import Store
    from leaderboards.gathering import gather
    from leaderboards.plots import write_plots
    from leaderboards.report import require_records
    from leaderboards.tables import leaderboard as rows_of

    store = Store(results)
    frame = gather(store)
    require_records(frame, store, dataset)
    rows = [row for row in rows_of(frame, _recipes()) if dataset in (None, row.dataset)]
    for file in write_plots(rows, out / "plots", kind=kind, formats=_split(formats)):
        click.echo(f"wrote {file}")
