"""The class token gathers what the patches hold: cross-attention after the encoder (FSR models/vit.py)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CrossAttention(nn.Module):
    """Multi-head attention of one query token to the patches; the query is not among its own keys.

    Args:
        width: C.
        heads: number of heads, which divides C.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, query: Tensor, patches: Tensor, hidden: Tensor | None = None) -> Tensor:
        """``(B, 1, C)`` from ``query`` ``(B, 1, C)`` and ``patches`` ``(B, N, C)``.

        Where ``hidden`` ``(B, N)`` is True a patch is not attended to; an image whose patches are all
        hidden attends to all of them.
        """

        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        allowed = None
        if hidden is not None:
            allowed = (~hidden | hidden.all(1, keepdim=True))[:, None, None]
        q, k, v = split(self.q(query)), split(self.k(patches)), split(self.v(patches))
        gathered = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        return self.proj(gathered.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear layers around a GELU; names as in timm.

    Args:
        width: C.
        ratio: hidden width / C.
    """

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, int(width * ratio))
        self.fc2 = nn.Linear(int(width * ratio), width)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., C)`` to ``(..., C)``."""
        return self.fc2(F.gelu(self.fc1(x)))


class AggregationBlock(nn.Module):
    """``c <- c + g1 attention(c, X)``, ``c <- c + g2 MLP(c)``, each after a LayerNorm; X does not change.

    Args:
        width: C.
        heads: attention heads.
        mlp_ratio: hidden width of the MLP / C.
        residual_scale: start of the learned scales g1 and g2, one for each channel; None for no scales.
    """

    def __init__(
        self, width: int, heads: int, mlp_ratio: float = 4.0, residual_scale: float | None = None
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = CrossAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MLP(width, mlp_ratio)
        self.gamma1: nn.Parameter | None = None
        self.gamma2: nn.Parameter | None = None
        if residual_scale is not None:
            self.gamma1 = nn.Parameter(torch.full((width,), residual_scale))
            self.gamma2 = nn.Parameter(torch.full((width,), residual_scale))
        for module in self.modules():  # as timm starts the blocks of the encoder
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, state: Tensor, patches: Tensor, hidden: Tensor | None = None) -> Tensor:
        """The new class state ``(B, 1, C)``.

        Args:
            state: ``(B, 1, C)``.
            patches: ``(B, N, C)``, the last block's output before the final normalisation.
            hidden: ``(B, N)`` bool, True for patches that are not attended to; None for none.
        """
        step = self.attn(self.norm1(state), self.norm1(patches), hidden)
        state = state + (step if self.gamma1 is None else self.gamma1 * step)
        step = self.mlp(self.norm2(state))
        return state + (step if self.gamma2 is None else self.gamma2 * step)
