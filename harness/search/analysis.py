"""What the trials of a search tell about its hyper-parameters, those included that were stopped early."""

from __future__ import annotations

import math
import warnings
from collections import Counter

import optuna
from optuna.trial import FrozenTrial

from harness.search.objective import END
from harness.search.study import Study

#: Fewest trials that importances are computed from.
FEWEST = 4


def measured(study: Study) -> list[FrozenTrial]:
    """Trials with at least one measurement."""
    return [trial for trial in study.trials if trial.intermediate_values]


def comparison_point(study: Study) -> int:
    """Percent of training at which most trials were measured, the latest of equals; 100 before any was.

    There all trials can be compared; at the end only those can that were not stopped.
    """
    counts = Counter(percent for trial in study.trials for percent in trial.intermediate_values)
    return max(counts, key=lambda percent: (counts[percent], percent), default=END)


def at_point(study: Study, percent: int) -> list[tuple[FrozenTrial, float]]:
    """Trials measured at a percentage of training, with their mIoU in percent."""
    found = ((trial, trial.intermediate_values.get(percent)) for trial in study.trials)
    return [(trial, value) for trial, value in found if value is not None]


def importances(study: Study) -> dict[str, float]:
    """Share of each hyper-parameter in what separates good trials at the :func:`comparison_point`.

    PED-ANOVA (Watanabe et al., IJCAI 2023), the largest first, summing to 1; empty where fewer than
    :data:`FEWEST` trials, or none that differ, were measured there.
    """
    rows = at_point(study, comparison_point(study))
    if len(rows) < FEWEST or len({value for _, value in rows}) < 2:
        return {}
    space = dict(study.plan.space)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        copy = optuna.create_study(direction="maximize")
        copy.add_trials(
            optuna.trial.create_trial(value=value, params=trial.params, distributions=space)
            for trial, value in rows
        )
        found = optuna.importance.get_param_importances(
            copy, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
        )
    return {name: float(share) for name, share in found.items() if math.isfinite(share)}


def when(percent: int) -> str:
    """A point of training in words."""
    return "at the end of training" if percent == END else f"after {percent} % of training"
