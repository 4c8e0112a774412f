"""Pixel-adaptive refinement of class maps (PAR: Ru et al., AFA, CVPR 2022; ToCo and FSR models/PAR.py).

Every pixel takes up a weighted mean of its neighbours in eight directions and several distances, over and
over; the weights come from colours and distances. The neighbourhood is read as shifted slices of one
padded tensor, so that nothing of the size of maps times neighbours is ever made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.engine.batch import IGNORE
from harness.nn.choice import best_class
from harness.nn.compiling import compiled
from harness.nn.constants import constant
from harness.nn.precision import outside_autocast
from harness.nn.resize import resize

DILATIONS = (1, 2, 4, 8, 12, 24)
DIRECTIONS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
SHARPNESS, POSITION_WEIGHT, EPS = 0.3, 0.01, 1e-8


class Affinity(NamedTuple):
    """Weights of the neighbours of every pixel.

    Attributes:
        weights: ``(N, B, 1, H, W)``, N neighbours, distance by distance; they sum to 1.01.
        dilations: the distances.
    """

    weights: Tensor
    dilations: tuple[int, ...]


def neighbours(x: Tensor, dilations: Sequence[int]) -> list[Tensor]:
    """The map ``(B, C, H, W)`` shifted to every neighbour, borders replicated; views of one tensor."""
    return _Surrounded.of(x, dilations).neighbours


class _Surrounded(NamedTuple):
    """A map with replicated borders around it.

    Attributes:
        inner: ``(B, C, H, W)``, the map itself.
        neighbours: the map shifted to every neighbour, distance by distance.
        borders: pairs of views: what lies outside, and the edge of the map that it repeats; columns come
            before rows, whose corners repeat them.
    """

    inner: Tensor
    neighbours: list[Tensor]
    borders: list[tuple[Tensor, Tensor]]

    @classmethod
    def of(cls, x: Tensor, dilations: Sequence[int]) -> _Surrounded:
        """A padded copy of ``(B, C, H, W)``."""
        reach, (height, width) = max(dilations), x.shape[-2:]
        padded = F.pad(x, (reach,) * 4, mode="replicate")
        batch, channel, row, column = padded.stride()

        def window(top: int, left: int, rows: int = height, columns: int = width) -> Tensor:
            strides = (batch, channel, row, column)  # one call in place of two slices: views are many
            return padded.as_strided((*x.shape[:2], rows, columns), strides, top * row + left * column)

        right, below, wide = reach + width, reach + height, width + 2 * reach
        return cls(
            inner=window(reach, reach),
            neighbours=[window(reach + dy * d, reach + dx * d) for d in dilations for dy, dx in DIRECTIONS],
            borders=[
                (window(reach, 0, height, reach), window(reach, reach, height, 1)),
                (window(reach, right, height, reach), window(reach, right - 1, height, 1)),
                (window(0, 0, reach, wide), window(reach, 0, 1, wide)),
                (window(below, 0, reach, wide), window(below - 1, 0, 1, wide)),
            ],
        )

    def replicate(self) -> None:
        """Repeat the edges again, as the map has changed."""
        for outside, edge in self.borders:
            outside.copy_(edge)


def affinity(images: Tensor, dilations: Sequence[int] = DILATIONS) -> Affinity:
    """Weights from colours and distances.

    Softmax over the neighbours q of ``-mean_c (|I_c(q) - I_c(p)| / (0.3 s_c(p)))^2``, s the deviation of
    the neighbours' colours, plus 0.01 times the softmax of the same of their distances.

    Args:
        images: ``(B, C, H, W)`` in [0, 1].
        dilations: distances of the neighbours in pixels.
    """
    with outside_autocast(images.device):
        images = images.to(torch.promote_types(images.dtype, torch.float32))
        number = len(DIRECTIONS) * len(dilations)
        around = neighbours(images, dilations)
        mean = torch.zeros_like(images)
        for shifted in around:
            mean += shifted
        mean /= number
        variance = torch.zeros_like(images)
        for shifted in around:
            variance += (shifted - mean).square_()
        scale = (variance.div_(number - 1).sqrt_().add_(EPS)).mul_(SHARPNESS)
        scores = images.new_empty(number, len(images), 1, *images.shape[-2:])
        for score, shifted in zip(scores, around, strict=True):
            torch.mean(((shifted - images) / scale).square_(), 1, keepdim=True, out=score)
        weights = scores.neg_().softmax(0)
        near = positions(dilations, images.dtype, images.device)
        near = -(near / ((near.std() + EPS) * SHARPNESS)).square()
        weights += POSITION_WEIGHT * near.softmax(0)[:, None, None, None, None]
        return Affinity(weights, tuple(dilations))


def positions(
    dilations: Sequence[int], dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> Tensor:
    """Distances ``(N,)`` of the neighbours in pixels."""
    far = tuple(d * math.hypot(*direction) for d in dilations for direction in DIRECTIONS)
    return constant(far, device or torch.device("cpu")).to(dtype)


def _spread(maps: Tensor, weights: Tensor, dilations: Sequence[int]) -> Tensor:
    """One weighted sum over neighbours, as one expression: a compiler makes it one kernel."""
    reach, (height, width) = max(dilations), maps.shape[-2:]
    padded = F.pad(maps, (reach,) * 4, mode="replicate")
    total = torch.zeros_like(maps)
    for number, (d, (dy, dx)) in enumerate((d, way) for d in dilations for way in DIRECTIONS):
        top, left = reach + dy * d, reach + dx * d
        total = total + weights[number] * padded[..., top : top + height, left : left + width]
    return total


@torch.no_grad()
def propagate(maps: Tensor, weights: Affinity, iterations: int = 10) -> Tensor:
    """Spread maps ``(B, C, H, W)`` along the weights, without gradient; their sum grows by 1.01 every time.

    Two padded maps are written in turn, so that no neighbour is looked up twice.
    """
    if not iterations:
        return maps
    if (spread := compiled("par", _spread)) is not None:
        for _ in range(iterations):
            maps = spread(maps, weights.weights, weights.dilations)
        return maps
    each = weights.weights.unbind()
    now, then = (_Surrounded.of(maps, weights.dilations) for _ in range(2))
    for done in range(iterations):
        if done:
            now.replicate()
        then.inner.zero_()
        for weight, shifted in zip(each, now.neighbours, strict=True):
            then.inner.addcmul_(weight, shifted)
        now, then = then, now
    return now.inner.contiguous()


@torch.no_grad()
def par(
    images: Tensor, maps: Tensor, *, dilations: Sequence[int] = DILATIONS, iterations: int = 10
) -> Tensor:
    """Refine maps by a picture.

    Args:
        images: ``(B, 3, H, W)`` in [0, 1].
        maps: ``(B, C, h, w)``; brought to the picture's size first, bilinearly with aligned corners.
        dilations: distances of the neighbours in pixels.
        iterations: how often.

    Returns:
        ``(B, C, H, W)`` of the dtype of ``maps``, float32 at least.
    """
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
    maps = resize(maps, images.shape[-2:], align_corners=True)
    return propagate(maps, affinity(images.to(maps.dtype), dilations), iterations)


@torch.no_grad()
def refine_cams(
    images: Tensor,
    cam: Tensor,
    tags: Tensor,
    low: float,
    high: float,
    *,
    valid: Tensor | None = None,
    dilations: Sequence[int] = DILATIONS,
    iterations: int = 10,
    down_scale: int = 2,
) -> Tensor:
    """Pseudo labels: activation maps against two constant backgrounds, refined by the picture.

    The present classes' maps and a constant background (``high``, then ``low``) go through a softmax and
    PAR at ``1 / down_scale`` of the size; the best channel wins. A class is set where it beats ``high``,
    background where it loses to ``low``, everything else is undecided (FSR utils/camutils.py, ToCo as
    well). Both backgrounds and all maps share one affinity.

    Args:
        images: ``(B, 3, H, W)`` colours in [0, 1] or uint8.
        cam: ``(B, F, H, W)`` in [0, 1].
        tags: ``(B, F)`` multi-hot foreground classes; a picture without any is background.
        low, high: scores of the two backgrounds.
        valid: ``(B, H, W)`` bool; elsewhere undecided. Everywhere by default.
        dilations, iterations: of PAR.
        down_scale: factor by which PAR's maps are smaller.

    Returns:
        ``(B, H, W)`` int64: 0 background, ``1 + f`` class f, 255 undecided.
    """
    with outside_autocast(images.device):
        dtype = torch.promote_types(cam.dtype, torch.float32)
        colours = images.to(dtype) / 255 if images.dtype == torch.uint8 else images.to(dtype)
        height, width = images.shape[-2:]
        small = (height // down_scale, width // down_scale)
        colours = resize(colours, small, align_corners=False)
        maps, classes, absent = _present_first(cam.to(dtype), tags)
        maps = resize(maps, small, align_corners=False).masked_fill_(absent[:, :, None, None], -math.inf)
        scores = [torch.cat([torch.full_like(colours[:, :1], t), maps], 1).softmax(1) for t in (high, low)]
        spread = propagate(torch.cat(scores, 1), affinity(colours, dilations), iterations)
        choice = [best_class(resize(s, (height, width), align_corners=False)) for s in spread.chunk(2, 1)]
        strict, lenient = (classes.gather(1, c.flatten(1)).view_as(c) for c in choice)
        label = strict.masked_fill(strict == 0, IGNORE).masked_fill_(strict + lenient == 0, 0)
        return label if valid is None else label.masked_fill_(~valid, IGNORE)


def _present_first(cam: Tensor, tags: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Maps of each picture's present classes, as many as the richest picture has.

    Returns:
        Maps ``(B, P, H, W)``; labels ``(B, 1 + P)`` of background and maps; ``(B, P)`` True where a
        picture has fewer classes.
    """
    present = tags > 0
    number = max(int(present.sum(1).max()), 1)  # the one look at a value
    order = present.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :number]
    absent = ~present.gather(1, order)
    maps = cam.gather(1, order[:, :, None, None].expand(-1, -1, *cam.shape[2:]))
    return maps, F.pad(order + 1, (1, 0)), absent
