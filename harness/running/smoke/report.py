"""What a smoke run found out: one row for each recipe, kept beside the record store and never in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from tabulate import tabulate

from harness.basics.files import whole_file, write_json
from harness.basics.listing import Styled, fitted_table, prose, state
from harness.basics.reading import remembered
from harness.basics.schema import digest
from harness.engine.training import LOG_EVERY
from harness.recipes.resolving import Resolved
from harness.records.object_store import beside

#: Layout of the JSON files; rows of another one are not read.
ROW_SCHEMA = 1


@dataclass(frozen=True)
class Pass:
    """One pass over a split: an evaluation, the validation during training, or labels for others.

    Attributes:
        name: what is made, such as ``val-single``.
        pictures: in the whole split.
        seconds: for one picture.
        times: how often a trial makes it.
    """

    name: str
    pictures: int
    seconds: float
    times: int = 1


@dataclass(frozen=True)
class Phase:
    """A stretch of training that was tried.

    Attributes:
        first: its first optimiser step, of ``Row.total``.
        steps: how many were made.
        rate: steps per second, those in which pictures were waited for among them.
        waiting: share of the time in which they were.
    """

    first: int
    steps: int
    rate: float
    waiting: float = 0.0


@dataclass(frozen=True)
class SmokeRow:
    """What is known of one recipe after its smoke run.

    Attributes:
        name: recipe name.
        values: digest of the recipe's values and evaluations.
        setting: digest of all that the row depends on: a row of the same setting is not made again.
        status: ``passed``, ``failed``, or ``finished`` (all trials have their records already).
        stage: what it was doing when it failed.
        reason: why it failed.
        trace: the traceback of an error that is no user's mistake.
        notes: what a reader of the figures must know.
        trials: seeds still to run.
        total: optimiser steps of a whole trial.
        phases: stretches of training that were tried.
        passes: evaluations that were tried.
        device_mib: largest memory reserved on the GPU; None on the CPU.
        estimated_mib: memory of tensors on a GPU as it is estimated before; None where that cannot be.
        host_mib: largest resident memory, with what loader workers hold alone; None where the system
            does not tell.
        checkpoint_mib: a resumable checkpoint.
        final_mib: the final checkpoint, which stays in the record.
        save_seconds: to write a resumable checkpoint.
        checkpoint_seconds: least time between two checkpoints of the run.
        hardware: as in a record.
        written: ISO 8601, UTC.
    """

    name: str
    values: str = ""
    setting: str = ""
    status: str = "passed"
    stage: str = ""
    reason: str = ""
    trace: str = ""
    notes: tuple[str, ...] = ()
    trials: int = 1
    total: int = 0
    phases: tuple[Phase, ...] = ()
    passes: tuple[Pass, ...] = ()
    device_mib: float | None = None
    estimated_mib: float | None = None
    host_mib: float | None = None
    checkpoint_mib: float = 0.0
    final_mib: float = 0.0
    save_seconds: float = 0.0
    checkpoint_seconds: float = 60.0
    hardware: dict[str, Any] = field(default_factory=dict)
    written: str = ""

    @property
    def rate(self) -> float | None:
        """Steps per second in the slowest phase: where it begins and ends is known to the method alone."""
        return min((p.rate for p in self.phases), default=None)

    def seconds(self, total: int | None = None) -> float | None:
        """Forecast of one trial: steps, checkpoints and evaluations.

        Args:
            total: optimiser steps, those of the row by default.
        """
        if self.rate is None or self.status != "passed":
            return None
        total = self.total if total is None else total
        training = total / self.rate
        saves = total / LOG_EVERY  # at most one for each row of the history
        if self.checkpoint_seconds:
            saves = min(saves, training / self.checkpoint_seconds)
        scoring = sum(p.pictures * p.seconds * p.times for p in self.passes)
        return training + saves * self.save_seconds + scoring


def folder(results: Path | str) -> Path:
    """Where the rows of a record store are kept: beside it, of a URI in the current folder."""
    return beside(results) / "smoke"


def values_digest(resolved: Resolved) -> str:
    """Digest of what decides the cost of a recipe: all its values and its evaluations."""
    return digest([resolved.essential_values(), resolved.recipe.evaluation])


def write_row(row: SmokeRow, results: Path | str) -> None:
    """Keep a row; an older one of the same values goes."""
    place = folder(results) / row.name / f"{row.values or 'unread'}.json"
    write_json(place, {"schema": ROW_SCHEMA, **asdict(row)})


def read_smoke_rows(results: Path | str) -> list[SmokeRow]:
    """All rows of a record store, in a fixed order."""
    rows = (remembered(file, _row, None) for file in sorted(folder(results).glob("*/*/*.json")))
    return [row for row in rows if row is not None]  # the others are made again


def _row(data: dict[str, Any]) -> SmokeRow | None:
    if data.get("schema") != ROW_SCHEMA:
        return None
    values = {
        **data,
        "phases": tuple(Phase(**p) for p in data["phases"]),
        "passes": tuple(Pass(**p) for p in data["passes"]),
        "notes": tuple(data["notes"]),
    }
    known = {f.name for f in fields(SmokeRow)}
    return TypeAdapter(SmokeRow).validate_python({k: v for k, v in values.items() if k in known})


def readable_duration(seconds: float) -> str:
    """``3 h 05 min``, ``4 min 10 s`` or ``12 s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
    )


def readable_memory(mebibytes: float | None) -> str:
    if mebibytes is None:
        return "-"
    return f"{mebibytes / 1024:.1f} GiB" if mebibytes >= 1024 else f"{mebibytes:.0f} MiB"


_HEADERS = (
    "recipe", "result", "GPU", "estimate", "host", "steps/s by phase", "s/picture", "one trial", "to run",
    "checkpoint",
)  # fmt: skip


def _lines(rows: Iterable[SmokeRow]) -> list[tuple[str, ...]]:
    lines: list[tuple[str, ...]] = []
    for row in rows:
        one = row.seconds()
        rates = " / ".join(_rate(p) for p in row.phases)
        scored = "; ".join(f"{p.name} {p.seconds:.3g}" for p in row.passes)
        lines.append(
            (
                row.name,
                row.status if not row.stage else f"{row.status}: {row.stage}",
                readable_memory(row.device_mib),
                readable_memory(row.estimated_mib),
                readable_memory(row.host_mib),
                rates or "-",
                scored or "-",
                "-" if one is None else readable_duration(one),
                f"{row.trials} x"
                if one is None
                else f"{row.trials} x, {readable_duration(row.trials * one)}",
                "-" if not row.checkpoint_mib else readable_memory(row.checkpoint_mib),
            )
        )
    return lines


def _rate(phase: Phase) -> str:
    waited = f" ({100 * phase.waiting:.0f} % waiting)" if phase.waiting > 0.1 else ""
    return f"{phase.rate:.3g}{waited}"


def smoke_table(rows: Sequence[SmokeRow]) -> str:
    """The rows as a Markdown table, with what failed, and why, below."""
    text = tabulate(_lines(rows), headers=_HEADERS, tablefmt="github", disable_numparse=True)
    return "\n\n".join([text, *_remarks(rows)])


def smoke_listing(rows: Sequence[SmokeRow]) -> str:
    """The rows as a listing that fits the terminal, with what failed, and why, below."""
    lines = [[Styled(name), state(result), *map(Styled, rest)] for name, result, *rest in _lines(rows)]
    remarks = ["\n".join(prose(line, indent="  ") for line in text.split("\n")) for text in _remarks(rows)]
    return "\n\n".join([fitted_table(lines, _HEADERS, right=(2, 3, 4)), *remarks])


def _remarks(rows: Iterable[SmokeRow]) -> list[str]:
    failed = [
        f"failed {row.name}, {row.stage}\n"
        + "\n".join("  " + line for line in row.reason.splitlines() if line.strip())
        for row in rows
        if row.status == "failed"
    ]
    notes: dict[str, list[str]] = {}
    for row in rows:
        for note in row.notes:
            notes.setdefault(note, []).append(row.name)
    return [*failed, *(f"note: {note}: {', '.join(names)}" for note, names in notes.items())]


def write_table(rows: Sequence[SmokeRow], results: Path | str) -> Path:
    """Keep the table of the last smoke run beside its rows, as Markdown."""
    file = folder(results) / "table.md"
    with whole_file(file) as stream:
        stream.write(smoke_table(rows) + "\n")
    return file
