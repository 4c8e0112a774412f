"""``wsss search``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.basics import listing
from harness.cli.completing import A_RECIPE
from harness.cli.options import EARLY_STOPPING, HELD_OUT_SHARE, SEED_RANGE, SET, OutputPath, aside, execution
from harness.cli.usage import Verb

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from harness.running.jobs.job import Event, Resources
    from harness.running.search.objective import SearchJob
    from harness.running.search.study import Study
    from harness.running.trials.trial import Options


@click.command(
    "search",
    cls=Verb,
    epilog="""\b
Examples:
  wsss search agmm/mini-scribble --trials 16
  wsss search agmm/mini-point --trials 8 --local --scheduler none
  wsss search agmm/voc-point-r101 --trials 50 --data-root ~/data --gpus-per-trial 1
  wsss search agmm/mini-scribble --trials 20 --set config.spread=unit    (held fixed)
  wsss search agmm/voc-point-r101 --results s3://bucket/wsss --address auto    nodes share the bucket alone

Exit codes: 0 done, 1 some trials failed, 2 refused before training,
130 interrupted (Ctrl-C), 143 terminated (SIGTERM), 129 hung up (SIGHUP).
Running the same command again goes on where it stopped; a larger --trials adds trials.""",
)
@click.argument("recipe", shell_complete=A_RECIPE)
@click.option(
    "--trials",
    type=click.IntRange(max=1_000_000),
    default=16,
    show_default=True,
    help="Trials that shall have finished in the end.",
)
@click.option("--sampler", default="tpe", show_default=True, help="tpe, cmaes, random, grid or gp.")
@EARLY_STOPPING
@click.option(
    "--seed", type=SEED_RANGE, default=0, show_default=True, help="Of the sampler and of every trial."
)
@click.option(
    "--objective-split",
    default="held-out",
    show_default=True,
    help="held-out (a part of the training split), or a split such as val; stamped on every output.",
)
@HELD_OUT_SHARE
@click.option(
    "--grid-points", type=click.IntRange(2, 1000), default=3, show_default=True, help="Grid: per number."
)
@click.option(
    "--warm-start",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    multiple=True,
    help="Learn from the finished trials of an earlier search's folder; repeatable.",
)
@SET
@click.option(
    "--out",
    type=OutputPath(),
    help="Folder of this search [default: search/RECIPE/DIGEST beside the record store; under its URI].",
)
@execution
def search_verb(
    recipe: str,
    trials: int,
    sampler: str,
    scheduler: str,
    seed: int,
    objective_split: str,
    share: float,
    grid_points: int,
    warm_start: tuple[Path, ...],
    assignments: tuple[str, ...],
    out: Path | None,
    options: Options,
    resources: Resources | None,
) -> int:
    """Search hyper-parameters of a recipe.

    Every method brings its own space. The first trial has the recipe's own values. What is maximised
    is mIoU on a part of the training split that no trial trains on.
    """
    from harness.recipes.resolving import parse_overrides
    from harness.running.search.searching import search as searched

    done = searched(
        recipe,
        trials,
        overrides=parse_overrides(assignments),
        sampler=sampler,
        scheduler=scheduler,
        seed=seed,
        objective_split=objective_split,
        share=share,
        grid_points=grid_points,
        warm_start=warm_start,
        options=options,
        resources=resources,
        out=out,
        say=aside,
        display=StudyDisplay,
    )
    if done.importances:
        click.echo(f"\n{done.importances}\n")
    click.echo(listing.prose(done.verdict))
    if done.command:
        click.echo(f"  {done.command}")
    click.echo(f"  {done.folder}")
    if done.shown != str(done.folder):
        click.echo(f"  {done.shown}")
    if done.failed:
        click.echo(f"{done.failed} trials failed; run the same command to make up for them", err=True)
    return 1 if done.failed else 0


class StudyDisplay:
    """The board of a search: its trials, and how they ended; keeps the tables up to date."""

    def __init__(self, study: Study) -> None:
        from harness.running.watching.board import Board

        self.study = study
        states = ("finished", "pruned", "diverged", "failed")
        self.board = Board(study.wanted, states=states, again=("failed",))
        counts = study.counts()
        for state in ("finished", "pruned"):
            self.board.count(state, counts[state])
        study.on_end = self.end
        study.on_again = partial(self.board.write, style="yellow")

    def update(self, job: SearchJob, event: Event) -> None:
        """A trial has come to a step, or was measured."""
        from harness.running.watching.board import Work

        if event.status is not None and not event.ended:
            self.board.update(job.number, event.status, Work(job.label))

    def end(self, trial: FrozenTrial) -> None:
        """A trial has ended."""
        from harness.running.search.report import trial_state, write_tables

        state = trial_state(trial)
        values = " ".join(
            f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in trial.params.items()
        )
        at = "" if state == "finished" else f" at {max(trial.intermediate_values, default=0)} %"
        miou = "" if trial.value is None else f"{trial.value:.2f} mIoU{at}  "
        own = "own values  " if trial.user_attrs.get("own") else ""
        lines = [f"{state:8s} trial {trial.number}  {miou}{own}{values}"]
        if reason := trial.user_attrs.get("reason"):
            lines += [f"  {line}" for line in reason.splitlines()]
        self.board.end(trial.number, state, "\n".join(lines))
        write_tables(self.study)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self.board.close()
