"""``wsss evaluate`` and ``wsss predict``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.basics import listing
from harness.basics.errors import UserError
from harness.basics.text import one_line
from harness.cli.completing import A_DATA_SET, A_RECIPE
from harness.cli.options import (
    DATA_ROOT,
    DEVICE,
    ENCODING,
    ON_REQUEST,
    RESULTS,
    SET,
    TRAINED,
    WORKERS_OPTION,
    OutputPath,
    aside,
    ended,
    left_out,
    of_every_seed,
    on_request,
    progress,
    said_by,
    together,
    undecided,
)
from harness.cli.usage import Verb

if TYPE_CHECKING:
    from harness.data.numbering import Numbering
    from harness.running.inference.scoring import Scored


@click.command(
    "evaluate",
    cls=Verb,
    epilog="""\b
Examples:
  wsss evaluate --predictions out/ --dataset voc2012 --split val --data-root ~/data
        any folder of <id>.png label maps, from any code base
  wsss evaluate --predictions out/ --dataset ade20k --encoding files --data-root ~/data
        label maps in the numbers of the data set's own files, 1 to 150
  wsss evaluate agmm/mini-scribble --protocol agmm-voc
        adds a protocol to finished records, without training
  wsss evaluate agmm/voc-point-r101 --protocol agmm-voc --data-root ~/data --address auto
        the same on a cluster, a GPU for each record; the same command again goes on
  wsss evaluate cam/mini-image --split train --output cam --set config.background_score=0.2
        another threshold of the trained network's maps: an evaluation of its own
  wsss evaluate agmm/voc-point-r101 --checkpoint resnet101_67.80.pth --table agmm-sass --data-root ~/data
        scores a checkpoint that the authors' code saved""",
)
@click.argument("recipe", required=False, shell_complete=A_RECIPE)
@click.option("--predictions", type=click.Path(path_type=Path), help="Folder of <id>.png label maps.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="A trained network's file.")
@click.option("--table", help="Whose checkpoint it is; this project's own by default.")
@click.option("--dataset", shell_complete=A_DATA_SET, help="With --predictions: which data set.")
@click.option("--split", help="Split to score [default: the recipe's, or val].")
@click.option("--protocol", "protocol_name", help="Protocol [default: the recipe's].")
@click.option("--network", default="default", show_default=True, help="Which of the method's networks.")
@click.option("--output", default="segmentation", show_default=True, help="Or a pseudo label's name.")
@click.option("--save", type=OutputPath(), help="With --checkpoint: keep counts and predictions here.")
@ENCODING
@together(SET, DATA_ROOT, RESULTS, DEVICE, WORKERS_OPTION, *ON_REQUEST)
def evaluate_verb(
    recipe: str | None,
    predictions: Path | None,
    checkpoint: Path | None,
    table: str | None,
    dataset: str | None,
    split: str | None,
    protocol_name: str | None,
    network: str,
    output: str,
    save: Path | None,
    encoding: Numbering | None,
    assignments: tuple[str, ...],
    data_roots: tuple[str, ...],
    results: Path | str,
    device: str,
    workers: int,
    ray: bool,
    max_concurrent: int | None,
    gpus_each: float | None,
    address: str | None,
) -> int:
    """Score a folder of predictions, a checkpoint, or finished records by another protocol."""
    from harness.data.sets.roots import open_dataset
    from harness.recipes.resolving import parse_overrides
    from harness.running.inference.scoring import evaluate as scored
    from harness.running.inference.scoring import score_predictions
    from harness.running.trials.trial import Options

    options = Options(results=results, data_roots=data_roots, device=device, workers=workers)
    if predictions is not None:
        if dataset is None:
            raise UserError("which data set?", where="--dataset", remedy="add --dataset NAME")
        opened = open_dataset(dataset, data_roots, options.cache)
        _print(score_predictions(opened, predictions, split or "val", encoding, say=aside))
        return 0
    if recipe is None:
        raise UserError("nothing to score", remedy="name a recipe, or a folder with --predictions")
    store = options.store
    for one in scored(
        recipe,
        split=split,
        protocol=protocol_name,
        network=network,
        output=output,
        overrides=parse_overrides(assignments),
        checkpoint=checkpoint,
        table=table,
        save=save,
        encoding=encoding or "classes",
        options=options,
        resources=on_request(ray, max_concurrent, gpus_each, address, options),
        store=store,
        say=aside,
        progress=progress("scoring"),
    ):
        _print(one)
    return ended(store)


def _print(scored: Scored) -> None:
    figures = scored.figures
    rows = [
        (name, "absent" if value is None else f"{value:.2f}")
        for name, value in zip(figures["classes"], figures["iou"], strict=True)
    ]
    click.echo(listing.heading(scored.title))
    click.echo(listing.fitted_table(rows, ("class", "IoU (%)"), right=(1,)))
    miou = "undefined" if figures["miou"] is None else f"{figures['miou']:.2f}"
    click.echo(f"mIoU {miou} over {len(rows) - len(figures['absent'])} classes, {figures['images']} pictures")
    undecided(figures.get("coverage"))


@click.command(
    "predict",
    cls=Verb,
    epilog="""\b
Examples:
  wsss predict agmm/mini-scribble pictures/ --out predictions/
        the network of a finished record; folders within pictures/ are mirrored
  wsss predict results/agmm/mini-scribble/3f9c.../seed-0 pictures/
  wsss predict last.pt pictures/
        a record or a checkpoint says what it is: recipe, overrides, classes and colours
  wsss predict agmm/voc-point-r101 pictures/ --every-seed --address auto --out predictions/
        predictions/seed-N by the network of every finished record, on a cluster
  wsss predict pce/voc-scribble-r101 pictures/ --set dataset=birds --data-root birds=~/birds
  wsss predict agmm/voc-point-r101 a.jpg b.jpg --checkpoint model.pth --table agmm-sass --out predictions/

The same command again goes on where it stopped. Exit codes: 0 done, 1 done, and pictures that cannot be read
were left out, 2 refused: nothing is ever written over a picture or over other results.""",
)
@click.argument("source", metavar="RECIPE|RECORD|CHECKPOINT", shell_complete=A_RECIPE)
@click.argument("pictures", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=OutputPath(),
    default=Path("predictions"),
    show_default=True,
    help="Folder for <name>.png and <name>_overlay.png.",
)
@click.option("--scores", is_flag=True, help="Also <name>.npz: probabilities, scores (K, H, W) float16.")
@click.option(
    "--tile",
    type=click.IntRange(0, 1 << 16),
    help="Side of tiles that larger pictures are cut into; 0 for none [default: as large as memory of about "
    "2 GiB allows, for pictures that need more].",
)
@together(*TRAINED)
@click.option("--protocol", "protocol_name", help="Protocol [default: the recipe's].")
@together(SET, DATA_ROOT, RESULTS, DEVICE, *ON_REQUEST)
def predict_verb(
    source: str,
    pictures: tuple[Path, ...],
    out: Path,
    scores: bool,
    tile: int | None,
    checkpoint: Path | None,
    table: str | None,
    seeds: tuple[int, ...],
    every_seed: bool,
    protocol_name: str | None,
    network: str,
    assignments: tuple[str, ...],
    data_roots: tuple[str, ...],
    results: Path | str,
    device: str,
    ray: bool,
    max_concurrent: int | None,
    gpus_each: float | None,
    address: str | None,
) -> int:
    """Segment pictures: palette PNGs and overlays. PICTURES are files or folders."""
    from harness.recipes.resolving import parse_overrides
    from harness.running.inference.prediction import predict
    from harness.running.inference.several import predict_seeds
    from harness.running.trials.trial import Options

    named: dict[str, Any] = {"protocol": protocol_name, "network": network, "scores": scores, "tile": tile}
    named["overrides"] = parse_overrides(assignments)
    options = Options(results=results, data_roots=data_roots, device=device)
    resources = on_request(ray, max_concurrent, gpus_each, address, options)
    several = of_every_seed(seeds, every_seed)
    if several != ():
        broken = 0
        for one in said_by(
            predict_seeds(source, pictures, out, several, resources, options=options, **named)
        ):
            _written(one.result, one.folder)
            broken += len(one.left_out)
        return 1 if broken else 0
    wrong: dict[Path, UserError] = {}
    files = predict(
        source,
        pictures,
        out,
        checkpoint=checkpoint,
        seed=(*seeds, 0)[0],
        table=table,
        results=results,
        data_roots=data_roots,
        device=device,
        left_out=wrong,
        say=aside,
        progress=progress("predicting"),
        **named,
    )
    _written(files, out)
    left_out({one_line(str(path), 4096): error for path, error in wrong.items()})
    return 1 if wrong else 0


def _written(files: Iterable[Path], out: Path) -> None:
    """Name the label maps as they are written, and then where they are."""
    number = 0
    for file in files:
        click.echo(one_line(str(file), 4096))
        number += 1
    aside(f"{number} pictures predicted into {one_line(str(out), 4096)}")
