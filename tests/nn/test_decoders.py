"""ASPP against golden vectors; DeepLabV3+ at a small size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.basics.errors import UserError
from harness.nn.decoders import ASPP, DeepLabV3Plus, LargeFOV, LargeFOVNetwork
from harness.nn.encoders import Encoder, create_encoder


@pytest.fixture
def case(golden) -> dict[str, np.ndarray]:
    with np.load(golden / "agmm" / "aspp_f64.npz") as data:
        return {k: data[k] for k in data}


def filled(case) -> ASPP:
    aspp = ASPP(16, 2, (1, 2, 3), dropout=0.0).double()
    state = {k.removeprefix("w/"): torch.from_numpy(v) for k, v in case.items() if k.startswith("w/")}
    own = aspp.state_dict()
    assert {k for k in own if not k.endswith("num_batches_tracked")} == set(state)
    aspp.load_state_dict(own | state)
    return aspp


def test_aspp_agrees_in_both_modes(case):
    x = torch.from_numpy(case["x"]).double()
    aspp = filled(case)
    with torch.no_grad():
        np.testing.assert_allclose(aspp.eval()(x), case["out_eval"], atol=1e-10)
        np.testing.assert_allclose(aspp.train()(x), case["out_train_nodropout"], atol=1e-10)


def test_the_golden_aspp_tells_rates_apart(case):
    x = torch.from_numpy(case["x"]).double()
    aspp = filled(case).eval()
    aspp.b2[0].dilation = aspp.b2[0].padding = (1, 1)
    with torch.no_grad():
        assert np.abs(aspp(x).numpy() - case["out_eval"]).max() > 1e-3


def test_dropout_takes_whole_channels_in_training_only():
    torch.manual_seed(0)
    aspp = ASPP(4, 32, (1, 2, 3), dropout=0.5)
    x = torch.rand(8, 4, 6, 6)
    dropped = aspp(x).flatten(2)
    assert ((dropped == 0).all(2)).float().mean() > 0.3
    aspp.eval()
    assert torch.equal(aspp(x), aspp(x))


def test_a_miniature_network_gives_logits_of_the_image_and_features_of_stride_four():
    torch.manual_seed(0)
    backbone = create_encoder("mini_cnn", output_stride=8)
    net = DeepLabV3Plus(backbone, 7, width=64, low_width=16, rates=(1, 2, 3)).eval()
    with torch.no_grad():
        logits, features = net(torch.rand(2, 3, 61, 45))
    assert logits.shape == (2, 7, 61, 45)
    assert features.shape == (2, 64, 16, 12)
    assert (features >= 0).all()


class Coarse(Encoder):
    channels, strides = (8,), (16,)

    def forward(self, images):
        return [images]


def test_a_backbone_without_features_of_stride_four_is_refused():
    with pytest.raises(UserError, match="stride 4"):
        DeepLabV3Plus(Coarse(), 3)


def test_large_fov_stands_on_the_last_stage():
    torch.manual_seed(0)
    network = LargeFOVNetwork(create_encoder("mini_cnn"), 7, width=12, dilation=1).eval()
    images = torch.randn(2, 3, 48, 72)
    with torch.no_grad():
        logits, features = network(images)
        small = network.decoder(network.backbone(images)[-1])
    assert features.shape == (2, 12, 6, 9)
    assert isinstance(network.decoder, LargeFOV)
    resized = torch.nn.functional.interpolate(small, (48, 72), mode="bilinear", align_corners=False)
    torch.testing.assert_close(logits, resized)
