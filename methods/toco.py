"""ToCo: token contrast for weakly supervised segmentation (Ru et al., CVPR 2023).

One stage from image tags on a vision transformer. Deep patch tokens grow alike; two contrasts work
against that. Patch tokens are contrasted by labels that an intermediate layer's activation maps give
them (PTC), and class tokens of crops from uncertain regions are pulled towards those of the picture,
those of background crops pushed away (CTC):

    L = L_cls + L_cls_aux + 0.2 L_ptc + 0.5 L_ctc + 0.1 L_seg + 0.05 L_reg

with L_seg on activation maps refined by PAR and L_reg a dense energy, both after a first phase. What is
cited is the released code (rulixiang/ToCo at e13514d).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from harness.engine.batch import Batch, Progress
from harness.engine.build import ViewSpec
from harness.engine.method import Build
from harness.nn.checkpoints import KeyTable
from harness.nn.ema import ema_copy, ema_update
from harness.nn.resize import resize
from harness.recipes.specs import AugmentSpec
from methods.parts.cam import roi_code
from methods.parts.projector import Projector
from methods.parts.token_contrast import class_token_contrast, patch_token_contrast
from methods.parts.transformer import (
    Terms,
    ViTNetwork,
    ViTOutput,
    ViTSegmenter,
    balanced_cross_entropy,
    classification_loss,
    dense_energy,
    from_step,
    weighted,
)
from methods.toco_config import TOCO_DECLARED, ToCoConfig

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

#: Colours of all views (ToCo datasets/voc.py).
_COLOURS = AugmentSpec(jitter=0.8, jitter_strength=(0.4, 0.4, 0.2, 0.1), grey=0.2, blur_sigma=(0.1, 2.0))


class ToCo(ViTSegmenter, declared=TOCO_DECLARED):
    """ToCo; the head of the class token contrast has a slow average, everything else is one network."""

    probe_steps = (0.0, 0.9)

    def __init__(self, config: ToCoConfig, build: Build) -> None:
        super().__init__(config, build)
        encoder = build.vit(aux_layer=config.aux_layer, class_token="travels", position="frozen")
        self.network = ViTNetwork(encoder, build.num_classes, config)
        self.proj_head = Projector(
            encoder.channels,
            config.projection_width,
            hidden=config.projection_hidden,
            bottleneck=config.projection_bottleneck,
        )
        if config.ctc_weight == 0:  # what no term reads is not trained
            self.proj_head.requires_grad_(False)
        self.proj_head_t = ema_copy(self.proj_head)

    def views(self) -> Mapping[str, ViewSpec]:
        """``second``, a global view of its own, and ``local``, the main crop in other colours.

        [ToCo datasets/voc.py]
        """
        crop = replace(
            _COLOURS, crop_mode="area", area=(0.4, 1.0), resample="bicubic", blur=0.1, solarise=0.2
        )
        return {
            "second": ViewSpec(independent=True, augment=crop),
            "local": ViewSpec(plain=True, recolour=replace(_COLOURS, blur=0.5)),
        }

    def loss(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """``cls``, ``aux_cls``, ``ptc``, ``ctc``, ``seg`` and ``reg``, weighted.

        Terms whose weight is 0 at this step are not computed (``config.before_start``).
        """
        c, step = self.config, progress.step
        images, source = batch.images, batch.views["local"].images
        if c.second_flip == "released":
            images, source = _coin_flip(images), _coin_flip(source)
        tags = batch.tags[:, 1:]
        output = self.network(images)
        terms: Terms = {
            "cls": (1.0, lambda: classification_loss(output.cls, tags)),
            "aux_cls": (1.0, lambda: classification_loss(output.aux_cls, tags)),
        }
        ptc = from_step(c.ptc_weight, c.contrast_start, step)
        ctc = from_step(c.ctc_weight, c.contrast_start, step)
        seg = from_step(c.seg_weight, c.seg_start, step)
        reg = from_step(c.reg_weight, c.seg_start, step)
        if any((ptc, ctc, seg, reg)):
            cam, aux_cam = self.cams(images, known=output.tokens)
            second = batch.views["second"].images
            chosen = cam if step >= c.final_cam_start else aux_cam
            labels = cache(lambda: self.refined_labels(images, chosen, tags, batch.valid))
            logits = cache(lambda: resize(output.seg, images.shape[-2:], align_corners=False))
            terms |= {
                "ptc": (ptc, lambda: self.patch_contrast(output, aux_cam, tags, batch.valid)),
                "ctc": (ctc, lambda: self.class_contrast(output, second, source, aux_cam, tags)),
                "seg": (seg, lambda: balanced_cross_entropy(logits(), labels())),
                "reg": (reg, lambda: dense_energy(logits(), images, labels(), batch.valid)),
            }
        return weighted(terms, self.zeroed())

    def reached(self) -> dict[str, list[nn.Parameter]]:
        """The projection head learns from ``ctc``, the segmentation head from ``seg`` and ``reg``."""
        return super().reached() | {"ctc": list(self.proj_head.parameters())}

    def patch_contrast(self, output: ViTOutput, aux_cam: Tensor, tags: Tensor, valid: Tensor) -> Tensor:
        """PTC of the final tokens by the auxiliary maps' labels.

        Args:
            output: of the network.
            aux_cam: ``(B, K - 1, H, W)`` in [0, 1].
            tags: ``(B, K - 1)``.
            valid: ``(B, H, W)`` bool.
        """
        tokens = output.tokens.final
        grid = tokens.shape[-2:]
        if self.config.token_region == "released":
            inside = valid[:, : grid[0], : grid[1]]
        else:
            inside = resize(valid[:, None].to(aux_cam.dtype), grid, align_corners=False)[:, 0] > 0.5
        labels = self.token_labels(aux_cam, tags, grid, inside)
        return patch_token_contrast(tokens, labels)

    def class_contrast(
        self, output: ViTOutput, second: Tensor, source: Tensor, aux_cam: Tensor, tags: Tensor
    ) -> Tensor:
        """CTC of two global views against them and local crops.

        The picture itself is the first global view, so that its class token is at hand; the teacher
        reads the same two class tokens, since it shares the encoder.

        Args:
            output: of the network on the picture.
            second: ``(B, 3, H, W)``, the second global view.
            source: ``(B, 3, H, W)``, what local crops are cut from.
            aux_cam: ``(B, K - 1, H, W)`` in [0, 1].
            tags: ``(B, K - 1)``.
        """
        c, encoder = self.config, self.network.encoder
        roi = roi_code(aux_cam, tags, c.low, c.high)
        crops, positive = cut_local_crops(source, roi, c.local_crops, c.local_size, c.local_negative_share)
        views = torch.stack([output.tokens.class_token, encoder(second).class_token], 1)
        local = encoder(crops.flatten(0, 1)).class_token
        student = self.proj_head(torch.cat([views, local.unflatten(0, crops.shape[:2])], 1))
        with torch.no_grad():
            teacher = self.proj_head_t(views)
        seen = positive.new_ones(views.shape[:2])
        return class_token_contrast(student, teacher, torch.cat([seen, positive], 1), c.temperature)

    def after_step(self, progress: Progress) -> None:
        """Move the averaged projection head.

        The authors do so at the start of the next forward pass, which comes to the same.
        """
        ema_update(self.proj_head_t, self.proj_head, self.config.projection_momentum)

    @classmethod
    def search_space(cls) -> dict[str, BaseDistribution]:
        """Thresholds, weights, temperature and the learning rate."""
        from optuna.distributions import FloatDistribution

        return {
            "high": FloatDistribution(0.5, 0.9),
            "low": FloatDistribution(0.1, 0.45),
            "background_score": FloatDistribution(0.2, 0.6),
            "ptc_weight": FloatDistribution(0.02, 1.0, log=True),
            "ctc_weight": FloatDistribution(0.05, 2.0, log=True),
            "seg_weight": FloatDistribution(0.03, 1.0, log=True),
            "temperature": FloatDistribution(0.1, 2.0, log=True),
            "optimiser.lr": FloatDistribution(1e-5, 1e-3, log=True),
        }

    @classmethod
    def key_tables(cls) -> dict[str, Callable[[Mapping[str, Tensor]], dict[str, Tensor]]]:
        """``toco``: ``model_iter_<n>.pth`` of the ToCo code, VOC and COCO; the ImageNet head is unused."""
        network = r"((?:encoder|decoder|classifier|aux_classifier)\..+)"
        rules = ((r"(proj_head(?:_t)?\..+)", r"\1"), (network, r"network.\1"))
        return {"toco": KeyTable(rules, (r"encoder\.head\.(weight|bias)",))}


# --- crops -------------------------------------------------------------------------------------------


def _coin_flip(images: Tensor) -> Tensor:
    """Each picture mirrored or not."""
    heads = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(heads, images.flip(-1), images)


def cut_local_crops(
    images: Tensor,
    roi: Tensor,
    number: int,
    size: int,
    negative_share: float = 0.2,
    noise: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Crops around random background or uncertain pixels, and whether they show more than background.

    The middle of a crop is a pixel whose code is 0 or 1; in a picture with fewer than ``number`` such
    pixels, any pixel (ToCo utils/camutils.py).

    Args:
        images: ``(B, 3, H, W)``.
        roi: ``(B, H, W)`` integers: 0 background, 1 uncertain, 2 foreground.
        number: crops of each picture, N.
        size: side of a crop in pixels, smaller than both sides of the picture.
        negative_share: a crop whose mean code is at most this is negative.
        noise: ``(B, H - 2 m, W - 2 m)`` with ``m = size // 2``, instead of uniform random numbers: the
            pixels with the largest values are taken.

    Returns:
        Crops ``(B, N, 3, size, size)`` and flags ``(B, N)`` of the dtype of ``images``, 1 positive, 0
        negative.

    Raises:
        ValueError: crops as large as the picture.
    """
    margin, (height, width) = size // 2, images.shape[-2:]
    if size >= min(height, width):
        raise ValueError(f"crops of {size} pixels from pictures of {height} x {width}")
    centres = roi[:, margin : height - margin, margin : width - margin]
    if noise is None:
        noise = torch.rand(centres.shape, device=images.device)
    candidate = (centres <= 1).flatten(1)
    enough = candidate.sum(1, keepdim=True) >= number
    order = noise.flatten(1).masked_fill(enough & ~candidate, -torch.inf).topk(number, dim=1).indices
    inside = torch.arange(size, device=images.device)
    rows = (order // centres.shape[2])[..., None] + inside  # a crop starts `margin` before its middle
    columns = (order % centres.shape[2])[..., None] + inside
    picture = torch.arange(len(images), device=images.device)[:, None, None, None]
    window = (picture, rows[..., :, None], columns[..., None, :])
    crops = images.movedim(1, -1)[window].movedim(-1, 2)
    code = roi[window].sum((2, 3))
    return crops, (code > negative_share * size**2).to(images.dtype)
