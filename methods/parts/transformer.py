"""What ToCo, FSR and DSKD+GC share: one network on a vision transformer, its maps, labels and losses.

A transformer with two multi-label classifiers (last and intermediate tokens), activation maps from their
weights, and a LargeFOV head that trains on labels made from the maps. The three papers differ in what
they add; class 0 is the background everywhere here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.basics.errors import UserError
from harness.basics.finite import require_finite
from harness.engine.batch import IGNORE
from harness.engine.method import Build, Lazy, Method
from harness.nn.decoders import LargeFOV
from harness.nn.dense_crf import dense_crf_loss
from harness.nn.precision import at_least_float32, outside_autocast
from harness.nn.resize import resize
from harness.nn.vit import Tokens, ViTEncoder, untrained
from methods.parts.cam import (
    activation_maps,
    cam_to_label,
    log_sum_exp_pool,
    multi_scale_cam,
    present_cam,
)
from methods.parts.colours import colours, denormalise
from methods.parts.configs import ViTConfig
from methods.parts.cross_entropy import two_sided_cross_entropy
from methods.parts.par import refine_cams

ENERGY_SCALE = 1e-7  # ToCo and FSR: weight of the dense energy before the loss weight


class ViTOutput(NamedTuple):
    """What the network returns.

    Attributes:
        tokens: of the encoder.
        cls: ``(B, K - 1)`` logits of the foreground classes from the final tokens.
        aux_cls: the same from the auxiliary tokens.
        seg: ``(B, K, h, w)`` logits on the token grid.
    """

    tokens: Tokens
    cls: Tensor
    aux_cls: Tensor
    seg: Tensor


class ViTNetwork(nn.Module):
    """Encoder, both classifiers and the LargeFOV head; names are those of the authors' checkpoints.

    Args:
        encoder: the transformer.
        num_classes: K, background included.
        config: pooling and head.
    """

    def __init__(self, encoder: ViTEncoder, num_classes: int, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.decoder = LargeFOV(
            encoder.channels,
            num_classes,
            width=config.decoder_width,
            dilation=config.decoder_dilation,
            init=config.decoder_init,
        )
        self.classifier = nn.Conv2d(encoder.channels, num_classes - 1, 1, bias=False)
        self.aux_classifier = nn.Conv2d(encoder.channels, num_classes - 1, 1, bias=False)

    def forward(self, images: Tensor, mask: Tensor | None = None) -> ViTOutput:
        """Outputs for normalised ``images`` ``(B, 3, H, W)``; ``mask`` as in :class:`ViTEncoder`."""
        return self.heads(self.encoder(images, mask))

    def heads(self, tokens: Tokens) -> ViTOutput:
        """Class and segmentation logits of tokens."""
        return ViTOutput(
            tokens,
            self.class_scores(tokens.final, self.classifier),
            self.class_scores(tokens.aux, self.aux_classifier),
            self.decoder(tokens.final),
        )

    def class_scores(self, features: Tensor, classifier: nn.Conv2d) -> Tensor:
        """Class logits ``(B, K - 1)`` from tokens ``(B, C, h, w)``.

        The authors classify the channel-wise maximum of the tokens; log-sum-exp pools the class scores
        of the tokens instead.
        """
        if self.config.pooling == "max":
            return classifier(features.amax((2, 3), keepdim=True)).flatten(1)
        if self.config.pooling == "average":
            return classifier(features.mean((2, 3), keepdim=True)).flatten(1)
        scores = at_least_float32(classifier(features).flatten(2))
        return log_sum_exp_pool(scores, self.config.lse_sharpness)

    def maps(self, images: Tensor, known: Tokens | None = None) -> tuple[Tensor, Tensor]:
        """Signed activation maps ``(B, K - 1, h, w)`` of final and auxiliary tokens, without gradient.

        FSR cuts negative values off here, ToCo after resizing.

        Args:
            images: ``(B, 3, H, W)`` normalised.
            known: tokens of the first of them, where the encoder draws no random numbers.
        """
        with torch.no_grad():
            tokens = self.encoder(images if known is None else images[len(known.final) :])
            final, aux = tokens.final, tokens.aux
            if known is not None:
                final, aux = torch.cat([known.final, final]), torch.cat([known.aux, aux])
        return activation_maps(final, self.classifier.weight), activation_maps(
            aux, self.aux_classifier.weight
        )


class ViTSegmenter(Method):
    """A method on :class:`ViTNetwork`; subclasses make ``self.network`` with :meth:`make_network`."""

    network: ViTNetwork

    def __init__(self, config: Any, build: Build) -> None:
        super().__init__(config, build)
        if build.dataset.background != 0:
            raise UserError(
                f"{self.title} takes class 0 as the background, {build.dataset.title} "
                + ("has none" if build.dataset.background is None else "has it elsewhere"),
                where="dataset",
                remedy="write background first among the classes of your own data set (its mask values may "
                "stay, see docs/data.md), or take CAM, AGMM or another method that places it itself",
            )

    def named_network(self, name: str) -> ViTNetwork:
        """The network behind a name of ``networks``; here there is one."""
        return self.network

    def reached(self) -> dict[str, list[nn.Parameter]]:
        """By name of a term, the parameters that learn from it beside the encoder and the classifiers."""
        head = list(self.network.decoder.parameters())
        return {"seg": head, "reg": head}

    def zeroed(self) -> dict[str, list[nn.Parameter]]:
        """:meth:`reached`, for terms of weight 0, as ``config.before_start`` has it."""
        return self.reached() if self.config.before_start == "zero" else {}

    def predict(self, images: Tensor, network: str = "default") -> Tensor:
        """Logits ``(B, K, H, W)`` at the size of ``images`` ``(B, 3, H, W)``."""
        return resize(self.grid_logits(images, network), images.shape[-2:], align_corners=False)

    def grid_logits(self, images: Tensor, network: str = "default") -> Tensor:
        """Logits ``(B, K, h, w)`` on the token grid."""
        return at_least_float32(self.named_network(network)(images).seg)

    def cams(
        self, images: Tensor, network: ViTNetwork | None = None, known: Tokens | None = None
    ) -> tuple[Tensor, Tensor]:
        """Multi-scale activation maps ``(B, K - 1, H, W)`` in [0, 1]: of final and of auxiliary tokens.

        Args:
            images: ``(B, 3, H, W)`` normalised.
            network: whose maps.
            known: its tokens of ``images``, where they are at hand: they are not computed again.
        """
        maps = (network or self.network).maps
        at_one = None if known is None else partial(maps, known=known)
        cam, aux = multi_scale_cam(maps, images, self.config.cam_scales, at_one)
        return cam, aux

    def token_labels(self, cam: Tensor, tags: Tensor, grid: Sequence[int], valid: Tensor | None) -> Tensor:
        """Labels ``(B, h, w)`` of tokens by both thresholds, from maps ``(B, K - 1, H, W)``.

        Args:
            cam: in [0, 1].
            tags: ``(B, K - 1)``.
            grid: (h, w).
            valid: ``(B, h, w)`` bool, elsewhere undecided; everywhere if None.
        """
        small = resize(cam, grid, align_corners=False)
        return cam_to_label(small, tags, (self.config.low, self.config.high), valid)

    def refined_labels(
        self, images: Tensor, cam: Tensor, tags: Tensor, valid: Tensor | None = None
    ) -> Tensor:
        """Pseudo labels ``(B, H, W)``, 255 undecided: :func:`methods.parts.par.refine_cams` as configured.

        Args:
            images: ``(B, 3, H, W)`` normalised.
            cam: ``(B, K - 1, H, W)`` in [0, 1].
            tags: ``(B, K - 1)``.
            valid: ``(B, H, W)`` bool, elsewhere undecided; everywhere if None.
        """
        c = self.config
        return refine_cams(
            denormalise(images),
            present_cam(cam, tags),
            tags,
            c.low,
            c.high,
            valid=valid,
            dilations=c.refine_dilations,
            iterations=c.refine_iterations,
            down_scale=c.refine_down_scale,
        )

    def squashed(self, images: Tensor) -> Tensor:
        """Pictures ``(B, 3, H, W)`` at the size at which maps are made for scoring."""
        side = self.config.cam_size
        return resize(images, (side, side), align_corners=False) if side else images

    @torch.no_grad()
    def pseudo_labels(self, images: Tensor, tags: Tensor) -> Mapping[str, Tensor]:
        """``cam`` and ``aux-cam`` by the one threshold, and ``refined`` training labels (255 undecided)."""
        size, present = images.shape[-2:], tags[:, 1:]
        maps = self.cams(self.squashed(images), self.network)
        cam, aux = (resize(require_finite(c, "the activation maps"), size, align_corners=False) for c in maps)
        score = self.config.background_score
        return Lazy(
            {
                "cam": lambda: cam_to_label(cam, present, score),
                "aux-cam": lambda: cam_to_label(aux, present, score),
                "refined": lambda: self.refined_labels(images, cam, present),
            }
        )

    def class_maps(self, images: Tensor, tags: Tensor) -> Tensor:
        """Activation maps ``(B, K, H, W)`` of the final tokens in [0, 1], made as those that are scored."""
        return self.class_maps_of(self.network, images, tags)

    @torch.no_grad()
    def class_maps_of(self, network: ViTNetwork, images: Tensor, tags: Tensor) -> Tensor:
        """:meth:`class_maps` of one network."""
        cam = resize(self.cams(self.squashed(images), network)[0], images.shape[-2:], align_corners=False)
        return F.pad(present_cam(cam, tags[:, 1:]), (0, 0, 0, 0, 1, 0))

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The encoder, and everything else with ``head_lr_scale``; decay on all."""
        return optimiser_groups(self, ("network.encoder.",), self.config.head_lr_scale)


def optimiser_groups(
    module: nn.Module,
    encoder: tuple[str, ...],
    head_lr_scale: float,
    decay: Literal["all", "matrices"] = "all",
) -> list[dict[str, Any]]:
    """Trainable parameters by learning rate and decay.

    Args:
        module: whose parameters.
        encoder: prefixes of names that learn at the base rate, where pretrained weights are for them.
        head_lr_scale: rate of the others, relative to it.
        decay: ``all``, or ``matrices``: no decay of biases, vectors, position tables and learned tokens
            (FSR utils/optim.py).
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    fresh = untrained(module)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            decayed = decay == "all" or _is_matrix(name, parameter)
            slow = name.startswith(encoder) and id(parameter) not in fresh
            groups.setdefault((slow, decayed), []).append(parameter)
    return [
        {"params": parameters, "lr_scale": 1.0 if slow else head_lr_scale}
        | ({} if decayed else {"weight_decay": 0.0})
        for (slow, decayed), parameters in groups.items()
    ]


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    last = name.rpartition(".")[2]
    return parameter.ndim > 1 and last not in ("bias", "pos_embed", "cls_token", "mask_token")


# --- losses ------------------------------------------------------------------------------------------


def classification_loss(logits: Tensor, tags: Tensor) -> Tensor:
    """Multi-label soft margin loss, mean over pictures and classes; both ``(B, K - 1)``."""
    return F.multilabel_soft_margin_loss(at_least_float32(logits), tags.to(at_least_float32(logits).dtype))


def balanced_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Half the mean cross-entropy of background pixels plus half that of foreground pixels.

    A side without pixels is 0 with zero gradient (the authors' mean over nothing is NaN: ToCo and FSR
    model/losses.py).

    Args:
        logits: ``(B, K, H, W)``.
        labels: ``(B, H, W)`` int64; 255 does not count.
    """
    with outside_autocast(logits.device):
        behind, before = two_sided_cross_entropy(at_least_float32(logits), labels, background=0)
        return (behind + before) / 2


def dense_energy(logits: Tensor, images: Tensor, labels: Tensor, valid: Tensor | None = None) -> Tensor:
    """The gated dense energy of ToCo and FSR (model/losses.py) at half size, times 1e-7.

    Args:
        logits: ``(B, K, H, W)``.
        images: ``(B, 3, H, W)`` normalised.
        labels: ``(B, H, W)``; where they are 255 the gate is open.
        valid: ``(B, H, W)`` bool region of interest, everything by default.
    """
    with outside_autocast(logits.device):
        probabilities = at_least_float32(logits).softmax(1)
        energy = dense_crf_loss(probabilities, colours(images), roi=valid, unlabelled=labels == IGNORE)
        return ENERGY_SCALE * energy


def from_step(weight: float, start: int, step: int) -> float:
    """``weight`` from step ``start`` on, 0 before."""
    return weight if step >= start else 0.0


Terms = dict[str, tuple[float, Callable[[], Tensor]]]


def weighted(terms: Terms, reached: Mapping[str, Iterable[nn.Parameter]] | None = None) -> dict[str, Tensor]:
    """Evaluate the terms whose weight is not 0, and weigh them.

    Args:
        terms: weight and value by name.
        reached: by name of a term, what learns from it beside the encoder and the classifiers. Where its
            weight is 0 the term comes as ``0 * term`` would, without being computed: :func:`zero_gradient`.
    """
    found = {name: weight * term() for name, (weight, term) in terms.items() if weight != 0}
    for name, parameters in (reached or {}).items():
        trained = [p for p in parameters if p.requires_grad]
        if name not in found and trained:
            found[name] = zero_gradient(trained)
    return found


class _ZeroGradient(torch.autograd.Function):
    """0, whose gradient by every argument is 0."""

    @staticmethod
    def forward(ctx: Any, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return parameters[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.zeros_like(p) for p in ctx.saved_tensors)


def zero_gradient(parameters: Sequence[nn.Parameter]) -> Tensor:
    """What ``0 * loss`` is to the parameters that the loss reaches: a scalar 0 whose gradient is 0.

    A gradient of 0 is not the same as none: with it an optimiser moves its averages, counts a step and
    decays the weight.

    Args:
        parameters: at least one.
    """
    return _ZeroGradient.apply(*parameters)
