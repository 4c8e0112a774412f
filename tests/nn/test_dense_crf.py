"""Dense CRF loss and mean field against the authors' code, exact energies, and pydensecrf."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.basics.errors import UserError
from harness.nn.crf_parameters import crf_parameter_sets, crf_parameters
from harness.nn.dense_crf import (
    CRFParameters,
    dense_crf_loss,
    label_probabilities,
    mean_field,
)
from harness.nn.lattice import bilateral_features


@pytest.fixture(params=["kept", pytest.param("full", marks=pytest.mark.golden)])
def folder(request: pytest.FixtureRequest):
    return request.getfixturevalue("golden" if request.param == "kept" else "full_golden") / "reg"


# --- the loss ----------------------------------------------------------------------------------------


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())


def test_golden_losses_and_gradients(folder) -> None:
    vectors = np.load(folder / "rloss_dense_crf.npz")

    def get(name: str) -> Tensor:
        return torch.from_numpy(np.asarray(vectors[name]))

    logits = get("logits")
    assert torch.allclose(logits.softmax(1), get("prob"), atol=1e-6)
    cases = [c for c in range(len(vectors["configs"])) if f"c{c}_AS" in vectors]
    assert {bool(vectors["configs"][c][3]) for c in cases} == {False, True}
    for c in cases:
        sigma_rgb, sigma_xy, scale, gated = vectors["configs"][c].tolist()
        settings = {"sigma_rgb": sigma_rgb, "sigma_xy": sigma_xy}
        unlabelled = get("label")[:, 0] == 255 if gated else None

        prob = get("prob").requires_grad_()
        loss = dense_crf_loss(
            prob, get("image"), roi=get("roi"), unlabelled=unlabelled, scale=scale, **settings
        )
        loss.backward()
        assert loss.item() == pytest.approx(float(vectors[f"c{c}_loss"]), rel=1e-5)
        assert torch.allclose(prob.grad, get(f"c{c}_grad_prob"), rtol=0, atol=1e-5)

        # The map at the loss's own resolution, by a region that is already resized.
        seg = get(f"c{c}_scaled_seg").requires_grad_()
        own = {"sigma_rgb": sigma_rgb, "sigma_xy": sigma_xy * scale, "scale": 1.0}
        own |= {"roi": get(f"c{c}_scaled_roi"), "unlabelled": get(f"c{c}_unlabelled") if gated else None}
        image = get(f"c{c}_scaled_image")
        loss = dense_crf_loss(seg, image, **own)
        (grad,) = torch.autograd.grad(loss, seg)
        assert torch.allclose(grad, get(f"c{c}_grad_scaled_seg"), rtol=0, atol=1e-5)

        exact = dense_crf_loss(seg, image, kernel="exact", **own)
        assert exact.item() == pytest.approx(float(vectors[f"c{c}_loss_exact"]), rel=1e-5)
        (coded,) = torch.autograd.grad(exact, seg)
        assert relative(coded, get(f"c{c}_grad_scaled_seg_exact_asimpl")) < 1e-5
        exact = dense_crf_loss(seg, image, kernel="exact", gradient="true", **own)
        (true,) = torch.autograd.grad(exact, seg)
        assert relative(true, get(f"c{c}_grad_scaled_seg_exact_true")) < 1e-5
        assert (relative(coded, true) > 0.01) == bool(gated)


def test_golden_gate(folder) -> None:
    vectors = np.load(folder / "rloss_dense_crf.npz")
    c = 5
    seg, roi, unlabelled, image, filtered, gate = (
        torch.from_numpy(vectors[f"c{c}_{name}"])
        for name in ("scaled_seg", "scaled_roi", "unlabelled", "scaled_image", "AS", "gate")
    )
    sigma_rgb, sigma_xy, scale, _ = vectors["configs"][c].tolist()
    seg.requires_grad_()
    dense_crf_loss(
        seg, image, roi=roi, unlabelled=unlabelled, sigma_rgb=sigma_rgb, sigma_xy=sigma_xy * scale, scale=1
    ).backward()
    expected = -2 / len(seg) * gate * filtered * roi[:, None]
    assert torch.allclose(seg.grad, expected, rtol=0, atol=1e-6)


def energy(p: Tensor, images: Tensor, gate: Tensor, sigma_xy: float, sigma_rgb: float) -> Tensor:
    """The energy with a dense kernel matrix, for autograd."""
    f = bilateral_features(images.double(), sigma_xy=sigma_xy, sigma_rgb=sigma_rgb).flatten(2)
    kernel = torch.exp(-0.5 * (f[:, :, :, None] - f[:, :, None]).square().sum(1))
    s = p.flatten(2)
    return -(s * gate.flatten(2) * (s @ kernel)).sum() / len(p)


@pytest.fixture
def scene() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 6, 5), dtype=torch.uint8, generator=generator)
    p = torch.randn(2, 4, 6, 5, generator=generator).double().mul(2).softmax(1)
    unlabelled = torch.rand(2, 6, 5, generator=generator) < 0.5
    return images, p, unlabelled


def test_true_gradient_holds_the_gate(scene) -> None:
    images, p, unlabelled = scene
    settings = {"sigma_xy": 4.0, "sigma_rgb": 90.0}
    gate = torch.where(unlabelled[:, None], 1.0, 1 - p.amax(1, keepdim=True))
    p.requires_grad_()
    (expected,) = torch.autograd.grad(energy(p, images, gate, **settings), p)
    loss = dense_crf_loss(
        p, images, unlabelled=unlabelled, scale=1, kernel="exact", gradient="true", **settings
    )
    (ours,) = torch.autograd.grad(loss, p)
    assert loss.dtype == torch.float64
    assert torch.allclose(loss, energy(p, images, gate, **settings))
    assert torch.allclose(ours, expected)


def test_true_gradient_by_finite_differences(scene) -> None:
    images, p, _ = scene
    for kernel in ("lattice", "exact"):
        for scale in (1.0, 0.5):
            assert torch.autograd.gradcheck(
                lambda q, k=kernel, s=scale: dense_crf_loss(
                    q, images, sigma_xy=4.0, sigma_rgb=90.0, scale=s, kernel=k, gradient="true"
                ),
                p.requires_grad_(),
                fast_mode=True,
            )


def test_coded_gradient_of_the_plain_loss_is_nearly_true(scene) -> None:
    images, p, _ = scene
    grads = {}
    for gradient in ("coded", "true"):
        q = p.clone().requires_grad_()
        dense_crf_loss(q, images, sigma_xy=4.0, sigma_rgb=90.0, scale=1, gradient=gradient).backward()
        grads[gradient] = q.grad
    difference = (grads["coded"] - grads["true"]).norm() / grads["true"].norm()
    assert 0 < difference < 0.1


def test_region_of_interest(scene) -> None:
    images, p, unlabelled = scene
    p = p.float()
    roi = torch.zeros(2, 6, 5)
    roi[:, :, :3] = 1
    q = p.clone().requires_grad_()
    loss = dense_crf_loss(q, images, roi=roi, unlabelled=unlabelled, scale=1)
    loss.backward()
    assert (q.grad[..., 3:] == 0).all()
    assert (q.grad[..., :3].abs().sum(1) > 0).any()
    changed = torch.where(roi[:, None] > 0, p, 0.25)
    again = dense_crf_loss(changed, images, roi=roi, unlabelled=unlabelled, scale=1)
    assert torch.equal(loss, again)


def test_loss_under_autocast_is_float32(scene) -> None:
    images, p, unlabelled = scene
    low = p.to(torch.bfloat16).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        for kernel in ("lattice", "exact"):
            loss = dense_crf_loss(low, images, unlabelled=unlabelled, scale=1, kernel=kernel, gradient="true")
            (grad,) = torch.autograd.grad(loss, low)
            outside = dense_crf_loss(
                low.detach().float(), images, unlabelled=unlabelled, scale=1, kernel=kernel
            )
            assert loss.dtype == torch.float32
            assert grad.dtype == torch.bfloat16
            assert torch.equal(loss, outside)


def test_loss_refuses_what_does_not_fit(scene) -> None:
    images, p, _ = scene
    with pytest.raises(ValueError, match="images of"):
        dense_crf_loss(p[..., :4], images)
    with pytest.raises(ValueError, match="roi of"):
        dense_crf_loss(p, images, roi=torch.ones(2, 1, 6, 5))
    with pytest.raises(ValueError, match="unknown gradient"):
        dense_crf_loss(p, images, gradient="exact")


# --- mean field --------------------------------------------------------------------------------------

#: Names of the golden file and the names of our sets that hold the same values; ``weclip`` was made with
#: a colour deviation of 3.
SETS = {"toco_fsr": "toco", "toco_cam": "toco-cam", "blpseg": "blpseg", "cdl": "cdl"}


def parameters_of(row: np.ndarray) -> CRFParameters:
    g_xy, g_compat, b_xy, b_rgb, b_compat, iterations = row.tolist()
    return CRFParameters(
        about="golden",
        gaussian_sigma_xy=g_xy,
        gaussian_compat=g_compat,
        bilateral_sigma_xy=b_xy,
        bilateral_sigma_rgb=b_rgb,
        bilateral_compat=b_compat,
        iterations=int(iterations),
    )


def test_golden_mean_field(folder) -> None:
    vectors = np.load(folder / "dense_crf_pydensecrf2.npz")
    tags = [t for t in ("small", "mid") if f"{t}_image" in vectors]
    for tag in tags:
        image = torch.from_numpy(vectors[f"{tag}_image"]).permute(2, 0, 1)[None]
        prob = torch.from_numpy(vectors[f"{tag}_prob"])[None]
        names = vectors["param_names"].tolist()
        assert len(names) == 5
        for name, row in zip(names, vectors["params_gaussxy_compat_bilatxy_rgb_compat_iters"], strict=True):
            ours = mean_field(prob, image, parameters_of(row))[0]
            theirs = torch.from_numpy(vectors[f"{tag}_{name}_Q"])
            assert (ours - theirs).abs().max() <= 2e-3
            assert (ours - theirs).abs().mean() <= 1e-6
            assert torch.equal(ours.argmax(0), theirs.argmax(0))


def test_named_sets_are_the_golden_ones(golden) -> None:
    vectors = np.load(golden / "reg" / "dense_crf_pydensecrf2.npz")
    rows = dict(
        zip(
            vectors["param_names"].tolist(),
            vectors["params_gaussxy_compat_bilatxy_rgb_compat_iters"],
            strict=True,
        )
    )
    for theirs, ours in SETS.items():
        expected, named = parameters_of(rows[theirs]), crf_parameters(ours)
        for field in ("gaussian_sigma_xy", "gaussian_compat", "bilateral_sigma_xy", "bilateral_sigma_rgb"):
            assert getattr(named, field) == getattr(expected, field)
        assert (named.bilateral_compat, named.iterations) == (expected.bilateral_compat, expected.iterations)
    assert crf_parameters("fsr").bilateral_sigma_xy == crf_parameters("dupl").bilateral_sigma_xy == 121
    assert {"afa", "weclip", "toco-labels"} <= crf_parameter_sets().keys()


@pytest.fixture
def picture() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (2, 3, 12, 10), dtype=torch.uint8, generator=generator)
    return images, torch.randn(2, 3, 12, 10, generator=generator).softmax(1)


def test_mean_field_gives_distributions_by_picture(picture) -> None:
    images, p = picture
    q = mean_field(p, images, "toco")
    assert torch.allclose(q.sum(1), torch.ones(2, 12, 10))
    alone = [mean_field(p[i : i + 1], images[i : i + 1], "toco") for i in range(2)]
    assert torch.allclose(q, torch.cat(alone), atol=1e-6)
    assert torch.equal(q, mean_field(p, images.float(), "toco"))


def test_no_iteration_returns_the_input(picture) -> None:
    images, p = picture
    none = parameters_of(np.array([3, 3, 50, 5, 4, 0]))
    assert torch.allclose(mean_field(p, images, none), p, atol=1e-6)


def test_mean_field_smooths_a_flat_picture(picture) -> None:
    images, _ = picture
    flat = torch.full_like(images, 128)
    p = torch.full((2, 2, 12, 10), 0.3)
    p[:, 1] = 0.7
    p[:, :, 6, 5] = torch.tensor([0.7, 0.3])  # one pixel against all others
    assert (mean_field(p, flat, "toco").argmax(1) == 1).all()
    assert mean_field(p, flat, "toco")[0, 1, 6, 5] > 0.9


def test_label_probabilities() -> None:
    labels = torch.tensor([[[0, 2], [254, 255]]])
    p = label_probabilities(labels, 4, confidence=0.7)
    assert torch.allclose(p.sum(1), torch.ones(1, 2, 2))
    assert torch.allclose(p[0, :, 0, 1], torch.tensor([0.1, 0.1, 0.7, 0.1]))
    assert torch.allclose(p[0, :, 1], torch.full((4, 2), 0.25))


def test_pydensecrf_when_missing(picture, monkeypatch: pytest.MonkeyPatch) -> None:
    images, p = picture
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    with pytest.raises(UserError, match="not installed") as caught:
        mean_field(p, images, "toco", engine="pydensecrf")
    assert "pip install pydensecrf2" in str(caught.value)


def test_pydensecrf_agrees(picture) -> None:
    pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf is not installed")
    images, p = picture
    for name in crf_parameter_sets():
        ours, theirs = mean_field(p, images, name), mean_field(p, images, name, engine="pydensecrf")
        assert (ours - theirs).abs().max() <= 2e-3
        assert torch.equal(ours.argmax(1), theirs.argmax(1))


def test_mean_field_refuses_what_does_not_fit(picture) -> None:
    images, p = picture
    with pytest.raises(UserError, match="unknown CRF parameter set 'tocco'") as caught:
        mean_field(p, images, "tocco")
    assert "toco" in str(caught.value.remedy)
    with pytest.raises(ValueError, match="images of"):
        mean_field(p[:1], images, "toco")
    with pytest.raises(ValueError, match="unknown engine"):
        mean_field(p, images, "toco", engine="gpu")
