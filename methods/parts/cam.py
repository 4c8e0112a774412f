"""Class activation maps: from weights, over scales, and from maps to labels (ToCo, FSR utils/camutils.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.engine.batch import IGNORE
from harness.nn.resize import resize

_EPS = 1e-5  # of the normalisation to [0, 1]


def log_sum_exp_pool(scores: Tensor, sharpness: float) -> Tensor:
    """``(1/r) log mean exp(r x)`` over the last dimension: sharpness 0 is the mean, infinity the maximum.

    Args:
        scores: ``(B, C, N)`` float32 or float64.
        sharpness: r.
    """
    share = torch.full((), scores.shape[-1], dtype=scores.dtype, device=scores.device).log()
    return ((sharpness * scores).logsumexp(-1) - share) / sharpness


def activation_maps(features: Tensor, weight: Tensor) -> Tensor:
    """Signed activation maps without gradient.

    Args:
        features: ``(B, C, h, w)``.
        weight: ``(F, C)`` or ``(F, C, 1, 1)`` of a bias-free classifier.

    Returns:
        ``(B, F, h, w)``, one map for each class.
    """
    kernel = weight.detach()
    return F.conv2d(features.detach(), kernel if kernel.ndim == 4 else kernel[..., None, None])


@torch.no_grad()
def multi_scale_cam(
    function: Callable[[Tensor], Sequence[Tensor]],
    images: Tensor,
    scales: Sequence[float] = (1.0, 0.5, 1.5),
    at_one: Callable[[Tensor], Sequence[Tensor]] | None = None,
) -> tuple[Tensor, ...]:
    """Activation maps over scales and mirror, in [0, 1].

    At every scale the maximum over picture and mirror, negative values cut off; the scales' sum,
    brought to [0, 1] map by map. Scale 1 always takes part, and comes first (matters only for random
    numbers that ``function`` draws).

    Args:
        function: images ``(2B, 3, h, w)``, mirrors last, to one or several maps ``(2B, F, h', w')``.
        images: ``(B, 3, H, W)`` normalised.
        scales: factors of both sides; a scaled side is ``int(side * scale)``.
        at_one: the same as ``function`` for scale 1, where something is known of ``images`` already.

    Returns:
        For each map of ``function``, ``(B, F, H, W)`` float32 (float64 for such maps).
    """
    size = images.shape[-2:]
    totals: list[Tensor] = []
    for scale in (1.0, *(s for s in scales if s != 1.0)):
        scaled = resize(images, [int(side * scale) for side in size], align_corners=False)
        found = at_one if at_one is not None and scale == 1.0 else function
        for index, maps in enumerate(found(torch.cat([scaled, scaled.flip(-1)]))):
            maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
            plain, mirrored = resize(maps, size, align_corners=False).chunk(2)
            merged = torch.maximum(plain, mirrored.flip(-1)).relu_()
            if index < len(totals):
                totals[index] += merged
            else:
                totals.append(merged)
    return tuple(map(normalised, totals))


def normalised(maps: Tensor) -> Tensor:
    """Maps ``(B, F, H, W)`` less their own minimum, divided by their own maximum."""
    maps = maps - maps.amin((2, 3), keepdim=True)
    return maps / (maps.amax((2, 3), keepdim=True) + _EPS)


def present_cam(cam: Tensor, tags: Tensor) -> Tensor:
    """Maps ``(B, F, H, W)`` with those of classes without tag (``(B, F)``, multi-hot) set to 0."""
    return cam * tags[:, :, None, None].to(cam.dtype)


def cam_to_label(
    cam: Tensor,
    tags: Tensor,
    thresholds: float | tuple[float, float],
    valid: Tensor | None = None,
) -> Tensor:
    """Labels of the strongest present class.

    Args:
        cam: ``(B, F, H, W)`` in [0, 1].
        tags: ``(B, F)`` multi-hot foreground classes.
        thresholds: one number: values up to it are background (validation). Two, (low, high): values up
            to low are background, those above high the class, those between undecided (training).
        valid: ``(B, H, W)`` bool; elsewhere undecided. Everywhere by default.

    Returns:
        ``(B, H, W)`` int64: 0 background, ``1 + f`` class f, 255 undecided.
    """
    low, high = thresholds if isinstance(thresholds, tuple) else (thresholds, thresholds)
    value, best = present_cam(cam, tags).max(1)
    label = torch.where(value > high, best + 1, IGNORE)
    label = label.masked_fill_(value <= low, 0)
    return label if valid is None else label.masked_fill_(~valid, IGNORE)


def roi_code(cam: Tensor, tags: Tensor, low: float, high: float) -> Tensor:
    """ToCo's code of regions, ``(B, H, W)`` int64: 0 background, 1 uncertain, 2 foreground.

    Args:
        cam: ``(B, F, H, W)`` in [0, 1].
        tags: ``(B, F)`` multi-hot foreground classes.
        low: values up to it are background.
        high: values from it on are foreground.
    """
    value = present_cam(cam, tags).amax(1)
    return (value > low).long() + (value >= high).long()
