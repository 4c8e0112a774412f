"""AGMM's whole networks against those of the authors' code: weights by name, outputs, gradients."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from network_golden import filled, picture, state_dict
from torch import nn

from harness.basics.errors import UserError
from harness.data.base import DatasetInfo
from harness.engine.method import Build
from harness.nn.checkpoints import load_checkpoint
from harness.nn.decoders import DeepLabV3Plus
from harness.nn.encoders import create_encoder
from methods.agmm import AGMM, AGMMConfig

FOLDER = Path(__file__).parents[1] / "golden"
NETWORKS = {
    "voc_r101": ("resnet101s", 21, {}),
    "city_r50": ("resnet50s", 19, {"aspp_rates": (12, 24, 36), "multi_grid": (2, 2, 4)}),
}
STAGES = ("l1", "l2", "l3", "l4")


def dataset(classes: int) -> DatasetInfo:
    names = tuple(f"class {k}" for k in range(classes))
    colours = tuple((k, k, k) for k in range(classes))
    return DatasetInfo("toy", "Toy", names, colours, {"train": 1}, 0, "toy")


def method(tag: str) -> AGMM:
    """The method without values, so that building it takes no time."""
    backbone, classes, options = NETWORKS[tag]
    with torch.device("meta"):
        return AGMM(AGMMConfig(**options), Build(dataset(classes), "point", (321, 321), backbone))


@cache
def network(tag: str) -> DeepLabV3Plus:
    """The network filled by the golden rule, through the key table of the authors' checkpoints."""
    built = method(tag)
    table = AGMM.key_tables()["agmm-sass"]
    state = table(state_dict(FOLDER / "networks" / "agmm" / f"keys_{tag}.json"))
    built.load_state_dict({k: v.clone() for k, v in state.items()}, assign=True)  # running values change
    return built.network


@pytest.fixture(scope="module", autouse=True)
def forget():
    """Nothing is kept for tests of other files."""
    yield
    network.cache_clear()
    filled.cache_clear()
    state_dict.cache_clear()


def load(tag: str, file: str, folder: Path | None = None) -> dict[str, np.ndarray]:
    with np.load((folder or FOLDER) / "networks" / "agmm" / f"{tag}_{file}.npz") as data:
        return {k: data[k] for k in data}


def stages(net: DeepLabV3Plus, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Every tensor that the golden files know, caught during one forward pass in evaluation mode."""
    caught: dict[str, torch.Tensor] = {}
    watched = {"aspp": net.head, "feat": net.fuse, "logits_low": net.classifier}
    hooks = [net.backbone.register_forward_hook(lambda _, __, x: caught.update(zip(STAGES, x, strict=True)))]
    for name, module in watched.items():
        hooks.append(module.register_forward_hook(lambda _, __, x, name=name: caught.update({name: x})))
    with torch.no_grad():
        logits, features = net.eval()(images)
    for hook in hooks:
        hook.remove()
    assert features is caught["feat"]
    return caught | {"logits": logits, "probs": logits.softmax(1)}


def statistics(x: torch.Tensor) -> np.ndarray:
    x = x.double()
    return np.array([x.mean(), x.std(correction=0), x.abs().max()])


@pytest.mark.parametrize("tag", NETWORKS)
def test_every_stage_agrees_at_an_odd_size(tag):
    gold = load(tag, "eval_97x81")
    found = stages(network(tag), torch.from_numpy(gold["x"]))
    for name, value in found.items():
        np.testing.assert_allclose(statistics(value), gold[f"{name}_stats"], atol=1e-5, err_msg=name)
        if f"{name}_channel_mean" in gold:
            means = value.mean((2, 3))
            np.testing.assert_allclose(means, gold[f"{name}_channel_mean"], atol=1e-5, err_msg=name)
    for name in ("aspp", "feat"):
        np.testing.assert_allclose(found[name][:, ::16], gold[f"{name}_ch16"], atol=1e-5)
    np.testing.assert_allclose(found["logits_low"], gold["logits_low_f64"], atol=3e-6)
    np.testing.assert_allclose(found["logits"][..., ::8, ::8], gold["logits_f64_s8"], atol=3e-6)


@pytest.mark.parametrize("tag", ["city_r50", pytest.param("voc_r101", marks=pytest.mark.golden)])
def test_large_dilations_agree_at_the_training_size(tag, request):
    """A 65-pixel picture cannot tell rate 17 from 18: every tap falls into the padding."""
    if tag == "voc_r101":
        request.getfixturevalue("full_golden")  # three seconds that the default run saves
    gold = load(tag, "eval_321x321")
    found = stages(network(tag), picture("321x321", 1, 3, 321, 321))
    for name, value in found.items():
        np.testing.assert_allclose(statistics(value), gold[f"{name}_stats"], atol=1e-5, err_msg=name)
    np.testing.assert_allclose(found["logits_low"][..., ::4, ::4], gold["logits_low_f64_s4"], atol=3e-6)


def train_step(net: DeepLabV3Plus, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and loss of one training step as the golden files define it: no dropout, mean square."""
    net.train()
    for module in net.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0
    net.zero_grad()
    logits = net(images).logits
    loss = logits.double().square().mean()
    loss.backward()
    return logits.detach(), loss.detach()


def check_gradients(net: DeepLabV3Plus, gold: dict, each: float, total: float) -> None:
    own = dict(net.named_parameters())
    assert own.keys() == gold["grad_norm"].keys()
    for name, norm in gold["grad_norm"].items():
        assert own[name].grad is not None
        assert float(own[name].grad.double().norm()) == pytest.approx(norm, rel=each), name
    whole = np.sqrt(sum(float(p.grad.double().square().sum()) for p in own.values()))
    assert whole == pytest.approx(np.sqrt(sum(n**2 for n in gold["grad_norm"].values())), rel=total)
    buffers = dict(net.named_buffers())
    for name, (sum_, norm) in gold["running_sum_norm_after_one_forward"].items():
        value = buffers[name].double()
        assert float(value.norm()) == pytest.approx(norm, rel=1e-4), name
        assert float(value.sum()) == pytest.approx(sum_, abs=1e-4 * norm * len(value) ** 0.5), name


@pytest.mark.parametrize("tag", NETWORKS)
def test_a_training_step_agrees(tag):
    gold = load(tag, "train_65x65")
    norms = json.loads((FOLDER / "networks" / "agmm" / f"{tag}_train_grad_norms.json").read_text())
    net = network(tag)
    state = {k: v.clone() for k, v in net.state_dict().items()}
    try:
        logits, loss = train_step(net, torch.from_numpy(gold["x"]))
        np.testing.assert_allclose(logits[..., ::4, ::4], gold["out_f64_s4"], atol=5e-4)
        assert float(loss) == pytest.approx(float(gold["loss"]), rel=1e-5)
        check_gradients(net, norms, each=2e-2, total=2e-3)
    finally:
        net.load_state_dict(state)
        net.zero_grad()


@pytest.mark.golden
@pytest.mark.parametrize("tag", NETWORKS)
def test_double_precision_agrees_closely(tag, full_golden):
    net = network(tag).double()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    try:
        gold = load(tag, "eval_65x65", full_golden)
        found = stages(net, torch.from_numpy(gold["x"]).double())
        np.testing.assert_allclose(found["logits_low"], gold["logits_low_f64"], atol=1e-10)
        for name in (*STAGES, "aspp", "feat"):
            np.testing.assert_allclose(
                found[name].mean((2, 3)), gold[f"{name}_channel_mean"], atol=1e-10, err_msg=name
            )
            np.testing.assert_allclose(found[name][:, ::16], gold[f"{name}_ch16"], atol=1e-5, err_msg=name)
        np.testing.assert_allclose(found["feat"][0], gold["feat_image0"], atol=1e-5)
        np.testing.assert_allclose(found["logits"], gold["logits"], atol=3e-6)
        gold = load(tag, "train_65x65", full_golden)
        norms = json.loads((full_golden / "networks/agmm" / f"{tag}_train_grad_norms.json").read_text())
        logits, loss = train_step(net, torch.from_numpy(gold["x"]).double())
        np.testing.assert_allclose(logits[..., ::2, ::2], gold["out_f64_s2"], atol=1e-7)
        assert float(loss) == pytest.approx(float(gold["loss"]), rel=1e-9)
        check_gradients(net, norms, each=1e-6, total=1e-7)
    finally:
        net.load_state_dict(state)
        net.float().zero_grad()


@pytest.mark.golden
def test_seven_scales_with_mirror_agree(full_golden):
    from harness.evaluation.evaluator import predict_scores
    from harness.recipes.protocols import protocol

    gold = load("voc_r101", "msflip_49x65", full_golden)
    net = network("voc_r101").eval()
    for name, key in (("agmm-voc", "probs_ms_flip"), ("single", "probs_single")):
        scores = predict_scores(lambda x: net(x).logits, torch.from_numpy(gold["x"]), protocol(name))
        probabilities = scores if name == "agmm-voc" else scores.softmax(1)
        np.testing.assert_allclose(probabilities, gold[key], atol=3e-7)


def test_a_checkpoint_of_the_authors_loads_into_the_method(tmp_path):
    state = state_dict(FOLDER / "networks" / "agmm" / "keys_city_r50.json")
    torch.save(state, tmp_path / "resnet50_77.77.pth")
    built, table = method("city_r50").to_empty(device="cpu"), AGMM.key_tables()["agmm-sass"]
    load_checkpoint(built, tmp_path / "resnet50_77.77.pth", table)
    own = built.state_dict()
    assert len(own) == len(state)
    assert all(torch.equal(own[f"network.{k}"], v) for k, v in state.items())
    with pytest.raises(UserError, match=r"unknown keys: aux_classifier\.0\.weight"):
        table(state | {"aux_classifier.0.weight": torch.zeros(1)})


@pytest.mark.parametrize(("tag", "name"), [("voc_r101", "pascal_r101"), ("city_r50", "cityscapes_r50")])
def test_layers_and_their_sizes_are_those_of_the_paper(tag, name):
    gold = json.loads((FOLDER / "agmm" / "arch_shapes.json").read_text())[name]
    backbone, classes, options = NETWORKS[tag]
    with torch.device("meta"):
        rates = options.get("aspp_rates", (6, 12, 18))
        encoder = create_encoder(backbone, output_stride=8, multi_grid=options.get("multi_grid", ()))
        net = DeepLabV3Plus(encoder, classes, rates=rates)
        outputs = encoder.eval()(torch.zeros(1, 3, 321, 321))
    assert [list(o.shape) for o in outputs] == gold["stage_shapes"]["321"]
    assert sum(p.numel() for p in net.parameters()) == gold["total_params"]
    for part, number in gold["parts"].items():
        assert sum(p.numel() for p in net.get_submodule(part).parameters()) == number, part
    for layer, (shape, stride, padding, dilation, bias) in gold["convs"].items():
        conv = net.get_submodule(layer)
        assert list(conv.weight.shape) == shape, layer
        assert conv.stride[0] == stride, layer
        assert conv.padding[0] == padding, layer
        assert conv.dilation[0] == dilation, layer
        assert (conv.bias is not None) == bias, layer
