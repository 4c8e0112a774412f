"""``wsss export``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.commands.options import DATA_ROOT, DEVICE, RESULTS, SET, TRAINED, WORKERS, together
from harness.commands.usage import Verb, given, refuse
from harness.errors import UserError

if TYPE_CHECKING:
    import numpy as np


@click.command(
    cls=Verb,
    epilog="""\b
Examples:
  wsss export dskd_gc/mini-image --output corrected --out labels/
        <id>.png pseudo labels of the training split, 255 where there is none
  wsss export cam/mini-image --format npy --out cams/
        <id>.npy: {class from 0 without background: (H, W) float32}, as SEAM writes them
  wsss export dskd_gc/voc-image-vitb --split test --format server --data-root ~/data --out submission/
        the archive that the VOC evaluation server takes; nobody else can score it""",
)
@click.argument("recipe")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder that is written."
)
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
@together(*TRAINED)
@click.option("--protocol", "protocol_name", help="Protocol of a segmentation [default: the recipe's].")
@together(SET, DATA_ROOT, RESULTS, DEVICE, WORKERS)
def export(
    recipe: str,
    out: Path,
    split: str | None,
    output: str | None,
    form: str,
    checkpoint: Path | None,
    table: str | None,
    seed: int,
    protocol_name: str | None,
    network: str,
    assignments: tuple[str, ...],
    data_roots: tuple[str, ...],
    results: Path | str,
    device: str,
    workers: int,
) -> None:
    """Write predictions, pseudo labels or activation maps of a split in the field's exchange forms."""
    from tqdm import tqdm

    from harness import evaluation, provenance
    from harness import export as forms
    from harness.commands.score import recorded_checkpoint
    from harness.data.verify import preflight
    from harness.files import cache_folder, sha256_of, write_json
    from harness.names import check_scored
    from harness.networks import load_network
    from harness.recipes import parse_overrides, resolve
    from harness.runs.trial import choose_device, open_dataset

    overrides = parse_overrides(assignments)
    resolved = resolve(recipe, overrides)
    name = resolved.recipe.dataset
    check_scored(
        resolved,
        split=split,
        protocol=protocol_name,
        network=network,
        table=table,
        output=None if form == "npy" else output,
    )
    on = choose_device(device)
    split = split or ("test" if form == "server" else resolved.recipe.train_split)
    if form == "server" and name != "voc2012":
        raise UserError(f"{name} has no evaluation server of this form", where="--format server")
    if checkpoint is None:
        checkpoint = recorded_checkpoint(recipe, seed, results, overrides)
    dataset = open_dataset(name, data_roots, cache_folder())
    fingerprint = preflight(dataset, [split], cache=cache_folder(), workers=workers, pictures_only=[split])[
        split
    ]
    notes: list[str] = []
    method = load_network(resolved, on, checkpoint, table, say=notes.append)
    for note in notes:
        click.echo(f"note: {note}", err=True)
    protocol_name = protocol_name or resolved.recipe.usual_evaluation.protocol
    protocol = evaluation.protocol(protocol_name)
    facts: dict[str, Any] = {
        "recipe": recipe,
        "overrides": overrides,
        "split": split,
        "format": form,
        "checkpoint_sha256": sha256_of(checkpoint),
        "data_fingerprint": fingerprint,
        "code": provenance.code(),
        "notes": notes,
    }
    if form == "npy":
        if output not in (None, "cam"):
            raise UserError(f"{output!r} is no activation map", where="--output", remedy="leave it out")
        maps = forms.activation_maps(method, dataset, split, device=on, workers=workers)
        written = forms.write_maps(maps, out)
    else:
        if output is None:
            output = _usual_output(method, form, dataset.info.num_classes)
            _refuse_segmentation_options(output)
        found = evaluation.predictions(
            method, dataset, split, protocol, network=network, output=output, device=on, workers=workers
        )
        labels: Iterator[tuple[str, np.ndarray]] = ((i, label) for i, label, _ in found)
        write = forms.write_labels if form == "png" else forms.write_archive
        written = write(labels, out, dataset.info)
        facts["output"] = output
        if output == "segmentation":
            facts |= {"protocol": protocol_name, "network": network}
    number = sum(1 for _ in tqdm(written, total=len(dataset.ids(split)), unit="picture", disable=None))
    write_json(out / "export.json", {**facts, "pictures": number})
    click.echo(f"{number} pictures of {name} {split} in {out / forms.ARCHIVE if form == 'server' else out}")
    if name == "voc2012" and split == "test":
        click.echo("The masks of VOC 2012 test are not public: only its evaluation server can score this.")


def _refuse_segmentation_options(output: str) -> None:
    """Options of a segmentation count for nothing where the default output is a pseudo label."""
    written = given(click.get_current_context())
    ignored = [written[name] for name in ("protocol_name", "network") if name in written]
    if output != "segmentation" and ignored:
        refuse(ignored, f"for pseudo labels, here {output!r}", "with --output segmentation", "export")


def _usual_output(method: Any, form: str, classes: int) -> str:
    """The output where none is named: the first pseudo label, or the segmentation."""
    import torch

    if form == "server":
        return "segmentation"
    place = next(method.parameters()).device
    blank = torch.zeros(1, 3, 64, 64, device=place)
    given = list(method.pseudo_labels(blank, torch.zeros(1, classes, device=place)))
    return given[0] if given else "segmentation"
