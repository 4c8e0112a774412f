"""``wsss run``."""

from __future__ import annotations

from pathlib import Path

import click

from harness.commands.options import DATA_ROOT, DEVICE, RESULTS, SET, WORKERS, together


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
@together(SET, DATA_ROOT, RESULTS, DEVICE, WORKERS)
@click.option("--local", is_flag=True, help="One after another in this process, without Ray.")
@click.option("--max-concurrent", type=click.IntRange(1), help="Most trials at a time.")
@click.option("--cpus-per-trial", type=click.FloatRange(0.1), help="Cores per trial [default: workers + 1].")
@click.option(
    "--gpus-per-trial",
    type=click.FloatRange(0),
    help="GPUs per trial; a fraction lets trials share one [default: 1 with CUDA, else 0].",
)
@click.option("--address", help="Join this Ray cluster instead of starting a local one.")
@click.option(
    "--threads", type=click.IntRange(1), default=1, show_default=True, help="CPU threads per trial."
)
@click.option(
    "--checkpoint-seconds",
    type=click.FloatRange(0),
    default=60.0,
    show_default=True,
    help="Least time between checkpoints.",
)
@click.option("--save-predictions", is_flag=True, help="Keep palette PNGs of all evaluated pictures.")
def run(
    targets: tuple[str, ...],
    seeds: int,
    chosen: tuple[int, ...],
    assignments: tuple[str, ...],
    data_roots: tuple[str, ...],
    results: Path,
    device: str,
    workers: int,
    local: bool,
    max_concurrent: int | None,
    cpus_per_trial: float | None,
    gpus_per_trial: float | None,
    address: str | None,
    threads: int,
    checkpoint_seconds: float,
    save_predictions: bool,
) -> int:
    """Train, evaluate and record recipes or suites.

    TARGETS are recipes (agmm/mini-scribble), globs ('*/mini-*') or suites (mini). Everything that
    can go wrong before training is checked first: data, labels, weights, configuration.
    """
    from harness.execution import Resources, execute, plan
    from harness.recipes import parse_overrides
    from harness.trial import Options, choose_device

    options = Options(
        results=results.absolute(),
        data_roots=tuple(_absolute(r) for r in data_roots),
        device=device,
        workers=workers,
        threads=threads,
        checkpoint_seconds=checkpoint_seconds,
        save_predictions=save_predictions,
    )
    cuda = choose_device(device).type == "cuda"
    trials = plan(targets, chosen or range(seeds), parse_overrides(assignments))
    resources = Resources(
        cpus_per_trial=cpus_per_trial or workers + 1,
        gpus_per_trial=(1.0 if cuda else 0.0) if gpus_per_trial is None else gpus_per_trial,
        max_concurrent=max_concurrent,
        address=address,
    )
    outcomes = execute(trials, options, None if local else resources)
    failed = [o for o in outcomes if o.status == "failed"]
    if failed:
        click.echo(
            f"{len(failed)} of {len(outcomes)} trials failed; run the same command to try them again",
            err=True,
        )
    return 1 if failed else 0


def _absolute(root: str) -> str:
    """Workers may stand in another folder: make the path of ``[NAME=]DIR`` absolute."""
    name, equals, path = root.partition("=")
    if equals and not Path(root).exists():
        return f"{name}={Path(path).expanduser().absolute()}"
    return str(Path(root).expanduser().absolute())
