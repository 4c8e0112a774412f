"""One line of a leaderboard: what was run, its figures, and what stands beside them in print."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from harness.records.records import EvaluationRecord, Record
from leaderboards.rows.cost import Cost

Verdict = Literal[
    "reproduced", "below", "above", "not comparable", "no published value", "external", "stale", "not run"
]
#: The verdict where nobody has printed a value.
UNPUBLISHED: Verdict = "no published value"


@dataclass(frozen=True)
class Row:
    """One line of a leaderboard. Figures are percent or points of mIoU; NaN where there is none.

    Attributes:
        dataset, supervision: the table that it belongs to.
        method, title, recipe: of the method its registry name and its name in tables; of the recipe its name.
        overrides: what the command line changed, empty for the recipe as it stands.
        digest: training digest, empty for a hole.
        backbone, weights, weak_label: what was trained, from what, on what.
        evaluation, protocol: name of the evaluation and of its protocol.
        selection: which network of each training was scored, and what its choice has seen.
        n: finished seeds.
        seeds: their numbers.
        mean, std: mIoU in percent over seeds, and its deviation (divisor n - 1; NaN for n = 1).
        low, high: 95 % bootstrap interval over images, see ``statistics.bootstrap_miou``.
        published, source: published value and its cell id.
        difference: mean - published; NaN where recipe or data are not the published ones.
        tolerance: largest |difference| that counts as reproduced, as recorded by the run.
        share: percent of the ``full`` row of the same data set, backbone, weights and evaluation.
        verdict: see ``tables.verdict_on``; ``stale`` and ``not run`` come before it.
        images, official_images: evaluated, and in the official split.
        split, output: of the evaluation; every output but ``segmentation`` is a pseudo label.
        coverage: share of the labelled pixels with a decision, mean over seeds.
        background: of pseudo labels, share of the decided pixels called background, mean over seeds.
        true_background: of pseudo labels, share of the labelled pixels that are background.
        cost: of the training, see :class:`Cost`.
        commit: of the code that trained, every one of them.
        notes: what a reader must know.
        asked: of a hole, whether it belongs to what is being run (``holes.with_asked``).
    """

    dataset: str
    supervision: str
    method: str
    title: str
    recipe: str
    backbone: str
    weights: str
    weak_label: str
    evaluation: str
    protocol: str
    selection: str = ""
    overrides: str = ""
    digest: str = ""
    n: int = 0
    seeds: tuple[int, ...] = ()
    mean: float = math.nan
    std: float = math.nan
    low: float = math.nan
    high: float = math.nan
    published: float = math.nan
    source: str = ""
    difference: float = math.nan
    tolerance: float = math.nan
    share: float = math.nan
    verdict: Verdict = "not run"
    images: int = 0
    official_images: int = 0
    split: str = ""
    output: str = "segmentation"
    coverage: float = math.nan
    background: float = math.nan
    true_background: float = math.nan
    cost: Cost = field(default_factory=Cost)
    commit: str = ""
    notes: tuple[str, ...] = ()
    asked: bool = True
    runs: tuple[EvaluationRecord, ...] = field(default=(), repr=False, compare=False)
    records: tuple[Record, ...] = field(default=(), repr=False, compare=False)

    @property
    def label(self) -> str:
        """Title, with the overrides where there are any."""
        return f"{self.title} ({self.overrides})" if self.overrides else self.title

    @cached_property
    def class_iou(self) -> np.ndarray:
        """``(n, K)`` IoU in percent of each seed, NaN where absent."""
        return np.stack([run.iou for run in self.runs])

    @cached_property
    def class_spread(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean, standard deviation and number, each ``(K,)``, over the seeds where a class occurs.

        NaN: the mean of none, the deviation of fewer than two.
        """
        values = self.class_iou
        absent = np.isnan(values)
        number = len(values) - absent.sum(0)
        mean = np.where(number > 0, np.where(absent, 0.0, values).sum(0) / np.maximum(number, 1), np.nan)
        squares = np.where(absent, 0.0, (values - mean) ** 2).sum(0)
        std = np.where(number > 1, np.sqrt(squares / np.maximum(number - 1, 1)), np.nan)
        return mean, std, number


def remarks(records: Sequence[Record], key: str) -> list[str]:
    """Remarks of records under a key: each text once, those of some seeds alone with the seeds."""
    seeds: dict[str, list[int]] = {}
    for record in records:
        for text in filter(None, record.data.get(key) or ()):
            seeds.setdefault(text, []).append(record.seed)
    return [
        text if len(own) == len(records) else f"{text} (seed {', '.join(map(str, own))})"
        for text, own in seeds.items()
    ]


def selection_text(record: Record, run: EvaluationRecord) -> str:
    """Which network of a training an evaluation has scored, and what the choice has seen.

    ``last``: nothing chose it; ``best on val, by 100 masks of it``; ``not stated``: predictions from outside.
    """
    if record.data.get("external"):
        return "not stated"
    if run.data["spec"]["checkpoint"] == "last":
        return "last"
    split = (record.recipe.get("selection") or {}).get("split")
    if split is None:
        return "best, on a split that was not recorded"
    facts = record.data.get("data", {}).get("splits", {}).get(split, {})
    masks = facts.get("masks", facts.get("images"))
    seen = "by its masks" if not masks else f"by {masks:,} masks of it"
    reported = ", the split reported here" if split == run.data["spec"]["split"] else ""
    return f"best on {split}{reported}, {seen}"


def makers(records: Sequence[Record]) -> list[str]:
    """Who answers for records that were merged from bundles, one sentence for each."""
    seeds: dict[str, list[int]] = {}
    for record in records:
        for who in dict.fromkeys(shared["made_by"] for shared in record.data.get("shared", ())):
            seeds.setdefault(who, []).append(record.seed)
    return [
        f"made by {who}" + ("" if len(own) == len(records) else f" (seed {', '.join(map(str, own))})")
        for who, own in seeds.items()
    ]


def trainings(rows: Sequence[Row]) -> list[Row]:
    """One row for each training, whatever number of evaluations hangs on it; the first stands for it."""
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        found.setdefault((row.recipe, row.digest), row)
    return list(found.values())
