"""Precision as values of a recipe, deterministic kernels, float16's scale: what they change, and where."""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.basics.errors import NonFiniteLossError, UserError
from harness.basics.provenance import hardware
from harness.basics.schema import load
from harness.engine.arithmetic import Arithmetic
from harness.engine.batch import Batch, Progress
from harness.engine.training import Trainer
from harness.nn import compiling
from harness.recipes.resolving import resolve
from harness.recipes.specs import FAST, PrecisionSpec, Recipe
from harness.records.history import read_rows
from harness.running.watching.following import _values
from methods.parts.par import par
from tests.runs import ONE, RECIPE, TINY, only, wsss
from tests.small_methods import build, make_batch, mini_recipes

CPU = torch.device("cpu")
SHORT = ["--set", "schedule.steps=2", *TINY[2:]]


def recipe_of(name: str, values: Mapping[str, Any]) -> Recipe:
    """A recipe for the few pictures of these tests."""
    return resolve(name, {"batch.groups": 1, "batch.sync_bn": "off", "accumulate": 1, **values}).recipe


class _Data:
    def __len__(self) -> int:
        return 10_000


def trainer_of(name: str, folder: Path = Path("nowhere"), **values: Any) -> tuple[Trainer, Batch]:
    method = build(name)
    recipe = recipe_of(name, {key.replace("__", "."): value for key, value in values.items()})
    return (
        Trainer(method.train(), recipe, _Data(), seed=0, folder=folder),  # type: ignore[arg-type]
        make_batch(method, recipe.supervision),
    )


def phases(trainer: Trainer) -> Iterator[Progress]:
    for fraction in trainer.method.probe_steps:
        yield Progress(int(fraction * 1000), 1000, 10)


# --- values of a recipe --------------------------------------------------------------------------------


def test_defaults_change_no_digest_and_every_other_value_does() -> None:
    plain = resolve(RECIPE)
    same = {"precision.tf32": "convolutions", "precision.channels_last": False, "precision.compile": []}
    assert resolve(RECIPE, same).digest("") == plain.digest("")
    others = [("tf32", "off"), ("tf32", "all"), ("channels_last", True), ("cudnn_benchmark", True)]
    others += [("compile", ["encoder"]), ("compile", ["encoder", "par"])]
    digests = {resolve(RECIPE, {f"precision.{key}": value}).digest("") for key, value in others}
    assert len(digests | {plain.digest("")}) == len(others) + 1
    with pytest.raises(UserError, match=r"precision\.tf32"):
        resolve(RECIPE, {"precision.tf32": "some"})


#: Differences of terms that are as good as 0 are of no interest: a share of the largest term.
SMALL = 1e-3


@pytest.mark.parametrize("name", {n.partition("/")[0]: n for n in mini_recipes()[::-1]}.values())
def test_loss_terms_of_the_fast_set_are_within_three_percent(name: str) -> None:
    (exact, batch), (fast, _) = trainer_of(name), trainer_of(name)
    fast.recipe = recipe_of(name, FAST)
    fast.amp = torch.bfloat16
    fast.arithmetic = Arithmetic(fast.method, fast.recipe.precision, CPU)
    for progress in phases(exact):
        fast.method.load_state_dict(exact.method.state_dict())  # the same network in every phase
        terms, found = (t.optimise([batch], progress) for t in (exact, fast))
        most = max(abs(float(term)) for term in terms.values())
        for key, term in terms.items():
            assert abs(float(found[key] - term)) <= 0.03 * abs(float(term)) + SMALL * most, (key, term, found)


def test_fast_is_a_configuration_that_the_record_names(small: Path, tmp_path: Path) -> None:
    command = ("run", RECIPE, *SHORT, *ONE, "--data-root", small, "--results", tmp_path)
    assert wsss(*command, "--fast") == 0
    record = only(tmp_path)
    assert record.data["recipe"]["amp"] == "bf16"
    assert record.data["recipe"]["precision"]["tf32"] == "all"
    assert set(FAST) <= set(record.data["overrides"])


def test_channels_last_is_for_training_alone(tmp_path: Path) -> None:
    trainer, batch = trainer_of("full/mini-full", precision__channels_last=True)
    seen: list[bool] = []

    def look(module: nn.Module, images: Any, maps: Tensor) -> None:
        seen.append(maps.is_contiguous(memory_format=torch.channels_last))

    convolution = next(m for m in trainer.method.modules() if isinstance(m, nn.Conv2d) and m.out_channels > 4)
    convolution.register_forward_hook(look)
    trainer.optimise([batch], Progress(0, 10, 10))
    assert seen == [True]
    trainer.arithmetic.end()
    assert all(p.is_contiguous() for p in trainer.method.parameters())


def test_switches_are_on_in_a_step_and_nowhere_else() -> None:
    trainer, batch = trainer_of("full/mini-full", precision__tf32="all", precision__cudnn_benchmark=True)
    inner = type(trainer.method).loss
    seen: list[tuple[bool, ...]] = []

    def switches() -> tuple[bool, ...]:
        cudnn = torch.backends.cudnn
        return cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, cudnn.benchmark

    def loss(batch: Batch, progress: Progress) -> dict[str, Tensor]:
        seen.append(switches())
        return inner(trainer.method, batch, progress)

    before = switches()
    trainer.method.loss = loss  # type: ignore[method-assign]
    trainer.optimise([batch], Progress(0, 10, 10))
    assert seen == [(True, True, True)]
    assert switches() == before
    trainer.method.loss = lambda *_: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        trainer.optimise([batch], Progress(0, 10, 10))
    assert switches() == before


# --- torch.compile -------------------------------------------------------------------------------------


def test_a_compiled_encoder_gives_the_same_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    name, part = "full/mini-full", "encoder"
    real, traced = torch.compile, []

    def traces(function: Any) -> Any:  # traced as always; the kernels are torch's own, which need no compiler
        traced.append(function)
        return real(function, backend="eager")

    monkeypatch.setattr(torch, "compile", traces)
    (plain, batch), (compiled, _) = trainer_of(name), trainer_of(name, precision__compile=[part])
    names = set(compiled.method.state_dict())
    for progress in phases(plain):
        expected, found = (t.optimise([batch], progress) for t in (plain, compiled))
        torch.testing.assert_close(dict(found), dict(expected), rtol=1e-4, atol=1e-6)
    assert traced
    assert set(compiled.method.state_dict()) == names
    assert all("forward" not in vars(m) for m in compiled.method.modules())


def test_compiled_refinement_gives_the_same_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "_compiled", lambda function: function)
    generator = torch.Generator().manual_seed(0)
    images, maps = (torch.rand(2, c, 40, 37, generator=generator) for c in (3, 5))
    with compiling.compiling({"par"}):
        found = par(images, maps)
    torch.testing.assert_close(found, par(images, maps), rtol=1e-4, atol=1e-6)


def test_without_a_compiler_nothing_is_trained(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_: None)
    values = ("--set", 'precision.compile=["encoder"]')
    assert wsss("run", RECIPE, *ONE, *values, "--data-root", small, "--results", tmp_path) == 2
    said = capsys.readouterr().err
    assert "needs a C++ compiler" in said
    assert "precision.compile" in said
    assert not list(tmp_path.rglob("history.csv"))


# --- deterministic kernels -----------------------------------------------------------------------------


def test_operations_without_a_deterministic_kernel_are_named(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = type(build(RECIPE))
    inner = kind.loss

    def loss(self: Any, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        torch.zeros(2).put_(torch.tensor([0]), torch.ones(1))  # which has none anywhere
        warnings.warn("another matter", stacklevel=1)
        return inner(self, batch, progress)

    monkeypatch.setattr(kind, "loss", loss)
    command = ("run", RECIPE, *SHORT, *ONE, "--data-root", small, "--results")
    with pytest.warns(UserWarning, match="another matter"):
        assert wsss(*command, tmp_path / "with", "--deterministic") == 0
    assert wsss(*command, tmp_path / "without") == 0
    strict, free = only(tmp_path / "with"), only(tmp_path / "without")
    assert strict.data["hardware"]["deterministic"] is True
    assert strict.data["notes"][-1].endswith("for want of such a kernel: put_")
    assert "put_" in capsys.readouterr().err
    assert free.data["hardware"]["deterministic"] is False
    assert not any("put_" in note for note in free.data.get("notes", ()))
    assert not torch.are_deterministic_algorithms_enabled()
    assert strict.digest == free.digest


def test_cross_entropies_are_summed_in_order_where_that_is_asked_for() -> None:
    trainer, batch = trainer_of("blpseg/mini-scribble")
    torch.manual_seed(0)
    expected = trainer.method(batch, Progress(0, 10, 10))
    torch.manual_seed(0)
    with Arithmetic(trainer.method, PrecisionSpec(), CPU, deterministic=True):
        found = trainer.method(batch, Progress(0, 10, 10))
    torch.testing.assert_close(dict(found), dict(expected))


def test_hardware_says_which_switches_are_on() -> None:
    with Arithmetic(nn.Identity(), PrecisionSpec(), CPU, deterministic=True):
        assert hardware(CPU)["deterministic"] is True
    assert hardware(CPU)["deterministic"] is False


# --- float16 -------------------------------------------------------------------------------------------


class _Overflow(torch.autograd.Function):
    """Identity, whose gradient is infinite as often as it is told."""

    left = 0.0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        _Overflow.left -= 1
        return gradient * math.inf if _Overflow.left >= 0 else gradient


def overflowing(trainer: Trainer, times: float, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type(trainer.method)
    inner = kind.loss
    _Overflow.left = times

    def loss(self: Any, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        return {key: _Overflow.apply(term) for key, term in inner(self, batch, progress).items()}

    monkeypatch.setattr(kind, "loss", loss)


def test_the_scale_and_skipped_steps_are_counted_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, batch = trainer_of("full/mini-full", tmp_path, amp="fp16")
    overflowing(trainer, 3, monkeypatch)
    for _ in range(5):
        trainer.optimise([batch], Progress(0, 10, 10))
    assert trainer.scaler.read(5) == {"amp.scale": 2.0**13, "amp.skipped": 3.0}
    trainer.save()
    other, _ = trainer_of("full/mini-full", tmp_path, amp="fp16")
    other.resume()
    assert other.scaler.read(5) == trainer.scaler.read(5)
    old = trainer.scaler.state_dict()
    del old["skipped"]  # as checkpoints were before
    other.scaler.load_state_dict(old)
    other.optimise([batch], Progress(0, 10, 10))
    assert other.scaler.read(6) == {"amp.scale": 2.0**13, "amp.skipped": 0.0}


def test_a_scale_that_falls_for_ever_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, batch = trainer_of("full/mini-full", amp="fp16")
    overflowing(trainer, math.inf, monkeypatch)
    trainer.optimise([batch], Progress(0, 10, 10))
    trainer.scaler.load_state_dict(trainer.scaler.state_dict() | {"scale": 2.0**-13})
    for _ in range(2):
        trainer.scaler.read(1)
        trainer.optimise([batch], Progress(0, 10, 10))
    with pytest.raises(NonFiniteLossError, match="3 steps were skipped"):
        trainer.scaler.read(3)


def test_history_and_trackers_have_the_scale(small: Path, tmp_path: Path) -> None:
    command = ("run", RECIPE, *SHORT, *ONE, "--set", "amp=fp16", "--data-root", small, "--results", tmp_path)
    assert wsss(*command) == 0
    row = read_rows(only(tmp_path).path / "history.csv")[-1]
    assert float(row["amp.scale"]) > 1
    assert float(row["amp.skipped"]) >= 0
    from harness.engine.training import Status

    status = Status(10, 10, 1.0, {"seg": 1.0}, noted={"amp.scale": 4.0, "note.kept": 0.5})
    assert _values(status)["train/amp.scale"] == 4.0
    assert _values(replace(status, noted={})).keys() == _values(status).keys() - {
        "train/amp.scale",
        "train/note.kept",
    }


def test_a_loss_term_cannot_take_the_columns(tmp_path: Path) -> None:
    trainer, batch = trainer_of("full/mini-full")
    trainer.method.loss = lambda *_: {"amp.scale": torch.ones((), requires_grad=True)}  # type: ignore
    with pytest.raises(UserError, match=r"amp\.scale"):
        trainer.optimise([batch], Progress(0, 10, 10))


def test_a_table_of_precision_is_read_from_a_file() -> None:
    values = {"tf32": "off", "compile": ["par"]}
    assert load(PrecisionSpec, values, "here") == PrecisionSpec(tf32="off", compile=("par",))
