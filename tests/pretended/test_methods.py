"""Every method on a GPU that is pretended: no mixed devices, in any phase and precision, and no more waits
than are written down."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from pretend_device import Cuda, Mixed, Pretend
from small_methods import build, make_batch, mini_recipes

from harness.engine.batch import Batch, Progress
from harness.engine.method import Method
from harness.engine.optimisers import create_optimiser
from harness.engine.training import Trainer
from harness.nn.lattice import bilateral_features, build_lattice
from harness.nn.pixels import FromImageNet, normalise
from harness.recipes.resolving import resolve
from harness.recipes.specs import OptimiserSpec

GPU = torch.device("cuda")


class _Data:
    """As much of a training set as a trainer asks for before its first step."""

    def __len__(self) -> int:
        return 10_000


def trainer_of(name: str, amp: str, folder: Path = Path("nowhere")) -> tuple[Trainer, Batch]:
    """A trainer on the device, and pictures on the host as a loader hands them over."""
    method = build(name).to(GPU)
    recipe = resolve(name).recipe
    batch = make_batch(method, recipe.supervision)
    recipe = dataclasses.replace(
        recipe, amp=amp, accumulate=1, batch=dataclasses.replace(recipe.batch, groups=1, sync_bn="off")
    )
    trainer = Trainer(method, recipe, _Data(), seed=0, folder=folder)
    return trainer, batch


def phases(method: Method) -> list[Progress]:
    return [Progress(int(fraction * 1000), 1000, 10) for fraction in method.probe_steps]


#: A miniature recipe of each method.
RECIPES = list({name.partition("/")[0]: name for name in mini_recipes()[::-1]}.values())
CASES = [(name, amp) for name in RECIPES for amp in ("off", "bf16", "fp16")]


#: How often the host waits for the GPU in a step of the last phase of training, once what is kept is there:
#: the most of any of the method's miniature recipes. Sending the pictures is not among them.
WAITS = {
    "full": 0,
    "pce": 0,
    "gated_crf": 0,
    "dfr": 0,
    "cam": 0,
    "blpseg": 0,
    "agmm": 2,
    "rloss": 3,
    "tree_energy": 4,
    "toco": 5,
    "fsr": 5,
    "dskd_gc": 9,
}
#: Of these, copies to the GPU: what is constant is there from the first step on.
COPIES = {"tree_energy": 2}


def waits_of_a_step(trainer: Trainer, batch: Batch, gpu: Pretend) -> int:
    gpu.clear()
    trainer.optimise([batch], phases(trainer.method)[-1])
    return sum(
        n for (why, where), n in gpu.waits.items() if why != "host to device" or "batch.py" not in where
    )


def copies_of_a_step(gpu: Pretend) -> int:
    """Copies to the GPU in the step just counted, that of the pictures aside."""
    counted = [*gpu.waits.items(), *gpu.copies.items()]
    return sum(n for (why, where), n in counted if why == "host to device" and "batch.py" not in where)


@pytest.mark.parametrize(("name", "amp"), CASES)
def test_training_and_prediction_stay_on_the_device(name: str, amp: str, gpu: Pretend) -> None:
    trainer, batch = trainer_of(name, amp)
    method = trainer.method
    method.train()
    for progress in phases(method):
        terms = trainer.optimise([batch], progress)
        assert all(isinstance(term, Cuda) and term.isfinite() for term in terms.values())
    if amp == "off":
        waits = waits_of_a_step(trainer, batch, gpu)
        assert waits <= WAITS[trainer.recipe.method], gpu.report()
        assert copies_of_a_step(gpu) <= COPIES.get(trainer.recipe.method, 0), gpu.report()
    assert all(isinstance(value, Cuda) for value in method.state_dict().values())
    states = [v for state in trainer.optimiser.state.values() for v in state.values() if torch.is_tensor(v)]
    assert all(isinstance(v, Cuda) for v in states if v.dim())
    method.eval()
    there = batch.to(GPU)
    with torch.inference_mode(), torch.autocast("cuda", trainer.amp, enabled=trainer.amp is not None):
        for network in method.networks:
            assert isinstance(method.predict(there.images, network), Cuda)
        made: list[Any] = [*dict(method.pseudo_labels(there.images, there.tags)).values()]
        maps = method.class_maps(there.images, there.tags)
    assert all(isinstance(value, Cuda) for value in [*made, *([] if maps is None else [maps])])
    assert not gpu.mixed


def test_a_run_computes_what_the_cpu_computes(gpu: Pretend) -> None:
    name = RECIPES[0]
    trainer, batch = trainer_of(name, "off")
    on_gpu = [t.inner for t in trainer.optimise([batch], phases(trainer.method)[0]).values()]
    there = list(trainer.method.parameters())
    method = build(name)
    other = Trainer(method, trainer.recipe, _Data(), seed=0, folder=Path("nowhere"))
    method.train()
    terms = other.optimise([batch], phases(method)[0])
    assert [float(t) for t in on_gpu] == [float(t) for t in terms.values()]
    for own, other_own in zip(there, method.parameters(), strict=True):
        assert own.grad is not None
        assert other_own.grad is not None
        assert torch.equal(own.grad.inner, other_own.grad)
        # The optimiser's kernels are others on a GPU, and round otherwise.
        torch.testing.assert_close(own.inner.detach(), other_own.detach(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("name", "amp"), [("agmm/mini-scribble", "fp16"), ("fsr/mini-image", "off")])
def test_training_goes_on_from_its_checkpoint(name: str, amp: str, gpu: Pretend, tmp_path: Path) -> None:
    trainer, batch = trainer_of(name, amp, tmp_path)
    trainer.method.train()
    for progress in phases(trainer.method):
        trainer.optimise([batch], progress)
    trainer.save()
    other, _ = trainer_of(name, amp, tmp_path)
    other.resume()
    other.method.train()
    last = phases(trainer.method)[-1]
    expected, found = trainer.optimise([batch], last), other.optimise([batch], last)
    assert {key: float(term) for key, term in found.items()} == {key: float(t) for key, t in expected.items()}
    assert all(isinstance(value, Cuda) for value in other.method.state_dict().values())
    assert not gpu.mixed


def test_a_picture_that_is_scored_sends_no_constants(gpu: Pretend) -> None:
    raw = torch.zeros(1, 3, 8, 8, dtype=torch.uint8, device="cuda")
    scores = torch.full((1, 3, 8, 8), 1 / 3, device="cuda")
    features = bilateral_features(raw, sigma_xy=3, sigma_rgb=5)
    other = FromImageNet((0.5,) * 3, (0.5,) * 3)
    for _ in range(2):  # the first time they are sent
        gpu.clear()
        with torch.inference_mode():
            other(torch.nn.Identity(), (normalise(raw),))
            build_lattice(features).filter(scores)
    assert not copies_of_a_step(gpu), gpu.report()


@pytest.mark.parametrize("optimiser", ["sgd", "adam", "adamw"])
def test_a_state_of_the_optimiser_is_loaded_by_the_other_device(
    optimiser: Literal["sgd", "adam", "adamw"], gpu: Pretend
) -> None:
    def made(device: str) -> torch.optim.Optimizer:
        weight = torch.nn.Parameter(torch.tensor([1.0, -2.0], device=device))
        found = create_optimiser([{"params": weight}], OptimiserSpec(name=optimiser, lr=0.1))
        return found

    def step(of: torch.optim.Optimizer) -> list[float]:
        (weight,) = of.param_groups[0]["params"]
        weight.grad = torch.tensor([0.5, 1.5], device=weight.device)
        of.step()
        return weight.detach().cpu().tolist()

    for first, second in (("cuda", "cpu"), ("cpu", "cuda")):
        old, new = made(first), made(second)
        step(old)
        kernels = new.param_groups[0]["fused"]
        assert bool(kernels) is (second == "cuda")
        state = old.state_dict()
        new.load_state_dict({**state, "state": torch.utils._pytree.tree_map(_of_the_cpu, state["state"])})
        assert new.param_groups[0]["fused"] == kernels
        with torch.no_grad():
            new.param_groups[0]["params"][0].copy_(old.param_groups[0]["params"][0].detach().to(second))
        assert step(new) == pytest.approx(step(old), rel=1e-6)


def _of_the_cpu(value: Any) -> Any:
    """As a checkpoint is read."""
    return value.detach().cpu() if torch.is_tensor(value) else value


# --- faults that are planted are found -----------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        lambda batch: torch.ones(3),
        lambda batch: torch.arange(3).float(),
        lambda batch: torch.tensor([1.0, 2.0, 3.0]),
        lambda batch: batch.tags.cpu()[0, :3],
    ],
    ids=["factory", "range", "list", "left behind"],
)
def test_a_tensor_of_the_cpu_in_a_loss_is_found(
    fault: Any, gpu: Pretend, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, batch = trainer_of(RECIPES[0], "off")
    losses = type(trainer.method).loss

    def planted(self: Method, batch: Batch, progress: Progress) -> dict[str, torch.Tensor]:
        terms = losses(self, batch, progress)
        first = next(iter(terms))
        return terms | {first: terms[first] + (batch.images.mean((0, 2, 3)) * fault(batch)).sum()}

    monkeypatch.setattr(type(trainer.method), "loss", planted)
    with pytest.raises(Mixed, match="cuda:0 and cpu"):
        trainer.optimise([batch], phases(trainer.method)[0])


def test_a_value_that_is_read_in_a_loss_is_counted(gpu: Pretend, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, batch = trainer_of(RECIPES[0], "off")
    progress = phases(trainer.method)[-1]
    trainer.optimise([batch], progress)
    before = waits_of_a_step(trainer, batch, gpu)
    losses = type(trainer.method).loss

    def planted(self: Method, batch: Batch, progress: Progress) -> dict[str, torch.Tensor]:
        terms = losses(self, batch, progress)
        for term in terms.values():
            term.item()
        return terms

    monkeypatch.setattr(type(trainer.method), "loss", planted)
    terms = trainer.optimise([batch], progress)
    assert waits_of_a_step(trainer, batch, gpu) == before + len(terms)


def test_numpy_and_other_devices_are_refused(gpu: Pretend) -> None:
    value = torch.ones(2, device="cuda")
    with pytest.raises(TypeError, match="numpy"):
        value.numpy()
    with pytest.raises(Mixed):
        value + torch.ones(2)
    assert float((value + torch.tensor(1.0)).sum()) == 4  # a scalar of the CPU is taken, as CUDA takes it
