"""Protocols of evaluation as data: how a picture becomes a prediction (``protocols.toml``)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from harness.basics.bounds import Factor, Side
from harness.basics.errors import UserError, nearest
from harness.basics.registry import FORGET, PROTOCOL_PACKAGES, added
from harness.basics.schema import Aside, Neutral, load_tables, schema
from harness.nn.crf_parameters import crf_parameters


@schema
class Protocol:
    """How a picture becomes a prediction. Equal protocols give comparable numbers."""

    about: Annotated[str, Aside()] = ""
    """One line for listings; not part of the digest."""
    scales: tuple[Factor, ...] = Field(default=(1.0,), min_length=1)
    """Factors of both sides of the picture."""
    scaled_side: Annotated[Literal["down", "nearest"], Neutral("down")] = "down"
    """A scaled side that is no whole number is cut off, or rounded as OpenCV does, halves to the even one,
    and then read by the factor itself (BLPSeg)."""
    flip: bool = False
    """Add the mirrored picture at every scale."""
    merge: Literal["mean-softmax", "mean-logits", "max-logits", "sum-logits"] = "mean-logits"
    """Over scales: mean of probabilities (AGMM), mean of logits (BLPSeg), maximum of logits (FSR), or their
    sum (ToCo on COCO), which differs from their mean where a softmax follows."""
    flip_merge: Literal["same", "mean", "max", "sum"] = "same"
    """Over a picture and its mirror, before scales are merged; `same`: as `merge`. `sum` (FSR, ToCo) decides
    as `mean` does, but makes a dense CRF that follows more certain."""
    squash: tuple[Side, Side] | None = None
    """Resize the picture to this (height, width) first, whatever its proportions (ToCo on COCO)."""
    window: tuple[Side, Side] | None = None
    """Sliding window (height, width); whole picture by default."""
    overlap: float = Field(default=0.0, ge=0, lt=1)
    """Overlap of neighbouring windows: the stride is ceil(window * (1 - overlap))."""
    window_softmax: Literal["once", "twice"] = "once"
    """Only with windows and mean-softmax: `twice` is what AGMM's code does to each window."""
    align_corners: bool = False
    """Of every resize of scores, and of pictures resized bilinearly."""
    picture_resize: Literal["bilinear", "bicubic"] = "bilinear"
    """How a scaled picture is made; `bicubic` is OpenCV's (a = -0.75, half-pixel centres; BLPSeg)."""
    absent: Literal["keep", "suppress"] = "keep"
    """`suppress` removes foreground classes without an image tag: for pseudo labels of training pictures."""
    crf: str | None = None
    """Dense-CRF post-processing with a parameter set of `harness/nn/crf_parameters.toml`; none by default."""
    crf_engine: Literal["torch", "pydensecrf"] = "torch"
    """`torch` needs nothing else; `pydensecrf` is the compiled package (extra `crf`), a little different
    in the last digits."""
    classes: Literal["occurring", "labelled"] = "occurring"
    """mIoU over classes that occur in prediction or label (the field's), or in the label only."""


def protocols() -> dict[str, Protocol]:
    """All named protocols, those of other packages included (entry point ``wsss.protocols``)."""
    return _protocols()[0]


def protocol_problems() -> dict[str, UserError]:
    """Files of protocols of other packages that cannot be used, and why."""
    return _protocols()[1]


@cache
def _protocols() -> tuple[dict[str, Protocol], dict[str, UserError]]:
    return added(PROTOCOL_PACKAGES, _read(Path(__file__).with_name("protocols.toml")), _read, "protocol")


FORGET.append(_protocols.cache_clear)


def _read(file: Path) -> dict[str, Protocol]:
    loaded = load_tables(Protocol, file)
    for p in loaded.values():
        if p.crf is not None:
            crf_parameters(p.crf)  # an unknown set is found here, not after training
    return loaded


def protocol(name: str) -> Protocol:
    """A protocol by name. Raises UserError for an unknown one."""
    if name not in protocols():
        raise UserError(
            f"unknown protocol {name!r}", where="[[evaluation]]", remedy=nearest(name, protocols())
        )
    return protocols()[name]
