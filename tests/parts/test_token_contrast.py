"""PTC and CTC against golden vectors, a written-out form, and degenerate batches."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_cam import arrays
from torch import Tensor

from methods.parts.token_contrast import affinity_labels, class_token_contrast, patch_token_contrast


def written_out(features: Tensor, labels: Tensor) -> Tensor:
    """ToCo's formula as it stands, over the matrix of all pairs."""
    x = F.normalize(features.flatten(2), dim=1, eps=1e-8)
    cosines = torch.einsum("bci,bcj->bij", x, x).abs()
    pairs = affinity_labels(labels)
    same, other = pairs == 1, pairs == 0
    near = 1 - (cosines * same).sum() / (same.sum() + 1)
    return (near + (cosines * other).sum() / (other.sum() + 1)) / 2


def test_pairs_are_the_authors(golden):
    gold = arrays(golden / "fsr" / "affinity_label.npz")
    assert torch.equal(affinity_labels(gold["label"]), gold["aff"])
    assert (gold["aff"][2] == 255).all()


def test_loss_and_gradient_are_the_authors(golden):
    gold = arrays(golden / "fsr" / "ptc_loss.npz")
    assert torch.equal(affinity_labels(gold["label"]), gold["aff_mask"])
    features = gold["feat"].requires_grad_()
    loss = patch_token_contrast(features, gold["label"])
    torch.testing.assert_close(loss, gold["loss"], rtol=1e-5, atol=0)
    (3 * loss).backward()
    torch.testing.assert_close(features.grad, 3 * gold["grad"], rtol=1e-5, atol=1e-7)
    zeroed = gold["feat"].detach().clone()
    zeroed[0, :, 0, 0] = 0
    torch.testing.assert_close(patch_token_contrast(zeroed, gold["label"]), gold["loss_zero_vector"])


def test_one_sided_batches_are_the_authors(golden):
    """Theirs count a token's pair with itself: 72 cosines of 1 that are not in ours."""
    gold = arrays(golden / "fsr" / "ptc_loss.npz")
    features = gold["feat"]
    undecided = torch.full((2, 6, 6), 255)
    assert patch_token_contrast(features, undecided).item() == gold["loss_all_ignore"].item() == 0.5
    same = patch_token_contrast(features, torch.zeros(2, 6, 6, dtype=torch.long))
    cosines = (1 - 2 * same) * (2 * 36 * 35 + 1) + 72
    pairs = 2 * 36 * 36 + 1
    torch.testing.assert_close((1 - cosines / pairs) / 2, gold["loss_all_positive"])
    other = patch_token_contrast(features, torch.arange(36).view(1, 6, 6).expand(2, -1, -1))
    torch.testing.assert_close(other - 0.5, 0.5 - same)
    torch.testing.assert_close((1 + cosines / pairs) / 2, gold["loss_all_negative"])


@pytest.mark.parametrize("form", ["toco", "paper"])
@pytest.mark.parametrize("reduce", ["pooled", "per_image"])
def test_the_gradient_is_the_derivative(form, reduce):
    torch.manual_seed(0)
    features = torch.randn(3, 5, 2, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[0, 0, 1, 1, 255, 2], [3, 3, 3, 3, 3, 3], [255, 255, 255, 255, 0, 255]]).view(
        3, 2, 3
    )
    assert torch.autograd.gradcheck(lambda x: patch_token_contrast(x, labels, form, reduce), features)


def test_it_is_the_written_out_form():
    torch.manual_seed(0)
    features = torch.randn(3, 12, 5, 7, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 3, (3, 5, 7))
    labels[torch.rand(3, 5, 7) < 0.4] = 255
    (theirs,) = torch.autograd.grad(written_out(features, labels), features)
    loss = patch_token_contrast(features, labels)
    (ours,) = torch.autograd.grad(loss, features)
    torch.testing.assert_close(loss, written_out(features, labels))
    torch.testing.assert_close(ours, theirs)


def test_both_forms_are_those_of_the_reference_for_the_other_method(golden):
    gold = arrays(golden / "dskd_gc" / "ptc.npz")
    features = gold["f"].mT[..., None]
    for kind in ("class", "binary"):
        labels = gold[f"y_{kind}"][..., None]
        for form, reduce, key in (
            ("paper", "pooled", "paper_pooled"),
            ("paper", "per_image", "paper_perimage"),
            ("toco", "pooled", "toco"),
        ):
            found = patch_token_contrast(features, labels, form, reduce)
            torch.testing.assert_close(found, gold[f"{key}_{kind}"], rtol=1e-12, atol=1e-12)
    hand = gold["hand_f"].mT[..., None]
    for form in ("paper", "toco"):
        found = patch_token_contrast(hand, gold["hand_y"][..., None], form)
        torch.testing.assert_close(found, gold[f"hand_{form}"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", ["toco", "paper"])
@pytest.mark.parametrize("label", [0, 1, 255])
def test_a_batch_of_one_label_is_finite_with_a_finite_gradient(form, label):
    torch.manual_seed(0)
    features = torch.randn(2, 8, 4, 4, requires_grad=True)
    loss = patch_token_contrast(features, torch.full((2, 4, 4), label), form)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(features.grad).all()
    assert (features.grad.abs().sum() == 0) == (label == 255)


def test_half_precision_is_computed_in_float32():
    features = torch.randn(1, 8, 4, 4)
    labels = torch.randint(0, 2, (1, 4, 4))
    with torch.autocast("cpu", torch.bfloat16):
        assert patch_token_contrast(features.bfloat16(), labels).dtype == torch.float32
        inside = patch_token_contrast(features, labels)
    assert torch.equal(inside, patch_token_contrast(features, labels))


# --- class tokens ------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", ["0.5", "1.0"])
def test_class_token_contrast_is_the_authors(golden, temperature):
    gold = arrays(golden / "fsr" / "ctc_loss.npz")
    rows = gold["student"].requires_grad_()
    student = rows.view(10, 3, 32).transpose(0, 1)  # theirs are crop by crop
    teacher = gold["teacher"].view(2, 3, 32).transpose(0, 1)
    loss = class_token_contrast(student, teacher, gold["flags"], float(temperature))
    torch.testing.assert_close(loss, gold[f"loss_t{temperature}"], rtol=1e-5, atol=0)
    loss.backward()
    torch.testing.assert_close(rows.grad, gold[f"grad_t{temperature}"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("negatives", [0, 3, 8])
def test_class_token_contrast_with_no_and_with_all_local_crops_negative(negatives):
    torch.manual_seed(0)
    student = F.normalize(torch.randn(2, 10, 16), dim=2).requires_grad_()
    positive = torch.ones(2, 10)
    positive[:, 10 - negatives :] = 0
    teacher = F.normalize(torch.randn(2, 2, 16), dim=2).requires_grad_()
    loss = class_token_contrast(student, teacher, positive, 0.5)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()
    assert teacher.grad is None
    if not negatives:  # only the small constant in the logarithm is left
        assert loss < 0.05
