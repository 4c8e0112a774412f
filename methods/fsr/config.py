"""Hyper-parameters of FSR on VOC, as in the released code at its head, and what is known of FSR without its
code, which needs torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from harness.basics.bounds import MOST, MOST_STEPS, in_order
from harness.basics.schema import TrainingOnly, schema
from harness.recipes.declared import Declaration, Paper
from methods.parts.configs import ViTConfig

Sampling = Literal["nearest", "bilinear"]


@schema
class FSRConfig(ViTConfig):
    """Two states of the released code differ in these fields and in optimiser and schedule: its head, and
    the one before commit 3a7cbf7 (recipes ending in ``-pre_3a7cbf7``)."""

    # --- network ---
    decoder_init: Annotated[Literal["torch", "kaiming"], TrainingOnly()] = "kaiming"
    """Initial weights of the LargeFOV head. [FSR models/decoder.py]"""
    drop_path: Annotated[float, TrainingOnly()] = Field(default=0.1, ge=0, lt=1)
    """Stochastic depth in the last block, growing linearly from 0 in the first. [FSR train_voc.py]"""
    noisy_maps: bool = True
    """Stochastic depth stays on while maps are made in training, and in the teacher: the released code
    switches it off in validation alone. [FSR train_voc.py]"""
    aggregation: Annotated[Literal["attention", "average", "max"], TrainingOnly()] = "attention"
    """How a class token comes about: cross-attention, or the average or maximum of the patch tokens, with
    which the paper compares (details of those: our choice). [FSR models/vit.py]"""
    aggregation_depth: Annotated[int, TrainingOnly()] = Field(default=2, ge=1, le=MOST)
    """Cross-attention blocks by which the class token gathers the patches. [FSR train_voc.py: cls_depth]"""
    aggregate_masked: bool = True
    """The class token attends to masked tokens as well. Before commit 3a7cbf7 it saw the unmasked ones
    alone, which is what the abstract describes. [FSR models/vit.py]"""
    residual_scale: Annotated[float | None, TrainingOnly()] = Field(default=None, ge=0)
    """Start of learned scales of both residuals in an aggregation block, one for each channel (0.1 before
    commit 3a7cbf7); none at the head. [FSR models/vit.py]"""
    projector_outputs: Annotated[int, TrainingOnly()] = Field(default=4096, ge=1, le=MOST)
    """Outputs of the projector. [FSR train_voc.py: out_dim]"""
    projector_hidden: Annotated[int, TrainingOnly()] = Field(default=2048, ge=1, le=MOST)
    """Its hidden width. [FSR models/projector.py]"""
    projector_bottleneck: Annotated[int, TrainingOnly()] = Field(default=256, ge=1, le=MOST)
    """Its width before the last layer. [FSR models/projector.py]"""

    # --- masks ---
    mask_ratio: float = Field(default=0.4, gt=0, lt=1)
    """Share of blocks of view 2 that are masked, the number rounded up. [FSR train_voc.py]"""
    mask_block: Annotated[int, TrainingOnly()] = Field(default=64, ge=1, le=MOST)
    """Side of a block in pixels, a multiple of the patch; blocks may reach over the crop's edges.
    [FSR train_voc.py]"""
    uncertain_start: Annotated[int, Field(ge=0, le=MOST_STEPS)] | Literal["off"] = 4000
    """First step at which uncertain blocks are masked first, a fifth of the run; at random before, and
    always with `off`. [FSR train_voc.py]"""
    uncertain_low: float = Field(default=0.2, ge=0, le=1)
    """A pixel is uncertain where the auxiliary map lies between this and `uncertain_high`.
    [FSR utils/masking.py]"""
    uncertain_high: float = Field(default=0.7, ge=0, le=1)
    """Upper end, see `uncertain_low`. [FSR utils/masking.py]"""
    _uncertain = in_order("uncertain_low", "uncertain_high")
    uncertain_sampling: Sampling = "nearest"
    """Which pixels speak for a block: its top left one, or those around its centre (`bilinear`).
    [FSR utils/masking.py]"""

    # --- distillation ---
    class_weight: Annotated[float, TrainingOnly()] = Field(default=0.1, ge=0)
    """Weight of the class token's loss, "cer.FSR". [FSR train_voc.py]"""
    patch_weight: Annotated[float, TrainingOnly()] = Field(default=0.1, ge=0)
    """Weight of the masked patches' loss, "unc.FSR". [FSR train_voc.py]"""
    student_temperature: float = Field(default=0.1, gt=0)
    """Temperature of the student's outputs. [FSR losses.py]"""
    teacher_temperature: float = Field(default=0.07, gt=0)
    """Temperature of the teacher's outputs after its rise. [FSR losses.py]"""
    teacher_temperature_start: float = Field(default=0.04, gt=0)
    """Its value at the first step. [FSR losses.py]"""
    teacher_temperature_steps: int = Field(default=2500, ge=0, le=MOST_STEPS)
    """Steps of its rise, an eighth of the run. [FSR train_voc.py]"""
    centre_momentum: Annotated[float, TrainingOnly()] = Field(default=0.9, ge=0, le=1)
    """Momentum of the running means by which the teacher's outputs are centred. [FSR losses.py]"""
    ema_momentum: float = Field(default=0.9995, ge=0, le=1)
    """Momentum of the teacher at the first step; it rises to 1 along half a cosine.
    [FSR train_voc.py: momentum_teacher]"""

    local_views: int = Field(default=0, ge=0, le=MOST)
    """Small crops of each picture whose class tokens are distilled as well. [FSR train_voc.py]"""
    local_size: int = Field(default=96, ge=1, le=MOST)
    """Their side in pixels; they show 5 to 32 % of the picture, in colours of their own.
    [FSR transforms.py]"""

    # --- the other terms ---
    ptc_weight: float = Field(default=0.2, ge=0)
    """Weight of the patch-token contrast. [FSR train_voc.py]"""
    ptc_start: int = Field(default=0, ge=0, le=MOST_STEPS)
    """First step with it. [FSR train_voc.py]"""
    seg_weight: float = Field(default=0.1, ge=0)
    """Weight of the cross-entropy on pseudo labels. [FSR train_voc.py]"""
    reg_weight: float = Field(default=0.05, ge=0)
    """Weight of the dense energy (itself times 1e-7). [FSR train_voc.py]"""
    seg_start: int = Field(default=2000, ge=0, le=MOST_STEPS)
    """First step with both. [FSR train_voc.py]"""


FSR_DECLARED = Declaration(
    name="fsr",
    title="FSR",
    paper=Paper(
        title="Progressive Feature Self-Reinforcement for Weakly Supervised Semantic Segmentation",
        authors="He et al.",
        year=2024,
        venue="AAAI",
        arxiv="2312.08916",
        code="https://github.com/Jessie459/feature-self-reinforcement at 7f75f1c",
    ),
    supervision=frozenset({"image"}),
    Config=FSRConfig,
    reference_recipe="fsr/voc-image-vitb",
    networks=("default", "teacher"),
)
