"""Searches: suggestions and resume from the journal alone, pruning, held-out pictures, outputs, mistakes."""

from __future__ import annotations

import json
import signal
from dataclasses import replace

import numpy as np
import optuna
import pytest
from fault_tools import die_when, driver, exit_code
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from searches import RECIPE, SET, TINY, finish, nothing, plan, pretend, table, value_of

import harness.running.search.objective
import harness.running.search.plan
import harness.running.search.study
from harness.basics.errors import UserError
from harness.basics.registry import METHODS
from harness.cli.main import cli, invoke
from harness.data.sets.mini import Mini
from harness.recipes import foreign
from harness.recipes.resolving import parse_overrides, resolve
from harness.running.jobs.job import Event
from harness.running.search.objective import END, HELD_OUT, held_out, measure
from harness.running.search.plan import grid_values, plan_search
from harness.running.search.report import best_overrides
from harness.running.search.study import open_study, run_study
from methods.baselines import PartialCrossEntropy


def wsss(*arguments: object) -> int:
    return invoke(cli, [str(a) for a in arguments])


def package(sha256: str) -> dict:
    return {"module": "mine", "distribution": "their-methods", "version": "1.0", "sha256": sha256 * 64}


def test_a_study_goes_on_with_the_code_of_packages_that_it_was_begun_with(options, quick, monkeypatch):
    def here(*packages):
        monkeypatch.setattr(foreign, "packages_of", lambda resolved: list(packages))

    here(package("a"))
    finish(plan(options, trials=2))
    finish(plan(options, trials=3))
    for other in ([package("b")], []):
        here(*other)
        with pytest.raises(UserError, match="begun with other code") as caught:
            finish(plan(options, trials=4))
        assert "sources aaaaaaaa" in str(caught.value)
        assert "--out" in str(caught.value)
    assert len(finish(replace(plan(options, trials=1), folder=options.results / "own"))) == 1
    here(package("a"))
    assert len(finish(plan(options, trials=4))) == 4


def test_a_study_from_before_code_was_noted_goes_on_without_packages_alone(options, quick, monkeypatch):
    monkeypatch.setattr(harness.running.search.study, "_check_code", lambda *a: None)
    finish(plan(options, trials=2))
    monkeypatch.undo()
    monkeypatch.setattr(harness.running.search.objective, "measure", pretend)
    finish(plan(options, trials=3))
    monkeypatch.setattr(foreign, "packages_of", lambda resolved: [package("a")])
    with pytest.raises(UserError, match="code that was not recorded"):
        finish(plan(options, trials=4))


# --- the study ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "scheduler"),
    [("tpe", "asha"), ("tpe", "none"), ("random", "median"), ("grid", "asha"), ("gp", "median")],
)
def test_an_interrupted_search_ends_as_an_undisturbed_one(options, quick, tmp_path, sampler, scheduler):
    changes = {"sampler": sampler, "scheduler": scheduler, "grid_points": 4}
    whole = finish(plan(options, out=tmp_path / "whole", **changes))
    assert len(whole) == 12
    assert len({tuple(t[2].items()) for t in whole}) == 12, "no configuration is tried twice"
    cut = plan(options, out=tmp_path / "cut", **changes)
    for stop_at in (0, 3, 4, 9):  # each time one more trial is left running, as by a kill
        with open_study(cut) as study:
            while True:
                job = study.next()
                if job.number == stop_at:
                    break
                any(study.absorb(job.number, e) for e in pretend(job))
    with (cut.folder / "optuna.log").open("ab") as journal:
        journal.write(b'{"op_code": 6, "worker')  # a line that a kill cut off
    assert finish(cut) == whole
    assert finish(cut) == whole, "a finished search starts nothing"


def test_asha_and_median_stop_the_worse_half_or_so_but_never_the_yardstick(options, quick, tmp_path):
    for scheduler in ("asha", "median"):
        search = plan(options, 16, scheduler=scheduler, sampler="random", out=tmp_path / scheduler)
        finish(search)
        rows = table(search)["trials"]
        pruned = [r for r in rows if r["state"] == "pruned"]
        ended = [r for r in rows if r["state"] == "finished"]
        assert rows[0]["own"]
        assert rows[0]["state"] == "finished"
        assert 4 <= len(pruned) <= 12
        assert len(pruned) + len(ended) == 16
        for row in pruned:
            assert row["miou"] is None
            assert set(row["measured"]) < {"25", "50", "75"}
            assert row["measured"]["25"] == pytest.approx(value_of(row["values"]) / 4)
        best = table(search)["best"]["miou"]
        assert best == max(r["miou"] for r in ended)
        assert best >= max(value_of(r["values"]) for r in pruned)


def test_tpe_comes_closer_to_the_optimum_than_random_search(options, quick, tmp_path):
    found = {}
    for sampler in ("tpe", "random"):
        search = plan(options, 40, sampler=sampler, scheduler="none", out=tmp_path / sampler)
        found[sampler] = [t[3] for t in finish(search)]
    assert np.mean(found["tpe"][20:]) > np.mean(found["random"][20:]) + 2


def test_the_same_seed_suggests_the_same_and_another_one_does_not(options, quick, tmp_path):
    first = finish(plan(options, out=tmp_path / "a"))
    assert finish(plan(options, out=tmp_path / "b")) == first
    assert finish(plan(options, seed=1, out=tmp_path / "c"))[1:] != first[1:]


def test_more_trials_continue_a_study_and_other_settings_are_another_one(options, quick):
    search = plan(options, 5)
    first = finish(search)
    more = plan(options, 8)
    assert more.folder == search.folder
    assert finish(more)[:5] == first
    folders = {
        plan(options, 5, **c).folder
        for c in ({}, {"sampler": "random"}, {"scheduler": "none"}, {"seed": 1}, {"objective_split": "val"})
    }
    assert len(folders) == 5
    with (
        pytest.raises(UserError, match="another search"),
        open_study(plan(options, seed=1, out=search.folder)),
    ):
        pass
    with open_study(search), pytest.raises(UserError, match="another process"), open_study(search):
        pass


def test_failed_trials_are_made_up_for_and_diverged_ones_count_as_the_worst(options, monkeypatch, tmp_path):
    def measure(job):
        if job.number == 2:
            yield Event(ended="failed", reason="disk full")
        elif job.trial.overrides["optimiser.lr"] > 0.02:
            yield Event(ended="diverged", reason="loss term 'seg' is nan")
        else:
            yield from pretend(job)

    monkeypatch.setattr(harness.running.search.objective, "measure", measure)
    search = plan(options, 8, sampler="random")
    states = [t[1] for t in finish(search)]
    assert states.count("FAIL") == 1
    assert len(states) == 8, "a failed trial uses up its turn"
    rows = table(search)["trials"]
    assert rows[2]["state"] == "failed"
    assert rows[2]["reason"] == "disk full"
    diverged = [r for r in rows if r["state"] == "diverged"]
    assert diverged
    assert all(r["values"]["optimiser.lr"] > 0.02 and r["measured"] == {} for r in diverged)
    finish(search)
    assert len(table(search)["trials"]) == 9
    assert table(search)["counts"]["finished"] + table(search)["counts"]["pruned"] == 8


def test_a_trial_whose_scores_are_no_numbers_is_diverged_and_never_the_best(options, monkeypatch):
    """Trained and measured for real: its loss is a number, what it predicts in the end is none."""
    predict, build = PartialCrossEntropy.predict, harness.running.search.objective.build_method
    broken = []

    def build_method(resolved, device, seed):
        method = build(resolved, device, seed)
        method.breaks = resolved.recipe.optimiser.lr != own
        broken.append(method.breaks)
        return method

    def scores(self, images, network="default"):
        values = predict(self, images, network)
        return values * float("nan") if getattr(self, "breaks", False) else values

    own = resolve(RECIPE).recipe.optimiser.lr
    monkeypatch.setattr(harness.running.search.objective, "build_method", build_method)
    monkeypatch.setattr(PartialCrossEntropy, "predict", scores)
    search = plan_search(RECIPE, 3, overrides=TINY | {"schedule.steps": 1}, options=options, sampler="random")
    finish(search)
    first, *others = table(search)["trials"]
    assert broken == [False, True, True]
    assert first["state"] == "finished"
    assert table(search)["best"]["number"] == 0
    for row in others:
        assert (row["state"], row["miou"], row["measured"]) == ("diverged", None, {})
        assert "are not finite" in row["reason"]
        assert "picture" in row["reason"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("late", [False, True])
def test_a_measurement_that_is_no_number_makes_a_trial_diverge(value, late, options, monkeypatch):
    def measure(job):
        if job.number == 1:
            yield Event(values=((25, 99.0),)) if late else Event(values=((25, value),))
            yield Event(values=((END, value),))
        else:
            yield from pretend(job)

    monkeypatch.setattr(harness.running.search.objective, "measure", measure)
    search = plan(options, 3, sampler="random", scheduler="none")
    finish(search)
    rows = table(search)["trials"]
    assert [row["state"] for row in rows] == ["finished", "diverged", "finished"]
    assert rows[1]["miou"] is None
    assert table(search)["best"]["number"] != 1


def test_a_warm_start_learns_from_earlier_trials_without_counting_them(options, quick, tmp_path):
    earlier = plan(options, 6, out=tmp_path / "earlier", scheduler="none", sampler="random")
    finish(earlier)
    search = plan(options, 4, out=tmp_path / "later")
    with open_study(search) as study:
        assert study.warm_start(earlier.folder) == 6
        assert study.warm_start(earlier.folder) == 0
        run_study(study, nothing)
        assert len(study.trials) == 4
        assert len(study.study.trials) == 10
        with pytest.raises(UserError, match="no study"):
            study.warm_start(tmp_path / "nowhere")


def test_values_set_by_hand_are_not_searched(options, quick):
    search = plan_search(RECIPE, 3, overrides={**TINY, "optimiser.lr": 0.02}, options=options)
    assert set(search.space) == {"config.backbone_lr_scale"}
    rows = finish(search)
    assert all(set(t[2]) == {"config.backbone_lr_scale"} for t in rows)
    with open_study(search) as study:
        assert best_overrides(study)["optimiser.lr"] == 0.02


def test_own_values_outside_the_space_are_said_not_to_be_measured(options, quick):
    outside = {**TINY, "schedule.steps": 41}
    search = plan_search(RECIPE, 3, overrides=outside, options=options)
    search = replace(search, own=None)
    finish(search)
    assert not any(r["own"] for r in table(search)["trials"])
    assert "outside the search space" in table(search)["verdict"]


def test_a_small_grid_ends_the_search(options, quick):
    search = plan(options, 50, sampler="grid", grid_points=2, scheduler="none")
    rows = finish(search)
    assert len(rows) == 5, "two values of two numbers, and the recipe's own"
    values = [tuple(t[2].values()) for t in rows[1:]]
    assert len(set(values)) == 4


class Coins:
    """Mixed in: a space of four configurations."""

    @classmethod
    def search_space(cls):
        return {name: CategoricalDistribution([0.0, 0.5]) for name in ("dropout", "optimiser.momentum")}


def test_nothing_is_tried_twice_and_a_space_can_be_exhausted(options, monkeypatch):
    def measure(job):
        yield Event(values=((END, 50 + job.trial.overrides["config.dropout"]),))

    monkeypatch.setattr(harness.running.search.objective, "measure", measure)
    monkeypatch.setitem(METHODS._registered, "pce", type("Changed", (Coins, METHODS.get("pce")), {}))
    search = plan(options, 9, sampler="tpe", scheduler="none")
    rows = finish(search)
    assert [t[1] for t in rows] == ["COMPLETE"] * 4
    assert len({tuple(t[2].values()) for t in rows}) == 4
    assert table(search)["counts"] == {"finished": 4}


@pytest.mark.parametrize(
    ("distribution", "expected"),
    [
        (FloatDistribution(1e-3, 1e-1, log=True), [1e-3, 1e-2, 1e-1]),
        (FloatDistribution(0.0, 1.0), [0.0, 0.5, 1.0]),
        (FloatDistribution(0.0, 0.8, step=0.4), [0.0, 0.4, 0.8]),
        (IntDistribution(1, 2), [1, 2]),
        (IntDistribution(0, 8, step=4), [0, 4, 8]),
        (CategoricalDistribution(["a", "b"]), ["a", "b"]),
    ],
)
def test_grids_lie_on_the_distribution(distribution, expected):
    assert grid_values(distribution, 3) == pytest.approx(expected) if expected[0] != "a" else expected
    internal = [distribution.to_internal_repr(v) for v in grid_values(distribution, 3)]
    assert all(distribution._contains(v) for v in internal)


# --- the objective -----------------------------------------------------------------------------------


def test_held_out_pictures_follow_from_their_ids():
    ids = [f"2007_{i:06d}" for i in range(500)]
    mask = held_out(ids, 0.2)
    assert mask.sum() == 100
    chosen = {i for i, m in zip(ids, mask, strict=True) if m}
    shuffled = list(np.random.default_rng(0).permutation(ids))
    again = held_out(shuffled, 0.2)
    assert {i for i, m in zip(shuffled, again, strict=True) if m} == chosen
    assert chosen < {i for i, m in zip(ids, held_out(ids, 0.3), strict=True) if m}
    assert held_out(["a", "b"], 0.01).sum() == 1
    assert held_out(["a", "b"], 0.99).sum() == 1
    with pytest.raises(UserError):
        held_out(["a"], 0.5)


def jobs(plan):
    with open_study(plan) as study:
        return [study.next() for _ in range(plan.trials)]


def test_a_trial_trains_without_and_is_scored_on_the_held_out_pictures(options, monkeypatch):
    import harness.running.search.objective

    seen, scored = set(), []
    real = harness.running.search.objective.evaluator.predictions

    def spy(*arguments, ids, **keywords):
        scored.append(tuple(ids))
        return real(*arguments, ids=ids, **keywords)

    class Watched(METHODS.get("pce")):
        def loss(self, batch, progress):
            seen.update(batch.ids)
            for image_id, tags in zip(batch.ids, batch.tags, strict=True):
                assert tags.tolist() == expected[image_id], "tags follow their pictures"
            return super().loss(batch, progress)

    search = plan(options, 1, share=0.25)
    dataset = Mini(options.data_roots[0])
    ids = dataset.ids("train")
    monkeypatch.setitem(METHODS._registered, "pce", Watched)  # a study goes on with the code it began with
    prepared = harness.running.search.objective.prepare(jobs(search)[0].trial, options)
    expected = {i: t.tolist() for i, t in zip(ids, prepared.labels.tags.astype(float), strict=True)}
    monkeypatch.setattr(harness.running.search.objective.evaluator, "predictions", spy)
    (job,) = jobs(search)
    events = list(measure(job))
    kept = {i for i, m in zip(ids, held_out(ids, 0.25), strict=True) if not m}
    assert len(kept) == 12
    assert seen == kept
    assert set(scored) == {tuple(i for i in ids if i not in kept)}
    assert [p for e in events for p, _ in e.values] == [25, 50, 100]
    assert search.pictures == 4


def test_a_stopped_trial_goes_on_to_the_same_values(options, tmp_path):
    (job,) = jobs(plan(options, 1))
    whole = [e for e in measure(replace(job, folder=tmp_path / "whole")) if e.values]
    cut = replace(job, folder=tmp_path / "cut")
    for moment in (1, 2, 3, 4, 5):  # each time one event further
        running = measure(cut)
        for _ in range(moment):
            next(running, None)
        running.close()
    values = {p: v for e in measure(cut) for p, v in e.values}
    assert values == {p: v for e in whole for p, v in e.values}
    again = list(measure(cut))
    assert len(again) == 1, "what is measured is not measured again"
    assert dict(again[0].values) == values
    unwatched = [e for e in measure(replace(job, folder=tmp_path / "u", points=())) if e.values]
    assert unwatched[-1].values[-1] == whole[-1].values[-1], "measuring on the way changes nothing"


# --- from the command line ---------------------------------------------------------------------------


def command(small, tmp_path, *more):
    where = ["--data-root", small, "--results", tmp_path / "results", "--out", tmp_path / "out"]
    return ["search", RECIPE, *SET, *where, "--device", "cpu", *more]


def test_a_search_leaves_tables_a_configuration_to_run_and_a_journal(small, tmp_path, capsys):
    more = ["--trials", "6", "--local", "--sampler", "random", "--seed", "1"]
    assert wsss(*command(small, tmp_path, *more)) == 0
    printed = " ".join(capsys.readouterr().out.split())  # prose is wrapped
    out = tmp_path / "out"
    data = json.loads((out / "search.json").read_text())
    assert sum(r["state"] in ("finished", "pruned", "diverged") for r in data["trials"]) == 6
    assert all(r["seed"] == 1 for r in data["trials"])
    assert data["objective"]["split"] == HELD_OUT
    assert not data["selected_on_reported_split"]
    assert data["stamp"] in (out / "best.toml").read_text()
    assert data["stamp"] in printed
    assert data["verdict"] in printed
    assert not list(out.glob("trials/*/checkpoint")), "weights of ended trials are not kept"
    assert not (tmp_path / "results").exists(), "leaderboards read nothing of a search"
    # the configuration runs as written, by file and by line
    overrides = parse_overrides([f"@{out / 'best.toml'}"])
    assert overrides.pop("remarks")[-1].endswith(f"{data['stamp']}.")
    best = data["best"]["values"]
    assert {k: overrides[k] for k in best} == best
    assert {k: v for k, v in overrides.items() if k not in best} == TINY
    line = next(x for x in printed.splitlines() if "wsss run" in x).split()
    assert parse_overrides(line[i + 1] for i, part in enumerate(line) if part == "--set") == overrides
    assert resolve(RECIPE, overrides).recipe.optimiser.lr == best["optimiser.lr"]
    # the journal is Optuna's own
    from optuna.storages.journal import JournalFileBackend

    storage = optuna.storages.JournalStorage(JournalFileBackend(str(out / "optuna.log")))
    study = optuna.load_study(study_name=None, storage=storage)
    assert study.best_value == data["best"]["miou"]
    for name in ("history", "slices", "parallel", "intermediate"):
        assert (out / "plots" / f"{name}.png").stat().st_size > 5000


class NoSpace:
    """Mixed in: a method that nobody has given a space."""

    @classmethod
    def search_space(cls):
        return {}


class WrongSpace:
    """Mixed in: a space over a key that does not exist."""

    @classmethod
    def search_space(cls):
        return {"gama": FloatDistribution(0, 1)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": "tpee"}, "did you mean 'tpe'"),
        ({"scheduler": "hyperband"}, "asha, median, none"),
        ({"objective_split": "train"}, "train on"),
        ({"objective_split": "vall"}, "val"),
        ({"share": 1.5}, "between 0 and 1"),
        ({"share": 0.95}, "one step takes 4 pictures"),
        ({"trials": 0}, "at least one"),
        ({"overrides": {**TINY, "optimiser.lr": 0.1, "config.backbone_lr_scale": 1.0}}, "fixed by --set"),
    ],
)
def test_mistakes_are_found_before_training(options, changes, message):
    arguments = {"recipe": RECIPE, "trials": 3, "overrides": TINY, "options": options} | changes
    with pytest.raises(UserError) as caught:
        plan_search(**arguments)
    assert message in str(caught.value)


def test_a_method_needs_a_space_over_its_own_keys(options, monkeypatch):
    pce = METHODS.get("pce")
    for mixin, message in ((NoSpace, "no search space"), (WrongSpace, "config.gama")):
        monkeypatch.setitem(METHODS._registered, "pce", type("Changed", (mixin, pce), {}))
        with pytest.raises(UserError, match=message):
            plan(options)


def test_a_missing_sampler_package_is_named(options, monkeypatch):
    monkeypatch.setattr(harness.running.search.plan.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install cmaes"):
        plan(options, sampler="cmaes")


@pytest.mark.faults
def test_a_killed_search_ends_with_exactly_the_trials_asked_for(small, tmp_path):
    more = ["--trials", "4", "--local", "--scheduler", "none", "--checkpoint-seconds", "0"]
    arguments = command(small, tmp_path, *more)
    process = driver(*arguments, prepare=die_when, options=(tmp_path, "out/trials/0002/checkpoint/last.pt"))
    assert exit_code(process) == -signal.SIGKILL
    assert wsss(*arguments) == 0
    killed = json.loads((tmp_path / "out" / "search.json").read_text())
    assert killed["counts"] == {"finished": 4}
    whole = tmp_path / "whole"
    assert wsss(*command(small, whole, *more)) == 0
    undisturbed = json.loads((whole / "out" / "search.json").read_text())
    for a, b in zip(killed["trials"], undisturbed["trials"], strict=True):
        assert (a["values"], a["measured"]) == (b["values"], b["measured"])


@pytest.mark.faults
def test_ray_finds_the_values_that_one_process_finds(small, tmp_path, local_ray):
    more = ["--trials", "3"]
    assert wsss(*command(small, tmp_path / "ray", *more, "--max-concurrent", "1")) == 0
    assert wsss(*command(small, tmp_path / "local", *more, "--local")) == 0
    ray, local = (
        json.loads((tmp_path / place / "out" / "search.json").read_text())["trials"]
        for place in ("ray", "local")
    )
    assert [(t["state"], t["values"], t["measured"]) for t in ray] == [
        (t["state"], t["values"], t["measured"]) for t in local
    ]
