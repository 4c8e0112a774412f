"""Which records are of which configuration of a recipe, however its values are written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd

from harness.basics.errors import UserError
from harness.basics.schema import digest
from harness.recipes.given import one
from harness.recipes.resolving import Resolved, resolve
from harness.recipes.row_names import row_overrides, row_parts, values_text
from harness.recipes.specs import EvaluationSpec
from harness.records.records import EvaluationRecord

#: Of an evaluation, what its name is made of.
_NAMED = ("split", "protocol", "network", "output", "checkpoint")


class Configurations:
    """The lines of a frame by what they were trained and scored with; every recipe is read once.

    Args:
        frame: from :func:`leaderboards.rows.gathering.gather_records`.
    """

    def __init__(self, frame: pd.DataFrame) -> None:
        self.frame = frame
        self._known: dict[tuple[str, str], str | None] = {}

    def with_values(self, name: str, overrides: Mapping[str, Any]) -> pd.DataFrame:
        """Lines of a recipe with these values, evaluations under the names that the recipe gives them.

        Values that only inference reads pick evaluations; all others pick trainings. Lines are called as all
        their records were, or by these values, in whatever way they were given.

        Raises:
            UserError: the recipe, a key or a value is unknown.
        """
        own = self.frame[self.frame["name"] == name] if len(self.frame) else self.frame
        if own.empty:
            return own
        asked = resolve(name, overrides)
        wanted, inference = _trained(asked), asked.inference
        fits = [
            self._digest(name, record.data.get("overrides", {})) == wanted
            and (run is None or run.data.get("config", {}) == inference)
            for record, run in zip(own["record"], own["run"], strict=True)
        ]
        found = own[fits]
        plain = [_plain_name(run) for run in found["run"]]
        called = {record.data.get("called", "") for record in found["record"]}
        text = values_text(overrides) if len(called) != 1 else called.pop() or values_text(overrides)
        return found.assign(overrides=text, evaluation=plain)

    def named(self, target: str) -> pd.DataFrame:
        """Lines of a row by the name that tables print: the same text, or the same values.

        Args:
            target: ``METHOD/RECIPE (crop=48)``, or ``METHOD/RECIPE (called)``.

        Raises:
            UserError: as :meth:`with_values`.
        """
        parts = row_parts(target)
        assert parts is not None, target
        name, inside = parts
        exact = self.frame["name"].eq(name) & self.frame["overrides"].eq(inside)
        values = row_overrides(inside)
        if exact.any() or values is None:
            found = self.frame[exact]
            return found.assign(evaluation=[_plain_name(run) for run in found["run"]])
        return self.with_values(name, one(target).overrides)

    def _digest(self, name: str, overrides: Mapping[str, Any]) -> str | None:
        key = name, json.dumps(overrides, sort_keys=True, default=str)
        if key not in self._known:
            try:
                self._known[key] = _trained(resolve(name, overrides))
            except UserError:  # values that are legal no more
                self._known[key] = None
        return self._known[key]


def _trained(resolved: Resolved) -> str:
    return digest(resolved.essential_values(), 32)


def _plain_name(run: EvaluationRecord | None) -> str:
    """The name of an evaluation without the values of inference that it was made with."""
    if run is None:
        return ""
    if not run.data.get("config"):
        return run.name
    return EvaluationSpec(**{k: v for k, v in run.data["spec"].items() if k in _NAMED}).name
