"""PAR and refined labels against golden vectors, and their limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_cam import arrays, boxes

from methods.parts.colours import denormalise
from methods.parts.par import DILATIONS, affinity, neighbours, par, positions, propagate, refine_cams


@pytest.fixture(scope="module")
def case(golden):
    return arrays(golden / "fsr" / "par.npz")


@pytest.mark.parametrize(
    ("expected", "masks", "options"),
    [
        ("out_it10", "masks", {}),
        ("out_it1", "masks", {"iterations": 1}),
        ("out_lowres_it10", "masks_lowres", {}),
        ("out_d12_it3", "masks", {"dilations": (1, 2), "iterations": 3}),
    ],
)
def test_maps_are_the_authors(case, expected, masks, options):
    found = par(case["image"], case[masks], **options)
    torch.testing.assert_close(found, case[expected], rtol=0, atol=2e-6)


def test_a_constant_picture_spreads_by_distance_alone(case):
    found = par(torch.full_like(case["image"], 0.5), case["masks"])
    torch.testing.assert_close(found, case["out_constant_image"], rtol=0, atol=2e-6)


def test_neighbours_and_distances_are_in_the_authors_order(case):
    near = torch.stack(list(neighbours(case["masks"], (1,))), 2)
    assert torch.equal(near[:, 0], case["neighbors_first2"])
    torch.testing.assert_close(positions(DILATIONS), case["pos"], rtol=1e-6, atol=0)


def test_weights_sum_to_a_hundredth_more_than_one(case):
    weights = affinity(case["image"]).weights
    torch.testing.assert_close(weights.sum(0), torch.full_like(weights[0], 1.01), rtol=1e-5, atol=0)
    ones = propagate(torch.ones(1, 2, 24, 28), affinity(case["image"]), 3)
    torch.testing.assert_close(ones, torch.full_like(ones, 1.01**3), rtol=1e-5, atol=0)


def test_double_precision_agrees_with_single(case):
    single, double = par(case["image"], case["masks"]), par(case["image"].double(), case["masks"].double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=0, atol=2e-6)


def test_spreading_stops_at_an_edge():
    image = torch.zeros(1, 3, 40, 40)
    image[..., 20:] = 1.0
    maps = torch.zeros(1, 1, 40, 40)
    maps[..., 14:20, 15:20] = 1.0
    spread = par(image, maps)[0, 0]
    assert spread[10:25, :20].sum() > 5 * spread[10:25, 20:].sum()


# --- refined labels ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def labels(golden):
    return arrays(golden / "fsr" / "refine_cams.npz")


def refined(gold, tags="cls_label", **options):
    images, low, high = denormalise(gold["image_norm"]), float(gold["low"]), float(gold["high"])
    return refine_cams(images, gold["valid_cam"], gold[tags], low, high, **options)


def test_refined_labels_are_the_authors(labels):
    found = refined(labels)
    assert found.dtype == torch.int64
    clear = (labels["margin_high"] > 1e-4) & (labels["margin_low"] > 1e-4)
    assert clear.all()
    assert torch.equal(found, labels["refined"].long())
    inside = boxes(labels["img_box"], *found.shape[1:])
    assert torch.equal(refined(labels, valid=inside), labels["refined_box"].long())
    assert len(found.unique()) >= 4


def test_a_picture_without_tags_is_background(labels):
    found = refined(labels, "cls_label_empty")
    assert torch.equal(found, labels["refined_empty"].long())
    assert (found[0] == 0).all()
    none = refine_cams(
        denormalise(labels["image_norm"]), labels["valid_cam"], labels["cls_label"] * 0, 0.2, 0.7
    )
    assert (none == 0).all()


def test_pictures_do_not_see_one_another(labels):
    """A richer neighbour in the batch adds maps that have no say."""
    together = refined(labels)
    for i in range(2):
        alone = refined({k: v[i : i + 1] if v.ndim else v for k, v in labels.items()})
        assert torch.equal(alone, together[i : i + 1])


@pytest.mark.parametrize("size", [(48, 56), (47, 55)])
def test_all_classes_at_once_and_odd_sizes(size):
    torch.manual_seed(0)
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    cam = torch.rand(2, 20, *size)
    found = refine_cams(images, cam, torch.ones(2, 20), 0.25, 0.7)
    assert found.shape == (2, *size)
    assert set(found.unique().tolist()) <= {*range(21), 255}
    assert np.isin(found.numpy(), [0, 255]).mean() < 1


def test_a_class_needs_to_beat_the_high_background_and_background_to_win_against_the_low():
    images = torch.full((1, 3, 8, 12), 90, dtype=torch.uint8)
    for value, expected in ((0.9, 1), (0.5, 255), (0.1, 0)):
        found = refine_cams(images, torch.full((1, 1, 8, 12), value), torch.ones(1, 1), 0.25, 0.7)
        assert (found == expected).all()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(1, 1), (3, 20), (17, 6)])
def test_spreading_reads_the_neighbours_of_the_map_as_it_is(size, layout):
    """Also of maps smaller than the reach, and to the bit the sum that is written out."""
    torch.manual_seed(0)
    maps = torch.rand(2, 3, *size).contiguous(memory_format=layout)
    weights = affinity(torch.rand(2, 3, *size).contiguous(memory_format=layout), (1, 4))
    expected = kept = maps.clone()
    for _ in range(3):
        total = torch.zeros_like(expected)
        for weight, shifted in zip(weights.weights, neighbours(expected, (1, 4)), strict=True):
            total.addcmul_(weight, shifted)
        expected = total
    assert torch.equal(propagate(maps, weights, 3), expected)
    assert torch.equal(maps, kept)
    assert torch.equal(propagate(maps, weights, 0), maps)
