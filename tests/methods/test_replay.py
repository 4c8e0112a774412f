"""Eight steps of training against a plain loop, written as the authors' scripts are.

Each replay holds a copy of the network, computes the terms in the authors' form (over all tokens, over
all pixels, terms that wait for their start multiplied by 0), and steps a plain optimiser with rates by
name of parameter. The other side is the :class:`Trainer` with the method, as ``wsss run`` has them.
Parts with arrays of the authors' own (maps, PAR, dense energy) are shared.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.basics.registry import DATASETS, METHODS
from harness.basics.schema import load
from harness.engine.batch import IGNORE, UNLABELLED, Batch, Progress, View
from harness.engine.method import Build, Method
from harness.engine.training import Trainer, step_seed
from harness.nn.pixels import normalise
from harness.recipes.resolving import resolve
from harness.recipes.specs import Recipe
from methods.parts.cam import multi_scale_cam
from methods.parts.transformer import dense_energy

STEPS, SIDE, CLASSES = 8, 32, 7
SEED = 3


@pytest.fixture(autouse=True)
def epsilon(monkeypatch):
    """Adam divides gradients by their size; with the usual 1e-8, also rounding, where they all but vanish."""
    monkeypatch.setattr(torch.optim, "AdamW", partial(torch.optim.AdamW, eps=1e-4))


class Data:
    """As many pictures as one group: every step is an epoch."""

    def __len__(self) -> int:
        return 2

    def plan(self, *given: object) -> None:
        """Batches stand in for the loader as well."""


def make_batch(step: int) -> Batch:
    """Two pictures with strokes and, at the right, padding; other ones at every step."""
    generator = torch.Generator().manual_seed(step)
    raw = torch.randint(0, 256, (2, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    raw[:, :, :, : SIDE // 2] //= 3
    valid = torch.ones(2, SIDE, SIDE, dtype=torch.bool)
    valid[1, :, -8:] = False
    raw = raw * valid[:, None]
    labels = torch.full((2, SIDE, SIDE), UNLABELLED)
    tags = torch.zeros(2, CLASSES)
    for image, present in enumerate(((0, 1, 3), (0, 2))):
        for row, k in enumerate(present):
            labels[image, 6 + 10 * row, 5:26] = k
            tags[image, k] = 1
    other = View(normalise(raw.flip(-1)), raw.flip(-1), valid.flip(-1))
    views = {"second": other, "local": View(normalise(raw), raw, valid)}
    return Batch(normalise(raw), labels.masked_fill(~valid, IGNORE), tags, ["a", "b"], raw, valid, views)


def double(batch: Batch) -> Batch:
    """The batch with pictures in float64."""
    views = {k: dataclasses.replace(v, images=v.images.double()) for k, v in batch.views.items()}
    return dataclasses.replace(batch, images=batch.images.double(), tags=batch.tags.double(), views=views)


def build(name: str, supervision: str, backbone: str, **config: Any) -> Method:
    """A method in float64, fed with float64."""
    cls = METHODS.get(name)

    class Double(cls):
        def loss(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
            return super().loss(double(batch), progress)

    torch.manual_seed(0)
    info = DATASETS.get("mini").info
    return Double(cls.Config(**config), Build(info, supervision, (SIDE, SIDE), backbone, "none")).double()


def train(method: Method, folder: Path, monkeypatch: pytest.MonkeyPatch, **values: Any) -> Trainer:
    """The harness's own loop over the eight batches."""
    recipe = {
        "method": method.name,
        "dataset": "mini",
        "supervision": method.build.supervision,
        "backbone": method.build.backbone,
        "batch": {"groups": 1, "per_group": 2},
        "schedule": {"steps": STEPS},
    }
    batches = [[make_batch(step)] for step in range(STEPS)]
    monkeypatch.setattr("harness.engine.training.training_loader", lambda *_, **__: iter(batches))
    trainer = Trainer(method, load(Recipe, recipe | values, "test"), Data(), seed=SEED, folder=folder)
    for _ in trainer.run():
        pass
    return trainer


def replay(
    optimiser: torch.optim.Optimizer,
    loss: Callable[[Batch, int], Tensor],
    factor: Callable[[int], float],
    after: Callable[[int], None] = lambda step: None,
) -> None:
    """The plain loop: the rate of the step, the summed loss, one update."""
    rates = [group["lr"] for group in optimiser.param_groups]
    for step in range(STEPS):
        torch.manual_seed(step_seed(SEED, step, 0))
        for group, rate in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = rate * factor(step)
        optimiser.zero_grad()
        loss(double(make_batch(step)), step).backward()
        optimiser.step()
        after(step)


def assert_equal(ours: nn.Module, theirs: nn.Module, start: Mapping[str, Tensor]) -> None:
    """Parameters and buffers agree, and have moved."""
    state, moved = ours.state_dict(), 0
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")
        moved += not torch.equal(value, start[name])
    assert moved > 0.9 * len(list(theirs.parameters()))


# --- what the scripts of ToCo and FSR share ------------------------------------------------------------


def tag_loss(logits: Tensor, tags: Tensor) -> Tensor:
    return F.multilabel_soft_margin_loss(logits, tags)


def token_contrast(features: Tensor, labels: Tensor) -> Tensor:
    """All pairs of tokens, by a mask of 0, 1 and 255."""
    x = F.normalize(features.flatten(2), dim=1, eps=1e-8)
    cosine = (x.mT @ x).abs()
    flat = labels.flatten(1)
    mask = (flat[:, :, None] == flat[:, None, :]).long()
    mask[(flat[:, :, None] == IGNORE) | (flat[:, None, :] == IGNORE)] = IGNORE
    mask[:, torch.arange(flat.shape[1]), torch.arange(flat.shape[1])] = IGNORE
    same, other = (mask == 1).double(), (mask == 0).double()
    pull = 1 - (same * cosine).sum() / (same.sum() + 1)
    return 0.5 * pull + 0.5 * (other * cosine).sum() / (other.sum() + 1)


def mean_over(logits: Tensor, labels: Tensor, keep: Tensor) -> Tensor:
    """Cross-entropy of some pixels, 0 where there is none (NaN in the scripts' logs)."""
    target = labels.where(keep, IGNORE)
    if not keep.any():
        return 0.0 * logits.sum()
    return F.cross_entropy(logits, target, ignore_index=IGNORE)


def segmentation(logits: Tensor, labels: Tensor) -> Tensor:
    foreground = (labels != 0) & (labels != IGNORE)
    return 0.5 * (mean_over(logits, labels, labels == 0) + mean_over(logits, labels, foreground))


def enlarged(x: Tensor, size: Any) -> Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def token_labels(cam: Tensor, tags: Tensor, grid: Any, low: float, high: float) -> Tensor:
    value, best = (enlarged(cam, grid) * tags[:, :, None, None]).max(1)
    label = best + 1
    label[value <= high] = IGNORE
    label[value <= low] = 0
    return label


VIT = {
    "aux_layer": -2,
    "decoder_width": 16,
    "decoder_dilation": 1,
    "cam_scales": (1.0, 0.5),
    "refine_dilations": (1, 2),
    "high": 0.55,
    "low": 0.3,
}


HEADS = {"projector_hidden": 24, "projector_bottleneck": 8}
TOCO = {"projection_width": 32, "projection_hidden": 24, "projection_bottleneck": 16, "second_flip": "none"}


def poly(step: int, warmup: int, ratio: float, power: float = 0.9) -> float:
    """PolyWarmupAdamW."""
    if step < warmup:
        return 1 - (1 - step / warmup) * (1 - ratio)
    return (1 - step / STEPS) ** power


# --- ToCo ---------------------------------------------------------------------------------------------


def class_contrast(
    net: Any, second: Tensor, source: Tensor, images: Tensor, aux: Tensor, tags: Tensor
) -> Tensor:
    """CTC, picture by picture and view by view."""
    c = net.config
    value = (aux * tags[:, :, None, None]).amax(1)
    code = torch.zeros_like(value, dtype=torch.long)
    code[value > c.low] = 1
    code[value >= c.high] = 2
    size, margin = c.local_size, c.local_size // 2
    inner = code[:, margin : SIDE - margin, margin : SIDE - margin]
    noise = torch.rand(inner.shape)
    outputs, flags = [], []
    for b in range(len(images)):
        crops, flag = [images[b], second[b]], [1.0, 1.0]
        place = noise[b].flatten()
        candidates = (inner[b] <= 1).flatten()
        if candidates.sum() >= c.local_crops:
            place = place.masked_fill(~candidates, -torch.inf)
        for index in place.topk(c.local_crops).indices.tolist():
            top, left = divmod(index, inner.shape[2])
            crops.append(source[b, :, top : top + size, left : left + size])
            crowd = code[b, top : top + size, left : left + size].sum()
            flag.append(float(crowd > c.local_negative_share * size**2))
        outputs.append([net.network.encoder(x[None]).class_token[0] for x in crops])
        flags.append(flag)
    total = torch.zeros((), dtype=torch.float64)
    for tokens, flag in zip(outputs, flags, strict=True):
        student = [net.proj_head(t) for t in tokens]
        with torch.no_grad():
            teacher = [net.proj_head_t(t) for t in tokens[:2]]
        number = sum(flag)
        loss = torch.zeros((), dtype=torch.float64)
        for view in teacher:
            e = [(view @ s / c.temperature).exp() for s in student]
            pushed = sum(x for x, f in zip(e, flag, strict=True) if f == 0) + torch.zeros(
                (), dtype=torch.float64
            )
            for x, f in zip(e, flag, strict=True):
                if f == 1:
                    loss = loss - (x / (x + pushed + 1e-4)).log()
            loss = loss - (1 / (1 + pushed + 1e-4)).log()
        total = total + loss / (2 * (number + 1e-4))
    return total / len(outputs)


@pytest.mark.parametrize(
    ("contrast_start", "seg_start", "final_cam_start"), [(0, 4, 0), (5, 3, 5)], ids=["voc", "coco"]
)
def test_toco(contrast_start, seg_start, final_cam_start, tmp_path, monkeypatch):
    """On COCO both contrasts wait as well, so that the projection head decays meanwhile."""
    method = build(
        "toco",
        "image",
        "mini_vit",
        **VIT,
        **TOCO,
        local_crops=3,
        local_size=16,
        contrast_start=contrast_start,
        seg_start=seg_start,
        final_cam_start=final_cam_start,
        token_region="scaled",
    )
    net = copy.deepcopy(method)
    start = copy.deepcopy(method.state_dict())
    train(
        method,
        tmp_path,
        monkeypatch,
        optimiser={"name": "adamw", "lr": 6e-5, "weight_decay": 0.05},
        schedule={"steps": STEPS, "warmup_steps": 2, "warmup_factor": 1e-6, "count_from": "start"},
    )

    def loss(batch: Batch, step: int) -> Tensor:
        images, tags, c = batch.images, batch.tags[:, 1:], net.config
        output = net.network(images)
        cam, aux = multi_scale_cam(net.network.maps, images, c.cam_scales)
        waits, contrasts = step < seg_start, 0.0 if step < contrast_start else 1.0
        source = batch.views["local"].images
        ctc = class_contrast(net, batch.views["second"].images, source, images, aux, tags)
        labels = net.refined_labels(images, cam if step >= final_cam_start else aux, tags, batch.valid)
        logits = enlarged(output.seg, images.shape[-2:])
        grid = output.tokens.final.shape[-2:]
        token = token_labels(aux, tags, grid, c.low, c.high)
        inside = enlarged(batch.valid[:, None].double(), grid)[:, 0] > 0.5
        ptc = token_contrast(output.tokens.final, token.masked_fill(~inside, IGNORE))
        return (
            tag_loss(output.cls, tags)
            + tag_loss(output.aux_cls, tags)
            + contrasts * 0.2 * ptc
            + contrasts * 0.5 * ctc
            + (0.0 if waits else 0.1) * segmentation(logits, labels)
            + (0.0 if waits else 0.05) * dense_energy(logits, images, labels, batch.valid)
        )

    encoder = [p for p in net.network.encoder.parameters() if p.requires_grad]
    slow = {id(p) for p in net.network.encoder.parameters()}
    heads = [p for p in net.parameters() if p.requires_grad and id(p) not in slow]
    adam = torch.optim.AdamW(
        [{"params": encoder, "lr": 6e-5}, {"params": heads, "lr": 6e-4}], weight_decay=0.05
    )

    def average(step: int) -> None:
        with torch.no_grad():
            for p, t in zip(net.proj_head.parameters(), net.proj_head_t.parameters(), strict=True):
                t.copy_(0.9 * t + (1 - 0.9) * p)

    replay(adam, loss, lambda step: poly(step, 2, 1e-6), average)
    assert_equal(method, net, start)


# --- FSR ----------------------------------------------------------------------------------------------


def test_fsr(tmp_path, monkeypatch):
    method = build(
        "fsr",
        "image",
        "mini_vit",
        **VIT,
        drop_path=0.0,
        projector_outputs=32,
        projector_hidden=24,
        projector_bottleneck=8,
        mask_block=16,
        uncertain_start=2,
        teacher_temperature_steps=3,
        ema_momentum=0.9,
        seg_start=4,
        ptc_start=1,
    )
    net, start = copy.deepcopy(method), copy.deepcopy(method.state_dict())
    train(
        method,
        tmp_path,
        monkeypatch,
        optimiser={"name": "adamw", "lr": 6e-5, "weight_decay": 0.05},
        schedule={"steps": STEPS, "kind": "cosine", "warmup_steps": 2, "warmup_factor": 0.1},
    )
    student, teacher, c = net.network, net.teacher, net.config
    centres = {k: torch.zeros(32, dtype=torch.float64) for k in ("class", "patch")}
    patch, block = student.encoder.patch, c.mask_block
    grid, blocks = SIDE // patch, SIDE // block

    def projected(network: Any, tokens: Any) -> tuple[Tensor, Tensor]:
        """Class token and all patches through the projector."""
        return network.projector(network.aggregate(tokens)), network.projector(tokens.final.flatten(2).mT)

    def masked(images: Tensor, tags: Tensor, step: int) -> Tensor:
        noise = torch.rand(len(images), blocks, blocks)
        if step >= c.uncertain_start:
            aux = multi_scale_cam(student.maps, images, c.cam_scales)[1]
            value = (aux * tags[:, :, None, None]).amax(1)[:, ::block, ::block]
            noise = noise + ((value > 0.2) & (value < 0.7))
        remove = math.ceil(blocks**2 * c.mask_ratio)
        chosen = noise.flatten(1).argsort(1, descending=True)[:, :remove]
        mask = torch.zeros(len(images), blocks**2, dtype=torch.bool).scatter_(1, chosen, True)
        side = grid // blocks
        return mask.view(-1, blocks, blocks).repeat_interleave(side, 1).repeat_interleave(side, 2)

    def cross_entropy(target: Tensor, output: Tensor) -> Tensor:
        return -(target.softmax(-1) * (output / 0.1).log_softmax(-1)).sum(-1)

    def loss(batch: Batch, step: int) -> Tensor:
        images, second, tags = batch.images, batch.views["second"].images, batch.tags[:, 1:]
        mask = masked(second, tags, step)
        output = student(images)
        one, two = projected(student, student.encoder(second, mask))
        with torch.no_grad():
            sharp = 0.07 if step >= 3 else 0.04 + (0.07 - 0.04) * step / 2
            cls = teacher.projector(teacher.aggregate(teacher.encoder(images)))
            patches = teacher.projector(teacher.encoder(second).final.flatten(2).mT)
        class_loss = cross_entropy((cls - centres["class"]) / sharp, one).mean()
        each = cross_entropy((patches - centres["patch"]) / sharp, two) * mask.flatten(1)
        patch_loss = (each.sum(1) / mask.flatten(1).sum(1).clamp(min=1)).mean()
        for name, values in (("class", cls), ("patch", patches.flatten(0, 1))):
            centres[name] = 0.9 * centres[name] + 0.1 * values.mean(0)
        cam, aux = multi_scale_cam(student.maps, images, c.cam_scales)
        labels = net.refined_labels(images, cam, tags, batch.valid)
        logits = enlarged(output.seg, images.shape[-2:])
        token = token_labels(aux, tags, (grid, grid), c.low, c.high)
        inside = batch.valid[:, patch // 2 :: patch, patch // 2 :: patch]
        ptc = token_contrast(output.tokens.final, token.masked_fill(~inside, IGNORE))
        waits = step < c.seg_start
        return (
            tag_loss(output.cls, tags)
            + tag_loss(output.aux_cls, tags)
            + 0.1 * class_loss
            + 0.1 * patch_loss
            + (0.0 if step < 1 else 0.2) * ptc
            + (0.0 if waits else 0.1) * segmentation(logits, labels)
            + (0.0 if waits else 0.05) * dense_energy(logits, images, labels, batch.valid)
        )

    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    plain = ("encoder.pos_embed", "encoder.cls_token", "encoder.mask_token")
    for name, p in student.named_parameters():
        if p.requires_grad:
            vector = p.ndim == 1 or name.endswith(".bias") or name in plain
            groups.setdefault((name.startswith(("encoder.", "aggregation.")), vector), []).append(p)
    adam = torch.optim.AdamW(
        [
            {"params": ps, "lr": 6e-5 if slow else 6e-4, "weight_decay": 0.0 if vector else 0.05}
            for (slow, vector), ps in groups.items()
        ]
    )

    def average(step: int) -> None:
        momentum = 1 + 0.5 * (0.9 - 1) * (1 + math.cos(math.pi * step / STEPS))
        with torch.no_grad():
            for p, t in zip(student.parameters(), teacher.parameters(), strict=True):
                t.mul_(momentum).add_((1 - momentum) * p)

    def cosine(step: int) -> float:
        if step < 2:
            return 1 - (1 - step / 2) * (1 - 0.1)
        return 0.5 * (1 + math.cos(math.pi * (step - 2) / (STEPS - 2)))

    replay(adam, loss, cosine, average)
    net.class_centre.value.copy_(centres["class"])
    net.patch_centre.value.copy_(centres["patch"])
    assert_equal(method, net, start)


# --- BLPSeg -------------------------------------------------------------------------------------------


def test_blpseg(tmp_path, monkeypatch):
    method = build(
        "blpseg",
        "scribble",
        "mini_cnn",
        width=16,
        dropout=0.0,
        sigma=2.0,
        self_training_step=4,
        confidence=0.2,
    )
    net, start = copy.deepcopy(method), copy.deepcopy(method.state_dict())
    train(
        method,
        tmp_path,
        monkeypatch,
        optimiser={"name": "adamw", "lr": 3e-5, "weight_decay": 0.01},
        schedule={"steps": STEPS, "kind": "poly", "power": 0.9, "beyond": 1},
    )

    def loss(batch: Batch, step: int) -> Tensor:
        images = batch.images.masked_fill(~batch.valid[:, None], 0)
        output = net.network.train()(images)
        s, a = enlarged(output.logits, (SIDE, SIDE)), enlarged(output.annotation, (SIDE, SIDE))
        scribble = batch.labels.where(batch.labels != UNLABELLED, CLASSES)
        target = scribble
        if step >= 4:
            present = batch.tags.clone()
            present[:, 0] = 1
            value, guess = (s.detach().softmax(1) * present[:, :, None, None]).max(1)
            guess = guess.masked_fill(value < 0.2, IGNORE)
            target = torch.where(scribble < CLASSES, scribble, guess).masked_fill(scribble == IGNORE, IGNORE)
        onehot = F.one_hot(target.where(target < CLASSES, CLASSES), CLASSES + 1)[..., :-1].movedim(-1, 1)
        p, drawn = s.softmax(1), a.softmax(1)[:, :-1]
        weight = (onehot * (1 - drawn * p) ** 2).detach()
        each = -(weight * s.log_softmax(1)).sum((1, 2, 3)) / (weight.sum((1, 2, 3)) + 1e-7)
        rare = torch.ones(CLASSES + 1, dtype=torch.float64)
        rare[CLASSES] = 0.02
        return each.mean() + F.cross_entropy(a, scribble, rare, ignore_index=IGNORE)

    adam = torch.optim.AdamW(net.parameters(), lr=3e-5, weight_decay=0.01)
    replay(adam, loss, lambda step: (1 - step / (STEPS + 1)) ** 0.9)
    assert_equal(method, net, start)


# --- AGMM ---------------------------------------------------------------------------------------------


def test_agmm(tmp_path, monkeypatch):
    method = build(
        "agmm",
        "scribble",
        "mini_cnn",
        output_stride=8,
        aspp_rates=(1, 2, 3),
        head_width=16,
        low_width=8,
        dropout=0.0,
        backbone_lr_scale=0.1,
    )
    net, start = copy.deepcopy(method), copy.deepcopy(method.state_dict())
    train(method, tmp_path, monkeypatch, optimiser={"name": "sgd", "lr": 0.01, "weight_decay": 1e-4})
    eps = 1e-6

    def entropy(t: Tensor, s: Tensor) -> Tensor:
        return -(t * (s + eps).log() + (1 - t) * (1 - s + eps).log()) / 2

    def loss(batch: Batch, step: int) -> Tensor:
        logits, features = net.network.train()(batch.images)
        y, p = batch.labels, logits.softmax(1)
        known, drawn = y != IGNORE, y < CLASSES
        onehot = F.one_hot(y.where(drawn, CLASSES), CLASSES + 1)[..., :-1].movedim(-1, 1).double()
        count = onehot.sum((2, 3))
        present = (count > 0).double()
        large = enlarged(features, y.shape[1:])
        centre = torch.einsum("bkhw,bchw->bkc", onehot, large) / (count[..., None] + eps)
        keep = enlarged(known[:, None].double(), features.shape[2:])
        distance = (features[:, None] - centre[..., None, None]).abs().mean(2) * keep
        distance = distance * present[..., None, None]
        g = enlarged((-(distance**2)).exp(), y.shape[1:]) * present[..., None, None]
        share = 1 / (present.sum(1) + eps)
        q = present[..., None, None]
        own = ((q * entropy(g, p)).sum(1) * share[:, None, None])[known].mean()
        label = ((q * entropy(onehot, g)).sum(1) * share[:, None, None])[drawn].mean()
        absent = ((1 - batch.tags)[..., None, None] * -(1 - p + eps).log()).sum(1)[known].mean()
        images = present.sum(0)
        pooled = centre.sum(0) * (images / (images + eps))[:, None]
        pairs = list(itertools.combinations(images.nonzero().flatten().tolist(), 2))
        apart = sum((-((pooled[i] - pooled[j]).abs().mean() ** 2)).exp() for i, j in pairs)
        seg = F.cross_entropy(logits, y.where(drawn, IGNORE), ignore_index=IGNORE)
        return seg + own + label + apart / (len(pairs) + eps) + absent

    backbone = list(net.network.backbone.parameters())
    slow = {id(p) for p in backbone}
    rest = [p for p in net.parameters() if id(p) not in slow]
    sgd = torch.optim.SGD(
        [{"params": backbone, "lr": 0.001}, {"params": rest, "lr": 0.01}], momentum=0.9, weight_decay=1e-4
    )
    replay(sgd, loss, lambda step: (1 - step / STEPS) ** 0.9)
    assert_equal(method, net, start)


# --- parts whose terms wait ---------------------------------------------------------------------------

WAITING = {
    "toco": (TOCO | {"contrast_start": 99, "seg_start": 99}, ("network.decoder", "proj_head.")),
    "fsr": (
        HEADS | {"projector_outputs": 32, "seg_start": 99, "ptc_start": 99, "mask_block": 16},
        ("network.decoder",),
    ),
    "dskd_gc": (HEADS | {"projector_out": 32, "warmup_steps": 99}, ("online.decoder", "online.projector")),
}


@pytest.mark.parametrize("before_start", ["zero", "skip"])
@pytest.mark.parametrize("name", WAITING)
def test_what_learns_from_waiting_terms_decays_or_stays(name, before_start, tmp_path, monkeypatch):
    """With `zero` AdamW decays it and counts its steps, with `skip` it does not know it; also in pieces."""
    config, parts = WAITING[name]
    method = build(name, "image", "mini_vit", **VIT, **config, before_start=before_start)
    trained = [n for n, p in method.named_parameters() if p.requires_grad and n.startswith(parts)]
    start = {n: p.detach().clone() for n, p in method.named_parameters()}
    rates = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1}
    trainer = train(method, tmp_path, monkeypatch, optimiser=rates, accumulate=2)
    adam, parameters = trainer.optimiser, dict(method.named_parameters())
    decay = {id(p): group["weight_decay"] for group in adam.param_groups for p in group["params"]}
    share = {d: math.prod(1 - 1e-2 * (1 - i / STEPS) ** 0.9 * d for i in range(STEPS)) for d in (0.0, 0.1)}
    assert trained
    for part in trained:
        parameter = parameters[part]
        if before_start == "zero":
            kept = share[decay[id(parameter)]] * start[part]
            torch.testing.assert_close(parameter.detach(), kept, rtol=1e-12, atol=0)
            assert adam.state[parameter]["step"] == STEPS
        else:
            assert torch.equal(parameter, start[part])
            assert parameter not in adam.state


def test_a_network_that_only_follows_has_no_gradient(tmp_path, monkeypatch):
    """DSKD+GC after its warm-up: the average is not decayed, and its steps are those of the warm-up."""
    config = WAITING["dskd_gc"][0] | {"warmup_steps": 3, "punc_weight": 0.0, "seg_weight": 0.0}
    method = build("dskd_gc", "image", "mini_vit", **VIT, **config)
    rates = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1}
    trainer = train(method, tmp_path, monkeypatch, optimiser=rates)
    ema = [p for p in method.ema.parameters() if p.requires_grad]
    assert ema
    assert all(p.grad is None for p in method.ema.parameters())
    assert {int(trainer.optimiser.state[p]["step"]) for p in ema} == {3}
    waits = method.online.decoder.parameters()
    assert {int(trainer.optimiser.state[p]["step"]) for p in waits} == {STEPS}


def test_the_former_behaviour_has_the_former_digest():
    """`skip` is what recipes meant before they had the choice."""
    for name in ("toco", "fsr", "dskd_gc"):
        former = resolve(f"{name}/mini-image", {"config.before_start": "skip"})
        assert former.digest() != resolve(f"{name}/mini-image").digest()
        assert "before_start" not in former.essential_values()["config"]
