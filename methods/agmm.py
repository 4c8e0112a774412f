"""AGMM: adaptive Gaussian mixtures for sparsely annotated segmentation (Wu et al., CVPR 2023).

Every class of a crop has a prototype, the mean feature of its labelled pixels. The distance of a pixel's
feature to it gives a Gaussian response, and the responses of all classes supervise the pixels that
nobody annotated, while the prediction and the annotated pixels shape them:

    L = L_seg + L_self + L_label + L_contrast + L_cls

What the released code does is what runs by default; where the printed equations differ (the spread of
the Gaussians) the other reading is an option. Quirks of the code that change numbers are kept: the
responses are not normalised over classes, gradients flow through them, features are resized with
``align_corners=False`` inside a network that uses True, and padding has response 1.

Notation: B images, K classes, C channels; crop ``(H, W)``, feature grid ``(h, w)``; P pairs of an image
and a class that is annotated in its crop. All other pairs are zero by definition and never computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.engine.batch import IGNORE, Batch, Progress
from harness.nn.precision import at_least_float32, outside_autocast
from harness.nn.resize import resize, transposed_resize
from methods.agmm_config import AGMM_DECLARED, AGMMConfig, Spread
from methods.parts.cross_entropy import partial_cross_entropy
from methods.parts.deeplab import DeepLabMethod

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_EPS = 1e-6  # AGMM-SASS tools.py, everywhere


class AGMM(DeepLabMethod, declared=AGMM_DECLARED):
    """AGMM on DeepLabV3+.

    Points, scribbles and blocks as in the CVPR paper and its code. Image tags and boxes are named in
    the TPAMI 2025 abstract alone, so their conversion is our choice: tags need ``labels_from`` (dense
    pseudo labels, uncertain pixels unannotated) and the tags themselves feed L_cls; of boxes,
    everything outside all of them is background and ``labels.box_inside`` says what is inside.
    """

    def loss(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """``seg``, ``self``, ``label``, ``contrast`` and ``cls``, weighted."""
        logits, features = self.network(batch.images)
        with outside_autocast(logits.device):
            return agmm_loss(
                at_least_float32(features),
                at_least_float32(logits),
                batch.labels,
                self._classes_of_image(batch.tags),
                self.config,
            )

    def _classes_of_image(self, tags: Tensor) -> Tensor:
        """Tags with the background on under image tags, which never name it."""
        background = self.build.dataset.background
        if self.build.supervision != "image" or background is None:
            return tags
        tags = tags.clone()
        tags[:, background] = 1
        return tags

    @classmethod
    def search_space(cls) -> dict[str, BaseDistribution]:
        """Spread, pooling, weights of the terms, and learning rates."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution

        weights = ("self_weight", "label_weight", "contrast_weight", "cls_weight")
        return {
            "spread": CategoricalDistribution(["unit", "pred", "plain"]),
            "prototype_pool": CategoricalDistribution(["sum", "mean"]),
            **{name: FloatDistribution(0.0, 2.0) for name in weights},
            "backbone_lr_scale": FloatDistribution(0.05, 1.0, log=True),
            "optimiser.lr": FloatDistribution(1e-3, 1e-1, log=True),
        }


def agmm_loss(
    features: Tensor, logits: Tensor, labels: Tensor, tags: Tensor, config: AGMMConfig
) -> dict[str, Tensor]:
    """All terms of the objective, weighted; a mean over nothing is 0, with the gradient of the others.

    Args:
        features: ``(B, C, h, w)`` float32 or float64, the input of the classifier.
        logits: ``(B, K, H, W)`` of the same dtype.
        labels: ``(B, H, W)`` int64: ``0..K-1`` class, 254 not annotated, 255 padding.
        tags: ``(B, K)`` multi-hot: classes of the whole weak label, before cropping.
        config: options and weights.

    Returns:
        Scalars ``seg``, ``self``, ``label``, ``contrast``, ``cls``.
    """
    probabilities = logits.softmax(1)
    mixture = fit_class_mixture(features, probabilities, labels, tags, config)
    return {
        "seg": partial_cross_entropy(logits, labels),
        "self": config.self_weight * self_supervision(mixture, probabilities, labels),
        "label": config.label_weight * label_supervision(mixture, labels),
        "contrast": config.contrast_weight * prototype_contrast(mixture, config.prototype_pool),
        "cls": config.cls_weight * absent_class_loss(probabilities, labels, tags),
    }


# --- the mixture -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageMixture:
    """Gaussians of the annotated classes of every image.

    Attributes:
        images, classes: ``(P,)`` int64, the image and the class of each pair, in order of image.
        members: ``(P, H, W)`` of the features' dtype, 1 where the pixel is labelled with the class.
        prototypes: ``(P, C)``.
        responses: ``(P, H, W)`` G in ``(0, 1]`` at crop size.
        share: ``(P,)`` 1 / (number of classes of the pair's image + eps).
    """

    images: Tensor
    classes: Tensor
    members: Tensor
    prototypes: Tensor
    responses: Tensor
    share: Tensor


def fit_class_mixture(
    features: Tensor, probabilities: Tensor, labels: Tensor, tags: Tensor, config: AGMMConfig
) -> ImageMixture:
    """Prototypes and responses of every annotated (image, class) pair; arguments as :func:`agmm_loss`."""
    size = labels.shape[-2:]
    counts = label_counts(labels, probabilities.shape[1])
    images, classes = counts.nonzero(as_tuple=True)
    members = (labels[images] == classes[:, None, None]).to(features.dtype)
    prototypes = label_prototypes(features, members, images, counts[images, classes])
    keep = resize((labels != IGNORE).to(features.dtype)[:, None], features.shape[-2:], align_corners=False)
    keep = keep[images, 0]
    distance = mean_absolute_difference(features, prototypes, images) * keep
    if config.oem_ours_rounds:
        prototypes, response = online_em(features, prototypes, distance, keep, members, images, config)
    elif config.spread == "unit":
        response = gaussian(distance)
    else:
        predicted = (probabilities.detach() * tags[:, :, None, None])[images, classes]
        response = gaussian(distance, variance(distance, predicted, keep, config.spread))
    number = images.new_zeros(len(labels)).index_add_(0, images, torch.ones_like(images)).to(features.dtype)
    return ImageMixture(
        images,
        classes,
        members,
        prototypes,
        resize(response[:, None], size, align_corners=False)[:, 0],
        1 / (number[images] + _EPS),
    )


def label_counts(labels: Tensor, num_classes: int) -> Tensor:
    """Labelled pixels ``(B, K)`` int64 of ``labels`` ``(B, H, W)``; other values are not counted."""
    inside = labels.flatten(1)
    slots = inside.where(inside < num_classes, num_classes)
    counts = slots.new_zeros(len(labels), num_classes + 1)
    return counts.scatter_add_(1, slots, torch.ones_like(slots))[:, :num_classes]


def label_prototypes(features: Tensor, members: Tensor, images: Tensor, counts: Tensor) -> Tensor:
    """Mean feature of each pair's labelled pixels, ``(P, C)`` (AGMM-SASS tools.py).

    The features would have to be resized to the crop first; the mean needs only the transpose of that
    resize on the members, which is exact and leaves a product of small matrices.

    Args:
        features: ``(B, C, h, w)``.
        members: ``(P, H, W)``.
        images: ``(P,)`` int64.
        counts: ``(P,)`` labelled pixels.
    """
    weights = transposed_resize(members, features.shape[-2:])
    return pooled_features(features, weights, images) / (counts[:, None].to(features.dtype) + _EPS)


def pooled_features(features: Tensor, weights: Tensor, images: Tensor) -> Tensor:
    """``(P, C)``: features ``(B, C, h, w)`` of each pair's image summed with ``weights`` ``(P, h, w)``."""
    flat = features.flatten(2)
    slot = torch.arange(len(images), device=images.device) - torch.searchsorted(images, images)
    padded = weights.new_zeros(len(features), len(images), flat.shape[2])
    padded[images, slot] = weights.flatten(1)
    return torch.bmm(padded, flat.transpose(1, 2))[images, slot]


class MeanAbsoluteDifference(torch.autograd.Function):
    """Mean over channels of |feature - prototype|, with memory for one chunk of pairs at a time.

    Autograd would keep a ``(P, C, h, w)`` difference; here it is computed again in the backward pass.
    """

    #: Elements of one chunk of the difference (256 MiB in float32).
    CHUNK = 2**26

    @staticmethod
    def _chunks(features: Tensor, images: Tensor) -> tuple[Tensor, ...]:
        pairs = max(1, MeanAbsoluteDifference.CHUNK // features[0].numel())
        return torch.arange(len(images), device=images.device).split(pairs)

    @staticmethod
    def forward(ctx: Any, features: Tensor, prototypes: Tensor, images: Tensor) -> Tensor:
        ctx.save_for_backward(features, prototypes, images)
        parts = [
            features[images[rows]].sub_(prototypes[rows, :, None, None]).abs_().mean(1)
            for rows in MeanAbsoluteDifference._chunks(features, images)
        ]
        return torch.cat(parts) if parts else features.new_zeros(0, *features.shape[-2:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        features, prototypes, images = ctx.saved_tensors
        to_features = torch.zeros_like(features)
        to_prototypes = torch.zeros_like(prototypes)
        for rows in MeanAbsoluteDifference._chunks(features, images):
            slope = features[images[rows]].sub_(prototypes[rows, :, None, None]).sign_()
            slope.mul_(grad[rows, None] / features.shape[1])
            to_features.index_add_(0, images[rows], slope)
            to_prototypes[rows] = slope.sum((2, 3)).neg_()
        return to_features, to_prototypes, None


def mean_absolute_difference(features: Tensor, prototypes: Tensor, images: Tensor) -> Tensor:
    """D ``(P, h, w)``: mean over channels of |feature - prototype| (equation 6 as coded).

    Args:
        features: ``(B, C, h, w)``.
        prototypes: ``(P, C)``.
        images: ``(P,)`` int64.
    """
    return MeanAbsoluteDifference.apply(features, prototypes, images)


def gaussian(distance: Tensor, variance: Tensor | None = None) -> Tensor:
    """Response of a distance: exp(-D^2), or exp(-D^2 / (2 variance + eps)) (equation 7)."""
    if variance is None:
        return torch.exp(-distance.square())
    return torch.exp(-distance.square() / (2 * variance + _EPS))


def variance(distance: Tensor, predicted: Tensor, keep: Tensor, spread: Spread) -> Tensor:
    """Variance ``(P, 1, 1)`` of each pair's distances, without gradient (disabled lines of tools.py).

    Args:
        distance: ``(P, h, w)``.
        predicted: ``(P, H, W)`` probability of the pair's class.
        keep: ``(P, h, w)`` share of each cell that is not padding.
        spread: ``pred`` weights every cell with the probability; ``plain`` does not.
    """
    squared = distance.detach().square()
    if spread == "plain":
        return squared.sum((1, 2), keepdim=True) / keep.sum((1, 2), keepdim=True) + _EPS
    weights = resize(predicted[:, None], distance.shape[-2:], align_corners=False)[:, 0] * keep
    return (weights * squared).sum((1, 2), keepdim=True) / (weights.sum((1, 2), keepdim=True) + _EPS)


def online_em(
    features: Tensor,
    prototypes: Tensor,
    distance: Tensor,
    keep: Tensor,
    members: Tensor,
    images: Tensor,
    config: AGMMConfig,
) -> tuple[Tensor, Tensor]:
    """Rounds of EM on the feature grid; our own design, see ``AGMMConfig.oem_ours_rounds``.

    E step, without gradient: responsibilities are responses normalised over the classes of the image,
    replaced by the annotation on the labelled share of each cell. M step: prototypes and variances are
    means weighted by them; gradients flow through the prototypes.

    Returns:
        Prototypes ``(P, C)`` and responses ``(P, h, w)``.
    """
    annotated = F.interpolate(members[:, None], distance.shape[-2:], mode="area")[:, 0]
    response = gaussian(distance)
    for _ in range(config.oem_ours_rounds):
        with torch.no_grad():
            evidence = response / (_over_classes(response, images, len(features)) + _EPS)
            free = 1 - _over_classes(annotated, images, len(features))
            responsibility = keep * (evidence * free + annotated)
            mass = responsibility.sum((1, 2))
        prototypes = pooled_features(features, responsibility, images) / (mass[:, None] + _EPS)
        distance = mean_absolute_difference(features, prototypes, images) * keep
        spread = (responsibility * distance.detach().square()).sum((1, 2)) / (mass + _EPS)
        response = gaussian(distance, spread[:, None, None])
    return prototypes, response


def _over_classes(values: Tensor, images: Tensor, number: int) -> Tensor:
    """Sum of ``values`` ``(P, h, w)`` over the classes of each image, back at every pair."""
    total = values.new_zeros(number, *values.shape[1:])
    return total.index_add_(0, images, values)[images]


# --- the terms ---------------------------------------------------------------------------------------


def prototype_contrast(mixture: ImageMixture, pool: Literal["sum", "mean"] = "sum") -> Tensor:
    """L_contrast: mean over pairs of classes of exp(-d^2), d the mean absolute difference of prototypes.

    Prototypes of a class are pooled over the images of the group first. 0 (no gradient) with fewer than two
    classes.
    (AGMM-SASS tools.py; the sum is what its count amounts to.)
    """
    found, index, number = mixture.classes.unique(return_inverse=True, return_counts=True)
    prototypes = mixture.prototypes
    if len(found) < 2:  # torch's pdist has no backward pass for fewer
        return prototypes.new_zeros(())
    pooled = prototypes.new_zeros(len(found), prototypes.shape[1]).index_add(0, index, prototypes)
    number = number.to(prototypes.dtype)[:, None]
    pooled = pooled * (number / (number + _EPS) if pool == "sum" else 1 / (number + _EPS))
    distance = F.pdist(pooled, p=1) / prototypes.shape[1]
    return torch.exp(-distance.square()).sum() / (len(distance) + _EPS)


def self_supervision(mixture: ImageMixture, probabilities: Tensor, labels: Tensor) -> Tensor:
    """L_self (equation 8): cross-entropy between responses and predictions of the annotated classes.

    Mean over all pixels that are not padding, annotated ones and those of images without annotation
    included; gradients reach the prediction and the responses.
    """
    predicted = probabilities[mixture.images, mixture.classes]
    valid = labels != IGNORE
    term = binary_entropy(mixture.responses, predicted) * valid[mixture.images]
    return (term.sum((1, 2)) * mixture.share).sum() / valid.sum().clamp(min=1)


def label_supervision(mixture: ImageMixture, labels: Tensor) -> Tensor:
    """L_label (equation 9): cross-entropy between annotation and responses, mean over labelled pixels."""
    labelled = mixture.members.new_zeros(labels.shape).index_add(0, mixture.images, mixture.members)
    term = binary_entropy(mixture.members, mixture.responses) * labelled[mixture.images]
    return (term.sum((1, 2)) * mixture.share).sum() / labelled.sum().clamp(min=1)


def binary_entropy(target: Tensor, score: Tensor) -> Tensor:
    """B(t, s) = -(t log(s + eps) + (1 - t) log(1 - s + eps)) / 2, elementwise.

    Not torch's binary cross-entropy, which clamps the logarithm and so has another gradient near 0 and 1.
    """
    return -(target * (score + _EPS).log() + (1 - target) * (1 - score + _EPS).log()) / 2


def absent_class_loss(probabilities: Tensor, labels: Tensor, tags: Tensor) -> Tensor:
    """L_cls: -log(1 - p + eps) summed over the classes without tag, mean over pixels that are not padding."""
    valid = (labels != IGNORE).to(probabilities.dtype)
    absent = (tags == 0).to(probabilities.dtype)
    penalty = torch.einsum("bk,bkhw->bhw", absent, -(1 - probabilities + _EPS).log())
    return (penalty * valid).sum() / valid.sum().clamp(min=1)
