"""``wsss data``: prepare, check, label and show data sets; generated data and miniature encoders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.basics.listing import prose
from harness.cli.completing import A_DATA_SET, A_RECIPE
from harness.cli.labels import labels_verb, show_labels_verb
from harness.cli.options import COUNT, DATA_ROOT, SEED_RANGE, SET, OutputPath, opened_dataset, together
from harness.cli.usage import Verb

if TYPE_CHECKING:
    from harness.data.base import Dataset
    from harness.data.prepare.label_report import Wanted

PROCESSES = click.option(
    "--workers", type=COUNT, default=0, show_default=True, help="Processes (checks: threads)."
)
SPLIT_OPTION = click.option(
    "--split", "splits", multiple=True, help="Only this split; repeatable [default: all here]."
)


@click.group("data")
def data_verb() -> None:
    """Prepare, check, label and show data sets."""


data_verb.add_command(labels_verb)
data_verb.add_command(show_labels_verb)


@data_verb.command(
    "prepare",
    cls=Verb,
    epilog="""\b
Examples:
  wsss data prepare coco2014 --data-root ~/data --workers 2
  wsss data prepare voc2012 --data-root ~/data --from ~/benchmark_RELEASE
What is written already is kept: the same command goes on where it stopped.""",
)
@click.argument("name", shell_complete=A_DATA_SET)
@together(DATA_ROOT, PROCESSES)
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path, exists=True),
    help="Folder of the official annotations (COCO's JSON files, SBD's dataset) [default: in the data root].",
)
def prepare_verb(name: str, data_roots: tuple[str, ...], workers: int, source: Path | None) -> None:
    """Build what is derived from official files, and say where to obtain those.

    COCO: label maps and image tags from the instances. VOC: SegmentationClassAug from SBD, after a check
    that no picture of val is trained on.
    """
    from harness.basics.errors import UserError
    from harness.basics.registry import DATASETS

    cls = DATASETS.get(name)
    try:
        dataset = opened_dataset(name, data_roots)
    except UserError:
        if cls.obtain:
            click.echo(f"{cls.info.title} may not be fetched for you. Obtain from {cls.info.homepage}:")
            click.echo(
                "".join(f"  - {line}\n" for line in cls.obtain) + f"and unpack below {cls.info.folder}\n"
            )
        raise
    dataset.prepare(source, workers, click.echo)


@data_verb.command(
    "verify",
    cls=Verb,
    epilog="""\b
Examples:
  wsss data verify voc2012 --data-root ~/data --workers 2
  wsss data verify coco2014 --data-root ~/data --split val --json coco.json
  wsss data verify own --data-root own=birds               with scribbles/, clicks.csv, boxes/, tags.csv
  wsss data verify own --data-root own=birds --for pce/own-scribble --set labels.format=labelme
Files that were sound and have not changed are not read again. Exit code 2 when something is wrong.""",
)
@click.argument("name", shell_complete=A_DATA_SET)
@together(DATA_ROOT, SPLIT_OPTION, PROCESSES)
@click.option(
    "--for",
    "recipe",
    shell_complete=A_RECIPE,
    metavar="RECIPE",
    help="Read the weak labels too that a run of it would train on [default: of your own data, those that "
    "lie where the own-* recipes look for them].",
)
@SET
@click.option(
    "--json", "file", type=OutputPath(file=True, dash=True), help="Write all offenders here; - prints them."
)
def verify_verb(
    name: str,
    data_roots: tuple[str, ...],
    splits: tuple[str, ...],
    workers: int,
    recipe: str | None,
    assignments: tuple[str, ...],
    file: Path | None,
) -> int:
    """Check every file against the official numbers; report the first offenders and a fingerprint.

    Weak labels are read as a run reads them: what it would refuse is refused, in its words.
    """
    from harness.basics.files import cache_folder, write_json
    from harness.data.prepare.report import verify_dataset as check

    dataset = opened_dataset(name, data_roots)
    labels = _wanted(dataset, recipe, assignments)
    chosen = [one for one in labels if not splits or one.split in splits]
    report = check(dataset, cache=cache_folder(), workers=workers, splits=splits or None, labels=chosen)
    if file == Path("-"):
        click.echo(json.dumps(report.as_json(), indent=1))
        return 0 if report.sound else 2
    for line in report.lines():
        text = line.lstrip()
        indent = " " * (len(line) - len(text))
        click.echo(prose(text, first=indent, indent=f"{indent}  "))
    if file is not None:
        write_json(file, report.as_json())
    return 0 if report.sound else 2


def _wanted(dataset: Dataset, recipe: str | None, assignments: tuple[str, ...]) -> list[Wanted]:
    """The labels to look at: those of a recipe, else those that lie where recipes for own pictures look."""
    from harness.data.prepare.label_report import Wanted
    from harness.data.sets.own import is_own
    from harness.recipes.given import one
    from harness.recipes.resolving import awaits_pictures, parse_overrides, recipe_names, resolve
    from harness.running.trials.trial import is_recipe

    on = {"dataset": dataset.info.name}
    if recipe is not None:
        asked = one(recipe, {**parse_overrides(assignments), **on})
        found = resolve(asked.name, asked.overrides).recipe
        source = found.labels_from
        if source is not None and is_recipe(source):  # it is trained first, on labels of its own
            found, source = resolve(source.partition(":")[0], on).recipe, None
        return [Wanted(found.train_split, found.supervision, found.labels, source)]
    if not is_own(dataset.info.name):
        return []
    usual: dict[str, Wanted] = {}
    for name in filter(awaits_pictures, recipe_names()):
        found = resolve(name, on).recipe
        wanted = Wanted(found.train_split, found.supervision, found.labels)
        if wanted.split in dataset.info.splits and wanted.is_here(dataset):
            usual.setdefault(wanted.kind, wanted)
    return list(usual.values())


@data_verb.command("miniature", cls=Verb, epilog="\b\nExample:\n  wsss data miniature cityscapes small/")
@click.argument("name", shell_complete=A_DATA_SET)
@click.argument("folder", type=OutputPath())
@click.option(
    "--train", type=click.IntRange(1, 100_000), default=8, show_default=True, help="Training pictures."
)
@click.option(
    "--val", type=click.IntRange(1, 100_000), default=4, show_default=True, help="Validation pictures."
)
@click.option("--seed", type=SEED_RANGE, default=0, show_default=True, help="Of the scenes.")
def miniature_verb(name: str, folder: Path, train: int, val: int, seed: int) -> None:
    """Write generated scenes in a data set's official layout, to try commands on (voc2012, coco2014, ...)."""
    from harness.data.prepare.miniatures import write_miniature

    root = write_miniature(name, folder, train=train, val=val, seed=seed)
    click.echo(f"written; use it with --data-root {root}")


@data_verb.command("mini", cls=Verb, epilog="\b\nExample:\n  wsss data mini")
def mini_verb() -> None:
    """Generate the miniature data set (once) and say where it is."""
    from harness.basics.files import cache_folder
    from harness.data.sets.mini import Mini

    dataset = Mini.locate(None, cache_folder())
    counts = ", ".join(f"{split} {len(dataset.ids(split))}" for split in dataset.info.splits)
    click.echo(f"{dataset.root}\n{counts}")


@data_verb.command(
    "pretrain-mini",
    cls=Verb,
    epilog="""\b
Example:
  wsss data pretrain-mini mini_cnn --out weights/
The file that ships with this project was made by this command with seed 0.""",
)
@click.argument("encoder", default="mini_cnn")
@click.option(
    "--out",
    type=OutputPath(),
    default=Path("weights"),
    show_default=True,
    help="Folder for <encoder>.safetensors and weights.json.",
)
@click.option(
    "--seed",
    type=SEED_RANGE,
    default=0,
    show_default=True,
    help="Of pictures, weights, order and augmentation.",
)
@click.option(
    "--steps", type=click.IntRange(1, 10**9), help="Optimiser steps [default: the encoder's own number]."
)
def pretrain_mini_verb(encoder: str, out: Path, seed: int, steps: int | None) -> None:
    """Train a miniature encoder as a classifier on generated single-object pictures.

    It plays the part that ImageNet plays in the papers.
    """
    from harness.engine.mini_pretraining import pretrain

    pretrain(encoder, out=out, seed=seed, steps=steps, report=click.echo)
