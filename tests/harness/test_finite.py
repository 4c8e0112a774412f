"""Nothing that is not a number is scored."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from runs import wsss
from small_methods import build

from harness.basics.errors import NonFiniteScoresError, NonFiniteWeightsError, UserError
from harness.basics.finite import decide_nothing, require_finite_weights
from harness.data.sets.mini import Mini
from harness.evaluation import evaluator
from harness.nn.dense_crf import mean_field
from harness.recipes import protocols
from harness.running.inference import export

SINGLE = protocols.protocol("single")


def test_what_decides_nothing():
    scores = torch.randn(1, 3, 2, 2)
    assert not decide_nothing(scores)
    ruled_out = scores.clone()
    ruled_out[0, 1] = -math.inf
    assert not decide_nothing(ruled_out)
    for value, where in (
        (math.nan, (0, 1, 0, 0)),
        (math.inf, (0, 2, 1, 1)),
        (-math.inf, (0, slice(None), 1, 0)),
    ):
        broken = scores.clone()
        broken[where] = value
        assert decide_nothing(broken), value
    assert decide_nothing(
        torch.full((1, 3, 2, 2), 70000.0).half().float()
    )  # what overflowed in half precision


@pytest.fixture(params=["weights", "running variance"])
def broken(request):
    """Networks that give NaN."""

    def breaks(name: str):
        method = build(name).eval()
        with torch.no_grad():
            for module in method.modules():
                if request.param == "weights" and isinstance(module, torch.nn.Conv2d):
                    module.weight.fill_(math.nan)
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.running_var.fill_(-1.0)
        return method

    return breaks


@pytest.mark.parametrize("name", ["full/mini-full", "agmm/mini-scribble", "cam/mini-image"])
@pytest.mark.parametrize("protocol", ["single", "agmm-voc"])
def test_scores_that_are_not_finite_end_an_evaluation_and_name_the_picture(name, protocol, broken, small):
    dataset = Mini.locate(small, small)
    first = dataset.ids("val")[0]
    with pytest.raises(NonFiniteScoresError, match=f"(?s)network 'default' are not finite.*picture {first}"):
        list(evaluator.predictions(broken(name), dataset, "val", protocols.protocol(protocol)))


def test_a_class_that_is_ruled_out_is_legal_and_hides_no_broken_one(small):
    method = build("full/mini-full").eval()
    raw = torch.randint(0, 256, (3, 48, 48), dtype=torch.uint8)
    suppressing = protocols.Protocol(absent="suppress")
    tags = torch.tensor([0.0, 1, 0, 0, 0, 0, 0])
    labels = evaluator.label_map(method, raw, suppressing, tags=tags)
    assert set(np.unique(labels)) <= {0, 1}
    good = method.grid_logits
    method.grid_logits = lambda x, n="default": torch.cat([good(x)[:, :3], good(x)[:, 3:] * math.nan], 1)
    with pytest.raises(NonFiniteScoresError, match="picture p"):
        evaluator.label_map(method, raw, suppressing, tags=tags, name="p")


def test_logits_of_another_number_of_classes_are_refused():
    method = build("full/mini-full").eval()
    method.grid_logits = lambda x, n="default": torch.zeros(1, 5, 8, 8)
    with pytest.raises(UserError, match=r"gives logits of \(1, 5, 8, 8\)"):
        evaluator.label_map(method, torch.zeros(3, 48, 48, dtype=torch.uint8), SINGLE)


@pytest.mark.parametrize(
    "name", ["cam/mini-image", "toco/mini-image", "fsr/mini-image", "dskd_gc/mini-image"]
)
def test_pseudo_labels_and_maps_of_a_broken_network_name_the_picture(name, small):
    dataset = Mini.locate(small, small)
    method = build(name).eval()
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.fill_(math.nan)
    first = dataset.ids("train")[0]
    with pytest.raises(NonFiniteScoresError, match=f"(?s)activation maps are not finite.*picture {first}"):
        list(evaluator.pseudo_labels(method, dataset, "train", ["cam"]))
    with pytest.raises(NonFiniteScoresError, match=f"(?s)activation maps are not finite.*picture {first}"):
        list(export.maps_of_split(method, dataset, "train"))


def test_a_crf_takes_no_probability_that_is_none():
    probabilities = torch.full((1, 3, 8, 8), 1 / 3)
    probabilities[0, 0, 3, 3] = math.nan
    with pytest.raises(NonFiniteScoresError, match="enter the CRF"):
        mean_field(probabilities, torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "toco")


def test_weights_that_are_not_finite_are_named():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    require_finite_weights(network, 3)
    network[1].running_var[2] = math.inf
    with pytest.raises(NonFiniteWeightsError, match=r"after step 2\n.*1\.running_var"):
        require_finite_weights(network, 3)
    network[0].weight.data[0] = math.nan
    with pytest.raises(NonFiniteWeightsError, match=r"0\.weight, 1\.running_var"):
        require_finite_weights(network, 3)


def test_a_last_step_that_ruins_the_network_fails_the_trial(small, tmp_path, capsys):
    arguments = ["run", "full/mini-full", "--seeds", "1", "--local", "--device", "cpu", "--data-root", small]
    tiny = ["--set", "schedule.steps=1", "--set", "optimiser.lr=1e30", "--set", "batch.per_group=4"]
    assert wsss(*arguments, "--results", tmp_path, *tiny) == 1
    error = capsys.readouterr().err
    assert "are not finite" in error
    assert not list(tmp_path.rglob("evaluation.json"))
    (record,) = tmp_path.rglob("record.json")
    assert '"status": "failed"' in record.read_text()
