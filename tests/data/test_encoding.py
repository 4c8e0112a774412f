"""One table of values or colours, for masks and label PNGs of a user's own data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.basics.errors import UserError
from harness.cli.main import cli, invoke
from harness.data.base import LabelSpec
from harness.data.images import read_index
from harness.data.labels.label_store import prepare_labels
from harness.data.sets.layout import FileDataset
from harness.data.sets.own import describe

#: What masks and labels say, as labels: 0 sky, 1 bird, 255 void or 254 unlabelled where there is such a code.
WANTED = np.array([[0, 1, 1, 0], [0, 0, 1, 1]], np.uint8)
PICTURE = np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 9
RED, BLACK, WHITE = (255, 0, 0), (0, 0, 0), (255, 255, 255)
OFFICIAL = LabelSpec(source="official", format="png", folder="drawn")


def own(folder: Path, text: str, classes: str = '["sky", "bird"]') -> FileDataset:
    (folder / "images").mkdir(exist_ok=True)
    Image.fromarray(PICTURE).save(folder / "images" / "a.png")
    (folder / "train.txt").write_text("a")
    (folder / "dataset.toml").write_text(f"classes = {classes}\n{text}\n")
    return describe("own", folder)(folder)


def coloured(labels: np.ndarray, colours: dict[int, tuple[int, ...]]) -> np.ndarray:
    out = np.zeros((*labels.shape, len(next(iter(colours.values())))), np.uint8)
    for label, colour in colours.items():
        out[labels == label] = colour
    return out


def grey(*values: int) -> np.ndarray:
    return np.array(values, np.uint8)[WANTED]


def one_bit(path: Path) -> None:
    Image.fromarray(WANTED.astype(bool)).save(path)


def four_bits(path: Path) -> None:
    Image.fromarray(WANTED * 3).convert("P").save(path, bits=4)


def palette(colours: list[int]) -> Callable[[Path], None]:
    def save(path: Path) -> None:
        image = Image.fromarray(WANTED, mode="P")
        image.putpalette(colours)
        image.save(path)

    return save


def array(values: np.ndarray) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(values).save(path)


RGB = coloured(WANTED, {0: BLACK, 1: RED})
CODES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "0 and 255": ("[values]\nsky = 0\nbird = 255", array(grey(0, 255))),
    "255 and 0": ("[values]\nsky = 255\nbird = 0", array(grey(255, 0))),
    "0 and 255, saved as colours": ("[values]\nsky = 0\nbird = 255", array(np.dstack([grey(0, 255)] * 3))),
    "one bit": ("[values]\nsky = 0\nbird = 1", one_bit),
    "one bit, called 255": ("[values]\nsky = 0\nbird = 255", one_bit),
    "four bits": ("[values]\nsky = 0\nbird = 3", four_bits),
    "gaps": ("[values]\nsky = 17\nbird = 200", array(grey(17, 200))),
    "offset": ("first_value = 7", array(grey(7, 8))),
    "colours": ("[values]\nsky = [0, 0, 0]\nbird = [255, 0, 0]", array(RGB)),
    "colours and opacity": (
        "[values]\nsky = [0, 0, 0]\nbird = [255, 0, 0]",
        array(np.dstack([RGB, np.full((2, 4), 255, np.uint8)])),
    ),
    "colours of a palette": ("[values]\nsky = [0, 0, 0]\nbird = [255, 0, 0]", palette([0, 0, 0, 255, 0, 0])),
    "black and white": ("[values]\nsky = [0, 0, 0]\nbird = [255, 255, 255]", array(grey(0, 255))),
    "CVAT": ('labelmap = "labelmap.txt"', array(RGB)),
}


@pytest.mark.parametrize("name", CODES)
def test_masks_and_labels_are_read_by_one_table(name: str, tmp_path: Path) -> None:
    text, save = CODES[name]
    (tmp_path / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbird:255,0,0::\nsky:0,0,0::\n")
    for folder in ("masks", "drawn"):
        (tmp_path / folder).mkdir()
        save(tmp_path / folder / "a.png")
    dataset = own(tmp_path, text)
    np.testing.assert_array_equal(dataset.read_mask("a", "train"), WANTED)
    if name != "offset":  # without a table, labels are class numbers
        np.testing.assert_array_equal(dataset.read_official_label("a", "scribble", OFFICIAL), WANTED)
    if "colours" in name and name != "0 and 255, saved as colours":
        assert dataset.info.palette == (BLACK, RED)  # as the user drew them


@pytest.mark.parametrize("kind", ["scribble", "point", "block", "box"])
@pytest.mark.parametrize(
    ("text", "colours"),
    [
        ("first_value = 1\nunlabelled = 0", {254: (0,), 0: (1,), 1: (2,)}),
        ("unlabelled = 255", {254: (255,), 0: (0,), 1: (1,)}),
        ("unlabelled = 9\nvoid = [9]", {254: (9,), 0: (0,), 1: (1,)}),
        ("void = [8]\nunlabelled = 9", {254: (8,), 0: (0,), 1: (1,)}),
        (
            "unlabelled = [0, 0, 0]\n[values]\nsky = [0, 0, 255]\nbird = [255, 0, 0]",
            {254: BLACK, 0: (0, 0, 255), 1: RED},
        ),
        (
            "unlabelled = [0, 0, 0]\n[values]\nsky = [0, 0, 255]\nbird = [255, 0, 0]",
            {254: (9, 9, 9, 0), 0: (0, 0, 255, 255), 1: (*RED, 255)},
        ),
        ('labelmap = "labelmap.txt"', {254: BLACK, 0: (0, 0, 255), 1: RED}),
    ],
)
def test_not_annotated_is_a_value_a_colour_or_transparent(
    text: str, colours: dict[int, tuple[int, ...]], kind: str, tmp_path: Path
) -> None:
    lines = "background:0,0,0::\nbird:255,0,0::\nsky:0,0,255::\n"
    (tmp_path / "labelmap.txt").write_text(lines)
    wanted = np.where(np.eye(2, 4, dtype=bool), np.uint8(254), WANTED)
    for folder in ("masks", "drawn"):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.squeeze(coloured(wanted, colours))).save(tmp_path / folder / "a.png")
    dataset = own(tmp_path, text)
    np.testing.assert_array_equal(dataset.read_official_label("a", kind, OFFICIAL), wanted)
    mask = dataset.read_mask("a", "train")  # what nobody annotated is not scored
    np.testing.assert_array_equal(mask, np.where(wanted == 254, 255, wanted))


def test_strokes_on_the_photograph_are_found_and_the_photographs_own_red_is_not(tmp_path: Path) -> None:
    dataset = own(tmp_path, 'unlabelled = "photograph"\n[values]\nsky = [0, 0, 255]\nbird = [255, 0, 0]')
    picture = PICTURE.copy()
    picture[0, 0] = RED  # something red
    Image.fromarray(picture).save(tmp_path / "images" / "a.png")
    drawn = picture.copy()
    drawn[1, 0], drawn[1, 1:3] = (0, 0, 255), RED
    drawn[1, 3] = (200, 30, 30)  # a smoothed edge
    (tmp_path / "drawn").mkdir()
    Image.fromarray(drawn).save(tmp_path / "drawn" / "a.png")
    label = dataset.read_official_label("a", "scribble", OFFICIAL)
    np.testing.assert_array_equal(label, [[254] * 4, [0, 1, 1, 254]])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[values]\nsky = 0", "nothing is said of the class 'bird'"),
        ("[values]\nsky = 0\nbird = 1\nbrid = 2", "'brid' is none of the classes"),
        ("[values]\nsky = 3\nbird = 3", "3 is"),
        ("[values]\nsky = [0, 0, 0]\nbird = 3", "some are values and some are colours"),
        ("void = [[1, 2, 3]]\n[values]\nsky = 0\nbird = 3", "some are values and some are colours"),
        ("unlabelled = 0", "0 is"),
        ("unlabelled = 0\n[values]\nsky = 0\nbird = 3", "0 is"),
        ("void = [255]\n[values]\nsky = 0\nbird = 255", "255 is"),
        ('unlabelled = "photograph"', "needs the colours"),
        ("[values]\nsky = 0\nbird = 300", "bird"),
        ("[values]\nsky = 0\nbird = [1, 2]", "bird"),
        ("first_value = 1\n[values]\nsky = 0\nbird = 1", "first_value"),
        ('labelmap = "labelmap.txt"\n[values]\nsky = 0\nbird = 1', "one of them"),
        ('labelmap = "labelmap.txt"', "'plane', which is none of the classes"),
        ('labelmap = "broken.txt"', "name:R,G,B"),
        ('labelmap = "nowhere.txt"', "nowhere.txt"),
    ],
)
def test_tables_that_cannot_be_meant_are_refused(text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "labelmap.txt").write_text("bird:255,0,0::\nsky:0,0,0::\nplane:1,2,3::\n")
    (tmp_path / "broken.txt").write_text("bird;255;0;0\n")
    with pytest.raises(UserError) as caught:
        own(tmp_path, text)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("text", "values", "problem"),
    [
        ("[values]\nsky = 0\nbird = 255", grey(0, 254), "the value 254 on 4 pixels"),
        ("[values]\nsky = 0\nbird = 255", RGB, "has colours"),
        (
            "[values]\nsky = [0, 0, 0]\nbird = [255, 0, 0]",
            coloured(WANTED, {0: BLACK, 1: (254, 0, 0)}),
            "254, 0, 0",
        ),
        ("[values]\nsky = [0, 0, 0]\nbird = [255, 0, 0]", WANTED.astype(np.uint16), "16 bits"),
        (
            "[values]\nsky = [0, 0, 0]\nbird = [255, 0, 0]",
            np.dstack([RGB, WANTED]),
            "transparent pixels",
        ),
        ("", RGB, "values = ... in the dataset.toml"),
    ],
)
def test_files_that_do_not_fit_the_table_are_named(
    text: str, values: np.ndarray, problem: str, tmp_path: Path
) -> None:
    (tmp_path / "masks").mkdir()
    Image.fromarray(values).save(tmp_path / "masks" / "a.png")
    with pytest.raises(UserError) as caught:
        own(tmp_path, text).read_mask("a", "train")
    assert problem in str(caught.value)
    assert "a.png" in str(caught.value)


def test_labels_written_here_hold_class_numbers_whatever_the_table_says(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    Image.fromarray(grey(1, 0)).save(tmp_path / "masks" / "a.png")
    dataset = own(tmp_path, "[values]\nsky = 1\nbird = 0")  # the other way round
    command = [
        "data",
        "labels",
        "own",
        "--kind",
        "block",
        "--block-share",
        "1",
        "--out",
        str(tmp_path / "drawn"),
    ]
    assert invoke(cli, [*command, "--data-root", f"own={tmp_path}"]) == 0
    assert set(np.unique(read_index(tmp_path / "drawn" / "a.png"))) <= {0, 1, 255}
    spec = LabelSpec(source="official", format="png", folder="drawn", unlabelled=255)
    label = dataset.read_official_label("a", "block", spec)
    known = label < 2
    np.testing.assert_array_equal(label[known], WANTED[known])
    assert known.any()


def test_a_recipe_cannot_call_a_class_unlabelled(tmp_path: Path) -> None:
    (tmp_path / "drawn").mkdir()
    Image.fromarray(grey(1, 2)).save(tmp_path / "drawn" / "a.png")
    dataset = own(tmp_path, "[values]\nsky = 1\nbird = 2")
    spec = LabelSpec(source="official", format="png", folder="drawn", unlabelled=2)
    with pytest.raises(UserError, match="2 as a class"):
        dataset.read_official_label("a", "scribble", spec)
    spec = LabelSpec(source="official", format="png", folder="drawn", unlabelled=0)
    np.testing.assert_array_equal(dataset.read_official_label("a", "scribble", spec), WANTED)


def test_another_picture_below_its_strokes_prepares_labels_anew(tmp_path: Path) -> None:
    dataset = own(tmp_path, 'unlabelled = "photograph"\n[values]\nsky = [0, 0, 255]\nbird = [255, 0, 0]')
    drawn = PICTURE.copy()
    drawn[0] = RED
    (tmp_path / "drawn").mkdir()
    Image.fromarray(drawn).save(tmp_path / "drawn" / "a.png")
    counts = []
    redder = PICTURE.copy()
    redder[0, :2] = RED
    for picture in (PICTURE, redder):
        Image.fromarray(picture).save(tmp_path / "images" / "a.png")
        store = prepare_labels(dataset, "train", "scribble", OFFICIAL, cache=tmp_path / "cache")
        counts.append(store.statistics["labelled_share"])
    assert counts[0] > counts[1]


def test_legal_values_are_said_as_the_description_says_them(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    Image.fromarray(grey(7, 3)).save(tmp_path / "masks" / "a.png")
    with pytest.raises(UserError, match=r"holds \[3\]; legal are 7 sky, 8 bird, 255 \(void\)"):
        own(tmp_path, "first_value = 7").read_mask("a", "train")
