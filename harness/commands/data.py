"""``wsss data``: generated data and the miniature encoders."""

from __future__ import annotations

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
