"""The tables of a store as frames, for notebooks and scripts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from harness.recipes.resolving import usable
from harness.records.records import Store
from leaderboards.rows.gathering import gather_records
from leaderboards.rows.metrics import Metric
from leaderboards.rows.metrics import metrics as metrics_named
from leaderboards.rows.row import Row
from leaderboards.rows.tables import CLASS_COLUMNS, class_lines, leaderboard, row_columns, row_lines


def row_frame(rows: Sequence[Row], asked: Sequence[Metric] = ()) -> pd.DataFrame:
    """Rows as :func:`leaderboards.rows.tables.row_lines` gives them, one column for each attribute."""
    return pd.DataFrame(row_lines(rows, asked), columns=list(row_columns(asked)))


def class_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """IoU by class of rows, see :func:`leaderboards.rows.tables.class_lines`."""
    return pd.DataFrame(class_lines(rows), columns=list(CLASS_COLUMNS))


def table(
    store: Store | Path | str = "results",
    *,
    dataset: str | None = None,
    holes: bool = False,
    metrics: Sequence[str] = (),
) -> pd.DataFrame:
    """What ``wsss leaderboard`` shows, one line for each row: means, intervals, published values, verdicts.

    Args:
        store: the record store, its folder or its URI.
        dataset: only this data set.
        holes: with lines for recipes that were not run.
        metrics: names of further metrics (``wsss list metrics``); each adds its mean and ``<name>_std``.

    Returns:
        mIoU in percent; NaN where there is no figure.
    """
    return row_frame(_rows(store, dataset, holes=holes), metrics_named(metrics))


def record_table(store: Store | Path | str = "results") -> pd.DataFrame:
    """Every record and evaluation of a store, one line each: what the rows of :func:`table` are folded from.

    Args:
        store: the record store, its folder or its URI.

    Returns:
        ``name, method, title, dataset, supervision, backbone, weights, weak_label, overrides, digest, seed,
        finished, reason, ended, commit, evaluation, split, protocol, miou`` (percent), ``images,
        official_images``, and the objects ``record`` and ``run`` (:class:`wsss.EvaluationRecord`).
    """
    found = gather_records(store if isinstance(store, Store) else Store(store))
    return found.drop(columns=[name for name in ("key", "code") if name in found])


def class_table(store: Store | Path | str = "results", *, dataset: str | None = None) -> pd.DataFrame:
    """IoU of every class of every row, in percent: mean and deviation over the seeds where it occurs."""
    return class_frame(_rows(store, dataset, resamples=0))


def _rows(
    store: Store | Path | str, dataset: str | None, *, holes: bool = False, resamples: int = 1000
) -> list[Row]:
    found = gather_records(store if isinstance(store, Store) else Store(store))
    rows = leaderboard(found, usable()[0], resamples=resamples)
    return [r for r in rows if (dataset is None or r.dataset == dataset) and (holes or r.n)]
