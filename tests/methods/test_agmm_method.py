"""AGMM as a method: tags, precision, parameter groups, miniature training."""

from __future__ import annotations

import pytest
import torch

from harness.data.base import DatasetInfo
from harness.engine.batch import IGNORE, UNLABELLED, Batch, Progress
from harness.engine.method import Build
from harness.nn.pixels import normalise
from methods.agmm import AGMM, AGMMConfig, agmm_loss
from methods.baselines import FullSupervision, PartialCrossEntropy

INFO = DatasetInfo(
    "toy", "Toy", ("background", "a", "b", "c"), ((0, 0, 0),) * 4, {"train": 1}, background=0, folder="toy"
)
SMALL = {"aspp_rates": (1, 2, 3), "head_width": 64, "low_width": 16, "dropout": 0.1}
START = Progress(0, 100, 10)


def make(supervision="point", cls=AGMM, seed=0, **options):
    torch.manual_seed(seed)
    config = cls.Config(**SMALL | options)
    return cls(config, Build(INFO, supervision, (64, 64), "mini_cnn"))


def make_batch(size=2, side=64) -> Batch:
    generator = torch.Generator().manual_seed(5)
    raw = torch.randint(0, 256, (size, 3, side, side), generator=generator, dtype=torch.uint8)
    raw[..., side // 2 :] //= 3
    labels = torch.full((size, side, side), UNLABELLED)
    labels[:, 20:23, 5:20] = 0
    labels[:, 30:33, 40:60] = 1
    labels[-1, 40:43, 40:60] = 2
    labels[:, -4:] = IGNORE
    tags = torch.zeros(size, 4)
    tags[:, :2] = 1
    tags[-1, 2] = 1
    return Batch(normalise(raw), labels, tags, [str(i) for i in range(size)], raw, labels != IGNORE)


@pytest.mark.parametrize("supervision", sorted(AGMM.supervision))
def test_all_terms_are_there_for_every_supervision(supervision):
    terms = make(supervision)(make_batch(), START)
    assert list(terms) == ["seg", "self", "label", "contrast", "cls"]
    assert all(torch.isfinite(t) and t > 0 for t in terms.values())


def test_weights_scale_and_switch_off_terms():
    plain = make()(make_batch(), START)
    names = {
        "self_weight": "self",
        "label_weight": "label",
        "contrast_weight": "contrast",
        "cls_weight": "cls",
    }
    for option, term in names.items():
        changed = make(**{option: 0.0})(make_batch(), START)
        assert changed[term] == 0
        others = set(plain) - {term}
        assert all(torch.equal(plain[k], changed[k]) for k in others)
        torch.testing.assert_close(make(**{option: 2.0})(make_batch(), START)[term], 2 * plain[term])


def test_image_tags_never_name_the_background_and_agmm_adds_it():
    batch = make_batch()
    with_background = make("image")(batch, START)["cls"]
    batch.tags[:, 0] = 0
    assert torch.equal(make("image")(batch, START)["cls"], with_background)
    assert batch.tags[:, 0].sum() == 0, "the batch itself is not changed"
    assert make("point")(batch, START)["cls"] > with_background, "an unannotated background counts as absent"


def test_absent_classes_follow_the_whole_label_and_not_the_crop():
    batch = make_batch()
    before = make()(batch, START)
    batch.tags[:, 3] = 1  # annotated in the picture, cropped away
    after = make()(batch, START)
    assert after["cls"] < before["cls"]
    assert all(torch.equal(before[k], after[k]) for k in ("seg", "self", "label", "contrast"))


@pytest.mark.parametrize("options", [{}, {"spread": "pred"}, {"oem_ours_rounds": 2}])
def test_half_precision_networks_have_single_precision_losses(options):
    method = make(**options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = method(make_batch(), START)
    assert all(t.dtype == torch.float32 and torch.isfinite(t) for t in terms.values())
    torch.stack(list(terms.values())).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters())


@pytest.mark.parametrize("fill", [UNLABELLED, IGNORE, 0])
def test_extreme_labels_leave_finite_gradients(fill):
    method, batch = make(), make_batch()
    batch.labels.fill_(fill)
    torch.stack(list(method(batch, START).values())).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters())


def test_the_backbone_learns_at_its_own_rate_and_every_parameter_once():
    method = make(backbone_lr_scale=0.25)
    backbone, head = method.parameter_groups()
    assert backbone["lr_scale"] == 0.25
    assert "lr_scale" not in head
    ids = [id(p) for group in (backbone, head) for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in method.parameters())
    assert {id(p) for p in method.network.backbone.parameters()} == {id(p) for p in backbone["params"]}


def test_baselines_train_the_very_same_network():
    states = [
        make(s, c).state_dict()
        for s, c in (("point", AGMM), ("point", PartialCrossEntropy), ("full", FullSupervision))
    ]
    for other in states[1:]:
        assert all(torch.equal(other[k], v) for k, v in states[0].items())
        assert other.keys() == states[0].keys()


def test_responses_supervise_pixels_that_nobody_annotated():
    """Free logits over features of two kinds: one annotated pixel of each kind decides all of them."""
    truth = torch.zeros(1, 32, 32, dtype=torch.long)
    truth[:, :, 12:] = 1
    truth[:, 20:] = 0
    features = 1.5 * truth[:, None, 2::4, 2::4].float().expand(1, 6, 8, 8)
    labels = torch.full((1, 32, 32), UNLABELLED)
    labels[0, 5, 5], labels[0, 5, 25] = 0, 1
    tags = torch.ones(1, 2)
    logits = torch.zeros(1, 2, 32, 32, requires_grad=True)
    for _ in range(20):
        terms = agmm_loss(features, logits, labels, tags, AGMMConfig())
        (gradient,) = torch.autograd.grad(terms["seg"] + terms["self"], logits)
        with torch.no_grad():
            logits -= 500 * gradient
    away_from_borders = torch.ones_like(truth, dtype=torch.bool)
    away_from_borders[:, :, 8:16] = away_from_borders[:, 16:24] = False
    assert (logits.argmax(1) == truth)[away_from_borders].all()


def test_the_paper_and_its_reading_are_named():
    assert AGMM.paper.doi == "10.1109/CVPR52729.2023.01483"
    assert AGMMConfig().spread == "unit"
    assert AGMM.needs_labels_from == {"image"}
