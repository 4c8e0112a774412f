"""``wsss run``."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from harness.basics import listing
from harness.cli.completing import RECIPES
from harness.cli.options import JSON, SEED_RANGE, SET, Real, execution
from harness.cli.usage import Verb

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from harness.running.jobs.job import Resources
    from harness.running.smoke.forecast import Forecast
    from harness.running.trials.trial import Options, Trial


@click.command(
    "run",
    cls=Verb,
    epilog="""\b
Examples:
  wsss run mini                                     the miniature suite, three seeds
  wsss run agmm/mini-scribble --seeds 1 --local     one trial in this process
  wsss run mini --dry-run                           what would run, and for how long
  wsss run paper --smoke --data-root ~/data         try every recipe at full size for twenty steps
  wsss run 'agmm/voc-*' --data-root ~/data --gpus-per-trial 1
  wsss run 'agmm/voc-*' --data-root ~/data --fast   in mixed precision, as a configuration of its own
  wsss run ./mine.toml                              a recipe file of your own; tables say (mine)
  wsss run agmm/mini-scribble --set optimiser.lr=0.02 --set crop=80 --name mine
  wsss run agmm/voc-point-r101 --set batch.groups=1 --set batch.per_group=16
  wsss run mini --results s3://bucket/wsss          records in a bucket; see docs/storage.md

Exit codes: 0 all finished (with --smoke: passed), 1 some failed, 2 refused before training,
130 interrupted (Ctrl-C), 143 terminated (SIGTERM), 129 hung up (SIGHUP).
Running the same command again goes on where it stopped and repeats nothing; what is finished is kept, and
it says so where other code of a method's own package had trained it. --again trains such trials anew.""",
)
@click.argument(
    "targets", nargs=-1, required=True, metavar="RECIPE|SUITE|FILE.toml...", shell_complete=RECIPES
)
@click.option("--seeds", type=click.IntRange(1, 10_000), default=3, show_default=True, help="Seeds 0 .. N-1.")
@click.option("--seed", "chosen", type=SEED_RANGE, multiple=True, help="These seeds instead; repeatable.")
@SET
@click.option(
    "--name",
    "called",
    metavar="TEXT",
    default="",
    help="What tables and legends call this configuration, in place of its --set values.",
)
@click.option(
    "--fast",
    is_flag=True,
    help="On a GPU: bfloat16, TF32, channels last, cuDNN's search (amp and precision.*, as by --set, which "
    "has the last word). Another configuration, with records of its own.",
)
@execution
@click.option("--dry-run", is_flag=True, help="Check everything, list trials with their cost, run nothing.")
@click.option(
    "--step-seconds",
    type=Real(1e-6, 10**6),
    help="Of a training step on the GPU that is planned for: --dry-run says how many cores feed it.",
)
@click.option(
    "--smoke",
    is_flag=True,
    help="Try each recipe once at full size (20 steps, a resume, some pictures): memory, rates, errors.",
)
@click.option(
    "--again",
    is_flag=True,
    help="Train anew what is finished. The old records move aside, to before-TIME-seed-N in the same folder.",
)
@JSON
@click.option("--save-predictions", is_flag=True, help="Keep palette PNGs of all evaluated pictures.")
def run_verb(
    targets: tuple[str, ...],
    seeds: int,
    chosen: tuple[int, ...],
    assignments: tuple[str, ...],
    dry_run: bool,
    step_seconds: float | None,
    smoke: bool,
    as_json: bool,
    again: bool,
    called: str,
    fast: bool,
    save_predictions: bool,
    options: Options,
    resources: Resources | None,
) -> int:
    """Train, evaluate and record recipes or suites.

    TARGETS are recipes (agmm/mini-scribble), globs ('*/mini-*'), suites (mini), or files of your own
    (mine.toml; mine.toml:TABLE of several). Everything that can go wrong before training is checked first:
    data, labels, weights, configuration.
    """
    from harness.recipes.names import configuration_name
    from harness.recipes.resolving import parse_overrides
    from harness.recipes.specs import FAST
    from harness.running.trials.execution import execute, plan

    overrides = parse_overrides(assignments)
    if fast:
        called = called or ("" if overrides else "fast")
        overrides = {**FAST, **overrides}
    trials = plan(targets, chosen or range(seeds), overrides, options.store)
    options = replace(options, called=configuration_name(called, trials[0].overrides))
    if smoke:
        return _try(trials, options, resources, as_json)
    if dry_run:
        _list(trials, options, resources, as_json, step_seconds)
        return 0
    options = replace(options, save_predictions=save_predictions)
    if again:
        click.echo("should this be interrupted, the same command without --again goes on", err=True)
    outcomes = execute(trials, options, resources, again=again)
    failed = [o for o in outcomes if o.status == "failed"]
    if failed:
        click.echo(
            f"{len(failed)} of {len(outcomes)} trials failed; run the same command to try them again",
            err=True,
        )
    return 1 if failed else 0


def _try(
    trials: Sequence[Trial], options: Options, resources: Resources | None, as_json: bool = False
) -> int:
    """Try every recipe and print what was found."""
    from harness.running.smoke.recipes import smoke
    from harness.running.smoke.report import folder, smoke_listing

    rows = smoke(trials, options, resources)
    failed = sum(row.status == "failed" for row in rows)
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows], indent=1))
        return 1 if failed else 0
    click.echo(smoke_listing(rows) + "\n")
    listing.say_paragraph(
        f"{failed or 'none'} of {len(rows)} recipes failed; figures are in {folder(options.results)}, "
        "and --dry-run uses them"
    )
    return 1 if failed else 0


def _list(
    trials: Sequence[Trial],
    options: Options,
    resources: Resources | None,
    as_json: bool = False,
    step_seconds: float | None = None,
) -> None:
    """Print what a run would do."""
    from harness.running.smoke.forecast import concurrent, forecast, free_mebibytes, wall_seconds
    from harness.running.smoke.report import readable_duration, readable_memory
    from harness.running.trials.overlay import cache_overlay

    with cache_overlay(options.cache) as cache:  # data is generated and labels are made, and nothing stays
        rows = forecast(trials, replace(options, cache=cache), step_seconds)
    if as_json:
        shown = [{**asdict(row), "trial": str(row.trial), "cores": _cores(row)} for row in rows]
        click.echo(json.dumps(shown, indent=1))
        return
    table = _by_recipe(
        (
            row.trial,
            listing.state(_state(row)),
            f"{row.steps:,}",
            "unknown" if row.seconds is None else readable_duration(row.seconds),
            "unknown" if row.mebibytes is None else f"{row.mebibytes:.0f} MiB",
            readable_memory(row.memory_mib),
            row.basis,
            f"{row.makes}: would be made" if row.makes else "",
        )
        for row in rows
    )
    headers = ("trial", "state", "steps", "time", "disk", "memory", "estimated from", "before it")
    click.echo(listing.fitted_table(table, headers, right=(2, 3, 4, 5)))
    for note in dict.fromkeys(note for row in rows for note in row.notes):
        click.echo(f"\n{listing.prose(note, indent='  ')}")
    changed: dict[tuple[str, str, str], list[Trial]] = {}
    for row in rows:
        if row.code:
            changed.setdefault((row.state, row.trial.name, row.code), []).append(row.trial)
    for (state, _, code), of in changed.items():
        remedy = "; --again trains it anew" if state == "finished" else ""
        click.echo(f"\n{listing.prose(f'{_of_seeds(of)}, {state}: {code}{remedy}', indent='  ')}")
    open_rows = [row for row in rows if row.state != "finished"]
    recipes = (row.trial.resolved.recipe for row in rows)
    processes = max((options.processes or recipe.batch.groups for recipe in recipes), default=1)
    at_a_time = concurrent(resources, processes)
    wall = None if at_a_time is None else wall_seconds(open_rows, at_a_time)
    known = [row for row in open_rows if row.seconds is not None]
    if resources is not None:
        each = f"{resources.cpus_per_process:g} CPU, {resources.gpus_per_process:g} GPU"
        most = f" for each of its processes, {processes} at most" if processes > 1 else ""
        click.echo(f"\n{listing.prose(f'each trial takes {each}{most}')}")
    fed = {row.trial.name: row.feeding for row in open_rows if row.feeding is not None}
    for name, feeding in fed.items():
        click.echo(f"\n{listing.prose(f'to feed one GPU, {name}: {feeding}', indent='  ')}")
    click.echo()
    listing.say_paragraph(
        f"{len(open_rows)} of {len(rows)} trials to run, "
        + ("as many at a time as the cluster takes" if at_a_time is None else f"{at_a_time} at a time")
        + (
            ""
            if not open_rows
            else f": about {readable_duration(wall)}, from recorded rates"
            if wall is not None
            else f"; {len(known)} of them have recorded rates to estimate from"
        )
    )
    if kept := sum(row.state == "finished" and bool(row.code) for row in rows):
        listing.say_paragraph(f"kept, though other code has trained them: {kept}; --again trains them anew")
    if known:
        running = sorted((row.running_mebibytes for row in known), reverse=True)[: at_a_time or len(known)]
        disk = sum(row.mebibytes or 0.0 for row in known) + sum(running)
        free = free_mebibytes(options.store.root)
        listing.say_paragraph(
            f"disk: {disk:.0f} MiB with checkpoints of running trials, of {free:.0f} MiB free"
            + (": NOT ENOUGH" if disk > free else "")
        )


def _state(row: Forecast) -> str:
    """The state of a trial in a few words."""
    at = "" if row.reached is None else f" at {row.reached:,}"
    return f"{row.state}{at}{': other code' if row.code else ''}"


def _by_recipe(lines: Iterable[tuple[Trial, *tuple[Any, ...]]]) -> list[tuple[Any, ...]]:
    """One line for the seeds of a row that differ in nothing else, as ``RECIPE seeds 0 to 2``."""
    found: dict[Any, list[tuple[Any, ...]]] = {}
    for line in lines:
        trial = line[0]
        row = (trial.name, trial.called, sorted(map(repr, trial.overrides.items())))
        found.setdefault(repr((row, line[1:])), []).append(line)
    return [(_of_seeds([line[0] for line in same]), *same[0][1:]) for same in found.values()]


def _of_seeds(trials: Sequence[Trial]) -> str:
    if len(trials) == 1:
        return str(trials[0])
    seeds = sorted(trial.seed for trial in trials)
    whole = seeds == list(range(seeds[0], seeds[0] + len(seeds)))
    numbers = f"{seeds[0]} to {seeds[-1]}" if whole and len(seeds) > 2 else ", ".join(map(str, seeds))
    return f"{str(trials[0]).rpartition(' seed ')[0]} seeds {numbers}"


def _cores(row: Forecast) -> int | None:
    return None if row.feeding is None else row.feeding.cores
