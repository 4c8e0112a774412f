"""What all evaluations of the same pictures have in common: the pixels that are labelled in each of them.

A data fingerprint stands for the contents of a split's pictures and masks, so that evaluations with one
fingerprint have counted one truth, whatever they scored.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from harness.basics.reading import Damaged, damaged

if TYPE_CHECKING:
    from harness.records.records import EvaluationRecord

#: Evaluations that must agree: a data set and the fingerprint of what was scored.
Pictures = tuple[str, str]


class Truth(NamedTuple):
    """The labelled pixels of a split, in short.

    Attributes:
        content: hash over ids and counts.
        pictures: number of ids.
        pixels: all labelled pixels.
    """

    content: bytes
    pictures: int
    pixels: int


def truth_of(ids: Sequence[str], labelled: np.ndarray) -> Truth:
    """The truth of a split.

    Args:
        ids: of its N pictures, in order.
        labelled: ``(N, K)`` int64 labelled pixels.
    """
    content = hashlib.blake2b("\0".join(ids).encode(errors="surrogatepass"), digest_size=16)
    content.update(np.ascontiguousarray(labelled).data if labelled.size else b"")
    return Truth(content.digest(), len(ids), int(labelled.sum()))


def contradictions(
    runs: Iterable[tuple[Pictures, EvaluationRecord]], known: Mapping[Pictures, Truth] | None = None
) -> dict[Path, Damaged]:
    """An error, by its folder, for each evaluation that has counted another truth than its pictures have.

    That is the one of the data set where it is known, else what most evaluations of these pictures say. Where
    as many say one thing as another, none of them can be believed.

    Args:
        runs: evaluations whose counts were checked, with what they must agree by.
        known: truths that were counted in the data sets themselves.
    """
    groups: dict[Pictures, list[EvaluationRecord]] = {}
    for pictures, run in runs:
        groups.setdefault(pictures, []).append(run)
    found: dict[Path, Damaged] = {}
    for pictures, members in groups.items():
        own = (known or {}).get(pictures)
        votes = Counter(run.truth for run in members)
        if own is None and len(votes) == 1:
            continue
        first, *others = votes.most_common(2)
        if own is None and first[1] > others[0][1]:
            own = first[0]
        for run in members:
            if run.truth != own:
                found[run.path] = _error(run, own, pictures, known is not None)
    return found


def _error(run: EvaluationRecord, own: Truth | None, pictures: Pictures, asked: bool) -> Damaged:
    said, (dataset, _) = run.truth, pictures
    counted = f"it has counted {said.pixels:,} labelled pixels in {said.pictures:,} pictures"
    if own is None:
        problem = f"{counted}, other evaluations of the same data of {dataset} have counted others"
    elif (own.pixels, own.pictures) == (said.pixels, said.pictures):
        problem = f"{counted}, and not of the classes that these pictures of {dataset} have"
    else:
        problem = f"{counted}, these data of {dataset} have {own.pixels:,} in {own.pictures:,}"
    look = "" if asked else "; `wsss verify-store` compares with the data set"
    return damaged(run.path / "evaluation.json", problem, f"evaluate again{look}")
