"""AGMM's terms against golden vectors, and where goldens end: empty, full, huge and half-precision input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from harness.engine.batch import IGNORE, UNLABELLED
from harness.nn.resize import resize
from methods import agmm
from methods.agmm import AGMMConfig, agmm_loss, fit_class_mixture

FOLDER = Path(__file__).parents[1] / "golden" / "agmm"
CASES = sorted(p.stem for p in [*FOLDER.glob("*_f32.npz"), *FOLDER.glob("*_f64.npz")] if "aspp" not in p.stem)
CASES = [c for c in CASES if not c.startswith("evaluation")]
#: Names of the terms in the golden files.
TERMS = {
    "seg_loss": "seg",
    "cls_loss": "cls",
    "proto_loss": "contrast",
    "gmm_self": "self",
    "gmm_label": "label",
}


class Case:
    """One golden file in the project's label encoding."""

    def __init__(self, name: str) -> None:
        with np.load(FOLDER / f"{name}.npz") as data:
            self.gold = {k: data[k] for k in data}
        self.double = name.endswith("f64")
        self.dtype = torch.float64 if self.double else torch.float32
        self.classes = int(self.gold["nclass"])
        spreads = [s for s in ("pred", "plain") if name.startswith(f"variance_{s}")]
        self.config = AGMMConfig(spread=spreads[0] if spreads else "unit")
        mask = torch.from_numpy(self.gold["mask"].astype(np.int64))
        self.labels = mask.where(mask != self.classes, UNLABELLED)
        self.tags = torch.from_numpy(self.gold["cls_label"]).float()
        self.features, self.logits = (
            torch.tensor(self.gold[k], dtype=self.dtype, requires_grad=True) for k in ("feat", "logits")
        )
        self.saturated = name.startswith("saturated")

    def loss(self) -> dict[str, torch.Tensor]:
        return agmm_loss(self.features, self.logits, self.labels, self.tags, self.config)

    def gradients(self, loss: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = torch.autograd.grad(loss, [self.logits, self.features], allow_unused=True, retain_graph=True)
        zeros = [torch.zeros_like(self.logits), torch.zeros_like(self.features)]
        return tuple(z if g is None else g for g, z in zip(found, zeros, strict=True))  # type: ignore[return-value]

    def close(self, found: torch.Tensor, name: str, relative: float, absolute: float) -> None:
        expected = np.nan_to_num(self.gold[name].reshape(found.shape))  # means over nothing are 0 here
        difference = np.abs(found.detach().numpy() - expected)
        assert difference.max() <= absolute + relative * np.abs(expected).max(), name


@pytest.fixture(params=CASES)
def case(request) -> Case:
    return Case(request.param)


def test_the_golden_cases_are_all_there():
    assert len(CASES) == 2 * 11 + 6


def test_terms_agree(case: Case):
    terms = case.loss()
    for name, term in TERMS.items():
        if name in case.gold:
            relative, absolute = (0, 1e-10) if case.double else (2e-5, 0)
            case.close(terms[term], name, relative, absolute)
    if not np.isnan(case.gold["total"]).any():
        total = torch.stack(list(terms.values())).sum()
        case.close(total, "total", 0 if case.double else 2e-5, 1e-10 if case.double else 0)


def test_gradients_agree(case: Case):
    terms = case.loss()
    relative = 1e-9 if case.double else 1e-4
    to_logits, to_features = case.gradients(torch.stack(list(terms.values())).sum())
    # 1 / (1 - p + eps) is ill-conditioned in float32 where p is nearly 1.
    case.close(to_logits, "grad_logits", 1e-2 if case.saturated and not case.double else relative, 0)
    case.close(to_features, "grad_feat", relative, 0)
    parts = {
        "gmm": terms["self"] + terms["label"],
        "proto": terms["contrast"],
        "cls": terms["cls"],
    }
    for name, part in parts.items():
        if not part.requires_grad:
            continue
        for found, side in zip(case.gradients(part), ("logits", "feat"), strict=True):
            if f"grad_{side}_{name}" in case.gold:
                case.close(found, f"grad_{side}_{name}", relative, 0)


def test_prototypes_and_responses_agree(case: Case):
    probabilities = case.logits.softmax(1)
    mixture = fit_class_mixture(case.features, probabilities, case.labels, case.tags, case.config)
    absolute = 1e-10 if case.double else 5e-6
    responses = torch.zeros_like(case.logits)
    responses[mixture.images, mixture.classes] = mixture.responses
    case.close(responses, "res", 0, absolute)
    if "prototypes" in case.gold:
        prototypes = torch.zeros(*case.gold["prototypes"].shape, dtype=case.dtype)
        prototypes[mixture.images, mixture.classes] = mixture.prototypes
        case.close(prototypes, "prototypes", 0, absolute)
        present = torch.zeros(*case.gold["cur_cls_label"].shape, dtype=case.dtype)
        present[mixture.images, mixture.classes] = 1
        case.close(present, "cur_cls_label", 0, 0)
        # v_k as the authors' code amounts to: a sum over the images that have the class.
        number = present.sum(0)[:, None]
        case.close(prototypes.sum(0) * number / (number + 1e-6), "mean_vecs", 0, absolute)


def test_goldens_tell_the_other_readings_apart():
    """A sum is not a mean, and the three spreads differ: a wrong default cannot pass."""
    case = Case("shared_classes_f64")
    pooled = [
        agmm_loss(case.features, case.logits, case.labels, case.tags, AGMMConfig(prototype_pool=p))
        for p in ("sum", "mean")
    ]
    assert abs(pooled[0]["contrast"] - pooled[1]["contrast"]) > 0.5
    case = Case("normal_f64")
    spreads = [
        agmm_loss(case.features, case.logits, case.labels, case.tags, AGMMConfig(spread=s))["self"].item()
        for s in ("unit", "pred", "plain")
    ]
    assert min(abs(a - b) for a, b in zip(spreads, spreads[1:] + spreads[:1], strict=True)) > 1e-3


# --- beyond the goldens ------------------------------------------------------------------------------


def problem(batch=2, classes=5, channels=8, side=25, grid=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.rand(batch, channels, grid, grid, generator=generator, requires_grad=True)
    logits = torch.randn(batch, classes, side, side, generator=generator).requires_grad_()
    labels = torch.full((batch, side, side), UNLABELLED)
    return features, logits, labels, torch.zeros(batch, classes)


def run(features, logits, labels, tags, **options):
    terms = agmm_loss(features, logits, labels, tags, AGMMConfig(**options))
    assert all(t.shape == () and torch.isfinite(t) for t in terms.values())
    torch.stack(list(terms.values())).sum().backward()
    for tensor in (features, logits):
        assert tensor.grad is None or torch.isfinite(tensor.grad).all()
    return terms


OPTIONS = [{}, {"spread": "pred"}, {"spread": "plain"}, {"oem_ours_rounds": 2}, {"prototype_pool": "mean"}]


@pytest.mark.parametrize("options", OPTIONS)
def test_a_batch_without_any_label_leaves_the_absent_class_term_alone(options):
    features, logits, labels, tags = problem()
    terms = run(features, logits, labels, tags, **options)
    assert [k for k, v in terms.items() if v != 0] == ["cls"]


@pytest.mark.parametrize("options", OPTIONS)
def test_a_batch_of_padding_alone_gives_zero(options):
    features, logits, labels, tags = problem()
    terms = run(features, logits, labels.fill_(IGNORE), tags, **options)
    assert all(v == 0 for v in terms.values())
    assert logits.grad.abs().max() == 0


@pytest.mark.parametrize("options", OPTIONS)
def test_a_single_class_has_no_contrast(options):
    features, logits, labels, tags = problem()
    labels[:, 3:6, 3:6] = 2
    tags[:, 2] = 1
    terms = run(features, logits, labels, tags, **options)
    assert terms["contrast"] == 0
    assert all(terms[k] > 0 for k in ("seg", "self", "label", "cls"))


@pytest.mark.parametrize("options", OPTIONS)
def test_a_hundred_and_fifty_classes(options):
    features, logits, labels, tags = problem(batch=1, classes=150, side=64, grid=16)
    labels[0] = torch.arange(64 * 64).view(64, 64) % 150
    tags[:] = 1
    terms = run(features, logits, labels, tags, **options)
    mixture = fit_class_mixture(features, logits.softmax(1), labels, tags, AGMMConfig(**options))
    assert len(mixture.classes) == 150
    assert terms["cls"] == 0, "no class is absent"


def test_a_long_list_of_pairs_is_cut_into_chunks_without_changing_anything(monkeypatch):
    values = []
    for chunk in (2**26, 3 * 8 * 7 * 7):
        monkeypatch.setattr(agmm.MeanAbsoluteDifference, "CHUNK", chunk)
        features, logits, labels, tags = problem(classes=7)
        labels[:] = torch.arange(25) % 7
        terms = run(features, logits, labels, tags)
        values.append([*terms.values(), features.grad, logits.grad])
    for one, other in zip(*values, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


def test_the_distance_has_the_right_gradient():
    features = torch.rand(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    prototypes = torch.rand(3, 3, dtype=torch.float64, requires_grad=True)
    images = torch.tensor([0, 1, 1])
    assert torch.autograd.gradcheck(agmm.mean_absolute_difference, (features, prototypes, images))


def test_features_of_another_image_do_not_matter():
    features, logits, labels, tags = problem(batch=3)
    labels[:, 2:4, :] = 1
    labels[:, 9:12, :] = 3
    first = fit_class_mixture(features, logits.softmax(1), labels, tags, AGMMConfig())
    changed = features.detach().clone()
    changed[2] += 1
    second = fit_class_mixture(changed, logits.softmax(1), labels, tags, AGMMConfig())
    own = first.images != 2
    torch.testing.assert_close(first.responses[own], second.responses[own])
    torch.testing.assert_close(first.prototypes[own], second.prototypes[own])


def test_prototypes_are_the_mean_of_the_resized_features():
    features, _, labels, _ = problem(batch=3, classes=4)
    labels[0, 2:9, 1:20] = 1
    labels[2, 11:12, 5] = 3
    labels[2, 20:, :] = 0
    counts = agmm.label_counts(labels, 4)
    images, classes = counts.nonzero(as_tuple=True)
    members = (labels[images] == classes[:, None, None]).float()
    found = agmm.label_prototypes(features, members, images, counts[images, classes])
    large = resize(features, (25, 25), align_corners=False)
    for row, (image, k) in enumerate(zip(images, classes, strict=True)):
        mean = large[image][:, labels[image] == k].sum(1) / (counts[image, k] + 1e-6)
        torch.testing.assert_close(found[row], mean, rtol=1e-5, atol=1e-6)


def test_online_em_of_our_own_moves_prototypes_towards_their_pixels_and_is_off_by_default():
    assert AGMMConfig().oem_ours_rounds == 0
    generator = torch.Generator().manual_seed(1)
    truth = (torch.arange(28) >= 14).long().expand(1, 28, 28)
    centres = torch.tensor([[0.2] * 8, [1.8] * 8])
    small = truth[:, 2::4, 2::4]
    noise = 0.2 * torch.randn(1, 8, 7, 7, generator=generator)
    features = centres[small].permute(0, 3, 1, 2) + noise
    means = torch.stack([features[0][:, small[0] == k].mean(1) for k in range(2)])
    labels = torch.full((1, 28, 28), UNLABELLED)
    labels[0, 3, 3], labels[0, 3, 24] = 0, 1
    tags = torch.tensor([[1.0, 1.0]])
    probabilities = torch.full((1, 2, 28, 28), 0.5)
    errors = []
    for rounds in (0, 3):
        mixture = fit_class_mixture(features, probabilities, labels, tags, AGMMConfig(oem_ours_rounds=rounds))
        errors.append((mixture.prototypes - means).abs().mean().item())
        assert ((mixture.responses > 0) & (mixture.responses <= 1)).all()
    assert errors[1] < 0.2 * errors[0]


def test_terms_have_the_dtype_of_their_input_under_autocast():
    features, logits, labels, tags = problem()
    labels[:, 3:6, 3:6] = 2
    labels[:, 9, :] = 0
    plain = agmm_loss(features, logits, labels, tags, AGMMConfig())
    from harness.nn.precision import outside_autocast

    with torch.autocast("cpu", dtype=torch.bfloat16), outside_autocast(logits.device):
        inside = agmm_loss(features, logits, labels, tags, AGMMConfig())
    for name, value in plain.items():
        assert inside[name].dtype == torch.float32
        assert torch.equal(value, inside[name]), name
