"""Minutes on one GPU: whether every full-size recipe trains there, what it costs, and which switches pay.

``python benchmarks/gpu.py --out gpu.json`` needs no data, no weights and no network, stops after nine minutes
at most (``--seconds``), and prints tables for docs/cost.md; measurements are in the file as they come. Each
recipe takes steps of its own batch in its last phase: milliseconds, those in which the host was busy, how
often it waited, and the largest memory. Then TF32, bfloat16, channels-last and cuDNN's search are tried, and
pictures are scored. ``--tiny`` tries the script itself on miniature recipes, on the CPU too.

``--pretend`` needs no GPU: what can be known of each recipe's step without one, and what loaders cost here,
as a table; ``--footprints`` writes what ``--dry-run`` looks up, for the miniature suite too.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from harness.engine.batch import Batch, Progress
from harness.engine.footprint import SHIPPED, footprint, key_of
from harness.engine.made_up import coloured_batch
from harness.engine.networks import build_method
from harness.engine.training import Trainer
from harness.evaluation.evaluator import label_map
from harness.recipes import protocols
from harness.recipes.resolving import recipe_names, resolve
from harness.recipes.specs import PrecisionSpec
from harness.running.smoke.feeding import (
    Feeding,
    made_up_set,
    picture_seconds,
    pictures_of_step,
    step_seconds,
)
from harness.running.trials.trial import choose_device

#: What may make steps faster; the losses that come out stand beside the milliseconds.
SWITCHES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "TF32": {"tf32": True},
    "bf16": {"amp": "bf16"},
    "bf16, channels last": {"amp": "bf16", "channels_last": True},
    "cuDNN's search": {"benchmark": True},
}
#: The GPU that steps are guessed for.
GPU = "H200"
#: One of each kind of network and label, on which every switch is tried.
SWITCHED = ("agmm/voc-scribble-r101", "blpseg/voc-scribble-r101", "toco/voc-image-vitb", "fsr/voc-image-vitb")
SCORED = (
    ("pce/voc-scribble-r101", "single"),
    ("pce/voc-scribble-r101", "single-crf"),
    ("fsr/voc-image-vitb", "fsr-ms"),
)


class _Data:
    """As much of a training set as a trainer asks for before its first step."""

    def __len__(self) -> int:
        return 10_000


class Bench:
    """Measurements until time is up.

    Args:
        device: where.
        seconds: after which nothing more is begun.
        out: file of the measurements so far.
    """

    def __init__(self, device: torch.device, seconds: float, out: Path | None) -> None:
        self.device, self.cuda, self.out = device, device.type == "cuda", out
        self.until = time.monotonic() + seconds
        self.rows: list[dict[str, Any]] = []

    def keep(self, **row: Any) -> None:
        """Add a measurement to the file."""
        self.rows.append(row)
        print(json.dumps(row), flush=True)
        if self.out:
            self.out.write_text(json.dumps(self.rows, indent=1), encoding="utf-8")

    def attempt(self, measure: Callable[[], dict[str, Any]], **named: Any) -> None:
        """Measure, unless time is up; an error is a result too, and the next one goes on."""
        if time.monotonic() > self.until:
            return
        try:
            self.keep(**named, **measure())
        except Exception as error:
            self.keep(**named, error=f"{type(error).__name__}: {str(error)[:300]}")
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()

    def _sync(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def step(
        self,
        name: str,
        *,
        amp: str | None = None,
        tf32: bool = False,
        benchmark: bool = False,
        channels_last: bool = False,
        steps: int = 6,
    ) -> dict[str, Any]:
        """Steps of a recipe in its last phase."""
        resolved = resolve(name, {"weights": "none"})
        recipe = resolved.recipe
        batch_spec = dataclasses.replace(recipe.batch, groups=1, sync_bn="off")
        precision = PrecisionSpec(
            tf32="all" if tf32 else "convolutions", channels_last=channels_last, cudnn_benchmark=benchmark
        )
        recipe = dataclasses.replace(recipe, amp=amp or recipe.amp, batch=batch_spec, precision=precision)
        method = build_method(resolved, self.device, seed=0).train()
        size = recipe.batch.per_group
        batch = coloured_batch(method, recipe.supervision, max(recipe.crop_size), size)
        trainer = Trainer(method, recipe, _Data(), seed=0, folder=Path("nowhere"))  # type: ignore[arg-type]
        at = Progress(int(max(method.probe_steps) * trainer.total), trainer.total, 100)
        if self.cuda:
            batch = batch.pin_memory()
            torch.cuda.reset_peak_memory_stats()
        for _ in range(3):  # libraries are loaded, memory is found
            trainer.optimise([batch], at)
        self._sync()
        start = time.perf_counter()
        for _ in range(steps):
            terms = trainer.optimise([batch], at)
        host = time.perf_counter() - start
        self._sync()
        whole = time.perf_counter() - start
        return {
            "pictures": len(batch),
            "ms": round(1e3 * whole / steps, 1),
            "host_ms": round(1e3 * host / steps, 1),
            "waits": self._waits(trainer, batch, at) if self.cuda else None,
            "estimate_gib": round(footprint(resolved).peak_mib / 1024, 2) if self.cuda else None,
            "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if self.cuda else None,
            "loss": {key: round(float(value), 4) for key, value in terms.items()},
        }

    def _waits(self, trainer: Trainer, batch: Batch, at: Progress) -> int:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                trainer.optimise([batch], at)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(warning.message) for warning in said)

    def score(
        self, name: str, protocol: str, size: tuple[int, int] = (375, 500), times: int = 5
    ) -> dict[str, Any]:
        """Pictures of VOC's size, segmented."""
        method = build_method(resolve(name, {"weights": "none"}), self.device, seed=0).eval()
        raw = torch.randint(0, 256, (3, 375, 500), dtype=torch.uint8)
        p = protocols.protocol(protocol)

        def one() -> Any:
            return label_map(method, raw.to(self.device), p, name="a picture")

        with torch.inference_mode():
            one()
            self._sync()
            start = time.perf_counter()
            for _ in range(times):
                one()
        return {"ms": round(1e3 * (time.perf_counter() - start) / times, 1)}


def table(rows: list[dict[str, Any]], what: str) -> str:
    """The measurements of one kind, as Markdown; loss terms are added up."""
    shown = []
    for row in rows:
        if row["what"] == what:
            whole = {"loss": round(sum(row["loss"].values()), 3)} if "loss" in row else {}
            shown.append({key: value for key, value in row.items() if key != "what"} | whole)
    return tabulate(shown, headers="keys", tablefmt="pipe", missingval="–")


def main() -> int:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=540.0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tiny", action="store_true", help="miniature recipes, two of each kind")
    parser.add_argument("--pretend", action="store_true", help="without a GPU")
    parser.add_argument("--footprints", action="store_true", help="write harness/engine/footprints.json anew")
    given = parser.parse_args()
    if given.footprints:
        write_footprints()
    if given.pretend:
        print(pretended(["pce/mini-scribble"] if given.tiny else _recipes()))
    if given.footprints or given.pretend:
        return 0
    bench = Bench(choose_device(given.device), given.seconds, given.out)
    gpu = torch.cuda.get_device_name() if bench.cuda else None
    cudnn = torch.backends.cudnn.version() if bench.cuda else None
    bench.keep(what="machine", gpu=gpu, torch=torch.__version__, cuda=torch.version.cuda, cudnn=cudnn)
    full, switched, scored = _recipes(), list(SWITCHED), list(SCORED)
    if given.tiny:
        full = ["pce/mini-scribble", "cam/mini-image"]
        switched, scored = full[:1], [(full[0], "single")]
    tried = [(name, "as it is") for name in full]
    tried += [(name, switch) for name in switched for switch in SWITCHES if SWITCHES[switch]]
    for name, switch in tried:
        work = partial(bench.step, name, **SWITCHES[switch])
        bench.attempt(work, what="step", recipe=name, switch=switch)
    for name, protocol in scored:
        bench.attempt(partial(bench.score, name, protocol), what="score", recipe=name, protocol=protocol)
    for what in ("step", "score"):
        print(f"\n{table(bench.rows, what)}")
    return int(any("error" in row for row in bench.rows))


def write_footprints() -> None:
    """Find what steps of full-size recipes and of the miniature suite take, and keep it."""
    mini = [name for name in recipe_names() if "/mini-" in name and "mini" in resolve(name).recipe.suites]
    kept: dict[str, list[float]] = {}
    for name in [*_recipes(), *mini]:
        resolved = resolve(name, {"weights": "none"})
        if (key := key_of(resolved)) not in kept:
            f = footprint(resolved, anew=True)
            sizes = [round(mib, 2) for mib in (f.peak_mib, f.fixed_mib, f.batch_mib)]
            kept[key] = [*sizes, f.operations, round(f.tflop, 3)]
            lines = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in kept.items())
            SHIPPED.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


def pretended(names: list[str]) -> str:
    """What is known of steps without a GPU, as Markdown."""
    shown = []
    for name in names:
        resolved = resolve(name, {"weights": "none"})
        found, recipe = footprint(resolved), resolved.recipe
        with torch.device("meta"):
            method = build_method(resolved, torch.device("meta"), 0)
        data = made_up_set(resolved, method)
        each, pictures = picture_seconds(data), sum(pictures_of_step(data).values())
        seconds = step_seconds(found, recipe, GPU)
        shown.append(
            {
                "recipe": name,
                "pictures": pictures,
                "memory, GiB": f"{found.peak_mib / 1024:.1f}",
                "batch, MiB": f"{found.batch_mib:.0f}",
                "operations": f"{found.operations:,}",
                "TFLOP": f"{found.tflop:.1f}",
                f"ms on an {GPU}": "–" if seconds is None else f"{1e3 * seconds:.0f}",
                "CPU ms a picture": f"{1e3 * each:.1f}",
                "cores": "–" if seconds is None else Feeding(each, pictures, seconds, "").cores,
            }
        )
    return tabulate(shown, headers="keys", tablefmt="pipe", disable_numparse=True)


def _recipes() -> list[str]:
    """Full-size recipes: the first of each method, kind of label and network."""
    found: dict[tuple[str, str, str], str] = {}
    for name in recipe_names():
        if name.partition("/")[2].startswith(("voc-", "cityscapes-")) and "lite" not in name:
            recipe = resolve(name).recipe
            found.setdefault((recipe.method, recipe.supervision, recipe.backbone), name)
    return list(found.values())


if __name__ == "__main__":
    sys.exit(main())
