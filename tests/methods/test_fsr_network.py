"""FSR's networks against the authors' own: every stage, gradients, parameter groups, released checkpoints."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import harness.basics.compat  # noqa: F401  # isort: skip  (before timm)

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformer_golden import filled, state_dict

from harness.basics.errors import UserError
from harness.data.base import DatasetInfo
from harness.engine.method import Build
from harness.evaluation.evaluator import count, iou_from_counts, predict_scores
from harness.nn.checkpoints import load_checkpoint
from harness.nn.vit import ViTEncoder, resize_positions
from harness.recipes.protocols import protocol
from methods.fsr import FSR, FSRConfig
from methods.fsr.network import FSRNetwork, released_checkpoint
from methods.parts.cam import multi_scale_cam
from methods.parts.transformer import optimiser_groups

FOLDER = Path(__file__).parents[1] / "golden" / "networks" / "fsr"


def info(classes: int) -> DatasetInfo:
    names = tuple(f"class {k}" for k in range(classes))
    return DatasetInfo("toy", "Toy", names, tuple((k % 256,) * 3 for k in range(classes)), {}, 0, "toy")


def load(file: Path) -> dict[str, np.ndarray]:
    with np.load(file) as data:
        return {k: data[k] for k in data}


# --- a tiny network ----------------------------------------------------------------------------------


@pytest.fixture
def tiny(golden) -> tuple[FSRNetwork, dict[str, np.ndarray]]:
    """The authors' network at width 24; a 1x1 convolution stands for its LargeFOV head, as there."""
    gold = load(golden / "fsr" / "tiny_network.npz")
    body = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=4, num_heads=4, mlp_ratio=2, num_classes=0
    )
    encoder = ViTEncoder(body, crop=(32, 32), class_token="apart", position="trained", mask_token=True)
    for norm in (m for m in encoder.modules() if isinstance(m, nn.LayerNorm)):
        assert norm.eps == 1e-6
    config = FSRConfig(projector_outputs=16, projector_hidden=16, projector_bottleneck=8)
    network = FSRNetwork(encoder, 6, config)
    network.decoder = nn.Conv2d(24, 6, 1)
    state = {k.removeprefix("w:"): torch.from_numpy(v) for k, v in gold.items() if k.startswith("w:")}
    renamed = released_checkpoint(state)
    network.load_state_dict(
        {k.removeprefix("network."): v for k, v in renamed.items() if k.startswith("network.")}
    )
    return network.eval(), gold


def agree(ours: Tensor, theirs: np.ndarray, atol: float = 2e-5) -> None:
    np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=0, atol=atol)


def projected(network: FSRNetwork, images: Tensor, mask: Tensor | None = None) -> Tensor:
    """Projections of class token and patches, ``(B, 1 + N, D)``."""
    tokens = network.encoder(images, mask)
    return network.projector(all_tokens(network, tokens))


def all_tokens(network: FSRNetwork, tokens) -> Tensor:
    return torch.cat([network.aggregate(tokens)[:, None], tokens.final.flatten(2).mT], 1)


@torch.no_grad()
def test_every_output_of_the_tiny_network(tiny):
    network, gold = tiny
    image, image2 = torch.from_numpy(gold["image"]), torch.from_numpy(gold["image2"])
    mask = torch.from_numpy(gold["mask"])
    both = torch.cat([image, image2])
    tokens = network.encoder(both, mask)
    agree(all_tokens(network, tokens), gold["enc_top_masked"])
    agree(tokens.aux.flatten(2).mT, gold["enc_aux_masked"])
    agree(projected(network, both, mask), gold["multi_project"])
    local = torch.cat([torch.from_numpy(gold[f"local{i}"]) for i in range(2)])
    agree(network.projector(network.aggregate(network.encoder(local))), gold["multi_project_local"])
    single = network(image)
    agree(single.cls, gold["single_top_cls"])
    agree(single.aux_cls, gold["single_aux_cls"])
    agree(single.seg, gold["single_seg"])
    agree(projected(network, image), gold["single_project"])
    assert not mask[:2].any()
    first = network(both, mask)
    agree(first.cls[:2], gold["multi_top_cls"])
    agree(first.seg[:2], gold["multi_seg"])


@torch.no_grad()
def test_activation_maps_of_the_tiny_network(tiny):
    network, gold = tiny
    image = torch.from_numpy(gold["image"])
    for ours, name in zip(network.maps(image), ("cam_top", "cam_aux"), strict=True):
        agree(ours, gold[name])
    for scales, kind in (((1.0, 0.5, 1.5), "ms"), ((1.0,), "ss")):
        maps = multi_scale_cam(network.maps, image, scales)
        for ours, name in zip(maps, ("top", "aux"), strict=True):
            agree(ours, gold[f"{kind}_cam_{name}"])


@torch.no_grad()
def test_an_odd_size_and_the_fused_test_scores_of_the_tiny_network(tiny):
    network, gold = tiny
    image = torch.from_numpy(gold["odd_image"])
    agree(network(image).seg, gold["odd_seg"])
    fused = predict_scores(lambda x: network(x).seg, image, protocol("fsr-ms"))
    agree(fused, gold["odd_fused_seg"])


def test_parameter_groups_of_the_tiny_network(tiny):
    network, gold = tiny
    wanted = [set(g) for g in json.loads(str(gold["param_groups_json"]))]
    assert groups_of(network, "") == [g - {"projector.last_layer.weight_g"} for g in wanted]


def groups_of(module: nn.Module, prefix: str) -> list[set[str]]:
    """Names, as the authors', of our groups in their order: encoder without and with decay, then heads."""
    prefixes = (f"{prefix}encoder.", f"{prefix}aggregation.")
    names = {id(p): n.removeprefix(prefix) for n, p in module.named_parameters()}
    found: dict[tuple[float, bool], set[str]] = {}
    for group in optimiser_groups(module, prefixes, 10.0, decay="matrices"):
        key = (group["lr_scale"], "weight_decay" not in group)
        found[key] = {their_name(names[id(p)]) for p in group["params"]}
    return [found.get((scale, decay), set()) for scale in (1.0, 10.0) for decay in (False, True)]


def their_name(name: str) -> str:
    name = name.replace("aggregation.", "encoder.cls_blocks.")
    return name.replace("classifier.", "top_classifier.") if name.startswith("classifier.") else name


def test_scores_agree_with_the_authors_evaluation(golden):
    """Mean IoU over classes that occur in the masks, and pixel accuracy."""
    gold = load(golden / "fsr" / "evaluate.npz")
    counts = [count(p, g, 6) for p, g in zip(gold["pred"], gold["gt"], strict=True)]
    intersection, predicted, labelled = (np.sum(c, axis=0) for c in zip(*counts, strict=True))
    iou, miou = iou_from_counts(intersection, predicted, labelled, "labelled")
    assert miou == pytest.approx(100 * float(gold["miou6"]), abs=1e-10)
    present = labelled > 0
    np.testing.assert_allclose(iou[present], 100 * gold["iou6"][present], atol=1e-10)
    assert intersection.sum() / labelled.sum() == pytest.approx(float(gold["pacc6"]), abs=1e-12)
    recall = intersection[present] / labelled[present]
    assert recall.mean() == pytest.approx(float(gold["macc6"]), abs=1e-12)


# --- the full-size network ---------------------------------------------------------------------------


def untrained(classes: int, **config) -> FSR:
    """The method without values, so that building it takes no time."""
    with torch.device("meta"):
        return FSR(FSRConfig(**config), Build(info(classes), "image", (448, 448), "vit_base_patch16_224"))


@cache
def _filled(keys: str) -> FSR:
    state = {e["key"]: filled(e["key"], tuple(e["shape"])) for e in json.loads(keys)}
    built = untrained(len(state["decoder.conv8.weight"]), drop_path=0.0)
    built.load_state_dict(FSR.key_tables()["fsr"](state), assign=True)
    return built.eval()


@pytest.fixture(scope="module", autouse=True)
def forget():
    """Half a gigabyte for each network: none is kept for tests of other files."""
    yield
    _filled.cache_clear()
    filled.cache_clear()
    state_dict.cache_clear()


def method(keys: Path = FOLDER / "keys_voc.json") -> FSR:
    """The method with the golden weights, through the key table of the authors' checkpoints."""
    return _filled(keys.read_text())


@torch.no_grad()
def every_tensor(network: FSRNetwork, images: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    """Every tensor that the golden files know; tokens as ``(B, N, C)``."""
    blocks: list[Tensor] = []
    states: list[Tensor] = []
    hooks = [b.register_forward_hook(lambda _m, _i, o: blocks.append(o)) for b in network.encoder.blocks]
    hooks += [b.register_forward_hook(lambda _m, _i, o: states.append(o)) for b in network.aggregation]
    output = network(images, mask)
    tokens = all_tokens(network, output.tokens)
    for hook in hooks:
        hook.remove()
    cams = [
        F.conv2d(t, c.weight).relu()
        for t, c in (
            (output.tokens.final, network.classifier),
            (output.tokens.aux, network.aux_classifier),
        )
    ]
    again = mask is None and images.shape[-1] < 200  # of a large picture once is enough
    unmasked = network.maps(images) if again else cams
    outputs = network.projector(tokens)
    stacked = torch.stack(blocks)
    return {
        "top_cls_out": output.cls,
        "aux_cls_out": output.aux_cls,
        "seg_out": output.seg,
        "cam_only_top": unmasked[0],
        "cam_only_aux": unmasked[1],
        "cls_block_out": torch.stack(states),
        "final_cls": tokens[:, 0],
        "final": tokens,
        "project_cls": outputs[:, 0],
        "project_patch": outputs[:, 1:],
        "block_mean_std": torch.stack([stacked.mean((1, 2, 3)), stacked.std((1, 2, 3), correction=0)], 1),
        "block_token_mean": stacked.mean(-1),
        "blocks": stacked,
        "block9": output.tokens.aux.flatten(2).mT,
        "block11": output.tokens.raw.flatten(2).mT,
        "pos": resize_positions(network.encoder.pos_embed, (28, 28), output.seg.shape[-2:])[:, 1:],
    }


def compare(found: dict[str, Tensor], gold: dict[str, np.ndarray], double: bool) -> int:
    """Every golden array of the tensors; returns how many there were."""
    number = 0
    for key, expected in gold.items():
        if key in ("input", "mask"):
            continue
        if double and key.endswith("_f32"):
            continue
        name, _, every = key.removesuffix("_f32").partition("_every")
        value = found[name]
        if name == "project_patch":
            step = 1 if every == "16" and expected.shape[2] == 256 else 7
            value = value[:, ::step, :: 16 if step == 1 else 64]
        elif every:
            value = value[..., :: int(every)]
        small = name in ("seg_out", "project_cls", "project_patch")
        if double:
            limits = {"rtol": 1e-6, "atol": 1e-6} if expected.dtype == np.float32 else {"atol": 1e-10}
        else:
            limits = {"rtol": 1e-5, "atol": 5e-6 if small else 5e-5}
        np.testing.assert_allclose(value.numpy(), expected, **{"rtol": 0, **limits}, err_msg=key)
        number += 1
    return number


def test_every_stage_agrees_on_a_masked_picture():
    gold = load(FOLDER / "voc_s64_masked.npz")
    images, mask = torch.from_numpy(gold["input"]), torch.from_numpy(gold["mask"])
    assert compare(every_tensor(method().network, images, mask), gold, double=False) == 17


def test_the_optimiser_groups_are_the_authors():
    groups = json.loads((FOLDER / "param_groups.json").read_text())
    wanted = [set(groups[f"group{i}"]) - {"projector.last_layer.weight_g"} for i in range(4)]
    assert groups_of(method(), "network.") == wanted


def test_a_released_checkpoint_loads_into_both_networks(tmp_path):
    state = state_dict(FOLDER / "keys_voc.json")
    assert len(state) == 196
    file = tmp_path / "student.pth"
    torch.save(state, file)
    built = untrained(21).to_empty(device="cpu")
    load_checkpoint(built, file, FSR.key_tables()["fsr"])
    for name, value in method().state_dict().items():
        assert torch.equal(built.state_dict()[name], value), name
    assert sum(p.numel() for p in built.network.parameters()) == 113_714_944
    other = dict(state)
    other["decoder.conv8.weight"] = torch.zeros(81, 512, 1, 1)
    torch.save(other, file)
    with pytest.raises(UserError, match="other shape"):
        load_checkpoint(built, file, FSR.key_tables()["fsr"])


def test_unknown_keys_are_refused():
    with pytest.raises(UserError, match="unknown keys"):
        released_checkpoint({"encoder.cls_token": torch.zeros(1, 1, 4), "optimizer.state": torch.zeros(1)})


# --- the full golden data ----------------------------------------------------------------------------

CASES = [
    *(f"{data}_{size}" for data in ("voc", "coco") for size in ("s64", "s96x80", "odd75x100", "s224")),
    *(f"{data}_{size}_masked" for data in ("voc", "coco") for size in ("s64", "s96x80")),
    "voc_s448",
]
SEEDS = {"s224": (104, 224), "s448": (105, 448)}


@pytest.fixture
def networks(full_golden: Path) -> Path:
    return full_golden / "networks" / "fsr"


@pytest.mark.golden
@pytest.mark.parametrize("case", CASES)
def test_all_arrays(networks, case):
    gold = load(networks / f"{case}.npz")
    data, size, *_ = case.split("_")
    if size in SEEDS:
        seed, side = SEEDS[size]
        noise = np.random.RandomState(seed).standard_normal((1, 3, side, side))
        images = torch.from_numpy(noise.astype(np.float32))
    else:
        images = torch.from_numpy(gold["input"])
    mask = torch.from_numpy(gold["mask"]) if "mask" in gold else None
    network = method(networks / f"keys_{data}.json").network
    left_out = {"input", "mask"} & set(gold)
    assert compare(every_tensor(network, images, mask), gold, double=False) == len(gold) - len(left_out)
    if case == "voc_s448":
        return
    network.double()
    try:
        compare(every_tensor(network, images.double(), mask), gold, double=True)
    finally:
        network.float()


@pytest.mark.golden
@pytest.mark.parametrize("data", ["voc", "coco"])
@torch.no_grad()
def test_two_views_and_local_views(networks, data):
    gold = {k: torch.from_numpy(v) for k, v in load(networks / f"{data}_multiview.npz").items()}
    network = method(networks / f"keys_{data}.json").network
    views, mask = torch.cat([gold["view1"], gold["view2"]]), gold["mask"]
    tokens = network.encoder(views, mask)
    first = network(gold["view1"])
    close = {"rtol": 1e-5, "atol": 5e-5, "check_dtype": False}
    torch.testing.assert_close(first.cls, gold["top_cls_out"], **close)
    torch.testing.assert_close(first.aux_cls, gold["aux_cls_out"], **close)
    torch.testing.assert_close(first.seg, gold["seg_out"], **close)
    torch.testing.assert_close(first.tokens.final, tokens.final[:1], **close)
    for ours, name in zip(network.maps(gold["view1"]), ("top_cam", "aux_cam"), strict=True):
        torch.testing.assert_close(ours, gold[name], **close)
    if data == "coco":
        return
    torch.testing.assert_close(tokens.final[:1], gold["top_fmap"], **close)
    torch.testing.assert_close(tokens.aux[:1], gold["aux_fmap"], **close)
    outputs = network.projector(all_tokens(network, tokens))
    torch.testing.assert_close(outputs, gold["project_out"], rtol=1e-5, atol=5e-6)
    for i in range(2):
        local = network.projector(network.aggregate(network.encoder(gold[f"local{i + 1}"])))
        torch.testing.assert_close(local[0], gold["project_out2"][i].float(), rtol=1e-5, atol=5e-6)


@pytest.mark.golden
@pytest.mark.parametrize("data", ["voc", "coco"])
def test_gradient_norms(networks, data):
    gold = load(networks / "voc_s64_masked.npz")
    wanted = json.loads((networks / f"grad_norms_{data}.json").read_text())
    network = method(networks / f"keys_{data}.json").network.double().train()
    try:
        images, mask = torch.from_numpy(gold["input"]).double(), torch.from_numpy(gold["mask"])
        output = network(images, mask)
        outputs = network.projector(all_tokens(network, output.tokens))
        terms = (output.seg, output.cls, output.aux_cls, outputs)
        loss = sum(t.square().mean() for t in terms)
        assert loss.item() == pytest.approx(wanted["loss"], rel=1e-6)
        network.zero_grad()
        loss.backward()
        found = {their_name(n): p.grad for n, p in network.named_parameters()}
        assert found.keys() == wanted["norms"].keys()
        for name, norm in wanted["norms"].items():
            if norm is None:
                assert found[name] is None
            elif name.endswith("attn.k.bias"):  # mathematically zero
                assert found[name].norm().item() == pytest.approx(norm, abs=1e-12), name
            else:
                assert found[name].norm().item() == pytest.approx(norm, rel=5e-6, abs=1e-12), name
    finally:
        network.zero_grad()
        network.float().eval()
