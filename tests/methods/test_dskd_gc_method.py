"""DSKD+GC as a method: its stages, its two networks, its labels, and batches at the edge."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from harness.data.base import DatasetInfo
from harness.engine.batch import IGNORE, UNLABELLED, Batch, Progress
from harness.engine.method import Build
from harness.engine.training import create_optimiser
from harness.nn.ema import cosine_momentum
from harness.recipes.resolving import resolve
from harness.recipes.specs import OptimiserSpec
from methods.dskd_gc import DSKDGC, DSKDGCConfig, unmirrored
from methods.dskd_gc.correction import class_maps, label_noise, training_labels

SIDE, CLASSES = 48, 4
WARM, AFTER = Progress(0, 100, 10), Progress(60, 100, 10)
SMALL = {
    "warmup_steps": 50,
    "projector_hidden": 32,
    "projector_bottleneck": 16,
    "projector_out": 64,
    "decoder_width": 16,
    "decoder_dilation": 1,
    "refine_dilations": (1, 2),
    "cam_size": 48,
}


def build() -> Build:
    info = DatasetInfo("toy", "Toy", tuple("bxyz"), ((0, 0, 0),) * CLASSES, {"train": 1}, 0, "toy")
    return Build(info, "image", (SIDE, SIDE), "mini_vit")


def make(seed: int = 0, **options) -> DSKDGC:
    torch.manual_seed(seed)
    return DSKDGC(DSKDGCConfig(**(SMALL | options)), build())


def make_batch(tags: list[list[int]], void: int = 0, seed: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    size = len(tags)
    raw = torch.randint(0, 256, (size, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    images = raw.float() / 64 - 2
    labels = torch.full((size, SIDE, SIDE), UNLABELLED)
    if void:
        labels[:, -void:] = IGNORE
    present = torch.tensor(tags, dtype=torch.float32)
    return Batch(images, labels, present, [str(i) for i in range(size)], raw, labels != IGNORE)


USUAL = [[0, 1, 0, 0], [0, 0, 1, 1]]


def total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


def state(network: torch.nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in network.state_dict().items()}


def step(method: DSKDGC, optimiser: torch.optim.Optimizer, progress: Progress, batch: Batch) -> None:
    """One step as the engine takes it."""
    optimiser.zero_grad(set_to_none=True)
    total(method(batch, progress)).backward()
    optimiser.step()
    method.after_step(progress)


# --- stages ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before_start", ["zero", "skip"])
def test_terms_of_each_stage(before_start):
    def names(method, progress):
        terms = method.train()(batch, progress)
        if before_start == "zero":  # heads whose terms do not count yet have a gradient of 0
            learning = {n for n, reached in method.zeroed().items() if any(p.requires_grad for p in reached)}
            assert learning <= set(terms)
            return {name for name, term in terms.items() if term != 0}
        return set(terms)

    batch, method = make_batch(USUAL), make(before_start=before_start)
    assert set(method.zeroed()) == ({"punc", "seg"} if before_start == "zero" else set())
    assert names(method, WARM) == {"cls", "aux_cls", "student_cls", "ptc", "sim"}
    assert names(method, AFTER) == {"cls", "aux_cls", "ptc", "punc", "seg"}
    both = make(sim_after_warmup=True, before_start=before_start)
    assert names(both, AFTER) == {"cls", "aux_cls", "ptc", "sim", "punc", "seg"}
    off = {"ptc_weight": 0, "sim_weight": 0, "punc_weight": 0, "seg_weight": 0}
    bare = make(**off, student_cls_in_warmup=False, before_start=before_start)
    assert names(bare, WARM) == names(bare, AFTER) == {"cls", "aux_cls"}


@pytest.mark.parametrize(
    ("key", "term", "progress"),
    [
        ("ptc_weight", "ptc", WARM),
        ("sim_weight", "sim", WARM),
        ("punc_weight", "punc", AFTER),
        ("seg_weight", "seg", AFTER),
    ],
)
def test_weights_scale_their_term(key, term, progress):
    usual = DSKDGCConfig()
    one = make(**{key: getattr(usual, key)})(make_batch(USUAL), progress)[term]
    twice = make(**{key: 2 * getattr(usual, key)})(make_batch(USUAL), progress)[term]
    torch.testing.assert_close(twice, 2 * one)


def test_warm_up_trains_both_networks_each_at_its_own_rate():
    method = make(ptc_weight=0.0).train()
    assert all(
        torch.equal(a, b)
        for a, b in zip(method.online.state_dict().values(), method.ema.state_dict().values(), strict=True)
    )
    optimiser = create_optimiser(
        method.parameter_groups(), OptimiserSpec(name="sgd", lr=1e-3, weight_decay=0)
    )
    for group in optimiser.param_groups:
        group["momentum"] = 0.0
        group["lr"] *= group["lr_scale"]
    before = state(method.online), state(method.ema)
    step(method, optimiser, WARM, make_batch(USUAL))
    moved = [
        {k: (v - old[k]) for k, v in state(network).items()}
        for network, old in zip((method.online, method.ema), before, strict=True)
    ]
    for network, change in zip((method.online, method.ema), moved, strict=True):
        parameters = dict(network.named_parameters())
        for name in ("encoder.blocks.0.attn.qkv.weight", "classifier.weight", "aux_classifier.weight"):
            rate = 1e-3 * (1.0 if network is method.online else 0.1)
            rate *= 1.0 if name.startswith("encoder") else 10.0
            gradient = parameters[name].grad
            assert gradient is not None
            torch.testing.assert_close(change[name], -rate * gradient, rtol=1e-3, atol=1e-8)
    scales = sorted({g["lr_scale"] for g in method.parameter_groups()})
    assert scales == pytest.approx([0.1, 1.0, 10.0])


@pytest.mark.parametrize("convention", ["standard", "literal"])
def test_afterwards_ema_is_the_moving_average_bit_for_bit(convention):
    """Weight decay and moments of warm-up must not move it, nor must any gradient."""
    method = make(ema_convention=convention, warmup_steps=2).train()
    optimiser = create_optimiser(method.parameter_groups(), OptimiserSpec(name="adamw", weight_decay=0.1))
    for group in optimiser.param_groups:
        group["lr"] = 1e-3 * group["lr_scale"]
    batch = make_batch(USUAL)
    for index in range(2):
        step(method, optimiser, Progress(index, 6, 10), batch)
    started = state(method.ema)
    for index in range(2, 6):
        old = {n: p.detach().clone() for n, p in method.ema.named_parameters()}
        optimiser.zero_grad(set_to_none=True)
        total(method(batch, Progress(index, 6, 10))).backward()
        assert all(p.grad is None for p in method.ema.parameters())
        optimiser.step()
        assert all(torch.equal(p, old[n]) for n, p in method.ema.named_parameters())
        method.after_step(Progress(index, 6, 10))
        momentum = cosine_momentum(0.996, index - 2, 4)
        share = 1 - momentum if convention == "standard" else 1 - (1 - momentum)
        online = dict(method.online.named_parameters())
        for name, parameter in method.ema.named_parameters():
            assert torch.equal(parameter, torch.lerp(old[name], online[name].detach(), share)), name
    assert any(not torch.equal(v, started[k]) for k, v in state(method.ema).items())


def test_literal_convention_follows_online_at_once():
    distances = {}
    for convention in ("standard", "literal"):
        method = make(ema_convention=convention).train()
        with torch.no_grad():
            for parameter in method.online.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))

        def distance(method: DSKDGC = method) -> float:
            pairs = zip(method.ema.parameters(), method.online.parameters(), strict=True)
            return sum(float((a - b).detach().square().sum()) for a, b in pairs) ** 0.5

        before = distance()
        method.after_step(AFTER)
        distances[convention] = distance() / before
    assert distances["literal"] < 0.01
    assert 0.99 < distances["standard"] < 1


# --- terms on the networks ---------------------------------------------------------------------------


class Halves(torch.nn.Module):
    """An encoder that is exactly equivariant: the colours of every patch."""

    def __init__(self, like: torch.nn.Module) -> None:
        super().__init__()
        self.channels, self.patch = like.channels, like.patch
        self.mix = torch.nn.Conv2d(3, self.channels, 1)

    def forward(self, images: Tensor, mask: Tensor | None = None):
        from harness.nn.vit import Tokens

        x = self.mix(torch.nn.functional.avg_pool2d(images, self.patch))
        return Tokens(x, x, x, x.mean((2, 3)))


def test_an_equivariant_encoder_is_perfectly_consistent():
    method = make()
    method.online.encoder = Halves(method.online.encoder)
    method.ema.encoder = method.online.encoder
    terms = method(make_batch(USUAL), WARM)
    torch.testing.assert_close(terms["sim"], torch.tensor(-0.5))


def test_mirrored_tokens_come_back_to_their_place():
    method = make().eval()
    images = make_batch(USUAL).images
    method.online.encoder = Halves(method.online.encoder)
    tokens = unmirrored(method.online.encoder(images.flip(-1)))
    torch.testing.assert_close(tokens.final, method.online.encoder(images).final)


def test_sim_reaches_both_networks_and_punc_only_online():
    method, batch = make().train(), make_batch(USUAL)
    method(batch, WARM)["sim"].backward()
    for network in (method.online, method.ema):
        assert network.encoder.blocks[0].attn.qkv.weight.grad.abs().sum() > 0
    method.zero_grad()
    method(batch, AFTER)["punc"].backward()
    assert all(p.grad is None for p in method.ema.parameters())
    assert method.online.projector.mlp[0].weight.grad.abs().sum() > 0


def test_the_projector_sees_uncertain_patches_alone():
    method, batch = make().train(), make_batch(USUAL)
    seen = []
    for network in (method.online, method.ema):
        network.projector.register_forward_hook(lambda m, inputs, out: seen.append(inputs[0].shape[0]))
    method(batch, AFTER)
    patches = len(batch) * (SIDE // 8) ** 2
    assert len(seen) == 2
    assert seen[0] == seen[1]
    assert 0 < seen[0] < patches


def test_dino_has_a_centre_that_moves_once_a_step_and_is_kept():
    method = make(punc_temperature="dino").train()
    assert make().centre is None
    before = method.centre.value.clone()
    method(make_batch(USUAL), AFTER)
    assert torch.equal(method.centre.value, before)
    method.after_step(AFTER)
    assert not torch.equal(method.centre.value, before)
    assert any(k.startswith("centre.value") for k in method.state_dict())


def test_scores_are_of_online_or_ema():
    method = make().eval()
    images = make_batch(USUAL).images
    with torch.no_grad():
        assert torch.equal(method.predict(images), method.predict(images, "student"))
        method.online.decoder.conv8.weight.mul_(2)
        torch.testing.assert_close(method.predict(images), 2 * method.predict(images, "student"))


# --- labels ------------------------------------------------------------------------------------------


def plain_labels(**options):
    """Labels of a batch under other readings of the correction."""
    config = DSKDGCConfig(**(SMALL | options))
    generator = torch.Generator().manual_seed(4)
    tags = torch.tensor(USUAL, dtype=torch.float32)[:, 1:]
    cam = torch.rand(2, CLASSES - 1, 6, 6, generator=generator) ** 2 * tags[:, :, None, None]
    features = torch.randn(2, 8, 6, 6, generator=generator) + 2
    valid = torch.ones(2, SIDE, SIDE, dtype=torch.bool)
    return training_labels(cam, tags, features, valid, config), cam, tags, features, valid, config


def test_without_correction_labels_are_those_of_the_map():
    labels, *_ = plain_labels(gc=False)
    assert torch.equal(labels.initial, labels.corrected)
    assert labels.noise is None
    corrected, *_ = plain_labels()
    assert torch.equal(corrected.initial, labels.initial)
    assert not torch.equal(corrected.corrected, labels.corrected)


OPTIONS = {
    "gc_fit_pixels": ["all", "nonbg"],
    "gc_rewrite": ["all", "keep_bg"],
    "gc_confidence": ["cam_max", "label_conf", "per_class"],
    "gc_fit_scope": ["image", "batch"],
    "gc_init": ["midpoint", "fixed"],
    "gc_grid": ["token", "pixel_nearest", "pixel_bilinear"],
    "gc_border": ["valid", "zero", "replicate"],
    "gc_source": ["initial", "after_rh"],
    "gc_monotone": [False, True],
    "gc_bins": [0, 1024],
}


@pytest.mark.parametrize(
    ("confidence", "scope", "grid", "pixels"),
    list(itertools.product(*(OPTIONS[f"gc_{k}"] for k in ("confidence", "fit_scope", "grid", "fit_pixels")))),
)
def test_every_reading_keeps_what_is_clean_and_invents_nothing(confidence, scope, grid, pixels):
    labels, _, tags, _, _, config = plain_labels(
        gc_confidence=confidence, gc_fit_scope=scope, gc_grid=grid, gc_fit_pixels=pixels, gc_tau=0.9
    )
    assert labels.initial.shape == labels.corrected.shape == (2, SIDE, SIDE)
    noise = labels.noise
    assert ((noise >= 0) & (noise <= 1)).all()
    patch = SIDE // noise.shape[-1]
    big = noise.repeat_interleave(patch, 1).repeat_interleave(patch, 2)
    clean = big <= config.gc_theta_low
    assert clean.any()
    assert not clean.all()
    assert torch.equal(labels.corrected[clean], labels.initial[clean])
    for one, present in zip(labels.corrected, tags, strict=True):
        assert set(one.unique().tolist()) <= {0, IGNORE} | {int(k) + 1 for k in present.nonzero()}
    if pixels == "nonbg":
        background = labels.initial == 0
        assert torch.equal(labels.corrected[background], labels.initial[background])


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, vs in OPTIONS.items() for v in vs])
def test_every_option_trains(key, value):
    method, batch = make(**{key: value}).train(), make_batch(USUAL)
    assert total(method(batch, AFTER)).isfinite()


@pytest.mark.parametrize(
    "options",
    [
        {"label_par": "before_gc"},
        {"label_par": "before_gc", "gc_grid": "pixel_nearest"},
        {"cam_form": "toco", "cam_scales": (1.0, 0.5)},
        {"cam_network": "student"},
        {"cam_network": "student", "punc_weight": 0.0, "label_par": "before_gc"},
        {"gc_feature": "layer_m"},
        {"gc_feature": "projected"},
        {"gc": False},
        {"cls_input": "class_token"},
        {"ptc_form": "toco", "ptc_labels": "binary"},
        {"sim_mode": "token", "sim_layer": "final", "sim_after_warmup": True},
        {"roi_cam": "final", "punc_reduce": "per_image", "punc_temperature": "dino"},
        {"seg_form": "balanced"},
        {"seg_form": "per_image_sum"},
        {"gc_grid": "pixel_nearest", "gc_distance": 8},
        {"pooling": "lse"},
    ],
    ids=lambda o: ",".join(f"{k}={v}" for k, v in o.items()),
)
def test_every_reading_trains_and_gives_labels(options):
    method, batch = make(**options).train(), make_batch(USUAL)
    for progress in (WARM, AFTER):
        method.zero_grad()
        loss = total(method(batch, progress))
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)
    given = method.eval().pseudo_labels(batch.images[..., :40], batch.tags)
    assert list(given) == ["cam", "aux-cam", "refined", "initial", "corrected"]
    for labels in given.values():
        assert labels.shape == (2, SIDE, 40)
        for one, present in zip(labels, batch.tags, strict=True):
            assert set(one.unique().tolist()) <= {0, IGNORE} | set(present.nonzero()[:, 0].tolist())


def test_on_pixels_a_distance_of_one_patch_is_the_token_grid():
    """With features enlarged by nearest neighbour and maps constant on patches, both grids agree."""
    tokens, cam, tags, features, valid, _ = plain_labels(gc_tau=0.6)
    config = DSKDGCConfig(
        **(SMALL | {"gc_tau": 0.6, "gc_grid": "pixel_nearest", "gc_distance": 8, "gc_bins": 0})
    )
    big = cam.repeat_interleave(8, 2).repeat_interleave(8, 3)
    pixels = training_labels(big, tags, features, valid, config)
    assert torch.equal(pixels.initial, tokens.initial)
    assert torch.equal(pixels.corrected, tokens.corrected)


def test_refined_labels_are_corrected_by_patches():
    """Labels finer than patches: the noise and the neighbours are those of the patches around."""
    plain, cam, tags, features, valid, config = plain_labels(gc_tau=0.6)
    again = training_labels(cam, tags, features, valid, config, refined=plain.initial)
    assert torch.equal(again.corrected, plain.corrected)
    fine = plain.initial.clone()
    fine[:, ::8] = 0  # a line of pixels through every patch
    other = training_labels(cam, tags, features, valid, config, refined=fine)
    clean = (other.noise <= config.gc_theta_low).repeat_interleave(8, 1).repeat_interleave(8, 2)
    assert torch.equal(other.corrected[clean], fine[clean])


def test_padding_stays_out_of_the_fit_and_without_label():
    _, cam, tags, features, valid, config = plain_labels()
    valid[:, :, 36:] = False  # four and a half patches
    here = training_labels(cam, tags, features, valid, config)
    assert (here.corrected[~valid] == IGNORE).all()
    assert (here.noise[:, :, 4:] == 0).all()
    changed = cam.clone()
    changed[..., 4:] = 0.99 * tags[:, :, None, None]
    there = training_labels(changed, tags, features, valid, config)
    assert torch.equal(here.noise, there.noise)


def test_noise_of_label_confidence_and_of_classes():
    generator = torch.Generator().manual_seed(9)
    tags = torch.tensor([[1.0, 1.0, 0.0]])
    cam = torch.zeros(1, 3, 20, 20)
    cam[0, 0, :10] = torch.rand(10, 20, generator=generator) ** 3
    cam[0, 1, 10:] = 0.5 * torch.rand(10, 20, generator=generator)
    labels = torch.where(cam.amax(1) > 0.4, cam.argmax(1) + 1, 0)
    inside = torch.ones(1, 20, 20, dtype=torch.bool)

    def noise(**options) -> Tensor:
        return label_noise(cam, tags, labels, inside, DSKDGCConfig(**options))

    usual, confident, each = (noise(gc_confidence=k) for k in ("cam_max", "label_conf", "per_class"))
    background = labels[0] == 0
    assert usual[0][cam[0].amax(0) < 0.02].mean() > 0.9  # low activations are noise
    assert confident[0][background & (cam[0].amax(0) < 0.02)].mean() < 0.2  # unless they mean background
    both = noise(gc_fit_scope="batch")
    torch.testing.assert_close(both, usual)  # a batch of one
    assert not torch.allclose(each, usual)
    torch.testing.assert_close(noise(gc_confidence="per_class", gc_fit_scope="batch"), each)


@pytest.mark.parametrize("network", ["teacher", "student"])
def test_exported_maps_are_those_that_are_scored(network):
    method, batch = make(cam_network=network).eval(), make_batch(USUAL)
    with torch.no_grad():
        method.ema.classifier.weight.mul_(-1)  # other maps than those of online
        images = batch.images[..., :40]
        maps = method.class_maps(images, batch.tags)
        labels = method.pseudo_labels(images, batch.tags)["cam"]
    assert maps.shape == (2, CLASSES, SIDE, 40)
    assert 0 <= maps.min() <= maps.max() <= 1
    assert (maps * (1 - batch.tags[:, :, None, None]) == 0).all()
    value, best = maps.max(1)
    assert torch.equal(labels, best.where(value > method.config.background_score, 0))
    assert (labels > 0).any()


def test_maps_without_positive_value_are_zero():
    maps = class_maps(-torch.rand(1, 4, 3, 3), torch.rand(2, 4))
    assert (maps == 0).all()


# --- batches at the edge -----------------------------------------------------------------------------

EDGES = {
    "nothing present": ([[0, 0, 0, 0], [0, 0, 0, 0]], 0),
    "all classes": ([[0, 1, 1, 1], [0, 1, 1, 1]], 0),
    "one class": ([[0, 1, 0, 0]], 0),
    "background tagged": ([[1, 1, 0, 0], [1, 0, 0, 1]], 0),
    "void border": (USUAL, 20),
    "nearly all void": (USUAL, SIDE - 1),
    "all void": (USUAL, SIDE),
}


@pytest.mark.parametrize("name", EDGES)
@pytest.mark.parametrize("progress", [WARM, AFTER], ids=["warm", "after"])
@pytest.mark.parametrize(
    "options", [{}, {"cam_form": "toco", "label_par": "before_gc"}], ids=["paper", "toco"]
)
def test_edges_are_finite(name, progress, options):
    tags, void = EDGES[name]
    method = make(**options).train()
    loss = total(method(make_batch(tags, void), progress))
    loss.backward()
    assert loss.isfinite()
    gradients = [p.grad for p in method.parameters() if p.grad is not None]
    assert gradients
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("high", [0.0, 1.0])
def test_maps_all_foreground_or_all_background_are_finite(high):
    """No background label at all, and no foreground label at all."""
    method = make(low=0.0 if high == 0 else 1.0, high=high, seg_form="balanced").train()
    loss = total(method(make_batch(USUAL), AFTER))
    loss.backward()
    assert loss.isfinite()


def test_losses_compute_in_float32_under_autocast():
    method, batch = make().train(), make_batch(USUAL)
    for progress in (WARM, AFTER):
        exact = method(batch, progress)
        with torch.autocast("cpu", torch.bfloat16):
            terms = method(batch, progress)
        for name, value in terms.items():
            assert value.dtype == torch.float32
            torch.testing.assert_close(value, exact[name], rtol=0.1, atol=0.05)


def test_training_pulls_the_mirror_images_together():
    """L_sim falls in warm-up, also where the two networks start apart."""
    method = make(sim_weight=5.0).train()
    with torch.no_grad():
        for parameter in method.online.encoder.blocks.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    optimiser = create_optimiser(method.parameter_groups(), OptimiserSpec(name="adamw"))
    for group in optimiser.param_groups:
        group["lr"] = 3e-4
    batch = make_batch(USUAL)
    first = method(batch, WARM)["sim"].item()
    for _ in range(8):
        step(method, optimiser, WARM, batch)
    assert method(batch, WARM)["sim"].item() < first - 0.05


def test_what_the_text_prints_is_the_default():
    """Equation 3 and its sentence, the augmentation, the authors; other readings are recipes by name."""
    printed = resolve("dskd_gc/voc-image-vitb")
    assert DSKDGCConfig().ptc_labels == printed.config.ptc_labels == "binary"
    augment = printed.recipe.augment
    assert (augment.crop_mode, augment.flip, augment.jitter) == ("area", 0.0, 0.0)
    other = resolve("dskd_gc/voc-image-vitb-mirror-jitter").recipe.augment
    assert (other.flip, other.jitter) == (0.5, 0.5)
    assert resolve("dskd_gc/voc-image-vitb-class-contrast").config.ptc_labels == "class"
    assert DSKDGC.paper is not None
    assert DSKDGC.paper.authors.startswith("Xuefei Bai, ")
