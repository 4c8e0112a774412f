"""Backbones: names, strides, dilations, weights of every kind, and mistakes a user can mend."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
from safetensors.torch import save_file

from harness.basics.errors import UserError
from harness.nn import weights as weights_module
from harness.nn.encoders import create_encoder, probe
from harness.nn.vit import OWN_TRANSFORMERS as VITS
from harness.nn.vit import create_vit
from harness.nn.weights import PRETRAINED, packaged, weights_sha256


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "mini_cnn"])
def test_stages_have_the_channels_and_strides_that_they_claim(name):
    encoder = create_encoder(name)
    images = torch.zeros(2, 3, 64, 96)
    for x, channels, stride in zip(encoder(images), encoder.channels, encoder.strides, strict=True):
        assert x.shape == (2, channels, 64 // stride, 96 // stride)


@pytest.mark.parametrize(
    ("stride", "third", "fourth"), [(8, [1, 2, 2, 2, 2, 2], [2, 4, 4]), (16, [1] * 6, [1, 2, 2])]
)
def test_strides_beyond_the_output_stride_become_dilations(stride, third, fourth):
    with torch.device("meta"):
        encoder = create_encoder("resnet50s", output_stride=stride)
    assert encoder.strides == (4, 8, min(stride, 16), stride)
    assert [b.conv2.dilation[0] for b in encoder.layer3] == third
    assert [b.conv2.dilation[0] for b in encoder.layer4] == fourth
    assert [b.conv2.padding[0] for b in encoder.layer4] == fourth


def test_multi_grid_multiplies_what_stands_there():
    with torch.device("meta"):
        encoder = create_encoder("resnet50s", output_stride=8, multi_grid=(2, 2, 4))
    assert [b.conv2.dilation[0] for b in encoder.layer4] == [4, 8, 16]
    assert [b.conv2.padding[0] for b in encoder.layer4] == [4, 8, 16]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet5"}, "did you mean 'resnet50'"),
        ({"name": "resnet18", "output_stride": 5}, "cannot be dilated to 5"),
        ({"name": "mini_cnn", "output_stride": 16}, "stride"),
        ({"name": "mini_cnn", "multi_grid": (1, 2)}, "has no multi-grid"),
        ({"name": "resnet50", "multi_grid": (1, 2)}, "does not fit a last stage of 3"),
        ({"name": "vit_tiny_patch16_224"}, "no feature pyramid: all its features have stride 16"),
        ({"name": "resnet50", "weights": "gluon_in2k"}, "did you mean 'gluon_in1k'"),
        ({"name": "resnet18", "weights": "packaged"}, "no packaged weights"),
        ({"name": "resnet18", "weights": "nowhere/net.pth"}, "not found"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(UserError) as caught:
        create_encoder(**arguments)
    assert message in str(caught.value)


#: A network of every kind: how its last stage can be had, and the channels of its features of stride 4.
FAMILIES = {
    "resnet18": ((8, 16, 32), 64),
    "resnest14d": ((8, 16, 32), 256),
    "regnety_002": ((8, 16, 32), 24),
    "convnext_atto": ((8, 16, 32), 40),
    "efficientnet_b0": ((8, 16, 32), 24),
    "mobilenetv2_050": ((8, 16, 32), 16),
    "mobilenetv3_small_050": ((8, 16, 32), 8),
    "mobilenetv4_conv_small_050": ((8, 16, 32), 16),
    "xception41": ((8, 16, 32), 256),
    "mobilevit_xxs": ((8, 16, 32), 24),
    "hrnet_w18_small": ((32,), 128),
    "densenet121": ((32,), 256),
    "vgg11": ((32,), 256),
    "pvt_v2_b0": ((32,), 32),
    "swin_tiny_patch4_window7_224": ((32,), 96),
}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_networks_of_every_kind_have_the_strides_they_can_have_or_a_reason(name, stride):
    strides, low = FAMILIES[name]
    if stride not in strides:
        with pytest.raises(UserError) as caught, torch.device("meta"):
            create_encoder(name, output_stride=stride)
        assert f"has stride 32 and cannot be dilated to {stride} (timm" in str(caught.value)
        assert "set it to 32, or choose another backbone" in str(caught.value)
        return
    with torch.device("meta"):
        encoder = create_encoder(name, output_stride=stride)
    assert encoder.strides[0] == 4
    assert encoder.strides[-1] == stride
    assert encoder.channels[0] == low
    probe(encoder, (97, 130), name)
    features = encoder(torch.zeros(2, 3, 64, 96, device="meta"))
    for x, channels, s in zip(features, encoder.channels, encoder.strides, strict=True):
        assert x.shape == (2, channels, 64 // s, 96 // s)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("halonet26t", "AssertionError"),
        ("coat_tiny", "doesn't match model"),
        ("inception_v3", "no grid of stride"),
    ],
)
def test_networks_that_cannot_take_any_picture_say_why(name, reason):
    with torch.device("meta"):
        encoder = create_encoder(name)
    with pytest.raises(UserError, match=reason) as caught:
        probe(encoder, (97, 130), name)
    assert name in str(caught.value)
    assert ": \n" not in str(caught.value)


def test_a_real_pass_gives_the_features_that_the_meta_device_promised():
    for name in ("mobilenetv2_050", "hrnet_w18_small"):
        encoder = create_encoder(name).eval()
        with torch.no_grad():
            features = encoder(torch.rand(1, 3, 49, 70))
        assert [tuple(x.shape[-2:]) for x in features] == [
            (-(-49 // s), -(-70 // s)) for s in encoder.strides
        ]
        assert all(x.isfinite().all() and x.std() > 0 for x in features)


def test_our_own_networks_under_the_wrong_kind_of_method_say_what_they_are():
    with pytest.raises(
        UserError, match="'mini_vit' is a vision transformer, and this method needs a backbone"
    ):
        create_encoder("mini_vit", "packaged", output_stride=8)
    with pytest.raises(UserError, match="'mini_cnn' is a convolutional network, and this method needs"):
        create_vit("mini_cnn", "packaged", crop=(64, 64))
    with pytest.raises(UserError, match="'resnet18' is not a plain vision transformer"):
        create_vit("resnet18", crop=(64, 64))


def test_the_nearest_names_are_named_once():
    with pytest.raises(UserError) as caught:
        create_encoder("resnet118")
    assert str(caught.value).count("'resnet18'") == 1


def test_a_file_of_a_whole_classifier_fits_a_network_that_is_no_chain(tmp_path):
    timm = pytest.importorskip("timm")
    whole = timm.create_model("mobilenetv2_050")
    torch.save(whole.state_dict(), tmp_path / "net.pth")
    encoder = create_encoder("mobilenetv2_050", str(tmp_path / "net.pth"))
    assert torch.equal(encoder.network.conv_stem.weight, whole.conv_stem.weight)
    torch.save({**whole.state_dict(), "extra.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"surplus extra\.weight"):
        create_encoder("mobilenetv2_050", str(tmp_path / "other.pth"))


def test_a_seed_decides_random_weights_and_they_have_no_hash():
    torch.manual_seed(3)
    one = create_encoder("resnet18")
    torch.manual_seed(3)
    other = create_encoder("resnet18")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert weights_sha256("resnet18", "none") is None


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_is_loaded_without_its_classifier_and_hashed(tmp_path, suffix):
    source = create_encoder("resnet18")
    # Files from before torch 0.4.1 lack the counters; all have a classifier.
    state = {k: v for k, v in source.state_dict().items() if not k.endswith("num_batches_tracked")}
    state |= {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    path = tmp_path / f"resnet18{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    else:
        save_file(state, path)
    loaded = create_encoder("resnet18", str(path))
    assert all(torch.equal(v, state[k]) for k, v in loaded.named_parameters())
    assert weights_sha256("resnet18", str(path)) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_of_another_network_is_refused_with_its_keys(tmp_path):
    state = create_encoder("resnet18").state_dict()
    for change, message in (
        ({"layer9.weight": torch.zeros(1)}, "surplus layer9.weight"),
        ({"conv1.weight": torch.zeros(64, 3, 3, 3)}, "other shapes for conv1.weight"),
    ):
        torch.save(dict(state) | change, tmp_path / "x.pth")
        with pytest.raises(UserError, match=message):
            create_encoder("resnet18", str(tmp_path / "x.pth"))
    short = {k: v for k, v in state.items() if k != "conv1.weight"}
    torch.save(short, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"lacks conv1\.weight"):
        create_encoder("resnet18", str(tmp_path / "x.pth"))


class Payload:
    """Pickles to a call that a reader must not make."""

    def __reduce__(self):
        return print, ("executed",)


def test_code_in_a_file_is_not_executed(tmp_path, capsys):
    torch.save({"state_dict": Payload()}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match="not a readable weights file"):
        create_encoder("resnet18", str(tmp_path / "bad.pth"))
    assert "executed" not in capsys.readouterr().out


def test_a_file_without_tensors_is_refused(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="no state dict"):
        create_encoder("resnet18", str(tmp_path / "x.pth"))


def test_packaged_weights_are_those_of_the_table(tmp_path, monkeypatch):
    path = tmp_path / "net.safetensors"
    state = create_encoder("resnet18").state_dict()
    save_file(state, path)
    row = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    (tmp_path / "weights.json").write_text(json.dumps({"resnet18": row}))
    monkeypatch.setattr(weights_module, "PRETRAINED", tmp_path)
    packaged.cache_clear()
    try:
        loaded = create_encoder("resnet18", "packaged")
        assert all(torch.equal(v, state[k]) for k, v in loaded.state_dict().items())
        assert weights_sha256("resnet18", "packaged") == row["sha256"]
        save_file(state | {"conv1.weight": torch.zeros_like(state["conv1.weight"])}, path)
        with pytest.raises(UserError, match="missing or altered"):
            create_encoder("resnet18", "packaged")
    finally:
        packaged.cache_clear()


def test_every_packaged_file_is_whole():
    for backbone, row in packaged().items():
        assert (PRETRAINED / row["file"]).is_file()
        assert weights_sha256(backbone, "packaged") == row["sha256"]
        if backbone in VITS:
            create_vit(backbone, "packaged", crop=(64, 64))
        else:
            create_encoder(backbone, "packaged")


@pytest.mark.parametrize("tag", ["gluon_in1k", "timm"])
def test_a_timm_tag_without_network_says_how_to_get_the_file(tag, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for call in (create_encoder, weights_sha256):
        with pytest.raises(UserError) as caught:
            call("resnet50s", tag)
        assert "huggingface.co/timm/resnet50s.gluon_in1k" in str(caught.value)


def test_a_timm_tag_that_is_on_this_machine_is_loaded_by_timm(monkeypatch, tmp_path):
    import timm

    state = {k: torch.rand_like(v) if v.is_floating_point() else v for k, v in _resnet18_state().items()}
    path = tmp_path / "model.safetensors"
    save_file(state, path)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repository, name: str(path))
    tag = timm.list_pretrained("resnet18.*")[0].partition(".")[2]
    loaded = create_encoder("resnet18", tag, output_stride=8)
    assert loaded.strides == (4, 8, 8, 8)
    assert all(torch.equal(v, state[k]) for k, v in loaded.named_parameters())
    assert weights_sha256("resnet18", tag) == hashlib.sha256(path.read_bytes()).hexdigest()


def _resnet18_state():
    import timm

    return timm.create_model("resnet18").state_dict()
