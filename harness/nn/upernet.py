"""UPerNet's parts: pyramid pooling on the last stage and the top-down decoder over all stages.

Pyramid pooling is Zhao et al. (CVPR 2017), the decoder Xiao et al. (ECCV 2018). Defaults are those of
BLPSeg (BLPSeg PPM.py, blpseg.py), which departs from the usual UPerNet in places; what departs is an
argument. Module names are those of the BLPSeg code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from harness.nn.decoders import conv_bn_relu
from harness.nn.resize import resize


class PyramidPooling(nn.Module):
    """Averages over grids of several sizes, joined with their input and fused.

    Args:
        inputs: channels of the encoder's last stage.
        outputs: channels of every branch and of the result.
        bins: sides of the pooling grids.
        kernel: size of the fusing convolution (1 in BLPSeg, 3 in UPerNet).
        branch_relu: ReLU after the branches' normalisation (none in BLPSeg).
        align_corners: of the branches' resize (True in BLPSeg).
        dropout: probability with which a channel of the result is dropped.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        bins: Sequence[int] = (1, 2, 3, 6),
        *,
        kernel: int = 1,
        branch_relu: bool = False,
        align_corners: bool = True,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(side), *conv_bn_relu(inputs, outputs)[: 3 if branch_relu else 2]
            )
            for side in bins
        )
        joined = inputs + len(bins) * outputs
        self.bottleneck = nn.Sequential(*conv_bn_relu(joined, outputs, kernel), nn.Dropout2d(dropout))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, inputs, h, w)`` to ``(B, outputs, h, w)``.

        In training mode the 1x1 grid's batch normalisation needs at least two pictures.
        """
        size = x.shape[-2:]
        pooled = [resize(stage(x), size, align_corners=self.align_corners) for stage in self.stages]
        return self.bottleneck(torch.cat([*pooled, x], dim=1))


class UPerDecoder(nn.Module):
    """Top-down sums over the stages, every level fused at the finest one's grid.

    Args:
        channels: channels of all stages but the last, finest first.
        width: channels of the top (pyramid pooling's), of every level and of the result.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(nn.Sequential(*conv_bn_relu(c, width)) for c in channels)
        self.fpn_convs = nn.ModuleList(nn.Sequential(*conv_bn_relu(width, width, 3)) for _ in channels)
        self.fpn_bottleneck = nn.Sequential(*conv_bn_relu((len(channels) + 1) * width, width, 3))

    def forward(self, stages: Sequence[Tensor], top: Tensor) -> Tensor:
        """Fused features ``(B, width, h, w)`` at the grid of the finest stage.

        Args:
            stages: features of all stages but the last, finest first, ``(B, channels[i], h_i, w_i)``.
            top: ``(B, width, h', w')``, pyramid pooling on the last stage.
        """
        levels = [top]
        for stage, lateral in zip(reversed(stages), reversed(self.lateral_convs), strict=True):
            x = lateral(stage)
            levels.insert(0, x + resize(levels[0], x.shape[-2:], align_corners=False))
        size = levels[0].shape[-2:]
        fused = [conv(level) for conv, level in zip(self.fpn_convs, levels[:-1], strict=True)]
        fused.append(top)
        return self.fpn_bottleneck(torch.cat([resize(x, size, align_corners=False) for x in fused], dim=1))
