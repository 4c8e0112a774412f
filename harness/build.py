"""What the harness hands to a method, and what a method may ask of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.data.base import DatasetInfo, Supervision

if TYPE_CHECKING:
    from harness.nn.encoders import Encoder


@dataclass(frozen=True)
class ViewSpec:
    """A further view of each training picture that a method asks for.

    Attributes:
        scale: side relative to the crop (0.5 gives half-size views).
        flip: mirror the main view left to right.
        colour: strength of an additional colour jitter, 0 for none.
    """

    scale: float = 1.0
    flip: bool = False
    colour: float = 0.0


@dataclass(frozen=True)
class Build:
    """What a method may know when it builds its networks.

    Attributes:
        dataset: class names, number of classes, background index.
        supervision: kind of weak label of this run.
        crop: training crop ``(H, W)`` in pixels.
        backbone: name for :func:`harness.nn.encoders.create_encoder` (a timm name or one of ours).
        weights: ``none``, ``packaged`` (ships with this project), a file, or a timm tag.
    """

    dataset: DatasetInfo
    supervision: Supervision
    crop: tuple[int, int]
    backbone: str
    weights: str = "none"

    @property
    def num_classes(self) -> int:
        """K."""
        return self.dataset.num_classes

    def encoder(self, **options: Any) -> Encoder:
        """The recipe's backbone with its weights; ``options`` as in ``create_encoder``."""
        from harness.nn.encoders import create_encoder

        return create_encoder(self.backbone, self.weights, **options)
