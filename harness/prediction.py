"""Segmentation of any pictures with a trained network: palette PNGs and overlays."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from harness import evaluation
from harness.data.images import read_rgb, save_index
from harness.errors import UserError
from harness.files import whole_file
from harness.networks import load_network
from harness.recipes import resolve
from harness.registry import DATASETS
from harness.runs.trial import choose_device


def segment(
    recipe: str,
    files: Sequence[Path],
    out: Path,
    *,
    checkpoint: Path,
    table: str | None = None,
    protocol: str | None = None,
    network: str = "default",
    overrides: Mapping[str, Any] | None = None,
    device: str = "auto",
    say: Callable[[str], None] = warnings.warn,
) -> Iterator[Path]:
    """Segment pictures; yields each label map's path when it is written.

    Args:
        recipe: the recipe that the network was trained with.
        files: pictures of any size.
        out: folder for ``<name>.png`` (palette label map) and ``<name>_overlay.png``.
        checkpoint: weights of this project, or with ``table`` another code's.
        table: name of a key table of the method.
        protocol: protocol name, the recipe's first evaluation's by default.
        network: which of the method's networks.
        overrides: recipe overrides that the network was trained with.
        device: ``auto``, ``cpu``, ``cuda``.
        say: is told what was assumed of the checkpoint, see :func:`harness.networks.load_network`.

    Raises:
        UserError: a picture cannot be decoded, two have the same name, or the weights do not fit.
    """
    names = [f.stem for f in files]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise UserError(f"two pictures are called {twice!r}", remedy="predict them into different folders")
    resolved = resolve(recipe, overrides)
    usual = resolved.recipe.usual_evaluation.protocol
    info = DATASETS.get(resolved.recipe.dataset).info
    on = choose_device(device)
    method = load_network(resolved, on, checkpoint, table, say=say)
    p = evaluation.protocol(protocol or usual)
    for file in files:
        image = read_rgb(file)
        raw = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).to(on)
        labels = evaluation.label_map(method, raw, p, network=network, name=str(file))
        save_index(out / f"{file.stem}.png", labels, info.palette)
        blended = Image.fromarray(overlay(image, labels, info.palette, info.background))
        with whole_file(out / f"{file.stem}_overlay.png", "wb") as stream:
            blended.save(stream, format="PNG")
        yield out / f"{file.stem}.png"


def overlay(
    image: np.ndarray,
    labels: np.ndarray,
    palette: Sequence[Sequence[int]],
    background: int | None,
    alpha: float = 0.55,
) -> np.ndarray:
    """Class colours laid over a picture; background stays as it is.

    Args:
        image: ``(H, W, 3)`` uint8.
        labels: ``(H, W)`` uint8.
        palette: ``(K, 3)`` colours.
        background: label left transparent, None for none.
        alpha: share of the class colour.
    """
    colours = np.zeros((256, 3), dtype=np.float32)
    colours[: len(palette)] = palette
    mixed = (1 - alpha) * image + alpha * colours[labels]
    if background is not None:
        mixed[labels == background] = image[labels == background]
    return mixed.round().astype(np.uint8)
