"""One picture in, one label map out: a trained network for scripts and notebooks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from harness.basics.errors import UserError
from harness.basics.registry import DATASETS
from harness.data.images import Exif, read_rgb, rgb_of
from harness.data.sets.own import register
from harness.engine.networks import load_network
from harness.engine.outputs import check_scored
from harness.evaluation import tiling
from harness.recipes import protocols
from harness.recipes.resolving import resolve
from harness.records import origin
from harness.records.records import Store
from harness.running.inference.scoring import recorded_checkpoint
from harness.running.trials.trial import choose_device


class Segmenter:
    """A trained network that segments pictures, loaded once; ``wsss predict`` does the same to files.

    Args:
        source: a recipe, a finished record (its folder or ``record.json``), or a checkpoint.
        checkpoint: of a recipe: other weights than those of its finished record.
        seed: of a recipe: whose record.
        table: name of a key table of the method, for a checkpoint of another code.
        protocol: protocol name; by default that of the recipe's first evaluation.
        network: which of the method's networks.
        overrides: of a recipe: what the network was trained with; of others: what only inference reads.
        results: where records are; a folder or a URI.
        data_roots: ``NAME=PATH`` of own data sets that the recipe names.
        device: ``auto``, ``cpu``, ``cuda``.
        say: is told what was assumed of the checkpoint.

    Attributes:
        classes: names of the classes, in the order of their numbers.
        palette: ``(K, 3)`` colours, 0..255.
        exif: whether pictures are turned as their EXIF orientation says.

    Raises:
        UserError: there is no such record, or the weights do not fit.
    """

    def __init__(
        self,
        source: str | Path,
        *,
        checkpoint: Path | None = None,
        seed: int = 0,
        table: str | None = None,
        protocol: str | None = None,
        network: str = "default",
        overrides: Mapping[str, Any] | None = None,
        results: Path | str = "results",
        data_roots: Sequence[str] = (),
        device: str = "auto",
        say: Callable[[str], None] = warnings.warn,
    ) -> None:
        register(data_roots)
        store = Store(results)
        came, recipe, overrides, checkpoint = origin.origin_of(source, overrides, checkpoint, store)
        with origin.standing_in(came):
            resolved = resolve(recipe, overrides)
            check_scored(resolved, protocol=protocol, network=network, table=table)
            self.device = choose_device(device)
            file = checkpoint or recorded_checkpoint(recipe, seed, store, overrides)
            known = DATASETS.get(resolved.recipe.dataset)
            self.classes, self.palette = known.info.classes, known.info.palette
            self.exif = known.exif
            self.method = load_network(resolved, self.device, file, table, say=say)
            self.network = network
            self.protocol = protocols.protocol(protocol or resolved.recipe.usual_evaluation.protocol)

    def __call__(self, image: Image.Image | np.ndarray | str | Path) -> np.ndarray:
        """Segment a picture.

        Args:
            image: a PIL image, an ``(H, W, 3)`` uint8 array, or a file. What a camera says of its orientation
                is read as in training.

        Returns:
            ``(H, W)`` uint8 label map, ``0..K-1``.

        Raises:
            UserError: it is no picture of 8-bit colours.
        """
        pixels = _rgb(image, self.exif)
        height, width = pixels.shape[:2]
        side = tiling.tile_side(height, width, len(self.classes), self.protocol)
        return tiling.segment(
            self.method, pixels, self.protocol, device=self.device, network=self.network, side=side
        )

    def coloured(self, labels: np.ndarray) -> Image.Image:
        """A label map ``(H, W)`` as a palette picture in the data set's colours."""
        picture = Image.fromarray(labels.astype(np.uint8), mode="P")
        picture.putpalette([value for colour in self.palette for value in colour])
        return picture


def _rgb(image: Any, exif: Exif) -> np.ndarray:
    """``(H, W, 3)`` uint8."""
    if isinstance(image, str | Path):
        return read_rgb(Path(image), exif)
    if isinstance(image, Image.Image):
        return rgb_of(image, exif, "wsss.Segmenter")
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] == (3,) and image.size:
        return image
    found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    raise UserError(
        f"{found} is no picture",
        where="wsss.Segmenter",
        remedy="pass a PIL image, an (H, W, 3) uint8 array, or the path of a file",
    )
