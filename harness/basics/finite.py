"""Nothing that is not a number is scored: scores, maps and weights are finite, or an error says whose.

A class may be ruled out by a score of minus infinity. NaN, plus infinity, and a pixel without any possible
class decide nothing: their argmax would be class 0, background everywhere, without a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from harness.basics.errors import NonFiniteScoresError, NonFiniteWeightsError

_REMEDY = (
    "the network is broken: its training diverged, or the checkpoint holds other numbers than it should; "
    "train with a lower optimiser.lr, with optimiser.clip_norm, or with amp off"
)


def decide_nothing(scores: Tensor) -> Tensor:
    """Whether a pixel's scores have no largest value that is a number.

    Args:
        scores: ``(B, K, ...)``, logits or probabilities.

    Returns:
        A bool scalar on the device of ``scores``, so that the caller chooses when to wait for it.
    """
    return ~scores.amax(1).isfinite().all()  # a maximum is NaN where a value is


def scores_error(what: str, name: str = "") -> NonFiniteScoresError:
    """The error for scores or maps of a picture; ``what`` names them, ``name`` the picture."""
    where = f"picture {name}" if name else None
    return NonFiniteScoresError(f"{what} are not finite", where=where, remedy=_REMEDY)


def require_finite(maps: Tensor, what: str) -> Tensor:
    """The maps themselves. Waits for their device.

    Args:
        maps: activation maps or scores of any shape that no value may be infinite in.
        what: their name in the message, as in ``the activation maps``.

    Raises:
        NonFiniteScoresError: a value is NaN or infinite; :func:`of_picture` adds the picture.
    """
    if maps.device.type != "meta" and not bool(maps.isfinite().all()):
        raise scores_error(what)
    return maps


@contextmanager
def of_picture(name: str) -> Iterator[None]:
    """Errors about scores that arise inside name this picture."""
    try:
        yield
    except NonFiniteScoresError as error:
        if error.where is not None:
            raise
        raise NonFiniteScoresError(error.problem, where=f"picture {name}", remedy=error.remedy) from error


@torch.no_grad()
def require_finite_weights(module: nn.Module, step: int) -> None:
    """Make sure that a network in training is made of numbers; waits once for its device.

    Raises:
        NonFiniteWeightsError: a parameter, or a running statistic of batch normalisation, is not finite.
    """
    values: dict[str, Tensor] = {n: p for n, p in module.named_parameters() if p.is_floating_point()}
    for prefix, norm in module.named_modules():
        if isinstance(norm, _BatchNorm):
            own = norm.named_buffers(recurse=False)
            values |= {f"{prefix}.{n}": b for n, b in own if b.is_floating_point()}
    if not values or bool(torch.stack([v.isfinite().all() for v in values.values()]).all()):
        return
    broken = [name for name, v in values.items() if not bool(v.isfinite().all())]
    more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
    raise NonFiniteWeightsError(
        f"weights are not finite after step {step - 1}",
        where=", ".join(broken[:3]) + more,
        remedy="lower optimiser.lr, set optimiser.clip_norm, or switch amp off",
    )
