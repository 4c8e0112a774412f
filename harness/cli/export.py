"""``wsss export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from harness.cli.completing import A_RECIPE
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
    of_every_seed,
    on_request,
    progress,
    said_by,
    together,
)
from harness.cli.usage import Verb, given_options, refuse

if TYPE_CHECKING:
    from harness.running.inference.deployment import WrittenModel
    from harness.running.inference.export import Exported


@click.command(
    "export",
    cls=Verb,
    epilog="""\b
Examples:
  wsss export dskd_gc/mini-image --output corrected --out labels/
        <id>.png pseudo labels of the training split, 255 where there is none
  wsss export agmm/cityscapes-100clicks-r50 --split val --output segmentation --encoding files --out upload/
        label maps in the data set's own numbers, 7 to 33, as its test server scores them
  wsss export cam/mini-image --format npy --out cams/
        <id>.npy: {class from 0 without background: (H, W) float32}, as SEAM writes them
  wsss export dskd_gc/voc-image-vitb --split test --format server --data-root ~/data --out submission/
        the archive that the VOC evaluation server takes; nobody else can score it
  wsss export cam/voc-image-r50 --every-seed --out labels/ --data-root ~/data --address auto
        labels/seed-N of every finished record, on a cluster; the same command again goes on
  wsss export agmm/mini-scribble --model --out deployed/
        the network: model.pt2 (torch.export), model.onnx where onnx is installed, model.json""",
)
@click.argument("recipe", metavar="RECIPE|RECORD|CHECKPOINT", shell_complete=A_RECIPE)
@click.option("--out", required=True, type=OutputPath(), help="Folder that is written.")
@click.option("--split", help="Which pictures [default: the recipe's training split; test for the server].")
@click.option(
    "--output",
    help="segmentation, or a pseudo label's name such as cam or refined [default: the only or first pseudo "
    "label; segmentation for the server].",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["png", "npy", "server"]),
    default="png",
    show_default=True,
    help="Palette label maps, activation maps as a dictionary, or the VOC server's archive.",
)
@click.option(
    "--model",
    is_flag=True,
    help="Write the network for deployment instead, with classes, palette and normalisation.",
)
@together(*TRAINED)
@click.option("--protocol", "protocol_name", help="Protocol of a segmentation [default: the recipe's].")
@ENCODING
@together(SET, DATA_ROOT, RESULTS, DEVICE, WORKERS_OPTION, *ON_REQUEST)
def export_verb(
    recipe: str,
    out: Path,
    split: str | None,
    output: str | None,
    form: Literal["png", "npy", "server"],
    model: bool,
    checkpoint: Path | None,
    table: str | None,
    seeds: tuple[int, ...],
    every_seed: bool,
    protocol_name: str | None,
    network: str,
    encoding: Literal["classes", "files"] | None,
    assignments: tuple[str, ...],
    data_roots: tuple[str, ...],
    results: Path | str,
    device: str,
    workers: int,
    ray: bool,
    max_concurrent: int | None,
    gpus_each: float | None,
    address: str | None,
) -> None:
    """Write predictions, pseudo labels or activation maps of a split in the field's exchange forms."""
    from harness.engine.outputs import check_scored
    from harness.recipes.resolving import parse_overrides, resolve
    from harness.records import origin
    from harness.running.inference.deployment import export_model
    from harness.running.inference.export import export, usual_output
    from harness.running.inference.several import export_models, export_seeds
    from harness.running.trials.trial import Options

    overrides = parse_overrides(assignments)
    options = Options(results=results, data_roots=data_roots, device=device, workers=workers)
    several = of_every_seed(seeds, every_seed)
    resources = on_request(ray, max_concurrent, gpus_each, address, options)
    named: dict[str, Any] = {"network": network}
    source: dict[str, Any] = {"checkpoint": checkpoint, "table": table, "seed": (*seeds, 0)[0]}
    if model:
        named["overrides"] = overrides
        if several == ():
            _say_model(export_model(recipe, out, **named, **source, results=results, say=aside))
            return
        for one in said_by(export_models(recipe, out, several, resources, options=options, **named)):
            _say_model(one.result)
        return
    _, recipe, overrides, checkpoint = origin.origin_of(recipe, overrides, checkpoint, options.store)
    if form != "npy" and output is None:
        resolved = resolve(recipe, overrides)
        check_scored(resolved, protocol=protocol_name, network=network)
        output = usual_output(resolved, form)
        _refuse_segmentation_options(output)
    named |= {"split": split, "output": output, "form": form, "encoding": encoding or "classes"}
    named |= {"protocol": protocol_name, "overrides": overrides, "options": options}
    if several == ():
        _say(export(recipe, out, **named, **source, say=aside, progress=progress("exporting")))
        return
    for one in said_by(export_seeds(recipe, out, several, resources, **named)):
        _say(one.result)


def _say(done: Exported) -> None:
    """What was written."""
    kept = f" ({done.kept} were there)" if done.kept else ""
    click.echo(f"{done.pictures} pictures of {done.dataset} {done.split} in {done.place}{kept}")
    if (done.dataset, done.split) == ("voc2012", "test"):
        click.echo("The masks of VOC 2012 test are not public: only its evaluation server can score this.")


def _say_model(done: WrittenModel) -> None:
    """What of the network was written."""
    for file in done.files:
        difference = done.differences.get(file.name)
        checked = "" if difference is None else f" (differs from the original by {difference:.1g})"
        click.echo(f"wrote {file}{checked}")
    for name, why in done.left_out.items():
        click.echo(f"not written: {name}: {why}", err=True)
    if not done.any_size:
        click.echo("pictures must have the size that model.json says: this network fixes it", err=True)


def _refuse_segmentation_options(output: str) -> None:
    """Options of a segmentation count for nothing where the default output is a pseudo label."""
    written = given_options(click.get_current_context())
    ignored = [written[name] for name in ("protocol_name", "network") if name in written]
    if output != "segmentation" and ignored:
        refuse(ignored, f"for pseudo labels, here {output!r}", "with --output segmentation", "export")
