"""The miniature suite's small encoders: sixteen 64-pixel pictures in tens of milliseconds.

A residual network in the manner of ResNet (basic blocks, batch normalisation) and a vision transformer,
narrow enough for one CPU core. Their proportions are our choice, made for speed; they play the parts that
ResNet and ViT-B play in the papers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.basics.errors import UserError
from harness.nn.encoders import Encoder  # also cures torchvision before timm is imported
from harness.nn.vit import ViTEncoder


class _Block(nn.Module):
    """Two 3x3 convolutions around a shortcut; the shortcut is projected where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, dilation, dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(residual + self.shortcut(x))


class MiniCNN(Encoder):
    """A stem of stride 2, then three stages at strides 4, 8 and 8 (all 4 and dilated at output stride 4).

    Args:
        output_stride: 8 or 4; the weights fit both.

    Attributes:
        channels: channels of the stages.
        strides: their strides.
    """

    channels = (32, 48, 64)

    def __init__(self, output_stride: int = 8) -> None:
        super().__init__()
        if output_stride not in (4, 8):
            raise UserError(
                f"mini_cnn has no output stride {output_stride}", where="output_stride", remedy="use 4 or 8"
            )
        stem, (first, second, third) = 16, self.channels
        dense = output_stride == 4
        self.strides = (4, 4, 4) if dense else (4, 8, 8)
        self.stem = nn.Sequential(
            nn.Conv2d(3, stem, 5, 2, 2, bias=False), nn.BatchNorm2d(stem), nn.ReLU(inplace=True)
        )
        self.stage1 = _Block(stem, first, stride=2)
        self.stage2 = _Block(first, second, stride=1 if dense else 2)
        self.stage3 = _Block(second, third, dilation=4 if dense else 2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features of ``(B, 3, H, W)`` normalised images, one map per stage, finest first.

        Map i is ``(B, channels[i], ceil(H / strides[i]), ceil(W / strides[i]))``.
        """
        # Channels-last convolutions take about three quarters of the time on a CPU.
        first = self.stage1(self.stem(images.contiguous(memory_format=torch.channels_last)))
        second = self.stage2(first)
        return [first, second, self.stage3(second)]


class Classifier(nn.Module):
    """A linear classifier on the pooled last stage, for pretraining; not part of the shipped weights.

    Args:
        encoder: gives stage features.
        classes: number of outputs.
    """

    def __init__(self, encoder: Encoder, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.channels[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(B, classes)`` of ``(B, 3, H, W)`` normalised images."""
        return self.head(self.encoder(images)[-1].mean((2, 3)))

    def decide(self, images: Tensor) -> Tensor:
        """Classes ``(B,)`` int64 of the pictures."""
        return self(images).argmax(1)


# --- the transformer ---------------------------------------------------------------------------------


class _PlainBlock(nn.Module):
    """A residual block whose normalisation is folded into its convolutions."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 2, 1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv2(self.conv1(x).relu()) + self.shortcut(x)).relu()


class ConvolutionalPatches(nn.Module):
    """Patch embedding by the first stages of :class:`MiniCNN`, up to stride 8, and a 1x1 convolution.

    A few hundred pretraining steps do not teach a plain patch embedding anything on pictures whose colours
    say nothing, so this is a hybrid in the sense of Dosovitskiy et al. (ICLR 2021). Without batch
    normalisation no statistics move when maps are made at several scales.

    Args:
        width: of the tokens.
    """

    patch = 8

    def __init__(self, width: int) -> None:
        super().__init__()
        first, second, _ = MiniCNN.channels
        self.stem = nn.Conv2d(3, 16, 5, 2, 2)
        self.stage1 = _PlainBlock(16, first)
        self.stage2 = _PlainBlock(first, second)
        self.project = nn.Conv2d(second, width, 1)

    def forward(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` to ``(B, width, H // 8, W // 8)``; a remainder is not seen."""
        height, width = (side // self.patch * self.patch for side in images.shape[-2:])
        x = images[..., :height, :width].contiguous(memory_format=torch.channels_last)
        return self.project(self.stage2(self.stage1(self.stem(x).relu())))

    @torch.no_grad()
    def start_from(self, encoder: MiniCNN) -> None:
        """Take over a convolutional encoder's first stages, their normalisation folded in."""
        stem, norm, _ = encoder.stem
        _fold(self.stem, stem, norm)
        for own, block in ((self.stage1, encoder.stage1), (self.stage2, encoder.stage2)):
            _fold(own.conv1, block.conv1, block.bn1)
            _fold(own.conv2, block.conv2, block.bn2)
            _fold(own.shortcut, *block.shortcut.children())


def _fold(target: nn.Conv2d, convolution: nn.Module, norm: nn.Module) -> None:
    """Set a convolution to another one followed by batch normalisation in evaluation mode."""
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_var is not None
    assert norm.running_mean is not None
    assert target.bias is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    target.weight.copy_(convolution.weight * scale[:, None, None, None])
    target.bias.copy_(norm.bias - norm.running_mean * scale)


class TokenClassifier(nn.Module):
    """Classifiers of a transformer for pretraining on mosaics; not part of the shipped weights.

    One reads the class token. The others read the patch tokens tile by tile: the maximum of every channel
    over the tokens of a tile, after the last block and after the one before it, and the largest score of a
    tile's tokens. So a token may hold evidence of its own tile alone, which is what activation maps need.
    Under a mean over the picture, or a maximum over pictures of one object, evidence spreads over the grid.

    The classifiers of patch tokens have no bias, and a further class, nothing, whose score is 0: a token
    without an object scores below 0.

    Args:
        encoder: timm's ``VisionTransformer``; its modules are shared.
        classes: number of classes, nothing not counted.

    Attributes:
        encoder: as given.
        patch: side of a patch in pixels.
    """

    def __init__(self, encoder: Any, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.tokens = ViTEncoder(encoder, crop=encoder.patch_embed.img_size, aux_layer=-2)
        self.tokens.pos_embed.requires_grad_(True)
        self.patch = self.tokens.patch
        width = self.tokens.channels
        self.class_head = nn.Linear(width, classes)
        self.channel_head = nn.Linear(width, classes, bias=False)
        self.score_head = nn.Linear(width, classes, bias=False)
        self.aux_head = nn.Linear(width, classes, bias=False)

    def forward(self, images: Tensor, tiles: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits of mosaics.

        Args:
            images: ``(B, 3, H, W)`` normalised.
            tiles: ``(B, h w)`` int64, the tile 0..T-1 that every patch is of; each has a patch.

        Returns:
            Of the class token, ``(B, classes)``, and ``(B, T, 1 + classes)``, nothing first: of the channels'
            maxima of the last tokens, of their largest scores, of the channels' maxima of the block before.
        """
        tokens = self.tokens(images)
        last, before = tokens.final.flatten(2).mT, tokens.aux.flatten(2).mT
        scores = _tile_maxima(self.score_head(last), tiles)
        return (
            self.class_head(tokens.class_token),
            _with_nothing(self.channel_head(_tile_maxima(last, tiles))),
            _with_nothing(scores),
            _with_nothing(self.aux_head(_tile_maxima(before, tiles))),
        )

    def decide(self, images: Tensor) -> Tensor:
        """Classes ``(B,)`` int64 of single pictures ``(B, 3, H, W)``; nothing is ``classes``."""
        count = len(images)
        patches = (images.shape[2] // self.patch) * (images.shape[3] // self.patch)
        found = self(images, images.new_zeros((count, patches), dtype=torch.int64))[1][:, 0].argmax(1)
        return torch.where(found == 0, self.class_head.out_features, found - 1)


def _tile_maxima(values: Tensor, tiles: Tensor) -> Tensor:
    """``(B, T, C)`` maxima of ``(B, N, C)`` values over the patches of each tile; tiles ``(B, N)``."""
    inside = tiles[:, None] == torch.arange(int(tiles.max()) + 1)[:, None]
    return values[:, None].masked_fill(~inside[..., None], -torch.inf).amax(2)


def _with_nothing(logits: Tensor) -> Tensor:
    """A score of 0 before the last dimension's others."""
    return F.pad(logits, (1, 0))


def mini_vit(drop_path: float = 0.0) -> nn.Module:
    """The miniature suite's vision transformer: patches of 8 pixels, width 96, four blocks, three heads.

    timm's ``VisionTransformer`` on :class:`ConvolutionalPatches`; its position table has the 7 x 7 grid
    of pretraining pictures. The proportions are our choice, made for speed.

    Args:
        drop_path: stochastic depth in the last block, growing linearly from 0 in the first.
    """
    from timm.models.vision_transformer import VisionTransformer

    network = VisionTransformer(
        img_size=7 * ConvolutionalPatches.patch,
        patch_size=ConvolutionalPatches.patch,
        embed_dim=96,
        depth=4,
        num_heads=3,
        num_classes=0,
        drop_path_rate=drop_path,
    )
    network.patch_embed.proj = ConvolutionalPatches(network.embed_dim)
    return network
