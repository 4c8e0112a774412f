"""``wsss run``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from harness.commands.options import SET, execution

if TYPE_CHECKING:
    from harness.execution import Resources
    from harness.trial import Options


@click.command(
    epilog="""\b
Examples:
  wsss run mini                                     the miniature suite, three seeds
  wsss run agmm/mini-scribble --seeds 1 --local     one trial in this process
  wsss run 'agmm/voc-*' --data-root ~/data --gpus-per-trial 1
  wsss run agmm/voc-point-r101 --set batch.groups=1 --set batch.per_group=16

Exit codes: 0 all finished, 1 some failed, 2 refused before training, 130 interrupted.
Running the same command again goes on where it stopped and repeats nothing."""
)
@click.argument("targets", nargs=-1, required=True, metavar="RECIPE|SUITE...")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Seeds 0 .. N-1.")
@click.option(
    "--seed", "chosen", type=click.IntRange(0), multiple=True, help="These seeds instead; repeatable."
)
@SET
@execution
@click.option("--save-predictions", is_flag=True, help="Keep palette PNGs of all evaluated pictures.")
def run(
    targets: tuple[str, ...],
    seeds: int,
    chosen: tuple[int, ...],
    assignments: tuple[str, ...],
    save_predictions: bool,
    options: Options,
    resources: Resources | None,
) -> int:
    """Train, evaluate and record recipes or suites.

    TARGETS are recipes (agmm/mini-scribble), globs ('*/mini-*') or suites (mini). Everything that
    can go wrong before training is checked first: data, labels, weights, configuration.
    """
    from harness.execution import execute, plan
    from harness.recipes import parse_overrides

    trials = plan(targets, chosen or range(seeds), parse_overrides(assignments))
    outcomes = execute(trials, replace(options, save_predictions=save_predictions), resources)
    failed = [o for o in outcomes if o.status == "failed"]
    if failed:
        click.echo(
            f"{len(failed)} of {len(outcomes)} trials failed; run the same command to try them again",
            err=True,
        )
    return 1 if failed else 0
