"""Tree energy loss: agreement with probabilities that were smoothed along minimum spanning trees.

Liang et al., "Tree Energy Loss: Towards Sparsely Annotated Semantic Segmentation", CVPR 2022 (TEL;
code TreeEnergyLoss). Pixels are the nodes of a 4-connected grid. The affinity of two pixels is the
product of ``exp(-|f_a - f_b|^2 / sigma)`` over the edges of their path in the minimum spanning tree, so
``N^2`` affinities are applied in two sweeps over the tree, level by level.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from harness.nn.precision import outside_autocast
from harness.nn.resize import resize


def tree_energy_loss(
    probabilities: Tensor,
    low: Tensor,
    high: Tensor | None,
    unlabelled: Tensor,
    *,
    sigma_low: float = 0.02,
    sigma_high: float = 1.0,
) -> Tensor:
    """``sum over unlabelled pixels and classes |P - Y| / #unlabelled``, ``Y = F_high(F_low(P))``.

    ``Y`` is not detached. The affinities of the ``high`` tree are trained through; those of the ``low``
    tree, and both trees' shapes, are constant. Published: weight 0.4, sigma_low 0.02 on VOC and 0.002 on
    Cityscapes (a comment in the code), sigma_high 1 on a 256-channel 1x1-conv-BN-ReLU map.

    Args:
        probabilities: ``(B, K, h, w)`` softmax.
        low: ``(B, C, H, W)`` the image; resized bilinearly to ``(h, w)`` (our choice).
        high: ``(B, D, H', W')`` learnt features, likewise; None leaves the high filter out.
        unlabelled: ``(B, H'', W'')`` bool, without padding; resized to the nearest (our choice).
        sigma_low: scale of squared differences in ``low``.
        sigma_high: scale of squared differences in ``high``.

    Returns:
        scalar, float64 for float64 probabilities, else float32; computed outside autocast. Zero where
        nothing is unlabelled.
    """
    with outside_autocast(probabilities.device):
        p = probabilities.to(torch.promote_types(probabilities.dtype, torch.float32))
        size = p.shape[2:]
        y = tree_filter(p, resize(low.detach().to(p.dtype), size, align_corners=False), sigma_low)
        if high is not None:
            y = tree_filter(y, resize(high.to(p.dtype), size, align_corners=False), sigma_high)
        free = F.interpolate(unlabelled[:, None].to(p.dtype), size=size)
        return ((p - y).abs() * free).sum() / free.sum().clamp(min=1)


def tree_filter(values: Tensor, features: Tensor, sigma: float) -> Tensor:
    """Average ``values`` with tree affinities: ``A v / A 1``, per image.

    Differentiable in ``values`` and, through the affinities, in ``features``; the tree itself is built on
    the CPU from detached features.

    Args:
        values: ``(B, C, H, W)`` float32 or float64.
        features: ``(B, D, H, W)`` of the same dtype.
        sigma: scale of the squared differences along an edge.

    Returns:
        ``(B, C, H, W)``.
    """
    batch, channels, height, width = values.shape
    edges = grid_edges(features)
    tree = spanning_tree(edges, (batch, height, width))
    weights = torch.cat([edges.new_zeros(batch), torch.exp(-edges[tree.edges[batch:]] / sigma)])
    rows = values.flatten(2).transpose(1, 2).flatten(0, 1)[tree.nodes]
    smoothed = _TreeFilter.apply(rows, weights, tree)[tree.positions]
    return smoothed.view(batch, -1, channels).transpose(1, 2).reshape(values.shape)


def grid_edges(features: Tensor) -> Tensor:
    """Squared feature differences ``(E,)`` along all horizontal, then all vertical edges of the grids."""
    return _GridEdges.apply(features)


def _differences(features: Tensor) -> tuple[Tensor, Tensor]:
    return features[..., 1:] - features[..., :-1], features[..., 1:, :] - features[..., :-1, :]


class _GridEdges(torch.autograd.Function):
    """Keeps the features alone for the backward pass: with hundreds of channels, copies are the cost."""

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        ctx.save_for_backward(features)
        return torch.cat([d.square_().sum(1).flatten() for d in _differences(features)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (features,) = ctx.saved_tensors
        across, down = _differences(features)
        batch, _, height, width = features.shape
        grad_across, grad_down = (2 * grad).split(
            [batch * height * (width - 1), batch * (height - 1) * width]
        )
        out = torch.zeros_like(features)
        across *= grad_across.view(batch, 1, height, width - 1)
        out[..., 1:] += across
        out[..., :-1] -= across
        down *= grad_down.view(batch, 1, height - 1, width)
        out[..., 1:, :] += down
        out[..., :-1, :] -= down
        return out


@dataclass(frozen=True, eq=False)
class Tree:
    """The spanning trees of a batch of images, nodes ordered by distance from their root.

    Attributes:
        nodes: ``(n,)`` int64, the pixel (over the whole batch) at each position of the order.
        positions: ``(n,)`` int64, its inverse.
        parents: ``(n,)`` int64, position of the parent; a root is its own.
        edges: ``(n,)`` int64, the grid edge to the parent; of no meaning for the roots.
        levels: bounds of the levels in the order, ``0, B, ..., n``.
    """

    nodes: Tensor
    positions: Tensor
    parents: Tensor
    edges: Tensor
    levels: list[int]


@torch.no_grad()
def spanning_tree(edges: Tensor, shape: tuple[int, int, int]) -> Tree:
    """Minimum spanning trees of the 4-connected grids, rooted at their centres, which halves the levels.

    Runs on the CPU in scipy, a copy from the device included.

    Args:
        edges: weights from :func:`grid_edges`; of equal ones the first counts as lighter (our choice).
        shape: ``(B, H, W)`` of the grids.
    """
    from scipy.sparse import csgraph, csr_array

    batch, height, width = shape
    n = batch * height * width
    pixel = np.arange(n).reshape(batch, height, width)
    start = np.concatenate([pixel[..., :-1].ravel(), pixel[:, :-1].ravel()])
    end = np.concatenate([pixel[..., 1:].ravel(), pixel[:, 1:].ravel()])
    weight = edges.cpu().numpy()
    # Ranks in place of weights: scipy takes a zero weight, as in a flat region, for no edge at all.
    rank = np.empty(len(weight))
    rank[np.argsort(weight, kind="stable")] = np.arange(1, len(weight) + 1)
    forest = csgraph.minimum_spanning_tree(csr_array((rank, (start, end)), shape=(n, n)))

    kept = forest.tocoo()
    roots = _centres(kept.row, kept.col, pixel[:, 0, 0], n)
    order, parents = _breadth_first(kept.row, kept.col, roots, n)
    above = parents[order]
    leaving = np.zeros((2, n), dtype=np.int64)  # the edges to the right of a pixel, and below it
    vertical = batch * height * (width - 1)
    leaving[0, start[:vertical]] = np.arange(vertical)
    leaving[1, start[vertical:]] = np.arange(vertical, len(start))
    to_parent = leaving[(np.abs(order - above) == width).astype(np.int64), np.minimum(order, above)]
    positions = np.empty(n, dtype=np.int64)
    positions[order] = np.arange(n)
    parents = positions[above]
    levels = [0, batch]
    while levels[-1] < n:  # parents come in ascending order, so a level ends where its parents' level does
        levels.append(int(np.searchsorted(parents, levels[-1])))
    tables = torch.from_numpy(np.stack([order, positions, parents, to_parent])).to(edges.device)  # one copy
    return Tree(nodes=tables[0], positions=tables[1], parents=tables[2], edges=tables[3], levels=levels)


def _breadth_first(
    start: np.ndarray, end: np.ndarray, roots: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """Order and parents ``(n,)`` of a forest, one root per tree (a root is its own parent)."""
    from scipy.sparse import csgraph, csr_array

    # One more node joins the roots, so that one search covers all trees.
    a, b = np.concatenate([start, roots]), np.concatenate([end, np.full(len(roots), n)])
    graph = csr_array((np.ones(len(a)), (a, b)), shape=(n + 1, n + 1))
    order, parents = csgraph.breadth_first_order(graph, n, directed=False)
    parents = parents[:n].astype(np.int64)
    parents[roots] = roots
    return order[1:].astype(np.int64), parents


def _centres(start: np.ndarray, end: np.ndarray, first: np.ndarray, n: int) -> np.ndarray:
    """The middle node of a longest path of each tree; ``first`` is a node of each."""
    pixels = n // len(first)
    far = first
    for _ in range(2):  # the farthest node from anywhere ends a longest path
        order, parents = _breadth_first(start, end, far, n)
        far = far.copy()
        far[order // pixels] = order  # the last of each tree stays
    path = [far]
    while (step := parents[path[-1]]).tolist() != path[-1].tolist():
        path.append(step)
    walked = np.stack(path)  # up to the root, where short paths wait
    length = (walked != walked[-1]).sum(0)
    return walked[length // 2, np.arange(len(first))]


class _TreeFilter(torch.autograd.Function):
    """``A x / A 1`` over rows in tree order, for edge weights ``w`` from each node to its parent."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, tree: Tree) -> Tensor:
        up, total = _sweeps(torch.cat([x, torch.ones_like(x[:, :1])], dim=1), w, tree)
        out = total[:, :-1] / total[:, -1:]
        ctx.save_for_backward(w, up, total, out)
        ctx.tree = tree
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        w, up, total, out = ctx.saved_tensors
        tree: Tree = ctx.tree
        # The quotient rule makes the normaliser one more channel; A is symmetric.
        g = grad / total[:, -1:]
        g = torch.cat([g, -(g * out).sum(1, keepdim=True)], dim=1)
        g_up, g_total = _sweeps(g, w, tree)
        if not ctx.needs_input_grad[1]:
            return g_total[:, :-1], None, None
        # An edge carries what its subtree sends to the rest, and the other way round.
        rest = total.index_select(0, tree.parents) - w[:, None] * up
        g_rest = g_total.index_select(0, tree.parents) - w[:, None] * g_up
        grad_w = (g_up * rest + up * g_rest).sum(1)
        grad_w[: tree.levels[1]] = 0  # roots have no edge
        return g_total[:, :-1], grad_w, None


def _sweeps(x: Tensor, w: Tensor, tree: Tree) -> tuple[Tensor, Tensor]:
    """Affinity-weighted sums ``(n, C)`` over each node's subtree, and over the whole tree."""
    bounds = [hi - lo for lo, hi in zip(tree.levels[:-1], tree.levels[1:], strict=True)]
    cut: Callable[[Tensor], list[Tensor]] = lambda t: list(t.split(bounds))  # noqa: E731
    up = x.clone()
    parents, weights, ups = cut(tree.parents), cut(w[:, None]), cut(up)
    for level in range(len(bounds) - 1, 0, -1):
        up.index_add_(0, parents[level], ups[level] * weights[level])
    total = up * (1 - w * w)[:, None]
    total[: bounds[0]] = ups[0]
    totals = cut(total)
    for level in range(1, len(bounds)):
        totals[level].addcmul_(weights[level], total.index_select(0, parents[level]))
    return up, total
