"""The comparison of two rows: pictures of both ways, and what else differs, in words."""

from __future__ import annotations

import base64
import io
import json
from functools import partial
from typing import Any

import numpy as np
import pytest
from PIL import Image
from synthetic import Factory, counts

from harness.basics.files import cache_folder
from harness.cli.main import invoke
from harness.cli.report import compare_verb as compare_command
from harness.data.images import save_index
from harness.records.records import PerImage
from harness.running.trials.trial import open_dataset
from leaderboards.judge.differing import what_differs, words_of
from leaderboards.plots.thumbnails import MOST_THUMBNAILS, SIDE, look_at
from leaderboards.rows.gathering import gather_records
from leaderboards.rows.row import Row
from leaderboards.rows.tables import leaderboard
from leaderboards.write.pairs import comparison_view


@pytest.fixture
def rows(factory: Factory) -> list[Row]:
    """Two methods scored on mini's val, whose predictions of six pictures were kept."""
    dataset = open_dataset("mini", (), cache_folder())
    ids = tuple(dataset.ids("val"))[:6]
    for index, name in enumerate(("agmm/mini-a", "pce/mini-a")):
        run = counts(6, 0.7 - 0.3 * index, index, classes=7)
        run = PerImage(ids, run.intersection, run.predicted, run.labelled)
        resolved = factory.resolved(name, supervision="scribble", schedule={"steps": 100 + 50 * index})
        record = factory.record(resolved, per_image=run, classes=dataset.info.classes)
        for image_id in ids:
            found = np.full(dataset.read_mask(image_id, "val").shape, 1 + index, dtype=np.uint8)
            (scored,) = record.evaluations.values()
            save_index(scored.path / "predictions" / f"{image_id}.png", found, dataset.info.palette)
    return leaderboard(gather_records(factory.store), resamples=5)


def pairs_of(rows: list[Row], **options: Any) -> dict[str, Any]:
    text = comparison_view(rows, partial(look_at, **options))
    (group,) = json.loads(text.partition('id="pairs">')[2].partition("</script>")[0])
    return group


def opened(address: str) -> Image.Image:
    assert address.startswith("data:image/")
    return Image.open(io.BytesIO(base64.b64decode(address.partition("base64,")[2])))


def test_both_ways_have_pictures_truth_and_either_prediction(rows: list[Row]) -> None:
    group = pairs_of(rows)
    pair = group["pairs"]["0-1"]
    assert pair["first"]
    dataset = open_dataset("mini", (), cache_folder())
    for image_id, *_ in [*pair["first"], *pair["second"]]:
        images = [opened(address) for address in group["pictures"][image_id]]
        assert len(images) == 2 + len(rows)
        assert all(max(image.size) <= SIDE for image in images)
        mask = dataset.read_mask(image_id, "val")
        np.testing.assert_array_equal(np.asarray(images[1]), mask)  # small enough to be shown as it is
        assert [np.unique(np.asarray(image)).tolist() for image in images[2:]] == [[1], [2]]
    assert group["colours"][1] == "#{:02X}{:02X}{:02X}".format(*dataset.info.palette[1])


def test_large_pictures_become_small_and_networks_predict_few(
    rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leaderboards.plots.thumbnails.SIDE", 16)
    found = look_at(rows, list(rows[0].runs[0].per_image.ids))
    assert found is not None
    assert all(max(opened(a).size) <= 16 for images in found.pictures.values() for a in images if a)
    asked: list[int] = []
    monkeypatch.setattr("leaderboards.plots.thumbnails.kept", lambda row, ids: False)
    monkeypatch.setattr("leaderboards.plots.thumbnails._PIXELS", 1)
    monkeypatch.setattr(
        "leaderboards.plots.thumbnails.predicted", lambda row, ids, *_: asked.append(len(ids))
    )
    found = look_at(rows, list(rows[0].runs[0].per_image.ids))
    assert asked == [1, 1]
    assert found is not None
    assert all(images[2:] == [None, None] for images in found.pictures.values())
    assert MOST_THUMBNAILS > 1


def test_without_the_data_the_figures_stand_and_the_reason_is_said(factory: Factory) -> None:
    for name, quality in (("agmm/voc-a", 0.7), ("pce/voc-a", 0.5)):
        factory.record(factory.resolved(name, dataset="voc2012"), quality=quality)
    said: list[str] = []
    group = pairs_of(leaderboard(gather_records(factory.store), resamples=5), say=said.append)
    assert group["pictures"] == {}
    assert len(said) == 1
    assert "no data root for voc2012" in said[0]


def test_the_usual_evaluation_and_a_weak_row_with_its_baseline_come_first(factory: Factory) -> None:
    for name, kind, quality in (
        ("full/mini-f", "full", 0.9), ("agmm/mini-a", "point", 0.7), ("toco/mini-a", "point", 0.6),
        ("pce/mini-a", "point", 0.5),
    ):  # fmt: skip
        factory.record(factory.resolved(name, supervision=kind), quality=quality)
    group = pairs_of(leaderboard(gather_records(factory.store), resamples=5))
    assert [group["rows"][i] for i in group["start"]] == ["AGMM: agmm/mini-a", "PCE: pce/mini-a"]


def test_what_differs_is_said_in_words(rows: list[Row], factory: Factory) -> None:
    found = {name: (x, y) for name, x, y in what_differs(*rows)}
    assert found == {"method": ("AGMM", "PCE"), "schedule: steps": ("100", "150")}
    assert words_of("optimiser.lr") == "optimiser: learning rate"
    assert words_of("config.backbone_lr_scale") == "backbone learning rate scale"
    assert words_of("batch.per_group") == "batch: pictures per group"
    group = pairs_of(rows)
    assert ["schedule: steps", "100", "150"] in group["pairs"]["0-1"]["differing"]


def test_the_verb_says_it_too(rows: list[Row], factory: Factory, capsys: pytest.CaptureFixture) -> None:
    command = ["agmm/mini-a", "pce/mini-a", "--results", str(factory.store.root)]
    assert invoke(compare_command, command) == 0
    assert "schedule: steps  100    150" in capsys.readouterr().out
    assert invoke(compare_command, [*command, "--json"]) == 0
    (plain,) = json.loads(capsys.readouterr().out)
    assert {"what": "schedule: steps", "better": "100", "worse": "150"} in plain["differing"]
