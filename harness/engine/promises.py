"""What every method promises, beyond what a run checks before it starts: ``wsss check`` and our own tests ask
these functions, so that a method from anywhere is tested the day it is registered.

Each takes the name of a recipe (or a method's class) and yields one sentence for each promise that is broken,
naming parameters, terms and keys. What a method's code raises in between is the caller's to tell.
"""

from __future__ import annotations

import random
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.basics.errors import UserError
from harness.basics.registry import DATASETS, METHODS
from harness.basics.schema import (
    InferenceOnly,
    Shapes,
    TrainingOnly,
    documentation,
    dump,
    fields,
    load,
    marks,
)
from harness.engine.batch import IGNORE, UNLABELLED, Batch, Progress
from harness.engine.build import Build
from harness.engine.contract import check_label_map, check_logits, check_parameters
from harness.engine.made_up import coloured_batch, made_up_pool, made_up_rng
from harness.engine.method import Method
from harness.engine.outputs import SEGMENTATION
from harness.engine.rehearsal import rehearse
from harness.engine.sampling import ordered
from harness.recipes.resolving import recipe_names, resolve

#: Side of the pictures that methods are tried on, in pixels.
SMALL_SIDE = 48

#: A recipe's name to what it breaks.
Promise = Callable[[str], Iterator[str]]


def small_method(name: str, seed: int = 0) -> Method:
    """The method of a recipe for small pictures, with random weights."""
    torch.manual_seed(seed)
    return _built(name, resolve(name).config)


def _built(name: str, config: Any) -> Method:
    recipe = resolve(name).recipe
    build = Build(
        DATASETS.get(recipe.dataset).info,
        recipe.supervision,
        (SMALL_SIDE, SMALL_SIDE),
        recipe.backbone,
        "none",
        recipe.pixels,
    )
    return METHODS.get(recipe.method)(config, build)


def small_batch(method: Method, supervision: str, size: int = 3) -> Batch:
    """Small coloured pictures with the labels that a kind of supervision allows."""
    return coloured_batch(method, supervision, SMALL_SIDE, size)


def distinct_recipes(names: Iterable[str]) -> list[str]:
    """Recipes, those left out that build and train as another does: by other positive numbers alone."""
    found: dict[str, str] = {}
    for name in names:
        resolved = resolve(name)
        config = {
            k: v > 0 if isinstance(v, int | float) and not isinstance(v, bool) else v
            for k, v in dump(resolved.config).items()
        }
        recipe = resolved.recipe
        found.setdefault(repr((recipe.method, recipe.supervision, recipe.backbone, config)), name)
    return list(found.values())


def _phases(method: Method) -> Iterator[Progress]:
    for fraction in method.probe_steps:
        yield Progress(int(fraction * 1000), 1000, 10)


def _total(terms: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([term.sum() for term in terms.values()]).sum()


def _few(names: Iterable[str]) -> str:
    every = sorted(names)
    return ", ".join(every[:5]) + (f" and {len(every) - 5} more" if len(every) > 5 else "")


def _not_finite(terms: Mapping[str, Tensor], method: Method, when: str) -> Iterator[str]:
    """Loss terms, and gradients after a backward pass, that are NaN or infinite."""
    bad = [name for name, term in terms.items() if not torch.isfinite(term).all()]
    if bad:
        yield f"loss terms are not finite {when}: {_few(bad)}"
    wrong = [n for n, p in method.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    if wrong:
        yield f"gradients are not finite {when}: {_few(wrong)}"


# --- of a recipe's method ------------------------------------------------------------------------------


def losses_reach(name: str) -> Iterator[str]:
    """Terms and gradients are finite, and every trainable parameter is reached in some phase."""
    method = small_method(name)
    batch = small_batch(method, resolve(name).recipe.supervision)
    reached: set[str] = set()
    for progress in _phases(method):
        method.train().zero_grad()
        terms = method(batch, progress)
        if not terms:
            yield "loss gives no term"
            return
        if (total := _total(terms)).requires_grad:
            total.backward()
        reached |= {n for n, p in method.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        yield from _not_finite(terms, method, f"at {progress.fraction:.0%} of training")
    never = {n for n, p in method.named_parameters() if p.requires_grad} - reached
    if never:
        yield (
            f"no loss term reaches the trainable parameters {_few(never)}: use them, freeze them, "
            f"or name in probe_steps (now {method.probe_steps}) a phase in which they are trained"
        )


def mixed_precision(name: str, dtype: torch.dtype) -> Iterator[str]:
    """Forward, backward, prediction, pseudo labels and maps under autocast; losses stay in float32."""
    method = small_method(name)
    batch = small_batch(method, resolve(name).recipe.supervision)
    words = f"under {str(dtype).removeprefix('torch.')} autocast"
    for progress in _phases(method):
        method.train().zero_grad()
        with torch.autocast("cpu", dtype=dtype):
            terms = method(batch, progress)
        half = [n for n, t in terms.items() if t.dtype != torch.float32]
        if half:
            yield f"loss terms are not float32 {words}: {_few(half)}; compute them in wsss.outside_autocast"
        if (total := _total(terms)).requires_grad:
            total.backward()
        yield from _not_finite(terms, method, words)
    method.eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        for network in method.networks:
            if not method.predict(batch.images, network).isfinite().all():
                yield f"predict(network={network!r}) gives scores that are not finite {words}"
        dict(method.pseudo_labels(batch.images, batch.tags))
        method.class_maps(batch.images, batch.tags)


def bare_crops(name: str, dtype: torch.dtype = torch.float32) -> Iterator[str]:
    """Strokes are few and crops are small: a step may see no label at all."""
    method, supervision = small_method(name), resolve(name).recipe.supervision
    batch = small_batch(method, supervision)
    batch.labels[batch.labels != IGNORE] = IGNORE if supervision == "full" else UNLABELLED
    for progress in _phases(method):
        method.train().zero_grad()
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            terms = method(batch, progress)
        if (total := _total(terms)).requires_grad:
            total.backward()
        yield from _not_finite(terms, method, "where no pixel of a batch has a label")


class _Noted:
    """A configuration that notes which of its values are read."""

    def __init__(self, config: Any) -> None:
        self.__dict__.update(own=config, read=set())

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copies ask before they have any
            raise AttributeError(name)
        self.read.add(name)
        return getattr(self.own, name)


def inference_values_unread(name: str) -> Iterator[str]:
    """Training does not read what is marked for inference alone."""
    closed = set(marks(type(resolve(name).config), InferenceOnly))
    if not closed:
        return
    method = small_method(name).train()
    batch = small_batch(method, resolve(name).recipe.supervision)
    noted = method.config = _Noted(method.config)
    for progress in _phases(method):
        method(batch, progress)
        method.after_step(progress)
    method.parameter_groups()
    method.views()
    if wrong := noted.read & closed:
        yield f"training reads {_few(f'config.{k}' for k in wrong)}, which is marked InferenceOnly"


def _alternatives(cls: type, key: str, value: Any) -> list[Any]:
    """Other legal values of a field, none where they cannot be told from its type."""
    annotation = cls.__pydantic_fields__[key].annotation  # type: ignore[attr-defined]
    kinds = [k for k in (typing.get_args(annotation) or ()) if k is not None]
    if isinstance(value, bool):
        return [not value]
    if all(isinstance(k, str) for k in kinds) and isinstance(value, str):
        return [k for k in kinds if k != value]
    if isinstance(value, int):
        return [value // 2] if value else []
    return [value / 2] if isinstance(value, float) and value else []


def _given(method: Method, batch: Batch) -> dict[str, Tensor]:
    """All that a method predicts of a batch, by name."""
    with torch.no_grad():
        found = {f"predict {n}": method.predict(batch.images, n) for n in method.networks}
        found |= {f"grid {n}": method.grid_logits(batch.images, n) for n in method.networks}
        found |= dict(method.pseudo_labels(batch.images, batch.tags))
        maps = method.class_maps(batch.images, batch.tags)
    return found if maps is None else found | {"maps": maps}


def values_are_marked(name: str) -> Iterator[str]:
    """What building and predictions read is marked, and no value of training alone changes what they give.

    Tried under the recipe's values, and each other choice. A ``Config`` without any mark is compared whole.
    """
    resolved = resolve(name)
    recipe, cls = resolved.recipe, type(resolved.config)
    shaping, training = set(marks(cls, Shapes)), set(marks(cls, TrainingOnly))
    marked = shaping | training | set(marks(cls, InferenceOnly))
    if both := shaping & training:
        yield f"{_few(f'config.{k}' for k in both)}: marked Shapes and TrainingOnly"
    if not marked:
        return
    torch.manual_seed(0)
    usual = _built(name, resolved.config).eval()
    batch = small_batch(usual, recipe.supervision, size=1)
    given = _given(usual, batch)
    for key in [None, *sorted(shaping | training)]:
        value = None if key is None else getattr(resolved.config, key)
        if key in shaping and not isinstance(value, bool | str):
            continue  # another number takes the same way
        for other in [None] if key is None else _alternatives(cls, key, value):
            try:
                config = resolve(name, {} if key is None else {f"config.{key}": other}).config
                noted = _Noted(config)
                torch.manual_seed(0)
                method = _built(name, noted).eval()
            except UserError:
                continue  # not a legal value, or none that goes with the others
            try:
                method.load_state_dict(usual.state_dict())
            except RuntimeError:
                if key not in shaping | training:
                    yield "its state cannot be loaded into a second one built alike"
                continue  # other shapes: such weights are refused anyhow
            found = _given(method, batch)
            if unmarked := noted.read & set(fields(cls)) - marked:
                yield (
                    f"{_few(f'config.{k}' for k in unmarked)}: read where the network is built or predicts; "
                    "decide what it is: Shapes, InferenceOnly or TrainingOnly"
                )
                return
            if key not in shaping:
                changed = [p for p, one in given.items() if p not in found or not torch.equal(one, found[p])]
                if changed or found.keys() != given.keys():
                    yield f"config.{key} = {other!r} is marked TrainingOnly and changes {_few(changed)}"


def predicts(name: str) -> Iterator[str]:
    """Prediction has the right shape, repeats itself, and does not depend on the batch's other pictures."""
    method = small_method(name).eval()
    images = small_batch(method, resolve(name).recipe.supervision).images[..., :40, :]
    with torch.no_grad():
        for network in method.networks:
            call = f"predict(network={network!r})"
            together = method.predict(images, network)
            check_logits(together, method, images, network)
            if not torch.equal(together, method.predict(images, network)):
                yield f"{call} gives other scores the second time: in evaluation mode nothing may be random"
                continue
            alone = torch.cat([method.predict(i[None], network) for i in images])
            if not torch.allclose(together, alone, rtol=1e-4, atol=1e-4):
                yield f"{call} gives a picture other scores when others are in the batch"


def outputs_are_told(name: str) -> Iterator[str]:
    """Networks and pseudo labels are those that a trial on the meta device found, and are documented."""
    known, method = rehearse(resolve(name)), small_method(name).eval()
    if method.networks[0] != "default":
        yield f"the first of its networks is {method.networks[0]!r}, not 'default'"
    batch = small_batch(method, resolve(name).recipe.supervision, size=1)
    labels = method.pseudo_labels(batch.images, batch.tags)
    if SEGMENTATION in labels:
        yield f"pseudo labels cannot be called {SEGMENTATION!r}, which is what predict decides"
    if tuple(labels) != known.outputs:
        yield f"pseudo_labels gives {tuple(labels)}, and gave {known.outputs} for black pictures"
    told = " ".join(
        vars(cls)["pseudo_labels"].__doc__ or ""
        for cls in type(method).__mro__
        if "pseudo_labels" in vars(cls)
    )
    for output, made in labels.items():
        check_label_map(made, batch.images, output, method.name, name)
        if f"``{output}``" not in told:
            yield f"the docstring of pseudo_labels does not say what ``{output}`` is"
    for network in method.networks:
        with torch.no_grad():
            check_logits(method.predict(batch.images, network), method, batch.images, network)
            grid = method.grid_logits(batch.images, network)
        check_logits(grid, method, batch.images, network, whole=False)


def state_survives(name: str) -> Iterator[str]:
    """A second method that takes over the state computes the same next loss."""
    one, other = small_method(name, seed=0), small_method(name, seed=1)
    batch = small_batch(one, resolve(name).recipe.supervision)
    progress = list(_phases(one))[-1]
    one.train()(batch, progress)  # moves running statistics
    one.after_step(progress)
    other.load_state_dict(one.state_dict())
    losses = []
    for method in (one, other):
        torch.manual_seed(3)
        losses.append({k: v.detach() for k, v in method.train()(batch, progress).items()})
    first, second = losses
    wrong = [k for k in first if k not in second or not torch.equal(first[k], second[k])]
    if wrong:
        yield (
            f"the state dict does not hold all: after loading it, other values of {_few(wrong)}. "
            "Keep what training moves in parameters or buffers"
        )


def order_repeats_itself(name: str) -> Iterator[str]:
    """An order of pictures follows from pool, epoch and generator alone, so that a run can go on anywhere."""
    method = small_method(name)
    if not method.orders():
        return
    pool = made_up_pool(method)

    def drawn(seed: int) -> list[list[int]]:
        """Orders of two epochs, under other global generators."""
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - the one that code of others may use
        torch.manual_seed(seed)
        return [ordered(method, pool, epoch, made_up_rng(epoch)).tolist() for epoch in range(2)]

    kept = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        first = drawn(0)
        if drawn(1) != first:
            yield "order gives another one the second time: draw from rng alone"
            return
        batch = small_batch(method, resolve(name).recipe.supervision)
        for progress in _phases(method):
            method.train()(batch, progress)
            method.after_step(progress)
        with torch.no_grad():
            for value in method.state_dict().values():
                value.add_(1)
        if drawn(0) != first:
            yield "order depends on what training moves: a run that goes on would draw other pictures"
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])  # noqa: NPY002


def parameters_are_grouped(name: str) -> Iterator[str]:
    """Every trainable parameter stands in one optimiser group."""
    check_parameters(small_method(name))
    yield from ()


#: What is asked of every distinct recipe of a method, in this order.
OF_RECIPES: tuple[Promise, ...] = (
    parameters_are_grouped, losses_reach, bare_crops, lambda name: mixed_precision(name, torch.bfloat16),
    inference_values_unread, values_are_marked, predicts, outputs_are_told, state_survives,
    order_repeats_itself,
)  # fmt: skip


# --- of a method's class -------------------------------------------------------------------------------


def defaults_are_told(cls: type[Method]) -> Iterator[str]:
    """The defaults of ``Config`` are those of the reference recipe, and every field is documented."""
    if cls.reference_recipe not in recipe_names():
        yield (
            f"reference_recipe {cls.reference_recipe!r} is no recipe; name the one whose [config] the "
            "defaults of Config are"
        )
    elif (meant := resolve(cls.reference_recipe).config) != (own := cls.Config()):
        differ = [f for f in fields(cls.Config) if getattr(meant, f, None) != getattr(own, f, None)]
        yield (
            f"the defaults of Config are not those of {cls.reference_recipe}: {_few(differ)}; change them, "
            "or let reference_recipe name the recipe whose [config] they are, such as that at full scale"
        )
    bare = [field for field, told in documentation(cls.Config).items() if not told]
    if bare:
        yield f"Config documents no meaning of {_few(bare)}: write a docstring below each field"


def space_is_legal(cls: type[Method]) -> Iterator[str]:
    """The search space names real keys and draws legal values."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = cls.search_space()
    keys = {k for k in space if not k.startswith("optimiser.")}
    if unknown := keys - set(fields(cls.Config)):
        yield f"search_space names {_few(unknown)}, which Config does not have"
        return
    if space and cls.reference_recipe not in recipe_names():
        return  # said already
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(5):
        values = study.ask(space).params
        try:
            load(cls.Config, {k: values[k] for k in keys}, "search_space")
            resolve(cls.reference_recipe, {k: v for k, v in values.items() if k not in keys})
        except UserError as error:
            yield f"search_space draws a value that is refused: {error.problem}"
            return


def paper_is_cited(cls: type[Method]) -> Iterator[str]:
    """A method has a title, and a paper that can be found or is in preparation, or it is a baseline."""
    if not cls.title:
        yield "title is empty"
    paper = cls.paper
    if paper is None:
        return
    needed = ("title", "authors") if paper.in_preparation else ("title", "authors", "venue", "year")
    if empty := [k for k in needed if not getattr(paper, k)]:
        yield f"paper has no {_few(empty)}"
    if not paper.in_preparation and not (paper.doi or paper.arxiv or paper.code):
        yield (
            "paper names no doi, arxiv or code, so that nobody finds it; "
            "one in preparation names no venue either"
        )


#: What is asked of every method's class.
OF_METHODS: tuple[Callable[[type[Method]], Iterator[str]], ...] = (
    defaults_are_told, space_is_legal, paper_is_cited,
)  # fmt: skip
