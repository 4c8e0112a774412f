"""What a training took, from its records."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.records.records import EvaluationRecord, Record


@dataclass(frozen=True)
class Cost:
    """What a training took, from its records; NaN where they do not say.

    Attributes:
        parameters: of the whole method.
        steps: optimiser steps.
        seconds: training time of one seed, mean over seeds: steps divided by the recorded rate.
        memory_mib: peak memory, largest over seeds.
        images_per_second: of the evaluation in this row, mean over seeds.
        machine: GPU, or processor with the number of threads; several are joined.
    """

    parameters: float = math.nan
    steps: float = math.nan
    seconds: float = math.nan
    memory_mib: float = math.nan
    images_per_second: float = math.nan
    machine: str = ""

    @property
    def known(self) -> bool:
        """Whether the records say anything."""
        figures = (self.parameters, self.seconds, self.memory_mib, self.images_per_second)
        return not all(math.isnan(f) for f in figures)


def cost_of(records: Sequence[Record], runs: Sequence[EvaluationRecord]) -> Cost:
    """The cost of one training, from its seeds and their runs of one evaluation."""

    def figures(key: str) -> np.ndarray:
        return np.array([r.data.get(key) or math.nan for r in records], dtype=np.float64)

    def folded(values: np.ndarray, fold: Callable[[np.ndarray], Any]) -> float:
        present = values[~np.isnan(values)]
        return float(fold(present)) if present.size else math.nan

    seconds = np.array([run.data.get("seconds") or math.nan for run in runs], dtype=np.float64)
    images = np.array([run.data["images"] for run in runs], dtype=np.float64)
    return Cost(
        parameters=folded(figures("parameters"), np.max),
        steps=folded(figures("steps"), np.max),
        seconds=folded(figures("steps") / figures("steps_per_second"), np.mean),
        memory_mib=folded(figures("peak_memory_mib"), np.max),
        images_per_second=folded(images / seconds, np.mean),
        machine="; ".join(sorted({_machine(r.data.get("hardware", {})) for r in records} - {""})),
    )


def _machine(hardware: Mapping[str, Any]) -> str:
    if not hardware:
        return ""
    if hardware.get("gpu"):
        return str(hardware["gpu"])
    threads = hardware.get("threads", 1)
    return f"{hardware.get('processor', 'CPU')}, {threads} thread{'' if threads == 1 else 's'}"
