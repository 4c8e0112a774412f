"""FSR: progressive feature self-reinforcement (He et al., AAAI 2024).

A vision transformer learns classes from image tags; its activation maps, refined by the picture, train a
segmentation head. Where the maps are uncertain, features are reinforced by distillation from a teacher,
the average of the student over time, that sees whole views: the student sees view 2 with blocks masked,
uncertain ones first, and must give

- at every masked patch what the teacher gives there ("unc.FSR"), and
- in its class token, gathered from what is left, what the teacher gives for view 1 ("cer.FSR").

    L = L_cls + w_1 L_class + w_2 L_patch + w_3 L_ptc + [step >= start] (w_4 L_seg + w_5 L_reg)

with ToCo's patch-token contrast L_ptc, the balanced cross-entropy L_seg and the dense energy L_reg on
view 1. The paper's method section could not be read: what is cited is the released code
(Jessie459/feature-self-reinforcement at 7f75f1c).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from harness.basics.errors import UserError
from harness.engine.batch import Batch, Progress
from harness.engine.method import Build, ViewSpec
from harness.nn.ema import cosine_momentum, ema_copy, ema_update
from harness.nn.precision import at_least_float32, outside_autocast
from harness.nn.resize import resize
from harness.nn.vit import Tokens
from harness.recipes.specs import AugmentSpec
from methods.fsr.config import FSR_DECLARED, FSRConfig
from methods.fsr.masking import block_mask, token_mask, uncertain_blocks
from methods.fsr.network import FSRNetwork, part, released_checkpoint
from methods.parts.distillation import (
    Centre,
    class_distillation,
    distillation_targets,
    masked_tokens,
    patch_distillation,
    teacher_temperature,
)
from methods.parts.token_contrast import patch_token_contrast
from methods.parts.transformer import (
    Terms,
    ViTNetwork,
    ViTOutput,
    ViTSegmenter,
    balanced_cross_entropy,
    classification_loss,
    dense_energy,
    from_step,
    optimiser_groups,
    weighted,
)

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


class FSR(ViTSegmenter, declared=FSR_DECLARED):
    """FSR with its student (``default``) and its teacher, both of which segment."""

    probe_steps = (0.0, 0.9)

    def __init__(self, config: FSRConfig, build: Build) -> None:
        super().__init__(config, build)
        encoder = build.vit(
            aux_layer=config.aux_layer,
            class_token="apart",
            position="trained",
            mask_token=True,
            drop_path=config.drop_path,
        )
        if config.mask_block % encoder.patch:
            raise UserError(
                f"blocks of {config.mask_block} pixels are not made of whole patches of {encoder.patch}",
                where="config.mask_block",
                remedy="choose a multiple of the patch",
            )
        self.network: FSRNetwork = FSRNetwork(encoder, build.num_classes, config)
        if config.class_weight == 0:  # what no term reads is not trained
            self.network.aggregation.requires_grad_(False)
            encoder.cls_token.requires_grad_(False)
            if config.patch_weight == 0:
                self.network.projector.requires_grad_(False)
                assert encoder.mask_token is not None
                encoder.mask_token.requires_grad_(False)
        self.teacher = ema_copy(self.network)
        self.class_centre = Centre(config.projector_outputs, config.centre_momentum)
        self.patch_centre = Centre(config.projector_outputs, config.centre_momentum)

    def views(self) -> Mapping[str, ViewSpec]:
        """``second``, view 2: another crop of the same picture; and small local crops where asked for.

        [FSR transforms.py]
        """
        c = self.config
        colours = AugmentSpec(
            crop_mode="area",
            area=(0.05, 0.32),
            resample="bicubic",
            jitter=0.8,
            jitter_strength=(0.4, 0.4, 0.2, 0.1),
            grey=0.2,
            blur=0.5,
            blur_sigma=(0.1, 2.0),
        )
        local = ViewSpec(scale=c.local_size / self.build.crop[0], independent=True, augment=colours)
        return {"second": ViewSpec(independent=True)} | {f"local{i}": local for i in range(c.local_views)}

    def named_network(self, name: str) -> ViTNetwork:
        """Student (``default``) or ``teacher``."""
        return self.teacher if name == "teacher" else self.network

    # --- training ---

    def loss(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """``cls`` (both classifiers), ``class``, ``patch``, ``ptc``, ``seg`` and ``reg``, weighted.

        Terms whose weight is 0 at this step are not computed (``config.before_start``).
        """
        c, step, size = self.config, progress.step, len(batch)
        tags = batch.tags[:, 1:]
        images, second = batch.images, batch.views["second"].images
        distils = c.class_weight > 0 or c.patch_weight > 0
        mask = None
        views = images
        if distils:
            mask = self.mask(second, tags, step)
            views = torch.cat([images, second])
        seen = None if mask is None else torch.cat([torch.zeros_like(mask), mask])
        tokens = self.network.encoder(views, seen)
        output = self.network.heads(part(tokens, slice(size)))
        terms: Terms = {
            "cls": (
                1.0,
                lambda: classification_loss(output.cls, tags) + classification_loss(output.aux_cls, tags),
            )
        }
        if mask is not None:
            terms |= self.distillation(part(tokens, slice(size, None)), batch, mask, step)
        if any(self.map_weights(step).values()):
            terms |= self.map_terms(batch, output, step)
        return weighted(terms, self.zeroed())

    def mask(self, images: Tensor, tags: Tensor, step: int) -> Tensor:
        """Masked tokens of view 2, ``(B, h, w)`` bool; random numbers from the global generator.

        Args:
            images: ``(B, 3, H, W)`` of the crop's size.
            tags: ``(B, K - 1)`` foreground classes.
            step: 0-based optimiser step, which decides whether uncertain blocks come first.
        """
        c, block = self.config, self.config.mask_block
        uncertain = None
        if c.uncertain_start != "off" and step >= c.uncertain_start:
            aux = self.training_maps(images)[1]
            uncertain = uncertain_blocks(
                aux, tags, block, low=c.uncertain_low, high=c.uncertain_high, sampling=c.uncertain_sampling
            )
        sides, patch = images.shape[-2:], self.network.encoder.patch
        noise = torch.rand(len(images), *(math.ceil(side / block) for side in sides), device=images.device)
        mask = block_mask(noise, c.mask_ratio, uncertain)
        return token_mask(mask, block // patch, [side // patch for side in sides])

    def distillation(self, masked: Tokens, batch: Batch, mask: Tensor, step: int) -> Terms:
        """The terms ``class`` and ``patch``; the teacher's outputs are collected for the centres.

        Args:
            masked: the student's tokens of the masked view 2.
            batch: both views for the teacher, local views for the student.
            mask: ``(B, h, w)`` bool.
            step: 0-based optimiser step.
        """
        c, student = self.config, self.network
        teacher_class, teacher_patches = self.teacher_outputs(batch.images, batch.views["second"].images)
        temperature = teacher_temperature(
            step, c.teacher_temperature_start, c.teacher_temperature, c.teacher_temperature_steps
        )
        if self.training:
            self.class_centre.collect(teacher_class)
            self.patch_centre.collect(teacher_patches)

        def class_term() -> Tensor:
            states = [student.aggregate(masked, None if c.aggregate_masked else mask)]
            if c.local_views:
                local = torch.cat([batch.views[f"local{i}"].images for i in range(c.local_views)])
                states.append(student.aggregate(student.encoder(local)))
            outputs = student.projector(torch.cat(states)).unflatten(0, (-1, len(mask)))
            with outside_autocast(mask.device):
                targets = distillation_targets(teacher_class, self.class_centre.value, temperature)
                return class_distillation(at_least_float32(outputs), targets, c.student_temperature)

        def patch_term() -> Tensor:
            index, counts = masked_tokens(mask, self._most_masked(mask.shape[1:]))
            wanted = _rows(teacher_patches, index)
            outputs = student.projector(_rows(masked.final.flatten(2).mT, index))
            with outside_autocast(mask.device):
                targets = distillation_targets(wanted, self.patch_centre.value, temperature)
                return patch_distillation(at_least_float32(outputs), targets, counts, c.student_temperature)

        return {"class": (c.class_weight, class_term), "patch": (c.patch_weight, patch_term)}

    def _most_masked(self, grid: Sequence[int]) -> int:
        """The most tokens that a mask can hold on a grid ``(h, w)``; exact where blocks tile it."""
        per_side = self.config.mask_block // self.network.encoder.patch
        blocks = math.prod(math.ceil(side / per_side) for side in grid)
        return min(math.ceil(blocks * self.config.mask_ratio) * per_side**2, math.prod(grid))

    @torch.no_grad()
    def teacher_outputs(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Projections of the teacher: class token of view 1 ``(B, D)``, patches of view 2 ``(B, N, D)``."""
        with self._noise(self.teacher):
            tokens = self.teacher.encoder(torch.cat([first, second]))
            cls = self.teacher.aggregate(part(tokens, slice(len(first))))
        outputs = (
            self.teacher.projector(cls),
            self.teacher.projector(tokens.final[len(first) :].flatten(2).mT),
        )
        return at_least_float32(outputs[0]), at_least_float32(outputs[1])

    def training_maps(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The student's activation maps, final and auxiliary, in [0, 1] at the size of ``images``."""
        with self._noise(self.network):
            return self.cams(images)

    def map_weights(self, step: int) -> dict[str, float]:
        """Weights, at a step, of the terms that need activation maps of view 1."""
        c = self.config
        return {
            "ptc": from_step(c.ptc_weight, c.ptc_start, step),
            "seg": from_step(c.seg_weight, c.seg_start, step),
            "reg": from_step(c.reg_weight, c.seg_start, step),
        }

    def map_terms(self, batch: Batch, output: ViTOutput, step: int) -> Terms:
        """The terms ``ptc``, ``seg`` and ``reg`` of view 1, which learn from its activation maps."""
        images, valid, tags = batch.images, batch.valid, batch.tags[:, 1:]
        cam, aux = self.training_maps(images)
        weights = self.map_weights(step)
        labels = cache(lambda: self.refined_labels(images, cam, tags, valid))
        logits = resize(at_least_float32(output.seg), images.shape[-2:], align_corners=False)

        def contrast() -> Tensor:
            grid, patch = output.tokens.final.shape[-2:], self.network.encoder.patch
            inside = valid[:, patch // 2 :: patch, patch // 2 :: patch][:, : grid[0], : grid[1]]
            return patch_token_contrast(output.tokens.final, self.token_labels(aux, tags, grid, inside))

        return {
            "ptc": (weights["ptc"], contrast),
            "seg": (weights["seg"], lambda: balanced_cross_entropy(logits, labels())),
            "reg": (weights["reg"], lambda: dense_energy(logits, images, labels(), valid)),
        }

    @contextmanager
    def _noise(self, network: nn.Module) -> Iterator[None]:
        """Stochastic depth as ``noisy_maps`` asks: left as it is, or off."""
        off = network.training and not self.config.noisy_maps
        if off:
            network.eval()
        try:
            yield
        finally:
            if off:
                network.train()

    def after_step(self, progress: Progress) -> None:
        """The teacher follows the student, the centres the teacher's outputs of all groups."""
        momentum = cosine_momentum(self.config.ema_momentum, progress.step, progress.total)
        ema_update(self.teacher, self.network, momentum)
        self.class_centre.update()
        self.patch_centre.update()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Encoder with aggregation blocks at the base rate, the rest at ``head_lr_scale``; no decay of
        vectors, position table and learned tokens (FSR utils/optim.py)."""
        encoder = ("network.encoder.", "network.aggregation.")
        return optimiser_groups(self, encoder, self.config.head_lr_scale, decay="matrices")

    # --- around training ---

    @classmethod
    def search_space(cls) -> dict[str, BaseDistribution]:
        """Masks, weights, temperatures, thresholds and the learning rate."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution

        return {
            "mask_ratio": FloatDistribution(0.1, 0.8),
            "mask_block": CategoricalDistribution([16, 32, 64]),
            "class_weight": FloatDistribution(0.01, 1.0, log=True),
            "patch_weight": FloatDistribution(0.01, 1.0, log=True),
            "teacher_temperature": FloatDistribution(0.03, 0.1),
            "student_temperature": FloatDistribution(0.05, 0.3, log=True),
            "ema_momentum": FloatDistribution(0.99, 0.9999),
            "ptc_weight": FloatDistribution(0.02, 1.0, log=True),
            "seg_weight": FloatDistribution(0.02, 1.0, log=True),
            "low": FloatDistribution(0.1, 0.4),
            "high": FloatDistribution(0.45, 0.85),
            "background_score": FloatDistribution(0.2, 0.6),
            "uncertain_low": FloatDistribution(0.05, 0.35),
            "uncertain_high": FloatDistribution(0.45, 0.9),
            "optimiser.lr": FloatDistribution(1e-5, 1e-3, log=True),
        }

    @classmethod
    def key_tables(cls) -> dict[str, Callable[[Mapping[str, Tensor]], dict[str, Tensor]]]:
        """``fsr``: ``student.pth`` or ``teacher.pth`` of the FSR code, read into both networks."""
        return {"fsr": released_checkpoint}


def _rows(tokens: Tensor, index: Tensor) -> Tensor:
    """Tokens ``(B, M, C)`` of ``(B, N, C)`` by index ``(B, M)``."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[2]))
