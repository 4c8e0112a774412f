"""The permutohedral lattice against the authors' C++ filter, a dictionary version, and exact sums."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.nn.lattice import bilateral_features, build_lattice, gaussian_filter


@pytest.fixture(params=["kept", pytest.param("full", marks=pytest.mark.golden)])
def vectors(request: pytest.FixtureRequest) -> np.lib.npyio.NpzFile:
    folder = request.getfixturevalue("golden" if request.param == "kept" else "full_golden")
    return np.load(folder / "reg" / "rloss_dense_crf.npz")


def test_golden_filter(vectors: np.lib.npyio.NpzFile) -> None:
    cases = [c for c in range(len(vectors["configs"])) if f"c{c}_AS" in vectors]
    assert len(cases) >= 4
    for c in cases:
        sigma_rgb, sigma_xy, scale, _ = vectors["configs"][c]
        images, seg, roi, filtered, exact = (
            torch.from_numpy(vectors[f"c{c}_{name}"])
            for name in ("scaled_image", "scaled_seg", "scaled_roi", "AS", "AS_exact")
        )
        values = seg * roi[:, None]
        features = bilateral_features(images, sigma_xy=sigma_xy * scale, sigma_rgb=sigma_rgb)
        ours = build_lattice(features).filter(values)
        assert (ours - filtered).norm() <= 1e-6 * filtered.norm()
        assert (ours - filtered).abs().max() <= 1e-5
        assert torch.allclose(gaussian_filter(features, values).double(), exact, rtol=1e-5, atol=0)


def dictionary_filter(features: Tensor, values: Tensor) -> Tensor:
    """The published algorithm point by point, with a dictionary of vertices; ``(n, d)``, ``(n, C)``."""
    d = features.shape[1]
    table: dict[tuple[int, ...], np.ndarray] = {}
    touched = []
    for f, v in zip(features.double().numpy(), values.double().numpy(), strict=True):
        c = [f[j] * math.sqrt(2 / 3) * (d + 1) / math.sqrt((j + 1) * (j + 2)) for j in range(d)]
        e = [sum(c)] + [sum(c[j:]) - j * c[j - 1] for j in range(1, d + 1)]
        r = [(d + 1) * round(x / (d + 1)) for x in e]
        excess = sum(r) // (d + 1)
        order = sorted(range(d + 1), key=lambda i: (-(e[i] - r[i]), i))
        rank = [order.index(i) + excess for i in range(d + 1)]
        for i in range(d + 1):
            wrap = (d + 1) * ((rank[i] < 0) - (rank[i] > d))
            rank[i], r[i] = rank[i] + wrap, r[i] + wrap
        b = [0.0] * (d + 2)
        for i in range(d + 1):
            b[d - rank[i]] += (e[i] - r[i]) / (d + 1)
            b[d - rank[i] + 1] -= (e[i] - r[i]) / (d + 1)
        b[0] += 1 + b[d + 1]
        keys = [
            tuple(r[i] + (k if rank[i] <= d - k else k - d - 1) for i in range(d + 1)) for k in range(d + 1)
        ]
        for key, weight in zip(keys, b, strict=False):
            table[key] = table.get(key, 0) + weight * v
        touched.append(list(zip(keys, b, strict=False)))
    for axis in range(d + 1):
        step = [d if i == axis else -1 for i in range(d + 1)]
        table = {
            key: value
            + sum(table.get(tuple(k + s * t for k, t in zip(key, step, strict=True)), 0) for s in (1, -1)) / 2
            for key, value in table.items()
        }
    rows = [sum(weight * table[key] for key, weight in corners) for corners in touched]
    return torch.from_numpy(np.stack(rows)) / (1 + 2.0**-d)


@pytest.mark.parametrize("d", [1, 2, 3, 5, 7])
def test_matches_the_dictionary_version(d: int) -> None:
    torch.manual_seed(d)
    features, values = 2 * torch.randn(2, d, 6, 5).double(), torch.randn(2, 3, 6, 5).double()
    features[:, :, 0] = features[:, :, 0].round()  # ties and points on faces
    ours = build_lattice(features).filter(values)
    for f, v, out in zip(features.flatten(2), values.flatten(2), ours.flatten(2), strict=True):
        assert torch.allclose(out.T, dictionary_filter(f.T, v.T), rtol=1e-12, atol=1e-12)


def test_pictures_of_a_batch_do_not_mix() -> None:
    torch.manual_seed(0)
    features, values = torch.randn(3, 5, 9, 7), torch.rand(3, 4, 9, 7)
    together = build_lattice(features).filter(values)
    alone = [build_lattice(f[None]).filter(v[None]) for f, v in zip(features, values, strict=True)]
    assert torch.allclose(together, torch.cat(alone), rtol=1e-5)
    assert torch.equal(together, build_lattice(features).filter(values))


def test_weights_are_barycentric() -> None:
    torch.manual_seed(0)
    lattice = build_lattice(3 * torch.randn(2, 5, 40).double())
    assert torch.allclose(lattice.weights.sum(1), torch.ones(80).double())
    assert lattice.weights.min() >= -1e-12
    assert lattice.corners.max() < lattice.num_vertices
    assert lattice.points.numel() == lattice.corners.numel()


def test_neighbours_are_mutual() -> None:
    torch.manual_seed(0)
    lattice = build_lattice(torch.randn(2, 3, 60))
    here, back, forth = lattice.stencils.unbind(2)
    m = lattice.num_vertices
    found = 0
    for axis in range(4):
        linked = back[axis] < m
        assert torch.equal(forth[axis][back[axis][linked]], here[axis][linked])
        assert linked.sum() == (forth[axis] < m).sum()
        found += int(linked.sum())
    assert found > 0


def test_transposed_is_the_adjoint() -> None:
    torch.manual_seed(0)
    lattice = build_lattice(2 * torch.randn(2, 3, 30).double())
    x, y = torch.randn(2, 2, 2, 30).double()
    assert torch.allclose((lattice.filter(x) * y).sum(), (x * lattice.filter(y, transposed=True)).sum())
    assert not torch.allclose(lattice.filter(x), lattice.filter(x, transposed=True))


def test_gradients() -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 3, 4, 3).double()
    values = torch.randn(2, 2, 4, 3).double().requires_grad_()
    lattice = build_lattice(features)
    assert torch.autograd.gradcheck(lattice.filter, values)
    assert torch.autograd.gradcheck(lambda v: lattice.filter(v, transposed=True), values)
    assert torch.autograd.gradcheck(lambda v: gaussian_filter(features, v, chunk=5), values)


def test_exact_filter_is_the_sum_over_pairs() -> None:
    torch.manual_seed(0)
    features, values = torch.randn(2, 4, 5, 3).double(), torch.randn(2, 3, 5, 3).double()
    f = features.flatten(2)
    kernel = torch.exp(-0.5 * (f[:, :, :, None] - f[:, :, None]).square().sum(1))
    expected = (values.flatten(2) @ kernel).view_as(values)
    for chunk in (4, 15, 1000):
        assert torch.allclose(gaussian_filter(features, values, chunk=chunk), expected)


def test_features_are_position_then_colour() -> None:
    images = torch.randint(0, 256, (1, 3, 2, 3), dtype=torch.uint8)
    features = bilateral_features(images, sigma_xy=2, sigma_rgb=5)
    assert features.dtype == torch.float32
    for y, x in itertools.product(range(2), range(3)):
        assert torch.allclose(features[0, :2, y, x], torch.tensor([x / 2, y / 2]))
    assert torch.allclose(features[:, 2:], images / 5)
    assert torch.equal(bilateral_features(images, sigma_xy=2, sigma_rgb=None), features[:, :2])
    assert bilateral_features(images.double(), sigma_xy=2, sigma_rgb=5).dtype == torch.float64


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.tensor([[[0.0, math.nan]]]), "not finite"),
        (torch.tensor([[[0.0, 1e7]] * 5]), "larger deviations"),
    ],
)
def test_bad_features_are_refused(features: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_lattice(features)


def test_values_of_another_size_are_refused() -> None:
    lattice = build_lattice(torch.randn(1, 2, 4, 4))
    with pytest.raises(ValueError, match="do not fit"):
        lattice.filter(torch.randn(1, 2, 4, 5))
