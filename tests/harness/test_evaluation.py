"""The evaluator against golden vectors, independent counts, and the promises it makes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from harness.basics.errors import UserError
from harness.engine.method import Lazy
from harness.evaluation.evaluator import count, iou_from_counts, predict_scores, summarise
from harness.recipes.protocols import Protocol, protocol, protocols
from harness.records.records import PerImage


@pytest.fixture(scope="module")
def toy(golden):
    """The toy network of the golden evaluation case and its picture."""
    data = np.load(golden / "agmm" / "evaluation_f64.npz")
    weight, bias = torch.from_numpy(data["weight"]), torch.from_numpy(data["bias"])

    def predict(x):
        out = F.conv2d(x, weight, bias, stride=4, padding=2)
        return F.interpolate(out, size=x.shape[-2:], mode="bilinear", align_corners=True)

    return predict, torch.from_numpy(data["img"]), data


@pytest.mark.parametrize(
    ("name", "changes", "array"),
    [
        ("agmm-voc", {"scales": (1.0,), "flip": False}, "single"),
        ("agmm-voc", {}, "ms_flip"),
        ("agmm-cityscapes", {"window": (21, 21)}, "slide_tile21"),
    ],
)
def test_agmm_protocols_match_the_authors(toy, name, changes, array):
    predict, image, data = toy
    scores = predict_scores(predict, image, dataclasses.replace(protocol(name), **changes))
    np.testing.assert_allclose(scores.numpy(), data[array], rtol=0, atol=1e-10)


def test_miou_matches_the_authors(golden):
    data = np.load(golden / "agmm" / "miou.npz")
    counts = [count(p, g, 5) for p, g in zip(data["pred"], data["gt"], strict=True)]
    iou, miou = iou_from_counts(*(np.sum(c, axis=0) for c in zip(*counts, strict=True)))
    np.testing.assert_allclose(iou, 100 * data["iou"], atol=1e-10)
    assert miou == pytest.approx(100 * float(data["miou"]), abs=1e-10)


maps = hnp.arrays(np.uint8, (7, 9), elements=st.sampled_from([0, 1, 2, 3, 254, 255]))
masks = hnp.arrays(np.uint8, (7, 9), elements=st.sampled_from([0, 1, 2, 3, 255]))


@settings(max_examples=80, deadline=None)
@given(maps, masks)
def test_counts_equal_a_pixel_by_pixel_count(prediction, mask):
    intersection, predicted, labelled = count(prediction, mask, 4)
    for k in range(4):
        pixels = [(p, m) for p, m in zip(prediction.flat, mask.flat, strict=True) if m != 255]
        assert intersection[k] == sum(p == k and m == k for p, m in pixels)
        assert predicted[k] == sum(p == k for p, m in pixels)
        assert labelled[k] == sum(m == k for p, m in pixels)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(maps, masks), min_size=2, max_size=5), st.randoms())
def test_iou_does_not_depend_on_the_order_of_pictures(pairs, rng):
    shuffled = list(pairs)
    rng.shuffle(shuffled)
    results = []
    for order in (pairs, shuffled):
        totals = [np.sum(c, axis=0) for c in zip(*(count(p, m, 4) for p, m in order), strict=True)]
        results.append(iou_from_counts(*totals))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])


def test_absent_classes_are_nan_and_listed_and_stay_out_of_the_mean():
    mask = np.zeros((4, 4), np.uint8)
    mask[0] = 1
    counts = PerImage(("a",), *(c[None] for c in count(mask, mask, 3)))
    figures = summarise(counts, ["background", "cat", "dog"], protocol("single"))
    assert figures["iou"] == [100.0, 100.0, None]
    assert figures["absent"] == ["dog"]
    assert figures["miou"] == 100.0


def test_a_class_only_predicted_counts_as_zero_unless_labelled_classes_are_asked_for():
    mask = np.zeros((4, 4), np.uint8)
    prediction = mask.copy()
    prediction[0] = 2
    counts = PerImage(("a",), *(c[None] for c in count(prediction, mask, 3)))
    occurring = summarise(counts, "abc", Protocol())
    labelled = summarise(counts, "abc", Protocol(classes="labelled"))
    assert occurring["miou"] == pytest.approx((75 + 0) / 2)
    assert labelled["miou"] == pytest.approx(75)


def test_undecided_pixels_count_against_the_label_and_lower_the_coverage():
    mask = np.ones((4, 4), np.uint8)
    prediction = mask.copy()
    prediction[:2] = 255
    counts = PerImage(("a",), *(c[None] for c in count(prediction, mask, 2)))
    figures = summarise(counts, "ab", Protocol())
    assert figures["iou"][1] == pytest.approx(50)
    assert figures["coverage"] == pytest.approx(0.5)


def test_windows_cover_every_pixel_of_pictures_smaller_and_larger_than_the_window():
    p = Protocol(window=(16, 16), overlap=0.5, merge="mean-logits")
    for height, width in [(10, 40), (16, 16), (33, 17)]:
        image = torch.rand(1, 3, height, width)
        scores = predict_scores(lambda x: x, image, p)
        torch.testing.assert_close(scores, image)


def test_absent_classes_are_suppressed_by_tags_but_never_the_background():
    scores = torch.tensor([1.0, 5.0, 3.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    p = Protocol(absent="suppress")
    image = torch.zeros(1, 3, 2, 2)
    kept = predict_scores(lambda x: scores, image, p, tags=torch.tensor([0, 0, 1]))
    assert kept.argmax(1).unique().tolist() == [2]
    nothing = predict_scores(lambda x: scores, image, p, tags=torch.zeros(3))
    assert nothing.argmax(1).unique().tolist() == [0]


def test_maximum_over_scales_is_taken_per_pixel():
    p = Protocol(scales=(1.0, 0.5), merge="max-logits")

    def predict(x):
        return torch.full((1, 2, *x.shape[-2:]), float(x.shape[-1]))

    assert predict_scores(predict, torch.zeros(1, 3, 8, 8), p).unique().tolist() == [8.0]


def test_summed_scales_are_their_mean_times_their_number():
    torch.manual_seed(0)
    image, kernel = torch.randn(1, 3, 12, 15), torch.randn(4, 3, 3, 3)
    p = Protocol(scales=(1.0, 1.25, 1.5), flip=True, flip_merge="max", merge="sum-logits")

    def predict(x):
        return F.conv2d(x, kernel, padding=1)

    total = predict_scores(predict, image, p)
    mean = predict_scores(predict, image, dataclasses.replace(p, merge="mean-logits"))
    torch.testing.assert_close(total, 3 * mean)
    plain = F.conv2d(image, kernel, padding=1)
    one = predict_scores(predict, image, dataclasses.replace(p, scales=(1.0,)))
    mirrored = F.conv2d(image.flip(-1), kernel, padding=1).flip(-1)
    torch.testing.assert_close(one, torch.maximum(plain, mirrored))


def test_a_mirror_that_is_summed_counts_twice_and_decides_alike():
    p = Protocol(scales=(1.0, 1.25), flip=True, flip_merge="sum", merge="max-logits")
    torch.manual_seed(0)
    image, kernel = torch.randn(1, 3, 12, 15), torch.randn(4, 3, 3, 3)

    def predict(x):
        return F.conv2d(x, kernel, stride=2, padding=1)

    total = predict_scores(predict, image, p)
    mean = predict_scores(predict, image, dataclasses.replace(p, flip_merge="mean"))
    torch.testing.assert_close(total, 2 * mean)


def test_logits_on_a_coarse_grid_are_resized_once_to_the_masks():
    """Enlarging to the scaled picture first, then to the mask, would smooth twice."""
    torch.manual_seed(0)
    image, grid = torch.randn(1, 3, 16, 20), torch.randn(1, 4, 5, 6)
    p = Protocol(scales=(1.0, 1.5), merge="mean-logits")
    scores = predict_scores(lambda x: grid, image, p, size=(33, 21))
    once = F.interpolate(grid, (33, 21), mode="bilinear", align_corners=False)
    torch.testing.assert_close(scores, once)
    soft = predict_scores(lambda x: grid, image, Protocol(merge="mean-softmax"))
    whole = F.interpolate(grid, (16, 20), mode="bilinear", align_corners=False)
    torch.testing.assert_close(soft, whole.softmax(1))
    tiles = predict_scores(lambda x: grid, image, Protocol(window=(8, 8)))
    tile = F.interpolate(grid, (8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(tiles[..., :8, :8], tile)


def test_an_unknown_protocol_names_the_nearest():
    with pytest.raises(UserError, match="agmm-voc"):
        protocol("agmm-vocs")
    assert "single" in protocols()


def test_sizes_that_differ_are_refused():
    with pytest.raises(ValueError, match="differ in size"):
        count(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8), 2)


@pytest.mark.parametrize(("rounding", "middle"), [("down", (27, 37)), ("nearest", (28, 38))])
def test_scaled_sides_are_cut_off_or_rounded(rounding, middle):
    """37 x 50 at 0.5, 0.75 and 1.25: OpenCV rounds halves to the even side."""
    seen = set()

    def predict(x):
        seen.add(tuple(x.shape[-2:]))
        return x

    p = Protocol(scales=(0.5, 0.75, 1.25), picture_resize="bicubic", scaled_side=rounding)
    predict_scores(predict, torch.randn(1, 3, 37, 50), p)
    assert seen == {(18, 25), middle, (46, 62)}


def test_scaled_pictures_are_opencvs(golden):
    """A picture of one colour channel out of range, as normalised ones are, at BLPSeg's test scales."""
    data = np.load(golden / "blpseg" / "opencv_resize.npz")
    picture = torch.from_numpy(data["image"] / np.float32(255)).movedim(-1, 0)[None]
    for scale in (0.5, 0.75, 1.25):
        seen = []
        p = dataclasses.replace(protocol("blpseg-ms"), scales=(scale,), flip=False)
        predict_scores(lambda x, seen=seen: seen.append(x) or x, picture, p)
        wanted = data[f"float_{scale}"]
        np.testing.assert_allclose(seen[0][0].movedim(0, -1), wanted, rtol=0, atol=1e-4)


def test_a_pseudo_label_that_costs_is_made_once_and_only_if_it_is_asked_for():
    made = []

    def maker(name):
        return lambda: made.append(name) or torch.zeros(1, 4, 4, dtype=torch.int64)

    labels = Lazy({name: maker(name) for name in ("cam", "refined")})
    assert "cam" in labels
    assert "refined" in labels
    assert "other" not in labels
    assert sorted(labels) == ["cam", "refined"]
    assert made == []
    assert labels["refined"].shape == (1, 4, 4)
    assert made == ["refined"]
    with pytest.raises(KeyError):
        labels["other"]


@pytest.mark.parametrize("kind", [np.int64, np.int16, np.uint16, np.int8])
def test_predictions_of_any_integers_are_counted_alike(kind):
    mask = np.array([[0, 1, 2, 255, 1, 0]], dtype=np.uint8)
    prediction = np.array([[0, 2, 2, 1, 3, 77]]).astype(kind)
    if np.iinfo(kind).min < 0:
        prediction[0, 5] = -1
    for found, expected in zip(count(prediction, mask, 3), ([1, 0, 1], [1, 0, 2], [2, 2, 1]), strict=True):
        assert found.tolist() == expected
        assert found.dtype == np.int64
    (wide,) = (prediction.astype(np.int64) + 256,)  # no byte's worth of a class is a class
    assert [part.sum() for part in count(wide, mask, 3)] == [0, 0, 5]
