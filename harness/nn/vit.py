"""Vision transformers as encoders: tokens of the last and of an intermediate block on the patch grid.

The blocks are timm's; parameters keep timm's names. What is ours is what dense methods add: pictures of
any size, the position table for them, masked patches, and outputs as maps. The two settings of ToCo
(model/backbone/vit.py) and FSR (models/vit.py) are spelled out at :class:`ViTEncoder`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import harness.basics.compat  # noqa: F401  (before timm)
from harness.basics.errors import UserError
from harness.nn.encoders import OWN_ENCODERS as PYRAMIDS
from harness.nn.encoders import Encoder, check_name, load_encoder
from harness.nn.precision import outside_autocast
from harness.nn.weights import is_tag, timm_name, weights_file

#: Our own transformers: name -> ``module:function``, which takes ``drop_path`` and returns a timm network.
OWN_TRANSFORMERS = {
    "mini_vit": "harness.nn.mini_encoder:mini_vit",
    "lite0_hybrid": "harness.nn.hybrid:lite0_hybrid",
}

ClassToken = Literal["travels", "apart"]
Position = Literal["frozen", "trained"]


class Tokens(NamedTuple):
    """What a transformer returns; maps are ``(B, C, h, w)`` on the grid of whole patches.

    Attributes:
        final: patch tokens after the last block and the final LayerNorm.
        aux: patch tokens after block ``aux_layer``, not normalised.
        raw: patch tokens after the last block, not normalised.
        cls: class token ``(B, C)`` after the final LayerNorm; None where it does not travel.
    """

    final: Tensor
    aux: Tensor
    raw: Tensor
    cls: Tensor | None

    @property
    def class_token(self) -> Tensor:
        """``cls`` where there must be one.

        Raises:
            ValueError: it does not travel.
        """
        if self.cls is None:
            raise ValueError("the class token of this transformer does not travel through its blocks")
        return self.cls


class ViTEncoder(nn.Module):
    """A plain vision transformer without its classifier.

    ToCo: ``class_token="travels", position="frozen"``. FSR: ``class_token="apart",
    position="trained", mask_token=True``, and a linear drop path of 0.1.

    Args:
        network: timm's ``VisionTransformer``, whose modules are taken over.
        crop: training crop (height, width) in pixels, for the trained position table.
        aux_layer: block whose output is ``Tokens.aux``; negative counts from the end.
        class_token: ``travels`` through the blocks with the patches, or stays ``apart``: then
            ``cls_token`` is a parameter that this encoder does not use.
        position: ``frozen`` keeps the table of pretraining, without gradient, and resizes it in every
            forward pass; ``trained`` resizes it once to the grid of ``crop``, trains it there, and
            resizes that one at other sizes. Both bicubic without antialiasing, as in both codes (timm's
            own resizing antialiases, which gives other values even when enlarging).
        mask_token: make the learned token that takes the place of masked patches.

    Attributes:
        channels: C.
        patch: side of a patch in pixels.
        depth: number of blocks.

    Raises:
        UserError: not a plain transformer, or no such block.
    """

    mask_token: nn.Parameter | None

    def __init__(
        self,
        network: nn.Module,
        *,
        crop: tuple[int, int],
        aux_layer: int = -3,
        class_token: ClassToken = "travels",
        position: Position = "frozen",
        mask_token: bool = False,
    ) -> None:
        super().__init__()
        net: Any = network
        self.channels: int = net.embed_dim
        self.patch: int = net.patch_embed.patch_size[0]
        self.depth: int = len(net.blocks)
        if not -self.depth <= aux_layer < self.depth:
            raise UserError(
                f"the transformer has {self.depth} blocks, not one numbered {aux_layer}",
                where="config.aux_layer",
                remedy=f"use -{self.depth} to {self.depth - 1}",
            )
        self.aux_layer = aux_layer % self.depth
        self.class_token, self.position = class_token, position
        self.cls_token: nn.Parameter = net.cls_token
        self.pos_embed: nn.Parameter = net.pos_embed
        self._grid: tuple[int, int] = net.patch_embed.grid_size
        if position == "trained":
            self._grid = (crop[0] // self.patch, crop[1] // self.patch)
            table = resize_positions(net.pos_embed.detach(), net.patch_embed.grid_size, self._grid)
            self.pos_embed = nn.Parameter(table)
        else:
            self.pos_embed.requires_grad_(False)
        if mask_token:
            self.mask_token = nn.Parameter(torch.empty(1, self.channels))
            nn.init.trunc_normal_(self.mask_token, std=0.02)
        else:
            self.register_parameter("mask_token", None)
        self.patch_embed = net.patch_embed
        self.blocks = net.blocks
        self.norm = net.norm

    def untrained(self) -> list[nn.Parameter]:
        """Parameters that no pretrained weights are for: all above the trunk of a hybrid, else none."""
        trunk = getattr(self.patch_embed.proj, "trunk", None)
        below = {id(p) for p in trunk.parameters()} if trunk is not None else set()
        return [p for p in self.parameters() if id(p) not in below] if below else []

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tokens:
        """Tokens of ``images`` ``(B, 3, H, W)``.

        The grid is ``H // patch`` by ``W // patch``: a remainder at the right and the bottom is not seen.

        Args:
            images: normalised, of any size from one patch on.
            mask: ``(B, h, w)`` bool, True where the mask token replaces the patch, before positions are
                added. All patches are seen by default.
        """
        x = self.patch_embed.proj(images)
        grid = (x.shape[2], x.shape[3])
        x = x.flatten(2).mT
        if mask is not None:
            if self.mask_token is None:
                raise ValueError("this transformer was built without a mask token")
            x = torch.where(mask.flatten(1)[..., None], self.mask_token.to(x.dtype), x)
        table = resize_positions(self.pos_embed, self._grid, grid)
        x = x + table[:, 1:]
        travels = self.class_token == "travels"
        if travels:
            x = torch.cat([(self.cls_token + table[:, :1]).expand(len(x), -1, -1).to(x.dtype), x], 1)
        aux = x
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index == self.aux_layer:
                aux = x
        final = self.norm(x)

        def on_grid(tokens: Tensor) -> Tensor:
            patches = tokens[:, 1:] if travels else tokens
            return patches.mT.unflatten(2, grid)

        return Tokens(on_grid(final), on_grid(aux), on_grid(x), final[:, 0] if travels else None)


class TokenStage(Encoder):
    """A plain transformer as an encoder of one stage: its last tokens on their grid.

    For what needs no pyramid of stages, such as plain class activation maps. Unlike the stages of
    convolutional encoders, the grid is ``H // patch`` by ``W // patch``: a remainder is not seen.

    Args:
        vit: the transformer.
        output_stride: the stride that is asked for; None for the transformer's own.

    Raises:
        UserError: the stride is not the transformer's, which is the side of its patches.
    """

    def __init__(self, vit: ViTEncoder, output_stride: int | None = None) -> None:
        super().__init__()
        if output_stride not in (None, vit.patch):
            raise UserError(
                f"the transformer has patches of {vit.patch} pixels, so its stride is not {output_stride}",
                where="config.output_stride",
                remedy=f"set it to {vit.patch}",
            )
        self.vit = vit
        self.channels = (vit.channels,)
        self.strides = (vit.patch,)

    def forward(self, images: Tensor) -> list[Tensor]:
        """One map ``(B, C, H // patch, W // patch)`` of normalised images ``(B, 3, H, W)``."""
        return [self.vit(images).final]


def by_rate(backbone: nn.Module, head: Iterable[nn.Parameter], lr_scale: float) -> list[dict[str, Any]]:
    """Optimiser groups: a backbone's pretrained parameters at ``lr_scale``, and the others with the head."""
    fresh = untrained(backbone)
    slow = [p for p in backbone.parameters() if id(p) not in fresh]
    fast = [p for p in backbone.parameters() if id(p) in fresh]
    return [{"params": slow, "lr_scale": lr_scale}, {"params": [*head, *fast]}]


def untrained(module: nn.Module) -> set[int]:
    """Ids of the parameters of encoders inside a module that no pretrained weights are for."""
    encoders = (m for m in module.modules() if isinstance(m, ViTEncoder))
    return {id(p) for encoder in encoders for p in encoder.untrained()}


def is_transformer(name: str) -> bool:
    """Whether a backbone's name is that of a vision transformer, which :func:`create_vit` builds."""
    return name in OWN_TRANSFORMERS or name.startswith(("vit_", "deit_", "deit3_"))


def resize_positions(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """A position table ``(1, 1 + h w, C)`` for another grid; the class token's row stays first.

    Bicubic without antialiasing and without aligned corners; the table itself when the grid is right.
    """
    if old == new:
        return table
    patches = table[:, 1:].mT.unflatten(2, old)
    with outside_autocast(table.device):
        resized = F.interpolate(patches, size=new, mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], resized.flatten(2).mT], 1)


def create_vit(
    name: str,
    weights: str = "none",
    *,
    crop: tuple[int, int],
    aux_layer: int = -3,
    class_token: ClassToken = "travels",
    position: Position = "frozen",
    mask_token: bool = False,
    drop_path: float = 0.0,
) -> ViTEncoder:
    """Build a transformer with its weights.

    Args:
        name: a name of :data:`OWN_TRANSFORMERS`, or a timm architecture of plain vision transformers.
        weights: see :mod:`harness.nn.weights`.
        crop, aux_layer, class_token, position, mask_token: see :class:`ViTEncoder`.
        drop_path: probability of stochastic depth in the last block, growing linearly from 0 in the
            first.

    Returns:
        The encoder, on the CPU, in training mode.

    Raises:
        UserError: unknown or unfit name, no such block, or weights that are missing or do not fit.
    """
    check_name(name)
    if name in PYRAMIDS:
        raise UserError(
            f"{name!r} is a convolutional network, and this method needs a vision transformer",
            where="backbone",
            remedy=f"choose {' or '.join(OWN_TRANSFORMERS)}, or a plain one of timm, "
            "such as vit_base_patch16_224",
        )
    path = weights_file(name, weights)
    by_tag = is_tag(weights)
    if name in OWN_TRANSFORMERS:
        module, _, attribute = OWN_TRANSFORMERS[name].partition(":")
        make: Callable[..., nn.Module] = getattr(importlib.import_module(module), attribute)
        network = make(drop_path=drop_path)
    else:
        options: dict[str, Any] = {"num_classes": 0, "drop_path_rate": drop_path}
        if by_tag:  # timm reads the file itself: it knows how to convert older ones
            options |= {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}}
        network = _timm_network(timm_name(name, weights) if by_tag else name, options)
    if path is not None and not by_tag:
        patches: Any = network.get_submodule("patch_embed.proj") if name in OWN_TRANSFORMERS else None
        if hasattr(patches, "trunk"):  # a hybrid: its blocks start from nothing
            load_encoder(patches.trunk, path, patches.architecture)
        else:
            load_encoder(network, path, "" if name in OWN_TRANSFORMERS else name.partition(".")[0])
    return ViTEncoder(
        _plain(network, name),
        crop=crop,
        aux_layer=aux_layer,
        class_token=class_token,
        position=position,
        mask_token=mask_token,
    )


def _timm_network(name: str, options: dict[str, Any]) -> nn.Module:
    import timm

    try:
        return timm.create_model(name, **options)
    except TypeError as error:  # a network that takes other options
        raise UserError(
            f"{name!r} is not a vision transformer: {error}",
            where="backbone",
            remedy="choose a plain one, such as vit_base_patch16_224",
        ) from error


def _plain(network: nn.Module, name: str) -> Any:
    """The network itself if it has patches, class token, position table, blocks and a last norm alone.

    Raises:
        UserError: anything else.
    """
    from timm.models.vision_transformer import VisionTransformer

    plain = (
        isinstance(network, VisionTransformer)
        and network.cls_token is not None
        and network.reg_token is None
        and network.pos_embed is not None
        and not network.no_embed_class
        and isinstance(network.norm_pre, nn.Identity)
        and isinstance(network.norm, nn.LayerNorm)
    )
    if not plain:
        raise UserError(
            f"{name!r} is not a plain vision transformer with a class token, which this method needs",
            where="backbone",
            remedy="choose vit_base_patch16_224, deit_base_patch16_224 or mini_vit, for instance",
        )
    return network
