"""BLPSeg: balance the label preference in scribble-supervised segmentation (Wang et al., TIP 2023).

People draw scribbles along the middle of large regions, so a network sees corners and thin parts rarely.
A second head learns where annotators put their strokes; labelled pixels that were likely to be drawn and
are predicted well weigh less. Local aggregation smooths the logits with a kernel of content and distance,
so that gradients reach pixels beside the strokes. After a fixed step the network trains on its own
confident predictions as well:

    L = L_BLP(S, A, target) + w L_CE(A, scribble)

with the logits S over K classes and A over K + 1 ("drawn as class k", "not drawn"); the head of A sits on
detached features and shapes nothing else. The paper's text could not be read: what is cited is the
released code (YudeWang/BLPSeg at 61866a1).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.basics.errors import UserError
from harness.engine.batch import IGNORE, Batch, Progress
from harness.engine.method import Build, Method
from harness.nn.checkpoints import KeyTable
from harness.nn.encoders import Encoder
from harness.nn.precision import at_least_float32, outside_autocast
from harness.nn.resize import resize
from harness.nn.upernet import PyramidPooling, UPerDecoder
from methods.blpseg_config import BLPSEG_DECLARED, BLPSegConfig
from methods.parts.cross_entropy import total_cross_entropy
from methods.parts.local_aggregation import local_aggregation

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_EPS = 1e-7  # BLPSeg loss.py
EMBEDDING_STRIDE = 4  # of the finest features, and the side of a patch of the embedding


class BLPSeg(Method, declared=BLPSEG_DECLARED):
    """BLPSeg on pyramid pooling and a top-down decoder."""

    probe_steps = (0.0, 0.9)

    def __init__(self, config: BLPSegConfig, build: Build) -> None:
        super().__init__(config, build)
        self.network = BLPSegNetwork(build.encoder(), build.num_classes, config)

    def loss(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """``seg`` (BLP loss) and ``annotation`` (cross-entropy of the annotation head, weighted).

        Raises:
            UserError: a single picture in training, for which pyramid pooling's normalisation fails.
        """
        if self.training and len(batch) < 2:
            raise UserError(
                "BLPSeg needs at least two pictures per group: pyramid pooling normalises over them",
                where="[batch]",
                remedy="raise batch.per_group or lower accumulate",
            )
        config = self.config
        # Padding is 0 after normalisation, not black (BLPSeg transform.py).
        images = batch.images.masked_fill(~batch.valid[:, None], 0)
        output = self.network(images)
        with outside_autocast(images.device):
            size = images.shape[-2:]
            logits = resize(output.logits, size, align_corners=False)
            annotation = resize(output.annotation, size, align_corners=False)
            target = batch.labels
            start = config.self_training_step
            if start != "off" and progress.step >= start:
                present = self._present(batch.tags)
                target = self_training_target(logits, target, present, config.confidence)
            drawn = annotation_loss(annotation, batch.labels, config.unlabelled_weight)
            return {
                "seg": blp_loss(logits, annotation, target, config.gamma),
                "annotation": config.annotation_weight * drawn,
            }

    def _present(self, tags: Tensor) -> Tensor:
        """Classes that a prediction may take: those drawn in the whole picture, and the background."""
        background = self.build.dataset.background
        if background is None:
            return tags
        present = tags.clone()
        present[:, background] = 1
        return present

    def predict(self, images: Tensor, network: str = "default") -> Tensor:
        """Logits ``(B, K, H, W)`` at the size of ``images`` ``(B, 3, H, W)``."""
        return resize(self.network(images).logits, images.shape[-2:], align_corners=False)

    @classmethod
    def search_space(cls) -> dict[str, BaseDistribution]:
        """Weighting, aggregation, self-training and the learning rate."""
        from optuna.distributions import FloatDistribution, IntDistribution

        return {
            "gamma": FloatDistribution(0.0, 4.0),
            "unlabelled_weight": FloatDistribution(0.002, 0.2, log=True),
            "sigma": FloatDistribution(2.0, 16.0, log=True),
            "self_training_step": IntDistribution(1000, 40000, log=True),
            "confidence": FloatDistribution(0.6, 0.98),
            "optimiser.lr": FloatDistribution(1e-5, 1e-3, log=True),
        }

    @classmethod
    def key_tables(cls) -> dict[str, Callable[[Mapping[str, Tensor]], dict[str, Tensor]]]:
        """``blpseg``: state dicts saved by the BLPSeg code (``module.state_dict()``).

        Left aside: the stored distances, buffers of its synchronised normalisation and class weights
        of a loss, none of which the network reads, and a LayerNorm that it never calls.
        """
        unused = (
            "distance_prob",
            r".+\._(tmp_running_mean|tmp_running_var|running_iter)",
            r"backbone\.layernorm\.(weight|bias)",
            r"CELoss\.weight",
        )
        parts = "backbone|ppm|decoder|seg_head|scribble_head|embed_proj"
        return {"blpseg": KeyTable(((rf"((?:{parts})\..+)", r"network.\1"),), unused)}


# --- the network -------------------------------------------------------------------------------------


class BLPSegOutput(NamedTuple):
    """What the network returns, on the grid of stride 4.

    Attributes:
        logits: ``(B, K, h, w)`` after local aggregation, float32 at least.
        annotation: ``(B, K + 1, h, w)``, the last channel for "not drawn"; float32 at least.
        raw: ``(B, K, h, w)`` logits before local aggregation.
        features: ``(B, width, h, w)``, the input of both heads.
    """

    logits: Tensor
    annotation: Tensor
    raw: Tensor
    features: Tensor


class BLPSegNetwork(nn.Module):
    """Backbone, pyramid pooling, top-down decoder and both heads (BLPSeg blpseg.py; names as there).

    Args:
        backbone: its stages from the first of stride 4 on are used, whole and trained.
        num_classes: K.
        config: widths and local aggregation.

    Raises:
        UserError: the backbone has no stage of stride 4 with others above it.
    """

    def __init__(self, backbone: Encoder, num_classes: int, config: BLPSegConfig) -> None:
        super().__init__()
        if EMBEDDING_STRIDE not in backbone.strides[:-1]:
            raise UserError(
                f"BLPSeg needs features of stride 4 and coarser ones; the backbone has {backbone.strides}",
                where="backbone",
                remedy="choose another backbone, such as resnet101s",
            )
        self.config = config
        self._first = backbone.strides.index(EMBEDDING_STRIDE)
        channels, width = backbone.channels[self._first :], config.width
        self.ppm = PyramidPooling(channels[-1], width, dropout=config.dropout)
        self.decoder = UPerDecoder(channels[:-1], width)
        self.seg_head = head(width, num_classes)
        self.scribble_head = head(width, num_classes + 1)
        if config.aggregate:
            self.embed_proj = PatchEmbedding(width)
        self._initialise()
        self.backbone = backbone

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                module.momentum = self.config.norm_momentum

    def forward(self, images: Tensor) -> BLPSegOutput:
        """Outputs for normalised ``images`` ``(B, 3, H, W)`` of any size."""
        stages = self.backbone(images)[self._first :]
        features = self.decoder(stages[:-1], self.ppm(stages[-1]))
        raw = at_least_float32(self.seg_head(features))
        annotation = at_least_float32(self.scribble_head(features.detach()))
        logits = raw
        if self.config.aggregate:
            content = self.embed_proj(images)
            logits = local_aggregation(raw, content, self.config.sigma, self.config.lam_epsilon)
        return BLPSegOutput(logits, annotation, raw, features)


def head(width: int, outputs: int) -> nn.Sequential:
    """Two 1x1 convolutions without bias, each with ReLU, and a third to ``outputs`` channels."""
    return nn.Sequential(
        nn.Conv2d(width, width, 1, bias=False),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 1, bias=False),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, outputs, 1),
    )


class PatchEmbedding(nn.Module):
    """Shallow features of 4x4 patches, which say what looks alike in local aggregation.

    Args:
        width: channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, EMBEDDING_STRIDE, EMBEDDING_STRIDE)
        self.norm = nn.LayerNorm(width)
        self.conv = nn.Conv2d(width, width, 1)

    def forward(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` to ``(B, width, ceil(H / 4), ceil(W / 4))``; zeros fill up to whole patches."""
        height, width = images.shape[-2:]
        x = self.proj(F.pad(images, (0, -width % EMBEDDING_STRIDE, 0, -height % EMBEDDING_STRIDE)))
        return self.conv(self.norm(x.movedim(1, -1)).movedim(-1, 1))


# --- losses ------------------------------------------------------------------------------------------


def blp_loss(logits: Tensor, annotation: Tensor, target: Tensor, gamma: float = 2.0) -> Tensor:
    """Cross-entropy that weighs rarely drawn pixels up (BLPSeg loss.py).

    A labelled pixel of class y weighs ``(1 - a_y p_y)^gamma``, with p the softmax of ``logits`` and a
    that of ``annotation`` over K + 1 classes; no gradient flows through the weight. The sum is divided
    by the sum of weights of each picture, then averaged over all pictures, unlabelled ones included.

    Args:
        logits: ``(B, K, H, W)`` float32 or float64.
        annotation: ``(B, K + 1, H, W)``.
        target: ``(B, H, W)`` int64; values outside ``0..K-1`` do not count.
        gamma: exponent of the weight.

    Returns:
        Scalar of the dtype of ``logits``; 0 with zero gradient where nothing is labelled.
    """
    labelled = target < logits.shape[1]
    index = target.where(labelled, 0)[:, None]
    log_p = logits.log_softmax(1).gather(1, index)[:, 0]
    with torch.no_grad():
        drawn = annotation.softmax(1).gather(1, index)[:, 0]
        weight = (1 - drawn * log_p.exp()).clamp(min=0) ** gamma * labelled
    per_image = -(weight * log_p).sum((1, 2)) / (weight.sum((1, 2)) + _EPS)
    return per_image.mean()


def annotation_targets(labels: Tensor, num_classes: int) -> Tensor:
    """Classes of the annotation head: ``0..K-1`` drawn, K not drawn, 255 padding.

    Args:
        labels: ``(B, H, W)`` int64: ``0..K-1`` class, 254 not annotated, 255 padding.
        num_classes: K.
    """
    known = (labels < num_classes) | (labels == IGNORE)
    return labels.where(known, num_classes)


def annotation_loss(annotation: Tensor, labels: Tensor, unlabelled_weight: float = 0.02) -> Tensor:
    """Cross-entropy over drawn classes and "not drawn", a weighted mean over the group (BLPSeg blpseg.py).

    Args:
        annotation: ``(B, K + 1, H, W)`` float32 or float64.
        labels: ``(B, H, W)`` int64: ``0..K-1`` class, 254 not annotated, 255 padding.
        unlabelled_weight: weight of "not drawn"; classes weigh 1.

    Returns:
        Scalar; 0 where all is padding.
    """
    last = annotation.shape[1] - 1
    target = annotation_targets(labels, last)
    weight = F.pad(annotation.new_ones(last), (0, 1), value=unlabelled_weight)
    total = total_cross_entropy(annotation, target, weight)
    mass = (weight[target.clamp(max=last)] * (target != IGNORE)).sum()
    return total / mass.clamp(min=torch.finfo(mass.dtype).tiny)


@torch.no_grad()
def self_training_target(logits: Tensor, labels: Tensor, present: Tensor, confidence: float = 0.9) -> Tensor:
    """Scribbles, and elsewhere the network's own confident predictions (BLPSeg blpseg.py).

    Absent classes are cut out of the softmax, which is not normalised again.

    Args:
        logits: ``(B, K, H, W)``.
        labels: ``(B, H, W)`` int64: ``0..K-1`` class, 254 not annotated, 255 padding.
        present: ``(B, K)`` multi-hot classes that a prediction may take.
        confidence: least probability.

    Returns:
        ``(B, H, W)`` int64: ``0..K-1``, or 255 where padded or not confident.
    """
    probability = logits.softmax(1) * present[:, :, None, None].to(logits.dtype)
    best, prediction = probability.max(1)
    target = prediction.where((best >= confidence) & (labels != IGNORE), IGNORE)
    return labels.where(labels < logits.shape[1], target)
