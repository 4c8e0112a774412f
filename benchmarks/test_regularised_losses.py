"""Regularised losses and dense CRF inference: time and memory against the formulations they replace.

Every test measures both sides in the same run, CPU time on one thread, and asserts the ratio. The table
of ``docs/regularised_losses.md`` is printed by ``python benchmarks/test_regularised_losses.py``.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from measuring import rise_mib
from torch import Tensor

from harness.basics.errors import UserError
from harness.nn.dense_crf import _Potts, dense_crf_loss, mean_field
from harness.nn.lattice import bilateral_features, build_lattice
from methods.parts.affinity_head import affinity_loss
from methods.parts.gated_crf import gated_crf_loss
from methods.parts.tree_energy import tree_energy_loss

CLASSES = 21
pytestmark = pytest.mark.benchmark(timer=time.process_time)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- inputs ------------------------------------------------------------------------------------------


def picture(height: int, width: int) -> Tensor:
    """A synthetic picture with a natural spectrum (1/f) and sensor noise ``(1, 3, H, W)``, 0..255."""
    generator = torch.Generator().manual_seed(0)
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width))
    white = torch.randn(1, 3, height, width, generator=generator)
    smooth = torch.fft.ifft2(torch.fft.fft2(white) / frequency.clamp(min=1 / max(height, width))).real
    low, high = smooth.amin(), smooth.amax()
    noise = 2 * torch.randn(smooth.shape, generator=generator)
    return ((smooth - low) / (high - low) * 255 + noise).round().clamp(0, 255)


def segmentation(height: int, width: int) -> Tensor:
    """Soft predictions ``(1, 21, H, W)`` that vary smoothly and take gradient."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(1, CLASSES, max(height // 16, 2), max(width // 16, 2), generator=generator)
    fine = F.interpolate(4 * coarse, size=(height, width), mode="bilinear", align_corners=False)
    return fine.softmax(1).requires_grad_()


# --- the formulations that are replaced --------------------------------------------------------------


def unfolded_gated_crf(p: Tensor, rgb: Tensor, mask: Tensor, radius: int = 5) -> Tensor:
    """Gated CRF loss (position 6, colour 0.1) with every window unfolded, gradient by autograd."""
    batch, _, height, width = p.shape
    side = 2 * radius + 1

    def windows(x: Tensor) -> Tensor:
        return F.unfold(x, side, padding=radius).view(batch, x.shape[1], side * side, height, width)

    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    features = torch.cat([torch.stack([x, y])[None].expand(batch, 2, height, width) / 6, rgb / 0.1], dim=1)
    kernel = torch.exp(-0.5 * (windows(features) - features[:, :, None]).square().sum(1))
    kernel[:, side * side // 2] = 0
    kernel = kernel * windows(mask[:, None])[:, 0]
    agreement = (windows(p) * p[:, :, None]).sum(1)
    return (kernel * (1 - agreement)).sum() / mask.sum()


def brute_force_filter(features: Tensor, values: Tensor, chunk: int = 1024) -> Tensor:
    """Gaussian sums over all pairs, squares expanded into a matrix product: the fastest plain form."""
    f, v = features.flatten(2)[0].T, values.flatten(2)[0].T
    half = 0.5 * f.square().sum(1)
    rows = [
        torch.addmm(-half, f[i : i + chunk], f.T).sub_(half[i : i + chunk, None]).exp_() @ v
        for i in range(0, len(f), chunk)
    ]
    return torch.cat(rows).T.view(values.shape)


# --- measuring ---------------------------------------------------------------------------------------


def cpu_seconds(jobs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The least CPU time of each job; the jobs take turns, so that all see the same machine."""
    best = dict.fromkeys(jobs, float("inf"))
    for _ in range(rounds + 1):
        for name, job in jobs.items():
            start = time.process_time()
            job()
            best[name] = min(best[name], time.process_time() - start)
    return best


def _rise(name: str, height: int, width: int) -> tuple[float, float]:
    torch.set_num_threads(1)
    job(name, 24, 24)()  # loads what is loaded once
    run = job(name, height, width)
    return rise_mib(run), cpu_seconds({name: run}, rounds=1)[name]


def in_fresh_process(name: str, height: int, width: int) -> tuple[float, float]:
    """A job of :func:`job` in a process of its own: rise of resident memory in MiB, CPU seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["harness.nn.dense_crf", "methods.parts.tree_energy"])
    with context.Pool(1) as pool:
        return pool.apply(_rise, (name, height, width))


def job(name: str, height: int, width: int) -> Callable[[], Any]:
    """A named piece of work on a picture of this size; losses run forward and backward."""
    return _JOBS[name](picture(height, width), segmentation(height, width))


def _backward(loss: Callable[[], Tensor]) -> None:
    loss().backward()


def _gated(image: Tensor, p: Tensor) -> Callable[[], Any]:
    rgb, mask = image / 64 - 2, torch.ones_like(image[:, 0])
    return lambda: _backward(lambda: gated_crf_loss(p, {"rgb": rgb}, mask_src=mask))


def _unfolded(image: Tensor, p: Tensor) -> Callable[[], Any]:
    rgb, mask = image / 64 - 2, torch.ones_like(image[:, 0])
    return lambda: _backward(lambda: unfolded_gated_crf(p, rgb, mask))


def _lattice(image: Tensor, p: Tensor) -> Callable[[], Any]:
    features = bilateral_features(image, sigma_xy=50, sigma_rgb=15)
    return lambda: build_lattice(features).filter(p.detach())


def _brute(image: Tensor, p: Tensor) -> Callable[[], Any]:
    features = bilateral_features(image, sigma_xy=50, sigma_rgb=15)
    return lambda: brute_force_filter(features, p.detach())


def _dense(image: Tensor, p: Tensor) -> Callable[[], Any]:
    free = torch.ones_like(image[:, 0], dtype=torch.bool)
    return lambda: _backward(lambda: dense_crf_loss(p, image, unlabelled=free, scale=1, sigma_xy=50))


def _tree(image: Tensor, p: Tensor) -> Callable[[], Any]:
    free = torch.ones_like(image[:, 0], dtype=torch.bool)
    generator = torch.Generator().manual_seed(2)
    high = torch.randn(1, 256, *p.shape[2:], generator=generator).relu_().mul_(0.1).requires_grad_()
    return lambda: _backward(lambda: tree_energy_loss(p, image / 255, high, free))


def _affinity(image: Tensor, p: Tensor) -> Callable[[], Any]:
    labels = p.detach().argmax(1)
    return lambda: _backward(lambda: affinity_loss(p, labels).loss)


def _mean_field(image: Tensor, p: Tensor) -> Callable[[], Any]:
    return lambda: mean_field(p.detach(), image, "toco")


def _compiled_mean_field(image: Tensor, p: Tensor) -> Callable[[], Any]:
    return lambda: mean_field(p.detach(), image, "toco", engine="pydensecrf")


_JOBS: dict[str, Callable[[Tensor, Tensor], Callable[[], Any]]] = {
    "lattice": _lattice,
    "brute force": _brute,
    "dense CRF loss": _dense,
    "gated CRF loss": _gated,
    "gated CRF, unfolded": _unfolded,
    "tree energy loss": _tree,
    "affinity loss": _affinity,
    "mean field": _mean_field,
    "mean field, pydensecrf": _compiled_mean_field,
}


# --- the ratios --------------------------------------------------------------------------------------


def compare(benchmark: Any, ours: str, theirs: str, size: int, rounds: int) -> float:
    """Our share of the other's CPU time; both go to the report."""
    jobs = {name: job(name, size, size) for name in (ours, theirs)}
    seconds = cpu_seconds(jobs, rounds)
    benchmark.extra_info.update({f"{name} (CPU s)": s for name, s in seconds.items()})
    benchmark.extra_info["time ratio"] = seconds[ours] / seconds[theirs]
    benchmark.pedantic(jobs[ours], rounds=1)
    return seconds[ours] / seconds[theirs]


def test_gated_crf_time(benchmark: Any) -> None:
    image, p = picture(64, 64) / 64 - 2, segmentation(64, 64)
    mask = torch.ones(1, 64, 64)
    ours, theirs = gated_crf_loss(p, {"rgb": image}, mask_src=mask), unfolded_gated_crf(p, image, mask)
    assert torch.allclose(ours, theirs, rtol=1e-5)
    grads = [torch.autograd.grad(loss, p)[0] for loss in (ours, theirs)]
    assert torch.allclose(*grads, rtol=1e-4, atol=1e-9)
    assert compare(benchmark, "gated CRF loss", "gated CRF, unfolded", 224, rounds=3) <= 1 / 6


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_gated_crf_memory(benchmark: Any) -> None:
    mib = {name: in_fresh_process(name, 224, 224)[0] for name in ("gated CRF loss", "gated CRF, unfolded")}
    benchmark.extra_info.update({f"{name} (MiB)": m for name, m in mib.items()})
    benchmark.extra_info["memory ratio"] = mib["gated CRF loss"] / mib["gated CRF, unfolded"]
    benchmark.pedantic(job("gated CRF loss", 224, 224), rounds=1)
    assert mib["gated CRF loss"] <= mib["gated CRF, unfolded"] / 20


def test_lattice_against_brute_force(benchmark: Any) -> None:
    assert compare(benchmark, "lattice", "brute force", 96, rounds=5) <= 1 / 20


def test_lattice_against_pydensecrf(benchmark: Any) -> None:
    """The same work on both sides: build the bilateral lattice, normalise, and one mean-field update."""
    package = pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf is not installed")
    size = 224
    image, p = picture(size, size), segmentation(size, size).detach()
    rgb = image[0].permute(1, 2, 0).to(torch.uint8).contiguous().numpy()
    unary = -p.log()
    energies = unary.flatten(2)[0].contiguous().numpy()

    def compiled() -> Any:
        crf = package.DenseCRF2D(size, size, CLASSES)
        crf.setUnaryEnergy(energies)
        crf.addPairwiseBilateral(sxy=50, srgb=15, rgbim=rgb, compat=4)
        return crf.inference(1)

    def ours() -> Tensor:
        term = _Potts(bilateral_features(image, sigma_xy=50, sigma_rgb=15), 4.0)
        return torch.softmax(term.message(torch.softmax(-unary, dim=1)) - unary, dim=1)

    theirs = torch.from_numpy(np.array(compiled())).view(1, CLASSES, size, size)
    assert (ours() - theirs).abs().max() <= 2e-3
    seconds = cpu_seconds({"torch": ours, "pydensecrf": compiled}, rounds=5)
    benchmark.extra_info.update({f"{name} (CPU s)": s for name, s in seconds.items()})
    benchmark.extra_info["time ratio"] = seconds["torch"] / seconds["pydensecrf"]
    benchmark.pedantic(ours, rounds=1)
    assert seconds["torch"] <= 2.5 * seconds["pydensecrf"]


@pytest.mark.parametrize("name", ["lattice", "gated CRF loss", "affinity loss"])
def test_time_grows_with_the_number_of_pixels(benchmark: Any, name: str) -> None:
    """Four times the pixels cost about four times as much: at most six (caches, and sorting)."""
    seconds = cpu_seconds({str(size): job(name, size, size) for size in (96, 192)}, rounds=5)
    benchmark.extra_info.update({f"{size} (CPU s)": s for size, s in seconds.items()})
    benchmark.pedantic(job(name, 96, 96), rounds=1)
    assert seconds["192"] <= 6 * seconds["96"]


# --- the table ---------------------------------------------------------------------------------------


def table(sizes: tuple[int, ...] = (56, 112, 224, 448)) -> Iterator[str]:
    """CPU seconds and peak MiB of every job by image size: lines of a Markdown table, as they come."""
    # Left out where one run takes minutes or gigabytes, and pydensecrf where it is not installed.
    most = {"brute force": 112, "gated CRF, unfolded": 224}
    try:
        job("mean field, pydensecrf", 24, 24)()
    except UserError:
        most["mean field, pydensecrf"] = 0
    yield "| | " + " | ".join(f"{s}x{s}" for s in sizes) + " |"
    yield "|---" * (len(sizes) + 1) + "|"
    for name in _JOBS:
        cells = []
        for size in sizes:
            if size > most.get(name, size):
                cells.append("-")
                continue
            mib, seconds = in_fresh_process(name, size, size)
            cells.append(f"{seconds:.3f} s, {mib:.0f} MiB")
        yield f"| {name} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in table():
        print(line, flush=True)
