"""Segmentation heads on the stage features of an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from harness.basics.errors import UserError
from harness.nn.encoders import Encoder
from harness.nn.resize import resize


def conv_bn_relu(inputs: int, outputs: int, kernel: int = 1, dilation: int = 1) -> list[nn.Module]:
    """Convolution without bias that keeps the size, batch normalisation, ReLU."""
    padding = dilation * (kernel // 2)
    return [
        nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    ]


class ImagePooling(nn.Module):
    """The image-level branch of ASPP: global average, 1x1 convolution, back to the grid."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.gap = nn.Sequential(nn.AdaptiveAvgPool2d(1), *conv_bn_relu(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, inputs, h, w)`` to ``(B, outputs, h, w)``, constant over each picture."""
        return self.gap(x).expand(-1, -1, *x.shape[-2:])


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling (Chen et al., DeepLabV3).

    A 1x1 convolution, three dilated 3x3 convolutions and image pooling side by side, projected by a
    1x1 convolution and dropout of whole channels. Module names are those of the AGMM-SASS code.

    Args:
        inputs: channels of the encoder's last stage.
        outputs: channels of every branch and of the result.
        rates: dilations of the three 3x3 convolutions.
        dropout: probability with which a channel is dropped.
    """

    def __init__(self, inputs: int, outputs: int, rates: Sequence[int], dropout: float = 0.5) -> None:
        super().__init__()
        first, second, third = rates
        self.b0 = nn.Sequential(*conv_bn_relu(inputs, outputs))
        self.b1 = nn.Sequential(*conv_bn_relu(inputs, outputs, 3, first))
        self.b2 = nn.Sequential(*conv_bn_relu(inputs, outputs, 3, second))
        self.b3 = nn.Sequential(*conv_bn_relu(inputs, outputs, 3, third))
        self.b4 = ImagePooling(inputs, outputs)
        self.project = nn.Sequential(*conv_bn_relu(5 * outputs, outputs), nn.Dropout2d(dropout))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, inputs, h, w)`` to ``(B, outputs, h, w)``."""
        branches = [self.b0(x), self.b1(x), self.b2(x), self.b3(x), self.b4(x)]
        return self.project(torch.cat(branches, dim=1))


class Segmentation(NamedTuple):
    """What a segmentation network returns.

    Attributes:
        logits: ``(B, K, H, W)`` at the size of the images.
        features: ``(B, C, h, w)``, the input of the classifier.
    """

    logits: Tensor
    features: Tensor


class DeepLabV3Plus(nn.Module):
    """An encoder with the DeepLabV3+ head, as AGMM uses it (AGMM-SASS model/semseg/deeplabv3plus.py).

    ASPP on the last stage is resized to the grid of the stage with stride 4, joined with that stage's
    reduced features and fused by two 3x3 convolutions; a 1x1 convolution classifies. Every resize inside
    the network has ``align_corners=True``. Module names are those of the AGMM-SASS code.

    Args:
        backbone: encoder; its stage of stride 4 (the first such) and its last stage are used.
        num_classes: K.
        width: channels of the ASPP branches and of the fused features (256 in the paper's code).
        low_width: channels to which the stage of stride 4 is reduced (48 in the paper's code).
        rates: dilations of ASPP.
        dropout: channel dropout after ASPP.

    Raises:
        UserError: the encoder has no stage of stride 4.
    """

    def __init__(
        self,
        backbone: Encoder,
        num_classes: int,
        *,
        width: int = 256,
        low_width: int = 48,
        rates: Sequence[int] = (6, 12, 18),
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if 4 not in backbone.strides:
            raise UserError(
                f"DeepLabV3+ needs features of stride 4; the backbone has strides {backbone.strides}",
                where="backbone",
                remedy="choose another backbone, such as a ResNet",
            )
        self.backbone = backbone
        self._low = backbone.strides.index(4)
        self.head = ASPP(backbone.channels[-1], width, rates, dropout)
        self.reduce = nn.Sequential(*conv_bn_relu(backbone.channels[self._low], low_width))
        self.fuse = nn.Sequential(*conv_bn_relu(width + low_width, width, 3), *conv_bn_relu(width, width, 3))
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def features(self, stages: Sequence[Tensor]) -> Tensor:
        """Fused features ``(B, width, h, w)`` at stride 4; after ReLU, so never negative."""
        low = self.reduce(stages[self._low])
        high = resize(self.head(stages[-1]), low.shape[-2:], align_corners=True)
        return self.fuse(torch.cat([low, high], dim=1))

    def forward(self, images: Tensor) -> Segmentation:
        """Logits and features of ``images`` ``(B, 3, H, W)``."""
        features = self.features(self.backbone(images))
        logits = resize(self.classifier(features), images.shape[-2:], align_corners=True)
        return Segmentation(logits, features)


class LargeFOV(nn.Module):
    """DeepLab's head with a large field of view: two dilated 3x3 convolutions and a 1x1, without biases.

    As in ToCo and FSR (model/decoder/conv_head.py); names are theirs.

    Args:
        inputs: channels of the features.
        num_classes: K.
        width: channels between.
        dilation: of both 3x3 convolutions.
        init: ``kaiming`` normal by fan-out (FSR), or ``torch``'s own (ToCo, whose code never calls the
            other one).
    """

    def __init__(
        self,
        inputs: int,
        num_classes: int,
        *,
        width: int = 512,
        dilation: int = 5,
        init: Literal["kaiming", "torch"] = "torch",
    ) -> None:
        super().__init__()
        self.conv6 = nn.Conv2d(inputs, width, 3, padding=dilation, dilation=dilation, bias=False)
        self.conv7 = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
        self.conv8 = nn.Conv2d(width, num_classes, 1, bias=False)
        if init == "kaiming":
            for conv in (self.conv6, self.conv7, self.conv8):
                nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, features: Tensor) -> Tensor:
        """``(B, inputs, h, w)`` to logits ``(B, K, h, w)``."""
        return self.conv8(self.features(features))

    def features(self, features: Tensor) -> Tensor:
        """``(B, inputs, h, w)`` to ``(B, width, h, w)``, what the last convolution classifies."""
        return self.conv7(self.conv6(features).relu()).relu()


class LargeFOVNetwork(nn.Module):
    """An encoder whose last stage feeds a :class:`LargeFOV` head: what the image-tag methods on plain
    transformers train, without what they add.

    Args:
        backbone: encoder; its last stage is used.
        num_classes: K.
        width: channels of the head.
        dilation: of its 3x3 convolutions, in cells of the last stage.
    """

    def __init__(self, backbone: Encoder, num_classes: int, *, width: int, dilation: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.decoder = LargeFOV(backbone.channels[-1], num_classes, width=width, dilation=dilation)

    def forward(self, images: Tensor) -> Segmentation:
        """Logits, resized bilinearly, and features of ``images`` ``(B, 3, H, W)``."""
        features = self.decoder.features(self.backbone(images)[-1])
        logits = resize(self.decoder.conv8(features), images.shape[-2:], align_corners=False)
        return Segmentation(logits, features)
