"""How long the report of a large store takes, and the bootstrap of a large split.

``taskset -c 0 python benchmarks/report_at_scale.py store/`` makes 10,000 synthetic records (once, about half
a gigabyte on disk with its blocks), gathers them and writes every table and the page, and prints seconds
and peak memory. ``--bootstrap`` resamples the 40,137 images x 81 classes of COCO's val 1,000 times instead.
Both run in this one process; the time of imports is printed apart.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

_START = time.perf_counter()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from measuring import peak_mib  # noqa: E402

from harness.basics import provenance  # noqa: E402, protocols
from harness.basics.schema import digest, dump  # noqa: E402
from harness.data.base import SUPERVISIONS  # noqa: E402
from harness.evaluation import evaluator  # noqa: E402, protocols
from harness.recipes import protocols  # noqa: E402, protocols
from harness.recipes.resolving import Resolved  # noqa: E402
from harness.recipes.specs import Recipe  # noqa: E402
from harness.records.records import SCHEMA, PerImage, Store  # noqa: E402
from leaderboards.rows.statistics import bootstrap_miou  # noqa: E402
from leaderboards.write.report import write_report  # noqa: E402

_IMPORTED = time.perf_counter() - _START

CLASSES = ("background", "mug", "table", "fish", "umbrella", "kite", "spider")
METHODS = ("agmm", "pce", "blpseg", "dfr", "fsr", "toco", "cam", "full", "rloss", "tree_energy")
SEEDS = 3
#: Different networks; more would only fill the disk.
NETWORKS = 50


def counts(images: int, classes: int, pixels: int, seed: int) -> PerImage:
    """Counts of one network; all networks have seen the same truth."""
    truth, own = np.random.default_rng(0), np.random.default_rng([seed, 1])
    labelled = truth.integers(0, pixels, (images, classes)) * (truth.random((images, classes)) < 0.4)
    hit = (labelled * own.uniform(0.3, 0.9, labelled.shape)).astype(np.int64)
    wrong = own.permuted(labelled - hit, axis=1)  # every pixel of a picture is predicted once
    return PerImage(tuple(f"{i:06d}" for i in range(images)), hit, hit + wrong, labelled)


def make(root: Path, records: int) -> None:
    """Write a store as runs would leave it, with 100 images and 7 classes, three seeds a recipe."""
    protocol, common = protocols.protocol("single"), _common()
    networks = []
    with tempfile.TemporaryDirectory() as place:
        for seed in range(NETWORKS):
            run, file = counts(100, len(CLASSES), 2000, seed), Path(place) / "per_image.npz"
            run.save(file)
            networks.append((file.read_bytes(), evaluator.summarise(run, CLASSES, protocol)))
    choose = np.random.default_rng(2)
    for index in range(records):
        number, seed = divmod(index, SEEDS)
        method, turn = METHODS[number % len(METHODS)], number // len(METHODS)
        kind = SUPERVISIONS[turn % len(SUPERVISIONS)]
        recipe = Recipe(
            method=method, dataset="mini", supervision=kind, backbone="small-cnn", weights="packaged",
            schedule={"steps": 240},
        )  # fmt: skip
        name = f"{method}/mini-{kind}-{turn // len(SUPERVISIONS)}"
        resolved = Resolved(name=name, recipe=recipe)
        own = digest([name])
        folder = Store(root).folder(name, own, seed)
        npz, figures = networks[int(choose.integers(NETWORKS))]
        for spec in recipe.evaluation:
            place_of = folder / "evaluations" / f"{spec.name}-{own}"
            place_of.mkdir(parents=True, exist_ok=True)
            (place_of / "per_image.npz").write_bytes(npz)
            scored = {
                "schema": SCHEMA, "name": spec.name, "digest": own, "spec": dump(spec),
                "protocol": dump(protocol), "official_images": 100, "data_fingerprint": "data-1",
                "checkpoint_sha256": common["checkpoint"]["sha256"], "seconds": 1.0,
                "written": "2025-01-01T00:00:00+00:00", **figures,
            }  # fmt: skip
            (place_of / "evaluation.json").write_text(json.dumps(scored, indent=1), encoding="utf-8")
        values = resolved.training_values() | {"evaluation": dump(recipe.evaluation)}
        known = {"name": name, "method": method, "title": method.upper(), "recipe": values, "seed": seed}
        text = json.dumps({"schema": SCHEMA, **known, "digest": own, **common}, indent=1)
        (folder / "record.json").write_text(text, encoding="utf-8")


def _common() -> dict:
    splits = {name: {"images": n, "official": n, "fingerprint": "data-1"} for name, n in _SPLITS.items()}
    return {
        "overrides": {},
        "status": "finished",
        "code": {"version": "0.1.0", "commit": "a" * 40, "dirty": False},
        "environment": provenance.environment(),
        "hardware": provenance.hardware(torch.device("cpu")),
        "data": {"dataset": "mini", "splits": splits, "labels": {"fingerprint": "labels-1"}},
        "weights": {"name": "packaged", "backbone": "small-cnn", "sha256": "1" * 64},
        "parameters": 1_230_000,
        "steps": 240,
        "steps_per_second": 8.0,
        "seconds": 31.0,
        "peak_memory_mib": 700.0,
        "started": "2025-01-01T00:00:00+00:00",
        "ended": "2025-01-01T00:00:31+00:00",
        "checkpoint": {"file": "checkpoint/last.pt", "sha256": "2" * 64},
    }


_SPLITS = {"train": 400, "val": 100}


def main() -> None:
    """Make what is missing, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", type=Path, nargs="?", help="results folder, made where it does not exist")
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--out", type=Path, help="keep the report here, plots included")
    parser.add_argument("--bootstrap", action="store_true", help="measure the bootstrap of a large split")
    options = parser.parse_args()
    if options.bootstrap:
        run = counts(40_137, 81, 300_000, 0)
        start, cpu = time.perf_counter(), time.process_time()
        found = bootstrap_miou([run])
        text = f"40,137 images x 81 classes, 1,000 resamples: {found.low:.3f} to {found.high:.3f}"
    elif options.store is None:
        parser.error("name a folder for the store, or --bootstrap")
    elif not options.store.exists():
        make(options.store, options.records)
        sys.exit(f"made {options.records} records: run the same command again to measure")
    else:
        start, cpu = time.perf_counter(), time.process_time()
        with tempfile.TemporaryDirectory() as place:
            out = options.out or Path(place)
            files = write_report(Store(options.store), out, recipes={}, plots=options.out is not None)
        text = f"{options.store}: {len(files)} files"
    wall, used = time.perf_counter() - start, time.process_time() - cpu
    peak = peak_mib()
    print(f"{text}; {wall:.1f} s ({used:.1f} s of this process), {peak:.0f} MiB, imports {_IMPORTED:.1f} s")


if __name__ == "__main__":
    main()
