"""``wsss data labels`` and ``wsss data show``: simulating, importing, shortening, statistics, sheets."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.basics.errors import UserError
from harness.basics.registry import DATASETS
from harness.cli.main import cli, invoke
from harness.data.base import LabelSpec
from harness.data.images import write_index
from harness.data.labels import label_tools
from harness.data.labels.importers import coco_boxes, draw_boxes, read_onehot, voc_boxes
from harness.data.labels.label_statistics import FARTHEST, boundary_distance, count_label
from harness.data.lists import read_tags
from harness.data.prepare.label_making import Making, make_labels
from harness.data.prepare.miniatures import write_miniature
from harness.data.sets.coco2014 import COCO2014, contiguous
from harness.data.sets.voc2012 import VOC2012

NAMES = ("voc2012", "coco2014", "cityscapes", "ade20k", "msrc-objects", "camvid")


def wsss(*arguments: object) -> int:
    return invoke(cli, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> dict[str, Path]:
    return {n: write_miniature(n, tmp_path_factory.mktemp(n), train=4, val=1) for n in NAMES}


@pytest.fixture(scope="module")
def voc(roots) -> VOC2012:
    return VOC2012(roots["voc2012"])


def stored(folder: Path) -> dict[str, np.ndarray]:
    return {p.stem: np.array(Image.open(p)) for p in sorted(folder.glob("*.png")) if p.stem != "statistics"}


# --- making ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["scribble", "point", "block", "box"])
def test_simulated_labels_lie_on_their_class_and_can_be_trained_on(
    name: str, kind: str, roots, tmp_path: Path
):
    dataset = DATASETS.get(name)(roots[name])
    code = wsss("data", "labels", name, "--kind", kind, "--data-root", roots[name], "--out", tmp_path)
    if kind == "box" and dataset.info.background is None:
        assert code == 2
        return
    assert code == 0
    labels = stored(tmp_path)
    assert sorted(labels) == sorted(dataset.ids("train"))
    for image_id, label in labels.items():
        mask = dataset.read_mask(image_id, "train")
        assert label.shape == mask.shape
        drawn = label != 255
        assert drawn.any()
        assert not (drawn & (mask == 255)).any(), "never on void"
        if kind != "box":
            assert (label[drawn] == mask[drawn]).all()
        spec = LabelSpec(source="official", format="png", folder=str(tmp_path), unlabelled=255)
        read = dataset.read_official_label(image_id, kind, spec)  # type: ignore[arg-type]
        np.testing.assert_array_equal(read, np.where(drawn, label, 254))
    note = json.loads((tmp_path / "labels.json").read_text())
    assert note["unlabelled"] == 255
    assert 0 < note["statistics"]["labelled_share"] < 1
    pixels = sum(label.size for label in labels.values())
    share = sum(int((label != 255).sum()) for label in labels.values()) / pixels
    assert note["statistics"]["labelled_share"] == pytest.approx(share)
    with Image.open(tmp_path / "statistics.png") as picture:
        assert picture.width > 600


def test_hashes_name_the_maker_and_the_result(voc: VOC2012, tmp_path: Path):
    def made(name: str, **changes: object):
        return make_labels(voc, "train", Making(kind="scribble", **changes), tmp_path / name)  # type: ignore[arg-type]

    first, again = made("a"), made("b")
    assert (first.maker, first.result) == (again.maker, again.result)
    assert stored(tmp_path / "a").keys() == stored(tmp_path / "b").keys()
    other = made("c", spec=LabelSpec(seed=1))
    assert first.maker != other.maker
    assert first.result != other.result
    place = made("d", place="elsewhere")
    assert place.maker == first.maker, "where files lie plays no role"


def test_labels_do_not_depend_on_workers(voc: VOC2012, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("harness.data.parallel._WORTH_PROCESSES", 1)
    making = Making(kind="scribble", keep=0.5, strokes=0.7, images=0.75)
    results = {make_labels(voc, "train", making, tmp_path / str(n), workers=n).result for n in (0, 2)}
    assert len(results) == 1
    one, two = stored(tmp_path / "0"), stored(tmp_path / "2")
    for image_id in one:
        np.testing.assert_array_equal(one[image_id], two[image_id])


def test_a_share_of_the_images_keeps_its_labels_and_smaller_shares_are_part_of_larger(voc: VOC2012, tmp_path):
    ids = [f"id_{i}" for i in range(100)]
    half, most = (label_tools.labelled_images(ids, share, 0) for share in (0.5, 0.8))
    assert (len(half), len(most)) == (50, 80)
    assert half < most
    assert half == label_tools.labelled_images(ids[::-1], 0.5, 0)
    assert half != label_tools.labelled_images(ids, 0.5, 1)
    made = make_labels(voc, "train", Making(kind="point", images=0.5), tmp_path)
    assert made.counts.without_label == 2
    assert sum((label == 255).all() for label in stored(tmp_path).values()) == 2


# --- changing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0.1, 0.3, 0.5, 1.0])
def test_a_stroke_keeps_one_piece_of_the_length_asked_for(keep: float):
    label = np.full((40, 220), 254, np.uint8)
    label[5:8, 10:210] = 3
    label[20:35, 100] = 7
    shorter = label_tools.shorten(label, keep, image_id="a", seed=0, num_classes=9)
    assert (shorter[shorter != 254] == label[shorter != 254]).all()
    for kind, axis, length in ((3, 0, 200), (7, 1, 15)):
        along = np.flatnonzero((shorter == kind).any(axis))
        assert len(along) == along[-1] - along[0] + 1, "one piece"
        assert len(along) == pytest.approx(keep * length, abs=2.5)
    again = label_tools.shorten(label, keep, image_id="a", seed=0, num_classes=9)
    np.testing.assert_array_equal(shorter, again)
    if keep < 1:
        other = label_tools.shorten(label, keep, image_id="b", seed=0, num_classes=9)
        assert (other != shorter).any()


def test_length_is_measured_along_a_bent_stroke():
    label = np.full((60, 60), 254, np.uint8)
    label[5, 5:55] = label[5:55, 5] = label[54, 5:55] = 1  # a bracket 147 pixels long
    shorter = label_tools.shorten(label, 1 / 3, image_id="a", seed=3, num_classes=2)
    assert np.count_nonzero(shorter == 1) == pytest.approx(49, abs=4)


def test_dropped_strokes_go_as_a_whole():
    label = np.full((20, 400), 254, np.uint8)
    label[4:16, np.arange(400) % 8 < 4] = 2
    fewer = label_tools.drop(label, 0.5, image_id="a", seed=0, num_classes=3)
    kept = [set(np.unique(fewer[4:16, x : x + 4]).tolist()) for x in range(0, 400, 8)]
    assert all(k in ({2}, {254}) for k in kept)
    assert 12 < sum(k == {2} for k in kept) < 38


@pytest.mark.parametrize("clicks", [20, 50, 100])
def test_clicks_by_number_lie_on_their_class_and_are_as_many_as_asked(clicks: int):
    mask = np.full((64, 128), 255, np.uint8)
    mask[:40] = 0
    mask[40:50, :100] = 7
    mask[60, 3] = 18
    label = label_tools.n_clicks(mask, clicks, image_id="a", seed=0, num_classes=19)
    drawn = label != 254
    assert (label[drawn] == mask[drawn]).all()
    assert set(np.unique(label[drawn])) == {0, 7, 18}
    rest = clicks // 3 - 1 + (clicks % 3 > 2)  # class 18 has a single pixel
    assert drawn.sum() == clicks - rest
    empty = label_tools.n_clicks(np.full((4, 4), 255, np.uint8), clicks, image_id="a", seed=0, num_classes=19)
    assert (empty == 254).all()


# --- importing ---------------------------------------------------------------------------------------


def test_png_labels_need_to_be_told_what_means_not_annotated(voc: VOC2012, roots, tmp_path: Path, capsys):
    for image_id in voc.ids("train"):
        label = np.full(voc.read_image(image_id).shape[:2], 21, np.uint8)
        label[3, 4] = 20
        write_index(tmp_path / "agmm" / f"{image_id}.png", label)
    command = [
        "data",
        "labels",
        "voc2012",
        "--kind",
        "point",
        "--format",
        "png",
        "--data-root",
        roots["voc2012"],
    ]
    command += ["--folder", tmp_path / "agmm", "--out", tmp_path / "out"]
    assert wsss(*command) == 2
    assert "not said which value" in capsys.readouterr().err
    assert wsss(*command, "--unlabelled", 255) == 2
    assert "[21]" in capsys.readouterr().err
    assert wsss(*command, "--unlabelled", 21) == 0
    for label in stored(tmp_path / "out").values():
        assert label[3, 4] == 20
        assert (label != 255).sum() == 1


def test_voc_boxes_are_pixels_counted_from_one(tmp_path: Path):
    path = tmp_path / "a.xml"
    path.write_text(
        "<annotation><object><name>cat</name><bndbox><xmin>3</xmin><ymin>2</ymin><xmax>6</xmax><ymax>4</ymax>"
        "</bndbox><part><name>head</name></part></object></annotation>"
    )
    boxes = voc_boxes(path, {"background": 0, "cat": 8})
    assert boxes == [(8, 2, 1, 6, 4)]
    label = draw_boxes(boxes, (6, 9), 0, "fill")
    assert (label[1:4, 2:6] == 8).all()
    assert (label == 8).sum() == 12
    assert (label == 0).sum() == 54 - 12
    assert set(np.unique(draw_boxes(boxes, (6, 9), 0, "unlabelled"))) == {0, 254}
    with pytest.raises(UserError, match="unknown class 'cat'"):
        voc_boxes(path, {"background": 0, "cow": 8})
    path.write_text("<annotation><object><name>cat</name></object></annotation>")
    with pytest.raises(UserError, match="not a VOC annotation"):
        voc_boxes(path, {"cat": 8})


def test_coco_boxes_leave_crowds_out(roots, tmp_path: Path, capsys):
    dataset = COCO2014(roots["coco2014"])
    file = dataset.root / "annotations" / "instances_train2014.json"
    content = json.loads(file.read_text())
    for number, annotation in enumerate(content["annotations"]):
        annotation["iscrowd"] = int(number == 0)
    changed = tmp_path / "instances_train2014.json"
    changed.write_text(json.dumps(content))
    boxes = coco_boxes(changed, contiguous().tobytes())
    assert sum(map(len, boxes.values())) == len(content["annotations"]) - 1
    out = tmp_path / "out"
    assert (
        wsss(
            *("data", "labels", "coco2014", "--kind", "box", "--format", "coco-boxes", "--folder", changed),
            *("--box-inside", "fill", "--data-root", roots["coco2014"], "--out", out),
        )
        == 0
    )
    for image_id, label in stored(out).items():
        own = boxes[int(image_id[-12:])]
        assert {int(b[0]) for b in own} >= set(np.unique(label).tolist()) - {0}
        for kind, left, top, right, bottom in sorted(own, key=lambda b: (b[3] - b[1]) * (b[4] - b[2]))[:1]:
            assert (label[int(top) : int(bottom), int(left) : int(right)] == kind).all()
    assert (
        wsss(*("data", "labels", "coco2014", "--kind", "point", "--format", "coco-boxes", "--out", out)) == 2
    )
    capsys.readouterr()


def test_one_hot_tags_are_read_without_running_what_a_file_holds(tmp_path: Path):
    path = tmp_path / "cls_labels_onehot.npy"
    content = {"a": np.eye(20, dtype=np.float32)[4], "b": np.zeros(20, np.uint8)}
    np.save(path, content, allow_pickle=True)  # type: ignore[arg-type]
    tags = read_onehot(path, 21)
    assert np.flatnonzero(tags["a"]).tolist() == [5]
    assert not tags["b"].any()
    with pytest.raises(UserError, match="rows of 20 classes; 81, or 80 without background, are wanted"):
        read_onehot(path, 81)

    class Evil:
        def __reduce__(self):
            return (eval, ("1 / 0",))

    np.save(path, Evil(), allow_pickle=True)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"asks for builtins\.eval"):
        read_onehot(path, 21)
    np.save(path, np.zeros((3, 20)))
    with pytest.raises(UserError, match="not a dict"):
        read_onehot(path, 21)
    path.write_bytes(pickle.dumps({}))
    with pytest.raises(UserError, match="not a file of one-hot"):
        read_onehot(path, 21)


@pytest.mark.parametrize("source", ["simulated", "onehot"])
def test_image_tags_become_a_file_that_the_reader_takes(source: str, voc: VOC2012, roots, tmp_path: Path):
    command = [
        "data",
        "labels",
        "voc2012",
        "--kind",
        "image",
        "--data-root",
        roots["voc2012"],
        "--out",
        tmp_path,
    ]
    if source == "onehot":
        rows = {i: voc.tags([i])[0, 1:].astype(np.float32) for i in voc.ids("train")}
        np.save(tmp_path / "rows.npy", rows, allow_pickle=True)  # type: ignore[arg-type]
        command += ["--format", "onehot", "--folder", tmp_path / "rows.npy"]
    assert wsss(*command) == 0
    tags = read_tags(tmp_path / "tags.npz")
    for image_id in voc.ids("train"):
        np.testing.assert_array_equal(tags[image_id], voc.tags([image_id])[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kind", "image", "--format", "png"], "one-hot"),
        (["--kind", "scribble", "--format", "voc-boxes"], "carry box labels"),
        (["--kind", "scribble", "--clicks", "5"], "simulated points"),
        (["--kind", "box", "--format", "voc-boxes", "--folder", "nowhere"], "no such folder"),
        (["--kind", "scribble", "--format", "clicks"], "format 'clicks'"),
    ],
)
def test_what_does_not_fit_together_is_refused(arguments: list[str], message: str, roots, tmp_path, capsys):
    command = ["data", "labels", "voc2012", "--data-root", roots["voc2012"], "--out", tmp_path / "out"]
    assert wsss(*command, *arguments) == 2
    assert message in capsys.readouterr().err


# --- statistics and sheets ---------------------------------------------------------------------------


def test_distance_counts_whole_pixels_to_another_value():
    mask = np.zeros((7, 90), np.uint8)
    mask[:, 70:] = 5
    near = boundary_distance(mask)
    assert near[3, 66:74].tolist() == [4, 3, 2, 1, 1, 2, 3, 4]
    assert near[3, 0] == FARTHEST
    assert (boundary_distance(np.zeros((3, 3), np.uint8)) == FARTHEST).all()


def test_counts_are_those_of_the_pixels():
    mask = np.zeros((7, 90), np.uint8)
    mask[:, 70:] = 1
    label = np.full_like(mask, 254)
    label[3, 10:13], label[3, 75:80] = 0, 1
    counts = count_label(label, mask, 3, 0) + count_label(np.full_like(mask, 254), mask, 3, 0)
    assert counts.labelled.tolist() == [3, 5, 0]
    assert counts.images_with.tolist() == [1, 1, 0]
    assert (counts.images, counts.without_label, counts.pixels) == (2, 1, 1260)
    assert counts.distance.sum(1).tolist() == [5, 2 * 7 * 20], "background is no object"
    ours, every = counts.mean_distance()
    assert ours == pytest.approx(8)
    assert every == pytest.approx(10.5)


@pytest.mark.parametrize("name", ["voc2012", "cityscapes"])
def test_a_contact_sheet_shows_every_kind_and_given_folders(name: str, roots, tmp_path: Path):
    out, folder = tmp_path / "sheet.png", tmp_path / "points"
    assert wsss("data", "labels", name, "--kind", "point", "--data-root", roots[name], "--out", folder) == 0
    command = ["data", "show", name, "--number", 3, "--data-root", roots[name], "--out", out]
    assert wsss(*command) == 0
    with Image.open(out) as image:
        columns = (image.width - 6) // 226
        assert columns == (6 if name == "voc2012" else 5)
    assert wsss(*command, "--labels", folder) == 0
    with Image.open(out) as image:
        assert (image.width - 6) // 226 == columns + 1
    assert wsss(*command, "--id", "nothing") == 2


@pytest.mark.real
def test_the_field_s_one_hot_file_is_that_of_the_packaged_tags(real_data: Path):
    tags = read_onehot(real_data / "meta" / "voc" / "cls_labels_onehot.npy", 21)
    dataset = VOC2012(real_data / "voc")
    ids = dataset.ids("train_aug")
    np.testing.assert_array_equal(np.stack([tags[i] for i in ids]), dataset.tags(ids))
