"""Cost of AGMM's terms beside the network that they train, as a share of CPU time in the same run.

Four crops of 321 pixels on VOC (K = 21, C = 256, grid 81), one thread. Target: at most a tenth of the
network's forward and backward pass. Processor time is measured, so that other processes do not count.
"""

from __future__ import annotations

import time

import pytest
import torch

from harness.engine.batch import UNLABELLED
from harness.nn.decoders import DeepLabV3Plus
from harness.nn.encoders import create_encoder
from methods.agmm import AGMMConfig, agmm_loss

BATCH, CLASSES, CHANNELS, CROP, GRID = 4, 21, 256, 321, 81
#: Largest share of the network's time.
TARGET = 0.10


@pytest.fixture(scope="module")
def network_seconds() -> float:
    """CPU seconds of one forward and backward pass of the VOC network."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = DeepLabV3Plus(create_encoder("resnet101s", output_stride=8), CLASSES)
    images = torch.randn(BATCH, 3, CROP, CROP)
    start = time.process_time()
    logits, features = network(images)
    assert features.shape == (BATCH, CHANNELS, GRID, GRID)
    (logits.square().mean() + features.mean()).backward()
    return time.process_time() - start


def labels(kind: str) -> torch.Tensor:
    """Three classes per picture: strokes of five pixels, or dense vertical bands."""
    bands = torch.arange(CROP) * 3 // CROP
    classes = torch.tensor([[0, 1 + 5 * i, 2 + 5 * i] for i in range(BATCH)])
    dense = classes[:, bands][:, None].expand(BATCH, CROP, CROP).clone()
    if kind == "dense":
        return dense
    sparse = torch.full_like(dense, UNLABELLED)
    sparse[:, 100:105, 10:-10] = dense[:, 100:105, 10:-10]
    return sparse


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("kind", ["scribble", "dense"])
def test_terms_cost_a_small_share_of_the_network(benchmark, network_seconds, kind):
    torch.manual_seed(0)
    features = torch.rand(BATCH, CHANNELS, GRID, GRID, requires_grad=True)
    logits = torch.randn(BATCH, CLASSES, CROP, CROP, requires_grad=True)
    mask = labels(kind)
    tags = torch.stack([torch.bincount(m[m < CLASSES], minlength=CLASSES) > 0 for m in mask]).float()

    def step() -> None:
        terms = agmm_loss(features, logits, mask, tags, AGMMConfig())
        torch.autograd.grad(torch.stack(list(terms.values())).sum(), [features, logits])

    benchmark.pedantic(step, rounds=3, warmup_rounds=1)
    share = benchmark.stats.stats.median / network_seconds
    benchmark.extra_info |= {"network_seconds": network_seconds, "share_of_network": share}
    assert share <= TARGET
