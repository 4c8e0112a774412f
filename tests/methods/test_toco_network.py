"""ToCo's whole network against that of the authors' code: weights by name, outputs, gradients."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformer_golden import SEEDS, filled, picture, shapes, state_dict

from harness.basics.errors import UserError
from harness.data.base import DatasetInfo
from harness.engine.batch import Progress
from harness.engine.method import Build
from harness.nn.checkpoints import load_checkpoint
from methods.parts.cam import activation_maps
from methods.toco import ToCo, ToCoConfig

FOLDER = Path(__file__).parents[1] / "golden" / "networks" / "toco"

#: Largest differences of float32 from the float64 arrays, as recommended with them.
SINGLE = {"seg": 5e-6, "proj": 5e-6, "proj_t": 5e-6}
CASES = {"s64": (1, 64, 64), "s96x80": (2, 96, 80), "odd75x100": (1, 75, 100), "s224": (1, 224, 224)}


def untrained(classes: int, backbone: str = "vit_base_patch16_224", **config) -> ToCo:
    """The method without values, so that building it takes no time."""
    names = tuple(f"class {k}" for k in range(classes))
    info = DatasetInfo("toy", "Toy", names, tuple((k, k, k) for k in range(classes)), {"train": 1}, 0, "toy")
    with torch.device("meta"):
        return ToCo(ToCoConfig(**config), Build(info, "image", (448, 448), backbone))


def method(keys: Path, dtype: torch.dtype = torch.float32) -> ToCo:
    """The method with the golden weights, through the key table of the authors' checkpoints."""
    weights = ToCo.key_tables()["toco"](state_dict(keys))
    state = {k: v.to(dtype, copy=True) for k, v in weights.items()}
    built = untrained(state["network.decoder.conv8.weight"].shape[0])
    built.load_state_dict(state, assign=True)
    return built.eval()


@pytest.fixture(scope="module", autouse=True)
def forget():
    """Nothing is kept for tests of other files."""
    yield
    filled.cache_clear()
    state_dict.cache_clear()


def every_tensor(built: ToCo, images: Tensor) -> dict[str, Tensor]:
    """Every tensor that the golden files know."""
    net = built.network
    blocks: list[Tensor] = []
    hooks = [b.register_forward_hook(lambda _m, _i, out: blocks.append(out)) for b in net.encoder.blocks]
    with torch.no_grad():
        output = net(images)
        for hook in hooks:
            hook.remove()
        if images.shape[-1] < 200:
            cam, aux_cam = net.maps(images)
        else:  # of a large picture once is enough
            cam = activation_maps(output.tokens.final, net.classifier.weight)
            aux_cam = activation_maps(output.tokens.aux, net.aux_classifier.weight)
        stacked = torch.stack(blocks)
        token = output.tokens.cls
        return {
            "input": images,
            "cls": output.cls,
            "cls_aux": output.aux_cls,
            "seg": output.seg,
            "cam": cam,
            "cam_aux": aux_cam,
            "proj": built.proj_head(token),
            "proj_t": built.proj_head_t(token),
            "cls_token": token,
            "fmap": output.tokens.final,
            "fmap_every8": output.tokens.final[:, ::8],
            "blocks": stacked,
            "block9": stacked[9],
            "block9_every8": stacked[9][..., ::8],
            "block11": stacked[11],
            "block_mean_std": torch.stack(
                [stacked.flatten(1).mean(1), stacked.flatten(1).std(1, correction=0)], 1
            ),
            "block_token_mean": stacked[:, :, 1:].mean(3),
            "aux": output.tokens.aux,
            "raw": output.tokens.raw,
        }


def compare(found: dict[str, Tensor], gold: dict[str, np.ndarray], double: bool) -> int:
    """Every golden array; returns how many there were."""
    for name, expected in gold.items():
        key = name.removesuffix("_f32")
        single = {"rtol": 1e-5, "atol": SINGLE.get(key, 5e-5)}
        exact = {"rtol": 1e-6 if expected.dtype == np.float32 else 0, "atol": 1e-10}
        limit = exact if double and not name.endswith("_f32") else single
        np.testing.assert_allclose(found[key].numpy(), expected, **limit, err_msg=name)
    return len(gold)


def load(file: Path) -> dict[str, np.ndarray]:
    with np.load(file) as data:
        return {k: data[k] for k in data}


def test_a_small_picture_goes_through_the_network_as_in_the_authors_code():
    gold = load(FOLDER / "coco_s64.npz")
    built = method(FOLDER / "keys_coco.json")
    found = every_tensor(built, picture(SEEDS["s64"], 1, 3, 64, 64))
    assert compare(found, gold, double=False) == 9
    assert torch.equal(found["aux"], found["block9"][:, 1:].mT.unflatten(2, (4, 4)))
    assert torch.equal(found["raw"], found["block11"][:, 1:].mT.unflatten(2, (4, 4)))
    # The averaged head moves before it is used, all of it.
    built.after_step(Progress(0, 20000, 100))
    norms = json.loads((FOLDER / "ema_head_norms.json").read_text())
    own = dict(built.proj_head_t.named_parameters())
    assert own.keys() == norms.keys()
    for name, norm in norms.items():
        assert own[name].double().norm().item() == pytest.approx(norm, rel=1e-6), name


def test_a_released_checkpoint_loads_from_its_file_and_every_key_is_accounted_for(tmp_path):
    """All keys that their script saves, in their order; views of one number stand for their values."""
    listed = shapes(FOLDER / "keys_coco.json")
    state = {key: torch.zeros(1).expand(shape) for key, shape in listed.items()}
    assert len(state) == 173
    assert all(key.startswith("module.") for key in state)
    used = ToCo.key_tables()["toco"]({k.removeprefix("module."): v for k, v in state.items()})
    assert len(used) == 171  # the ImageNet head is left aside
    assert {k: v.shape for k, v in used.items()} == {
        k: v.shape for k, v in untrained(81).state_dict().items()
    }
    file = tmp_path / "model_iter_80000.pth"
    for changed, message in (
        ({"module.extra.weight": torch.zeros(1)}, "unknown keys"),
        ({"module.decoder.conv8.weight": torch.zeros(21, 512, 1, 1)}, "other shape"),
    ):
        torch.save(state | changed, file)
        with pytest.raises(UserError, match=message):
            load_checkpoint(untrained(81), file, ToCo.key_tables()["toco"])


@pytest.mark.parametrize(("classes", "total"), [(21, 105_625_320), (81, 105_748_200)])
def test_the_number_of_parameters_is_the_authors(classes, total):
    built = untrained(classes)
    head = 1000 * 768 + 1000  # ImageNet's classifier, which is not ours
    assert sum(p.numel() for p in built.parameters()) == total - head
    trainable = sum(p.numel() for p in built.parameters() if p.requires_grad)
    frozen = 197 * 768 + 1024 + sum(p.numel() for p in built.proj_head_t.parameters())
    assert trainable == total - head - frozen
    if classes == 21:
        assert trainable == 98_914_024 - head


def test_deit_has_the_same_keys_and_shapes():
    own = untrained(21).state_dict()
    other = untrained(21, backbone="deit_base_patch16_224").state_dict()
    assert {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in other.items()}


# --- the full golden data ----------------------------------------------------------------------------


@pytest.fixture
def networks(full_golden: Path) -> Path:
    return full_golden / "networks" / "toco"


@pytest.mark.golden
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("kind", ["voc", "coco"])
def test_all_arrays_in_evaluation_mode(networks, kind, double):
    dtype = torch.float64 if double else torch.float32
    built = method(networks / f"keys_{kind}.json", dtype)
    number = 0
    for case, (count, height, width) in CASES.items():
        gold = load(networks / f"{kind}_{case}.npz")
        zero = gold.pop("prepare_tokens_zero_image", None)
        found = every_tensor(built, picture(SEEDS[case], count, 3, height, width).to(dtype))
        number += compare(found, gold, double)
        if zero is not None:
            entering: list[Tensor] = []
            first: nn.Module = built.network.encoder.blocks[0]
            hook = first.register_forward_pre_hook(lambda _m, args, kept=entering: kept.append(args[0]))
            with torch.no_grad():
                built.network(torch.zeros(1, 3, height, width, dtype=dtype))
            hook.remove()
            np.testing.assert_allclose(entering[0].numpy(), zero, rtol=1e-6, atol=1e-7)
    assert number == {"voc": 61, "coco": 35}[kind]


@pytest.mark.golden
def test_views_and_crops_are_projected_as_in_the_authors_code(networks):
    gold = load(networks / "voc_crops.npz")
    built = method(networks / "keys_voc.json", torch.float64)
    built.after_step(Progress(0, 20000, 100))  # they move the head first, then use it
    x, second = (torch.from_numpy(gold[k]).double() for k in ("x", "global2"))
    local = torch.from_numpy(gold["local"]).double().flatten(0, 1)
    encoder = built.network.encoder
    with torch.no_grad():
        views = torch.stack([encoder(x).cls, encoder(second).cls])
        student = built.proj_head(torch.cat([views, encoder(local).cls[:, None]]))
        teacher = built.proj_head_t(views)
    np.testing.assert_allclose(student[:, 0], gold["out_s"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(teacher[:, 0], gold["out_t"], rtol=0, atol=1e-10)


@pytest.mark.golden
@pytest.mark.parametrize("kind", ["voc", "coco"])
def test_gradient_norms_agree(networks, kind):
    gold = json.loads((networks / f"grad_norms_{kind}.json").read_text())
    built = method(networks / f"keys_{kind}.json").train()
    output = built.network(picture(SEEDS["s64"], 1, 3, 64, 64))
    parts = (output.seg, output.cls, output.aux_cls, built.proj_head(output.tokens.cls))
    loss = torch.stack([part.square().mean() for part in parts]).sum()
    assert loss.item() == pytest.approx(gold["loss"], rel=1e-5)
    loss.backward()
    table = ToCo.key_tables()["toco"]
    ours = dict(built.named_parameters())
    frozen = set()
    for theirs, norm in gold["norms"].items():
        for name in table({theirs: torch.zeros(1)}):  # none for the ImageNet head
            if norm is None:
                assert ours[name].grad is None, name
                frozen.add(name)
            else:
                assert ours[name].grad.double().norm().item() == pytest.approx(norm, rel=5e-6), name
    assert {n for n, p in ours.items() if not p.requires_grad} == frozen
    assert len(frozen) == 1 + 1 + 8  # positions, one gain, the averaged head
