"""COCO's segmentations to pixels: the rules by hand, pycocotools where it is there, and real pictures."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.basics.errors import UserError
from harness.data.coco_masks import annotation_map, decode, from_polygon, from_runs, panoptic_map, unpacked
from harness.data.images import read_rgb
from harness.data.prepare.report import verify_dataset
from harness.data.sets.coco2014 import COCO2014, contiguous

POLYGONS = st.lists(
    st.lists(st.floats(-3, 30, width=32), min_size=6, max_size=24).filter(lambda p: len(p) % 2 == 0),
    min_size=1,
    max_size=3,
)


def square(left: float, top: float, side: float) -> list[float]:
    return [left, top, left + side, top, left + side, top + side, left, top + side]


def test_a_square_on_pixel_edges_holds_exactly_its_pixels():
    inside = decode([square(2, 1, 3)], (8, 9), library=False)
    expected = np.zeros((8, 9), bool)
    expected[1:4, 2:5] = True
    np.testing.assert_array_equal(inside, expected)


def test_polygons_of_one_object_are_united_and_cut_off_at_the_frame():
    inside = decode([square(0, 0, 3), square(2, 2, 3), square(7, 6, 10)], (8, 9), library=False)
    assert inside.sum() == 9 + 9 - 1 + 4


def test_runs_go_down_the_columns_and_start_outside():
    inside = from_runs(np.array([2, 3, 7]), (3, 4))
    np.testing.assert_array_equal(np.flatnonzero(inside.T), [2, 3, 4])
    with pytest.raises(UserError, match="add up to 11 pixels, the picture has 12"):
        from_runs(np.array([2, 3, 6]), (3, 4))
    with pytest.raises(UserError, match="ours is"):
        decode({"counts": [12], "size": [4, 3]}, (3, 4))
    with pytest.raises(UserError, match="polygons or run lengths"):
        decode("[1, 2]", (3, 4))


@pytest.mark.parametrize(
    ("text", "runs"),
    [("0", [0]), ("4:", [4, 10]), ("`1>", [48, 14]), ("537N", [5, 3, 7, 1]), (b"537N0", [5, 3, 7, 1, 7])],
)
def test_text_of_run_lengths_is_unpacked(text: str | bytes, runs: list[int]):
    assert unpacked(text).tolist() == runs


def test_pixels_are_those_of_pycocotools(golden: Path):
    for case in json.loads((golden / "coco" / "polygons.json").read_text())["cases"]:
        size = tuple(case["size"])
        expected = from_runs(np.array(case["counts"]), size)
        np.testing.assert_array_equal(decode(case["polygons"], size, library=False), expected)
        np.testing.assert_array_equal(decode({"counts": case["text"], "size": list(size)}, size), expected)


def test_smaller_annotations_lie_on_top_and_crowds_are_drawn():
    table = contiguous()
    runs = {"counts": [0, 64], "size": [8, 8]}
    annotations = [
        {"id": 1, "category_id": 18, "area": 9.0, "iscrowd": 0, "segmentation": [square(1, 1, 3)]},
        {"id": 2, "category_id": 90, "area": 64.0, "iscrowd": 1, "segmentation": runs},
        {"id": 3, "category_id": 1, "area": 25.0, "iscrowd": 0, "segmentation": [square(0, 0, 5)]},
        {"id": 4, "category_id": 2, "area": 9.0, "iscrowd": 0, "segmentation": [square(3, 3, 3)]},
    ]
    drawn = annotation_map(annotations, (8, 8), table)
    assert drawn[7, 7] == 80  # toothbrush, the crowd
    assert drawn[0, 0] == 1
    assert (drawn[1:4, 1:4] == 17).all()  # of two equal areas the first lies on top
    assert drawn[5, 5] == 2
    assert np.bincount(drawn.ravel(), minlength=81)[[17, 2]].tolist() == [9, 8]
    assert not annotation_map([], (8, 8), table).any()
    with pytest.raises(UserError, match="annotation 7 has the unknown category 12"):
        annotation_map([{**annotations[0], "id": 7, "category_id": 12}], (8, 8), table)


@given(polygons=POLYGONS)
@settings(max_examples=60, deadline=None)
def test_pixels_are_near_the_outline_or_on_the_right_side_of_it(polygons: list[list[float]]):
    size = (24, 26)
    points = np.array(polygons[0], np.float64).reshape(-1, 2)
    inside = from_polygon(points, size)
    rows, columns = np.indices(size)
    centres = np.stack([columns + 0.5, rows + 0.5], -1)
    closed = np.vstack([points, points[:1]])
    start, way = closed[:-1], np.diff(closed, axis=0)
    flat = centres.reshape(-1, 1, 2) - start
    share = np.clip((flat * way).sum(-1) / np.maximum((way**2).sum(-1), 1e-12), 0, 1)
    distance = np.linalg.norm(flat - share[..., None] * way, axis=-1).min(1).reshape(size)
    far = distance > 1
    crosses = (start[:, 1] > centres[..., 1:2]) != (closed[1:, 1] > centres[..., 1:2])
    where = (
        start[:, 0] + (centres[..., 1:2] - start[:, 1]) / np.where(way[:, 1] == 0, 1, way[:, 1]) * way[:, 0]
    )
    odd = ((crosses & (centres[..., 0:1] < where)).sum(-1) % 2) == 1
    np.testing.assert_array_equal(inside[far], odd[far])


@given(polygons=POLYGONS)
@settings(max_examples=100, deadline=None)
def test_any_polygon_gives_the_pixels_of_pycocotools(polygons: list[list[float]]):
    library = pytest.importorskip("pycocotools.mask")
    size = (24, 26)
    np.testing.assert_array_equal(decode(polygons, size, library=False), decode(polygons, size, library=True))
    packed = library.merge(library.frPyObjects(polygons, *size))
    packed = {"counts": packed["counts"], "size": list(size)}
    np.testing.assert_array_equal(decode(packed, size), decode(polygons, size, library=False))


def test_panoptic_numbers_become_labels():
    numbers = np.zeros((2, 3, 3), np.uint8)
    numbers[0, 1], numbers[1, 2] = (4, 1, 0), (0, 0, 2)
    segments = [{"id": 131072, "category_id": 200}, {"id": 260, "category_id": 90}]
    drawn = panoptic_map(numbers, segments, contiguous())
    np.testing.assert_array_equal(drawn, [[0, 80, 0], [0, 0, 0]])
    with pytest.raises(UserError, match="segments that its JSON file does not name"):
        panoptic_map(numbers, segments[:1], contiguous())


# --- the real sample ---------------------------------------------------------------------------------


def real_annotations(real_data: Path):
    """``(picture, its annotations)`` of the 38 pictures."""
    for part in ("train", "val"):
        file = real_data / "coco" / "tinycoco_instances" / "annotations" / f"instances_{part}2017.json"
        content = json.loads(file.read_text())
        of_picture = defaultdict(list)
        for annotation in content["annotations"]:
            of_picture[annotation["image_id"]].append(annotation)
        for picture in content["images"]:
            yield picture, of_picture[picture["id"]]


@pytest.mark.real
def test_polygons_agree_with_their_official_areas_one_by_one(real_data: Path):
    polygons = crowds = pictures = 0
    for picture, found in real_annotations(real_data):
        size = (picture["height"], picture["width"])
        pictures += 1
        for annotation in found:
            inside = decode(annotation["segmentation"], size, library=False)
            if annotation["iscrowd"]:
                assert inside.sum() == sum(annotation["segmentation"]["counts"][1::2])
                crowds += 1
                continue
            area = outline = 0.0
            for flat in annotation["segmentation"]:
                points = np.reshape(flat, (-1, 2))
                after = np.roll(points, -1, axis=0)
                area += abs((points[:, 0] * after[:, 1] - after[:, 0] * points[:, 1]).sum()) / 2
                outline += np.hypot(*(after - points).T).sum()
            assert area == pytest.approx(annotation["area"], abs=1e-6), "the stated area is the polygon's own"
            # Pixels are whole: along the outline a count may be off by less than half a pixel each.
            assert abs(inside.sum() - annotation["area"]) <= 0.25 * outline + 1
            polygons += 1
    assert (pictures, polygons, crowds) == (38, 419, 5)


@pytest.mark.real
def test_maps_of_real_pictures_show_every_annotated_class(real_data: Path):
    hidden = 0
    for picture, found in real_annotations(real_data):
        drawn = annotation_map(found, (picture["height"], picture["width"]), contiguous())
        wanted = {int(contiguous()[a["category_id"]]) for a in found}
        shown = set(np.unique(drawn).tolist()) - {0}
        assert shown <= wanted
        hidden += len(wanted - shown)
    assert hidden == 0, "small ones lie on top, so that none is lost"


@pytest.mark.real
def test_panoptic_pictures_reproduce_the_given_maps_through_the_reader(real_data: Path, tmp_path: Path):
    root = real_data / "coco"
    names = json.loads((root / "coco2014_names.json").read_text())
    official = read = 0
    for part in ("train", "val"):
        content = json.loads((root / "annotations" / f"panoptic_{part}2017.json").read_text())
        for annotation in content["annotations"]:
            number = annotation["file_name"].removesuffix(".png")
            coloured = read_rgb(root / "annotations" / f"panoptic_{part}2017" / f"{number}.png")
            drawn = panoptic_map(coloured, annotation["segments_info"], contiguous())
            # In the official layout under the picture's name of 2014; three are in neither list.
            image_id = names[number] or f"COCO_{part}2014_{number}"
            official += names[number] is not None
            half = COCO2014.part(image_id) + "2014"
            for folder, file in (
                (tmp_path / half, root / "images" / f"{part}2017" / f"{number}.jpg"),
                (
                    tmp_path / "SegmentationClass" / half,
                    root / "SegmentationClass81" / f"{part}2017" / f"{number}.png",
                ),
            ):
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{image_id}{file.suffix}").symlink_to(file)
            dataset = COCO2014(tmp_path)
            split = COCO2014.part(image_id)
            assert names[number] is None or image_id in set(dataset.ids(split))
            mask = dataset.read_mask(image_id, split)
            assert dataset.read_image(image_id).shape[:2] == mask.shape
            np.testing.assert_array_equal(drawn, mask)
            read += 1
    assert read == 139
    assert official >= 136


@pytest.mark.real
def test_the_other_real_pictures_are_prepared_read_and_sound(real_data: Path, tmp_path: Path):
    source = real_data / "coco" / "tinycoco_instances"
    for part in ("train", "val"):
        file = source / "annotations" / f"instances_{part}2017.json"
        ids = []
        for picture in json.loads(file.read_text())["images"]:
            ids.append(f"COCO_{part}2014_{picture['id']:012d}")  # the part that this copy files it under
            (tmp_path / f"{part}2014").mkdir(exist_ok=True)
            target = tmp_path / f"{part}2014" / f"{ids[-1]}.jpg"
            target.symlink_to(source / "images" / f"{part}2017" / picture["file_name"])
        for folder in ("annotations", "lists"):
            (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / "annotations" / f"instances_{part}2014.json").symlink_to(file)
        (tmp_path / "lists" / f"{part}.txt").write_text("\n".join(ids) + "\n")
    dataset = COCO2014(tmp_path)
    dataset.prepare(None, 0, lambda line: None)
    report = verify_dataset(dataset, cache=tmp_path / "cache", splits=["train", "val"])
    assert report.sound, "\n".join(report.lines())
    assert [s.images for s in report.splits] == [32, 6]
    areas = {}
    for picture, found in real_annotations(real_data):
        for annotation in found:
            key = (picture["id"], int(contiguous()[annotation["category_id"]]))
            areas[key] = areas.get(key, 0) + annotation["area"]
    for split in ("train", "val"):
        for image_id in dataset.ids(split):
            mask, number = dataset.read_mask(image_id, split), int(image_id[-12:])
            tags = set(np.flatnonzero(dataset.tags([image_id])[0]).tolist())
            assert set(np.unique(mask).tolist()) - {0} == tags == {k for i, k in areas if i == number}


def both_ways() -> list[bool]:
    """Without pycocotools, and with it where it is installed."""
    from harness.data import coco_masks

    return [False] if coco_masks._pycocotools is None else [False, True]


TRIANGLE = [1.0, 1.0, 6.0, 1.0, 6.0, 6.0]


@pytest.mark.parametrize(
    ("segmentation", "same_as"),
    [
        (TRIANGLE, [TRIANGLE]),  # without the list around it
        ([[int(v) for v in TRIANGLE]], [TRIANGLE]),
        ([[1.0, 1.0, 4.0, 4.0], TRIANGLE], [TRIANGLE]),  # pycocotools takes four numbers for a box
        ([TRIANGLE, [1.0, 1.0, 4.0, 4.0]], [TRIANGLE]),
        ([TRIANGLE, [], [2.0, 2.0]], [TRIANGLE]),
    ],
)
@pytest.mark.parametrize("library", both_ways())
def test_odd_lists_of_polygons_mean_the_same_with_and_without_the_library(
    segmentation: object, same_as: object, library: bool
) -> None:
    found = decode(segmentation, (8, 9), library=library)
    np.testing.assert_array_equal(found, decode(same_as, (8, 9), library=False))
    assert found.any()


@pytest.mark.parametrize(
    ("segmentation", "problem"),
    [
        ([[1, 1, 4, 4]], "three points"),
        ([1, 1, 4, 4], "three points"),
        ([[1, 1], [2, 2]], "three points"),
        ([[]], "three points"),
        ([], "an empty list"),
        (None, "NoneType"),
        ([[1, 1, 4, 4, 2, 3, 9]], "7 numbers"),
        ([1, 1, 4, 4, 2], "5 numbers"),
        ([[1, 1, 4, 4, 2, "3"]], "list of numbers"),
        ([[[1, 1], [4, 4], [2, 3]]], "list of numbers"),
        ([[1, 1, 4, 4, 2, True]], "list of numbers"),
        ([TRIANGLE, 5], "list of numbers"),
        ([[1, 1, 4, 4, 2, float("nan")]], "beyond"),
        ([[1, 1, 4, 4, 2, 1e12]], "beyond"),
        ({"counts": [72]}, "run lengths are"),
        ({"counts": None, "size": [8, 9]}, "run lengths are"),
        ({"counts": "", "size": [8, 9]}, "run lengths are"),
        ({"counts": [72], "size": 8}, "run lengths are"),
        ({"counts": ["x"], "size": [8, 9]}, "run lengths are"),
        ({"counts": [2**70], "size": [8, 9]}, "run lengths are"),
        ({"counts": [71], "size": [8, 9]}, "add up to 71"),
    ],
)
@pytest.mark.parametrize("library", both_ways())
def test_broken_segmentations_are_refused_alike_with_and_without_the_library(
    segmentation: object, problem: str, library: bool
) -> None:
    with pytest.raises(UserError, match=problem):
        decode(segmentation, (8, 9), library=library)


def test_annotations_without_area_are_ordered_by_what_they_cover() -> None:
    large = {"id": 1, "category_id": 1, "segmentation": [square(0, 0, 6)]}
    small = {"id": 2, "category_id": 2, "segmentation": [square(1, 1, 2)]}
    labels = np.arange(256, dtype=np.uint8)
    for both in ([large, small], [small, large], [large | {"area": 36.0}, small]):
        drawn = annotation_map(both, (8, 9), labels)
        assert (drawn[2, 2], drawn[4, 4]) == (2, 1)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"segmentation": None}, "annotation 7: a segmentation"),
        ({"category_id": 300}, "annotation 7 has the unknown category 300"),
        ({"category_id": -1}, "unknown category -1"),
        ({"category_id": None}, "unknown category None"),
        ({"category_id": "1"}, "unknown category 1"),
    ],
)
def test_broken_annotations_are_named(change: dict[str, object], problem: str) -> None:
    annotation = {"id": 7, "category_id": 1, "segmentation": [TRIANGLE]} | change
    with pytest.raises(UserError, match=problem):
        annotation_map([annotation], (8, 9), np.arange(256, dtype=np.uint8))
    del annotation["segmentation"]
    with pytest.raises(UserError, match="annotation 7"):
        annotation_map([annotation], (8, 9), np.arange(256, dtype=np.uint8))
