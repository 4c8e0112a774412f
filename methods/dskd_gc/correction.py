"""Labels from class activation maps, and their Gaussian correction (sections "initial pseudo-label" and
"Gaussian correction" of the paper, E1, E3, E9 to E21), with every reading that the paper leaves open.

The confidence of a position is a mixture of two normal densities, clean and noise. Where noise is
likely, the neighbours' features decide (:mod:`methods.dskd_gc.label_correction`). Fitted over all pixels, the
component with the smaller mean is largely the background, and most background labels are lost: read the
coverage beside every mIoU of such labels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.engine.batch import IGNORE
from harness.nn.resize import resize
from methods.dskd_gc.gaussian_mixture import fit_mixture, noise_probability
from methods.dskd_gc.label_correction import (
    correct_labels,
    neighbour_similarity,
)
from methods.dskd_gc_config import CorrectionConfig
from methods.parts.cam import activation_maps, cam_to_label, present_cam


class Labels(NamedTuple):
    """Labels ``(B, H, W)`` int64 at the picture's size: 0 background, class, 255 none.

    Attributes:
        initial: from the activation map.
        corrected: after Gaussian correction (the initial ones where ``gc`` is off).
        noise: ``(B, h, w)`` float64 noise probability on the grid that was fitted; None without ``gc``.
    """

    initial: Tensor
    corrected: Tensor
    noise: Tensor | None


@torch.no_grad()
def class_maps(features: Tensor, weight: Tensor) -> Tensor:
    """Class activation maps (E1, E2): ReLU of the weighted features, divided by each map's maximum.

    Args:
        features: ``(B, C, h, w)`` patch tokens.
        weight: ``(F, C)`` or ``(F, C, 1, 1)`` of the classifier.

    Returns:
        ``(B, F, h, w)`` in ``[0, 1]``, float32 (float64 for such features); a map without positive
        value is 0.
    """
    dtype = torch.promote_types(features.dtype, torch.float32)
    maps = activation_maps(features.to(dtype), weight.to(dtype)).relu_()
    top = maps.amax((2, 3), keepdim=True)
    return maps / top.where(top > 0, 1)


@torch.no_grad()
def training_labels(
    cam: Tensor,
    tags: Tensor,
    features: Tensor,
    valid: Tensor,
    config: CorrectionConfig,
    refined: Tensor | None = None,
) -> Labels:
    """Training labels of a batch (steps 1 to 8 of the paper's Gaussian correction).

    Args:
        cam: ``(B, F, *)`` activation maps in ``[0, 1]``, on the patches or at the picture's size.
        tags: ``(B, F)`` multi-hot foreground classes.
        features: ``(B, C, h, w)`` on the patches, for the neighbour rule.
        valid: ``(B, H, W)`` bool, False where padded: out of the fit, and without label.
        config: thresholds and readings.
        refined: ``(B, H, W)`` int64 initial labels that PAR has refined; without them the initial labels
            are those of the maps.
    """
    size = (valid.shape[1], valid.shape[2])
    tokens = (features.shape[2], features.shape[3])
    on_tokens = config.gc_grid == "token"
    grid = tokens if on_tokens else size
    inside = valid if grid == size else whole_patches(valid, grid)
    here = resize(cam, grid, align_corners=False)
    if refined is not None:
        fine, labels = refined, nearest_cells(refined, grid)
    else:
        labels = cam_to_label(here, tags, (config.low, config.high), inside)
        fine = nearest_cells(labels, size).masked_fill(~valid, IGNORE)
    if not config.gc:
        return Labels(fine, fine, None)
    noise = label_noise(here, tags, labels, inside, config)
    similarity = neighbour_similarity(
        features,
        size=grid,
        mode="bilinear" if config.gc_grid == "pixel_bilinear" else "nearest",
        distance=config.gc_distance,
        border=config.gc_border,
    )
    distance = config.gc_distance
    start, noise_there = labels, noise
    if refined is not None and on_tokens:  # labels are finer than patches: neighbours are a patch apart
        start, noise_there = fine, nearest_cells(noise, size)
        similarity = nearest_cells(similarity, size)
        distance *= size[0] // grid[0]
    corrected = correct_labels(
        start,
        noise_there,
        similarity,
        tau=config.gc_tau,
        theta_low=config.gc_theta_low,
        theta_high=config.gc_theta_high,
        distance=distance,
        border=config.gc_border,
        source=config.gc_source,
        rewrite=config.gc_rewrite,
    )
    return Labels(fine, nearest_cells(corrected, size).masked_fill(~valid, IGNORE), noise)


@torch.no_grad()
def label_noise(
    cam: Tensor, tags: Tensor, labels: Tensor, inside: Tensor, config: CorrectionConfig
) -> Tensor:
    """Noise probability G of every label (E13 to E17).

    Args:
        cam: ``(B, F, h, w)`` in ``[0, 1]``.
        tags: ``(B, F)`` multi-hot foreground classes.
        labels: ``(B, h, w)`` int64 initial labels.
        inside: ``(B, h, w)`` bool, pixels of the picture.
        config: what is fitted, and how.

    Returns:
        ``(B, h, w)`` float64, 0 for pixels that are not fitted.
    """
    present = present_cam(cam, tags)
    strongest, which = present.max(1, keepdim=True)
    fitted = inside if config.gc_fit_pixels == "all" else inside & (labels != 0)
    if config.gc_confidence == "per_class":
        maps, mask = present, fitted[:, None] & (tags > 0)[:, :, None, None]
    else:
        maps, mask, which = strongest, fitted[:, None], torch.zeros_like(which)
        if config.gc_confidence == "label_conf":
            maps = torch.where(labels[:, None] == 0, 1 - strongest, strongest)
    order = (0, 1, 2, 3) if config.gc_fit_scope == "image" else (1, 0, 2, 3)
    leading = 2 if config.gc_fit_scope == "image" else 1  # axes that each have mixtures of their own

    def rows(x: Tensor) -> Tensor:
        return x.permute(order).flatten(leading).flatten(0, leading - 1)

    values, chosen = rows(maps), rows(mask)
    used = chosen.any(1)  # absent classes are not worth a fit
    values, chosen = values[used], chosen[used]
    start = None
    if config.gc_init == "fixed":
        each = values.new_ones(len(values), 2, dtype=torch.float64)
        start = (torch.stack([0 * each[:, 0], each[:, 0]], 1), 0.05 * each, 0.5 * each)
    bins = config.gc_bins if config.gc_grid != "token" and config.gc_bins else None
    mixture = fit_mixture(
        values,
        mask=chosen,
        start=start,
        reg=config.gc_reg,
        tol=config.gc_tol,
        max_iter=config.gc_max_iter,
        bins=bins,
    )
    probability = torch.zeros(used.shape[0], rows(mask).shape[1], dtype=torch.float64, device=cam.device)
    probability[used] = noise_probability(mixture, values, monotone=config.gc_monotone) * chosen
    permuted = maps.permute(order).shape
    noise = probability.view(permuted).permute(order)  # the permutation is its own inverse
    return noise.gather(1, which)[:, 0]


def nearest_cells(x: Tensor, size: tuple[int, int]) -> Tensor:
    """``(..., h, w)`` of any dtype to ``(..., *size)``: the value at each new cell's centre."""
    if tuple(x.shape[-2:]) == size:
        return x
    rows, columns = (
        (2 * torch.arange(new, device=x.device) + 1) * old // (2 * new)
        for new, old in zip(size, x.shape[-2:], strict=True)
    )
    return x[..., rows[:, None], columns]


def whole_patches(valid: Tensor, grid: tuple[int, int]) -> Tensor:
    """Patches ``(B, h, w)`` that lie in the picture as a whole."""
    return F.adaptive_avg_pool2d(valid[:, None].float(), grid)[:, 0] == 1
