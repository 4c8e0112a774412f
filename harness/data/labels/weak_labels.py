"""Weak labels drawn from dense masks, the way annotators draw them.

Real scribbles are biased: people draw in the spacious interior of a thing, along its longer axis, and
stay away from its boundary and corners (the bias that BLPSeg models). A simulated scribble therefore
is a cheap path where depth, the distance to the boundary, makes a step cheap; it joins the two ends of
a region that lie farthest apart and is smoothed. Lengths and depths were set against a few strokes of
ScribbleSup: on objects nearly as long as the diagonal of their bounding box, on background longer than
that, winding round the objects. All numbers below are our choice unless a source is named.

Every label follows from the mask, the image id and the seed alone, whatever process draws it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from harness.basics.errors import UserError
from harness.data.base import IGNORE, UNLABELLED, BoxInside, DatasetInfo, LabelSpec, Supervision
from harness.data.labels.annotations import Stroke, draw_clicks, draw_strokes
from harness.data.labels.painting import paint_boxes, tags_from_mask

#: Part of the digest of prepared labels; raised whenever equal masks may give other labels.
LABEL_VERSION = 2

#: Parts smaller than this share of the picture, or of the largest part of their class, get no label of
#: their own; the largest part of each class always gets one.
_SMALLEST_SHARE, _SMALLEST_PART = 0.0005, 0.05
#: Longest side, in cells, of the grid on which paths are searched.
_GRID = 64
#: Background clicks for each background stroke; in GatedCRF's files, which take them from scribbles,
#: a picture has 2.9.
_BACKGROUND_CLICKS = 3
#: Side of a block relative to the shorter side of the picture.
_BLOCK_SIDE = (1 / 40, 1 / 8)
#: Width of VOC's void borders in pixels.
_VOID_BORDER = 5

_AROUND = np.ones((3, 3), bool)


class _Part(NamedTuple):
    """A connected region of one class.

    Attributes:
        label: class.
        top: first row of its bounding box.
        left: first column.
        inside: ``(h, w)`` bool, its pixels in the bounding box.
    """

    label: int
    top: int
    left: int
    inside: np.ndarray


@dataclass(frozen=True)
class _Interior:
    """A part on a coarse grid of cells that lie wholly inside.

    Attributes:
        side: pixels along a cell.
        inside: ``(h, w)`` bool.
        depth: ``(h, w)`` float64, distance to the boundary in cells, 0 outside; the frame of the
            picture counts half as much as a boundary between classes.
    """

    side: int
    inside: np.ndarray
    depth: np.ndarray

    def pixels(self, cells: np.ndarray) -> np.ndarray:
        """``(N, 2)`` row, column in cells to x, y in pixels of the part's bounding box."""
        return ((cells + 0.5) * self.side - 0.5)[:, ::-1]


def label_generator(image_id: str, supervision: str, seed: int) -> np.random.Generator:
    """The random numbers of one label, independent of process, order and hash randomisation."""
    key = hashlib.sha256(f"{seed}/{supervision}/{image_id}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(key[:16], "big")))


def simulated_tags(
    mask: np.ndarray, label: np.ndarray, supervision: Supervision, num_classes: int, background: int | None
) -> np.ndarray:
    """``(K,)`` uint8 multi-hot: what an annotator's label tells about the whole picture.

    The classes that are labelled; for boxes, whose inside is unlabelled, also those that have a box
    (every object class has one).

    Args:
        mask: ``(H, W)`` uint8 dense mask.
        label: what :func:`simulate` made of it.
        supervision: kind of weak label.
        num_classes: K.
        background: label of the background class.
    """
    tags = tags_from_mask(label, num_classes)
    if supervision == "box":
        objects = tags_from_mask(mask, num_classes)
        objects[background] = 0
        tags |= objects
    return tags


def simulate_as(
    spec: LabelSpec, info: DatasetInfo, mask: np.ndarray, supervision: Supervision, image_id: str
) -> np.ndarray:
    """:func:`simulate` with the values of a recipe and of a data set."""
    return simulate(
        mask,
        supervision,
        image_id=image_id,
        seed=spec.seed,
        num_classes=info.num_classes,
        background=info.background,
        stroke=spec.stroke,
        block_share=spec.block_share,
        box_inside=spec.box_inside,
    )


def simulate(
    mask: np.ndarray,
    supervision: Supervision,
    *,
    image_id: str,
    seed: int,
    num_classes: int,
    background: int | None,
    stroke: int = 3,
    block_share: float = 0.1,
    box_inside: BoxInside = "inner",
) -> np.ndarray:
    """Draw the weak label of a dense mask.

    Labelled pixels never lie on void, and every class of the mask is hit; under ``scribble``, ``point``
    and ``block`` they lie on their own class, and outside of boxes on background. What is inside a box
    follows the box alone. The tags of a box label are the classes that have a box.

    Args:
        mask: ``(H, W)`` uint8: ``0..K-1`` class, anything else void.
        supervision: kind of weak label.
        image_id: the picture; beside ``seed`` the source of all randomness.
        seed: seed of the simulator.
        num_classes: K.
        background: label of the background class, None where there is none.
        stroke: width of strokes and diameter of clicks in pixels.
        block_share: ``block`` only: share of each class's pixels that is labelled, in ``(0, 1]``.
        box_inside: ``box`` only: see ``LabelSpec.box_inside``.

    Returns:
        ``(H, W)`` uint8: ``0..K-1`` annotated class, 254 elsewhere; under ``full`` the mask itself,
        void 255.

    Raises:
        UserError: boxes are asked for and there is no background class.
    """
    mask = np.where(mask < num_classes, mask, np.uint8(IGNORE))
    if supervision == "full":
        return mask
    label = np.full(mask.shape, UNLABELLED, np.uint8)
    rng = label_generator(image_id, supervision, seed)
    if supervision == "box":
        if background is None:
            raise UserError(
                "box labels say what is background, and this data set has no such class",
                where=image_id,
                remedy="choose another supervision",
            )
        return _draw_boxes(mask, num_classes, background, box_inside)
    if supervision == "block":
        _draw_blocks(label, mask, num_classes, block_share, rng)
    elif supervision == "scribble":
        for part in _parts(mask, num_classes):
            _paint(label, part, [Stroke(part.label, _path(part, mask.shape, rng))], stroke)
    elif supervision == "point":
        for part in _parts(mask, num_classes):
            clicks = _clicks(part, mask.shape, rng, on_background=part.label == background)
            _paint(label, part, clicks, stroke)
    return label


# --- regions -----------------------------------------------------------------------------------------


def _parts(mask: np.ndarray, num_classes: int) -> Iterator[_Part]:
    """The parts of a mask that an annotator would mark, by class, larger ones first."""
    least = _SMALLEST_SHARE * mask.size
    objects = ndimage.find_objects(mask.astype(np.int32) + 1, num_classes)
    for label, place in enumerate(objects):
        if place is None:
            continue
        regions, count = ndimage.label(mask[place] == label, structure=_AROUND)
        areas = np.bincount(regions.ravel(), minlength=count + 1)[1:]
        order = np.argsort(-areas, kind="stable")
        kept = areas[order] >= max(least, _SMALLEST_PART * areas.max())
        kept[0] = True
        boxes = ndimage.find_objects(regions)
        for index in order[kept]:
            rows, columns = boxes[index]
            yield _Part(
                label,
                place[0].start + rows.start,
                place[1].start + columns.start,
                regions[rows, columns] == index + 1,
            )


def _interior(part: _Part, size: tuple[int, int]) -> _Interior:
    """A part on the coarsest grid that still shows enough of it; ``size`` is (H, W) of the picture."""
    side = max(1, -(-max(part.inside.shape) // _GRID))
    area = int(part.inside.sum())
    while True:
        height, width = (-(-n // side) for n in part.inside.shape)
        whole = np.zeros((height * side, width * side), bool)
        whole[: part.inside.shape[0], : part.inside.shape[1]] = part.inside
        cells = np.asarray(whole.reshape(height, side, width, side).all((1, 3)))
        if side == 1 or cells.sum() * side**2 >= 0.3 * area:
            return _Interior(side, cells, _depth(cells, part, size, side))
        side //= 2


def _depth(cells: np.ndarray, part: _Part, size: tuple[int, int], side: int) -> np.ndarray:
    """Distance of cells to the boundary, in cells; beyond the picture's frame there is none."""
    height, width = part.inside.shape
    padded = np.pad(cells, 1)
    above, left = part.top == 0, part.left == 0
    below, right = part.top + height == size[0], part.left + width == size[1]
    padded[0] |= above
    padded[-1] |= below
    padded[:, 0] |= left
    padded[:, -1] |= right
    depth = np.full(padded.shape, np.inf) if padded.all() else ndimage.distance_transform_edt(padded)
    rows = (part.top / side + np.arange(cells.shape[0]) + 0.5)[:, None]
    columns = part.left / side + np.arange(cells.shape[1]) + 0.5
    frame = np.minimum(np.minimum(rows, size[0] / side - rows), np.minimum(columns, size[1] / side - columns))
    return np.where(cells, np.minimum(depth[1:-1, 1:-1], np.maximum(2 * frame, 0.5)), 0)


# --- scribbles ---------------------------------------------------------------------------------------


def _path(part: _Part, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """``(N, 2)`` float64 x, y of one stroke in pixels of the part's bounding box."""
    interior = _interior(part, size)
    inside, depth = interior.inside, interior.depth
    if rng.random() < 0.9:
        inside = _cut_open(inside, rng)
    wander = ndimage.zoom(rng.standard_normal((4, 4)), np.array(inside.shape) / 4, order=1, mode="nearest")
    ease = np.where(inside, depth * np.exp(0.35 * wander), 0)
    cost = ease.max() / (ease + 0.25 * ease.max())  # of a step: 0.8 in the middle, towards 4 at the edge
    number = np.full(inside.shape, -1)
    number[inside] = np.arange(np.count_nonzero(inside))
    graph = grid_graph(number, cost)
    roomy = depth[inside] >= 0.16 * depth.max()
    start = int(np.argmax(depth[inside]))
    first, _ = farthest(graph, start, roomy)
    last, before = farthest(graph, first, roomy)
    nodes = [last]
    while nodes[-1] != first:
        nodes.append(int(before[nodes[-1]]))
    cells = np.argwhere(inside)[nodes].astype(np.float64)
    off = rng.uniform(0, 0.04, 2) * len(cells)  # nobody draws to the very end
    cells = cells[int(off[0]) : max(len(cells) - int(off[1]), int(off[0]) + 1)]
    if len(cells) > 2:
        cells = ndimage.gaussian_filter1d(cells, min(2.0, len(cells) / 8), axis=0, mode="nearest")
    return interior.pixels(cells)


def grid_graph(number: np.ndarray, cost: np.ndarray) -> csr_array:
    """Steps between neighbouring cells (eight of them); a step costs its length times the mean cost."""
    height, width = number.shape
    starts, ends, weights = [], [], []
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        here = (slice(0, height - down), slice(max(-right, 0), width - max(right, 0)))
        there = (slice(down, height), slice(max(right, 0), width + min(right, 0)))
        both = (number[here] >= 0) & (number[there] >= 0)
        starts.append(number[here][both])
        ends.append(number[there][both])
        weights.append((cost[here][both] + cost[there][both]) * (np.hypot(down, right) / 2))
    a, b, weight = (np.concatenate(x) for x in (starts, ends, weights))
    count = int(number.max()) + 1
    both_ways = (np.concatenate([a, b]), np.concatenate([b, a]))
    return csr_array((np.concatenate([weight, weight]), both_ways), shape=(count, count))


def farthest(graph: csr_array, start: int, allowed: np.ndarray) -> tuple[int, np.ndarray]:
    """The allowed node that is farthest from ``start`` by cost, and each node's predecessor."""
    distance, before = dijkstra(graph, indices=start, return_predecessors=True)
    reached = np.where(np.isfinite(distance) & allowed, distance, -1.0)
    reached[start] = max(reached[start], 0.0)
    return int(np.argmax(reached)), before


def _cut_open(inside: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cut a region that runs round something, so that a stroke can lead round it.

    The cut goes straight from the largest hole to the outside.
    """
    holes = ndimage.binary_fill_holes(inside) & ~inside
    regions, count = ndimage.label(holes, structure=_AROUND)
    if not count:
        return inside
    areas = np.bincount(regions.ravel())[1:]
    if areas.max() < 0.01 * inside.size:
        return inside
    row, column = (c.mean() for c in np.nonzero(regions == np.argmax(areas) + 1))
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.indices(inside.shape)
    along = (y - row) * np.sin(angle) + (x - column) * np.cos(angle)
    across = (y - row) * np.cos(angle) - (x - column) * np.sin(angle)
    opened = inside & ~((along > 0) & (np.abs(across) <= 1))
    return opened if opened.any() else inside


def _paint(label: np.ndarray, part: _Part, strokes: list[Stroke], width: int) -> None:
    """Draw strokes or clicks of a part into ``label``, as far as they lie on the part."""
    size = part.inside.shape
    place = (slice(part.top, part.top + size[0]), slice(part.left, part.left + size[1]))
    lines = [s for s in strokes if len(s.points) > 1]
    dots = [s for s in strokes if len(s.points) == 1]
    drawn = (draw_strokes(lines, size, width) == part.label) | (draw_clicks(dots, size, width) == part.label)
    drawn &= part.inside
    if not drawn.any():  # too thin for the drawing: its most central pixel
        rows, columns = np.nonzero(part.inside)
        nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
        drawn[rows[nearest], columns[nearest]] = True
    label[place][drawn] = part.label


# --- points ------------------------------------------------------------------------------------------


def _clicks(
    part: _Part, size: tuple[int, int], rng: np.random.Generator, *, on_background: bool
) -> list[Stroke]:
    """One click near the middle of an object; on background several along a stroke.

    What's the Point asks for one click on each object and has none on background; GatedCRF and TEL
    take those from the background scribbles.
    """
    if on_background:
        path = _path(part, size, rng)
        count = min(_BACKGROUND_CLICKS, len(path))
        steps = (np.arange(count) + rng.uniform(0.15, 0.85, count)) / count * len(path)
        return [Stroke(part.label, path[[int(step)]]) for step in steps]
    interior = _interior(part, size)
    depth = interior.depth
    likely = np.where(depth >= 0.6 * depth.max(), depth, 0)[interior.inside] ** 2
    cells = np.argwhere(interior.inside)
    cell = cells[[rng.choice(len(cells), p=likely / likely.sum())]] + rng.uniform(-0.5, 0.5, (1, 2))
    return [Stroke(part.label, interior.pixels(cell))]


# --- blocks ------------------------------------------------------------------------------------------


def _draw_blocks(
    label: np.ndarray, mask: np.ndarray, num_classes: int, share: float, rng: np.random.Generator
) -> None:
    """Squares wholly inside one class until ``share`` of its pixels is labelled, at least one pixel.

    TEL trains on blocks that cover 10, 20 or 50 % of the pixels; how its blocks were placed is not
    said, so places and sides are ours: uniformly random centres, sides up to 1/8 of the picture.
    """
    smallest, largest = (max(int(s * min(mask.shape)) // 2, 0) for s in _BLOCK_SIDE)
    objects = ndimage.find_objects(mask.astype(np.int32) + 1, num_classes)
    for k, place in enumerate(objects):
        if place is None:
            continue
        inside = np.pad(mask[place] == k, 1)
        reach = ndimage.distance_transform_cdt(inside, "chessboard")[1:-1, 1:-1] - 1
        rows, columns = np.nonzero(reach >= 0)
        budget = max(int(share * len(rows)), 1)
        out = label[place]
        covered = 0
        for index in rng.permutation(len(rows)):
            row, column = rows[index], columns[index]
            if out[row, column] == k:
                continue
            room = min(int(reach[row, column]), (int(np.sqrt(budget - covered)) - 1) // 2)
            wanted = int(rng.integers(smallest, largest, endpoint=True)) if largest > smallest else smallest
            half = min(wanted, room)
            if half < min(smallest, room):
                continue
            block = out[row - half : row + half + 1, column - half : column + half + 1]
            covered += int(np.count_nonzero(block != k))
            block[...] = k
            if budget - covered < (2 * smallest + 1) ** 2:
                break  # what is left would be a crumb


# --- boxes -------------------------------------------------------------------------------------------


def _draw_boxes(mask: np.ndarray, num_classes: int, background: int, inside: BoxInside) -> np.ndarray:
    """Background outside the boxes of all object parts; their inside as asked, smaller boxes on top.

    A box takes in the void border of its object: a strip of void that juts out of a box would show
    where the object ends.
    """
    label = np.full(mask.shape, UNLABELLED, np.uint8)
    label[mask == background] = background
    found = [
        (part.label, *_box(part, mask)) for part in _parts(mask, num_classes) if part.label != background
    ]
    paint_boxes(label, found, inside)
    label[mask == IGNORE] = UNLABELLED
    return label


def _box(part: _Part, mask: np.ndarray) -> tuple[int, int, int, int]:
    """Top, bottom, left and right (ends exclusive) of a part's box, void border included."""
    height, width = part.inside.shape
    top, left = max(part.top - _VOID_BORDER, 0), max(part.left - _VOID_BORDER, 0)
    bottom, right = part.top + height + _VOID_BORDER, part.left + width + _VOID_BORDER
    near = mask[top:bottom, left:right]
    shape = np.zeros(near.shape, bool)
    row, column = part.top - top, part.left - left
    shape[row : row + height, column : column + width] = part.inside
    reach = ndimage.maximum_filter(shape, 2 * _VOID_BORDER + 1)
    shape |= reach & (near == IGNORE)
    rows, columns = np.flatnonzero(shape.any(1)), np.flatnonzero(shape.any(0))
    return top + int(rows[0]), top + int(rows[-1]) + 1, left + int(columns[0]), left + int(columns[-1]) + 1
