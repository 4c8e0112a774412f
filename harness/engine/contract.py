"""What a method must keep to, checked by name before its first step: see :class:`.method.Method`.

Nothing here reads a value of a tensor, so nothing waits for a GPU.
"""

from __future__ import annotations

import dataclasses
import re
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness.basics.errors import UserError, nearest
from harness.engine.batch import Batch, NoView, Progress, View
from harness.engine.build import Build, ViewSpec

if TYPE_CHECKING:
    from harness.engine.method import Method


def place(method: Method, function: str = "") -> str:
    """Where a method's code is, for messages: its class, or one of its functions with file and line."""
    shown = f"{type(method).__module__}.{type(method).__name__}"
    if not function:
        return shown
    code = getattr(getattr(type(method), function, None), "__code__", None)
    lines = f" ({code.co_filename}, line {code.co_firstlineno})" if code is not None else ""
    return f"{shown}.{function}{lines}"


def check_parameters(method: Method) -> None:
    """Every trainable parameter stands in exactly one optimiser group.

    Raises:
        UserError: naming those that stand in none, or in two.
    """
    groups = method.parameter_groups()
    shown = place(method, "parameter_groups")
    whole = isinstance(groups, list) and all(isinstance(g, Mapping) and "params" in g for g in groups)
    if not whole:
        raise UserError(
            "parameter_groups gives no list of dictionaries with 'params'",
            where=shown,
            remedy='return, for instance, [{"params": [...], "lr_scale": 10.0}]',
        )
    for group in groups:
        unknown = sorted(set(group) - {"params", "lr_scale", "weight_decay"})
        if unknown:
            raise UserError(
                f"a parameter group has the key {unknown[0]!r}",
                where=shown,
                remedy="valid: params, lr_scale, weight_decay",
            )
    names = {id(p): n for n, p in method.named_parameters()}
    count: dict[int, int] = {}
    for group in groups:
        given = group["params"]
        for p in [given] if isinstance(given, Tensor) else given:
            count[id(p)] = count.get(id(p), 0) + 1
    trainable = [id(p) for p in method.parameters() if p.requires_grad]
    for wrong, problem, remedy in (
        (
            [names[i] for i in trainable if i not in count],
            "would stay at their random start: they stand in no parameter group",
            "add them to a group, or switch their gradient off (requires_grad_(False))",
        ),
        (
            [names.get(i, "a parameter of none of its modules") for i, n in count.items() if n > 1],
            "would be updated twice: they stand in two parameter groups",
            "leave each to one group",
        ),
    ):
        if wrong:
            more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
            raise UserError(f"parameters {', '.join(wrong[:5])}{more} {problem}", where=shown, remedy=remedy)
    if not trainable:
        raise UserError("the method has no trainable parameter", where=shown)


def check_views(method: Method) -> None:
    """``views`` gives specifications by name."""
    views = method.views()
    if not isinstance(views, Mapping) or not all(isinstance(v, ViewSpec) for v in views.values()):
        raise UserError(
            "views gives no ViewSpec by name",
            where=place(method, "views"),
            remedy='return, for instance, {"half": ViewSpec(scale=0.5)}',
        )


def check_logits(logits: Any, method: Method, images: Tensor, network: str, *, whole: bool = True) -> None:
    """What ``predict`` gives is floating-point logits of all classes, at the size of the pictures.

    Raises:
        UserError: naming the network, and what was due.
    """
    call = f"{'predict' if whole else 'grid_logits'}(network={network!r})"
    due = (len(images), method.build.num_classes, *(images.shape[2:] if whole else ("h", "w")))
    if isinstance(logits, Tensor):
        shape = tuple(logits.shape)
        right = shape == due if whole else logits.ndim == 4 and shape[:2] == due[:2]
        if right and logits.is_floating_point():
            return
        found = f"{logits.dtype} of {shape}" if not logits.is_floating_point() else f"logits of {shape}"
    else:
        found = type(logits).__name__
    raise UserError(
        f"{call} gives {found} for pictures of {images.shape[-2]} x {images.shape[-1]}",
        where=place(method, "predict" if whole else "grid_logits"),
        remedy=f"floating-point logits of ({', '.join(map(str, due))}) are due: "
        f"{method.build.num_classes} classes" + (" at the size of the pictures" if whole else ""),
    )


def check_label_map(labels: Any, images: Tensor, output: str, method: str, where: str) -> None:
    """A pseudo label is integers, one map at the size of each picture.

    Raises:
        UserError: naming the output, and what was due.
    """
    due = (len(images), *images.shape[2:])
    found = type(labels).__name__
    if isinstance(labels, Tensor):
        found = f"{labels.dtype} of {tuple(labels.shape)}"
        if tuple(labels.shape) == due and not labels.is_floating_point() and not labels.is_complex():
            return
    raise UserError(
        f"{method}: the pseudo labels {output!r} are {found}",
        where=where,
        remedy=f"integers of ({', '.join(map(str, due))}) are due, 255 where there is no decision",
    )


#: What a method is handed, by the name that messages give it.
_HANDED = {Batch: "batch", View: "view", Progress: "progress", Build: "build"}


def misnamed(error: BaseException, method: Method) -> UserError | None:
    """The mistake behind an error, where code asked its batch, progress, build or configuration for something
    that they do not have; None for every other error."""
    if not isinstance(error, NoView | AttributeError):
        return None
    frame = traceback.extract_tb(error.__traceback__)
    own = [f for f in frame if f.name != "__missing__"]
    where = f"{own[-1].filename}, line {own[-1].lineno}" if own else place(method)
    if isinstance(error, NoView):
        return NoView(f"{method.name}: {error.problem}", where=where, remedy=error.remedy)
    handed = error.obj
    known = {**_HANDED, type(method.config): "config"}.get(type(handed))
    if known is None or not isinstance(error.name, str):
        return None
    fields = [f.name for f in dataclasses.fields(handed)] if dataclasses.is_dataclass(handed) else []
    derived = [k for k, v in vars(type(handed)).items() if isinstance(v, property)]
    return UserError(
        f"{method.name}: there is no {known}.{error.name}",
        where=where,
        remedy=nearest(error.name, [*fields, *derived]),
    )


#: Columns of the history that are not loss terms.
RESERVED = ("step", "lr", "loss", "steps_per_second", "amp.scale", "amp.skipped")


def check_terms(terms: Any, method: Method, device: torch.device | None) -> None:
    """What ``loss`` gives is scalar terms by name, with a way back to the parameters. Reads no value.

    Args:
        terms: what it gave.
        method: whose loss.
        device: where the batch was. None for a batch made up for a trial: of such a one, place and gradient
            of the terms say nothing.

    Raises:
        UserError: naming the term.
    """
    shown = place(method, "loss")

    def refuse(problem: str, remedy: str) -> UserError:
        return UserError(problem, where=shown, remedy=remedy)

    if not isinstance(terms, Mapping):
        raise refuse(
            f"loss gives {type(terms).__name__}, not terms by name", 'return a dictionary, as in {"ce": loss}'
        )
    if not terms:
        raise refuse("loss gives no term", "return at least one, 0 where there is nothing to learn from")
    for name, term in terms.items():
        if not isinstance(name, str) or not name or name in RESERVED:
            raise refuse(
                f"a loss term cannot be called {name!r}",
                f"choose another name; {', '.join(RESERVED)} are columns of the history",
            )
        if not isinstance(term, Tensor):
            raise refuse(f"loss term {name!r} is a {type(term).__name__}", "make it a tensor with a gradient")
        if term.numel() != 1 or not term.is_floating_point():
            raise refuse(
                f"loss term {name!r} is {term.dtype} of shape {tuple(term.shape)}",
                "reduce it to one floating-point number, by its mean for instance",
            )
        if device is not None and term.device.type != device.type:
            raise refuse(
                f"loss term {name!r} is on {term.device}, not on {device}", "compute it where the batch is"
            )
    if device is not None and not any(term.requires_grad for term in terms.values()):
        raise refuse(
            f"no loss term has a gradient ({', '.join(terms)})",
            "compute at least one from parameters that are trained, without detach or no_grad",
        )


def check_optimiser(optimiser: Any, method: Method) -> None:
    """An optimiser that a method brings holds every trainable parameter, and the groups that it was handed.

    Raises:
        UserError: naming what it lacks.
    """
    shown = place(method, "make_optimiser")
    if not isinstance(optimiser, torch.optim.Optimizer):
        raise UserError(
            f"make_optimiser gives {type(optimiser).__name__}, no torch.optim.Optimizer",
            where=shown,
            remedy="return an optimiser over the groups, or None for the recipe's",
        )
    held = {id(p) for group in optimiser.param_groups for p in group["params"]}
    lost = [name for name, p in method.named_parameters() if p.requires_grad and id(p) not in held]
    if lost:
        more = f" and {len(lost) - 5} more" if len(lost) > 5 else ""
        raise UserError(
            f"the method's own optimiser does not hold {', '.join(lost[:5])}{more}",
            where=shown,
            remedy="hand on the groups as they are",
        )
    if any("lr_scale" not in group for group in optimiser.param_groups):
        raise UserError(
            "the method's own optimiser has groups without 'lr_scale', by which the schedule sets their rate",
            where=shown,
            remedy="hand on the groups as they are",
        )


#: Names of what a method logs.
LOGGED = re.compile(r"[\w.-]{1,80}")


def checked_note(name: Any, value: Any, method: Method) -> Tensor | float:
    """One number that a method logs. Raises UserError for a name or value that is none."""
    shown = place(method, "note")
    if not isinstance(name, str) or not LOGGED.fullmatch(name):
        raise UserError(
            f"a note cannot be called {name!r}", where=shown, remedy="use letters, digits, _, - and ."
        )
    if isinstance(value, Tensor):
        if value.numel() == 1:
            return value.detach().float().reshape(())
    elif isinstance(value, int | float):
        return float(value)
    found = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    raise UserError(f"the note {name!r} is {found}, not one number", where=shown, remedy="reduce it first")
