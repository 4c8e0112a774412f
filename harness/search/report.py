"""What a search leaves for people: ``search.json``, ``best.toml`` and plots, all made from the study."""

from __future__ import annotations

import json
import math
import shlex
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import tomli_w
from optuna.trial import FrozenTrial, TrialState

from harness import provenance
from harness.files import whole_file, write_json, write_with
from harness.recipes import resolve
from harness.schema import dump
from harness.search.study import STATES, Study, best_trial, own_trial

#: Version of ``search.json``.
SCHEMA = 1
#: Plots with a column for each hyper-parameter.
_WIDE = ("slices", "parallel")


def trial_state(trial: FrozenTrial) -> str:
    """``finished``, ``pruned``, ``diverged``, ``failed`` or ``running``."""
    return "diverged" if trial.user_attrs.get("diverged") else STATES.get(trial.state, "running")


def best_overrides(study: Study) -> dict[str, Any]:
    """The search's own overrides with the best values found; empty before a trial has finished."""
    best = best_trial(study)
    return {} if best is None else {**study.plan.overrides, **best.params}


def run_line(study: Study) -> str:
    """The command that trains the best configuration on the whole training split."""
    settings = [f"--set {shlex.quote(f'{k}={_toml(v)}')}" for k, v in best_overrides(study).items()]
    return " ".join(["wsss run", study.plan.recipe, *settings])


def _toml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(dump(value))


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


def importances(study: Study) -> dict[str, float]:
    """Share of each hyper-parameter in what separates good finished trials (PED-ANOVA, Watanabe et al.,
    IJCAI 2023), summing to 1; empty where too few trials have finished to tell."""
    finished = [t for t in study.trials if t.state == TrialState.COMPLETE]
    if len(finished) < 4 or len({t.value for t in finished}) < 2:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = optuna.importance.get_param_importances(
            study.study, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
        )
    return {k: float(v) for k, v in found.items() if math.isfinite(v)}


def write_tables(study: Study) -> None:
    """Write ``search.json`` and, once a trial has finished, ``best.toml``."""
    plan, best, own = study.plan, best_trial(study), own_trial(study)
    write_json(
        plan.folder / "search.json",
        {
            "schema": SCHEMA,
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
            "importances": importances(study),
            "trials": [_row(study, t) for t in study.trials],
            "code": provenance.code(),
            "environment": provenance.environment(),
        },
    )
    if best is not None:
        recipe = resolve(plan.recipe, plan.overrides).recipe
        remark = f"Hyper-parameters found by a search of {study.wanted} trials, {plan.objective.stamp}."
        values: dict[str, Any] = {"remarks": [*recipe.remarks, remark]}
        for key, value in best_overrides(study).items():
            *parents, last = key.split(".")
            table = values
            for parent in parents:
                table = table.setdefault(parent, {})
            table[last] = dump(value)
        with whole_file(plan.folder / "best.toml") as stream:
            stream.write(f"# {verdict(study)}\n# wsss run {plan.recipe} --set @best.toml\n")
            stream.write(tomli_w.dumps(values))


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


# --- plots -------------------------------------------------------------------------------------------


def write_plots(study: Study) -> list[Path]:
    """History, importances, slices and parallel coordinates as PNG; as many as the trials allow."""
    if sum(t.state == TrialState.COMPLETE for t in study.trials) < 2:
        return []
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from optuna.visualization import matplotlib as figures

    label = f"mIoU ({study.plan.objective.split})"
    draw = {
        "history": lambda: figures.plot_optimization_history(study.study, target_name=label),
        "slices": lambda: figures.plot_slice(study.study, target_name=label),
        "parallel": lambda: figures.plot_parallel_coordinate(study.study, target_name=label),
        "intermediate": lambda: figures.plot_intermediate_values(study.study),
    }
    if importances(study):
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        draw["importances"] = lambda: figures.plot_param_importances(study.study, evaluator=evaluator)
    written = []
    for name, function in draw.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function()
            figure = plt.gcf()
            figure.set_size_inches(max(3.2 * len(study.plan.space), 8) if name in _WIDE else 8, 5)
            if name == "intermediate":
                axes = figure.axes[0]
                axes.set(xlabel="training done (%)", ylabel=label, title="Measured during training")
                legend = axes.get_legend()
                if legend is not None and len(axes.lines) > 12:
                    legend.remove()
            figure.suptitle(f"{study.plan.recipe}: {study.plan.objective.stamp}", fontsize=9, y=1.02)
            file = study.plan.folder / "plots" / f"{name}.png"
            write_with(file, partial(figure.savefig, dpi=100, bbox_inches="tight"))
        plt.close("all")
        written.append(file)
    return written
