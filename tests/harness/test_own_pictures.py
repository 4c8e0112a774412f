"""The page "Your own pictures", followed to the letter, and labels alone of every kind."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import wsss

from harness.basics.registry import DATASETS
from harness.records.records import Store
from harness.running.trials.trial import forget_data

PAGE = Path(__file__).parents[2] / "docs" / "own_pictures.md"
NAMES = ("wing", "beak")
TRY = ["--set", "backbone=mini_cnn", "--set", "weights=packaged", "--set", "schedule.steps=2"]
RUN = ["--seeds", "1", "--local", "--device", "cpu", "--data-root", "own=birds"]


@pytest.fixture
def birds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Four photographs with strokes, clicks, boxes and tags, and no masks."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "birds"
    for folder in ("images", "scribbles", "boxes"):
        (root / folder).mkdir(parents=True)
    rng, clicks, tags = np.random.default_rng(0), [], []
    for i in range(4):
        name, (y, x) = NAMES[i % 2], rng.integers(8, 20, 2)
        picture = np.full((48, 64, 3), (60, 120, 60), np.uint8)
        picture[y : y + 18, x : x + 24] = (200, 60, 40) if i % 2 else (40, 60, 200)
        Image.fromarray(picture).save(root / "images" / f"p{i}.jpg")
        stroke = np.full((48, 64), 255, np.uint8)
        stroke[2, 5:60], stroke[y + 8, x + 3 : x + 20] = 0, 1 + i % 2
        Image.fromarray(stroke).save(root / "scribbles" / f"p{i}.png")
        clicks.append(f"p{i}.jpg,{x + 10},{y + 8},{name}\np{i}.jpg,3,3,background\n")
        tags.append(f"p{i}.jpg,{name}\n")
        box = (("xmin", x + 1), ("ymin", y + 1), ("xmax", x + 24), ("ymax", y + 18))
        corners = "".join(f"<{key}>{value}</{key}>" for key, value in box)
        (root / "boxes" / f"p{i}.xml").write_text(
            f"<annotation><object><name>{name}</name><bndbox>{corners}</bndbox></object></annotation>"
        )
    (root / "clicks.csv").write_text("".join(clicks))
    (root / "tags.csv").write_text("".join(tags))
    forget_data()  # birds lie elsewhere in each test
    yield root
    DATASETS.forget("own")
    forget_data()


def described(birds: Path) -> Path:
    """With the two files that the page has one write."""
    (birds / "train.txt").write_text("p0\np1\np2\np3\n")
    (birds / "dataset.toml").write_text(
        'classes = ["background", "wing", "beak"]\nbackground = "background"\n'
    )
    return birds


def steps(text: str) -> Iterator[tuple[str, str]]:
    """``(file, content)`` of every file that the page has one write, ``("", command)`` of every command."""
    for language, body in re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL):
        if language == "toml":
            yield body.splitlines()[0].removeprefix("# "), re.sub(r"steps = \d+", "steps = 2", body)
        elif language == "sh":
            for line in body.splitlines():
                yield "", re.sub(r"steps=\d+", "steps=2", line)


def test_the_page_does_what_it_says(birds: Path, capsys: pytest.CaptureFixture) -> None:
    done = list(steps(PAGE.read_text()))
    assert sum(not file for file, _ in done) > 8
    for file, content in done:
        if file:
            Path(file).write_text(content)
        elif "--model" in content:
            continue  # slow, and tested for itself
        elif content.startswith("wsss "):
            assert wsss(*shlex.split(content)[1:]) == 0, (content, capsys.readouterr().err)
        else:
            subprocess.run(["bash", "-c", content], check=True)
    said = capsys.readouterr()
    assert "chosen   agmm/own-point: crop=64" in said.err
    assert len(list(Path("predictions").glob("p?.png"))) == 4
    assert "Birds" in Path("reports/report.html").read_text()
    assert Path("look.png").is_file()
    assert len(list(Path("maps").glob("p?.png"))) == 4
    named = {record.data.get("called") for record in Store("results").records()}
    assert named == {"try:clicks", "try:tags", None}


@pytest.mark.parametrize("recipe", ["pce/own-scribble", "pce/own-box", "cam/own-image", "agmm/own-point"])
def test_labels_alone_of_every_kind(birds: Path, recipe: str, capsys) -> None:
    described(birds)
    assert wsss("data", "verify", "own", "--data-root", "own=birds", "--for", recipe) == 0
    assert wsss("run", recipe, *RUN, *TRY) == 0
    assert "nothing" not in capsys.readouterr().err
    assert wsss("predict", recipe, "birds/images", "--data-root", "own=birds", *TRY) == 0
    assert wsss("report") == 0  # the data set is not at hand: its record says what is needed
    (record,) = Store("results").records()
    assert (record.recipe["crop"], record.recipe["batch"]["per_group"]) == (64, 4)


def test_the_network_of_own_pictures_goes_anywhere(birds: Path, tmp_path: Path) -> None:
    described(birds)
    assert wsss("run", "pce/own-point", *RUN, *TRY) == 0
    (record,) = Store("results").records()
    DATASETS.forget("own")
    assert wsss("predict", record.path / "checkpoint" / "last.pt", "birds/images", "--out", "there") == 0
    assert len(list(Path("there").glob("*_overlay.png"))) == 4


def verified(*more: str, capsys) -> tuple[int, str]:
    code = wsss("data", "verify", "own", "--data-root", "own=birds", *more)
    return code, capsys.readouterr().out


def test_verify_reads_the_labels_that_are_there(birds: Path, capsys) -> None:
    described(birds)
    code, said = verified("--json", "found.json", capsys=capsys)
    assert code == 0
    for kind in ("scribble labels, scribbles", "point labels, clicks.csv", "box labels, boxes", "image tags"):
        assert f"train, {kind}: 4 pictures" in said
    assert "background 4, wing 2, beak 2" in said
    found = json.loads(Path("found.json").read_text())
    assert {one["kind"] for one in found["labels"]} == {"scribble", "point", "box", "image"}
    (birds / "boxes").rename(birds / "elsewhere")
    assert "box labels" not in verified(capsys=capsys)[1]


def spoil_values(birds: Path) -> None:
    Image.fromarray(np.full((48, 64), 7, np.uint8)).save(birds / "scribbles" / "p1.png")


def spoil_size(birds: Path) -> None:
    Image.fromarray(np.full((48, 60), 255, np.uint8)).save(birds / "scribbles" / "p1.png")


def spoil_file(birds: Path) -> None:
    (birds / "scribbles" / "p2.png").write_bytes(b"")


def take_one(birds: Path) -> None:
    (birds / "scribbles" / "p3.png").unlink()


def empty_all(birds: Path) -> None:
    for file in (birds / "scribbles").iterdir():
        Image.fromarray(np.full((48, 64), 255, np.uint8)).save(file)


def unknown_click(birds: Path) -> None:
    (birds / "clicks.csv").write_text("p0.jpg,3,3,tail\n")


def click_outside(birds: Path) -> None:
    (birds / "clicks.csv").write_text("p0.jpg,300,3,wing\np1.jpg,,,\np2.jpg,,,\np3.jpg,,,\n")


def swapped_box(birds: Path) -> None:
    file = birds / "boxes" / "p0.xml"
    file.write_text(re.sub(r"<xmax>\d+", "<xmax>1", file.read_text()))


def unknown_tag(birds: Path) -> None:
    (birds / "tags.csv").write_text("p0.jpg,tail\np1.jpg,wing\np2.jpg,wing\np3.jpg,wing\n")


def few_tags(birds: Path) -> None:
    (birds / "tags.csv").write_text("p0.jpg,wing\n")


@pytest.mark.parametrize(
    ("spoil", "recipe"),
    [
        (spoil_values, "pce/own-scribble"),
        (spoil_size, "pce/own-scribble"),
        (spoil_file, "pce/own-scribble"),
        (take_one, "pce/own-scribble"),
        (empty_all, "pce/own-scribble"),
        (unknown_click, "pce/own-point"),
        (click_outside, "pce/own-point"),
        (swapped_box, "pce/own-box"),
        (unknown_tag, "cam/own-image"),
        (few_tags, "cam/own-image"),
    ],
)
def test_verify_refuses_labels_in_the_words_of_a_run(birds: Path, spoil, recipe: str, capsys) -> None:
    described(birds)
    spoil(birds)
    code, said = verified(capsys=capsys)
    assert (code, "REFUSED" in said) == (2, True)
    assert verified("--for", recipe, capsys=capsys)[0] == 2
    assert wsss("run", recipe, *RUN, *TRY) == 2
    problem = capsys.readouterr().err.splitlines()[0].removeprefix("error: ")
    assert problem in said


def half_labelled(birds: Path) -> None:
    for file in (birds / "scribbles").iterdir():
        Image.fromarray(np.ones((48, 64), np.uint8)).save(file)


def no_background(birds: Path) -> None:
    (birds / "clicks.csv").write_text("".join(f"p{i}.jpg,20,20,{NAMES[i % 2]}\n" for i in range(4)))


@pytest.mark.parametrize(
    ("spoil", "recipe"), [(half_labelled, "pce/own-scribble"), (no_background, "pce/own-point")]
)
def test_verify_warns_in_the_words_of_a_run(birds: Path, spoil, recipe: str, capsys) -> None:
    described(birds)
    spoil(birds)
    code, said = verified(capsys=capsys)
    assert code == 0
    warned = re.findall(r"warning: (.*)", said)
    assert warned
    assert wsss("run", recipe, *RUN, *TRY) == 0
    told = capsys.readouterr().err
    assert all(text in told for text in warned)


def test_verify_reads_tools_files_and_pseudo_labels_where_they_are_named(birds: Path, capsys) -> None:
    described(birds)
    (birds / "scribbles").rename(birds.parent / "maps")
    more = ("--for", "pce/own-image", "--set")
    assert verified(*more, "labels_from=maps", capsys=capsys)[0] == 0
    assert "pseudo labels, nowhere" in (found := verified(*more, "labels_from=nowhere", capsys=capsys))[1]
    assert found[0] == 2
    assert "image tags: 4 pictures" in verified("--for", "pce/own-image", capsys=capsys)[1]  # of its source
    assert verified("--set", "crop=3", capsys=capsys)[0] == 2  # which counts for a recipe alone
