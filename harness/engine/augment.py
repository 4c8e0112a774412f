"""Random augmentation of one sample: picture, label and raw colours move together.

Every random number comes from the sample's own generator, so a sample is the same whatever worker
draws it and whatever was drawn before it.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from harness.engine.batch import IGNORE
from harness.nn.resize import cubic_resize
from harness.recipes.specs import AugmentSpec


@dataclass(frozen=True)
class Sample:
    """One augmented sample.

    Attributes:
        image: ``(H, W, 3)`` uint8 RGB, black where padded.
        label: ``(H, W)`` uint8, 255 where padded.
        valid: ``(H, W)`` bool, False where padded.
        plain: ``(H, W, 3)`` uint8, ``image`` before its colours were changed.
    """

    image: np.ndarray
    label: np.ndarray
    valid: np.ndarray
    plain: np.ndarray


def random_long_side(
    image: Image.Image,
    label: Image.Image,
    scale: tuple[float, float],
    rng: random.Random,
    resample: str = "bilinear",
) -> tuple[Image.Image, Image.Image]:
    """Random long side, an integer uniform in ``scale`` times the present one; proportions are kept.

    Bilinear (AGMM-SASS dataset/transform.py) or cubic (BLPSeg transform.py) for the picture, nearest
    neighbour for the label.
    """
    width, height = image.size
    longest = max(width, height)
    side = rng.randint(int(longest * scale[0]), int(longest * scale[1]))
    if height > width:
        size = (int(width * side / height + 0.5), side)
    else:
        size = (side, int(height * side / width + 0.5))
    size = (max(size[0], 1), max(size[1], 1))
    return resampled(image, label, size, resample, (side / longest, side / longest))


def resampled(
    image: Image.Image,
    label: Image.Image,
    size: tuple[int, int],
    resample: str,
    factors: tuple[float, float],
) -> tuple[Image.Image, Image.Image]:
    """Picture and label at another size.

    Args:
        image, label: of one size.
        size: (width, height) of the result.
        resample: see ``AugmentSpec.resample``.
        factors: of width and height before the size was rounded; where OpenCV is given them, it reads by
            them.
    """
    if resample != "opencv-cubic":
        method = Image.Resampling[resample.upper()]
        return image.resize(size, method), label.resize(size, Image.Resampling.NEAREST)
    pixels = torch.from_numpy(np.array(image, dtype=np.float32)).movedim(-1, 0)[None]
    cubic = cubic_resize(pixels, factors, size[::-1])[0].movedim(0, -1)
    picture = Image.fromarray(cubic.round_().clamp_(0, 255).to(torch.uint8).numpy())
    columns, rows = (
        np.minimum(np.floor(np.arange(n) * (1 / factor)).astype(int), old - 1)
        for n, factor, old in zip(size, factors, label.size, strict=True)
    )
    return picture, Image.fromarray(np.array(label)[rows[:, None], columns])


def crop(
    image: Image.Image, label: Image.Image, size: tuple[int, int], pad: str, rng: random.Random
) -> tuple[Image.Image, np.ndarray, np.ndarray]:
    """Pad to at least ``size`` = (height, width), then cut a random window.

    Returns:
        The picture, its label ``(height, width)`` uint8, and where both are no padding, bool.
    """
    height, width = size
    short = (max(width - image.width, 0), max(height - image.height, 0))
    before = (0, 0)
    if pad == "centre":
        before = (short[0] // 2, short[1] // 2)
    elif pad == "random":
        before = (rng.randint(0, short[0]), rng.randint(0, short[1]))
    left = rng.randint(0, max(image.width - width, 0)) - before[0]
    top = rng.randint(0, max(image.height - height, 0)) - before[1]
    box = (left, top, left + width, top + height)  # beyond the picture's edges, PIL cuts black
    valid = np.zeros(size, dtype=bool)
    valid[max(-top, 0) : image.height - top, max(-left, 0) : image.width - left] = True
    marks = np.array(label.crop(box))
    if any(short):
        marks[~valid] = IGNORE
    return image.crop(box), marks, valid


def area_box(
    size: tuple[int, int], area: tuple[float, float], aspect: tuple[float, float], rng: random.Random
) -> tuple[int, int, int, int]:
    """A window of random area and proportions, drawn as torchvision's RandomResizedCrop does.

    Ten draws; when none fits into the picture, the largest central window of allowed proportions.

    Args:
        size: (width, height) of the picture.
        area: range of the window's share of the picture.
        aspect: range of its width / height, drawn uniformly in the logarithm.
        rng: the sample's generator.

    Returns:
        Left, top, right and bottom in pixels.
    """
    width, height = size
    low, high = math.log(aspect[0]), math.log(aspect[1])
    for _ in range(10):
        pixels = width * height * rng.uniform(*area)
        ratio = math.exp(rng.uniform(low, high))
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.randint(0, width - w), rng.randint(0, height - h)
            return left, top, left + w, top + h
    w = min(width, round(height * aspect[1]))
    h = min(height, round(width / aspect[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def area_crop(
    image: Image.Image, label: Image.Image, size: tuple[int, int], spec: AugmentSpec, rng: random.Random
) -> tuple[Image.Image, np.ndarray, np.ndarray]:
    """Cut out :func:`area_box` and resize it to ``size`` = (height, width); everything is valid."""
    box = area_box(image.size, spec.area, spec.aspect, rng)
    target = (size[1], size[0])
    inside, marks = image.crop(box), label.crop(box)
    factors = (target[0] / inside.width, target[1] / inside.height)
    picture, mask = resampled(inside, marks, target, spec.resample, factors)
    return picture, np.array(mask), np.ones(size, dtype=bool)


def turned_hue(image: Image.Image, turn: float) -> Image.Image:
    """Hue turned by a share of the circle in [-0.5, 0.5], in PIL's 256 steps as torchvision's adjust_hue."""
    hue, saturation, value = image.convert("HSV").split()
    moved = np.array(hue) + np.int32(turn * 255).astype(np.uint8)  # the circle closes: it wraps around
    return Image.merge("HSV", (Image.fromarray(moved), saturation, value)).convert("RGB")


def jitter(
    image: Image.Image, strength: tuple[float, float, float, float], rng: random.Random
) -> Image.Image:
    """Brightness, contrast, saturation and hue in random order, as torchvision's ColorJitter."""
    brightness, contrast, saturation, hue = strength
    changes = [
        (ImageEnhance.Brightness, rng.uniform(max(0.0, 1 - brightness), 1 + brightness)),
        (ImageEnhance.Contrast, rng.uniform(max(0.0, 1 - contrast), 1 + contrast)),
        (ImageEnhance.Color, rng.uniform(max(0.0, 1 - saturation), 1 + saturation)),
        (None, rng.uniform(-hue, hue)),
    ]
    rng.shuffle(changes)
    for change, amount in changes:
        image = turned_hue(image, amount) if change is None else change(image).enhance(amount)
    return image


def recolour(image: Image.Image, spec: AugmentSpec, rng: random.Random) -> Image.Image:
    """Colour jitter, grey, blur, solarisation and brightness shift, each with its own probability."""
    if spec.jitter and rng.random() < spec.jitter:
        image = jitter(image, spec.jitter_strength, rng)
    if spec.grey and rng.random() < spec.grey:
        image = image.convert("L").convert("RGB")
    if spec.blur and rng.random() < spec.blur:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(*spec.blur_sigma)))
    if spec.solarise and rng.random() < spec.solarise:
        image = ImageOps.solarize(image)
    if spec.shift and rng.random() < spec.shift:
        shifted = np.asarray(image, dtype=np.float32) + rng.uniform(*spec.shift_range)
        if spec.shift_rounding == "nearest":
            shifted = shifted.round()
        image = Image.fromarray(shifted.clip(0, 255).astype(np.uint8))
    return image


def augment(
    image: np.ndarray, label: np.ndarray, size: tuple[int, int], spec: AugmentSpec, rng: random.Random
) -> Sample:
    """Crop (see ``AugmentSpec.crop_mode``), mirror, recolour: in this order.

    Args:
        image: ``(h, w, 3)`` uint8.
        label: ``(h, w)`` uint8.
        size: crop (height, width).
        spec: what may happen, and how often.
        rng: the sample's generator.
    """
    picture, marks = Image.fromarray(image), Image.fromarray(label)
    if spec.crop_mode == "area":
        picture, mask, valid = area_crop(picture, marks, size, spec, rng)
    else:
        if spec.scale != (1.0, 1.0):
            picture, marks = random_long_side(picture, marks, spec.scale, rng, spec.resample)
        picture, mask, valid = crop(picture, marks, size, spec.pad, rng)
    if rng.random() < spec.flip:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        mask, valid = mask[:, ::-1].copy(), valid[:, ::-1].copy()
    coloured = recolour(picture, spec, rng)
    array = np.array(coloured)
    if coloured is not picture:
        array[~valid] = 0  # padding stays black whatever the colours do
    return Sample(array, mask, valid, array if coloured is picture else np.array(picture))
