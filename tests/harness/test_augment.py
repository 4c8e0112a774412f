"""Augmentation: the authors' geometry, picture and label together, a generator for each sample."""

from __future__ import annotations

import dataclasses
import random
from typing import ClassVar

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as vision
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from harness.basics.imagenet import MEAN, STD
from harness.basics.schema import essential
from harness.engine.augment import (
    area_box,
    area_crop,
    augment,
    crop,
    jitter,
    random_long_side,
    resampled,
    turned_hue,
)
from harness.engine.build import ViewSpec
from harness.engine.loader import Collate, StepSampler, TrainingSet, training_loader, view
from harness.nn.resize import cubic_resize, scaled_side
from harness.recipes.resolving import resolve
from harness.recipes.specs import AugmentSpec


@pytest.mark.parametrize("seed", range(4))
def test_geometry_matches_the_authors(golden, seed):
    data = np.load(golden / "agmm" / "augment_geometry.npz")
    rng = random.Random(seed)
    image, mask = random_long_side(
        Image.fromarray(data["img"]), Image.fromarray(data["mask"]), (0.5, 2.0), rng
    )
    assert list(image.size) == data[f"s{seed}/resized_wh"].tolist()
    image, mask, _ = crop(image, mask, (41, 41), "corner", rng)
    if rng.random() < 0.5:
        image, mask = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), mask[:, ::-1]
    np.testing.assert_array_equal(mask, data[f"s{seed}/mask"])
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
    smooth = random_long_side(*pair, (1.5, 1.5), random.Random(0))
    sharp = random_long_side(*pair, (1.5, 1.5), random.Random(0), "bicubic")
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


# --- windows of random area --------------------------------------------------------------------------

AREA = AugmentSpec(crop_mode="area", area=(0.32, 1.0), aspect=(3 / 4, 4 / 3), flip=0.0, resample="bicubic")


@pytest.mark.parametrize(("width", "height"), [(90, 60), (64, 64), (50, 81)])
def test_area_windows_keep_to_their_ranges_and_fill_them(width, height):
    rng = random.Random(0)
    boxes = np.array([area_box((width, height), (0.32, 1.0), (3 / 4, 4 / 3), rng) for _ in range(2000)])
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert boxes.min() >= 0
    assert boxes[:, 2].max() <= width
    assert boxes[:, 3].max() <= height
    share, ratio = w * h / (width * height), w / h
    slack = 1.5 / min(width, height)  # sides are whole pixels
    assert share.min() >= 0.32 - slack
    assert ratio.min() >= 0.75 - 2 * slack
    assert ratio.max() <= 4 / 3 + 2 * slack
    assert share.min() < 0.34
    assert ratio.max() - ratio.min() > 0.5
    assert boxes[:, 0].min() == boxes[:, 1].min() == 0


def test_area_windows_are_distributed_as_torchvisions():
    size, count = (90, 60), 4000
    torch.manual_seed(0)
    picture = Image.new("L", size)
    theirs = [RandomResizedCrop.get_params(picture, [0.32, 1.0], [3 / 4, 4 / 3]) for _ in range(count)]
    top, left, h, w = np.array(theirs).T
    rng = random.Random(1)
    ours = np.array([area_box(size, (0.32, 1.0), (3 / 4, 4 / 3), rng) for _ in range(count)])
    pairs = [(ours[:, 0], left), (ours[:, 1], top), (ours[:, 2], left + w), (ours[:, 3], top + h)]
    for own, other in pairs:
        error = np.hypot(own.std(), other.std()) / count**0.5
        assert abs(own.mean() - other.mean()) < 4 * error
        assert own.std() == pytest.approx(other.std(), rel=0.06)


def test_a_picture_too_long_for_any_window_gives_its_middle():
    rng = random.Random(0)
    assert area_box((400, 20), (0.9, 1.0), (0.75, 1.25), rng) == (187, 0, 212, 20)
    assert area_box((20, 400), (0.9, 1.0), (0.8, 1.25), rng) == (0, 187, 20, 212)


@pytest.mark.parametrize("mode", ["noise", "picture", "grey"])
def test_colours_change_as_torchvisions(mode):
    """To the pixel, though torchvision is not imported for it."""
    rng = np.random.default_rng(6)
    pixels = rng.integers(0, 256, (37, 53, 3)).astype(np.uint8)
    if mode == "picture":
        pixels = (np.indices((37, 53)).sum(0)[..., None] * [2, 1, 3] % 256).astype(np.uint8)
    if mode == "grey":
        pixels[..., 1:] = pixels[..., :1]
    image = Image.fromarray(pixels)
    for turn in (-0.5, -0.25, -0.1, -1e-3, 0.0, 1e-3, 0.017, 0.1, 0.25, 0.5):
        expected = vision.adjust_hue(image, turn)
        np.testing.assert_array_equal(np.array(turned_hue(image, turn)), np.array(expected))
    for seed in range(8):
        strength = (0.5, 0.4, 0.9, 0.25)
        draw = random.Random(seed)
        changes = [
            (vision.adjust_brightness, draw.uniform(0.5, 1.5)),
            (vision.adjust_contrast, draw.uniform(0.6, 1.4)),
            (vision.adjust_saturation, draw.uniform(1 - 0.9, 1.9)),
            (vision.adjust_hue, draw.uniform(-0.25, 0.25)),
        ]
        draw.shuffle(changes)
        expected = image
        for change, amount in changes:
            expected = change(expected, amount)
        found = jitter(image, strength, random.Random(seed))
        np.testing.assert_array_equal(np.array(found), np.array(expected))


def test_an_area_crop_is_torchvisions_resized_crop():
    image = Image.fromarray(np.random.default_rng(4).integers(0, 256, (61, 83, 3)).astype(np.uint8))
    label = Image.fromarray(np.random.default_rng(5).integers(0, 9, (61, 83)).astype(np.uint8))
    for seed in range(5):
        left, top, right, bottom = area_box(image.size, AREA.area, AREA.aspect, random.Random(seed))
        picture, mask, valid = area_crop(image, label, (40, 56), AREA, random.Random(seed))
        window = top, left, bottom - top, right - left
        expected = vision.resized_crop(image, *window, [40, 56], vision.InterpolationMode.BICUBIC)
        np.testing.assert_array_equal(np.array(picture), np.array(expected))
        expected = vision.resized_crop(label, *window, [40, 56], vision.InterpolationMode.NEAREST)
        np.testing.assert_array_equal(mask, np.array(expected))
        assert valid.all()


def test_area_crops_move_picture_and_label_together_without_padding():
    label = np.repeat(np.arange(10, dtype=np.uint8), 20).reshape(20, 10).repeat(6, 1)
    image = np.stack([label * 20 + 1] * 3, -1)
    spec = dataclasses.replace(AREA, flip=0.5, resample="bilinear")
    for seed in range(20):
        sample = augment(image, label, (32, 32), spec, random.Random(seed))
        assert sample.image.shape == (32, 32, 3)
        assert sample.valid.all()
        exact = sample.image[..., 0].astype(int) == sample.label.astype(int) * 20 + 1
        assert exact.mean() > 0.5  # everywhere but between two stripes
        assert np.abs(sample.image[..., 0].astype(int) - sample.label.astype(int) * 20 - 1).max() <= 21


# --- further views -----------------------------------------------------------------------------------


class Pictures:
    """Three pictures without labels, as a training set reads them."""

    ids: ClassVar = ["a", "b", "c"]
    tags = np.eye(3, dtype=np.uint8)

    def read_image(self, image_id: str) -> np.ndarray:
        return np.random.default_rng(ord(image_id)).integers(0, 256, (48, 60, 3)).astype(np.uint8)

    def read(self, image_id: str) -> None:
        return None


def training_set(views: dict[str, ViewSpec], augment: dict, seed: int = 0) -> TrainingSet:
    resolved = resolve("cam/mini-image", {f"augment.{k}": v for k, v in augment.items()} | {"crop": 32})
    pictures = Pictures()
    return TrainingSet(pictures, pictures.ids, pictures, resolved.recipe, seed, views)


def test_an_independent_view_has_a_crop_a_mirror_and_colours_of_its_own():
    data = training_set({"second": ViewSpec(independent=True)}, {"crop_mode": "area", "jitter": 0.5})
    plain = training_set({}, {"crop_mode": "area", "jitter": 0.5})
    seen = set()
    for step in range(6):
        sample, alone = data[step, 0, 1], plain[step, 0, 1]
        np.testing.assert_array_equal(sample["image"], alone["image"])  # the main view does not depend on it
        colours, inside = sample["views"]["second"]
        assert colours.shape == (32, 32, 3)
        assert inside.all()
        assert (colours != sample["image"]).any()
        seen.add(colours.tobytes())
    assert len(seen) == 6


def test_an_independent_view_obeys_the_recipe():
    whole = {"crop_mode": "area", "area": [1.0, 1.0], "aspect": [1.25, 1.25], "flip": 0.0}
    data = training_set({"small": ViewSpec(independent=True, scale=0.5)}, whole)
    colours, _ = data[0, 0, 0]["views"]["small"]
    picture = Image.fromarray(Pictures().read_image("a"))
    np.testing.assert_array_equal(colours, np.array(picture.resize((16, 16), Image.Resampling.BILINEAR)))


def test_recolouring_a_view_happens_with_its_probability_and_leaves_padding_black():
    image = np.random.default_rng(6).integers(1, 256, (20, 24, 3)).astype(np.uint8)
    valid = np.ones((20, 24), dtype=bool)
    valid[-4:] = False
    image[~valid] = 0
    changes = AugmentSpec(jitter=0.4, shift=0.0, jitter_strength=(0.4, 0.4, 0.2, 0.1))
    spec = ViewSpec(flip=True, recolour=changes)
    changed = []
    for seed in range(200):
        colours, inside = view(image, valid, spec, random.Random(seed))
        np.testing.assert_array_equal(inside, valid[:, ::-1])
        assert (colours[~inside] == 0).all()
        changed.append((colours != image[:, ::-1]).any())
    assert 0.25 < np.mean(changed) < 0.55


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_views_are_the_same_for_any_number_of_loader_workers(workers):
    views = {"second": ViewSpec(independent=True), "third": ViewSpec(recolour=AugmentSpec(jitter=0.5))}
    data = training_set(views, {"crop_mode": "area", "jitter": 0.5})

    def batches(workers: int, start: int) -> list:
        sampler = StepSampler(3, 3, 3, 0, start)
        return [
            groups[0].to("cpu") for groups in training_loader(data, sampler, 1, workers=workers, pin=False)
        ]

    for one, other in zip(batches(0, 1), batches(workers, 0)[1:], strict=True):
        assert torch.equal(one.images, other.images)
        for name in views:
            assert torch.equal(one.views[name].raw, other.views[name].raw)


def test_a_loader_hands_bytes_over_and_batches_are_what_they_say():
    views = {"second": ViewSpec(independent=True, scale=0.5)}
    (packed,) = Collate(1)(
        [training_set(views, {"scale": [0.5, 0.5]})[0, place, place] for place in range(2)]
    )
    handed = [packed.raw, packed.labels, packed.tags, packed.valid, *packed.views["second"]]
    assert {tensor.element_size() for tensor in handed} == {1}
    batch = packed.to("cpu")
    assert batch.images.dtype == batch.tags.dtype == torch.float32
    assert batch.labels.dtype == torch.int64
    assert torch.equal(batch.labels, packed.labels.long())
    for one in (batch, batch.views["second"]):
        scaled = (one.raw.double() / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[
            :, None, None
        ]
        torch.testing.assert_close(one.images, scaled.float(), rtol=1e-6, atol=1e-6)


def test_a_plain_view_shows_the_main_crop_before_its_colours():
    data = training_set({"plain": ViewSpec(plain=True)}, {"jitter": 1.0, "blur": 1.0, "flip": 0.5})
    uncoloured = training_set({}, {"jitter": 0.0, "blur": 0.0, "flip": 0.5})
    for step in range(4):
        sample = data[step, 0, 1]
        np.testing.assert_array_equal(sample["views"]["plain"][0], uncoloured[step, 0, 1]["image"])
        assert (sample["image"] != sample["views"]["plain"][0]).any()


def test_an_independent_view_may_have_an_augmentation_of_its_own():
    """The recipe pads a picture of 48 x 60 to 96; a view of random area has no padding."""
    own = AugmentSpec(crop_mode="area", area=(0.4, 1.0), grey=1.0)
    data = training_set({"second": ViewSpec(independent=True, augment=own)}, {"scale": [0.5, 0.5]})
    sample = data[0, 0, 0]
    assert not sample["valid"].all()
    colours, inside = sample["views"]["second"]
    assert inside.all()
    assert (colours[..., 0] == colours[..., 1]).all()
    assert (sample["image"][..., 0] != sample["image"][..., 1]).any()


def test_solarisation_inverts_bright_colours():
    image = np.tile(np.array([0, 100, 127, 128, 200, 255], np.uint8)[:, None, None], (1, 6, 3))
    spec = AugmentSpec(scale=(1.0, 1.0), flip=0.0, solarise=1.0)
    sample = augment(image, image[..., 0], (6, 6), spec, random.Random(0))
    assert sample.image[:, 0, 0].tolist() == [0, 100, 127, 127, 55, 0]
    assert sample.plain[:, 0, 0].tolist() == image[:, 0, 0].tolist()


@pytest.mark.parametrize("factor", [0.5, 0.75, 0.83, 1.1, 1.25])
def test_opencv_cubic_is_opencvs(golden, factor):
    """BLPSeg transform.py: `cv2.resize(..., fx=f, fy=f)`, cubic for pictures, nearest for labels."""
    data = np.load(golden / "blpseg" / "opencv_resize.npz")
    image, label = Image.fromarray(data["image"]), Image.fromarray(data["label"])
    wanted = data[f"image_{factor}"]
    size = tuple(scaled_side(side, factor) for side in image.size)
    assert size == wanted.shape[1::-1]
    picture, mask = resampled(image, label, size, "opencv-cubic", (factor, factor))
    apart = np.abs(np.array(picture).astype(int) - wanted.astype(int))
    assert apart.max() <= 1  # its weights have eleven bits
    assert (apart > 0).mean() < 0.02
    np.testing.assert_array_equal(np.array(mask), data[f"label_{factor}"])
    pillow, _ = resampled(image, label, size, "bicubic", (factor, factor))
    assert np.abs(np.array(pillow).astype(int) - wanted.astype(int)).mean() > 1
    pixels = torch.from_numpy(data["image"] / np.float32(255)).movedim(-1, 0)[None]
    found = cubic_resize(pixels, (factor, factor), size[::-1])[0].movedim(0, -1)
    np.testing.assert_allclose(found, data[f"float_{factor}"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("mode", ["window", "area"])
def test_opencv_cubic_in_whole_augmentations(mode):
    """Picture and label move together, for crops that enlarge and shrink, down to a single pixel."""
    label = (np.arange(37)[:, None] // 4 * np.ones(50, int)).astype(np.uint8)
    image = np.repeat(label[..., None] * 20, 3, axis=2).astype(np.uint8)
    spec = AugmentSpec(crop_mode=mode, scale=(0.02, 2.0), area=(0.01, 1.0), resample="opencv-cubic")
    for seed in range(40):
        sample = augment(image, label, (24, 31), spec, random.Random(seed))
        assert sample.image.shape == (24, 31, 3)
        inside = sample.valid & (sample.label != 255)
        if inside.sum() < 100:
            continue
        off = np.abs(sample.image[..., 0][inside].astype(int) - 20 * sample.label[inside].astype(int))
        assert np.median(off) <= 20  # up to a step between stripes


def test_a_brightness_shift_is_rounded_or_cut_off():
    """AGMM-SASS dataset/transform.py: `np.around`."""
    image, label = np.full((8, 8, 3), 100, np.uint8), np.zeros((8, 8), np.uint8)
    for shift, down, nearest in ((2.7, 102, 103), (-2.7, 97, 97), (-0.2, 99, 100), (200.0, 255, 255)):
        spec = AugmentSpec(scale=(1.0, 1.0), flip=0.0, shift=1.0, shift_range=(shift, shift))
        rounded = dataclasses.replace(spec, shift_rounding="nearest")
        for s, wanted in ((spec, down), (rounded, nearest)):
            assert (augment(image, label, (8, 8), s, random.Random(0)).image == wanted).all()
    assert resolve("agmm/voc-scribble-r101").recipe.augment.shift_rounding == "nearest"


def test_new_choices_at_their_former_value_leave_digests_alone():
    spec = AugmentSpec()
    assert not {"shift_rounding"} & set(essential(spec))
    assert "shift_rounding" in essential(dataclasses.replace(spec, shift_rounding="nearest"))
