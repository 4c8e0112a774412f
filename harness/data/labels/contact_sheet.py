"""A contact sheet: pictures in rows; picture, mask and each weak label side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from harness.basics.files import write_with
from harness.data.base import IGNORE, UNLABELLED, Dataset
from harness.data.images import read_index
from harness.data.labels.weak_labels import simulate

_MARGIN, _CAPTION = 6, 14
_VOID_COLOUR = (224, 224, 192)


def dimmed_overlay(
    picture: np.ndarray, labels: np.ndarray, palette: Sequence[Sequence[int]], share: float
) -> np.ndarray:
    """``(H, W, 3)`` uint8: classes in their colours over the picture, void in cream, the rest dimmed grey.

    Args:
        picture: ``(H, W, 3)`` uint8.
        labels: ``(H, W)`` uint8: class, 254 not annotated, 255 void.
        palette: colours of the classes.
        share: opacity of the colours, 0 to 1.
    """
    colours = np.zeros((256, 3), np.float32)
    colours[: len(palette)] = palette
    colours[IGNORE] = _VOID_COLOUR
    grey = np.repeat(picture.mean(2, keepdims=True), 3, axis=2) * 0.5 + 80
    painted = grey * (1 - share) + colours[labels] * share
    return np.where((labels == UNLABELLED)[..., None], grey, painted).clip(0, 255).astype(np.uint8)


def contact_sheet(
    dataset: Dataset,
    split: str,
    image_ids: Sequence[str],
    *,
    kinds: Sequence[str] = ("scribble", "point", "block", "box"),
    folders: Mapping[str, Path] | None = None,
    seed: int = 0,
    width: int = 220,
) -> Image.Image:
    """Draw some pictures of a split with their mask and weak labels.

    Args:
        dataset: where they are.
        split: their split.
        image_ids: which pictures.
        kinds: weak labels to simulate; left out where there are no masks, boxes where there is no
            background class.
        folders: further columns: caption to a folder of ``<id>.png`` (255 not annotated).
        seed: of the simulator.
        width: of one picture in the sheet, in pixels.

    Raises:
        UserError: a file is missing or malformed.
    """
    info, rows = dataset.info, []
    for image_id in image_ids:
        picture = dataset.read_image(image_id)
        cells = {image_id: picture}
        if dataset.has_mask(image_id, split):
            mask = dataset.read_mask(image_id, split)
            cells["mask"] = dimmed_overlay(picture, mask, info.palette, 0.75)
            for kind in kinds:
                if kind != "box" or info.background is not None:
                    label = simulate(
                        mask,
                        kind,  # type: ignore[arg-type]
                        image_id=image_id,
                        seed=seed,
                        num_classes=info.num_classes,
                        background=info.background,
                    )
                    cells[f"{kind} (simulated)"] = dimmed_overlay(picture, label, info.palette, 1.0)
        for caption, folder in (folders or {}).items():
            label = read_index(folder / f"{image_id}.png")
            label = np.where(label == IGNORE, np.uint8(UNLABELLED), label)
            cells[caption] = dimmed_overlay(picture, label, info.palette, 1.0)
        rows.append({name: _cell(array, width) for name, array in cells.items()})
    return _arranged(rows, width)


def _cell(array: np.ndarray, width: int) -> Image.Image:
    height = max(1, round(array.shape[0] * width / array.shape[1]))
    return Image.fromarray(array).resize((width, height), Image.Resampling.BOX)


def _arranged(rows: Sequence[Mapping[str, Image.Image]], width: int) -> Image.Image:
    heights = [max(cell.height for cell in row.values()) + _CAPTION + _MARGIN for row in rows]
    columns = max(len(row) for row in rows)
    sheet = Image.new("RGB", (columns * (width + _MARGIN) + _MARGIN, sum(heights) + _MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    top = _MARGIN
    for row, height in zip(rows, heights, strict=True):
        for column, (name, cell) in enumerate(row.items()):
            left = _MARGIN + column * (width + _MARGIN)
            draw.text((left, top), name[: width // 6], fill="black")
            sheet.paste(cell, (left, top + _CAPTION))
        top += height
    return sheet


def save_sheet(sheet: Image.Image, path: Path) -> None:
    """Write a sheet as PNG, whole."""
    write_with(path, lambda stream: sheet.save(stream, format="PNG"))
