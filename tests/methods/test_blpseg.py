"""BLPSeg's losses, targets, embedding and small network against the authors' numbers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import harness.basics.compat  # noqa: F401  # isort: skip  (before timm)

import numpy as np
import pytest
import timm
import torch
from network_golden import drawn
from torch import Tensor, nn

from harness.basics.errors import UserError
from harness.basics.schema import load as load_config
from harness.data.base import DatasetInfo
from harness.engine.batch import IGNORE, UNLABELLED, Batch, Progress
from harness.engine.method import Build
from harness.engine.training import lr_factor
from harness.nn.encoders import Encoder
from harness.recipes.resolving import resolve
from methods.blpseg import (
    BLPSeg,
    BLPSegConfig,
    BLPSegNetwork,
    PatchEmbedding,
    annotation_loss,
    annotation_targets,
    blp_loss,
    self_training_target,
)
from methods.parts.local_aggregation import local_aggregation

BLP = ["normal", "voc21", "border255", "one_image_unlabelled", "all_unlabelled", "gamma0", "gamma05"]


def load(golden: Path, name: str) -> dict[str, Tensor]:
    with np.load(golden / "blpseg" / f"{name}.npz") as data:
        return {k: torch.from_numpy(data[k]) for k in data.files if data[k].dtype.kind != "U"}


def ours(label: Tensor, num_classes: int) -> Tensor:
    """The authors' labels (K not annotated, 255 padding) in the harness's encoding."""
    return label.long().masked_fill(label == num_classes, UNLABELLED)


# --- losses ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", BLP)
def test_blp_loss_matches_the_authors(golden, case):
    data = load(golden, f"blp_{case}")
    target = ours(data["label"], int(data["num_classes"]))
    gamma = data["gamma"].item()
    logits = data["seg_logits"].requires_grad_()
    annotation = data["scrib_logits"].requires_grad_()
    loss = blp_loss(logits, annotation, target, gamma)
    torch.testing.assert_close(loss, data["loss"], rtol=2e-6, atol=0)
    loss.backward()
    torch.testing.assert_close(logits.grad, data["grad_seg_logits"], rtol=0, atol=1e-7)
    assert annotation.grad is None

    logits, annotation = data["seg_logits"].detach().double(), annotation.detach().double()
    exact = blp_loss(logits, annotation, target, gamma)
    torch.testing.assert_close(exact, data["loss_float64"], rtol=0, atol=1e-9)
    for i, expected in enumerate(data["loss_per_image"]):
        one = slice(i, i + 1)
        alone = blp_loss(logits[one], annotation[one], target[one], gamma)
        torch.testing.assert_close(alone, expected, rtol=2e-6, atol=0)  # computed in float32


def test_blp_loss_has_no_nan_gradient_where_a_prediction_is_certain():
    logits = torch.zeros(1, 3, 2, 2)
    logits[:, 1] = 60.0
    logits.requires_grad_()
    annotation = torch.zeros(1, 4, 2, 2)
    annotation[:, 1] = 60.0
    for gamma in (0.0, 0.5, 2.0):
        loss = blp_loss(logits, annotation, torch.ones(1, 2, 2, dtype=torch.long), gamma)
        (grad,) = torch.autograd.grad(loss, logits)
        assert torch.isfinite(loss)
        assert torch.isfinite(grad).all()


def test_blp_weight_is_small_where_a_drawn_pixel_was_expected():
    """Two pixels predicted alike: the one that nobody expected to be drawn has the greater gradient."""
    logits = torch.zeros(1, 2, 1, 2, requires_grad=True)
    annotation = torch.zeros(1, 3, 1, 2)
    annotation[0, 1, 0, 0] = 5.0
    blp_loss(logits, annotation, torch.ones(1, 1, 2, dtype=torch.long)).backward()
    expected, rare = logits.grad[0, 1, 0].abs()
    assert rare > 2 * expected


def test_annotation_targets_match_the_authors_one_hot(golden):
    data = load(golden, "label2onehot")
    channels = int(data["num_classes"])  # K + 1
    target = annotation_targets(ours(data["label"], channels - 1), channels - 1)
    planes = torch.nn.functional.one_hot(target.where(target != IGNORE, channels), channels + 1)
    planes = planes.permute(0, 3, 1, 2)
    assert torch.equal(planes, data["onehot"].long())
    assert torch.equal(planes[:, :-1], data["onehot_as_used"].long())


def test_annotation_loss_is_the_weighted_mean_written_out():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 5, 6, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 3, (2, 5, 6), generator=generator)
    labels[:, 1:4] = UNLABELLED
    labels[0, 0] = IGNORE
    total = mass = 0.0
    for log_p, label in zip(logits.log_softmax(1).movedim(1, -1).reshape(-1, 4), labels.ravel(), strict=True):
        if label != IGNORE:
            weight = 0.02 if label == UNLABELLED else 1.0
            total -= weight * log_p[3 if label == UNLABELLED else label].item()
            mass += weight
    assert annotation_loss(logits, labels).item() == pytest.approx(total / mass, rel=1e-12)


def test_annotation_loss_of_padding_alone_is_zero():
    logits = torch.randn(1, 4, 3, 3, requires_grad=True)
    loss = annotation_loss(logits, torch.full((1, 3, 3), IGNORE))
    loss.backward()
    assert loss == 0
    assert torch.isfinite(logits.grad).all()


# --- self-training -----------------------------------------------------------------------------------


def test_self_training_target_matches_the_authors(golden):
    data = load(golden, "pseudo_selection")
    classes = int(data["num_classes"])
    present = data["cls_label"].flatten(1)
    target = self_training_target(
        data["seg_logits"], ours(data["label"], classes), present, data["threshold"].item()
    )
    assert torch.equal(target, data["seg_pseudo"].long())


def test_background_always_counts_as_present():
    method = small_method()
    present = method._present(torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))
    assert present.tolist() == [[1, 1, 0], [1, 0, 0]]


# --- the embedding and local aggregation in one -------------------------------------------------------


LAM = [
    "lam_12x16_moderate",
    "lam_12x16_init",
    "lam_12x16_batch2_voc21",
    "lam_oddsize_45x61",
    "lam_12x16_epsilon",
]


@pytest.mark.parametrize("name", LAM)
def test_embedding_and_its_gradients_match_the_authors(golden, name):
    data = load(golden, name)
    embed = embedding(data)
    features = embed(data["image"])
    torch.testing.assert_close(features, data["feat"], rtol=1e-5, atol=2e-5)
    out = local_aggregation(data["seg_in"], features, data["sigma"].item(), "reference")
    torch.testing.assert_close(out, data["out"], rtol=0, atol=5e-5)
    out.backward(data["grad_out"])
    for key, parameter in embed.named_parameters():
        theirs = data[f"grad_embed.{key}"]
        scale = max(1.0, theirs.abs().max().item())
        torch.testing.assert_close(parameter.grad, theirs, rtol=0, atol=3e-5 * scale)


@pytest.mark.parametrize(
    "name", ["lam_12x16_moderate", "lam_12x16_init", "lam_oddsize_45x61", "lam_12x16_epsilon"]
)
def test_double_precision_matches_the_authors_in_double(golden, name):
    data = load(golden, name)
    embed = embedding(data).double()
    with torch.no_grad():
        features, scores = embed(data["image"].double()), data["seg_in"].double()
    sigma = data["sigma"].item()
    reference = local_aggregation(scores, features, sigma, "reference")
    torch.testing.assert_close(reference, data["out_float64"], rtol=0, atol=1e-5)
    attention = local_aggregation(scores, features, sigma)
    torch.testing.assert_close(attention, data["sdpa_float64"], rtol=0, atol=1e-5)
    share = data["factor_float64"][:, None]
    torch.testing.assert_close(reference, attention * share, rtol=0, atol=1e-5)


def embedding(data: dict[str, Tensor]) -> PatchEmbedding:
    embed = PatchEmbedding(data["feat"].shape[1])
    embed.load_state_dict({k.removeprefix("embed."): v for k, v in data.items() if k.startswith("embed.")})
    return embed


# --- the network behind a stub backbone ----------------------------------------------------------------


class Stub(Encoder):
    """A backbone that returns given features."""

    def __init__(self, stages: list[Tensor]) -> None:
        super().__init__()
        self.stages = stages
        self.channels = tuple(s.shape[1] for s in stages)
        self.strides = (4, 8, 16, 32)

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.stages


class StubBuild(Build):
    """A build whose encoder is a stub."""

    def encoder(self, **options) -> Encoder:
        return self.backbone  # type: ignore[return-value]


def forward_head(golden: Path) -> tuple[BLPSeg, dict[str, Tensor]]:
    """The authors' whole forward pass behind given stage features, with the stored weights."""
    data = load(golden, "forward_head_48x64")
    stages = [data[f"l{i}"].requires_grad_() for i in range(1, 5)]
    classes = int(data["num_classes"])
    config = BLPSegConfig(width=8, dropout=0.0, lam_epsilon="reference", self_training_step=10)
    info = dataset_info(classes)
    method = BLPSeg(config, StubBuild(info, "scribble", (48, 64), Stub(stages)))  # type: ignore[arg-type]
    state = {k.removeprefix("sd."): v for k, v in data.items() if k.startswith("sd.")}
    method.load_state_dict(BLPSeg.key_tables()["blpseg"](state))
    return method, data


def dataset_info(classes: int) -> DatasetInfo:
    names = ("background", *(f"class {i}" for i in range(1, classes)))
    return DatasetInfo("toy", "Toy", names, tuple((i, i, i) for i in range(classes)), {"train": 4}, 0, "toy")


def test_eval_mode_matches_the_authors(golden):
    method, data = forward_head(golden)
    with torch.no_grad():
        logits = method.eval().predict(data["image"])
    torch.testing.assert_close(logits[..., ::4, ::4], data["eval_seg_pred_stride4"], rtol=0, atol=2e-4)


@pytest.mark.parametrize(("phase", "step"), [("st0", 0), ("st1", 10)])
def test_both_training_phases_match_the_authors(golden, phase, step):
    method, data = forward_head(golden)
    # The stored weights are those of the evaluation. The training passes ran before, on the same
    # generator's first numbers: the evaluation's dict began with the 192 x 192 distances.
    stored = {k.removeprefix("sd."): v for k, v in data.items() if k.startswith("sd.")}
    shapes = {k: tuple(v.shape) for k, v in stored.items()}
    evaluated, name = drawn(32, {"distance_prob": (192, 192), **shapes}), "seg_head.2.weight"
    torch.testing.assert_close(evaluated[name], stored[name])
    trained = {**stored, **drawn(32, shapes), "CELoss.weight": stored["CELoss.weight"]}
    trained["seg_head.4.weight"] *= 6  # for confident predictions
    method.load_state_dict(BLPSeg.key_tables()["blpseg"](trained))
    method.train()

    labels = ours(data["label"], int(data["num_classes"]))
    tags = data["cls_label"][:, :, 0, 0].float()
    valid = torch.ones_like(labels, dtype=torch.bool)  # 255 in the labels, pictures whole
    raw = torch.zeros(2, 3, 48, 64, dtype=torch.uint8)
    terms = method.loss(Batch(data["image"], labels, tags, ["a", "b"], raw, valid), Progress(step, 20, 5))
    torch.testing.assert_close(terms["seg"], data[f"{phase}.loss_seg"], rtol=1e-5, atol=0)
    torch.testing.assert_close(terms["annotation"], data[f"{phase}.loss_scrib"], rtol=1e-5, atol=0)

    sum(terms.values()).backward()
    for i, stage in enumerate(method.network.backbone.stages, 1):
        torch.testing.assert_close(stage.grad, data[f"{phase}.grad_l{i}"], rtol=2e-3, atol=2e-4)
    own = dict(method.network.named_parameters())
    named = [k for k in data if k.startswith(f"{phase}.grad.")]
    assert len(named) == 6
    for key in named:
        grad = own[key.removeprefix(f"{phase}.grad.")].grad
        torch.testing.assert_close(grad, data[key], rtol=2e-3, atol=2e-4)

    with torch.no_grad():
        logits = method.predict(data["image"])
    torch.testing.assert_close(logits[..., ::4, ::4], data["seg_pred_stride4"], rtol=0, atol=2e-4)
    pseudo = self_training_target(logits, torch.full_like(labels, UNLABELLED), tags, 0.9)
    assert (pseudo < UNLABELLED).float().mean().item() > 0.5
    target = self_training_target(logits, labels, tags, 0.9)
    edge = (logits.softmax(1).amax(1) - 0.9).abs() < 1e-4
    assert torch.equal(
        target.masked_fill(target >= UNLABELLED, IGNORE)[~edge], data["seg_pseudo"].long()[~edge]
    )


def test_a_small_resnet_s_matches_the_authors(golden):
    data = np.load(golden / "blpseg" / "resnet_s_1111.npz")
    features = {"features_only": True, "out_indices": (1, 2, 3, 4)}
    network = timm.create_model("resnet101s", layers=(1, 1, 1, 1), **features).eval()
    own = network.state_dict()
    keys = [str(k) for k in data["keys"]]
    assert [k for k in keys if k not in own] == ["layernorm.weight", "layernorm.bias"]  # never called
    values = drawn(61, {k: tuple(own[k].shape) if k in own else (128,) for k in keys})
    network.load_state_dict({k: values.get(k, v) for k, v in own.items()})
    with torch.no_grad():
        outputs = network(torch.from_numpy(data["image"]))
    for i, output in enumerate(outputs, 1):
        assert list(output.shape) == data[f"out{i}_shape"].tolist()
        shown = output[:, :: output.shape[1] // 64]
        np.testing.assert_allclose(shown, data[f"out{i}_slice"], rtol=0, atol=1e-3)
        found = output.double()
        statistics = [found.mean(), found.std(), found.abs().max()]
        np.testing.assert_allclose(statistics, data[f"out{i}_stats"], rtol=0, atol=1e-3)


# --- the method ----------------------------------------------------------------------------------------


class Tiny(Encoder):
    """Four strided convolutions."""

    channels, strides = (4, 6, 8, 10), (4, 8, 16, 32)

    def __init__(self) -> None:
        super().__init__()
        sides = [4, 2, 2, 2]
        inputs = [3, *self.channels[:-1]]
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, s, s) for i, o, s in zip(inputs, self.channels, sides, strict=True)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        stages = [images]
        for conv in self.convs:
            stages.append(conv(stages[-1]).relu())
        return stages[1:]


def small_method(**config) -> BLPSeg:
    torch.manual_seed(0)
    values = BLPSegConfig(**({"width": 8, "self_training_step": 5} | config))
    return BLPSeg(values, StubBuild(dataset_info(3), "scribble", (64, 64), Tiny()))  # type: ignore[arg-type]


def small_batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, 64, 64, generator=generator)
    labels = torch.full((2, 64, 64), UNLABELLED)
    labels[:, 5:8, 4:50] = 0
    labels[:, 40:43, 10:60] = 1
    labels[:, 60:] = IGNORE
    tags = torch.tensor([[1.0, 1.0, 0.0]] * 2)
    raw = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    return Batch(images, labels, tags, ["a", "b"], raw, labels != IGNORE)


def test_the_annotation_head_trains_nothing_but_itself():
    method = small_method().train()
    method(small_batch(), Progress(0, 10, 5))["annotation"].backward()
    for name, parameter in method.named_parameters():
        touched = parameter.grad is not None and bool(parameter.grad.any())
        assert touched == name.startswith("network.scribble_head."), name


def test_the_segmentation_loss_does_not_reach_the_annotation_head():
    method = small_method().train()
    method(small_batch(), Progress(0, 10, 5))["seg"].backward()
    assert all(p.grad is None for p in method.network.scribble_head.parameters())
    assert all(p.grad is not None for p in method.network.embed_proj.parameters())


def test_padding_is_grey_to_the_network():
    method = small_method(dropout=0.0).train()
    batch = small_batch()
    changed = dataclasses.replace(batch, images=batch.images.masked_fill(~batch.valid[:, None], -2.0))
    first, second = (method(b, Progress(0, 10, 5)) for b in (batch, changed))
    for term, value in first.items():
        assert torch.equal(value, second[term])


def test_self_training_starts_at_its_step_and_can_be_switched_off():
    batch = small_batch()

    def seg(step: int, **config) -> float:
        method = small_method(dropout=0.0, confidence=0.0, **config).train()
        return method(batch, Progress(step, 10, 5))["seg"].item()

    assert seg(4) == seg(0)
    assert seg(5) != seg(0)
    assert seg(5, self_training_step="off") == seg(0)
    assert seg(0, self_training_step=0) == seg(5)


def test_without_aggregation_the_logits_are_the_heads_own():
    method = small_method(aggregate=False).eval()
    output = method.network(small_batch().images)
    assert torch.equal(output.logits, output.raw)
    assert not any("embed" in k for k in method.state_dict())


def test_autocast_gives_float32_logits_and_finite_losses():
    method = small_method().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = method(small_batch(), Progress(9, 10, 5))
    for name, term in terms.items():
        assert term.dtype == torch.float32
        assert torch.isfinite(term), name
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert method.eval().predict(small_batch().images).dtype == torch.float32


def test_a_single_picture_is_refused_in_training():
    with pytest.raises(UserError, match="two pictures"):
        small_method().train()(small_batch().rows(slice(0, 1)), Progress(0, 10, 5))


def test_a_backbone_without_stride_4_is_refused():
    encoder = Tiny()
    encoder.strides = (8, 16, 32, 64)
    with pytest.raises(UserError, match="stride 4"):
        BLPSegNetwork(encoder, 3, BLPSegConfig())


def test_initialisation_is_the_authors():
    network = BLPSegNetwork(Tiny(), 3, BLPSegConfig(width=64))
    weight = network.decoder.fpn_bottleneck[0].weight  # 3x3, 64 outputs
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {m.momentum for m in norms} == {0.001}
    assert {m.eps for m in norms} == {1e-5}


def test_the_learning_rate_follows_the_released_formula(golden):
    data = load(golden, "lr_schedule")
    spec = resolve("blpseg/voc-scribble-r101").recipe.schedule
    total = int(data["max_itr"])
    for step, expected in zip(data["itr"].tolist(), data["lr"].tolist(), strict=True):
        assert data["base"].item() * lr_factor(spec, int(step), total) == pytest.approx(expected, rel=1e-12)


def test_unknown_options_are_named():
    with pytest.raises(UserError, match="lam_epsilon"):
        load_config(BLPSegConfig, {"lam_epsilon": "half"}, "here")
