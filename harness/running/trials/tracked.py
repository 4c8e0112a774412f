"""What a trial at work shows beside its training, and its trackers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial, wraps

import torch

from harness.basics import provenance
from harness.basics.reading import Damaged
from harness.basics.schema import dump
from harness.engine.training import Status
from harness.records.records import read_evaluation
from harness.running.trials.trial import Prepared
from harness.running.watching.following import Following
from harness.running.watching.trackers import Point, Subject


def tracked(work: Callable[[Prepared], Iterator[Status]]) -> Callable[[Prepared], Iterator[Status]]:
    """Let a trial's states say what is known beside training, and its trackers follow it."""

    @wraps(work)
    def run(prepared: Prepared) -> Iterator[Status]:
        names = prepared.options.trackers
        note, miou, last = "", None, Status(0, prepared.steps, 0.0)
        with Following(names, subject_of(prepared), partial(scores, prepared)) as following:
            for last in following.rows(work(prepared)):
                if last.note != note:  # an evaluation may be finished
                    note = last.note
                    miou = next((next(iter(p.values())) for _, p in reversed(scores(prepared)) if p), miou)
                yield replace(
                    last,
                    miou=miou if last.miou is None else last.miou,
                    memory_mib=allocated_mib(prepared.device),
                )
        if told := following.take_messages():
            yield replace(last, warnings=told)

    return run


def allocated_mib(device: torch.device) -> float | None:
    """Largest memory allocated on a GPU so far; None on the CPU. Read from the allocator, without waiting."""
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None


def scores(prepared: Prepared) -> list[Point]:
    """The evaluations of a trial that are on disk, at its last step: mIoU first, then IoU by class."""
    found = []
    for spec in prepared.resolved.recipe.evaluation:
        file = prepared.evaluation_folder(spec) / "evaluation.json"
        if file.exists():
            try:
                data = read_evaluation(file.parent).data
            except Damaged:  # it is made again
                continue
            named = dict(zip((f"iou/{c}" for c in data["classes"]), data["iou"], strict=True))
            values = {"miou": data["miou"], **named}
            found.append(
                (prepared.steps, {f"{spec.name}/{k}": v for k, v in values.items() if v is not None})
            )
    return found


def subject_of(prepared: Prepared) -> Subject:
    """A trial as trackers see it."""
    trial, recipe = prepared.trial, prepared.resolved.recipe
    return Subject(
        path=f"{trial.name}/{prepared.digest}/seed-{trial.seed}",
        group=trial.name,
        folder=prepared.folder,
        root=prepared.options.tracking,
        values={
            "recipe": trial.name,
            "seed": trial.seed,
            "digest": prepared.digest,
            **prepared.resolved.training_values(),
            "config": dump(prepared.resolved.config),
            "provenance": {
                "code": provenance.code(),
                **provenance.environment(),
                "hardware": provenance.hardware(prepared.device),
                **prepared.facts,
            },
        },
        metrics=tuple(f"{spec.name}/miou" for spec in recipe.evaluation),
    )
