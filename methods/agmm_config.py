"""Hyper-parameters of AGMM, and what is known of it without its code, which needs torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from harness.basics.schema import schema
from harness.recipes.declared import Declaration, Paper
from methods.parts.configs import DeepLabConfig

Spread = Literal["unit", "pred", "plain"]


@schema
class AGMMConfig(DeepLabConfig):
    """Hyper-parameters of AGMM; the code adds its terms with weight 1 and has no others."""

    spread: Spread = "unit"
    """Width of the Gaussians. `unit`: exp(-D^2), as released; `pred`: a variance weighted by the
    prediction, exp(-D^2 / 2 sigma^2), most likely what equation 7 prints; `plain`: over all pixels.
    [AGMM-SASS tools.py; the others are its disabled lines]"""
    prototype_pool: Literal["sum", "mean"] = "sum"
    """How L_contrast pools a class's prototypes over the images of a group; the code's count cancels, so
    that it sums. [AGMM-SASS tools.py]"""
    self_weight: float = Field(default=1.0, ge=0)
    """Weight of L_self, equation 8. [AGMM-SASS train_voc.py]"""
    label_weight: float = Field(default=1.0, ge=0)
    """Weight of L_label, equation 9. [AGMM-SASS train_voc.py]"""
    contrast_weight: float = Field(default=1.0, ge=0)
    """Weight of L_contrast. [AGMM-SASS train_voc.py]"""
    cls_weight: float = Field(default=1.0, ge=0)
    """Weight of L_cls, which lowers classes that the whole weak label lacks; 0 switches it off.
    [AGMM-SASS train_voc.py]"""
    oem_ours_rounds: int = Field(default=0, ge=0, le=10)
    """Rounds of online EM on prototypes and spread per step. Our own design after one sentence of the
    TPAMI 2025 abstract, not that paper's method, whose formulas are not public. [our choice]"""


AGMM_DECLARED = Declaration(
    name="agmm",
    title="AGMM",
    paper=Paper(
        title="Sparsely Annotated Semantic Segmentation with Adaptive Gaussian Mixtures",
        authors="Wu et al.",
        year=2023,
        venue="CVPR",
        doi="10.1109/CVPR52729.2023.01483",
        code="https://github.com/Luffy03/AGMM-SASS at 6a60ea0",
    ),
    supervision=frozenset({"point", "scribble", "block", "box", "image"}),
    needs_labels_from=frozenset({"image"}),
    Config=AGMMConfig,
    reference_recipe="agmm/voc-point-r101",
)
