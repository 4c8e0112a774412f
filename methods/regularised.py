"""Partial cross-entropy with a regularised loss: what scribble methods are compared with.

    L = L_pCE(annotated pixels) + w L_reg(all pixels)

The regulariser asks that pixels which look alike get the same label: over all pairs (dense CRF, Tang et
al., ECCV 2018), over pairs in a window (gated CRF, Obukhov et al., 2019), or along minimum spanning trees
(tree energy, Liang et al., CVPR 2022). The network is AGMM's and that of ``pce``, so that rows of one
table differ in the loss alone; the papers' own networks differ, see the recipes' remarks.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from harness.basics.bounds import MOST
from harness.basics.schema import TrainingOnly, schema
from harness.data.base import Supervision
from harness.engine.batch import UNLABELLED, Batch, Progress
from harness.engine.method import Build, Paper
from harness.nn.decoders import conv_bn_relu
from harness.nn.dense_crf import dense_crf_loss
from harness.nn.precision import at_least_float32, outside_autocast
from harness.nn.resize import resize
from methods.parts.cross_entropy import partial_cross_entropy
from methods.parts.deeplab import DeepLabConfig, DeepLabMethod
from methods.parts.gated_crf import GatedCRFKernel, gated_crf_loss
from methods.parts.tree_energy import tree_energy_loss

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


@schema
class DenseCRFConfig(DeepLabConfig):
    """DeepLabV3+ with the dense CRF loss."""

    weight: float = Field(default=2e-9, gt=0)
    """Weight of the energy, which grows with the picture: it holds for crops near 513 pixels.
    [rloss PyTorch README]"""
    sigma_rgb: float = Field(default=15.0, gt=0)
    """Standard deviation of colours of 0..255. [rloss PyTorch README]"""
    sigma_xy: float = Field(default=100.0, gt=0)
    """Standard deviation of positions in pixels; 80 in the Caffe models and as the code's own default.
    [rloss PyTorch README]"""
    scale: float = Field(default=0.5, gt=0, le=1)
    """Resolution of the energy relative to the crop. [rloss PyTorch README]"""
    gradient: Literal["coded", "true"] = "coded"
    """Derivative as in the released code, or exact for the lattice's asymmetry. [rloss DenseCRFLoss.py]"""
    start: float = Field(default=0.0, ge=0, le=1)
    """Share of training without the regulariser. [rloss train_withdensecrfloss.py: from the start]"""


class DenseCRFLoss(RegularisedMethod):
    """Dense CRF loss (Tang et al.): all pairs of pixels, a Gaussian of colour and position."""

    name = "rloss"
    title = "pCE + dense CRF loss"
    paper = Paper(
        title="On Regularized Losses for Weakly-supervised CNN Segmentation",
        authors="Tang et al.",
        year=2018,
        venue="ECCV",
        code="https://github.com/meng-tang/rloss at 1caa759",
    )
    Config = DenseCRFConfig
    reference_recipe = "rloss/voc-scribble-r101"

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


@schema
class GatedCRFConfig(DeepLabConfig):
    """DeepLabV3+ with the gated CRF loss."""

    weight: float = Field(default=0.1, gt=0)
    """Weight of the loss. [GatedCRFLoss defaults]"""
    radius: int = Field(default=5, ge=1, le=MOST)
    """Radius of the window, in cells of 4 pixels. [GatedCRFLoss defaults]"""
    sigma_xy: float = Field(default=6.0, gt=0)
    """Standard deviation of positions in cells. [GatedCRFLoss defaults]"""
    sigma_rgb: float = Field(default=0.1, gt=0)
    """Standard deviation of normalised colours. [GatedCRFLoss defaults]"""
    start: float = Field(default=0.005, ge=0, le=1)
    """Share of training without the regulariser. [GatedCRFLoss defaults]"""


class GatedCRF(RegularisedMethod):
    """Gated CRF loss (Obukhov et al.): pairs within a window, padding switched off."""

    name = "gated_crf"
    title = "pCE + gated CRF loss"
    paper = Paper(
        title="Gated CRF Loss for Weakly Supervised Semantic Image Segmentation",
        authors="Obukhov et al.",
        year=2019,
        venue="NeurIPS workshop",
        arxiv="1906.04651",
        code="https://github.com/LEONOB2014/GatedCRFLoss",
    )
    Config = GatedCRFConfig
    reference_recipe = "gated_crf/voc-scribble-r101"

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


@schema
class TreeEnergyConfig(DeepLabConfig):
    """DeepLabV3+ with the tree energy loss."""

    weight: float = Field(default=0.4, gt=0)
    """Weight of the loss. [TreeEnergyLoss configuration]"""
    sigma_low: float = Field(default=0.02, gt=0)
    """Scale of squared colour differences along an edge; 0.002 on Cityscapes. [TreeEnergyLoss]"""
    sigma_high: float = Field(default=1.0, gt=0)
    """Scale of squared feature differences along an edge. [TreeEnergyLoss]"""
    embedding: Annotated[int, TrainingOnly()] = Field(default=256, ge=1, le=MOST)
    """Channels of the features of the second tree, a 1x1 convolution with normalisation and ReLU on
    the encoder's last stage. [TreeEnergyLoss; which features it reads is our choice]"""
    start: float = Field(default=0.0, ge=0, le=1)
    """Share of training without the regulariser. [TreeEnergyLoss: from the start]"""


class TreeEnergy(RegularisedMethod):
    """Tree energy loss (Liang et al.): agreement with probabilities smoothed along two spanning trees."""

    name = "tree_energy"
    title = "pCE + tree energy loss"
    paper = Paper(
        title="Tree Energy Loss: Towards Sparsely Annotated Semantic Segmentation",
        authors="Liang et al.",
        year=2022,
        venue="CVPR",
        code="https://github.com/megvii-research/TreeEnergyLoss at a4bf602",
    )
    Config = TreeEnergyConfig
    reference_recipe = "tree_energy/voc-scribble-r101"

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
