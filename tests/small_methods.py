"""Small methods and batches of every kind, for tests over the registry."""

from __future__ import annotations

import torch

from harness.basics.registry import DATASETS, METHODS
from harness.basics.schema import dump
from harness.engine.batch import IGNORE, UNLABELLED, Batch, View
from harness.engine.method import Build
from harness.nn.pixels import normalise
from harness.recipes.resolving import recipe_names, resolve

SIDE = 48


def mini_recipes() -> list[str]:
    """The miniature recipes, those left out that differ from another in positive numbers alone."""
    distinct: dict[str, str] = {}
    for name in recipe_names():
        if "/mini-" not in name:
            continue
        resolved = resolve(name)
        config = {
            k: v > 0 if isinstance(v, int | float) and not isinstance(v, bool) else v
            for k, v in dump(resolved.config).items()
        }
        recipe = resolved.recipe
        distinct.setdefault(repr((recipe.method, recipe.supervision, recipe.backbone, config)), name)
    return list(distinct.values())


def build(name: str, seed: int = 0):
    recipe = resolve(name).recipe
    info = DATASETS.get(recipe.dataset).info
    torch.manual_seed(seed)
    config = resolve(name).config
    return METHODS.get(recipe.method)(
        config, Build(info, recipe.supervision, (SIDE, SIDE), recipe.backbone, "none")
    )


def make_batch(method, supervision: str, size: int = 3) -> Batch:
    """Pictures of two coloured halves with the labels that a supervision kind allows."""
    generator = torch.Generator().manual_seed(7)
    raw = torch.randint(0, 256, (size, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    raw[:, 0, :, SIDE // 2 :] //= 4
    classes = method.build.num_classes
    truth = torch.zeros(size, SIDE, SIDE, dtype=torch.long)
    for i in range(size):
        truth[i, :, SIDE // 2 :] = 1 + i % (classes - 1)
    tags = torch.zeros(size, classes)
    tags[torch.arange(size), 1 + torch.arange(size) % (classes - 1)] = 1
    labels = truth.clone()
    if supervision in ("scribble", "point", "block"):
        labels[:] = UNLABELLED
        labels[:, 10:14, 5:-5] = truth[:, 10:14, 5:-5]
        tags[:, 0] = 1
    elif supervision == "box":
        labels[:, 4:-4, SIDE // 2 :] = UNLABELLED
        tags[:, 0] = 1
    elif supervision == "image" and "image" not in method.needs_labels_from:
        labels[:] = UNLABELLED
    labels[:, -3:] = IGNORE
    valid = labels != IGNORE
    views = {}
    for name, spec in method.views().items():
        side = round(SIDE * spec.scale)
        colours = torch.nn.functional.interpolate(raw.float(), (side, side)).to(torch.uint8)
        inside = torch.nn.functional.interpolate(valid[:, None].float(), (side, side))[:, 0] > 0
        if spec.flip:
            colours, inside = colours.flip(-1), inside.flip(-1)
        views[name] = View(normalise(colours), colours, inside)
    ids = [str(i) for i in range(size)]
    return Batch(normalise(raw), labels, tags, ids, raw, valid, views)
