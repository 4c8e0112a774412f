"""FSR's own parts: block masks, distillation, schedules, aggregation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from golden_arrays import arrays
from hypothesis import given
from hypothesis import strategies as st

from harness.engine.training import create_optimiser, lr_factor
from harness.nn.ema import cosine_momentum, ema_copy, ema_update
from harness.recipes.specs import OptimiserSpec, ScheduleSpec
from methods.fsr.aggregation import AggregationBlock
from methods.fsr.masking import block_mask, token_mask, uncertain_blocks
from methods.parts.distillation import (
    Centre,
    class_distillation,
    distillation_targets,
    masked_tokens,
    patch_distillation,
    teacher_temperature,
)

# --- masks -------------------------------------------------------------------------------------------


def test_masks_at_448_are_the_authors(golden):
    """Their maps are stored at the top left pixel of each block alone."""
    gold = arrays(golden / "fsr" / "masking.npz")
    blocks = gold["cam448_at_block_topleft"]
    cam = torch.full((3, 4, 448, 448), float("nan"))
    cam[..., ::64, ::64] = blocks
    uncertain = uncertain_blocks(cam, gold["cls_label"], 64)
    assert torch.equal(uncertain, gold["roi448_blocks"] > 0)
    random = block_mask(gold["noise_random"].view(3, 7, 7), 0.4)
    assert torch.equal(token_mask(random, 4), gold["mask_random"])
    mixed = block_mask(gold["noise_uncertain"].view(3, 7, 7), 0.4, uncertain)
    assert torch.equal(token_mask(mixed, 4), gold["mask_uncertain"])
    assert random.sum((1, 2)).tolist() == mixed.sum((1, 2)).tolist() == [20, 20, 20]


@pytest.mark.parametrize("sampling", ["nearest", "bilinear"])
def test_masks_at_64_are_the_authors_for_both_ways_to_read_a_block(golden, sampling):
    gold = arrays(golden / "fsr" / "masking64.npz")
    uncertain = uncertain_blocks(gold["cam"], gold["cls_label"], int(gold["block"]), sampling=sampling)
    noise = gold[f"noise_{sampling}"].view(3, 4, 4)
    mask = block_mask(noise, float(gold["ratio"]), uncertain)
    assert torch.equal(token_mask(mask, 2), gold[f"mask_{sampling}"])


@pytest.mark.parametrize("block", [3, 8])
@pytest.mark.parametrize("sampling", ["nearest", "bilinear"])
def test_uncertain_blocks_equal_a_resize_of_the_whole_map(block, sampling):
    torch.manual_seed(block)
    cam, present = torch.rand(3, 4, 6 * block, 5 * block), torch.randint(0, 2, (3, 4)).float()
    value = (cam * present[:, :, None, None]).amax(1)
    whole = ((value > 0.2) & (value < 0.7)).float()[:, None]
    options = {"align_corners": False} if sampling == "bilinear" else {}
    small = torch.nn.functional.interpolate(whole, size=(6, 5), mode=sampling, **options)[:, 0] > 0
    assert torch.equal(uncertain_blocks(cam, present, block, sampling=sampling), small)


@pytest.mark.parametrize("sampling", ["nearest", "bilinear"])
def test_a_block_that_reaches_over_the_edge_reads_the_nearest_pixel(sampling):
    cam = torch.rand(2, 3, 20, 13)
    whole = torch.nn.functional.pad(cam, (0, 3, 0, 4), mode="replicate")
    cut, full = (uncertain_blocks(c, torch.ones(2, 3), 8, sampling=sampling) for c in (cam, whole))
    assert torch.equal(cut, full)
    assert cut.shape == (2, 3, 2)
    assert token_mask(cut, 2, (5, 3)).shape == (2, 5, 3)


@given(st.integers(1, 8), st.integers(1, 8), st.floats(0.05, 0.95), st.integers(0, 99))
def test_every_image_gets_the_same_number_and_uncertain_blocks_go_first(height, width, ratio, seed):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(3, height, width, generator=generator)
    uncertain = torch.rand(3, height, width, generator=generator) < 0.5
    mask = block_mask(noise, ratio, uncertain)
    number = math.ceil(height * width * ratio)
    for one, ours in zip(uncertain, mask, strict=True):
        assert ours.sum() == number
        assert (ours & one).sum() == min(number, int(one.sum()))


# --- distillation ------------------------------------------------------------------------------------


def split(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Class token of every view ``(2, B, D)`` and patches ``(2, B, N, D)`` of the authors' rows."""
    views = torch.stack(rows.chunk(2))
    return views[:, :, 0], views[:, :, 1:]


def test_three_steps_agree_with_the_authors(golden):
    """Losses, gradients and both centres; local views beside; in one call an image without a mask."""
    gold = arrays(golden / "fsr" / "fsr_loss.npz")
    class_centre, patch_centre = Centre(24), Centre(24)
    for step in range(3):
        get = {k.removeprefix(f"s{step}_"): v for k, v in gold.items() if k.startswith(f"s{step}_")}
        temperature = float(gold["teacher_temp"][int(get["epoch"])])
        student = get["student"].requires_grad_()
        local = get["student_local"].requires_grad_()
        teacher_class, teacher_patches = split(get["teacher"])
        student_class, student_patches = split(student)
        mask = get["mask"][2:]
        targets = distillation_targets(teacher_class[0], class_centre.value, temperature)
        cls = class_distillation(student_class[1:], targets)
        views = torch.cat([student_class[1:], local.view(2, 2, 24)])
        with_local = class_distillation(views, targets)
        index, counts = masked_tokens(mask, int(mask.flatten(1).sum(1).max()))
        rows = index[..., None].expand(-1, -1, 24)
        targets = distillation_targets(teacher_patches[1].gather(1, rows), patch_centre.value, temperature)
        patch = patch_distillation(student_patches[1].gather(1, rows), targets, counts)
        for ours, theirs in ((cls, "class_loss"), (patch, "patch_loss"), (with_local, "class_loss_2local")):
            torch.testing.assert_close(ours, get[theirs], rtol=1e-5, atol=1e-6)
        (gradient,) = torch.autograd.grad(cls + 2 * patch, student, retain_graph=True)
        wanted = get["grad_student_of_class_plus_2patch"]
        torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-6)
        (gradient,) = torch.autograd.grad(with_local, local)
        torch.testing.assert_close(gradient, get["grad_local"], rtol=1e-5, atol=1e-6)
        class_centre.collect(teacher_class[0])
        patch_centre.collect(teacher_patches[1])
        for centre, name in ((class_centre, "class_center"), (patch_centre, "patch_center")):
            centre.update()
            torch.testing.assert_close(centre.value, get[name].flatten(), rtol=1e-5, atol=1e-6)


def test_images_without_masked_tokens_count_zero(golden):
    gold = arrays(golden / "fsr" / "fsr_loss.npz")
    empty = torch.zeros(2, 4, 4, dtype=torch.bool)
    _, counts = masked_tokens(empty, 6)
    z = torch.randn(2, 6, 24, requires_grad=True)
    loss = patch_distillation(z, z.detach().softmax(-1), counts)
    assert loss == gold["patch_loss_no_mask"] == 0
    loss.backward()
    assert z.grad.abs().sum() == 0
    none = patch_distillation(z[:, :0], z[:, :0].detach(), counts[:, :0])
    assert none == 0


def test_masked_tokens_are_found_in_every_image():
    mask = torch.tensor([[[1, 0], [0, 1]], [[0, 0], [1, 0]]], dtype=torch.bool)
    index, counts = masked_tokens(mask, 2)
    assert sorted(index[0].tolist()) == [0, 3]
    assert index[1, 0] == 2
    assert counts.tolist() == [[1, 1], [1, 0]]


def test_a_centre_moves_once_per_step_by_the_mean_over_all_groups():
    torch.manual_seed(0)
    groups = [torch.randn(n, 5, 8) for n in (2, 2, 3)]
    parts, whole, untouched = Centre(8), Centre(8), Centre(8)
    for group in groups:
        assert torch.equal(parts.value, torch.zeros(8))
        parts.collect(group)
    whole.collect(torch.cat(groups))
    for centre in (parts, whole, untouched):
        centre.update()
    torch.testing.assert_close(parts.value, whole.value)
    torch.testing.assert_close(parts.value, 0.1 * torch.cat(groups).mean((0, 1)))
    assert torch.equal(untouched.value, torch.zeros(8))
    parts.update()
    torch.testing.assert_close(parts.value, whole.value)  # nothing is counted twice
    assert set(parts.state_dict()) == {"value"}


# --- schedules ---------------------------------------------------------------------------------------


def test_momentum_and_temperature_follow_the_authors(golden):
    gold = arrays(golden / "fsr" / "schedules.npz")
    ours = [cosine_momentum(0.9995, int(i), 20000) for i in gold["mom_index"]]
    np.testing.assert_allclose(ours, gold["mom_voc20k_from_0p9995"], rtol=1e-9)
    ours = [teacher_temperature(int(i), 0.04, 0.07, 2500) for i in gold["temp_index"]]
    np.testing.assert_allclose(ours, gold["teacher_temp_voc"], rtol=1e-9)
    ours = [teacher_temperature(i, 0.04, 0.07, 4) for i in range(12)]
    losses = arrays(golden / "fsr" / "fsr_loss.npz")
    np.testing.assert_allclose(ours, losses["teacher_temp"][:12], rtol=1e-9)


def test_a_constant_temperature_has_no_rise():
    assert teacher_temperature(0, 0.04, 0.07, 0) == 0.07
    assert teacher_temperature(0, 0.04, 0.07, 1) == 0.04
    assert teacher_temperature(1, 0.04, 0.07, 1) == 0.07


def test_the_cosine_learning_rate_is_the_authors(golden):
    gold = arrays(golden / "fsr" / "schedules.npz")
    schedule = ScheduleSpec(steps=1, kind="cosine", warmup_steps=1500, warmup_factor=0.1)
    for total, steps, rates in (
        (20000, "lr_steps", "fsr_cos_lr_base_head"),
        (80000, "lr_steps80k", "fsr_cos_lr_80k"),
    ):
        factors = [lr_factor(schedule, int(i), total) for i in gold[steps]]
        ours = np.outer(factors, [6e-5, 6e-4])
        np.testing.assert_allclose(ours, gold[rates], rtol=1e-9, atol=1e-18)


def test_twelve_optimiser_and_teacher_steps_are_the_authors(golden):
    """AdamW under the cosine schedule on a quadratic, the teacher behind it."""
    gold = arrays(golden / "fsr" / "schedules.npz")
    student = torch.nn.ParameterList([torch.nn.Parameter(gold["adamw_student"][0].clone())])
    teacher = ema_copy(student)
    groups = [{"params": list(student.parameters()), "weight_decay": 0.05}]
    optimiser = create_optimiser(groups, OptimiserSpec(name="adamw", lr=0.01))
    schedule = ScheduleSpec(steps=12, kind="cosine", warmup_steps=4, warmup_factor=0.1)
    for step in range(12):
        optimiser.param_groups[0]["lr"] = 0.01 * lr_factor(schedule, step, 12)
        optimiser.zero_grad()
        (student[0] - gold["adamw_target"]).square().sum().backward()
        torch.testing.assert_close(student[0].grad, gold["adamw_grads"][step], rtol=1e-5, atol=1e-6)
        optimiser.step()
        momentum = cosine_momentum(0.9, step, 12)
        assert momentum == pytest.approx(float(gold["adamw_momentum"][step]), rel=1e-9)
        ema_update(teacher, student, momentum)
        torch.testing.assert_close(student[0].data, gold["adamw_student"][step + 1], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(teacher[0].data, gold["adamw_teacher"][step + 1], rtol=1e-5, atol=1e-6)


# --- aggregation -------------------------------------------------------------------------------------


def test_hidden_patches_do_not_reach_the_class_token():
    torch.manual_seed(0)
    block = AggregationBlock(24, 4, residual_scale=0.1).double()
    state, patches = torch.randn(2, 1, 24).double(), torch.randn(2, 9, 24).double()
    hidden = torch.rand(2, 9) < 0.4
    changed = torch.where(hidden[..., None], torch.randn(2, 9, 24).double(), patches)
    assert torch.equal(block(state, patches, hidden), block(state, changed, hidden))
    assert not torch.allclose(block(state, patches), block(state, changed))
    alone = [block(s[None], p[~h][None]) for s, p, h in zip(state, patches, hidden, strict=True)]
    torch.testing.assert_close(block(state, patches, hidden), torch.cat(alone))


def test_an_image_of_hidden_patches_alone_stays_finite():
    block = AggregationBlock(24, 4)
    out = block(torch.randn(2, 1, 24), torch.randn(2, 9, 24), torch.ones(2, 9, dtype=torch.bool))
    assert torch.isfinite(out).all()


def test_residual_scales_are_parameters_of_the_older_state_alone():
    older, head = AggregationBlock(24, 4, residual_scale=0.1), AggregationBlock(24, 4)
    new = {k for k, _ in older.named_parameters()} - {k for k, _ in head.named_parameters()}
    assert new == {"gamma1", "gamma2"}
    assert torch.equal(older.gamma1, torch.full((24,), 0.1))
    older.load_state_dict(head.state_dict(), strict=False)
    state, patches = torch.randn(1, 1, 24), torch.randn(1, 9, 24)
    for gamma in (older.gamma1, older.gamma2):
        torch.nn.init.ones_(gamma)
    torch.testing.assert_close(older(state, patches), head(state, patches))
    for gamma in (older.gamma1, older.gamma2):
        torch.nn.init.zeros_(gamma)
    assert torch.equal(older(state, patches), state)
