"""Parts of the transformer methods: time against straightforward formulations, in one run.

PAR on 224 x 224 pixels and 21 maps, refinement of two pictures of 448 x 448, the patch contrast of
28 x 28 tokens of width 768 with its gradient, and the projection head on the tokens that FSR's losses
use. Float32, one thread; CPU time is measured, so that other processes do not count, and the least of a
few rounds is compared. Results are compared as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from measuring import user_seconds
from torch import Tensor

from harness.engine.batch import IGNORE
from methods.parts.par import DILATIONS, DIRECTIONS, par, positions, refine_cams
from methods.parts.projector import Projector
from methods.parts.token_contrast import patch_token_contrast

#: Largest shares of the straightforward formulation's time.
PAR_TARGET, REFINE_TARGET, PTC_TARGET = 1 / 5, 1 / 4, 1 / 2
#: FSR: two pictures; the student projects the class and masked tokens of one view, 40 % of its 784
#: patches, instead of all tokens of both; a time in proportion, with room for overheads.
PROJECTOR_TARGET = 1.25 * 321 / 1570


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def measured(run: Callable[[], Any], rounds: int) -> tuple[float, Any]:
    """Least CPU seconds outside the kernel, and the result."""
    seconds, result = [], None
    for _ in range(rounds):
        start = user_seconds()
        result = run()
        seconds.append(user_seconds() - start)
    return min(seconds), result


def note(benchmark, seconds: float, straightforward: float) -> float:
    ratio = seconds / straightforward
    benchmark.extra_info |= {"cpu_seconds": seconds, "straightforward_cpu_seconds": straightforward}
    benchmark.extra_info["time_ratio"] = ratio
    return ratio


# --- PAR ---------------------------------------------------------------------------------------------


def stacked_neighbours(x: Tensor) -> Tensor:
    """``(B, C, 48, H, W)``: a convolution with one-hot kernels for each distance, all kept."""
    batch, channels, height, width = x.shape
    kernel = torch.zeros(8, 1, 3, 3)
    for place, (dy, dx) in enumerate(DIRECTIONS):
        kernel[place, 0, 1 + dy, 1 + dx] = 1
    flat = x.reshape(batch * channels, 1, height, width)
    parts = [F.conv2d(F.pad(flat, (d,) * 4, mode="replicate"), kernel, dilation=d) for d in DILATIONS]
    return torch.cat(parts, 1).view(batch, channels, -1, height, width)


def straightforward_par(images: Tensor, maps: Tensor, iterations: int = 10) -> Tensor:
    """The formula as it stands: neighbours stacked, deviations over them, softmax, weighted sums."""
    near = stacked_neighbours(images)
    deviation = near.std(2, keepdim=True)
    colour = -(((near - images[:, :, None]).abs() / (deviation + 1e-8) / 0.3) ** 2).mean(1, keepdim=True)
    distance = positions(DILATIONS)[None, None, :, None, None]
    place = -((distance / (distance.std() + 1e-8) / 0.3) ** 2)
    weights = colour.softmax(2) + 0.01 * place.softmax(2)
    for _ in range(iterations):
        maps = (stacked_neighbours(maps) * weights).sum(2)
    return maps


def smooth_pictures(count: int, side: int) -> Tensor:
    """Smooth colours with noise, in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 9, 9, generator=generator)
    pictures = F.interpolate(coarse, (side, side), mode="bilinear", align_corners=False)
    return (pictures + 0.05 * torch.randn(pictures.shape, generator=generator)).clamp(0, 1)


def test_par_against_stacked_neighbours(benchmark):
    images = smooth_pictures(1, 224)
    maps = torch.rand(1, 21, 224, 224, generator=torch.Generator().manual_seed(1))
    straightforward, expected = measured(lambda: straightforward_par(images, maps), 1)
    seconds, found = benchmark.pedantic(measured, args=(lambda: par(images, maps), 3), rounds=1)
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-6)
    assert note(benchmark, seconds, straightforward) <= PAR_TARGET


# --- refinement --------------------------------------------------------------------------------------


def straightforward_refinement(images: Tensor, cam: Tensor, tags: Tensor, low: float, high: float) -> Tensor:
    """Picture by picture and background by background, each with its own PAR."""
    size = images.shape[-2:]
    small = F.interpolate(images, scale_factor=0.5, mode="bilinear", align_corners=False)
    labels = []
    for score in (high, low):
        maps = torch.cat([torch.full_like(cam[:, :1], score), cam], 1)
        maps = F.interpolate(maps, scale_factor=0.5, mode="bilinear", align_corners=False)
        rows = []
        for index, present in enumerate(tags):
            keep = torch.cat([torch.zeros(1, dtype=torch.long), 1 + present.nonzero()[:, 0]])
            own = maps[index : index + 1, keep].softmax(1)
            own = straightforward_par(small[index : index + 1], own)
            own = F.interpolate(own, size, mode="bilinear", align_corners=False)
            rows.append(keep[own.argmax(1)])
        labels.append(torch.cat(rows))
    strict, lenient = labels
    result = strict.clone()
    result[strict == 0] = IGNORE
    result[(strict + lenient) == 0] = 0
    return result


def test_refinement_against_one_affinity_for_each_map(benchmark):
    images = smooth_pictures(2, 448)
    coarse = torch.rand(2, 20, 28, 28, generator=torch.Generator().manual_seed(1))
    cam = F.interpolate(coarse, (448, 448), mode="bilinear", align_corners=False)
    tags = torch.zeros(2, 20)
    tags[0, [3, 14]] = 1
    tags[1, 7] = 1
    cam = cam * tags[:, :, None, None]
    straightforward, expected = measured(lambda: straightforward_refinement(images, cam, tags, 0.25, 0.7), 2)
    seconds, found = benchmark.pedantic(
        measured, args=(lambda: refine_cams(images, cam, tags, 0.25, 0.7), 3), rounds=1
    )
    assert len(expected.unique()) == 5
    assert int((found != expected).sum()) == 0
    assert note(benchmark, seconds, straightforward) <= REFINE_TARGET


# --- patch contrast ----------------------------------------------------------------------------------


def straightforward_contrast(features: Tensor, labels: Tensor) -> Tensor:
    """All pairs of tokens: cosines, a matrix of their labels, two masked sums."""
    x = F.normalize(features.flatten(2), dim=1, eps=1e-8)
    cosines = torch.bmm(x.mT, x).abs()
    flat = labels.flatten(1)
    pairs = torch.full(cosines.shape, IGNORE)
    for pair, own in zip(pairs, flat, strict=True):
        same = own[:, None].eq(own[None, :]).long()
        known = own.ne(IGNORE)
        pair[known[:, None] & known[None, :]] = same[known[:, None] & known[None, :]]
        pair.fill_diagonal_(IGNORE)
    positive, negative = (pairs == 1).to(cosines.dtype), (pairs == 0).to(cosines.dtype)
    near = 1 - (cosines * positive).sum() / (positive.sum() + 1)
    far = (cosines * negative).sum() / (negative.sum() + 1)
    return 0.5 * near + 0.5 * far


def test_patch_contrast_against_the_matrix_of_all_pairs(benchmark):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 768, 28, 28, generator=generator).requires_grad_()
    labels = torch.tensor([0, 3, 14])[torch.randint(0, 3, (2, 28, 28), generator=generator)]
    labels[torch.rand(2, 28, 28, generator=generator) < 0.3] = IGNORE

    def step(loss: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        value = loss(features, labels)
        return value.detach(), torch.autograd.grad(value, features)[0]

    straightforward, expected = measured(lambda: step(straightforward_contrast), 7)
    run = lambda: step(patch_token_contrast)  # noqa: E731
    seconds, found = benchmark.pedantic(measured, args=(run, 7), rounds=1)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-9)
    assert note(benchmark, seconds, straightforward) <= PTC_TARGET


# --- projection head ---------------------------------------------------------------------------------


@torch.no_grad()
def test_projecting_the_tokens_used_against_all(benchmark):
    torch.manual_seed(0)
    projector = Projector(768, 4096)
    tokens = torch.randn(2, 785, 768)  # two views of one picture, the class token first
    used = torch.zeros(2, 785, dtype=torch.bool)
    used[1, 0] = True
    used[1, 1 : 1 + 320] = True
    straightforward, everything = measured(lambda: projector(tokens), 2)
    seconds, found = benchmark.pedantic(measured, args=(lambda: projector(tokens[used]), 3), rounds=1)
    torch.testing.assert_close(found, everything[used], rtol=1e-4, atol=1e-6)
    assert note(benchmark, seconds, straightforward) <= PROJECTOR_TARGET
