"""The readers of MSRC and CamVid: released folders and one folder each, values and colours, lists, tags."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.basics.errors import UserError
from harness.cli.main import cli, invoke
from harness.data.images import write_index
from harness.data.prepare.miniatures import write_miniature
from harness.data.sense import of_masks
from harness.data.sets.camvid import CamVid
from harness.data.sets.msrc import MSRC, THINGS, MSRCObjects

NUMBERS = np.arange(24, dtype=np.uint8).reshape(4, 6)
COLOURS = np.array([(0, 0, 0), *(t.colour for t in THINGS)], np.uint8)
TWENTY_ONE = [t.name for t in THINGS if t.name not in ("horse", "mountain")]
BEHIND = {"building", "grass", "tree", "sky", "mountain", "water", "road"}
OBJECTS = [name for name in TWENTY_ONE if name not in BEHIND]


def picture(path: Path, shape: tuple[int, int] = (4, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", shape[::-1], (9, 9, 9)).save(path)


@pytest.fixture(params=["released", "cleaned"])
def msrc(request, tmp_path: Path) -> Path:
    """Two pictures that show everything, one of them in val, and one that is in no list."""
    for image_id in ("1_1_s", "1_10_s", "1_3_s"):
        if request.param == "released":
            picture(tmp_path / "Images" / f"{image_id}.bmp")
            (tmp_path / "GroundTruth").mkdir(exist_ok=True)
            Image.fromarray(COLOURS[NUMBERS]).save(tmp_path / "GroundTruth" / f"{image_id}_GT.bmp")
        else:
            picture(tmp_path / "images" / f"{image_id}.jpg")
            write_index(tmp_path / "masks" / f"{image_id}.png", NUMBERS)
    return tmp_path


def names(dataset: MSRC) -> dict[str, str]:
    """What each of the 24 values is read as."""
    mask = dataset.read_mask("1_1_s", "train").ravel()
    words = ["unlabelled", *(t.name for t in THINGS)]
    return {w: "void" if k == 255 else dataset.info.classes[k] for w, k in zip(words, mask, strict=True)}


def test_both_kinds_of_masks_have_the_classes_of_the_literature(msrc):
    dataset = MSRC(msrc)
    assert dataset.info.classes == tuple(TWENTY_ONE)
    assert dataset.info.background is None
    found = names(dataset)
    assert {w for w, n in found.items() if n == "void"} == {"unlabelled", "horse", "mountain"}
    assert all(w == n for w, n in found.items() if n != "void")
    assert dataset.read_image("1_1_s").shape == (4, 6, 3)


def test_objects_stand_before_the_surroundings(msrc):
    dataset = MSRCObjects(msrc)
    assert dataset.info.classes == ("background", *OBJECTS)
    assert len(OBJECTS) == 15
    found = names(dataset)
    assert {w for w, n in found.items() if n == "void"} == {"unlabelled", "horse"}
    assert {w for w, n in found.items() if n == "background"} == BEHIND
    assert dataset.tags(["1_1_s"]).tolist() == [[0] + [1] * 15]


def test_lists_are_ours_and_what_is_left_is_for_testing(msrc):
    for cls in (MSRC, MSRCObjects):
        dataset = cls(msrc)
        assert (len(dataset.ids("train")), len(dataset.ids("val"))) == (334, 99)
        assert not set(dataset.ids("train")) & set(dataset.ids("val"))
        assert dataset.ids("test") == ("1_3_s",)
        assert {i.split("_")[0] for i in dataset.ids("train")} == {str(g) for g in range(1, 21)}


def test_a_folder_may_have_a_split_of_its_own(msrc):
    other = {"train": "1_10_s\n1_3_s\n", "val": "1_1_s\n"}  # ours has the first in val
    (msrc / "lists").mkdir()
    (msrc / "lists" / "train.txt").write_text(other["train"])
    with pytest.raises(UserError, match="belong to 'val'"):
        MSRC(msrc).ids("train")
    (msrc / "lists" / "val.txt").write_text(other["val"])
    assert MSRC(msrc).ids("train") == ("1_10_s", "1_3_s")
    assert MSRCObjects(msrc).ids("val") == ("1_1_s",)
    with pytest.raises(UserError, match="none is left for test"):
        MSRC(msrc).ids("test")


def test_colours_and_numbers_that_are_none_are_refused(tmp_path):
    picture(tmp_path / "Images" / "1_1_s.bmp")
    picture(tmp_path / "GroundTruth" / "1_1_s_GT.bmp")  # colour 9, 9, 9
    with pytest.raises(UserError, match=r"colour \[9, 9, 9\].*24 pixels") as caught:
        MSRC(tmp_path).read_mask("1_1_s", "train")
    assert "from the release as they are" in caught.value.remedy
    with pytest.raises(UserError, match="the mask is missing"):
        MSRC(tmp_path).read_mask("1_2_s", "train")
    write_index(tmp_path / "masks" / "1_1_s.png", NUMBERS + 5)
    with pytest.raises(
        UserError, match=r"holds \[24, 25, 26, 27, 28\]; legal are 0 \(unlabelled\) and 1..23"
    ):
        MSRC(tmp_path).read_mask("1_1_s", "train")  # cleaned masks count where both are


# --- CamVid ------------------------------------------------------------------------------------------

VALUES = np.arange(12, dtype=np.uint8).reshape(3, 4)


@pytest.fixture(params=["released", "one folder"])
def camvid(request, tmp_path: Path) -> Path:
    for split, image_id in (("train", "0001TP_1"), ("val", "0016E5_2"), ("test", "Seq05VD_3")):
        released = request.param == "released"
        picture(tmp_path / (f"{split}/{image_id}.png" if released else f"images/{image_id}.jpg"), (3, 4))
        write_index(tmp_path / (f"{split}annot" if released else "masks") / f"{image_id}.png", VALUES)
        if not released:
            (tmp_path / f"{split}.txt").write_text(f"{image_id}\n")
    return tmp_path


def test_camvid_is_read_from_either_layout(camvid):
    dataset = CamVid(camvid)
    for split, image_id in (("train", "0001TP_1"), ("val", "0016E5_2"), ("test", "Seq05VD_3")):
        assert dataset.ids(split) == (image_id,)
        assert dataset.read_mask(image_id, split).ravel().tolist() == [*range(11), 255]
        assert dataset.read_image(image_id).shape == (3, 4, 3)
    assert dataset.tags(["0001TP_1"]).tolist() == [[1] * 11]
    assert dataset.coverage("train") == (1, 367)
    assert not of_masks(dataset.info, "train", np.bincount([0, 1, 255], minlength=256))


@pytest.mark.parametrize(
    "text",
    [
        "/SegNet/CamVid/val/0016E5_2.png /SegNet/CamVid/valannot/0016E5_2.png\n",
        "CamVid/val/0016E5_2.png\n\n",
        "0016E5_2\r\n",
    ],
)
def test_lists_of_ids_and_of_paths_name_the_same_pictures(text, camvid):
    (camvid / "val.txt").write_text(text)
    assert CamVid(camvid).ids("val") == ("0016E5_2",)


@pytest.mark.parametrize(
    ("text", "problem"), [("a/b.png c\na/b.png c\n", "stands on line 1"), ("\n", "no ids")]
)
def test_lists_that_cannot_be_meant_are_refused(text, problem, camvid):
    (camvid / "train.txt").write_text(text)
    with pytest.raises(UserError, match=problem):
        CamVid(camvid).ids("train")


def test_camvid_s_own_colours_and_a_missing_part_are_named(camvid):
    dataset = CamVid(camvid)
    path = dataset.mask_path("0001TP_1", "train")
    Image.new("RGB", (4, 3), (64, 128, 64)).save(path)
    with pytest.raises(UserError, match="a colour PNG"):
        dataset.read_mask("0001TP_1", "train")
    write_index(path, VALUES + 1)
    with pytest.raises(UserError, match=r"holds \[12\]; legal are 0..10 and 11 \(void\)"):
        dataset.read_mask("0001TP_1", "train")
    for file in (*camvid.glob("test/*"), *camvid.glob("test.txt")):
        file.unlink()
    with pytest.raises(UserError, match="the split 'test' of CamVid is not there"):
        CamVid(camvid).ids("test")


# --- as a user ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "first"), [("msrc", "Images"), ("msrc-objects", "Images"), ("camvid", "train")]
)
def test_a_missing_picture_stops_a_run_before_it_trains(name, first, tmp_path, capsys):
    root = write_miniature(name, tmp_path, train=6, val=2)
    folder = next(root.glob(f"*/{first}"))
    gone = sorted(folder.iterdir())[:2]
    for file in gone:
        file.unlink()
    command = ["run", "pce/mini-scribble", "--set", f"dataset={name}", "--set", "batch.per_group=2"]
    command += ["--data-root", root, "--results", tmp_path / "results", "--local", "--dry-run"]
    assert invoke(cli, [str(a) for a in command]) == 2
    said = capsys.readouterr().err
    assert "the picture is missing" in said
    assert "1 more of the" in said
    assert "complete the data set, or take its id off the list" in said
    assert not list(tmp_path.glob("results/*/*/*"))


@pytest.mark.real
@pytest.mark.parametrize(("cls", "void"), [(MSRC, 19), (MSRCObjects, 18), (CamVid, 4)])
def test_the_real_samples_are_read(cls, void, real_data):
    dataset = cls(real_data)
    split, ids = "train", dataset.ids("train")
    assert dataset.coverage(split) == (cls.info.splits[split],) * 2
    masks = [dataset.read_mask(i, split) for i in ids]
    share = np.mean([(m == 255).mean() for m in masks])
    assert share == pytest.approx(void / 100, abs=0.01)
    assert dataset.read_image(ids[0]).shape[:2] == masks[0].shape
