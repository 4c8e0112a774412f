"""What the harness hands to a method, and what a method may ask of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from harness.data.base import DatasetInfo, Supervision
from harness.nn.pixels import FromImageNet
from harness.recipes.specs import PixelSpec

if TYPE_CHECKING:
    from torch import nn

    from harness.nn.encoders import Encoder
    from harness.nn.vit import ViTEncoder
    from harness.recipes.specs import AugmentSpec

_M = TypeVar("_M", bound="nn.Module")


@dataclass(frozen=True)
class ViewSpec:
    """A further view of each training picture that a method asks for.

    Attributes:
        scale: side relative to the crop (0.5 gives half-size views).
        flip: mirror the view left to right, always.
        colour: strength of an additional colour jitter, 0 for none.
        independent: a crop of its own, with its own mirror and colours, drawn by the recipe's
            ``[augment]``; otherwise the view shows what the main view shows.
        augment: with ``independent``, draws the crop instead of the recipe's ``[augment]``.
        plain: without ``independent``, the view starts from the main view before its colours are changed.
        recolour: additional jitter, grey, blur, solarisation and shift, each with its probability there;
            its geometry is not used.
    """

    scale: float = 1.0
    flip: bool = False
    colour: float = 0.0
    independent: bool = False
    augment: AugmentSpec | None = None
    plain: bool = False
    recolour: AugmentSpec | None = None


@dataclass(frozen=True)
class FurtherSpec:
    """Further pictures that every step carries beside the labelled ones, without their labels.

    Attributes:
        split: whose pictures; those of the recipe's training split by default.
        per_group: samples of each group of a step; as many as labelled ones for 0.
        augment: draws their crops and colours instead of the recipe's ``[augment]``.
    """

    split: str = ""
    per_group: int = 0
    augment: AugmentSpec | None = None


@dataclass(frozen=True)
class Build:
    """What a method may know when it builds its networks.

    Attributes:
        dataset: class names, number of classes, background index.
        supervision: kind of weak label of this run.
        crop: training crop ``(H, W)`` in pixels.
        backbone: name for :func:`harness.nn.encoders.create_encoder` (a timm name or one of ours).
        weights: see :mod:`harness.nn.weights`.
        pixels: mean and deviation of the colours that the weights were trained with. Batches are
            ImageNet-normalised whatever it says; encoders convert them.
    """

    dataset: DatasetInfo
    supervision: Supervision
    crop: tuple[int, int]
    backbone: str
    weights: str = "none"
    pixels: PixelSpec = field(default_factory=PixelSpec)

    @property
    def num_classes(self) -> int:
        """K."""
        return self.dataset.num_classes

    def encoder(self, **options: Any) -> Encoder:
        """The recipe's backbone with its weights; ``options`` as in ``create_encoder``."""
        from harness.nn.encoders import create_encoder

        return self._seeing(create_encoder(self.backbone, self.weights, **options))

    def last_stage(self, output_stride: int | None = None) -> Encoder:
        """The recipe's backbone for what reads its last stage alone: any encoder, or a plain transformer."""
        from harness.nn.vit import TokenStage, is_transformer

        if is_transformer(self.backbone):
            return TokenStage(self.vit(), output_stride)
        return self.encoder(output_stride=output_stride)

    def vit(self, **options: Any) -> ViTEncoder:
        """The recipe's backbone as a vision transformer; ``options`` as in ``create_vit``."""
        from harness.nn.vit import create_vit

        return self._seeing(create_vit(self.backbone, self.weights, crop=self.crop, **options))

    def _seeing(self, network: _M) -> _M:
        """A network that is given ImageNet-normalised pictures and sees its own colours."""
        if self.pixels != PixelSpec():
            network.register_forward_pre_hook(FromImageNet(self.pixels.mean, self.pixels.std))
        return network
