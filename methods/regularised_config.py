"""Hyper-parameters of three regularised losses, and what is known of them without code, which needs torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from harness.basics.bounds import MOST
from harness.basics.schema import TrainingOnly, schema
from harness.data.base import Supervision
from harness.recipes.declared import Declaration, Paper
from methods.parts.configs import DeepLabConfig

_SPARSE: frozenset[Supervision] = frozenset({"scribble", "point", "block"})


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


RLOSS_DECLARED = Declaration(
    name="rloss",
    title="pCE + dense CRF loss",
    paper=Paper(
        title="On Regularized Losses for Weakly-supervised CNN Segmentation",
        authors="Tang et al.",
        year=2018,
        venue="ECCV",
        code="https://github.com/meng-tang/rloss at 1caa759",
    ),
    supervision=_SPARSE,
    Config=DenseCRFConfig,
    reference_recipe="rloss/voc-scribble-r101",
)


GATED_CRF_DECLARED = Declaration(
    name="gated_crf",
    title="pCE + gated CRF loss",
    paper=Paper(
        title="Gated CRF Loss for Weakly Supervised Semantic Image Segmentation",
        authors="Obukhov et al.",
        year=2019,
        venue="NeurIPS workshop",
        arxiv="1906.04651",
        code="https://github.com/LEONOB2014/GatedCRFLoss",
    ),
    supervision=_SPARSE,
    Config=GatedCRFConfig,
    reference_recipe="gated_crf/voc-scribble-r101",
)


TREE_ENERGY_DECLARED = Declaration(
    name="tree_energy",
    title="pCE + tree energy loss",
    paper=Paper(
        title="Tree Energy Loss: Towards Sparsely Annotated Semantic Segmentation",
        authors="Liang et al.",
        year=2022,
        venue="CVPR",
        code="https://github.com/megvii-research/TreeEnergyLoss at a4bf602",
    ),
    supervision=_SPARSE,
    Config=TreeEnergyConfig,
    reference_recipe="tree_energy/voc-scribble-r101",
)
