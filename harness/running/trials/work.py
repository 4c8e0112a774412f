"""A prepared trial at work: train, evaluate, record; stopped at any moment, it goes on where it was."""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from harness.basics import devices, interruption, provenance
from harness.basics.errors import UserError
from harness.basics.files import recordable, sha256_of
from harness.basics.registry import METHODS
from harness.basics.schema import dump
from harness.data.images import save_index
from harness.engine import distributed, faults
from harness.engine.arithmetic import nondeterministic
from harness.engine.loader import TrainingSet
from harness.engine.networks import build_method, load_weights
from harness.engine.training import Status, Trainer
from harness.evaluation import evaluator
from harness.evaluation.boundary import BoundaryCounter
from harness.nn.frozen import frozen_hashes
from harness.recipes import foreign, protocols
from harness.recipes.resolving import training_overrides
from harness.recipes.specs import EvaluationSpec
from harness.records import origin
from harness.records.counts import PerImage
from harness.records.history import gaps
from harness.records.locks import Elsewhere, trial_lock
from harness.records.records import Store
from harness.running.jobs.job import ERROR, write_trace
from harness.running.trials.mending import make_way
from harness.running.trials.tracked import tracked
from harness.running.trials.trial import Prepared

if TYPE_CHECKING:
    from harness.engine.method import Method


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def run_trial(prepared: Prepared) -> Iterator[Status]:
    """Train, evaluate, record; yields wherever progress can be shown.

    What is on disk already is not done again. The trial's folder is locked meanwhile.

    Raises:
        Elsewhere: another process runs the trial, or it was finished since it was admitted: by another
            driver, or by a worker that died before it said so.
    """
    if distributed.from_first(prepared.done):
        raise Elsewhere("kept", "finished meanwhile")
    with ExitStack() as stack:
        other: Exception | None = None
        if distributed.first():  # one lock for all processes of the trial
            try:
                stack.enter_context(trial_lock(prepared.folder))
                stack.enter_context(prepared.store.work(prepared.folder))
                other = Elsewhere("kept", "finished meanwhile") if prepared.done else None
            except (Elsewhere, UserError) as found:
                other = found
        other = distributed.from_first(other)
        if other is not None:
            raise other
        yield from _run(prepared)


@tracked
def _run(prepared: Prepared) -> Iterator[Status]:
    if prepared.device.type == "cpu":
        torch.set_num_threads(prepared.options.threads)
    else:
        devices.check_kernels(devices.machine(thoroughly=True))
    provenance.reset_peak_memory(prepared.device)
    started, clock = _now(), time.monotonic()
    told = distributed.from_first(make_way(prepared) if distributed.first() else None)
    if told:
        yield Status(0, prepared.steps, 0.0, warnings=tuple(told))
    record = prepared.record
    trained = distributed.from_first(record is not None and record.finished)
    method = build_method(prepared.resolved.trained, prepared.device, prepared.trial.seed)
    training: dict[str, Any] = {}
    if not trained:
        training = yield from _train(prepared, method)
    if prepared.resolved.inference:  # scored otherwise than it was trained
        method = build_method(prepared.resolved, prepared.device, prepared.trial.seed)
    for specs in _passes(distributed.from_first(prepared.missing_evaluations())):
        yield from evaluate_into_record(prepared, method, *specs)
    if not distributed.first():
        return
    (prepared.folder / ERROR).unlink(missing_ok=True)  # of an earlier attempt
    if trained:
        return  # evaluations were added to an old record, which stays as it is
    checkpoint = prepared.folder / "checkpoint" / "last.pt"
    Store.write_record(
        prepared.folder,
        _common(prepared)
        | training
        | {
            "status": "finished",
            "started": started,
            "parameters": sum(p.numel() for p in method.parameters()),
            **({"frozen": hashes} if (hashes := frozen_hashes(method)) else {}),
            "ended": _now(),
            "seconds": time.monotonic() - clock,
            "peak_memory_mib": provenance.peak_memory_mib(prepared.device),
            "checkpoint": {"file": "checkpoint/last.pt", "sha256": sha256_of(checkpoint)},
        },
    )


def _common(prepared: Prepared) -> dict[str, Any]:
    """What finished and failed records have in common."""
    trial, recipe = prepared.trial, prepared.resolved.recipe
    return {
        "name": trial.name,
        "method": recipe.method,
        "title": METHODS.get(recipe.method).title,
        "recipe": prepared.resolved.training_values() | {"evaluation": dump(recipe.evaluation)},
        "overrides": dump(training_overrides(trial.name, trial.overrides)),
        **({"called": called} if (called := prepared.options.called or trial.called) else {}),
        "seed": trial.seed,
        "digest": prepared.digest,
        "code": provenance.code() | foreign.recorded_packages(prepared.resolved),
        "environment": provenance.environment(),
        "hardware": _hardware(prepared),
        **prepared.facts,
    }


def _hardware(prepared: Prepared, arithmetic: AbstractContextManager[object] | None = None) -> dict[str, Any]:
    """The machine, with torch's switches as they are, or as they were while it trained."""
    with arithmetic or nullcontext():
        return provenance.hardware(prepared.device) | {"processes": distributed.world_size()}


def record_failure(prepared: Prepared, reason: str, trace: str | BaseException = "") -> str:
    """Write a failed trial's record, unless it has a finished one, and its trace beside it.

    Never raises an error: other trials go on, whatever became of this one.

    Args:
        prepared: the trial.
        reason: why it failed.
        trace: for ``error.txt``; nothing for errors that a user can mend.

    Returns:
        The reason, completed by the place of the trace, or by why something could not be written.
    """
    if trace:
        reason += write_trace(prepared.folder, trace)
    try:
        record = prepared.record
        if record is None or not record.finished:
            failed = {"status": "failed", "reason": reason, "ended": _now()}
            try:
                Store.write_record(prepared.folder, _common(prepared) | failed)
            except (TypeError, ValueError, RuntimeError):  # what no JSON holds, or a GPU that is lost
                Store.write_record(prepared.folder, recordable(_known(prepared)) | failed)
        prepared.store.push(prepared.folder)
    except Exception as error:
        why = getattr(error, "problem", None) or faults.first_line(error)
        reason += f"\n  (not recorded: {why})"
    return reason


def _known(prepared: Prepared) -> dict[str, Any]:
    """:func:`_common` without what cannot be found out any more."""
    try:
        return _common(prepared)
    except RuntimeError:  # the GPU does not even tell its name
        return _common(replace(prepared, device=torch.device("cpu")))


def _train(prepared: Prepared, method: Method) -> Generator[Status, None, dict[str, Any]]:
    """Train to the end; returns what the record says of it."""
    recipe, options = prepared.resolved.recipe, prepared.options
    data = TrainingSet(
        prepared.dataset,
        prepared.dataset.ids(recipe.train_split),
        prepared.labels,
        recipe,
        prepared.trial.seed,
        method.views(),
        method.further(),
    )

    def validate() -> float:
        assert recipe.selection is not None
        spec = EvaluationSpec(
            split=recipe.selection.split,
            protocol=recipe.selection.protocol,
            network=recipe.selection.network,
        )
        miou = evaluator.miou(method, prepared.dataset, spec, device=prepared.device, workers=options.workers)
        return miou if miou is not None else -np.inf

    trainer = Trainer(
        method,
        recipe,
        data,
        seed=prepared.trial.seed,
        folder=prepared.folder,
        workers=options.workers,
        checkpoint_seconds=options.checkpoint_seconds,
        validate=validate,
        saved=lambda: prepared.store.save(prepared.folder),
        facts={
            origin.ORIGIN_KEY: origin.carried(prepared.resolved, prepared.trial.overrides, prepared.dataset),
        },
        deterministic=options.deterministic,
    )
    code = foreign.note_start(prepared.folder, prepared.resolved) if distributed.first() else {}
    clock = time.monotonic()
    with interruption.at_boundaries():
        yield from trainer.run()
    seconds = time.monotonic() - clock
    fresh = trainer.total - trainer.resumed_at
    free = distributed.collected(trainer.arithmetic.free)
    lacking = list(dict.fromkeys(name for names in free for name in names))
    notes = [*prepared.facts.get("notes", ()), *([nondeterministic(lacking)] if lacking else [])]
    lost = gaps(prepared.folder / "history.csv", trainer.total, trainer.log_every)
    return {
        **({"curve_lacks": lost} if lost else {}),
        **({"notes": notes} if lacking else {}),
        "hardware": _hardware(prepared, trainer.arithmetic),
        "code": provenance.code() | code,
        "steps": trainer.total,
        "resumed": trainer.resumed_at,
        "steps_per_second": fresh / seconds if fresh else None,
        "best": _best(trainer),
    }


def _best(trainer: Trainer) -> dict[str, Any] | None:
    """What the record says of the best network, None without validation."""
    if trainer.best.step < 0:
        return None
    file = trainer.checkpoint.with_name("best.pt")
    sha256 = sha256_of(file) if distributed.first() else None
    return {"miou": trainer.best.miou, "step": trainer.best.step, "sha256": sha256}


def _passes(specs: Sequence[EvaluationSpec]) -> list[list[EvaluationSpec]]:
    """Evaluations that one pass over a split can make together: pseudo labels of one network."""
    passes: dict[tuple[str, ...], list[EvaluationSpec]] = {}
    for spec in specs:
        alone = spec.output == "segmentation"
        own = (spec.name,) if alone else (spec.split, spec.network, spec.checkpoint, spec.protocol)
        passes.setdefault(own, []).append(spec)
    return list(passes.values())


class _Score:
    """One evaluation in the making."""

    def __init__(self, prepared: Prepared, spec: EvaluationSpec) -> None:
        self.spec, self.folder = spec, prepared.evaluation_folder(spec)
        self.info, self.save = prepared.dataset.info, prepared.options.save_predictions
        self.parts: list[PerImage] = []
        self.bands = BoundaryCounter(self.info.num_classes)

    def add(self, pairs: Sequence[tuple[str, np.ndarray, np.ndarray | None]]) -> None:
        """Count (and keep) some predictions."""
        if self.save:
            for image_id, prediction, _ in pairs:
                save_index(self.folder / "predictions" / f"{image_id}.png", prediction, self.info.palette)
        self.parts.append(evaluator.tally(self.bands.following(pairs), self.info.num_classes))

    def whole(self, ids: Sequence[str]) -> PerImage:
        """Counts of all processes, those near boundaries included."""
        self.bands.together(distributed.collected(self.bands))
        none = evaluator.tally([], self.info.num_classes)
        return evaluator.counts_of_all(evaluator.joined([none, *self.parts]), ids)


def evaluate_into_record(prepared: Prepared, method: Method, *specs: EvaluationSpec) -> Iterator[Status]:
    """Score a trained network and add the evaluations to the trial's folder.

    Args:
        prepared: the trial.
        method: its method; weights are loaded here.
        specs: one evaluation, or several of pseudo labels of one network on one split, made in one pass.
    """
    first = specs[0]
    checkpoint = prepared.folder / "checkpoint" / f"{first.checkpoint}.pt"
    if distributed.first():
        load_weights(method, checkpoint, asked=prepared.resolved.inference)
    distributed.broadcast_weights(method)
    ids = prepared.dataset.masked(first.split)
    own = distributed.share(ids)
    scores = {spec.output: _Score(prepared, spec) for spec in specs}
    clock = time.monotonic()
    found: Iterable[tuple[str, dict[str, np.ndarray], np.ndarray | None]]
    where: dict[str, Any] = {"device": prepared.device, "workers": prepared.options.workers, "ids": own}
    if first.output == "segmentation":
        p = protocols.protocol(first.protocol)
        pairs = evaluator.predictions(
            method, prepared.dataset, first.split, p, network=first.network, **where
        )
        found = ((name, {first.output: labels}, mask) for name, labels, mask in pairs)
    else:
        found = evaluator.pseudo_labels(method, prepared.dataset, first.split, list(scores), **where)
    rows, done = iter(found), 0
    while chunk := list(itertools.islice(rows, 50)):
        for output, score in scores.items():
            score.add([(name, labels[output], mask) for name, labels, mask in chunk])
        done += len(chunk)
        names = ", ".join(spec.name for spec in specs)
        yield Status(done, len(own), done / (time.monotonic() - clock), note=f"evaluating {names}")
        interruption.stop_if_noted()
    counts = {output: score.whole(ids) for output, score in scores.items()}
    if not distributed.first():
        return
    seconds, sha256 = (time.monotonic() - clock) / len(specs), sha256_of(checkpoint)
    for output, score in scores.items():
        _write_evaluation(prepared, score, counts[output], sha256, seconds)
    prepared.store.save(prepared.folder)


def _write_evaluation(
    prepared: Prepared, score: _Score, counts: PerImage, checkpoint_sha256: str, seconds: float
) -> None:
    """Add an evaluation to the trial's folder."""
    spec = score.spec
    p = protocols.protocol(spec.protocol)
    split = prepared.facts["data"]["splits"][spec.split]
    Store.write_evaluation(
        prepared.folder,
        counts,
        {
            "name": prepared.evaluation_name(spec),
            "digest": prepared.evaluation_digest(spec),
            "spec": dump(spec),
            **({"config": prepared.resolved.inference} if prepared.resolved.inference else {}),
            "protocol": dump(p),
            "official_images": split["official"],
            "data_fingerprint": split["fingerprint"],
            "checkpoint_sha256": checkpoint_sha256,
            "seconds": seconds,
            "written": _now(),
            **foreign.recorded_packages(prepared.resolved),
            **evaluator.summarise(counts, prepared.dataset.info.classes, p),
        },
        score.bands.result(),
    )
