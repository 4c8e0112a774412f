"""What every method is measured against: full supervision, partial cross-entropy, plain CAM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from harness.basics.bounds import MOST, Stride
from harness.basics.finite import require_finite
from harness.basics.schema import InferenceOnly, Neutral, Shapes, schema
from harness.data.base import Supervision
from harness.engine.batch import Batch, Progress
from harness.engine.method import Build, Method
from harness.nn.choice import best_class
from harness.nn.decoders import LargeFOVNetwork
from harness.nn.precision import at_least_float32, outside_autocast
from harness.nn.resize import resize
from harness.nn.vit import by_rate
from methods.parts.cam import _EPS, log_sum_exp_pool
from methods.parts.cross_entropy import partial_cross_entropy
from methods.parts.deeplab import DeepLabConfig, DeepLabMethod

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


@schema
class BaselineConfig(DeepLabConfig):
    """AGMM's network, or for a plain vision transformer that of the image-tag methods on one."""

    decoder: Annotated[Literal["deeplab", "large_fov"], Neutral("deeplab"), Shapes()] = "deeplab"
    """DeepLabV3+, or the LargeFOV head on the last stage, of width `head_width`; of the other keys it
    reads `decoder_dilation` alone. [AGMM-SASS deeplabv3plus.py; large_fov: ToCo
    model/decoder/conv_head.py]"""
    decoder_dilation: Annotated[int, Neutral(5), Shapes()] = Field(default=5, ge=1, le=MOST)
    """`large_fov` only: dilation of its 3x3 convolutions. [ToCo model/decoder/conv_head.py]"""


class FullSupervision(DeepLabMethod):
    """Cross-entropy on dense masks, void pixels (255) left out: the upper bound of a recipe."""

    name = "full"
    title = "Full supervision"
    supervision: ClassVar[frozenset[Supervision]] = frozenset({"full"})
    Config = BaselineConfig
    reference_recipe = "full/voc-full-r101"

    def make_network(self) -> Any:
        """DeepLabV3+ or, with ``decoder = "large_fov"``, :class:`LargeFOVNetwork`."""
        build, config = self.build, self.config
        if config.decoder == "deeplab":
            return super().make_network()
        return LargeFOVNetwork(
            build.last_stage(config.output_stride),
            build.num_classes,
            width=config.head_width,
            dilation=config.decoder_dilation,
        )

    def loss(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """``seg``: cross-entropy over the labelled pixels."""
        logits = self.network(batch.images).logits
        with outside_autocast(logits.device):
            return {"seg": partial_cross_entropy(at_least_float32(logits), batch.labels)}

    @classmethod
    def search_space(cls) -> dict[str, BaseDistribution]:
        """Learning rates."""
        from optuna.distributions import FloatDistribution

        return {
            "optimiser.lr": FloatDistribution(1e-3, 1e-1, log=True),
            "backbone_lr_scale": FloatDistribution(0.05, 1.0, log=True),
        }


class PartialCrossEntropy(FullSupervision):
    """Cross-entropy on the annotated pixels alone, the field's baseline (pCE) for sparse labels.

    Points, scribbles and blocks directly. Boxes: everything outside all boxes is
    background, ``labels.box_inside`` says what is inside (our choice). Image tags: with
    ``labels_from``, dense pseudo labels, which makes it the usual second stage of image-level methods.
    """

    name = "pce"
    title = "Partial cross-entropy"
    supervision: ClassVar[frozenset[Supervision]] = frozenset({"point", "scribble", "block", "box", "image"})
    needs_labels_from: ClassVar[frozenset[Supervision]] = frozenset({"image"})
    reference_recipe = "pce/voc-point-r101"


@schema
class CAMConfig:
    """Classification with class activation maps; where nothing is cited the value is our choice."""

    output_stride: Annotated[Stride, Shapes()] = 16
    """Stride of the encoder's last stage. [IRN net/resnet50_cam.py]"""
    pooling: Annotated[Literal["average", "max", "token_max", "lse"], Shapes()] = "average"
    """How a class score comes about: mean, maximum or log-sum-exp of its map, or from the maximum of every
    feature channel (`token_max`, as the image-tag methods on transformers do). [average: IRN
    net/resnet50_cam.py; token_max: ToCo model/model_seg_neg.py]"""
    lse_sharpness: Annotated[float, Shapes()] = Field(default=5.0, gt=0)
    """r of log-sum-exp pooling, (1/r) log mean exp(r x): 0 is the mean, infinity the maximum. [our choice]"""
    less_minimum: Annotated[bool, Neutral(False), InferenceOnly()] = False
    """Take each map's minimum off before its maximum is brought to 1. Channels that are positive everywhere,
    which `token_max` allows, otherwise lift the background over any threshold. [false: IRN
    step/make_cam.py; true: ToCo utils/camutils.py]"""
    mirror: Annotated[bool, Neutral(False), InferenceOnly()] = False
    """Make maps of the picture and of its mirror image, and take the larger value of either.
    [false: our choice; true: IRN step/make_cam.py adds them up, ToCo utils/camutils.py takes the larger]"""
    background_score: Annotated[float, InferenceOnly()] = Field(default=0.15, ge=0, le=1)
    """A pixel is background where no class's normalised CAM exceeds this. [IRN run_sample.py
    cam_eval_thres]"""
    presence: Annotated[float, InferenceOnly()] = Field(default=0.5, ge=0, le=1)
    """In `predict`, which has no image tags, a class is suppressed when its probability is below this.
    [our choice]"""
    backbone_lr_scale: float = Field(default=0.1, ge=0)
    """Learning rate of the encoder relative to the classifier. [IRN step/train_cam.py]"""


class ClassActivationMap(Method):
    """Multi-label classification; the class activation maps segment (Zhou et al., CVPR 2016).

    A 1x1 convolution without bias on the encoder's last stage gives one signed map per foreground
    class, pooled to a class score. Settings follow IRN's first step (Ahn et al., CVPR 2019) where
    cited; unlike there, the whole encoder is trained, batch normalisation included (our choice).
    """

    name = "cam"
    title = "CAM"
    supervision: ClassVar[frozenset[Supervision]] = frozenset({"image"})
    Config = CAMConfig
    reference_recipe = "cam/voc-image-r50"

    def __init__(self, config: CAMConfig, build: Build) -> None:
        super().__init__(config, build)
        self.backbone = build.last_stage(config.output_stride)
        background = build.dataset.background
        self.foreground = [k for k in range(build.num_classes) if k != background]
        self.classifier = nn.Conv2d(self.backbone.channels[-1], len(self.foreground), 1, bias=False)

    def maps(self, images: Tensor) -> Tensor:
        """Signed activation maps ``(B, F, h, w)``, one for each of the F foreground classes."""
        return self.classifier(self.backbone(images)[-1])

    def outputs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Signed maps ``(B, F, h, w)`` of the F foreground classes, and class logits ``(B, F)``."""
        features = self.backbone(images)[-1]
        maps = self.classifier(features)
        if self.config.pooling == "token_max":
            logits = self.classifier(features.amax((2, 3), keepdim=True)).flatten(1)
            return maps, at_least_float32(logits)
        with outside_autocast(maps.device):
            return maps, self.pool(maps)

    def pool(self, maps: Tensor) -> Tensor:
        """Class logits ``(B, F)`` from maps ``(B, F, h, w)``, unless features are pooled."""
        values = at_least_float32(maps).flatten(2)
        if self.config.pooling == "average":
            return values.mean(2)
        if self.config.pooling == "max":
            return values.amax(2)
        return log_sum_exp_pool(values, self.config.lse_sharpness)

    def loss(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """``cls``: multi-label soft margin loss, mean over images and foreground classes."""
        maps, logits = self.outputs(batch.images)
        with outside_autocast(maps.device):
            tags = batch.tags[:, self.foreground]
            return {"cls": F.multilabel_soft_margin_loss(logits, tags)}

    def scores(self, images: Tensor, maps: Tensor, present: Tensor) -> Tensor:
        """Scores in ``[0, 1]``, ``(B, K, H, W)``: CAM of the present classes, a constant background.

        Each map is resized, cut at 0 and divided by its own maximum, as in IRN's step/make_cam.py; with
        ``mirror``, the larger of it and the mirrored pictures' map is taken before; with ``less_minimum``,
        its minimum is taken off.

        Args:
            images: ``(B, 3, H, W)``.
            maps: ``(B, F, h, w)``, theirs.
            present: ``(B, F)`` bool; the other classes score 0.
        """
        size = images.shape[-2:]
        cam = resize(at_least_float32(maps), size, align_corners=False).relu()
        if self.config.mirror:
            mirrored = resize(at_least_float32(self.maps(images.flip(-1))), size, align_corners=False)
            cam = torch.maximum(cam, mirrored.flip(-1).relu())
        if self.config.less_minimum:
            cam = cam - cam.amin((2, 3), keepdim=True)
        cam = cam / (cam.amax((2, 3), keepdim=True) + _EPS) * present[:, :, None, None]
        scores = cam.new_zeros(cam.shape[0], self.build.num_classes, *cam.shape[2:])
        scores[:, self.foreground] = cam
        if self.build.dataset.background is not None:
            scores[:, self.build.dataset.background] = self.config.background_score
        return scores

    def predict(self, images: Tensor, network: str = "default") -> Tensor:
        """Scores ``(B, K, H, W)`` in ``[0, 1]``: CAM of the classes that the network itself finds.

        Without image tags a class counts as present when its probability is at least ``presence``.
        """
        maps, logits = self.outputs(images)
        return self.scores(images, maps, logits.sigmoid() >= self.config.presence)

    @torch.no_grad()
    def pseudo_labels(self, images: Tensor, tags: Tensor) -> dict[str, Tensor]:
        """``cam``: best class of the tagged ones or background, ``(B, H, W)`` int64; one scale."""
        present = tags[:, self.foreground] > 0
        scores = self.scores(images, self.maps(images), present)
        return {"cam": best_class(require_finite(scores, "the activation maps"))}

    @torch.no_grad()
    def class_maps(self, images: Tensor, tags: Tensor) -> Tensor:
        """Activation maps ``(B, K, H, W)`` in ``[0, 1]``; one scale."""
        maps = self.scores(images, self.maps(images), tags[:, self.foreground] > 0)
        if self.build.dataset.background is not None:
            maps[:, self.build.dataset.background] = 0
        return maps

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The encoder with ``backbone_lr_scale``, and the classifier."""
        return by_rate(self.backbone, self.classifier.parameters(), self.config.backbone_lr_scale)

    @classmethod
    def search_space(cls) -> dict[str, BaseDistribution]:
        """Pooling, thresholds and the learning rate."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution

        return {
            "pooling": CategoricalDistribution(["average", "max", "lse"]),
            "lse_sharpness": FloatDistribution(1.0, 20.0, log=True),
            "background_score": FloatDistribution(0.05, 0.5),
            "optimiser.lr": FloatDistribution(1e-3, 3e-1, log=True),
        }
