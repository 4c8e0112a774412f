"""Pretraining of the miniature suite's encoders as classifiers of generated single-object pictures.

This plays the part of ImageNet: every paper here starts from an encoder that already knows objects as
whole pictures, so the suite does too. ``wsss data pretrain-mini`` calls :func:`pretrain`; the files it
wrote with its defaults ship in ``harness/nn/pretrained``. All settings are our choice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.basics.errors import UserError, nearest
from harness.basics.files import check_writable, sha256_of, whole_file, write_json
from harness.basics.imagenet import MEAN, STD
from harness.data.sets import mini_scenes
from harness.nn.constants import constant
from harness.nn.encoders import create_encoder
from harness.nn.mini_encoder import Classifier, ConvolutionalPatches, MiniCNN, TokenClassifier, mini_vit

#: Pictures the reported accuracy is measured on.
HELD_OUT_PICTURES = 1000
_SIDE, _SHIFT = 56, 6
_SMOOTHING = 0.05  # of labels


@dataclass(frozen=True)
class Pretraining:
    """How one encoder is pretrained.

    Attributes:
        model: makes the untrained encoder inside a classifier of so many classes; it is ``.encoder``.
        loss: of such a classifier, from normalised pictures ``(B, 3, H, W)`` and classes ``(B,)``.
        learning_rate: peak learning rate of AdamW, one cycle.
        steps: default number of steps.
        pictures: number of different pictures.
        scattered: the object lies anywhere in its picture, and some pictures have none.
        zoom: range of a random magnification.
        batch: pictures in a step.
    """

    model: Callable[[int], nn.Module]
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor]
    learning_rate: float
    steps: int
    pictures: int = 4000
    scattered: bool = False
    zoom: tuple[float, float] = (1.0, 1.0)
    batch: int = 64


def picture_loss(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Cross-entropy, with a smoothed label, of one class for each picture."""
    return F.cross_entropy(model(images), classes, label_smoothing=_SMOOTHING)


def mosaic_loss(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """What a :class:`TokenClassifier` learns from mosaics of four pictures each; B is a multiple of 4.

    Every tile has the class of its picture, or nothing, and the class token the tags of its mosaic. Weights
    are our choice.
    """
    assert isinstance(model, TokenClassifier)
    joined, tiles = mosaics(images, model.patch)
    by_class, *by_patch = model(joined, tiles)
    kinds = by_class.shape[1]
    tags = F.one_hot(classes.view(-1, 4), kinds + 1).amax(1)[:, :kinds]
    target = (classes + 1) % (kinds + 1)  # nothing is the last class of a picture, the first of a tile
    costs = [F.cross_entropy(z.flatten(0, 1), target, label_smoothing=_SMOOTHING) for z in by_patch]
    channels, scores, before = costs
    by_tags = F.multilabel_soft_margin_loss(by_class, tags.to(by_class.dtype))
    return 2 * by_tags + channels + scores + before / 2


def _token_classifier(classes: int) -> nn.Module:
    """The transformer on the first stages of the packaged convolutional encoder, in a classifier."""
    network, start = mini_vit(), create_encoder("mini_cnn", "packaged")
    assert isinstance(start, MiniCNN)
    patches = network.get_submodule("patch_embed.proj")
    assert isinstance(patches, ConvolutionalPatches)
    patches.start_from(start)
    return TokenClassifier(network, classes)


#: Encoders by name; a further one needs a line here.
PLANS: dict[str, Pretraining] = {
    "mini_cnn": Pretraining(
        lambda classes: Classifier(MiniCNN(), classes), picture_loss, learning_rate=8e-3, steps=900
    ),
    "mini_vit": Pretraining(
        _token_classifier,
        mosaic_loss,
        learning_rate=1e-3,
        steps=3000,
        pictures=12000,
        scattered=True,
        zoom=(0.8, 1.4),
        batch=32,
    ),
}


def pretrain(
    encoder: str,
    *,
    out: Path | str,
    seed: int = 0,
    steps: int | None = None,
    report: Callable[[str], Any] = print,
) -> dict[str, Any]:
    """Train ``encoder`` as a classifier and write its weights, without the classifier, to a file.

    The weights are float16 safetensors. Their one metadata entry, ``pretraining``, is JSON with the
    command, seed, steps, version of the generator and held-out accuracy. ``weights.json`` beside the
    file gets or replaces the row of this encoder. The same seed on the same machine and torch gives the
    same file. Takes one to three minutes on one core for the convolutional encoder, ten to fifteen for the
    transformer.

    Args:
        encoder: a name in :data:`PLANS`.
        out: folder for ``<encoder>.safetensors`` and ``weights.json``.
        seed: of pictures, initial weights, order and augmentation.
        steps: optimiser steps; None for the encoder's own number.
        report: called with lines of progress.

    Returns:
        The row of ``weights.json``: ``file``, ``sha256``, ``command``, ``seed``, ``steps``,
        ``generator``, ``accuracy`` (0..1, of the stored weights on 1000 held-out pictures).

    Raises:
        UserError: unknown encoder, or a number of steps below 1.
    """
    if encoder not in PLANS:
        raise UserError(f"no pretraining for the encoder {encoder!r}", remedy=nearest(encoder, PLANS))
    plan = PLANS[encoder]
    steps = plan.steps if steps is None else steps
    if steps < 1:
        raise UserError(f"{steps} steps of pretraining", where="steps", remedy="give at least 1")
    check_writable(Path(out))
    report(f"drawing {plan.pictures + HELD_OUT_PICTURES} pictures")
    training = pretraining_pictures(plan.pictures, seed, scattered=plan.scattered)
    held_out = pretraining_pictures(HELD_OUT_PICTURES, seed, "single_val", scattered=plan.scattered)
    with _reproducible(seed):
        model = plan.model(len(mini_scenes.OBJECT_KINDS))
        _train(model, *training, plan, steps, report)
        inner = model.get_submodule("encoder")
        state = {key: _half(value) for key, value in inner.state_dict().items()}
        inner.load_state_dict(state)
        row: dict[str, Any] = {
            "command": f"wsss data pretrain-mini {encoder} --seed {seed} --steps {steps}",
            "seed": seed,
            "steps": steps,
            "generator": mini_scenes.SCENES_VERSION,
            "accuracy": round(accuracy(model, *held_out), 4),
        }
    path = Path(out) / f"{encoder}.safetensors"
    with whole_file(path, "wb") as stream:
        # One entry only: safetensors writes several in random order, and the hash would change.
        stream.write(safetensors.torch.save(state, metadata={"pretraining": json.dumps(row)}))
    row = {"file": path.name, "sha256": sha256_of(path)} | row
    table = path.with_name("weights.json")
    rows = json.loads(table.read_text(encoding="utf-8")) if table.exists() else {}
    write_json(table, dict(sorted({**rows, encoder: row}.items())))
    report(f"{path}: held-out accuracy {row['accuracy']:.1%}, sha256 {row['sha256']}")
    return row


def pretraining_pictures(
    count: int, seed: int, stream: str = "single", *, scattered: bool = False
) -> tuple[Tensor, Tensor]:
    """Images ``(count, 3, 56, 56)`` uint8 and classes ``(count,)`` int64 in 0..5, scattered ones in 0..6.

    Args:
        count: number of pictures.
        seed, stream: see :func:`harness.data.sets.mini_scenes.single_object`.
        scattered: draw :func:`harness.data.sets.mini_scenes.scattered_object`.
    """
    draw = mini_scenes.scattered_object if scattered else mini_scenes.single_object
    drawn = [draw(seed, index, _SIDE, stream) for index in range(count)]
    images = np.stack([image for image, _ in drawn]).transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(images)), torch.tensor([kind for _, kind in drawn])


def normalised_pictures(images: Tensor) -> Tensor:
    """Pictures ``(B, 3, H, W)`` in 0..255 as ImageNet-normalised float32."""
    mean, std = constant((MEAN, STD), images.device)[..., None, None]
    return (images / 255 - mean) / std


@torch.no_grad()
def accuracy(model: Any, images: Tensor, classes: Tensor) -> float:
    """Share of pictures ``(N, 3, H, W)`` uint8 classified rightly, in evaluation mode."""
    model.eval()
    hits = [
        (model.decide(normalised_pictures(part)) == truth).sum()
        for part, truth in zip(images.split(256), classes.split(256), strict=True)
    ]
    return float(torch.stack(hits).sum()) / len(classes)


def _train(
    model: nn.Module,
    images: Tensor,
    classes: Tensor,
    plan: Pretraining,
    steps: int,
    report: Callable[[str], Any],
) -> None:
    rate = plan.learning_rate
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.2)
    model.train()
    for step, chosen in zip(range(steps), _batches(len(images), plan.batch), strict=False):
        loss = plan.loss(model, normalised_pictures(augmented(images[chosen], plan.zoom)), classes[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        cycle.step()
        if step % 100 == 99:
            report(f"step {step + 1} of {steps}: loss {loss.item():.3f}")


def _batches(count: int, size: int) -> Iterator[Tensor]:
    while True:
        yield from torch.randperm(count).split(size)[: max(1, count // size)]


def mosaics(images: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """Pictures four by four as mosaics of 2 x 2 tiles, rolled so that borders of tiles lie anywhere.

    What leaves a mosaic at one side comes in at the other, so that every picture is there in whole.

    Args:
        images: ``(4 B, 3, S, S)``, S a multiple of ``patch``.
        patch: side of a patch in pixels; mosaics are rolled by whole patches.

    Returns:
        Mosaics ``(B, 3, 2 S, 2 S)``, and the tile 0..3 of every patch, ``(B, (2 S / patch)^2)`` int64.
    """
    side = images.shape[-1]
    grid = side // patch
    rows = images.unflatten(0, (-1, 2, 2)).permute(0, 3, 1, 4, 2, 5)
    joined = rows.reshape(-1, images.shape[1], 2 * side, 2 * side)
    tiles = torch.arange(4).view(2, 2).repeat_interleave(grid, 0).repeat_interleave(grid, 1)
    shifts = torch.randint(0, 2 * grid, (len(joined), 2)).tolist()
    moved = [
        x.roll((down * patch, right * patch), (1, 2)) for x, (down, right) in zip(joined, shifts, strict=True)
    ]
    owner = [tiles.roll((down, right), (0, 1)).flatten() for down, right in shifts]
    return torch.stack(moved), torch.stack(owner)


def augmented(images: Tensor, zoom: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """Mirror, shift by up to 6 pixels, magnify and recolour pictures ``(B, 3, H, W)``; float32 in 0..255.

    What a magnification below 1 uncovers is the picture reflected at its borders.
    """
    count, _, height, width = images.shape
    padded = F.pad(images.float(), (_SHIFT,) * 4, mode="reflect")
    top, left = torch.randint(0, 2 * _SHIFT + 1, (2, count, 1))
    rows = top + torch.arange(height)
    columns = left + torch.arange(width)
    columns = torch.where(torch.rand(count, 1) < 0.5, columns, columns.flip(1))
    picture = torch.arange(count)[:, None, None]
    cut = padded.permute(0, 2, 3, 1)[picture, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if zoom != (1.0, 1.0):
        factor = zoom[0] + (zoom[1] - zoom[0]) * torch.rand(count, 1, 1)
        grid = F.affine_grid(torch.eye(2, 3) / factor, list(cut.shape), align_corners=False)
        cut = F.grid_sample(cut, grid, padding_mode="reflection", align_corners=False)
    gain = 0.7 + 0.6 * torch.rand(count, 3, 1, 1)
    bias = 40 * (torch.rand(count, 3, 1, 1) - 0.5)
    return (cut * gain + bias).clamp(0, 255)


def _half(value: Tensor) -> Tensor:
    return value.half().contiguous() if value.is_floating_point() else value


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """One thread and a seeded generator inside, what was there before outside."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)
