"""ToCo's parts: local crops, regions, phases, degenerate batches, what a step costs the teacher."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from golden_arrays import arrays, boxes

from harness.basics.errors import UserError
from harness.basics.registry import DATASETS
from harness.engine.batch import IGNORE, UNLABELLED, Batch, Progress, View
from harness.engine.method import Build
from harness.evaluation.evaluator import gather, iou_from_counts
from harness.nn.dense_crf import dense_crf_loss
from harness.nn.pixels import normalise
from methods.parts.colours import colours
from methods.parts.token_contrast import patch_token_contrast
from methods.parts.transformer import (
    balanced_cross_entropy,
    classification_loss,
    dense_energy,
    optimiser_groups,
)
from methods.toco import ToCo, ToCoConfig, cut_local_crops

SIDE = 48
SMALL = {
    "aux_layer": -2,
    "decoder_width": 16,
    "decoder_dilation": 1,
    "cam_scales": (1.0, 0.5),
    "cam_size": SIDE,
    "refine_dilations": (1, 2),
    "projection_width": 32,
    "projection_hidden": 24,
    "projection_bottleneck": 16,
    "local_crops": 3,
    "local_size": 16,
    "seg_start": 10,
}


def make(**config) -> ToCo:
    torch.manual_seed(0)
    info = DATASETS.get("mini").info
    return ToCo(ToCoConfig(**(SMALL | config)), Build(info, "image", (SIDE, SIDE), "mini_vit", "none"))


def batch(size: int = 2, padded: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(1)
    raw = torch.randint(0, 256, (size, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    raw[:, :, :, : SIDE // 2] //= 3
    valid = torch.ones(size, SIDE, SIDE, dtype=torch.bool)
    if padded:
        valid[:, -padded:] = False
        raw[:, :, -padded:] = 0
    labels = torch.full((size, SIDE, SIDE), UNLABELLED).masked_fill(~valid, IGNORE)
    tags = torch.zeros(size, 7)
    tags[torch.arange(size), 1 + torch.arange(size) % 6] = 1
    view = View(normalise(raw), raw, valid)
    views = {"second": View(normalise(raw.flip(-1)), raw.flip(-1), valid.flip(-1)), "local": view}
    return Batch(normalise(raw), labels, tags, [str(i) for i in range(size)], raw, valid, views)


def late(step: int = 15) -> Progress:
    return Progress(step, 20, 10)


# --- losses of golden/fsr ----------------------------------------------------------------------------


def test_segmentation_loss_is_the_authors_and_an_empty_side_is_zero(golden):
    gold = arrays(golden / "fsr" / "seg_loss.npz")
    logits = gold["logits"].requires_grad_()
    loss = balanced_cross_entropy(logits, gold["label"])
    torch.testing.assert_close(loss, gold["loss"], rtol=1e-5, atol=0)
    (grad,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(grad, gold["grad"], rtol=1e-5, atol=1e-8)
    # Their loss is NaN here, its gradient is not.
    assert bool(gold["loss_no_fg_is_nan"])
    loss = balanced_cross_entropy(logits, gold["label_no_fg"])
    assert torch.isfinite(loss)
    (grad,) = torch.autograd.grad(0.1 * loss, logits)
    torch.testing.assert_close(grad, gold["grad_of_0p1_times_loss_no_fg"], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("labels", [0, 3, IGNORE])
def test_segmentation_loss_of_one_label(labels):
    logits = torch.randn(2, 5, 6, 6, requires_grad=True)
    target = torch.full((2, 6, 6), labels)
    loss = balanced_cross_entropy(logits, target)
    loss.backward()
    expected = 0.0 if labels == IGNORE else F.cross_entropy(logits, target).item() / 2
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad.abs().sum() == 0) == (labels == IGNORE)


def test_classification_loss_is_the_authors(golden):
    gold = arrays(golden / "fsr" / "cls_loss_denorm.npz")
    logits = gold["logits"].requires_grad_()
    loss = classification_loss(logits, gold["target"])
    torch.testing.assert_close(loss, gold["loss"], rtol=1e-6, atol=0)
    (grad,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(grad, gold["grad"], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", ["", "_box"])
def test_dense_energy_is_the_authors(golden, kind):
    gold = arrays(golden / "fsr" / "dense_energy.npz")
    logits = gold["logits"].requires_grad_()
    region = boxes(gold["img_box"], 40, 48) if kind else None
    loss = dense_energy(logits, gold["image_norm"], gold["label"].long(), region)
    torch.testing.assert_close(loss, gold[f"loss{kind}"][0], rtol=1e-5, atol=0)
    (grad,) = torch.autograd.grad(loss, logits)
    expected = gold[f"grad{kind}"]
    torch.testing.assert_close(grad, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_an_exact_kernel_weighs_about_twice_as_much(golden):
    """What the golden files say of the lattice, by the other kernel of the dense energy."""
    gold = arrays(golden / "fsr" / "dense_energy.npz")
    pictures, unlabelled = colours(gold["image_norm"]), gold["label"] == IGNORE
    exact = dense_crf_loss(gold["logits"].softmax(1), pictures, unlabelled=unlabelled, kernel="exact")
    torch.testing.assert_close(1e-7 * exact.double(), gold["loss_exact_gaussian"], rtol=1e-4, atol=0)
    assert 1.5 < gold["loss_exact_gaussian"] / gold["loss"][0] < 2.5


def test_scores_are_the_authors(golden):
    """Their mean goes over the classes that occur in the masks."""
    gold = arrays(golden / "fsr" / "evaluate.npz")
    pairs = [("x", p.numpy(), t.numpy()) for p, t in zip(gold["pred"], gold["gt"], strict=True)]
    for classes, mean in ((6, gold["miou6"]), (21, gold["miou21_default"])):
        counts = gather(pairs, classes)
        total = [getattr(counts, k).sum(0) for k in ("intersection", "predicted", "labelled")]
        iou, miou = iou_from_counts(*total, classes="labelled")
        assert miou / 100 == pytest.approx(float(mean), rel=1e-12)
    counts = gather(pairs, 6)
    hit, _, labelled = (getattr(counts, k).sum(0) for k in ("intersection", "predicted", "labelled"))
    iou, _ = iou_from_counts(hit, counts.predicted.sum(0), labelled, classes="labelled")
    present = labelled > 0
    assert (iou[present] / 100).tolist() == pytest.approx(gold["iou6"][present].tolist(), rel=1e-12)
    assert hit.sum() / labelled.sum() == pytest.approx(float(gold["pacc6"]), rel=1e-12)
    assert (hit[present] / labelled[present]).mean() == pytest.approx(float(gold["macc6"]), rel=1e-12)


# --- local crops -------------------------------------------------------------------------------------


def test_local_crops_are_the_authors(golden):
    gold = arrays(golden / "fsr" / "toco_local_crops.npz")
    number, size = int(gold["crop_num"]), int(gold["crop_size"])
    height, width = (side - 2 * (size // 2) for side in gold["image"].shape[-2:])
    in_order = torch.linspace(1, 0, height * width).view(1, height, width).expand(2, -1, -1)
    crops, flags = cut_local_crops(gold["image"], gold["roi_mask"], number, size, noise=in_order)
    assert torch.equal(crops, gold["crops"])
    assert torch.equal(flags, gold["flags"][:, 2:])


def test_local_crops_stand_on_what_is_not_foreground_where_there_is_enough():
    torch.manual_seed(0)
    position = torch.arange(40 * 44.0).view(1, 1, 40, 44).expand(2, 3, -1, -1)
    roi = torch.full((2, 40, 44), 2)
    roi[0, 10:20, 25:30] = 1  # fifty candidates; the second picture has none
    seen = []
    for _ in range(20):
        crops, flags = cut_local_crops(position, roi, 6, 12)
        assert crops.shape == (2, 6, 3, 12, 12)
        seen.append(crops[:, :, 0, 6, 6])
        assert (flags == 1).all()  # nearly all is foreground
    middle = torch.cat(seen, 1)
    rows, columns = middle // 44, middle % 44
    assert ((rows[0] >= 10) & (rows[0] < 20) & (columns[0] >= 25) & (columns[0] < 30)).all()
    assert rows[1].max() - rows[1].min() > 20
    assert len(middle[0].unique()) > 30


def test_background_crops_are_negative_and_too_large_ones_refused():
    images, roi = torch.randn(1, 3, 30, 30), torch.zeros(1, 30, 30, dtype=torch.long)
    assert (cut_local_crops(images, roi, 4, 10)[1] == 0).all()
    with pytest.raises(ValueError, match="crops of 30 pixels"):
        cut_local_crops(images, roi, 4, 30)


# --- the method --------------------------------------------------------------------------------------


@pytest.mark.parametrize("before_start", ["zero", "skip"])
def test_terms_appear_with_their_phases_and_weights(before_start):
    method = make(contrast_start=5, seg_start=10, before_start=before_start)
    names = {}
    for step in (0, 5, 10):
        terms = method(batch(), late(step))
        names[step] = {name for name, term in terms.items() if term != 0}
        # Terms of weight 0 that a head learns from are there and 0, where they are multiplied by 0.
        zero = {"ctc", "seg", "reg"} - names[step] if before_start == "zero" else set()
        assert set(terms) - names[step] == zero
    assert names == {
        0: {"cls", "aux_cls"},
        5: {"cls", "aux_cls", "ptc", "ctc"},
        10: {"cls", "aux_cls", "ptc", "ctc", "seg", "reg"},
    }
    torch.manual_seed(1)
    one = method(batch(), late())
    torch.manual_seed(1)
    method.config = dataclasses.replace(method.config, ptc_weight=0.4, seg_weight=0.3, ctc_weight=0.0)
    other = method(batch(), late())
    assert ("ctc" in other) == (before_start == "zero")
    torch.testing.assert_close(other["ptc"], 2 * one["ptc"])
    torch.testing.assert_close(other["seg"], 3 * one["seg"])


def test_pseudo_labels_come_from_the_auxiliary_maps_until_the_final_ones_are_due(monkeypatch):
    method = make(seg_start=0, final_cam_start=8, second_flip="none")
    used = []
    real = method.refined_labels
    monkeypatch.setattr(method, "refined_labels", lambda i, cam, t, v: used.append(cam) or real(i, cam, t, v))
    method(batch(), late(7))
    method(batch(), late(8))
    cam, aux = method.cams(batch().images)
    torch.testing.assert_close(used[0], aux)
    torch.testing.assert_close(used[1], cam)


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0)])
def test_what_the_loss_has_encoded_is_not_encoded_again(monkeypatch, scales):
    method = make(seg_start=0, second_flip="none", cam_scales=scales, ctc_weight=0.0)
    images = batch().images
    plain = method.cams(images)
    output = method.network(images)
    for found, expected in zip(method.cams(images, known=output.tokens), plain, strict=True):
        torch.testing.assert_close(found, expected)
        assert not found.requires_grad
    seen, encoder = [], type(method.network.encoder)
    real = encoder.forward
    monkeypatch.setattr(
        encoder, "forward", lambda self, x, *more: seen.append(len(x)) or real(self, x, *more)
    )
    method(batch(), late())
    assert sum(seen) == len(images) * 2 * len(scales)  # once the picture, its mirror, and both at each scale


@pytest.mark.parametrize(
    "kind", ["no tags", "all classes", "one class", "padded", "all padded", "one picture"]
)
def test_degenerate_batches_have_a_finite_loss_and_gradient(kind):
    method = make()
    data = batch(1 if kind == "one picture" else 2, padded={"padded": 13, "all padded": SIDE}.get(kind, 0))
    if kind == "no tags":
        data.tags.zero_()
    elif kind == "all classes":
        data.tags.fill_(1)
    elif kind == "one class":
        data.tags.zero_()
        data.tags[:, 2] = 1
    terms = method(data, late())
    assert all(torch.isfinite(t) for t in terms.values())
    torch.stack(list(terms.values())).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)
    if kind == "all padded":  # nothing to segment, nothing to contrast
        assert terms["seg"] == 0
        assert terms["ptc"].item() == pytest.approx(0.2 * 0.5)


@pytest.mark.parametrize(("region", "expected"), [("released", "corner"), ("scaled", "shrunk")])
def test_the_box_on_the_token_grid(monkeypatch, region, expected):
    """As released, the first six rows of pixels decide; else the padded third of the tokens goes."""
    method = make(token_region=region, second_flip="none")
    data = batch(padded=16)
    seen = []
    monkeypatch.setattr(
        "methods.toco.patch_token_contrast", lambda f, y: seen.append(y) or patch_token_contrast(f, y)
    )
    method(data, late())
    undecided = (seen[0] == IGNORE).all(2)  # rows of tokens
    if expected == "corner":
        assert not undecided.all(1).any()
        data.valid[:, :7] = False
        method(data, late())
        assert (seen[1] == IGNORE).all()
    else:
        assert undecided[:, 4:].all()


def test_the_second_flip_mirrors_pictures_each_by_its_coin():
    from methods.toco import _coin_flip

    images = torch.arange(64 * 3 * 2 * 4.0).view(64, 3, 2, 4)
    torch.manual_seed(0)
    flipped = _coin_flip(images)
    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    assert ((flipped == images).flatten(1).all(1) | mirrored).all()
    assert 16 < mirrored.sum() < 48


def test_only_the_projection_head_is_averaged_and_it_follows_slowly():
    method = make(projection_momentum=0.9)
    assert {n.split(".")[0] for n, p in method.named_parameters() if not p.requires_grad} == {
        "network",  # positions
        "proj_head",  # its gain
        "proj_head_t",
    }
    before = method.proj_head_t.mlp[0].weight.clone()
    with torch.no_grad():
        method.proj_head.mlp[0].weight += 1
    method.after_step(late())
    torch.testing.assert_close(method.proj_head_t.mlp[0].weight, before + 0.1)
    method(batch(), late())["ctc"].backward()
    assert all(p.grad is None for p in method.proj_head_t.parameters())
    assert method.network.encoder.cls_token.grad.abs().sum() > 0


def test_pseudo_labels_and_networks(monkeypatch):
    method = make().eval()
    data = batch()
    labels = method.pseudo_labels(data.images[..., :40, :], data.tags)
    assert set(labels) == {"cam", "aux-cam", "refined"}
    for name, label in labels.items():
        assert label.shape == (2, 40, SIDE)
        for i in range(2):
            allowed = {0, 1 + i % 6, IGNORE} if name == "refined" else {0, 1 + i % 6}
            assert set(label[i].unique().tolist()) <= allowed
    squashed = F.interpolate(data.images[..., :40, :], (SIDE, SIDE), mode="bilinear", align_corners=False)
    assert torch.equal(method.squashed(data.images[..., :40, :]), squashed)


def test_pooling_by_log_sum_exp_lies_between_mean_and_maximum():
    method = make(pooling="lse", lse_sharpness=4.0)
    features = torch.randn(2, 96, 5, 6)
    scores = method.network.classifier(features).flatten(2)
    pooled = method.network.class_scores(features, method.network.classifier)
    assert (pooled <= scores.amax(2)).all()
    assert (pooled >= scores.mean(2)).all()
    sharp = make(pooling="lse", lse_sharpness=1e4)
    sharp.load_state_dict(method.state_dict())
    pooled = sharp.network.class_scores(features, sharp.network.classifier)
    torch.testing.assert_close(pooled, scores.amax(2), rtol=1e-3, atol=1e-3)


def test_heads_learn_ten_times_as_fast_and_groups_may_leave_vectors_undecayed():
    method = make()
    groups = {g["lr_scale"]: g for g in method.parameter_groups()}
    assert set(groups) == {1.0, 10.0}
    assert all("weight_decay" not in g for g in groups.values())
    encoder = {id(p) for p in method.network.encoder.parameters() if p.requires_grad}
    assert {id(p) for p in groups[1.0]["params"]} == encoder
    split = optimiser_groups(method, ("network.encoder.",), 10.0, "matrices")
    names = {id(p): n for n, p in method.named_parameters()}
    free = [names[id(p)] for g in split if g.get("weight_decay") == 0 for p in g["params"]]
    assert "network.encoder.cls_token" in free
    assert all(n.endswith(("bias", "cls_token")) or "norm" in n for n in free)
    kept = [names[id(p)] for g in split if "weight_decay" not in g for p in g["params"]]
    assert all(n.endswith(("weight", "weight_v")) for n in kept)


def test_a_data_set_without_background_is_refused():
    info = dataclasses.replace(DATASETS.get("mini").info, background=None)
    with pytest.raises(UserError, match="takes class 0 as the background"):
        ToCo(ToCoConfig(), Build(info, "image", (SIDE, SIDE), "mini_vit", "none"))
