"""Rows without a figure: what was not run, trained and not scored, or failed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from harness.basics.schema import dump
from harness.recipes.fitting import OWN
from harness.recipes.names import run_command
from leaderboards.rows.gathering import WEAK_LABEL_KEYS, Line, lines_of, method_title, weak_label
from leaderboards.rows.published import Published, cited
from leaderboards.rows.row import Row, remarks


def _titles(frame: pd.DataFrame) -> dict[str, str]:
    return {} if frame.empty else dict(zip(frame["method"], frame["title"], strict=True))


def holes(
    rows: Sequence[Row], frame: pd.DataFrame, recipes: Mapping[str, Any], known: Published
) -> list[Row]:
    """A row for every evaluation of a recipe that no standing, unchanged record answers."""
    answered = {(r.recipe, r.evaluation) for r in rows if r.verdict != "stale" and not r.overrides}
    outdated = {(r.recipe, r.evaluation) for r in rows if r.verdict == "stale"}
    titles = _titles(frame)
    plain = frame[frame["finished"] & (frame["overrides"] == "")] if len(frame) else frame
    trained = set(plain["name"]) if len(plain) else set()
    holes = []
    for name in sorted(recipes):
        recipe = recipes[name].recipe
        if recipe.dataset == OWN:  # for whoever wants it: nobody misses a number
            continue
        labels = weak_label({key: dump(getattr(recipe, key)) for key in WEAK_LABEL_KEYS})
        for spec in recipe.evaluation:
            if (name, spec.name) in answered:
                continue
            value, source, notes = cited(spec.cells, known)
            if name in trained and (name, spec.name) not in outdated:
                notes.insert(0, f"trained; run `{run_command(name, {})}` again to evaluate it")
            holes.append(
                Row(
                    dataset=recipe.dataset,
                    supervision=recipe.supervision,
                    method=recipe.method,
                    title=method_title(recipe.method, titles),
                    recipe=name,
                    backbone=recipe.backbone,
                    weights=recipe.weights,
                    weak_label=labels,
                    evaluation=spec.name,
                    protocol=spec.protocol,
                    split=spec.split,
                    output=spec.output,
                    published=value,
                    source=source,
                    tolerance=math.nan if spec.tolerance is None else spec.tolerance,
                    notes=tuple(notes),
                )
            )
    return holes


#: A suite is being run where this share of its recipes has records.
_BEGUN = 0.5


def with_asked(missing: Sequence[Row], rows: Sequence[Row], recipes: Mapping[str, Any]) -> list[Row]:
    """The holes, each with whether somebody asked for it.

    Asked for are recipes with records, and those of a suite of which at least half of the recipes have some.
    """
    begun = {row.recipe for row in rows if not row.overrides}
    suites: dict[str, set[str]] = {}
    for name, resolved in recipes.items():
        for suite in resolved.recipe.suites:
            suites.setdefault(suite, set()).add(name)
    members = (names for names in suites.values() if len(names & begun) >= _BEGUN * len(names))
    wanted = begun.union(*members)
    return [dataclasses.replace(row, asked=row.recipe in wanted) for row in missing]


def unscored(frame: pd.DataFrame) -> list[Row]:
    """A row for each training digest that was trained and never scored, of which there is no hole."""
    if frame.empty:
        return []
    groups: dict[tuple[str, str, str], list[Line]] = {}
    for line in lines_of(frame[frame["finished"] & (frame["evaluation"] == "")]):
        groups.setdefault((line["name"], line["overrides"], line["digest"]), []).append(line)
    rows = []
    for (name, overrides, digest), group in groups.items():
        first = group[0]
        notes = remarks([line["record"] for line in group], "notes")
        if not notes:
            continue  # nothing kept it from being evaluated: its hole says how
        values = {k: first[k] for k in ("dataset", "supervision", "method", "title", "backbone", "weights")}
        seeds = ", ".join(str(line["seed"]) for line in group)
        rows.append(
            Row(
                **values,
                weak_label=first["weak_label"],
                recipe=name,
                overrides=overrides,
                digest=digest,
                evaluation="none",
                protocol="",
                split="",
                output="segmentation",
                published=math.nan,
                source="",
                tolerance=math.nan,
                notes=(f"trained (seed {seeds}), nothing evaluated", *notes),
            )
        )
    return rows


def with_failures(rows: list[Row], frame: pd.DataFrame) -> list[Row]:
    if frame.empty:
        return rows
    failed: dict[tuple[str, str], list[Line]] = {}
    for line in lines_of(frame[~frame["finished"]]):
        failed.setdefault((line["name"], line["overrides"]), []).append(line)
    out = []
    for row in rows:
        mine = failed.get((row.recipe, row.overrides), [])
        mine = [line for line in mine if row.digest in ("", line["digest"])]
        if mine:
            reason = str(mine[0]["reason"]).partition("\n")[0]
            seeds = ", ".join(str(s) for s in sorted(line["seed"] for line in mine))
            notes = (f"failed seeds {seeds}: {reason}", *row.notes)
            row = dataclasses.replace(row, notes=notes, asked=True)
        out.append(row)
    return out
