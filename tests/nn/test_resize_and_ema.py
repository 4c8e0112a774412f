"""Transposed resizing and averaged networks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from harness.nn.ema import ema_copy, ema_update
from harness.nn.resize import resize, resize_matrix, transposed_resize

sides = st.integers(1, 17)


@settings(max_examples=40, deadline=None)
@given(sides, sides, sides, sides, st.booleans())
def test_the_transpose_moves_a_resize_to_the_other_factor(height, width, h, w, corners):
    generator = torch.Generator().manual_seed(height * 1000 + width * 100 + h * 10 + w)
    large = torch.rand(2, height, width, generator=generator, dtype=torch.float64)
    small = torch.rand(2, h, w, generator=generator, dtype=torch.float64)
    up = resize(small[None], (height, width), align_corners=corners)[0]
    down = transposed_resize(large, (h, w), align_corners=corners)
    torch.testing.assert_close((large * up).sum(), (down * small).sum(), rtol=1e-12, atol=1e-12)


def test_rows_of_a_resize_sum_to_one_and_an_equal_size_is_untouched():
    for corners in (True, False):
        matrix = resize_matrix(321, 81, align_corners=corners, dtype=torch.float64)
        torch.testing.assert_close(matrix.sum(1), torch.ones(321, dtype=torch.float64))
    x = torch.rand(1, 2, 5, 5)
    assert resize(x, (5, 5), align_corners=True) is x


def test_an_average_follows_parameters_copies_buffers_and_takes_no_gradient():
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = ema_copy(network)
    assert not any(p.requires_grad for p in average.parameters())
    before = [p.clone() for p in average.parameters()]
    with torch.no_grad():
        for p in network.parameters():
            p.add_(torch.rand_like(p))
    network(torch.rand(8, 3))
    ema_update(average, network, 0.9)
    for old, moved, new in zip(before, average.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(moved, 0.9 * old + 0.1 * new)
    for own, other in zip(average.buffers(), network.buffers(), strict=True):
        assert torch.equal(own, other)
    ema_update(average, network, 1.0)
    ema_update(average, network, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(average.parameters(), network.parameters(), strict=True))


def test_an_average_refuses_another_network_and_an_impossible_momentum():
    network = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"1\.5 is not in"):
        ema_update(ema_copy(network), network, 1.5)
    with pytest.raises(ValueError, match=r"differ in parameters: \['bias'\]"):
        ema_update(nn.Linear(2, 2, bias=False), network, 0.5)
