"""Prediction of pictures of any size in bounded memory: whole where that fits, in tiles where it does not.

Scores take 4 K H W bytes, several times over: 12 megapixels of 150 classes are 7 GB. A tile is a picture of
its own under the protocol; of neighbouring tiles that overlap, each decides its middle. Only large pictures
are cut, since what a network sees around a pixel counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple
from typing import Protocol as Typed

import numpy as np
import torch
import torch.nn.functional as F

from harness.basics import finite
from harness.evaluation import evaluator
from harness.nn.choice import best_class
from harness.recipes.protocols import Protocol

if TYPE_CHECKING:
    from harness.engine.method import Method

#: Largest picture that is predicted whole: pixels at its largest scale, and scores.
_PIXELS, _SCORES = 1 << 22, 1 << 27
#: Largest tile, likewise; a quarter and half of it.
_TILE_PIXELS, _TILE_SCORES = 1 << 20, 1 << 26
#: Tiles have whole steps of every network in use.
_STEP = 32


class Receiver(Typed):
    """What receives probabilities, part by part: an array ``(K, H, W)``, or a file."""

    def __setitem__(self, where: Any, values: np.ndarray, /) -> None:
        """As of an array."""


class Tile(NamedTuple):
    """A tile: the rows and columns that the network sees, and those of them that it decides."""

    seen: tuple[slice, slice]
    decides: tuple[slice, slice]


def tile_side(height: int, width: int, num_classes: int, p: Protocol) -> int | None:
    """Side of the tiles that a picture is predicted in; None where it is predicted whole.

    Args:
        height, width: of the picture.
        num_classes: K.
        p: the protocol; its largest scale and its windows count.
    """
    growth = 1.0 if p.squash is not None else max(1.0, *p.scales) ** 2
    pixels = height * width * growth
    windowed = p.window is not None or p.squash is not None
    if num_classes * pixels <= _SCORES and (windowed or pixels <= _PIXELS):
        return None
    side = math.isqrt(int(min(_TILE_PIXELS, _TILE_SCORES / num_classes) / growth))
    least = max((*(p.window or ()), 8 * _STEP))
    return max(side // _STEP * _STEP, least)


def parts(height: int, width: int, side: int) -> Iterator[Tile]:
    """Tiles of a picture, row by row; each pixel is decided by one of them."""
    for rows, own_rows in _cuts(height, side):
        for columns, own_columns in _cuts(width, side):
            yield Tile((rows, columns), (own_rows, own_columns))


def _cuts(length: int, side: int) -> Iterator[tuple[slice, slice]]:
    """Along one side: what is seen, and what of the picture is decided."""
    if length <= side:
        yield slice(0, length), slice(0, length)
        return
    margin = side // 8
    for start in range(0, length, side - 2 * margin):
        end = min(start + side - 2 * margin, length)
        first = min(max(start - margin, 0), length - side)
        yield slice(first, first + side), slice(start, end)


def segment(
    method: Method,
    image: np.ndarray,
    p: Protocol,
    *,
    device: torch.device,
    network: str = "default",
    side: int | None = None,
    keep: Receiver | None = None,
    name: str = "",
) -> np.ndarray:
    """The best class of every pixel of a picture.

    Args:
        method: a trained method in evaluation mode.
        image: ``(H, W, 3)`` uint8.
        p: the protocol.
        device: where the method is.
        network: which of its networks.
        side: of tiles; whole by default.
        keep: ``(K, H, W)``, receives probabilities.
        name: of the picture, for errors.

    Returns:
        ``(H, W)`` uint8. Where the protocol squashes pictures, tiles would be squashed each: a large
        picture is then decided at a smaller size and its label map enlarged.

    Raises:
        NonFiniteScoresError: scores decide nothing.
    """
    height, width = image.shape[:2]
    if side is not None and p.squash is not None:
        return _shrunk(method, image, p, device, network, side, keep, name)
    whole = slice(0, height), slice(0, width)
    labels = np.empty((height, width), np.uint8)
    for part in [Tile(whole, whole)] if side is None else parts(height, width, side):
        scores = _scores(method, image[part.seen], p, device, network, name)
        inside = tuple(
            slice(own.start - seen.start, own.stop - seen.start)
            for own, seen in zip(part.decides, part.seen, strict=True)
        )
        scores = scores[:, :, inside[0], inside[1]]
        labels[part.decides] = best_class(scores)[0].to(torch.uint8).cpu().numpy()
        if keep is not None:
            keep[(slice(None), *part.decides)] = _probabilities(scores, p)
    return labels


def _scores(
    method: Method, image: np.ndarray, p: Protocol, device: torch.device, network: str, name: str
) -> torch.Tensor:
    raw = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).to(device)
    with torch.inference_mode():
        scores, wrong = evaluator.decided(method, raw, p, network)
    if wrong:
        raise finite.scores_error(f"the scores of the network {network!r}", name)
    return scores


def _probabilities(scores: torch.Tensor, p: Protocol) -> np.ndarray:
    """``(K, h, w)`` float16: what a protocol merges is probabilities already, or logits."""
    done = p.merge == "mean-softmax" or p.crf is not None
    return (scores if done else scores.softmax(1))[0].half().cpu().numpy()


def _shrunk(
    method: Method,
    image: np.ndarray,
    p: Protocol,
    device: torch.device,
    network: str,
    side: int,
    keep: Receiver | None,
    name: str,
) -> np.ndarray:
    height, width = image.shape[:2]
    factor = min(1.0, side / math.sqrt(height * width))
    size = max(round(height * factor), 1), max(round(width * factor), 1)
    rows = np.minimum(((np.arange(height) + 0.5) * size[0] / height).astype(int), size[0] - 1)
    columns = np.minimum(((np.arange(width) + 0.5) * size[1] / width).astype(int), size[1] - 1)
    raw = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None].float()
    small = F.interpolate(raw, size=size, mode="area")[0].round().to(torch.uint8).permute(1, 2, 0).numpy()
    scores = _scores(method, small, p, device, network, name)
    if keep is not None:
        for k, plane in enumerate(_probabilities(scores, p)):
            keep[k] = plane[rows[:, None], columns]
    labels: np.ndarray = best_class(scores)[0].to(torch.uint8).cpu().numpy()[rows[:, None], columns]
    return labels
