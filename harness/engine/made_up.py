"""What a loss is tried with before there is data: batches without values or with made-up ones, and answers
where some are due."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from harness.engine.batch import IGNORE, UNLABELLED, Batch, View
from harness.engine.sampling import Pool
from harness.engine.shapes import PlainMode
from harness.nn.pixels import normalise

if TYPE_CHECKING:
    from harness.engine.method import Method
    from harness.recipes.specs import Recipe

_aten = torch.ops.aten


class Answers(PlainMode):
    """Operations whose result depends on values give a made-up one on the meta device: numbers are 1, and one
    element satisfies every condition. So code goes on where it would otherwise end."""

    def lacks_values(self, tensor: Tensor) -> bool:
        """Whether a tensor has none."""
        return tensor.is_meta

    def some(self, tensor: Tensor) -> int:
        """How many elements satisfy a condition."""
        return 1

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping | None = None
    ) -> Any:
        options = dict(kwargs or {})
        first = args[0] if args and isinstance(args[0], Tensor) and self.lacks_values(args[0]) else None
        if first is not None:
            kind = func.overloadpacket
            if kind is _aten._local_scalar_dense:
                return first.dtype == torch.bool or 1
            if kind is _aten.nonzero:
                return first.new_empty((self.some(first), first.ndim), dtype=torch.long)
            if kind is _aten.masked_select:
                return first.new_empty((self.some(args[1]),))
            if kind is _aten._unique2:
                one = first.new_empty((self.some(first),))
                return one, first.new_empty(first.shape, dtype=torch.long), one.long()
            if kind is _aten.bincount:
                length = max([*(a for a in args[1:] if isinstance(a, int)), options.get("minlength", 0), 1])
                return first.new_empty((length,), dtype=torch.long)
            place = options.get("device")
            if kind is _aten._to_copy and place is not None and torch.device(place).type != "meta":
                return torch.zeros(first.shape, dtype=options.get("dtype") or first.dtype, device=place)
        return func(*args, **options)


def made_up_batch(
    method: Method, recipe: Recipe, device: torch.device, most: int | None = None, size: int = 2
) -> Batch:
    """Black pictures with the labels that the recipe's kind of supervision allows, and all tags.

    Args:
        method: whose views it carries.
        recipe: crop and supervision.
        device: where its tensors are.
        most: largest side in pixels, None for the recipe's crop.
        size: how many.
    """
    classes = method.build.num_classes
    height, width = (side if most is None else min(side, most) for side in recipe.crop_size)

    def view(scale: float) -> View:
        h, w = round(height * scale), round(width * scale)
        raw = torch.zeros(size, 3, h, w, dtype=torch.uint8, device=device)
        return View(raw.float(), raw, torch.ones(size, h, w, dtype=torch.bool, device=device))

    main = view(1.0)
    labels = torch.zeros(size, height, width, dtype=torch.long, device=device)
    labels[:, :, : width // 2] = classes - 1
    if recipe.supervision != "full":
        labels[:, height // 4 :] = UNLABELLED
    if recipe.supervision == "image" and recipe.labels_from is None:
        labels[:] = UNLABELLED
    labels[:, -1] = IGNORE
    tags = torch.ones(size, classes, device=device)
    views = {name: view(spec.scale) for name, spec in method.views().items()}
    batch = Batch(main.images, labels, tags, [str(i) for i in range(size)], main.raw, main.valid, views)
    return _with_further(batch, method)


def _with_further(batch: Batch, method: Method) -> Batch:
    """A batch with the further pictures that a method asks for: its own, mirrored, without labels."""
    bare = torch.where(batch.labels == IGNORE, IGNORE, torch.full_like(batch.labels, UNLABELLED)).flip(-1)
    views = {
        name: View(view.images.flip(-1), view.raw.flip(-1), view.valid.flip(-1))
        for name, view in batch.views.items()
    }
    for name in method.further():
        ids = [f"{name}/{i}" for i in batch.ids]
        rest = (torch.zeros_like(batch.tags), ids, batch.raw.flip(-1), batch.valid.flip(-1), views)
        batch.further[name] = Batch(batch.images.flip(-1), bare, *rest)
    return batch


def made_up_pool(method: Method) -> Pool:
    """Sixteen pictures with one or two tags each, for an order of them."""
    places, classes = np.arange(16), method.build.num_classes
    tags = np.zeros((len(places), classes), dtype=np.float32)
    tags[places, places % classes] = tags[places, places * 3 % classes] = 1
    return Pool(tuple(map(str, places)), tags)


def made_up_rng(seed: int = 0) -> np.random.Generator:
    """A generator as an order is handed one."""
    return np.random.Generator(np.random.PCG64([seed, 0]))


def coloured_batch(method: Method, supervision: str, side: int, size: int = 3) -> Batch:
    """Pictures of two coloured halves with the labels that a kind of supervision allows, always the same.

    Args:
        method: whose views it carries.
        supervision: kind of weak label.
        side: of the pictures, in pixels; 24 or more.
        size: pictures.
    """
    generator = torch.Generator().manual_seed(7)
    raw = torch.randint(0, 256, (size, 3, side, side), generator=generator, dtype=torch.uint8)
    raw[:, 0, :, side // 2 :] //= 4
    classes = method.build.num_classes
    truth = torch.zeros(size, side, side, dtype=torch.long)
    for i in range(size):
        truth[i, :, side // 2 :] = 1 + i % (classes - 1)
    tags = torch.zeros(size, classes)
    tags[torch.arange(size), 1 + torch.arange(size) % (classes - 1)] = 1
    labels = truth.clone()
    if supervision in ("scribble", "point", "block"):
        labels[:] = UNLABELLED
        labels[:, 10:14, 5:-5] = truth[:, 10:14, 5:-5]
        tags[:, 0] = 1
    elif supervision == "box":
        labels[:, 4:-4, side // 2 :] = UNLABELLED
        tags[:, 0] = 1
    elif supervision == "image" and "image" not in method.needs_labels_from:
        labels[:] = UNLABELLED
    labels[:, -3:] = IGNORE
    valid = labels != IGNORE
    views = {}
    for name, spec in method.views().items():
        small = (round(side * spec.scale),) * 2
        colours = torch.nn.functional.interpolate(raw.float(), small).to(torch.uint8)
        inside = torch.nn.functional.interpolate(valid[:, None].float(), small)[:, 0] > 0
        if spec.flip:
            colours, inside = colours.flip(-1), inside.flip(-1)
        views[name] = View(normalise(colours), colours, inside)
    ids = [str(i) for i in range(size)]
    return _with_further(Batch(normalise(raw), labels, tags, ids, raw, valid, views), method)
