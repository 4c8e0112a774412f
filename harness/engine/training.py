"""The training loop: optimiser groups, schedules, batch groups, AMP, processes, checkpoints, exact resume.

A run is a function of recipe, seed and data. Random numbers inside the networks (dropout, masking)
are drawn from a generator that is seeded anew at every step, so a run resumed at any step goes on
as the undisturbed one would.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness.basics import interruption
from harness.basics.errors import NonFiniteLossError, UserError
from harness.basics.files import sync, write_with
from harness.basics.finite import require_finite_weights
from harness.basics.reading import Damaged, Misplaced, damaged, set_damaged_aside
from harness.basics.schema import digest
from harness.engine import distributed, shown, trained
from harness.engine.arithmetic import Arithmetic
from harness.engine.batch import Batch, PackedBatch, Progress
from harness.engine.contract import check_terms, checked_note
from harness.engine.loader import StepSampler, TrainingSet, training_loader
from harness.engine.loading import Waits
from harness.engine.optimisers import create_optimiser
from harness.engine.scaling import Scaler
from harness.engine.writing import Writer, copied
from harness.nn.torch_files import read_torch
from harness.recipes.specs import Recipe, ScheduleSpec
from harness.records.history import History, gaps

if TYPE_CHECKING:
    from harness.engine.method import Method

#: Steps between two rows of the history; checkpoints fall on such rows.
LOG_EVERY = 10

_AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}


def lr_factor(spec: ScheduleSpec, step: int, total: int) -> float:
    """Share of the base learning rate at a 0-based optimiser step.

    After a linear warm-up of ``warmup_steps``: poly ``(1 - i/T)^power``, cosine ``(1 + cos(pi i/T)) / 2``
    or constant, with i and T counted from the end of the warm-up (or, by ``count_from``, from step 0) and T
    made longer by ``beyond``; never below ``floor``.
    """
    if step < spec.warmup_steps:
        share = step / spec.warmup_steps
        return spec.warmup_factor + (1 - spec.warmup_factor) * share
    start = spec.warmup_steps if spec.count_from == "warmup" else 0
    done = (step - start) / max(total + spec.beyond - start, 1)
    factor = {
        "poly": (1 - done) ** spec.power,
        "cosine": (1 + math.cos(math.pi * done)) / 2,
        "constant": 1.0,
    }[spec.kind]
    return max(factor, spec.floor)


def step_seed(seed: int, step: int, group: int) -> int:
    """Seed of the global generator for one group of one step."""
    return int(digest([seed, step, group], 15), 16)


@dataclass
class Status:
    """Where a run stands, for displays and trackers.

    Attributes:
        step: optimiser steps done; pictures done where there is a note.
        total: of how many.
        steps_per_second: rate since the last one.
        terms: mean of each loss term since the last row of the history.
        note: what goes on beside training, as in ``evaluating val-single``.
        lr: base learning rate of the step.
        miou: what was just measured, in percent (-inf where no class occurs).
        memory_mib: largest memory allocated on the GPU so far.
        warnings: what the user shall be told once.
        waiting: share of the time since the last one in which the loader's pictures were waited for.
        noted: further columns of the history's row: notes of the method, the scale of gradients.
    """

    step: int
    total: int
    steps_per_second: float
    terms: dict[str, float] = field(default_factory=dict)
    note: str = ""
    lr: float | None = None
    miou: float | None = None
    memory_mib: float | None = None
    warnings: tuple[str, ...] = ()
    waiting: float = 0.0
    noted: dict[str, float] = field(default_factory=dict)

    def after(self, earlier: Status) -> Status:
        """This one with what an earlier one of the same run knew and it does not say."""
        return replace(
            self,
            miou=earlier.miou if self.miou is None else self.miou,
            memory_mib=earlier.memory_mib if self.memory_mib is None else self.memory_mib,
            warnings=tuple(dict.fromkeys([*earlier.warnings, *self.warnings])),
        )


@dataclass
class Best:
    """The best validation result so far; selected on it, and reported so."""

    miou: float = -math.inf
    step: int = -1


class Trainer:
    """Trains one method once: all groups of a step in this process, or its share of them
    (:mod:`harness.engine.distributed`).

    Args:
        method: the method, on its device.
        recipe: the validated recipe.
        data: training samples.
        seed: seed of the run.
        folder: the trial's folder (``history.csv``, ``checkpoint/``).
        workers: loader processes.
        checkpoint_seconds: least time between two checkpoints.
        validate: returns the selection mIoU of the present network, for recipes with ``[selection]``.
        log_every: steps between two rows of the history.
        saved: called after each checkpoint.
        facts: plain values that every checkpoint carries.
        deterministic: ask torch for kernels that give the same bits every time, where it has them.
    """

    def __init__(
        self,
        method: Method,
        recipe: Recipe,
        data: TrainingSet,
        *,
        seed: int,
        folder: Path,
        workers: int = 0,
        checkpoint_seconds: float = 60.0,
        validate: Callable[[], float] | None = None,
        log_every: int = LOG_EVERY,
        saved: Callable[[], None] = lambda: None,
        facts: Mapping[str, Any] | None = None,
        deterministic: bool = False,
    ) -> None:
        self.saved, self.facts = saved, dict(facts or {})
        self.method, self.recipe, self.data, self.seed, self.folder = method, recipe, data, seed, folder
        self.workers, self.checkpoint_seconds, self.validate = workers, checkpoint_seconds, validate
        self.log_every = log_every
        self.device = next(method.parameters()).device
        self.optimiser = create_optimiser(method.parameter_groups(), recipe.optimiser, method)
        amp = _AMP.get(recipe.amp)
        self.amp = amp
        self.scaler = Scaler(self.device, enabled=amp is torch.float16)
        self.arithmetic = Arithmetic(method, recipe.precision, self.device, deterministic=deterministic)
        per_epoch = StepSampler(len(data), recipe.batch.size, 1, seed).steps_per_epoch
        self.total = recipe.schedule.total_steps(per_epoch)
        self.steps_per_epoch = per_epoch
        #: Groups of a step that this process carries.
        self.groups = range(recipe.batch.groups)[distributed.own_groups(recipe.batch.groups)]
        if distributed.world_size() > 1 and recipe.batch.sync_bn != "off":
            distributed.check_groups(recipe, distributed.world_size(), self.device)
            distributed.synchronise_normalisation(method, recipe.batch.sync_bn)
        self.parallel = distributed.Parallel(method)
        self.statistics = distributed.RunningStatistics(method)
        self.writer = Writer()
        self.step = 0
        self.best = Best()
        #: Steps that a resumed run did not repeat.
        self.resumed_at = 0
        #: Whether the checkpoint on disk is the last one, which evaluations may name by its hash.
        self.ended = False
        #: Sums of the loss terms since the last row of the history, and the step of that row.
        self.sums: dict[str, float] = {}
        self.logged = 0
        #: What the method noted since that row: sum and number by name.
        self.notes: dict[str, tuple[Tensor | float, int]] = {}
        #: What the user shall be told of files that were damaged.
        self.told: list[str] = []
        #: Sets of loss terms that were checked.
        self._known_terms: set[frozenset[str]] = set()

    # --- checkpoints ------------------------------------------------------------------------------

    @property
    def checkpoint(self) -> Path:
        """The resumable checkpoint."""
        return self.folder / "checkpoint" / "last.pt"

    def save(self, *, final: bool = False, beside: bool = False) -> None:
        """Write a checkpoint; the final one holds the weights alone.

        Args:
            final: whether training is over.
            beside: let a thread write a copy, while training goes on.

        Raises:
            NonFiniteWeightsError: weights are not finite; the checkpoint before stays.
            UserError: the disk is full, say; perhaps of the checkpoint before.
        """
        require_finite_weights(self.method, self.step)  # no loss tells of the last step; all processes know
        if not distributed.first():
            return
        self.writer.wait()  # there is one copy at most
        state: dict[str, Any] = {"method": self.method.state_dict(), "step": self.step, "final": final}
        state |= {"seed": self.seed, trained.NETWORK_KEY: trained.described(self.method), **self.facts}
        if not final:
            state["optimiser"] = self.optimiser.state_dict()
            state["scaler"] = self.scaler.state_dict()
            state["best"] = [self.best.miou, self.best.step]
            state["row"] = [self.sums, self.logged]
            if self.notes:
                state["notes"] = {name: (float(total), n) for name, (total, n) in self.notes.items()}
        sync(self.folder / "history.csv")  # its rows up to here are not written again
        if beside:
            self.writer.start(partial(self._write, copied(state)))
            return
        self._write(state)
        self.saved()

    def _write(self, state: dict[str, Any]) -> None:
        write_with(self.checkpoint, lambda f: torch.save(state, f))

    def resume(self) -> None:
        """Go on from the checkpoint where there is one."""
        state = distributed.from_first(self._read() if distributed.first() else None)
        if state is None:
            return
        try:
            trained.compared(self.method, state.get(trained.NETWORK_KEY), self.checkpoint)
            self.method.load_state_dict(state["method"])
            self.ended = state["final"]
            if not self.ended:
                self.optimiser.load_state_dict(state["optimiser"])
                self.scaler.load_state_dict(state["scaler"])
                self.best = Best(*state["best"])
                self.sums, self.logged = state.get("row", [{}, state["step"]])
                self.notes = dict(state.get("notes", {}))
        except (RuntimeError, KeyError, ValueError) as error:
            raise self._unreadable(error) from error
        self.step = self.resumed_at = state["step"]

    def _read(self) -> dict[str, Any] | None:
        """The checkpoint, on the CPU; None where there is none, or a damaged one, which is moved aside."""
        if not os.path.lexists(self.checkpoint):
            return None
        try:
            state = read_torch(self.checkpoint)
            if not isinstance(state, dict) or not {"method", "step", "final"} <= set(state):
                raise damaged(self.checkpoint, "it holds no state of a training")
        except Damaged as error:
            aside = set_damaged_aside(self.checkpoint)
            self.told.append(f"{error.brief}; moved to {aside}, training starts afresh")
            return None
        seed = state.get("seed", self.seed)
        if seed != self.seed:
            raise Misplaced(
                f"the checkpoint is that of seed {seed}",
                where=self.checkpoint,
                remedy="move this trial's folder away to start it afresh",
            )
        return state

    def _history(self) -> History:
        """The training curve up to here; a damaged one is moved aside, and a new one begins."""
        file = self.folder / "history.csv"
        try:
            history = History(file, self.step)
        except Damaged as error:
            self.told.append(f"{error.brief}; moved to {set_damaged_aside(file)}, a new curve begins")
            return History(file, self.step)
        lost = gaps(file, self.logged if self.sums else self.step, self.log_every)
        if lost:  # rows reach the disk before a checkpoint does, so no kill has done this
            steps = ", ".join(f"{first} to {last}" for first, last in lost)
            self.told.append(f"{file}: it lacks the rows of steps {steps}; the curve stays without them")
        return history

    def _unreadable(self, error: Exception) -> UserError:
        return UserError(
            f"the checkpoint cannot be resumed: {(str(error).splitlines() or [type(error).__name__])[0]}",
            where=self.checkpoint,
            remedy="delete this trial's folder to start it afresh",
        )

    # --- one step ---------------------------------------------------------------------------------

    def _set_lr(self) -> float:
        factor = lr_factor(self.recipe.schedule, self.step, self.total)
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.optimiser.lr * group["lr_scale"] * factor
        return self.recipe.optimiser.lr * factor

    def _piece_loss(self, batch: Batch, progress: Progress, *, last: bool) -> dict[str, Tensor]:
        with torch.autocast(self.device.type, dtype=self.amp, enabled=self.amp is not None):
            return self.parallel(batch, progress, last=last)

    def optimise(self, groups: Sequence[Batch | PackedBatch], progress: Progress) -> dict[str, Tensor]:
        """One optimiser step: gradients averaged over groups.

        Args:
            groups: the batches of this process, one per group of a step.
            progress: where training stands; the learning rate is set already.

        Returns:
            The mean of every loss term over the groups of this process (scalars on the device).

        Raises:
            UserError: the loss breaks the contract of a method (:mod:`harness.engine.contract`).
        """
        with self.arithmetic:
            return self._optimise(groups, progress)

    def _optimise(self, groups: Sequence[Batch | PackedBatch], progress: Progress) -> dict[str, Tensor]:
        self.optimiser.zero_grad(set_to_none=True)
        self.statistics.before()
        mean: dict[str, Tensor] = {}
        due = distributed.first() and shown.is_due(self.step + 1, self.total, self.log_every)
        pictures = shown.Shown(self.method)
        for number, group in zip(self.groups, groups, strict=True):
            torch.manual_seed(step_seed(self.seed, self.step, number))
            batch = group.to(self.device)
            pieces = list(batch.pieces(self.recipe.accumulate))
            for piece in pieces:
                share = len(piece) / len(batch) / len(groups)
                last = number == self.groups[-1] and piece is pieces[-1]
                self.method.showing(due and number == 0 and piece is pieces[0])
                terms = self._piece_loss(piece, progress, last=last)
                pictures.take()
                if not isinstance(terms, Mapping) or frozenset(terms) not in self._known_terms:
                    check_terms(terms, self.method, self.device)  # before the optimiser moves
                    self._known_terms.add(frozenset(terms))
                loss = torch.stack([t.float().sum() for t in terms.values()]).sum() * share
                self.scaler.scale(loss).backward()
                for name, term in terms.items():
                    mean[name] = mean.get(name, 0.0) + term.detach().float().sum() * share
        self.statistics.after()
        if self.recipe.optimiser.clip_norm is not None:
            self.scaler.unscale_(self.optimiser)
            torch.nn.utils.clip_grad_norm_(self.method.parameters(), self.recipe.optimiser.clip_norm)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.method.showing(due)
        self.method.after_step(progress)
        pictures.take()
        pictures.save(self.folder, self.step + 1)
        for name, value in self.method.take_notes():
            total, n = self.notes.get(name, (0.0, 0))
            self.notes[name] = (total + checked_note(name, value, self.method), n + 1)
        return mean

    # --- the loop ---------------------------------------------------------------------------------

    def run(self) -> Iterator[Status]:
        """Train to the end, yielding at every logged step. Stop iterating to stop; call again to go on.

        Raises:
            NonFiniteLossError: a term is NaN or infinite; nothing is written after the step before it.
            NonFiniteWeightsError: weights are, when a checkpoint is due.
            UserError: the loss breaks the contract of a method (:mod:`harness.engine.contract`); a checkpoint
                cannot be written, which may be told at a later row, since a thread writes it.
        """
        with self.writer:
            yield from self._run()

    def _run(self) -> Iterator[Status]:
        self.resume()
        history = self._history() if distributed.first() else None
        if self.told:
            yield Status(self.step, self.total, 0.0, warnings=tuple(self.told))
        loader = training_loader(
            self.data,
            self.data.plan(self.method, self.total, self.step, self.groups),
            len(self.groups),
            workers=self.workers,
            pin=self.device.type == "cuda",
        )
        pending: deque[tuple[int, list[str], dict[str, Tensor]]] = deque()
        every = self.log_every if self.device.type == "cuda" else 1  # reading a loss waits for the device
        since = saved = time.monotonic()
        waits = Waits(loader)
        first = self.step
        if not self.sums:
            self.logged = self.step
        self.method.train()
        for groups in waits:
            progress = Progress(self.step, self.total, self.steps_per_epoch)
            lr = self._set_lr()
            terms = self.optimise(groups, progress)
            pending.append((self.step, [i for g in groups for i in g.ids], terms))
            self.step += 1
            at_row = self.step % self.log_every == 0 or self.step == self.total
            if self.step % every == 0 or at_row:
                _checked(pending, self.sums)
            if at_row:
                now = time.monotonic()
                passed = max(now - since, 1e-9)
                rate, waiting = (self.step - max(self.logged, first)) / passed, waits.taken() / passed
                row = {name: value / (self.step - self.logged) for name, value in self.sums.items()}
                self.sums, self.logged = {}, self.step
                means = {f"note.{name}": float(total) / n for name, (total, n) in self.notes.items()}
                noted = {name: value for name, value in means.items() if math.isfinite(value)}
                self.notes = {}
                noted |= self.scaler.read(self.step)
                told = self.arithmetic.take_told()
                if history is not None:
                    history.add({"step": self.step, "lr": lr, "loss": sum(row.values()), **row, **noted})
                if self.writer.ended():
                    self.saved()
                miou = self._select()
                if now - saved > self.checkpoint_seconds or miou is not None:
                    self.save(beside=True)
                    saved = time.monotonic()
                since = time.monotonic()
                known = {"lr": lr, "miou": miou, "waiting": waiting, "noted": noted, "warnings": told}
                yield Status(self.step, self.total, rate, row, **known)  # type: ignore[arg-type]
            # Between rows the terms of other processes are not known here.
            if interruption.noted() and (at_row or distributed.world_size() == 1):
                _checked(pending, self.sums)
                self.save()
                raise interruption.error()
        if self.step < self.total:
            raise RuntimeError(f"the loader ended after step {self.step} of {self.total}")
        self.arithmetic.end()
        if differ := distributed.unequal_buffers(self.method):
            said = (
                f"the processes ended with different values of {', '.join(differ[:5])}; those of the first "
            )
            said += "are kept: see wsss.of_all_processes"
            yield Status(self.step, self.total, 0.0, note="comparing processes", warnings=(said,))
        if not self.ended:
            self.save(final=True)
        elif distributed.first():
            self.saved()  # a stop may have come between the file and its copy elsewhere

    def _select(self) -> float | None:
        """Validate where the recipe asks for it, keep the best network; the mIoU if it validated."""
        selection = self.recipe.selection
        if selection is None or self.validate is None:
            return None
        every = selection.every(self.steps_per_epoch)
        previous = (self.step - 1) // self.log_every * self.log_every  # the row before this one
        if self.step // every == previous // every and self.step != self.total:
            return None
        self.writer.wait()  # loader processes are forked
        miou = self.validate()
        self.method.train()
        if miou > self.best.miou:
            self.best = Best(miou, self.step)
            state = {"method": self.method.state_dict(), "step": self.step, "final": True, "miou": miou}
            state |= {trained.NETWORK_KEY: trained.described(self.method), **self.facts}
            if distributed.first():
                write_with(self.checkpoint.with_name("best.pt"), lambda f: torch.save(state, f))
        return miou


def _checked(
    pending: deque[tuple[int, list[str], dict[str, Tensor]]], sums: dict[str, float] | None = None
) -> dict[str, float]:
    """Add the pending terms, averaged over processes, to ``sums`` after making sure that they are finite;
    empties ``pending``."""
    sums = {} if sums is None else sums
    if not pending:
        return sums
    own = [torch.stack(list(terms.values())) for _, _, terms in pending]
    everyone = distributed.averaged(torch.cat(own)).tolist()
    values = iter(everyone)
    for (step, ids, terms), here in zip(pending, own, strict=True):
        for name in terms:
            value = next(values)
            if not math.isfinite(value):
                mine = ids if not bool(here.isfinite().all()) else []
                found = [i for part in distributed.collected(mine) for i in part]
                raise NonFiniteLossError(
                    f"loss term {name!r} is {value} at step {step}",
                    where="images " + ", ".join(found[:16]) + (", ..." if len(found) > 16 else ""),
                    remedy="lower optimiser.lr, set optimiser.clip_norm, or switch amp off",
                )
            sums[name] = sums.get(name, 0.0) + value
    pending.clear()
    return sums
