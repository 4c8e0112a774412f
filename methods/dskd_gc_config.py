"""Hyper-parameters of DSKD+GC, and what is known of it without its code, which needs torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from harness.basics.bounds import MOST, MOST_STEPS, in_order
from harness.basics.schema import Shapes, TrainingOnly, schema
from harness.recipes.declared import Declaration, Paper
from methods.parts.configs import ViTConfig

SegmentationForm = Literal["mean", "balanced", "per_image_sum"]

Reduce = Literal["pooled", "per_image"]

SimilarityMode = Literal["channel", "token", "flat"]

Rewrite = Literal["all", "keep_bg"]

CorrectionSource = Literal["initial", "after_rh"]

Border = Literal["valid", "zero", "replicate"]


@schema
class CorrectionConfig(ViTConfig):
    """From activation maps to corrected labels; the thresholds of the initial ones are ToCo's."""

    label_par: Annotated[Literal["none", "before_gc"], Shapes()] = "none"
    """`before_gc` refines the activations by PAR before they become labels (ToCo); the paper does not
    mention it. [our choice]"""
    gc: Annotated[bool, Shapes()] = True
    """Gaussian correction of the labels that segmentation trains on. [paper]"""
    gc_theta_high: Annotated[float, Shapes()] = Field(default=0.85, ge=0, le=1)
    """Noise probability above which a label is noise (R_h). [paper, Table 2]"""
    gc_theta_low: Annotated[float, Shapes()] = Field(default=0.25, ge=0, le=1)
    """Noise probability from which on a label is uncertain (R_u). [paper, Table 2]"""
    _thetas = in_order("gc_theta_low", "gc_theta_high")
    gc_tau: Annotated[float, Shapes()] = Field(default=0.5, ge=-1, le=1)
    """Cosine below which two neighbours differ. The paper gives no value; search it over 0.2 to 0.95.
    [our choice]"""
    gc_fit_pixels: Annotated[Literal["all", "nonbg"], Shapes()] = "all"
    """Pixels that are fitted and corrected: all of the map, or those not labelled background. [paper: all]"""
    gc_rewrite: Annotated[Rewrite, Shapes()] = "all"
    """`keep_bg`: R_h leaves background labels alone. [paper: all]"""
    gc_confidence: Annotated[Literal["cam_max", "label_conf", "per_class"], Shapes()] = "cam_max"
    """What the mixture is fitted to: the largest activation of the present classes; the confidence of the
    label, 1 - activation for background; or every present class's map by itself, a pixel belonging to
    its strongest. The text says label confidence, the formula activations. [our choice]"""
    gc_fit_scope: Annotated[Literal["image", "batch"], Shapes()] = "image"
    """One mixture for each picture, or one for all of a batch; the paper's N is not explained.
    [our choice, as DuPL train_final_voc.py]"""
    gc_init: Annotated[Literal["midpoint", "fixed"], Shapes()] = "midpoint"
    """EM starts from the halves of the range, or from means 0 and 1, variances 0.05 and equal weights.
    [our choice]"""
    gc_reg: Annotated[float, Shapes()] = Field(default=5e-4, ge=0)
    """Added to the variances in every step of EM. [DuPL train_final_voc.py]"""
    gc_tol: Annotated[float, Shapes()] = Field(default=1e-6, ge=0)
    """EM stops when the mean log likelihood changes by less. [our choice]"""
    gc_max_iter: Annotated[int, Shapes()] = Field(default=100, ge=1, le=MOST)
    """Most steps of EM. [our choice]"""
    gc_bins: Annotated[int, Shapes()] = Field(default=1024, ge=0, le=MOST)
    """On pixel grids EM runs on a histogram of so many bins; 0: on the pixels. [our choice]"""
    gc_monotone: Annotated[bool, Shapes()] = False
    """Noise probability never rises with confidence: values beyond a component's mean count as the mean.
    [our choice]"""
    gc_feature: Annotated[Literal["final", "layer_m", "projected"], Shapes()] = "final"
    """Features that neighbours are compared by: last layer, layer m, or the projector's outputs; the
    paper does not say. [our choice]"""
    gc_grid: Annotated[Literal["token", "pixel_nearest", "pixel_bilinear"], Shapes()] = "token"
    """Labels are corrected on the grid of patches and then enlarged, or on pixels with features enlarged;
    the paper does not say. [our choice]"""
    gc_distance: Annotated[int, Shapes()] = Field(default=1, ge=1, le=MOST)
    """Cells of that grid between a position and its neighbours. [our choice]"""
    gc_border: Annotated[Border, Shapes()] = "valid"
    """Neighbours outside do not exist, have features 0, or are the position itself. [our choice]"""
    gc_source: Annotated[CorrectionSource, Shapes()] = "initial"
    """R_u copies initial labels, or those after R_h was rewritten. Of equally similar neighbours the
    first of up, down, left, right counts. [our choice]"""


_Temperature = Annotated[float, Field(gt=0)]


@schema
class DSKDGCConfig(CorrectionConfig):
    """Hyper-parameters of DSKD+GC on VOC 2012."""

    warmup_steps: Annotated[int, TrainingOnly()] = Field(default=2000, ge=0, le=MOST_STEPS)
    """Steps of the first stage; 5000 on COCO. [paper]"""
    ptc_weight: float = Field(default=0.2, ge=0)
    """Lambda 1, weight of L_PTC in both stages. [paper, Table 3]"""
    sim_weight: Annotated[float, TrainingOnly()] = Field(default=0.5, ge=0)
    """Lambda 2, weight of L_sim. [paper, Table 3]"""
    punc_weight: Annotated[float, TrainingOnly()] = Field(default=0.1, ge=0)
    """Lambda 3, weight of L_PUNC after warm-up. [paper, Table 3]"""
    seg_weight: float = Field(default=0.1, ge=0)
    """Lambda 4, weight of L_seg after warm-up. [paper]"""
    student_cls_in_warmup: Annotated[bool, TrainingOnly()] = True
    """The EMA network learns classification too while it is trained. [our choice]"""
    student_lr_scale: float = Field(default=0.1, ge=0)
    """Its learning rates in warm-up, relative to those of online: 6e-6 to 6e-5. [paper]"""
    cls_input: Annotated[Literal["gmp", "class_token"], TrainingOnly()] = "gmp"
    """What the classifier reads: pooled patch tokens, whose weights make activation maps (E1), or the class
    token, as the text says of L_cls. [ToCo model/model_seg_neg.py]"""
    cam_form: Annotated[Literal["paper", "toco"], Shapes()] = "paper"
    """Activation maps of one pass, divided by their maximum (E1), or those of ToCo: several scales
    (`cam_scales`), mirrored, less their minimum. [paper]"""
    cam_network: Annotated[Literal["teacher", "student"], Shapes()] = "teacher"
    """Whose activation maps become labels and regions of interest; teacher is online, student is ema.
    [our choice]"""
    ptc_form: Literal["paper", "toco"] = "paper"
    """Means of 1 - cosine and cosine, or ToCo's absolute cosines. [paper, E4; toco: ToCo model/losses.py]"""
    ptc_labels: Literal["binary", "class"] = "binary"
    """Tokens are alike if both are foreground or both background, or if of one class.
    [paper, E3 and its sentence; class: ToCo utils/camutils.py]"""
    sim_mode: SimilarityMode = "channel"
    """Vectors that L_sim compares: each channel's map, each token's features, or the whole map.
    [paper, E7: channel]"""
    sim_layer: Literal["m", "final"] = "m"
    """Tokens that L_sim compares: those of the intermediate layer, or the last. [paper: intermediate]"""
    sim_after_warmup: bool = False
    """Keep L_sim after warm-up, when ema gives no gradient. [our choice]"""
    roi_cam: Literal["aux", "final"] = "aux"
    """Map that says where patches are uncertain. [FSR utils/masking.py]"""
    roi_low: float = Field(default=0.2, ge=0, le=1)
    """Lower threshold of the region of interest. [paper]"""
    roi_high: float = Field(default=0.7, ge=0, le=1)
    """Upper threshold of the region of interest. [paper]"""
    _region = in_order("roi_low", "roi_high")
    punc_temperature: Annotated[Literal["none", "dino"], TrainingOnly()] = "none"
    """`none` is E10 as printed: with outputs in [-1, 1] the softmax is almost flat and the loss stays near
    the logarithm of `projector_out`. `dino` has temperatures and a centre. [paper: none]"""
    punc_reduce: Reduce = "pooled"
    """Mean over the uncertain patches of a batch, or of each picture first. [paper, E10: pooled]"""
    dino_temperature: float = Field(default=0.1, gt=0)
    """`dino` only: temperature of online. [FSR losses.py]"""
    dino_target_temperatures: tuple[_Temperature, _Temperature] = (0.04, 0.07)
    """`dino` only: temperature of ema at the first step, and after an eighth of training.
    [FSR losses.py]"""
    dino_centre_momentum: Annotated[float, TrainingOnly()] = Field(default=0.9, ge=0, le=1)
    """`dino` only: momentum of the centre. [FSR losses.py]"""
    projector_hidden: Annotated[int, TrainingOnly()] = Field(default=2048, ge=1, le=MOST)
    """Hidden width of the projector. [ToCo model/model_seg_neg.py]"""
    projector_bottleneck: Annotated[int, TrainingOnly()] = Field(default=256, ge=1, le=MOST)
    """Width before its last layer. [ToCo model/model_seg_neg.py]"""
    projector_out: Annotated[int, TrainingOnly()] = Field(default=4096, ge=2, le=MOST)
    """Its outputs. [FSR train_voc.py]"""
    seg_form: SegmentationForm = "mean"
    """Normalisation of L_seg, whose N the paper does not explain: labelled pixels; half background and half
    foreground (ToCo); or pictures. [our choice]"""
    ema_momentum: float = Field(default=0.996, ge=0, le=1)
    """Momentum after warm-up; it rises to 1 along half a cosine. [paper; cosine: FSR utils/pyutils.py]"""
    ema_convention: Literal["standard", "literal"] = "standard"
    """What the momentum multiplies: the old ema, or, as E6 reads, online, so that ema is practically online.
    [our choice]"""


DSKD_GC_DECLARED = Declaration(
    name="dskd_gc",
    title="DSKD+GC",
    paper=Paper(
        title="Dual-stage guided weakly supervised semantic segmentation with Gaussian correction",
        authors="Xuefei Bai, Yuanhui Wang, Wenjie Xu, Gaoxia Jiang, Wenjian Wang",
        year=2025,
        venue="Journal of Image and Graphics 30(12)",
        doi="10.11834/jig.250040",
    ),
    supervision=frozenset({"image"}),
    Config=DSKDGCConfig,
    reference_recipe="dskd_gc/voc-image-vitb",
    networks=("default", "student"),
)
