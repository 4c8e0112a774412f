"""``wsss grid``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.basics.errors import UserError, nearest
from harness.basics.files import whole_file
from harness.cli.completing import A_RECIPE
from harness.cli.options import JSON, SEED_RANGE, OutputPath, ended, execution
from harness.cli.usage import Verb

if TYPE_CHECKING:
    from harness.running.jobs.job import Resources
    from harness.running.trials.trial import Options


@click.command(
    "grid",
    cls=Verb,
    epilog="""\b
Examples:
  wsss grid agmm/mini-point --set optimiser.lr=0.005,0.01,0.02 --set crop=48,64 --seeds 3
  wsss grid agmm/mini-scribble --set crop=[48,64],[64,64] --set schedule.steps=100    (one value: held fixed)
  wsss grid cam/mini-image --set config.background_score=0.2,0.3,0.4    scored anew, not trained anew
  wsss grid pce/mini-scribble --set 'labels_from="a,b","c"'    quotes hold a comma together
  wsss grid agmm/mini-scribble --set crop=48,64 --only-tables    of what has run

Rows are called 'RECIPE (KEY=VALUE, ...)': every verb that takes a recipe takes that name.
Exit codes: 0 all finished, 1 some failed, 2 refused before training.
The same command goes on where it stopped.""",
)
@click.argument("recipe", shell_complete=A_RECIPE)
@click.option(
    "--set",
    "assignments",
    multiple=True,
    required=True,
    metavar="KEY=VALUE,...",
    help="Values of a key, parted by commas outside of quotes and brackets; repeatable.",
)
@click.option("--seeds", type=click.IntRange(1, 10_000), default=3, show_default=True, help="Seeds 0 .. N-1.")
@click.option("--seed", "chosen", type=SEED_RANGE, multiple=True, help="These seeds instead; repeatable.")
@click.option("--evaluation", metavar="NAME", help="Which figure is shown [default: the recipe's first].")
@click.option("--only-tables", is_flag=True, help="Of records that are there; nothing runs.")
@click.option(
    "--out",
    type=OutputPath(),
    default=Path("reports"),
    show_default=True,
    help="Folder for grid-RECIPE.md and .csv, which have all evaluations.",
)
@JSON
@execution
def grid_verb(
    recipe: str,
    assignments: tuple[str, ...],
    seeds: int,
    chosen: tuple[int, ...],
    evaluation: str | None,
    only_tables: bool,
    out: Path,
    as_json: bool,
    options: Options,
    resources: Resources | None,
) -> int:
    """Run every combination of some values with some seeds, and print a table of it.

    Rows and columns of a table are two of the keys; there is one table for each combination of the others.
    A figure is the mean over seeds, its deviation, and the 95 % interval over images.
    """
    from harness.recipes.grids import parse_grid
    from harness.recipes.resolving import resolve
    from harness.recipes.row_names import row_name
    from harness.records.called import called_rows
    from harness.running.trials.execution import execute
    from harness.running.trials.trial import Trial
    from leaderboards.rows.gathering import gather_records
    from leaderboards.rows.pivot import cells_of, pivot_lines, pivots
    from leaderboards.rows.text import csv_table
    from leaderboards.write.pivots import pivot_listing, pivot_markdown

    store = options.store
    grid = parse_grid(recipe, assignments, called_rows(store))
    resolved = resolve(grid.recipe, grid.fixed)
    names = list(dict.fromkeys(e.name for e in resolved.recipe.evaluation)) or ["val-single"]
    if evaluation is not None and evaluation not in names:
        raise UserError(
            f"{grid.recipe} has no evaluation {evaluation!r}",
            where="--evaluation",
            remedy=nearest(evaluation, names),
        )
    wanted = tuple(dict.fromkeys(chosen)) or tuple(range(seeds))
    failed = 0
    if not only_tables:
        trials = [Trial(grid.recipe, seed, point) for point in grid.points for seed in wanted]
        outcomes = execute(trials, options, resources)
        failed = sum(outcome.status == "failed" for outcome in outcomes)
    frame = gather_records(store, grid.recipe)
    recipes = {grid.recipe: resolve(grid.recipe)}
    shown = evaluation or names[0]
    lines, pages, listing = [], [], ""
    for name in names:
        cells = cells_of(frame, grid, recipes, name)
        tables, title = pivots(grid, cells), f"{row_name(grid.recipe, grid.fixed)}, {name}: mIoU (%)"
        lines += pivot_lines(cells, name)
        pages.append(pivot_markdown(tables, title, len(wanted)))
        if name == shown:
            listing = pivot_listing(tables, title, len(wanted))
    stem = f"grid-{grid.recipe.replace('/', '-')}"
    for ending, text in ((".md", "\n".join(pages)), (".csv", csv_table(lines, list(lines[0])))):
        with whole_file(out / f"{stem}{ending}") as file:
            file.write(text)
    if as_json:
        click.echo(json.dumps(lines, indent=1))
    else:
        click.echo(listing)
        others = [name for name in names if name != shown]
        if others:
            click.echo(f"--evaluation shows another figure: {', '.join(others)}")
        click.echo(f"\nwrote {out / stem}.md and .csv")
    if failed:
        click.echo(f"{failed} trials failed; run the same command to try them again", err=True)
    return 1 if failed else ended(store)
