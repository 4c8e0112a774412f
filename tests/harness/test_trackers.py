"""TensorBoard, Weights & Biases and MLflow: every point once, whatever happens, and no number changes."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fake_trackers import FakeMLflow, FakeWandB, events_of, tensorboard_points
from PIL import Image

from harness.basics.errors import UserError
from harness.basics.schema import digest
from harness.cli.main import cli, invoke
from harness.engine import distributed
from harness.engine.training import Status
from harness.recipes.resolving import resolve
from harness.records.history import History
from harness.records.locks import Elsewhere
from harness.running.search.objective import END, choose_objective, measure
from harness.running.trials.tracked import allocated_mib
from harness.running.trials.trial import Options, Trial, prepare
from harness.running.trials.work import run_trial
from harness.running.watching import following
from harness.running.watching.following import Following, read_history
from harness.running.watching.trackers import TRACKERS, Subject, flat, require

ROWS = range(10, 101, 10)


@pytest.fixture
def wandb(monkeypatch):
    fake = FakeWandB()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


@pytest.fixture
def mlflow(monkeypatch):
    fake = FakeMLflow()
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    monkeypatch.setitem(sys.modules, "mlflow.entities", fake.entities)
    return fake


@pytest.fixture(params=list(TRACKERS))
def place(request, tmp_path, wandb, mlflow):
    """A tracker's name, how to read all points of its one run, and its service where it has one."""

    def one(runs):
        assert len(runs) == 1, "a resumed run is the same run"
        (found,) = runs.values()
        return found.points | {k: [(100, v)] for k, v in getattr(found, "summary", {}).items()}

    read = {
        "tensorboard": lambda: tensorboard_points(tmp_path),
        "wandb": lambda: one(wandb.runs),
        "mlflow": lambda: one(mlflow.runs),
    }
    services = {"wandb": wandb, "mlflow": mlflow}
    return SimpleNamespace(
        name=request.param, points=read[request.param], service=services.get(request.param), root=tmp_path
    )


# --- runs without training ---------------------------------------------------------------------------


def work(folder: Path, resumed: int, upto: int):
    """A run's states from a checkpoint on, with its history on disk as the trainer writes it."""
    history = History(folder / "history.csv", resumed)
    for step in (s for s in ROWS if resumed < s <= upto):
        terms = {"ce": step / 4, "tree": 1.0}
        history.add({"step": step, "lr": 0.1 / step, "loss": sum(terms.values()), **terms})
        yield Status(step, 100, 5.0, terms, lr=0.1 / step)
    if upto == 100:
        (folder / "score.json").write_text("62.5")
        yield Status(1, 2, 3.0, note="evaluating val")


def follow(place, resumed=0, upto=100, *, killed=False, names=None) -> list[str]:
    """A start of the run, from a checkpoint to a step; returns what the user is told.

    A process that is killed does not leave the context: nothing is delivered or closed any more.
    """
    folder = place.root / "trial"
    folder.mkdir(exist_ok=True)
    subject = Subject(
        path="a/b/c/seed-0",
        group="a/b",
        folder=folder,
        root=place.root,
        values={"optimiser": {"lr": 0.1}, "seed": 0, "crop": [48, 48], "resumed": None},
        metrics=("val/miou",),
    )
    file = folder / "score.json"

    def scores():
        value = json.loads(file.read_text()) if file.exists() else None
        return [(100, {"val/miou": value, "val/iou/potted plant": value + 1})] if value else []

    following = Following(names or [place.name], subject, scores)
    told = []
    states = following.rows(work(folder, resumed, upto))
    if killed:
        return [w for status in states for w in status.warnings]
    with following:
        told = [w for status in states for w in status.warnings]
    return [*told, *following.take_messages()]


def assert_every_point_once(place) -> None:
    points = place.points()
    rows = {
        "train/ce": lambda step: step / 4,
        "train/tree": lambda step: 1.0,
        "train/loss": lambda step: step / 4 + 1,
        "train/lr": lambda step: 0.1 / step,
    }
    for name, value in rows.items():
        steps = [step for step, _ in points[name]]
        assert steps == list(ROWS), name
        assert [v for _, v in points[name]] == pytest.approx([value(s) for s in ROWS]), name
    assert points["val/miou"] == [(100, 62.5)]
    scored = {k.replace("_", " "): v for k, v in points.items() if k.startswith("val/iou")}
    assert scored == {"val/iou/potted plant": [(100, 63.5)]}


def test_every_point_is_given_once(place):
    assert follow(place) == []
    assert_every_point_once(place)


def test_pictures_go_with_the_rows_of_their_steps_once(place):
    folder = place.root / "trial/pictures"
    folder.mkdir(parents=True)
    for step in (20, 50, 90):
        Image.new("RGB", (8, step)).save(folder / f"cam-{step:07d}.png")
    (folder / "notes.png").write_bytes(b"of somebody else")
    assert follow(place, upto=60, killed=True) == []
    assert follow(place, resumed=40) == []
    assert follow(place, resumed=100) == []
    assert_every_point_once(place)
    assert [step for step, _ in place.points()["pictures/cam"]] == [20, 50, 90]


@pytest.mark.parametrize("delivering", ["at once", "late"])
@pytest.mark.parametrize("killed", [True, False])
@pytest.mark.parametrize(
    "starts",
    [
        [(0, 60), (60, 100)],
        [(0, 60), (30, 100)],
        [(0, 60), (20, 40), (40, 70), (50, 100)],
        [(0, 10), (0, 100)],
        [(0, 90), (20, 30), (30, 100)],
    ],
)
def test_a_resumed_run_has_every_point_once(place, starts, killed, delivering, monkeypatch):
    monkeypatch.setattr(following, "FLUSH_SECONDS", 0.0 if delivering == "at once" else 1e9)
    for resumed, upto in starts:
        follow(place, resumed, upto, killed=killed and upto < 100)
    assert_every_point_once(place)


@pytest.mark.parametrize("delivering", ["at once", "late"])
def test_a_run_killed_after_its_training_has_every_point_once(place, delivering, monkeypatch):
    monkeypatch.setattr(following, "FLUSH_SECONDS", 0.0 if delivering == "at once" else 1e9)
    follow(place, killed=True)
    follow(place, resumed=100)
    follow(place, resumed=100)
    assert_every_point_once(place)


def test_a_tracker_that_joins_late_is_given_what_it_missed(place):
    follow(place, 0, 60, names=["tensorboard" if place.name != "tensorboard" else "mlflow"])
    follow(place, 40, 100)
    assert_every_point_once(place)


def test_a_damaged_state_only_begins_anew(place):
    if place.name == "tensorboard":
        follow(place, 0, 60, killed=True)
        (place.root / "trial" / "trackers.json").write_text('{"tensorbo')
        follow(place, 40, 100)
    else:  # a new run, beside the one that is lost
        follow(place, 0, 60, killed=True)
        (place.root / "trial" / "trackers.json").write_text("")
        follow(place, 40, 100)
        first = next(iter(place.service.runs))
        del place.service.runs[first]
    assert_every_point_once(place)


def test_a_tracker_that_fails_is_told_once_and_given_everything_at_the_next_start(place, monkeypatch):
    monkeypatch.setattr(following, "FLUSH_SECONDS", 0.0)
    if place.service is None:
        from tensorboardX.event_file_writer import EventsWriter

        def full(self, *arguments):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(EventsWriter, "write_event", full)
            (told,) = follow(place, 0, 60)
        assert told.startswith("tensorboard failed, trials go on without it: OSError")
    else:
        place.service.broken = True
        (told,) = follow(place, 0, 60)
        assert told == f"{place.name} failed, trials go on without it: ConnectionError: no network"
        place.service.broken = False
    assert [s for s, _ in read_history(place.root / "trial" / "history.csv")] == list(ROWS)[:6]
    assert follow(place, 40, 100) == []
    if place.name == "mlflow":  # the first start had not got as far as a run's first values
        place.service.runs = {k: r for k, r in place.service.runs.items() if r.points}
    assert_every_point_once(place)


def test_one_that_fails_does_not_hold_up_the_others(place, wandb, tmp_path):
    wandb.broken = True
    follow(place, names=["wandb", "tensorboard"])
    assert [s for s, _ in tensorboard_points(tmp_path)["train/loss"]] == list(ROWS)


@pytest.mark.parametrize("offline", [False, True])
def test_rows_that_died_with_the_process_of_wandb_are_given_again(tmp_path, wandb, offline, monkeypatch):
    monkeypatch.setattr(following, "FLUSH_SECONDS", 0.0)
    one = SimpleNamespace(name="wandb", root=tmp_path)
    follow(one, 0, 30, killed=True)
    wandb.losing, wandb.offline = True, offline
    follow(one, 30, 60, killed=True)
    wandb.losing = False
    follow(one, 50, 100)
    (run_,) = wandb.runs.values()
    assert [s for s, _ in run_.points["train/loss"]] == list(ROWS)


def test_only_the_first_process_of_a_trial_is_followed(place, monkeypatch, wandb, mlflow):
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    assert follow(place) == []
    assert not wandb.runs
    assert not mlflow.runs
    assert not (place.root / "tensorboard").exists()
    assert not (place.root / "trial" / "trackers.json").exists()


def test_how_a_run_ended_is_said(tmp_path, wandb, mlflow):
    place = SimpleNamespace(name="wandb", root=tmp_path)
    follow(place, names=["wandb", "mlflow"])
    (kept,), (run_,) = wandb.runs.values(), mlflow.runs.values()
    assert (kept.exit_code, run_.status) == (0, "FINISHED")
    for error, code, word in ((ValueError, 1, "FAILED"), (KeyboardInterrupt, 255, "KILLED")):
        subject = Subject("a/b/c/seed-1", "a/b", tmp_path / word, tmp_path)
        subject.folder.mkdir()
        with pytest.raises(error), Following(["wandb", "mlflow"], subject, list) as following:
            for _ in following.rows(work(subject.folder, 0, 50)):
                pass
            raise error
        assert list(wandb.runs.values())[-1].exit_code == code
        assert list(mlflow.runs.values())[-1].status == word


def test_runs_are_filed_with_their_values(tmp_path, wandb, mlflow, monkeypatch):
    place = SimpleNamespace(name="wandb", root=tmp_path)
    follow(place, names=["wandb", "mlflow", "tensorboard"])
    (begun,), (run_,) = wandb.begun, mlflow.runs.values()
    assert (begun["project"], begun["group"], begun["name"]) == ("wsss-bench", "a/b", "a/b/c/seed-0")
    assert begun["config"]["optimiser"] == {"lr": 0.1}
    assert begun["dir"] == str(tmp_path)
    assert list(mlflow.experiments) == ["wsss-bench"]
    assert mlflow.uris == {f"sqlite:///{tmp_path / 'mlflow.db'}"}
    assert run_.params == {"optimiser.lr": "0.1", "seed": "0", "crop": "[48, 48]", "resumed": "None"}
    texts = [v for f in tmp_path.rglob("events.*") for e in events_of(f) for v in e.summary.value]
    assert any(b'"lr": 0.1' in v.tensor.string_val[0] for v in texts if v.tag.startswith("configuration"))
    assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= {v.tag for v in texts}
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    (tmp_path / "trial" / "trackers.json").unlink()
    follow(place, names=["wandb", "mlflow"])
    assert "project" not in wandb.begun[-1]
    assert "mine" in mlflow.experiments


def test_nested_values_get_dotted_names():
    assert flat({"a": {"b": 1, "c": [1, 2]}, "d": None, "e": True}) == {
        "a.b": 1,
        "a.c": "[1, 2]",
        "d": "None",
        "e": True,
    }


# --- asking for them ---------------------------------------------------------------------------------


@pytest.mark.parametrize("option", [["--track", "wandb"], ["--track", "mlflow"], ["--tensorboard"]])
def test_a_package_that_is_missing_is_named_before_anything_runs(option, monkeypatch, tmp_path, capsys):
    package = {"wandb": "wandb", "mlflow": "mlflow"}.get(option[-1], "tensorboardX")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for verb in (["run", "pce/mini-point"], ["search", "agmm/mini-scribble"]):
        results = tmp_path / verb[0] / "results"
        command = [*verb, *option, "--local", "--device", "cpu", "--results", str(results)]
        assert invoke(cli, command) == 2
        printed = capsys.readouterr().err
        assert "is not installed" in printed
        assert f"pip install {package}" in printed
        assert " ".join(option) in printed
        assert not results.exists()


def test_wandb_without_a_key_is_refused_before_anything_runs(wandb, monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.delenv("WANDB_MODE", raising=False)
    require(["wandb"], tmp_path)
    wandb.login = lambda prompt: False
    with pytest.raises(UserError, match="WANDB_MODE=offline"):
        require(["wandb"], tmp_path)

    def unreachable(prompt):
        raise ConnectionError("no network")

    wandb.login = unreachable
    require(["wandb"], tmp_path)  # trials go on without it, should it stay so
    wandb.login = lambda: False
    wandb.api = SimpleNamespace(api_key=None)
    with pytest.raises(UserError, match="no key"):
        require(["wandb"], tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    require(["wandb"], tmp_path)


def test_the_database_of_mlflow_is_made_once_before_anything_runs(mlflow, monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    require(["mlflow"], tmp_path / "new")
    assert list(mlflow.experiments) == ["wsss-bench"]

    def locked(tracking_uri):
        raise RuntimeError("database is locked")

    mlflow.MlflowClient = locked
    with pytest.raises(UserError, match="database is locked"):
        require(["mlflow"], tmp_path / "new")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    require(["mlflow"], tmp_path / "new")  # a server may be down now and up later


# --- whole trials ------------------------------------------------------------------------------------

TINY = {"schedule.steps": 30, "batch.per_group": 2, "crop": 32}


@pytest.fixture(scope="module")
def plain(tmp_path_factory, small):
    """A trial without trackers."""
    options = Options(tmp_path_factory.mktemp("plain") / "results", (str(small),), device="cpu")
    prepared = prepare(Trial("pce/mini-scribble", 0, TINY), options)
    return prepared, list(run_trial(prepared))


def test_trackers_change_no_number_and_no_digest(plain, tmp_path, wandb, mlflow, small):
    first, _ = plain
    options = replace(first.options, results=tmp_path / "results", trackers=tuple(TRACKERS))
    prepared = prepare(first.trial, options)
    assert prepared.digest == first.digest
    for status in run_trial(prepared):
        if status.step == 20:
            break  # stopped: closing the generator is what a dead driver's worker does
    assert not prepared.done
    states = list(run_trial(prepare(first.trial, options)))
    assert not any(s.warnings for s in states)
    one, other = (
        torch.load(p.folder / "checkpoint" / "last.pt", weights_only=True) for p in (first, prepared)
    )
    assert digest([v.tolist() for v in one["method"].values()]) == digest(
        [v.tolist() for v in other["method"].values()]
    )
    history = [(p.folder / "history.csv").read_text() for p in (first, prepared)]
    assert history[0] == history[1]
    assert prepared.record is not None
    (evaluation,) = prepared.record.evaluations.values()
    assert evaluation.data["iou"] == first.record.evaluations[evaluation.name].data["iou"]
    points = tensorboard_points(tmp_path)
    rows = read_history(prepared.folder / "history.csv")
    assert points["train/loss"] == [(s, pytest.approx(v["train/loss"])) for s, v in rows]
    assert points[f"{evaluation.name}/miou"] == [(30, pytest.approx(evaluation.miou))]
    for name, value in zip(evaluation.data["classes"], evaluation.data["iou"], strict=True):
        assert points[f"{evaluation.name}/iou/{name}"] == [(30, pytest.approx(value))]
    (kept,), (sent,) = wandb.runs.values(), mlflow.runs.values()
    assert [s for s, _ in kept.points["train/loss"]] == [s for s, _ in rows]
    assert [s for s, _ in sent.points["train/loss"]] == [s for s, _ in rows]
    assert (kept.exit_code, sent.status) == (0, "FINISHED")
    assert sent.params["optimiser.lr"] == str(prepared.resolved.recipe.optimiser.lr)
    assert len(sent.params["provenance.weights.sha256"]) == 64
    before = (prepared.folder / "trackers.json").read_bytes()
    with pytest.raises(Elsewhere, match="finished meanwhile"):
        list(run_trial(prepare(first.trial, options)))
    assert (prepared.folder / "trackers.json").read_bytes() == before, "a finished trial is left alone"


def test_a_trial_says_what_the_table_shows(plain):
    _, states = plain
    rows = [s for s in states if not s.note]
    assert [s.step for s in rows] == [10, 20, 30]
    assert all(s.lr and s.terms and s.steps_per_second > 0 for s in rows)
    assert all(s.memory_mib is None for s in rows), "no GPU"
    assert states[-1].note.startswith("evaluating")


def test_memory_is_read_from_the_allocator_and_on_gpus_alone(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: asked.append(device) or 3 * 2**20)
    assert allocated_mib(torch.device("cpu")) is None
    assert not asked
    assert allocated_mib(torch.device("cuda", 1)) == 3.0
    assert asked == [torch.device("cuda", 1)]


def test_the_trials_of_a_search_are_followed_too(tmp_path, small):
    from harness.running.search.objective import HELD_OUT, SearchJob

    options = Options(tmp_path / "results", (str(small),), device="cpu", trackers=("tensorboard",))
    trial = Trial("pce/mini-scribble", 0, TINY)
    objective = choose_objective(resolve(trial.name, trial.overrides).recipe, HELD_OUT, 0.25)
    job = SearchJob(3, trial, options, objective, (50,), tmp_path / "study" / "digest" / "trials" / "0003")
    found = list(measure(job))
    assert not any(e.ended for e in found)
    assert [e.status.step for e in found if not e.values] == [10, 20, 30]
    values = {p: v for e in found for p, v in e.values}
    points = tensorboard_points(tmp_path)
    assert [s for s, _ in points["train/loss"]] == [10, 20, 30]
    wanted = [(15, pytest.approx(values[50])), (30, pytest.approx(values[END]))]
    assert points["objective/miou"] == wanted
    (folder,) = {f.parent for f in (tmp_path / "tensorboard").rglob("events.*")}
    assert folder == tmp_path / "tensorboard" / "search" / "pce/mini-scribble" / "digest" / "trial-0003"
