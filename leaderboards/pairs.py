"""Any two rows of the page set against each other: classes, and pictures on which they differ most."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, groupby
from typing import Any

import numpy as np

from leaderboards.columns import recipe_text
from leaderboards.drawing import standing
from leaderboards.gathering import dataset_title
from leaderboards.markup import escape, script_data
from leaderboards.row import Row
from leaderboards.statistics import aligned, two_level_difference

#: Rows of one evaluation that can be picked, the best; ``wsss compare`` takes any.
MOST = 10
#: Pictures of either way.
_PICTURES = 5
_RESAMPLES = 400
#: Counts that are held at once, at most: beyond, the page has no view and `wsss compare` does it.
_NUMBERS = 30_000_000


def comparison_view(rows: Sequence[Row]) -> str:
    """Fields to pick two rows, and the figures of every pair that they may pick; empty without a pair."""

    def key(row: Row) -> tuple[str, str]:
        return row.dataset, row.evaluation

    groups = []
    for (dataset, evaluation), group in groupby(sorted(standing(rows), key=key), key=key):
        members = sorted(group, key=lambda row: -row.mean)[:MOST]
        first = members[0].runs[0].data
        alike = [
            row
            for row in members
            if row.runs[0].data["data_fingerprint"] == first["data_fingerprint"]
            and row.runs[0].data["protocol"] == first["protocol"]
            and row.runs[0].data["classes"] == first["classes"]
        ]
        numbers = sum(row.images * row.n for row in alike) * len(first["classes"])
        if len(alike) > 1 and numbers <= _NUMBERS:
            groups.append(_group(f"{dataset_title(dataset)}, {evaluation}", alike))
    if not groups:
        return ""
    options = "".join(f'<option value="{i}">{escape(g["title"])}</option>' for i, g in enumerate(groups))
    return (
        '<form class="tools" id="pair"><label>Evaluation<select name="group">'
        f'{options}</select></label><label>First<select name="first"></select></label>'
        '<label>Second<select name="second"></select></label></form>'
        '<div id="compared" aria-live="polite"></div>'
        f'<script type="application/json" id="pairs">{script_data(groups)}</script>'
    )


def _group(title: str, rows: Sequence[Row]) -> dict[str, Any]:
    """Figures of rows of one evaluation: IoU by class, and of every pair the interval and the pictures."""
    both = iter(aligned([run.counts() for row in rows for run in row.runs]))
    counts = [[next(both) for _ in row.runs] for row in rows]
    classes = rows[0].runs[0].data["protocol"]["classes"]
    quality = [np.mean([_by_picture(c) for c in own], axis=0) for own in counts]
    pairs: dict[str, Any] = {}
    for i, j in combinations(range(len(rows)), 2):
        found = two_level_difference(counts[i], counts[j], classes=classes, resamples=_RESAMPLES)
        interval = found.difference
        gap = quality[i] - quality[j]
        order = np.argsort(np.where(np.isnan(gap), 0.0, gap), kind="stable")
        ids = counts[i][0].ids

        def told(places: np.ndarray, i: int = i, j: int = j, ids: Sequence[str] = ids) -> list[list[Any]]:
            return [
                [ids[k], round(float(quality[i][k]), 1), round(float(quality[j][k]), 1)]
                for k in places
                if not np.isnan(quality[i][k] - quality[j][k]) and quality[i][k] != quality[j][k]
            ]

        pairs[f"{i}-{j}"] = {
            "figures": [round(float(v), 2) for v in (interval.estimate, interval.low, interval.high)],
            "single": min(len(counts[i]), len(counts[j])) == 1,
            "first": told(order[::-1][:_PICTURES]),
            "second": told(order[:_PICTURES]),
        }
    iou = [[None if v != v else round(v, 1) for v in row.class_spread[0].tolist()] for row in rows]
    return {
        "title": title,
        "rows": [f"{row.title}: {recipe_text(row)}" for row in rows],
        "means": [round(row.mean, 2) for row in rows],
        "classes": list(rows[0].runs[0].data["classes"]),
        "iou": iou,
        "pairs": pairs,
    }


def _by_picture(counts: Any) -> np.ndarray:
    """``(N,)`` mean IoU in percent of each picture over classes that occur in it or are predicted."""
    intersection = np.asarray(counts.intersection, np.float64)
    union = np.asarray(counts.predicted, np.float64) + np.asarray(counts.labelled, np.float64) - intersection
    present = union > 0
    iou = np.where(present, intersection / np.maximum(union, 1), 0.0).sum(1)
    number = present.sum(1)
    return np.where(number > 0, 100 * iou / np.maximum(number, 1), np.nan)
