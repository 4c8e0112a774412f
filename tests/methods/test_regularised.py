"""The comparison methods: partial cross-entropy plus one regularised loss each."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from small_methods import build, make_batch

from harness.engine.batch import UNLABELLED, Progress
from harness.nn.dense_crf import dense_crf_loss
from harness.nn.resize import resize
from harness.recipes.resolving import resolve
from methods.parts.gated_crf import gated_crf_loss

NAMES = ("rloss", "gated_crf", "tree_energy")
MIDDLE = Progress(500, 1000, 10)


@pytest.mark.parametrize("name", NAMES)
def test_the_segmentation_term_is_that_of_partial_cross_entropy(name):
    own, plain = build(f"{name}/mini-scribble"), build("pce/mini-scribble")
    plain.load_state_dict(own.state_dict(), strict=False)
    batch = make_batch(own, "scribble")
    for method in (own, plain):
        for module in method.modules():
            if isinstance(module, torch.nn.Dropout2d):
                module.p = 0.0
    terms = own.loss(batch, MIDDLE)
    assert set(terms) == {"seg", "reg"}
    torch.testing.assert_close(terms["seg"], plain.loss(batch, MIDDLE)["seg"])


def test_the_dense_regulariser_sees_the_unpadded_picture_in_full_colours():
    method = build("rloss/mini-scribble").eval()
    batch = make_batch(method, "scribble")
    c = method.config
    probabilities = method.predict(batch.images).softmax(1)
    expected = dense_crf_loss(
        probabilities, batch.raw, roi=batch.valid.float(), sigma_xy=c.sigma_xy, sigma_rgb=15.0, scale=c.scale
    )
    found = method.loss(batch, MIDDLE)["reg"]
    torch.testing.assert_close(found, c.weight * expected)
    batch.raw[:, :, -3:] = 255  # padding
    torch.testing.assert_close(method.loss(batch, MIDDLE)["reg"], found)


def test_the_gated_regulariser_works_on_the_grid_of_stride_four_from_its_start_on():
    method = build("gated_crf/mini-scribble").eval()
    batch = make_batch(method, "scribble")
    stages = method.network.backbone(batch.images)
    low = method.network.classifier(method.network.features(stages)).softmax(1)
    assert low.shape[-1] * 4 == batch.images.shape[-1]
    expected = 0.1 * gated_crf_loss(low, {"rgb": batch.images}, mask_src=batch.valid, mask_dst=batch.valid)
    torch.testing.assert_close(method.loss(batch, MIDDLE)["reg"], expected)
    assert "reg" not in method.loss(batch, Progress(0, 1000, 10))


def test_the_tree_regulariser_counts_pixels_that_nobody_annotated():
    method = build("tree_energy/mini-scribble").eval()
    batch = make_batch(method, "scribble")
    assert method.loss(batch, MIDDLE)["reg"] > 0
    everywhere = dataclasses.replace(batch, labels=torch.zeros_like(batch.labels))
    assert not (everywhere.labels == UNLABELLED).any()
    assert method.loss(everywhere, MIDDLE)["reg"] == 0


def test_smoother_predictions_cost_less():
    for name in NAMES:
        method = build(f"{name}/mini-scribble").eval()
        batch = make_batch(method, "scribble")
        stages = method.network.backbone(batch.images)
        sharp = torch.randn(3, method.build.num_classes, 12, 12) * 10
        flat = torch.zeros_like(sharp)
        flat[:, 0] = 10
        values = []
        for low in (sharp, flat):
            logits = resize(low, batch.images.shape[-2:], align_corners=True)
            values.append(method.regulariser(low, logits, stages, batch).item())
        assert values[1] < values[0], name


def test_the_recipes_of_one_network_differ_in_the_loss_alone():
    own, plain = (resolve(f"{m}/voc-scribble-mobilenet") for m in ("rloss", "pce"))
    shared = ("backbone", "crop", "batch", "optimiser", "schedule", "augment", "labels", "weights")
    assert all(getattr(own.recipe, k) == getattr(plain.recipe, k) for k in shared)
    assert own.config.output_stride == plain.config.output_stride == 16
