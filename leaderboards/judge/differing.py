"""In what two rows differ beside their figures, in words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from harness.recipes.resolving import flattened
from leaderboards.rows.row import Row
from leaderboards.rows.text import DASH

#: Words of keys that are abbreviations; every other key reads as it is spelt.
_WORDS = {
    "lr": "learning rate",
    "amp": "mixed precision",
    "accumulate": "batches per step",
    "betas": "moments (betas)",
    "labels_from": "pseudo labels from",
    "per_group": "pictures per group",
    "sync_bn": "normalisation over devices",
    "clip_norm": "largest gradient",
}
#: Sections whose keys need no section's name before them.
_PLAIN = ("", "config")
#: Keys that rows of one table share, or that stand in words of their own.
_LEFT_OUT = ("method", "supervision", "backbone", "weights", "evaluation")
#: Longest value; of a longer one its beginning says enough.
_LONGEST = 80

Difference = tuple[str, str, str]


def what_differs(a: Row, b: Row) -> list[Difference]:
    """What differs between the trainings of two rows: its name, and its value in either.

    Method and training values of the recipes are compared, hyper-parameters of the methods where both rows
    have the same method, and seeds, data, commit and machine. A row without records (predictions from
    outside) has only what the row itself says; a key that only one record has is no difference.
    """
    pairs = [
        ("method", a.title, b.title),
        ("supervision", a.supervision, b.supervision),
        ("weak label", a.weak_label, b.weak_label),
        ("selection", a.selection, b.selection),
        ("backbone", a.backbone, b.backbone),
        ("pretrained weights", a.weights, b.weights),
    ]
    if a.records and b.records:
        ours, theirs = (_values(row) for row in (a, b))
        same_method = a.method == b.method
        keys = [k for k in ours if k in theirs and (same_method or not k.startswith("config"))]
        pairs += [(words_of(key), _text(ours[key]), _text(theirs[key])) for key in keys]
    pairs += [
        ("seeds", _seeds(a), _seeds(b)),
        ("training pictures", _pictures(a), _pictures(b)),
        ("commit", a.commit, b.commit),
        ("machine", a.cost.machine, b.cost.machine),
    ]
    return [(name, x or DASH, y or DASH) for name, x, y in pairs if x != y]


def words_of(key: str) -> str:
    """A recipe's key as a reader says it: ``optimiser.lr`` is ``optimiser: learning rate``."""
    section, _, name = key.rpartition(".")
    words = _WORDS.get(name) or " ".join(_WORDS.get(word, word) for word in name.split("_"))
    return words if section in _PLAIN else f"{section.replace('.', ', ').replace('_', ' ')}: {words}"


def _values(row: Row) -> dict[str, Any]:
    values: Mapping[str, Any] = row.records[0].recipe
    return {k: v for k, v in flattened(values).items() if k.partition(".")[0] not in _LEFT_OUT}


def _seeds(row: Row) -> str:
    return ", ".join(map(str, row.seeds))


def _pictures(row: Row) -> str:
    train = row.records[0].data.get("data", {}).get("splits", {}).get("train", {}) if row.records else {}
    return str(train.get("images", ""))


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value == "":
        return "none"
    if isinstance(value, str):
        text = value
    elif isinstance(value, Sequence) and all(isinstance(v, int | float | str) for v in value):
        text = ", ".join(map(str, value))
    else:
        text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
