"""Two-component mixtures against golden vectors, scikit-learn, and what EM promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.mixture import GaussianMixture
from torch import Tensor

from methods.dskd_gc.gaussian_mixture import Mixture, fit_mixture, histogram, noise_probability

CASES = (
    "A_fixed",
    "B_swapped",
    "C_early_stop",
    "D_max_iter",
    "E_midpoint",
    "F_spike_reg1e-6",
    "G_spike_reg5e-4",
    "H_spike_reg5e-3",
)


def case(golden: Path, name: str) -> dict[str, np.ndarray]:
    file = np.load(golden / "dskd_gc" / "gmm_em.npz")
    return {k.split("/", 1)[1]: file[k] for k in file.files if k.startswith(f"{name}/")}


def tensor(x: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(x))


def fit(c: dict[str, np.ndarray], **options) -> Mixture:
    start = tuple(tensor(c[k])[None] for k in ("mu0", "var0", "lam0"))
    settings = {"reg": float(c["reg"]), "tol": float(c["tol"]), "max_iter": int(c["max_iter"])}
    return fit_mixture(tensor(c["x"])[None], **({"start": start} | settings | options))


def close(ours: Tensor, expected: np.ndarray, atol: float) -> None:
    torch.testing.assert_close(ours, tensor(expected), rtol=0, atol=atol)


@pytest.mark.parametrize("name", CASES)
def test_golden_fits(golden, name):
    c = case(golden, name)
    m = fit(c)
    close(m.mean[0], c["mu"], 1e-9)
    close(m.variance[0], c["var"], 1e-9)
    close(m.weight[0], c["lam"], 1e-9)
    assert m.steps.tolist() == [int(c["n_iter"])]
    assert m.converged.tolist() == [bool(c["converged"])]
    close(noise_probability(m, tensor(c["x"])[None])[0], c["noise_prob"], 1e-9)
    assert int(m.mean[0].argmin()) == int(c["noise_component"])


@pytest.mark.parametrize("name", CASES)
def test_golden_traces(golden, name):
    """Every step's parameters and likelihood; the likelihood never falls while the floor is small."""
    c = case(golden, name)
    for step in range(1, int(c["n_iter"]) + 1):
        m = fit(c, max_iter=step, tol=0.0)
        close(m.mean[0], c["trace_mu"][step], 1e-9)
        close(m.variance[0], c["trace_var"][step], 1e-9)
        close(m.weight[0], c["trace_lam"][step], 1e-9)
        assert m.likelihood.item() == pytest.approx(c["trace_ll"][step - 1], abs=1e-9)


@pytest.mark.parametrize("name", ["E_midpoint", "F_spike_reg1e-6", "G_spike_reg5e-4"])
def test_the_default_start_is_the_middle_of_the_range(golden, name):
    c = case(golden, name)
    started, given = fit(c, start=None), fit(c)
    assert started.steps.tolist() == given.steps.tolist()
    torch.testing.assert_close(started.mean, given.mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(started.variance, given.variance, rtol=0, atol=1e-12)


def test_golden_batch_stops_image_by_image_and_leaves_out_masked_pixels(golden):
    c = case(golden, "batch")
    x, mask = tensor(c["x"]), tensor(c["mask"])
    settings = {"reg": float(c["reg"]), "tol": float(c["tol"]), "max_iter": int(c["max_iter"])}
    m = fit_mixture(x, mask=mask, **settings)
    valid = tensor(c["valid"])
    assert torch.equal(m.valid, valid)
    assert m.steps.tolist() == c["n_iter"].tolist()
    for ours, expected in ((m.mean, c["mu"]), (m.variance, c["var"]), (m.weight, c["lam"])):
        close(ours[valid], expected[c["valid"]], 1e-9)
    close(noise_probability(m, x) * mask, c["noise_prob"], 1e-9)
    for i in range(4):  # an image's neighbours in the batch do not matter
        alone = fit_mixture(x[i : i + 1], mask=mask[i : i + 1], **settings)
        assert alone.steps[0] == m.steps[i]
        torch.testing.assert_close(alone.mean[0], m.mean[i], rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", ["ordinary", "narrow_clean", "wide_clean"])
def test_golden_posteriors(golden, name):
    file = np.load(golden / "dskd_gc" / "noise_prob.npz")
    one = torch.ones(1, dtype=torch.bool)
    mean, variance, weight = (tensor(file[f"{name}/{k}"])[None] for k in ("mu", "var", "lam"))
    m = Mixture(mean, variance, weight, one, one, one.long(), one.double())
    x = tensor(file["x"])[None]
    close(noise_probability(m, x)[0], file[f"{name}/G"], 1e-12)
    close(noise_probability(m, x, monotone=True)[0], file[f"{name}/G_monotone"], 1e-12)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("reg", [1e-6, 5e-4])
def test_agrees_with_scikit_learn(seed, reg):
    rng = np.random.default_rng(seed)
    x = np.concatenate([rng.beta(2, 9 + seed, 1500), rng.beta(7 - seed, 3, 600), np.zeros(200)])
    ours = fit_mixture(tensor(x)[None], reg=reg, tol=1e-7, max_iter=300)
    upper = x > (x.min() + x.max()) / 2
    halves = [x[~upper], x[upper]]
    theirs = GaussianMixture(
        2,
        reg_covar=reg,
        tol=1e-7,
        max_iter=300,
        means_init=[[h.mean()] for h in halves],
        weights_init=[len(h) / len(x) for h in halves],
        precisions_init=[[[1 / (h.var() + reg)]] for h in halves],
    ).fit(x[:, None])
    assert ours.steps.item() == theirs.n_iter_
    close(ours.mean[0], theirs.means_[:, 0], 1e-10)
    close(ours.variance[0], theirs.covariances_[:, 0, 0], 1e-10)
    close(ours.weight[0], theirs.weights_, 1e-10)
    close(noise_probability(ours, tensor(x)[None])[0], theirs.predict_proba(x[:, None])[:, 0], 1e-10)


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.float64, (2, 40), elements=st.floats(0, 1)))
def test_the_likelihood_never_falls(x):
    before = None
    for step in range(1, 8):
        m = fit_mixture(tensor(x), reg=1e-9, tol=0.0, max_iter=step)
        if before is not None:
            assert (m.likelihood >= before - 1e-7)[m.valid].all()
        before = m.likelihood


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.float64, (3, 30), elements=st.floats(0, 1)), st.booleans())
def test_noise_is_a_probability_whatever_the_values(x, monotone):
    m = fit_mixture(tensor(x))
    noise = noise_probability(m, tensor(x), monotone=monotone)
    assert noise.isfinite().all()
    assert ((noise >= 0) & (noise <= 1)).all()
    assert (noise[~m.valid] == 0).all()
    if monotone:
        rising = tensor(np.sort(x, axis=1))
        assert (noise_probability(m, rising, monotone=True).diff(dim=1) <= 1e-12).all()


def test_swapped_starts_give_the_same_noise(golden):
    one, other = (case(golden, name) for name in ("A_fixed", "B_swapped"))
    x = tensor(one["x"])[None]
    torch.testing.assert_close(
        noise_probability(fit(one), x), noise_probability(fit(other), x), rtol=0, atol=1e-12
    )


def test_what_cannot_be_told_apart_has_no_noise():
    few = torch.linspace(0, 1, 9).repeat(4, 1)
    constant, empty = torch.full((1, 64), 0.3), torch.ones(1, 64)
    near = 0.5 + 4e-4 * torch.arange(64).remainder(2).double()[None]
    assert not fit_mixture(few).valid.any()
    assert not fit_mixture(constant).valid.any()
    assert not fit_mixture(empty, mask=torch.zeros(1, 64, dtype=torch.bool)).valid.any()
    assert not fit_mixture(near, reg=1e-9).valid.any()
    for bins in (None, 64):
        m = fit_mixture(torch.cat([constant, torch.linspace(0, 1, 64)[None] ** 3]), bins=bins)
        assert m.valid.tolist() == [False, True]
        assert (noise_probability(m, torch.rand(2, 5)) > 0).any(1).tolist() == [False, True]


def test_a_histogram_counts_every_value_once_and_gives_nearly_the_same_fit():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, 20000, generator=generator, dtype=torch.float64) ** 3
    x[:, 10000:] = 0.7 + 0.1 * torch.randn(3, 10000, generator=generator, dtype=torch.float64)
    mask = torch.rand(3, 20000, generator=generator) < 0.8
    low, high = x.where(mask, 9).amin(1), x.where(mask, -9).amax(1)
    counted = histogram(x, mask, low, high, 1024)
    assert torch.equal(counted.mass.sum(1), mask.sum(1).double())
    torch.testing.assert_close((counted.mass * counted.value).sum(1), (x * mask).sum(1))
    exact = fit_mixture(x, mask=mask, tol=0.0)
    coarse = fit_mixture(x, mask=mask, tol=0.0, bins=1024)
    for ours, expected in zip(coarse[:3], exact[:3], strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_wrong_arguments_are_refused():
    x = torch.rand(2, 30)
    for wrong in ({"bins": 0}, {"max_iter": 0}, {"mask": torch.ones(2, 29, dtype=torch.bool)}):
        with pytest.raises(ValueError):
            fit_mixture(x, **wrong)
