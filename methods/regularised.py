"""Partial cross-entropy with a regularised loss: what scribble methods are compared with.

    L = L_pCE(annotated pixels) + w L_reg(all pixels)

The regulariser asks that pixels which look alike get the same label: over all pairs (dense CRF, Tang et
al., ECCV 2018), over pairs in a window (gated CRF, Obukhov et al., 2019), or along minimum spanning trees
(tree energy, Liang et al., CVPR 2022). The network is AGMM's and that of ``pce``, so that rows of one
table differ in the loss alone; the papers' own networks differ, see the recipes' remarks.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from harness.data.base import Supervision
from harness.engine.batch import UNLABELLED, Batch, Progress
from harness.engine.method import Build
from harness.nn.decoders import conv_bn_relu
from harness.nn.dense_crf import dense_crf_loss
from harness.nn.precision import at_least_float32, outside_autocast
from harness.nn.resize import resize
from methods.parts.cross_entropy import partial_cross_entropy
from methods.parts.deeplab import DeepLabMethod
from methods.parts.gated_crf import GatedCRFKernel, gated_crf_loss
from methods.parts.tree_energy import tree_energy_loss
from methods.regularised_config import (
    GATED_CRF_DECLARED,
    RLOSS_DECLARED,
    TREE_ENERGY_DECLARED,
    TreeEnergyConfig,
)

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


class RegularisedMethod(DeepLabMethod):
    """Partial cross-entropy and one regulariser on DeepLabV3+."""

    supervision: ClassVar[frozenset[Supervision]] = frozenset({"scribble", "point", "block"})
    probe_steps = (0.5,)

    def loss(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """``seg`` (partial cross-entropy) and ``reg`` (weighted; absent before its first step)."""
        stages = self.network.backbone(batch.images)
        low = self.network.classifier(self.network.features(stages))
        with outside_autocast(low.device):
            low = at_least_float32(low)
            logits = resize(low, batch.images.shape[-2:], align_corners=True)
            terms = {"seg": partial_cross_entropy(logits, batch.labels)}
            if progress.fraction >= self.config.start:
                terms["reg"] = self.config.weight * self.regulariser(low, logits, stages, batch)
        return terms

    @abstractmethod
    def regulariser(self, low: Tensor, logits: Tensor, stages: list[Tensor], batch: Batch) -> Tensor:
        """The unweighted regulariser, a scalar.

        Args:
            low: logits ``(B, K, h, w)`` on the grid of stride 4, float32 at least.
            logits: the same resized to the pictures, ``(B, K, H, W)``.
            stages: the encoder's features.
            batch: pictures, labels and padding.
        """

    @classmethod
    def search_space(cls) -> dict[str, BaseDistribution]:
        """The regulariser's weight around its default, and the learning rate."""
        from optuna.distributions import FloatDistribution

        usual = cls.Config().weight
        return {
            "weight": FloatDistribution(usual / 30, usual * 30, log=True),
            "optimiser.lr": FloatDistribution(1e-4, 1e-1, log=True),
        }


# --- dense CRF ---------------------------------------------------------------------------------------


class DenseCRFLoss(RegularisedMethod, declared=RLOSS_DECLARED):
    """Dense CRF loss (Tang et al.): all pairs of pixels, a Gaussian of colour and position."""

    def regulariser(self, low: Tensor, logits: Tensor, stages: list[Tensor], batch: Batch) -> Tensor:
        """Negative energy of agreement over the unpadded picture."""
        config = self.config
        return dense_crf_loss(
            logits.softmax(1),
            batch.raw,
            roi=batch.valid.to(logits.dtype),
            sigma_rgb=config.sigma_rgb,
            sigma_xy=config.sigma_xy,
            scale=config.scale,
            gradient=config.gradient,
        )


# --- gated CRF ---------------------------------------------------------------------------------------


class GatedCRF(RegularisedMethod, declared=GATED_CRF_DECLARED):
    """Gated CRF loss (Obukhov et al.): pairs within a window, padding switched off."""

    def regulariser(self, low: Tensor, logits: Tensor, stages: list[Tensor], batch: Batch) -> Tensor:
        """Disagreement of neighbours that look alike, on the grid of stride 4."""
        config = self.config
        kernel = GatedCRFKernel(sigmas={"xy": config.sigma_xy, "rgb": config.sigma_rgb})
        return gated_crf_loss(
            low.softmax(1),
            {"rgb": batch.images},
            kernels=(kernel,),
            radius=config.radius,
            mask_src=batch.valid,
            mask_dst=batch.valid,
        )


# --- tree energy -------------------------------------------------------------------------------------


class TreeEnergy(RegularisedMethod, declared=TREE_ENERGY_DECLARED):
    """Tree energy loss (Liang et al.): agreement with probabilities smoothed along two spanning trees."""

    def __init__(self, config: TreeEnergyConfig, build: Build) -> None:
        super().__init__(config, build)
        channels = self.network.backbone.channels[-1]
        self.embed = nn.Sequential(*conv_bn_relu(channels, config.embedding))

    def regulariser(self, low: Tensor, logits: Tensor, stages: list[Tensor], batch: Batch) -> Tensor:
        """Mean difference from the smoothed probabilities over pixels that nobody annotated."""
        config = self.config
        return tree_energy_loss(
            low.softmax(1),
            batch.images,
            self.embed(at_least_float32(stages[-1])),  # as autocast is off here
            batch.labels == UNLABELLED,
            sigma_low=config.sigma_low,
            sigma_high=config.sigma_high,
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The encoder with ``backbone_lr_scale``; head and embedding."""
        backbone, head = super().parameter_groups()
        return [backbone, {**head, "params": [*head["params"], *self.embed.parameters()]}]
