"""FSR as a method: its terms and phases, degenerate batches, teacher and centres, presets."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.basics.errors import UserError
from harness.data.base import DatasetInfo
from harness.engine.batch import Batch, Progress, View
from harness.engine.method import Build
from harness.nn.ema import cosine_momentum
from harness.nn.pixels import normalise
from harness.recipes.resolving import resolve
from methods.fsr import FSR, FSRConfig
from methods.fsr.masking import token_mask

SIDE, CLASSES, TOTAL = 48, 5, 100
INFO = DatasetInfo("toy", "Toy", tuple("abcde"), tuple((k, k, k) for k in range(CLASSES)), {}, 0, "toy")
SMALL = {
    "decoder_width": 16,
    "decoder_dilation": 1,
    "projector_outputs": 32,
    "projector_hidden": 24,
    "projector_bottleneck": 8,
    "mask_block": 16,
    "uncertain_start": 10,
    "seg_start": 20,
    "ptc_start": 5,
    "cam_size": SIDE,
}


def build(seed: int = 0, **config) -> FSR:
    torch.manual_seed(seed)
    return FSR(FSRConfig(**(SMALL | config)), Build(INFO, "image", (SIDE, SIDE), "mini_vit"))


def batch(tags: list[list[int]], valid: Tensor | None = None, seed: int = 1) -> Batch:
    """Random pictures with the given foreground classes."""
    generator = torch.Generator().manual_seed(seed)

    def pictures() -> Tensor:
        return torch.randint(0, 256, (len(tags), 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)

    inside = torch.ones(len(tags), SIDE, SIDE, dtype=torch.bool) if valid is None else valid
    multi_hot = torch.zeros(len(tags), CLASSES)
    for row, present in zip(multi_hot, tags, strict=True):
        row[present] = 1
    first, second = pictures(), pictures()
    labels = torch.where(inside, 254, 255)
    view = View(normalise(second), second, inside)
    return Batch(
        normalise(first), labels, multi_hot, list("xyzw")[: len(tags)], first, inside, {"second": view}
    )


def border() -> Tensor:
    valid = torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
    valid[:, 8:-8, 8:-8] = True
    return valid


BATCHES = {
    "two images": batch([[1], [2, 3]]),
    "no class": batch([[], []]),
    "every class": batch([[1, 2, 3, 4], [1, 2, 3, 4]]),
    "one class, one image": batch([[2]]),
    "one without a class": batch([[], [4]]),
    "void border": batch([[1], [2]], border()),
}


@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("step", [0, 50])
def test_every_batch_has_finite_terms_and_gradients(kind, step):
    method = build().train()
    terms = method(BATCHES[kind], Progress(step, TOTAL, 10))
    assert all(torch.isfinite(t) and t.ndim == 0 for t in terms.values())
    sum(terms.values()).backward()
    gradients = [p.grad for p in method.parameters() if p.grad is not None]
    assert gradients
    assert all(torch.isfinite(g).all() for g in gradients)
    assert all(p.grad is None for p in method.teacher.parameters())


@pytest.mark.parametrize("thresholds", [(0.0, 0.0), (0.99, 1.0)])
def test_labels_of_one_side_alone_give_finite_terms(thresholds):
    """Everything foreground, or nothing: the authors' segmentation loss is NaN then."""
    low, high = thresholds
    method = build(low=low, high=high).train()
    terms = method(batch([[1], [2]]), Progress(50, TOTAL, 10))
    assert all(torch.isfinite(t) for t in terms.values())


@pytest.mark.parametrize("before_start", ["zero", "skip"])
def test_terms_come_at_their_steps(before_start):
    method, data = build(before_start=before_start).train(), batch([[1], [2]])
    always, zero = {"cls", "class", "patch"}, {"seg", "reg"} if before_start == "zero" else set()
    for step, more in ((0, set()), (5, {"ptc"}), (19, {"ptc"}), (20, {"ptc", "seg", "reg"})):
        terms = method(data, Progress(step, TOTAL, 10))
        assert {name for name, term in terms.items() if term != 0} == always | more
        assert set(terms) == always | more | zero
    without = build(class_weight=0.0, patch_weight=0.0, before_start=before_start).train()
    assert set(without(data, Progress(0, TOTAL, 10))) == {"cls"} | zero


def test_maps_are_made_only_where_they_are_used(monkeypatch):
    method, data = build().train(), batch([[1], [2]])
    calls: list[Tensor] = []
    maps = method.training_maps
    monkeypatch.setattr(method, "training_maps", lambda images: (calls.append(images), maps(images))[1])
    for step, views in ((0, []), (5, ["first"]), (9, ["first"]), (10, ["second", "first"])):
        calls.clear()
        method(data, Progress(step, TOTAL, 10))
        wanted = [data.images if v == "first" else data.views["second"].images for v in views]
        assert len(calls) == len(wanted)
        assert all(torch.equal(a, b) for a, b in zip(calls, wanted, strict=True))


def test_masks_follow_the_generator_and_the_uncertain_blocks(monkeypatch):
    method, images, tags = build(), batch([[1], [2]]).images, torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]])
    torch.manual_seed(5)
    one = method.mask(images, tags, 0)
    torch.manual_seed(5)
    assert torch.equal(one, method.mask(images, tags, 9))
    assert one.shape == (2, 6, 6)
    assert one.sum((1, 2)).tolist() == [4 * 4] * 2  # ceil(0.4 * 9) blocks of 2 x 2 tokens
    aux = torch.zeros(2, 4, SIDE, SIDE)
    aux[0, 0, :16] = 0.5  # three uncertain blocks, of a present class
    aux[1, 2, :16] = 0.5  # of an absent one
    monkeypatch.setattr(method, "training_maps", lambda images: (aux, aux))
    torch.manual_seed(5)
    mixed = method.mask(images, tags, 10)
    assert mixed[0, :2].all()
    assert torch.equal(mixed[1], one[1])
    off = build(uncertain_start="off")
    torch.manual_seed(5)
    assert torch.equal(off.mask(images, tags, 99), one)


def test_distillation_equals_the_loss_over_all_tokens():
    """The authors project every token and weigh by the mask; here only masked tokens are projected."""
    method, data = build(drop_path=0.0).train(), batch([[1], [2, 3]])
    torch.manual_seed(2)
    method.class_centre.value.normal_()
    method.patch_centre.value.normal_()
    seen: list[int] = []
    method.network.projector.register_forward_hook(lambda _m, x, _o: seen.append(x[0][..., 0].numel()))
    torch.manual_seed(3)
    terms = method(data, Progress(0, TOTAL, 10))
    assert seen == [2, 2 * 16]
    torch.manual_seed(3)
    mask = method.mask(data.views["second"].images, data.tags[:, 1:], 0)
    views = data.images, data.views["second"].images
    with torch.no_grad():
        teacher = [method.teacher.encoder(v) for v in views]
        student = method.network.encoder(views[1], mask)
        project = method.network.projector, method.teacher.projector
        target = project[1](method.teacher.aggregate(teacher[0])) - method.class_centre.value
        logits = project[0](method.network.aggregate(student))
        cls = -((target / 0.04).softmax(-1) * (logits / 0.1).log_softmax(-1)).sum(-1).mean()
        target = project[1](teacher[1].final.flatten(2).mT) - method.patch_centre.value
        logits = project[0](student.final.flatten(2).mT)
        each = -((target / 0.04).softmax(-1) * (logits / 0.1).log_softmax(-1)).sum(-1)
        weights = mask.flatten(1).float()
        patch = ((each * weights).sum(1) / weights.sum(1)).mean()
    torch.testing.assert_close(terms["class"], 0.1 * cls)
    torch.testing.assert_close(terms["patch"], 0.1 * patch)


def test_local_views_join_the_class_term():
    method, data = build(drop_path=0.0, local_views=2, local_size=24).train(), batch([[1], [2, 3]])
    assert {n: (v.scale, v.independent) for n, v in method.views().items()} == {
        "second": (1.0, True),
        "local0": (0.5, True),
        "local1": (0.5, True),
    }
    for index in range(2):
        raw = torch.randint(0, 256, (2, 3, 24, 24), dtype=torch.uint8)
        view = View(normalise(raw), raw, torch.ones(2, 24, 24, dtype=torch.bool))
        data = dataclasses.replace(data, views={**data.views, f"local{index}": view})
    torch.manual_seed(3)
    both = method(data, Progress(0, TOTAL, 10))["class"]
    method.config = FSRConfig(**SMALL, drop_path=0.0)
    torch.manual_seed(3)
    alone = method(data, Progress(0, TOTAL, 10))["class"]
    with torch.no_grad():
        target, _ = method.teacher_outputs(data.images, data.views["second"].images)
        local = [method.network.encoder(data.views[f"local{i}"].images) for i in range(2)]
        logits = torch.stack([method.network.projector(method.network.aggregate(t)) for t in local])
        each = -((target / 0.04).softmax(-1) * (logits / 0.1).log_softmax(-1)).sum(-1)
    torch.testing.assert_close(both, (alone + 0.1 * each.mean(1).sum()) / 3)


def test_the_other_terms_are_those_of_view_one():
    method, data = build(drop_path=0.0).train(), batch([[1], [2, 3]])
    terms = method(data, Progress(50, TOTAL, 10))
    output = method.network(data.images)
    tags = data.tags[:, 1:]
    cls = sum(F.multilabel_soft_margin_loss(x, tags) for x in (output.cls, output.aux_cls))
    torch.testing.assert_close(terms["cls"], cls)
    cam, _ = method.cams(data.images)
    labels = method.refined_labels(data.images, cam, tags)
    logits = F.interpolate(output.seg, (SIDE, SIDE), mode="bilinear", align_corners=False)
    each = F.cross_entropy(logits, labels, ignore_index=255, reduction="none")
    sides = [each[labels == 0], each[(labels > 0) & (labels < 255)]]
    wanted = sum(s.mean() if len(s) else s.sum() for s in sides) / 2
    torch.testing.assert_close(terms["seg"], 0.1 * wanted)


def test_teacher_and_centres_follow_once_per_step():
    method, groups = build(drop_path=0.0).train(), [batch([[1], [2]], seed=s) for s in (1, 2)]
    old = {n: p.clone() for n, p in method.teacher.named_parameters()}
    outputs = []
    progress = Progress(30, TOTAL, 10)
    for group in groups:
        method(group, progress)
        outputs.append(method.teacher_outputs(group.images, group.views["second"].images))
        assert method.class_centre.value.abs().sum() == 0
    with torch.no_grad():
        for parameter in method.network.parameters():
            parameter.add_(torch.randn_like(parameter))
    method.after_step(progress)
    momentum = cosine_momentum(0.9995, 30, TOTAL)
    new = dict(method.network.named_parameters())
    for name, parameter in method.teacher.named_parameters():
        expected = momentum * old[name] + (1 - momentum) * new[name]
        torch.testing.assert_close(parameter, expected)
    cls, patches = (torch.cat([o[i] for o in outputs]) for i in range(2))
    torch.testing.assert_close(method.class_centre.value, 0.1 * cls.mean(0))
    torch.testing.assert_close(method.patch_centre.value, 0.1 * patches.mean((0, 1)))


def test_stochastic_depth_in_maps_and_teacher_has_a_switch():
    data = batch([[1], [2]])
    for noisy in (True, False):
        method = build(drop_path=0.5, noisy_maps=noisy).train()
        with torch.no_grad():
            maps = [method.training_maps(data.images)[0] for _ in range(2)]
            outputs = [method.teacher_outputs(data.images, data.images)[1] for _ in range(2)]
        assert torch.equal(*maps) != noisy
        assert torch.equal(*outputs) != noisy
        assert method.network.training
        assert method.teacher.training


@pytest.mark.parametrize("aggregation", ["attention", "average", "max"])
def test_the_class_token_leaves_hidden_patches_out(aggregation):
    method = build(aggregation=aggregation, aggregate_masked=False).eval()
    network, images = method.network, batch([[1], [2]]).images
    hidden = token_mask(torch.rand(2, 3, 3) < 0.4, 2)
    with torch.no_grad():
        tokens = network.encoder(images)
        noise = torch.randn_like(tokens.raw)
        changed = [torch.where(hidden[:, None], noise, t) for t in (tokens.raw, tokens.final)]
        other = tokens._replace(raw=changed[0], final=changed[1])
        torch.testing.assert_close(network.aggregate(tokens, hidden), network.aggregate(other, hidden))
        assert not torch.allclose(network.aggregate(tokens), network.aggregate(other))
        assert torch.isfinite(network.aggregate(tokens, torch.ones_like(hidden))).all()
    terms = method.train()(batch([[1], [2]]), Progress(50, TOTAL, 10))
    sum(terms.values()).backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)


def test_student_and_teacher_predict_and_label():
    method = build().eval()
    with torch.no_grad():
        for parameter in method.teacher.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        images = batch([[1], [2]]).images[..., :40]
        student, teacher = (method.predict(images, n) for n in method.networks)
        assert student.shape == teacher.shape == (2, CLASSES, SIDE, 40)
        assert not torch.allclose(student, teacher)
        assert method.grid_logits(images).shape == (2, CLASSES, 6, 5)
    labels = method.pseudo_labels(images, batch([[1], [2]]).tags)
    assert set(labels) == {"cam", "aux-cam", "refined"}
    for index, one in enumerate(zip(*labels.values(), strict=True)):
        assert {int(v) for label in one for v in label.unique()} <= {0, index + 1, 255}


def test_blocks_are_made_of_whole_patches_and_may_reach_over_the_edge():
    with pytest.raises(UserError, match="whole patches"):
        build(mask_block=20)
    method = build(mask_block=32, uncertain_start=0).train()
    mask = method.mask(batch([[1], [2]]).images, torch.ones(2, 4), 0)
    assert mask.shape == (2, 6, 6)
    assert all(len(set(m[:4, :4].flatten().tolist())) == 1 for m in mask)
    terms = method(batch([[1], [2]]), Progress(0, TOTAL, 10))
    assert all(torch.isfinite(t) for t in terms.values())


def test_the_older_state_differs_in_what_the_commit_changed():
    head, older = resolve("fsr/voc-image-vitb"), resolve("fsr/voc-image-vitb-pre_3a7cbf7")
    one, other = dataclasses.asdict(head.config), dataclasses.asdict(older.config)
    changed = {
        "aggregate_masked": False,
        "residual_scale": 0.1,
        "uncertain_start": 5000,
        "teacher_temperature": 0.04,
        "teacher_temperature_steps": 0,
        "ema_momentum": 0.996,
    }
    assert {k: v for k, v in other.items() if v != one[k]} == changed
    assert (head.recipe.schedule.kind, older.recipe.schedule.kind) == ("cosine", "poly")
    assert (head.recipe.optimiser.weight_decay, older.recipe.optimiser.weight_decay) == (0.05, 0.01)


def test_local_views_have_the_colours_of_the_code():
    """FSR transforms.py: transform2."""
    local = build(local_views=1, local_size=16).views()["local0"].augment
    assert (local.area, local.jitter, local.grey, local.blur) == ((0.05, 0.32), 0.8, 0.2, 0.5)
