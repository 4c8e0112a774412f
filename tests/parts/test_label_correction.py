"""The neighbour rule against golden vectors, a loop over pixels, and what it promises."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from methods.dskd_gc.label_correction import correct_labels, neighbour_similarity, noise_regions

BORDERS = ("valid", "zero", "replicate")
SOURCES = ("initial", "after_rh")
REWRITES = {"all": "all", "nonbg": "keep_bg"}


@pytest.fixture
def vectors(golden):
    file = np.load(golden / "dskd_gc" / "label_correction.npz")
    return {k: torch.from_numpy(np.asarray(file[k])) for k in file.files}


@pytest.mark.parametrize(("border", "source", "scope"), list(itertools.product(BORDERS, SOURCES, REWRITES)))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_golden_hand_made(vectors, border, source, scope, dtype):
    similarity = neighbour_similarity(vectors["F"][None].to(dtype), border=border)
    corrected = correct_labels(
        vectors["label"][None],
        vectors["G"][None],
        similarity,
        tau=float(vectors["tau"]),
        theta_low=float(vectors["theta_l"]),
        theta_high=float(vectors["theta_h"]),
        border=border,
        source=source,
        rewrite=REWRITES[scope],
    )
    assert torch.equal(corrected[0], vectors[f"out/{border}/{source}/{scope}"])


def test_golden_random(vectors):
    similarity = neighbour_similarity(vectors["rand/F"])
    for tau in vectors["rand/tau"].tolist():
        corrected = correct_labels(vectors["rand/label"], vectors["rand/G"], similarity, tau=tau)
        assert torch.equal(corrected, vectors[f"rand/out_tau{tau}"])


def test_golden_regions(golden):
    file = np.load(golden / "dskd_gc" / "noise_prob.npz")
    regions = noise_regions(torch.from_numpy(file["part_G"]), float(file["theta_l"]), float(file["theta_h"]))
    assert torch.equal(regions.high, torch.from_numpy(file["part_Rh"]))
    assert torch.equal(regions.uncertain, torch.from_numpy(file["part_Ru"]))


def by_loops(labels: Tensor, noise: Tensor, features: Tensor, tau: float, distance: int) -> Tensor:
    """The rule pixel by pixel, for border `valid` and source `initial`."""
    result = labels.clone()
    batch, height, width = labels.shape
    for b, i, j in itertools.product(range(batch), range(height), range(width)):
        near = []
        for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            y, x = i + distance * down, j + distance * right
            if 0 <= y < height and 0 <= x < width:
                cosine = F.cosine_similarity(features[b, :, i, j], features[b, :, y, x], dim=0)
                near.append((cosine.item(), labels[b, y, x].item()))
        if noise[b, i, j] <= 0.25 or noise[b, i, j] == 0.85:
            continue
        if any(c < tau for c, _ in near):
            result[b, i, j] = 0
        elif noise[b, i, j] > 0.85:
            result[b, i, j] = 255
        else:
            result[b, i, j] = max(near, key=lambda pair: pair[0])[1]
    return result


@pytest.mark.parametrize("distance", [1, 2, 3])
def test_agrees_with_the_rule_pixel_by_pixel(distance):
    generator = torch.Generator().manual_seed(distance)
    features = torch.randn(2, 70, 9, 7, generator=generator, dtype=torch.float64)
    features = F.avg_pool2d(features, 3, 1, 1)
    labels = torch.randint(0, 4, (2, 9, 7), generator=generator)
    labels[0, 0, :3] = 255
    noise = torch.rand(2, 9, 7, generator=generator, dtype=torch.float64)
    similarity = neighbour_similarity(features, distance=distance)
    for tau in (-0.05, 0.1):
        ours = correct_labels(labels, noise, similarity, tau=tau, distance=distance)
        assert torch.equal(ours, by_loops(labels, noise, features, tau, distance))


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_enlarged_features_are_compared_without_being_kept(mode):
    features = torch.randn(2, 130, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = neighbour_similarity(features, size=(16, 20), mode=mode, distance=3)
    big = F.interpolate(features, size=(16, 20), mode=mode)
    torch.testing.assert_close(ours[:, 1, :-3], F.cosine_similarity(big[:, :, :-3], big[:, :, 3:]))
    torch.testing.assert_close(ours[:, 0, 3:], ours[:, 1, :-3])
    torch.testing.assert_close(ours[:, 3, :, :-3], F.cosine_similarity(big[..., :-3], big[..., 3:]))
    torch.testing.assert_close(ours[:, 2, :, 3:], ours[:, 3, :, :-3])
    for k, edge in enumerate((np.s_[:, :3], np.s_[:, -3:], np.s_[:, :, :3], np.s_[:, :, -3:])):
        assert ours[:, k][edge].isnan().all()
    assert int(ours.isnan().sum()) == 2 * 2 * 3 * (16 + 20)


unit = st.floats(0, 1, allow_subnormal=False)
maps = hnp.arrays(np.float64, (2, 5, 6), elements=unit | st.sampled_from([0.25, 0.85]))
label_maps = hnp.arrays(np.int64, (2, 5, 6), elements=st.sampled_from([0, 1, 2, 255]))
feature_maps = hnp.arrays(np.float64, (2, 3, 5, 6), elements=st.floats(-1, 1, allow_subnormal=False))


@settings(max_examples=60, deadline=None)
@given(maps, st.floats(0, 0.6), st.floats(0, 0.4))
def test_regions_part_the_picture(noise, low, gap):
    regions = noise_regions(torch.from_numpy(noise), low, low + gap)
    assert not (regions.high & regions.uncertain).any()
    clean = ~(regions.high | regions.uncertain)
    expected = (noise <= low) | (noise == low + gap)
    assert torch.equal(clean, torch.from_numpy(expected))


@settings(max_examples=60, deadline=None)
@given(
    maps,
    label_maps,
    feature_maps,
    unit,
    st.sampled_from(BORDERS),
    st.sampled_from(SOURCES),
    st.sampled_from(["all", "keep_bg"]),
)
def test_clean_pixels_keep_their_label_and_no_class_is_invented(
    noise, labels, features, tau, border, source, rewrite
):
    g, y, f = map(torch.from_numpy, (noise, labels, features))
    similarity = neighbour_similarity(f, border=border)
    options = {"tau": tau, "border": border, "source": source, "rewrite": rewrite}
    corrected = correct_labels(y, g, similarity, **options)
    regions = noise_regions(g)
    clean = ~(regions.high | regions.uncertain)
    assert torch.equal(corrected[clean], y[clean])
    for one, before in zip(corrected, y, strict=True):
        assert set(one.unique().tolist()) <= set(before.unique().tolist()) | {0, 255}
    if rewrite == "keep_bg":
        assert (corrected[regions.high & (y == 0)] == 0).all()
    assert torch.equal(correct_labels(y, torch.zeros_like(g), similarity, **options), y)


def test_features_without_length_are_like_nothing():
    features = torch.zeros(1, 3, 4, 4)
    assert (neighbour_similarity(features, border="zero") == 0).all()
    assert (neighbour_similarity(features, border="replicate") == 0).all()
    labels, noise = torch.ones(1, 4, 4, dtype=torch.long), torch.ones(1, 4, 4)
    assert (correct_labels(labels, noise, neighbour_similarity(features), tau=0.5) == 0).all()
