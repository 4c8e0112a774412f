"""In whose numbers label maps are: said, found where it can be only one, refused where it can be either."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness.basics.errors import UserError
from harness.basics.registry import DATASETS
from harness.cli.main import cli, invoke
from harness.data import numbering
from harness.data.base import Dataset, LabelSpec
from harness.data.images import read_index, write_index
from harness.data.labels.label_store import prepare_labels
from harness.data.predictions import FolderPredictions, folder_pairs
from harness.data.prepare.miniatures import write_miniature
from harness.data.sets.own import describe
from harness.running.inference.export import write_labels
from harness.running.inference.scoring import score_predictions
from harness.running.trials.trial import open_dataset

NAMES = ("voc2012", "coco2014", "cityscapes", "ade20k", "birds")
DIFFERENT = ("coco2014", "cityscapes", "ade20k", "birds")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Dataset]]:
    """A small copy of every data set, and one of a user's own whose classes start at 1."""
    before = dict(DATASETS._registered)
    root = tmp_path_factory.mktemp("sets")
    found = {}
    for name in NAMES[:-1]:
        write_miniature(name, root / name, train=2, val=2)
        found[name] = open_dataset(name, (f"{name}={root / name}",), root)
    own = root / "birds"
    (own / "images").mkdir(parents=True)
    for index in range(2):
        write_index(own / "images" / f"{index}.png", np.full((8, 12), 90 * index, np.uint8))
        mask = np.repeat(np.uint8([[0, 1, 2, 3]]), 8, 0).repeat(3, 1)
        write_index(own / "masks" / f"{index}.png", mask)
    for split in ("train", "val"):
        (own / f"{split}.txt").write_text("0\n1\n")
    (own / "dataset.toml").write_text(
        'classes = ["sky", "wing", "beak"]\nbackground = "sky"\nfirst_value = 1\nvoid = [0]\n'
    )
    found["birds"] = describe("birds", own)(own)
    yield found
    DATASETS._registered.clear()
    DATASETS._registered.update(before)


def written(dataset: Dataset, folder: Path, kind: str, split: str = "val") -> Path:
    """The masks of a split as label maps: the files themselves, or the classes that they stand for."""
    for image_id in dataset.ids(split):
        mask = dataset.read_mask(image_id, split)
        if kind == "files":
            mask = numbering.to_files(dataset)[mask]
        write_index(folder / f"{image_id}.png", mask)
    return folder


def outcome(work: Callable[[], Any]) -> tuple[str, Any]:
    """The text of a UserError, or what came out."""
    try:
        return "", work()
    except UserError as error:
        return str(error), None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["classes", "files"])
def test_own_masks_as_predictions_give_100_or_an_error(
    sets: dict[str, Dataset], tmp_path: Path, name: str, kind: str
) -> None:
    dataset, folder = sets[name], written(sets[name], tmp_path, kind)
    assert score_predictions(dataset, folder, "val", kind).figures["miou"] == 100.0
    error, found = outcome(lambda: score_predictions(dataset, folder, "val").figures["miou"])
    if error:
        assert name in DIFFERENT
        assert "--encoding classes or --encoding files" in error
    else:
        assert found == 100.0


@pytest.mark.parametrize("name", [n for n in NAMES if n != "coco2014"])
def test_the_mask_files_themselves_are_in_the_numbers_of_files(
    sets: dict[str, Dataset], tmp_path: Path, name: str
) -> None:
    dataset = sets[name]
    for image_id in dataset.ids("val"):
        path = dataset.mask_path(image_id, "val")
        assert path is not None
        write_index(tmp_path / f"{image_id}.png", read_index(path))
    assert score_predictions(dataset, tmp_path, "val", "files").figures["miou"] == 100.0


def test_category_ids_of_coco_are_found(sets: dict[str, Dataset], tmp_path: Path) -> None:
    folder = written(sets["coco2014"], tmp_path, "files")
    assert FolderPredictions(sets["coco2014"], folder, "val").encoding == "files"
    assert 90 in np.unique(read_index(next(folder.glob("*.png"))))


def test_a_class_that_files_do_not_number_shows_class_numbers(
    sets: dict[str, Dataset], tmp_path: Path
) -> None:
    dataset = sets["coco2014"]
    folder = written(dataset, tmp_path, "classes")
    first = folder / f"{dataset.ids('val')[0]}.png"
    label = read_index(first)
    label[0, 0] = 12  # no category has this id
    write_index(first, label)
    assert FolderPredictions(dataset, folder, "val").encoding == "classes"


def test_numbers_that_can_be_either_are_refused(sets: dict[str, Dataset], tmp_path: Path) -> None:
    dataset = sets["ade20k"]
    for image_id in dataset.ids("val"):
        write_index(tmp_path / f"{image_id}.png", np.minimum(dataset.read_mask(image_id, "val"), 99))
    with pytest.raises(UserError, match=r"1\.\.150, no class 0"):
        list(folder_pairs(dataset, tmp_path, "val"))
    said: list[str] = []
    low = score_predictions(dataset, tmp_path, "val", "files", say=said.append).figures["miou"]
    assert low < 1
    assert "--encoding classes" in said[0]
    assert said[0].count(f"{low:.2f}") == 1


def test_what_this_project_writes_says_its_numbers(sets: dict[str, Dataset], tmp_path: Path) -> None:
    dataset, folder = sets["ade20k"], tmp_path / "predictions"
    for image_id in dataset.ids("val"):
        mask = dataset.read_mask(image_id, "val")
        write_index(folder / f"{image_id}.png", np.where(mask == 255, 0, mask).astype(np.uint8))
    (tmp_path / "evaluation.json").write_text("{}")
    assert FolderPredictions(dataset, folder, "val").encoding == "classes"
    (tmp_path / "evaluation.json").unlink()
    (folder / "export.json").write_text('{"encoding": "files"}')
    assert FolderPredictions(dataset, folder, "val").encoding == "files"


@pytest.mark.parametrize("name", NAMES)
def test_values_that_are_no_class_are_refused(sets: dict[str, Dataset], tmp_path: Path, name: str) -> None:
    dataset = sets[name]
    folder = written(dataset, tmp_path, "classes")
    first = folder / f"{dataset.ids('val')[0]}.png"
    label = read_index(first)
    label[0, :2] = 200, 254
    write_index(first, label)
    for encoding in ("classes", "files", None):
        with pytest.raises(UserError, match=r"hold.* 200.*254") as caught:
            list(folder_pairs(dataset, folder, "val", encoding))  # type: ignore[arg-type]
        assert str(tmp_path) in str(caught.value)


def test_no_decision_is_counted_as_wrong_and_its_share_is_printed(
    sets: dict[str, Dataset], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = sets["voc2012"]
    folder = written(dataset, tmp_path, "classes")
    first = folder / f"{dataset.ids('val')[0]}.png"
    label = read_index(first)
    label[: label.shape[0] // 2] = 255
    write_index(first, label)
    root = dataset.root
    command = ["evaluate", "--predictions", folder, "--dataset", "voc2012", "--data-root", root]
    assert invoke(cli, [str(c) for c in command]) == 0
    counted = sum((dataset.read_mask(i, "val") != 255).sum() for i in dataset.ids("val"))
    lost = (dataset.read_mask(dataset.ids("val")[0], "val")[: label.shape[0] // 2] != 255).sum()
    assert f"{100 * lost / counted:.2f} % of the scored pixels have no decision" in capsys.readouterr().out


@pytest.mark.parametrize("shift", [-1, 1])
def test_numbers_one_off_are_warned_of(sets: dict[str, Dataset], tmp_path: Path, shift: int) -> None:
    dataset = sets["voc2012"]
    for image_id in dataset.ids("val"):
        mask = dataset.read_mask(image_id, "val").astype(int)
        moved = np.where((mask == 255) | (mask + shift < 0) | (mask + shift > 20), 255, mask + shift)
        write_index(tmp_path / f"{image_id}.png", moved.astype(np.uint8))
    said: list[str] = []
    score_predictions(dataset, tmp_path, "val", say=said.append)
    assert ("one higher" if shift < 0 else "one lower") in said[0]
    said.clear()
    score_predictions(dataset, written(dataset, tmp_path / "right", "classes"), "val", say=said.append)
    assert not said


@pytest.mark.parametrize("name", NAMES)
def test_numbers_go_to_files_and_back(sets: dict[str, Dataset], name: str) -> None:
    dataset = sets[name]
    count = dataset.info.num_classes
    back = dataset.numbers()[numbering.to_files(dataset)]
    assert back[:count].tolist() == list(range(count))
    assert not set(back[count:].tolist()) & set(range(count)), "what is no class stays none"


# --- weak labels -------------------------------------------------------------------------------------


def prepared(dataset: Dataset, folder: Path, cache: Path, **spec: object) -> np.ndarray:
    own = LabelSpec(source="official", format="png", folder=str(folder), **spec)  # type: ignore[arg-type]
    store = prepare_labels(dataset, "train", "scribble", own, cache=cache)
    label = store.read(store.ids[0])
    assert label is not None
    return label


@pytest.mark.parametrize("name", DIFFERENT)
@pytest.mark.parametrize("kind", ["classes", "files"])
def test_label_pngs_are_read_in_the_numbers_that_are_said(
    sets: dict[str, Dataset], tmp_path: Path, name: str, kind: str
) -> None:
    dataset = sets[name]
    folder = written(dataset, tmp_path / "labels", kind, "train")
    truth = dataset.read_mask(dataset.ids("train")[0], "train")
    label = prepared(dataset, folder, tmp_path, unlabelled=255, encoding=kind)
    assert np.array_equal(label, np.where(truth == 255, 254, truth))
    error, found = outcome(lambda: prepared(dataset, folder, tmp_path, unlabelled=255))
    if error:
        assert "labels.encoding = classes or labels.encoding = files" in error
    else:
        assert np.array_equal(found, label)


def test_a_number_of_a_class_cannot_mean_unlabelled(sets: dict[str, Dataset], tmp_path: Path) -> None:
    dataset = sets["voc2012"]
    folder = written(dataset, tmp_path / "labels", "classes", "train")
    with pytest.raises(UserError, match="is the class 'background' and cannot also mean"):
        prepared(dataset, folder, tmp_path, unlabelled=0)


def test_unlabelled_tells_the_numbering_where_it_is_a_class_in_the_other(
    sets: dict[str, Dataset], tmp_path: Path
) -> None:
    ade = sets["ade20k"]
    folder = written(ade, tmp_path / "labels", "files", "train")
    truth = ade.read_mask(ade.ids("train")[0], "train")
    assert np.array_equal(
        prepared(ade, folder, tmp_path, unlabelled=0), np.where(truth == 255, 254, truth)
    ), "0 is the class wall in class numbers"
    city = sets["cityscapes"]
    places = city.ids("train")
    for image_id in places:
        mask = city.read_mask(image_id, "train")
        write_index(tmp_path / "points" / f"{image_id}.png", np.where(mask == 255, 19, mask).astype(np.uint8))
    truth = city.read_mask(places[0], "train")
    assert np.array_equal(
        prepared(city, tmp_path / "points", tmp_path, unlabelled=19), np.where(truth == 255, 254, truth)
    ), "19 is a traffic light in labelIds"


def test_official_names_tell_the_numbering(sets: dict[str, Dataset], tmp_path: Path) -> None:
    city = sets["cityscapes"]
    folder = written(city, tmp_path / "labels", "files", "train")
    for file in folder.glob("*.png"):
        file.rename(file.with_name(f"{file.stem}_gtFine_labelIds.png"))
    truth = city.read_mask(city.ids("train")[0], "train")
    assert np.array_equal(
        prepared(city, folder, tmp_path, unlabelled=255), np.where(truth == 255, 254, truth)
    )


def test_a_description_of_values_tells_the_numbering(sets: dict[str, Dataset], tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(sets["birds"].root, own)
    (own / "dataset.toml").write_text(
        'classes = ["sky", "wing", "beak"]\nunlabelled = 0\nvalues = { sky = 3, wing = 2, beak = 1 }\n'
    )
    before = dict(DATASETS._registered)
    try:
        dataset = describe("reversed", own)(own)
        folder = written(dataset, own / "labels", "files", "train")
        label = prepared(dataset, folder, tmp_path)
        assert np.unique(label).tolist() == [0, 1, 2, 254]
        for file in folder.glob("*.png"):
            write_index(file, np.full_like(label, 2))
        assert (prepared(dataset, folder, tmp_path, encoding="classes", unlabelled=255) == 2).all()
        assert (prepared(dataset, folder, tmp_path) == 1).all()
    finally:
        DATASETS._registered.clear()
        DATASETS._registered.update(before)


@pytest.mark.parametrize("kind", ["classes", "files"])
def test_pseudo_labels_are_read_in_the_numbers_that_are_said(
    sets: dict[str, Dataset], tmp_path: Path, kind: str
) -> None:
    dataset = sets["ade20k"]
    folder = written(dataset, tmp_path / "pseudo", kind, "train")
    truth = dataset.read_mask(dataset.ids("train")[0], "train")
    first = folder / f"{dataset.ids('train')[0]}.png"
    label = read_index(first)
    label[0, 0], truth[0, 0] = (150, 149) if kind == "files" else (149, 149)
    write_index(first, label)

    def read(**spec: object) -> np.ndarray:
        own = LabelSpec(**spec)  # type: ignore[arg-type]
        store = prepare_labels(dataset, "train", "scribble", own, cache=tmp_path, labels_from=str(folder))
        label = store.read(store.ids[0])
        assert label is not None
        return label

    expected = np.where(truth == 255, 254, truth)
    assert np.array_equal(read(encoding=kind), expected)
    if kind == "files":
        assert np.array_equal(read(), expected), "150 is no class number"
    else:
        with pytest.raises(UserError, match=r"labels\.encoding = classes"):
            read()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_exported_in_the_numbers_of_files_are_the_files(
    sets: dict[str, Dataset], tmp_path: Path, name: str
) -> None:
    dataset = sets[name]
    labels = [(i, dataset.read_mask(i, "val")) for i in dataset.ids("val")]
    for path in write_labels(labels, tmp_path, dataset, "files"):
        own = dataset.mask_path(path.stem, "val")
        assert own is not None
        values, stored = read_index(path), read_index(own)
        classes = dataset.read_mask(path.stem, "val") != 255
        if name != "coco2014":  # whose maps this project draws, in class numbers
            assert np.array_equal(values[classes], stored[classes])
        colours = np.array(Image.open(path).convert("RGB"))
        expected = np.array(dataset.info.palette)[dict(labels)[path.stem][classes]]
        assert np.array_equal(colours[classes], expected), "each number has the colour of its class"
    assert score_predictions(dataset, tmp_path, "val", "files").figures["miou"] == 100.0


@pytest.mark.parametrize("shift", [1, -1, 0])
def test_labels_in_other_numbers_than_the_masks_are_warned_of(tmp_path: Path, shift: int) -> None:
    (tmp_path / "dataset.toml").write_text('classes = ["sky", "bird", "tree", "sea", "sand"]\n')
    (tmp_path / "train.txt").write_text("a\nb\n")
    for folder in ("images", "masks", "scribbles"):
        (tmp_path / folder).mkdir()
    mask = np.repeat(np.arange(1, 4, dtype=np.uint8), 12)[:, None].repeat(20, 1)
    stroke = np.full(mask.shape, 255, np.uint8)
    stroke[::6, 3:9] = (mask[::6, 3:9].astype(int) + shift).astype(np.uint8)
    for name in "ab":
        Image.fromarray(np.zeros((*mask.shape, 3), np.uint8)).save(tmp_path / "images" / f"{name}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{name}.png")
        Image.fromarray(stroke).save(tmp_path / "scribbles" / f"{name}.png")
    dataset = describe("numbered", tmp_path)(tmp_path)
    spec = LabelSpec(source="official", format="png", folder="scribbles", unlabelled=255)
    found = prepare_labels(dataset, "train", "scribble", spec, cache=tmp_path / "cache")
    warned = [text for text in found.warnings if "check numbering" in text]
    assert len(warned) == abs(shift)
    assert all("higher" in text if shift < 0 else "lower" in text for text in warned)
    (tmp_path / "masks" / "a.png").write_bytes(b"")  # which nobody trains on
    again = prepare_labels(dataset, "train", "scribble", spec, cache=tmp_path / "cache")
    assert again.fingerprint == found.fingerprint
    DATASETS.forget("numbered")
