"""The one evaluator: confusion statistics at mask resolution, IoU from summed counts.

Pictures are scored one at a time, so no number depends on a batch size, and counts are int64, so
none depends on the order or the number of processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.basics import finite
from harness.basics.errors import UserError, nearest
from harness.basics.scores import figures
from harness.basics.scores import iou_from_counts as iou_from_counts
from harness.data.base import Dataset
from harness.engine import distributed
from harness.engine.contract import check_label_map, check_logits, place
from harness.engine.loading import loaded
from harness.evaluation.counting import count as count
from harness.nn.choice import best_class
from harness.nn.dense_crf import mean_field
from harness.nn.pixels import normalise
from harness.nn.resize import cubic_resize, resize, scaled_side
from harness.recipes.protocols import Protocol, protocol
from harness.records.counts import PerImage

if TYPE_CHECKING:
    from harness.engine.method import Method
    from harness.recipes.specs import EvaluationSpec

# --- prediction --------------------------------------------------------------------------------------


def _scaled(images: Tensor, scale: float, p: Protocol) -> Tensor:
    """The picture at one scale."""
    sides, nearest = images.shape[-2:], p.scaled_side == "nearest"
    size = tuple(scaled_side(side, scale) if nearest else int(side * scale) for side in sides)
    if p.picture_resize == "bilinear" or tuple(sides) == size:
        return resize(images, size, align_corners=p.align_corners)
    if nearest:
        return cubic_resize(images, (scale, scale), size)
    return F.interpolate(images, size=size, mode="bicubic", align_corners=False)


def _windows(length: int, window: int, overlap: float) -> list[int]:
    """Start of each window along one side; the last one ends at the border."""
    stride = math.ceil(window * (1 - overlap))
    number = max(math.ceil((length - window) / stride), 0) + 1
    return [max(min(i * stride, length - window), 0) for i in range(number)]


def _view_scores(predict: Callable[[Tensor], Tensor], images: Tensor, p: Protocol) -> Tensor:
    """Probabilities ``(1, K, h, w)`` of one view at the size of ``images``, or logits as they come."""
    soft = p.merge == "mean-softmax"

    def whole(x: Tensor) -> Tensor:
        logits = predict(x)
        return resize(logits, x.shape[-2:], align_corners=p.align_corners).softmax(1) if soft else logits

    if p.window is None:
        return whole(images)
    height, width = images.shape[-2:]
    total: Tensor | None = None
    count = images.new_zeros(1, 1, height, width)
    for top in _windows(height, p.window[0], p.overlap):
        for left in _windows(width, p.window[1], p.overlap):
            rows, columns = slice(top, top + p.window[0]), slice(left, left + p.window[1])
            window = images[..., rows, columns]
            scores = resize(whole(window), window.shape[-2:], align_corners=p.align_corners)
            if soft and p.window_softmax == "twice":
                scores = scores.softmax(1)
            if total is None:
                total = scores.new_zeros(1, scores.shape[1], height, width)
            total[..., rows, columns] += scores
            count[..., rows, columns] += 1
    assert total is not None
    return total / count


@torch.inference_mode()
def predict_scores(
    predict: Callable[[Tensor], Tensor],
    images: Tensor,
    p: Protocol,
    size: tuple[int, int] | None = None,
    tags: Tensor | None = None,
    background: int | None = 0,
) -> Tensor:
    """Scores of one picture under a protocol.

    Args:
        predict: images ``(1, 3, h, w)`` to logits ``(1, K, h', w')`` of any size, which are resized once.
        images: ``(1, 3, H, W)`` normalised.
        p: the protocol.
        size: size of the result, that of ``images`` by default.
        tags: ``(K,)`` image tags; used when absent classes are suppressed.
        background: never suppressed.

    Returns:
        ``(1, K, *size)`` probabilities (``mean-softmax``) or logits.
    """
    size = size or (images.shape[-2], images.shape[-1])
    if p.squash is not None:
        images = resize(images, p.squash, align_corners=p.align_corners)
    merged: Tensor | None = None
    for scale in p.scales:
        scaled = _scaled(images, scale, p)
        scores = resize(_view_scores(predict, scaled, p), size, align_corners=p.align_corners)
        if p.flip:
            mirrored = _view_scores(predict, scaled.flip(-1), p).flip(-1)
            mirrored = resize(mirrored, size, align_corners=p.align_corners)
            by_max = p.flip_merge == "max" or (p.flip_merge == "same" and p.merge == "max-logits")
            if by_max:
                scores = torch.maximum(scores, mirrored)
            else:
                scores = (scores + mirrored) / (1 if p.flip_merge == "sum" else 2)
        if merged is None:
            merged = scores
        else:
            merged = torch.maximum(merged, scores) if p.merge == "max-logits" else merged + scores
    assert merged is not None
    if p.merge.startswith("mean"):
        merged = merged / len(p.scales)
    if p.absent == "suppress":
        if tags is None:
            raise UserError("absent classes can be suppressed only where image tags exist", where="protocol")
        keep = tags.to(merged.device) > 0
        if background is not None:
            keep[background] = True
        broken = merged.isnan().any(1, keepdim=True)  # stays so, in a class ruled out as well
        merged = merged.masked_fill(~keep.view(1, -1, 1, 1), -math.inf).masked_fill(broken, math.nan)
    return merged


@torch.inference_mode()
def post_process(scores: Tensor, raw: Tensor, p: Protocol) -> Tensor:
    """Dense-CRF refinement of merged scores where the protocol has one.

    Args:
        scores: ``(1, K, H, W)`` from :func:`predict_scores`.
        raw: ``(1, 3, H, W)`` uint8 picture of the same size.
        p: the protocol.

    Returns:
        ``scores`` itself, or ``(1, K, H, W)`` probabilities. Probabilities that mirror and scales have
        averaged enter the CRF as they are, logits through a softmax.
    """
    if p.crf is None:
        return scores
    probabilities = scores if p.merge == "mean-softmax" else scores.softmax(1)
    return mean_field(probabilities, raw, p.crf, engine=p.crf_engine)


def label_map(
    method: Method,
    raw: Tensor,
    p: Protocol,
    *,
    network: str = "default",
    tags: Tensor | None = None,
    name: str = "",
) -> np.ndarray:
    """The best class of every pixel of one picture, under a protocol.

    Args:
        method: a trained method in evaluation mode.
        raw: ``(3, H, W)`` uint8 picture on the method's device.
        p: the protocol.
        network: which of the method's networks.
        tags: ``(K,)`` image tags; used when absent classes are suppressed.
        name: of the picture, for errors.

    Returns:
        ``(H, W)`` uint8.

    Raises:
        NonFiniteScoresError: scores of a pixel are NaN or plus infinity, or rule every class out.
        UserError: the network gives another number of classes.
    """
    scores, wrong = decided(method, raw, p, network, tags)
    labels = best_class(scores)[0].to(torch.uint8).cpu().numpy()
    if wrong:  # known by now: no further wait for the device
        raise finite.scores_error(f"the scores of the network {network!r}", name)
    return labels


def decided(
    method: Method, raw: Tensor, p: Protocol, network: str = "default", tags: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Scores ``(1, K, H, W)`` as for :func:`label_map`, and whether they decide nothing somewhere (bool)."""
    classes, images = method.build.num_classes, normalise(raw)[None]

    def predict(x: Tensor) -> Tensor:
        logits = method.grid_logits(x, network)
        if logits.ndim != 4 or logits.shape[1] != classes:
            check_logits(logits, method, x, network, whole=False)
        return logits.float()

    background = method.build.dataset.background
    scores = predict_scores(predict, images, p, tags=tags, background=background)
    wrong = finite.decide_nothing(scores)
    if p.crf is not None and not wrong:  # a CRF takes its time: this one wait does not matter
        scores = post_process(scores, raw[None], p)
        wrong = finite.decide_nothing(scores)
    return scores, wrong


def summarise(counts: PerImage, classes: Sequence[str], p: Protocol) -> dict[str, Any]:
    """The figures of an evaluation record from its counts (keys as in ``EvaluationRecord``)."""
    total = [getattr(counts, k).sum(0) for k in ("intersection", "predicted", "labelled")]
    return figures(len(counts.ids), total, classes, p.classes)


# --- whole splits ------------------------------------------------------------------------------------


class _Pictures(torch.utils.data.Dataset):
    """Pictures and masks of a split, decoded by loader workers."""

    def __init__(self, dataset: Dataset, split: str, ids: Sequence[str]) -> None:
        self.dataset, self.split, self.ids = dataset, split, ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[str, np.ndarray, np.ndarray | None]:
        name = self.ids[index]
        has_mask = self.dataset.has_mask(name, self.split)
        mask = self.dataset.read_mask(name, self.split) if has_mask else None
        return name, self.dataset.read_image(name), mask


def _as_is(item: Any) -> Any:
    return item


def pictures(
    dataset: Dataset, split: str, ids: Sequence[str], workers: int = 0
) -> Iterable[tuple[str, np.ndarray, np.ndarray | None]]:
    """(id, picture ``(H, W, 3)`` uint8, mask or None) in the order of ``ids``, decoded by loader workers."""
    return loaded(_Pictures(dataset, split, ids), _as_is, workers=workers, batch_size=None)


@torch.inference_mode()
def predictions(
    method: Method,
    dataset: Dataset,
    split: str,
    p: Protocol,
    *,
    network: str = "default",
    output: str = "segmentation",
    device: torch.device | str = "cpu",
    workers: int = 0,
    ids: Sequence[str] | None = None,
) -> Iterable[tuple[str, np.ndarray, np.ndarray | None]]:
    """Yield (id, prediction ``(H, W)`` uint8, mask or None) over a split, in list order."""
    if output != "segmentation":
        found = pseudo_labels(method, dataset, split, [output], device=device, workers=workers, ids=ids)
        for name, labels, mask in found:
            yield name, labels[output], mask
        return
    ids = list(dataset.ids(split)) if ids is None else list(ids)
    tags = torch.from_numpy(dataset.tags(ids)).float() if p.absent == "suppress" else None
    method.eval()
    for index, (name, image, mask) in enumerate(pictures(dataset, split, ids, workers)):
        present = None if tags is None else tags[index]
        yield (
            name,
            label_map(method, _tensor(image, device), p, network=network, tags=present, name=name),
            mask,
        )


@torch.inference_mode()
def pseudo_labels(
    method: Method,
    dataset: Dataset,
    split: str,
    outputs: Sequence[str],
    *,
    device: torch.device | str = "cpu",
    workers: int = 0,
    ids: Sequence[str] | None = None,
) -> Iterable[tuple[str, dict[str, np.ndarray], np.ndarray | None]]:
    """Yield (id, label map ``(H, W)`` uint8 by output, mask or None) over a split: one pass for all outputs.

    Raises:
        NonFiniteScoresError: the maps that labels are made from are not finite.
        UserError: the method gives no such output, or no label map under that name.
    """
    ids = list(dataset.ids(split)) if ids is None else list(ids)
    tags = torch.from_numpy(dataset.tags(ids)).float()
    method.eval()
    for index, (name, image, mask) in enumerate(pictures(dataset, split, ids, workers)):
        images = normalise(_tensor(image, device))[None]
        with finite.of_picture(name):
            labels = method.pseudo_labels(images, tags[index : index + 1].to(device))
        for output in outputs:
            if output not in labels:
                raise UserError(
                    f"the method gives no output {output!r}",
                    remedy=nearest(output, ["segmentation", *labels]),
                )
        with finite.of_picture(name):  # some are made when they are asked for
            maps = {output: labels[output] for output in outputs}
        for output, made in maps.items():
            check_label_map(made, images, output, method.name, place(method))
        yield name, {o: made[0].to(torch.uint8).cpu().numpy() for o, made in maps.items()}, mask


def _tensor(image: np.ndarray, device: torch.device | str) -> Tensor:
    """A picture ``(H, W, 3)`` uint8 as ``(3, H, W)`` on the device."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).to(device)


def gather(
    pairs: Iterable[tuple[str, np.ndarray, np.ndarray | None]],
    num_classes: int,
) -> PerImage:
    """Count every (id, prediction, mask).

    Raises:
        UserError: there is nothing to count, or a picture has no mask.
    """
    counts = tally(pairs, num_classes)
    if not counts.ids:
        raise UserError("nothing to evaluate: the split lists no picture")
    return counts


def tally(pairs: Iterable[tuple[str, np.ndarray, np.ndarray | None]], num_classes: int) -> PerImage:
    """As :func:`gather`, of a part of a split, which may be empty."""
    ids: list[str] = []
    rows: list[tuple[np.ndarray, ...]] = []
    for name, prediction, mask in pairs:
        if mask is None:
            raise UserError(
                f"picture {name} has no mask",
                where="split",
                remedy="nothing can be scored on it; write predictions with `wsss predict` or `wsss export`",
            )
        ids.append(name)
        rows.append(count(prediction, mask, num_classes))
    counts = np.array(rows, dtype=np.int64).reshape(len(rows), 3, num_classes)
    return PerImage(tuple(ids), *(np.ascontiguousarray(counts[:, i]) for i in range(3)))


def joined(parts: Sequence[PerImage]) -> PerImage:
    """Counts of several parts of a split, in order."""
    return PerImage(
        tuple(i for part in parts for i in part.ids),
        *(np.concatenate([getattr(p, k) for p in parts]) for k in ("intersection", "predicted", "labelled")),
    )


def counts_of_all(own: PerImage, ids: Sequence[str]) -> PerImage:
    """Counts of all processes of a trial, each of which has scored its share.

    Args:
        own: those of this process.
        ids: the whole split, in order.

    Raises:
        UserError: the split lists no picture.
    """
    whole = joined(distributed.collected(own))
    if not whole.ids:
        raise UserError("nothing to evaluate: the split lists no picture")
    if whole.ids == tuple(ids):
        return whole
    place = {name: row for row, name in enumerate(whole.ids)}
    rows = np.array([place[name] for name in ids])
    columns = (getattr(whole, k)[rows] for k in ("intersection", "predicted", "labelled"))
    return PerImage(tuple(ids), *columns)


def miou(
    method: Method,
    dataset: Dataset,
    spec: EvaluationSpec,
    *,
    device: torch.device | str = "cpu",
    workers: int = 0,
    ids: Sequence[str] | None = None,
) -> float | None:
    """Score the present network, all processes of the trial together.

    Args:
        method: the method, on its device.
        dataset: where pictures and masks are.
        spec: split, protocol, network and output; the weights are those that the method has.
        device: where the method is.
        workers: loader processes.
        ids: these pictures of the split instead of all that have a mask.

    Returns:
        Percent; None where no class occurs.
    """
    ids = dataset.masked(spec.split) if ids is None else ids
    p = protocol(spec.protocol)
    pairs = predictions(
        method,
        dataset,
        spec.split,
        p,
        network=spec.network,
        output=spec.output,
        device=device,
        workers=workers,
        ids=distributed.share(ids),
    )
    counts = counts_of_all(tally(pairs, dataset.info.num_classes), ids)
    return summarise(counts, dataset.info.classes, p)["miou"]
