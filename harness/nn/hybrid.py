"""Transformers above a convolutional network's stages: hybrids as in Dosovitskiy et al. (ICLR 2021).

ImageNet weights of a small convolutional network come with a package, those of a small plain transformer do
not. A hybrid has what methods on transformers need (tokens, a class token, an intermediate block), with the
package's features in place below it and blocks above that start from nothing. Proportions are our choice.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

import harness.basics.compat  # noqa: F401  (before timm)


class StagePatches(nn.Module):
    """Patch embedding by all stages of one of timm's networks and a 1x1 convolution.

    Batch normalisation keeps the statistics of pretraining, in training as well: pictures of several sizes,
    crops and masks pass the same network in one step, and their statistics are not those of one batch.

    Args:
        architecture: timm's name.
        width: of the tokens.
        stride: of the last stage, and the side of a patch in pixels.

    Attributes:
        architecture: as given.
        trunk: timm's network, which pretrained weights fit.
    """

    def __init__(self, architecture: str, width: int, stride: int = 16) -> None:
        import timm

        super().__init__()
        self.architecture, self._patch = architecture, stride
        # The eps that these networks were trained with; timm's own default is smaller.
        options: dict[str, Any] = {"features_only": True, "output_stride": stride, "bn_eps": 1e-3}
        trunk: Any = timm.create_model(architecture, **options)
        self.trunk = trunk
        self.project = nn.Conv2d(trunk.feature_info.channels()[-1], width, 1)

    def train(self, mode: bool = True) -> StagePatches:
        """Training mode, but for the trunk's batch normalisation."""
        super().train(mode)
        for module in self.trunk.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` to ``(B, width, H // patch, W // patch)``; a remainder is not seen."""
        height, width = (side // self._patch * self._patch for side in images.shape[-2:])
        return self.project(self.trunk(images[..., :height, :width])[-1])


def lite0_hybrid(drop_path: float = 0.0) -> nn.Module:
    """EfficientNet-Lite0 at stride 16 below four blocks of width 192 with three heads and a class token.

    Every block starts as the identity (its two last linear layers at 0), so that maps start from the trunk's
    features as they are; the position table is that of crops of 192 pixels.

    Args:
        drop_path: stochastic depth in the last block, growing linearly from 0 in the first.

    Returns:
        timm's ``VisionTransformer``.
    """
    from timm.models.vision_transformer import VisionTransformer

    network: Any = VisionTransformer(
        img_size=192,
        patch_size=16,
        embed_dim=192,
        depth=4,
        num_heads=3,
        num_classes=0,
        drop_path_rate=drop_path,
    )
    network.patch_embed.proj = StagePatches("efficientnet_lite0", network.embed_dim)
    for block in network.blocks:
        for last in (block.attn.proj, block.mlp.fc2):
            nn.init.zeros_(last.weight)
    return network
