"""Simulated weak labels: properties that hold for any mask, determinism, and real pictures."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from harness.basics.errors import UserError
from harness.data.base import SUPERVISIONS, Supervision
from harness.data.labels.label_tools import drop, n_clicks, shorten
from harness.data.labels.weak_labels import simulate, simulated_tags, tags_from_mask
from harness.data.sets.voc2012 import VOC2012

DRAWN: tuple[Supervision, ...] = ("scribble", "point", "block")


def _simulate(mask: np.ndarray, supervision: Supervision, **options: object) -> np.ndarray:
    usual = {"image_id": "2007_000032", "seed": 0, "num_classes": 21, "background": 0}
    return simulate(mask, supervision, **{**usual, **options})  # type: ignore[arg-type]


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    """Masks of any shape: noise, or a few rectangles and discs with void, on background or not."""
    height, width = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    if draw(st.booleans()):
        values = st.sampled_from([0, 0, 0, 1, 7, 20, 255])
        return draw(hnp.arrays(np.uint8, (min(height, 12), min(width, 12)), elements=values))
    mask = np.full((height, width), draw(st.sampled_from([0, 0, 0, 5, 255])), np.uint8)
    y, x = np.indices(mask.shape)
    for _ in range(draw(st.integers(0, 5))):
        label = draw(st.sampled_from([0, 1, 2, 15, 20, 255]))
        row, column = draw(st.integers(0, height)), draw(st.integers(0, width))
        size = draw(st.integers(1, 40))
        disc = (y - row) ** 2 + (x - column) ** 2 < size**2
        square = (np.abs(y - row) <= size // 2) & (np.abs(x - column) < size)
        mask[disc if draw(st.booleans()) else square] = label
    return mask


@settings(max_examples=120, deadline=None)
@given(masks(), st.sampled_from(DRAWN), st.sampled_from([1, 3, 6]), st.integers(0, 3))
def test_drawn_labels_lie_on_their_class_and_hit_every_class(
    mask: np.ndarray, supervision: Supervision, stroke: int, seed: int
) -> None:
    before = mask.copy()
    label = _simulate(mask, supervision, stroke=stroke, seed=seed)
    np.testing.assert_array_equal(mask, before)
    assert label.shape == mask.shape
    assert label.dtype == np.uint8
    on = label != 254
    np.testing.assert_array_equal(label[on], mask[on])
    assert not (on & (mask == 255)).any()
    tags = simulated_tags(mask, label, supervision, 21, 0)
    np.testing.assert_array_equal(tags, tags_from_mask(mask, 21))


@settings(max_examples=80, deadline=None)
@given(masks(), st.sampled_from(["inner", "fill"]))
def test_boxes_carry_their_class_inside_and_nothing_on_void(mask: np.ndarray, inside: str) -> None:
    label = _simulate(mask, "box", box_inside=inside)
    bare = _simulate(mask, "box", box_inside="unlabelled")
    np.testing.assert_array_equal(label[bare == 0], 0)
    assert not ((label != 254) & (mask == 255)).any()
    assert set(np.unique(label[(label > 0) & (label < 254)])) <= set(np.unique(mask))
    if inside == "fill":
        assert (label[(mask > 0) & (mask < 21) & (bare == 254)] != 0).all()


def test_the_inner_fifth_of_a_box_carries_its_class() -> None:
    mask = np.zeros((60, 80), np.uint8)
    mask[10:50, 20:70] = 5
    label = _simulate(mask, "box")
    rows, columns = np.nonzero(label == 5)
    assert (rows.mean(), columns.mean()) == (29.5, 44.5)
    assert (label == 5).sum() == pytest.approx(0.2 * 40 * 50, rel=0.05)
    assert ((label == 0) == (mask == 0)).all()
    filled = _simulate(mask, "box", box_inside="fill")
    np.testing.assert_array_equal(filled, mask)


def test_a_small_box_lies_on_top_of_a_large_one() -> None:
    mask = np.zeros((60, 80), np.uint8)
    mask[5:55, 5:75] = 5
    mask[25:35, 35:45] = 7
    assert (_simulate(mask, "box", box_inside="fill")[25:35, 35:45] == 7).all()


@settings(max_examples=80, deadline=None)
@given(masks())
def test_outside_of_boxes_is_background_and_nothing_else(mask: np.ndarray) -> None:
    label = _simulate(mask, "box", box_inside="unlabelled")
    assert set(np.unique(label)) <= {0, 254}
    assert (mask[label == 0] == 0).all()
    objects = (mask > 0) & (mask < 21)
    if not objects.any():
        np.testing.assert_array_equal(label == 0, mask == 0)
    tags = simulated_tags(mask, label, "box", 21, 0)
    np.testing.assert_array_equal(tags[1:], tags_from_mask(mask, 21)[1:])
    assert tags[0] == (label == 0).any()


@settings(max_examples=60, deadline=None)
@given(masks(), st.floats(0.01, 1.0))
def test_blocks_keep_to_their_share(mask: np.ndarray, share: float) -> None:
    label = _simulate(mask, "block", block_share=share)
    for k in np.unique(mask[mask < 21]):
        assert 1 <= (label == k).sum() <= max(share * (mask == k).sum(), 1)


def test_blocks_reach_their_share_where_there_is_room() -> None:
    mask = np.zeros((300, 400), np.uint8)
    mask[50:200, 100:250] = 8
    for share in (0.1, 0.2, 0.5):  # TEL's three
        label = _simulate(mask, "block", block_share=share)
        for k in (0, 8):
            assert (label == k).sum() / (mask == k).sum() == pytest.approx(share, rel=0.05)


def test_full_is_the_mask_and_image_labels_nothing() -> None:
    mask = np.array([[0, 20, 255], [21, 254, 3]], np.uint8)
    np.testing.assert_array_equal(_simulate(mask, "full"), [[0, 20, 255], [255, 255, 3]])
    assert (_simulate(mask, "image") == 254).all()


def test_boxes_need_a_background_class() -> None:
    with pytest.raises(UserError, match="no such class"):
        _simulate(np.zeros((5, 5), np.uint8), "box", background=None)


def test_classes_without_background_are_all_drawn() -> None:
    mask = np.repeat(np.arange(150, dtype=np.uint8), 40).reshape(60, 100)
    for supervision in DRAWN:
        label = _simulate(mask, supervision, num_classes=150, background=None)
        assert tags_from_mask(label, 150).all()


# --- how annotators draw -----------------------------------------------------------------------------


def test_scribbles_are_long_central_strokes() -> None:
    mask = np.zeros((240, 320), np.uint8)
    mask[90:150, 60:260] = 12
    depth = ndimage.distance_transform_edt(mask == 12)
    for seed in range(8):
        label = _simulate(mask, "scribble", stroke=1, seed=seed)
        rows, columns = np.nonzero(label == 12)
        assert np.ptp(columns) > 0.6 * 200
        assert depth[rows, columns].mean() > 0.4 * depth.max()
        assert np.ptp(np.nonzero(label == 0)[1]) > 0.6 * 320  # background winds round the object
        assert ndimage.label(label == 12, np.ones((3, 3)))[1] == 1


def test_scribbles_grow_with_their_region() -> None:
    lengths = []
    for half in (5, 15, 45):
        mask = np.zeros((240, 320), np.uint8)
        mask[120 - half : 120 + half, 160 - 2 * half : 160 + 2 * half] = 3
        drawn = [(_simulate(mask, "scribble", stroke=1, seed=s) == 3).sum() for s in range(5)]
        lengths.append(np.mean(drawn))
    assert lengths[0] * 2 < lengths[1]
    assert lengths[1] * 2 < lengths[2]


def test_clicks_are_one_for_each_object_near_its_middle() -> None:
    mask = np.zeros((200, 300), np.uint8)
    mask[20:80, 20:80] = 4
    mask[100:180, 150:280] = 4
    mask[30:31, 200:202] = 4  # a crumb
    for seed in range(8):
        label = _simulate(mask, "point", seed=seed)
        spots, count = ndimage.label(label == 4)
        assert count == 2
        centres = sorted(ndimage.center_of_mass(label == 4, spots, [1, 2]))
        assert np.hypot(centres[0][0] - 50, centres[0][1] - 50) < 30
        assert 100 < centres[1][0] < 180
        assert (label == 4).sum() <= 2 * 12
        assert 1 <= ndimage.label(label == 0)[1] <= 3


# --- determinism -------------------------------------------------------------------------------------

_PROBE = """
import hashlib, numpy as np
from harness.data.labels.weak_labels import simulate
mask = np.zeros((90, 120), np.uint8); mask[20:60, 30:90] = 5; mask[18:20, 30:90] = 255
for supervision in ("scribble", "point", "block", "box"):
    label = simulate(mask, supervision, image_id="a", seed=3, num_classes=21, background=0)
    print(hashlib.sha256(label.tobytes()).hexdigest())
"""


def test_labels_do_not_depend_on_the_process_or_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "12345")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, check=True)
    mask = np.zeros((90, 120), np.uint8)
    mask[20:60, 30:90] = 5
    mask[18:20, 30:90] = 255
    np.random.default_rng().random()
    own = [
        hashlib.sha256(_simulate(mask, s, image_id="a", seed=3).tobytes()).hexdigest()
        for s in ("box", "block", "point", "scribble")
    ]
    assert run.stdout.split() == own[::-1]


@pytest.mark.parametrize("supervision", DRAWN)
def test_labels_differ_between_seeds_and_pictures(supervision: Supervision) -> None:
    mask = np.zeros((90, 120), np.uint8)
    mask[20:60, 30:90] = 5
    first = _simulate(mask, supervision)
    np.testing.assert_array_equal(first, _simulate(mask, supervision))
    assert (first != _simulate(mask, supervision, seed=1)).any()
    assert (first != _simulate(mask, supervision, image_id="2007_000033")).any()


# --- real pictures -----------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.parametrize("supervision", SUPERVISIONS)
def test_real_masks_keep_the_properties(real_data: Path, supervision: Supervision) -> None:
    dataset = VOC2012(real_data / "voc")
    share = []
    for image_id in list(dataset.ids("train_aug"))[::3]:
        mask = dataset.read_mask(image_id, "train_aug")
        label = _simulate(mask, supervision, image_id=image_id, box_inside="unlabelled")
        legal = (label == mask) | (label == 254) if supervision != "full" else label == mask
        assert legal.all()
        share.append((label < 21).mean())
    low, high = {
        "full": (0.9, 1.0),
        "scribble": (0.01, 0.04),
        "point": (0.0001, 0.001),
        "block": (0.08, 0.1),
        "box": (0.3, 0.7),
        "image": (0.0, 0.0),
    }[supervision]
    assert low <= np.mean(share) <= high


# --- changed labels ----------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(masks(), st.sampled_from(DRAWN), st.floats(0.05, 1), st.floats(0.1, 1), st.integers(0, 3))
def test_shortened_and_dropped_labels_are_part_of_the_whole_ones(
    mask: np.ndarray, supervision: Supervision, keep: float, share: float, seed: int
) -> None:
    label = _simulate(mask, supervision, seed=seed)
    options = {"image_id": "a", "seed": seed, "num_classes": 21}
    shorter = shorten(label, keep, **options)
    fewer = drop(label, share, **options)
    for part in (shorter, fewer):
        kept = part != 254
        np.testing.assert_array_equal(part[kept], label[kept])
    np.testing.assert_array_equal(tags_from_mask(shorter, 21), tags_from_mask(label, 21))  # no stroke is lost
    np.testing.assert_array_equal(shorter, shorten(label, keep, **options))
    np.testing.assert_array_equal(fewer, drop(label, share, **options))


@settings(max_examples=60, deadline=None)
@given(masks(), st.integers(1, 120), st.integers(0, 3))
def test_any_number_of_clicks_lies_on_its_class_and_hits_every_class(
    mask: np.ndarray, clicks: int, seed: int
) -> None:
    label = n_clicks(mask, clicks, image_id="a", seed=seed, num_classes=21)
    on = label != 254
    np.testing.assert_array_equal(label[on], mask[on])
    np.testing.assert_array_equal(tags_from_mask(label, 21), tags_from_mask(mask, 21))
    present = int(tags_from_mask(mask, 21).sum())
    assert on.sum() <= max(clicks, present)
