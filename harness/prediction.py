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
from harness.names import check_scored
from harness.networks import load_network
from harness.recipes import resolve
from harness.registry import DATASETS
from harness.runs.trial import choose_device
from harness.scoring import recorded_checkpoint
from harness.store.records import Store

#: Endings of pictures in a folder.
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def predict(
    recipe: str,
    pictures: Sequence[Path],
    out: Path,
    *,
    checkpoint: Path | None = None,
    seed: int = 0,
    table: str | None = None,
    protocol: str | None = None,
    network: str = "default",
    overrides: Mapping[str, Any] | None = None,
    results: Path | str = "results",
    device: str = "auto",
    say: Callable[[str], None] = warnings.warn,
) -> Iterator[Path]:
    """Segment pictures; yields each label map's path when it is written.

    Args:
        recipe: the recipe that the network was trained with.
        pictures: of any size, or folders of them.
        out: folder for ``<name>.png`` (palette label map) and ``<name>_overlay.png``.
        checkpoint: weights of this project, or with ``table`` another code's; those of the finished record
            by default.
        seed: whose record.
        table: name of a key table of the method.
        protocol: protocol name, the recipe's first evaluation's by default.
        network: which of the method's networks.
        overrides: recipe overrides that the network was trained with.
        results: where the record is; a folder or a URI.
        device: ``auto``, ``cpu``, ``cuda``.
        say: is told what was assumed of the checkpoint, see :func:`harness.networks.load_network`.

    Raises:
        UserError: there is no such record, a picture cannot be decoded, two have the same name, or the
            weights do not fit.
    """
    overrides = dict(overrides or {})
    resolved = resolve(recipe, overrides)
    check_scored(resolved, protocol=protocol, network=network, table=table)
    on = choose_device(device)
    file = checkpoint or recorded_checkpoint(recipe, seed, Store(results), overrides)
    files = list_pictures(pictures)
    names = [f.stem for f in files]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise UserError(f"two pictures are called {twice!r}", remedy="predict them into different folders")
    info = DATASETS.get(resolved.recipe.dataset).info
    method = load_network(resolved, on, file, table, say=lambda note: say(f"note: {note}"))
    p = evaluation.protocol(protocol or resolved.recipe.usual_evaluation.protocol)
    for picture in files:
        image = read_rgb(picture)
        raw = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).to(on)
        labels = evaluation.label_map(method, raw, p, network=network, name=str(picture))
        save_index(out / f"{picture.stem}.png", labels, info.palette)
        blended = Image.fromarray(overlay(image, labels, info.palette, info.background))
        with whole_file(out / f"{picture.stem}_overlay.png", "wb") as stream:
            blended.save(stream, format="PNG")
        yield out / f"{picture.stem}.png"


def list_pictures(paths: Sequence[Path]) -> list[Path]:
    """Picture files, folders opened one level deep. Raises UserError for what is missing or empty."""
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise UserError("no such picture or folder", where=path)
        inside = (
            sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURES) if path.is_dir() else [path]
        )
        if not inside:
            raise UserError(
                "the folder holds no pictures", where=path, remedy=f"accepted: {', '.join(PICTURES)}"
            )
        files += inside
    return files


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
