"""What every method is measured against: full supervision, partial cross-entropy, plain CAM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.basics.finite import require_finite
from harness.engine.batch import Batch, Progress
from harness.engine.method import Build, Method
from harness.nn.choice import best_class
from harness.nn.constants import constant
from harness.nn.decoders import LargeFOVNetwork
from harness.nn.precision import at_least_float32, outside_autocast
from harness.nn.resize import resize
from harness.nn.vit import by_rate
from methods.baselines_config import CAM_DECLARED, FULL_DECLARED, PCE_DECLARED, CAMConfig
from methods.parts.cam import _EPS, log_sum_exp_pool
from methods.parts.cross_entropy import partial_cross_entropy
from methods.parts.deeplab import DeepLabMethod

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


class FullSupervision(DeepLabMethod, declared=FULL_DECLARED):
    """Cross-entropy on dense masks, void pixels (255) left out: the upper bound of a recipe."""

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


class PartialCrossEntropy(FullSupervision, declared=PCE_DECLARED):
    """Cross-entropy on the annotated pixels alone, the field's baseline (pCE) for sparse labels.

    Points, scribbles and blocks directly. Boxes: everything outside all boxes is
    background, ``labels.box_inside`` says what is inside (our choice). Image tags: with
    ``labels_from``, dense pseudo labels, which makes it the usual second stage of image-level methods.
    """


class ClassActivationMap(Method, declared=CAM_DECLARED):
    """Multi-label classification; the class activation maps segment (Zhou et al., CVPR 2016).

    A 1x1 convolution without bias on the encoder's last stage gives one signed map per foreground
    class, pooled to a class score. Settings follow IRN's first step (Ahn et al., CVPR 2019) where
    cited; unlike there, the whole encoder is trained, batch normalisation included (our choice).
    """

    def __init__(self, config: CAMConfig, build: Build) -> None:
        super().__init__(config, build)
        self.backbone = build.last_stage(config.output_stride)
        background = build.dataset.background
        self.foreground = [k for k in range(build.num_classes) if k != background]
        self.classifier = nn.Conv2d(self.backbone.channels[-1], len(self.foreground), 1, bias=False)

    def _foreground(self, device: torch.device) -> Tensor:
        """Classes ``(F,)`` but background, as an index."""
        return constant(tuple(self.foreground), device, torch.long)

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
            tags = batch.tags[:, self._foreground(maps.device)]
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
        scores[:, self._foreground(cam.device)] = cam
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
        present = tags[:, self._foreground(tags.device)] > 0
        scores = self.scores(images, self.maps(images), present)
        return {"cam": best_class(require_finite(scores, "the activation maps"))}

    @torch.no_grad()
    def class_maps(self, images: Tensor, tags: Tensor) -> Tensor:
        """Activation maps ``(B, K, H, W)`` in ``[0, 1]``; one scale."""
        maps = self.scores(images, self.maps(images), tags[:, self._foreground(tags.device)] > 0)
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
