"""The equations of DSKD+GC against golden vectors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.engine.batch import IGNORE
from harness.nn.ema import cosine_momentum, ema_update
from methods.dskd_gc import binary
from methods.dskd_gc.correction import class_maps
from methods.dskd_gc.losses import (
    mirror_consistency,
    region_of_interest,
    segmentation_loss,
    uncertain_patch_loss,
)
from methods.parts.cam import cam_to_label, present_cam
from methods.parts.projector import Projector
from methods.parts.token_contrast import patch_token_contrast
from methods.parts.transformer import classification_loss

DTYPES = {torch.float64: 1e-12, torch.float32: 1e-5}


@pytest.fixture(params=DTYPES, ids=["float64", "float32"])
def dtype(request):
    return request.param


@pytest.fixture
def read(golden, dtype):
    """Arrays of a file, floating point in the dtype under test."""

    def reader(name: str):
        file = np.load(golden / "dskd_gc" / f"{name}.npz")

        def get(key: str) -> Tensor:
            value = torch.from_numpy(np.asarray(file[key]))
            return value.to(dtype) if value.is_floating_point() else value

        return get

    return reader


def near(ours: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, expected, rtol=DTYPES[dtype], atol=DTYPES[dtype])


def test_maps_regions_and_token_labels(read, dtype):
    get = read("cam_roi")
    cam = class_maps(get("tokens"), get("weight"))
    near(cam, get("cam"), dtype)
    present = present_cam(cam, get("cls"))
    region = region_of_interest(present, float(get("l_th")), float(get("h_th")))
    assert torch.equal(region, get("roi").bool())
    edge = present_cam(get("edge_cam"), get("edge_cls"))
    assert torch.equal(region_of_interest(edge), get("edge_roi").bool())
    assert torch.equal(region_of_interest(get("edge_cam")), get("edge_roi_without_class_filter").bool())
    labels = cam_to_label(cam, get("cls"), (float(get("low")), float(get("high"))))
    assert torch.equal(labels, get("ptc_label_class"))
    assert torch.equal(binary(labels), get("ptc_label_binary"))


def test_patch_token_contrast(read, dtype):
    get = read("ptc")
    features = get("f").mT[..., None]
    for kind in ("class", "binary"):
        labels = get(f"y_{kind}")[..., None]
        pooled = patch_token_contrast(features, labels, "paper")
        near(pooled, get(f"paper_pooled_{kind}"), dtype)
        each = patch_token_contrast(features, labels, "paper", reduce="per_image")
        near(each, get(f"paper_perimage_{kind}"), dtype)
        near(patch_token_contrast(features, labels, "toco"), get(f"toco_{kind}"), dtype)
    by_hand = get("hand_f").mT[..., None]
    for form in ("paper", "toco"):
        near(patch_token_contrast(by_hand, get("hand_y")[..., None], form), get(f"hand_{form}"), dtype)


@pytest.mark.parametrize("mode", ["channel", "token", "flat"])
def test_mirror_consistency(read, dtype, mode):
    get = read("sim")
    mirrored, plain = get("pt"), get("ps")
    near(mirror_consistency(mirrored, plain, mode), get(mode), dtype)
    near(mirror_consistency(mirrored.flip(-1), plain, mode), get(f"{mode}_noflip"), dtype)
    near(mirror_consistency(plain.flip(-1), plain, mode), get(f"{mode}_self"), dtype)
    assert get(mode) > -1
    assert mirror_consistency(plain, plain, mode) > -0.9  # mirrored the wrong way


def test_uncertain_patches(read, dtype):
    get = read("punc")
    region = get("roi").bool()
    target, prediction = get("zs"), get("zt").requires_grad_()
    image = region.nonzero()[:, 0]

    def loss(**options) -> Tensor:
        return uncertain_patch_loss(target[region], prediction[region], image, 2, **options)

    near(loss(), get("pooled"), dtype)
    near(loss(reduce="per_image"), get("perimage"), dtype)
    options = {"target_temperature": 0.04, "temperature": 0.1, "centre": get("center")}
    near(loss(**options), get("dino"), dtype)
    (grad,) = torch.autograd.grad(loss(), prediction)
    near(grad, get("grad_teacher"), dtype)
    assert (grad[~region] == 0).all()
    nothing = uncertain_patch_loss(target[:0, 0], prediction[:0, 0], image[:0], 2)
    near(nothing.detach(), get("empty"), dtype)
    nothing.backward()
    assert (prediction.grad == 0).all()


def test_no_gradient_reaches_the_targets():
    target = torch.randn(5, 8, requires_grad=True)
    prediction = torch.randn(5, 8, requires_grad=True)
    uncertain_patch_loss(target, prediction, torch.zeros(5, dtype=torch.long), 1).backward()
    assert target.grad is None
    assert prediction.grad.abs().sum() > 0


def test_without_temperatures_the_loss_stays_near_the_logarithm_of_the_outputs(read):
    """Outputs are cosines, so that 4096 of them make an almost flat softmax."""
    get = read("punc")
    assert float(get("log_4096")) == pytest.approx(math.log(4096))
    assert float(get("literal_4096_value")) == pytest.approx(math.log(4096), abs=0.01)
    torch.manual_seed(0)
    one, other = (Projector(32, 4096, 64, 256) for _ in range(2))
    tokens = torch.randn(50, 32)
    with torch.no_grad():
        loss = uncertain_patch_loss(one(tokens), other(tokens), torch.zeros(50, dtype=torch.long), 1)
    assert abs(loss - math.log(4096)) < 0.01


def test_moving_average(read, dtype):
    get = read("ema")
    length = int(get("K"))
    for k, expected in zip(get("k").tolist(), get("momentum").double().tolist(), strict=True):
        assert cosine_momentum(0.996, k, length) == pytest.approx(expected, abs=1e-7)
    for convention in ("standard", "literal"):
        average, network = torch.nn.Module(), torch.nn.Module()
        average.w = torch.nn.Parameter(get("s0").clone(), requires_grad=False)
        for k, (teacher, expected) in enumerate(
            zip(get("teachers"), get(f"student_{convention}"), strict=True)
        ):
            network.w = torch.nn.Parameter(teacher)
            momentum = cosine_momentum(0.996, k, 6)
            ema_update(average, network, momentum if convention == "standard" else 1 - momentum)
            near(average.w, expected, dtype)


def test_classification_and_segmentation(read, dtype):
    get = read("losses")
    near(classification_loss(get("cls_logit"), get("cls_y")), get("cls_loss"), dtype)
    logits, labels = get("seg_logit").requires_grad_(), get("seg_y")
    for form in ("mean", "per_image_sum", "balanced"):
        near(segmentation_loss(logits, labels, form).detach(), get(f"seg_{form}"), dtype)
    nothing = segmentation_loss(logits, torch.full_like(labels, IGNORE))
    near(nothing.detach(), get("seg_all_ignored_mean"), dtype)
    nothing.backward()
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("form", ["mean", "per_image_sum", "balanced"])
@pytest.mark.parametrize("label", [0, 2, IGNORE])
def test_segmentation_is_finite_with_one_kind_of_label(form, label):
    logits = torch.randn(2, 4, 5, 6, requires_grad=True)
    loss = segmentation_loss(logits, torch.full((2, 5, 6), label), form)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
    assert (loss == 0) == (label == IGNORE)


def test_totals_by_stage(read, dtype):
    """E23 with the weights of the paper and the terms of each stage."""
    from methods.dskd_gc import DSKDGCConfig

    get = read("losses")
    c = DSKDGCConfig()
    names = ("cls", "ptc", "sim", "punc", "seg")
    parts = dict(zip(names, get("parts").double().tolist(), strict=True))
    weights = dict(zip(names, (1.0, c.ptc_weight, c.sim_weight, c.punc_weight, c.seg_weight), strict=True))
    assert list(weights.values()) == pytest.approx(get("weights").tolist())

    def total(*on: str) -> float:
        return sum(weights[n] * parts[n] for n in on)

    assert total(*names) == pytest.approx(float(get("total_all")), abs=1e-6)
    assert total("cls", "ptc", "sim") == pytest.approx(float(get("total_warmup")), abs=1e-6)
    assert total("cls", "ptc", "punc", "seg") == pytest.approx(float(get("total_after")), abs=1e-6)
