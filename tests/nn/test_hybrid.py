"""The hybrid: pretrained convolutional stages below transformer blocks that start from nothing."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from harness.basics.errors import UserError
from harness.basics.registry import DATASETS
from harness.engine.build import Build
from harness.engine.networks import build_method
from harness.nn.vit import ViTEncoder, create_vit, untrained
from harness.recipes.resolving import resolve

NAME = "lite0_hybrid"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """ImageNet-like weights of the network below."""
    torch.manual_seed(0)
    whole = timm.create_model("efficientnet_lite0")
    path = tmp_path_factory.mktemp("weights") / "lite0.pth"
    torch.save(whole.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def hybrid(file) -> ViTEncoder:
    return create_vit(NAME, str(file), crop=(64, 64), aux_layer=0)


def test_weights_are_those_of_the_network_below_and_blocks_pass_on_what_it_sees(hybrid, file):
    state = torch.load(file)
    patches = hybrid.patch_embed.proj
    assert torch.equal(patches.trunk.conv_stem.weight, state["conv_stem.weight"])
    hybrid.eval()
    images = torch.randn(2, 3, 70, 100)
    with torch.no_grad():
        tokens = hybrid(images)
        seen = patches(images)
        assert torch.equal(seen, patches(images[..., :64, :96]))  # a remainder is not seen
    assert tokens.final.shape == (2, 192, 4, 6)
    assert tokens.class_token.shape == (2, 192)
    assert torch.equal(tokens.aux, tokens.raw)
    assert (tokens.raw - seen).abs().max() < 0.2 < seen.std()  # but for the position table
    assert hybrid.patch == 16


def test_a_step_reaches_every_part_and_moves_no_statistics(hybrid):
    hybrid.train()
    norms = [m for m in hybrid.patch_embed.proj.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [m.running_mean.clone() for m in norms]
    tokens = hybrid(torch.randn(2, 3, 64, 64))
    (tokens.final.square().mean() + tokens.class_token.square().mean()).backward()
    assert len(norms) > 40
    assert all(torch.equal(m.running_mean, b) for m, b in zip(norms, before, strict=True))
    reached = {name for name, p in hybrid.named_parameters() if p.grad is not None}
    missed = {name for name, p in hybrid.named_parameters() if p.requires_grad} - reached
    assert not missed
    hybrid.zero_grad()


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0"])
def test_weights_of_another_network_are_refused(name, tmp_path):
    torch.save(timm.create_model(name).state_dict(), tmp_path / "x.pth")
    with pytest.raises(UserError, match="another network than efficientnet_lite0"):
        create_vit(NAME, str(tmp_path / "x.pth"), crop=(64, 64))


def test_no_other_encoder_has_parts_that_weights_are_not_for():
    assert untrained(create_vit("mini_vit", "packaged", crop=(64, 64))) == set()


@pytest.mark.parametrize(
    ("recipe", "slow", "fast"),
    [
        ("toco/mini-image", 1.0, 10.0),
        ("cam/mini-image-vit", 0.1, 1.0),
        ("full/mini-full-vit", 0.1, 1.0),
        ("dskd_gc/mini-image", 1.0, 10.0),
    ],
)
def test_what_starts_from_nothing_learns_as_fast_as_the_head(recipe, slow, fast):
    stride = {} if recipe.startswith(("toco", "dskd")) else {"config.output_stride": 16}
    resolved = resolve(recipe, {"backbone": NAME, "weights": "none", **stride})
    with torch.device("meta"):
        method = build_method(resolved, torch.device("meta"), 0)
    groups = method.parameter_groups()
    rates = {id(p): group.get("lr_scale", 1.0) for group in groups for p in group["params"]}
    encoder = next(m for m in method.modules() if isinstance(m, ViTEncoder))
    trunk = encoder.patch_embed.proj.trunk
    assert {rates[id(p)] for p in trunk.parameters()} == {slow}
    above = [*encoder.blocks.parameters(), *encoder.patch_embed.proj.project.parameters()]
    assert {rates[id(p)] for p in above} == {fast}
    assert len(rates) == sum(len(group["params"]) for group in groups)


def test_as_an_encoder_it_has_one_stage():
    build = Build(DATASETS.get("mini").info, "image", (64, 64), NAME)
    encoder = build.last_stage(16)
    assert (encoder.channels, encoder.strides) == ((192,), (16,))
    with pytest.raises(UserError, match="patches of 16 pixels"):
        build.last_stage(8)
    with pytest.raises(UserError, match="is a vision transformer, and this method needs"):
        build.encoder()
