"""Two-component Gaussian mixtures of one variable, fitted by EM to many samples at once.

Every image of a batch has a mixture of its own; all are fitted together and each stops when its own
likelihood does. Values are taken as they are, or first counted into a histogram, whose size then decides
the cost of a step and not the number of pixels. Component 0 starts low, component 1 high.

Equations are those of *Dual-stage guided weakly supervised semantic segmentation with Gaussian
correction* (Journal of Image and Graphics 30(12), 2025): E13 posterior, E14 to E16 M step, E17 noise
probability. Start, stop and guards are not in the paper; the floor ``reg`` is DuPL's
(DuPL train_final_voc.py). All arithmetic is float64.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

#: A sample with fewer values is not fitted. [our choice]
LEAST_VALUES = 10
#: Components whose means are closer are not told apart. [our choice]
LEAST_DISTANCE = 1e-3


class Mixture(NamedTuple):
    """Mixtures of a batch of B samples; float64 where nothing else is said.

    Attributes:
        mean: ``(B, 2)``.
        variance: ``(B, 2)``, with ``reg`` in it.
        weight: ``(B, 2)``, sums to one.
        valid: ``(B,)`` bool, False where there was nothing to tell apart; the parameters of such a
            sample mean nothing.
        converged: ``(B,)`` bool.
        steps: ``(B,)`` int64, EM steps taken.
        likelihood: ``(B,)`` mean log likelihood of the values before the last step.
    """

    mean: Tensor
    variance: Tensor
    weight: Tensor
    valid: Tensor
    converged: Tensor
    steps: Tensor
    likelihood: Tensor


class _Sample(NamedTuple):
    """Weighted values: ``mass (B, N)`` counts how often each of ``value (B, N)`` occurs."""

    value: Tensor
    mass: Tensor


def fit_mixture(
    values: Tensor,
    *,
    mask: Tensor | None = None,
    start: tuple[Tensor, Tensor, Tensor] | None = None,
    reg: float = 5e-4,
    tol: float = 1e-6,
    max_iter: int = 100,
    bins: int | None = None,
) -> Mixture:
    """Fit one mixture of two normal densities to each sample (E13 to E16).

    A step takes the posterior under the present parameters, then weights, means and variances about the
    new means; a sample stops when its mean log likelihood changed by less than ``tol`` since its last
    step. Without ``start`` the values are split at the middle of their range, and both halves give their
    mean, variance and share.

    Args:
        values: ``(B, ...)`` floating point; each sample is flattened.
        mask: bool of the same shape, False for values that do not count.
        start: means, variances and weights, ``(B, 2)`` each.
        reg: added to every variance.
        tol: see above; 0 for a fixed number of steps.
        max_iter: largest number of steps.
        bins: fit to a histogram of so many equal bins over the sample's range, at the mean of each bin;
            an even number keeps the middle of the range on an edge. None: fit to the values.

    Returns:
        The mixtures. A sample is not valid with fewer than 10 values, with one half empty, or with
        means closer than 0.001.

    Raises:
        ValueError: ``bins`` or ``max_iter`` below 1, a shape that does not fit.
    """
    if (bins is not None and bins < 1) or max_iter < 1:
        raise ValueError(f"bins {bins} and max_iter {max_iter} must be at least 1")
    x = values.detach().flatten(1).double()
    inside = None if mask is None else mask.flatten(1)
    if inside is not None and inside.shape != x.shape:
        raise ValueError(f"a mask of {tuple(inside.shape)} for values of {tuple(x.shape)}")
    low, high = _range(x, inside)
    if bins is not None:
        sample = histogram(x, inside, low, high, bins)
    elif inside is None:
        sample = _Sample(x, torch.ones_like(x))
    else:
        sample = _Sample(x.where(inside, 0), inside.to(x))
    valid = (sample.mass.sum(1) >= LEAST_VALUES) & (high > low)
    if start is None:
        mean, variance, weight = _midpoint_start(sample, (low + high) / 2, reg)
    else:
        mean, variance, weight = (s.to(x) for s in start)
    fitted = _em(sample, mean, variance, weight, valid, reg=reg, tol=tol, max_iter=max_iter)
    apart = (fitted.mean[:, 0] - fitted.mean[:, 1]).abs() >= LEAST_DISTANCE
    return fitted._replace(valid=valid & apart)  # a comparison with NaN is False


def noise_probability(mixture: Mixture, values: Tensor, *, monotone: bool = False) -> Tensor:
    """Posterior of the component with the smaller mean (E17).

    With unequal variances it is not monotone in the value: far beyond the mean of a narrow component
    the wide one takes over again. ``monotone`` clips values to the two means first. [our choice]

    Args:
        mixture: of B samples.
        values: ``(B, ...)``.
        monotone: see above.

    Returns:
        Float64 of the shape of ``values``, in ``[0, 1]``; 0 in samples that are not valid.
    """
    x = values.detach().flatten(1).double()
    noise = mixture.mean.argmin(1, keepdim=True)
    if monotone:
        x = x.clamp(mixture.mean.amin(1, keepdim=True), mixture.mean.amax(1, keepdim=True))
    densities = _log_densities(x, mixture.mean, mixture.variance, mixture.weight)
    low = densities.gather(1, noise[:, :, None].expand(-1, 1, x.shape[1]))[:, 0]
    high = densities.gather(1, (1 - noise)[:, :, None].expand(-1, 1, x.shape[1]))[:, 0]
    probability = torch.sigmoid(low - high).where(mixture.valid[:, None], 0)
    return probability.view(values.shape)


def histogram(values: Tensor, mask: Tensor | None, low: Tensor, high: Tensor, bins: int) -> _Sample:
    """Counts and means of equal bins; an edge belongs to the bin below it.

    Args:
        values: ``(B, N)`` float64.
        mask: ``(B, N)`` bool, False for values that do not count; None if all do.
        low, high: ``(B,)`` range of each sample's values.
        bins: number of bins.

    Returns:
        Values and masses ``(B, bins)``; empty bins have mass 0.
    """
    batch = values.shape[0]
    width = (high - low).where(high > low, 1)  # of a constant sample, which fills the first bin
    first = bins * torch.arange(batch, device=values.device, dtype=values.dtype)[:, None]
    place = (values - low[:, None]).mul_((bins / width)[:, None]).ceil_().add_(first - 1)
    index = place.clamp_(first, first + (bins - 1)).long()
    if mask is not None:
        index = index.where(mask, batch * bins)  # one more bin for what does not count
    index = index.flatten()
    mass = torch.bincount(index, minlength=batch * bins + 1)[:-1].view(batch, bins).to(values)
    total = torch.bincount(index, values.flatten(), minlength=batch * bins + 1)[:-1].view(batch, bins)
    return _Sample(total / mass.clamp(min=1), mass)


def _range(x: Tensor, inside: Tensor | None) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each sample ``(B,)``; infinite where nothing is inside."""
    if inside is None:
        return x.amin(1), x.amax(1)
    return x.where(inside, math.inf).amin(1), x.where(inside, -math.inf).amax(1)


def _midpoint_start(sample: _Sample, middle: Tensor, reg: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance (population, plus ``reg``) and share of the values up to and above ``middle``."""
    upper = sample.value > middle[:, None]
    shares = torch.stack([sample.mass.where(~upper, 0), sample.mass.where(upper, 0)], dim=1)
    return _moments(sample.value, shares, reg)


def _moments(value: Tensor, shares: Tensor, reg: float) -> tuple[Tensor, Tensor, Tensor]:
    """Means, variances about them plus ``reg``, and weights, from shares ``(B, 2, N)`` (E14 to E16)."""
    mass = shares.sum(2)
    divisor = mass.clamp(min=torch.finfo(mass.dtype).tiny)
    mean = torch.bmm(shares, value[:, :, None])[:, :, 0] / divisor
    # About the new mean; expanding the square about the middle of the values keeps all digits.
    centre = value.mean(1, keepdim=True)
    offset = value - centre
    second = torch.bmm(shares, offset.square()[:, :, None])[:, :, 0] / divisor
    variance = (second - (mean - centre).square()).clamp(min=0) + reg
    return mean, variance, mass / mass.sum(1, keepdim=True).clamp(min=1)


def _log_densities(x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor) -> Tensor:
    """``(B, 2, N)`` logarithms of weight times normal density (E11, E12)."""
    constant = weight.log() - 0.5 * (2 * math.pi * variance).log()
    square = (x[:, None] - mean[:, :, None]).square()
    return constant[:, :, None] - square / (2 * variance[:, :, None])


def _em(
    sample: _Sample,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor,
    valid: Tensor,
    *,
    reg: float,
    tol: float,
    max_iter: int,
) -> Mixture:
    """EM from a start; samples that are not valid, or have converged, keep their parameters."""
    value, mass = sample
    total = mass.sum(1).clamp(min=1)
    active = valid.clone()
    steps = torch.zeros_like(valid, dtype=torch.long)
    before = torch.full_like(total, -math.inf)
    for step in range(max_iter):
        low, high = _log_densities(value, mean, variance, weight).unbind(1)
        ahead = low - high
        behind = ahead.abs().neg_().exp_()  # share of the component that is less likely, over the other
        likelihood = (mass * behind.log1p().add_(torch.maximum(low, high))).sum(1) / total
        more = 1 / (1 + behind)
        less = behind * more
        first = ahead > 0
        posterior = torch.stack([more.where(first, less), less.where(first, more)], dim=1)
        new = _moments(value, posterior * mass[:, None], reg)
        keep = active[:, None]
        mean, variance, weight = (
            n.where(keep, o) for n, o in zip(new, (mean, variance, weight), strict=True)
        )
        steps += active
        done = (likelihood - before).abs() < tol
        before = likelihood.where(active, before)
        active = active & ~done
        # Asking costs a wait on an accelerator, a step too many there does not change a thing.
        if (value.device.type == "cpu" or step % 10 == 9) and not active.any():
            break
    return Mixture(mean, variance, weight, valid, valid & ~active, steps, before)
