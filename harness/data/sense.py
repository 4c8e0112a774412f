"""Whether labels make sense: what they contain, and what is likely a mistake although no value is illegal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from harness.basics.errors import UserError
from harness.data.base import IGNORE, DatasetInfo

#: Share of pixels from which on strokes and clicks are no strokes and clicks. [our choice]
_MANY = 0.5
#: How many classes a warning names.
_NAMED = 5


def by_class(
    info: DatasetInfo, pictures: np.ndarray, pixels: np.ndarray | None = None
) -> dict[str, dict[str, int]]:
    """What is labelled, for each class that occurs.

    Args:
        info: the data set.
        pictures: ``(K,)`` number of pictures with the class.
        pixels: ``(K,)`` pixels of the class, None of image tags.

    Returns:
        Class name to ``pictures`` and ``pixels``.
    """
    columns = {"pictures": pictures} | ({} if pixels is None else {"pixels": pixels})
    return {
        name: {what: int(numbers[k]) for what, numbers in columns.items()}
        for k, name in enumerate(info.classes)
        if pictures[k]
    }


def of_labels(
    info: DatasetInfo, split: str, kind: str, counts: np.ndarray, sizes: np.ndarray
) -> tuple[str, ...]:
    """What is likely a mistake in the labels of a split.

    Args:
        info: the data set.
        split: whose labels.
        kind: supervision, or ``pseudo``.
        counts: ``(N, K)`` labelled pixels of each picture and class.
        sizes: ``(N,)`` pixels of each picture.

    Raises:
        UserError: nothing is labelled at all.
    """
    total = counts.sum(0)
    if not total.any():
        raise UserError(
            f"not one pixel of the {len(counts)} pictures of {split} is labelled",
            where=f"{kind} labels of {info.name} {split}",
            remedy="check the folder of the labels, and which value is 'not annotated' (labels.unlabelled)",
        )
    found = list(_never(info, np.flatnonzero(total == 0), f"labelled in {split}"))
    if (total > 0).sum() == 1:
        found = [f"all labels of {split} are of one class, {info.classes[int(total.argmax())]!r}"]
    share = total.sum() / max(sizes.sum(), 1)
    if kind in ("scribble", "point") and share > _MANY:
        found.append(
            f"{100 * share:.0f} % of the pixels of {split} are labelled: that is much for {kind} labels"
        )
    return tuple(found)


def of_tags(info: DatasetInfo, split: str, tags: np.ndarray) -> tuple[str, ...]:
    """What is likely a mistake in the image tags of a split.

    Args:
        info: the data set.
        split: whose tags.
        tags: ``(N, K)`` multi-hot.

    Raises:
        UserError: no picture has a tag.
    """
    if not tags.any():
        raise UserError(
            f"none of the {len(tags)} pictures of {split} has an image tag",
            where=f"image tags of {info.name} {split}",
            remedy="check the file of the tags: its columns are the classes",
        )
    foreground = [k for k in range(info.num_classes) if k != info.background]
    total = tags.sum(0)
    found = list(_never(info, [k for k in foreground if not total[k]], f"tagged in {split}"))
    if (total[foreground] > 0).sum() == 1 and len(foreground) > 1:
        found = [f"all image tags of {split} are of one class, {info.classes[int(total.argmax())]!r}"]
    bare = int((~tags.any(1)).sum())
    if bare:
        found.append(f"{bare} of the {len(tags)} pictures of {split} have no image tag")
    return tuple(found)


def of_masks(info: DatasetInfo, split: str, pixels: np.ndarray) -> tuple[str, ...]:
    """What is likely a mistake in the masks of a split.

    Args:
        info: the data set.
        split: whose masks.
        pixels: ``(256,)`` pixels of all masks by label; 255 is void.
    """
    present = np.flatnonzero(pixels[: info.num_classes])
    if not pixels.any() or len(present) > 1:
        return ()
    if not len(present):
        return (f"the masks of {split} are void everywhere: nothing can be learnt from them or scored",)
    name = info.classes[int(present[0])]
    if pixels[IGNORE]:
        share = 100 * pixels[IGNORE] / pixels.sum()
        return (
            f"the masks of {split} show {name!r} alone, and {share:.0f} % void: where 255 marks objects, it "
            "must be the value of a class",
        )
    return (f"the masks of {split} show one class alone, {name!r}",)


def taught(info: DatasetInfo, kind: str, classes: Iterable[str]) -> list[int]:
    """Classes that something is trained to find: those of its labels, and under tags background as well."""
    seen = [info.classes.index(name) for name in classes]
    if info.background is not None and kind == "image":
        seen.append(info.background)  # no image tag names it
    return seen


def unseen(info: DatasetInfo, split: str, occurs: np.ndarray, seen: Sequence[int]) -> tuple[str, ...]:
    """Classes that are scored and that nothing was trained to find.

    Args:
        info: the data set.
        split: that is scored.
        occurs: ``(256,)`` number of its masks in which each label occurs.
        seen: classes that occur in training.
    """
    never = [int(k) for k in np.flatnonzero(occurs[: info.num_classes]) if k not in set(seen)]
    return tuple(_never(info, never, f"in the training labels, and is scored on {split}"))


def _never(info: DatasetInfo, classes: Sequence[int] | np.ndarray, where: str) -> list[str]:
    names = [info.classes[int(k)] for k in classes]
    if info.background is not None and info.classes[info.background] in names:
        names.sort(key=lambda name: name != info.classes[info.background or 0])
    if not names:
        return []
    if len(names) == 1:
        return [f"{names[0]!r} is never {where}"]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    shown = ", ".join(repr(name) for name in names[:_NAMED])
    return [
        f"{len(names)} classes are never {where}: {shown}{more}".replace("and is scored", "and are scored")
    ]
