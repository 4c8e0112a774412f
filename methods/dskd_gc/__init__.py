"""DSKD+GC: *Dual-stage guided weakly supervised semantic segmentation with Gaussian correction* (Journal of
Image and Graphics 30(12), 2025).

Two copies of one network, named here by what they do. ``online`` (the paper's *teacher*) is trained by
gradient all the time and sees the mirrored picture. ``ema`` (its *student*) sees the picture itself, is
trained by gradient during warm-up, and then follows the other as a moving average:

    warm-up      L_cls + 0.2 L_PTC + 0.5 L_sim                     both networks
    afterwards   L_cls + 0.2 L_PTC + 0.1 L_PUNC + 0.1 L_seg        online alone

L_sim (E7) asks that the features of mirrored pictures are mirrored features. L_PUNC (E10) makes the outputs
of online agree with those of ema in patches whose activation is uncertain (E9). L_seg (E22) trains on labels
from activation maps that Gaussian correction has gone over (:mod:`methods.dskd_gc.correction`).

No code is public, and the paper leaves much open: every reading is an option, listed with its reasons in
``docs/image_tags.md``. Where it is silent the values are ToCo's, then FSR's.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from harness.basics.finite import require_finite
from harness.engine.batch import IGNORE, Batch, Progress
from harness.engine.method import Build, Lazy
from harness.nn.ema import cosine_momentum, ema_copy, ema_update
from harness.nn.precision import at_least_float32, outside_autocast
from harness.nn.resize import resize
from harness.nn.vit import Tokens, ViTEncoder
from methods.dskd_gc.correction import (
    Labels,
    class_maps,
    nearest_cells,
    training_labels,
    whole_patches,
)
from methods.dskd_gc.losses import (
    mirror_consistency,
    region_of_interest,
    segmentation_loss,
    uncertain_patch_loss,
)
from methods.dskd_gc_config import DSKD_GC_DECLARED, DSKDGCConfig
from methods.parts.cam import cam_to_label, present_cam
from methods.parts.distillation import Centre, teacher_temperature
from methods.parts.projector import Projector
from methods.parts.token_contrast import patch_token_contrast
from methods.parts.transformer import (
    Terms,
    ViTNetwork,
    ViTSegmenter,
    classification_loss,
    optimiser_groups,
    weighted,
)

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


class DistilledNetwork(ViTNetwork):
    """ToCo's network with a projector on patch tokens; either copy of DSKD+GC.

    Args:
        encoder: the transformer.
        num_classes: K, background included.
        config: heads.
    """

    config: DSKDGCConfig

    def __init__(self, encoder: ViTEncoder, num_classes: int, config: DSKDGCConfig) -> None:
        super().__init__(encoder, num_classes, config)
        self.projector = Projector(
            encoder.channels, config.projector_out, config.projector_hidden, config.projector_bottleneck
        )

    def class_logits(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Logits ``(B, K - 1)`` of the final and of the auxiliary classifier."""
        aux = self.class_scores(tokens.aux, self.aux_classifier)
        if self.config.cls_input == "gmp":
            return self.class_scores(tokens.final, self.classifier), aux
        assert tokens.cls is not None
        return self.classifier(tokens.cls[..., None, None]).flatten(1), aux

    def paper_maps(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Activation maps ``(B, K - 1, h, w)`` in [0, 1] of final and auxiliary tokens (E1, E2)."""
        with outside_autocast(tokens.final.device):
            return (
                class_maps(tokens.final, self.classifier.weight),
                class_maps(tokens.aux, self.aux_classifier.weight),
            )


class Maps(NamedTuple):
    """Activation maps ``(B, K - 1, *)`` in [0, 1], those of absent classes 0."""

    final: Tensor
    aux: Tensor


class DSKDGC(ViTSegmenter, declared=DSKD_GC_DECLARED):
    """DSKD+GC on ToCo's network. ``predict`` scores online (``default``) or ema (``student``)."""

    probe_steps = (0.0, 0.9)

    config: DSKDGCConfig

    def __init__(self, config: DSKDGCConfig, build: Build) -> None:
        super().__init__(config, build)
        encoder = build.vit(aux_layer=config.aux_layer)
        self.online = DistilledNetwork(encoder, build.num_classes, config)
        if config.punc_weight == 0:  # what no term reads is not trained
            self.online.projector.requires_grad_(False)
        self.ema = ema_copy(self.online)
        if config.warmup_steps and config.student_cls_in_warmup:
            self._train_ema(("encoder.", "classifier.", "aux_classifier."))
        elif config.warmup_steps and config.sim_weight:
            self._train_ema(("encoder.",))
        self.centre: Centre | None = None
        if config.punc_temperature == "dino":
            self.centre = Centre(config.projector_out, config.dino_centre_momentum)

    def _train_ema(self, prefixes: tuple[str, ...]) -> None:
        """Let warm-up train parts of ema; what no loss reaches there only ever follows online."""
        trained = dict(self.online.named_parameters())
        for name, parameter in self.ema.named_parameters():
            parameter.requires_grad_(name.startswith(prefixes) and trained[name].requires_grad)

    @property
    def network(self) -> DistilledNetwork:  # type: ignore[override]
        """Online, the network that is scored by default."""
        return self.online

    def named_network(self, name: str) -> DistilledNetwork:
        """``default`` is online (the paper's teacher), ``student`` ema."""
        return self.ema if name == "student" else self.online

    # --- training -------------------------------------------------------------------------------------

    def loss(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """E23 by stage: ``cls``, ``aux_cls``, ``ptc``; ``student_cls``, ``sim`` in warm-up, ``punc``, ``seg``
        after it.

        After warm-up ema runs without gradient, so its parameters get none and the optimiser skips them.
        Heads of online get a gradient of 0 from terms whose weight is 0 (``config.before_start``).
        """
        c = self.config
        warm = progress.step < c.warmup_steps
        tags = batch.tags[:, 1:]
        mirrored = self.online.encoder(batch.images.flip(-1))
        online = unmirrored(mirrored)
        sim_weight = c.sim_weight if warm or c.sim_after_warmup else 0.0
        punc_weight = 0.0 if warm else c.punc_weight
        seg_weight = 0.0 if warm else c.seg_weight
        student_cls = warm and c.student_cls_in_warmup
        from_student = c.cam_network == "student" and bool(punc_weight or seg_weight)
        ema: Tokens | None = None
        if sim_weight or punc_weight or student_cls or from_student:
            with torch.set_grad_enabled(warm and torch.is_grad_enabled()):
                ema = self.ema.encoder(batch.images)
        own = self._maps(self.online, online, batch.images, tags)
        chosen = own
        if from_student:
            assert ema is not None
            chosen = self._maps(self.ema, ema, batch.images, tags)
        logits = self.online.class_logits(mirrored)
        terms: Terms = {
            "cls": (1.0, lambda: classification_loss(logits[0], tags)),
            "aux_cls": (1.0, lambda: classification_loss(logits[1], tags)),
            "ptc": (c.ptc_weight, lambda: self._ptc(online, own, tags, batch.valid)),
            "seg": (seg_weight, lambda: self._seg(mirrored, online, ema, chosen, batch)),
        }
        if ema is not None:
            plain = ema
            terms |= {
                "student_cls": (float(student_cls), lambda: self._student_cls(plain, tags)),
                "sim": (sim_weight, lambda: self._sim(mirrored, plain)),
                "punc": (punc_weight, lambda: self._punc(online, plain, chosen, batch.valid, progress)),
            }
        return weighted(terms, self.zeroed())

    def reached(self) -> dict[str, list[nn.Parameter]]:
        """The head learns from ``seg``, the projector from ``punc``."""
        return {
            "seg": list(self.online.decoder.parameters()),
            "punc": list(self.online.projector.parameters()),
        }

    def _student_cls(self, tokens: Tokens, tags: Tensor) -> Tensor:
        final, aux = self.ema.class_logits(tokens)
        return classification_loss(final, tags) + classification_loss(aux, tags)

    def _sim(self, mirrored: Tokens, plain: Tokens) -> Tensor:
        one, other = (t.aux if self.config.sim_layer == "m" else t.final for t in (mirrored, plain))
        with outside_autocast(one.device):
            return mirror_consistency(at_least_float32(one), at_least_float32(other), self.config.sim_mode)

    def _ptc(self, tokens: Tokens, maps: Maps, tags: Tensor, valid: Tensor) -> Tensor:
        """L_PTC (E3, E4) on the final tokens, with labels from the auxiliary maps."""
        grid = tokens.final.shape[2:]
        labels = self.token_labels(maps.aux, tags, grid, whole_patches(valid, (grid[0], grid[1])))
        if self.config.ptc_labels == "binary":
            labels = binary(labels)
        return patch_token_contrast(tokens.final, labels, self.config.ptc_form)

    def _punc(self, online: Tokens, ema: Tokens, maps: Maps, valid: Tensor, progress: Progress) -> Tensor:
        """L_PUNC (E9, E10): the projector sees uncertain patches alone."""
        c = self.config
        cam = resize(
            maps.aux if c.roi_cam == "aux" else maps.final, online.final.shape[2:], align_corners=False
        )
        region = region_of_interest(cam, c.roi_low, c.roi_high)
        region &= whole_patches(valid, (region.shape[1], region.shape[2]))
        image = region.nonzero()[:, 0]
        prediction = at_least_float32(self.online.projector(online.final.movedim(1, -1)[region]))
        every = ema.final.movedim(1, -1)
        options: dict[str, Any] = {}
        with torch.no_grad():
            if self.centre is not None:
                outputs = at_least_float32(self.ema.projector(every))
                target = outputs[region]
                steps = round(progress.total / 8)
                options = {
                    "temperature": c.dino_temperature,
                    "target_temperature": teacher_temperature(
                        progress.step, *c.dino_target_temperatures, steps
                    ),
                    "centre": self.centre.value,
                }
                self.centre.collect(outputs)
            else:
                target = at_least_float32(self.ema.projector(every[region]))
        with outside_autocast(prediction.device):
            return uncertain_patch_loss(
                target, prediction, image, len(valid), reduce=c.punc_reduce, **options
            )

    def _seg(self, mirrored: Tokens, online: Tokens, ema: Tokens | None, maps: Maps, batch: Batch) -> Tensor:
        """L_seg (E22): the head reads the mirrored tokens, its logits are mirrored back."""
        tags = batch.tags[:, 1:]
        network, tokens = (self.online, online)
        if self.config.cam_network == "student":
            assert ema is not None
            network, tokens = self.ema, ema
        labels = self._labels(network, tokens, maps, batch.images, tags, batch.valid).corrected
        logits = at_least_float32(self.online.decoder(mirrored.final)).flip(-1)
        with outside_autocast(logits.device):
            logits = resize(logits, labels.shape[-2:], align_corners=False)
            return segmentation_loss(logits, labels, self.config.seg_form)

    @torch.no_grad()
    def _maps(self, network: DistilledNetwork, tokens: Tokens, images: Tensor, tags: Tensor) -> Maps:
        """Maps of the present classes: of these tokens (E1), or over scales and mirror (ToCo)."""
        if self.config.cam_form == "paper":
            found = network.paper_maps(tokens)
        else:
            found = self.cams(images, network, tokens)
        return Maps(*(present_cam(m, tags) for m in found))

    @torch.no_grad()
    def _labels(
        self,
        network: DistilledNetwork,
        tokens: Tokens,
        maps: Maps,
        images: Tensor,
        tags: Tensor,
        valid: Tensor,
    ) -> Labels:
        c = self.config
        features = tokens.aux if c.gc_feature == "layer_m" else tokens.final
        if c.gc and c.gc_feature == "projected":
            features = network.projector(features.movedim(1, -1)).movedim(-1, 1)
        refined = None
        if c.label_par == "before_gc":
            whole = resize(maps.final, images.shape[-2:], align_corners=False)
            refined = self.refined_labels(images, whole, tags, valid)
        with outside_autocast(images.device):
            return training_labels(maps.final, tags, at_least_float32(features), valid, c, refined)

    def after_step(self, progress: Progress) -> None:
        """After warm-up ema moves towards online (E6), with a momentum that rises to 1."""
        c = self.config
        if progress.step < c.warmup_steps:
            return
        length = progress.total - c.warmup_steps
        momentum = cosine_momentum(c.ema_momentum, progress.step - c.warmup_steps, length)
        if c.ema_convention == "literal":
            momentum = 1 - momentum
        ema_update(self.ema, self.online, momentum)
        if self.centre is not None:
            self.centre.update()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Encoder and heads of online; those of ema with ``student_lr_scale``."""
        groups = optimiser_groups(self.online, ("encoder.",), self.config.head_lr_scale)
        student = optimiser_groups(self.ema, ("encoder.",), self.config.head_lr_scale)
        for group in student:
            group["lr_scale"] *= self.config.student_lr_scale
        return groups + student

    # --- activation maps and labels -------------------------------------------------------------------

    def cams(
        self, images: Tensor, network: ViTNetwork | None = None, known: Tokens | None = None
    ) -> tuple[Tensor, Tensor]:
        """Activation maps ``(B, K - 1, H, W)`` in [0, 1]: of final and of auxiliary tokens."""
        if self.config.cam_form == "toco":
            return super().cams(images, network, known)
        chosen = network or self.online
        assert isinstance(chosen, DistilledNetwork)
        final, aux = chosen.paper_maps(chosen.encoder(images) if known is None else known)
        size = images.shape[-2:]
        return resize(final, size, align_corners=False), resize(aux, size, align_corners=False)

    def class_maps(self, images: Tensor, tags: Tensor) -> Tensor:
        """Activation maps ``(B, K, H, W)`` in [0, 1] of the final tokens of ``cam_network``."""
        return self.class_maps_of(self._map_network(), images, tags)

    def _map_network(self) -> DistilledNetwork:
        return self.ema if self.config.cam_network == "student" else self.online

    @torch.no_grad()
    def pseudo_labels(self, images: Tensor, tags: Tensor) -> Mapping[str, Tensor]:
        """``cam`` and ``aux-cam`` by one threshold, ``refined`` by PAR, and training labels.

        Those are ``initial`` and ``corrected``, 255 where there is none. All are of ``cam_network``.
        """
        size = (images.shape[2], images.shape[3])
        present = tags[:, 1:]
        network = self._map_network()
        squashed = self.squashed(images)
        tokens = network.encoder(squashed)
        maps = self._maps(network, tokens, squashed, present)
        for m in maps:
            require_finite(m, "the activation maps")
        valid = squashed.new_ones(len(squashed), *squashed.shape[-2:]).bool()
        labels = cache(lambda: self._labels(network, tokens, maps, squashed, present, valid))
        final, aux = (
            resize(resize(m, valid.shape[1:], align_corners=False), size, align_corners=False) for m in maps
        )
        score = self.config.background_score
        return Lazy(
            {
                "cam": lambda: cam_to_label(final, present, score),
                "aux-cam": lambda: cam_to_label(aux, present, score),
                "refined": lambda: self.refined_labels(images, final, present),
                "initial": lambda: nearest_cells(labels().initial, size),
                "corrected": lambda: nearest_cells(labels().corrected, size),
            }
        )

    @classmethod
    def search_space(cls) -> dict[str, BaseDistribution]:
        """The correction's tau, which the paper does not give, its thresholds, weights and learning rate."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution

        return {
            "gc_tau": FloatDistribution(0.2, 0.95),
            "gc_theta_high": FloatDistribution(0.55, 0.98),
            "gc_theta_low": FloatDistribution(0.05, 0.45),
            "gc_fit_pixels": CategoricalDistribution(["all", "nonbg"]),
            "low": FloatDistribution(0.1, 0.4),
            "high": FloatDistribution(0.45, 0.8),
            "ptc_weight": FloatDistribution(0.05, 0.5),
            "sim_weight": FloatDistribution(0.1, 1.0),
            "punc_weight": FloatDistribution(0.02, 0.5, log=True),
            "seg_weight": FloatDistribution(0.05, 1.0, log=True),
            "optimiser.lr": FloatDistribution(1e-5, 5e-4, log=True),
        }


def unmirrored(tokens: Tokens) -> Tokens:
    """Tokens of a mirrored picture on the grid of the picture itself."""
    final, aux, raw = (t.flip(-1) for t in (tokens.final, tokens.aux, tokens.raw))
    return Tokens(final, aux, raw, tokens.cls)


def binary(labels: Tensor) -> Tensor:
    """Foreground (1) against background (0); 255 stays."""
    return labels.clamp(max=1).where(labels != IGNORE, IGNORE)
