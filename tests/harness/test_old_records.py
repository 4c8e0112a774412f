"""Every schema version ever written still loads: one record of each is kept in ``records/v<N>``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from harness.evaluation.evaluator import iou_from_counts
from harness.records.records import SCHEMA, Store
from leaderboards.rows.gathering import gather_records
from leaderboards.rows.published import published
from leaderboards.rows.tables import leaderboard
from leaderboards.write.html_report import html_report
from leaderboards.write.report import tables_markdown

FOLDER = Path(__file__).with_name("records")
VERSIONS = [f"v{version}" for version in range(1, SCHEMA + 1)]


def test_a_record_of_every_version_is_kept() -> None:
    assert sorted(folder.name for folder in FOLDER.iterdir()) == sorted(VERSIONS)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_old_record_loads_whole(version: str) -> None:
    records = list(Store(FOLDER / version).records())
    assert records
    for record in records:
        assert f"v{record.data['schema']}" == version
        assert record.finished
        assert not record.history().empty
        assert record.evaluations
        for evaluation in record.evaluations.values():
            counts = evaluation.per_image
            totals = [getattr(counts, k).sum(0) for k in ("intersection", "predicted", "labelled")]
            iou, miou = iou_from_counts(*totals, evaluation.data["protocol"]["classes"])
            assert miou == pytest.approx(evaluation.miou)
            np.testing.assert_allclose(iou, evaluation.iou)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_old_record_is_shown(version: str) -> None:
    rows = leaderboard(gather_records(Store(FOLDER / version)), resamples=20)
    assert rows
    assert all(row.n and row.verdict != "stale" for row in rows), [row.notes for row in rows]
    for text in (tables_markdown(rows), html_report(rows, [], published(), provenance="Old.")):
        assert all(row.recipe in text for row in rows)
