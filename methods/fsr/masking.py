"""Block masks for view 2: at random first, then uncertain blocks first (FSR utils/masking.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.fsr.config import Sampling


@torch.no_grad()
def uncertain_blocks(
    cam: Tensor,
    present: Tensor,
    block: int,
    *,
    low: float = 0.2,
    high: float = 0.7,
    sampling: Sampling = "nearest",
) -> Tensor:
    """Blocks whose class activation is neither low nor high.

    The authors resize the full-size map of uncertain pixels to one value per block. ``nearest`` then
    reads a block's top left pixel; ``bilinear`` the four pixels (one, if the side is odd) around its
    centre, of which one uncertain pixel suffices. So only those pixels are read here.

    Args:
        cam: ``(B, F, H, W)`` activation of each foreground class, normalised to [0, 1]. Blocks may reach
            over its right and lower edges (our choice; the authors' crop is whole blocks).
        present: ``(B, F)`` multi-hot image tags of the foreground classes; the others do not count.
        block: side of a block in pixels.
        low, high: a pixel is uncertain where ``low < activation < high``.
        sampling: as above.

    Returns:
        ``(B, ceil(H / block), ceil(W / block))`` bool. An image without a tag has no uncertain block, if
        ``low >= 0``.
    """
    over = (-cam.shape[3] % block, -cam.shape[2] % block)
    if any(over):
        cam = F.pad(cam, (0, over[0], 0, over[1]), mode="replicate")
    offsets = {0} if sampling == "nearest" else {(block - 1) // 2, block // 2}
    uncertain = None
    for row in offsets:
        for column in offsets:
            pixels = cam[..., row::block, column::block]
            value = (pixels * present[:, :, None, None]).amax(1)
            found = (value > low) & (value < high)
            uncertain = found if uncertain is None else uncertain | found
    assert uncertain is not None
    return uncertain


@torch.no_grad()
def block_mask(noise: Tensor, ratio: float = 0.4, uncertain: Tensor | None = None) -> Tensor:
    """Masks the same number of blocks in every image: those of the largest noise, uncertain ones first.

    Args:
        noise: ``(B, h, w)`` uniform in [0, 1), one draw per block.
        ratio: share of blocks to mask; the number is rounded up.
        uncertain: ``(B, h, w)`` bool from :func:`uncertain_blocks`; they are masked before all others, at
            random among themselves if there are too many. None masks at random.

    Returns:
        ``(B, h, w)`` bool, True where masked.
    """
    flat = noise.flatten(1)
    if uncertain is not None:
        flat = flat + uncertain.flatten(1).to(flat.dtype)
    number = math.ceil(flat.shape[1] * ratio)
    chosen = flat.topk(number, dim=1).indices
    mask = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, chosen, True)
    return mask.view(noise.shape)


def token_mask(blocks: Tensor, tokens_per_block: int, grid: Sequence[int] | None = None) -> Tensor:
    """A block mask ``(B, h, w)`` on the token grid, ``(B, h * n, w * n)`` with n ``tokens_per_block``.

    Given a ``grid``, what reaches over its right and lower edges is cut off.
    """
    mask = blocks.repeat_interleave(tokens_per_block, 1).repeat_interleave(tokens_per_block, 2)
    return mask if grid is None else mask[:, : grid[0], : grid[1]]
