"""What a trained network is: written into its checkpoint, and compared where weights are loaded.

Weights fit wherever shapes do: a network with other dilations takes them without a word and predicts
something else. So a checkpoint says what its predictions depend on beside the weights.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.basics.errors import UserError
from harness.basics.schema import InferenceOnly, Neutral, Shapes, TrainingOnly, dump, fields, marks, same

if TYPE_CHECKING:
    from harness.engine.method import Method

#: Key of the description in a checkpoint.
NETWORK_KEY = "network"


def described(method: Method) -> dict[str, Any]:
    """Plain values of all that predictions depend on beside the weights: ``method, backbone, classes,
    background, pixels`` (mean and deviation of RGB in [0, 1]) and every value of ``config``."""
    build = getattr(method, "build", None)
    if build is None:  # a method that never called Method.__init__ can say nothing
        return {}
    return {
        "method": method.name,
        "backbone": build.backbone,
        "classes": list(build.dataset.classes),
        "background": build.dataset.background,
        "pixels": dump(build.pixels),
        "config": dump(method.config),
    }


def compared(
    method: Method, said: Mapping[str, Any] | None, where: Path, *, asked: Collection[str] = ()
) -> list[str]:
    """Compare a network with what a checkpoint says of itself.

    Args:
        method: the network as it is built here.
        said: the checkpoint's description; None where it has none.
        where: the checkpoint.
        asked: keys of ``config`` that were set on purpose: their difference is no news.

    Returns:
        What a reader of any result must know: values that had to be assumed, or that differ where that
        is legal.

    Raises:
        UserError: predictions would not be those of the network that was trained; both values are named.
    """
    now = described(method)
    if not now:
        return []
    if not said:
        return [assumed(method)]
    refused = [
        f"{key} = {_shown(said[key])}, not {_shown(now[key])}"
        for key in now
        if key != "config" and key in said and said[key] != now[key]
    ]
    differing = _differing(method, said.get("config", {}), now["config"])
    decisive = shaping(type(method.config))
    wrong = [key for key in differing if key in decisive]
    refused += [f"config.{k} = {_shown(differing[k])}, not {_shown(now['config'][k])}" for k in wrong]
    if refused:
        sets = " ".join(f"--set config.{k}={_shown(differing[k])}" for k in wrong)
        elsewhere = "name the recipe that it was trained with"
        raise UserError(
            f"the checkpoint was trained with {'; '.join(refused[:4])}",
            where=where,
            remedy=f"{elsewhere}, or add {sets}" if len(wrong) == len(refused) else elsewhere,
        )
    rest = {k: v for k, v in differing.items() if k not in asked}
    if not rest:
        return []
    listed = [f"config.{k} = {_shown(v)}, not {_shown(now['config'][k])}" for k, v in rest.items()]
    more = f" and {len(listed) - 4} more" if len(listed) > 4 else ""
    return [f"the checkpoint was trained with {'; '.join(listed[:4])}{more}"]


def shaping(config: type) -> set[str]:
    """Values of a ``Config`` under which alone given weights predict what they were trained to: those marked
    :class:`harness.basics.schema.Shapes`, and where none is, all but those of other marks."""
    marked = set(marks(config, Shapes))
    return marked or set(fields(config)) - set(marks(config, InferenceOnly)) - set(
        marks(config, TrainingOnly)
    )


def assumed(method: Method) -> str:
    """What is taken from the recipe for a checkpoint that does not say what it is."""
    now = described(method)
    config = {k: v for k, v in now["config"].items() if k in shaping(type(method.config))}
    parts = [f"backbone {now['backbone']}", f"{len(now['classes'])} classes of {method.build.dataset.name}"]
    parts += [f"pixels of mean {_shown(now['pixels']['mean'])}, deviation {_shown(now['pixels']['std'])}"]
    parts += [f"config.{k} = {_shown(v)}" for k, v in config.items()]
    return f"assumed, as the checkpoint does not say: {', '.join(parts)}"


def _differing(method: Method, then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a recorded ``config`` that are others now; an option that it does not know was neutral."""
    known = {k: dump(m.value) for k, m in marks(type(method.config), Neutral).items()} | dict(then)
    return {k: known[k] for k in now if k in known and not same(known[k], now[k])}


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
