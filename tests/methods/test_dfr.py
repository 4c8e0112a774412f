"""DFR (reconstructed): every inferred option against a written-out form, and what reaches what."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from small_methods import make_batch
from torch import Tensor

from harness.basics.errors import UserError
from harness.data.base import DatasetInfo
from harness.engine.batch import IGNORE, UNLABELLED, Progress
from harness.engine.method import Build
from harness.recipes.resolving import resolve
from methods.dfr import (
    DFR,
    DFRConfig,
    cell_labels,
    pair_consistency,
    principal_components,
    summed_cross_entropy,
)

INFO = DatasetInfo(
    "toy", "Toy", ("background", "a", "b"), ((0, 0, 0), (1, 1, 1), (2, 2, 2)), {"train": 1}, 0, "toy"
)
EARLY, LATE = Progress(0, 1000, 10), Progress(999, 1000, 10)


def dfr(**config) -> DFR:
    torch.manual_seed(0)
    small = {"decoder": "deeplab", "aspp_rates": (1, 2, 3), "head_width": 16, "low_width": 8, "width": 16}
    values = DFRConfig(**(small | {"embedding": 8, "deep_start": 0} | config))
    return DFR(values, Build(INFO, "scribble", (48, 48), "mini_cnn"))


def run(method: DFR, progress: Progress = LATE) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return method.loss(make_batch(method, "scribble"), progress)


# --- pieces ------------------------------------------------------------------------------------------


def test_a_cell_takes_the_one_class_drawn_in_it():
    labels = torch.full((1, 8, 8), UNLABELLED)
    labels[0, 1, 2] = 1  # thin: nearest sampling at stride 4 would miss it
    labels[0, 5, 5], labels[0, 6, 6] = 1, 2  # two classes meet
    labels[0, 4:, :4] = IGNORE
    labels[0, 0, 7] = 0
    assert cell_labels(labels, (2, 2)).tolist() == [[[1, 0], [UNLABELLED, UNLABELLED]]]


@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_pair_consistency_is_its_definition(scale):
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(2, 5, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    cells = torch.randint(0, 3, (2, 3, 4), generator=generator)
    cells[:, 0] = UNLABELLED
    attract, repel = [], []
    for b in range(2):
        at = [(i, j) for i in range(3) for j in range(4) if cells[b, i, j] < UNLABELLED]
        for p, q in itertools.combinations(at, 2):
            a = torch.exp(-scale * (z[b, :, p[0], p[1]] - z[b, :, q[0], q[1]]).abs().mean())
            (attract if cells[b][p] == cells[b][q] else repel).append(a)
    expected = (1 - torch.stack(attract)).mean() / 2 + torch.stack(repel).mean() / 2
    found = pair_consistency(z, cells, samples=100, scale=scale)
    torch.testing.assert_close(found, expected)
    (own,), (reference,) = torch.autograd.grad(found, z), torch.autograd.grad(expected, z)
    torch.testing.assert_close(own, reference)


def test_pair_consistency_samples_only_what_is_drawn():
    z = torch.randn(1, 4, 16, 16)
    cells = torch.full((1, 16, 16), UNLABELLED)
    assert pair_consistency(z, cells).item() == 0
    cells[0, 3, 3] = 1
    assert pair_consistency(z, cells).item() == 0  # one cell makes no pair
    cells[0, 9, 9] = 2
    only = torch.exp(-(z[0, :, 3, 3] - z[0, :, 9, 9]).abs().mean()) / 2
    assert pair_consistency(z, cells, samples=4).item() == pytest.approx(only.item(), rel=1e-5)


def test_pairs_are_measured_between_annotated_cells_alone(monkeypatch):
    sides = []

    def watched(a, b, **options):
        sides.append(a.shape[1])
        return cdist(a, b, **options)

    cdist = torch.cdist
    monkeypatch.setattr(torch, "cdist", watched)
    cells = torch.full((2, 8, 8), UNLABELLED)
    cells[0, 2, :5], cells[1, :, 3] = 1, torch.arange(8) % 2
    pair_consistency(torch.randn(2, 4, 8, 8), cells)
    pair_consistency(torch.randn(2, 4, 8, 8), cells, samples=6)
    pair_consistency(torch.randn(2, 4, 8, 8), torch.zeros(2, 8, 8, dtype=torch.int64))
    assert sides == [8, 6, 64]


def test_balanced_cross_entropy_weighs_both_sides_alike():
    logits = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    labels = torch.randint(0, 3, (2, 4, 4))
    labels[:, 0] = UNLABELLED
    cost = F.cross_entropy(logits, labels.masked_fill(labels > 2, 0), reduction="none")
    expected = cost[labels == 0].mean() + cost[(labels > 0) & (labels < 3)].mean()
    torch.testing.assert_close(summed_cross_entropy(logits, labels, 0), expected)
    none = summed_cross_entropy(logits.requires_grad_(), torch.full_like(labels, UNLABELLED), 0)
    assert none.item() == 0
    assert not torch.autograd.grad(none, logits)[0].any()


def test_principal_components_keep_distances_where_three_suffice():
    flat = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    mixed = torch.einsum("dc,bchw->bdhw", torch.linalg.qr(torch.randn(8, 3, dtype=torch.float64))[0], flat)
    found = principal_components(mixed, 3)
    for a, b in zip(mixed, found, strict=True):
        torch.testing.assert_close(
            torch.cdist(a.flatten(1).T, a.flatten(1).T), torch.cdist(b.flatten(1).T, b.flatten(1).T)
        )


# --- the regulariser's kernel ------------------------------------------------------------------------


def brute_force(p: Tensor, rgb: Tensor, deep: Tensor, valid: Tensor, c: DFRConfig) -> Tensor:
    """The windowed regulariser, pair by pair."""
    total, counted = p.new_zeros(()), 0
    batch, _, height, width = p.shape
    for b in range(batch):
        for y, x in itertools.product(range(height), range(width)):
            if not valid[b, y, x]:
                continue
            counted += 1
            for v, u in itertools.product(range(height), range(width)):
                if (v, u) == (y, x) or max(abs(v - y), abs(u - x)) > c.radius or not valid[b, v, u]:
                    continue
                near = -((v - y) ** 2 + (u - x) ** 2) / (2 * c.sigma_xy**2)
                colour = -(rgb[b, :, y, x] - rgb[b, :, v, u]).square().sum() / (2 * c.sigma_rgb**2)
                alike = -(deep[b, :, y, x] - deep[b, :, v, u]).square().sum() / (2 * c.sigma_deep**2)
                if c.combine == "product":
                    k = torch.exp(near + colour + alike)
                elif c.combine == "sum":
                    k = c.shallow_share * torch.exp(near + colour)
                    k = k + (1 - c.shallow_share) * torch.exp(near + alike)
                else:
                    k = torch.exp(near + colour)
                total = total + k * (1 - (p[b, :, y, x] * p[b, :, v, u]).sum())
    return c.reg_weight * total / counted


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("combine", ["product", "sum", "shallow"])
def test_the_windowed_kernel_is_its_definition(combine, detach):
    method = dfr(combine=combine, detach_deep=detach, radius=2, sigma_rgb=1.0, consistency="none")
    batch = make_batch(method, "scribble", size=2)
    grid = (5, 6)
    low = torch.randn(2, 3, *grid, dtype=torch.float64, requires_grad=True)
    deep = F.normalize(torch.randn(2, 8, *grid, dtype=torch.float64), dim=1).requires_grad_()
    batch.images = F.interpolate(batch.images.double(), size=grid)
    batch.valid = torch.ones(2, *grid, dtype=torch.bool)
    batch.valid[:, -1] = False
    shown = None if combine == "shallow" else deep
    found = method._regulariser(low, low, shown, batch)
    expected = brute_force(
        low.softmax(1), batch.images, deep.detach() if detach else deep, batch.valid, method.config
    )
    torch.testing.assert_close(found, expected)
    inputs = [low] if detach or combine == "shallow" else [low, deep]
    for own, reference in zip(
        torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True
    ):
        torch.testing.assert_close(own, reference)


@pytest.mark.parametrize("combine", ["product", "sum"])
def test_the_dense_form_takes_deep_features_into_the_lattice(combine):
    shallow, deep = (dfr(pairs="dense", combine=c, dense_weight=1e-5) for c in ("shallow", combine))
    deep.load_state_dict(shallow.state_dict(), strict=False)
    values = [run(m)["reg"].item() for m in (shallow, deep)]
    assert values[0] < 0
    assert values[1] < 0
    assert values[0] != pytest.approx(values[1], rel=1e-3)


# --- schedule and gradients --------------------------------------------------------------------------


def gradient(loss: Tensor, method: DFR, prefix: str) -> float:
    parameters = [p for name, p in method.named_parameters() if name.startswith(prefix)]
    found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return sum(float(g.abs().sum()) for g in found if g is not None)


def test_detached_deep_features_are_trained_by_the_consistency_head_alone():
    detached, attached = dfr(), dfr(detach_deep=False)
    terms = run(detached)
    assert set(terms) == {"seg", "consistency", "reg"}
    assert gradient(terms["reg"], detached, "embed") == 0
    assert gradient(terms["consistency"], detached, "embed") > 0
    assert gradient(terms["consistency"], detached, "network") > 0
    terms = run(attached)
    assert gradient(terms["reg"], attached, "embed") > 0


def test_the_regulariser_and_its_deep_part_start_when_the_configuration_says():
    method = dfr(reg_start=0.5, deep_start=900)
    assert "reg" not in run(method, EARLY)
    shallow = dfr(reg_start=0.5, combine="shallow", consistency="none")
    shallow.load_state_dict({k: v for k, v in method.state_dict().items() if not k.startswith("embed")})
    middle = Progress(600, 1000, 10)
    assert run(method, middle)["reg"].item() == pytest.approx(run(shallow, middle)["reg"].item(), rel=1e-6)
    assert run(method)["reg"].item() < run(shallow)["reg"].item()  # a product with a kernel below one


@pytest.mark.parametrize("source", ["fused", "stages"])
@pytest.mark.parametrize("head", ["pairs", "window"])
@pytest.mark.parametrize("decoder", ["upernet", "deeplab"])
def test_every_head_and_embedding_on_both_decoders_trains(decoder, head, source):
    method = dfr(decoder=decoder, consistency=head, embedding_source=source, drop_path=None)
    terms = run(method)
    assert ("aux" in terms) == (decoder == "upernet")
    sum(terms.values()).backward()
    assert all(torch.isfinite(t) for t in terms.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())
    assert method.eval().predict(torch.randn(1, 3, 33, 50)).shape == (1, 3, 33, 50)


def test_swin_takes_any_size_and_its_norms_and_biases_do_not_decay():
    torch.manual_seed(0)
    config = DFRConfig(width=16, embedding=8)
    method = DFR(config, Build(INFO, "scribble", (64, 64), "swin_tiny_patch4_window7_224")).eval()
    with torch.no_grad():
        output = method.network(torch.randn(1, 3, 61, 90))
    assert [tuple(s.shape[1:]) for s in output.stages] == [
        (96, 16, 23),
        (192, 8, 12),
        (384, 4, 6),
        (768, 2, 3),
    ]
    assert method.predict(torch.randn(1, 3, 61, 90)).shape == (1, 3, 61, 90)
    groups = method.parameter_groups()
    assert [g.get("weight_decay") for g in groups] == [None, None, 0.0]
    table = method.network.backbone.layers_0.blocks[0].attn.relative_position_bias_table
    assert any(p is table for p in groups[2]["params"])
    assert sum(len(g["params"]) for g in groups) == len(list(method.parameters()))


def test_the_lattice_cannot_train_deep_features_and_says_so():
    with pytest.raises(UserError, match="no gradient to deep features"):
        dfr(pairs="dense", detach_deep=False)


def test_tables_call_it_a_reconstruction():
    assert DFR.title == "DFR (reconstructed)"
    assert any("reconstruction" in r for r in resolve("dfr/voc-scribble-swinb").recipe.remarks)


def test_every_inferred_key_states_its_source():
    from harness.basics.schema import documentation

    assert all(text.endswith("]") for text in documentation(DFRConfig).values())
