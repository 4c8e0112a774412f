"""From the store to a data frame: one line for each record and evaluation, and what makes one stale."""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import pandas as pd

from harness.errors import UserError
from harness.registry import DATASETS, METHODS
from harness.schema import dump
from harness.store.records import EvaluationRecord, Record, Store


def dataset_title(name: str) -> str:
    """A data set's name in tables; the registry name where its package is not installed."""
    try:
        return DATASETS.get(name).info.title
    except UserError:
        return name


def method_title(name: str, titles: Mapping[str, str]) -> str:
    """A method's name in tables: the recorded one, else that of the registry."""
    if name in titles:
        return titles[name]
    try:
        return METHODS.get(name).title
    except UserError:
        return name


def weak_label(recipe: Mapping[str, Any]) -> str:
    """The weak labels of a recipe's values, in a few words."""
    if "weak_label" in recipe:  # of predictions from outside
        return str(recipe["weak_label"])
    if recipe.get("labels_from"):
        return f"pseudo labels from {recipe['labels_from']}"
    kind, spec = recipe["supervision"], recipe.get("labels", {})
    if kind == "full":
        return "dense masks"
    words = [*(["image tags"] if kind == "image" else []), spec.get("source", "simulated")]
    if spec.get("format"):
        words.append(spec["format"].upper() if spec["format"] in ("png", "xml") else spec["format"])
    drawn = spec.get("format") in ("xml", "polyline", "clicks") or spec.get("source") == "simulated"
    if kind in ("scribble", "point") and drawn and "stroke" in spec:
        words.append(f"{spec['stroke']} px")
    return ", ".join(words)


@contextmanager
def without_collector() -> Iterator[None]:
    """No cyclic garbage collection inside: records are trees of dicts, and walking them all, again and
    again, takes a fifth of the time of a large store."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


# --- one line per record and evaluation ----------------------------------------------------------------


def _text(overrides: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in sorted(overrides.items())
    )


def _commit(code: Mapping[str, Any]) -> str:
    commit = code.get("commit")
    name = commit[:9] if commit else f"version {code.get('version', 'unknown')}"
    return f"{name} + changes" if code.get("dirty") else name


def gather(store: Store, pattern: str = "*") -> pd.DataFrame:
    """Every record of a store, one line for each of its evaluations (one line, too, if it has none).

    Columns: ``name, method, title, dataset, supervision, backbone, weights, weak_label, overrides``
    (text), ``digest, seed, finished, reason, ended, commit, train_images, train_official`` and, empty
    without an evaluation, ``evaluation, key`` (digest of the evaluation), ``split, protocol, miou,
    images, official_images``; objects ``record`` and ``run``.
    """
    lines = []
    for record in store.records(pattern):
        data, recipe = record.data, record.recipe
        training = data.get("data", {}).get("splits", {}).get(recipe["train_split"], {})
        line = {
            "name": record.name,
            "method": data["method"],
            "title": data["title"],
            "dataset": recipe["dataset"],
            "supervision": recipe["supervision"],
            "backbone": recipe["backbone"],
            "weights": recipe["weights"],
            "weak_label": weak_label(recipe),
            "overrides": _text(data.get("overrides", {})),
            "digest": record.digest,
            "seed": record.seed,
            "finished": record.finished,
            "reason": data.get("reason") or "",
            "ended": data.get("ended") or "",
            "commit": "" if data.get("external") else _commit(data.get("code", {})),
            "train_images": training.get("images", 0),
            "train_official": training.get("official", 0),
            "record": record,
        }
        runs = list(record.evaluations.values()) if record.finished else []
        lines += [line | _evaluation_line(run) for run in runs or (None,)]
    return pd.DataFrame(lines)


def lines_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The lines of a frame as dicts of plain values; ``to_dict`` looks at the type of every single one."""
    names = list(frame.columns)
    columns = [frame[name].tolist() for name in names]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _evaluation_line(run: EvaluationRecord | None) -> dict[str, Any]:
    if run is None:
        empty = dict.fromkeys(("evaluation", "key", "split", "protocol"), "")
        return empty | {"miou": math.nan, "images": 0, "official_images": 0, "run": None}
    spec = run.data["spec"]
    return {
        "evaluation": run.name,
        "key": f"{run.data['digest']}-{run.data['data_fingerprint']}",
        "split": spec["split"],
        "protocol": spec["protocol"],
        "miou": run.miou,
        "images": run.data["images"],
        "official_images": run.data["official_images"],
        "run": run,
    }


# --- stale records -------------------------------------------------------------------------------------


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping)
        found |= _flat(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return found


class Current:
    """Recipes as they stand now, their values flattened once.

    Args:
        recipes: name to :class:`harness.recipes.Resolved`.
    """

    def __init__(self, recipes: Mapping[str, Any]) -> None:
        self.recipes = recipes
        self._values: dict[str, dict[str, Any]] = {}

    def values(self, name: str) -> dict[str, Any] | None:
        """Dotted key to value of everything that may change the trained network; None if unknown."""
        if name not in self.recipes:
            return None
        if name not in self._values:
            self._values[name] = _flat(dump(self.recipes[name].training_values()))
        return self._values[name]


def changed_keys(record: Record, resolved: Any) -> list[str]:
    """Dotted keys whose value in the recipe is no longer the recorded one (overridden keys aside).

    Args:
        record: a record of the recipe.
        resolved: the :class:`harness.recipes.Resolved` of the recipe as it stands now.
    """
    return _changed(record, _flat(dump(resolved.training_values())))


def _changed(record: Record, now: Mapping[str, Any]) -> list[str]:
    overridden = list(record.data.get("overrides", {}))
    if {"schedule.steps", "schedule.epochs"} & set(overridden):
        overridden += ["schedule.steps", "schedule.epochs"]  # either one replaces the other
    then = _flat(record.recipe)
    differing = [k for k in now if k in then and now[k] != then[k]]
    return [k for k in differing if not any(k == o or k.startswith(f"{o}.") for o in overridden)]


@cache
def _protocol_values(name: str) -> dict[str, Any] | None:
    from harness.evaluation import protocol

    try:
        return {k: v for k, v in dump(protocol(name)).items() if k != "about"}
    except UserError:
        return None


def stale_reason(record: Record, run: EvaluationRecord, current: Current) -> str:
    """Why a record no longer says what its recipe and protocol say, empty if it still does."""
    values = current.values(record.name)
    if values is not None:
        changed = _changed(record, values)
        if changed:
            return f"the recipe has changed since: {', '.join(changed[:4])}" + (
                ", ..." if changed[4:] else ""
            )
    now = _protocol_values(run.data["spec"]["protocol"])
    if now is None:
        return f"the protocol {run.data['spec']['protocol']!r} exists no longer"
    then = run.data["protocol"]
    changed = [k for k in now if k in then and now[k] != then[k]]
    return f"the protocol has changed since: {', '.join(changed)}" if changed else ""


def identity(record: Record, run: EvaluationRecord) -> dict[str, Any]:
    """Fingerprints of what a record was trained and scored on, by the words of a note."""
    data = record.data.get("data", {})
    training = data.get("splits", {}).get(record.recipe["train_split"], {})
    return {
        "training data": training.get("fingerprint"),
        "weak labels": data.get("labels", {}).get("fingerprint"),
        "weights": record.data.get("weights", {}).get("sha256"),
        "evaluation data": run.data["data_fingerprint"],
    }
