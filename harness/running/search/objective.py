"""What a hyper-parameter search maximises: mIoU on pictures that its trials do not train on.

By default these are a held-out part of the training split, so that the split a paper reports stays
unseen. The value is measured at fixed points of training and at its end, by the same evaluator and
protocol as the recipe's own number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harness.basics import interruption
from harness.basics.errors import NonFiniteError, UserError
from harness.basics.files import write_json
from harness.basics.reading import remembered
from harness.basics.schema import digest, essential
from harness.engine import distributed
from harness.engine.loader import TrainingSet
from harness.engine.networks import build_method
from harness.engine.training import Status, Trainer
from harness.evaluation import evaluator
from harness.recipes import protocols
from harness.recipes.names import check_split
from harness.recipes.specs import EvaluationSpec, Recipe
from harness.records.locks import Elsewhere, trial_lock
from harness.running.jobs.job import Event, InFolder
from harness.running.trials.tracked import allocated_mib, subject_of
from harness.running.trials.trial import Options, Prepared, Trial, prepare
from harness.running.watching.following import Following
from harness.running.watching.trackers import Point

#: Name of the objective split that is cut from the training split.
HELD_OUT = "held-out"
#: A killed search leaves workers that may live for some seconds.
ORPHAN_SECONDS = 60.0
#: Share of training after which the final value is reported, in percent.
END = 100


@dataclass(frozen=True)
class Objective:
    """Which number is maximised.

    Attributes:
        split: :data:`HELD_OUT`, or a split of the data set.
        share: held-out part of the training split, in (0, 1).
        spec: protocol, network and output that are scored; its split is the one that is read.
        reported: whether the recipe reports numbers on the same split.
    """

    split: str
    share: float
    spec: EvaluationSpec
    reported: bool

    @property
    def stamp(self) -> str:
        """What a reader of any result of the search must know."""
        if self.split == HELD_OUT:
            return f"selected on a held-out part ({self.share:.0%}) of the split {self.spec.split!r}"
        kind = "the reported split" if self.reported else "the split"
        return f"selected on {kind} {self.split!r}"

    def values(self) -> dict[str, Any]:
        """Everything that defines the number, for digests and records."""
        return {
            "split": self.split,
            "share": self.share if self.split == HELD_OUT else None,
            "of": self.spec.split,
            "protocol": essential(protocols.protocol(self.spec.protocol)),
            "network": self.spec.network,
            "output": self.spec.output,
        }


def choose_objective(recipe: Recipe, split: str, share: float) -> Objective:
    """The recipe's first evaluation, moved to another split and to the last checkpoint.

    Raises:
        UserError: the recipe evaluates nothing, the split is the one trained on, or the share is not
            inside (0, 1).
    """
    if not recipe.evaluation:
        raise UserError(
            "the recipe evaluates nothing, so there is nothing to search for", where="[[evaluation]]"
        )
    if split == recipe.train_split:
        raise UserError(
            f"{split!r} is the split that trials train on",
            where="--objective-split",
            remedy=f"use {HELD_OUT!r}, a part of it that is kept out of training",
        )
    if split != HELD_OUT:
        check_split(recipe.dataset, split, "--objective-split")
    elif not 0 < share < 1:
        raise UserError(f"the held-out share must lie between 0 and 1, not {share:g}", where="--held-out")
    read = recipe.train_split if split == HELD_OUT else split
    spec = replace(recipe.evaluation[0], split=read, checkpoint="last", cells=(), tolerance=None)
    return Objective(split, share, spec, split in {e.split for e in recipe.evaluation})


def held_out(ids: Sequence[str], share: float) -> np.ndarray:
    """Which pictures are kept out of training: those with the smallest hash of their id.

    Args:
        ids: image ids of a split.
        share: part of them to keep out, in (0, 1).

    Returns:
        ``(N,)`` bool; at least one picture is held out and at least one is not.

    Raises:
        UserError: there are fewer than two pictures.
    """
    if len(ids) < 2:
        raise UserError(f"a split of {len(ids)} picture(s) cannot be divided", where="--objective-split")
    number = min(max(round(share * len(ids)), 1), len(ids) - 1)
    order = np.argsort([digest(["held-out", i], 16) for i in ids], kind="stable")
    mask = np.zeros(len(ids), dtype=bool)
    mask[order[:number]] = True
    return mask


# --- one trial of a search ---------------------------------------------------------------------------


@dataclass
class SearchJob(InFolder):
    """One trial of a search; its number is that in the study.

    Attributes:
        trial: recipe, seed, and the overrides that the study suggests.
        options: where and how trials run.
        objective: what is measured.
        points: shares of training in percent at which it is measured, beside the end.
        folder: where the trial keeps its checkpoint, history and measured values.
    """

    trial: Trial
    options: Options
    objective: Objective
    points: tuple[int, ...]
    folder: Path

    @property
    def label(self) -> str:
        """Its number in the study."""
        return f"trial {self.number}"

    @property
    def recipe(self) -> Recipe:
        """With the values that the study suggests."""
        return self.trial.resolved.recipe

    def work(self, alone: Callable[[], None] = lambda: None) -> Iterator[Event]:
        """:func:`measure`."""
        return measure(self)

    def failed(self, error: BaseException) -> Event:
        """``diverged`` where the loss or a score is not finite."""
        if isinstance(error, NonFiniteError):
            return Event(ended="diverged", reason=str(error))
        if isinstance(error, Elsewhere):
            return Event(ended="failed", reason=str(error))
        return super().failed(error)


def measure(job: SearchJob) -> Iterator[Event]:
    """Train one trial and measure it; a stopped one goes on from its checkpoint, with the same values.

    Measured values are on disk (``objective.json``) before training goes on, and are yielded again
    when the job is started again.

    Raises:
        UserError: the trial cannot run, its loss became non-finite, or nothing can be scored.
    """
    with ExitStack() as stack:
        if distributed.first():  # one lock for all processes of the trial
            stack.enter_context(trial_lock(job.folder, timeout=ORPHAN_SECONDS))
            stack.enter_context(job.options.store.work(job.folder))
        yield from _measure(job)


def _known(file: Path) -> dict[int, float]:
    """Values that were measured before, by share of training in percent."""
    return remembered(file, lambda found: {int(p): float(v) for p, v in found.items()}, {})


def _measure(job: SearchJob) -> Iterator[Event]:
    file = job.folder / "objective.json"
    known = distributed.from_first(_known(file) if distributed.first() else {})
    if known:
        yield Event(values=tuple(known.items()))
    if END in known:
        return
    objective, spec = job.objective, job.objective.spec
    inside = objective.split == HELD_OUT
    prepared = prepare(job.trial, job.options, () if inside else (spec,))
    recipe, dataset = prepared.resolved.recipe, prepared.dataset
    if prepared.device.type == "cpu":
        torch.set_num_threads(job.options.threads)
    train_ids = list(dataset.ids(recipe.train_split))
    out = held_out(train_ids, objective.share) if inside else np.zeros(len(train_ids), dtype=bool)
    kept = [i for i, o in zip(train_ids, out, strict=True) if not o]
    masked = set(dataset.masked(recipe.train_split)) if inside else set()
    scored = [i for i, o in zip(train_ids, out, strict=True) if o and i in masked] if inside else None
    method = build_method(prepared.resolved, prepared.device, job.trial.seed)
    trainer = Trainer(
        method,
        recipe,
        TrainingSet(
            dataset,
            kept,
            replace(prepared.labels, ids=tuple(kept), tags=prepared.labels.tags[~out]),
            recipe,
            job.trial.seed,
            method.views(),
            method.further(),
        ),
        seed=job.trial.seed,
        folder=job.folder,
        workers=job.options.workers,
        checkpoint_seconds=job.options.checkpoint_seconds,
        saved=lambda: prepared.store.save(job.folder),
        deterministic=job.options.deterministic,
    )

    def score(points: Sequence[int]) -> Event:
        value = evaluator.miou(
            method, dataset, spec, device=prepared.device, workers=job.options.workers, ids=scored
        )
        if value is None:
            raise UserError(
                "no class occurs in the pictures that the search scores", where="--objective-split"
            )
        known.update(dict.fromkeys(points, value))
        if distributed.first():
            write_json(file, {str(p): v for p, v in known.items()})
            prepared.store.save(job.folder)
        method.train()
        at = Status(trainer.step, trainer.total, 0.0, miou=value)
        return Event(at, tuple((p, value) for p in points))

    def due() -> list[int]:
        reached = [p for p in job.points if math.ceil(p * trainer.total / END) <= trainer.step]
        return [p for p in reached if p not in known] if trainer.step < trainer.total else []

    def measured() -> list[Point]:
        return [(math.ceil(p * trainer.total / END), {"objective/miou": v}) for p, v in sorted(known.items())]

    trainer.resume()
    at_row = trainer.step % trainer.log_every == 0  # nothing is measured between two rows
    with _following(job, prepared, measured) as following:
        with interruption.at_boundaries():
            if trainer.step and at_row and due():  # stopped between a checkpoint and its measurement
                yield score(due())
            for status in following.rows(trainer.run()):
                status = replace(status, memory_mib=allocated_mib(prepared.device))
                yield Event(status)
                if due():
                    event = score(due())
                    following.flush()
                    yield event
        yield score([END])


def _following(job: SearchJob, prepared: Prepared, values: Callable[[], Sequence[Point]]) -> Following:
    """The trackers of one trial of a search; its points are the measured objective."""
    plain = subject_of(prepared)
    study = job.folder.parent.parent.name
    subject = replace(
        plain,
        path=f"search/{job.trial.name}/{study}/trial-{job.number:04d}",
        group=f"search {job.trial.name} {study}",
        folder=job.folder,
        values={**plain.values, "objective": job.objective.stamp},
        metrics=("objective/miou",),
    )
    return Following(job.options.trackers, subject, values)
