"""What the trials of a search tell about its hyper-parameters, those included that were stopped early."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import optuna
from optuna.trial import FrozenTrial

from harness.running.search.objective import END
from harness.running.search.study import Study

#: Fewest trials that importances are computed from.
FEWEST = 4


@dataclass(frozen=True)
class CommonPoint:
    """Trials at the point of training where they can be compared.

    Attributes:
        study: whose trials.
        percent: of training, where most trials were measured, the latest of equals (at the end only those
            count that were not stopped); 100 before any was.
        rows: trials measured there, with their mIoU in percent.
    """

    study: Study
    percent: int
    rows: tuple[tuple[FrozenTrial, float], ...]

    @property
    def when(self) -> str:
        """The point of training in words."""
        return "at the end of training" if self.percent == END else f"after {self.percent} % of training"

    @cached_property
    def importances(self) -> dict[str, float]:
        """Share of each hyper-parameter in what separates good trials.

        PED-ANOVA (Watanabe et al., IJCAI 2023), the largest first, summing to 1; empty where there are fewer
        than :data:`FEWEST` trials, or none that differ.
        """
        if len(self.rows) < FEWEST or len({value for _, value in self.rows}) < 2:
            return {}
        space = dict(self.study.plan.space)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            copy = optuna.create_study(direction="maximize")
            copy.add_trials(
                optuna.trial.create_trial(value=value, params=trial.params, distributions=space)
                for trial, value in self.rows
            )
            found = optuna.importance.get_param_importances(
                copy, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
            )
        return {name: float(share) for name, share in found.items() if math.isfinite(share)}


def compared_trials(study: Study) -> CommonPoint:
    """The trials of a study as they stand now, those that were stopped early included."""
    trials = study.trials
    counts = Counter(percent for trial in trials for percent in trial.intermediate_values)
    percent = max(counts, key=lambda percent: (counts[percent], percent), default=END)
    found = ((trial, trial.intermediate_values.get(percent)) for trial in trials)
    return CommonPoint(study, percent, tuple((t, value) for t, value in found if value is not None))
