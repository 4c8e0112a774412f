"""Backbones: convolutional networks as lists of stage features, from timm or our own."""

from __future__ import annotations

import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

import harness.compat  # noqa: F401  (before timm)
from harness.errors import UserError, nearest
from harness.nn.weights import is_file, read_state_dict, timm_name, weights_file

#: Our own backbones: name -> ``module:class``. A class takes any of ``output_stride`` and ``multi_grid``.
OWN = {"mini_cnn": "harness.nn.mini_encoder:MiniCNN"}

#: Keys of a classification head, which no encoder has.
_HEADS = ("fc.", "head.", "classifier.", "last_linear.")


class Encoder(nn.Module, ABC):
    """A backbone without its classifier.

    Attributes:
        channels: channels of every stage's features.
        strides: pixels per cell of every stage's grid.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]

    @abstractmethod
    def forward(self, images: Tensor) -> list[Tensor]:
        """Stage features ``(B, channels[i], ceil(H / strides[i]), ...)`` of ``images`` ``(B, 3, H, W)``."""


class TimmEncoder(Encoder):
    """A timm network cut into stages, the stem aside; parameters keep timm's names.

    Args:
        network: what ``timm.create_model(..., features_only=True)`` returns.
    """

    def __init__(self, network: nn.Module) -> None:
        from timm.models import FeatureListNet

        super().__init__()
        if not isinstance(network, FeatureListNet):
            raise UserError(
                "this timm model has no chain of convolutional stages", remedy="choose a ResNet, for instance"
            )
        info = network.feature_info
        found = zip(info.module_name(), info.channels(), info.reduction(), strict=True)
        stages = [s for s in found if s[2] >= 4]  # without the stem
        names, self.channels, self.strides = zip(*stages, strict=True)
        self._stages = tuple(name.replace(".", "_") for name in names)  # as timm flattens them
        self._channels_last = network.output_fmt.value == "NHWC"
        patch = getattr(network, "patch_embed", None)
        self._patch = tuple(patch.patch_size) if patch is not None else (1, 1)
        for name, module in network.items():
            self.add_module(name, module)

    def forward(self, images: Tensor) -> list[Tensor]:
        """See :class:`Encoder`."""
        height, width = images.shape[-2:]
        x = F.pad(images, (0, -width % self._patch[1], 0, -height % self._patch[0]))  # whole patches
        stages = []
        for name, module in self.named_children():
            x = module(x)
            if name in self._stages:
                stages.append(x.movedim(-1, 1).contiguous() if self._channels_last else x)
        return stages


def create_encoder(
    name: str,
    weights: str = "none",
    *,
    output_stride: int | None = None,
    multi_grid: Sequence[int] = (),
    drop_path: float | None = None,
) -> Encoder:
    """Build a backbone with its weights.

    Args:
        name: a name of :data:`OWN`, or a timm architecture.
        weights: ``none``, ``packaged``, a file, or a timm tag (:mod:`harness.nn.weights`).
        output_stride: stride of the last stage; strides beyond it become dilations. The network's own
            by default.
        multi_grid: factors of the dilations in the last stage's blocks, such as ``(1, 2, 4)``; empty
            for none. As in torchvision and AGMM-SASS, the first block multiplies the dilation of the
            stage *before*.
        drop_path: largest rate of stochastic depth where timm's network has it; its own by default.

    Returns:
        The encoder, on the CPU, in training mode.

    Raises:
        UserError: unknown name, an output stride the network cannot have, or weights that are missing
            or do not fit.
    """
    if name in OWN:
        encoder = _own_encoder(name, output_stride, multi_grid)
        path = weights_file(name, weights)
        if path is not None:
            load_encoder(encoder, path)
    else:
        encoder = _timm_encoder(name, weights, output_stride, multi_grid, drop_path)
    if output_stride is not None and encoder.strides[-1] != output_stride:
        raise UserError(
            f"the backbone {name!r} has stride {encoder.strides[-1]}, not {output_stride}",
            where="config.output_stride",
            remedy=f"set it to {encoder.strides[-1]} or choose another backbone",
        )
    return encoder


def _own_encoder(name: str, output_stride: int | None, multi_grid: Sequence[int]) -> Encoder:
    module, _, attribute = OWN[name].partition(":")
    cls = getattr(importlib.import_module(module), attribute)
    accepted = inspect.signature(cls).parameters
    if multi_grid and "multi_grid" not in accepted:
        raise UserError(f"the backbone {name!r} has no multi-grid", where="config.multi_grid")
    given = {"output_stride": output_stride, "multi_grid": tuple(multi_grid) or None}
    return cls(**{k: v for k, v in given.items() if v is not None and k in accepted})


def _timm_encoder(
    name: str,
    weights: str,
    output_stride: int | None,
    multi_grid: Sequence[int],
    drop_path: float | None,
) -> TimmEncoder:
    import timm

    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        known = [*OWN, *timm.list_models("resnet*"), *timm.list_models(f"*{architecture[:6]}*")]
        raise UserError(f"unknown backbone {name!r}", where="backbone", remedy=nearest(name, known))
    options: dict[str, Any] = {"features_only": True}
    if output_stride is not None:
        options["output_stride"] = output_stride
    if drop_path is not None:
        options["drop_path_rate"] = drop_path
    if architecture.startswith(
        "swin_"
    ):  # windows at any size, shifted in every stage, as segmentation codes do
        options |= {"strict_img_size": False, "always_partition": True}
    path = weights_file(name, weights)
    by_tag = path is not None and weights != "packaged" and not is_file(weights)
    if by_tag:  # timm reads the file itself: it knows how to convert older ones
        name = timm_name(name, weights)
        options |= {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}}
    try:
        network = timm.create_model(name, **options)
    except (TypeError, AssertionError, NotImplementedError, RuntimeError) as error:
        raise UserError(
            f"timm cannot build {name!r} with {options}: {error}",
            where="backbone",
            remedy="output strides are 8, 16 and 32, and only some networks have them",
        ) from error
    encoder = TimmEncoder(network)
    if multi_grid:
        apply_multi_grid(encoder, multi_grid)
    if path is not None and not by_tag:
        load_encoder(encoder, path)
    return encoder


def apply_multi_grid(encoder: nn.Module, multi_grid: Sequence[int]) -> None:
    """Multiply the dilations of a ResNet's last stage, block by block.

    timm and torchvision give the first block of a dilated stage the dilation of the stage before, and
    the grid multiplies what stands there: at output stride 8, ``(2, 2, 4)`` turns 2, 4, 4 into 4, 8, 16.

    Raises:
        UserError: the last stage is not made of as many residual blocks with a 3x3 ``conv2``.
    """
    blocks = list(getattr(encoder, "layer4", []))
    if len(blocks) != len(multi_grid) or not all(hasattr(b, "conv2") for b in blocks):
        raise UserError(
            f"multi-grid {tuple(multi_grid)} does not fit a last stage of {len(blocks)} residual blocks",
            where="config.multi_grid",
            remedy="give one factor per block of a ResNet's layer4, or none",
        )
    for block, factor in zip(blocks, multi_grid, strict=True):
        dilation = block.conv2.dilation[0] * factor
        block.conv2.dilation = block.conv2.padding = (dilation, dilation)


_RESNET_REMEDY = (
    "the file belongs to another network; AGMM's ResNet with three 3x3 convolutions in "
    "its stem is timm's resnet50s and resnet101s, torchvision's is resnet50 and resnet101"
)


def load_encoder(encoder: nn.Module, path: Path, remedy: str = _RESNET_REMEDY) -> None:
    """Load a backbone from a file; only a classification head's tensors may be left over.

    Counters of batch normalisation may be missing (files from before torch 0.4.1 lack them).

    Raises:
        UserError: other missing or surplus keys, or shapes that differ.
    """
    state = {k: v for k, v in read_state_dict(path).items() if not k.startswith(_HEADS)}
    own = encoder.state_dict()
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    surplus = [k for k in state if k not in own]
    shapes = [k for k in state if k in own and state[k].shape != own[k].shape]
    for keys, problem in ((missing, "lacks"), (surplus, "has surplus"), (shapes, "has other shapes for")):
        if keys:
            raise UserError(
                f"the weights file {problem} {', '.join(keys[:8])}{', ...' if len(keys) > 8 else ''}",
                where=path,
                remedy=remedy,
            )
    encoder.load_state_dict(state, strict=False)
