"""What was trained and what is scored: values of inference alone, and what a checkpoint says of itself."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import harness.running.trials.sources
from harness.basics.errors import UserError
from harness.basics.files import sha256_of
from harness.basics.registry import METHODS
from harness.basics.schema import InferenceOnly, fields, marks
from harness.cli.export import export_verb
from harness.cli.main import invoke
from harness.cli.score import evaluate_verb, predict_verb
from harness.engine.networks import build_method, load_network, load_weights
from harness.engine.trained import NETWORK_KEY, described
from harness.recipes import foreign
from harness.recipes.resolving import resolve, training_overrides
from harness.records.records import Record, Store
from harness.running.inference.prediction import predict as predicted
from harness.running.search.plan import plan_search
from harness.running.trials.execution import execute, plan
from harness.running.trials.trial import Options, Trial, exported, prepare
from harness.running.trials.work import _common
from leaderboards.rows.gathering import gather_records
from leaderboards.rows.tables import leaderboard

CAM = "cam/mini-image"
FULL = "full/mini-full"
CPU = torch.device("cpu")
SHORT = {"schedule.steps": 2, "batch.per_group": 4, "backbone": "mini_cnn"}


@pytest.fixture(scope="module")
def run(tmp_path_factory, small) -> tuple[Options, Record]:
    """A finished record of two steps."""
    options = Options(tmp_path_factory.mktemp("results"), (str(small),), device="cpu")
    (outcome,) = execute(plan([CAM], [0], SHORT), options, None)
    assert outcome.status == "finished", outcome.reason
    return options, next(options.store.records())


@pytest.fixture
def again(run, tmp_path) -> tuple[Options, Record]:
    """A copy of it to write into."""
    options = replace(run[0], results=tmp_path / "results")
    shutil.copytree(run[0].results, options.results)
    return options, next(options.store.records())


def sets(overrides: dict[str, Any]) -> list[str]:
    return [part for k, v in overrides.items() for part in ("--set", f"{k}={json.dumps(v)}")]


# --- values that only inference reads ------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS.names())
def test_values_of_inference_do_not_change_what_was_trained(name: str) -> None:
    config = METHODS.get(name).Config
    only, recipe = marks(config, InferenceOnly), METHODS.get(name).reference_recipe
    base = resolve(recipe)
    for key in fields(config):
        value = getattr(base.config, key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value:
            continue
        other = {f"config.{key}": value // 2 if isinstance(value, int) else value * 0.9}
        try:
            changed = resolve(recipe, other)
        except UserError:
            continue  # not a legal value
        assert (changed.digest() == base.digest()) is (key in only), key
        assert training_overrides(recipe, other) == ({} if key in only else other)
        assert changed.trained.config == (base.config if key in only else changed.config)


def test_a_threshold_scores_the_trained_network_and_stands_in_a_row_of_its_own(again) -> None:
    options, record = again
    arguments = [CAM, *sets(SHORT), "--data-root", options.data_roots[0], "--results", str(options.results)]
    arguments += ["--device", "cpu", "--split", "train", "--output", "cam"]
    for extra in (["--set", "config.background_score=0.2"], ["--set", "config={background_score=0.05}"]):
        assert invoke(evaluate_verb, [*arguments, *extra]) == 0
    found = options.store.get(record.path)
    assert found is not None
    assert found.data == record.data, "the record stays as it is"
    plain = found.evaluations["train-single-cam"].data
    low = found.evaluations["train-single-cam-background_score-0.2"].data
    assert set(found.evaluations) == {*record.evaluations, low["name"], f"{low['name'][:-3]}0.05"}
    assert low["config"] == {"background_score": 0.2}
    assert "config" not in plain
    assert low["checkpoint_sha256"] == plain["checkpoint_sha256"]
    assert low["digest"] != plain["digest"]
    assert low["miou"] != plain["miou"]
    assert len(list(options.store.records())) == 1
    rows = leaderboard(gather_records(options.store), resamples=20)
    words = {row.evaluation: row.overrides for row in rows if row.n}
    assert "config.background_score=0.2" in words[low["name"]]
    assert "background_score" not in words["train-single-cam"]
    assert not any(row.verdict == "stale" for row in rows), [row.notes for row in rows]


def test_a_run_with_a_threshold_of_its_own_trains_what_the_recipe_trains(run, again) -> None:
    options, record = again
    (outcome,) = execute(plan([CAM], [0], {**SHORT, "config.background_score": 0.2}), options, None)
    assert outcome.status == "finished"
    (found,) = options.store.records()
    assert found.data == record.data, "nothing was trained"
    assert {e.data.get("config", {}).get("background_score") for e in found.evaluations.values()} == {
        None,
        0.2,
    }
    shutil.rmtree(record.path)  # the other way round: the first run has the threshold
    execute(plan([CAM], [0], {**SHORT, "config.background_score": 0.2}), options, None)
    (fresh,) = options.store.records()
    assert fresh.digest == record.digest
    assert fresh.data["overrides"] == record.data["overrides"]
    assert fresh.recipe == record.recipe
    assert {e.data["config"]["background_score"] for e in fresh.evaluations.values()} == {0.2}
    weights = [torch.load(p / "checkpoint/last.pt")["method"] for p in (fresh.path, run[1].path)]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[1])


def test_export_and_predict_find_the_network_whatever_the_threshold(run, tmp_path, small) -> None:
    options = run[0]
    common = [*sets(SHORT), "--set", "config.background_score=0.9", "--results", str(options.results)]
    out = tmp_path / "labels"
    assert (
        invoke(export_verb, [CAM, "--out", str(out), *common, "--data-root", str(small), "--device", "cpu"])
        == 0
    )
    assert json.loads((out / "export.json").read_text())["overrides"]["config.background_score"] == 0.9
    picture = next((small / "mini" / "JPEGImages").glob("val_*.png"))
    assert (
        invoke(predict_verb, [CAM, str(picture), "--out", str(tmp_path / "p"), *common, "--device", "cpu"])
        == 0
    )


def test_a_search_around_another_threshold_is_another_search(run) -> None:
    plain, other = (
        plan_search(CAM, trials=1, overrides={**SHORT, **extra}, options=run[0])
        for extra in ({}, {"config.presence": 0.2})
    )
    assert plain.digest != other.digest


def test_names_of_evaluations_are_safe_and_distinct(run) -> None:
    names = set()
    for value in (0.2, 0.25):
        prepared = prepare(Trial(CAM, 0, {**SHORT, "config.background_score": value}), run[0])
        names.add(prepared.evaluation_folder(prepared.resolved.recipe.evaluation[0]).name)
    assert len(names) == 2
    assert all("/" not in name for name in names)


# --- what a checkpoint says of itself ------------------------------------------------------------------


def saved(file: Path, recipe: str = FULL, said: bool = True, **overrides: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    method = build_method(resolve(recipe, overrides), CPU, seed=0)
    torch.save({"method": method.state_dict(), **({NETWORK_KEY: described(method)} if said else {})}, file)
    return file


def recorded(folder: Path, **changes: Any) -> None:
    """Let a trial's record name the checkpoint that lies there now."""
    file = folder / "record.json"
    data = json.loads(file.read_text()) | changes
    data["checkpoint"]["sha256"] = sha256_of(folder / "checkpoint" / "last.pt")
    file.write_text(json.dumps(data))


OTHER = {"config.aspp_rates": (1, 2, 5)}


def test_a_checkpoint_of_equal_shapes_and_other_dilations_is_refused_with_both_values(
    tmp_path, small
) -> None:
    file = saved(tmp_path / "a.pt", **OTHER)
    own = list(resolve(FULL).config.aspp_rates)
    for command, arguments in (
        (evaluate_verb, [FULL, "--checkpoint", file, "--data-root", small]),
        (export_verb, [FULL, "--checkpoint", file, "--out", tmp_path / "o", "--data-root", small]),
        (
            predict_verb,
            [FULL, next((small / "mini/JPEGImages").iterdir()), "--checkpoint", file, "--out", tmp_path],
        ),
    ):
        assert invoke(command, [*map(str, arguments), "--device", "cpu"]) == 2
    with pytest.raises(UserError) as caught:
        load_network(resolve(FULL), CPU, file, None)
    text = str(caught.value)
    assert "[1, 2, 5]" in text
    assert str(own) in text
    assert "--set config.aspp_rates=[1, 2, 5]" in text
    with pytest.raises(UserError, match="aspp_rates"):
        list(predicted(FULL, [], tmp_path, checkpoint=file, device="cpu"))
    load_network(resolve(FULL, OTHER), CPU, file, None)  # under its own values


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("classes", ["a", "b", "c", "d", "e", "f", "g"]),
        ("backbone", "another"),
        ("method", "pce"),
        ("pixels", {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}),
        ("background", None),
    ],
)
def test_whatever_else_predictions_depend_on_is_refused_too(tmp_path, key: str, value: Any) -> None:
    file = saved(tmp_path / "a.pt")
    state = torch.load(file)
    state[NETWORK_KEY][key] = value
    torch.save(state, file)
    with pytest.raises(UserError, match=key):
        load_network(resolve(FULL), CPU, file, None)


@pytest.mark.parametrize(
    ("recipe", "key", "value"),
    [
        ("cam/mini-image", "pooling", "max"),
        ("blpseg/mini-scribble", "sigma", 3.0),
        ("toco/mini-image", "decoder_dilation", 2),
        ("agmm/mini-scribble", "aspp_rates", (1, 2, 5)),
    ],
)
def test_methods_of_every_kind_say_what_shapes_their_predictions(tmp_path, recipe, key, value) -> None:
    file = saved(tmp_path / "a.pt", recipe)
    with pytest.raises(UserError, match=key):
        load_network(resolve(recipe, {f"config.{key}": value}), CPU, file, None)


def test_what_differs_legally_is_said_unless_it_was_asked_for(tmp_path) -> None:
    file, said = saved(tmp_path / "a.pt", CAM), list[str]()
    load_network(resolve(CAM, {"config.background_score": 0.3}), CPU, file, None, say=said.append)
    assert said == []
    file = saved(tmp_path / "b.pt", CAM, **{"config.background_score": 0.3})
    load_network(resolve(CAM), CPU, file, None, say=said.append)
    assert len(said) == 1
    assert "config.background_score = 0.3, not 0.4" in said[0]
    said.clear()
    file = saved(tmp_path / "c.pt", "agmm/mini-scribble", **{"config.contrast_weight": 7.0})
    load_network(resolve("agmm/mini-scribble"), CPU, file, None, say=said.append)
    assert "contrast_weight = 7.0" in said[0]


def test_a_checkpoint_that_does_not_say_what_it_is_has_it_assumed_aloud(tmp_path, small, capsys) -> None:
    file = saved(tmp_path / "a.pt", said=False)
    arguments = [
        FULL,
        "--checkpoint",
        file,
        "--data-root",
        small,
        "--device",
        "cpu",
        "--save",
        tmp_path / "s",
    ]
    assert invoke(evaluate_verb, [str(a) for a in arguments]) == 0
    told = capsys.readouterr().err
    facts = json.loads((tmp_path / "s" / "evaluation.json").read_text())
    for text in (told, *facts["notes"]):
        assert "assumed" in text
        assert "aspp_rates" in text
        assert "mini_cnn" in text
        assert "pixels" in text
    with pytest.warns(UserWarning, match="assumed"):
        load_network(resolve(FULL), CPU, file, None)


def test_a_row_says_what_was_assumed(again) -> None:
    options, record = again
    place = record.evaluations["val-single"].path / "evaluation.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | {"notes": ["assumed, so to say"]}))
    rows = leaderboard(gather_records(options.store), resamples=20)
    assert any("assumed, so to say" in row.notes for row in rows)


def test_checkpoints_of_records_say_what_they_are_and_old_ones_still_score(again) -> None:
    options, record = again
    file = record.path / "checkpoint" / "last.pt"
    state = torch.load(file)
    assert state[NETWORK_KEY]["config"] == record.recipe["config"]
    assert state[NETWORK_KEY]["classes"][0] == "background"
    del state[NETWORK_KEY]  # as before checkpoints said it
    torch.save(state, file)
    shutil.rmtree(record.evaluations["val-single"].path)
    recorded(record.path)
    (outcome,) = execute(plan([CAM], [0], SHORT), options, None)
    assert outcome.status == "finished"


def test_a_foreign_network_in_a_record_is_refused_by_those_that_train_on_its_labels(run, again) -> None:
    options, record = again
    shutil.rmtree(record.path.parent.parent)
    trial = Trial(CAM, 0)
    prepared = prepare(trial, options)
    shutil.copytree(run[1].path, prepared.folder)
    saved(prepared.folder / "checkpoint" / "last.pt", CAM, **{"config.pooling": "max"})
    recorded(prepared.folder, digest=prepared.digest)
    with pytest.raises(UserError, match="pooling"):
        exported(CAM, 0, "train", options)
    (prepared.folder / "record.json").unlink()  # and training does not go on from it
    file = prepared.folder / "checkpoint" / "last.pt"
    torch.save(torch.load(file) | {"step": 0, "final": False}, file)
    (outcome,) = execute(plan([CAM], [0], {}), options, None)
    assert outcome.status == "failed"
    assert "pooling" in outcome.reason


def test_labels_of_a_source_are_known_by_the_code_of_packages_that_made_them(
    tmp_path, small, monkeypatch
) -> None:
    options = Options(tmp_path / "results", (str(small),), device="cpu")
    prepared = prepare(Trial(CAM, 0), options)
    file = saved(prepared.folder / "checkpoint" / "last.pt", CAM)
    record = {"status": "finished", "checkpoint": {"file": "checkpoint/last.pt", "sha256": sha256_of(file)}}
    Store.write_record(prepared.folder, _common(prepared) | record | {"ended": "2025-01-01"})

    def here(*hashes: str) -> tuple[str, dict[str, Any]]:
        packages = [{"module": "mine", "sha256": sha256} for sha256 in hashes]
        monkeypatch.setattr(foreign, "packages_of", lambda resolved: packages)
        folder, origin = exported(CAM, 0, "train", options)
        return origin, json.loads((folder / "complete.json").read_text())

    plain, memo = here()
    assert plain == f"{CAM}:cam {prepared.digest}"
    assert "code" not in memo
    with pytest.warns(UserWarning, match="was made by other code") as told:
        other, noted = here("a" * 64)
    assert any("code that was not recorded" in str(w.message) for w in told)
    assert other != plain
    assert noted["code"] in other
    build = harness.running.trials.sources.build_method
    monkeypatch.setattr(
        harness.running.trials.sources, "build_method", lambda *a: pytest.fail("the labels are whole")
    )
    with pytest.warns(UserWarning, match="not recorded"):
        again = here("a" * 64)[0]
    assert again == other
    monkeypatch.setattr(harness.running.trials.sources, "build_method", build)
    with pytest.warns(UserWarning, match="made again"):
        third = here("b" * 64)[0]
    assert third not in (plain, other)


def test_weights_alone_return_what_was_assumed(tmp_path) -> None:
    method = build_method(resolve(FULL), CPU, 0)
    assert load_weights(method, saved(tmp_path / "a.pt")) == []
    (note,) = load_weights(method, saved(tmp_path / "b.pt", said=False))
    assert note.startswith("assumed")
