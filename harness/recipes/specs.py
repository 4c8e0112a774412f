"""The values of a recipe: typed tables whose keys, defaults and meaning stand here and nowhere else.

Each one documents itself: ``wsss show RECIPE --docs`` prints the line below a key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticKnownError

from harness.basics.bounds import MOST, MOST_STEPS, Factor, Momentum, Ordered, Share, Side, Unfit
from harness.basics.errors import UserError
from harness.basics.imagenet import MEAN, STD
from harness.basics.schema import Neutral, schema
from harness.data.base import LabelSpec, Supervision


@schema
class BatchSpec:
    """Groups x samples. Losses that pool over a batch see one group at a time, on any hardware."""

    groups: int = Field(default=1, ge=1, le=MOST)
    """The paper's number of GPUs."""
    per_group: int = Field(default=16, ge=1, le=MOST)
    """Samples per GPU."""
    sync_bn: Annotated[Literal["off", "all", "head"], Neutral("off")] = "off"
    """Batch normalisation over the samples of all groups: of `all` layers, or those of the `head`, outside
    encoders. Needs one process for each group; `off`: statistics of one group."""

    @property
    def size(self) -> int:
        """Samples per optimiser step."""
        return self.groups * self.per_group


@schema
class OptimiserSpec:
    """Optimiser and gradient clipping."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    """Algorithm, as in torch.optim."""
    lr: float = Field(default=0.01, gt=0)
    """Base learning rate; parameter groups multiply it by their `lr_scale`."""
    momentum: Momentum = 0.9
    """SGD only."""
    nesterov: bool = False
    """SGD with momentum only."""
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)
    """Adam and AdamW only."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """Applied to every parameter of groups that do not set their own."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Largest total gradient norm; none by default."""

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and self.name != "sgd":
            raise Unfit(
                f"'nesterov' needs the optimiser sgd with a momentum above 0, not {self.name}",
                "set nesterov to false, or name to sgd",
            )
        if self.nesterov and not self.momentum:
            raise Unfit(
                "'nesterov' needs the optimiser sgd with a momentum above 0, not sgd with momentum 0",
                "set momentum to 0.9, for instance, or nesterov to false",
            )
        return self


@schema
class ScheduleSpec:
    """Length of training and the learning-rate schedule, evaluated per optimiser step."""

    steps: int | None = Field(default=None, ge=1, le=MOST_STEPS)
    """Optimiser steps; give this or `epochs`."""
    epochs: int | None = Field(default=None, ge=1, le=MOST_STEPS)
    """Passes over the split, the last incomplete batch of each dropped."""
    kind: Literal["poly", "cosine", "constant"] = "poly"
    """poly: lr (1 - i/T)^power at 0-based step i."""
    power: float = Field(default=0.9, ge=0, le=100)
    """poly only."""
    warmup_steps: int = Field(default=0, ge=0, le=MOST_STEPS)
    """Steps of linear warm-up from `warmup_factor` to 1; the schedule proper starts after them."""
    warmup_factor: Share = 1e-6
    """Share of the learning rate at step 0 of the warm-up."""
    floor: Share = 0.0
    """Smallest share of the base learning rate."""
    beyond: int = Field(default=0, ge=0, le=MOST_STEPS)
    """Steps added to the schedule's T alone: with 1 the last step's rate is not that of T (BLPSeg)."""
    count_from: Literal["warmup", "start"] = "warmup"
    """Where i and T begin: after the warm-up, or at step 0, with a step down at the warm-up's end
    (ToCo)."""

    def check(self, total: int) -> None:
        """Refuse a warm-up that a run of ``total`` steps never leaves. Raises UserError."""
        if self.warmup_steps > total:
            raise UserError(
                f"the warm-up of {self.warmup_steps} steps is longer than the whole run of {total}",
                where="schedule.warmup_steps",
                remedy=f"--set schedule.warmup_steps={total // 10}, or more steps",
            )

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimiser steps of the whole run."""
        if (self.steps is None) == (self.epochs is None):
            raise UserError("a schedule needs exactly one of 'steps' and 'epochs'", where="[schedule]")
        return self.steps if self.steps is not None else (self.epochs or 0) * steps_per_epoch


_Shade = Annotated[float, Field(ge=0, le=1)]
_Spread = Annotated[float, Field(gt=0, le=1)]


@schema
class PixelSpec:
    """Colours as the backbone's weights know them: (RGB in [0, 1] - mean) / std. ImageNet's by default."""

    mean: tuple[_Shade, _Shade, _Shade] = MEAN
    """Of R, G and B."""
    std: tuple[_Spread, _Spread, _Spread] = STD
    """Deviation of R, G and B."""


@schema
class PrecisionSpec:
    """How a training step computes, beside `amp`. Scoring computes as it always does, in float32."""

    tf32: Annotated[Literal["off", "convolutions", "all"], Neutral("convolutions")] = "convolutions"
    """On GPUs that have it, TF32 (10 bits of mantissa) in place of float32: nowhere, in convolutions, as
    torch does by itself, or in matrix products too."""
    channels_last: Annotated[bool, Neutral(False)] = False
    """Weights and maps in memory with their channels last, which GPUs convolve faster in half precision."""
    cudnn_benchmark: Annotated[bool, Neutral(False)] = False
    """Let cuDNN try its algorithms for every size of a convolution first; which one is chosen may change the
    last bits from run to run."""
    compile: Annotated[tuple[Literal["encoder", "par"], ...], Neutral(())] = ()
    """What torch.compile turns into kernels of its own: `encoder`, `par` (refinement of class maps). Needs a
    compiler, and minutes at the start."""


#: Overrides of ``wsss run --fast``: the set whose loss terms are tested to stay within 3 % of the exact ones.
FAST: Mapping[str, Any] = MappingProxyType(
    {
        "amp": "bf16",
        "precision.tf32": "all",
        "precision.channels_last": True,
        "precision.cudnn_benchmark": True,
    }
)


_Area = Annotated[float, Field(gt=0, le=1)]
_Jitter = Annotated[float, Field(ge=0, le=10)]
_Hue = Annotated[float, Field(ge=0, le=0.5)]
_Sigma = Annotated[float, Field(ge=0, le=1000)]
_Shift = Annotated[float, Field(ge=-255, le=255)]


@schema
class AugmentSpec:
    """Random augmentation; image, label and raw colours move together."""

    crop_mode: Literal["window", "area"] = "window"
    """`window`: random resize, padding where the picture is too small, a window of the crop's size cut out.
    `area`: a window of random area and proportions is cut out and resized to the crop, without padding
    (torchvision's RandomResizedCrop; FSR and DSKD+GC)."""
    area: Annotated[tuple[_Area, _Area], Ordered] = (0.32, 1.0)
    """`area` only: range of the window's share of the picture."""
    aspect: Annotated[tuple[Factor, Factor], Ordered] = (0.75, 1.3333333333333333)
    """`area` only: range of the window's width / height; its logarithm is uniform."""
    scale: Annotated[tuple[Factor, Factor], Ordered] = (0.5, 2.0)
    """`window` only: range of the random resize, of the long side."""
    flip: float = Field(default=0.5, ge=0, le=1)
    """Probability of a left-right mirror."""
    jitter: float = Field(default=0.0, ge=0, le=1)
    """Probability of colour jitter."""
    jitter_strength: tuple[_Jitter, _Jitter, _Jitter, _Hue] = (0.5, 0.5, 0.5, 0.25)
    """Brightness, contrast, saturation, hue, as in torchvision's ColorJitter."""
    grey: float = Field(default=0.0, ge=0, le=1)
    """Probability of conversion to grey."""
    blur: float = Field(default=0.0, ge=0, le=1)
    """Probability of a Gaussian blur."""
    blur_sigma: Annotated[tuple[_Sigma, _Sigma], Ordered] = (0.1, 2.0)
    """Range of its standard deviation in pixels."""
    solarise: float = Field(default=0.0, ge=0, le=1)
    """Probability that colours from 128 on are inverted."""
    shift: float = Field(default=0.0, ge=0, le=1)
    """Probability of a brightness shift."""
    shift_range: Annotated[tuple[_Shift, _Shift], Ordered] = (-10.0, 10.0)
    """Range of the shift in grey levels."""
    pad: Literal["corner", "centre", "random"] = "corner"
    """`window` only: where padding goes when the picture is smaller than the crop: right and bottom,
    evenly all round, or so that the picture lies anywhere in the crop."""
    shift_rounding: Annotated[Literal["down", "nearest"], Neutral("down")] = "down"
    """How shifted grey levels become integers: cut off, or rounded (AGMM)."""
    resample: Literal["bilinear", "bicubic", "opencv-cubic"] = "bilinear"
    """How a resize reads the picture: Pillow's, which smooth what they shrink, with labels by its nearest
    neighbour; or OpenCV's cubic kernel (a = -0.75, no smoothing), with labels by OpenCV's nearest neighbour
    (BLPSeg)."""


@schema
class SelectionSpec:
    """Keep the network that is best on a split during training (``checkpoint/best.pt``)."""

    split: str = "val"
    """Split that it is selected on; a number reported on the same split is stamped so."""
    protocol: str = "single"
    """How it is scored."""
    network: str = "default"
    """Which of the method's networks is scored."""
    every_steps: int | None = Field(default=None, ge=1, le=MOST_STEPS)
    """Steps between two validations (at the next logged step); once per epoch by default."""

    def every(self, steps_per_epoch: int) -> int:
        """Steps between two validations."""
        return self.every_steps or steps_per_epoch


@schema
class EvaluationSpec:
    """One number to report: which network, on which split, by which protocol."""

    split: str = "val"
    """Split of the data set."""
    protocol: str = "single"
    """A name of `wsss list protocols`."""
    network: str = "default"
    """Which of the method's networks is scored."""
    output: str = "segmentation"
    """`segmentation`, or a name that the method's `pseudo_labels` returns."""
    checkpoint: Literal["last", "best"] = "last"
    """Last, or best on a validation split during training (selected on it, and stamped so)."""
    cells: tuple[str, ...] = ()
    """Ids of the published cells (`leaderboards/published`) that this number reproduces."""
    tolerance: float | None = Field(default=None, ge=0)
    """Largest |difference| in points that counts as reproduced, fixed before the run."""

    @property
    def name(self) -> str:
        """Folder name: what was scored."""
        parts = [self.split, self.protocol]
        parts += [p for p, usual in ((self.network, "default"), (self.output, "segmentation")) if p != usual]
        return "-".join(parts if self.checkpoint == "last" else [*parts, self.checkpoint])


def _table(value: Any) -> Any:
    if isinstance(value, Mapping) or is_dataclass(value):
        return value
    raise PydanticKnownError("dict_type")


@schema
class Recipe:
    """One training run."""

    method: str
    """Registry name of the method."""
    dataset: str
    """Registry name of the data set."""
    supervision: Supervision
    """Kind of weak label."""
    backbone: str
    """timm name, or one of ours."""
    weights: str = "none"
    """Where the backbone starts: `none`, `packaged`, a file, `package:NAME` (in an installed package), or a
    timm tag."""
    pixels: Annotated[PixelSpec, Neutral(PixelSpec())] = PixelSpec()
    """Colours that the backbone's weights were trained with."""
    train_split: str = "train"
    """Split trained on."""
    crop: Side | tuple[Side, Side] = 321
    """Training crop in pixels: a side, or (height, width)."""
    labels: LabelSpec = LabelSpec()
    """Which weak labels."""
    labels_from: str | None = None
    """Instead of weak labels: a folder of dense pseudo labels, or a recipe that exports them."""
    batch: BatchSpec = BatchSpec()
    """Groups and samples."""
    config: Annotated[Any, BeforeValidator(_table)] = Field(default_factory=dict)
    """The method's own hyper-parameters: an instance of its Config in a resolved recipe."""
    optimiser: OptimiserSpec = OptimiserSpec()
    """Optimiser."""
    schedule: ScheduleSpec = ScheduleSpec(steps=1)
    """Length and learning rate."""
    augment: AugmentSpec = AugmentSpec()
    """Augmentation."""
    overlap: Literal["refuse", "allow"] = "refuse"
    """Pictures that are trained on and scored as well: refused, or allowed, and every row says so."""
    amp: Literal["off", "bf16", "fp16"] = "off"
    """Automatic mixed precision; loss terms compute in float32 whatever this says."""
    precision: Annotated[PrecisionSpec, Neutral(PrecisionSpec())] = PrecisionSpec()
    """How a training step computes beside that."""
    accumulate: int = Field(default=1, ge=1, le=MOST)
    """Pieces into which each group's batch is cut to save memory (changes batch statistics)."""
    selection: SelectionSpec | None = None
    """Validation during training, for evaluations of the best checkpoint."""
    evaluation: tuple[EvaluationSpec, ...] = (EvaluationSpec(),)
    """What is reported."""
    suites: tuple[str, ...] = ()
    """Suites that contain this recipe."""
    sources: dict[str, str] = Field(default_factory=dict)
    """Where a value is printed, by dotted key: paper section, table, or file of the authors' code."""
    remarks: tuple[str, ...] = ()
    """What a reader must know: where the paper is silent, what is ours."""

    @property
    def usual_evaluation(self) -> EvaluationSpec:
        """What a verb scores by where nothing else is asked for: the first evaluation, or the defaults."""
        return self.evaluation[0] if self.evaluation else EvaluationSpec()

    @property
    def crop_size(self) -> tuple[int, int]:
        """(H, W)."""
        return (self.crop, self.crop) if isinstance(self.crop, int) else self.crop
