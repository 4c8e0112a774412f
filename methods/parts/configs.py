"""Hyper-parameters that several papers share, known without their code, which needs torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from harness.basics.bounds import MOST, Factor, Stride, in_order
from harness.basics.schema import InferenceOnly, Neutral, Shapes, TrainingOnly, schema

#: What keeps the normaliser of local aggregation from zero.
Epsilon = Literal["none", "reference"]


@schema
class DeepLabConfig:
    """The network of AGMM on VOC; a miniature is the same network with smaller numbers."""

    output_stride: Annotated[Stride, Shapes()] = 8
    """Stride of the encoder's last stage. [AGMM-SASS configs/pascal.yaml]"""
    multi_grid: Annotated[tuple[Stride, ...], Shapes()] = ()
    """Factors of the dilations in the last stage; (2, 2, 4) on Cityscapes. [AGMM-SASS configs]"""
    aspp_rates: Annotated[tuple[Stride, Stride, Stride], Shapes()] = (6, 12, 18)
    """Dilations of ASPP; (12, 24, 36) on Cityscapes. [AGMM-SASS configs/pascal.yaml]"""
    head_width: Annotated[int, Shapes()] = Field(default=256, ge=1, le=MOST)
    """Channels of ASPP and of the features that are classified. [AGMM-SASS deeplabv3plus.py]"""
    low_width: Annotated[int, Shapes()] = Field(default=48, ge=1, le=MOST)
    """Channels to which the features of stride 4 are reduced. [AGMM-SASS deeplabv3plus.py]"""
    dropout: Annotated[float, TrainingOnly()] = Field(default=0.5, ge=0, lt=1)
    """Channel dropout after ASPP. [AGMM-SASS deeplabv3plus.py]"""
    backbone_lr_scale: float = Field(default=0.1, ge=0)
    """Learning rate of the encoder relative to the rest: 0.001 to 0.01 on VOC, 1.0 on Cityscapes.
    [AGMM-SASS configs/pascal.yaml]"""


@schema
class ViTConfig:
    """Network, maps and pseudo labels as ToCo has them on VOC."""

    aux_layer: Annotated[int, Shapes()] = Field(default=-3, ge=-1000, le=1000)
    """Block whose tokens the auxiliary classifier reads; -3 is the tenth of twelve.
    [ToCo scripts/dist_train_voc_seg_neg.py; FSR train_voc.py]"""
    pooling: Annotated[Literal["max", "lse", "average"], TrainingOnly()] = "max"
    """How token scores become a class score: of the channels' maxima, or the log-sum-exp or average of the
    tokens' scores, which spread the maps. [ToCo model/model_seg_neg.py; lse, average: our choice]"""
    lse_sharpness: Annotated[float, TrainingOnly()] = Field(default=5.0, gt=0)
    """r of log-sum-exp pooling, (1/r) log mean exp(r x): 0 is the mean, infinity the maximum. [our choice]"""
    decoder_width: Annotated[int, Shapes()] = Field(default=512, ge=1, le=MOST)
    """Channels of the LargeFOV head. [ToCo model/decoder/conv_head.py]"""
    decoder_dilation: Annotated[int, Shapes()] = Field(default=5, ge=1, le=MOST)
    """Dilation of its 3x3 convolutions, in tokens. [ToCo model/decoder/conv_head.py]"""
    decoder_init: Annotated[Literal["torch", "kaiming"], TrainingOnly()] = "torch"
    """Its initial weights: torch's own, or Kaiming's normal ones (FSR). ToCo's code defines the latter and
    never calls them. [ToCo model/decoder/conv_head.py]"""
    cam_scales: Annotated[tuple[Factor, ...], Shapes()] = (1.0, 0.5, 1.5)
    """Scales of the activation maps, each with its mirror; scale 1 always takes part.
    [ToCo scripts/dist_train_voc_seg_neg.py]"""
    high: Annotated[float, Shapes()] = Field(default=0.7, ge=0, le=1)
    """A token or pixel is foreground where its map exceeds this; 0.65 on COCO.
    [ToCo scripts/dist_train_voc_seg_neg.py]"""
    low: Annotated[float, Shapes()] = Field(default=0.25, ge=0, le=1)
    """Background where no map exceeds this; between both thresholds undecided.
    [ToCo scripts/dist_train_voc_seg_neg.py]"""
    _thresholds = in_order("low", "high")
    background_score: Annotated[float, InferenceOnly()] = Field(default=0.5, ge=0, le=1)
    """The one threshold of maps that are scored; 0.45 on COCO. [ToCo scripts/dist_train_voc_seg_neg.py]"""
    cam_size: Annotated[int, InferenceOnly()] = Field(default=448, ge=0, le=MOST)
    """Side in pixels to which pictures are squashed before maps are made for scoring; 0 for their own size.
    [ToCo scripts/dist_train_voc_seg_neg.py: validate]"""
    refine_iterations: Annotated[int, Shapes()] = Field(default=10, ge=0, le=MOST)
    """Iterations of PAR. [ToCo scripts/dist_train_voc_seg_neg.py]"""
    refine_dilations: Annotated[tuple[Stride, ...], Shapes()] = Field(
        default=(1, 2, 4, 8, 12, 24), min_length=1
    )
    """Distances of PAR's neighbours in pixels of the shrunk picture.
    [ToCo scripts/dist_train_voc_seg_neg.py]"""
    refine_down_scale: Annotated[int, Shapes()] = Field(default=2, ge=1, le=MOST)
    """PAR works on pictures this many times smaller. [ToCo utils/camutils.py]"""
    head_lr_scale: float = Field(default=10.0, ge=0)
    """Learning rate of everything but the encoder, relative to it.
    [ToCo scripts/dist_train_voc_seg_neg.py]"""
    before_start: Annotated[Literal["zero", "skip"], Neutral("skip")] = "zero"
    """Parts that only terms of weight 0 reach, as before such a term starts: `zero`, the released code
    multiplies these terms by 0, so their gradient is 0, and Adam decays them and counts their steps from
    step 0; `skip`, they have no gradient and keep their initial weights until the term starts, and its first
    steps are the longer for it. [ToCo scripts/dist_train_voc_seg_neg.py; FSR train_voc.py]"""
