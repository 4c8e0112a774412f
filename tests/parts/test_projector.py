"""The projection head against golden vectors, and what its last layer keeps."""

from __future__ import annotations

import numpy as np
import torch

from harness.nn.decoders import LargeFOV
from harness.nn.ema import ema_copy, ema_update
from methods.parts.projector import Projector


def by_formula(module: torch.nn.Module, order: np.ndarray) -> torch.nn.Module:
    """Parameter k of the given order: 0.05 sin(0.7 i + 0.3 k + 0.1 (i mod 17)) at flat position i."""
    state = module.state_dict()
    assert sorted(state) == sorted(map(str, order))
    for k, name in enumerate(map(str, order)):
        i = np.arange(state[name].numel())
        value = 0.05 * np.sin(0.7 * i + 0.3 * k + 0.1 * (i % 17))
        state[name] = torch.from_numpy(value.astype(np.float32)).view_as(state[name])
    module.load_state_dict(state)
    return module


@torch.no_grad()
def test_projector_and_large_field_of_view_are_the_authors(golden):
    with np.load(golden / "fsr" / "heads_formula_weights.npz") as gold:
        projector = by_formula(Projector(24, 64), gold["dino_param_order"])
        found = projector(torch.from_numpy(gold["dino_in"]))
        np.testing.assert_allclose(found, gold["dino_out"], rtol=0, atol=1e-7)
        decoder = by_formula(LargeFOV(24, 21), gold["largefov_param_order"])
        found = decoder(torch.from_numpy(gold["largefov_in"]))
        np.testing.assert_allclose(found, gold["largefov_out"], rtol=0, atol=1e-5)


def test_outputs_are_cosines_and_tokens_independent():
    torch.manual_seed(0)
    projector = Projector(12, 40, hidden=32, bottleneck=8)
    tokens = 5 * torch.randn(3, 7, 12)
    outputs = projector(tokens)
    assert outputs.shape == (3, 7, 40)
    assert outputs.abs().max() <= 1 + 1e-6
    chosen = torch.rand(3, 7) < 0.5
    torch.testing.assert_close(projector(tokens[chosen]), outputs[chosen])


def test_the_gain_takes_no_gradient_but_an_average_moves_it():
    projector = Projector(12, 40, hidden=32, bottleneck=8)
    projector(torch.randn(4, 12)).square().sum().backward()
    gain = projector.last_layer.weight_g
    assert gain.grad is None
    assert all(p.grad is not None for n, p in projector.named_parameters() if n != "last_layer.weight_g")
    average = ema_copy(projector)
    with torch.no_grad():
        gain += 1
    ema_update(average, projector, 0.9)
    torch.testing.assert_close(average.last_layer.weight_g, torch.full((40, 1), 1.1))


def test_initial_weights_are_dinos():
    torch.manual_seed(0)
    projector = Projector(64, 128)
    for index in (0, 2, 4):
        linear = projector.mlp[index]
        assert abs(linear.weight.std().item() - 0.02) < 1e-3
        assert (linear.bias == 0).all()
    assert (projector.last_layer.weight_g == 1).all()
    assert projector.last_layer.weight_v.abs().max() <= 1 / 256**0.5


def test_the_two_initial_weights_of_the_large_field_of_view():
    torch.manual_seed(0)
    kaiming, plain = (LargeFOV(64, 5, width=128, init=kind) for kind in ("kaiming", "torch"))
    assert abs(kaiming.conv7.weight.std().item() - (2 / (128 * 9)) ** 0.5) < 2e-3
    assert plain.conv7.weight.abs().max() <= 1 / (128 * 9) ** 0.5
    assert kaiming(torch.randn(2, 64, 14, 9)).shape == (2, 5, 14, 9)
