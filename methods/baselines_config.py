"""Hyper-parameters of the baselines, and what is known of them without their code, which needs torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from harness.basics.bounds import MOST, Stride
from harness.basics.schema import InferenceOnly, Neutral, Shapes, schema
from harness.recipes.declared import Declaration
from methods.parts.configs import DeepLabConfig


@schema
class BaselineConfig(DeepLabConfig):
    """AGMM's network, or for a plain vision transformer that of the image-tag methods on one."""

    decoder: Annotated[Literal["deeplab", "large_fov"], Neutral("deeplab"), Shapes()] = "deeplab"
    """DeepLabV3+, or the LargeFOV head on the last stage, of width `head_width`; of the other keys it
    reads `decoder_dilation` alone. [AGMM-SASS deeplabv3plus.py; large_fov: ToCo
    model/decoder/conv_head.py]"""
    decoder_dilation: Annotated[int, Neutral(5), Shapes()] = Field(default=5, ge=1, le=MOST)
    """`large_fov` only: dilation of its 3x3 convolutions. [ToCo model/decoder/conv_head.py]"""


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


FULL_DECLARED = Declaration(
    name="full",
    title="Full supervision",
    supervision=frozenset({"full"}),
    Config=BaselineConfig,
    reference_recipe="full/voc-full-r101",
)


PCE_DECLARED = Declaration(
    name="pce",
    title="Partial cross-entropy",
    supervision=frozenset({"point", "scribble", "block", "box", "image"}),
    needs_labels_from=frozenset({"image"}),
    Config=BaselineConfig,
    reference_recipe="pce/voc-point-r101",
)


CAM_DECLARED = Declaration(
    name="cam",
    title="CAM",
    supervision=frozenset({"image"}),
    Config=CAMConfig,
    reference_recipe="cam/voc-image-r50",
)
