"""The published parameter sets of the dense CRF, known without torch: protocols name them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pydantic import Field

from harness.basics.errors import UserError, nearest
from harness.basics.schema import load_tables, schema


@schema
class CRFParameters:
    """Mean-field inference with two Potts terms: one of position, one of position and colour."""

    about: str
    """Where the values stand."""
    gaussian_sigma_xy: float = Field(gt=0)
    """Position term: standard deviation in pixels."""
    gaussian_compat: float = Field(ge=0)
    """Position term: weight."""
    bilateral_sigma_xy: float = Field(gt=0)
    """Colour term: standard deviation of positions in pixels."""
    bilateral_sigma_rgb: float = Field(gt=0)
    """Colour term: standard deviation of colours of 0..255."""
    bilateral_compat: float = Field(ge=0)
    """Colour term: weight."""
    iterations: int = Field(ge=0, le=1000)
    """Mean-field updates."""


@cache
def crf_parameter_sets() -> dict[str, CRFParameters]:
    """The published parameter sets by name (``crf_parameters.toml``)."""
    return load_tables(CRFParameters, Path(__file__).with_name("crf_parameters.toml"))


def crf_parameters(name: str) -> CRFParameters:
    """A published parameter set. Raises UserError for an unknown name."""
    sets = crf_parameter_sets()
    if name not in sets:
        raise UserError(f"unknown CRF parameter set {name!r}", remedy=nearest(name, sets))
    return sets[name]
