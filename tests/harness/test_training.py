"""The loop: schedules, groups, accumulation, exact resume, the guard against non-finite losses."""

from __future__ import annotations

import dataclasses
import errno
import os
import threading
import time

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from damage import ANY
from torch import nn

from harness.basics.errors import NonFiniteLossError, UserError
from harness.basics.schema import load
from harness.engine import training
from harness.engine.batch import Batch
from harness.engine.loader import Collate, StepSampler, TrainingSet
from harness.engine.method import Method
from harness.engine.training import Trainer, create_optimiser, lr_factor
from harness.engine.writing import copied
from harness.recipes.specs import OptimiserSpec, Recipe, ScheduleSpec
from harness.records.history import gaps


def test_poly_schedule_matches_the_authors(golden):
    data = np.load(golden / "agmm" / "lr_voc.npz")
    spec = ScheduleSpec(epochs=80, kind="poly", power=0.9)
    factors = np.array([lr_factor(spec, int(i), int(data["total"])) for i in data["iteration"]])
    np.testing.assert_allclose(0.001 * factors, data["lr_backbone"], rtol=1e-12)
    np.testing.assert_allclose(0.01 * factors, data["lr_head"], rtol=1e-12)


def test_warm_up_rises_to_one_then_the_schedule_falls_to_its_floor():
    spec = ScheduleSpec(steps=100, kind="cosine", warmup_steps=10, warmup_factor=0.1, floor=0.05)
    values = [lr_factor(spec, i, 100) for i in range(100)]
    assert values[0] == pytest.approx(0.1)
    assert values[10] == pytest.approx(1.0)
    assert values[55] == pytest.approx(0.5)
    assert values[-1] == pytest.approx(0.05)
    assert values[:11] == sorted(values[:11])


def test_a_schedule_may_count_from_the_first_step_of_its_warm_up(golden):
    """ToCo's poly: the rate steps down where the warm-up ends."""
    data = np.load(golden / "fsr" / "schedules.npz")
    spec = ScheduleSpec(steps=1, kind="poly", power=0.9, warmup_steps=1500, count_from="start")
    for total, steps, name in (
        (20000, "lr_steps", "toco_poly_lr_base_head"),
        (80000, "lr_steps80k", "toco_poly_lr_80k"),
    ):
        factors = [lr_factor(spec, int(i), total) for i in data[steps]]
        np.testing.assert_allclose(np.outer(factors, [6e-5, 6e-4]), data[name], rtol=1e-9)
    tenth = dataclasses.replace(spec, warmup_factor=0.1)
    factors = [lr_factor(tenth, int(i), 20000) for i in data["lr_steps"]]
    np.testing.assert_allclose(np.outer(factors, [6e-5, 6e-4]), data["fsr_poly_lr_base_head"], rtol=1e-9)


def test_a_schedule_has_one_unit():
    with pytest.raises(UserError, match="exactly one"):
        ScheduleSpec(steps=3, epochs=3).total_steps(10)
    assert ScheduleSpec(epochs=80).total_steps(220) == 17_600


def test_every_step_sees_a_permutation_and_drops_the_rest():
    steps = list(StepSampler(10, 4, 6, seed=1))
    for epoch in range(3):
        seen = [index for step in steps[2 * epoch : 2 * epoch + 2] for _, _, index in step]
        assert len(set(seen)) == 8
    assert list(StepSampler(10, 4, 6, seed=1, start=3)) == steps[3:]
    assert list(StepSampler(10, 4, 6, seed=2)) != steps
    with pytest.raises(UserError, match="per_group"):
        StepSampler(3, 4, 1, seed=0)


class Pictures:
    """A data set in memory."""

    def read_image(self, image_id):
        return np.random.default_rng(int(image_id)).integers(0, 256, (24, 28, 3)).astype(np.uint8)


class Labels:
    """Prepared labels in memory: no files, so every pixel is unlabelled."""

    tags = np.eye(4, dtype=np.uint8)[np.arange(20) % 4]

    def read(self, image_id):
        return None


class Toy(Method):
    """A method that uses random numbers, batch statistics and tags."""

    loss = predict = None  # the engine calls the module itself

    def __init__(self, pool=False):
        super().__init__(None, None)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Linear(8, 4)
        self.pool, self.poison, self.after = pool, None, 0

    def parameter_groups(self):
        return [{"params": self.body.parameters(), "lr_scale": 0.1}, {"params": self.head.parameters()}]

    def forward(self, batch, progress):
        features = self.body(batch.images).mean((2, 3))
        if self.pool:  # a loss that mixes the samples of its group
            features = features - features.mean(0)
        loss = F.binary_cross_entropy_with_logits(self.head(features), batch.tags)
        if self.poison == progress.step:
            loss = loss * float("nan")
        return {"tags": loss, "l2": 1e-3 * self.head.weight.square().sum()}

    def after_step(self, progress):
        self.after += 1


def make_recipe(**values):
    base = {
        "method": "toy",
        "dataset": "d",
        "supervision": "image",
        "backbone": "b",
        "crop": 16,
        "batch": {"groups": 2, "per_group": 3},
        "schedule": {"steps": 40},
        "optimiser": {"lr": 0.1},
    }
    return load(Recipe, base | values, "test")


def make_trainer(folder, recipe=None, method=None, **options):
    recipe = recipe or make_recipe()
    torch.manual_seed(0)
    method = method or Toy()
    data = TrainingSet(Pictures(), [str(i) for i in range(20)], Labels(), recipe, 5, {})
    return Trainer(method, recipe, data, seed=5, folder=folder, **options)


def weights(trainer):
    return torch.cat([v.flatten().double() for v in trainer.method.state_dict().values()])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    trainer = make_trainer(folder)
    statuses = list(trainer.run())
    return weights(trainer), pd.read_csv(folder / "history.csv"), statuses, trainer


def test_a_run_logs_its_terms_and_calls_the_hooks(undisturbed):
    _, history, statuses, trainer = undisturbed
    assert history.step.tolist() == [10, 20, 30, 40] == [s.step for s in statuses]
    assert {"lr", "loss", "tags", "l2"} <= set(history.columns)
    np.testing.assert_allclose(history.loss, history.tags + history.l2, rtol=1e-6)
    assert history.tags.iloc[-1] < history.tags.iloc[0]
    assert trainer.method.after == 40


def test_two_loader_workers_give_the_same_bits(undisturbed, tmp_path):
    trainer = make_trainer(tmp_path, workers=2)
    list(trainer.run())
    assert torch.equal(weights(trainer), undisturbed[0])


@pytest.mark.parametrize("stop", [1, 3])
def test_a_run_stopped_after_a_checkpoint_resumes_to_the_same_bits(undisturbed, tmp_path, stop):
    first = make_trainer(tmp_path, checkpoint_seconds=0)
    for number, _ in enumerate(first.run(), 1):
        if number == stop:
            break
    second = make_trainer(tmp_path)
    list(second.run())
    assert second.resumed_at == 10 * stop
    assert torch.equal(weights(second), undisturbed[0])
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "history.csv"), undisturbed[1])


def test_a_line_cut_by_a_kill_does_not_survive_in_the_history(undisturbed, tmp_path):
    first = make_trainer(tmp_path, checkpoint_seconds=0)
    next(iter(first.run()))
    with (tmp_path / "history.csv").open("a") as stream:
        stream.write("1,0.0")
    list(make_trainer(tmp_path).run())
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "history.csv"), undisturbed[1])


def test_a_finished_run_is_not_trained_again(undisturbed):
    again = make_trainer(undisturbed[3].folder)
    assert list(again.run()) == []
    assert torch.equal(weights(again), undisturbed[0])


def test_the_last_checkpoint_is_not_written_again(tmp_path):
    list(make_trainer(tmp_path).run())
    file = tmp_path / "checkpoint" / "last.pt"
    torch.save(torch.load(file, weights_only=True) | {"of another version": 1}, file)
    before, copied = file.read_bytes(), []
    assert list(make_trainer(tmp_path, saved=lambda: copied.append(1)).run()) == []
    assert file.read_bytes() == before, "evaluations name it by its hash"
    assert copied == [1], "a stop may have come before it reached a store elsewhere"


@pytest.fixture
def slow_disk(monkeypatch):
    """Lets checkpoints of a training be written when the event is set."""
    go, write = threading.Event(), training.write_with

    def slow(path, save):
        assert go.wait(30)
        write(path, save)

    monkeypatch.setattr(training, "write_with", slow)
    yield go
    go.set()


def test_a_checkpoint_is_of_the_step_at_which_it_was_begun(tmp_path, slow_disk):
    """Training goes on while it is written, and waits where the next one is due."""
    told = []
    trainer = make_trainer(tmp_path, checkpoint_seconds=0, saved=lambda: told.append(trainer.step))
    rows = trainer.run()
    assert next(rows).step == 10
    kept = weights(trainer)
    trainer.checkpoint_seconds = 1000
    assert next(rows).step == 20
    assert not trainer.checkpoint.exists()
    assert not torch.equal(weights(trainer), kept)
    slow_disk.set()
    trainer.writer._thread.join()
    next(rows)
    state = torch.load(trainer.checkpoint, weights_only=True)
    assert state["step"] == 10
    assert torch.equal(torch.cat([v.flatten().double() for v in state["method"].values()]), kept)
    assert told == [30], "what copies it elsewhere hears of it when it is whole"
    rows.close()


def test_a_run_that_is_stopped_leaves_the_checkpoint_that_was_begun(tmp_path, slow_disk):
    trainer = make_trainer(tmp_path, checkpoint_seconds=0)
    rows = trainer.run()
    next(rows)
    threading.Timer(0.2, slow_disk.set).start()
    rows.close()
    assert torch.load(trainer.checkpoint, weights_only=True)["step"] == 10


@pytest.mark.parametrize("last", [False, True], ids=["between", "in the last row"])
def test_a_checkpoint_that_cannot_be_written_ends_the_run(tmp_path, monkeypatch, last):
    full, write = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), training.write_with

    def refused(path, save):
        if not last or trainer.step == 40:
            raise full
        write(path, save)

    monkeypatch.setattr(training, "write_with", refused)
    trainer = make_trainer(tmp_path, checkpoint_seconds=0)
    with pytest.raises(OSError, match="No space left"):
        list(trainer.run())
    assert trainer.step <= 20 or last
    assert not last or torch.load(trainer.checkpoint, weights_only=True)["step"] == 30


def test_a_checkpoint_that_fails_beside_a_run_that_fails_is_told_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "write_with", lambda path, save: 1 / 0)
    trainer = make_trainer(tmp_path, checkpoint_seconds=0)
    rows = trainer.run()
    next(rows)
    trainer.optimise = lambda *_: {"x": torch.tensor(float("nan"))}
    with pytest.raises(NonFiniteLossError) as caught:
        next(rows)
    assert caught.value.__notes__ == ["the last checkpoint was not written either: division by zero"]


def test_a_copy_of_a_state_shares_what_the_state_shares_and_nothing_with_it():
    weight = torch.nn.Parameter(torch.ones(2))
    state = nn.BatchNorm2d(2).state_dict()
    whole = {"a": weight, "b": [weight, (1, "x")], "method": state}
    own = copied(whole)
    weight.data.zero_()
    state["running_mean"].fill_(5)
    assert own["a"] is own["b"][0]
    assert own["a"].tolist() == [1, 1]
    assert own["b"][1] == (1, "x")
    assert own["method"]["running_mean"].tolist() == [0, 0]
    assert own["method"]._metadata == state._metadata


def damaged_copy(undisturbed, tmp_path):
    """A trial that has a checkpoint in the middle, and its curve."""
    run = make_trainer(tmp_path)
    states = run.run()
    next(states)
    run.save()
    states.close()
    return tmp_path / "checkpoint" / "last.pt"


@pytest.mark.parametrize("name", [*(n for n in ANY if n != "huge"), "a bit", "another file"])
def test_a_damaged_checkpoint_is_moved_aside_and_training_starts_afresh(undisturbed, tmp_path, name):
    file = damaged_copy(undisturbed, tmp_path)
    if name == "a bit":
        data = bytearray(file.read_bytes())
        data[data.index(b"data/0") + 100] ^= 1
        file.write_bytes(data)
    elif name == "another file":
        torch.save([1, 2], file)
    else:
        ANY[name](file)
    again = make_trainer(tmp_path)
    states = list(again.run())
    assert any(str(file) in text and "afresh" in text for s in states for text in s.warnings)
    assert os.path.lexists(file.with_name("last.pt.damaged"))
    assert again.resumed_at == 0
    assert torch.equal(weights(again), undisturbed[0])


@pytest.mark.parametrize("name", ["empty", "half", "missing"])
def test_lost_rows_of_a_curve_are_named(undisturbed, tmp_path, name):
    damaged_copy(undisturbed, tmp_path)
    file = tmp_path / "history.csv"
    {**ANY, "missing": os.unlink}[name](file)
    again = make_trainer(tmp_path)
    states = list(again.run())
    (told,) = (text for s in states for text in s.warnings)
    ((first, last),) = gaps(file, again.total, again.log_every)
    assert f"rows of steps {first} to {last}" in told
    steps = pd.read_csv(file)["step"].tolist()
    assert not set(range(first, last + 1)) & set(steps)
    assert {*range(1, first), *range(last + 1, again.total + 1)} >= set(steps)
    assert last == again.resumed_at


def test_gaps_of_a_curve(tmp_path):
    file = tmp_path / "history.csv"

    def of(*steps: int, upto: int = 45) -> list[tuple[int, int]]:
        file.write_text("\n".join(["step,loss", *(f"{s},1.0" for s in steps)]) + "\n")
        return gaps(file, upto, 10)

    assert of(10, 20, 30, 40, 45) == []
    assert of(10, 20, 30, 40, upto=40) == []
    assert of(10, 20, 30, 40) == [(41, 45)]
    assert of(10, 40, 45) == [(11, 30)]
    assert of(20, 30, 45) == [(1, 10), (31, 40)]
    assert of() == [(1, 45)]
    assert of(upto=0) == []


#: An empty or half a curve lacks rows, as one that a kill cut; a huge one takes long to read.
@pytest.mark.parametrize("name", [name for name in ANY if name not in ("empty", "half", "huge")])
def test_a_damaged_curve_is_moved_aside_and_training_goes_on(undisturbed, tmp_path, name):
    damaged_copy(undisturbed, tmp_path)
    ANY[name](tmp_path / "history.csv")
    again = make_trainer(tmp_path)
    states = list(again.run())
    assert again.resumed_at > 0
    assert any("history.csv" in text for s in states for text in s.warnings)
    assert torch.equal(weights(again), undisturbed[0])


def test_the_checkpoint_of_another_seed_is_refused(undisturbed, tmp_path):
    file = damaged_copy(undisturbed, tmp_path)
    state = torch.load(file, weights_only=True)
    torch.save({**state, "seed": state["seed"] + 1}, file)
    with pytest.raises(UserError, match="that of seed"):
        list(make_trainer(tmp_path).run())


def test_groups_are_separate_pools_whose_gradients_are_averaged(tmp_path):
    """Two groups of three equal the mean of two separate batches of three, not one batch of six."""
    recipe = make_recipe(schedule={"steps": 1})
    method = Toy(pool=True).eval()
    trainer = make_trainer(tmp_path, recipe, method)
    slots = next(iter(StepSampler(20, 6, 1, 5)))
    samples = [trainer.data[s] for s in slots]

    def gradient(groups):
        method.zero_grad()
        for batch in (group.to("cpu") for group in groups):
            (sum(method(batch, None if method.poison else _progress()).values()) / len(groups)).backward()
        return [p.grad.clone() for p in method.parameters()]

    wanted = gradient(Collate(2)(samples))
    pooled = gradient(Collate(1)(samples))
    trainer.optimise(Collate(2)(samples), _progress())
    for p, w in zip(method.parameters(), wanted, strict=True):
        torch.testing.assert_close(p.grad, w)
    assert any(not torch.allclose(a, b) for a, b in zip(wanted, pooled, strict=True))


def _progress():
    from harness.engine.batch import Progress

    return Progress(0, 1, 1)


def test_accumulation_gives_the_gradient_of_the_whole_group_without_batch_statistics(tmp_path):
    method = Toy().eval()
    recipe = make_recipe(batch={"groups": 1, "per_group": 6}, schedule={"steps": 1})
    gradients = []
    for pieces in (1, 4):
        trainer = make_trainer(tmp_path, dataclasses.replace(recipe, accumulate=pieces), method)
        samples = [trainer.data[s] for s in next(iter(StepSampler(20, 6, 1, 5)))]
        state = {k: v.clone() for k, v in method.state_dict().items()}
        terms = trainer.optimise(Collate(1)(samples), _progress())
        method.load_state_dict(state)
        gradients.append([p.grad.clone() for p in method.parameters()] + [terms["tags"]])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_a_non_finite_loss_stops_with_step_term_and_images(tmp_path):
    method = Toy()
    method.poison = 17
    trainer = make_trainer(tmp_path, method=method, checkpoint_seconds=0)
    with pytest.raises(NonFiniteLossError, match="'tags' is nan at step 17") as caught:
        list(trainer.run())
    assert "images" in str(caught.value)
    assert torch.load(trainer.checkpoint, weights_only=True)["step"] == 10


def test_gradients_are_clipped(tmp_path):
    recipe = make_recipe(optimiser={"lr": 0.1, "clip_norm": 1e-3}, schedule={"steps": 1})
    trainer = make_trainer(tmp_path, recipe)
    list(trainer.run())
    norm = torch.stack([p.grad.norm() for p in trainer.method.parameters()]).norm()
    assert norm <= 1e-3 * 1.001


@pytest.mark.parametrize("amp", ["bf16"])
def test_mixed_precision_trains(tmp_path, amp):
    trainer = make_trainer(tmp_path, make_recipe(amp=amp))
    statuses = list(trainer.run())
    assert statuses[-1].terms["tags"] < statuses[0].terms["tags"]


def test_parameter_groups_keep_their_learning_rate_share_and_refuse_unknown_keys():
    model = Toy()
    optimiser = create_optimiser(model.parameter_groups(), OptimiserSpec(lr=0.5, weight_decay=0.01))
    assert [g["lr_scale"] for g in optimiser.param_groups] == [0.1, 1.0]
    assert all(g["weight_decay"] == 0.01 for g in optimiser.param_groups)
    with pytest.raises(ValueError, match="lr_mult"):
        create_optimiser([{"params": model.parameters(), "lr_mult": 1}], OptimiserSpec())


class Guided(Toy):
    """A frozen guide beside what is trained, and a head that thaws half way."""

    def __init__(self, keeps_mode=True):
        super().__init__()
        self.guide = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8)).requires_grad_(False)
        self.keeps_mode = keeps_mode
        self.extra = nn.Linear(8, 4).requires_grad_(False)

    def parameter_groups(self):
        return [*super().parameter_groups(), {"params": self.extra.parameters()}]

    def train(self, mode=True):
        super().train(mode)
        if self.keeps_mode:
            self.guide.eval()
        return self

    def forward(self, batch, progress):
        self.extra.requires_grad_(progress.step >= 20)
        guided = self.extra(self.guide(batch.images).mean((2, 3)))
        return super().forward(batch, progress) | {"guided": guided.square().mean()}


@pytest.mark.parametrize("keeps_mode", [True, False])
def test_a_frozen_submodule_stays_as_it_was_and_one_that_thaws_is_trained_from_then_on(tmp_path, keeps_mode):
    recipe = make_recipe(optimiser={"name": "adamw", "lr": 0.01, "weight_decay": 0.1})

    def begun(folder, **options):
        torch.manual_seed(0)
        return make_trainer(folder, recipe, Guided(keeps_mode), **options)

    first = begun(tmp_path, checkpoint_seconds=0)
    guide, extra = (
        {k: v.clone() for k, v in part.state_dict().items()}
        for part in (first.method.guide, first.method.extra)
    )
    for status in first.run():
        first.writer.wait()
        state = torch.load(first.checkpoint, weights_only=True)["method"]
        for name, value in guide.items():
            moves = "running" in name or "tracked" in name
            assert torch.equal(state[f"guide.{name}"], value) == (keeps_mode or not moves), name
        for name, value in extra.items():
            assert torch.equal(state[f"extra.{name}"], value) == (status.step <= 20), name
        if status.step == 20:
            break
    second = begun(tmp_path)
    list(second.run())
    whole = begun(tmp_path / "whole")
    list(whole.run())
    assert second.resumed_at == 20
    assert torch.equal(weights(second), weights(whole))
    assert not torch.equal(second.method.extra.weight, extra["weight"])


def test_the_best_network_on_validation_is_kept(tmp_path):
    scores = iter([10.0, 30.0, 20.0, 25.0])
    recipe = make_recipe(selection={"every_steps": 10})
    trainer = make_trainer(tmp_path, recipe, validate=lambda: next(scores))
    list(trainer.run())
    best = torch.load(tmp_path / "checkpoint" / "best.pt", weights_only=True)
    assert (best["step"], best["miou"]) == (20, 30.0)


def test_batches_move_as_a_whole():
    data = TrainingSet(Pictures(), ["1", "2"], Labels(), make_recipe(), 0, {})
    (batch,) = Collate(1)([data[(0, 0, 0)], data[(0, 1, 1)]])
    moved = batch.to("meta")
    assert isinstance(moved, Batch)
    assert {moved.images.device.type, moved.labels.device.type, moved.tags.device.type} == {"meta"}
    assert moved.ids == ["1", "2"]
    assert (batch.labels[batch.valid] == 254).all()
    assert (batch.labels[~batch.valid] == 255).all()


@pytest.mark.parametrize(("slow", "least", "most"), [("loader", 0.6, 1.0), ("step", 0.0, 0.3)])
def test_the_share_of_time_spent_waiting_for_pictures_is_told(tmp_path, monkeypatch, slow, least, most):
    trainer = make_trainer(tmp_path, make_recipe(schedule={"steps": 4}), log_every=2)
    place = (TrainingSet, "__getitem__") if slow == "loader" else (Trainer, "optimise")
    real = getattr(*place)

    def slowly(*arguments):
        time.sleep(0.02 if slow == "loader" else 0.2)
        return real(*arguments)

    monkeypatch.setattr(*place, slowly)
    shares = [status.waiting for status in trainer.run()]
    assert len(shares) == 2
    assert all(least <= share <= most for share in shares)
