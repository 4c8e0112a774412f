"""``wsss tune``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.basics.files import whole_file
from harness.cli.completing import RECIPES
from harness.cli.options import (
    EARLY_STOPPING,
    HELD_OUT_SHARE,
    JSON,
    SEED_RANGE,
    SET,
    OutputPath,
    aside,
    ended,
    execution,
)
from harness.cli.usage import Verb

if TYPE_CHECKING:
    from harness.running.jobs.job import Resources
    from harness.running.trials.trial import Options


@click.command(
    "tune",
    cls=Verb,
    epilog="""\b
Examples:
  wsss tune mini --trials 12 --then-seeds 3
  wsss tune pce/mini-scribble gated_crf/mini-scribble agmm/mini-scribble --trials 12
  wsss tune 'agmm/voc-*' --trials 50 --data-root ~/data --gpus-per-trial 1 --address auto

Exit codes: 0 done, 1 some trials failed, 2 refused before training. The same command goes on where it
stopped, and takes over what `wsss search` has run with the same options.""",
)
@click.argument(
    "targets", nargs=-1, required=True, metavar="RECIPE|SUITE|FILE.toml...", shell_complete=RECIPES
)
@click.option(
    "--trials", type=click.IntRange(1, 100_000), default=16, show_default=True, help="Of each recipe."
)
@click.option(
    "--then-seeds",
    "seeds",
    type=click.IntRange(1, 10_000),
    default=3,
    show_default=True,
    help="Seeds of either configuration in the end.",
)
@click.option("--sampler", default="random", show_default=True, help="random, tpe, cmaes or gp.")
@EARLY_STOPPING
@click.option("--seed", type=SEED_RANGE, default=0, show_default=True, help="Of samplers and of every trial.")
@click.option(
    "--objective-split",
    default="held-out",
    show_default=True,
    help="held-out (a part of the training split), or a split with masks that no recipe reports on.",
)
@HELD_OUT_SHARE
@SET
@click.option(
    "--out",
    type=OutputPath(),
    default=Path("reports"),
    show_default=True,
    help="Folder for tune.md, .csv, .png and .svg.",
)
@JSON
@execution
def tune_verb(
    targets: tuple[str, ...],
    trials: int,
    seeds: int,
    sampler: str,
    scheduler: str,
    seed: int,
    objective_split: str,
    share: float,
    assignments: tuple[str, ...],
    out: Path,
    as_json: bool,
    options: Options,
    resources: Resources | None,
) -> int:
    """Every method of a table with the same budget: as published beside equally tuned.

    Each recipe gets the same number of trials of the same sampler on the same pictures. Then it is trained
    with its own values and with the best ones found, with several seeds each.
    """
    from harness.cli.search import StudyDisplay
    from harness.recipes.resolving import parse_overrides, resolve
    from harness.running.search.tuning import tune
    from leaderboards.plots.budgets import budget_figure
    from leaderboards.plots.drawing import save_figure
    from leaderboards.rows.budgets import budget_lines, budget_rows
    from leaderboards.rows.gathering import gather_records
    from leaderboards.rows.text import csv_table
    from leaderboards.write.budgets import budget_listing, budget_markdown

    done = tune(
        targets,
        trials,
        seeds,
        overrides=parse_overrides(assignments),
        sampler=sampler,
        scheduler=scheduler,
        seed=seed,
        objective_split=objective_split,
        share=share,
        options=options,
        resources=resources,
        say=aside,
        display=StudyDisplay,
    )
    store = options.store
    recipes = {one.recipe: resolve(one.recipe) for one in done.recipes}
    rows = budget_rows(gather_records(store, *recipes), done, recipes)
    lines, stem = budget_lines(rows), out / "tune"
    if lines:
        with whole_file(Path(f"{stem}.csv")) as file:
            file.write(csv_table(lines, list(lines[0])))
        stamps = dict.fromkeys(row.tuned.found.stamp for row in rows)
        save_figure(budget_figure(rows, "; ".join(stamps)), stem, ("png", "svg"), say=aside)
    with whole_file(Path(f"{stem}.md")) as file:
        file.write(budget_markdown(rows, done, " ".join(targets)))
    if as_json:
        click.echo(
            json.dumps([{k: None if v != v else v for k, v in line.items()} for line in lines], indent=1)
        )
    else:
        click.echo(budget_listing(rows, done))
        click.echo(f"\nwrote {stem}.md, .csv, .png and .svg")
    failed = done.failed + sum(outcome.status == "failed" for outcome in done.outcomes)
    if failed:
        click.echo(f"{failed} trials failed; run the same command to make up for them", err=True)
    return 1 if failed else ended(store)
