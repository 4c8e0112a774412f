"""Constants that are kept: made in any state of torch, they serve in every other."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from harness.nn.constants import constant

CPU = torch.device("cpu")


def test_a_constant_is_kept_by_value_type_and_device() -> None:
    one = constant(((1, 2), (3, 4)), CPU)
    assert torch.equal(one, torch.tensor([[1.0, 2], [3, 4]]))
    assert constant(((1, 2), (3, 4)), CPU) is one
    assert constant(((1, 2), (3, 4)), CPU, torch.long).dtype == torch.long
    assert constant(((1, 2), (3, 4)), torch.device("meta")).is_meta


def test_one_of_an_evaluation_takes_part_in_training() -> None:
    with torch.inference_mode():
        factor = constant((0.125, 8.5), CPU)
    x = torch.ones(2, requires_grad=True)
    (x * constant((0.125, 8.5), CPU)).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, factor)


def test_one_of_an_estimate_without_values_is_not_kept() -> None:
    with FakeTensorMode():
        assert isinstance(constant((0.25, 7.5), CPU), FakeTensor)
    assert constant((0.25, 7.5), CPU).tolist() == [0.25, 7.5]


def test_a_program_holds_its_own() -> None:
    class Scaled(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * constant((0.5, 3.5), x.device, x.dtype)

    program = torch.export.export(Scaled(), (torch.ones(2),))
    assert program.module()(torch.ones(2)).tolist() == [0.5, 3.5]
    assert constant((0.5, 3.5), CPU).tolist() == [0.5, 3.5]
