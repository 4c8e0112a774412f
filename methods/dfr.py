"""DFR (reconstructed): dynamic feature regularised loss for scribbles (Zhang, Xiao and Zhao).

    L = L_pCE + w_reg L_reg + w_fc L_fc

``L_reg`` asks that pixels of similar *shallow* features (colour, position) and similar *deep* features get
the same label; the deep part changes as the network trains, hence dynamic. ``L_fc``, a feature consistency
head, trains the deep features to be alike within a class and unlike across classes.

The full text could not be read (arXiv 2108.01296, Pattern Recognition 164, 2025) and there is no public
code: only the two abstracts and one second-hand table row are known. What stands here is a **reconstruction**
and never a reproduction of the authors' method. Every inferred choice is a key of :class:`DFRConfig` that
says where it is taken from and over which range it is searched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.basics.errors import UserError
from harness.engine.batch import UNLABELLED, Batch, Progress
from harness.engine.method import Build, Method
from harness.nn.decoders import DeepLabV3Plus, conv_bn_relu
from harness.nn.dense_crf import dense_crf_loss
from harness.nn.encoders import Encoder
from harness.nn.precision import at_least_float32, outside_autocast
from harness.nn.resize import resize
from harness.nn.upernet import PyramidPooling, UPerDecoder
from methods.dfr_config import DFR_DECLARED, DFRConfig
from methods.parts.affinity_head import affinity_loss, affinity_regulariser
from methods.parts.cross_entropy import partial_cross_entropy, two_sided_cross_entropy
from methods.parts.gated_crf import GatedCRFKernel, gated_crf_loss

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

#: Grid of the embedding, the regulariser and the consistency head, in pixels.
FEATURE_STRIDE = 4


class DFR(Method, declared=DFR_DECLARED):
    """DFR (reconstructed) on UPerNet or DeepLabV3+."""

    probe_steps = (0.001, 0.99)

    def __init__(self, config: DFRConfig, build: Build) -> None:
        super().__init__(config, build)
        if config.pairs == "dense" and not config.detach_deep:
            raise UserError(
                "the lattice passes no gradient to deep features",
                where="config.detach_deep",
                remedy="leave it true, or set pairs to window",
            )
        network = UPerNetwork if config.decoder == "upernet" else DeepLabNetwork
        self.network: UPerNetwork | DeepLabNetwork = network(build, config)
        self.dynamic = config.pairs != "none" and config.combine != "shallow"
        embedded = self.dynamic or config.consistency != "none"
        self.embed = Embedding(self.network, config) if embedded else None

    def loss(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """``seg`` and, where they are on, ``aux``, ``consistency`` and ``reg``; all weighted."""
        config = self.config
        output = self.network(batch.images)
        deep = None if self.embed is None else at_least_float32(self.embed(output))
        with outside_autocast(batch.images.device):
            size = batch.images.shape[-2:]
            low = at_least_float32(output.logits)
            logits = resize(low, size, align_corners=self.network.align_corners)
            terms = {"seg": self._segmentation(logits, batch.labels)}
            if output.auxiliary is not None:
                auxiliary = resize(at_least_float32(output.auxiliary), size, align_corners=False)
                loss = self._segmentation(auxiliary, batch.labels)
                terms["aux"] = config.auxiliary_weight * loss
            if deep is not None and config.consistency != "none":
                terms["consistency"] = config.consistency_weight * self._consistency(deep, batch)
            if config.pairs != "none" and progress.fraction >= config.reg_start:
                shown = deep if self.dynamic and progress.step >= config.deep_start else None
                terms["reg"] = self._regulariser(low, logits, shown, batch)
        return terms

    def _segmentation(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.config.segmentation_loss == "mean":
            return partial_cross_entropy(logits, labels)
        return summed_cross_entropy(logits, labels, self.build.dataset.background)

    def _consistency(self, deep: Tensor, batch: Batch) -> Tensor:
        config = self.config
        if config.consistency == "pairs":
            cells = cell_labels(batch.labels, deep.shape[-2:])
            return pair_consistency(deep, cells, config.consistency_samples, config.affinity_scale)
        grid = [-(-side // (2 * FEATURE_STRIDE)) for side in batch.labels.shape[-2:]]
        coarse = resize(deep, grid, align_corners=False)
        cells = cell_labels(batch.labels, grid)
        loss = affinity_loss(coarse, cells, radius=config.consistency_radius).loss
        if config.consistency_smoothness > 0:
            colours = resize(batch.images, grid, align_corners=False)
            mask = F.interpolate(batch.valid[:, None].float(), size=grid)[:, 0]
            smooth = affinity_regulariser(coarse, colours, mask=mask, radius=config.consistency_radius)
            loss = loss + config.consistency_smoothness * smooth
        return loss

    def _regulariser(self, low: Tensor, logits: Tensor, deep: Tensor | None, batch: Batch) -> Tensor:
        config = self.config
        if deep is not None and config.detach_deep:
            deep = deep.detach()
        if config.pairs == "dense":
            return config.dense_weight * self._dense(logits, deep, batch)
        shallow = {"xy": config.sigma_xy, "rgb": config.sigma_rgb}
        if deep is None:
            kernels = [GatedCRFKernel(sigmas=shallow)]
        elif config.combine == "product":
            kernels = [GatedCRFKernel(sigmas=shallow | {"deep": config.sigma_deep})]
        else:
            own = {"xy": config.sigma_xy, "deep": config.sigma_deep}
            kernels = [
                GatedCRFKernel(weight=config.shallow_share, sigmas=shallow),
                GatedCRFKernel(weight=1 - config.shallow_share, sigmas=own),
            ]
        modalities = {"rgb": batch.images} | ({} if deep is None else {"deep": deep})
        loss = gated_crf_loss(
            low.softmax(1),
            modalities,
            kernels=kernels,
            radius=config.radius,
            mask_src=batch.valid,
            mask_dst=batch.valid,
        )
        return config.reg_weight * loss

    def _dense(self, logits: Tensor, deep: Tensor | None, batch: Batch) -> Tensor:
        """Dense energy over the unpadded picture, with a few components of the deep features."""
        config = self.config
        probabilities = logits.softmax(1)

        def energy(sigma_rgb: float | None, extra: Tensor | None) -> Tensor:
            return dense_crf_loss(
                probabilities,
                batch.raw,
                roi=batch.valid.to(logits.dtype),
                sigma_rgb=sigma_rgb,
                sigma_xy=config.dense_sigma_xy,
                extra=extra,
            )

        if deep is None:
            return energy(config.dense_sigma_rgb, None)
        components = principal_components(deep, 3) / config.sigma_deep
        if config.combine == "product":
            return energy(config.dense_sigma_rgb, components)
        shallow = energy(config.dense_sigma_rgb, None)
        return config.shallow_share * shallow + (1 - config.shallow_share) * energy(None, components)

    def predict(self, images: Tensor, network: str = "default") -> Tensor:
        """Logits ``(B, K, H, W)`` at the size of ``images`` ``(B, 3, H, W)``."""
        logits = self.network(images).logits
        return resize(logits, images.shape[-2:], align_corners=self.network.align_corners)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The encoder with ``backbone_lr_scale``, and the rest.

        With UPerNet the encoder's norms and position biases do not decay (mmsegmentation swin).
        """
        scale = self.config.backbone_lr_scale
        backbone = dict(self.network.backbone.named_parameters())
        inside = {id(p) for p in backbone.values()}
        head = [p for p in self.parameters() if id(p) not in inside]
        free = [p for name, p in backbone.items() if self.config.decoder == "upernet" and _undecayed(name)]
        without = {id(p) for p in free}
        groups: list[dict[str, Any]] = [
            {"params": [p for p in backbone.values() if id(p) not in without], "lr_scale": scale},
            {"params": head},
        ]
        return groups + ([{"params": free, "lr_scale": scale, "weight_decay": 0.0}] if free else [])

    @classmethod
    def search_space(cls) -> dict[str, BaseDistribution]:
        """Every inferred choice, over the range that its documentation gives."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        return {
            "combine": CategoricalDistribution(["product", "sum", "shallow"]),
            "consistency": CategoricalDistribution(["pairs", "window", "none"]),
            "detach_deep": CategoricalDistribution([True, False]),
            "segmentation_loss": CategoricalDistribution(["mean", "balanced"]),
            "consistency_weight": FloatDistribution(0.01, 1.0, log=True),
            "consistency_samples": IntDistribution(256, 2048, log=True),
            "consistency_radius": IntDistribution(3, 6),
            "affinity_scale": FloatDistribution(1.0, 64.0, log=True),
            "embedding": IntDistribution(16, 256, log=True),
            "shallow_share": FloatDistribution(0.1, 0.9),
            "reg_weight": FloatDistribution(0.01, 1.0, log=True),
            "radius": IntDistribution(3, 9),
            "sigma_xy": FloatDistribution(2.0, 12.0, log=True),
            "sigma_rgb": FloatDistribution(0.03, 1.0, log=True),
            "sigma_deep": FloatDistribution(0.1, 2.0, log=True),
            "deep_start": IntDistribution(0, 4000),
            "optimiser.lr": FloatDistribution(1e-5, 1e-2, log=True),
        }


def _undecayed(name: str) -> bool:
    return "norm" in name or "relative_position_bias_table" in name or "absolute_pos" in name


# --- networks ----------------------------------------------------------------------------------------


class DFROutput(NamedTuple):
    """What a network returns.

    Attributes:
        logits: ``(B, K, h, w)`` on the grid of stride 4.
        fused: ``(B, C, h, w)``, the input of the classifier.
        stages: the encoder's features, finest first.
        auxiliary: ``(B, K, h', w')`` of an auxiliary head, in training only.
    """

    logits: Tensor
    fused: Tensor
    stages: Sequence[Tensor]
    auxiliary: Tensor | None = None


class UPerNetwork(nn.Module):
    """UPerNet as segmentation codes put it on Swin (mmsegmentation upernet_swin), with an auxiliary head."""

    align_corners = False

    def __init__(self, build: Build, config: DFRConfig) -> None:
        super().__init__()
        self.backbone: Encoder = build.encoder(drop_path=config.drop_path)
        self._first = _first_stage(self.backbone, "UPerNet")
        channels, width = self.backbone.channels[self._first :], config.width
        # Swin's stages end without normalisation.
        swin = build.backbone.startswith("swin")
        self.norms = nn.ModuleList(nn.LayerNorm(c) if swin else nn.Identity() for c in channels)
        self.ppm = PyramidPooling(
            channels[-1], width, kernel=3, branch_relu=True, align_corners=False, dropout=0.0
        )
        self.decoder = UPerDecoder(channels[:-1], width)
        self.classifier = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(width, build.num_classes, 1))
        self.fused, self.auxiliary = width, None
        if config.auxiliary_weight > 0:
            middle = min(256, width)
            head = [*conv_bn_relu(channels[-2], middle, 3), nn.Dropout2d(0.1)]
            self.auxiliary = nn.Sequential(*head, nn.Conv2d(middle, build.num_classes, 1))

    def forward(self, images: Tensor) -> DFROutput:
        """Outputs for normalised ``images`` ``(B, 3, H, W)``."""
        stages = [
            norm(stage.movedim(1, -1)).movedim(-1, 1)
            for norm, stage in zip(self.norms, self.backbone(images)[self._first :], strict=True)
        ]
        fused = self.decoder(stages[:-1], self.ppm(stages[-1]))
        auxiliary = self.auxiliary(stages[-2]) if self.training and self.auxiliary is not None else None
        return DFROutput(self.classifier(fused), fused, stages, auxiliary)


class DeepLabNetwork(nn.Module):
    """DeepLabV3+, the network of AGMM and of the baselines."""

    align_corners = True

    def __init__(self, build: Build, config: DFRConfig) -> None:
        super().__init__()
        encoder = build.encoder(output_stride=config.output_stride, multi_grid=config.multi_grid)
        self.deeplab = DeepLabV3Plus(
            encoder,
            build.num_classes,
            width=config.head_width,
            low_width=config.low_width,
            rates=config.aspp_rates,
            dropout=config.dropout,
        )
        self.fused = config.head_width
        self._first = _first_stage(encoder, "DeepLabV3+")

    @property
    def backbone(self) -> Encoder:
        """The encoder."""
        return self.deeplab.backbone

    def forward(self, images: Tensor) -> DFROutput:
        """Outputs for normalised ``images`` ``(B, 3, H, W)``."""
        stages = self.backbone(images)
        fused = self.deeplab.features(stages)
        return DFROutput(self.deeplab.classifier(fused), fused, stages[self._first :])


def _first_stage(encoder: Encoder, name: str) -> int:
    if FEATURE_STRIDE not in encoder.strides[:-1]:
        raise UserError(
            f"{name} needs features of stride 4 and coarser ones; the backbone has {encoder.strides}",
            where="backbone",
            remedy="choose another backbone, such as swin_base_patch4_window12_384 or resnet101s",
        )
    return encoder.strides.index(FEATURE_STRIDE)


class Embedding(nn.Module):
    """Deep features of the kernel and of the consistency head, ``(B, D, h, w)`` on the grid of stride 4.

    ``fused``: 1x1 convolution to unit length. ``stages``: the last three stages each through a 1x1
    convolution to 1/8, 1/4 and half of a common width (64, 128 and 256 in A2GNN), ELU, joined on the
    grid of the first of them, a 1x1 convolution, ELU (A2GNN resnet38_aff_gated.py).
    """

    def __init__(self, network: UPerNetwork | DeepLabNetwork, config: DFRConfig) -> None:
        super().__init__()
        self.source = config.embedding_source
        if self.source == "fused":
            self.project = nn.Conv2d(network.fused, config.embedding, 1)
            return
        channels = network.backbone.channels[-3:]
        widths = (64, 128, 256)[-len(channels) :]
        self.reduce = nn.ModuleList(
            nn.Conv2d(c, w, 1, bias=False) for c, w in zip(channels, widths, strict=True)
        )
        self.project = nn.Conv2d(sum(widths), sum(widths), 1, bias=False)

    def forward(self, output: DFROutput) -> Tensor:
        """Features for a network's output."""
        if self.source == "fused":
            return F.normalize(at_least_float32(self.project(output.fused)), dim=1)
        stages = output.stages[-len(self.reduce) :]
        parts = [F.elu(conv(stage)) for conv, stage in zip(self.reduce, stages, strict=True)]
        size = parts[0].shape[-2:]
        joined = torch.cat([resize(part, size, align_corners=False) for part in parts], dim=1)
        deep = F.elu(self.project(joined))
        return resize(deep, output.fused.shape[-2:], align_corners=False)


# --- losses ------------------------------------------------------------------------------------------


def summed_cross_entropy(logits: Tensor, labels: Tensor, background: int | None) -> Tensor:
    """Mean cross-entropy over annotated background plus that over annotated foreground (RRM myTool.py).

    Arguments as :func:`methods.parts.cross_entropy.two_sided_cross_entropy`.
    """
    behind, before = two_sided_cross_entropy(logits, labels, background)
    return behind + before


def cell_labels(labels: Tensor, grid: Sequence[int]) -> Tensor:
    """Labels of cells: the one class that is annotated in a cell, else 254 (our choice).

    Nearest-neighbour sampling at stride 4 would lose most of a thin stroke.

    Args:
        labels: ``(B, H, W)`` int64, 254 and above not annotated.
        grid: ``(h, w)``.

    Returns:
        ``(B, h, w)`` int64.
    """
    annotated = labels < UNLABELLED
    high = F.adaptive_max_pool2d(labels.where(annotated, -1).float(), tuple(grid))
    low = -F.adaptive_max_pool2d(-labels.where(annotated, UNLABELLED).float(), tuple(grid))
    return torch.where(high == low, high, UNLABELLED).long()


def pair_consistency(features: Tensor, cells: Tensor, samples: int = 1024, scale: float = 1.0) -> Tensor:
    """FC-A: features of one class alike, of two classes unlike, over pairs of annotated cells.

    ``1/2 mean_P(1 - a) + 1/2 mean_Q(a)`` with ``a_ij = exp(-s mean_c |z_ic - z_jc|)``, P the pairs of
    cells of one picture with equal labels and Q those with different ones (WeCLIP get_aff_loss).

    Args:
        features: ``(B, D, h, w)`` float32 or float64.
        cells: ``(B, h, w)`` int64; 254 and above not annotated.
        samples: most annotated cells per picture, drawn at random from torch's generator.
        scale: s.

    Returns:
        Scalar; a kind of pair that does not occur contributes 0.
    """
    flat = cells.flatten(1)
    annotated = flat < UNLABELLED
    draw = torch.rand(flat.shape, device=flat.device).masked_fill(~annotated, -1)
    most = min(samples, flat.shape[1])
    if flat.device.type == "cpu":  # elsewhere the count is not known without a wait
        most = min(most, max(int(annotated.sum(1).max()), 1))
    chosen, index = draw.topk(most, dim=1)
    label = flat.gather(1, index)
    z = features.flatten(2).transpose(1, 2)
    z = z.gather(1, index[..., None].expand(-1, -1, z.shape[2]))
    affinity = torch.exp(-scale / z.shape[2] * torch.cdist(z, z, p=1))
    real = chosen >= 0
    paired = real[:, :, None] & real[:, None, :]
    paired &= ~torch.eye(index.shape[1], dtype=torch.bool, device=flat.device)
    same = label[:, :, None] == label[:, None, :]
    like, unlike = paired & same, paired & ~same
    attract = torch.where(like, 1 - affinity, 0).sum() / like.sum().clamp(min=1)
    repel = torch.where(unlike, affinity, 0).sum() / unlike.sum().clamp(min=1)
    return (attract + repel) / 2


@torch.no_grad()
def principal_components(features: Tensor, number: int) -> Tensor:
    """Each picture's features on their first principal axes, ``(B, D, h, w)`` to ``(B, number, h, w)``."""
    flat = features.flatten(2)
    centred = flat - flat.mean(2, keepdim=True)
    _, axes = torch.linalg.eigh(centred @ centred.transpose(1, 2))  # ascending
    return (axes[..., -number:].transpose(1, 2) @ centred).unflatten(2, features.shape[-2:])
