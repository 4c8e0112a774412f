"""What every method promises, tested over the registry: a new one is tested the day it is registered."""

from __future__ import annotations

import dataclasses
import typing

import optuna
import pytest
import torch
from small_methods import SIDE, build, make_batch, mini_recipes

from harness.basics.errors import UserError
from harness.basics.registry import DATASETS, METHODS
from harness.basics.schema import InferenceOnly, Shapes, TrainingOnly, fields, load, marks
from harness.engine.batch import IGNORE, UNLABELLED, Progress
from harness.engine.build import Build
from harness.engine.contract import check_label_map, check_logits
from harness.engine.outputs import SEGMENTATION
from harness.engine.rehearsal import rehearse
from harness.recipes.resolving import recipe_names, resolve


def test_every_method_has_a_miniature_recipe_for_every_supervision_it_accepts():
    covered = {(resolve(n).recipe.method, resolve(n).recipe.supervision) for n in mini_recipes()}
    for name in METHODS.names():
        for supervision in METHODS.get(name).supervision:
            assert (name, supervision) in covered, f"{name} has no miniature recipe under {supervision}"


@pytest.mark.parametrize("name", mini_recipes())
def test_losses_are_finite_and_reach_every_trainable_parameter(name):
    method = build(name)
    recipe = resolve(name).recipe
    batch = make_batch(method, recipe.supervision)
    reached: set[str] = set()
    for fraction in method.probe_steps:
        method.train().zero_grad()
        terms = method(batch, Progress(int(fraction * 1000), 1000, 10))
        assert terms, "no loss term"
        for term_name, term in terms.items():
            assert torch.isfinite(term).all(), term_name
        torch.stack([t.sum() for t in terms.values()]).sum().backward()
        reached |= {n for n, p in method.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)
    trainable = {n for n, p in method.named_parameters() if p.requires_grad}
    assert trainable <= reached, f"never reached: {sorted(trainable - reached)[:5]}"


#: In bfloat16 one recipe of each method and supervision; in float16, which is slow on a CPU, of each method.
HALVES = [
    (name, dtype)
    for dtype, depth in ((torch.bfloat16, 2), (torch.float16, 1))
    for name in {tuple(n.replace("/", "-").split("-")[::2][:depth]): n for n in mini_recipes()[::-1]}.values()
]


@pytest.mark.parametrize(("name", "dtype"), HALVES, ids=lambda v: str(v).removeprefix("torch."))
def test_mixed_precision_trains_and_predicts(name, dtype):
    """Forward, backward, prediction, pseudo labels and maps under autocast; losses stay in float32."""
    method = build(name)
    recipe = resolve(name).recipe
    batch = make_batch(method, recipe.supervision)
    for fraction in method.probe_steps:
        method.train().zero_grad()
        with torch.autocast("cpu", dtype=dtype):
            terms = method(batch, Progress(int(fraction * 1000), 1000, 10))
        assert {t.dtype for t in terms.values()} == {torch.float32}
        assert all(t.isfinite().all() for t in terms.values()), fraction
        torch.stack([t.sum() for t in terms.values()]).sum().backward()
        grads = [p.grad for p in method.parameters() if p.grad is not None]
        assert grads
        assert all(g.isfinite().all() for g in grads)
    method.eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        for network in method.networks:
            assert method.predict(batch.images, network).isfinite().all()
        dict(method.pseudo_labels(batch.images, batch.tags))
        method.class_maps(batch.images, batch.tags)


#: One recipe of each method and kind of labels, in every precision that a CPU has.
BARE = [(name, torch.float32) for name, dtype in HALVES if dtype == torch.bfloat16] + HALVES


@pytest.mark.parametrize(("name", "dtype"), BARE, ids=lambda v: str(v).removeprefix("torch."))
def test_crops_without_any_label_are_survived(name, dtype):
    """Strokes are few and crops are small: a step may see none of them."""
    method = build(name)
    batch = make_batch(method, resolve(name).recipe.supervision)
    batch.labels[batch.labels != IGNORE] = (
        IGNORE if resolve(name).recipe.supervision == "full" else UNLABELLED
    )
    for fraction in method.probe_steps:
        method.train().zero_grad()
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            terms = method(batch, Progress(int(fraction * 1000), 1000, 10))
        assert all(t.isfinite().all() for t in terms.values()), fraction
        total = torch.stack([t.sum() for t in terms.values()]).sum()
        if total.requires_grad:
            total.backward()
        assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)


class _Guarded:
    """A configuration of which some values must not be read."""

    def __init__(self, config, closed):
        self.__dict__.update(own=config, closed=closed)

    def __getattr__(self, name):
        assert name not in self.closed, f"training reads config.{name}, which is marked InferenceOnly"
        return getattr(self.own, name)


@pytest.mark.parametrize("name", [n for n in mini_recipes() if marks(type(resolve(n).config), InferenceOnly)])
def test_training_does_not_read_what_is_marked_for_inference_only(name):
    method = build(name).train()
    batch = make_batch(method, resolve(name).recipe.supervision)
    method.config = _Guarded(method.config, marks(type(method.config), InferenceOnly))
    for fraction in method.probe_steps:
        progress = Progress(int(fraction * 1000), 1000, 10)
        method(batch, progress)
        method.after_step(progress)
    method.parameter_groups()
    method.views()


class _Watched:
    """A configuration that notes which of its values are read."""

    def __init__(self, config):
        self.__dict__.update(own=config, read=set())

    def __getattr__(self, name):
        if name.startswith("__"):  # copies ask before they have any
            raise AttributeError(name)
        self.read.add(name)
        return getattr(self.own, name)


def _alternatives(cls, key, value):
    """Other legal values of a field, none where they cannot be told from its type."""
    kinds = [k for k in (typing.get_args(cls.__pydantic_fields__[key].annotation) or ()) if k is not None]
    if isinstance(value, bool):
        return [not value]
    if all(isinstance(k, str) for k in kinds) and isinstance(value, str):
        return [k for k in kinds if k != value]
    return [value // 2 if isinstance(value, int) else value / 2] if value else []


def _given(method, batch):
    """All that a method predicts of a batch, by name."""
    with torch.no_grad():
        found = {f"predict {n}": method.predict(batch.images, n) for n in method.networks}
        found |= {f"grid {n}": method.grid_logits(batch.images, n) for n in method.networks}
        found |= dict(method.pseudo_labels(batch.images, batch.tags))
        maps = method.class_maps(batch.images, batch.tags)
    return found if maps is None else found | {"maps": maps}


def _built(recipe, config):
    name = METHODS.get(recipe.method)
    info = DATASETS.get(recipe.dataset).info
    torch.manual_seed(0)
    return name(config, Build(info, recipe.supervision, (SIDE, SIDE), recipe.backbone, "none")).eval()


FIRST = {resolve(n).recipe.method: n for n in mini_recipes()[::-1]}


@pytest.mark.parametrize("name", FIRST.values())
def test_every_value_that_predictions_come_by_is_marked_and_none_of_training_changes_them(name):
    """Read where the network is built or predicts: under the recipe's values, and each other choice."""
    resolved = resolve(name)
    recipe, cls = resolved.recipe, type(resolved.config)
    shaping, training = set(marks(cls, Shapes)), set(marks(cls, TrainingOnly))
    marked = shaping | training | set(marks(cls, InferenceOnly))
    assert not shaping & training
    usual = _built(recipe, resolved.config)
    batch = make_batch(usual, recipe.supervision, size=1)
    given = _given(usual, batch)
    for key in [None, *sorted(shaping | training)]:
        value = None if key is None else getattr(resolved.config, key)
        if key in shaping and not isinstance(value, bool | str):
            continue  # another number takes the same way
        for other in [None] if key is None else _alternatives(cls, key, value):
            try:
                config = resolve(name, {} if key is None else {f"config.{key}": other}).config
                watched = _Watched(config)
                method = _built(recipe, watched)
            except UserError:
                continue  # not a legal value, or none that goes with the others
            try:
                method.load_state_dict(usual.state_dict())
            except RuntimeError:
                assert key in shaping | training  # other shapes: such weights are refused anyhow
                continue
            found = _given(method, batch)
            unmarked = watched.read & set(fields(cls)) - marked
            assert not unmarked, f"decide what {sorted(unmarked)} are: Shapes, InferenceOnly or TrainingOnly"
            if key not in shaping:
                assert found.keys() == given.keys()
                for part, one in given.items():
                    assert torch.equal(one, found[part]), f"config.{key} = {other} changes {part}"


@pytest.mark.parametrize("name", mini_recipes())
def test_prediction_has_the_right_shape_is_repeatable_and_independent_of_the_batch(name):
    method = build(name).eval()
    images = make_batch(method, resolve(name).recipe.supervision).images[..., :40, :]
    with torch.no_grad():
        for network in method.networks:
            together = method.predict(images, network)
            assert together.shape == (3, method.build.num_classes, 40, SIDE)
            assert torch.equal(together, method.predict(images, network))
            alone = torch.cat([method.predict(i[None], network) for i in images])
            torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FIRST.values())
def test_the_names_that_recipes_may_ask_for_are_those_that_are_given_and_documented(name):
    known, method = rehearse(resolve(name)), build(name).eval()
    assert known.networks == method.networks
    assert method.networks[0] == "default"
    batch = make_batch(method, resolve(name).recipe.supervision, size=1)
    labels = method.pseudo_labels(batch.images, batch.tags)
    assert tuple(labels) == known.outputs
    assert SEGMENTATION not in known.outputs
    for output, made in labels.items():
        check_label_map(made, batch.images, output, method.name, name)
        told = " ".join(
            cls.pseudo_labels.__doc__ for cls in type(method).__mro__[:-1] if "pseudo_labels" in vars(cls)
        )
        assert f"``{output}``" in told
    for network in method.networks:
        check_logits(method.predict(batch.images, network), method, batch.images, network)
        check_logits(method.grid_logits(batch.images, network), method, batch.images, network, whole=False)


@pytest.mark.parametrize("name", mini_recipes())
def test_the_state_survives_a_round_trip(name):
    one, other = build(name, seed=0), build(name, seed=1)
    batch = make_batch(one, resolve(name).recipe.supervision)
    progress = Progress(int(one.probe_steps[-1] * 1000), 1000, 10)
    with torch.no_grad():
        one.train()(batch, progress)  # moves running statistics
    one.after_step(progress)
    other.load_state_dict(one.state_dict())
    losses = []
    for method in (one, other):
        torch.manual_seed(3)
        losses.append({k: v.detach() for k, v in method.train()(batch, progress).items()})
    for term, value in losses[0].items():
        assert torch.equal(value, losses[1][term]), term


@pytest.mark.parametrize("name", mini_recipes())
def test_parameter_groups_hold_every_trainable_parameter_once(name):
    method = build(name)
    grouped = [id(p) for group in method.parameter_groups() for p in list(group["params"])]
    assert len(grouped) == len(set(grouped))
    assert {id(p) for p in method.parameters() if p.requires_grad} <= set(grouped)


@pytest.mark.parametrize("name", METHODS.names())
def test_defaults_are_those_of_the_reference_recipe_and_are_documented(name):
    cls = METHODS.get(name)
    assert cls.reference_recipe in recipe_names()
    assert resolve(cls.reference_recipe).config == cls.Config()
    for field, info in cls.Config.__pydantic_fields__.items():
        assert info.description, f"{name}: {field} is not documented"


@pytest.mark.parametrize("name", METHODS.names())
def test_the_search_space_names_real_keys_and_draws_legal_values(name):
    cls = METHODS.get(name)
    space = cls.search_space()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(5):
        values = study.ask(space).params
        config = {k: v for k, v in values.items() if not k.startswith("optimiser.")}
        assert set(config) <= set(fields(cls.Config))
        load(cls.Config, config, "search space")
        optimiser = {k: v for k, v in values.items() if k.startswith("optimiser.")}
        resolve(cls.reference_recipe, optimiser)


@pytest.mark.parametrize("name", METHODS.names())
def test_a_paper_is_cited_or_the_method_is_a_baseline(name):
    cls = METHODS.get(name)
    assert cls.title
    if cls.paper is not None:
        assert all([cls.paper.title, cls.paper.authors, cls.paper.venue, cls.paper.year])
        assert cls.paper.doi or cls.paper.arxiv or cls.paper.code
        assert dataclasses.is_dataclass(cls.paper)
