"""Weak labels for ``wsss data verify``: read as a run reads them, and reported in its words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.basics.errors import UserError
from harness.basics.files import expanded
from harness.data import sense
from harness.data.base import Dataset, LabelSpec, Supervision
from harness.data.labels.label_store import prepare_labels
from harness.data.prepare.verify import SplitReport

#: How many classes are printed.
_CLASSES = 12


@dataclass(frozen=True)
class Wanted:
    """Labels that a recipe trains on.

    Attributes:
        split: whose labels.
        kind: supervision.
        spec: where they are and how they are read.
        labels_from: a folder of pseudo labels in their place.
    """

    split: str
    kind: Supervision
    spec: LabelSpec
    labels_from: str | None = None

    @property
    def place(self) -> str:
        """Folder or file, as it is named."""
        if self.kind == "image" and self.labels_from is None:
            return "image tags"
        drawn = self.spec.folder if self.spec.source == "official" else "simulated from masks"
        return f"{'pseudo' if self.labels_from else self.kind} labels, {self.labels_from or drawn}"

    def is_here(self, dataset: Dataset) -> bool:
        """Whether a file of them lies where they are looked for."""
        if self.kind == "image":
            return Path(getattr(dataset, "tags_path", "")).is_file()
        if not (dataset.root / expanded(self.spec.folder)).exists():
            return False
        return any(dataset.label_files(i, self.spec)[0].exists() for i in dataset.ids(self.split))


@dataclass(frozen=True)
class LabelReport:
    """What was found in the labels of a split.

    Attributes:
        wanted: which labels.
        statistics: as :class:`harness.data.labels.label_store.LabelStore` has them; empty where something
            is wrong.
        warnings: what is likely a mistake.
        error: what keeps a run from training on them.
    """

    wanted: Wanted
    statistics: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    error: UserError | None = None

    def lines(self) -> Iterator[str]:
        """The report as text."""
        split, place = self.wanted.split, self.wanted.place
        if self.error is not None:
            yield f"  {split}, {place}: REFUSED"
            where = f": {self.error.where}" if self.error.where else ""
            yield f"    {self.error.problem}{where}" + (
                f" [{self.error.remedy}]" if self.error.remedy else ""
            )
            return
        found, tags = self.statistics, place == "image tags"
        bare = "" if tags else f", {found['without_label']:,} without label"
        share = "" if tags else f", {100 * found['labelled_share']:.2f} % of the pixels labelled"
        yield f"  {split}, {place}: {found['images']:,} pictures{bare}{share}"
        shown = [f"{name} {row['pictures']:,}" for name, row in found["classes"].items()]
        more = f" and {len(shown) - _CLASSES} more" if len(shown) > _CLASSES else ""
        yield f"    pictures {'with each tag' if tags else 'by class'}: {', '.join(shown[:_CLASSES])}{more}"
        yield from (f"    warning: {text}" for text in self.warnings)

    def as_json(self) -> dict[str, Any]:
        """The report as plain values."""
        error = self.error
        return {
            "split": self.wanted.split,
            "kind": self.wanted.kind,
            "place": self.wanted.place,
            "statistics": dict(self.statistics),
            "warnings": list(self.warnings),
            "error": None
            if error is None
            else {"problem": error.problem, "where": error.where, "remedy": error.remedy},
        }


def check_labels(
    dataset: Dataset, wanted: Wanted, scored: Sequence[SplitReport], *, cache: Path, workers: int = 0
) -> LabelReport:
    """Read the labels of a split, all of them, as a run does before it trains.

    Args:
        dataset: whose pictures.
        wanted: which labels.
        scored: what was found in the splits that would be scored.
        cache: folder of prepared labels, which a run then finds.
        workers: processes; 0 works in this one.
    """
    try:
        labels = prepare_labels(
            dataset,
            wanted.split,
            wanted.kind,
            wanted.spec,
            cache=cache,
            workers=workers,
            labels_from=wanted.labels_from,
        )
    except UserError as error:
        return LabelReport(wanted, error=error)
    seen = sense.taught(dataset.info, wanted.kind, labels.statistics["classes"])
    unseen = (sense.unseen(dataset.info, s.split, s.occurs, seen) for s in scored)
    warnings = (*labels.warnings, *(text for found in unseen for text in found))
    return LabelReport(wanted, labels.statistics, warnings)
