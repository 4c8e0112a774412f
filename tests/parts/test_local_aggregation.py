"""Local aggregation against the authors' numbers and against the written-out formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from methods.parts.local_aggregation import EPSILON, _attention, _Distance, local_aggregation

CASES = ["lam_12x16_moderate", "lam_12x16_init", "lam_12x16_batch2_voc21", "lam_oddsize_45x61"]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def load(golden, name: str) -> dict[str, torch.Tensor]:
    with np.load(golden / "blpseg" / f"{name}.npz") as data:
        return {k: torch.from_numpy(data[k]) for k in data.files}


def assert_near(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 3e-5) -> None:
    """Within ``tolerance`` of max(1, largest magnitude), as the golden data recommend."""
    scale = max(1.0, theirs.abs().max().item())
    assert (ours.double() - theirs.double()).abs().max().item() <= tolerance * scale


def written_out(scores, features, sigma, epsilon):
    """The module's formula with whole matrices."""
    height, width = scores.shape[-2:]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    x = torch.stack([rows, columns], -1).reshape(-1, 2).to(features)
    near = torch.exp(-(x[:, None] - x[None]).square().sum(-1) / (2 * sigma**2))
    f = features.flatten(2)
    kernel = (f.mT @ f).softmax(1) * near  # column b holds position b's weights
    kernel = kernel / (kernel.sum(1, keepdim=True) + epsilon)
    return (scores.flatten(2) @ kernel).unflatten(2, (height, width))


@pytest.mark.parametrize("name", [*CASES, "lam_12x16_epsilon"])
@pytest.mark.parametrize("rows", [None, 37])
def test_reference_matches_the_authors_output_and_gradients(golden, name, rows):
    data = load(golden, name)
    scores, features = data["seg_in"].requires_grad_(), data["feat"].requires_grad_()
    out = local_aggregation(scores, features, data["sigma"].item(), "reference", rows)
    torch.testing.assert_close(out, data["out"], rtol=0, atol=5e-5)
    out.backward(data["grad_out"])
    assert_near(scores.grad, data["grad_seg"])
    assert_near(features.grad, data["grad_feat"])


@pytest.mark.parametrize("name", CASES)
def test_default_matches_the_authors_where_epsilon_is_small(golden, name):
    data = load(golden, name)
    scores, features = data["seg_in"].requires_grad_(), data["feat"].requires_grad_()
    out = local_aggregation(scores, features, data["sigma"].item())
    assert_near(out, data["out"])
    out.backward(data["grad_out"])
    assert_near(scores.grad, data["grad_seg"])
    assert_near(features.grad, data["grad_feat"])


def test_epsilon_is_seen_where_the_normaliser_is_tiny(golden):
    data = load(golden, "lam_12x16_epsilon")
    assert data["mass"].min() < 10 * EPSILON
    without = local_aggregation(data["seg_in"], data["feat"], data["sigma"].item(), "none")
    assert (without - data["out"]).abs().max() > 1


def by_attention(scores, features, sigma):
    """What a GPU does, here."""
    content, values = (x.flatten(2).mT.contiguous() for x in (features, scores))
    return _attention(content, values, scores.shape[-2:], sigma).mT.unflatten(2, scores.shape[-2:])


@pytest.mark.parametrize("name", CASES)
def test_attention_matches_the_authors_where_epsilon_is_small(golden, name):
    data = load(golden, name)
    scores, features = data["seg_in"].requires_grad_(), data["feat"].requires_grad_()
    out = by_attention(scores, features, data["sigma"].item())
    assert_near(out, data["out"])
    out.backward(data["grad_out"])
    assert_near(scores.grad, data["grad_seg"])
    assert_near(features.grad, data["grad_feat"])


@pytest.mark.parametrize(("grid", "channels", "dtype"), [((7, 5), 21, torch.float64), ((40, 96), 4, None)])
def test_attention_gives_the_formula_on_any_grid(grid, channels, dtype):
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(2, channels, *grid, dtype=torch.float64, generator=generator)
    features = torch.randn(2, 5, *grid, dtype=torch.float64, generator=generator) / 2
    whole = written_out(scores, features, 6.0, 0.0)
    ours = by_attention(scores.to(dtype or torch.float32), features.to(dtype or torch.float32), 6.0)
    torch.testing.assert_close(ours.double(), whole, rtol=0, atol=1e-12 if dtype else 1e-5)


def test_distance_term_is_the_authors(golden):
    data = load(golden, "lam_distance_12x16")
    block = torch.zeros(1, 150, 192)
    ours = _Distance((12, 16), data["sigma"].item(), block).add_(block, 42).exp()
    torch.testing.assert_close(ours, data["dist"][:, 42:], rtol=2e-5, atol=1e-30)


@pytest.mark.parametrize("epsilon", ["none", "reference"])
@pytest.mark.parametrize("device", DEVICES)
def test_gradients_agree_with_finite_differences(epsilon, device):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(1, 2, 2, 3, dtype=torch.float64, generator=generator).to(device).requires_grad_()
    features = torch.randn(1, 3, 2, 3, dtype=torch.float64, generator=generator).to(device) * 2
    features.requires_grad_()
    sigma = 0.7 if epsilon == "reference" else 3.0

    def run(s, f):
        return local_aggregation(s, f, sigma, epsilon, rows=4)

    assert torch.autograd.gradcheck(run, (scores, features))
    assert torch.autograd.gradcheck(lambda s: run(s, features.detach()), (scores,))
    assert torch.autograd.gradcheck(lambda f: run(scores.detach(), f), (features,))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 90),
    st.sampled_from(["none", "reference"]),
    st.floats(0.5, 20),
    st.integers(0, 10_000),
)
def test_blocks_of_any_size_give_the_written_out_formula(batch, height, width, rows, epsilon, sigma, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(batch, 4, height, width, dtype=torch.float64, generator=generator)
    features = torch.randn(batch, 3, height, width, dtype=torch.float64, generator=generator)
    ours = local_aggregation(scores, features, sigma, epsilon, rows)
    whole = written_out(scores, features, sigma, EPSILON if epsilon == "reference" else 0.0)
    torch.testing.assert_close(ours, whole, rtol=1e-9, atol=1e-9)


def test_equal_scores_stay_as_they_are():
    features = torch.randn(1, 8, 6, 7, generator=torch.Generator().manual_seed(0)) * 5
    scores = torch.tensor([2.0, -3.0])[None, :, None, None].expand(1, 2, 6, 7)
    torch.testing.assert_close(local_aggregation(scores, features), scores.contiguous())


def test_huge_scores_do_not_overflow():
    features = torch.full((1, 64, 5, 5), 40.0)
    scores = torch.randn(1, 2, 5, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    features.requires_grad_()
    for epsilon in ("none", "reference"):
        out = local_aggregation(scores, features, 6.0, epsilon)
        grads = torch.autograd.grad(out.sum(), (scores, features))
        assert all(torch.isfinite(x).all() for x in (out, *grads))


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_does_not_reach_the_scores(device):
    generator = torch.Generator().manual_seed(0)
    features = (torch.randn(1, 32, 8, 8, generator=generator) * 3).to(device).requires_grad_()
    scores = torch.randn(1, 3, 8, 8, generator=generator).to(device).requires_grad_()
    plain = local_aggregation(scores, features)
    expected = torch.autograd.grad(plain.square().sum(), (scores, features))
    with torch.autocast(device, dtype=torch.bfloat16):
        out = local_aggregation(scores, features)
        assert out.dtype == torch.float32
        torch.testing.assert_close(out, plain)
        given = torch.autograd.grad(out.square().sum(), (scores, features))  # backward inside autocast
    torch.testing.assert_close(given, expected)


def test_half_precision_inputs_are_aggregated_in_float32():
    features = torch.randn(1, 16, 6, 6, generator=torch.Generator().manual_seed(0)).half().requires_grad_()
    scores = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(1)).half().requires_grad_()
    out = local_aggregation(scores, features)
    torch.testing.assert_close(out, local_aggregation(scores.float(), features.float()))
    out.sum().backward()
    assert features.grad.dtype == scores.grad.dtype == torch.float16


def test_no_tensor_of_all_pairs_is_kept_for_the_backward_pass():
    features = torch.randn(1, 8, 30, 30, generator=torch.Generator().manual_seed(0)).requires_grad_()
    scores = torch.randn(1, 3, 30, 30, generator=torch.Generator().manual_seed(1)).requires_grad_()
    sizes: list[int] = []

    def note(x):
        sizes.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        local_aggregation(scores, features, rows=64)
    assert sizes
    assert max(sizes) <= 8 * 900


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"features": torch.zeros(1, 4, 5, 6)}, "do not match"),
        ({"sigma": 0.0}, "sigma"),
        ({"epsilon": "some"}, "epsilon"),
    ],
)
def test_wrong_arguments_are_named(change, words):
    values = {"scores": torch.zeros(1, 2, 5, 5), "features": torch.zeros(1, 4, 5, 5)} | change
    with pytest.raises(ValueError, match=words):
        local_aggregation(**values)
