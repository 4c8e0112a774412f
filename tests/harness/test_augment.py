"""Augmentation: the authors' geometry, picture and label together, a generator for each sample."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image

from harness.data.augment import augment, crop, resize
from harness.recipes import AugmentSpec


@pytest.mark.parametrize("seed", range(4))
def test_geometry_matches_the_authors(golden, seed):
    data = np.load(golden / "agmm" / "augment_geometry.npz")
    rng = random.Random(seed)
    image, mask = resize(Image.fromarray(data["img"]), Image.fromarray(data["mask"]), (0.5, 2.0), rng)
    assert list(image.size) == data[f"s{seed}/resized_wh"].tolist()
    image, mask, _ = crop(image, mask, (41, 41), "corner", rng)
    if rng.random() < 0.5:
        image, mask = (x.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for x in (image, mask))
    np.testing.assert_array_equal(np.array(mask), data[f"s{seed}/mask"])
    difference = np.array(image).astype(int) - data[f"s{seed}/img"].astype(int)
    assert np.abs(difference).max() <= 1


def test_the_whole_pipeline_draws_the_geometry_in_the_same_order(golden):
    data = np.load(golden / "agmm" / "augment_geometry.npz")
    for seed in range(4):
        sample = augment(data["img"], data["mask"], (41, 41), AugmentSpec(), random.Random(seed))
        np.testing.assert_array_equal(sample.label, data[f"s{seed}/mask"])


@pytest.mark.parametrize("pad", ["corner", "centre", "random"])
def test_picture_label_and_validity_move_together(pad):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 9, (30, 45)).astype(np.uint8)
    image = np.stack([label * 20 + 1] * 3, -1)  # nearest scale 1: colours tell the label
    spec = AugmentSpec(scale=(1.0, 1.0), pad=pad)
    for seed in range(20):
        sample = augment(image, label, (40, 40), spec, random.Random(seed))
        assert sample.valid.sum() == 30 * 40
        np.testing.assert_array_equal(sample.valid, sample.label != 255)
        np.testing.assert_array_equal(sample.image[..., 0][sample.valid], sample.label[sample.valid] * 20 + 1)
        assert (sample.image[~sample.valid] == 0).all()


def test_random_padding_places_the_picture_anywhere():
    """Top rows of a small picture in its crop (BLPSeg transform.py)."""
    image, label = np.zeros((30, 30, 3), np.uint8), np.zeros((30, 30), np.uint8)
    spec = AugmentSpec(scale=(1.0, 1.0), pad="random")
    valid = [augment(image, label, (33, 34), spec, random.Random(seed)).valid for seed in range(60)]
    assert {v.any(1).argmax() for v in valid} == set(range(4))
    assert {v.any(0).argmax() for v in valid} == set(range(5))


def test_bicubic_resize_overshoots_at_edges_and_leaves_labels_alone():
    image = np.full((32, 32, 3), 100, np.uint8)
    image[:, 16:] = 150
    label = (image[..., 0] > 120).astype(np.uint8)
    pair = Image.fromarray(image), Image.fromarray(label)
    smooth = resize(*pair, (1.5, 1.5), random.Random(0))
    sharp = resize(*pair, (1.5, 1.5), random.Random(0), "bicubic")
    assert np.array(smooth[0]).max() == 150
    assert np.array(sharp[0]).max() > 150
    assert np.array_equal(np.array(smooth[1]), np.array(sharp[1]))


def test_colours_change_only_the_picture_and_padding_stays_black():
    image = np.random.default_rng(1).integers(0, 256, (30, 30, 3)).astype(np.uint8)
    label = np.zeros((30, 30), np.uint8)
    plain = AugmentSpec(scale=(0.5, 2.0))
    strong = AugmentSpec(scale=(0.5, 2.0), jitter=1.0, grey=1.0, blur=1.0, shift=1.0)
    for seed in range(5):
        a = augment(image, label, (48, 48), plain, random.Random(seed))
        b = augment(image, label, (48, 48), strong, random.Random(seed))
        np.testing.assert_array_equal(a.label, b.label)
        assert (a.image != b.image).any()
        assert (b.image[~b.valid] == 0).all()
        inside = b.image[b.valid].astype(int)
        assert np.abs(inside[:, 0] - inside[:, 1]).max() == 0  # grey


def test_the_same_generator_gives_the_same_sample():
    image = np.random.default_rng(2).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    label = np.random.default_rng(3).integers(0, 3, (40, 50)).astype(np.uint8)
    spec = AugmentSpec(jitter=0.5, blur=0.5, shift=0.5, grey=0.5)
    one, two = (augment(image, label, (32, 32), spec, random.Random("7/3/1")) for _ in range(2))
    other = augment(image, label, (32, 32), spec, random.Random("7/3/2"))
    np.testing.assert_array_equal(one.image, two.image)
    assert (one.image != other.image).any()
