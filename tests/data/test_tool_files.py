"""Files of annotation tools for a user's own ids: LabelMe, COCO, VOC, YOLO, clicks as CSV, ScribbleSup."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.basics.errors import UserError
from harness.cli.main import cli, invoke
from harness.data.base import LabelSpec
from harness.data.images import write_index
from harness.data.labels.annotations import read_label
from harness.data.labels.label_store import prepare_labels
from harness.data.sets.layout import FileDataset
from harness.data.sets.own import describe

HEIGHT, WIDTH = 20, 30
#: The shape that every format draws: left, top, right, bottom in pixels, and its class.
BOX = (6, 4, 18, 14)


@pytest.fixture
def birds(tmp_path: Path) -> FileDataset:
    """One picture in a folder, classes with background last, no masks."""
    (tmp_path / "images" / "tree").mkdir(parents=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images" / "tree" / "a.JPG", "JPEG")
    (tmp_path / "train.txt").write_text("tree/a")
    (tmp_path / "dataset.toml").write_text('classes = ["left wing", "beak", "sky"]\nbackground = "sky"\n')
    return describe("birds", tmp_path)(tmp_path)


def read(dataset: FileDataset, form: str, kind: str, content: Any, **options: Any) -> np.ndarray:
    """The label by a file with some content."""
    ending = {
        "labelme": ".json",
        "voc": ".xml",
        "yolo": ".txt",
        "coco": ".json",
        "csv": ".csv",
        "xml": ".xml",
    }
    one = form in ("coco", "csv")
    file = dataset.root / "drawn" / (f"all{ending[form]}" if one else f"tree/a{ending[form]}")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    if form == "yolo" and not (dataset.root / "drawn" / "classes.txt").exists():
        (dataset.root / "drawn" / "classes.txt").write_text("beak\nleft wing\n")
    place = str(file) if one else "drawn"
    spec = LabelSpec(source="official", format=form, folder=place, **options)
    return dataset.read_official_label("tree/a", kind, spec)


def shape(kind: str, points: list[list[float]], label: str = "beak") -> dict[str, Any]:
    return {"label": label, "shape_type": kind, "points": points, "flags": {}}


def labelme(*shapes: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"version": "5.4.1", "imageHeight": HEIGHT, "imageWidth": WIDTH, "shapes": list(shapes)} | more


def coco(*annotations: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 3, "file_name": "photos/tree/a.jpg", "height": HEIGHT, "width": WIDTH}],
        "categories": [{"id": 40, "name": "beak"}, {"id": 7, "name": "left wing"}],
        "annotations": [{"id": 9, "image_id": 3, "category_id": 40} | a for a in annotations],
    } | more


def voc(corners: tuple[float, ...], name: str = "beak", size: tuple[int, int] = (WIDTH, HEIGHT)) -> str:
    sides = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
    whole = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f"<annotation>{whole}<object><name>{name}</name><bndbox>{sides}</bndbox></object></annotation>"


LEFT, TOP, RIGHT, BOTTOM = BOX
CORNERS = [[LEFT, TOP], [RIGHT, TOP], [RIGHT, BOTTOM], [LEFT, BOTTOM]]
YOLO = f"0 {(LEFT + RIGHT) / 2 / WIDTH} {(TOP + BOTTOM) / 2 / HEIGHT} {12 / WIDTH} {10 / HEIGHT}"
YOLO_POLYGON = "0 " + " ".join(f"{x / WIDTH:.6f} {y / HEIGHT:.6f}" for x, y in CORNERS)
FLAT = [float(v) for corner in CORNERS for v in corner]

BOXES: dict[str, tuple[str, Any]] = {
    "LabelMe rectangle": ("labelme", labelme(shape("rectangle", [[LEFT, TOP], [RIGHT, BOTTOM]]))),
    "LabelMe rectangle from below": ("labelme", labelme(shape("rectangle", [[RIGHT, BOTTOM], [LEFT, TOP]]))),
    "LabelMe rectangle of four": ("labelme", labelme(shape("rectangle", CORNERS))),
    "LabelMe polygon": ("labelme", labelme(shape("polygon", CORNERS))),
    "COCO": ("coco", coco({"bbox": [LEFT, TOP, 12, 10]})),
    "COCO with crowd": ("coco", coco({"bbox": [LEFT, TOP, 12, 10]}, {"iscrowd": 1, "bbox": [0, 0, 9, 9]})),
    "VOC": ("voc", voc((LEFT + 1, TOP + 1, RIGHT, BOTTOM))),
    "VOC without size": ("voc", voc((LEFT + 1, TOP + 1, RIGHT, BOTTOM), size=(0, 0))),
    "YOLO": ("yolo", YOLO + "\n\n"),
    "YOLO polygon": ("yolo", YOLO_POLYGON),
}


@pytest.mark.parametrize("name", BOXES)
def test_boxes_of_every_tool_are_the_same_label(name: str, birds: FileDataset) -> None:
    label = read(birds, *BOXES[name][:1], "box", BOXES[name][1], box_inside="fill")
    wanted = np.full((HEIGHT, WIDTH), 2, np.uint8)
    wanted[TOP:BOTTOM, LEFT:RIGHT] = 1
    np.testing.assert_array_equal(label, wanted)


@pytest.mark.parametrize(
    ("form", "content"),
    [
        ("labelme", labelme(shape("polygon", CORNERS))),
        ("coco", coco({"segmentation": [FLAT]})),
        ("coco", coco({"segmentation": FLAT, "bbox": None})),
        ("coco", coco({"segmentation": [FLAT, [1.0, 1.0, 2.0, 2.0]], "area": None})),
        (
            "coco",
            coco({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [124, *[10, 10] * 11, 10, 246]}}),
        ),
        ("yolo", YOLO_POLYGON),
    ],
)
def test_polygons_of_every_tool_are_the_same_area(form: str, content: Any, birds: FileDataset) -> None:
    label = read(birds, form, "block", content)
    wanted = np.full((HEIGHT, WIDTH), 254, np.uint8)
    wanted[TOP:BOTTOM, LEFT:RIGHT] = 1
    np.testing.assert_array_equal(label, wanted)


def test_labelme_scribbles_are_lines_points_and_areas(birds: FileDataset) -> None:
    content = labelme(
        shape("linestrip", [[2, 2], [20.5, 2], [20.5, 17]], "left wing"),
        shape("line", [[3, 10], [9, 10]], "sky"),
        shape("point", [[25, 5]]),
        shape("circle", [[10, 15], [12, 15]], "sky"),
    )
    label = read(birds, "labelme", "scribble", content, stroke=1)
    assert label[2, 10] == 0
    assert label[10, 5] == 2
    assert label[5, 25] == 1
    assert (label[14:16, 9:11] == 2).all()
    assert read(birds, "labelme", "scribble", labelme()).tolist() == [[254] * WIDTH] * HEIGHT
    points = labelme(shape("points", [[4, 4], [5, 9]]), shape("point", [[7, 7]], "sky"))
    label = read(birds, "labelme", "point", points, stroke=1)
    assert [label[4, 4], label[9, 5], label[7, 7], (label < 254).sum()] == [1, 1, 2, 3]


@pytest.mark.parametrize(
    "text",
    [
        "picture,x,y,class\ntree/a.jpg,4,9.5,beak\ntree/a.jpg,7,3,left wing\nother,1,1,sky\n",
        "class;y;image;x;by\nbeak;9.5;C:\\p\\tree\\a.jpg;4;me\nleft wing;3;C:\\p\\tree\\a.jpg;7;me\n",
        "tree/a\t4\t9.5\tbeak\ntree/a\t7\t3\tleft wing\n",
    ],
)
def test_clicks_stand_in_a_csv_with_class_names(text: str, birds: FileDataset) -> None:
    label = read(birds, "csv", "point", text, stroke=1)
    assert label[9, 4] == 1 or label[10, 4] == 1
    assert label[3, 7] == 0
    assert (label < 254).sum() == 2
    label = read(birds, "csv", "point", "picture,x,y,class\ntree/a,,,\n")
    assert (label == 254).all()


def test_scribblesup_with_decimals(birds: FileDataset) -> None:
    points = "".join(f"<point><X>{x}</X><Y>{y}</Y></point>" for x, y in ((2.5, 3.25), (9.75, 3.0), (9.5, 12)))
    text = (
        f"<annotation><size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
        f"<polygon><tag>beak</tag>{points}</polygon></annotation>"
    )
    label = read(birds, "xml", "scribble", text, stroke=1)
    assert label[3, 5] == 1
    assert label[8, 9] == 1
    with pytest.raises(UserError, match="a point at nan"):
        read(birds, "xml", "scribble", text.replace("9.75", "nan"))


def outside(points: list[list[float]]) -> dict[str, tuple[str, str, Any]]:
    return {
        "LabelMe": ("labelme", "block", labelme(shape("polygon", points))),
        "COCO polygon": ("coco", "block", coco({"segmentation": [[v for p in points for v in p]]})),
        "LabelMe line": ("labelme", "scribble", labelme(shape("linestrip", points))),
        "LabelMe points": ("labelme", "point", labelme(*(shape("point", [p]) for p in points))),
        "CSV": ("csv", "point", "\n".join(f"tree/a,{x},{y},beak" for x, y in points)),
    }


BEYOND = outside([[5, 5], [WIDTH + 3, 5], [9, 9]])
SHARES = outside([[0.1, 0.2], [0.5, 0.2], [0.5, 0.9]])
#: Format, kind, content, what is said.
WRONG: dict[str, tuple[str, str, Any, str]] = {
    **{f"outside, {k}": (*v, "outside the picture of 30x20") for k, v in BEYOND.items()},
    **{f"shares, {k}": (*v, "pixels are meant") for k, v in SHARES.items()},
    "outside, COCO": ("coco", "box", coco({"bbox": [20, 4, 13, 5]}), "outside the picture"),
    "outside, VOC": ("voc", "box", voc((3, 4, 9, HEIGHT + 4)), "outside the picture"),
    "outside above, VOC": ("voc", "box", voc((-9, 4, 9, 9)), "outside the picture"),
    "outside, YOLO": ("yolo", "box", "0 0.9 0.5 0.4 0.2", "outside the picture"),
    "shares, COCO": ("coco", "box", coco({"bbox": [0.2, 0.1, 0.3, 0.6]}), "pixels are meant"),
    "shares of one, COCO": ("coco", "box", coco({"bbox": [0, 0, 1, 1]}), "pixels are meant"),
    "shares, VOC": ("voc", "box", voc((0.2, 0.1, 0.5, 0.7)), "swapped corners|pixels are meant|outside"),
    "pixels, YOLO": ("yolo", "box", "0 12 9 12 10", "no share of the picture"),
    "pixels, YOLO polygon": ("yolo", "block", "0 1 1 5 1 5 8", "no share of the picture"),
    "swapped, VOC": ("voc", "box", voc((18, 4, 6, 14)), "swapped corners"),
    "swapped below, VOC": ("voc", "box", voc((6, 14, 18, 4)), "swapped corners"),
    "swapped, COCO": ("coco", "box", coco({"bbox": [18, 4, -12, 10]}), "swapped corners"),
    "swapped, YOLO": ("yolo", "box", "0 0.5 0.5 -0.001 0.2", "swapped corners"),
    "flat, LabelMe": ("labelme", "box", labelme(shape("rectangle", [[5, 5], [5, 9]])), "nothing inside"),
    "nowhere, LabelMe": ("labelme", "point", labelme(shape("point", [[1e999, 3]])), "JSON|place"),
    "unknown class, LabelMe": ("labelme", "point", labelme(shape("point", [[3, 3]], "baek")), "'baek'"),
    "unknown class, VOC": ("voc", "box", voc((3, 4, 9, 9), "Beak"), "unknown class 'Beak'"),
    "unknown class, CSV": ("csv", "point", "tree/a,3,3,wing", "unknown class 'wing'"),
    "unknown class, COCO": (
        "coco",
        "box",
        coco({"bbox": [1, 2, 3, 4]}, categories=[{"id": 40, "name": "bill"}]),
        "unknown class 'bill'",
    ),
    "no such category, COCO": ("coco", "box", coco({"bbox": [1, 2, 3, 4], "category_id": 5}), "category 5"),
    "no such class, YOLO": ("yolo", "box", "2 0.5 0.5 0.2 0.2", "class 2 is none of the 2 classes"),
    "no number, YOLO": ("yolo", "box", "beak 0.5 0.5 0.2 0.2", "not an object"),
    "five numbers, YOLO": ("yolo", "box", "0 0.5 0.5 0.2 0.2 0.9", "not an object"),
    "other size, LabelMe": ("labelme", "box", labelme(imageWidth=31), "31x20 pixels, ours is 30x20"),
    "turned, LabelMe": ("labelme", "box", labelme(imageWidth=HEIGHT, imageHeight=WIDTH), "exif"),
    "other size, VOC": ("voc", "box", voc((3, 4, 9, 9), size=(300, 200)), "300x200 pixels, ours is 30x20"),
    "other picture, COCO": ("coco", "box", coco(images=[]), "knows no picture"),
    "other picture, CSV": ("csv", "point", "tree/b,3,3,beak", "no clicks for picture"),
    "no box, COCO": ("coco", "box", coco({"segmentation": [FLAT]}), "without a box"),
    "no outline, COCO": ("coco", "block", coco({"bbox": [1, 2, 3, 4]}), "annotation 9"),
    "odd outline, COCO": ("coco", "block", coco({"segmentation": [FLAT[:-1]]}), "7 numbers"),
    "no categories, COCO": ("coco", "box", {"images": [], "annotations": []}, "'categories' is missing"),
    "a list, COCO": ("coco", "box", [], "a list"),
    "text, LabelMe": ("labelme", "box", "{", "JSON"),
    "no shapes, LabelMe": ("labelme", "box", {"shapes": 5}, "no list of shapes"),
    "no points, LabelMe": ("labelme", "box", labelme(shape("rectangle", [])), "not pairs of x and y"),
    "mask, LabelMe": ("labelme", "block", labelme(shape("mask", [[1, 1], [5, 5]])), "type 'mask'"),
    "text, VOC": ("voc", "box", "<annotation>", "not a VOC annotation"),
    "boxes under points": ("labelme", "point", labelme(shape("rectangle", CORNERS)), "the file has boxes"),
    "lines under boxes": ("labelme", "box", labelme(shape("line", CORNERS[:2])), "the file has lines"),
    "two columns, CSV": ("csv", "point", "tree/a,3", "not a click"),
    "no place, CSV": ("csv", "point", "tree/a,3,left,beak", "is no place"),
    "header, CSV": ("csv", "point", "picture,x,y,colour\ntree/a,3,3,beak", "does not name"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_meant_is_refused_with_file_and_picture(name: str, birds: FileDataset) -> None:
    form, kind, content, problem = WRONG[name]
    with pytest.raises(UserError, match=problem) as caught:
        read(birds, form, kind, content)
    assert "drawn" in str(caught.value.where)
    if form == "coco" or not any(w in name for w in ("text", "a list", "header")):
        assert "a." in str(caught.value.where) or "all." in str(caught.value.where)


def test_yolo_numbers_are_never_guessed(birds: FileDataset) -> None:
    (birds.root / "drawn" / "tree").mkdir(parents=True)
    (birds.root / "drawn" / "tree" / "a.txt").write_text(YOLO)
    spec = LabelSpec(source="official", format="yolo", folder="drawn")
    with pytest.raises(UserError, match=r"not said which classes(.|\n)*classes\.txt"):
        birds.read_official_label("tree/a", "box", spec)
    (birds.root / "drawn" / "tree" / "a.txt").unlink()
    with pytest.raises(UserError, match=r"file is missing(.|\n)*picture tree/a"):
        birds.read_official_label("tree/a", "box", spec)


@pytest.mark.parametrize(
    ("form", "kind"), [("coco", "scribble"), ("voc", "block"), ("csv", "box"), ("yolo", "point")]
)
def test_a_format_that_cannot_carry_a_kind_is_refused(form: str, kind: str, birds: FileDataset) -> None:
    with pytest.raises(UserError, match=f"format '{form}' for {kind} labels"):
        birds.read_official_label("tree/a", kind, LabelSpec(source="official", format=form, folder="drawn"))


def test_the_verb_imports_them(birds: FileDataset, tmp_path: Path, capsys) -> None:
    write_index(tmp_path / "masks" / "tree" / "a.png", np.full((HEIGHT, WIDTH), 2, np.uint8))
    read(birds, "labelme", "box", labelme(shape("rectangle", CORNERS)))
    command = ["data", "labels", "birds", "--kind", "box", "--format", "labelme", "--folder", "drawn"]
    command += ["--data-root", f"birds={birds.root}", "--out", str(tmp_path / "out")]
    assert invoke(cli, command) == 0, capsys.readouterr().err
    assert (tmp_path / "out" / "tree" / "a.png").is_file()


@pytest.mark.parametrize("name", BOXES)
def test_a_box_is_a_tag_of_its_class_whatever_is_inside(
    name: str, birds: FileDataset, tmp_path: Path
) -> None:
    form, content = BOXES[name]
    label = read(birds, form, "box", content, box_inside="unlabelled")
    assert set(np.unique(label)) == {2, 254}
    place = "drawn/all.json" if form == "coco" else "drawn"
    spec = LabelSpec(source="official", format=form, folder=place, box_inside="unlabelled")
    store = prepare_labels(birds, "train", "box", spec, cache=tmp_path / "cache")
    assert store.tags.tolist() == [[0, 1, 1]]


def test_another_list_of_yolo_classes_prepares_labels_anew(birds: FileDataset, tmp_path: Path) -> None:
    read(birds, "yolo", "block", YOLO_POLYGON)
    spec = LabelSpec(source="official", format="yolo", folder="drawn")
    found = []
    for text in ("beak\nleft wing\n", "left wing\nbeak\nx\n"):
        (birds.root / "drawn" / "classes.txt").write_text(text)
        store = prepare_labels(birds, "train", "block", spec, cache=tmp_path / "cache")
        found.append(np.flatnonzero(store.tags[0]).tolist())
    assert found == [[1], [0]]


def strokes(points: list[tuple[float, float]], form: str) -> str:
    if form == "clicks":
        return json.dumps({"tree/a": [{"x": x, "y": y, "cls": 1} for x, y in points]})
    if form == "polyline":
        return "1," + ",".join(f"{x},{y}" for x, y in points)
    inside = "".join(f"<point><X>{x}</X><Y>{y}</Y></point>" for x, y in points)
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
    return f"<a>{size}<polygon><tag>beak</tag>{inside}</polygon></a>"


@pytest.mark.parametrize(
    ("points", "problem"),
    [
        ([(0.1, 0.2), (0.5, 0.9)], "pixels are meant"),
        ([(5, 5), (WIDTH + 2, 5), (4, 4)], "outside the picture of 30x20"),
        ([(-3, 5), (4, 4), (5, 5)], "outside"),
        ([(5, 5), (5, HEIGHT + 1.5), (6, 6)], "outside"),
        ([(0, 0), (WIDTH, HEIGHT), (1, 1)], ""),
    ],
)
@pytest.mark.parametrize(
    ("form", "kind", "name"),
    [("xml", "scribble", "a.xml"), ("polyline", "scribble", "a.txt"), ("clicks", "point", "../all.json")],
)
def test_strokes_and_clicks_of_own_pictures_lie_on_them(
    form: str, kind: str, name: str, points: list[tuple[float, float]], problem: str, birds: FileDataset
) -> None:
    folder = birds.root / "drawn" / "tree"
    folder.mkdir(parents=True)
    (folder / name).write_text(strokes(points, form))
    place = "drawn/all.json" if form == "clicks" else "drawn"
    spec = LabelSpec(source="official", format=form, folder=place)
    if not problem:
        assert (birds.read_official_label("tree/a", kind, spec) == 1).any()
        return
    with pytest.raises(UserError, match=problem) as caught:
        birds.read_official_label("tree/a", kind, spec)
    assert "drawn" in str(caught.value.where)
    assert "tree/a" in str(caught.value.where)


def test_official_files_may_have_strays_but_not_half_of_them(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1,4,4,9,4,14,60\n")
    spec = LabelSpec(source="official", format="polyline", folder=".")
    names = {"nothing": 0, "beak": 1}
    label = read_label(tmp_path, "a", "scribble", spec, size=(HEIGHT, WIDTH), names=names)
    assert (label == 1).any()
    (tmp_path / "a.txt").write_text("1,4,4,90,4,14,60\n")
    with pytest.raises(UserError, match="and so do 1 more"):
        read_label(tmp_path, "a", "scribble", spec, size=(HEIGHT, WIDTH), names=names)


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("data.yaml", "train: images\nnames: [beak, left wing]\n"),
        ("drawn/dataset.yml", "names:\n  0: beak\n  1: left wing\n"),
        ("drawn/tree/data.yaml", "names:\n  '1': left wing\n  '0': beak\nnc: 2\n"),
        ("drawn/obj.names", "beak\nleft wing\n"),
    ],
)
def test_yolo_names_stand_in_lists_of_every_tool(place: str, text: str, birds: FileDataset) -> None:
    usual = read(birds, "yolo", "block", YOLO_POLYGON)
    (birds.root / "drawn" / "classes.txt").unlink()
    (birds.root / place).write_text(text)
    file = birds.root / "drawn" / "tree" / "a.txt"
    spec = LabelSpec(source="official", format="yolo", folder="drawn")
    assert (birds.read_official_label("tree/a", "block", spec) == usual).all()
    assert birds.root / place in birds.label_files("tree/a", spec), "another list prepares labels anew"
    assert file.is_file()


@pytest.mark.parametrize(
    "text", ["names: 3", "nc: 2", "names: {1: beak}", "names: [1, 2]", "names: [", "- beak", "", "&a [*a]"]
)
def test_yaml_without_names_is_refused(text: str, birds: FileDataset) -> None:
    read(birds, "yolo", "block", YOLO_POLYGON)
    (birds.root / "drawn" / "classes.txt").unlink()
    (birds.root / "drawn" / "data.yaml").write_text(text)
    spec = LabelSpec(source="official", format="yolo", folder="drawn")
    with pytest.raises(UserError) as error:
        birds.read_official_label("tree/a", "block", spec)
    assert "data.yaml" in str(error.value)
    assert error.value.remedy
