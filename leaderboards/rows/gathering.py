"""From the store to a data frame: one line for each record and evaluation, and what makes one stale."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import pandas as pd

from harness.basics.errors import UserError
from harness.basics.reading import damaged
from harness.basics.registry import DATASETS
from harness.basics.schema import Aside, differing, digest, dump, flatten, marks, neutral_values
from harness.recipes import foreign
from harness.recipes.declared import declared
from harness.recipes.row_names import values_text
from harness.records.records import EvaluationRecord, Record, Store
from harness.records.truth import contradictions


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
        return declared(name).title
    except UserError:
        return name


#: The values of a recipe that :func:`weak_label` reads.
WEAK_LABEL_KEYS = ("labels_from", "supervision", "labels")


def weak_label(recipe: Mapping[str, Any]) -> str:
    """The weak labels of a recipe's values, in a few words."""
    if "weak_label" in recipe:  # of predictions from outside
        return str(recipe["weak_label"])
    if recipe.get("labels_from"):
        return f"pseudo labels from {recipe['labels_from']}"
    kind, spec = recipe["supervision"], recipe.get("labels", {})
    if kind == "full":
        return "dense masks"
    if kind == "image":  # read from the data set's file of tags, whatever labels.source says
        return "official image tags"
    words = [spec.get("source", "simulated")]
    if spec.get("format"):
        words.append(spec["format"].upper() if spec["format"] in ("png", "xml") else spec["format"])
    drawn = (
        spec.get("format") in ("xml", "polyline", "clicks", "labelme", "csv")
        or spec.get("source") == "simulated"
    )
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


def _commit(code: Mapping[str, Any]) -> str:
    commit = code.get("commit")
    name = commit[:9] if commit else f"version {code.get('version', 'unknown')}"
    return f"{name} + changes" if code.get("dirty") else name


def _code(data: Mapping[str, Any]) -> str:
    """The code that trained: ours, and that of other packages."""
    code = data.get("code", {})
    other = foreign.told_packages(data)
    return f"{_commit(code)} with {other}" if other else _commit(code)


def external_digest(metadata: Mapping[str, Any]) -> str:
    """What imported predictions fold by: their metadata without ``seed``, ``notes`` and ``encoding``.

    An older version took the notes in; its records fold by this one too.
    """
    return digest({**{k: v for k, v in metadata.items() if k not in ("seed", "encoding")}, "notes": ""})


def gather_records(store: Store, *patterns: str) -> pd.DataFrame:
    """Every record of a store whose recipe matches one of some globs (none: all), one line for each of its
    evaluations (one line, too, if it has none).

    Columns: ``name, method, title, dataset, supervision, backbone, weights, weak_label, overrides``
    (text, or the name given), ``digest, seed, finished, reason, ended, commit, train_images,
    train_official`` and, empty
    without an evaluation, ``evaluation, key`` (digest of the evaluation), ``code`` (identity of the code of
    other packages that trained or scored), ``split, protocol, miou, images, official_images``; objects
    ``record`` and ``run``.

    Evaluations whose counts do not say what their figures say, whose classes are not those of the data set,
    or that have counted another truth than the others of the same pictures, are left out;
    ``frame.attrs["left_out"]`` has the lines that name them and whatever else was left out of the store so
    far (``Store.left_out`` goes on growing where curves and bands are read).
    """
    lines = []
    for record, runs in _believed(store, patterns):
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
            "overrides": data.get("called") or values_text(data.get("overrides", {})),
            "digest": external_digest(data["metadata"]) if data.get("metadata") else record.digest,
            "seed": record.seed,
            "finished": record.finished,
            "reason": data.get("reason") or "",
            "ended": data.get("ended") or "",
            "commit": "" if data.get("external") else _code(data),
            "train_images": training.get("images", 0),
            "train_official": training.get("official", 0),
            "record": record,
        }
        for run in runs or (None,):
            own = {"code": _packages(record, run), **_set_for(record, run)}
            lines.append(line | _evaluation_line(run) | own)
    _tell_apart(lines)
    frame = pd.DataFrame(lines)
    frame.attrs["left_out"] = [error.brief for error in store.left_out.values()]
    return frame


def dataset_classes(name: str) -> tuple[str, ...] | None:
    """Class names of a data set, None where its package is not installed."""
    try:
        return tuple(DATASETS.get(name).info.classes)
    except UserError:
        return None


def _believed(store: Store, patterns: Sequence[str]) -> list[tuple[Record, list[EvaluationRecord]]]:
    """Every record with its sound evaluations, which all have the classes and the truth of their data."""
    classes: dict[str, tuple[str, ...]] = {}
    found = [
        (record, _of_one_data_set(record, classes, store) if record.finished else [])
        for record in store.records(*patterns)
    ]
    wrong = contradictions(
        ((record.recipe["dataset"], run.data["data_fingerprint"]), run)
        for record, runs in found
        for run in runs
    )
    for error in wrong.values():
        store.note(error)
    return [(r, [run for run in runs if run.path not in wrong]) for r, runs in found] if wrong else found


def _of_one_data_set(
    record: Record, known: dict[str, tuple[str, ...]], store: Store
) -> list[EvaluationRecord]:
    """The sound evaluations of a record that have the classes of its data set.

    Of a data set whose package is not installed, the first evaluation says what its classes are.
    """
    name, found = record.recipe["dataset"], []
    for run in record.sound.values():
        own = tuple(run.data["classes"])
        if name not in known:
            known[name] = dataset_classes(name) or own
        if own == known[name]:
            found.append(run)
            continue
        other = next((a for a, b in zip(own, known[name], strict=False) if a != b), f"{len(own)} of them")
        problem = f"its classes are not those of {name} ({other})"
        store.note(damaged(run.path / "evaluation.json", problem, "evaluate again"))
    return found


def _set_for(record: Record, run: EvaluationRecord | None) -> dict[str, str]:
    """The overrides of an evaluation that has some of its own, beside those of its record."""
    own = {} if run is None else run.data.get("config", {})
    if not own:
        return {}
    config, called = {f"config.{k}": v for k, v in own.items()}, record.data.get("called")
    if called:
        return {"overrides": f"{called}, {values_text(config)}"}
    return {"overrides": values_text(record.data.get("overrides", {}) | config)}


def _tell_apart(lines: Sequence[dict[str, Any]]) -> None:
    """Follow a name that several configurations of a recipe were given by what each of them is."""
    meant: dict[tuple[str, str], set[str]] = {}
    for line in lines:
        if called := line["record"].data.get("called"):
            meant.setdefault((line["name"], called), set()).add(values_text(line["record"].data["overrides"]))
    for line in lines:
        called = line["record"].data.get("called")
        if called and len(meant[line["name"], called]) > 1:
            rest = line["overrides"].removeprefix(called)
            line["overrides"] = f"{called}: {values_text(line['record'].data['overrides'])}{rest}"


#: Of the frame that :func:`gather_records` gives.
Line = Mapping[str, Any]


def lines_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The lines of a frame as dicts of plain values; ``to_dict`` looks at the type of every single one."""
    names = list(frame.columns)
    columns = [frame[name].tolist() for name in names]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _packages(record: Record, run: EvaluationRecord | None) -> str:
    """Equal for records that other packages' code of one state has trained and scored."""
    trained = foreign.made_by(record.data)
    last = record.data.get("code", {}).get("packages", [])
    scored = last if run is None else run.data.get("packages", last)
    other = foreign.code_identity(scored) != foreign.code_identity(last)
    return f"{trained}; scored by {foreign.code_identity(scored)}" if other else trained


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


class Current:
    """Recipes as they stand now, their values flattened once.

    Args:
        recipes: name to :class:`harness.recipes.resolving.Resolved`.
    """

    def __init__(self, recipes: Mapping[str, Any]) -> None:
        self.recipes = recipes
        self._values: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}

    def changed(self, record: Record) -> list[str]:
        """Keys in which a record differs from its recipe, as :func:`changed_keys`; none if it is unknown."""
        if record.name not in self.recipes:
            return []
        if record.name not in self._values:
            self._values[record.name] = _values_of(self.recipes[record.name])
        changed = _changed(record, *self._values[record.name])
        return [key for key in changed if key not in self.recipes[record.name].chosen]


def changed_keys(record: Record, resolved: Any) -> list[str]:
    """Dotted keys whose value in the recipe is no longer the recorded one (overridden keys aside).

    Args:
        record: a record of the recipe.
        resolved: the :class:`harness.recipes.resolving.Resolved` of the recipe as it stands now.
    """
    return _changed(record, *_values_of(resolved))


def _values_of(resolved: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Dotted key to value of everything that may change the trained network, and to neutral values."""
    return flatten(resolved.training_values()), resolved.neutral_values()


def _changed(record: Record, now: Mapping[str, Any], neutral: Mapping[str, Any]) -> list[str]:
    overridden = list(record.data.get("overrides", {}))
    if {"schedule.steps", "schedule.epochs"} & set(overridden):
        overridden += ["schedule.steps", "schedule.epochs"]  # either one replaces the other
    changed = differing(flatten(record.recipe), now, neutral)
    return [k for k in changed if not any(k == o or k.startswith(f"{o}.") for o in overridden)]


@cache
def _protocol(name: str) -> Any:
    from harness.recipes.protocols import protocol

    try:
        return protocol(name)
    except UserError:
        return None


def protocol_changes(then: Mapping[str, Any], now: Any) -> list[str]:
    """Keys in which a recorded protocol differs from a :class:`harness.recipes.protocols.Protocol`, so that
    numbers may; those that only another version knows are among them."""
    known = dump(now)
    decisive = {k: v for k, v in known.items() if k not in marks(type(now), Aside)}
    return differing(then, decisive, neutral_values(now)) + sorted(then.keys() - known.keys())


def stale_reason(record: Record, run: EvaluationRecord, current: Current) -> str:
    """Why a record no longer says what its recipe and protocol say, empty if it still does."""
    changed = current.changed(record)
    if changed:
        return f"the recipe has changed since: {', '.join(changed[:4])}" + (", ..." if changed[4:] else "")
    now = _protocol(run.data["spec"]["protocol"])
    if now is None:
        return f"the protocol {run.data['spec']['protocol']!r} exists no longer"
    changed = protocol_changes(run.data["protocol"], now)
    return f"the protocol has changed since: {', '.join(changed)}" if changed else ""


def data_identity(record: Record, run: EvaluationRecord) -> dict[str, Any]:
    """Fingerprints of what a record was trained and scored on, by the words of a note."""
    data = record.data.get("data", {})
    training = data.get("splits", {}).get(record.recipe["train_split"], {})
    return {
        "training data": training.get("pictures") or training.get("fingerprint"),
        "weak labels": data.get("labels", {}).get("fingerprint"),
        "weights": record.data.get("weights", {}).get("sha256"),
        "evaluation data": run.data["data_fingerprint"],
        "code of other packages": _packages(record, run),
    }
