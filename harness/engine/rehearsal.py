"""A recipe's method is built and tried before it is trusted, on the meta device, where nothing is allocated.

What a run would meet hours later is found here: a backbone that does not exist or does not fit, networks and
outputs that the method does not have, trainable parameters that no optimiser group holds, predictions of
another shape. A method that needs values where the meta device has none is tried with random weights on the
CPU instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness.basics import interruption
from harness.basics.errors import UserError, words
from harness.basics.registry import FORGET, METHODS
from harness.basics.schema import digest, dump
from harness.engine.batch import Progress
from harness.engine.blame import blamed, on_purpose, told_with_place
from harness.engine.contract import (
    check_label_map,
    check_logits,
    check_parameters,
    check_terms,
    check_views,
    checked_note,
    misnamed,
    place,
)
from harness.engine.faults import ONE_VALUE, one_picture, smallest_piece
from harness.engine.made_up import Answers, coloured_batch, made_up_batch, made_up_pool, made_up_rng
from harness.engine.networks import build_method
from harness.engine.optimisers import create_optimiser
from harness.engine.outputs import check_output
from harness.engine.sampling import check_further, ordered
from harness.engine.shapes import ShapeTable
from harness.engine.shown import as_picture
from harness.recipes.declared import require_agreement
from harness.recipes.names import check_network

if TYPE_CHECKING:
    from harness.engine.method import Method
    from harness.recipes.resolving import Resolved

_META = torch.device("meta")
#: Largest side of pictures that are tried with values.
_SIDE = 96
#: Words of errors that arise because tensors have no values.
_NO_VALUES = ("meta", "unsupported scalartype", "same device", "data-dependent", "data dependent")


@dataclass(frozen=True)
class Rehearsed:
    """What a method can be asked for.

    Attributes:
        networks: names that ``predict`` serves.
        outputs: names that ``pseudo_labels`` gives.
        further: splits of the further pictures that it asks for, by name; empty for the training split.
    """

    networks: tuple[str, ...]
    outputs: tuple[str, ...]
    further: Mapping[str, str] = field(default_factory=dict)


def rehearse(resolved: Resolved) -> Rehearsed:
    """Build the method of a recipe with random weights, try it, and check what the recipe asks of it.

    Everything that needs a network calls this first: a run, a search, ``--smoke`` and ``--dry-run`` by
    ``harness.running.trials.trial.inspect``. Names given elsewhere are checked by
    :mod:`harness.recipes.names`. The same network is tried once per process.

    Raises:
        UserError: it cannot be built, it breaks the contract of :class:`harness.engine.method.Method`, or it
            lacks a network or an output that the recipe evaluates.
    """
    require_agreement(resolved.recipe.method)
    found = tried(resolved)
    where = resolved.file
    method = METHODS.get(resolved.recipe.method)
    for spec in resolved.recipe.evaluation:
        check_network(method, spec.network, where)
        check_output(resolved, spec.output, where)
    if resolved.recipe.selection is not None:
        check_network(method, resolved.recipe.selection.network, where)
    return found


def source_output(source: Resolved, labels_from: str) -> str:
    """Which pseudo labels of its source ``labels_from`` means: those it names, or the only ones.

    Raises:
        UserError: the source's method gives no such output, or several and none is named.
    """
    name, _, output = labels_from.partition(":")
    given = tried(source).outputs
    if not given or (output and output not in given) or (not output and len(given) > 1):
        raise UserError(
            f"{name} gives {' and '.join(given) or 'no pseudo labels'}",
            where=f"labels_from = {labels_from!r}",
            remedy=f"name one, as in {name}:{given[-1]}" if given else "choose another recipe",
        )
    return output or given[0]


# --- trying ------------------------------------------------------------------------------------------

_known: dict[str, Rehearsed] = {}


def tried(resolved: Resolved) -> Rehearsed:
    """What the method of a recipe can be asked for, found by building and trying it.

    Raises:
        UserError: it cannot be built, or breaks the contract of a method.
    """
    recipe = resolved.recipe
    parts = (recipe.method, recipe.dataset, recipe.supervision, recipe.backbone, recipe.crop_size)
    pieces = (recipe.batch, recipe.accumulate)
    key = digest([*parts, *pieces, dump(resolved.config)])
    if key not in _known:
        with torch.random.fork_rng(devices=[]):
            _known[key] = _try(resolved)
    return _known[key]


_fitting: set[str] = set()


def forget_methods() -> None:
    """Try every method again: their code may have changed."""
    _known.clear()
    _fitting.clear()


FORGET.append(forget_methods)


def check_weights(resolved: Resolved, sha256: str | None) -> None:
    """Read a backbone's weights into the method's networks as training will, once per process.

    Args:
        resolved: the recipe.
        sha256: of the weights' file; None for a random start.

    Raises:
        UserError: the file cannot be read, or does not fit.
    """
    recipe = resolved.recipe
    if sha256 is None or recipe.weights == "packaged":  # compared with a hash when it is found
        return
    parts = [recipe.method, recipe.dataset, recipe.supervision, recipe.crop_size, dump(resolved.config)]
    key = digest([sha256, recipe.backbone, recipe.weights, *parts])
    if key not in _fitting:
        with torch.random.fork_rng(devices=[]):
            build_method(resolved, torch.device("cpu"), seed=0)
        _fitting.add(key)


class _NeedsValues(Exception):
    """The method cannot be tried on the meta device."""


def _try(resolved: Resolved) -> Rehearsed:
    try:
        with ShapeTable():
            return _try_on(resolved, _META)
    except _NeedsValues:
        return _try_on(resolved, torch.device("cpu"))


def _try_on(resolved: Resolved, device: torch.device) -> Rehearsed:
    from harness.engine.method import Method

    recipe = resolved.recipe
    bare = replace(resolved, recipe=replace(recipe, weights="none"))
    name = recipe.method

    def attempt(what: str, work: Callable[[], Any]) -> Any:
        with torch.no_grad(), device:
            return _attempt(f"{name} {what}", work, device)

    method: Method = attempt("cannot be built", lambda: build_method(bare, device, seed=0))
    attempt("cannot give its parameter groups", lambda: check_parameters(method))
    attempt(
        "cannot make its optimiser",
        lambda: create_optimiser(method.parameter_groups(), recipe.optimiser, method),
    )
    attempt("cannot give its views", lambda: check_views(method))
    attempt("cannot name its further pictures", lambda: check_further(method, recipe))
    if method.orders():  # of numbers that are no tensors of the device
        order = partial(ordered, method, made_up_pool(method), 0, made_up_rng())
        _attempt(f"{name} cannot order its pictures", order, device)
    _try_losses(method, resolved, device)
    _probe_encoders(method, recipe.backbone, recipe.crop_size, device)
    side = recipe.crop_size if device == _META else tuple(min(s, _SIDE) for s in recipe.crop_size)
    images = torch.zeros(1, 3, *side, device=device)
    if recipe.batch.sync_bn == "off" or recipe.batch.groups == 1:  # no other group's pictures help out
        _check_one_picture(method, resolved, images)
    method.eval()
    for network in method.networks:
        logits = attempt(
            f"cannot predict with its network {network!r}", partial(method.predict, images, network)
        )
        check_logits(logits, method, images, network)
        if type(method).grid_logits is not Method.grid_logits:
            grid = attempt(
                f"has no logits on the grid of its network {network!r}",
                partial(method.grid_logits, images, network),
            )
            check_logits(grid, method, images, network, whole=False)
    tags = torch.zeros(1, method.build.num_classes, device=device)
    labels = attempt("cannot make pseudo labels", lambda: method.pseudo_labels(images, tags))
    if not isinstance(labels, Mapping):
        raise UserError(
            f"{name}: pseudo_labels gives {type(labels).__name__}, not label maps by name",
            where=place(method, "pseudo_labels"),
            remedy="return a dictionary, or nothing but the inherited method",
        )
    for output, made in labels.items() if isinstance(labels, dict) else ():  # others make them when asked
        check_label_map(made, images, output, name, place(method, "pseudo_labels"))
    further = {key: spec.split for key, spec in method.further().items()}
    return Rehearsed(tuple(method.networks), tuple(labels), further)


def _try_losses(method: Method, resolved: Resolved, device: torch.device) -> None:
    """One loss of each phase on a made-up batch: what it asks for exists, and its terms are terms.

    Any other error may come of the batch, which is made up. It is the method's where another batch, with
    values, meets it on the same line; otherwise it says nothing here: the first step meets what is real.
    """
    batch = made_up_batch(method, resolved.recipe, device, None if device == _META else _SIDE)
    method.train()
    method.showing(True)
    for fraction in method.probe_steps or (0.0,):
        progress = Progress(int(fraction * 1000), 1000, 10)
        try:
            with torch.enable_grad(), device, Answers():
                terms = method(batch, progress)
                method.after_step(progress)
        except BaseException as error:
            if _wished(error):
                raise
            if found := misnamed(error, method):
                raise found from error
            if not isinstance(error, Exception):
                raise told_with_place(f"{method.name} cannot compute its loss", error) from error
            if (again := _again(error, resolved, progress)) is not None:
                raise told_with_place(f"{method.name} cannot compute its loss", again) from error
        else:
            check_terms(terms, method, None)
            for name, value in method.take_notes():
                checked_note(name, value, method)
            for name, picture in method.take_pictures():
                as_picture(name, picture, method)


#: Errors that follow from code and shapes, rather than from what a machine or a file has.
_OF_CODE = (TypeError, ValueError, LookupError, NameError, AttributeError, ImportError, RuntimeError)


def _again(error: Exception, resolved: Resolved, progress: Progress) -> Exception | None:
    """The error of a loss as it comes back, on the same line, for coloured pictures on the CPU; None if it
    does not. What a method raises itself, in its own words, may ask for what no made-up batch has."""
    if not isinstance(error, _OF_CODE) or isinstance(error, UserError) or on_purpose(error):
        return None
    recipe = resolved.recipe
    side = max(24, min(_SIDE, *recipe.crop_size))
    bare = replace(resolved, recipe=replace(recipe, weights="none"))
    try:
        method = build_method(bare, torch.device("cpu"), seed=0)
        supervision = "full" if recipe.labels_from is not None else recipe.supervision
        method.train()(coloured_batch(method, supervision, side, max(2, recipe.batch.per_group)), progress)
    except Exception as other:
        there, here = blamed(other), blamed(error)
        same = there is not None and here is not None and (there.file, there.line) == (here.file, here.line)
        return other if same else None
    return None


def _lacks_values(error: Exception) -> bool:
    """Whether an error arose because tensors of the meta device have no values."""
    return isinstance(error, NotImplementedError) or any(part in words(error).lower() for part in _NO_VALUES)


def _attempt(what: str, work: Callable[[], Any], device: torch.device) -> Any:
    try:
        return work()
    except UserError:
        raise
    except BaseException as error:  # code of anybody, which may try to end the process
        if _wished(error):
            raise
        if device == _META and isinstance(error, Exception) and _lacks_values(error):
            raise _NeedsValues from error
        raise told_with_place(what, error) from error


def _wished(error: BaseException) -> bool:
    """Whether somebody wants this process to stop."""
    return isinstance(error, KeyboardInterrupt) or interruption.asked(error)


def _probe_encoders(method: Method, backbone: str, crop: tuple[int, int], device: torch.device) -> None:
    from harness.nn.encoders import Encoder, probe

    if device != _META:
        return
    for module in method.modules():
        if isinstance(module, Encoder):
            with torch.no_grad():  # pictures of any size are evaluated
                probe(module.eval(), (crop[0] + 33, crop[1] + 14), backbone)


def _check_one_picture(method: Method, resolved: Resolved, images: Tensor) -> None:
    """Batch normalisation cannot train on one value per channel: one picture, or one left over, where the
    network has come down to one cell."""
    recipe = resolved.recipe
    if smallest_piece(recipe) > 1:
        return
    method.train()
    for network in method.networks:
        try:
            with torch.no_grad():
                method.predict(images, network)
        except ValueError as error:
            if ONE_VALUE in str(error):
                raise one_picture(recipe) from error
        except Exception:
            continue
