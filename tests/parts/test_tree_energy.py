"""Tree energy loss against golden vectors and against affinities of all pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csgraph, csr_array
from torch import Tensor

from methods.parts.tree_energy import grid_edges, spanning_tree, tree_energy_loss, tree_filter


@pytest.fixture(params=["kept", pytest.param("full", marks=pytest.mark.golden)])
def vectors(request: pytest.FixtureRequest) -> np.lib.npyio.NpzFile:
    folder = request.getfixturevalue("golden" if request.param == "kept" else "full_golden")
    return np.load(folder / "reg" / "tree_energy_exact.npz")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_golden(vectors: np.lib.npyio.NpzFile, dtype: torch.dtype) -> None:
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    seen = {"sigma_low", "weight"}

    def get(name: str) -> Tensor:
        seen.add(name)
        return torch.from_numpy(np.asarray(vectors[name])).to(dtype)

    assert float(vectors["weight"]) == 1
    for case, sigma_low in (
        ("low_only", float(vectors["sigma_low"])),
        ("low_high", float(vectors["sigma_low"])),
        ("low_high_s0p2", 0.2),
    ):
        low, logits, high = get("low"), get("logits").requires_grad_(), get("high").requires_grad_()
        unlabelled = get("unlabelled")[:, 0] > 0
        p = logits.softmax(1)
        smooth = tree_filter(p, low, sigma_low)
        if case != "low_only":
            smooth = tree_filter(smooth, high, 1.0)
        assert torch.allclose(smooth, get(f"{case}_AS"), rtol=0, atol=tolerance)
        given = None if case == "low_only" else high
        loss = tree_energy_loss(p, low, given, unlabelled, sigma_low=sigma_low)
        loss.backward()
        assert torch.allclose(loss, get(f"{case}_loss"), rtol=0, atol=tolerance)
        assert torch.allclose(logits.grad, get(f"{case}_grad_logits"), rtol=0, atol=tolerance)
        if given is not None:
            assert torch.allclose(high.grad, get(f"{case}_grad_high"), rtol=0, atol=tolerance)
    assert seen == set(vectors.files)


def all_pairs(values: Tensor, features: Tensor, sigma: float) -> Tensor:
    """One image, the affinity matrix in full: ``exp(-length of the tree path / sigma)``."""
    _, height, width = features.shape
    pixel = np.arange(height * width).reshape(height, width)
    edges = np.concatenate(
        [
            np.stack([pixel[:, :-1].ravel(), pixel[:, 1:].ravel()], 1),
            np.stack([pixel[:-1].ravel(), pixel[1:].ravel()], 1),
        ]
    )
    f = features.flatten(1).T.numpy()
    weight = np.square(f[edges[:, 0]] - f[edges[:, 1]]).sum(1)
    graph = csr_array((weight, (edges[:, 0], edges[:, 1])), shape=(height * width,) * 2)
    tree = csgraph.minimum_spanning_tree(graph)
    path = csgraph.dijkstra(tree, directed=False)
    affinity = torch.from_numpy(np.exp(-path / sigma))
    flat = values.flatten(1).T
    return ((affinity @ flat) / affinity.sum(1, keepdim=True)).T.view_as(values)


@pytest.mark.parametrize("size", [(6, 7), (1, 9), (5, 1), (2, 2)])
def test_matches_all_pairs(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    values, features = torch.rand(3, 4, *size).double(), torch.rand(3, 2, *size).double()
    ours = tree_filter(values, features, 0.1)
    for out, v, f in zip(ours, values, features, strict=True):
        assert torch.allclose(out, all_pairs(v, f, 0.1), rtol=1e-10)


def test_gradient_by_finite_differences() -> None:
    torch.manual_seed(0)
    values = torch.rand(2, 3, 3, 4).double().requires_grad_()
    features = torch.rand(2, 2, 3, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda v, f: tree_filter(v, f, 0.3), (values, features))


def test_flat_image_averages_everything() -> None:
    values = torch.rand(2, 3, 5, 6)
    flat = torch.full((2, 3, 5, 6), 0.5)
    mean = values.mean((2, 3), keepdim=True).expand_as(values)
    assert torch.allclose(tree_filter(values, flat, 0.02), mean, atol=1e-6)


def test_one_pixel() -> None:
    values = torch.rand(2, 3, 1, 1, requires_grad=True)
    out = tree_filter(values, torch.rand(2, 1, 1, 1, requires_grad=True), 0.1)
    assert torch.equal(out, values)


def test_trees_are_ordered_and_rooted_at_their_centres() -> None:
    torch.manual_seed(0)
    tree = spanning_tree(torch.rand(16), (2, 1, 9))
    assert tree.levels == [0, 2, 6, 10, 14, 18]  # four steps to both ends, in both images
    assert tree.nodes[:2].tolist() == [4, 13]

    features = torch.rand(3, 3, 8, 9)
    edges = grid_edges(features)
    tree = spanning_tree(edges, (3, 8, 9))
    n = 3 * 8 * 9
    assert torch.equal(tree.nodes[tree.positions], torch.arange(n))
    assert (tree.nodes // 72 == tree.nodes[tree.parents] // 72).all()
    child = torch.arange(3, n)
    assert (tree.parents[3:] < child).all()
    level = torch.bucketize(torch.arange(n), torch.tensor(tree.levels), right=True)
    assert torch.equal(level[3:], level[tree.parents[3:]] + 1)
    a, b = tree.nodes[3:] % 72, tree.nodes[tree.parents[3:]] % 72
    assert ((a // 9 - b // 9).abs() + (a % 9 - b % 9).abs() == 1).all()
    rows = features.flatten(2).transpose(1, 2).flatten(0, 1)[tree.nodes]
    along = (rows - rows[tree.parents]).square().sum(1)
    assert torch.allclose(along[3:], edges[tree.edges[3:]])


def test_what_carries_gradient() -> None:
    torch.manual_seed(0)
    p = torch.randn(2, 3, 5, 6).softmax(1).requires_grad_()
    low = torch.rand(2, 3, 10, 12, requires_grad=True)
    high = torch.rand(2, 4, 5, 6, requires_grad=True)
    tree_energy_loss(p, low, high, torch.ones(2, 10, 12, dtype=torch.bool)).backward()
    assert low.grad is None
    assert (p.grad != 0).any()
    assert (high.grad != 0).any()


def test_labelled_pixels_do_not_count() -> None:
    torch.manual_seed(0)
    p, low = torch.randn(1, 3, 4, 4).softmax(1), torch.rand(1, 3, 4, 4)
    unlabelled = torch.zeros(1, 4, 4, dtype=torch.bool)
    assert tree_energy_loss(p, low, None, unlabelled) == 0
    unlabelled[0, 1, 2] = True
    expected = (p - tree_filter(p, low, 0.02)).abs().sum(1)[0, 1, 2]
    assert torch.allclose(tree_energy_loss(p, low, None, unlabelled), expected)


def test_autocast_is_left() -> None:
    torch.manual_seed(0)
    low = torch.rand(1, 3, 4, 4)
    high = torch.rand(1, 3, 4, 4).bfloat16().requires_grad_()
    p = torch.randn(1, 3, 4, 4).softmax(1).bfloat16().requires_grad_()
    free = torch.ones(1, 4, 4, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        loss = tree_energy_loss(p, low, high, free)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.equal(loss, tree_energy_loss(p.float(), low, high.float(), free))
    assert high.grad.dtype == torch.bfloat16
