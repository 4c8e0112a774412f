"""``wsss data verify``: all splits of a data set checked against the official numbers and one another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.data.base import Dataset
from harness.data.verify import SplitReport, check_split
from harness.errors import UserError

#: How many offenders of each split are printed.
_SHOWN = 5


@dataclass(frozen=True)
class DatasetReport:
    """What was found in a data set.

    Attributes:
        name: registry name.
        root: its folder.
        splits: what was found in each split that is here.
        absent: splits that are not here, with the reason.
        overlaps: training splits that share pictures with splits that are scored.
    """

    name: str
    root: Path
    splits: tuple[SplitReport, ...]
    absent: tuple[tuple[str, str], ...]
    overlaps: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether a run may trust what is here."""
        return bool(self.splits) and not self.overlaps and not any(s.offenders for s in self.splits)

    @property
    def fingerprint(self) -> str | None:
        """SHA-256 over the fingerprints of all splits that are here; None where something is wrong."""
        if not self.sound:
            return None
        text = "".join(f"{s.split}\0{s.fingerprint}\n" for s in self.splits)
        return hashlib.sha256(text.encode()).hexdigest()

    def lines(self) -> Iterator[str]:
        """The report as text."""
        yield f"{self.name} in {self.root}"
        for split in self.splits:
            state = "sound" if not split.offenders else f"{len(split.offenders)} OFFENDERS"
            share = "" if split.images == split.official else f" (a subset of {split.official:,})"
            yield f"  {split.split}: {split.images:,} pictures{share}, {state}, {split.looked_at:,} read now"
            for error in split.offenders[:_SHOWN]:
                yield f"    {error.problem}: {error.where}" + (f" [{error.remedy}]" if error.remedy else "")
            if len(split.offenders) > _SHOWN:
                yield f"    and {len(split.offenders) - _SHOWN} more"
            yield from (f"    note: {note}" for note in split.notes)
        yield from (f"  {split}: not here ({why})" for split, why in self.absent)
        yield from (f"  OVERLAP: {text}" for text in self.overlaps)
        yield f"  fingerprint: {self.fingerprint or 'none, mend what is wrong first'}"

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
                    "offenders": [
                        {"problem": e.problem, "where": e.where, "remedy": e.remedy} for e in s.offenders
                    ],
                    "notes": list(s.notes),
                }
                for s in self.splits
            },
            "absent": dict(self.absent),
            "overlaps": list(self.overlaps),
        }


def verify(
    dataset: Dataset, *, cache: Path, workers: int = 0, splits: Sequence[str] | None = None
) -> DatasetReport:
    """Check a data set: every file opens, sizes agree, values are legal, lists do not overlap.

    Files that were sound before and have not changed are not read again.

    Args:
        dataset: what to check.
        cache: where it is remembered what is sound.
        workers: threads; 0 checks in this one.
        splits: which splits; by default all whose pictures (and masks, where public) are here, and
            ``train`` and ``val`` in any case.

    Raises:
        UserError: an unknown split is asked for, or a list is missing or malformed.
    """
    found: list[SplitReport] = []
    absent: list[tuple[str, str]] = []
    for split in dataset.info.splits if splits is None else splits:
        why = None if splits is not None or split in ("train", "val") else _absent(dataset, split)
        if why is None:
            found.append(check_split(dataset, split, cache=cache, workers=workers))
        else:
            absent.append((split, why))
    return DatasetReport(
        dataset.info.name, dataset.root, tuple(found), tuple(absent), tuple(_overlaps(dataset, found))
    )


def _absent(dataset: Dataset, split: str) -> str | None:
    """Why a split need not be checked: its list, pictures or masks are not here at all."""
    try:
        ids = dataset.ids(split)
        if not any(dataset.image_path(i).exists() for i in ids):
            return "none of its pictures"
        masks = [p for i in ids if (p := dataset.mask_path(i, split)) is not None]
        return "none of its masks" if masks and not any(p.exists() for p in masks) else None
    except UserError as error:
        return error.problem


def _overlaps(dataset: Dataset, found: Sequence[SplitReport]) -> Iterator[str]:
    """Pictures that are trained on and scored, by id and by content."""
    training = [s for s in found if s.split.startswith("train") and s.split != "trainval"]
    scored = [s for s in found if s.split.startswith(("val", "test"))]
    for one in training:
        for other in scored:
            both = sorted(set(dataset.ids(one.split)) & set(dataset.ids(other.split)))
            if both:
                yield f"{len(both)} ids of {other.split} are in {one.split}, such as {both[0]}"
            named = set(both)
            contents = {sha: i for i, sha in one.pictures.items() if i not in named}
            twins = [(i, contents[s]) for i, s in other.pictures.items() if s in contents and i not in named]
            if twins:
                yield (
                    f"{len(twins)} pictures of {other.split} are copies of pictures of {one.split}, such as "
                    f"{twins[0][0]} of {twins[0][1]}"
                )
