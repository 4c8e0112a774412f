"""Hyper-parameters of ToCo, and what is known of it without its code, which needs torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from harness.basics.bounds import MOST, MOST_STEPS
from harness.basics.schema import TrainingOnly, schema
from harness.recipes.declared import Declaration, Paper
from methods.parts.configs import ViTConfig


@schema
class ToCoConfig(ViTConfig):
    """Hyper-parameters of ToCo on VOC; steps count from 0."""

    ptc_weight: float = Field(default=0.2, ge=0)
    """Weight of the patch token contrast. [ToCo scripts/dist_train_voc_seg_neg.py]"""
    ctc_weight: Annotated[float, TrainingOnly()] = Field(default=0.5, ge=0)
    """Weight of the class token contrast. [ToCo scripts/dist_train_voc_seg_neg.py]"""
    seg_weight: float = Field(default=0.1, ge=0)
    """Weight of the segmentation loss. [ToCo scripts/dist_train_voc_seg_neg.py]"""
    reg_weight: float = Field(default=0.05, ge=0)
    """Weight of the dense energy. [ToCo scripts/dist_train_voc_seg_neg.py]"""
    contrast_start: int = Field(default=0, ge=0, le=MOST_STEPS)
    """First step with both contrasts; 12001 in the COCO script.
    [ToCo scripts/dist_train_voc_seg_neg.py, dist_train_coco_seg_neg.py]"""
    seg_start: int = Field(default=2001, ge=0, le=MOST_STEPS)
    """First step with segmentation loss and dense energy; 8001 in the COCO script.
    [ToCo scripts/dist_train_voc_seg_neg.py, dist_train_coco_seg_neg.py]"""
    final_cam_start: int = Field(default=0, ge=0, le=MOST_STEPS)
    """First step whose pseudo labels come from the final layer's maps, from the auxiliary ones before;
    12001 in the COCO script. [ToCo scripts/dist_train_voc_seg_neg.py, dist_train_coco_seg_neg.py]"""
    temperature: float = Field(default=0.5, gt=0)
    """Of the class token contrast. The COCO script takes 0.5 as its option and uses 1.
    [ToCo scripts/dist_train_voc_seg_neg.py]"""
    projection_momentum: float = Field(default=0.9, ge=0, le=1)
    """Momentum of the averaged projection head; encoder and classifiers have no average.
    [ToCo scripts/dist_train_voc_seg_neg.py]"""
    projection_width: Annotated[int, TrainingOnly()] = Field(default=1024, ge=1, le=MOST)
    """Outputs of the projection head. [ToCo model/model_seg_neg.py]"""
    projection_hidden: Annotated[int, TrainingOnly()] = Field(default=2048, ge=1, le=MOST)
    """Width of its hidden layers. [ToCo model/model_seg_neg.py]"""
    projection_bottleneck: Annotated[int, TrainingOnly()] = Field(default=256, ge=1, le=MOST)
    """Width before its last layer. [ToCo model/model_seg_neg.py]"""
    local_crops: int = Field(default=8, ge=1, le=MOST)
    """Crops of each picture beside its two global views. [ToCo scripts/dist_train_voc_seg_neg.py]"""
    local_size: int = Field(default=96, ge=1, le=MOST)
    """Side of these crops in pixels. [ToCo scripts/dist_train_voc_seg_neg.py]"""
    local_negative_share: float = Field(default=0.2, ge=0)
    """A crop is negative when its code (0 background, 1 uncertain, 2 foreground) is at most this in the
    mean. [ToCo utils/camutils.py]"""
    token_region: Literal["released", "scaled"] = "released"
    """Which tokens padding takes out of the patch contrast: `released` reads the unpadded box, which is in
    pixels, in tokens: a picture padded at its top or left by more pixels than there are tokens has none
    left, any other all; `scaled` shrinks it to the token grid. [ToCo scripts/dist_train_voc_seg_neg.py]"""
    second_flip: Literal["released", "none"] = "released"
    """`released`: after the crop, picture and source of the local crops are mirrored once more, each by
    its own coin; the box follows neither, and the local crops' regions follow the picture.
    [ToCo datasets/voc.py]"""


TOCO_DECLARED = Declaration(
    name="toco",
    title="ToCo",
    paper=Paper(
        title="Token Contrast for Weakly-Supervised Semantic Segmentation",
        authors="Ru, Zheng, Zhan, Du",
        year=2023,
        venue="CVPR",
        arxiv="2303.01267",
        code="https://github.com/rulixiang/ToCo at e13514d",
    ),
    supervision=frozenset({"image"}),
    Config=ToCoConfig,
    reference_recipe="toco/voc-image-vitb",
)
