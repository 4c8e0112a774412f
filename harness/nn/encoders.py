"""Backbones: convolutional networks as lists of stage features, from timm or our own."""

from __future__ import annotations

import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import harness.basics.compat  # noqa: F401  (before timm)
from harness.basics.errors import UserError, nearest
from harness.nn.weights import is_tag, read_state_dict, timm_name, weights_file

if TYPE_CHECKING:
    from timm.models import FeatureInfo, FeatureListNet

#: Our own backbones: name -> ``module:class``. A class takes any of ``output_stride`` and ``multi_grid``.
OWN_ENCODERS = {"mini_cnn": "harness.nn.mini_encoder:MiniCNN"}

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
        """Stage features ``(B, channels[i], h, w)`` of ``images`` ``(B, 3, H, W)``, finest first; ``h`` is
        ``H / strides[i]``, rounded up by most networks and down by those that cut pictures into patches."""


class TimmEncoder(Encoder):
    """A timm network that is a chain of modules, cut into stages; parameters keep timm's names.

    Args:
        network: what ``timm.create_model(..., features_only=True)`` returns for such networks.
    """

    def __init__(self, network: FeatureListNet) -> None:
        super().__init__()
        info: Any = network.feature_info
        names, self.channels, self.strides = _stages(info, info.module_name())
        self._stages = tuple(name.replace(".", "_") for name in names)  # as timm flattens them
        self._channels_last = network.output_fmt.value == "NHWC"
        patch = getattr(getattr(network, "patch_embed", None), "proj", None)
        self._patch = (1, 1)
        if isinstance(patch, nn.Conv2d) and patch.kernel_size == patch.stride:  # cut side by side
            self._patch = (patch.stride[0], patch.stride[1])
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


class TimmPyramid(Encoder):
    """A timm network with a forward pass of its own for its features: EfficientNets, MobileNets, HRNets and
    others that are no chain of modules. Parameters have timm's names below ``network``.

    Args:
        network: what ``timm.create_model(..., features_only=True)`` returns.
    """

    def __init__(self, network: Any) -> None:
        from timm.models.hrnet import HighResolutionNet

        super().__init__()
        info = network.feature_info
        self._stages, self.channels, self.strides = _stages(info, range(len(info.channels())))
        # Branches of an HRNet are added after enlarging them by whole factors, so their sides must divide.
        self._whole = self.strides[-1] if isinstance(network, HighResolutionNet) else 1
        self.network = network

    def forward(self, images: Tensor) -> list[Tensor]:
        """See :class:`Encoder`."""
        height, width = images.shape[-2:]
        if self._whole == 1:
            found = self.network(images)
            return [found[i] for i in self._stages]
        found = self.network(F.pad(images, (0, -width % self._whole, 0, -height % self._whole)))
        return [
            found[i][..., : -(-height // stride), : -(-width // stride)]
            for i, stride in zip(self._stages, self.strides, strict=True)
        ]


def _stages(info: FeatureInfo, marks: Iterable[Any]) -> tuple[tuple[Any, ...], ...]:
    """Marks, channels and strides of a network's features, without the stem's."""
    found = zip(marks, info.channels(), info.reduction(), strict=True)
    marked, channels, strides = zip(*(f for f in found if f[2] >= 4), strict=True)
    return marked, channels, strides


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
        name: a name of :data:`OWN_ENCODERS`, or a timm architecture.
        weights: see :mod:`harness.nn.weights`.
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
    from harness.nn.vit import OWN_TRANSFORMERS as TRANSFORMERS

    if name in TRANSFORMERS:
        raise UserError(
            f"{name!r} is a vision transformer, and this method needs a backbone with a feature pyramid",
            where="backbone",
            remedy=f"choose {' or '.join(OWN_ENCODERS)}, or {_DILATED}",
        )
    if name in OWN_ENCODERS:
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
    module, _, attribute = OWN_ENCODERS[name].partition(":")
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
) -> Encoder:
    from timm.models import FeatureListNet

    architecture = name.partition(".")[0]
    check_name(name)
    options: dict[str, Any] = {}
    if drop_path is not None:
        options["drop_path_rate"] = drop_path
    if architecture.startswith(
        "swin_"
    ):  # windows at any size, shifted in every stage, as segmentation codes do
        options |= {"strict_img_size": False, "always_partition": True}
    path = weights_file(name, weights)
    by_tag = is_tag(weights)
    if by_tag:  # timm reads the file itself: it knows how to convert older ones
        name = timm_name(name, weights)
        options |= {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}}
    network = _pyramid(name, output_stride, options)
    encoder: TimmEncoder | TimmPyramid
    encoder = TimmEncoder(network) if isinstance(network, FeatureListNet) else TimmPyramid(network)
    if multi_grid:
        apply_multi_grid(encoder, multi_grid)
    if path is not None and not by_tag:
        inner = encoder if isinstance(encoder, TimmEncoder) else encoder.network
        load_encoder(inner, path, architecture)
    return encoder


#: Examples of networks, by what they can do.
_DILATED = "a ResNet, RegNet, ConvNeXt, EfficientNet or MobileNet, for instance"


def check_name(name: str) -> None:
    """Raises UserError where no backbone has this name, with the nearest that there are."""
    import timm

    from harness.nn.vit import OWN_TRANSFORMERS as TRANSFORMERS

    if name in OWN_ENCODERS or name in TRANSFORMERS:
        return
    if not timm.is_model(name.partition(".")[0]):
        known = [*OWN_ENCODERS, *TRANSFORMERS, *timm.list_models()]
        raise UserError(f"unknown backbone {name!r}", where="backbone", remedy=nearest(name, known))


def _pyramid(name: str, output_stride: int | None, options: Mapping[str, Any]) -> nn.Module:
    """timm's network with features of several strides, dilated to the output stride where it is not its own.

    Raises:
        UserError: it has one stride alone, or none that is asked for; the reason is named.
    """
    import timm

    def create(**more: Any) -> Any:
        return timm.create_model(name, features_only=True, **options, **more)

    network: Any = None
    refusal: Exception | None = None
    try:
        network = create() if output_stride is None else create(output_stride=output_stride)
    except Exception as error:  # timm's constructors raise whatever comes to them
        refusal = error
    if network is None:
        try:
            network = create()
        except Exception as error:
            given = "".join(f", {k} = {v}" for k, v in options.items() if not k.startswith("pretrained"))
            raise UserError(
                f"timm cannot build {name!r} as an encoder{given}: {_reason(error)}",
                where="backbone",
                remedy=f"choose another backbone: {_DILATED}",
            ) from error
    strides = [s for s in network.feature_info.reduction() if s >= 4]
    if len(set(strides)) < 2:
        at = (
            f"all its features have stride {strides[0]}"
            if strides
            else "it has no features of stride 4 or more"
        )
        raise UserError(
            f"{name!r} has no feature pyramid: {at}",
            where="backbone",
            remedy=f"this method needs one: choose {_DILATED}; plain vision transformers are for methods "
            "that are made for them",
        )
    if output_stride is not None and strides[-1] != output_stride:
        why = f" ({_reason(refusal)})" if refusal is not None else ""
        possible = " or ".join(map(str, _output_strides(name)))
        raise UserError(
            f"the backbone {name!r} has stride {strides[-1]} and cannot be dilated to {output_stride}{why}",
            where="config.output_stride",
            remedy=f"set it to {possible}, or choose another backbone: {_DILATED}",
        ) from refusal
    return network


def _output_strides(name: str) -> list[int]:
    """The strides that a network's last stage can have; nothing is allocated."""
    import timm

    found = set()
    for wanted in (None, 8, 16):
        given: dict[str, Any] = {} if wanted is None else {"output_stride": wanted}
        with torch.device("meta"), suppress(Exception):
            network: Any = timm.create_model(name.partition(".")[0], features_only=True, **given)
            found.add(network.feature_info.reduction()[-1])
    return sorted(found)


def _reason(error: BaseException) -> str:
    """An error's first line, or what stands for it: many of timm's assertions say nothing."""
    text = str(error).strip()
    if "unexpected keyword argument" in text:
        return f"timm's network takes no {text.rsplit(' ', 1)[-1].strip(chr(39))}"
    return text.splitlines()[0] if text else f"timm refuses it by {type(error).__name__}"


def probe(encoder: Encoder, size: tuple[int, int], name: str) -> None:
    """Make sure that an encoder gives the features that it claims, for pictures of a size; allocates nothing.

    Args:
        encoder: on the meta device.
        size: (H, W) in pixels.
        name: the backbone's, for the message.

    Raises:
        UserError: it refuses such pictures, or its features have other channels or strides.
    """
    height, width = size
    problem = ""
    try:
        found = encoder(torch.zeros(2, 3, height, width, device="meta"))
    except NotImplementedError:
        return  # an operator that needs values
    except Exception as error:
        problem = f"cannot take them: {_reason(error)}"
    else:
        for x, channels, stride in zip(found, encoder.channels, encoder.strides, strict=True):
            cells = tuple(x.shape[-2:])
            near = all(n // stride <= c <= -(-n // stride) for n, c in zip(size, cells, strict=True))
            if x.shape[1] != channels or not near:
                problem = (
                    f"gives {x.shape[1]} channels on {cells[0]} x {cells[1]} cells, which is no grid of "
                    f"stride {stride} with the {channels} channels that it states"
                )
    if problem:
        raise UserError(
            f"the backbone {name!r} does not fit pictures of {height} x {width}: it {problem}",
            where="backbone",
            remedy=f"choose one for pictures of any size: {_DILATED}",
        )


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


def load_encoder(network: nn.Module, path: Path, architecture: str = "") -> None:
    """Load a backbone from a file; only tensors beyond the encoder, such as a classifier's, may be left over.

    Files of other codes fit, too, where they hold timm's tensors in timm's order under other names
    (:func:`renamed_in_order`). Counters of batch normalisation may be missing (files from before torch 0.4.1
    lack them).

    Args:
        network: the encoder, changed in place.
        path: of the file.
        architecture: timm's name of the classification network that the encoder is a part of; none for
            networks of our own.

    Raises:
        UserError: other missing or surplus keys, or shapes that differ.
    """
    own = network.state_dict()
    whole = _whole(architecture) if architecture else own
    state = renamed_in_order(read_state_dict(path), whole)
    flat = {key.replace(".", "_"): key for key in own}  # timm writes a dot of a stage's name as _
    beyond = {k for k in whole if k not in own and k.replace(".", "_") not in flat}
    state = {
        flat.get(k.replace(".", "_"), k): v
        for k, v in state.items()
        if k not in beyond and not k.startswith(_HEADS)
    }
    missing = [k for k in own if k not in state and not k.endswith(_COUNTER)]
    surplus = [k for k in state if k not in own]
    shapes = [k for k in state if k in own and state[k].shape != own[k].shape]
    for keys, problem in ((missing, "lacks"), (surplus, "has surplus"), (shapes, "has other shapes for")):
        if keys:
            hint = ""
            if architecture.startswith("resne"):
                hint = (
                    "; AGMM's ResNet with three 3x3 convolutions in its stem is timm's resnet50s and "
                    "resnet101s, torchvision's is resnet50 and resnet101"
                )
            raise UserError(
                f"the weights file {problem} {', '.join(keys[:8])}{', ...' if len(keys) > 8 else ''}",
                where=path,
                remedy=f"the file belongs to another network than {architecture or 'this one'}: name the "
                f"backbone that it is of, or other weights{hint}",
            )
    network.load_state_dict(state, strict=False)


_COUNTER = "num_batches_tracked"


def _whole(architecture: str) -> dict[str, Tensor]:
    """The state of timm's classification network, without values."""
    import timm

    with torch.device("meta"):
        return timm.create_model(architecture).state_dict()


def renamed_in_order(state: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the names of a network, where they are its tensors in its order under other names.

    That is so where every one has the shape of its counterpart and the last part of its name (``weight``,
    ``bias``, ``running_mean``, ``running_var``), the classifier included, and names that both know are the
    same tensor's. Codes that port a network rename its modules and keep their order.

    Args:
        state: of a file.
        whole: of the network.

    Returns:
        The tensors renamed; as they are where they do not fit, or where names fit already.
    """
    theirs = [k for k in state if not k.endswith(_COUNTER)]
    ours = [k for k in whole if not k.endswith(_COUNTER)]

    def marks(key: str, tensor: Tensor) -> tuple[str, tuple[int, ...]]:
        return key.rpartition(".")[2], tuple(tensor.shape)

    fits = len(theirs) == len(ours) and all(
        marks(a, state[a]) == marks(b, whole[b]) and (a == b or (a not in whole and b not in state))
        for a, b in zip(theirs, ours, strict=True)
    )
    return {b: state[a] for a, b in zip(theirs, ours, strict=True)} if fits else dict(state)
