"""Window affinities and their losses against golden vectors and direct formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from methods.parts.affinity_head import (
    affinity_loss,
    affinity_regulariser,
    window_distance,
    window_inside,
)


@pytest.fixture(params=["kept", pytest.param("full", marks=pytest.mark.golden)])
def vectors(request: pytest.FixtureRequest) -> np.lib.npyio.NpzFile:
    folder = request.getfixturevalue("golden" if request.param == "kept" else "full_golden")
    return np.load(folder / "reg" / "affinity_head_a2gnn.npz")


def test_golden(vectors: np.lib.npyio.NpzFile) -> None:
    seen: set[str] = set()

    def get(name: str) -> Tensor:
        seen.add(name)
        return torch.from_numpy(np.asarray(vectors[name]))

    radius = int(get("radius"))
    feat = get("feat").requires_grad_()
    distance = window_distance(feat, radius)
    assert torch.allclose(distance, get("dist"), rtol=0, atol=1e-5)
    assert torch.allclose(torch.exp(-distance), get("affinity"), rtol=0, atol=1e-5)

    loss = affinity_regulariser(feat, get("rgb"), mask=get("mask")[:, 0], radius=radius)
    assert loss.item() == pytest.approx(get("loss_reg").item(), abs=1e-5)
    (grad,) = torch.autograd.grad(loss, feat)
    assert torch.allclose(grad, get("grad_feat_reg"), rtol=0, atol=1e-8)

    for name, pad in (("asimpl", True), ("inbounds", False)):
        result = affinity_loss(feat, get("label")[:, 0].long(), radius=radius, pad_background=pad)
        parts = torch.stack([result.background, result.foreground, result.different])
        expected = get(f"parts_{name}")
        assert torch.allclose(parts.double(), expected[:3], rtol=0, atol=1e-5)
        assert result.counts.tolist() == expected[3:].tolist()
        assert result.loss.item() == pytest.approx(get(f"loss_aff_{name}").item(), abs=1e-5)
        (grad,) = torch.autograd.grad(result.loss, feat)
        assert torch.allclose(grad, get(f"grad_feat_aff_{name}"), rtol=0, atol=1e-5)
    assert seen == set(vectors.files)


@pytest.mark.parametrize(("radius", "size"), [(1, (4, 5)), (2, (4, 5)), (6, (3, 4))])
def test_distance_matches_the_unfolded_one(radius: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    z = torch.randn(2, 3, *size).double().requires_grad_()
    side = 2 * radius + 1
    windows = torch.nn.functional.unfold(z, side, padding=radius).view(2, 3, side, side, *size)
    expected = (windows - z[:, :, None, None]).abs().mean(1)
    ours = window_distance(z, radius)
    assert torch.allclose(ours, expected)
    upstream = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad(ours, z, upstream), torch.autograd.grad(expected, z, upstream), strict=True
    ):
        assert torch.allclose(a, b)
    inside = torch.nn.functional.unfold(torch.ones(1, 1, *size), side, padding=radius)
    assert torch.equal(window_inside(radius, *size), inside.view(side, side, *size) > 0)


def test_gradient_by_finite_differences() -> None:
    torch.manual_seed(0)
    z = torch.randn(2, 2, 3, 4).double().requires_grad_()
    labels = torch.randint(0, 3, (2, 3, 4))
    labels[0, 0] = 254
    rgb = torch.randn(2, 3, 3, 4)
    for pad in (False, True):
        assert torch.autograd.gradcheck(
            lambda x, pad=pad: affinity_loss(x, labels, radius=2, pad_background=pad).loss, z
        )
    assert torch.autograd.gradcheck(lambda x: affinity_regulariser(x, rgb, radius=2, sigma_rgb=1.0), z)


def test_nothing_to_compare_costs_nothing() -> None:
    z = torch.randn(1, 2, 4, 4, requires_grad=True)
    result = affinity_loss(z, torch.full((1, 4, 4), 254), radius=2)
    result.loss.backward()
    assert result.loss == 0
    assert result.counts.tolist() == [0, 0, 0]
    assert (z.grad == 0).all()


def test_neighbours_outside_are_left_out() -> None:
    torch.manual_seed(0)
    z = torch.randn(1, 2, 3, 3)
    labels = torch.zeros(1, 3, 3, dtype=torch.int64)
    inside = affinity_loss(z, labels, radius=1)
    assert inside.counts.tolist() == [49, 0, 0]  # 20 neighbouring pairs, both ways, and 9 pixels
    padded = affinity_loss(z, labels, radius=1, pad_background=True)
    assert padded.counts.tolist() == [81, 0, 0]


def test_autocast_is_left() -> None:
    torch.manual_seed(0)
    z = torch.randn(1, 4, 5, 5).bfloat16().requires_grad_()
    labels, rgb = torch.randint(0, 3, (1, 5, 5)), torch.randn(1, 3, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        loss = affinity_loss(z, labels).loss + affinity_regulariser(z, rgb)
    loss.backward()
    assert loss.dtype == torch.float32
    assert z.grad.dtype == torch.bfloat16
    again = affinity_loss(z.float(), labels).loss + affinity_regulariser(z.float(), rgb)
    assert torch.equal(loss, again)
