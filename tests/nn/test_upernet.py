"""Pyramid pooling and the top-down decoder against the authors' numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from harness.nn.upernet import PyramidPooling, UPerDecoder

TOLERANCE = {"rtol": 0, "atol": 2e-5}


@pytest.fixture
def data(golden):
    with np.load(golden / "blpseg" / "ppm_decoder.npz") as file:
        return {k: torch.from_numpy(file[k]) for k in file.files}


@pytest.fixture
def modules(data):
    ppm, decoder = PyramidPooling(16, 8, dropout=0.0), UPerDecoder([4, 8, 12], 8)
    for name, module in (("ppm", ppm), ("decoder", decoder)):
        state = {k.removeprefix(f"{name}."): v for k, v in data.items() if k.startswith(f"{name}.")}
        module.load_state_dict(state)
    return ppm, decoder


def stages(data):
    return [data[k] for k in ("l1", "l2", "l3")]


def test_eval_mode_matches(data, modules):
    ppm, decoder = (m.eval() for m in modules)
    torch.testing.assert_close(ppm(data["l4"]), data["ppm_eval"], **TOLERANCE)
    torch.testing.assert_close(ppm(data["l4_big"]), data["ppm_big_eval"], **TOLERANCE)
    out = decoder(stages(data), data["ppm_eval"])
    torch.testing.assert_close(out, data["decoder_eval"], **TOLERANCE)


def test_train_mode_matches(data, modules):
    ppm, decoder = (m.train() for m in modules)
    torch.testing.assert_close(ppm(data["l4_big"]), data["ppm_big_train_nodrop"], **TOLERANCE)
    out = decoder(stages(data), data["ppm_eval"])
    torch.testing.assert_close(out, data["decoder_train"], **TOLERANCE)


def test_the_usual_upernet_differs_where_it_is_said_to():
    usual = PyramidPooling(16, 8, kernel=3, branch_relu=True, align_corners=False)
    assert usual.bottleneck[0].kernel_size == (3, 3)
    assert all(isinstance(stage[-1], nn.ReLU) for stage in usual.stages)
    assert not any(isinstance(stage[-1], nn.ReLU) for stage in PyramidPooling(16, 8).stages)
    x = torch.randn(2, 16, 5, 7, generator=torch.Generator().manual_seed(0))
    assert usual(x).shape == (2, 8, 5, 7)


@pytest.mark.parametrize("levels", [1, 2, 4])
def test_any_number_of_levels(levels):
    channels = [4 * (i + 1) for i in range(levels)]
    decoder = UPerDecoder(channels, 6)
    maps = [torch.randn(2, c, 33 // 2**i, 17 // 2**i) for i, c in enumerate(channels)]
    out = decoder(maps, torch.randn(2, 6, 2, 1))
    assert out.shape == (2, 6, 33, 17)
    out.sum().backward()
    assert all(p.grad is not None for p in decoder.parameters())
