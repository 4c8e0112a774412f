"""The splits that a trial touches: what is looked at, what can be scored, and what must not be."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from harness.basics.errors import UserError
from harness.basics.schema import digest
from harness.data.base import Dataset
from harness.data.prepare.verify import SplitReport, overlap, sound_split
from harness.data.sets import own
from harness.recipes.specs import EvaluationSpec, Recipe


@cache
def look(dataset: Dataset, split: str, cache_root: Path, workers: int, with_masks: bool) -> SplitReport:
    """One split, looked at once per process. Raises UserError for what is wrong with it."""
    return sound_split(dataset, split, cache=cache_root, workers=workers, with_masks=with_masks)


def scorable(
    recipe: Recipe, dataset: Dataset, asked: bool
) -> tuple[tuple[EvaluationSpec, ...], tuple[str, ...]]:
    """The evaluations of a recipe that a data set has masks for, and what is said of the others.

    Args:
        recipe: whose evaluations.
        dataset: whose masks.
        asked: the evaluations were asked for by name, so that none of them may be left out.

    Raises:
        UserError: one that was asked for cannot be made, or the network shall be selected on a split
            without masks.
    """
    info = dataset.info

    @cache
    def masks(split: str) -> int:
        return len(dataset.masked(split))

    def lack(split: str) -> str:
        if split not in info.splits:
            if asked or not own.is_own(info.name):
                dataset.check_split(split)
            return f"{info.name} has no split {split!r}"
        return "" if masks(split) else f"no picture of {split} has a mask"

    if recipe.selection is not None and (why := lack(recipe.selection.split)):
        raise UserError(
            f"{why}, and the network is selected on it",
            where="selection",
            remedy="name a split with masks: --set selection.split=NAME",
        )
    kept, notes = [], []
    for spec in recipe.evaluation:
        why = lack(spec.split)
        if why and asked:
            raise UserError(
                f"{why}: there is nothing to score", where=dataset.root, remedy="score another split"
            )
        if why:
            notes.append(f"{why}: {spec.name} is not evaluated")
            continue
        kept.append(spec)
        number, whole = masks(spec.split), len(dataset.ids(spec.split))
        if number < whole:
            notes.append(f"{number} of {whole} pictures of {spec.split} have masks: those are scored")
    return tuple(kept), tuple(dict.fromkeys(notes))


def separate(
    recipe: Recipe, dataset: Dataset, splits: Mapping[str, SplitReport], further: Mapping[str, str]
) -> tuple[str, ...]:
    """Refuse to score pictures that were trained on, with labels or without, unless a recipe means to.

    Pseudo labels are made for pictures that are trained on: those of a part of them, as VOC's ``train`` is of
    ``train_aug``, are scored like those of all.

    Args:
        recipe: what is trained on and scored.
        dataset: the data set.
        splits: what was found in the splits.
        further: splits that are trained on without labels, by what they are for.

    Returns:
        What stays with the numbers: which pictures else are trained on, and what is scored of those that are
        where ``overlap = "allow"``.

    Raises:
        UserError: pictures of a scored split are trained on, by id or by content.
    """
    train, segmented = recipe.train_split, {e.split for e in recipe.evaluation if e.output == "segmentation"}
    segmented |= {recipe.selection.split} if recipe.selection is not None else set()
    scored = dict.fromkeys([*(e.split for e in recipe.evaluation), *segmented])
    others = [split for split in dict.fromkeys(further.values()) if split != train]
    trained = {picture for split in (train, *others) for picture in splits[split].pictures}
    notes = [f"{len(splits[s].pictures)} pictures of {s}, without labels, are trained on too" for s in others]
    for split, source in product(scored, (train, *others)):
        labels = split not in segmented and set(splits[split].pictures) <= trained
        shared = "" if split == train or labels else overlap(splits[source], splits[split])
        if shared and split == source:
            shared = f"the pictures of {split} are trained on, without labels"
        if shared and recipe.overlap == "refuse":
            raise UserError(
                shared,
                where=f"{dataset.info.name} in {dataset.root}",
                remedy="take them out of one list; if it is meant so, --set overlap=allow: rows say it",
            )
        if shared:
            notes.append(shared)
    return tuple(notes)


def pictures_of(splits: Mapping[str, SplitReport], train: str, further: Mapping[str, str]) -> str:
    """What a training digest holds of the pictures that are trained on, with labels and without."""
    own = splits[train].of_pictures
    others = {name: splits[split].of_pictures for name, split in further.items()}
    return digest([own, others]) if others else own


def split_facts(dataset: Dataset, found: SplitReport) -> dict[str, Any]:
    """What a record says of a split."""
    images, official = dataset.coverage(found.split)
    facts: dict[str, Any] = {"images": images, "official": official, "fingerprint": found.fingerprint}
    return facts | {"pictures": found.of_pictures, "masks": found.masks}
