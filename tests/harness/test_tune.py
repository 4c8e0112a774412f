"""Equal budgets: every recipe gets the same search, and the curve of its budget is exact."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from searches import TINY as FORTY
from searches import pretend

import harness.running.search.objective
from harness.records.records import Store
from harness.running.jobs.job import Event
from harness.running.search.tuning import tune
from leaderboards.rows.budgets import budget_lines, budget_rows, expected_best, trial_score
from leaderboards.rows.gathering import gather_records
from leaderboards.write.budgets import budget_listing, budget_markdown
from tests.runs import wsss

TINY = {**FORTY, "schedule.steps": 4}
RECIPES = ("pce/mini-scribble", "gated_crf/mini-scribble")


@pytest.mark.parametrize(
    ("values", "first"),
    [
        ([3.0, 1.0, 2.0, 5.0, 4.0], None),
        ([3.0, 3.0, 1.0, 3.0], None),
        ([2.0, 7.0, 1.0, 4.0], 3.0),
        ([2.0, 1.0], 9.0),
        ([5.0], None),
        ([], 4.0),
        ([], None),
    ],
)
def test_the_expected_best_is_the_mean_over_all_draws(values: list[float], first: float | None) -> None:
    """Brute force over every set of trials that could have come first."""
    mean, std = expected_best(values, first)
    ahead = [] if first is None else [first]
    assert len(mean) == len(std) == len(values) + len(ahead)
    for n in range(1, len(mean) + 1):
        best = [max([*ahead, *drawn]) for drawn in itertools.combinations(values, n - len(ahead))]
        assert mean[n - 1] == pytest.approx(np.mean(best))
        assert std[n - 1] == pytest.approx(np.std(best), abs=1e-9)


def test_it_is_unbiased_where_drawing_with_replacement_is_not() -> None:
    """Searches of six trials from a known distribution: the estimate for three is right on average."""
    rng = np.random.default_rng(0)
    truth = np.mean(rng.random((20_000, 3)).max(1))  # 0.75
    found = np.mean([expected_best(rng.random(6).tolist())[0][2] for _ in range(2000)])
    assert found == pytest.approx(truth, abs=0.015)


def test_many_trials_and_huge_binomials() -> None:
    mean, std = expected_best(np.linspace(0, 100, 2000).tolist())
    assert (np.diff(mean) >= -1e-9).all()
    assert mean[0] == pytest.approx(50)
    assert (mean[-1], std[-1]) == (100, 0)


def test_a_trial_counts_with_what_it_had_reached() -> None:
    assert trial_score({"state": "pruned", "measured": {"25": 10.0, "50": 20.0}}) == 20.0
    assert trial_score({"state": "diverged", "measured": {}}) == 0.0
    assert trial_score({"state": "failed", "measured": {"25": 10.0}}) is None


def _budget(options, **changes):
    return tune(RECIPES, 4, 2, overrides=TINY, options=options, say=lambda text: None, **changes)


@pytest.mark.faults
def test_every_recipe_gets_the_same_and_is_trained_anew(options, monkeypatch) -> None:
    """The same number of trials, the same pictures; stopped in between, it ends as it would have."""

    class Killed:
        """A display through which the second search is interrupted at its third trial."""

        def __init__(self, study) -> None:
            self.recipe = study.plan.recipe

        def update(self, job, event) -> None:
            if self.recipe == RECIPES[1] and job.number == 2:
                raise KeyboardInterrupt

        def close(self) -> None:
            pass

    def measured(job):
        score = 10 * job.trial.overrides.get("optimiser.lr", 0.0)
        yield from pretend(job) if "config.backbone_lr_scale" in job.trial.overrides else _flat(job, score)

    def _flat(job, score):
        for point in (*job.points, 100):
            yield Event(values=((point, score * point / 100),))

    monkeypatch.setattr(harness.running.search.objective, "measure", measured)
    with pytest.raises(KeyboardInterrupt):
        _budget(options, display=Killed)
    done = _budget(options)
    assert done.failed == 0
    for one in done.recipes:
        counts = one.found.counts
        assert counts["finished"] + counts.get("pruned", 0) == 4
        assert one.found.stamp == done.recipes[0].found.stamp
        assert one.found.pictures == done.recipes[0].found.pictures
    assert {o.status for o in done.outcomes} <= {"finished", "kept"}
    rows = budget_rows(gather_records(Store(options.results)), done, {}, resamples=20)
    for row in rows:
        assert row.published is not None
        assert row.best is not None
        assert (row.published.n, row.best.n) == (2, 2)
        assert len(row.mean) == 4
        assert (row.difference is None) == row.tuned.own
    assert sorted(row.places[0] for row in rows) == [1, 2]
    text = budget_listing(rows, done) + budget_markdown(rows, done, "x")
    assert "drawn without replacement" in text
    assert "equally tuned" in text
    lines = budget_lines(rows)
    assert len(lines) == 8
    assert {line["masks"] for line in lines} == {done.recipes[0].found.pictures}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([*RECIPES, "--objective-split", "val"], "reports numbers on 'val'"),
        ([*RECIPES, "--sampler", "grid"], "no equal budget"),
        ([*RECIPES, "--sampler", "magic"], "unknown sampler"),
        (["pce/mini-scribbles"], "did you mean"),
        ([*RECIPES, "--set", "config.nothing=1"], "nothing"),
    ],
)
def test_what_is_no_equal_budget_is_refused_before_any_trial(
    arguments, problem, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert wsss("tune", *arguments, "--local", "--device", "cpu") == 2
    assert problem in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "search").exists()


def test_the_verb_writes_tables_and_a_curve(small, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(harness.running.search.objective, "measure", pretend)
    sets = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]
    arguments = [
        "tune", RECIPES[0], "--trials", 3, "--then-seeds", 1, *sets, "--local", "--data-root", small,
        "--results", tmp_path / "results", "--out", tmp_path / "reports", "--device", "cpu",
    ]  # fmt: skip
    assert wsss(*arguments) == 0
    assert "expected best score" in capsys.readouterr().out
    assert {f.suffix for f in (tmp_path / "reports").iterdir()} == {".md", ".csv", ".png", ".svg"}
    assert wsss(*arguments, "--json") == 0
    lines = json.loads(capsys.readouterr().out)
    assert [line["trials"] for line in lines] == [1, 2, 3]
