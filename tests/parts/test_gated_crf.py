"""Gated CRF loss against the authors' module and against the sum over all pairs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from methods.parts.gated_crf import GatedCRFKernel, gated_crf_loss, half_window, neighbours_inside


@pytest.fixture(params=["kept", pytest.param("full", marks=pytest.mark.golden)])
def vectors(request: pytest.FixtureRequest) -> np.lib.npyio.NpzFile:
    folder = request.getfixturevalue("golden" if request.param == "kept" else "full_golden")
    return np.load(folder / "reg" / "gated_crf.npz")


def kernels_of(description: list[dict[str, float]]) -> list[GatedCRFKernel]:
    return [
        GatedCRFKernel(weight=d["weight"], sigmas={k: v for k, v in d.items() if k != "weight"})
        for d in description
    ]


def test_golden(vectors: np.lib.npyio.NpzFile) -> None:
    seen = {"cases_json", "prob", "logits", "rgb", "feat", "mask_src", "mask_dst", "down_logits"}

    def get(name: str) -> Tensor:
        seen.add(name)
        return torch.from_numpy(np.asarray(vectors[name]))

    cases = json.loads(str(vectors["cases_json"]))
    assert len(cases) == 7
    for case in cases:
        name = case["name"]
        features = {"rgb": get("rgb"), "feat": get("feat")}
        settings = {"kernels": kernels_of(case["kernels_desc"]), "radius": case["radius"]}
        settings["mask_src"] = get("mask_src")[:, 0] if case["mask_src"] else None
        settings["mask_dst"] = get("mask_dst")[:, 0] if case["mask_dst"] else None
        logits = get("down_logits" if name == "down" else "logits").requires_grad_()
        prob = logits.softmax(1)
        prob.retain_grad()

        loss = gated_crf_loss(prob, features, count_outside=True, **settings)
        loss.backward()
        assert loss.item() == pytest.approx(get(f"{name}_loss").item(), rel=1e-5)
        assert torch.allclose(logits.grad, get(f"{name}_grad_logits"), rtol=0, atol=1e-8)
        if name == "down":
            continue
        grad = get(f"{name}_grad_prob")  # up to 0.03, so that float32 resolves 2e-9 at best
        assert torch.allclose(prob.grad, grad, rtol=1e-6, atol=1e-8)

        features["feat"].requires_grad_()
        double = get("logits").double().requires_grad_()
        prob = double.softmax(1)
        prob.retain_grad()
        inside = gated_crf_loss(prob, features, **settings)
        inside.backward()
        assert torch.allclose(prob.grad, grad.double(), rtol=0, atol=1e-8)
        assert inside.item() == pytest.approx(get(f"{name}_ref_loss").item(), rel=1e-5)
        assert inside.item() == pytest.approx(get(f"{name}_loss_ref64_inbounds").item(), rel=1e-5)
        assert torch.allclose(double.grad, get(f"{name}_ref_grad_logits"), rtol=0, atol=1e-8)
        if name.startswith("deep"):
            grad = get(f"{name}_ref_grad_feat")
            assert torch.allclose(features["feat"].grad.double(), grad, rtol=0, atol=1e-8)
    assert seen == set(vectors.files)


def all_pairs(
    p: Tensor,
    modalities: Mapping[str, Tensor],
    kernels: Sequence[GatedCRFKernel],
    radius: int,
    src: Tensor | None,
    dst: Tensor | None,
) -> Tensor:
    """The formula with an ``N x N`` kernel, in-image pairs only."""
    batch, _, height, width = p.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    at = torch.stack([x, y]).to(p.dtype).expand(batch, 2, height, width)
    named = {**modalities, "xy": at}

    def squared(f: Tensor) -> Tensor:
        f = f.flatten(2)
        return (f[:, :, :, None] - f[:, :, None]).square().sum(1)

    k = sum(
        kernel.weight * torch.exp(-0.5 * sum(squared(named[n]) / s**2 for n, s in kernel.sigmas.items()))
        for kernel in kernels
    )
    apart = (at.flatten(2)[:, :, :, None] - at.flatten(2)[:, :, None]).abs().amax(1)
    k = k * ((apart <= radius) & (apart > 0))
    denominator = p[:, 0].numel()
    if src is not None:
        k, denominator = k * src.flatten(1)[:, None], src.sum()
    if dst is not None:
        k, denominator = k * dst.flatten(1)[:, :, None], dst.sum()
    flat = p.flatten(2)
    return (k * (1 - flat.transpose(1, 2) @ flat)).sum() / denominator


@pytest.fixture
def scene() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).double()

    return {
        "p": draw(2, 3, 4, 5).softmax(1),
        "rgb": draw(2, 3, 4, 5),
        "deep": draw(2, 4, 4, 5),
        "src": (draw(2, 4, 5) > -0.5).double(),
        "dst": (draw(2, 4, 5) > -0.5).double(),
    }


MIXTURE = (
    GatedCRFKernel(weight=0.7, sigmas={"xy": 2.0, "rgb": 1.0, "deep": 1.5}),
    GatedCRFKernel(weight=0.3, sigmas={"xy": 3.0}),
    GatedCRFKernel(weight=0.2, sigmas={"deep": 2.0}),
)


@pytest.mark.parametrize("radius", [1, 2, 9])
@pytest.mark.parametrize("masks", [(), ("src",), ("dst",), ("src", "dst")])
def test_matches_all_pairs(scene: dict[str, Tensor], radius: int, masks: tuple[str, ...]) -> None:
    src, dst = (scene[m] if m in masks else None for m in ("src", "dst"))
    modalities = {"rgb": scene["rgb"], "deep": scene["deep"].requires_grad_()}
    p = scene["p"].requires_grad_()
    ours = gated_crf_loss(p, modalities, kernels=MIXTURE, radius=radius, mask_src=src, mask_dst=dst)
    expected = all_pairs(p, modalities, MIXTURE, radius, src, dst)
    assert torch.allclose(ours, expected, rtol=1e-12)
    for a, b in zip(
        torch.autograd.grad(ours, (p, modalities["deep"])),
        torch.autograd.grad(expected, (p, modalities["deep"])),
        strict=True,
    ):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("count_outside", [False, True])
def test_gradient_by_finite_differences(scene: dict[str, Tensor], count_outside: bool) -> None:
    def loss(p: Tensor, deep: Tensor) -> Tensor:
        return gated_crf_loss(
            p,
            {"rgb": scene["rgb"], "deep": deep},
            kernels=MIXTURE,
            radius=2,
            mask_dst=scene["dst"],
            count_outside=count_outside,
        )

    inputs = (scene["p"].requires_grad_(), scene["deep"].requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs, fast_mode=True)


def test_outside_neighbours_are_zero_pixels(scene: dict[str, Tensor]) -> None:
    # Zero-padded by hand: the sum over pairs whose receiver is in the image.
    radius = 2
    p, rgb = (torch.nn.functional.pad(scene[n], (radius,) * 4) for n in ("p", "rgb"))
    y, x = torch.meshgrid(torch.arange(4), torch.arange(5), indexing="ij")
    at = torch.nn.functional.pad(torch.stack([x, y]).double(), (radius,) * 4).expand(2, 2, 8, 9)
    total = torch.zeros((), dtype=torch.float64)
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            if (dy, dx) != (0, 0):
                a = (..., slice(2, 6), slice(2, 7))
                b = (..., slice(2 + dy, 6 + dy), slice(2 + dx, 7 + dx))
                near = (at[a] - at[b]).square().sum(1) / 36 + (rgb[a] - rgb[b]).square().sum(1) / 0.09
                total += (torch.exp(-0.5 * near) * (1 - (p[a] * p[b]).sum(1))).sum()
    kernels = [GatedCRFKernel(sigmas={"xy": 6.0, "rgb": 0.3})]
    modalities = {"rgb": scene["rgb"]}
    ours = gated_crf_loss(scene["p"], modalities, kernels=kernels, radius=radius, count_outside=True)
    assert torch.allclose(ours, total / 40, rtol=1e-12)
    assert ours > gated_crf_loss(scene["p"], modalities, kernels=kernels, radius=radius)


def test_larger_modalities_and_masks_are_averaged(scene: dict[str, Tensor]) -> None:
    p = scene["p"]
    large = scene["rgb"].repeat_interleave(2, 2).repeat_interleave(2, 3)
    mask = torch.ones(2, 8, 10, dtype=torch.bool)
    mask[:, 0, 0] = False  # one corner pixel makes the whole of its cell invalid
    small = torch.ones(2, 4, 5, dtype=torch.bool)
    small[:, 0, 0] = False
    ours = gated_crf_loss(p, {"rgb": large}, mask_src=mask, mask_dst=mask)
    expected = gated_crf_loss(p, {"rgb": scene["rgb"]}, mask_src=small, mask_dst=small)
    assert torch.allclose(ours, expected, rtol=1e-12)


def test_empty_mask_gives_zero(scene: dict[str, Tensor]) -> None:
    p = scene["p"].requires_grad_()
    nothing = torch.zeros(2, 4, 5)
    loss = gated_crf_loss(p, {"rgb": scene["rgb"]}, mask_src=nothing)
    loss.backward()
    assert loss == 0
    assert (p.grad == 0).all()


def test_equal_certain_neighbours_cost_nothing(scene: dict[str, Tensor]) -> None:
    p = torch.zeros(2, 3, 4, 5)
    p[:, 1] = 1
    assert gated_crf_loss(p, {"rgb": scene["rgb"]}).abs() <= 1e-6


def test_autocast_is_left(scene: dict[str, Tensor]) -> None:
    low = scene["p"].to(torch.bfloat16).requires_grad_()
    modalities = {"rgb": scene["rgb"].float()}
    with torch.autocast("cpu", torch.bfloat16):
        loss = gated_crf_loss(low, modalities)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.equal(loss, gated_crf_loss(low.detach().float(), modalities))
    assert low.grad.dtype == torch.bfloat16


def test_unknown_modalities_are_refused(scene: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"\['rgb', 'xy'\], modalities given: \['deep'\]"):
        gated_crf_loss(scene["p"], {"deep": scene["deep"]})
    with pytest.raises(ValueError, match=r"kernel over \[\]"):
        gated_crf_loss(scene["p"], {}, kernels=[GatedCRFKernel(sigmas={})])


@pytest.mark.parametrize(("radius", "height", "width"), [(1, 4, 5), (3, 4, 5), (7, 3, 2), (2, 1, 6)])
def test_half_window_visits_each_pair_once(radius: int, height: int, width: int) -> None:
    index = torch.arange(height * width).view(height, width)
    pairs = [
        tuple(sorted(pair))
        for _, _, here, there in half_window(radius, height, width)
        for pair in zip(index[here].flatten().tolist(), index[there].flatten().tolist(), strict=True)
    ]
    y, x = index // width, index % width
    near = (y.flatten()[:, None] - y.flatten()).abs().maximum((x.flatten()[:, None] - x.flatten()).abs())
    expected = {(i, j) for i, j in (near <= radius).nonzero().tolist() if i < j}
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == expected
    inside = neighbours_inside(radius, height, width, torch.device("cpu"))
    assert torch.equal(inside.flatten(), (near <= radius).sum(1))
