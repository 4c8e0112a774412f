"""Small pictures for the comparison of rows: a picture, its truth, and what each row predicts of it."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from harness.basics.errors import UserError
from harness.basics.files import cache_folder
from harness.data.base import Dataset
from leaderboards.plots.qualitative import kept, predicted
from leaderboards.rows.row import Row

#: Longest side in pixels.
SIDE = 112
#: Pictures of one evaluation, at most.
MOST_THUMBNAILS = 40
#: Pixels that networks may predict for one evaluation; predictions that a run kept cost nothing.
_PIXELS = 10_000_000


@dataclass(frozen=True)
class Thumbnails:
    """Pictures of one evaluation, each an image in a ``data:`` address.

    Attributes:
        pictures: by id: the picture, its truth, and the prediction of each row (None: there is none).
        colours: of each class in truth and predictions, ``#RRGGBB``.
    """

    pictures: Mapping[str, Sequence[str | None]]
    colours: Sequence[str]


#: Thumbnails of pictures by rows of one evaluation; None where there are none.
Look = Callable[[Sequence[Row], Sequence[str]], Thumbnails | None]


def look_at(
    rows: Sequence[Row],
    ids: Sequence[str],
    *,
    data_roots: tuple[str, ...] = (),
    device: str = "cpu",
    say: Callable[[str], None] = lambda text: None,
) -> Thumbnails | None:
    """Thumbnails of the first of some pictures, each row's by its first seed.

    Args:
        rows: rows of one data set, split and output, all with records.
        ids: pictures, those that matter most first.
        data_roots, device: where pictures are, and where networks predict them.
        say: called with a sentence where there are none.
    """
    from harness.data.sets.roots import open_dataset

    if not ids or rows[0].output != "segmentation":
        return None
    try:
        dataset = open_dataset(rows[0].dataset, data_roots, cache_folder())
        return _of(rows, list(ids)[:MOST_THUMBNAILS], dataset, device)
    except UserError as error:
        say(f"left out: pictures of the comparison, {rows[0].dataset}: {error.problem}")
        return None


def _of(rows: Sequence[Row], ids: list[str], dataset: Dataset, device: str) -> Thumbnails:
    images = {ids[0]: dataset.read_image(ids[0])}
    by_networks = sum(not kept(row, ids) for row in rows)
    pixels = images[ids[0]].shape[0] * images[ids[0]].shape[1] * by_networks
    if pixels:
        ids = ids[: max(1, _PIXELS // pixels)]
    maps = [predicted(row, ids, dataset, device) for row in rows]
    palette = dataset.info.palette
    found: dict[str, list[str | None]] = {}
    for place, image_id in enumerate(ids):
        image = images.get(image_id)
        mask = dataset.read_mask(image_id, rows[0].split)
        own = [None if one is None else _map(one[place], palette) for one in maps]
        shown = _picture(dataset.read_image(image_id) if image is None else image)
        found[image_id] = [shown, _map(mask, palette), *own]
    return Thumbnails(found, ["#{:02X}{:02X}{:02X}".format(*colour) for colour in palette])


def _picture(image: np.ndarray) -> str:
    small = Image.fromarray(image)
    small.thumbnail((SIDE, SIDE))
    return _address(small, "jpeg", quality=72)


def _map(labels: np.ndarray, palette: Sequence[Sequence[int]]) -> str:
    """Classes in their colours, everything else white."""
    small = Image.fromarray(labels)
    small.putpalette([v for colour in palette for v in colour] + [255] * 3 * (256 - len(palette)))
    if max(small.size) > SIDE:
        ratio = SIDE / max(small.size)
        size = tuple(max(1, round(side * ratio)) for side in small.size)
        small = small.resize((size[0], size[1]), Image.Resampling.NEAREST)
    return _address(small, "png", optimize=True)


def _address(image: Image.Image, kind: str, **options: int) -> str:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
