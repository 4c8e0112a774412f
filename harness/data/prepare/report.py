"""``wsss data verify``: all splits of a data set checked against the official numbers and one another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.basics.errors import UserError
from harness.data.base import IGNORE, Dataset
from harness.data.prepare.label_report import LabelReport, Wanted, check_labels
from harness.data.prepare.verify import SplitReport, overlap, verify_split

#: How many offenders of each split are printed.
_SHOWN = 5
#: How many classes of each split are printed; ``--json`` has all.
_CLASSES = 12


@dataclass(frozen=True)
class DatasetReport:
    """What was found in a data set.

    Attributes:
        name: registry name.
        root: its folder.
        splits: what was found in each split that is here.
        absent: splits that are not here, with the reason.
        overlaps: training splits that share pictures with splits that are scored.
        classes: names in label order.
        labels: what was found in weak labels.
    """

    name: str
    root: Path
    splits: tuple[SplitReport, ...]
    absent: tuple[tuple[str, str], ...]
    overlaps: tuple[str, ...]
    classes: tuple[str, ...] = ()
    labels: tuple[LabelReport, ...] = ()

    @property
    def sound(self) -> bool:
        """Whether a run may trust what is here."""
        return self._sound and not any(labels.error for labels in self.labels)

    @property
    def _sound(self) -> bool:
        return bool(self.splits) and not self.overlaps and not any(s.offenders for s in self.splits)

    @property
    def fingerprint(self) -> str | None:
        """SHA-256 over the fingerprints of all splits that are here; None where something is wrong."""
        if not self._sound:
            return None
        text = "".join(f"{s.split}\0{s.fingerprint}\n" for s in self.splits)
        return hashlib.sha256(text.encode()).hexdigest()

    def lines(self) -> Iterator[str]:
        """The report as text."""
        yield f"{self.name} in {self.root}"
        for split in self.splits:
            state = "sound" if not split.offenders else f"{len(split.offenders)} OFFENDERS"
            share = (
                ""
                if split.images == split.official or split.strange
                else f" (a subset of {split.official:,})"
            )
            masks = f"{split.masks:,} with masks" if split.masks < split.images else "all with masks"
            yield (
                f"  {split.split}: {split.images:,} pictures{share}, {masks}, {state}, "
                f"{split.looked_at:,} read now"
            )
            yield from (f"    {line}" for line in self.contents(split))
            for error in split.offenders[:_SHOWN]:
                yield f"    {error.problem}: {error.where}" + (f" [{error.remedy}]" if error.remedy else "")
            if len(split.offenders) > _SHOWN:
                yield f"    and {len(split.offenders) - _SHOWN} more"
            yield from (f"    warning: {text}" for text in split.warnings)
            yield from (f"    note: {note}" for note in split.notes)
        for labels in self.labels:
            yield from labels.lines()
        yield from (f"  {split}: not here ({why})" for split, why in self.absent)
        yield from (f"  OVERLAP: {text}" for text in self.overlaps)
        yield f"  fingerprint: {self.fingerprint or 'none, mend what is wrong first'}"

    def contents(self, split: SplitReport) -> list[str]:
        """What the masks of a split show, as text."""
        if not split.pixels.any():
            return []
        shares = 100 * split.pixels / split.pixels.sum()
        shown = [
            f"{name} {split.occurs[k]:,} ({shares[k]:.1f} %)"
            for k, name in enumerate(self.classes)
            if split.occurs[k]
        ]
        more = f" and {len(shown) - _CLASSES} more" if len(shown) > _CLASSES else ""
        never = [name for k, name in enumerate(self.classes) if not split.occurs[k]]
        lines = [f"masks by class: {', '.join(shown[:_CLASSES])}{more}; void {shares[IGNORE]:.1f} %"]
        if never:
            dots = ", ..." if len(never) > _CLASSES else ""
            lines.append(f"in no mask: {len(never)} classes: {', '.join(never[:_CLASSES])}{dots}")
        return lines

    def as_json(self) -> dict[str, Any]:
        """The report as plain values, with every offender."""
        return {
            "dataset": self.name,
            "root": str(self.root),
            "sound": self.sound,
            "fingerprint": self.fingerprint,
            "splits": {
                s.split: {
                    "images": s.images,
                    "official": s.official,
                    "fingerprint": s.fingerprint,
                    "masks": s.masks,
                    "classes": {
                        name: {"pictures": int(s.occurs[k]), "pixels": int(s.pixels[k])}
                        for k, name in enumerate(self.classes)
                    },
                    "void_pixels": int(s.pixels[IGNORE]),
                    "offenders": [
                        {"problem": e.problem, "where": e.where, "remedy": e.remedy} for e in s.offenders
                    ],
                    "notes": list(s.notes),
                    "warnings": list(s.warnings),
                }
                for s in self.splits
            },
            "absent": dict(self.absent),
            "overlaps": list(self.overlaps),
            **({"labels": [labels.as_json() for labels in self.labels]} if self.labels else {}),
        }


def verify_dataset(
    dataset: Dataset,
    *,
    cache: Path,
    workers: int = 0,
    splits: Sequence[str] | None = None,
    labels: Sequence[Wanted] = (),
) -> DatasetReport:
    """Check a data set: every file opens, sizes agree, values are legal, lists do not overlap.

    Files that were sound before and have not changed are not read again.

    Args:
        dataset: what to check.
        cache: where it is remembered what is sound.
        workers: threads; 0 checks in this one.
        splits: which splits; by default all whose pictures are here.
        labels: weak labels to read as a run does; of pictures in which something is wrong, none are read.

    Raises:
        UserError: an unknown split is asked for, or a list is missing or malformed.
    """
    found: list[SplitReport] = []
    absent: list[tuple[str, str]] = []
    for split in dataset.info.splits if splits is None else splits:
        why = None if splits is not None or split in ("train", "val") else _absent(dataset, split)
        if why is None:
            found.append(verify_split(dataset, split, cache=cache, workers=workers))
        else:
            absent.append((split, why))
    broken = {s.split for s in found if s.offenders}
    read = [
        check_labels(dataset, one, _scored(found), cache=cache, workers=workers)
        for one in labels
        if one.split not in broken
    ]
    return DatasetReport(
        dataset.info.name,
        dataset.root,
        tuple(found),
        tuple(absent),
        tuple(_overlaps(found)),
        tuple(dataset.info.classes),
        tuple(read),
    )


def _absent(dataset: Dataset, split: str) -> str | None:
    """Why a split need not be checked: its list or its pictures are not here at all."""
    try:
        ids = dataset.ids(split)
        return None if any(dataset.image_path(i).exists() for i in ids) else "none of its pictures"
    except UserError as error:
        return error.problem


def _scored(found: Sequence[SplitReport]) -> list[SplitReport]:
    return [s for s in found if s.split.startswith(("val", "test"))]


def _overlaps(found: Sequence[SplitReport]) -> Iterator[str]:
    """Pictures that are trained on and scored, by id and by content."""
    training = [s for s in found if s.split.startswith("train") and s.split != "trainval"]
    for one in training:
        for other in _scored(found):
            if shared := overlap(one, other):
                yield shared
