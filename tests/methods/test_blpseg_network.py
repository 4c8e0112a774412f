"""BLPSeg's whole network against that of the authors' code: weights by name, outputs, gradients."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from network_golden import filled
from torch import Tensor, nn

from harness.basics.errors import UserError
from harness.data.base import DatasetInfo
from harness.engine.method import Build
from harness.evaluation.evaluator import predict_scores
from harness.nn.checkpoints import load_checkpoint
from harness.nn.resize import resize
from harness.recipes.protocols import Protocol, protocol
from methods.blpseg import BLPSeg, BLPSegConfig

FOLDER = Path(__file__).parents[1] / "golden" / "networks" / "blpseg"

#: Largest difference from the authors' float32 arrays by tensor, as measured and recommended with them.
EVAL = {
    **dict.fromkeys(["l1", "l2", "l3", "l4", "ppm", "embed"], 1.5e-5),
    "decoder": 3e-5,
    **dict.fromkeys(["seg_low", "scrib_low", "scrib"], 6e-6),
    **dict.fromkeys(["lam_low", "seg"], 2e-5),
}
EVAL_DOUBLE = dict.fromkeys(EVAL, 1e-10) | {"lam_low": 1e-6, "seg": 1e-6}  # their distances are float32
UNREAD = ("_tmp_running_mean", "_tmp_running_var", "_running_iter")


def entries(keys: Path) -> dict[str, tuple[int, ...]]:
    return {e["key"]: tuple(e["shape"]) for e in json.loads(keys.read_text())["entries"]}


def saved(keys: Path) -> dict[str, Tensor]:
    """What the authors' training script would save, filled by the golden rule.

    The stored distances (340 MB, which nobody reads) are a view of one number.
    """
    state = {}
    for key, shape in entries(keys).items():
        if key == "distance_prob":
            state[key] = torch.zeros(1).expand(shape)
        elif key == "CELoss.weight":
            state[key] = torch.tensor([1.0] * (shape[0] - 1) + [0.02])
        elif key.endswith(UNREAD):
            state[key] = torch.full(shape, float(not key.endswith("mean")))
        else:
            state[key] = filled(key, shape)
    return state


def untrained(classes: int, **config) -> BLPSeg:
    """The method without values, so that building it takes no time."""
    names = tuple(f"class {k}" for k in range(classes))
    info = DatasetInfo("toy", "Toy", names, tuple((k, k, k) for k in range(classes)), {"train": 1}, 0, "toy")
    values = BLPSegConfig(**({"lam_epsilon": "reference"} | config))
    with torch.device("meta"):
        return BLPSeg(values, Build(info, "scribble", (384, 384), "resnet101s"))


def fresh(keys: Path) -> BLPSeg:
    """The method with the golden weights, through the key table of the authors' checkpoints."""
    state = BLPSeg.key_tables()["blpseg"](saved(keys))
    built = untrained(entries(keys)["seg_head.4.weight"][0])
    built.load_state_dict({k: v.clone() for k, v in state.items()}, assign=True)
    return built.eval()


@cache
def _kept(_: str, keys: Path) -> BLPSeg:
    return fresh(keys)


def method(keys: Path = FOLDER / "keys_voc.json") -> BLPSeg:
    """The same, kept: for what changes nothing."""
    return _kept(keys.read_text(), keys)


@pytest.fixture(scope="module", autouse=True)
def forget():
    """Nothing is kept for tests of other files."""
    yield
    _kept.cache_clear()
    filled.cache_clear()


def load(file: Path) -> dict[str, np.ndarray]:
    with np.load(file) as data:
        return {k: data[k] for k in data}


def blocky(seed: int, count: int, height: int, width: int) -> Tensor:
    """The inputs that the golden files name by seed: noisy blocks of 16 pixels."""
    r = np.random.RandomState(seed)
    blocks = r.standard_normal((count, 3, -(-height // 16), -(-width // 16)))
    x = blocks.repeat(16, 2).repeat(16, 3)[:, :, :height, :width]
    return torch.from_numpy((x + 0.05 * r.standard_normal(x.shape)).astype(np.float32))


def every_tensor(net: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Every tensor that the golden files know."""
    with torch.no_grad():
        stages = net.backbone(images)
        ppm = net.ppm(stages[-1])
        output = net(images)
        size = images.shape[-2:]
        return {
            **{f"l{i}": s for i, s in enumerate(stages, 1)},
            "ppm": ppm,
            "decoder": output.features,
            "embed": net.embed_proj(images),
            "seg_low": output.raw,
            "lam_low": output.logits,
            "scrib_low": output.annotation,
            "seg": resize(output.logits, size, align_corners=False),
            "scrib": resize(output.annotation, size, align_corners=False),
        }


def compare(found: dict[str, Tensor], gold: dict[str, np.ndarray], tolerance: dict[str, float]) -> int:
    """Every golden array of the tensors; returns how many there were."""
    number = 0
    for key, expected in gold.items():
        name = max((n for n in found if key == n or key.startswith(f"{n}_")), key=len, default=None)
        if name is None:
            assert key == "x", key
            continue
        value = found[name].numpy()
        kind = key.removeprefix(name)
        if kind == "_stats":
            value = np.array([value.mean(), value.std(), np.abs(value).max()], dtype=np.float64)
        elif kind == "_channel_mean":
            value = value.mean((2, 3))
        elif kind == "_ch16":
            value = value[:, ::16]
        elif kind == "_image0":
            value = value[0]
        elif kind == "_s4":
            value = value[..., ::4, ::4]
        else:
            assert kind in ("", "_f64"), key
        limit = tolerance[name]
        if tolerance is EVAL_DOUBLE and expected.dtype == np.float32:
            continue
        np.testing.assert_allclose(value, expected, rtol=0, atol=limit, err_msg=key)
        number += 1
    return number


def test_every_stage_agrees_at_an_odd_size():
    gold = load(FOLDER / "voc_eval_97x81.npz")
    assert compare(every_tensor(method().network, blocky(11, 1, 97, 81)), gold, EVAL) == 15


def test_leaving_local_aggregation_out_would_be_seen():
    gold = load(FOLDER / "voc_eval_97x81.npz")
    assert np.abs(gold["lam_low"] - gold["seg_low"]).max() > 1000 * EVAL["lam_low"]


def test_a_released_checkpoint_loads_from_its_file(tmp_path):
    """All keys that their script saves, in their order; a small network stands for its shapes."""
    state = saved(FOLDER / "keys_voc.json")
    assert len(state) == 1080
    assert next(iter(state)) == "distance_prob"
    state["distance_prob"] = torch.zeros(1, 4, 4)  # its size is that of the crop, and nobody reads it
    file = tmp_path / "BLPSeg_resnet101_VOCDataset_epoch40.pth"
    torch.save(state, file)
    built = untrained(21).to_empty(device="cpu")
    load_checkpoint(built, file, BLPSeg.key_tables()["blpseg"])
    loaded = built.state_dict()
    for key, value in method().state_dict().items():
        assert torch.equal(loaded[key], value), key


def test_the_number_of_parameters_is_the_authors():
    unused = 256  # the backbone's LayerNorm that is never called
    for classes, total in ((21, 50_453_483), (60, 50_473_529)):
        assert sum(p.numel() for p in untrained(classes).parameters()) == total - unused


def test_a_checkpoint_of_another_class_count_or_with_unknown_keys_is_refused(tmp_path):
    state = saved(FOLDER / "keys_voc.json")
    state["distance_prob"] = torch.zeros(1)
    file = tmp_path / "voc.pth"
    torch.save(state, file)
    with pytest.raises(UserError, match="other shape"):
        load_checkpoint(untrained(60), file, BLPSeg.key_tables()["blpseg"])
    state["extra.weight"] = torch.zeros(1)
    torch.save(state, file)
    with pytest.raises(UserError, match="unknown keys"):
        load_checkpoint(untrained(21), file, BLPSeg.key_tables()["blpseg"])


# --- the full golden data ----------------------------------------------------------------------------


@pytest.fixture
def networks(full_golden: Path) -> Path:
    return full_golden / "networks" / "blpseg"


@pytest.mark.golden
@pytest.mark.parametrize(
    ("file", "keys"),
    [
        ("voc_eval_65x65", "keys_voc"),
        ("voc_eval_97x81", "keys_voc"),
        ("voc_eval_noise_96x128", "keys_voc"),
        ("context_eval_65x65", "keys_context"),
    ],
)
def test_all_arrays_in_evaluation_mode(networks, file, keys):
    gold = load(networks / f"{file}.npz")
    net = method(networks / f"{keys}.json").network
    images = torch.from_numpy(gold["x"])
    assert compare(every_tensor(net, images), gold, EVAL) == len(gold) - 1
    net.double()
    try:
        assert compare(every_tensor(net, images.double()), gold, EVAL_DOUBLE) >= 15
    finally:
        net.float()


@pytest.mark.golden
def test_the_training_size_of_other_methods(networks):
    gold = load(networks / "voc_eval_321_sub.npz")
    with torch.no_grad():
        logits = method(networks / "keys_voc.json").predict(blocky(16, 1, 321, 321))
    np.testing.assert_allclose(logits[..., ::8, ::8], gold["seg_s8"], rtol=0, atol=2e-5)
    np.testing.assert_allclose(statistics(logits), gold["seg_stats"], rtol=0, atol=2e-5)


def statistics(x: Tensor) -> np.ndarray:
    x = x.double()
    return np.array([x.mean(), x.std(correction=0), x.abs().max()])


@pytest.mark.golden
def test_the_test_protocol_from_given_scaled_pictures(networks):
    gold = load(networks / "voc_msflip_64x80.npz")
    built = method(networks / "keys_voc.json")
    one = Protocol(flip=True, merge="mean-logits", align_corners=True)
    scaled = [torch.from_numpy(gold[f"image_{s}"]) for s in ("0.5", "0.75", "1", "1.25")]
    merged = torch.stack([predict_scores(built.predict, x, one, (64, 80)) for x in scaled]).mean(0)
    np.testing.assert_allclose(merged, gold["mean_logits"], rtol=0, atol=5e-6)
    np.testing.assert_allclose(merged.softmax(1), gold["probs"], rtol=0, atol=5e-6)
    np.testing.assert_allclose(merged[..., ::4, ::4], gold["mean_logits_f64_s4"], rtol=0, atol=5e-6)


@pytest.mark.golden
def test_the_named_test_protocol_from_the_picture_alone(networks):
    gold = load(networks / "voc_msflip_64x80.npz")
    picture = torch.from_numpy(gold["image_1"])
    merged = predict_scores(method(networks / "keys_voc.json").predict, picture, protocol("blpseg-ms"))
    np.testing.assert_allclose(merged, gold["mean_logits"], rtol=0, atol=5e-6)


def trained_once(built: BLPSeg, images: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
    """All tensors of one training-mode pass, and the golden files' two losses."""
    net = built.network.train()
    for module in net.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0
    kept: dict[str, Tensor] = {}
    for name in ("ppm", "decoder", "backbone"):
        getattr(net, name).register_forward_hook(lambda _m, _i, out, name=name: kept.update({name: out}))
    output = net(images)
    size = images.shape[-2:]
    seg = resize(output.logits, size, align_corners=False)
    scrib = resize(output.annotation, size, align_corners=False)
    found = {
        **{"ppm": kept["ppm"], "decoder": kept["decoder"], "l4": kept["backbone"][-1]},
        **{"seg_low": output.raw, "lam_low": output.logits, "scrib_low": output.annotation, "seg": seg},
    }
    return found, [seg.square().mean(), scrib.square().mean()]


@pytest.mark.golden
def test_a_training_pass_agrees_with_all_arrays(networks):
    gold = load(networks / "voc_train_96x96.npz")
    with torch.no_grad():
        found, losses = trained_once(fresh(networks / "keys_voc.json"), torch.from_numpy(gold["x"]))
    for key in ("seg_low", "lam_low", "scrib_low"):
        np.testing.assert_allclose(found[key], gold[key], rtol=0, atol=2e-4, err_msg=key)
    np.testing.assert_allclose(found["seg"][..., ::4, ::4], gold["seg_s4"], rtol=0, atol=2e-4)
    for key in ("lam_low", "scrib_low"):
        np.testing.assert_allclose(found[key][..., ::2, ::2], gold[f"{key}_f64_s2"], rtol=0, atol=2e-4)
    for key in ("ppm", "decoder", "l4"):
        np.testing.assert_allclose(found[key][:, ::16], gold[f"{key}_ch16"], rtol=0, atol=2e-4)
    for key in ("losses_f64", "losses_f32"):
        np.testing.assert_allclose([float(x) for x in losses], gold[key], rtol=1e-5)


@pytest.mark.golden
def test_a_training_pass_on_context_agrees(networks):
    images = torch.from_numpy(load(networks / "voc_train_96x96.npz")["x"])
    gold = load(networks / "context_train_96x96.npz")
    with torch.no_grad():
        found, losses = trained_once(fresh(networks / "keys_context.json"), images)
    for key in ("lam_low", "scrib_low"):
        np.testing.assert_allclose(found[key][..., ::2, ::2], gold[f"{key}_s2"], rtol=0, atol=2e-4)
    np.testing.assert_allclose([float(x) for x in losses], gold["losses_f64"], rtol=1e-5)


@pytest.mark.golden
def test_a_training_pass_at_the_published_crop_agrees(networks):
    gold = load(networks / "voc_train_384_sub.npz")
    with torch.no_grad():
        found, _ = trained_once(fresh(networks / "keys_voc.json"), blocky(15, 2, 384, 384))
    np.testing.assert_allclose(found["seg"][..., ::16, ::16], gold["seg_s16"], rtol=0, atol=2e-4)
    np.testing.assert_allclose(statistics(found["seg"]), gold["seg_stats"], rtol=0, atol=2e-4)


@pytest.mark.golden
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-2), (torch.float64, 1e-6)])
def test_gradient_norms_and_running_statistics_agree(networks, dtype, limit):
    gold = json.loads((networks / "voc_train_grad_norms.json").read_text())
    images = torch.from_numpy(load(networks / "voc_train_96x96.npz")["x"]).to(dtype)
    built = fresh(networks / "keys_voc.json").to(dtype)
    _, losses = trained_once(built, images)
    assert losses[0].item() == pytest.approx(gold["loss_seg_sq"], rel=1e-5)
    assert losses[1].item() == pytest.approx(gold["loss_scrib_sq"], rel=1e-5)
    sum(losses).backward()  # the annotation head sees one of them, everything else the other
    ours = dict(built.network.named_parameters())
    theirs = {k: v for k, v in gold["grad_norm"].items() if v is not None}
    assert ours.keys() == theirs.keys()
    for name, norm in theirs.items():
        own = ours[name].grad.double().norm().item()
        if name.startswith("ppm.stages") and name.endswith("2.bias"):  # mathematically zero
            assert own == pytest.approx(norm, abs=1e-8), name
        else:
            assert own == pytest.approx(norm, rel=limit), name
    buffers = dict(built.network.named_buffers())
    for name, (total, norm) in gold["running_sum_norm_after_one_forward"].items():
        value = buffers[name].double()
        assert value.norm().item() == pytest.approx(norm, rel=1e-5), name
        assert value.sum().item() == pytest.approx(total, abs=1e-4 * norm), name
