"""Generated pictures of the miniature suite: small scenes with dense masks, and single objects.

Six kinds of object are told apart by silhouette and texture. Colours are drawn for every surface from
one distribution, background and clutter included, so colour alone says nothing. Each silhouette has a
spacious body and thin parts (legs, tail, handle, pole); objects occlude one another; clutter wears the
textures of the classes without their shapes, and some of it lies in front. Everything here is our
choice: the suite stands in for data that cannot be shipped, it reproduces no published data set.

Shapes are signed distances in pixels, negative inside, evaluated on the whole pixel grid. Each picture
has its own random stream, derived from (seed, stream, index), so it does not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

#: Raised whenever a picture of some seed changes.
SCENES_VERSION = 1
#: Names of the six kinds, in label order from 1 (0 is background).
OBJECT_KINDS = ("mug", "table", "fish", "umbrella", "kite", "spider")
VOID = 255

_STREAMS = {"train": 0, "val": 1, "single": 2, "single_val": 3}
_SIDE = (64, 96)  # pixels, both ends included
_MIN_VISIBLE = 0.4  # share of an object that may not be covered or cut off


def scene_generator(seed: int, stream: str, index: int) -> np.random.Generator:
    """The random stream of one picture."""
    sequence = np.random.SeedSequence([seed, _STREAMS[stream], index])
    return np.random.Generator(np.random.PCG64(sequence))


def scene(seed: int, split: str, index: int) -> tuple[np.ndarray, np.ndarray]:
    """One scene of ``split`` (``train`` or ``val``).

    Returns:
        Image ``(H, W, 3)`` uint8 RGB and mask ``(H, W)`` uint8 (0 background, ``1..6`` kinds, 255 on a
        line one pixel wide just outside every object, so that thin parts keep their labels).
        Sides are 64 to 96 pixels.
    """
    rng = scene_generator(seed, split, index)
    height, width = (int(rng.integers(_SIDE[0], _SIDE[1] + 1)) for _ in range(2))
    grid = _grid(height, width)
    count = 1 + int(rng.random() < 0.6) + int(rng.random() < 0.3)
    return _compose(rng, grid, _place(rng, grid, count), clutter=int(rng.integers(0, 3)))


def single_object(seed: int, index: int, side: int = 56, stream: str = "single") -> tuple[np.ndarray, int]:
    """A picture of one object: ``(side, side, 3)`` uint8 and its class ``0..5`` (kinds without background).

    Stands in for an ImageNet picture; ``stream="single_val"`` draws from pictures never trained on.
    """
    rng = scene_generator(seed, stream, index)
    grid = _grid(side, side)
    kind = int(rng.integers(len(OBJECT_KINDS)))
    pose = _pose(rng, side, side, half=side * _between(rng, 0.26, 0.46), spread=0.16)
    image, _ = _compose(rng, grid, [_object(rng, kind, grid, pose)], clutter=int(rng.integers(0, 3)))
    return image, kind


def scattered_object(seed: int, index: int, side: int = 56, stream: str = "single") -> tuple[np.ndarray, int]:
    """As :func:`single_object`, but the object lies anywhere where enough of it is in the picture.

    One picture in seven has none; its class is 6.
    """
    rng = scene_generator(seed, stream, index)
    grid = _grid(side, side)
    kind = int(rng.integers(len(OBJECT_KINDS) + 1))
    drawn: list[_Surface] = []
    while kind < len(OBJECT_KINDS) and not drawn:
        half = side * _between(rng, 0.26, 0.46)
        candidate = _object(rng, kind, grid, _pose(rng, side, side, half=half, spread=0.5))
        drawn = [candidate] if _visible([candidate], half) else []
    image, _ = _compose(rng, grid, drawn, clutter=int(rng.integers(0, 3)))
    return image, kind


# --- composition -------------------------------------------------------------------------------------

Grid = tuple[np.ndarray, np.ndarray]  # x and y of pixel centres, (H, W) float64


@dataclass(frozen=True)
class _Pose:
    """Centre in pixels, half the extent in pixels, cosine and sine of the turn, mirror sign, aspect."""

    x: float
    y: float
    half: float
    cos: float
    sin: float
    mirror: float
    aspect: float

    def local(self, grid: Grid) -> Grid:
        """Pixel centres in the object's frame, where it fills about ``[-1, 1]`` squared."""
        dx, dy = grid[0] - self.x, grid[1] - self.y
        u = self.mirror * (self.cos * dx + self.sin * dy) / (self.half * self.aspect)
        v = (self.cos * dy - self.sin * dx) * self.aspect / self.half
        return u, v


@dataclass(frozen=True)
class _Surface:
    """Something to paint: distance ``(H, W)`` in pixels, texture ``(H, W)`` in 0..1, label."""

    distance: np.ndarray
    texture: np.ndarray
    label: int


def _grid(height: int, width: int) -> Grid:
    y, x = np.mgrid[:height, :width]
    return x + 0.5, y + 0.5


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(rng.random())


def _pose(rng: np.random.Generator, height: int, width: int, half: float, spread: float) -> _Pose:
    turn = np.deg2rad(_between(rng, -22, 22))
    return _Pose(
        x=width * (0.5 + _between(rng, -spread, spread)),
        y=height * (0.5 + _between(rng, -spread, spread)),
        half=half,
        cos=float(np.cos(turn)),
        sin=float(np.sin(turn)),
        mirror=1.0 if rng.random() < 0.5 else -1.0,
        aspect=_between(rng, 0.87, 1.15),
    )


def _object(rng: np.random.Generator, kind: int, grid: Grid, pose: _Pose) -> _Surface:
    shape, texture = _KINDS[OBJECT_KINDS[kind]]
    u, v = pose.local(grid)
    distance = shape(rng, u, v, 0.9 / pose.half) * pose.half
    return _Surface(distance, texture(rng, u, v), kind + 1)


def _place(rng: np.random.Generator, grid: Grid, count: int) -> list[_Surface]:
    """Objects from back to front, redrawn until enough of each is visible (twelve tries at most)."""
    height, width = grid[0].shape
    placed: list[_Surface] = []
    for _ in range(count):
        kind = int(rng.integers(len(OBJECT_KINDS)))
        for _ in range(12):
            half = _between(rng, 17, 27)
            candidate = _object(rng, kind, grid, _pose(rng, height, width, half, spread=0.36))
            if _visible([*placed, candidate], half):
                placed.append(candidate)
                break
    return placed


def _visible(surfaces: Sequence[_Surface], half: float) -> bool:
    inside = np.stack([s.distance < 0 for s in surfaces])
    covered = np.cumsum(inside[::-1], axis=0)[::-1] > 1  # something at or after it lies on it
    whole = inside.sum((1, 2))
    newest_in_frame = whole[-1] > 0.35 * half**2  # far less when most of it lies outside the picture
    return bool(newest_in_frame and ((inside & ~covered).sum((1, 2)) > _MIN_VISIBLE * whole).all())


def _compose(
    rng: np.random.Generator, grid: Grid, objects: Sequence[_Surface], clutter: int
) -> tuple[np.ndarray, np.ndarray]:
    """Paint background, clutter and objects; add light, blur and noise."""
    height, width = grid[0].shape
    palette = [_two_colours(rng) for _ in range(2)]
    image = _blend(*palette[0], _background(rng, grid))
    mask = np.zeros((height, width), np.uint8)
    behind = [_clutter(rng, grid, 0.16) for _ in range(clutter)]
    front = [_clutter(rng, grid, 0.09) for _ in range(int(rng.random() < 0.35))]
    for position, surface in enumerate((*behind, *objects, *front)):
        # Some surfaces share the colours of another one in the picture: camouflage.
        colours = palette[int(rng.integers(len(palette)))] if rng.random() < 0.06 else _two_colours(rng)
        palette.append(colours)
        cover = np.clip(0.5 - surface.distance, 0, 1)[..., None]
        image = image * (1 - cover) + _blend(*colours, surface.texture) * cover
        if position >= len(behind):
            inside = surface.distance < 0
            mask[_grown(inside) & ((surface.label > 0) | (mask > 0))] = VOID
            mask[inside] = surface.label
    return _expose(rng, grid, image), mask


def _grown(inside: np.ndarray) -> np.ndarray:
    """``(H, W)`` bool with the eight neighbours of every set pixel."""
    padded = np.pad(inside, 1)
    columns = padded[:, :-2] | padded[:, 1:-1] | padded[:, 2:]
    return columns[:-2] | columns[1:-1] | columns[2:]


def _expose(rng: np.random.Generator, grid: Grid, image: np.ndarray) -> np.ndarray:
    """Light falling off across the picture, a slight blur, and sensor noise; ``(H, W, 3)`` uint8."""
    height, width = grid[0].shape
    angle = _between(rng, 0, 2 * np.pi)
    slope = np.cos(angle) * (grid[0] / width - 0.5) + np.sin(angle) * (grid[1] / height - 0.5)
    image = image * (1 + _between(rng, 0.0, 0.5) * slope[..., None])
    blur = _between(rng, 0.0, 0.25)  # weight of both neighbours along an axis
    for axis in (0, 1):
        padded = np.pad(image, [(1, 1) if a == axis else (0, 0) for a in range(3)], mode="edge")
        before, after = (np.take(padded, np.arange(n, n + image.shape[axis]), axis) for n in (0, 2))
        image = (1 - blur) * image + 0.5 * blur * (before + after)
    image = image + _between(rng, 3, 9) * rng.standard_normal(image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


# --- colours and textures ----------------------------------------------------------------------------


def _two_colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A colour and another at 50 to 110 grey levels from it (before clipping)."""
    first = 35 + 185 * rng.random(3)
    way = rng.standard_normal(3)
    away = np.where(first > 127.5, -1.0, 1.0)  # towards the middle, so that clipping rarely bites
    second = first + _between(rng, 50, 110) * away * np.abs(way) / np.sqrt((way**2).sum())
    return first, np.clip(second, 5, 250)


def _blend(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    return first + (second - first) * share[..., None]


def _wave(phase: np.ndarray, sharpness: float = 2.0) -> np.ndarray:
    """A softened square wave of period ``2 pi`` between 0 and 1."""
    return np.clip(0.5 + 0.5 * sharpness * np.sin(phase), 0, 1)


def _smooth_noise(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, cell: float) -> np.ndarray:
    """Noise in 0..1 whose grains are ``cell`` wide in the units of u and v."""
    lattice = rng.random((64, 64))
    a, b = u / cell + 1024, v / cell + 1024
    i, j = np.floor(a).astype(np.int64), np.floor(b).astype(np.int64)
    p, q = a - i, b - j
    i, j, i1, j1 = i % 64, j % 64, (i + 1) % 64, (j + 1) % 64
    top = lattice[j, i] * (1 - p) + lattice[j, i1] * p
    bottom = lattice[j1, i] * (1 - p) + lattice[j1, i1] * p
    return np.clip(0.5 + 1.4 * (top * (1 - q) + bottom * q - 0.5), 0, 1)


def _bands(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _wave(2 * np.pi * v / _between(rng, 0.26, 0.36) + _between(rng, 0, 6))


def _diamonds(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    rings = np.abs(u) + np.abs(v + 0.4)
    return _wave(2 * np.pi * rings / _between(rng, 0.36, 0.46) + _between(rng, 0, 6))


def _checks(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    period = _between(rng, 0.4, 0.55)
    product = np.sin(2 * np.pi * u / period) * np.sin(2 * np.pi * v / period)
    return np.clip(0.5 + 2 * product, 0, 1)


def _dots(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    period = _between(rng, 0.32, 0.4)
    hills = np.cos(2 * np.pi * (u + 0.5 * v) / period) + np.cos(2 * np.pi * (u - 0.5 * v) / period)
    return np.clip(1.2 * hills - 0.4, 0, 1)


def _rays(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _wave(_between(rng, 11, 15) * np.arctan2(v - 0.1, u), sharpness=3)


def _speckles(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.clip(2.2 * _smooth_noise(rng, u, v, 0.075) - 0.6, 0, 1)


def _background(rng: np.random.Generator, grid: Grid) -> np.ndarray:
    """One of five background textures in 0..1: blotches, grain, stripes, tiles, or a plain slope."""
    x, y = grid
    angle = _between(rng, 0, np.pi)
    along = np.cos(angle) * x + np.sin(angle) * y
    across = np.cos(angle) * y - np.sin(angle) * x
    kind = int(rng.integers(5))
    if kind == 0:
        return _smooth_noise(rng, x, y, _between(rng, 8, 20))
    if kind == 1:
        return _smooth_noise(rng, along, across, _between(rng, 1.5, 4.0))
    if kind == 2:
        return _wave(2 * np.pi * along / _between(rng, 7, 22), sharpness=_between(rng, 1, 3))
    if kind == 3:
        period = _between(rng, 12, 26)
        joints = np.maximum(np.cos(2 * np.pi * along / period), np.cos(2 * np.pi * across / period))
        return np.clip(8 * joints - 7, 0, 1)
    return np.clip(0.5 + (along - along.mean()) / _between(rng, 60, 140), 0, 1)


# --- signed distances --------------------------------------------------------------------------------


def _disc(u: np.ndarray, v: np.ndarray, x: float, y: float, radius: float) -> np.ndarray:
    return np.sqrt((u - x) ** 2 + (v - y) ** 2) - radius


def _ellipse(u: np.ndarray, v: np.ndarray, x: float, y: float, a: float, b: float) -> np.ndarray:
    """First-order distance: the implicit function over the length of its gradient."""
    p, q = (u - x) / a, (v - y) / b
    value = np.sqrt(p**2 + q**2)
    slope = np.sqrt((p / a) ** 2 + (q / b) ** 2)
    return value * (value - 1) / np.maximum(slope, 1e-9)


def _box(
    u: np.ndarray, v: np.ndarray, x: float, y: float, a: float, b: float, corner: float = 0.0
) -> np.ndarray:
    p, q = np.abs(u - x) - (a - corner), np.abs(v - y) - (b - corner)
    outside = np.sqrt(np.maximum(p, 0) ** 2 + np.maximum(q, 0) ** 2)
    return outside + np.minimum(np.maximum(p, q), 0) - corner


def _polygon(u: np.ndarray, v: np.ndarray, corners: Sequence[tuple[float, float]]) -> np.ndarray:
    """Convex polygon, corners clockwise on screen: the largest distance to its edges' lines."""
    points = np.asarray(corners, np.float64)
    edges = np.roll(points, -1, 0) - points
    normals = np.stack([edges[:, 1], -edges[:, 0]], 1) / np.sqrt((edges**2).sum(1, keepdims=True))
    offsets = (normals * points).sum(1)
    return (u[..., None] * normals[:, 0] + v[..., None] * normals[:, 1] - offsets).max(-1)


def _strokes(u: np.ndarray, v: np.ndarray, lines: np.ndarray, width: float) -> np.ndarray:
    """Lines ``(N, 2, 2)`` from point to point, drawn with half the stroke ``width``."""
    (ax, ay), (bx, by) = lines[:, 0].T, lines[:, 1].T
    du, dv, ex, ey = u[..., None] - ax, v[..., None] - ay, bx - ax, by - ay
    share = np.clip((du * ex + dv * ey) / np.maximum(ex**2 + ey**2, 1e-12), 0, 1)
    return np.sqrt(((du - share * ex) ** 2 + (dv - share * ey) ** 2).min(-1)) - width


def _path(points: Sequence[tuple[float, float]] | np.ndarray) -> np.ndarray:
    """Consecutive lines ``(N - 1, 2, 2)`` through ``N`` points."""
    joined = np.asarray(points, np.float64)
    return np.stack([joined[:-1], joined[1:]], 1)


# --- the six kinds: (rng, u, v, thinnest half stroke) -> distance in object units ----------------------


def _mug(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, thin: float) -> np.ndarray:
    body = _box(u, v, -0.22, 0.0, _between(rng, 0.5, 0.62), _between(rng, 0.66, 0.82), 0.12)
    handle = np.abs(_disc(u, v, 0.42, 0.0, _between(rng, 0.34, 0.44))) - max(0.08, thin)
    return np.minimum(body, handle)


def _table(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, thin: float) -> np.ndarray:
    top = _box(u, v, 0.0, -0.42, 0.95, _between(rng, 0.2, 0.28), 0.05)
    outer, inner, foot = _between(rng, 0.78, 0.88), _between(rng, 0.35, 0.5), _between(rng, 0.8, 0.95)
    legs = [[(s * outer, -0.3), (s * outer, foot)] for s in (-1, 1)]
    legs += [[(s * inner, -0.3), (s * inner, foot - 0.3)] for s in (-1, 1)]
    return np.minimum(top, _strokes(u, v, np.array(legs), max(0.06, thin)))


def _fish(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, thin: float) -> np.ndarray:
    body = _ellipse(u, v, -0.3, 0.0, 0.7, _between(rng, 0.4, 0.52))
    tip = _between(rng, 0.38, 0.55)
    tail = _polygon(u, v, [(0.22, 0.0), (0.92, -tip), (0.78, 0.0)])
    tail = np.minimum(tail, _polygon(u, v, [(0.22, 0.0), (0.78, 0.0), (0.92, tip)]))
    sweep = _between(rng, 0.05, 0.35)
    fins = np.array([[(-0.3, -0.3), (sweep, -0.85)], [(-0.3, 0.3), (sweep - 0.1, 0.8)]])
    return np.minimum(np.minimum(body, tail), _strokes(u, v, fins, max(0.06, thin)))


def _umbrella(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, thin: float) -> np.ndarray:
    canopy = np.maximum(_disc(u, v, 0.0, 0.1, _between(rng, 0.85, 0.98)), v - 0.1)
    foot, bend = _between(rng, 0.68, 0.82), _between(rng, 0.13, 0.2)
    turn = np.linspace(0, np.pi, 7)
    hook = np.stack([bend - bend * np.cos(turn), foot + bend * np.sin(turn)], 1)
    pole = _path(np.concatenate([[(0.0, -1.0)], hook]))
    return np.minimum(canopy, _strokes(u, v, pole, max(0.05, thin)))


def _kite(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, thin: float) -> np.ndarray:
    side, cross = _between(rng, 0.62, 0.8), _between(rng, -0.5, -0.3)
    sail = _polygon(u, v, [(0.0, -1.0), (side, cross), (0.0, 0.4), (-side, cross)])
    along = np.linspace(0, 1, 13)
    sway = _between(rng, 0.1, 0.2) * np.sin(_between(rng, 8, 11) * along) + _between(rng, -0.3, 0.3) * along
    tail = _path(np.stack([sway, 0.35 + 0.65 * along], 1))
    return np.minimum(sail, _strokes(u, v, tail, max(0.05, thin)))


def _spider(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, thin: float) -> np.ndarray:
    body = _disc(u, v, 0.0, 0.12, _between(rng, 0.36, 0.44))
    head = _disc(u, v, 0.0, -0.38, _between(rng, 0.18, 0.24))
    lift = _between(rng, 0.1, 0.25)
    height = np.array([-0.9, -0.4, 0.1, 0.6])  # of the feet
    hip = np.stack([np.full(4, 0.15), np.linspace(-0.2, 0.2, 4)], 1)
    knee = np.stack([np.full(4, 0.6), 0.6 * height - lift], 1)
    foot = np.stack([np.array([0.85, 1.0, 1.0, 0.85]), height + 0.2 * rng.random(4)], 1)
    right = np.concatenate([np.stack([hip, knee], 1), np.stack([knee, foot], 1)])
    legs = np.concatenate([right, right * np.array([-1.0, 1.0])])
    return np.minimum(np.minimum(body, head), _strokes(u, v, legs, max(0.045, thin)))


Shape = Callable[[np.random.Generator, np.ndarray, np.ndarray, float], np.ndarray]
Texture = Callable[[np.random.Generator, np.ndarray, np.ndarray], np.ndarray]
_KINDS: dict[str, tuple[Shape, Texture]] = {
    "mug": (_mug, _bands),
    "table": (_table, _checks),
    "fish": (_fish, _dots),
    "umbrella": (_umbrella, _rays),
    "kite": (_kite, _diamonds),
    "spider": (_spider, _speckles),
}
_TEXTURES: tuple[Texture, ...] = tuple(texture for _, texture in _KINDS.values())


def _clutter(rng: np.random.Generator, grid: Grid, size: float) -> _Surface:
    """An unlabelled plain shape, one in three in the texture of some kind; ``size`` of the shorter side."""
    height, width = grid[0].shape
    half = min(height, width) * size * _between(rng, 0.7, 1.5)
    pose = _pose(rng, height, width, half, spread=0.5)
    u, v = pose.local(grid)
    kind = int(rng.integers(5))
    if kind == 0:
        distance = _box(u, v, 0, 0, 1.0, _between(rng, 0.4, 1.0), 0.1)
    elif kind == 1:
        distance = _ellipse(u, v, 0, 0, 1.0, _between(rng, 0.5, 1.0))
    elif kind == 2:
        distance = np.abs(_disc(u, v, 0, 0, 0.8)) - _between(rng, 0.12, 0.25)
    elif kind == 3:
        distance = _polygon(u, v, [(0.0, -1.0), (1.0, 0.8), (-1.0, _between(rng, 0.3, 0.8))])
    else:
        bar = np.array([[(-1.8, 0.0), (1.8, _between(rng, -1, 1))]])
        distance = _strokes(u, v, bar, max(0.1, 0.9 / half))
    if rng.random() < 0.35:
        texture = _TEXTURES[int(rng.integers(len(_TEXTURES)))](rng, u, v)
    else:
        texture = _background(rng, grid)
    return _Surface(distance * half, texture, 0)
