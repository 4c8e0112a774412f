"""The miniature data set: drawn the same everywhere, written whole, legal and balanced."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.basics.errors import UserError
from harness.basics.files import write_json
from harness.basics.reading import read_json
from harness.data.sets import mini, mini_scenes
from harness.data.sets.mini import Mini


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> Mini:
    """The whole default data set, generated as `wsss data mini` does."""
    return Mini.locate(None, tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize(
    ("split", "index", "digest"),
    [
        ("train", 0, "b0bfb3f6775c2f81d2229792d23c101bc846dfeda71a4bdb19811601a82e239f"),
        ("train", 399, "c8a8865900309c9d147b425669eee70c5157cf43418dfb6bb56af1012d529672"),
        ("val", 7, "efb39d990f43fda29d7211d50bdb53b2c54a6aeb88b944913457a4342977e200"),
    ],
)
def test_scenes_are_pinned(split: str, index: int, digest: str) -> None:
    found = mini.arrays_sha256([mini_scenes.scene(0, split, index)])
    assert found == digest, "the generator changed: raise VERSION, and renew digests and weights"


def test_single_objects_are_pinned() -> None:
    digest = hashlib.sha256()
    for index in range(4):
        image, kind = mini_scenes.single_object(0, index)
        assert image.shape == (56, 56, 3)
        assert image.dtype == np.uint8
        digest.update(image.tobytes() + bytes([kind]))
    assert digest.hexdigest() == "3ecffda5cfec1d182d549d2525fa812ce8dbc6e590e9b0ff4f6acf50bfd9b921"


def test_scattered_objects_lie_anywhere_or_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    inside: list[np.ndarray] = []
    compose = mini_scenes._compose

    def recorded(rng: np.random.Generator, grid: Any, objects: Any, clutter: int) -> Any:
        inside.extend(surface.distance < 0 for surface in objects)
        return compose(rng, grid, objects, clutter)

    monkeypatch.setattr(mini_scenes, "_compose", recorded)
    middles = {}
    for draw in (mini_scenes.single_object, mini_scenes.scattered_object):
        inside.clear()
        drawn = [draw(3, index) for index in range(120)]
        assert {image.shape for image, _ in drawn} == {(56, 56, 3)}
        missing = sum(kind == 6 for _, kind in drawn)
        assert len(inside) == 120 - missing
        assert 8 < missing < 28 if draw is mini_scenes.scattered_object else missing == 0
        assert {kind for _, kind in drawn} >= set(range(6))
        assert min(shape.sum() for shape in inside) > 50, "enough of it is in the picture"
        middles[draw] = np.array([[m.mean() for m in np.nonzero(shape)] for shape in inside]) / 56
        assert np.abs(middles[draw].mean(0) - 0.5).max() < 0.1
    near, far = (np.abs(middles[d] - 0.5).max() for d in middles)
    assert near < 0.25 < 0.28 < far


def test_scattered_objects_are_pinned() -> None:
    digest = hashlib.sha256()
    for index in range(20):
        image, kind = mini_scenes.scattered_object(0, index)
        digest.update(bytes([kind]) + image.tobytes())
    assert digest.hexdigest() == "0d1adf80fb04c7b651ac6e782ab9fb24af5ad325491d7da800a30e388c78baee"


def test_default_data_set_is_the_reference(default: Mini) -> None:
    """The files hold the arrays that were drawn, and those are the ones all reported numbers rest on."""
    assert read_json(default.root / "manifest.json")["sha256"] == mini.REFERENCE
    assert mini.stored_sha256(default) == mini.REFERENCE


def test_scenes_depend_on_seed_split_and_index_alone(tmp_path: Path) -> None:
    few = Mini(mini.generate(tmp_path / "mini", seed=5, train=2, val=1))
    for split, index in (("train", 1), ("val", 0)):
        image, mask = mini_scenes.scene(5, split, index)
        np.testing.assert_array_equal(few.read_image(f"{split}_{index:04d}"), image)
        np.testing.assert_array_equal(few.read_mask(f"{split}_{index:04d}", split), mask)
    different = [mini_scenes.scene(*key)[0] for key in ((5, "train", 1), (6, "train", 1), (5, "val", 1))]
    assert len({image.tobytes() for image in different}) == 3


@pytest.mark.parametrize("split", ["train", "val"])
def test_masks_are_legal_and_classes_balanced(default: Mini, split: str) -> None:
    ids = default.ids(split)
    assert len(ids) == Mini.info.splits[split]
    masks = [default.read_mask(i, split) for i in ids]
    images = [default.read_image(i) for i in ids]
    assert all(
        m.shape == x.shape[:2] and 64 <= min(m.shape) <= max(m.shape) <= 96
        for m, x in zip(masks, images, strict=True)
    )
    pixels = sum(np.bincount(m.ravel(), minlength=256) for m in masks)
    assert set(np.flatnonzero(pixels)) == {*range(7), 255}
    share = pixels / pixels.sum()
    assert 0.6 < share[0] < 0.85
    assert (share[1:7] > 0.015).all()
    assert (share[1:7] < 0.06).all()
    assert share[255] < 0.08
    np.testing.assert_array_equal(default.tags(ids), [[0, *(np.isin(np.arange(1, 7), m))] for m in masks])


def test_void_separates_objects_from_their_surroundings(default: Mini) -> None:
    """No two classes touch, and void is one pixel wide: it touches what it separates."""
    for image_id in default.ids("val")[:20]:
        mask = default.read_mask(image_id, "val").astype(int)
        for first, second in ((mask[:, :-1], mask[:, 1:]), (mask[:-1], mask[1:])):
            assert not ((first != second) & (first < 255) & (second < 255)).any()
        void = mask == 255
        assert 0 < void.mean() < 0.2
        padded = np.pad((mask > 0) & ~void, 1)
        height, width = mask.shape
        near = [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)]
        assert (np.any(near, axis=0)[void]).mean() > 0.8  # the rest lies where things overlap


def test_colour_does_not_tell_the_classes(default: Mini) -> None:
    """Mean colours of the classes differ by far less than colours vary within one class."""
    means: list[list[np.ndarray]] = [[] for _ in range(7)]
    for image_id in default.ids("train"):
        image, mask = default.read_image(image_id), default.read_mask(image_id, "train")
        for label in np.unique(mask[mask < 255]):
            means[label].append(image[mask == label].mean(0))
    centres = np.array([np.mean(m, 0) for m in means])
    spread = np.mean([np.std(m, 0) for m in means])
    assert np.ptp(centres, 0).max() < spread


def test_simultaneous_generation_leaves_one_whole_folder(tmp_path: Path) -> None:
    root = tmp_path / "mini"
    with ThreadPoolExecutor(4) as pool:
        places = list(pool.map(lambda _: mini.generate(root, train=6, val=3), range(4)))
    assert set(places) == {root}
    assert [p.name for p in tmp_path.iterdir()] == ["mini"]
    assert len(list((root / "JPEGImages").iterdir())) == 9
    assert Mini(root).read_mask("train_0005", "train").dtype == np.uint8


def test_failed_generation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mini, "write_tags", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        mini.generate(tmp_path / "mini", train=1, val=1)
    assert list(tmp_path.iterdir()) == []


def test_existing_folder_is_kept_or_refused(tmp_path: Path) -> None:
    root = mini.generate(tmp_path / "mini", train=2, val=1)
    before = (root / "manifest.json").stat().st_mtime_ns
    assert mini.generate(root, train=2, val=1) == root
    assert (root / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="does not hold"):
        mini.generate(root, train=3, val=1)


def test_other_pictures_than_the_reference_are_announced(default: Mini) -> None:
    path = default.root / "manifest.json"
    manifest = read_json(path)
    write_json(path, manifest | {"sha256": dict.fromkeys(("train", "val"), "0" * 64)})
    try:
        with pytest.warns(UserWarning, match="not comparable"):
            mini.generate(default.root)
    finally:
        write_json(path, manifest)


def test_a_data_root_with_generated_scenes_is_used(default: Mini, tmp_path: Path) -> None:
    assert Mini.locate(default.root.parent, tmp_path).root == default.root
    assert list(tmp_path.iterdir()) == []
