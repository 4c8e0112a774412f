"""Any two rows of the page set against each other: classes, and pictures on which they differ most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from leaderboards.judge.differing import what_differs
from leaderboards.plots.drawing import standing, usual_evaluation
from leaderboards.plots.figures import reference_of
from leaderboards.rows.gathering import dataset_title
from leaderboards.rows.row import Row
from leaderboards.rows.statistics import aligned, two_level_difference
from leaderboards.write.columns import recipe_text
from leaderboards.write.markup import html_escape, script_data

if TYPE_CHECKING:
    from leaderboards.plots.thumbnails import Look

#: Rows of one evaluation that can be picked, the best; ``wsss compare`` takes any.
MOST_PAIRS = 10
#: Pictures of either way.
_PICTURES = 4
#: Counts that are held at once, at most: beyond, the page has no view and `wsss compare` does it.
_NUMBERS = 30_000_000


def comparison_view(rows: Sequence[Row], look: Look | None = None) -> str:
    """Fields to pick two rows, and the figures of every pair that they may pick; empty without a pair.

    The evaluation of most rows comes first. ``look`` gives small pictures, see
    :mod:`leaderboards.plots.thumbnails`.
    """

    def key(row: Row) -> tuple[str, bool, str]:
        return row.dataset, row.evaluation != usual[row.dataset], row.evaluation

    shown = standing(rows)
    usual = {
        name: usual_evaluation([r for r in shown if r.dataset == name]) for name in {r.dataset for r in shown}
    }
    groups = []
    for (dataset, _, evaluation), group in groupby(sorted(shown, key=key), key=key):
        members = sorted(group, key=lambda row: -row.mean)[:MOST_PAIRS]
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
            groups.append(_group(f"{dataset_title(dataset)}, {evaluation}", alike, look))
    if not groups:
        return ""
    options = "".join(f'<option value="{i}">{html_escape(g["title"])}</option>' for i, g in enumerate(groups))
    return (
        '<form class="tools" id="pair"><label>Evaluation<select name="group">'
        f'{options}</select></label><label>First<select name="first"></select></label>'
        '<label>Second<select name="second"></select></label></form>'
        '<div id="compared" aria-live="polite"></div>'
        f'<script type="application/json" id="pairs">{script_data(groups)}</script>'
    )


def _group(title: str, rows: Sequence[Row], look: Look | None) -> dict[str, Any]:
    """Figures of rows of one evaluation: IoU by class, and of every pair the interval, what differs, and the
    pictures."""
    both = iter(aligned([run.counts() for row in rows for run in row.runs]))
    counts = [[next(both) for _ in row.runs] for row in rows]
    classes = rows[0].runs[0].data["protocol"]["classes"]
    quality = [np.mean([_by_picture(c) for c in own], axis=0) for own in counts]
    pairs: dict[str, Any] = {}
    for i, j in combinations(range(len(rows)), 2):
        found = two_level_difference(counts[i], counts[j], classes=classes)
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
            "differing": what_differs(rows[i], rows[j]),
            "first": told(order[::-1][:_PICTURES]),
            "second": told(order[:_PICTURES]),
        }
    seen = look(rows, _wanted(pairs)) if look is not None else None
    iou = [[None if v != v else round(v, 1) for v in row.class_spread[0].tolist()] for row in rows]
    return {
        "title": title,
        "rows": [f"{row.title}: {recipe_text(row)}" for row in rows],
        "means": [round(row.mean, 2) for row in rows],
        "classes": list(rows[0].runs[0].data["classes"]),
        "iou": iou,
        "start": _start(rows),
        "pairs": pairs,
        "pictures": {} if seen is None else seen.pictures,
        "colours": [] if seen is None else seen.colours,
    }


def _start(rows: Sequence[Row]) -> tuple[int, int]:
    """The pair that is shown first: the best row under weak labels and its baseline, else the two best."""
    weak = [row for row in rows if row.supervision != "full"]
    if weak:
        base = reference_of([row for row in weak if row.supervision == weak[0].supervision])
        if base is not weak[0]:
            return rows.index(weak[0]), rows.index(base)
    return 0, 1


def _wanted(pairs: Mapping[str, Any]) -> list[str]:
    """Pictures that pairs show: the first of every pair and way, those of better rows before others'."""
    ordered = sorted(pairs, key=lambda name: sum(map(int, name.split("-"))))
    ways = [pairs[name][way] for name in ordered for way in ("first", "second")]
    return list(dict.fromkeys(way[k][0] for k in range(_PICTURES) for way in ways if k < len(way)))


def _by_picture(counts: Any) -> np.ndarray:
    """``(N,)`` mean IoU in percent of each picture over classes that occur in it or are predicted."""
    intersection = np.asarray(counts.intersection, np.float64)
    union = np.asarray(counts.predicted, np.float64) + np.asarray(counts.labelled, np.float64) - intersection
    present = union > 0
    iou = np.where(present, intersection / np.maximum(union, 1), 0.0).sum(1)
    number = present.sum(1)
    return np.where(number > 0, 100 * iou / np.maximum(number, 1), np.nan)
