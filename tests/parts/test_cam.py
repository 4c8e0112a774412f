"""Activation maps: golden labels, scales and mirror, edge cases of both thresholds."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from golden_arrays import arrays, boxes
from torch import Tensor

from harness.nn.resize import resize
from methods.parts.cam import (
    activation_maps,
    cam_to_label,
    multi_scale_cam,
    normalised,
    present_cam,
    roi_code,
)
from methods.parts.colours import colours, denormalise


def test_labels_are_the_authors(golden):
    gold = arrays(golden / "fsr" / "cam_to_label.npz")
    cam, tags = gold["cam"], gold["cls_label"]
    high, low, score = (float(gold[k]) for k in ("high", "low", "bkg"))
    inside = boxes(gold["img_box"], *cam.shape[-2:])
    assert torch.equal(present_cam(cam, tags), gold["valid_cam"])
    training = cam_to_label(cam, tags, (low, high))
    assert torch.equal(training, gold["label_ignore_mid"])
    assert set(training.unique().tolist()) >= {0, 255}
    boxed = cam_to_label(cam, tags, (low, high), inside)
    for key in ("label_ignore_mid_box", "toco_label_ignore_mid_box"):
        assert torch.equal(boxed, gold[key])
    for key in ("label_bkg", "toco_label_bkg"):
        assert torch.equal(cam_to_label(cam, tags, score), gold[key])
    assert torch.equal(roi_code(cam, tags, low, high), gold["toco_roi_mask"].long())


def test_values_on_a_threshold():
    cam = torch.tensor([0.25, 0.2500001, 0.7, 0.7000001]).view(1, 1, 1, 4)
    tags = torch.ones(1, 1)
    assert cam_to_label(cam, tags, (0.25, 0.7)).flatten().tolist() == [0, 255, 255, 1]
    assert cam_to_label(cam, tags, 0.7).flatten().tolist() == [0, 0, 0, 1]
    assert roi_code(cam, tags, 0.25, 0.7).flatten().tolist() == [0, 1, 2, 2]


def test_a_picture_without_tags_is_background_and_absent_classes_never_win():
    torch.manual_seed(0)
    cam = torch.rand(3, 4, 5, 6)
    cam[:, 3] = 1.0
    tags = torch.tensor([[0.0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]])
    for thresholds in (0.1, (0.1, 0.2)):
        label = cam_to_label(cam, tags, thresholds)
        assert (label[0] == 0).all()
        assert set(label[1].unique().tolist()) <= {0, 1, 255}
        assert 4 not in label


def test_maps_are_the_classifier_at_every_place_and_carry_no_gradient():
    torch.manual_seed(0)
    features = torch.randn(2, 7, 4, 5, requires_grad=True)
    weight = torch.randn(3, 7, 1, 1, requires_grad=True)
    maps = activation_maps(features, weight)
    torch.testing.assert_close(maps, F.conv2d(features, weight).detach())
    assert torch.equal(maps, activation_maps(features, weight[..., 0, 0]))
    assert not maps.requires_grad
    assert (maps < 0).any()


def test_a_mirrored_picture_has_mirrored_maps_and_every_map_fills_its_range():
    torch.manual_seed(0)
    images, kernel = torch.randn(2, 3, 24, 20), torch.randn(4, 3, 3, 3)

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        maps = F.conv2d(x, kernel, stride=2, padding=1)
        return maps[:, :3], maps[:, 3:]

    three, one = multi_scale_cam(function, images)
    assert three.shape == (2, 3, 24, 20)
    assert one.shape == (2, 1, 24, 20)
    mirrored, _ = multi_scale_cam(function, images.flip(-1))
    torch.testing.assert_close(mirrored, three.flip(-1))
    assert (three.amin((2, 3)) == 0).all()
    torch.testing.assert_close(three.amax((2, 3)), torch.ones(2, 3), rtol=0, atol=1e-4)
    assert not torch.allclose(three, multi_scale_cam(function, images, (1.0,))[0], atol=0.05)
    # Scale 1 takes part whether listed or not, once.
    assert torch.equal(
        multi_scale_cam(function, images, (0.5,))[1], multi_scale_cam(function, images, (0.5, 1.0))[1]
    )


def test_scales_are_summed_after_the_mirrors_maximum():
    """Each scale written out."""
    torch.manual_seed(0)
    images, kernel = torch.randn(1, 3, 21, 18), torch.randn(2, 3, 2, 2)
    total = torch.zeros(1, 2, 21, 18)
    for size in ((21, 18), (10, 9), (31, 27)):
        scaled = resize(images, size, align_corners=False)
        plain = resize(F.conv2d(scaled, kernel), (21, 18), align_corners=False)
        mirrored = resize(F.conv2d(scaled.flip(-1), kernel), (21, 18), align_corners=False).flip(-1)
        total += torch.maximum(plain, mirrored).clamp(min=0)
    (found,) = multi_scale_cam(lambda x: (F.conv2d(x, kernel),), images)
    torch.testing.assert_close(found, normalised(total))


def test_a_flat_map_is_zero_not_nan():
    (cam,) = multi_scale_cam(lambda x: (x[:, :1] * 0 - 1,), torch.rand(2, 3, 8, 8))
    assert (cam == 0).all()


def test_colours_come_back_and_are_cut_off(golden):
    gold = arrays(golden / "fsr" / "cls_loss_denorm.npz")
    assert torch.equal(denormalise(gold["norm_img"]), gold["denorm_u8"])
    torch.testing.assert_close(denormalise(gold["norm_img"]) / 255, gold["denorm01"], rtol=1e-6, atol=0)
    whole = colours(gold["norm_img"])
    assert torch.equal(whole.to(torch.uint8), gold["denorm_u8"])
    gold = arrays(golden / "fsr" / "refine_cams.npz")
    assert torch.equal(
        denormalise(gold["image_norm"]), (gold["image_denorm01"] * 255).round().to(torch.uint8)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_maps_are_summed_in_float32(dtype):
    (cam,) = multi_scale_cam(lambda x: (x[:, :2].to(dtype),), torch.rand(1, 3, 8, 8))
    assert cam.dtype == torch.float32
