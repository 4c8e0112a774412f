"""What a search leaves for people: its stamp, importances, report and plots."""

from __future__ import annotations

import math
import tomllib

import numpy as np
import pytest
from markdown_tables import rows
from matplotlib import image
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from searches import RECIPE, finish, plan, table

from harness.recipes.resolving import resolve
from harness.running.search.analysis import compared_trials
from harness.running.search.plots import _Scale, write_study_plots
from harness.running.search.report import importance_table, run_line, verdict, write_study_report
from harness.running.search.study import best_trial, open_study


def test_selection_on_the_reported_split_is_stamped(options, quick):
    search = plan(options, 3, objective_split="val")
    finish(search)
    assert search.pictures == 6
    assert table(search)["selected_on_reported_split"]
    assert table(search)["stamp"] == "selected on the reported split 'val'"
    best = tomllib.loads((search.folder / "best.toml").read_text())
    assert "selected on the reported split 'val'" in best["remarks"][-1]
    assert best["remarks"][:-1] == list(resolve(RECIPE).recipe.remarks)
    with open_study(search) as study:
        assert "selected on the reported split" in verdict(study)
        assert run_line(study).startswith(f"wsss run {RECIPE} --set schedule.steps=40 ")
        assert study.study.user_attrs["stamp"] == table(search)["stamp"]
        assert best_trial(study).value == table(search)["best"]["miou"]


def test_importances_find_what_matters(options, quick):
    search = plan(options, 30, sampler="random", scheduler="none")
    finish(search)
    found = table(search)["importances"]
    assert sum(found.values()) == pytest.approx(1)
    assert found["optimiser.lr"] > 0.6
    assert list(found) == sorted(found, key=found.get, reverse=True)
    assert table(search)["importances_at"] == 100
    with open_study(search) as study:
        assert "optimiser.lr" in importance_table(compared_trials(study))
        assert "30 trials, mIoU at the end of training" in importance_table(compared_trials(study))
        assert {f.stem for f in write_study_plots(study, compared_trials(study))} >= {
            "history",
            "importances",
        }


def test_trials_that_were_stopped_count_where_all_can_be_compared(options, quick):
    search = plan(options, 30, sampler="random", scheduler="asha")
    finish(search)
    data = table(search)
    assert data["counts"]["finished"] < 15, "most are stopped"
    assert data["importances_at"] == 25, "there every trial was measured"
    assert data["importances"]["optimiser.lr"] > 0.6
    with open_study(search) as study:
        assert compared_trials(study).percent == 25
        assert "over 30 trials, mIoU after 25 % of training" in importance_table(compared_trials(study))


def test_the_report_names_the_best_and_lists_every_trial(options, quick):
    search = plan(options, 12, scheduler="asha")
    finish(search)
    with open_study(search) as study:
        text = write_study_report(study, compared_trials(study)).read_text()
        assert verdict(study)[1:] in text
        assert run_line(study) in text
        best = best_trial(study).number
    _, _, below = text.partition("## Trials")
    found = rows(below)
    assert [row["trial"] for row in found] == ["0 (own values)", *map(str, range(1, 12))]
    data = table(search)["trials"]
    assert [row["state"] for row in found] == [t["state"] for t in data]
    assert [row["measured at"] for row in found] == [f"{max(map(int, t['measured']))} %" for t in data]
    assert found[best]["mIoU"] == f"{data[best]['miou']:.2f}"


def test_plots_show_every_trial_and_wait_for_two(options, quick):
    one = plan(options, 1)
    finish(one)
    with open_study(one) as study:
        assert write_study_plots(study, compared_trials(study)) == []
        assert importance_table(compared_trials(study)) == ""
    search = plan(options, 12, scheduler="median", sampler="random")
    finish(search)
    with open_study(search) as study:
        files = {f.stem: image.imread(f) for f in write_study_plots(study, compared_trials(study))}
    assert set(files) == {"history", "intermediate", "slices", "parallel", "importances"}
    hollow = np.isclose(files["history"][..., :3], 128 / 255, atol=0.01).all(-1).sum()
    assert hollow > 100, "trials that were stopped are drawn in grey"


@pytest.mark.parametrize(
    ("distribution", "value", "share", "texts"),
    [
        (FloatDistribution(0.001, 0.1, log=True), 0.01, 0.5, ["0.001", "0.01", "0.1"]),
        (FloatDistribution(0, 2), 0.5, 0.25, ["0", "1", "2"]),
        (IntDistribution(1, 5), 5, 1.0, ["1", "3", "5"]),
        (CategoricalDistribution(["a", None]), None, 1 - 0.3 / 1.6, ["a", "None"]),
    ],
)
def test_axes_follow_the_distribution(distribution, value, share, texts):
    scale = _Scale(distribution)
    assert scale.share(scale.place(value)) == pytest.approx(share)
    assert scale.ticks()[1] == texts
    assert all(-1e-9 <= scale.share(p) <= 1 + 1e-9 for p in scale.ticks()[0])
    assert math.isfinite(scale.width)
