"""Image tags of a user's own data set: every file of them, background first, last, in between or nowhere."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.basics.errors import UserError
from harness.basics.registry import METHODS
from harness.data.lists import write_tags
from harness.data.sets.layout import FileDataset
from harness.data.sets.own import describe
from harness.engine.build import Build
from methods.parts.transformer import ViTSegmenter

OBJECTS = ("wing", "beak", "left foot")
#: What the pictures show.
SHOWN = {"a": {"wing", "left foot"}, "b": {"beak"}, "c": set()}


def birds(folder: Path, background: int | None, *lines: str) -> FileDataset:
    """Three pictures without masks; background is the class of this number."""
    (folder / "images").mkdir(exist_ok=True)
    for image_id in SHOWN:
        Image.new("RGB", (4, 3)).save(folder / "images" / f"{image_id}.png")
    classes = list(OBJECTS)
    if background is not None:
        classes.insert(background, "sky")
        lines = ('background = "sky"', *lines)
    (folder / "train.txt").write_text("\n".join(SHOWN))
    (folder / "dataset.toml").write_text("\n".join([f"classes = {classes}", *lines]))
    return describe("birds", folder)(folder)


def rows(dataset: FileDataset, *, background: bool) -> dict[str, np.ndarray]:
    """One number for each class, with or without that of background, which says 1."""
    kept = [k for k in dataset.info.classes if background or k != "sky"]
    return {i: np.array([float(k in shown or k == "sky") for k in kept]) for i, shown in SHOWN.items()}


def write(form: str, folder: Path, dataset: FileDataset) -> None:
    full, short = rows(dataset, background=True), rows(dataset, background=False)
    names = dataset.info.classes
    if form == "csv of names":
        lines = [f"images/{i}.PNG,{';'.join(sorted(shown))}" for i, shown in SHOWN.items()]
        (folder / "tags.csv").write_text("file,tags\n" + "\n".join(lines))
    elif form == "csv without a header":
        (folder / "tags.csv").write_text("\n".join(",".join([i, *shown]) for i, shown in SHOWN.items()))
    elif form == "csv of pairs":
        lines = [f"{i}\t{name}" for i, shown in SHOWN.items() for name in sorted(shown)] + ["c\t"]
        (folder / "tags.csv").write_bytes("\r\n".join(["image\tclass", *lines]).encode("utf-8-sig"))
    elif form == "csv of columns, in another order":
        order = names[::-1]
        lines = [f"{i};" + ";".join(str(int(full[i][names.index(k)])) for k in order) for i in SHOWN]
        (folder / "tags.csv").write_text("\n".join(["Image;" + ";".join(order), *lines]))
    elif form == "csv of object columns":
        lines = [f"{i}," + ",".join(str(int(k in shown)) for k in OBJECTS) for i, shown in SHOWN.items()]
        (folder / "tags.csv").write_text("\n".join(["id," + ",".join(OBJECTS), *lines]))
    elif form == "our npz":
        write_tags(folder / "tags.npz", list(full), np.stack(list(full.values())))
    elif form == "our npz without background":
        write_tags(folder / "tags.npz", list(short), np.stack(list(short.values())))
    elif form == "npz of arrays":
        np.savez(folder / "tags.npz", ids=np.array(list(full)), tags=np.stack(list(full.values())))
    else:
        of = full if form == "one-hot" else short
        (folder / "cls_labels_onehot.npy").write_bytes(_saved(of))


def _saved(content: object) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array(content, dtype=object), allow_pickle=True)
    return stream.getvalue()


FORMS = (
    "csv of names",
    "csv without a header",
    "csv of pairs",
    "csv of columns, in another order",
    "csv of object columns",
    "our npz",
    "our npz without background",
    "npz of arrays",
    "one-hot",
    "one-hot without background",
)


@pytest.mark.parametrize("background", [0, 1, 3, None])
@pytest.mark.parametrize("form", FORMS)
def test_tags_reach_their_classes_wherever_background_stands(
    form: str, background: int | None, tmp_path: Path
) -> None:
    dataset = birds(tmp_path, background)
    write(form, tmp_path, dataset)
    found = dataset.tags(list(SHOWN))
    assert found.dtype == np.uint8
    names = dataset.info.classes
    assert [{names[k] for k in np.flatnonzero(row)} for row in found] == list(SHOWN.values())


@pytest.mark.parametrize("background", [2, None])
@pytest.mark.parametrize("width", [1, 2, 5, 9])
@pytest.mark.parametrize("form", ["npz", "arrays", "one-hot"])
def test_a_number_of_columns_that_fits_no_class_is_refused(
    form: str, width: int, background: int | None, tmp_path: Path
) -> None:
    dataset, ones = birds(tmp_path, background), np.ones((3, width))
    if form == "npz":
        write_tags(tmp_path / "tags.npz", list(SHOWN), ones)
    elif form == "arrays":
        np.savez(tmp_path / "tags.npz", ids=np.array(list(SHOWN)), tags=ones)
    else:
        (tmp_path / "cls_labels_onehot.npy").write_bytes(_saved(dict(zip(SHOWN, ones, strict=True))))
    with pytest.raises(UserError, match=f"rows of {width} classes"):
        dataset.tags(list(SHOWN))


def test_without_background_no_column_may_lack(tmp_path: Path) -> None:
    dataset = birds(tmp_path, None)
    write_tags(tmp_path / "tags.npz", list(SHOWN), np.ones((3, 2)))  # K - 1
    with pytest.raises(UserError, match="rows of 2 classes; 3 are wanted"):
        dataset.tags(["a"])


@pytest.mark.parametrize(
    ("text", "problem", "place"),
    [
        ("id,wing,beak\na,1,0\n", "no column of class 'left foot'", "header"),
        ("id,wing,wing,beak,left foot\na,1,0,0,0\n", "two columns of one class", "header"),
        ("id,wing,beak,left fot\na,1,0,0\n", "unknown class 'left fot'", "header"),
        ("id,wing,beak,left foot\na,1,0\n", "the row has 2 tags", "line 2"),
        ("id,wing,beak,left foot\na,1,0,0.5\n", "'0.5' is no tag", "line 2"),
        ("id,wing,beak,left foot\na,1,0,0\nb,1,0,0\na.png,0,1,0\n", "stands in an earlier row", "line 4"),
        ("a,wing\nb,baek\n", "unknown class 'baek'", "line 2"),
        ("a,wing\nb,beak\n", "no official image tags of 'c'", "tags.csv"),
        ("", "holds no rows", "tags.csv"),
        ("# id, tags\n\n", "holds no rows", "tags.csv"),
        ("x/a,wing\ny/a,beak\nb,\nc,\n", "2 pictures 'a'", "tags.csv"),
    ],
)
def test_mistakes_in_a_csv_are_named_with_their_line(
    text: str, problem: str, place: str, tmp_path: Path
) -> None:
    (tmp_path / "tags.csv").write_text(text)
    with pytest.raises(UserError) as caught:
        birds(tmp_path, 1).tags(list(SHOWN))
    assert problem in str(caught.value)
    assert place in str(caught.value)


def test_two_files_of_tags_need_a_word(tmp_path: Path) -> None:
    dataset = birds(tmp_path, 0)
    write("csv of names", tmp_path, dataset)
    write("our npz", tmp_path, dataset)
    with pytest.raises(UserError, match=r"several files of image tags: tags\.csv, tags\.npz"):
        dataset.tags(["a"])
    (tmp_path / "tags.csv").write_text("a,beak\n")
    assert birds(tmp_path, 0, 'tags = "tags.csv"').tags(["a"]).tolist() == [[0, 0, 1, 0]]
    (tmp_path / "tags.csv").unlink()
    (tmp_path / "tags.npz").unlink()
    with pytest.raises(UserError, match=r"no official image tags(.|\n)*tags\.csv"):
        birds(tmp_path, 0).tags(["a"])


def takes_background_first() -> list[str]:
    return [name for name in sorted(METHODS.names()) if issubclass(METHODS.get(name), ViTSegmenter)]


@pytest.mark.parametrize("background", [1, None])
@pytest.mark.parametrize("name", takes_background_first())
def test_methods_that_need_background_first_say_so_when_they_are_built(
    name: str, background: int | None, tmp_path: Path
) -> None:
    method, info = METHODS.get(name), birds(tmp_path, background).info
    build = Build(dataset=info, supervision="image", crop=(32, 32), backbone="mini_vit")
    with pytest.raises(UserError, match=r"takes class 0 as the background(.|\n)*first among the classes"):
        method(method.Config(), build)
