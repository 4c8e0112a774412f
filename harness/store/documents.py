"""What ``record.json`` and ``evaluation.json`` must say, as types: a file that says otherwise is damaged.

Keys that are not named here pass, so that records of other versions and of packages outside load. Names,
digests and seeds are values of a pattern: a record from elsewhere cannot lead out of its store.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import pydantic
from pydantic import BaseModel, ConfigDict, Field

from harness.reading import LONGEST, PART, damaged, read_object
from harness.scores import figures

#: Version of both files. Readers accept every version ever written.
SCHEMA = 1

Part = Annotated[str, Field(pattern=f"^{PART}$", max_length=LONGEST)]
RecipeName = Annotated[str, Field(pattern=f"^{PART}/{PART}$", max_length=2 * LONGEST + 1)]
Digest = Annotated[str, Field(pattern=r"^[0-9A-Za-z_-]+$", max_length=80)]
Seed = Annotated[int, Field(ge=0, lt=1 << 64)]
Count = Annotated[int, Field(ge=0, lt=1 << 62)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Values = dict[str, Any]


class Document(BaseModel):
    """Types as JSON has them: a text is no number, and ``true`` is none either."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, populate_by_name=True)


class SplitFacts(Document):
    """A split as it was found."""

    images: Count = 0
    official: Count = 0
    fingerprint: str | None = None
    pictures: str | None = None
    masks: Count | None = None


class LabelFacts(Document):
    """The weak labels."""

    fingerprint: str | None = None


class DataFacts(Document):
    """What a trial was trained and scored on."""

    splits: dict[Part, SplitFacts] = Field(default_factory=dict)
    labels: LabelFacts = LabelFacts()


class WeightFacts(Document):
    """Where the backbone started."""

    sha256: str | None = None


class CheckpointFacts(Document):
    """The checkpoint that a trial left."""

    file: str = "checkpoint/last.pt"
    sha256: str | None = None


class BestFacts(Document):
    """The best network of a trial with validation."""

    miou: float
    step: Count
    sha256: str | None = None


class PackageFacts(Document):
    """The code of another package that took part, see :mod:`harness.foreign`."""

    module: str
    distribution: str | None = None
    version: str | None = None
    commit: str | None = None
    dirty: bool | None = None
    sha256: str


class CodeFacts(Document):
    """The code that ran: this project's, and that of other packages."""

    version: str | None = None
    commit: str | None = None
    dirty: bool | None = None
    packages: list[PackageFacts] = Field(default_factory=list)
    begun_with: list[list[PackageFacts]] = Field(default_factory=list)


class EnvironmentFacts(Document):
    """Python and packages."""

    python: str = ""
    packages: dict[str, str | None] = Field(default_factory=dict)


class SelectionFacts(Document):
    """How the best network was chosen."""

    split: Part


class LabelSource(Document):
    """Where weak labels come from."""

    source: str = "simulated"
    format: str | None = ""
    stroke: int | float | None = None


class RecipeFacts(Document):
    """Values of a recipe that tables read; the recipe itself is the method's."""

    dataset: Part
    supervision: str
    backbone: str
    weights: str
    train_split: str
    labels: LabelSource = LabelSource()
    labels_from: str | None = None
    config: Values = Field(default_factory=dict)
    selection: SelectionFacts | None = None


class RecordDocument(Document):
    """``record.json``."""

    version: Count = Field(default=0, alias="schema")
    name: RecipeName
    method: str
    title: str
    recipe: RecipeFacts
    overrides: Values = Field(default_factory=dict)
    called: str = ""
    seed: Seed
    digest: Digest
    status: Literal["finished", "failed"]
    reason: str | None = None
    code: CodeFacts = CodeFacts()
    environment: EnvironmentFacts = EnvironmentFacts()
    hardware: Values = Field(default_factory=dict)
    data: DataFacts = DataFacts()
    weights: WeightFacts = WeightFacts()
    checkpoint: CheckpointFacts = CheckpointFacts()
    best: BestFacts | None = None
    external: list[str] | None = None
    metadata: Values | None = None
    ended: str | None = None
    notes: list[str] = Field(default_factory=list)
    curve_lacks: list[Annotated[list[Count], Field(min_length=2, max_length=2)]] = Field(default_factory=list)
    steps: Count | None = None
    parameters: Count | None = None
    steps_per_second: Amount | None = None
    seconds: Amount | None = None
    peak_memory_mib: Amount | None = None


class SpecFacts(Document):
    """What was scored."""

    split: Part
    protocol: Part
    network: str = "default"
    output: str = "segmentation"
    checkpoint: Literal["last", "best"] = "last"
    cells: list[str] = Field(default_factory=list)
    tolerance: Amount | None = None


class ProtocolFacts(Document):
    """Values of a protocol that its figures depend on."""

    classes: Literal["occurring", "labelled"] = "occurring"


class EvaluationDocument(Document):
    """``evaluation.json``."""

    version: Count = Field(default=0, alias="schema")
    name: Part
    digest: Digest
    spec: SpecFacts
    protocol: ProtocolFacts
    official_images: Count
    data_fingerprint: str
    checkpoint_sha256: str | None = None
    seconds: Amount | None = None
    written: str = ""
    images: Annotated[int, Field(ge=1, lt=1 << 40)]
    classes: Annotated[list[str], Field(min_length=1)]
    miou: Percent | None
    iou: list[Percent | None]
    absent: list[str]
    pixel_accuracy: Percent | None = None
    coverage: Annotated[float, Field(ge=0, le=1)] | None = None
    packages: list[PackageFacts] = Field(default_factory=list)
    config: dict[str, Any] = Field(default_factory=dict)
    notes: list[str] = Field(default_factory=list)


D = TypeVar("D", bound=Document)


def read_document(path: Path, kind: type[D]) -> dict[str, Any]:
    """The plain values of a document, after its types were checked.

    Raises:
        harness.reading.Damaged: unreadable, or a key is missing or of another type.
        harness.reading.Newer: a newer version wrote it.
    """
    values = read_object(path, newest=SCHEMA)
    checked(values, kind, path)
    return values


def checked(values: Mapping[str, Any], kind: type[D], path: Path) -> D:
    """The typed document. Raises Damaged for a missing key or a wrong type."""
    try:
        return kind.model_validate(values)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        wrong = "it cannot be part of a path" if first["type"] == "string_pattern_mismatch" else first["msg"]
        shown = "" if first["type"] == "missing" else f", got {str(first['input'])[:60]!r}"
        raise damaged(path, f"key {key!r}: {wrong}{shown}") from None


#: Largest difference of two figures that are the same, in percent: floats take the way through JSON whole.
_SAME = 1e-6


def fault_of_counts(
    data: Mapping[str, Any], ids: tuple[str, ...], counts: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> str | None:
    """Why an evaluation's figures and its counts cannot both be true; None where they agree.

    Args:
        data: values of an ``evaluation.json`` whose types were checked.
        ids: of the pictures counted.
        counts: ``(N, K)`` int64 pixels: intersection, predicted, labelled.
    """
    names, number = data["classes"], len(ids)
    hit, predicted, labelled = counts
    if len(set(ids)) != number:
        return "a picture is counted twice"
    if {array.shape for array in counts} != {(number, len(names))}:
        return f"counts are {hit.shape}, {number} pictures and {len(names)} classes are recorded"
    if hit.min(initial=0) < 0:  # the other two are no smaller, as the next line sees to
        return "counts are negative"
    if (hit > np.minimum(predicted, labelled)).any():
        return "more pixels are right than were predicted or labelled"
    if (predicted.sum(1) > labelled.sum(1)).any():
        return "more pixels are predicted than counted"
    if number > data["official_images"]:
        return f"{number} pictures of {data['official_images']} are counted"
    made = figures(number, [a.sum(0) for a in counts], names, data["protocol"].get("classes", "occurring"))
    for key, value in made.items():
        if key in data and not _equal(data[key], value):
            shown, own = (_short(v) for v in (data[key], value))
            return f"{key} is {shown}, its counts say {own}"
    return None


def fault_of_origin(run: Mapping[str, Any], record: Mapping[str, Any]) -> str | None:
    """Why an evaluation is not one of a record's network, or not of the data that it was scored on; None
    where it is, or where that was not recorded.

    A later evaluation may have met other data: the record says what was there when it ended.

    Args:
        run: values of an ``evaluation.json`` whose types were checked.
        record: values of the ``record.json`` that it stands below.
    """
    trained = record.get("best" if run["spec"].get("checkpoint") == "best" else "checkpoint") or {}
    ours, scored = trained.get("sha256"), run.get("checkpoint_sha256")
    if ours and scored and scored != ours:
        return f"it scores another network ({scored[:12]}) than was trained ({ours[:12]})"
    split = run["spec"]["split"]
    met = record.get("data", {}).get("splits", {}).get(split, {}).get("fingerprint")
    seen, written = run["data_fingerprint"], run.get("written")
    if met and met != seen and written and written <= (record.get("ended") or ""):
        return f"it says that {split} has the fingerprint {seen[:12]}, its record {met[:12]}"
    return None


def _equal(recorded: Any, made: Any) -> bool:
    if isinstance(made, list) and isinstance(recorded, list):
        return len(made) == len(recorded) and all(map(_equal, recorded, made))
    if isinstance(made, float) and type(recorded) in (int, float):
        return math.isclose(recorded, made, rel_tol=0, abs_tol=_SAME)
    return bool(recorded == made)


def _short(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)[:60]
