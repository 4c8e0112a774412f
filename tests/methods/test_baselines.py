"""Full supervision, partial cross-entropy and CAM."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from harness.data.base import DatasetInfo
from harness.engine.batch import IGNORE, UNLABELLED, Batch, Progress
from harness.engine.method import Build
from harness.recipes.resolving import resolve
from methods.baselines import CAMConfig, ClassActivationMap, FullSupervision, PartialCrossEntropy
from methods.parts.cam import normalised
from methods.parts.cross_entropy import partial_cross_entropy
from methods.parts.transformer import classification_loss
from methods.toco import ToCo

START = Progress(0, 100, 10)


def info(background=0) -> DatasetInfo:
    return DatasetInfo("toy", "Toy", tuple("wxyz"), ((0, 0, 0),) * 4, {"train": 1}, background, "toy")


def cam(background=0, backbone="mini_cnn", **options) -> ClassActivationMap:
    torch.manual_seed(0)
    config = CAMConfig(output_stride=8, **options)
    return ClassActivationMap(config, Build(info(background), "image", (64, 64), backbone))


def images(size=2) -> torch.Tensor:
    return torch.randn(size, 3, 64, 48, generator=torch.Generator().manual_seed(1))


def batch(tags) -> Batch:
    x = images(len(tags))
    labels = torch.full((len(tags), 64, 48), UNLABELLED)
    raw = torch.zeros(x.shape, dtype=torch.uint8)
    return Batch(x, labels, torch.tensor(tags, dtype=torch.float32), ["a"] * len(tags), raw, labels != IGNORE)


def test_partial_cross_entropy_is_the_mean_over_annotated_pixels():
    logits = torch.randn(2, 4, 9, 9, requires_grad=True)
    labels = torch.randint(0, 4, (2, 9, 9))
    labels[0, :5] = UNLABELLED
    labels[1, 3:] = IGNORE
    chosen = labels < 4
    expected = -logits.log_softmax(1).gather(1, labels.clamp(max=3)[:, None])[:, 0][chosen].mean()
    torch.testing.assert_close(partial_cross_entropy(logits, labels), expected)
    targets = labels.where(chosen, torch.tensor(-100))
    torch.testing.assert_close(partial_cross_entropy(logits, labels), F.cross_entropy(logits, targets))


@pytest.mark.parametrize("value", [UNLABELLED, IGNORE])
def test_a_batch_without_label_costs_nothing_and_moves_nothing(value):
    logits = torch.randn(2, 4, 9, 9, requires_grad=True)
    loss = partial_cross_entropy(logits, torch.full((2, 9, 9), value))
    loss.backward()
    assert loss == 0
    assert logits.grad.abs().max() == 0


def test_cam_pools_signed_maps_as_configured():
    maps = torch.randn(2, 3, 5, 6)
    flat = maps.flatten(2)
    torch.testing.assert_close(cam(pooling="average").pool(maps), flat.mean(2))
    torch.testing.assert_close(cam(pooling="max").pool(maps), flat.amax(2))
    sharp = cam(pooling="lse", lse_sharpness=4.0).pool(maps)
    torch.testing.assert_close(sharp, (4 * flat).exp().mean(2).log() / 4)
    assert ((sharp > flat.mean(2)) & (sharp < flat.amax(2))).all(), "between mean and maximum"


@pytest.mark.parametrize("backbone", ["mini_cnn", "mini_vit"])
def test_cam_can_classify_the_maximum_of_every_channel(backbone):
    method = cam(backbone=backbone, pooling="token_max").eval()
    with torch.no_grad():
        maps, logits = method.outputs(images())
        features = method.backbone(images())[-1]
    torch.testing.assert_close(maps, method.maps(images()))
    weight = method.classifier.weight[:, :, 0, 0]
    torch.testing.assert_close(logits, features.flatten(2).max(2).values @ weight.T)
    assert not torch.allclose(logits, cam(backbone=backbone, pooling="max").eval().outputs(images())[1])


def test_cam_on_the_transformer_is_the_classifier_of_the_image_tag_methods():
    """The row that they are compared with differs in what they add, not in the network or its scores."""
    torch.manual_seed(0)
    tags = torch.tensor([[0.0, 1, 0, 1], [0, 0, 1, 0]])
    options = vars(resolve("cam/mini-image-vit").config)
    plain = cam(backbone="mini_vit", **{k: v for k, v in options.items() if k != "output_stride"}).eval()
    recipe = resolve("toco/mini-image")
    other = ToCo(recipe.config, Build(info(), "image", (64, 64), "mini_vit")).eval()
    with torch.no_grad():
        other.network.encoder.load_state_dict(plain.backbone.vit.state_dict())
        other.network.classifier.weight.copy_(plain.classifier.weight)
        maps, logits = plain.outputs(images())
        output = other.network(images())
        theirs = other.pseudo_labels(images(), tags)["cam"]
        assert torch.equal(plain.pseudo_labels(images(), tags)["cam"], theirs)
        assert 0 < (theirs > 0).float().mean() < 1
    torch.testing.assert_close(logits, output.cls)
    torch.testing.assert_close(maps, other.network.maps(images())[0])
    torch.testing.assert_close(
        plain.loss(batch(tags.tolist()), START)["cls"], classification_loss(output.cls, tags[:, 1:])
    )


@pytest.mark.parametrize("method", [FullSupervision, PartialCrossEntropy])
def test_the_upper_bound_on_the_transformer_is_the_head_of_the_image_tag_methods(method):
    torch.manual_seed(0)
    config = resolve("full/mini-full-vit").config
    plain = method(config, Build(info(), "full", (64, 64), "mini_vit")).eval()
    other = ToCo(resolve("toco/mini-image").config, Build(info(), "image", (64, 64), "mini_vit")).eval()
    with torch.no_grad():
        other.network.encoder.load_state_dict(plain.network.backbone.vit.state_dict())
        other.network.decoder.load_state_dict(plain.network.decoder.state_dict())
        torch.testing.assert_close(plain.predict(images()), other.predict(images()))
    assert [g["lr_scale"] for g in plain.parameter_groups() if "lr_scale" in g] == [0.1]


def test_cam_can_take_off_what_a_map_has_everywhere():
    tags = torch.tensor([[0.0, 1, 0, 1], [0, 0, 1, 0]])
    lifted = torch.rand(2, 3, 8, 6, generator=torch.Generator().manual_seed(2)) + 5
    present = tags[:, 1:] > 0
    assert cam().scores(images(), lifted, present).argmax(1).min() > 0, "no background is left"
    method = cam(less_minimum=True, background_score=0.5)
    scores = method.scores(images(), lifted, present)
    resized = F.interpolate(lifted, (64, 48), mode="bilinear", align_corners=False)
    expected = normalised(resized) * present[:, :, None, None]
    torch.testing.assert_close(scores[:, 1:], expected)
    assert (scores.argmax(1) == 0).any()


def test_cam_can_take_the_larger_of_a_picture_and_its_mirror_image():
    method, plain = cam(mirror=True).eval(), cam().eval()
    tags = torch.tensor([[0.0, 1, 0, 1], [0, 0, 1, 0]])
    with torch.no_grad():
        maps = method.class_maps(images(), tags)
        mirrored = method.class_maps(images().flip(-1), tags)
        torch.testing.assert_close(maps, mirrored.flip(-1))
        assert not torch.allclose(maps, plain.class_maps(images(), tags))
        loss = method.loss(batch(tags.tolist()), START)["cls"]
        assert loss == plain.loss(batch(tags.tolist()), START)["cls"], "training is as it was"


def test_cam_classifies_the_foreground_alone():
    method = cam()
    one = method(batch([[0, 1, 0, 0]]), START)["cls"]
    assert torch.equal(one, cam()(batch([[1, 1, 0, 0]]), START)["cls"]), "a background tag changes nothing"
    assert method.classifier.out_channels == 3
    one.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in method.parameters())


def test_pseudo_labels_hold_tagged_classes_and_background_only():
    method = cam().eval()
    tags = torch.tensor([[0.0, 1, 0, 1], [0, 0, 1, 0]])
    label = method.pseudo_labels(images(), tags)["cam"]
    assert label.shape == (2, 64, 48)
    assert label.dtype == torch.int64
    assert set(label[0].unique().tolist()) <= {0, 1, 3}
    assert set(label[1].unique().tolist()) == {0, 2}
    background = [(label == 0).float().mean().item()]
    for score in (0.5, 1.0):
        higher = cam(background_score=score).eval().pseudo_labels(images(), tags)["cam"]
        background.append((higher == 0).float().mean().item())
    assert background == sorted(background)
    assert background[-1] == 1, "no normalised map exceeds 1"


def test_prediction_without_tags_suppresses_classes_that_the_network_does_not_find():
    with torch.no_grad():
        method = cam(presence=1.0).eval()
        assert (method.predict(images()).argmax(1) == 0).all()
        method = cam(presence=0.0).eval()
        scores = method.predict(images())
        assert scores.shape == (2, 4, 64, 48)
        assert ((scores >= 0) & (scores <= 1)).all()
        tags = torch.tensor([[0.0, 1, 1, 1]] * 2)
        assert torch.equal(scores.argmax(1), method.pseudo_labels(images(), tags)["cam"])


def test_without_a_background_class_every_pixel_gets_a_tagged_class():
    method = cam(background=None).eval()
    assert method.classifier.out_channels == 4
    label = method.pseudo_labels(images(), torch.tensor([[0.0, 1, 0, 0]] * 2))["cam"]
    positive = method.maps(images())[:, 1]
    assert (label[F.interpolate(positive[:, None], (64, 48), mode="bilinear")[:, 0] > 0] == 1).all()


def test_half_precision_networks_have_single_precision_losses():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = cam()(batch([[0, 1, 0, 1]] * 2), START)["cls"]
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
