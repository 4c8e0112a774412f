"""The miniature encoder, its pretraining, and the weights that ship."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
import torch.nn.functional as F

from harness.basics.errors import UserError
from harness.basics.files import sha256_of
from harness.basics.reading import read_json
from harness.data.sets import mini_scenes
from harness.engine import mini_pretraining
from harness.nn.encoders import create_encoder
from harness.nn.mini_encoder import ConvolutionalPatches, MiniCNN, TokenClassifier, mini_vit
from harness.nn.vit import create_vit
from harness.nn.weights import PRETRAINED
from methods.parts.cam import activation_maps

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


TILES = torch.arange(4).view(2, 2).repeat_interleave(7, 0).repeat_interleave(7, 1).reshape(1, -1)


def test_every_parameter_of_the_transformer_receives_a_gradient() -> None:
    torch.manual_seed(0)
    model = TokenClassifier(mini_vit(), 6)
    logits = model(torch.randn(2, 3, 112, 112), TILES.expand(2, -1))
    sum(z.square().mean() for z in logits).backward()
    missed = [n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    assert missed == []
    assert sum(p.numel() for p in model.encoder.parameters()) < 0.6e6


def test_the_transformers_classifiers_read_the_class_token_and_every_tiles_maxima() -> None:
    torch.manual_seed(0)
    model = TokenClassifier(mini_vit(), 6).eval()
    images = torch.randn(2, 3, 112, 112)
    tiles = torch.randint(0, 4, (2, 196))
    with torch.no_grad():
        by_class, channels, scores, before = model(images, tiles)
        tokens = model.tokens(images)
    torch.testing.assert_close(by_class, model.class_head(tokens.cls))
    last, aux = tokens.final.flatten(2).mT, tokens.aux.flatten(2).mT
    for picture in range(2):
        for tile in range(4):
            own = tiles[picture] == tile
            for found, head, value in (
                (channels, model.channel_head, last[picture, own].amax(0)),
                (before, model.aux_head, aux[picture, own].amax(0)),
            ):
                torch.testing.assert_close(found[picture, tile, 1:], head(value), rtol=1e-4, atol=1e-5)
            largest = model.score_head(last[picture, own]).amax(0)
            torch.testing.assert_close(scores[picture, tile, 1:], largest, rtol=1e-4, atol=1e-5)
    assert all((z[..., 0] == 0).all() for z in (channels, scores, before)), "nothing scores 0"


def test_a_single_picture_is_decided_as_one_tile_and_may_hold_nothing() -> None:
    torch.manual_seed(0)
    model = TokenClassifier(mini_vit(), 6).eval()
    images = torch.randn(3, 3, 56, 56)
    with torch.no_grad():
        scores = model(images, torch.zeros(3, 49, dtype=torch.int64))[1][:, 0, 1:]
        assert model.decide(images).tolist() == scores.argmax(1).where(scores.amax(1) > 0, 6).tolist()
        model.channel_head.weight.zero_()
        assert model.decide(images).tolist() == [6, 6, 6]


def test_mosaics_hold_four_whole_pictures_and_say_whose_a_patch_is() -> None:
    torch.manual_seed(0)
    images = torch.arange(1.0, 13.0)[:, None, None, None] + torch.rand(12, 3, 56, 56) / 2
    joined, tiles = mini_pretraining.mosaics(images, 8)
    assert joined.shape == (3, 3, 112, 112)
    assert tiles.shape == (3, 14 * 14)
    for index, (mosaic, tile) in enumerate(zip(joined, tiles, strict=True)):
        owner = tile.view(14, 14).repeat_interleave(8, 0).repeat_interleave(8, 1)
        torch.testing.assert_close(mosaic[0].floor().long(), 4 * index + owner + 1)
        expected = images[4 * index : 4 * index + 4].sum()
        torch.testing.assert_close(mosaic.sum(), expected)
    assert len({tuple(t.tolist()) for t in tiles}) == 3, "each is rolled for itself"


def test_the_loss_of_mosaics_falls_for_right_answers_alone() -> None:
    """A classifier that knows every tile is nearly without loss; one that mistakes nothing is not."""

    class Oracle(TokenClassifier):
        answers: torch.Tensor

        def forward(self, images: torch.Tensor, tiles: torch.Tensor) -> Any:
            by_tile = 9.0 * F.one_hot((self.answers + 1) % 7, 7).float().view(-1, 4, 7)
            tags = by_tile.amax(1)[:, 1:] * 2 - 9
            return tags, by_tile, by_tile, by_tile

    images, classes = torch.randn(8, 3, 56, 56), torch.tensor([0, 6, 3, 6, 5, 5, 1, 2])
    oracle = Oracle(mini_vit(), 6)
    losses = {}
    for name, answers in (("right", classes), ("nothing found", classes.where(classes != 6, 0))):
        oracle.answers = answers
        losses[name] = float(mini_pretraining.mosaic_loss(oracle, images, classes))
    assert losses["right"] < 1.2  # label smoothing leaves some
    assert losses["nothing found"] > losses["right"] + 4


@pytest.mark.parametrize("name", sorted(TABLE))
def test_shipped_weights_are_the_listed_ones(name: str) -> None:
    row = TABLE[name]
    path = PRETRAINED / row["file"]
    assert sha256_of(path) == row["sha256"]
    with safetensors.safe_open(path, "pt") as stream:
        stored = json.loads(stream.metadata()["pretraining"])
    assert stored == {key: value for key, value in row.items() if key not in ("file", "sha256")}
    assert row["generator"] == mini_scenes.SCENES_VERSION
    assert row["steps"] == mini_pretraining.PLANS[name].steps, "made with the present defaults"
    assert f"| {row['seed']} | `{row['command']}` |" in (PRETRAINED / "README.md").read_text(encoding="utf-8")
    assert f"`{row['sha256']}`" in (PRETRAINED / "README.md").read_text(encoding="utf-8")


def test_shipped_weights_are_small() -> None:
    assert sum(p.stat().st_size for p in PRETRAINED.glob("*.safetensors")) < 3e6
    assert {p.name for p in PRETRAINED.glob("*.safetensors")} == {row["file"] for row in TABLE.values()}


@pytest.mark.parametrize("name", sorted(TABLE))
def test_shipped_features_tell_the_kinds_apart(name: str) -> None:
    """A nearest-centre classifier on pooled features of the shipped encoder, on new pictures."""
    images, kinds = mini_pretraining.pretraining_pictures(240, seed=1234)
    normalised = mini_pretraining.normalised_pictures(images)
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


def test_shipped_patch_tokens_keep_evidence_where_it_is_seen() -> None:
    """A classifier learnt from single pictures finds a class of a mosaic in the tile that has it.

    Of the weights before, pretrained on whole pictures, a third of the evidence lay there and half of the
    largest scores.
    """
    images, kinds = mini_pretraining.pretraining_pictures(240, seed=1234, stream="single_val", scattered=True)
    images = mini_pretraining.normalised_pictures(images)
    encoder = create_vit("mini_vit", "packaged", crop=(56, 56)).eval()
    tags = F.one_hot(kinds, 7)[:, :6].float()
    torch.manual_seed(0)
    joined, tiles = mini_pretraining.mosaics(images, 8)
    with torch.no_grad():
        pooled = encoder(images).final.amax((2, 3))
        tokens = encoder(joined).final
    weight = torch.nn.Parameter(torch.randn(6, 96) / 10)
    optimiser = torch.optim.AdamW([weight], lr=5e-3)
    for _ in range(300):
        optimiser.zero_grad()
        F.multilabel_soft_margin_loss(pooled @ weight.T, tags).backward()
        optimiser.step()
    largest, share = [], []
    for maps, tile, inside in zip(
        activation_maps(tokens, weight).flatten(2), tiles, kinds.view(-1, 4), strict=True
    ):
        for position, kind in enumerate(inside.tolist()):
            if kind < 6 and (inside == kind).sum() == 1:
                evidence = maps[kind].relu()
                largest.append(float(tile[maps[kind].argmax()] == position))
                share.append(float(evidence[tile == position].sum() / evidence.sum().clamp(min=1e-6)))
    assert len(largest) > 100
    assert np.mean(largest) > 0.85
    assert np.mean(share) > 0.6


@pytest.mark.parametrize("encoder", ["mini_cnn", "mini_vit"])
def test_pretraining_is_reproducible_and_leaves_torch_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: str
) -> None:
    monkeypatch.setattr(mini_pretraining, "HELD_OUT_PICTURES", 24)
    monkeypatch.setitem(
        mini_pretraining.PLANS, encoder, replace(mini_pretraining.PLANS[encoder], pictures=48)
    )
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


@pytest.mark.parametrize(
    ("encoder", "count", "rate", "steps"), [("mini_cnn", 16, 5e-3, 40), ("mini_vit", 8, 2e-3, 60)]
)
def test_pretraining_learns(encoder: str, count: int, rate: float, steps: int) -> None:
    """A few pictures are learnt by heart."""
    plan = replace(mini_pretraining.PLANS[encoder], learning_rate=rate, batch=count)
    images, kinds = mini_pretraining.pretraining_pictures(count, seed=0, scattered=plan.scattered)
    torch.manual_seed(0)
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
    images, _ = mini_pretraining.pretraining_pictures(4, seed=0)
    changed = mini_pretraining.augmented(images)
    assert changed.shape == images.shape
    assert changed.min() >= 0
    assert changed.max() <= 255
    assert not torch.allclose(changed, images.float())
