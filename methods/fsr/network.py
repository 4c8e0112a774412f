"""FSR's network: the shared one, with aggregation blocks and a projector (FSR models/network.py)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from harness.nn.checkpoints import KeyTable
from harness.nn.vit import Tokens, ViTEncoder
from methods.fsr.aggregation import AggregationBlock
from methods.fsr.config import FSRConfig
from methods.parts.projector import Projector
from methods.parts.transformer import ViTNetwork


class FSRNetwork(ViTNetwork):
    """Encoder without class token, classifiers, LargeFOV head, aggregation blocks and projector.

    The class token starts after the encoder, from its pretrained value, and feeds the projector alone:
    classification, maps and segmentation do not depend on it.

    Args:
        encoder: transformer with a mask token, whose class token stays apart.
        num_classes: K, background included.
        config: sizes.
    """

    def __init__(self, encoder: ViTEncoder, num_classes: int, config: FSRConfig) -> None:
        super().__init__(encoder, num_classes, config)
        self.aggregation = nn.ModuleList()
        self._pooling = config.aggregation
        if config.aggregation == "attention":
            block = encoder.blocks[0]
            ratio = block.mlp.fc1.out_features / encoder.channels
            self.aggregation.extend(
                AggregationBlock(encoder.channels, block.attn.num_heads, ratio, config.residual_scale)
                for _ in range(config.aggregation_depth)
            )
        else:
            encoder.cls_token.requires_grad_(False)  # nothing reads it
        self.projector = Projector(
            encoder.channels,
            config.projector_outputs,
            config.projector_hidden,
            config.projector_bottleneck,
        )

    def aggregate(self, tokens: Tokens, hidden: Tensor | None = None) -> Tensor:
        """The class token ``(B, C)`` of images, after the final LayerNorm.

        Args:
            tokens: of the encoder. Attention reads the last block's patches before the final LayerNorm,
                average and maximum read them after it.
            hidden: ``(B, h, w)`` bool, True for patches that it does not see; None for none.
        """
        ignored = None if hidden is None else hidden.flatten(1)
        if self._pooling != "attention":
            return pooled(tokens.final.flatten(2), ignored, self._pooling)
        patches = tokens.raw.flatten(2).mT
        state = self.encoder.cls_token.expand(len(patches), -1, -1)
        for block in self.aggregation:
            state = block(state, patches, ignored)
        return self.encoder.norm(state)[:, 0]

    def maps(self, images: Tensor, known: Tokens | None = None) -> tuple[Tensor, Tensor]:
        """Activation maps as in :class:`ViTNetwork`, negative values cut off before they are resized."""
        cam, aux = super().maps(images, known)
        return cam.relu_(), aux.relu_()


def pooled(patches: Tensor, ignored: Tensor | None, by: Literal["average", "max"]) -> Tensor:
    """Average or maximum ``(B, C)`` of patch tokens ``(B, C, N)`` that are not ``ignored`` ``(B, N)``."""
    if ignored is None:
        return patches.mean(2) if by == "average" else patches.amax(2)
    seen = (~ignored | ignored.all(1, keepdim=True))[:, None]
    if by == "average":
        return (patches * seen).sum(2) / seen.sum(2)
    return patches.masked_fill(~seen, -math.inf).amax(2)


def part(tokens: Tokens, rows: slice) -> Tokens:
    """Tokens of some of the images."""
    cls = None if tokens.cls is None else tokens.cls[rows]
    return Tokens(tokens.final[rows], tokens.aux[rows], tokens.raw[rows], cls)


_NAMES = KeyTable(
    (
        (r"encoder\.cls_blocks\.(.+)", r"aggregation.\1"),
        (r"top_classifier\.weight", "classifier.weight"),
        (r"((?:encoder|decoder|projector|aux_classifier)\..+)", r"\1"),
    )
)


def released_checkpoint(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State of the method from a file of the FSR code (``checkpoints/student.pth`` or ``teacher.pth``).

    A file holds one network, without the distillation centres: both of our networks get it, and the
    centres start at 0.

    Raises:
        UserError: unknown keys, or no projector.
    """
    network = _NAMES(state)
    both = {f"{name}.{key}": value for name in ("network", "teacher") for key, value in network.items()}
    gain = network.get("projector.last_layer.weight_g")
    if gain is not None:  # without it the loader says what is missing
        for centre in ("class_centre.value", "patch_centre.value"):
            both[centre] = torch.zeros(len(gain))
    return both
