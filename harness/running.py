"""A prepared trial at work: train, evaluate, record; stopped at any moment, it goes on where it was."""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from harness import evaluation, provenance
from harness.boundary import BoundaryCounter
from harness.data.images import save_index
from harness.data.loader import TrainingSet
from harness.errors import UserError
from harness.files import sha256_of
from harness.networks import build_method, load_weights
from harness.recipes import EvaluationSpec
from harness.records import EvaluationRecord, Store
from harness.schema import dump
from harness.training import Status, Trainer
from harness.trial import Prepared

if TYPE_CHECKING:
    from methods.base import Method


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def run(prepared: Prepared) -> Iterator[Status]:
    """Train, evaluate, record; yields wherever progress can be shown.

    What is on disk already is not done again. A trial that cannot go on is recorded as failed with
    the reason, and the error is raised.
    """
    if prepared.done:
        return
    trial, recipe = prepared.trial, prepared.resolved.recipe
    if prepared.device.type == "cpu":
        torch.set_num_threads(prepared.options.threads)
    prepared.folder.mkdir(parents=True, exist_ok=True)
    provenance.reset_peak_memory(prepared.device)
    started, clock = _now(), time.monotonic()
    record = prepared.record
    method = build_method(prepared.resolved, prepared.device, trial.seed)
    common = {
        "name": trial.name,
        "method": recipe.method,
        "title": type(method).title,
        "recipe": prepared.resolved.training_values() | {"evaluation": dump(recipe.evaluation)},
        "overrides": dump(dict(trial.overrides)),
        "seed": trial.seed,
        "digest": prepared.digest,
        "code": provenance.code(),
        "environment": provenance.environment(),
        "hardware": provenance.hardware(prepared.device),
        **prepared.facts,
        "parameters": sum(p.numel() for p in method.parameters()),
        "started": started,
    }
    training: dict[str, Any] = {}
    try:
        if record is None or not record.finished:
            training = yield from _train(prepared, method)
        for spec in prepared.missing_evaluations():
            yield from evaluate_into_record(prepared, method, spec)
    except UserError as error:
        if record is None or not record.finished:
            reason = {"status": "failed", "reason": str(error), "ended": _now()}
            Store.write_record(prepared.folder, common | reason)
        raise
    if record is not None and record.finished:
        return  # evaluations were added to an old record, which stays as it is
    checkpoint = prepared.folder / "checkpoint" / "last.pt"
    Store.write_record(
        prepared.folder,
        common
        | training
        | {
            "status": "finished",
            "ended": _now(),
            "seconds": time.monotonic() - clock,
            "peak_memory_mib": provenance.peak_memory_mib(prepared.device),
            "checkpoint": {"file": "checkpoint/last.pt", "sha256": sha256_of(checkpoint)},
        },
    )


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
    )

    def validate() -> float:
        assert recipe.selection is not None
        spec = EvaluationSpec(
            split=recipe.selection.split,
            protocol=recipe.selection.protocol,
            network=recipe.selection.network,
        )
        counts = evaluation.gather(_pairs(prepared, method, spec), prepared.dataset.info.num_classes)
        figures = evaluation.summarise(
            counts, prepared.dataset.info.classes, evaluation.protocol(spec.protocol)
        )
        return figures["miou"] if figures["miou"] is not None else -np.inf

    trainer = Trainer(
        method,
        recipe,
        data,
        seed=prepared.trial.seed,
        folder=prepared.folder,
        workers=options.workers,
        checkpoint_seconds=options.checkpoint_seconds,
        validate=validate,
    )
    clock = time.monotonic()
    yield from trainer.run()
    seconds = time.monotonic() - clock
    fresh = trainer.total - trainer.resumed_at
    return {
        "steps": trainer.total,
        "resumed": trainer.resumed_at,
        "steps_per_second": fresh / seconds if fresh else None,
        "best": None if trainer.best.step < 0 else {"miou": trainer.best.miou, "step": trainer.best.step},
    }


def _pairs(prepared: Prepared, method: Method, spec: EvaluationSpec) -> Any:
    return evaluation.predictions(
        method,
        prepared.dataset,
        spec.split,
        evaluation.protocol(spec.protocol),
        network=spec.network,
        output=spec.output,
        device=prepared.device,
        workers=prepared.options.workers,
    )


def evaluate_into_record(prepared: Prepared, method: Method, spec: EvaluationSpec) -> Iterator[Status]:
    """Score one evaluation of a trained network and add it to the trial's folder."""
    checkpoint = prepared.folder / "checkpoint" / f"{spec.checkpoint}.pt"
    load_weights(method, checkpoint)
    info = prepared.dataset.info
    total = prepared.dataset.coverage(spec.split)[0]
    place = prepared.evaluation_folder(spec) / "predictions"
    save = prepared.options.save_predictions
    clock = time.monotonic()
    parts = []
    bands = BoundaryCounter(info.num_classes) if spec.output == "segmentation" else None
    pairs = iter(_pairs(prepared, method, spec))
    while chunk := list(itertools.islice(pairs, 50)):
        if save:
            for image_id, prediction, _ in chunk:
                save_index(place / f"{image_id}.png", prediction, info.palette)
        parts.append(evaluation.gather(chunk, info.num_classes))
        if bands is not None:
            for _, prediction, mask in chunk:
                bands.add(prediction, mask)
        done = sum(len(p.ids) for p in parts)
        yield Status(done, total, done / (time.monotonic() - clock), note=f"evaluating {spec.name}")
    counts = evaluation.joined(parts)
    if bands is not None:  # before the JSON, which makes the evaluation exist
        bands.result().save(prepared.evaluation_folder(spec) / "boundary.npz")
    write_evaluation(prepared, spec, counts, sha256_of(checkpoint), time.monotonic() - clock)


def write_evaluation(
    prepared: Prepared, spec: EvaluationSpec, counts: Any, checkpoint_sha256: str, seconds: float
) -> EvaluationRecord:
    """Add an evaluation to the trial's folder."""
    p = evaluation.protocol(spec.protocol)
    split = prepared.facts["data"]["splits"][spec.split]
    return Store.write_evaluation(
        prepared.folder,
        counts,
        {
            "name": spec.name,
            "digest": prepared.evaluation_digest(spec),
            "spec": dump(spec),
            "protocol": dump(p),
            "official_images": split["official"],
            "data_fingerprint": split["fingerprint"],
            "checkpoint_sha256": checkpoint_sha256,
            "seconds": seconds,
            "written": _now(),
            **evaluation.summarise(counts, prepared.dataset.info.classes, p),
        },
    )
