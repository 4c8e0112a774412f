"""Recipes that are tried one after another, or several at a time on Ray, and the table of their rows."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.basics import provenance
from harness.basics.errors import UserError
from harness.basics.files import check_writable
from harness.basics.schema import digest
from harness.engine import faults
from harness.running.jobs.job import Event, Job, Resources, Source
from harness.running.jobs.run import run_jobs
from harness.running.smoke.forecast import estimated_mib, labels_ready, state_of
from harness.running.smoke.report import (
    SmokeRow,
    folder,
    read_smoke_rows,
    values_digest,
    write_row,
    write_table,
)
from harness.running.smoke.trying import SmokeJob
from harness.running.trials.execution import waves
from harness.running.trials.trial import (
    Options,
    Trial,
    check_processes,
    inspect,
    source_of,
)
from harness.running.watching.board import Board, Work


def smoke(trials: Sequence[Trial], options: Options, resources: Resources | None) -> list[SmokeRow]:
    """Try every recipe among some trials once, and those that they take labels from.

    Recipes whose trials are all finished are left alone; what passed before with the same code, data,
    machine and options is not tried again.

    Args:
        trials: from :func:`harness.running.trials.execution.plan`.
        options: as the run would have them.
        resources: for Ray, as the run would have them; None tries one after another in this process.

    Returns:
        One row for each recipe, in order; they are on disk too, with a table.

    Raises:
        UserError: no recipe can be run, for the reason of the first.
    """
    known = {r.setting: r for r in read_smoke_rows(options.results) if r.status == "passed" and r.setting}
    work = folder(options.results) / "work"
    check_writable(work)
    rows: list[SmokeRow] = []
    jobs: list[SmokeJob] = []
    errors: list[UserError] = []
    groups = _by_recipe(trials)
    for number, group in enumerate(groups):
        try:
            job = _job(number, groups, options, resources, work / str(number))
        except UserError as error:
            errors.append(error)
            reason = {"status": "failed", "stage": "checking", "reason": str(error)}
            rows.append(SmokeRow(group[0].name, trials=len(group), **reason))  # type: ignore[arg-type]
            continue
        rows.append(job.row)
        if job.seeds and job.row.setting in known:
            rows[-1] = replace(known[job.row.setting], trials=job.seeds)
        elif job.seeds:
            jobs.append(job)
    if errors and len(errors) == len(groups):
        raise errors[0]
    try:
        _try(jobs, rows, options, resources)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    write_table(rows, options.results)
    return rows


def _by_recipe(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Trials that differ in the seed alone, sources first."""
    found: dict[tuple[str, str], list[Trial]] = {}
    for trial in (t for wave in waves(trials) for t in wave):
        found.setdefault((trial.name, digest(trial.overrides)), []).append(trial)
    return list(found.values())


def _job(
    number: int,
    groups: Sequence[Sequence[Trial]],
    options: Options,
    resources: Resources | None,
    place: Path,
) -> SmokeJob:
    """What is to be done for a recipe; nothing where all of its trials are finished."""
    group = groups[number]
    checked = inspect(group[0], options)
    check_processes(checked, options)
    left = [t for t in group if state_of(t, options)[0] != "finished"]
    recipe = checked.resolved.recipe
    own = replace(group[0], seed=0)
    outputs = tuple(
        sorted(
            {
                g[0].resolved.recipe.labels_from or ""
                for g in groups
                if (source := source_of(g[0])) is not None and replace(source, seed=0) == own
            }
        )
    )
    values = values_digest(checked.resolved)
    code = provenance.code()
    setting: list[Any] = [
        values,
        dict(checked.fingerprints),
        checked.weights,
        outputs,
        code,
        provenance.environment(),
    ]
    setting += [provenance.hardware(checked.device), options.device, options.workers, options.threads]
    setting += [options.deterministic]
    setting += [resources, labels_ready(group[0], options), recipe.labels_from]
    row = SmokeRow(
        group[0].name,
        values=values,
        setting=digest(setting) if not code["dirty"] else "",  # changed code is tried again
        status="finished" if not left else "passed",
        trials=len(left),
        total=checked.steps,
        estimated_mib=estimated_mib(checked.resolved) if left else None,
        checkpoint_seconds=options.checkpoint_seconds,
    )
    processes = options.processes or recipe.batch.groups
    trial = left[0] if left else group[0]
    return SmokeJob(number, trial, len(left), outputs, options, place, row, processes=processes)


class _Recipes(Source):
    """Recipes to try, each in a process of its own on Ray, since memory is that of a process.

    Args:
        jobs: one for each.
        board: shows them.
        ended: receives the row of each.
    """

    reused = False

    def __init__(
        self, jobs: Sequence[SmokeJob], board: Board, ended: Callable[[SmokeJob, SmokeRow], None]
    ) -> None:
        self.waiting, self.board, self.ended = list(jobs), board, ended
        self.processes = max((job.processes for job in jobs), default=1)

    def next(self) -> Job | None:
        """In the order of the table."""
        return self.waiting.pop(0) if self.waiting else None

    def take(self, job: Job, event: Event) -> bool:
        """Show what is being done; keep the row at the end."""
        assert isinstance(job, SmokeJob)
        if event.ended:
            row = event.result or job.died(event.reason)
            self.board.end(job.number, row.status, f"{row.status:8s} {job.label}")
            self.ended(job, row)
        elif event.status is not None:
            self.board.update(job.number, event.status)
        return False

    def again(self, job: Job, why: str) -> None:
        """Nothing is tried twice."""

    def gave_up(self, job: Job, fault: faults.TransientFault, trace: str) -> Event:
        """It died."""
        why = f"its worker process died (out of host memory?): {str(fault).removeprefix('tried once: ')}"
        return Event(ended="failed", reason=why)


def _try(
    jobs: Sequence[SmokeJob], rows: list[SmokeRow], options: Options, resources: Resources | None
) -> None:
    """Try recipes, with the resources of a trial and as many at a time as trials would be; rows are kept as
    they come."""

    def ended(job: SmokeJob, row: SmokeRow) -> None:
        rows[job.number] = row
        write_row(row, options.results)

    board = Board(len(jobs), states=("passed", "failed"), unit="recipes")
    for job in jobs:
        board.add(job.number, Work(job.label))
    try:
        once = None if resources is None else replace(resources, retries=0)
        run_jobs(_Recipes(jobs, board, ended), once, retries=0)
    finally:
        board.close()
