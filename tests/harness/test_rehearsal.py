"""Networks are built and tried before they are trusted; what a method gets wrong is refused by name."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import timm
import torch
from runs import wsss
from small_methods import build, make_batch

from harness.basics.errors import UserError
from harness.basics.registry import DATASETS, DECLARATIONS, METHODS
from harness.basics.schema import dump
from harness.engine import faults, rehearsal
from harness.engine.batch import Progress
from harness.engine.build import Build, ViewSpec
from harness.engine.contract import check_terms
from harness.engine.rehearsal import rehearse, source_output
from harness.nn.encoders import create_encoder
from harness.recipes.resolving import all_recipes, resolve
from harness.running.trials.trial import Options, Trial, inspect
from methods.baselines import PartialCrossEntropy

RECIPE = "pce/mini-scribble"


def one_of_each() -> list[str]:
    """A recipe for every method, backbone and choice of terms, and for sets with a background and without.
    Positive numbers of one value are like those of another."""
    found: dict[str, str] = {}
    for name, r in all_recipes().items():
        own = (r.recipe.method, family(r.recipe.backbone))
        chosen = {
            k: v > 0 if isinstance(v, int | float) and not isinstance(v, bool) else v
            for k, v in dump(r.config).items()
        }
        background = DATASETS.get(r.recipe.dataset).info.background
        for key in ((*own, str(chosen)), (r.recipe.method, background)):
            found.setdefault(str(key), name)
    return list(dict.fromkeys(found.values()))


def family(backbone: str) -> str:
    """Residual networks of any depth are built by one class, and so are plain transformers of any size."""
    return next((kind for kind in ("resnet", "vit_", "deit_") if backbone.startswith(kind)), backbone)


@pytest.mark.parametrize("name", one_of_each())
def test_every_registered_recipe_can_be_built(name):
    found = rehearse(resolve(name))
    assert found.networks == METHODS.get(resolve(name).recipe.method).networks


def steps() -> list[str]:
    """A recipe for every method and backbone whose phases are worth a step; others share their losses."""
    found: dict[tuple[str, str], str] = {}
    for name, resolved in all_recipes().items():
        if "/mini-" not in name:
            found.setdefault((resolved.recipe.method, family(resolved.recipe.backbone)), name)
    return list(found.values())


#: Fewer of the blocks that a network repeats; all widths are its own.
FEWER = {"vit_": {"depth": 4}, "deit_": {"depth": 4}, "swin_": {"depths": (2, 2, 2, 2)}}
FEWER |= {"resnet101": {"layers": [2, 2, 2, 2]}}


@pytest.fixture
def shallow(monkeypatch):
    create = timm.create_model

    def create_model(name: str, **options):
        fewer = (more for start, more in FEWER.items() if name.startswith(start))
        return create(name, **next(fewer, {}), **options)

    monkeypatch.setattr(timm, "create_model", create_model)


@pytest.mark.parametrize("name", steps())
def test_every_method_takes_a_step_of_each_phase_on_its_backbone(name, shallow):
    smaller = {"config.local_size": 16} if name.startswith("toco/") else {}  # crops of a crop of 48
    resolved = resolve(name, smaller)
    recipe = resolved.recipe
    build = Build(DATASETS.get(recipe.dataset).info, recipe.supervision, (48, 48), recipe.backbone, "none")
    method = METHODS.get(recipe.method)(resolved.config, build).train()
    batch = make_batch(method, recipe.supervision, size=2)
    for fraction in method.probe_steps:
        method.zero_grad()
        terms = method(batch, Progress(int(fraction * 1000), 1000, 10))
        check_terms(terms, method, torch.device("cpu"))
        torch.stack([t.sum() for t in terms.values()]).sum().backward()
        assert any(p.grad is not None for p in method.parameters())


# --- recipes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "override", "message"),
    [
        (RECIPE, "backbone=resnet118", "unknown backbone 'resnet118'"),
        (RECIPE, "backbone=mini_vit", "is a vision transformer"),
        (RECIPE, "backbone=vit_tiny_patch16_224", "no feature pyramid"),
        (RECIPE, "backbone=hrnet_w18_small", "cannot be dilated to 8"),
        ("toco/mini-image", "backbone=resnet18", "not a plain vision transformer"),
        ("cam/mini-image", 'evaluation=[{output="camm"}]', "gives no output 'camm'"),
        ("pce/mini-scribble", 'evaluation=[{output="cam"}]', "gives no output 'cam'"),
        (RECIPE, "accumulate=16", "batch normalisation cannot train on one picture"),
        (RECIPE, "batch.per_group=1", "batch normalisation cannot train on one picture"),
    ],
)
def test_a_recipe_that_cannot_be_built_or_scored_is_refused_at_once(recipe, override, message, small, capsys):
    arguments = ["run", recipe, "--set", "weights=none", "--set", override, "--dry-run", "--device", "cpu"]
    assert wsss(*arguments, "--data-root", small) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipe", "overrides", "remedy"),
    [
        (RECIPE, {"accumulate": 16}, "--set accumulate=8"),
        (RECIPE, {"accumulate": 7}, "--set accumulate=5"),  # six pieces would leave a single picture
        ("blpseg/mini-scribble", {"accumulate": 99}, "--set accumulate=8"),
        (RECIPE, {"batch.per_group": 3, "accumulate": 2}, "--set accumulate=1"),
        ("full/mini-full", {"batch.per_group": 1, "batch.sync_bn": "all"}, "a larger batch.per_group"),
    ],
)
def test_pieces_of_one_picture_are_refused_as_one_picture_is(recipe, overrides, remedy):
    with pytest.raises(UserError, match="batch normalisation cannot train on one picture") as caught:
        rehearse(resolve(recipe, overrides))
    assert remedy in str(caught.value)
    if "accumulate" in remedy:
        rehearse(resolve(recipe, overrides | {"accumulate": int(remedy[-1])}))


@pytest.mark.parametrize(
    ("pictures", "pieces", "advised"),
    [(16, 1, 2), (16, 3, 5), (16, 8, None), (7, 1, 2), (7, 2, None), (5, 1, 2), (3, 1, None), (1, 1, None)],
)
def test_what_is_advised_against_a_lack_of_memory_is_legal(pictures, pieces, advised):
    recipe = resolve(RECIPE, {"batch.per_group": pictures, "accumulate": pieces}).recipe
    remedy = str(faults.remedy_of(torch.OutOfMemoryError("CUDA out of memory"), recipe))
    found = re.search(r"accumulate=(\d+)", remedy)
    assert (found and int(found[1])) == advised
    assert "a smaller crop" in remedy
    if advised:
        assert faults.smallest_piece(replace(recipe, accumulate=advised)) > 1


def test_batch_normalisation_that_fails_in_training_alone_has_the_same_remedy():
    """A layer that only the loss uses is not met before the start."""
    recipe = resolve(RECIPE, {"batch.per_group": 4, "accumulate": 4}).recipe
    with pytest.raises(ValueError) as caught:
        torch.nn.BatchNorm1d(3).train()(torch.ones(1, 3))
    assert "--set accumulate=2" in str(faults.remedy_of(caught.value, recipe))


def test_one_picture_is_legal_where_no_layer_sees_a_single_value():
    rehearse(resolve("toco/mini-image", {"batch.per_group": 1}))  # no batch normalisation
    rehearse(resolve("cam/mini-image", {"batch.per_group": 1}))  # many cells of one picture


def test_the_output_that_labels_come_from_is_checked_before_the_source_is_trained():
    assert source_output(resolve("cam/mini-image"), "cam/mini-image") == "cam"
    for labels_from in ("fsr/mini-image", "fsr/mini-image:refind"):
        with pytest.raises(UserError, match=r"fsr/mini-image gives cam and aux-cam and refined"):
            source_output(resolve("fsr/mini-image"), labels_from)


def test_nothing_is_allocated_and_no_random_number_is_drawn():
    before = torch.get_rng_state()
    rehearsal._known.clear()
    rehearse(resolve("agmm/voc-point-r101"))
    assert torch.equal(before, torch.get_rng_state())


def test_weights_that_cannot_be_read_or_do_not_fit_are_refused_before_training(small, tmp_path):
    whole = tmp_path / "whole.pth"
    encoder = resolve(RECIPE).recipe.backbone
    torch.save(create_encoder(encoder).state_dict(), whole)
    files = {"half.pth": whole.read_bytes()[:2000], "empty.safetensors": b"", "text.pt": b"not a network"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    torch.save({"other": torch.zeros(3)}, tmp_path / "other.pth")
    options = Options(tmp_path, (str(small),), device="cpu")
    for name in (*files, "other.pth", "missing.pth"):
        with pytest.raises(UserError) as caught:
            inspect(Trial(RECIPE, 0, {"weights": str(tmp_path / name)}), options)
        assert name in str(caught.value)
    inspect(Trial(RECIPE, 0, {"weights": str(whole)}), options)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"optimiser.name": "sgd", "optimiser.nesterov": True, "optimiser.momentum": 0.0},
            "momentum above 0",
        ),
        ({"optimiser.name": "adamw", "optimiser.nesterov": True}, "needs the optimiser sgd"),
        ({"schedule.steps": 20, "schedule.warmup_steps": 21}, "longer than the whole run of 20"),
    ],
)
def test_values_that_contradict_each_other_are_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        resolve(RECIPE, overrides)


def test_a_warm_up_is_compared_with_epochs_where_their_length_is_known(small, tmp_path):
    epochs = {"schedule.steps": None, "schedule.epochs": 2, "schedule.warmup_steps": 3}
    options = Options(tmp_path, (str(small),), device="cpu")
    with pytest.raises(UserError, match="longer than the whole run of 2"):
        inspect(Trial(RECIPE, 0, epochs), options)
    inspect(Trial(RECIPE, 0, epochs | {"schedule.warmup_steps": 2}), options)
    resolve(RECIPE, {"optimiser.name": "sgd", "optimiser.nesterov": True})


# --- methods -----------------------------------------------------------------------------------------


@pytest.fixture
def tried(monkeypatch):
    """Rehearse a recipe with a method of the test's own in place of its method."""

    def go(cls: type, declared: bool = False) -> rehearsal.Rehearsed:
        monkeypatch.setattr(rehearsal, "_known", {})
        get = METHODS.get
        monkeypatch.setattr(METHODS, "get", lambda name: cls if name == "pce" else get(name))
        if not declared:  # as most methods from outside
            monkeypatch.setattr(DECLARATIONS, "sole", lambda name: None)
        return rehearse(resolve(RECIPE))

    return go


def _method(**members) -> type:
    return type("Mine", (PartialCrossEntropy,), members)


def _forgotten(self, config, build):
    PartialCrossEntropy.__init__(self, config, build)
    self.extra = torch.nn.Conv2d(3, 3, 1)


MISTAKES = {
    "would stay at their random start.*": {
        "__init__": _forgotten,
        "parameter_groups": PartialCrossEntropy.parameter_groups,
    },
    "stand in two parameter groups": {
        "parameter_groups": lambda self: [{"params": list(self.parameters())}] * 2
    },
    "gives no list of dictionaries": {"parameter_groups": lambda self: list(self.parameters())},
    "has the key 'lr'": {"parameter_groups": lambda self: [{"params": list(self.parameters()), "lr": 1}]},
    r"gives logits of \(1, 5,": {
        "predict": lambda self, images, network="default": images.new_zeros(1, 5, 9, 9)
    },
    r"gives logits of \(1, 7, 9, 9\)": {
        "predict": lambda self, images, network="default": images.new_zeros(1, 7, 9, 9)
    },
    "gives torch.int64 of": {
        "predict": lambda self, images, network="default": images.new_zeros(1, 7, *images.shape[2:]).long()
    },
    "gives tuple": {"predict": lambda self, images, network="default": (images,)},
    r"predict\(network='teacher'\) gives NoneType": {
        "networks": ("default", "teacher"),
        "predict": lambda self, images, network="default": (
            PartialCrossEntropy.predict(self, images) if network == "default" else None
        ),
    },
    "cannot predict with its network 'default': KeyError": {
        "predict": lambda self, images, network="default": {}["nothing"]
    },
    "cannot be built: AttributeError": {"__init__": lambda self, config, build: config.nothing},
    "views gives no ViewSpec": {"views": lambda self: {"half": 0.5}},
    "pseudo_labels gives Tensor": {"pseudo_labels": lambda self, images, tags: images},
    r"the pseudo labels 'cam' are torch.int64 of \(1, 2, 2\)": {
        "pseudo_labels": lambda self, images, tags: {"cam": images.new_zeros(1, 2, 2).long()}
    },
    "the pseudo labels 'cam' are torch.float32": {
        "pseudo_labels": lambda self, images, tags: {"cam": images[:, 0]}
    },
    "cannot give its parameter groups: KeyError": {"parameter_groups": lambda self: {}["nothing"]},
    "cannot give its views: AttributeError": {"views": lambda self: self.config.nothing},
    "loss gives Tensor, not terms by name": {
        "loss": lambda self, batch, progress: self.network(batch.images).logits.mean()
    },
    r"'ce' is torch.float32 of shape \(2,": {
        "loss": lambda self, batch, progress: {"ce": self.network(batch.images).logits}
    },
    "no frozen dataclass of harness.basics.schema": {"Config": type("Plain", (), {})},
}


def _reads(what, first_step=0):
    """A loss that asks for something once training has come to a step (of a thousand)."""

    def loss(self, batch, progress):
        terms = PartialCrossEntropy.loss(self, batch, progress)
        if bool(terms["seg"] > 0) and progress.step >= first_step:  # values are needed to come here
            what(self, batch, progress)
        return terms

    return loss


def _half(self):
    return {"half": ViewSpec(scale=0.5)}


#: Reads that nothing answers, and what is said of them.
READS = {
    r"mine: a batch carries no view 'hafl'(.|\n)*did you mean 'half'": {
        "views": _half,
        "loss": _reads(lambda self, batch, progress: batch.views["hafl"].images),
    },
    r"a batch carries no view 'half'(.|\n)*let the method's `views` ask for it": {
        "loss": _reads(lambda self, batch, progress: batch.views["half"])
    },
    r"there is no view\.labels(.|\n)*valid: images, raw, valid": {
        "views": _half,
        "loss": _reads(lambda self, batch, progress: batch.views["half"].labels),
    },
    r"there is no batch\.masks": {"loss": _reads(lambda self, batch, progress: batch.masks)},
    r"there is no batch\.tag\b(.|\n)*did you mean 'tags'": {
        "loss": _reads(lambda self, batch, progress: batch.tag)
    },
    r"there is no progress\.steps(.|\n)*'step'": {
        "probe_steps": (0.0, 0.9),
        "loss": _reads(lambda self, batch, progress: progress.steps, first_step=500),
    },
    r"there is no config\.head_widht(.|\n)*'head_width'": {
        "loss": _reads(lambda self, batch, progress: self.config.head_widht)
    },
    r"there is no build\.classes": {"after_step": lambda self, progress: self.build.classes},
}


@pytest.mark.parametrize("message", READS)
def test_what_a_loss_asks_for_and_nothing_brings_is_named_before_the_first_step(message, tried):
    with pytest.raises(UserError, match=message) as caught:
        tried(_method(name="mine", **READS[message]))
    assert __file__ in caught.value.where


def test_a_view_that_is_there_and_one_that_is_looked_for_are_legal(tried):
    def loss(self, batch, progress):
        assert "other" not in batch.views
        assert batch.views.get("other") is None
        assert not hasattr(batch, "other")
        assert batch.rows(slice(0, 1)).views["half"].images.shape[0] == 1
        return PartialCrossEntropy.loss(self, batch, progress)

    tried(_method(views=_half, loss=loss))
    with pytest.raises(KeyError, match="no view 'other'"):
        make_batch(build("dfr/mini-scribble"), "scribble").to("cpu").views["other"]


def test_an_error_that_a_made_up_batch_may_cause_is_left_to_the_first_step(tried):
    def loss(self, batch, progress):
        raise UserError("no two pictures are equal")

    tried(_method(loss=loss))


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_in_a_method_is_named_before_the_first_step(message, tried):
    with pytest.raises(UserError, match=message):
        tried(_method(**MISTAKES[message]))


def test_a_class_that_is_not_what_its_declaration_says_is_refused(tried):
    other = {"supervision": frozenset({"image"}), "networks": ("default", "teacher")}
    with pytest.raises(UserError, match="its declaration differ in supervision and networks"):
        tried(_method(**other), declared=True)


def test_parameters_that_no_group_holds_are_named(tried):
    with pytest.raises(UserError, match=r"parameters extra\.weight, extra\.bias would stay"):
        tried(_method(__init__=_forgotten))


def test_frozen_parameters_need_no_group_and_may_stand_in_one(tried):
    def init(self, config, build):
        PartialCrossEntropy.__init__(self, config, build)
        self.guide = torch.nn.Conv2d(3, 3, 1).requires_grad_(False)
        self.later = torch.nn.Conv2d(3, 3, 1).requires_grad_(False)

    def groups(self):
        return [*PartialCrossEntropy.parameter_groups(self), {"params": self.later.parameters()}]

    tried(_method(__init__=init, parameter_groups=groups))
    with pytest.raises(UserError, match="no trainable parameter"):
        tried(_method(parameter_groups=lambda self: [{"params": self.requires_grad_(False).parameters()}]))


def test_a_method_that_needs_values_is_tried_with_some(tried):
    def predict(self, images, network="default"):
        return PartialCrossEntropy.predict(self, images * (1 + float(images.sum())))

    assert tried(_method(predict=predict)).networks == ("default",)


def _scalar() -> torch.Tensor:
    return torch.ones((), requires_grad=True) * 1


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        (_scalar(), "loss gives Tensor, not terms by name"),
        (None, "loss gives NoneType"),
        ({}, "loss gives no term"),
        ({"lr": _scalar()}, "cannot be called 'lr'"),
        ({"step": _scalar()}, "cannot be called 'step'"),
        ({"loss": _scalar()}, "cannot be called 'loss'"),
        ({1: _scalar()}, "cannot be called 1"),
        ({"ce": 1.0}, "'ce' is a float"),
        ({"ce": torch.ones(2, requires_grad=True)}, r"'ce' is torch.float32 of shape \(2,\)"),
        ({"ce": torch.ones((), dtype=torch.long)}, "'ce' is torch.int64"),
        ({"ce": _scalar().to("meta")}, "'ce' is on meta, not on cpu"),
        ({"ce": torch.ones(())}, "no loss term has a gradient"),
    ],
)
def test_terms_that_are_none_are_refused(terms, message):
    method = PartialCrossEntropy.__new__(PartialCrossEntropy)
    with pytest.raises(UserError, match=message):
        check_terms(terms, method, torch.device("cpu"))


def test_constant_terms_beside_one_with_a_gradient_are_legal():
    method = PartialCrossEntropy.__new__(PartialCrossEntropy)
    check_terms({"ce": _scalar(), "none": torch.zeros(())}, method, torch.device("cpu"))


@pytest.mark.parametrize("known", [False, True], ids=["before training", "at the first step"])
def test_wrong_terms_are_refused_before_the_optimiser_moves(known, small, tmp_path, monkeypatch, capsys):
    loss = PartialCrossEntropy.loss
    monkeypatch.setattr(PartialCrossEntropy, "loss", lambda *a: {"step": sum(loss(*a).values())})
    monkeypatch.setattr(rehearsal, "_known", {})
    if known:  # a made-up batch may not tell
        monkeypatch.setattr(rehearsal, "_try_losses", lambda *a: None)
    arguments = ["run", RECIPE, "--seeds", "1", "--local", "--device", "cpu", "--data-root", small]
    arguments += ["--results", tmp_path, "--set", "schedule.steps=2", "--set", "batch.per_group=2"]
    assert wsss(*arguments) == (1 if known else 2)
    assert "a loss term cannot be called 'step'" in capsys.readouterr().err
    assert not list(tmp_path.rglob("last.pt"))


def test_recipes_of_equal_networks_share_a_trial(monkeypatch):
    resolved = resolve(RECIPE)
    rehearse(resolved)
    monkeypatch.setattr(rehearsal, "_try", lambda r: pytest.fail("tried again"))
    rehearse(replace(resolved, name="other"))


def test_an_error_of_a_loss_is_said_with_the_line_and_the_shapes_of_its_author(monkeypatch):
    def loss(self, batch, progress):
        scores = self.network(batch.images).logits
        return {"seg": scores.transpose(1, 2) @ scores}

    monkeypatch.setattr(PartialCrossEntropy, "loss", loss)
    monkeypatch.setattr(rehearsal, "_known", {})
    with pytest.raises(UserError) as refused:
        rehearse(resolve(RECIPE))
    assert refused.value.where.endswith(f"{__file__}, line {loss.__code__.co_firstlineno + 2}, in loss")
    assert "scores is float32 (" in refused.value.remedy


def test_words_that_a_method_raises_itself_may_be_the_made_up_batchs_doing(monkeypatch):
    def loss(self, batch, progress):
        raise ValueError("no picture is called 2008_000008")

    monkeypatch.setattr(PartialCrossEntropy, "loss", loss)
    monkeypatch.setattr(rehearsal, "_known", {})
    rehearse(resolve(RECIPE))
