"""Hyper-parameters of BLPSeg, and what is known of it without its code, which needs torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from harness.basics.bounds import MOST, MOST_STEPS
from harness.basics.schema import Shapes, TrainingOnly, schema
from harness.recipes.declared import Declaration, Paper
from methods.parts.configs import Epsilon


@schema
class BLPSegConfig:
    """Hyper-parameters of BLPSeg on VOC."""

    width: Annotated[int, Shapes()] = Field(default=256, ge=1, le=MOST)
    """Channels of pyramid pooling, decoder, heads and embedding. [BLPSeg experiment/blpseg-voc/config.py]"""
    dropout: Annotated[float, TrainingOnly()] = Field(default=0.1, ge=0, lt=1)
    """Channel dropout after pyramid pooling. [BLPSeg PPM.py]"""
    norm_momentum: Annotated[float, TrainingOnly()] = Field(default=0.001, gt=0, le=1)
    """Momentum of the running statistics outside the backbone. [BLPSeg sync_batchnorm/batchnorm.py]"""
    gamma: float = Field(default=2.0, ge=0)
    """Exponent of the BLP weight; 0 leaves a plain cross-entropy with a mean per picture.
    [BLPSeg experiment/blpseg-voc/config.py]"""
    unlabelled_weight: float = Field(default=0.02, gt=0)
    """Weight of the class "not drawn" in the annotation head's cross-entropy.
    [BLPSeg experiment/blpseg-voc/config.py]"""
    annotation_weight: float = Field(default=1.0, gt=0)
    """Weight of the annotation head's loss. [BLPSeg blpseg.py]"""
    aggregate: Annotated[bool, Shapes()] = True
    """Local aggregation of the logits, in training and at test time. [BLPSeg blpseg.py]"""
    sigma: Annotated[float, Shapes()] = Field(default=6.0, gt=0)
    """Standard deviation of its distance term, in cells of 4 pixels. [BLPSeg blpseg.py]"""
    lam_epsilon: Annotated[Epsilon, Shapes()] = "none"
    """`reference` keeps the 1e-7 of local aggregation's normaliser, `none` drops it: at the authors'
    initialisation on photographs it moves fewer than one position in 9216 by a percent. [our choice;
    reference: BLPSeg blpseg.py]"""
    self_training_step: Annotated[int, Field(ge=0, le=MOST_STEPS)] | Literal["off"] = 10000
    """First step that trains on confident predictions too; `off` for no self-training.
    [BLPSeg experiment/blpseg-voc/config.py]"""
    confidence: float = Field(default=0.9, ge=0, le=1)
    """Least probability of a pixel's own prediction to become its target. [BLPSeg blpseg.py]"""


BLPSEG_DECLARED = Declaration(
    name="blpseg",
    title="BLPSeg",
    paper=Paper(
        title="BLPSeg: Balance the Label Preference in Scribble-Supervised Semantic Segmentation",
        authors="Wang et al.",
        year=2023,
        venue="IEEE TIP",
        doi="10.1109/TIP.2023.3301342",
        code="https://github.com/YudeWang/BLPSeg at 61866a1",
    ),
    supervision=frozenset({"scribble"}),
    Config=BLPSegConfig,
    reference_recipe="blpseg/voc-scribble-r101",
)
