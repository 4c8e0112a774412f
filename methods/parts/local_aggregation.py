"""Local aggregation: score maps smoothed with a kernel of content and distance (BLPSeg).

With features ``f``, scores ``S`` and grid coordinates ``x``, position b of the output is

    out_b = sum_a S_a p_ab g_ab / (N_b + eps),    N_b = sum_a p_ab g_ab,
    p_ab = softmax over a of f_a . f_b,           g_ab = exp(-|x_a - x_b|^2 / (2 sigma^2))

(BLPSeg blpseg.py). The softmax's normaliser stands above and below the fraction line. Without eps it
cancels and what is left is attention whose scores carry an additive distance term,

    out_b = sum_a softmax_a(f_a . f_b - |x_a - x_b|^2 / (2 sigma^2)) S_a,

and eps multiplies this by ``rho_b = N_b / (N_b + eps) = sigmoid(log N_b - log eps)``, where
``log N_b`` is the difference of two log-sum-exps: of the scores with and without the distance term.

Nothing of size L x L (L = h * w positions) exists at any moment. The forward pass walks over blocks of
rows; the backward pass computes the same blocks again. Because the scores are symmetric, a block of rows
also is a block of columns, so the gradient of the features needs one product with them rather than two.
The distance term is separable: two small tables, one by rows and one by columns of the grid.

On a GPU, without eps, torch's fused attention does the same: the part of the distance term that depends on
both positions is a product of two coordinates, the part of b alone cancels, and that of a alone is one more
product, so that three further columns of queries and keys take the place of the tables. In float64 the two
agree to the last digits, in float32 both stay within 5e-6 of it on a grid of 96 x 96. On the CPU the blocks
remain, with the bits that they have always given.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from harness.nn.precision import outside_autocast
from methods.parts.configs import Epsilon

#: What the released code adds to the normaliser (BLPSeg blpseg.py).
EPSILON = 1e-7


# Bytes of one block of scores per image; a pass holds three or four blocks. Small enough for the cache of
# a CPU, large enough to keep a GPU busy. Our choice.
_BLOCK_BYTES = {"cpu": 8 << 20}
_BLOCK_BYTES_ACCELERATOR = 32 << 20
_MIN_ROWS = 64

# Probabilities end here, as e to this power: a sum that holds a 1 loses them anyhow, and products with small
# gradients stay away from denormal numbers, on which a CPU is ten times slower.
_LOWEST = {torch.float32: -40.0, torch.float64: -80.0}


def local_aggregation(
    scores: Tensor, features: Tensor, sigma: float = 6.0, epsilon: Epsilon = "none", rows: int | None = None
) -> Tensor:
    """Aggregate score maps over positions that look alike and lie near.

    Computes in float32 (float64 for float64 features), whatever autocast says: scores of bfloat16
    precision change the result by a quarter. Gradients reach both inputs.

    Args:
        scores: ``(B, C, h, w)`` logits to be aggregated.
        features: ``(B, d, h, w)`` features that define content similarity.
        sigma: standard deviation of the distance term in grid cells (6 in BLPSeg blpseg.py).
        epsilon: ``reference`` keeps the normaliser's 1e-7 as the released code has it; ``none`` drops it.
        rows: positions per block; by default as many as fit a fixed amount of memory, and on a GPU fused
            attention in place of blocks where eps is dropped.

    Returns:
        ``(B, C, h, w)``, float32 or float64.

    Raises:
        ValueError: the sizes differ, ``sigma`` is not positive, or ``epsilon`` is unknown.
    """
    if scores.shape[0] != features.shape[0] or scores.shape[-2:] != features.shape[-2:]:
        raise ValueError(f"scores {tuple(scores.shape)} and features {tuple(features.shape)} do not match")
    if sigma <= 0:
        raise ValueError(f"sigma must be positive, got {sigma}")
    if epsilon not in ("none", "reference"):
        raise ValueError(f"epsilon is 'none' or 'reference', got {epsilon!r}")
    grid = (scores.shape[-2], scores.shape[-1])
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    with outside_autocast(features.device):
        content = features.to(dtype).flatten(2).mT.contiguous()
        values = scores.to(dtype).flatten(2).mT.contiguous()
        if features.is_cuda and epsilon == "none" and rows is None:
            return _attention(content, values, grid, sigma).mT.unflatten(2, grid)
        out = _LocalAggregation.apply(
            content,
            values,
            grid,
            sigma,
            epsilon == "reference",
            rows or _block_rows(features, grid[0] * grid[1]),
        )
    return out.mT.unflatten(2, grid)


def _block_rows(features: Tensor, positions: int) -> int:
    budget = _BLOCK_BYTES.get(features.device.type, _BLOCK_BYTES_ACCELERATOR)
    size = 8 if features.dtype == torch.float64 else 4
    return max(_MIN_ROWS, budget // (size * positions))


def _attention(content: Tensor, values: Tensor, grid: tuple[int, int], sigma: float) -> Tensor:
    """Aggregated ``values`` ``(B, L, C)`` by torch's attention over ``content`` ``(B, L, d)``."""
    axes = [torch.arange(n, dtype=content.dtype, device=content.device) - (n - 1) / 2 for n in grid]
    at = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).view(1, -1, 2) / sigma
    at = at.expand(len(content), -1, -1)
    own = at.square().sum(-1, keepdim=True) * -0.5
    queries = _for_kernels(torch.cat([content, at, torch.ones_like(own)], -1))
    keys = _for_kernels(torch.cat([content, at, own], -1))
    out = F.scaled_dot_product_attention(queries, keys, _for_kernels(values), scale=1.0)
    return out[:, 0, :, : values.shape[2]]


def _for_kernels(rows: Tensor) -> Tensor:
    """``(B, L, n)`` as the one head ``(B, 1, L, m)`` of attention, with zeros up to the next multiple of
    4, which kernels that keep no matrix of scores ask for."""
    return F.pad(rows, (0, -rows.shape[2] % 4))[:, None]


class _Distance:
    """The distance term ``-|x_a - x_b|^2 / (2 sigma^2)``, added to blocks of scores in place."""

    def __init__(self, grid: tuple[int, int], sigma: float, like: Tensor) -> None:
        self.grid = grid
        self.tables = [self._table(side, sigma, like) for side in grid]

    @staticmethod
    def _table(side: int, sigma: float, like: Tensor) -> Tensor:
        x = torch.arange(side, dtype=like.dtype, device=like.device) / sigma
        return (x[:, None] - x[None, :]).square_().mul_(-0.5)

    def add_(self, block: Tensor, start: int) -> Tensor:
        """Add the term to ``(B, rows, L)`` scores of the positions from ``start`` on."""
        height, width = self.grid
        at = torch.arange(start, start + block.shape[1], device=block.device)
        by_row = self.tables[0][at // width]  # (rows, h)
        by_column = self.tables[1][at % width]  # (rows, w)
        cells = block.view(*block.shape[:2], height, width)
        cells.add_(by_row[:, :, None]).add_(by_column[:, None, :])
        return block


def _exp_(x: Tensor) -> Tensor:
    return x.clamp_(min=_LOWEST[x.dtype]).exp_()


def _softmax_(block: Tensor) -> tuple[Tensor, Tensor]:
    """Scores to unnormalised probabilities, in place; returns their sum and log-sum-exp ``(B, rows, 1)``."""
    highest = block.amax(-1, keepdim=True)
    total = _exp_(block.sub_(highest)).sum(-1, keepdim=True)
    return total, total.log() + highest


class _LocalAggregation(torch.autograd.Function):
    """Row blocks forward, recomputed backward; features ``(B, L, d)``, scores ``(B, L, C)``."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        scores: Tensor,
        grid: tuple[int, int],
        sigma: float,
        with_epsilon: bool,
        rows: int,
    ) -> Tensor:
        batch, positions, _ = features.shape
        distance = _Distance(grid, sigma, features)
        mean = torch.empty_like(scores)  # attention's output
        lse = features.new_empty(batch, positions, 1)  # with the distance term
        lse_content = torch.empty_like(lse) if with_epsilon else None
        buffer = features.new_empty(batch, min(rows, positions), positions)
        spare = torch.empty_like(buffer) if with_epsilon else None
        for start in range(0, positions, rows):
            at = slice(start, min(start + rows, positions))
            number = at.stop - at.start
            block = torch.bmm(features[:, at], features.mT, out=_rows(buffer, number))
            if lse_content is not None and spare is not None:
                lse_content[:, at] = _softmax_(_rows(spare, number).copy_(block))[1]
            total, lse[:, at] = _softmax_(distance.add_(block, start))
            mean[:, at] = torch.bmm(block, scores) / total
        ctx.save_for_backward(features, scores, mean, lse, lse_content)
        ctx.grid, ctx.sigma, ctx.rows = grid, sigma, rows
        return mean if lse_content is None else mean * _share(lse, lse_content)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        with outside_autocast(grad_outputs[0].device):
            return (*_gradients(ctx, grad_outputs[0].contiguous()), None, None, None, None)


def _rows(buffer: Tensor, number: int) -> Tensor:
    """The buffer itself, cut for the last, shorter block (contiguous in either case)."""
    if number == buffer.shape[1]:
        return buffer
    shape = (buffer.shape[0], number, buffer.shape[2])
    return buffer.view(-1)[: math.prod(shape)].view(shape)


def _share(lse: Tensor, lse_content: Tensor) -> Tensor:
    """``rho = N / (N + eps)``, from ``log N = lse - lse_content``."""
    return (lse - lse_content - math.log(EPSILON)).sigmoid()


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of features and scores.

    With P the probabilities, ``dE/ds_ba = P_ba (grad_b . S_a - delta_b)``, ``delta_b = grad_b . out_b``. A
    block of rows b gives, through symmetry, also the transposed entries ``dE/ds_ab``; their sum times
    the features is the features' gradient. eps adds ``dE/dlog N_b (P_ba - Q_ba)``, with Q the
    probabilities without the distance term.
    """
    features, scores, mean, lse, lse_content = ctx.saved_tensors
    need_features, need_scores = ctx.needs_input_grad[:2]
    batch, positions, _ = features.shape
    distance = _Distance(ctx.grid, ctx.sigma, features)
    by_mass = None
    if lse_content is not None:
        share = _share(lse, lse_content)
        by_mass = share * (1 - share) * (grad * mean).sum(-1, keepdim=True)  # dE / dlog N
        grad = grad * share
    delta = (grad * mean).sum(-1, keepdim=True)
    if by_mass is not None:
        delta -= by_mass
    # One product gives grad_b . S_a - delta_b.
    left = torch.cat([grad, delta], -1)
    right = torch.cat([scores, scores.new_full((batch, positions, 1), -1.0)], -1)

    grad_features = torch.empty_like(features) if need_features else None
    grad_scores = torch.empty_like(scores) if need_scores else None
    shape = (batch, min(ctx.rows, positions), positions)
    buffers = [features.new_empty(shape) for _ in range(4 if need_features else 1)]
    for start in range(0, positions, ctx.rows):
        at = slice(start, min(start + ctx.rows, positions))
        block, *spare = (_rows(b, at.stop - at.start) for b in buffers)
        torch.bmm(features[:, at], features.mT, out=block)
        if grad_features is None:
            _exp_(distance.add_(block, start).sub_(lse.mT))
        else:
            total, other, product = spare
            total.zero_()
            if by_mass is not None:
                for lse_side, mass_side in (
                    (lse_content[:, at], by_mass[:, at]),
                    (lse_content.mT, by_mass.mT),
                ):
                    total.addcmul_(_exp_(torch.sub(block, lse_side, out=other)), mass_side, value=-1)
            distance.add_(block, start)
            _exp_(torch.sub(block, lse[:, at], out=other))  # P_ba
            torch.bmm(left[:, at], right.mT, out=product)
            total.addcmul_(other, product)
            _exp_(block.sub_(lse.mT))  # P_ab, with rows and columns changing parts
            total.addcmul_(block, torch.bmm(right[:, at], left.mT, out=product))
            grad_features[:, at] = torch.bmm(total, features)
        if grad_scores is not None:
            grad_scores[:, at] = torch.bmm(block, grad)
    return grad_features, grad_scores
