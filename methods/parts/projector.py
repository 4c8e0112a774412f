"""The projection head of DINO, as ToCo (model/model_seg_neg.py) and FSR (models/projector.py) use it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Projector(nn.Module):
    """Three linear layers with GELU, L2 normalisation, and a weight-normalised linear layer of fixed gain.

    So outputs are cosines while the gain is 1, its value from the start on. It acts on the last
    dimension: hand it only the tokens that a loss uses. Names of parameters are those of the authors'
    checkpoints.

    Args:
        inputs: width of the tokens.
        outputs: 1024 in ToCo, 4096 in FSR.
        hidden: width of the hidden layers.
        bottleneck: width before the last layer.
    """

    def __init__(self, inputs: int, outputs: int, hidden: int = 2048, bottleneck: int = 256) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(inputs, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.last_layer = WeightNormLinear(bottleneck, outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        """``(..., inputs)`` to ``(..., outputs)``."""
        return self.last_layer(F.normalize(self.mlp(tokens), dim=-1))


class WeightNormLinear(nn.Module):
    """A linear layer without bias whose rows have a fixed length, ``weight_g``."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(outputs, 1), requires_grad=False)
        self.weight_v = nn.Parameter(nn.Linear(inputs, outputs, bias=False).weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        """``(..., inputs)`` to ``(..., outputs)``."""
        return F.linear(x, self.weight_g * self.weight_v / self.weight_v.norm(dim=1, keepdim=True))
