"""What is looked up for the meta device is what torch works out: shapes, strides, gradients and errors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from harness.engine import shapes
from harness.engine.shapes import ShapeTable


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(shapes, "_known", {})


class Network(nn.Module):
    """Operations of every kind: with gradients, in place, views, several results, lists."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = self.norm(self.stem(x)).relu_()
        small = F.interpolate(x, scale_factor=0.5, mode="bicubic")
        tokens = self.block(small.flatten(2).mT)
        values, places = tokens.topk(2, dim=1)
        first, second = x.to(memory_format=torch.channels_last).split(4, 1)
        return [x, small, tokens, values, places, first, second, torch.stack([first, second]).half()]


def described(results):
    return [(r.shape, r.stride(), r.dtype, r.device, r.requires_grad, r.is_leaf) for r in results]


@pytest.mark.parametrize("training", [True, False])
def test_the_same_as_without_whether_looked_up_or_not(training):
    with torch.device("meta"):
        network, other = Network().train(training), Network().train(training)
        pictures = [torch.zeros(2, 3, side, 16) for side in (16, 24, 16)]
    for images in pictures:
        expected = described(network(images))
        for _ in range(2):
            with ShapeTable():
                assert described(network(images)) == expected
                assert described(other(images)) == expected
    with ShapeTable():
        network(pictures[0])[2].sum().backward()
    assert network.stem.weight.grad.shape == network.stem.weight.shape


def test_numbers_that_are_equal_in_python_are_told_apart():
    with ShapeTable(), torch.device("meta"):
        whole, real = torch.full((2,), 1), torch.full((2,), 1.0)
        assert (whole.dtype, real.dtype, torch.full((2,), True).dtype) == (
            torch.long,
            torch.float32,
            torch.bool,
        )
        assert (whole * 2).dtype == torch.long
        assert (whole * 2.0).dtype == torch.float32


def test_errors_are_raised_each_time_and_other_devices_compute():
    with ShapeTable():
        for _ in range(2):
            with pytest.raises(RuntimeError):
                torch.ones(2, 3, device="meta") @ torch.ones(2, 3, device="meta")
        assert torch.equal(torch.ones(2) + torch.ones(2), torch.full((2,), 2.0))
        assert torch.equal(torch.ones(2) + 2 * torch.ones(2), torch.full((2,), 3.0))
        kept = torch.zeros(3, device="meta")
        assert kept.view(3, 1)._base is kept


def test_what_fills_its_argument_gives_that_argument_and_what_moves_its_axes_moves_them():
    with ShapeTable(), torch.device("meta"):
        for _ in range(3):
            x = torch.empty(2, 3)
            assert x.add_(1).clamp_(0, 6).normal_() is x
            assert x.unsqueeze_(0).shape == (1, 2, 3)
            assert x.transpose_(1, 2).shape == (1, 3, 2)
            with pytest.raises(RuntimeError):  # the sum does not fit into its argument
                torch.empty(2, 3).add_(torch.empty(5, 2, 3))
            with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
                torch.empty(2, requires_grad=True).add_(1)
            exponential = torch.empty(2, 3, requires_grad=True).exp()
            exponential.add_(1)
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                exponential.sum().backward()


def test_no_more_is_kept_than_is_allowed(monkeypatch):
    monkeypatch.setattr(shapes, "_MOST", 5)
    with ShapeTable():
        for size in range(1, 20):
            torch.zeros(size, device="meta") + 1
    assert 0 < len(shapes._known) <= 5
