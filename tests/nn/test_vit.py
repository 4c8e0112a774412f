"""Transformer encoders: tokens on the grid, positions, class and mask tokens, weights, mistakes."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from harness.basics.errors import UserError
from harness.data.base import DatasetInfo
from harness.engine.build import Build
from harness.nn.vit import TokenStage, create_vit, resize_positions

NAME = "vit_tiny_patch16_224"
CROP = (64, 96)


@pytest.fixture(scope="module")
def timms() -> torch.nn.Module:
    torch.manual_seed(0)
    network = timm.create_model(NAME, num_classes=7)
    with torch.no_grad():
        network.cls_token.normal_(std=0.5)
        network.pos_embed.normal_(std=0.5)
    return network.eval()


@pytest.fixture(scope="module")
def file(timms, tmp_path_factory):
    """timm's weights, classifier included."""
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(timms.state_dict(), path)
    return path


def test_tokens_at_the_size_of_pretraining_are_timms(timms, file):
    encoder = create_vit(NAME, str(file), crop=(448, 448), aux_layer=-3).eval()
    assert (encoder.channels, encoder.patch, encoder.depth) == (192, 16, 12)
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        tokens = encoder(images)
        expected, (aux, raw) = timms.forward_intermediates(images, indices=[9, 11], norm=False)
    torch.testing.assert_close(tokens.cls, expected[:, 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(tokens.final.flatten(2).mT, expected[:, 1:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(tokens.aux, aux, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(tokens.raw, raw, rtol=1e-4, atol=1e-4)


def test_positions_are_resized_bicubically_without_antialiasing_and_the_class_slot_stays():
    torch.manual_seed(0)
    table = torch.randn(1, 1 + 14 * 14, 6)
    assert resize_positions(table, (14, 14), (14, 14)) is table
    for grid in ((28, 28), (4, 6), (7, 14)):
        resized = resize_positions(table, (14, 14), grid)
        assert torch.equal(resized[:, 0], table[:, 0])
        patches = table[:, 1:].reshape(1, 14, 14, 6).permute(0, 3, 1, 2)
        expected = F.interpolate(patches, grid, mode="bicubic", align_corners=False, antialias=False)
        torch.testing.assert_close(resized[:, 1:].mT.unflatten(2, grid), expected)
        smoothed = F.interpolate(patches, grid, mode="bicubic", align_corners=False, antialias=True)
        assert (expected - smoothed).abs().max() > 1e-2


def test_a_frozen_table_keeps_the_grid_of_pretraining_a_trained_one_takes_the_crops(file):
    frozen = create_vit(NAME, str(file), crop=CROP)
    assert frozen.pos_embed.shape == (1, 197, 192)
    assert not frozen.pos_embed.requires_grad
    trained = create_vit(NAME, str(file), crop=CROP, position="trained", class_token="apart")
    assert trained.pos_embed.shape == (1, 1 + 4 * 6, 192)
    assert trained.pos_embed.requires_grad
    torch.testing.assert_close(trained.pos_embed, resize_positions(frozen.pos_embed, (14, 14), (4, 6)))
    # At the crop's size both add the same; elsewhere the trained one is resized from the crop's grid.
    images = torch.randn(1, 3, *CROP)
    travelling = create_vit(NAME, str(file), crop=CROP, position="trained")
    with torch.no_grad():
        torch.testing.assert_close(frozen.eval()(images).final, travelling.eval()(images).final)
        assert (frozen(images[..., :64]).final - travelling(images[..., :64]).final).abs().max() > 1e-4


@pytest.mark.parametrize("class_token", ["travels", "apart"])
@pytest.mark.parametrize(("size", "grid"), [((64, 96), (4, 6)), ((75, 100), (4, 6)), ((16, 33), (1, 2))])
def test_the_grid_holds_whole_patches_and_does_not_see_the_rest(file, class_token, size, grid):
    encoder = create_vit(NAME, str(file), crop=CROP, class_token=class_token).eval()
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        tokens = encoder(images)
        for maps in (tokens.final, tokens.aux, tokens.raw):
            assert maps.shape == (2, 192, *grid)
        assert (tokens.cls is None) == (class_token == "apart")
        cut = encoder(images[..., : 16 * grid[0], : 16 * grid[1]])
        torch.testing.assert_close(tokens.final, cut.final)
        torch.testing.assert_close(encoder.norm(tokens.raw.movedim(1, -1)).movedim(-1, 1), tokens.final)


def test_the_auxiliary_layer_is_counted_from_either_end(file):
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        tokens = {a: create_vit(NAME, str(file), crop=CROP, aux_layer=a).eval()(images) for a in (-3, 9, 11)}
    assert torch.equal(tokens[-3].aux, tokens[9].aux)
    assert torch.equal(tokens[11].aux, tokens[11].raw)
    assert (tokens[9].aux - tokens[9].raw).abs().max() > 1e-2


def test_masked_patches_are_not_seen_and_the_mask_token_learns(file):
    encoder = create_vit(NAME, str(file), crop=CROP, mask_token=True, class_token="apart").eval()
    images = torch.randn(2, 3, *CROP)
    mask = torch.rand(2, 4, 6) < 0.5
    pixels = mask.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None]
    other = torch.where(pixels, torch.randn_like(images), images)
    with torch.no_grad():
        assert torch.equal(encoder(images, mask).final, encoder(other, mask).final)
        assert (encoder(images).final - encoder(images, mask).final).abs().max() > 1e-3
    encoder(images, mask).final.square().mean().backward()
    assert encoder.mask_token.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="without a mask token"):
        create_vit(NAME, crop=CROP)(images, mask)


def test_a_class_token_that_stays_apart_has_no_effect(file):
    encoder = create_vit(NAME, str(file), crop=CROP, class_token="apart").eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        before = encoder(images).final
        encoder.cls_token += 1
        encoder.pos_embed[:, 0] += 1
        assert torch.equal(encoder(images).final, before)
        with pytest.raises(ValueError, match="does not travel"):
            encoder(images).class_token  # noqa: B018


def test_drop_path_grows_linearly_and_acts_in_training_only():
    torch.manual_seed(0)
    encoder = create_vit("mini_vit", crop=CROP, drop_path=0.3)
    rates = [getattr(b.drop_path1, "drop_prob", 0.0) for b in encoder.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert not torch.equal(encoder(images).final, encoder(images).final)
        encoder.eval()
        assert torch.equal(encoder(images).final, encoder(images).final)


def test_the_miniature_has_the_interface_of_the_others():
    encoder = create_vit("mini_vit", "none", crop=(64, 64), aux_layer=-2)
    assert (encoder.channels, encoder.patch, encoder.depth) == (96, 8, 4)
    tokens = encoder(torch.randn(2, 3, 71, 90))
    assert tokens.final.shape == (2, 96, 8, 11)
    assert tokens.cls.shape == (2, 96)


def test_weights_of_every_kind(file, tmp_path, monkeypatch):
    for kind in (str(file), "packaged", "none"):
        name = "mini_vit" if kind == "packaged" else NAME
        assert create_vit(name, kind, crop=CROP).training
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repository, name: str(tagged))
    tagged = tmp_path / "model.safetensors"
    whole = timm.create_model(NAME)
    save_file(whole.state_dict(), tagged)
    tag = timm.list_pretrained(f"{NAME}.*")[0].partition(".")[2]
    loaded = create_vit(NAME, tag, crop=CROP)
    assert torch.equal(loaded.blocks[3].mlp.fc1.weight, whole.blocks[3].mlp.fc1.weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "vit_tinny_patch16_224"}, "did you mean 'vit_tiny_patch16_224'"),
        ({"name": "resnet18"}, "not a plain vision transformer|not a vision transformer"),
        ({"name": "vit_base_patch16_clip_224"}, "not a plain vision transformer"),
        ({"name": NAME, "aux_layer": 12}, "12 blocks, not one numbered 12"),
        ({"name": NAME, "weights": "no_such_tag"}, "no weights 'no_such_tag'"),
        ({"name": NAME, "weights": "nowhere/net.pth"}, "not found"),
        ({"name": NAME, "weights": "packaged"}, "no packaged weights"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(UserError, match=message), torch.device("meta"):
        create_vit(**options, crop=CROP)


def test_a_file_of_another_transformer_is_refused(file):
    with pytest.raises(UserError, match="other shapes for"):
        create_vit("vit_small_patch16_224", str(file), crop=CROP)


def build(backbone: str, weights: str = "none") -> Build:
    info = DatasetInfo("toy", "Toy", ("a", "b"), ((0, 0, 0),) * 2, {"train": 1}, 0, "toy")
    return Build(info, "image", CROP, backbone, weights)


@pytest.mark.parametrize("size", [(224, 224), (70, 100)])
def test_as_an_encoder_it_is_one_stage_of_last_tokens(file, size):
    encoder = build(NAME, str(file)).last_stage(16).eval()
    assert isinstance(encoder, TokenStage)
    assert (encoder.channels, encoder.strides) == ((192,), (16,))
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        (stage,) = encoder(images)
        expected = create_vit(NAME, str(file), crop=CROP).eval()(images).final
    assert stage.shape == (2, 192, size[0] // 16, size[1] // 16)
    assert torch.equal(stage, expected)


def test_another_backbone_keeps_its_stages():
    assert build("mini_cnn").last_stage(4).strides == (4, 4, 4)


@pytest.mark.parametrize(
    ("name", "stride", "message"),
    [
        ("mini_vit", 16, "patches of 8 pixels, so its stride is not 16"),
        ("vit_tiny_patch16_24", 16, "unknown backbone"),
        ("mini_cnn", 16, "no output stride 16"),
    ],
)
def test_a_last_stage_that_a_backbone_has_not_is_refused(name, stride, message):
    with pytest.raises(UserError, match=message):
        build(name).last_stage(stride)
