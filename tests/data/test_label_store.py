"""Prepared labels: encoding, tags, fingerprints, resuming, sharing, and what is refused."""

from __future__ import annotations

import itertools
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from damage import ANY
from PIL import Image

from harness.basics.errors import UserError
from harness.data.base import LabelSpec, Supervision
from harness.data.images import read_index, write_index
from harness.data.labels import label_store, weak_labels
from harness.data.labels.label_store import LabelStore, prepare_labels
from harness.data.sets.voc2012 import VOC2012


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def _prepare(dataset: VOC2012, place: Path, supervision: Supervision, **options: object) -> LabelStore:
    spec = options.pop("spec", LabelSpec())
    return prepare_labels(dataset, "train", supervision, spec, cache=place, **options)  # type: ignore[arg-type]


def _label(store: LabelStore, image_id: str) -> np.ndarray:
    path = store.path(image_id)
    assert path is not None
    return read_index(path)


# --- every source ------------------------------------------------------------------------------------


@pytest.mark.parametrize("supervision", ["scribble", "point", "block", "box"])
def test_simulated_labels_are_written_once_in_one_encoding(
    tiny_voc: VOC2012, place: Path, supervision: Supervision
) -> None:
    store = _prepare(tiny_voc, place, supervision, spec=LabelSpec(seed=4, stroke=2))
    assert store.ids == tuple(tiny_voc.ids("train"))
    assert store.tags.shape == (6, 21)
    assert store.tags.dtype == np.uint8
    labelled = pixels = 0
    for row, image_id in enumerate(store.ids):
        mask = tiny_voc.read_mask(image_id, "train")
        label = _label(store, image_id)
        expected = weak_labels.simulate(
            mask, supervision, image_id=image_id, seed=4, num_classes=21, background=0, stroke=2
        )
        np.testing.assert_array_equal(label, expected)
        present = np.bincount(mask.ravel(), minlength=256)[:21] > 0
        np.testing.assert_array_equal(store.tags[row].astype(bool), present)
        labelled, pixels = labelled + (label < 21).sum(), pixels + label.size
    labels = np.stack([_label(store, image_id) for image_id in store.ids])
    assert store.statistics == {
        "images": 6,
        "labelled_share": pytest.approx(labelled / pixels),
        "without_label": 0,
        "classes": {
            name: {"pictures": (labels == k).any((1, 2)).sum(), "pixels": (labels == k).sum()}
            for k, name in enumerate(tiny_voc.info.classes)
            if (labels == k).any()
        },
    }


def test_full_uses_the_masks_where_they_are(tiny_voc: VOC2012, place: Path) -> None:
    store = _prepare(tiny_voc, place, "full")
    assert store.path("2007_000003") == tiny_voc.mask_path("2007_000003", "train")
    assert not list(place.rglob("*.png"))
    mask = tiny_voc.read_mask("2007_000003", "train")
    np.testing.assert_array_equal(store.tags[3] > 0, np.bincount(mask.ravel(), minlength=256)[:21] > 0)


def test_full_copies_masks_of_another_encoding(tiny_voc: VOC2012, place: Path) -> None:
    class Shifted(VOC2012):
        canonical_masks = False

        def read_mask(self, image_id: str, split: str) -> np.ndarray:
            mask = super().read_mask(image_id, split)
            return np.where(mask == 0, np.uint8(255), mask)

    store = _prepare(Shifted(tiny_voc.root), place, "full")
    label = _label(store, "2007_000001")
    mask = tiny_voc.read_mask("2007_000001", "train")
    np.testing.assert_array_equal(label, np.where(mask == 0, 255, mask))


def test_image_supervision_has_tags_and_no_files(tiny_voc: VOC2012, place: Path) -> None:
    store = _prepare(tiny_voc, place, "image")
    assert store.path("2007_000000") is None
    np.testing.assert_array_equal(store.tags, tiny_voc.tags(store.ids))
    classes = store.statistics.pop("classes")
    assert store.statistics == {"images": 6, "labelled_share": 0.0, "without_label": 6}
    tagged = {name: int(n) for name, n in zip(tiny_voc.info.classes, store.tags.sum(0), strict=True) if n}
    assert {name: row["pictures"] for name, row in classes.items()} == tagged


@pytest.fixture
def pseudo(tiny_voc: VOC2012, tmp_path: Path) -> Path:
    """Dense pseudo labels: the masks with class 20 added in a corner, 255 uncertain."""
    folder = tmp_path / "pseudo"
    for image_id in tiny_voc.ids("train"):
        mask = tiny_voc.read_mask(image_id, "train")
        mask[:2, :2] = 20
        write_index(folder / f"{image_id}.png", mask)
    return folder


def test_pseudo_labels_replace_uncertain_by_unlabelled(tiny_voc: VOC2012, place: Path, pseudo: Path) -> None:
    store = _prepare(tiny_voc, place, "image", labels_from=str(pseudo))
    for image_id in store.ids:
        source = read_index(pseudo / f"{image_id}.png")
        np.testing.assert_array_equal(_label(store, image_id), np.where(source == 255, 254, source))
    np.testing.assert_array_equal(store.tags, tiny_voc.tags(store.ids))  # not the classes of the masks
    assert _prepare(tiny_voc, place, "scribble", labels_from=str(pseudo)).tags[:, 20].all()


def _spoilt(kind: str, file: Path, folder: Path) -> None:
    """Put something wrong into a folder of pseudo labels, in place of one file or of the folder."""
    label = read_index(file)
    if kind == "empty folder":
        for one in folder.iterdir():
            one.unlink()
    elif kind == "one is missing":
        file.unlink()
    elif kind == "no folder":
        shutil.rmtree(folder)
    elif kind == "a file for a folder":
        shutil.rmtree(folder)
        folder.write_text("x")
    elif kind == "another size":
        write_index(file, label[:-3])
    elif kind == "turned":
        write_index(file, np.ascontiguousarray(label.T))
    elif kind == "a class too many":
        write_index(file, np.full_like(label, 21))
    elif kind == "a photograph":
        Image.fromarray(np.dstack([label] * 3)).save(file)
    elif kind == "16 bits":
        Image.fromarray(label.astype(np.uint16) * 256).save(file)
    elif kind == "half a file":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif kind == "no picture":
        file.write_text("labels")
    elif kind == "arrays":
        for one in list(folder.iterdir()):
            np.save(one.with_suffix(".npy"), read_index(one))
            one.unlink()
    elif kind == "a folder for a file":
        file.unlink()
        file.mkdir()
    elif kind == "nothing decided":
        for one in folder.iterdir():
            write_index(one, np.full_like(read_index(one), 255))


@pytest.mark.parametrize(
    "kind",
    [
        "empty folder",
        "one is missing",
        "no folder",
        "a file for a folder",
        "another size",
        "turned",
        "a class too many",
        "a photograph",
        "16 bits",
        "half a file",
        "no picture",
        "arrays",
        "a folder for a file",
        "nothing decided",
    ],
)
def test_folders_of_pseudo_labels_of_every_wrong_kind_are_refused(
    kind: str, tiny_voc: VOC2012, place: Path, pseudo: Path
) -> None:
    _spoilt(kind, pseudo / f"{tiny_voc.ids('train')[2]}.png", pseudo)
    with pytest.raises(UserError) as caught:
        _prepare(tiny_voc, place, "image", labels_from=str(pseudo))
    assert "pseudo" in str(caught.value), "the place is named"
    assert len(str(caught.value).splitlines()) <= 8
    assert caught.value.remedy


def test_official_labels_are_converted(tiny_voc: VOC2012, place: Path) -> None:
    folder = tiny_voc.root / "weak"
    folder.mkdir()
    for row, image_id in enumerate(tiny_voc.ids("train")):
        (folder / f"{image_id}.txt").write_text("" if row == 2 else f"{row + 1},5,5,30,20\n")
    spec = LabelSpec(source="official", format="polyline", folder="weak", stroke=1)
    store = _prepare(tiny_voc, place, "scribble", spec=spec)
    assert store.statistics["without_label"] == 1
    assert store.tags[:, 0].sum() == 0
    np.testing.assert_array_equal(np.nonzero(store.tags)[1], [1, 2, 4, 5, 6])
    (folder / "2007_000000.txt").write_text("9,5,5,30,20\n")  # a changed file is seen
    changed = _prepare(tiny_voc, place, "scribble", spec=spec)
    assert changed.tags[0, 9] == 1
    assert changed.fingerprint != store.fingerprint


# --- identity ----------------------------------------------------------------------------------------


def test_fingerprints_tell_labels_apart_and_nothing_else(tiny_voc: VOC2012, place: Path) -> None:
    specs = [
        ("scribble", LabelSpec()),
        ("scribble", LabelSpec(seed=1)),
        ("scribble", LabelSpec(stroke=5)),
        ("point", LabelSpec()),
        ("full", LabelSpec()),
        ("image", LabelSpec()),
    ]
    prints = [_prepare(tiny_voc, place, s, spec=spec).fingerprint for s, spec in specs]  # type: ignore[arg-type]
    assert len(set(prints)) == len(specs)
    again = [_prepare(tiny_voc, place / "b", s, spec=spec).fingerprint for s, spec in specs]  # type: ignore[arg-type]
    assert prints == again


def test_a_changed_mask_gives_new_labels(tiny_voc: VOC2012, place: Path) -> None:
    before = _prepare(tiny_voc, place, "block")
    path = tiny_voc.mask_path("2007_000000", "train")
    assert path is not None
    write_index(path, np.full_like(tiny_voc.read_mask("2007_000000", "train"), 3))
    after = _prepare(tiny_voc, place, "block")
    assert after.folder != before.folder
    np.testing.assert_array_equal(np.flatnonzero(after.tags[0]), [3])


def test_stores_travel_to_loader_workers(tiny_voc: VOC2012, place: Path) -> None:
    for supervision in ("full", "point", "image"):
        store = _prepare(tiny_voc, place, supervision)  # type: ignore[arg-type]
        copy = pickle.loads(pickle.dumps(store))
        assert copy.path("2007_000001") == store.path("2007_000001")


# --- resuming and sharing ----------------------------------------------------------------------------


def test_a_second_run_reads_the_index_alone(
    tiny_voc: VOC2012, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _prepare(tiny_voc, place, "scribble")

    def never(*_: object, **__: object) -> None:
        raise AssertionError("labels were made again")

    monkeypatch.setattr(weak_labels, "simulate", never)
    second = _prepare(tiny_voc, place, "scribble")
    assert second.fingerprint == first.fingerprint
    assert second.statistics == first.statistics
    np.testing.assert_array_equal(second.tags, first.tags)


def test_a_stopped_run_goes_on_where_it_stopped(
    tiny_voc: VOC2012, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _prepare(tiny_voc, place / "undisturbed", "box")
    simulate, calls = weak_labels.simulate, itertools.count()

    def stopped(*args: object, **options: object) -> np.ndarray:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return simulate(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(weak_labels, "simulate", stopped)
    with pytest.raises(KeyboardInterrupt):
        _prepare(tiny_voc, place, "box")
    assert len(list((place / "labels").rglob("*.png"))) == 3
    assert not list((place / "labels").rglob("index.npz"))
    resumed = _prepare(tiny_voc, place, "box")
    assert next(calls) == 4 + 3  # three labels were left to do
    assert resumed.fingerprint == whole.fingerprint
    np.testing.assert_array_equal(resumed.tags, whole.tags)


@pytest.mark.parametrize("damage", ["missing", "cut", "index"])
def test_damaged_labels_are_made_again(tiny_voc: VOC2012, place: Path, damage: str) -> None:
    first = _prepare(tiny_voc, place, "scribble")
    assert first.folder is not None
    path = first.folder / "2007_000004.png"
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:-20])
    else:
        (first.folder / "index.npz").write_bytes(b"nothing")
    again = _prepare(tiny_voc, place, "scribble")
    assert again.fingerprint == first.fingerprint
    assert path.read_bytes() == content


@pytest.mark.parametrize("old", [False, True])
def test_a_label_that_was_poisoned_in_the_cache_is_not_trained_on(
    tiny_voc: VOC2012, place: Path, old: bool
) -> None:
    store = _prepare(tiny_voc, place, "scribble")
    file = store.path("2007_000004")
    assert file is not None
    sound = read_index(file)
    other = np.where(sound == 0, np.uint8(1), sound)
    before = file.stat()
    write_index(file, other)
    with file.open("ab") as stream:  # as large as before, or the size would tell
        stream.write(b"\0" * max(before.st_size - file.stat().st_size, 0))
    grown = file.stat().st_size != before.st_size
    if old:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        if not grown:
            assert _prepare(tiny_voc, place, "scribble").fingerprint == store.fingerprint
        with pytest.raises(UserError, match="not the one that was prepared"):
            store.read("2007_000004")
    again = _prepare(tiny_voc, place, "scribble")
    found = again.read("2007_000004")
    assert found is not None
    np.testing.assert_array_equal(found, sound)
    assert again.fingerprint == store.fingerprint


@pytest.mark.parametrize("name", ANY)
def test_a_damaged_index_or_label_is_made_again(tiny_voc: VOC2012, place: Path, name: str) -> None:
    store = _prepare(tiny_voc, place, "scribble")
    assert store.folder is not None
    for file in (store.folder / "index.npz", store.folder / "2007_000004.png"):
        ANY[name](file)
        if file.suffix == ".npz" and name == "folder":
            file.rmdir()
        again = _prepare(tiny_voc, place, "scribble")
        assert again.fingerprint == store.fingerprint
        assert again.read("2007_000004") is not None


def test_two_runs_may_prepare_the_same_labels_at_once(tiny_voc: VOC2012, place: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(lambda _: _prepare(tiny_voc, place, "scribble"), range(4)))
    assert len({s.fingerprint for s in stores}) == len({s.folder for s in stores}) == 1
    folder = stores[0].folder
    assert folder is not None
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        [*(f"{i}.png" for i in stores[0].ids), "index.npz"]
    )


def test_worker_processes_give_the_same_labels(
    tiny_voc: VOC2012, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.data import parallel

    alone = _prepare(tiny_voc, place / "alone", "scribble")
    monkeypatch.setattr(parallel, "_WORTH_PROCESSES", 0)
    together = _prepare(tiny_voc, place / "together", "scribble", workers=2)
    assert together.fingerprint == alone.fingerprint
    path = tiny_voc.mask_path("2007_000005", "train")
    assert path is not None
    path.write_bytes(b"")
    with pytest.raises(UserError, match="empty file"):  # errors come back whole
        _prepare(tiny_voc, place / "together", "scribble", workers=2)


# --- refused -----------------------------------------------------------------------------------------


def test_a_missing_pseudo_label_is_named(tiny_voc: VOC2012, place: Path, pseudo: Path) -> None:
    (pseudo / "2007_000003.png").unlink()
    with pytest.raises(UserError, match="missing") as caught:
        _prepare(tiny_voc, place, "image", labels_from=str(pseudo))
    assert caught.value.where == str(pseudo / "2007_000003.png")
    shutil.rmtree(pseudo)
    with pytest.raises(UserError, match="no folder of pseudo labels"):
        _prepare(tiny_voc, place, "image", labels_from=str(pseudo))


def test_illegal_and_misfit_pseudo_labels_are_named(tiny_voc: VOC2012, place: Path, pseudo: Path) -> None:
    path = pseudo / "2007_000003.png"
    good = read_index(path)
    write_index(path, np.where(good == 20, np.uint8(21), good))
    with pytest.raises(UserError, match=r"holds \[21\]") as caught:
        _prepare(tiny_voc, place, "image", labels_from=str(pseudo))
    assert caught.value.where == str(path)
    write_index(path, good[:, 1:])
    with pytest.raises(UserError, match="63x48 pixels, its picture 64x48"):
        _prepare(tiny_voc, place, "image", labels_from=str(pseudo))


def test_an_illegal_label_of_a_foreign_reader_is_refused(tiny_voc: VOC2012, place: Path) -> None:
    class Odd(VOC2012):
        def read_official_label(self, image_id: str, supervision: Supervision, spec: LabelSpec) -> np.ndarray:
            return np.full((48, 64), 255, np.uint8)

        def label_files(self, image_id: str, spec: LabelSpec) -> tuple[Path, ...]:
            return ()

    with pytest.raises(UserError, match=r"2007_000000 holds \[255\]"):
        _prepare(Odd(tiny_voc.root), place, "scribble", spec=LabelSpec(source="official"))


def test_splits_without_masks_cannot_be_simulated(tiny_voc: VOC2012, place: Path) -> None:
    with pytest.raises(UserError, match="have no mask"):
        prepare_labels(tiny_voc, "test", "scribble", LabelSpec(), cache=place)


@pytest.mark.real
def test_real_clicks_become_labels(real_data: Path, place: Path) -> None:
    dataset = VOC2012(real_data / "voc")
    spec = LabelSpec(
        source="official",
        format="clicks",
        folder="weak/points_whats_the_point.json",
        background="weak/points_background_from_scribbles.json",
    )
    store = prepare_labels(dataset, "train", "point", spec, cache=place)
    assert store.statistics["images"] == 85
    assert 0.0001 < store.statistics["labelled_share"] < 0.001
    assert (store.tags[:, 1:] <= dataset.tags(store.ids)[:, 1:]).mean() > 0.99
    assert store.folder is not None
    assert (
        label_store.prepare_labels(dataset, "train", "point", spec, cache=place).fingerprint
        == store.fingerprint
    )
