"""Annotators' files: golden XML conversion, drawing, clicks, and what is refused."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from harness.basics.errors import UserError
from harness.data.base import LabelSpec
from harness.data.labels.annotations import (
    Stroke,
    draw_clicks,
    draw_strokes,
    read_clicks,
    read_polylines,
    read_xml,
)
from harness.data.sets.voc2012 import VOC2012

# --- one pixel wide lines ----------------------------------------------------------------------------


@pytest.fixture
def toy(golden: Path, tmp_path: Path) -> tuple[Path, np.ndarray]:
    """The authors' toy XML file and what their converter makes of it (255 unlabelled)."""
    with np.load(golden / "blpseg" / "scribble_xml.npz") as data:
        (tmp_path / "toy.xml").write_text(str(data["xml"]))
        return tmp_path / "toy.xml", data["label"]


def _names() -> dict[str, int]:
    names = {name: label for label, name in enumerate(VOC2012.info.classes)}
    return names | {alias: names[name] for alias, name in VOC2012.aliases.items()}


def test_xml_at_width_one_equals_the_authors_conversion(toy: tuple[Path, np.ndarray]) -> None:
    path, expected = toy
    label = draw_strokes(read_xml(path, size=(30, 40), names=_names()), (30, 40), 1)
    np.testing.assert_array_equal(np.where(label == 254, 255, label), expected)


def _line_by_loop(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The rule of data/xml2png_voc.py pixel by pixel."""
    drawn = np.zeros(size, bool)
    clamped = [(max(min(int(y), size[0] - 1), 0), max(min(int(x), size[1] - 1), 0)) for x, y in points]
    for (r, c), (r1, c1) in itertools.pairwise(clamped):
        m = max(abs(r1 - r), abs(c1 - c))
        step = ((r1 - r) / m, (c1 - c) / m) if m > 1 else (0.0, 0.0)
        for i in range(m if m > 1 else 0):
            drawn[int(r + step[0] * i), int(c + step[1] * i)] = True
        drawn[r, c] = drawn[r1, c1] = True
    return drawn


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-20, 120), st.integers(-20, 120)), min_size=1, max_size=8),
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
)
def test_width_one_follows_the_rule_for_any_stroke(
    points: list[tuple[int, int]], size: tuple[int, int]
) -> None:
    label = draw_strokes([Stroke(7, np.array(points, np.float64))], size, 1)
    np.testing.assert_array_equal(label == 7, _line_by_loop(np.array(points), size))
    assert set(np.unique(label)) <= {7, 254}


# --- wider strokes and clicks ------------------------------------------------------------------------


def _distance(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Distance of every pixel to a polyline."""
    pixels = np.stack(np.meshgrid(np.arange(size[1]), np.arange(size[0])), -1).astype(np.float64)
    start, way = points[:-1], np.diff(points, axis=0)
    offset = pixels[:, :, None] - start
    share = np.clip((offset * way).sum(-1) / np.maximum((way**2).sum(-1), 1e-12), 0, 1)
    return np.sqrt(((offset - share[..., None] * way) ** 2).sum(-1)).min(-1)


@pytest.mark.parametrize("width", [2, 3, 5, 9])
def test_wide_strokes_cover_their_width_and_their_ends(width: int) -> None:
    points = np.array([[12.0, 12.0], [60.0, 25.0], [40.0, 50.0], [40.0, 52.0]])
    label = draw_strokes([Stroke(3, points)], (70, 80), width)
    distance = _distance(points, (70, 80))
    assert (label[distance < width / 2 - 0.9] == 3).all()
    assert (label[distance > width / 2 + 1.0] == 254).all()


def test_a_stroke_of_one_point_is_a_disc_when_wide() -> None:
    assert (draw_strokes([Stroke(3, np.array([[5.0, 5.0]]))], (11, 11), 3) == 3).sum() == 12
    assert (draw_strokes([Stroke(3, np.array([[5.0, 5.0]]))], (11, 11), 1) == 254).all()


def test_later_strokes_cover_earlier_ones() -> None:
    across = Stroke(1, np.array([[0.0, 5.0], [10.0, 5.0]]))
    down = Stroke(0, np.array([[5.0, 0.0], [5.0, 10.0]]))
    for width in (1, 3):
        assert draw_strokes([across, down], (11, 11), width)[5, 5] == 0
        assert draw_strokes([down, across], (11, 11), width)[5, 5] == 1


@given(st.floats(-5, 45), st.floats(-5, 35), st.sampled_from([1, 3, 7]))
def test_clicks_lie_where_they_were_made(x: float, y: float, width: int) -> None:
    label = draw_clicks([Stroke(4, np.array([[x, y]]))], (30, 40), width)
    rows, columns = np.nonzero(label == 4)
    assert (np.hypot(rows - y, columns - x) <= width / 2 + 2.0).all()
    if 1 <= x < 39 and 1 <= y < 29:
        near = (int(y), int(x)) if width == 1 else (round(y), round(x))
        assert label[near] == 4


# --- reading -----------------------------------------------------------------------------------------


def _xml(tag: str = "cat", width: int = 40) -> str:
    return (
        f"<annotation><size><width>{width}</width><height>30</height></size><polygon><tag>{tag}</tag>"
        "<point><X>1</X><Y>2</Y></point><point><X>9</X><Y>2</Y></point></polygon></annotation>"
    )


@pytest.mark.parametrize(
    ("tag", "label"), [("monitor", 20), ("tvmonitor", 20), ("table", 11), ("background", 0), ("bike", 2)]
)
def test_names_of_both_kinds_are_known(tmp_path: Path, tag: str, label: int) -> None:
    (tmp_path / "a.xml").write_text(_xml(tag))
    assert [s.label for s in read_xml(tmp_path / "a.xml", size=(30, 40), names=_names())] == [label]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (_xml("motorbik"), "unknown class"),
        (_xml(width=41), "41x30"),
        (_xml()[:-5], "not a ScribbleSup file"),
        (_xml().replace("<Y>2</Y>", ""), "lacks Y"),
        (_xml().replace("<X>1</X>", "<X>one</X>"), "not a ScribbleSup file"),
        ("<annotation></annotation>", "lacks size/height"),
    ],
)
def test_malformed_xml_is_refused(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / "a.xml").write_text(content)
    with pytest.raises(UserError, match=problem) as caught:
        read_xml(tmp_path / "a.xml", size=(30, 40), names=_names())
    assert str(tmp_path / "a.xml") in str(caught.value.where)


def test_polylines_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("15,1,2,3,4\r\n\n0,9,9,\n")
    strokes = read_polylines(tmp_path / "a.txt", 21)
    assert [s.label for s in strokes] == [15, 0]
    np.testing.assert_array_equal(strokes[0].points, [[1, 2], [3, 4]])
    np.testing.assert_array_equal(strokes[1].points, [[9, 9]])


@pytest.mark.parametrize(
    "line", ["15,1,2,3", "15", "a,1,2", "21,1,2", "-1,1,2", "1.5,1,2", "3,nan,2", "3,inf,2"]
)
def test_malformed_polylines_name_their_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.txt").write_text(f"0,1,1\n{line}\n")
    with pytest.raises(UserError) as caught:
        read_polylines(tmp_path / "a.txt", 21)
    assert "line 2" in str(caught.value.where)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"b": []}', "no clicks for picture 'a'"),
        ('{"a": [{"x": 1, "y": 2}]}', "not a click"),
        ('{"a": [{"x": 1, "y": 2, "cls": 21}]}', "none of 0..20"),
        ('{"a": [{"x": NaN, "y": 2, "cls": 1}]}', "without a place"),
        ('{"a": [7]}', "not a click"),
        ("[1]", "not a JSON object"),
        ('{"a": ', "not valid JSON"),
    ],
)
def test_malformed_clicks_are_refused(tmp_path: Path, content: str, problem: str) -> None:
    file = tmp_path / "clicks.json"
    file.write_text(content)
    with pytest.raises(UserError, match=problem):
        read_clicks([file], "a", 21)


def test_a_changed_click_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "clicks.json"
    for count in (1, 2):
        file.write_text(json.dumps({"a": [{"x": 1, "y": 2, "cls": 3}] * count}))
        assert len(read_clicks([file], "a", 21)) == count


# --- through the data set ----------------------------------------------------------------------------


def _official(**values: object) -> LabelSpec:
    return LabelSpec(source="official", **{"folder": "weak", **values})  # type: ignore[arg-type]


def test_unlabelled_value_is_never_guessed(tiny_voc: VOC2012) -> None:
    folder = tiny_voc.root / "weak"
    folder.mkdir()
    height, width = tiny_voc.read_mask("2007_000001", "train").shape
    label = np.full((height, width), 255, np.uint8)
    label[3, 3:9] = 15
    Image.fromarray(label).save(folder / "2007_000001.png")
    with pytest.raises(UserError, match="not annotated") as caught:
        tiny_voc.read_official_label("2007_000001", "scribble", _official(format="png"))
    assert "21" in str(caught.value.remedy)
    with pytest.raises(UserError, match=r"holds \[255\]"):
        tiny_voc.read_official_label("2007_000001", "scribble", _official(format="png", unlabelled=21))
    read = tiny_voc.read_official_label("2007_000001", "scribble", _official(format="png", unlabelled=255))
    np.testing.assert_array_equal(read, np.where(label == 255, 254, label))
    Image.fromarray(label[:-1]).save(folder / "2007_000001.png")
    with pytest.raises(UserError, match="its picture"):
        tiny_voc.read_official_label("2007_000001", "scribble", _official(format="png", unlabelled=255))


def test_both_polyline_names_are_found_and_the_longer_one_first(tiny_voc: VOC2012) -> None:
    folder = tiny_voc.root / "weak"
    folder.mkdir()
    (folder / "2007_000001.txt").write_text("5,1,1,9,1\n")
    spec = _official(format="polyline")
    assert 5 in tiny_voc.read_official_label("2007_000001", "scribble", spec)
    (folder / "2007_000001_polyline.txt").write_text("6,1,1,9,1\n")
    assert 6 in tiny_voc.read_official_label("2007_000001", "scribble", spec)
    assert tiny_voc.label_files("2007_000001", spec) == (folder / "2007_000001_polyline.txt",)


@pytest.mark.parametrize(
    ("supervision", "spec", "problem"),
    [
        ("point", LabelSpec(source="official", format="xml", folder="weak"), "format 'xml'"),
        ("scribble", LabelSpec(source="official", format="clicks", folder="weak"), "format 'clicks'"),
        ("scribble", LabelSpec(source="official", folder="weak"), "no format"),
        ("image", LabelSpec(source="official", format="png", folder="weak"), "format 'png'"),
        ("scribble", LabelSpec(source="official", format="png"), "where their files are"),
        ("scribble", LabelSpec(source="official", format="png", folder="nowhere"), "no such folder"),
        ("scribble", LabelSpec(source="official", format="xml", folder="weak"), "label file is missing"),
        ("scribble", LabelSpec(source="official", format="polyline", folder="weak"), "label file is missing"),
    ],
)
def test_specs_that_cannot_be_met_are_refused(
    tiny_voc: VOC2012, supervision: str, spec: LabelSpec, problem: str
) -> None:
    (tiny_voc.root / "weak").mkdir()
    with pytest.raises(UserError, match=problem):
        tiny_voc.read_official_label("2007_000001", supervision, spec)  # type: ignore[arg-type]


@pytest.mark.real
def test_real_clicks_lie_on_their_class(real_data: Path) -> None:
    dataset = VOC2012(real_data / "voc")
    clicks = dataset.root / "weak" / "points_whats_the_point.json"
    counts: Counter[str] = Counter()
    for image_id in [*dataset.ids("train_aug"), *dataset.ids("val")]:
        mask = dataset.read_mask(image_id, "train_aug")
        for click in read_clicks([clicks], image_id, 21):
            x, y = click.points[0].astype(int)
            value = int(mask[y, x])
            kinds = {click.label: "class", 255: "void", 0: "background"}
            counts[kinds.get(value, "other")] += 1
    assert counts == {"class": 585, "void": 28, "background": 24, "other": 2}


@pytest.mark.real
def test_real_clicks_draw_objects_and_background(real_data: Path) -> None:
    dataset = VOC2012(real_data / "voc")
    spec = LabelSpec(
        source="official",
        format="clicks",
        folder="weak/points_whats_the_point.json",
        background="weak/points_background_from_scribbles.json",
    )
    background = 0
    for image_id in list(dataset.ids("val"))[:20]:
        label = dataset.read_official_label(image_id, "point", spec)
        assert label.shape == dataset.read_mask(image_id, "val").shape
        assert 9 <= (label != 254).sum() < 600
        background += (label == 0).any()
    assert background >= 15  # a few pictures are all object
