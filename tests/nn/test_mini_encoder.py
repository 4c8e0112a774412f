"""The miniature encoder, its pretraining, and the weights that ship."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors
import torch

from harness.data import mini_scenes
from harness.errors import UserError
from harness.files import sha256_of
from harness.nn import mini_pretraining
from harness.nn.encoders import create_encoder
from harness.nn.mini_encoder import ConvolutionalPatches, MiniCNN, TokenClassifier, mini_vit
from harness.nn.vit import create_vit
from harness.nn.weights import PRETRAINED
from harness.reading import read_json

TABLE = read_json(PRETRAINED / "weights.json")


@pytest.mark.parametrize("output_stride", [4, 8])
@pytest.mark.parametrize("size", [(64, 64), (67, 90)])
def test_stages_have_the_announced_shapes(output_stride: int, size: tuple[int, int]) -> None:
    encoder = MiniCNN(output_stride)
    assert encoder.strides[-1] == output_stride
    stages = encoder(torch.randn(2, 3, *size))
    expected = [
        (2, c, *(-(-side // stride) for side in size))
        for c, stride in zip(encoder.channels, encoder.strides, strict=True)
    ]
    assert [tuple(s.shape) for s in stages] == expected


def test_both_strides_share_weights() -> None:
    MiniCNN(4).load_state_dict(MiniCNN(8).state_dict())


def test_impossible_stride_is_refused() -> None:
    with pytest.raises(UserError, match="stride 16"):
        MiniCNN(16)


def test_every_parameter_receives_a_gradient() -> None:
    encoder = MiniCNN()
    sum(stage.square().mean() for stage in encoder(torch.randn(2, 3, 64, 64))).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())


@pytest.mark.parametrize("size", [(64, 64), (71, 90)])
def test_patches_are_the_convolutional_encoders_second_stage(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    encoder = MiniCNN().train()
    encoder(torch.randn(4, 3, 64, 64))  # statistics that are not those of the start
    encoder.eval()
    patches = ConvolutionalPatches(24)
    patches.start_from(encoder)
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = patches.project(encoder(images[..., : size[0] // 8 * 8, : size[1] // 8 * 8])[1])
        torch.testing.assert_close(patches(images), expected, rtol=1e-4, atol=1e-5)


def test_every_parameter_of_the_transformer_receives_a_gradient() -> None:
    model = TokenClassifier(mini_vit(), 6)
    model(torch.randn(2, 3, 56, 56)).square().mean().backward()
    missed = [n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    assert missed == []
    assert sum(p.numel() for p in model.encoder.parameters()) < 0.6e6


@pytest.mark.parametrize("name", sorted(TABLE))
def test_shipped_weights_are_the_listed_ones(name: str) -> None:
    row = TABLE[name]
    path = PRETRAINED / row["file"]
    assert sha256_of(path) == row["sha256"]
    with safetensors.safe_open(path, "pt") as stream:
        stored = json.loads(stream.metadata()["pretraining"])
    assert stored == {key: value for key, value in row.items() if key not in ("file", "sha256")}
    assert row["generator"] == mini_scenes.VERSION


def test_shipped_weights_are_small() -> None:
    assert sum(p.stat().st_size for p in PRETRAINED.glob("*.safetensors")) < 3e6
    assert {p.name for p in PRETRAINED.glob("*.safetensors")} == {row["file"] for row in TABLE.values()}


@pytest.mark.parametrize("name", sorted(TABLE))
def test_shipped_features_tell_the_kinds_apart(name: str) -> None:
    """A nearest-centre classifier on pooled features of the shipped encoder, on new pictures."""
    images, kinds = mini_pretraining.pictures(240, seed=1234)
    normalised = mini_pretraining.normalised(images)
    with torch.no_grad():
        if name == "mini_vit":
            maps = create_vit(name, "packaged", crop=(56, 56)).eval()(normalised).final
        else:
            maps = create_encoder(name, "packaged").eval()(normalised)[-1]
        features = maps.mean((2, 3))
    half = len(kinds) // 2
    centres = torch.stack([features[:half][kinds[:half] == k].mean(0) for k in range(6)])
    found = torch.cdist(features[half:], centres).argmin(1)
    assert (found == kinds[half:]).float().mean() > 0.6  # chance is one in six


@pytest.mark.parametrize("encoder", ["mini_cnn", "mini_vit"])
def test_pretraining_is_reproducible_and_leaves_torch_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: str
) -> None:
    for name, value in {"PICTURES": 48, "HELD_OUT": 24}.items():
        monkeypatch.setattr(mini_pretraining, name, value)
    torch.manual_seed(99)
    expected = torch.rand(1)
    torch.manual_seed(99)
    lines: list[str] = []
    rows = [
        mini_pretraining.pretrain(encoder, out=tmp_path / str(i), seed=3, steps=3, report=lines.append)
        for i in range(2)
    ]
    assert torch.rand(1) == expected
    assert rows[0] == rows[1]
    assert rows[0]["sha256"] in lines[-1]
    assert sha256_of(tmp_path / "1" / f"{encoder}.safetensors") == rows[0]["sha256"]
    assert read_json(tmp_path / "0" / "weights.json") == {encoder: rows[0]}


@pytest.mark.parametrize(("encoder", "rate", "steps"), [("mini_cnn", 5e-3, 40), ("mini_vit", 1e-3, 30)])
def test_pretraining_learns(encoder: str, rate: float, steps: int) -> None:
    """Sixteen pictures are learnt by heart."""
    images, kinds = mini_pretraining.pictures(16, seed=0)
    torch.manual_seed(0)
    plan = replace(mini_pretraining.PLANS[encoder], learning_rate=rate)
    model = plan.model(6)
    mini_pretraining._train(model, images, kinds, plan, steps, lambda _: None)
    assert mini_pretraining.accuracy(model, images, kinds) > 0.8


@pytest.mark.parametrize(("name", "steps"), [("mini_cn", 1), ("mini_cnn", 0)])
def test_bad_requests_are_refused(name: str, steps: int, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        mini_pretraining.pretrain(name, out=tmp_path, steps=steps)


def test_magnification_keeps_the_middle_and_reflects_what_it_uncovers() -> None:
    torch.manual_seed(0)
    disc = (torch.hypot(*torch.meshgrid(*[torch.arange(56.0) - 27.5] * 2, indexing="ij")) < 9).float()
    images = (disc * 200).expand(6, 3, 56, 56).to(torch.uint8)
    with_zoom = mini_pretraining.augmented(images, (2.0, 2.0))
    without = mini_pretraining.augmented(images)
    bright = [(x > x.amin((1, 2, 3), keepdim=True) + 60).float().mean() for x in (with_zoom, without)]
    assert bright[0] > 2 * bright[1]
    small = mini_pretraining.augmented(images, (0.5, 0.5))
    assert small.shape == images.shape
    assert small.amin() >= 0


def test_augmentation_keeps_range_and_moves_pictures() -> None:
    torch.manual_seed(0)
    images, _ = mini_pretraining.pictures(4, seed=0)
    changed = mini_pretraining.augmented(images)
    assert changed.shape == images.shape
    assert changed.min() >= 0
    assert changed.max() <= 255
    assert not torch.allclose(changed, images.float())
