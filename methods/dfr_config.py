"""Hyper-parameters of DFR (reconstructed), and what is known of it without its code, which needs torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from harness.basics.bounds import MOST, MOST_STEPS
from harness.basics.schema import Shapes, TrainingOnly, schema
from harness.recipes.declared import Declaration, Paper
from methods.parts.configs import DeepLabConfig


@schema
class DFRConfig(DeepLabConfig):
    """Hyper-parameters of the reconstruction; all are inferred, `search` gives the range of each."""

    backbone_lr_scale: float = Field(default=1.0, ge=0)
    """Learning rate of the encoder relative to the rest; 0.1 with DeepLabV3+. [mmsegmentation
    upernet_swin; 0.1: TreeEnergyLoss]"""
    decoder: Annotated[Literal["upernet", "deeplab"], Shapes()] = "upernet"
    """UPerNet is second-hand for the 2021 version; DeepLabV3+ stands for the 2025 abstract's "different
    backbones". [gyguo list of WSSS papers]"""
    width: Annotated[int, Shapes()] = Field(default=512, ge=1, le=MOST)
    """UPerNet only: channels. [mmsegmentation upernet_swin]"""
    drop_path: Annotated[float | None, TrainingOnly()] = Field(default=0.3, ge=0, lt=1)
    """UPerNet only: stochastic depth of the encoder; none leaves the encoder's own. [mmsegmentation
    upernet_swin]"""
    auxiliary_weight: Annotated[float, TrainingOnly()] = Field(default=0.4, ge=0)
    """UPerNet only: weight of the auxiliary head on the last but one stage. [mmsegmentation upernet_swin]"""
    embedding_source: Annotated[Literal["fused", "stages"], Shapes()] = "fused"
    """Deep features from the decoder's fused map at stride 4, or from the encoder's last three stages.
    [our choice; stages: A2GNN resnet38_aff_gated.py]"""
    embedding: Annotated[int, Shapes()] = Field(default=64, ge=2, le=MOST)
    """`fused` only: channels of the unit-length deep features; search 16 to 256. [our choice]"""
    segmentation_loss: Literal["mean", "balanced"] = "mean"
    """Mean over annotated pixels, or mean over background plus mean over foreground. [mean: Tang et al.;
    balanced: RRM myTool.py]"""
    consistency: Annotated[Literal["pairs", "window", "none"], TrainingOnly()] = "pairs"
    """Feature consistency head over pairs of annotated cells anywhere in a picture (FC-A), or in a local
    window (FC-B). [pairs: WeCLIP get_aff_loss; window: A2GNN train_gated_aff.py]"""
    consistency_weight: float = Field(default=0.1, ge=0)
    """Weight of L_fc; search 0.01 to 1. [WeCLIP dist_clip_voc.py, by analogy]"""
    consistency_samples: int = Field(default=1024, ge=2, le=MOST)
    """`pairs` only: most annotated cells per picture; search 256 to 2048. [our choice]"""
    affinity_scale: float = Field(default=1.0, gt=0)
    """`pairs` only: s of the affinity exp(-s mean_c |z_i - z_j|). At 1 unit-length features of 64 channels
    never fall below exp(-1/4); search 1 to 64. [1: WeCLIP, whose features are not of unit length]"""
    consistency_radius: int = Field(default=4, ge=1, le=MOST)
    """`window` only: radius in cells of 8 pixels; search 3 to 6. [A2GNN]"""
    consistency_smoothness: float = Field(default=3.0, ge=0)
    """`window` only: weight of the pull along colours. [A2GNN]"""
    pairs: Annotated[Literal["window", "dense", "none"], TrainingOnly()] = "window"
    """Pairs that the regulariser sums over: a window (gated CRF), all (dense CRF on a lattice, with
    the deep features' three principal components), or no regulariser. [our choice]"""
    combine: Annotated[Literal["product", "sum", "shallow"], TrainingOnly()] = "product"
    """Kernel: one Gaussian of all features, a mixture of a shallow and a deep one, or shallow features
    alone (no dynamic part). The abstracts do not say which. [our choice]"""
    shallow_share: float = Field(default=0.5, ge=0, le=1)
    """`sum` only: share of the shallow kernel; search 0.1 to 0.9. [our choice]"""
    detach_deep: Annotated[bool, TrainingOnly()] = True
    """Deep features shape the kernel and are not trained by it. With false the kernel has the trivial
    minimum of features spread apart. [our choice: the public gated CRF code fails otherwise]"""
    reg_weight: float = Field(default=0.1, ge=0)
    """`window` only: weight of L_reg; search 0.01 to 1. [GatedCRFLoss, by analogy]"""
    radius: int = Field(default=5, ge=1, le=MOST)
    """`window` only: radius in cells of 4 pixels; search 3 to 9. [GatedCRFLoss]"""
    sigma_xy: float = Field(default=6.0, gt=0)
    """`window` only: standard deviation of positions in cells; search 2 to 12. [GatedCRFLoss]"""
    sigma_rgb: float = Field(default=0.1, gt=0)
    """`window` only: standard deviation of normalised colours; search 0.03 to 1. [GatedCRFLoss]"""
    sigma_deep: float = Field(default=0.5, gt=0)
    """Standard deviation of unit-length deep features; search 0.1 to 2. [our choice]"""
    dense_weight: float = Field(default=2e-9, ge=0)
    """`dense` only: weight of the energy, for crops near 513 pixels. [rloss PyTorch README, by analogy]"""
    dense_sigma_xy: float = Field(default=100.0, gt=0)
    """`dense` only: standard deviation of positions in pixels. [rloss PyTorch README]"""
    dense_sigma_rgb: float = Field(default=15.0, gt=0)
    """`dense` only: standard deviation of colours of 0..255. [rloss PyTorch README]"""
    reg_start: float = Field(default=0.005, ge=0, le=1)
    """Share of training without the regulariser. [GatedCRFLoss]"""
    deep_start: int = Field(default=1000, ge=0, le=MOST_STEPS)
    """First step at which deep features enter the kernel; search 0 to 4000. [our choice]"""


DFR_DECLARED = Declaration(
    name="dfr",
    title="DFR (reconstructed)",
    paper=Paper(
        title="Dynamic feature regularized loss for weakly supervised semantic segmentation",
        authors="Zhang, Xiao and Zhao",
        year=2025,
        venue="Pattern Recognition 164, article 111540",
        doi="10.1016/j.patcog.2025.111540",
        arxiv="2108.01296",
    ),
    supervision=frozenset({"scribble"}),
    Config=DFRConfig,
    reference_recipe="dfr/voc-scribble-swinb",
)
