"""Plans, their order, and what happens to trials that cannot run."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from harness.basics.errors import UserError
from harness.running.jobs import session
from harness.running.jobs.job import Event, Job, Resources, Source
from harness.running.trials import execution
from harness.running.trials.execution import execute, plan, waves
from harness.running.trials.trial import Options, Prepared, Trial, source_of


def test_a_plan_is_every_recipe_with_every_seed():
    trials = plan(["pce/mini-*"], [0, 3], {"schedule.steps": 5})
    assert len(trials) == 2 * len({t.name for t in trials})
    assert {t.seed for t in trials} == {0, 3}
    assert all(t.overrides == {"schedule.steps": 5} for t in trials)


def test_trials_that_need_anothers_labels_come_after_it_and_bring_it_along():
    trial = Trial("agmm/mini-image", 2, {"optimiser.lr": 0.1})
    assert source_of(trial) == Trial("cam/mini-image", 2)
    assert source_of(Trial("agmm/mini-point")) is None
    ordered = waves([trial, Trial("agmm/mini-point", 0)])
    assert [[t.name for t in wave] for wave in ordered] == [
        ["cam/mini-image", "agmm/mini-point"],
        ["agmm/mini-image"],
    ]
    asked_too = waves([trial, Trial("cam/mini-image", 2)])
    assert [len(wave) for wave in asked_too] == [1, 1]


def test_a_mistake_in_any_wave_is_found_before_the_first_trial_runs(monkeypatch, tmp_path):
    ran = []
    monkeypatch.setattr(execution, "run_trial", lambda prepared: iter(ran.append(prepared) or ()))
    trials = [Trial("pce/mini-point", 0), Trial("agmm/mini-image", 0, {"batch.per_group": 100_000})]
    with pytest.raises(UserError, match="per_group"):
        execute(trials, Options(results=tmp_path, device="cpu"), None)
    assert not ran


def test_what_depends_on_a_failed_trial_fails_with_the_reason_and_others_go_on(monkeypatch, tmp_path, capsys):
    def failing(prepared):
        raise UserError("why")
        yield

    monkeypatch.setattr(execution, "run_trial", failing)
    trials = [Trial("agmm/mini-image", 0, {"schedule.steps": 1})]
    outcomes = execute(trials, Options(results=tmp_path, device="cpu"), None)
    assert [(o.trial.name, o.status) for o in outcomes] == [
        ("cam/mini-image", "failed"),
        ("agmm/mini-image", "failed"),
    ]
    assert "not finished" in outcomes[1].reason
    assert "cam/mini-image" in capsys.readouterr().err


def test_an_unexpected_error_fails_its_trial_alone_and_leaves_a_trace(monkeypatch, tmp_path):
    trials = [Trial(f"{m}/mini-point", 0, {"schedule.steps": 1}) for m in ("agmm", "pce")]

    def broken(prepared):
        if prepared.trial.name.startswith("agmm"):
            raise ZeroDivisionError("in the middle")
        yield from ()

    monkeypatch.setattr(execution, "run_trial", broken)
    outcomes = execute(trials, Options(results=tmp_path, device="cpu"), None)
    assert [o.status for o in outcomes] == ["failed", "finished"]
    assert "ZeroDivisionError: in the middle" in outcomes[0].reason
    (trace,) = tmp_path.rglob("error.txt")
    assert "Traceback" in trace.read_text()


def test_what_another_driver_finished_in_between_is_kept_and_has_no_time(monkeypatch, tmp_path, capsys):
    real, done = execution.run_trial, []
    monkeypatch.setattr(Prepared, "done", property(lambda self: bool(done)))

    def after_another(prepared):
        done.append(prepared)
        yield from real(prepared)

    monkeypatch.setattr(execution, "run_trial", after_another)
    trial = Trial("pce/mini-point", 0, {"schedule.steps": 1})
    (outcome,) = execute([trial], Options(results=tmp_path, device="cpu"), None)
    assert (outcome.status, outcome.reason) == ("kept", "finished meanwhile")
    said = capsys.readouterr().err
    assert "finished meanwhile" in said
    assert " s)" not in said


def test_trials_are_equal_by_value():
    trial = Trial("a/b", 1, {"x": 1})
    assert trial == dataclasses.replace(trial)
    assert hash(trial) == hash(Trial("a/b", 1, {"x": 1}))
    assert trial != Trial("a/b", 1, {"x": 2})


def test_an_interrupted_ray_run_says_so_instead_of_inventing_outcomes(monkeypatch):
    """Tune returns on Ctrl-C as it does at the end."""
    from harness.running.jobs import on_ray

    class Waiting(Source):
        def next(self):
            return Nothing(1)

        def take(self, job, event):
            raise AssertionError("nothing has happened")

        def again(self, job, why):
            raise AssertionError("nothing has happened")

    monkeypatch.setattr(on_ray.tune.Tuner, "fit", lambda self: None)
    with pytest.raises(KeyboardInterrupt):
        on_ray.run_on_ray(Waiting(), Nothing(0), Resources())


class Nothing(Job):
    """A job without work."""

    label, place = "nothing", None

    def work(self, alone=None):
        return iter(())


def test_every_recipe_runs_early_and_no_long_trial_alone_at_the_end(monkeypatch):
    def prepared(name, seed, cost):
        options = Options(device="cpu")
        return SimpleNamespace(trial=Trial(name, seed), cost=cost, options=options, processes=1, done=False)

    short, long, source = (
        prepared(n, 0, c) for n, c in (("a/short", 3.0), ("a/long", 2.0), ("a/source", 1.0))
    )
    later = [prepared(p.trial.name, 1, p.cost) for p in (short, long, source)]
    everything = {p.trial: p for p in (short, long, source, *later)}
    fed = {Trial("b/d", p.trial.seed): p.trial for p in (source, later[2])}
    monkeypatch.setattr(execution, "source_of", fed.get)
    with ExitStack() as session:
        trials = execution.Trials([*everything, *fed], Options(), True, session)
        trials._looked = True
        trials._admit(list(everything.values()))
        monkeypatch.setattr(trials, "_ready", lambda trials, strict=False: [])
        monkeypatch.setattr(trials.display, "end", lambda one, outcome: None)
        begun = [trials.next() for _ in range(4)]
        # One of each by its guessed cost, those that others wait for among them; then the other source.
        assert [job.trial for job in begun] == [short.trial, long.trial, source.trial, later[2].trial]
        monkeypatch.setattr(execution, "reported", ExitStack)
        for one in everything.values():
            one.store, one.folder = SimpleNamespace(pull=lambda folder: None), None
        trials.take(begun[0], Event(ended="finished", seconds=10.0))
        trials.take(begun[1], Event(ended="finished", seconds=30.0))
        assert [trials.next().trial for _ in range(2)] == [later[1].trial, later[0].trial]
        assert trials.next() is None
        assert trials.open, "labels may become ready when a running trial ends"


def test_a_ray_that_does_not_start_is_one_clear_line(monkeypatch):
    import ray

    def slow(**options):
        raise Exception("The current node timed out during startup.\nmore")

    monkeypatch.setattr(ray, "init", slow)
    with pytest.raises(UserError, match="Ray did not start: The current node timed out") as caught:
        session.start_ray(Resources())
    assert "--local" in str(caught.value)
