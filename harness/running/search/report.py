"""What a search leaves beside its plots: ``search.json``, ``best.toml`` and ``report.md``, from the study."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import tomli_w
from optuna.trial import FrozenTrial, TrialState
from tabulate import tabulate

from harness.basics import listing, provenance
from harness.basics.files import whole_file, write_json
from harness.basics.schema import dump
from harness.recipes.names import data_root, run_command
from harness.recipes.resolving import resolve
from harness.running.search.analysis import CommonPoint, compared_trials
from harness.running.search.study import STATES, Study, best_trial, own_trial

#: Version of ``search.json``.
REPORT_SCHEMA = 1


def trial_state(trial: FrozenTrial) -> str:
    """``finished``, ``pruned``, ``diverged``, ``failed`` or ``running``."""
    return "diverged" if trial.user_attrs.get("diverged") else STATES.get(trial.state, "running")


def best_overrides(study: Study) -> dict[str, Any]:
    """The search's own overrides with the best values found; empty before a trial has finished."""
    best = best_trial(study)
    return {} if best is None else {**study.plan.overrides, **best.params}


def run_line(study: Study) -> str:
    """The command that trains the best configuration on the whole training split."""
    return run_command(study.plan.recipe, best_overrides(study))


def verdict(study: Study) -> str:
    """Whether the search beat the recipe's own configuration, in one sentence."""
    best, own = best_trial(study), own_trial(study)
    if best is None:
        return "no trial has finished"
    value = float(best.value or 0.0)
    found = f"best {value:.2f} mIoU (trial {best.number}, {study.plan.objective.stamp})"
    if study.plan.own is None:
        return f"{found}; the recipe's own values lie outside the search space and were not measured"
    if own is None:
        return f"{found}; the recipe's own values were not measured"
    if best.number == own.number:
        return f"no trial beat the recipe's own values: {found}"
    yardstick = float(own.value or 0.0)
    return f"{found}, {value - yardstick:+.2f} against the recipe's own values ({yardstick:.2f})"


def write_tables(study: Study) -> None:
    """Write ``search.json`` and, once a trial has finished, ``best.toml``."""
    plan, best, own, comparison = study.plan, best_trial(study), own_trial(study), compared_trials(study)
    write_json(
        plan.folder / "search.json",
        {
            "schema": REPORT_SCHEMA,
            "recipe": plan.recipe,
            "overrides": dump(dict(plan.overrides)),
            "digest": plan.digest,
            "stamp": plan.objective.stamp,
            "selected_on_reported_split": plan.objective.reported,
            "objective": {**plan.objective.values(), "pictures": plan.pictures, "unit": "percent"},
            "sampler": plan.sampler,
            "scheduler": plan.scheduler,
            "seed": plan.seed,
            "space": {
                k: json.loads(optuna.distributions.distribution_to_json(d)) for k, d in plan.space.items()
            },
            "wanted": study.wanted,
            "counts": dict(study.counts()),
            "own": None if own is None else _row(study, own),
            "best": None if best is None else _row(study, best),
            "verdict": verdict(study),
            "importances": comparison.importances,
            "importances_at": comparison.percent,
            "trials": trial_rows(study),
            "code": provenance.code(),
            "environment": provenance.environment(),
        },
    )
    if best is not None:
        recipe = resolve(plan.recipe, plan.overrides).recipe
        remark = f"Hyper-parameters found by a search of {study.wanted} trials, {plan.objective.stamp}."
        values: dict[str, Any] = {"extends": plan.recipe, "remarks": [*recipe.remarks, remark]}
        for key, value in best_overrides(study).items():
            *parents, last = key.split(".")
            table = values
            for parent in parents:
                table = table.setdefault(parent, {})
            table[last] = dump(value)
        with whole_file(plan.folder / "best.toml") as stream:
            command = " ".join(filter(None, ["wsss run ./best.toml", data_root(plan.recipe, plan.overrides)]))
            stream.write(f"# {verdict(study)}\n# {command}\n")
            stream.write(tomli_w.dumps(values))


def trial_rows(study: Study) -> list[dict[str, Any]]:
    """Every trial as plain values: its state, what was measured of it, its values and seconds."""
    return [_row(study, trial) for trial in study.trials]


def _row(study: Study, trial: FrozenTrial) -> dict[str, Any]:
    attributes: Mapping[str, Any] = trial.user_attrs
    finished = trial.state == TrialState.COMPLETE
    return {
        "number": trial.number,
        "state": trial_state(trial),
        "miou": trial.value if finished else None,
        "measured": {str(p): v for p, v in sorted(trial.intermediate_values.items())},
        "values": dump(trial.params),
        "own": bool(attributes.get("own")),
        "seed": study.plan.seed,
        "started": None if trial.datetime_start is None else trial.datetime_start.isoformat("T", "seconds"),
        "seconds": attributes.get("seconds"),
        "reason": attributes.get("reason", ""),
    }


def write_study_report(study: Study, comparison: CommonPoint) -> Path:
    """Write ``report.md``: the verdict, the best values beside the recipe's own, importances, all trials."""
    plan, best, own, said = study.plan, best_trial(study), own_trial(study), verdict(study)
    parts = [f"# Search of `{plan.recipe}`", f"{said[:1].upper()}{said[1:]}."]
    if best is not None:
        rows = [(k, _shown((plan.own or {}).get(k, "-")), _shown(v)) for k, v in best.params.items()]
        parts += ["## Best values", _table(rows, ("", "recipe", f"trial {best.number}"))]
        parts.append(f"```\n{run_line(study)}\n```")
    if table := importance_table(comparison, "github"):
        parts += ["## Importances", table]
    names = list(plan.space)
    lines = []
    for trial in study.trials:
        at = max(trial.intermediate_values, default=None)
        mark = " (own values)" if own is not None and trial.number == own.number else ""
        miou = "-" if at is None else f"{trial.intermediate_values[at]:.2f}"
        values = [_shown(trial.params.get(name, "-")) for name in names]
        lines.append(
            [f"{trial.number}{mark}", trial_state(trial), miou, "-" if at is None else f"{at} %", *values]
        )
    parts += ["## Trials", _table(lines, ["trial", "state", "mIoU", "measured at", *names])]
    file = plan.folder / "report.md"
    with whole_file(file) as stream:
        stream.write("\n\n".join(parts) + "\n")
    return file


def importance_table(comparison: CommonPoint, form: str = "simple") -> str:
    """Importances as text with what they rest on; nothing where there are none."""
    found = comparison.importances
    if not found:
        return ""
    rests = f"{len(comparison.rows)} trials, mIoU {comparison.when}"
    remark = f"PED-ANOVA over {rests}; rough below some dozens of trials"
    rows = [(k, f"{v:.2f}") for k, v in found.items()]
    if form == "simple":
        return (
            listing.fitted_table(rows, ("value", "importance"), right=(1,))
            + f"\n\n{listing.prose(f'({remark})')}"
        )
    return _table(rows, ("", "importance"), form) + f"\n\n({remark})"


def _table(rows: Sequence[Sequence[str]], headers: Sequence[str], form: str = "github") -> str:
    return tabulate(rows, headers=headers, tablefmt=form, disable_numparse=True)


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
