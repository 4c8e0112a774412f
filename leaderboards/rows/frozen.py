"""A leaderboard that is kept, and what has become of its rows since."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

import harness
from harness.basics.errors import UserError
from harness.basics.files import write_json
from harness.basics.reading import check_part, read_object
from harness.records.documents import Document, checked
from leaderboards.rows.row import Row

_SCHEMA = 1


class FrozenRow(Document):
    """A row as it was."""

    recipe: str
    """Name."""
    overrides: str
    """As the table printed them."""
    evaluation: str
    """What was scored."""
    digest: str
    """Of the training."""
    n: int = Field(ge=1)
    """Seeds."""
    mean: float | None
    """mIoU in percent; null where no class occurred."""
    std: float | None
    """Over seeds; null for one."""
    seeds: dict[str, float | None]
    """mIoU by seed."""


class FrozenBoard(Document):
    """A file of :func:`freeze`."""

    version: int = Field(alias="schema", ge=0, le=_SCHEMA)
    """Of the file."""
    name: str
    """What it is called."""
    made: str
    """ISO 8601, UTC."""
    software: str
    """What wrote it."""
    rows: list[FrozenRow]
    """Standing rows."""


def _figure(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)


def _plain(row: Row) -> dict[str, Any]:
    scores = {str(seed): _figure(run.miou) for seed, run in zip(row.seeds, row.runs, strict=True)}
    own = {key: getattr(row, key) for key in ("recipe", "overrides", "evaluation", "digest", "n")}
    return {**own, "mean": _figure(row.mean), "std": _figure(row.std), "seeds": scores}


def standing_rows(rows: Sequence[Row]) -> list[Row]:
    """Rows with records that are not stale."""
    return [row for row in rows if row.n and row.verdict not in ("stale", "not run")]


def freeze(rows: Sequence[Row], name: str, folder: Path) -> Path:
    """Keep the standing rows of a leaderboard as ``<folder>/<name>.json``.

    Raises:
        UserError: the name is none of a file, it is there already, or there is no row.
    """
    file = folder / f"{check_part(name, 'the name', 'NAME')}.json"
    if file.exists():
        raise UserError(
            f"{name!r} is frozen already", where=file, remedy="choose another name, or compare: --compare"
        )
    kept = standing_rows(rows)
    if not kept:
        raise UserError("there is no standing row to keep", remedy="run a recipe first")
    write_json(
        file,
        {
            "schema": _SCHEMA,
            "name": name,
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "software": f"wsss-bench {harness.__version__}",
            "rows": [_plain(row) for row in kept],
        },
    )
    return file


def thaw(name: str, folder: Path) -> FrozenBoard:
    """A board that was frozen. Raises UserError where there is none, or a damaged one."""
    file = folder / f"{check_part(name, 'the name', 'NAME')}.json"
    return checked(read_object(file, newest=_SCHEMA), FrozenBoard, file)


@dataclass(frozen=True)
class Since:
    """What has become of a row.

    Attributes:
        what: ``same``, ``changed`` (other figures of the seeds that both have, or another digest), ``seeds``
            (more or fewer of them, those in common the same), ``new`` or ``gone``.
        name, evaluation: of the row.
        before, after: mean mIoU in percent; None where there is none.
    """

    what: Literal["same", "changed", "seeds", "new", "gone"]
    name: str
    evaluation: str
    before: float | None
    after: float | None


def since(board: FrozenBoard, rows: Sequence[Row]) -> list[Since]:
    """Every row of a frozen board and of a later one, in the order of the later one, those gone last."""
    before = {(row.recipe, row.overrides, row.evaluation): row for row in board.rows}
    after = {(row.recipe, row.overrides, row.evaluation): row for row in standing_rows(rows)}
    found = []
    for key, row in after.items():
        old, now = before.get(key), _plain(row)
        what = "new" if old is None else _change(old, now)
        found.append(Since(what, _name(key), key[2], None if old is None else old.mean, now["mean"]))
    gone = [key for key in before if key not in after]
    return [*found, *(Since("gone", _name(key), key[2], before[key].mean, None) for key in gone)]


def _name(key: tuple[str, str, str]) -> str:
    return f"{key[0]} ({key[1]})" if key[1] else key[0]


def _change(old: FrozenRow, now: Mapping[str, Any]) -> Literal["same", "changed", "seeds"]:
    common = old.seeds.keys() & now["seeds"].keys()
    if old.digest != now["digest"] or any(old.seeds[seed] != now["seeds"][seed] for seed in common):
        return "changed"
    return "same" if old.seeds.keys() == now["seeds"].keys() else "seeds"
