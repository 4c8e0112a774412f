"""Types for the values of recipes, so that a value that makes no sense is refused where it is read."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

#: Sides beyond this are no pictures that a network trains on or is applied to.
LARGEST_SIDE = 16_384
#: Counts of channels, blocks, samples and the like beyond this are mistakes.
MOST = 65_536
#: Steps of training beyond this are mistakes.
MOST_STEPS = 10**9

#: A length in pixels.
Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
#: A probability, or a share of something.
Share = Annotated[float, Field(ge=0, le=1)]
#: A factor of a picture's sides.
Factor = Annotated[float, Field(gt=0, le=32)]
#: What a moving average keeps: less than everything.
Momentum = Annotated[float, Field(ge=0, lt=1)]
#: A value of an 8-bit mask.
Byte = Annotated[int, Field(ge=0, le=255)]
#: A distance, dilation or stride of a network.
Stride = Annotated[int, Field(ge=1, le=4096)]


class Unfit(ValueError):
    """Values that contradict each other, each legal by itself: what a check in a ``schema`` class raises.

    Args:
        problem: naming the keys and their values.
        remedy: what to set.
    """

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.remedy = remedy


def _ordered(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise Unfit(
            f"a range goes from its smaller to its larger end, not from {pair[0]} to {pair[1]}",
            f"turn it round: [{pair[1]}, {pair[0]}]",
        )
    return pair


#: Marks a pair as a range: low, high.
Ordered = AfterValidator(_ordered)


def in_order(low: str, high: str) -> Any:
    """A check in the body of a ``schema`` class: one field's value does not exceed another's."""

    def check(self: Any) -> Any:
        least, most = getattr(self, low), getattr(self, high)
        if least > most:
            raise Unfit(
                f"{low!r} ({least}) must not be larger than {high!r} ({most})",
                f"set {low} to {most} at most, or {high} to {least} at least",
            )
        return self

    return model_validator(mode="after")(check)
