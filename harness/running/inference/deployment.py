"""A trained network for deployment: a file that needs none of this project to run.

``model.pt2``   ``torch.export``: normalised pictures ``(1, 3, H, W)`` float32 to logits ``(1, K, H, W)``
``model.onnx``  the same, where the packages ``onnx`` and ``onnxscript`` are installed
``model.json``  classes, palette, background, normalisation, sizes, and how far each file is from the original

Every file is loaded again and compared with the original before it counts.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from harness.basics import provenance
from harness.basics.errors import UserError
from harness.basics.files import check_writable, sha256_of, write_json, write_with
from harness.basics.imagenet import MEAN, STD
from harness.engine.networks import load_noted
from harness.engine.outputs import check_scored
from harness.nn.resize import resize
from harness.recipes import protocols
from harness.recipes.resolving import resolve
from harness.records import origin
from harness.records.records import Store
from harness.running.inference.scoring import recorded_checkpoint

if TYPE_CHECKING:
    from harness.engine.method import Method

#: Largest difference from the original's logits, relative to their largest.
_TOLERANCE = 1e-3


class Deployed(nn.Module):
    """A method as a network alone: normalised pictures to logits of their size.

    Args:
        method: the trained method.
        network: which of its networks.
        align_corners: of the final resize, as in the protocol.
    """

    def __init__(self, method: Method, network: str, align_corners: bool) -> None:
        super().__init__()
        self.method, self.network, self.align_corners = method, network, align_corners

    def forward(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` float32 to ``(B, K, H, W)`` float32."""
        logits = self.method.grid_logits(images, self.network).float()
        return resize(logits, (images.shape[-2], images.shape[-1]), align_corners=self.align_corners)


@dataclass(frozen=True)
class WrittenModel:
    """What was written.

    Attributes:
        files: in the order of writing, ``model.json`` last.
        differences: by file name, largest difference from the original's logits, relative to their largest.
        left_out: file name to why it was not written.
        any_size: whether pictures of any size go in, or those of ``model.json``'s ``size`` alone.
    """

    files: tuple[Path, ...]
    differences: Mapping[str, float]
    left_out: Mapping[str, str]
    any_size: bool


def export_model(
    source: str | Path,
    out: Path,
    *,
    checkpoint: Path | None = None,
    seed: int = 0,
    table: str | None = None,
    network: str = "default",
    overrides: Mapping[str, Any] | None = None,
    results: Path | str = "results",
    say: Callable[[str], None] = warnings.warn,
) -> WrittenModel:
    """Write a trained network for deployment.

    Args:
        source: a recipe, a finished record, or a checkpoint of this project.
        out: folder that is written.
        checkpoint: of a recipe: weights; those of the finished record by default.
        seed: of a recipe: whose record.
        table: with ``checkpoint``: the key table of the code that wrote it.
        network: which of the method's networks.
        overrides: recipe values by dotted key.
        results: where records are.
        say: is told what a user of the file must know.

    Raises:
        UserError: there is no such record, the weights do not fit, torch cannot export the network, or what
            it exports computes something else.
    """
    store = Store(results)
    came, recipe, overrides, checkpoint = origin.origin_of(source, overrides, checkpoint, store)
    with origin.standing_in(came):
        resolved = resolve(recipe, overrides)
        check_scored(resolved, network=network, table=table)
        check_writable(out)
        file = checkpoint or recorded_checkpoint(recipe, seed, store, overrides)
        method, notes = load_noted(resolved, torch.device("cpu"), file, table, say)
        info = method.build.dataset
        protocol = protocols.protocol(resolved.recipe.usual_evaluation.protocol)
        model = Deployed(method, network, protocol.align_corners).eval()
        height, width = resolved.recipe.crop_size
        program, any_size = _exported(model, height, width)
        sizes = [(height, width), *([(height + 32, width + 64)] if any_size else [])]
        differences: dict[str, float] = {}
        left_out: dict[str, str] = {}
        write_with(out / "model.pt2", lambda stream: torch.export.save(program, stream))
        loaded = torch.export.load(out / "model.pt2").module()
        differences["model.pt2"] = _compared(model, loaded, sizes, out / "model.pt2")
        lacking = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
        if lacking:
            left_out["model.onnx"] = f"needs {', '.join(lacking)}: pip install {' '.join(lacking)}"
        else:
            try:
                differences["model.onnx"] = _onnx(model, program, sizes, out / "model.onnx")
            except UserError as error:
                left_out["model.onnx"] = error.problem
        facts: dict[str, Any] = {
            "recipe": recipe,
            "overrides": dict(overrides),
            "network": network,
            "checkpoint_sha256": sha256_of(file),
            "classes": list(info.classes),
            "palette": [[int(v) for v in colour] for colour in info.palette],
            "background": info.background,
            "input": {
                "layout": "(1, 3, H, W) float32, RGB: (value / 255 - mean) / deviation",
                "mean": list(MEAN),
                "deviation": list(STD),
                "size": "any" if any_size else [height, width],
            },
            "output": "(1, K, H, W) float32 logits: the class of a pixel is the largest",
            "differences": differences,
            "left_out": left_out,
            "notes": notes,
            "code": provenance.code(),
        }
        write_json(out / "model.json", facts)
    names = [*differences, "model.json"]
    return WrittenModel(tuple(out / name for name in names), differences, left_out, any_size)


def _example(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 3, height, width, generator=generator)


def _exported(model: Deployed, height: int, width: int) -> tuple[Any, bool]:
    """The exported program, for pictures of any size where the network allows it; and whether it does."""
    free = {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    example = (_example(height, width),)
    why = ""
    for shapes in ((free,), None):
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                program = torch.export.export(model, example, dynamic_shapes=shapes)
                if shapes is not None:
                    program.module()(_example(height + 32, width + 64))
            return program, shapes is not None
        except Exception as error:  # tracing meets whatever a network does
            why = next(iter(str(error).splitlines()), type(error).__name__)[:300]
    raise UserError(
        f"torch.export cannot write this network: {why}",
        where=type(model.method).__name__,
        remedy="predict with wsss predict, or write grid_logits without what depends on values",
    )


def _compared(
    model: nn.Module, other: Callable[[Tensor], Tensor], sizes: list[tuple[int, int]], file: Path
) -> float:
    """Largest relative difference between two networks. Raises UserError where they are not the same."""
    worst = 0.0
    with torch.no_grad():
        for height, width in sizes:
            images = _example(height, width)
            own, found = model(images), other(images)
            scale = own.abs().max().clamp_min(1e-6)
            worst = max(worst, float((own - found).abs().max() / scale))
    if not worst <= _TOLERANCE:
        file.unlink()
        raise UserError(
            f"the exported network differs from the original by {worst:.2g} of its largest logit",
            where=file,
            remedy="predict with wsss predict; a network that draws random numbers cannot be exported",
        )
    return worst


def _onnx(model: Deployed, program: Any, sizes: list[tuple[int, int]], file: Path) -> float:
    """Write the ONNX file, and compare what onnxruntime computes of it."""
    onnxruntime = import_module("onnxruntime")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                program, (), str(file), input_names=["images"], output_names=["logits"], verbose=False,
                external_data=False,
            )  # fmt: skip
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return _compared(
            model, lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0]), sizes, file
        )
    except UserError:
        raise
    except Exception as error:  # converters raise whatever they meet
        file.unlink(missing_ok=True)
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
        raise UserError(f"ONNX cannot express this network: {why}", where=file) from error
