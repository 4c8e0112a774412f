"""Predictions, checkpoints and finished records, scored: what ``wsss evaluate`` does."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from harness.basics.errors import UserError
from harness.basics.files import check_writable, sha256_of, write_json
from harness.basics.reading import Damaged
from harness.basics.schema import dump
from harness.data.base import Dataset
from harness.data.images import save_index
from harness.data.numbering import Numbering, palette_of, to_files
from harness.data.predictions import FolderPredictions
from harness.data.prepare.verify import preflight
from harness.data.sets.own import register
from harness.data.sets.roots import open_dataset
from harness.engine.networks import build_method, load_noted
from harness.engine.outputs import SEGMENTATION, check_scored
from harness.evaluation import evaluator
from harness.evaluation.boundary import BoundaryCounter
from harness.recipes import protocols
from harness.recipes.given import one
from harness.recipes.names import run_command
from harness.recipes.resolving import Resolved, as_assignments, resolve, training_overrides
from harness.recipes.specs import EvaluationSpec
from harness.records.called import called_rows
from harness.records.locks import trial_lock
from harness.records.records import Record, Store
from harness.records.remote import reported
from harness.running.jobs.calls import Call, results
from harness.running.jobs.job import Event, Resources
from harness.running.trials.mending import make_way
from harness.running.trials.trial import Options, Trial, choose_device, forget_data, prepare
from harness.running.trials.work import evaluate_into_record

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Scored:
    """What was scored.

    Attributes:
        title: which predictions, of what.
        figures: ``miou`` and ``iou`` (one for each of ``classes``) in percent, None where a class is absent;
            ``images``, ``absent`` and the rest of what :func:`harness.evaluation.evaluator.summarise` gives.
    """

    title: str
    figures: Mapping[str, Any]


def score_predictions(
    dataset: Dataset,
    folder: Path,
    split: str,
    encoding: Numbering | None = None,
    *,
    say: Callable[[str], None] = warnings.warn,
) -> Scored:
    """Score label maps of any origin.

    Args:
        dataset: whose masks.
        folder: ``<id>.png`` of every picture of the split.
        split: which pictures.
        encoding: ``classes`` (0..K-1) or ``files`` (the numbers of the data set's own files); by default it
            is found where it can be only one.
        say: is told where other numbers would fit far better.

    Raises:
        UserError: a prediction is missing, damaged, or no label map of this data set; or its numbers can be
            either.
    """
    pairs = FolderPredictions(dataset, folder, split, encoding)
    counts = evaluator.gather(pairs, dataset.info.num_classes)
    if text := pairs.warning():
        say(f"warning: {text}")
    figures = evaluator.summarise(counts, dataset.info.classes, protocols.protocol("single"))
    own = " (numbers of its files)" if pairs.encoding == "files" else ""
    return Scored(f"{folder} on {dataset.info.name} {split}{own}", figures)


def evaluate(
    recipe: str,
    *,
    split: str | None = None,
    protocol: str | None = None,
    network: str = "default",
    output: str = SEGMENTATION,
    overrides: Mapping[str, Any] | None = None,
    checkpoint: Path | None = None,
    table: str | None = None,
    save: Path | None = None,
    encoding: Numbering = "classes",
    options: Options | None = None,
    resources: Resources | None = None,
    store: Store | None = None,
    say: Callable[[str], None] = warnings.warn,
    progress: Callable[[Iterable[Any], int], Iterable[Any]] = lambda pairs, number: pairs,
) -> Iterator[Scored]:
    """Score a recipe's finished records, which keep the result, or a checkpoint from anywhere.

    Args:
        recipe: its name, or a recipe file.
        split: which pictures, those of the recipe's usual evaluation by default.
        protocol: name of a protocol, the recipe's usual one by default.
        network: which of the method's networks.
        output: ``segmentation``, or the name of a pseudo label.
        overrides: recipe values by dotted key that it was trained with, or that only inference reads.
        checkpoint: this file, instead of records.
        table: with ``checkpoint``: the key table of the code that wrote it.
        save: with ``checkpoint``: folder for predictions, counts and figures.
        encoding: with ``save``: ``files`` writes predictions in the numbers of the data set's own files.
        options: records, data and device; usual ones by default.
        resources: of each record on Ray; None scores one after another in this process.
        store: the store of ``options``, for who asks it afterwards what was left out.
        say: is told what a reader of the figures must know.
        progress: with ``checkpoint``: wraps what is counted, of which the number is given.

    Yields:
        One result for the checkpoint, or one for each record. Damaged records are left out and named in
        ``left_out`` of the store.

    Raises:
        UserError: a name is unknown, there is no such record, or the weights do not fit.
    """
    forget_data()
    options = options or Options()
    register(options.data_roots)
    asked = one(recipe, overrides, called_rows(store or options.store))
    recipe, overrides = asked.name, asked.overrides
    resolved = resolve(recipe, overrides)
    check_scored(resolved, split=split, protocol=protocol, network=network, output=output, table=table)
    choose_device(options.device)
    if save is not None:
        check_writable(save)
    usual = resolved.recipe.usual_evaluation
    spec = EvaluationSpec(
        split=split or usual.split, protocol=protocol or usual.protocol, network=network, output=output
    )
    if checkpoint is None:
        at = store or options.store
        yield from _records(recipe, spec, options, resources, at, dict(overrides or {}), say)
    else:
        yield _checkpoint(resolved, checkpoint, table, spec, options, save, encoding, say, progress)


def finished_records(
    recipe: str, store: Store, overrides: Mapping[str, Any], seed: int | None = None
) -> list[Record]:
    """Finished records of a recipe that were trained with these values.

    Args:
        recipe: its name.
        store: where they are.
        overrides: values by dotted key; those that only inference reads are not looked at.
        seed: of this seed alone.

    Raises:
        UserError: the recipe is unknown, or there is no such record.
    """
    asked = resolve(recipe, overrides).essential_values()
    finished = [record for record in store.records(recipe) if record.finished]
    alike = [record for record in finished if trained_with(record, asked, overrides)]
    found = [record for record in alike if seed in (None, record.seed)]
    if not found:
        others = "".join(f"; left out: {error.brief}" for error in store.left_out.values())
        which = "" if seed is None else f" seed {seed}"
        which += " with these values" if finished and not alike else ""
        raise UserError(
            f"no finished record of {recipe}{which}{others}",
            where=store.place,
            remedy=_there(alike or finished, overrides)
            or f"train it first: {run_command(recipe, overrides)}; or name a file with --checkpoint",
        )
    return found


def trained_with(record: Record, asked: Mapping[str, Any], overrides: Mapping[str, Any]) -> bool:
    """Whether a record's overrides come to the values that are asked for, however they are written."""
    own = record.data["overrides"]
    try:
        if training_overrides(record.name, own) == training_overrides(record.name, overrides):
            return True
        return resolve(record.name, own).essential_values() == asked
    except UserError:  # values that are no longer legal
        return False


def _there(records: Sequence[Record], asked: Mapping[str, Any]) -> str:
    """How those records are named on the command line that are there, the nearest first; empty where there is
    none."""
    seeds: dict[str, set[int]] = {}

    def distance(record: Record) -> int:
        own = record.data["overrides"]
        return sum(own.get(key) != asked.get(key) for key in {*own, *asked})

    for record in sorted(records, key=distance):
        seeds.setdefault(as_assignments(record.data["overrides"]), set()).add(record.seed)
    found = [
        f"{f'with {text}' if text else 'without --set'} (seed {', '.join(map(str, sorted(own)))})"
        for text, own in seeds.items()
    ]
    more = f"; and {len(found) - 6} more" if len(found) > 6 else ""
    return f"there are records {'; '.join(found[:6])}{more}" if found else ""


def recorded_checkpoint(recipe: str, seed: int, store: Store, overrides: Mapping[str, Any]) -> Path:
    """The checkpoint of a recipe's newest finished record of a seed.

    Raises:
        UserError: as :func:`finished_records`.
    """
    found = finished_records(recipe, store, overrides, seed)
    newest = max(found, key=lambda record: record.data.get("ended") or "")
    store.pull(newest.path, lambda file: file == "checkpoint/last.pt")
    return newest.path / "checkpoint" / "last.pt"


def _records(
    name: str,
    spec: EvaluationSpec,
    options: Options,
    resources: Resources | None,
    store: Store,
    overrides: dict[str, Any],
    say: Callable[[str], None],
) -> Iterator[Scored]:
    records = finished_records(name, store, overrides)
    calls = [
        Call(
            number,
            f"{name} seed {record.seed}",
            partial(_score, Trial(name, record.seed, overrides), spec, record.digest),
            options,
            record.path,
        )
        for number, record in enumerate(records)
    ]
    for call, (place, title, notes) in of_sound_records(calls, calls, resources, store):
        for note in notes:
            say(note)
        if title is None:
            continue
        with reported():  # it may have been scored on another node
            store.pull(place)
        done = store.get(place)
        assert done is not None
        yield Scored(f"{call.label}: {title}", done.evaluations[title].data)


def of_sound_records(
    items: Sequence[_Item], calls: Sequence[Call], resources: Resources | None, store: Store
) -> Iterator[tuple[_Item, Any]]:
    """What calls on records give, each beside its item; a damaged record is noted in the store, and the other
    seeds go on.

    Raises:
        UserError: that of a call.
    """
    for item, found in zip(items, results(calls, resources, "records"), strict=True):
        if isinstance(found, Damaged):
            store.note(found)
        elif isinstance(found, UserError):
            raise found
        else:
            yield item, found


def _score(trial: Trial, spec: EvaluationSpec, digest: str, options: Options) -> Iterator[Event]:
    """Score a record, unless it has been; gives its folder, the evaluation's name, and what is to be said.
    The name is None where recipe, data or weights have changed since it was trained."""
    notes: list[str] = []
    prepared = prepare(trial, options, evaluations=(spec,))
    if prepared.digest != digest:
        notes.append(f"skipped {trial} {digest}: its recipe, data or weights have changed since")
        yield Event(ended="finished", result=(prepared.folder, None, notes))
        return
    if prepared.missing_evaluations():
        check_writable(prepared.folder)
        method = build_method(prepared.resolved, prepared.device, trial.seed)
        with trial_lock(prepared.folder, timeout=-1), prepared.store.work(prepared.folder):
            if prepared.missing_evaluations():  # nobody else has scored it meanwhile
                notes += make_way(prepared)
                yield from map(Event, evaluate_into_record(prepared, method, spec))
    yield Event(ended="finished", result=(prepared.folder, prepared.evaluation_name(spec), notes))


def _checkpoint(
    resolved: Resolved,
    checkpoint: Path,
    table: str | None,
    spec: EvaluationSpec,
    options: Options,
    save: Path | None,
    encoding: Numbering,
    say: Callable[[str], None],
    progress: Callable[[Iterable[Any], int], Iterable[Any]],
) -> Scored:
    dataset = open_dataset(resolved.recipe.dataset, options.data_roots, options.cache)
    fingerprint = preflight(dataset, [spec.split], cache=options.cache, workers=options.workers)[spec.split]
    device = choose_device(options.device)
    method, notes = load_noted(resolved, device, checkpoint, table, say)
    protocol = protocols.protocol(spec.protocol)
    ids = dataset.masked(spec.split)
    pairs = evaluator.predictions(
        method,
        dataset,
        spec.split,
        protocol,
        ids=ids,
        network=spec.network,
        output=spec.output,
        device=device,
        workers=options.workers,
    )

    numbers = None if encoding == "classes" else to_files(dataset)
    palette = palette_of(dataset, encoding)

    def saved() -> Iterator[tuple[str, Any, Any]]:
        for name, prediction, mask in progress(pairs, len(ids)):
            if save is not None:
                written = prediction if numbers is None else numbers[prediction]
                save_index(save / "predictions" / f"{name}.png", written, palette)
            yield name, prediction, mask

    bands = BoundaryCounter(dataset.info.num_classes)
    counts = evaluator.gather(bands.following(saved()), dataset.info.num_classes)
    figures = evaluator.summarise(counts, dataset.info.classes, protocol)
    if save is not None:
        counts.save(save / "per_image.npz")
        bands.result().save(save / "boundary.npz")
        facts: dict[str, Any] = {
            "spec": dump(spec),
            "encoding": encoding,
            "protocol": dump(protocol),
            "data_fingerprint": fingerprint,
            "config": resolved.inference,
            "notes": notes,
            "checkpoint_sha256": sha256_of(checkpoint),
        }
        write_json(save / "evaluation.json", {**figures, **facts})
    return Scored(f"{checkpoint.name}: {spec.name}", figures)
