"""Several processes for one trial: the same gradients, statistics, networks and counts as one process."""

from __future__ import annotations

import copy
import dataclasses
import socket
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from small_methods import build, make_batch, mini_recipes
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from harness.basics.errors import NonFiniteLossError, UserError
from harness.basics.schema import load
from harness.data.sets.mini import Mini
from harness.engine import distributed
from harness.engine.batch import Progress
from harness.engine.method import Method
from harness.engine.training import Trainer
from harness.evaluation import evaluator
from harness.recipes import protocols
from harness.recipes.resolving import resolve
from harness.recipes.specs import BatchSpec, Recipe
from harness.running.trials.trial import Options, check_processes

WORLD = 2
GROUPS = 4


class Length:
    """Stands where a data set is only asked for its length."""

    def __len__(self) -> int:
        return 100


class Toy(Method):
    """Dropout, live batch statistics, a layer that only some groups use, and one that a stage freezes."""

    loss = predict = None  # the engine calls the module itself

    def __init__(self) -> None:
        super().__init__(None, None)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8, momentum=0.3), nn.Dropout(0.3))
        self.head, self.seldom = nn.Linear(8, 4), nn.Linear(8, 4)
        self.poison: int | None = None

    def forward(self, batch, progress):
        features = self.body(batch.images).relu().mean((2, 3))
        terms = {"main": F.mse_loss(self.head(features), batch.tags[:, :4])}
        rare = self.seldom(features).square().mean()
        terms["rare"] = rare if batch.ids[0] == "0" else torch.zeros_like(rare)  # no path to the layer
        if self.poison == progress.step and batch.ids[0] == "9":
            terms["main"] = terms["main"] * float("nan")
        return terms

    def after_step(self, progress):
        self.body[0].requires_grad_(progress.step % 4 != 3)


def toy_recipe() -> Recipe:
    values = {"method": "toy", "dataset": "d", "supervision": "image", "backbone": "b", "crop": 16}
    values |= {
        "schedule": {"steps": 8},
        "optimiser": {"lr": 0.05},
        "batch": {"groups": GROUPS, "per_group": 3},
    }
    return load(Recipe, values, "test")


def make_trainer(method: nn.Module, recipe: Recipe, folder) -> Trainer:
    return Trainer(method, recipe, Length(), seed=5, folder=folder)


def shares(batch, groups: int, per_group: int):
    """The groups of a step that this process carries."""
    whole = [batch.rows(slice(g * per_group, (g + 1) * per_group)) for g in range(groups)]
    return whole[distributed.own_groups(groups)]


def train_toy(folder, poison: int | None = None) -> dict:
    torch.manual_seed(0)
    method = Toy().train()
    method.poison = poison
    trainer = make_trainer(method, toy_recipe(), folder)
    batch = make_batch(build("pce/mini-scribble"), "scribble", 3 * GROUPS)
    terms = []
    for step in range(8):
        trainer.step = step
        trainer._set_lr()
        found = trainer.optimise(shares(batch, GROUPS, 3), Progress(step, 8, 8))
        own = [i for g in shares(batch, GROUPS, 3) for i in g.ids]
        terms.append(_checked(step, own, found))
    return {"state": method.state_dict(), "terms": terms}


def _checked(step, ids, terms):
    from collections import deque

    from harness.engine.training import _checked as checked

    return checked(deque([(step, ids, terms)]))


def gradients(name: str, fraction: float, folder) -> list[torch.Tensor | None]:
    """Of one step of a method, with normalisation frozen."""
    recipe = dataclasses.replace(
        resolve(name).recipe, batch=BatchSpec(groups=2, per_group=3), amp="off", accumulate=1
    )
    method = build(name).train()
    for layer in method.modules():
        if isinstance(layer, _BatchNorm):
            layer.eval()
    trainer = make_trainer(method, recipe, folder)
    batch = make_batch(method, recipe.supervision, 6)
    trainer.optimiser.step = lambda *a, **k: None
    method.after_step = lambda progress: None
    trainer.optimise(shares(batch, 2, 3), Progress(int(fraction * 1000), 1000, 10))
    return [None if p.grad is None else p.grad.clone() for p in method.parameters()]


def probes() -> list[tuple[str, float]]:
    """One recipe of each method, at the start of each of its phases."""
    recipes = {resolve(n).recipe.method: n for n in mini_recipes()}
    return [(n, f) for n in recipes.values() for f in build(n).probe_steps]


def score(root) -> tuple[evaluator.PerImage, np.ndarray]:
    """Counts of an untrained network on the six validation scenes, shared by the processes."""
    from harness.evaluation.boundary import BoundaryCounter

    dataset, method = Mini(root), build("pce/mini-scribble")
    ids = dataset.ids("val")
    bands = BoundaryCounter(7)
    pairs = []
    p = protocols.protocol("single")
    for pair in evaluator.predictions(method, dataset, "val", p, ids=distributed.share(ids)):
        bands.add(pair[1], pair[2])
        pairs.append(pair)
    own = evaluator.tally(pairs, 7)
    return evaluator.counts_of_all(own, ids), np.sum(distributed.collected(bands.counts), axis=0)


def work(number: int, world: int, port: int, root, folder) -> None:
    """What each process does; results of all are compared with those of one process."""
    import harness.basics.compat  # noqa: F401

    torch.set_num_threads(1)
    with distributed.session(f"127.0.0.1:{port}", number, world, torch.device("cpu")):
        found: dict = {"rank": distributed.rank(), "score": score(root)}
        if world == WORLD:
            found["toy"] = train_toy(folder)
            found["gradients"] = {probe: gradients(*probe, folder) for probe in probes()}
            found["first"] = distributed.from_first(f"from {number}")
            try:
                train_toy(folder, poison=5)
            except NonFiniteLossError as error:
                found["error"] = str(error)
        torch.save(found, folder / f"{world}-{number}.pt")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def spawn(world: int, root, folder) -> list[dict]:
    mp.spawn(work, (world, free_port(), root, folder), nprocs=world)
    return [torch.load(folder / f"{world}-{r}.pt", weights_only=False) for r in range(world)]


@pytest.fixture(scope="module")
def two(tmp_path_factory, small) -> list[dict]:
    """What two gloo processes found."""
    return spawn(WORLD, small / "mini", tmp_path_factory.mktemp("ranks"))


@pytest.mark.faults
def test_two_processes_train_as_one_that_loops_over_the_same_groups(two, tmp_path):
    """Live batch statistics, dropout, a frozen stage and a layer that one group alone uses included."""
    alone = train_toy(tmp_path)
    for found in two:
        for name, value in alone["state"].items():
            torch.testing.assert_close(found["toy"]["state"][name], value, rtol=2e-5, atol=2e-6, msg=name)
        for ours, theirs in zip(alone["terms"], found["toy"]["terms"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    a, b = (f["toy"]["state"] for f in two)
    assert all(torch.equal(a[k], b[k]) for k in a), "processes hold the same network to the bit"
    assert alone["state"]["body.1.num_batches_tracked"] == 8 * GROUPS


@pytest.mark.faults
@pytest.mark.parametrize("probe", probes(), ids=str)
def test_gradients_of_every_method_are_those_of_one_process(two, probe, tmp_path):
    alone = gradients(*probe, tmp_path)
    norm = torch.stack([g.norm() for g in alone if g is not None]).norm()
    for found in two:
        theirs = found["gradients"][probe]
        assert [g is None for g in theirs] == [g is None for g in alone]
        off = [(g - t).norm() for g, t in zip(alone, theirs, strict=True) if g is not None]
        assert torch.stack(off).norm() <= 1e-5 * norm


@pytest.mark.faults
def test_counts_are_the_same_integers_for_any_number_of_processes(two, tmp_path, small):
    counts, bands = score(small / "mini")
    assert counts.ids == tuple(Mini(small / "mini").ids("val"))
    four = spawn(4, small / "mini", tmp_path)  # of six pictures: shares differ in size
    for found in (*two, *four):
        theirs, their_bands = found["score"]
        assert theirs.ids == counts.ids
        for part in ("intersection", "predicted", "labelled"):
            np.testing.assert_array_equal(getattr(theirs, part), getattr(counts, part))
        np.testing.assert_array_equal(their_bands, bands)


@pytest.mark.faults
def test_a_non_finite_loss_on_one_process_stops_all_and_names_its_pictures(two):
    for found in two:
        assert "'main' is nan at step 5" in found["error"]
        assert "images 6, 7, 8, 9, 10, 11" in found["error"]
    assert [f["first"] for f in two] == ["from 0", "from 0"]


# --- what is refused ---------------------------------------------------------------------------------


def recipe_of(groups: int, sync_bn: str = "off") -> Recipe:
    batch = BatchSpec(groups=groups, per_group=4, sync_bn=sync_bn)
    return dataclasses.replace(toy_recipe(), batch=batch)


@pytest.mark.parametrize(
    ("groups", "sync_bn", "processes", "message"),
    [
        (4, "off", 3, "4 groups cannot be shared evenly by 3 processes"),
        (1, "off", 2, "1 group cannot be shared evenly by 2 processes"),
        (4, "all", 2, "synchronised over 4 groups"),
        (4, "all", 1, "--gpus-per-trial 4"),
        (4, "head", 4, "needs GPUs"),
    ],
)
def test_groups_that_processes_cannot_carry_are_refused_with_the_reason(groups, sync_bn, processes, message):
    with pytest.raises(UserError) as caught:
        distributed.check_groups(recipe_of(groups, sync_bn), processes, torch.device("cpu"))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("groups", "sync_bn", "processes"), [(4, "off", 1), (4, "off", 2), (4, "off", 4), (1, "all", 1)]
)
def test_groups_that_processes_can_carry_are_taken(groups, sync_bn, processes):
    distributed.check_groups(recipe_of(groups, sync_bn), processes, torch.device("cpu"))
    distributed.check_groups(recipe_of(groups, "all"), groups)  # the device is not known here


def test_pictures_that_would_stay_on_other_nodes_are_refused():
    checked = SimpleNamespace(resolved=SimpleNamespace(recipe=recipe_of(4)), device=torch.device("cpu"))
    options = Options(results="s3://bucket/store", processes=2, save_predictions=True)
    with pytest.raises(UserError, match="rank 0 alone uploads"):
        check_processes(checked, options)
    check_processes(checked, dataclasses.replace(options, results=Path("results")))
    check_processes(checked, dataclasses.replace(options, processes=1))


def test_synchronised_layers_are_those_asked_for_and_keep_their_weights():
    method = build("pce/mini-scribble")
    before = copy.deepcopy(method.state_dict())
    encoder = sum(isinstance(m, _BatchNorm) for m in method.network.backbone.modules())
    everything = sum(isinstance(m, _BatchNorm) for m in method.modules())
    assert 0 < encoder < everything

    def synchronised(m):
        return sum(isinstance(x, nn.SyncBatchNorm) for x in m.modules())

    head = distributed.synchronise_normalisation(copy.deepcopy(method), "head")
    assert synchronised(head) == everything - encoder
    assert synchronised(head.network.backbone) == 0
    whole = distributed.synchronise_normalisation(copy.deepcopy(method), "all")
    assert synchronised(whole) == everything
    assert all(torch.equal(v, before[k]) for k, v in whole.state_dict().items())
