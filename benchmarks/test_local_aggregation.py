"""Local aggregation: time and memory against the written-out formulation, in one run.

96 x 96 positions (a crop of 384 pixels), 256 channels, 21 classes, one picture, float32, one thread,
forward and backward. CPU time is measured, so that other processes do not count; memory is the resident
peak above the inputs, each formulation in a process of its own. ``python
benchmarks/test_local_aggregation.py`` prints how both scale with the grid.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from measuring import rise_mib
from torch import Tensor

from methods.parts.local_aggregation import EPSILON, local_aggregation

SIDE, CHANNELS, CLASSES, SIGMA = 96, 256, 21, 6.0
#: Largest shares of the written-out formulation's cost, for the default.
TIME_TARGET, MEMORY_TARGET = 2 / 3, 1 / 7

Formulation = Callable[[Tensor, Tensor], Tensor]


def distance_kernel(side: int) -> Tensor:
    """``(L, L)`` Gaussian of the distance of any two positions."""
    steps = torch.arange(side, dtype=torch.float32)
    x = torch.cartesian_prod(steps, steps)
    return torch.exp(-torch.cdist(x, x).square() / (2 * SIGMA**2))


def written_out(scores: Tensor, features: Tensor, near: Tensor) -> Tensor:
    """The formula as it stands: softmax, product with the kernel, normalisation, product with the scores."""
    flat = features.flatten(2)
    kernel = torch.bmm(flat.mT, flat).softmax(1) * near
    kernel = kernel / (kernel.sum(1, keepdim=True) + EPSILON)
    return torch.bmm(scores.flatten(2), kernel).unflatten(2, scores.shape[-2:])


def inputs(side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, smooth features of the magnitude that the authors' initialisation gives, and a gradient."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, CHANNELS, max(side // 8, 2), max(side // 8, 2), generator=generator)
    features = 1.4 * F.interpolate(coarse, size=(side, side), mode="bicubic")
    features += 0.1 * torch.randn(features.shape, generator=generator)
    scores, grad = (torch.randn(1, CLASSES, side, side, generator=generator) for _ in range(2))
    return scores.requires_grad_(), features.requires_grad_(), grad


def formulation(name: str, side: int) -> Formulation:
    if name == "written out":
        return partial(written_out, near=distance_kernel(side))
    return partial(local_aggregation, sigma=SIGMA, epsilon=name)


def step(run: Formulation, scores: Tensor, features: Tensor, grad: Tensor) -> None:
    torch.autograd.grad(run(scores, features), (scores, features), grad)


def _measure(name: str, side: int, repeats: int, queue: Any) -> None:
    torch.set_num_threads(1)
    step(formulation(name, 16), *inputs(16))  # libraries load and threads start outside the measurement
    run, data = formulation(name, side), inputs(side)
    seconds: list[float] = []

    def steps() -> None:
        for _ in range(repeats):
            start = time.process_time()
            step(run, *data)
            seconds.append(time.process_time() - start)

    peak = rise_mib(steps)
    queue.put((min(seconds), peak))


def measured(name: str, side: int = SIDE, repeats: int = 2) -> tuple[float, float]:
    """Least CPU seconds and peak MiB of a step, in a fresh process.

    The written-out kernel of distances counts as an input. It is made after the whole interpreter is
    loaded, so a peak from before does not hide what a step needs.
    """
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_measure, args=(name, side, repeats, queue))
    process.start()
    result = queue.get(timeout=600)
    process.join()
    return result


@pytest.fixture(scope="module")
def naive() -> tuple[float, float]:
    return measured("written out")


@pytest.mark.parametrize("epsilon", ["none", "reference"])
def test_local_aggregation_against_the_written_out_form(benchmark, naive, epsilon):
    seconds, peak = benchmark.pedantic(measured, args=(epsilon,), rounds=1)
    shares = {"time": seconds / naive[0], "memory": peak / naive[1]}
    benchmark.extra_info |= {
        "cpu_seconds": seconds,
        "written_out_cpu_seconds": naive[0],
        "time_ratio": shares["time"],
        "peak_mib": peak,
        "written_out_peak_mib": naive[1],
        "memory_ratio": shares["memory"],
    }
    assert shares["time"] <= TIME_TARGET
    assert shares["memory"] <= MEMORY_TARGET


if __name__ == "__main__":
    print("grid     formulation   CPU s   peak MiB")
    for grid in (24, 48, 96, 144):
        for which in ("written out", "none", "reference"):
            if grid > 96 and which == "written out":
                continue  # twelve gigabytes
            cost = measured(which, grid)
            print(f"{grid:3}x{grid:<3}  {which:12}  {cost[0]:6.2f}  {cost[1]:8.0f}")
