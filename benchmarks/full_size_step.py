"""What a training step costs at full size, part by part.

``python benchmarks/full_size_step.py toco/voc-image-vitb fsr/voc-image-vitb`` runs one step of each recipe
on its crop, with weights of chance and random pictures, on the CPU or the first GPU (``--device cuda
--amp bf16``), and prints seconds and peak memory. The step stands late in the schedule: all terms are on.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from measuring import peak_mib, reset_peak

import harness.nn.vit
from harness.engine.batch import IGNORE, UNLABELLED, Batch, Progress, View
from harness.engine.networks import build_method
from harness.engine.training import create_optimiser
from harness.nn import dense_crf
from harness.nn.pixels import normalise
from harness.recipes.resolving import resolve
from methods.parts import par, token_contrast

#: Parts of a step by name, wherever methods have imported them.
PARTS: dict[str, Callable[..., Any]] = {
    "PAR": par.refine_cams,
    "dense energy": dense_crf.dense_crf_loss,
    "PTC": token_contrast.patch_token_contrast,
    "CTC": token_contrast.class_token_contrast,
}


def clock(device: torch.device) -> float:
    """Seconds: of the process on the CPU, of the wall where a GPU computes."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


@contextlib.contextmanager
def timed(device: torch.device) -> Iterator[dict[str, float]]:
    """Seconds spent in each of :data:`PARTS` and in the encoders' forward passes."""
    spent: dict[str, float] = defaultdict(float)

    def wrap(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            start = clock(device)
            try:
                return function(*arguments, **options)
            finally:
                spent[name] += clock(device) - start

        return run

    undo = []
    modules = [m for n, m in sys.modules.items() if n.startswith(("methods", "harness.nn"))]
    for name, function in PARTS.items():
        for module in modules:
            for attribute, value in list(vars(module).items()):
                if value is function:
                    setattr(module, attribute, wrap(name, function))
                    undo.append((module, attribute, value))
    encoder = harness.nn.vit.ViTEncoder
    undo.append((encoder, "forward", encoder.forward))
    encoder.forward = wrap("encoder", encoder.forward)
    try:
        yield spent
    finally:
        for owner, attribute, value in undo:
            setattr(owner, attribute, value)


def random_batch(method: Any, size: int, device: torch.device) -> Batch:
    """Random pictures with one to three tags each."""
    height, width = method.build.crop
    generator = torch.Generator().manual_seed(0)

    def view(scale: float = 1.0) -> View:
        side = (round(height * scale), round(width * scale))
        raw = torch.randint(0, 256, (size, 3, *side), generator=generator, dtype=torch.uint8)
        return View(normalise(raw), raw, torch.ones(size, *side, dtype=torch.bool))

    main = view()
    tags = torch.zeros(size, method.build.num_classes)
    tags[:, 1:4] = torch.tensor([1.0, 1.0, 0.0])
    labels = torch.full((size, height, width), UNLABELLED)
    labels[:, -8:] = IGNORE
    views = {name: view(spec.scale) for name, spec in method.views().items()}
    ids = [str(i) for i in range(size)]
    return Batch(main.images, labels, tags, ids, main.raw, labels != IGNORE, views).to(device)


def measure(name: str, size: int, device: torch.device, amp: str) -> None:
    """One step of a recipe; prints a line of Markdown."""
    reset_peak()  # of the recipe before
    resolved = resolve(name, {"weights": "none"})
    method = build_method(resolved, device, seed=0).train()
    optimiser = create_optimiser(method.parameter_groups(), resolved.recipe.optimiser)
    batch = random_batch(method, size, device)
    total = resolved.recipe.schedule.total_steps(1000)
    progress = Progress(total * 3 // 4, total, 1000)
    types = {"bf16": torch.bfloat16, "fp16": torch.float16}
    for _ in range(2 if device.type == "cuda" else 1):  # a GPU's first step compiles and allocates
        optimiser.zero_grad()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with timed(device) as spent:
            start = clock(device)
            with torch.autocast(device.type, dtype=types.get(amp), enabled=amp in types):
                terms = method(batch, progress)
            forward = clock(device)
            torch.stack([t.float() for t in terms.values()]).sum().backward()
            backward = clock(device)
            optimiser.step()
            method.after_step(dataclasses.replace(progress))
            end = clock(device)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**30
    else:
        peak = peak_mib() / 2**10
    parts = ", ".join(f"{part} {seconds:.2f}" for part, seconds in sorted(spent.items()))
    print(
        f"| {name} | {forward - start:.1f} | {backward - forward:.1f} | {end - backward:.1f} "
        f"| {parts} | {peak:.1f} GiB |",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--pictures", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--amp", choices=("off", "bf16", "fp16"), default="off")
    given = parser.parse_args()
    print("| recipe | forward s | backward s | update s | of the forward pass, s | peak |")
    print("|---|---|---|---|---|---|")
    for recipe in given.recipes:
        measure(recipe, given.pictures, torch.device(given.device), given.amp)
