"""FSR's own parts against the straightforward form, at the size of its VOC run: two pictures of 448 pixels.

CPU time on one thread in the same run, the best of several repeats, so that other processes hardly count;
both forms give the same values. Targets: the uncertain-block mask at most 1/50 of the time, projector and
distillation at most 2/5.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from methods.fsr.masking import block_mask, token_mask, uncertain_blocks
from methods.parts.distillation import (
    class_distillation,
    distillation_targets,
    masked_tokens,
    patch_distillation,
)
from methods.parts.projector import Projector

BATCH, CLASSES, CROP, BLOCK, GRID, WIDTH = 2, 20, 448, 64, 28, 768
MASK_TARGET, DISTILLATION_TARGET = 1 / 50, 2 / 5


def seconds(function: Callable[[], Any], repeats: int) -> float:
    """Least CPU seconds of one call, after one to warm up."""
    function()
    least = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        function()
        least = min(least, time.process_time() - start)
    return least


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


# --- the mask of uncertain blocks --------------------------------------------------------------------


def mask_of_whole_maps(cam: Tensor, present: Tensor, noise: Tensor) -> Tensor:
    """Every pixel's value first, then one per block; image by image."""
    labels = present[:, :, None, None].repeat(1, 1, CROP, CROP)
    value, _ = (cam * labels).max(1)
    uncertain = ((value > 0.2) & (value < 0.7)).float()
    masks = []
    for one, draw in zip(uncertain, noise, strict=True):
        side = CROP // BLOCK
        blocks = F.interpolate(one[None, None], size=(side, side))[0, 0]
        order = (draw + blocks).flatten().argsort()
        mask = torch.ones(side * side, dtype=torch.bool)
        mask[order[: len(order) - 20]] = False
        masks.append(mask.view(side, side))
    return torch.stack(masks)


def test_the_mask_of_uncertain_blocks_reads_their_pixels_alone(benchmark):
    cam, present = torch.rand(BATCH, CLASSES, CROP, CROP), torch.ones(BATCH, CLASSES)
    noise = torch.rand(BATCH, CROP // BLOCK, CROP // BLOCK)

    def ours() -> Tensor:
        return block_mask(noise, 0.4, uncertain_blocks(cam, present, BLOCK))

    assert torch.equal(ours(), mask_of_whole_maps(cam, present, noise))
    share = seconds(ours, 50) / seconds(lambda: mask_of_whole_maps(cam, present, noise), 5)
    benchmark.extra_info["share_of_whole_maps"] = share
    benchmark(ours)
    assert share <= MASK_TARGET


# --- projector and distillation ----------------------------------------------------------------------


def test_only_tokens_that_count_are_projected(benchmark):
    student, teacher = Projector(WIDTH, 4096), Projector(WIDTH, 4096).requires_grad_(False)
    tokens = torch.randn(2 * BATCH, 1 + GRID**2, WIDTH)  # class token first, view 1 before view 2
    mask = token_mask(block_mask(torch.rand(BATCH, 7, 7)), 4)
    number = int(mask[0].sum())
    patches = torch.zeros(4096)

    def everything() -> Tensor:
        """All tokens of both views through both heads, unmasked ones weighed 0."""
        with torch.no_grad():
            wanted = teacher(tokens)
        outputs = student(tokens)
        target = distillation_targets(wanted[:BATCH, 0], patches, 0.04)
        cls = class_distillation(outputs[None, BATCH:, 0], target)
        target = distillation_targets(wanted[BATCH:, 1:], patches, 0.04)
        return cls + patch_distillation(outputs[BATCH:, 1:], target, mask.flatten(1).float())

    def needed() -> Tensor:
        with torch.no_grad():
            of_class, of_patches = teacher(tokens[:BATCH, 0]), teacher(tokens[BATCH:, 1:])
        index, counts = masked_tokens(mask, number)
        outputs = student(tokens[BATCH:, 1:].gather(1, index[..., None].expand(-1, -1, WIDTH)))
        cls = student(tokens[BATCH:, 0])[None]
        loss = class_distillation(cls, distillation_targets(of_class, patches, 0.04))
        rows = of_patches.gather(1, index[..., None].expand(-1, -1, 4096))
        return loss + patch_distillation(outputs, distillation_targets(rows, patches, 0.04), counts)

    gradients = []
    for form in (needed, everything):
        student.zero_grad()
        form().backward()
        gradients.append([p.grad.clone() for p in student.parameters() if p.grad is not None])
    torch.testing.assert_close(needed(), everything(), rtol=1e-5, atol=0)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
    share = seconds(lambda: needed().backward(), 2) / seconds(lambda: everything().backward(), 2)
    benchmark.extra_info["share_of_all_tokens"] = share
    benchmark.pedantic(lambda: needed().backward(), rounds=1)
    assert share <= DISTILLATION_TARGET
