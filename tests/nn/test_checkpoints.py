"""Key tables and foreign checkpoints: every key is accounted for."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from harness.basics.errors import UserError
from harness.nn.checkpoints import KeyTable, load_checkpoint

TABLE = KeyTable(((r"net\.(.+)", r"own.\1"),), unused=(r"aux\..+",))


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.own = nn.Linear(3, 2)


def theirs(**extra: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"net.weight": torch.rand(2, 3), "net.bias": torch.rand(2), **extra}


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_wrappers_and_prefixes_are_understood(tmp_path, wrapper, prefix):
    state = {f"{prefix}{k}": v for k, v in theirs().items()}
    torch.save(state if wrapper is None else {wrapper: state, "epoch": 3}, tmp_path / "x.pth")
    toy = Toy()
    load_checkpoint(toy, tmp_path / "x.pth", TABLE)
    assert torch.equal(toy.own.bias, state[f"{prefix}net.bias"])


def test_safetensors_and_own_names_need_no_table(tmp_path):
    source, toy = Toy(), Toy()
    save_file(source.state_dict(), tmp_path / "x.safetensors")
    load_checkpoint(toy, tmp_path / "x.safetensors")
    assert torch.equal(toy.own.weight, source.own.weight)


def test_knowingly_unused_keys_pass_and_unknown_ones_do_not(tmp_path):
    torch.save(theirs(**{"aux.bias": torch.zeros(1)}), tmp_path / "x.pth")
    load_checkpoint(Toy(), tmp_path / "x.pth", TABLE)
    torch.save(theirs(extra=torch.zeros(1)), tmp_path / "x.pth")
    with pytest.raises(UserError, match="unknown keys: extra") as caught:
        load_checkpoint(Toy(), tmp_path / "x.pth", TABLE)
    assert caught.value.where == str(tmp_path / "x.pth")


def test_two_keys_must_not_mean_the_same():
    table = KeyTable(((r"(?:a|b)\.(.+)", r"own.\1"),))
    with pytest.raises(UserError, match=r"two keys of the checkpoint mean 'own\.bias'"):
        table({"a.bias": torch.zeros(1), "b.bias": torch.zeros(1)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"net.bias": None}, r"missing: own\.bias"),
        ({"net.scale": torch.zeros(1)}, r"surplus: own\.scale"),
        ({"net.bias": torch.zeros(5)}, r"other shape: own\.bias \(5,\) for \(2,\)"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(tmp_path, change, message):
    state = {k: v for k, v in (theirs() | change).items() if v is not None}
    torch.save(state, tmp_path / "x.pth")
    toy = Toy()
    before = toy.own.weight.clone()
    with pytest.raises(UserError, match=message):
        load_checkpoint(toy, tmp_path / "x.pth", TABLE)
    assert torch.equal(toy.own.weight, before)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="not found"):
        load_checkpoint(Toy(), tmp_path / "none.pth")


def test_long_lists_of_keys_are_cut(tmp_path):
    torch.save({f"k{i}": torch.zeros(1) for i in range(30)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="k7 and 22 more"):
        load_checkpoint(Toy(), tmp_path / "x.pth", TABLE)
