"""The qualitative grid: the same pictures for all, right colours, predictions from files."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from synthetic import Factory, counts

from harness.basics.files import cache_folder
from harness.data.base import UNLABELLED
from harness.data.images import save_index
from harness.records.records import PerImage
from harness.running.trials.trial import open_dataset
from leaderboards.plots.qualitative import (
    ERRORS,
    PAGE,
    _Grid,
    choose_pictures,
    coloured,
    draw_grids,
    errors,
    on_picture,
    weak_label_of,
    write_grids,
)
from leaderboards.rows.gathering import gather_records
from leaderboards.rows.row import Row
from leaderboards.rows.tables import leaderboard

PALETTE = ((0, 0, 0), (128, 0, 0), (0, 128, 0))


def rgb(name: str) -> list[int]:
    return [int(ERRORS[name][i : i + 2], 16) for i in (1, 3, 5)]


def test_errors_are_told_apart() -> None:
    mask = np.array([[0, 0, 1, 1, 1, 255]], dtype=np.uint8)
    prediction = np.array([[0, 2, 1, 0, 2, 1]], dtype=np.uint8)
    found = errors(prediction, mask, 0)[0].tolist()
    right = found[0]
    assert found[2] == right
    assert found[1] == rgb("background called object")
    assert found[3] == rgb("object missed")
    assert found[4] == rgb("wrong class")
    assert found[5] == [255, 255, 255]
    without = errors(prediction, mask, None)[0].tolist()
    assert without[1] == without[3] == rgb("wrong class")


def test_classes_have_the_palette_and_void_is_white() -> None:
    assert coloured(np.array([[1, 2, 255]], dtype=np.uint8), PALETTE)[0].tolist() == [
        [128, 0, 0],
        [0, 128, 0],
        [255, 255, 255],
    ]


def test_strokes_are_wide_enough_to_see() -> None:
    label = np.full((320, 320), UNLABELLED, dtype=np.uint8)
    label[160] = 1
    shown = on_picture(label, np.zeros((320, 320, 3), dtype=np.uint8), PALETTE)
    assert (shown[:, 5] == [128, 0, 0]).all(-1).sum() == 5  # two pixels on either side


def test_pictures_stand_at_quantiles_of_every_method(factory: Factory) -> None:
    labelled = np.full((11, 4), 100)
    runs = []
    for shift in (0, 3):
        hit = np.tile(np.roll(np.arange(11), shift)[:, None] * 8 + 1, 4)
        runs.append(PerImage(tuple(f"i{k:02d}" for k in range(11)), hit, labelled.copy(), labelled))
    for name, run in zip(("agmm/mini-a", "pce/mini-a"), runs, strict=True):
        factory.record(factory.resolved(name), per_image=run)
    rows = leaderboard(gather_records(factory.store), resamples=5)
    scores = np.mean([r.intersection[:, 0] / (200 - r.intersection[:, 0]) for r in runs], axis=0)
    order = np.argsort(scores, kind="stable")
    assert choose_pictures(rows, (0.0, 0.5, 1.0)) == [f"i{order[k]:02d}" for k in (0, 5, 10)]
    assert choose_pictures(rows) == choose_pictures(rows[::-1])


@pytest.fixture
def scored(factory: Factory) -> list[Row]:
    """Two methods with predictions on disk for every picture of mini's val."""
    dataset = open_dataset("mini", (), cache_folder())
    ids = tuple(dataset.ids("val"))
    for index, name in enumerate(("agmm/mini-a", "pce/mini-a")):
        run = counts(100, 0.5 + 0.2 * index, index, classes=7)
        run = PerImage(ids, run.intersection, run.predicted, run.labelled)
        resolved = factory.resolved(name, supervision="scribble")
        record = factory.record(resolved, per_image=run, classes=dataset.info.classes)
        (evaluation,) = record.evaluations.values()
        for image_id in choose_pictures(
            leaderboard(gather_records(factory.store), resamples=5), np.linspace(0, 1, 100).tolist()
        ):
            mask = dataset.read_mask(image_id, "val")
            mask = np.where(mask == 255, 0, mask).astype(np.uint8)
            save_index(evaluation.path / "predictions" / f"{image_id}.png", mask, dataset.info.palette)
    return leaderboard(gather_records(factory.store), resamples=5)


def test_the_grid_shows_picture_label_truth_and_methods(scored: list[Row], tmp_path: Path) -> None:
    ((stem, figure),) = draw_grids(scored)
    assert stem == "qualitative-mini-scribble-val-single"
    heads = [axes.get_title() for axes in figure.axes[:6]]
    assert heads == ["picture", "weak label", "truth", "", "prediction", "errors"]
    names = {f"{row.title}\n{row.runs[0].miou:.1f} mIoU" for row in scored}
    assert {text.get_text() for text in figure.texts} >= names
    shown = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    assert len(shown) == 3 * (3 + 2 * 2)
    np.testing.assert_array_equal(np.asarray(shown[3]), np.asarray(shown[5]))  # both predict the same map
    files = write_grids(scored, tmp_path, ["png"])
    assert [file.name for file in files] == [f"{stem}.png"]


def test_twelve_methods_fit_a_page_and_do_not_overlap() -> None:
    images = [np.zeros((500, 375, 3), dtype=np.uint8)] * 3
    for methods in (1, 5, 12):
        grid = _Grid(images, methods, classes=21)
        for line in range(2 + methods):
            for column in range(6):
                grid.tile(line, column, images[0], "head" if line in (0, 1, 2) else "")
        assert grid.total <= PAGE + 1e-9
        boxes = [axes.get_position() for axes in grid.figure.axes]
        assert all(0 <= box.x0 < box.x1 <= 1 and 0 < box.y0 < box.y1 < 1 for box in boxes)
        tops = sorted({(round(box.y0, 6), round(box.y1, 6)) for box in boxes})
        assert all(low[1] <= high[0] for low, high in pairwise(tops))


def test_weak_label_is_that_of_the_recipe(scored: list[Row]) -> None:
    dataset = open_dataset("mini", (), cache_folder())
    image_id = dataset.ids("val")[0]
    mask = dataset.read_mask(image_id, "val")
    label = weak_label_of(scored[0], image_id, mask, dataset)
    assert label is not None
    drawn = label != UNLABELLED
    assert 0 < drawn.sum() < 0.5 * drawn.size
    np.testing.assert_array_equal(label[drawn], mask[drawn])


def test_without_predictions_or_data_it_says_so(factory: Factory) -> None:
    dataset = open_dataset("mini", (), cache_folder())
    run = counts(100, 0.5, 0, classes=7)
    run = PerImage(tuple(dataset.ids("val")), run.intersection, run.predicted, run.labelled)
    factory.record(factory.resolved("agmm/mini-a"), per_image=run, classes=dataset.info.classes)
    factory.record(factory.resolved("agmm/voc-a", dataset="voc2012"))
    said: list[str] = []
    assert list(draw_grids(leaderboard(gather_records(factory.store), resamples=5), say=said.append)) == []
    assert "neither predictions nor checkpoints" in said[0]
    assert "no data root for voc2012" in said[1]
