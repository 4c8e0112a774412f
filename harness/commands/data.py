"""``wsss data``: generated data and the miniature encoders."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def data() -> None:
    """Generated data and pretrained miniature encoders."""


@data.command(epilog="\b\nExample:\n  wsss data mini")
def mini() -> None:
    """Generate the miniature data set (once) and say where it is."""
    from harness.data.mini import Mini
    from harness.files import cache_folder

    dataset = Mini.locate(None, cache_folder())
    counts = ", ".join(f"{split} {len(dataset.ids(split))}" for split in dataset.info.splits)
    click.echo(f"{dataset.root}\n{counts}")


@data.command(
    name="pretrain-mini",
    epilog="""\b
Example:
  wsss data pretrain-mini mini_cnn --out weights/
The file that ships with this project was made by this command with seed 0.""",
)
@click.argument("encoder", default="mini_cnn")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("weights"),
    show_default=True,
    help="Folder for <encoder>.safetensors and weights.json.",
)
@click.option("--seed", default=0, show_default=True, help="Of pictures, weights, order and augmentation.")
@click.option("--steps", type=click.IntRange(1), help="Optimiser steps [default: the encoder's own number].")
def pretrain_mini(encoder: str, out: Path, seed: int, steps: int | None) -> None:
    """Train a miniature encoder as a classifier on generated single-object pictures.

    It plays the part that ImageNet plays in the papers.
    """
    from harness.nn.mini_pretraining import pretrain

    pretrain(encoder, out=out, seed=seed, steps=steps, report=click.echo)
