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

from harness.basics.reading import LONGEST_NAME, PART, damaged, read_object
from harness.basics.scores import figures
from harness.data.base import Supervision

#: Version of both files. Readers accept every version ever written.
SCHEMA = 1

PathPart = Annotated[str, Field(pattern=f"^{PART}$", max_length=LONGEST_NAME)]
RecipeName = Annotated[str, Field(pattern=f"^{PART}/{PART}$", max_length=2 * LONGEST_NAME + 1)]
Digest = Annotated[str, Field(pattern=r"^[0-9A-Za-z_-]+$", max_length=80)]
Seed = Annotated[int, Field(ge=0, lt=1 << 64)]
Count = Annotated[int, Field(ge=0, lt=1 << 62)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Percent = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Plain = dict[str, Any]


class Document(BaseModel):
    """Types as JSON has them: a text is no number, and ``true`` is none either."""

    model_config = ConfigDict(
        extra="ignore", strict=True, frozen=True, populate_by_name=True, use_attribute_docstrings=True
    )


class SplitFacts(Document):
    """A split as it was found."""

    images: Count = 0
    """Pictures of its list."""
    official: Count = 0
    """Pictures of the official list; 0 where there is none."""
    fingerprint: str | None = None
    """SHA-256 over ids, pictures and those masks that the trial may read."""
    pictures: str | None = None
    """SHA-256 over ids and pictures alone."""
    masks: Count | None = None
    """Pictures that have a mask; absent where nobody counted."""


class ClassFacts(Document):
    """What is labelled of a class."""

    pictures: Count
    """In which it is."""
    pixels: Count | None = None
    """All of them together; image tags have none."""


class LabelFacts(Document):
    """The weak labels."""

    fingerprint: str | None = None
    """SHA-256 over the prepared labels, or what made them where that is another recipe."""
    content: str | None = None
    """SHA-256 over the prepared labels themselves, whatever made them."""
    images: Count | None = None
    """Pictures of the training split."""
    labelled_share: Annotated[float, Field(ge=0, le=1)] | None = None
    """Labelled part of all pixels."""
    without_label: Count | None = None
    """Pictures without any label."""
    classes: dict[str, ClassFacts] | None = None
    """What is labelled of each class."""


class DataFacts(Document):
    """What a trial was trained and scored on."""

    dataset: str | None = None
    """Name of the data set."""
    splits: dict[PathPart, SplitFacts] = Field(default_factory=dict)
    """Every split that was trained on or scored, by name."""
    labels: LabelFacts = LabelFacts()
    """The weak labels that were trained on."""


class WeightFacts(Document):
    """Where the backbone started."""

    name: str | None = None
    """As the recipe names them."""
    backbone: str | None = None
    """The network that they are for."""
    sha256: str | None = None
    """Of the file; null for weights drawn at random."""


class CheckpointFacts(Document):
    """The checkpoint that a trial left."""

    file: str = "checkpoint/last.pt"
    """Within the folder of the record."""
    sha256: str | None = None
    """Compared whenever the weights are loaded."""


class BestFacts(Document):
    """The best network of a trial with validation."""

    miou: float
    """In percent, on the split of the selection."""
    step: Count
    """When it was measured."""
    sha256: str | None = None
    """Of `checkpoint/best.pt`."""


class PackageFacts(Document):
    """The code of another package that took part, see :mod:`harness.recipes.foreign`."""

    module: str
    """Top-level name."""
    distribution: str | None = None
    """Of which it is part, where it is installed."""
    version: str | None = None
    """Of the distribution."""
    commit: str | None = None
    """Of a checkout."""
    dirty: bool | None = None
    """Whether the checkout had changes."""
    sha256: str
    """Over the package's Python files."""
    source: str | None = None
    """Of classes that were typed into a notebook, which no file holds."""


class CodeFacts(Document):
    """The code that ran: this project's, and that of other packages."""

    version: str | None = None
    """Of this project."""
    commit: str | None = None
    """Of a checkout; null for an installed package."""
    dirty: bool | None = None
    """Whether the checkout had changes."""
    packages: list[PackageFacts] = Field(default_factory=list)
    """Code of others that took part."""
    begun_with: list[list[PackageFacts]] = Field(default_factory=list)
    """The same for earlier parts of a run that was gone on with by other code."""


class EnvironmentFacts(Document):
    """Python and packages."""

    python: str = ""
    """Version."""
    packages: dict[str, str | None] = Field(default_factory=dict)
    """Versions of the packages that numbers may depend on; null where one is not installed."""


class HardwareFacts(Document):
    """The machine, and torch's switches while it trained."""

    system: str | None = None
    """Operating system and architecture."""
    processor: str | None = None
    """As the system calls it."""
    cores: Count | None = None
    """Of the machine."""
    threads: Count | None = None
    """Of arithmetic on the CPU."""
    device: str | None = None
    """`cpu` or `cuda`."""
    processes: Count | None = None
    """That shared the trial."""
    deterministic: bool | None = None
    """Whether deterministic kernels were asked for; operations without one stand in `notes`."""
    gpu: str | None = None
    """As its driver calls it."""
    gpu_memory_gib: Amount | None = None
    """Of the GPU."""
    cuda: str | None = None
    """That torch is built for."""
    cudnn: Count | None = None
    """Version, as one number."""
    driver: str | None = None
    """Version of NVIDIA's driver."""
    tf32_convolutions: bool | None = None
    """Whether float32 convolutions may compute in TF32."""
    tf32_matrix_products: bool | None = None
    """Whether float32 matrix products may."""
    cudnn_benchmark: bool | None = None
    """Whether cuDNN tried its algorithms first."""


class SelectionFacts(Document):
    """How the best network was chosen."""

    split: PathPart
    """On which networks were compared."""


class LabelSource(Document):
    """Where weak labels come from."""

    source: str = "simulated"
    """`simulated` from masks, `official`, or a folder."""
    format: str | None = ""
    """Of the files in a folder."""
    stroke: int | float | None = None
    """Width of drawn strokes in pixels."""


class RecipeFacts(Document):
    """Values of a recipe that tables read; the recipe itself is the method's."""

    dataset: PathPart
    """Name of the data set."""
    supervision: Supervision
    """`full`, `scribble`, `point`, `block`, `box` or `image`."""
    backbone: str
    """The encoder."""
    weights: str
    """Where it started."""
    train_split: str
    """Pictures that were trained on."""
    labels: LabelSource = LabelSource()
    """Where weak labels come from."""
    labels_from: str | None = None
    """A recipe, with `:output`, or a folder whose pseudo labels were trained on."""
    config: Plain = Field(default_factory=dict)
    """Hyper-parameters of the method."""
    selection: SelectionFacts | None = None
    """How the best network was chosen; null where the last one counts."""


class SharedFacts(Document):
    """A bundle that a record has come in."""

    made_by: str
    """Who answers for it, in their own words."""
    bundle: str
    """Name of the bundle's file."""
    sha256: str
    """Of that file."""


class RecordDocument(Document):
    """``record.json``."""

    version: Count = Field(default=0, alias="schema")
    """Of this schema."""
    name: RecipeName
    """Recipe, `method/table`."""
    method: str
    """Registered name of the method."""
    title: str
    """The method as tables call it."""
    recipe: RecipeFacts
    """Every value after overrides; only those that readers need are listed here."""
    overrides: Plain = Field(default_factory=dict)
    """What was given with `--set`, by dotted key."""
    called: str = ""
    """The name given with `--name`."""
    seed: Seed
    """Of weights, order, augmentation and whatever is random in the method."""
    digest: Digest
    """Over everything that may change the trained network."""
    status: Literal["finished", "failed"]
    """`finished` when training and the evaluations of the recipe came to their end."""
    reason: str | None = None
    """Why it failed."""
    code: CodeFacts = CodeFacts()
    """The code that ran."""
    environment: EnvironmentFacts = EnvironmentFacts()
    """Python and packages."""
    hardware: HardwareFacts = HardwareFacts()
    """The machine, and torch's switches while it trained."""
    data: DataFacts = DataFacts()
    """What was trained on and scored."""
    weights: WeightFacts = WeightFacts()
    """Where the backbone started."""
    checkpoint: CheckpointFacts = CheckpointFacts()
    """The network that was left."""
    best: BestFacts | None = None
    """The best network, where the recipe selects one."""
    external: list[str] | None = None
    """Where predictions come from that were imported: nothing was trained here."""
    metadata: Plain | None = None
    """What whoever imported predictions has said of them."""
    shared: list[SharedFacts] = Field(default_factory=list)
    """Bundles that it was merged from."""
    started: str | None = None
    """ISO 8601, UTC."""
    ended: str | None = None
    """ISO 8601, UTC."""
    notes: list[str] = Field(default_factory=list)
    """Warnings that belong to the number; tables show them."""
    curve_lacks: list[Annotated[list[Count], Field(min_length=2, max_length=2)]] = Field(default_factory=list)
    """First and last step of each gap of `history.csv`."""
    steps: Count | None = None
    """Optimiser steps."""
    resumed: Count | None = None
    """Step that the last part of the run went on from; 0 for an undisturbed one."""
    parameters: Count | None = None
    """Trained and frozen numbers of the network."""
    frozen: dict[str, str] | None = None
    """Hashes of helper networks that are never trained (`wsss.Frozen`), by their name in the method."""
    steps_per_second: Amount | None = None
    """Of the last part of the run, evaluations left out."""
    seconds: Amount | None = None
    """Wall time of the last part of the run."""
    peak_memory_mib: Amount | None = None
    """Of the GPU; of the process on a CPU."""


class SpecFacts(Document):
    """What was scored."""

    split: PathPart
    """Which pictures."""
    protocol: PathPart
    """Name of the protocol."""
    network: str = "default"
    """Which of the method's networks."""
    output: str = "segmentation"
    """`segmentation`, or the name of a pseudo label."""
    checkpoint: Literal["last", "best"] = "last"
    """`last`, or the `best` one."""
    cells: list[str] = Field(default_factory=list)
    """Ids of the published numbers that it reproduces."""
    tolerance: Amount | None = None
    """Largest difference to print, in points, that still counts as reproduced; null for the usual one."""


class ProtocolFacts(Document):
    """Values of a protocol that its figures depend on."""

    classes: Literal["occurring", "labelled"] = "occurring"
    """Whether mIoU is over classes that occur in prediction or mask, or in masks alone."""


class EvaluationDocument(Document):
    """``evaluation.json``."""

    version: Count = Field(default=0, alias="schema")
    """Of this schema."""
    name: PathPart
    """What was scored, such as `val-single`."""
    digest: Digest
    """Over everything that defines the number of a given network."""
    spec: SpecFacts
    """What was scored."""
    protocol: ProtocolFacts
    """Every value of the protocol; only those that readers need are listed here."""
    official_images: Count
    """Pictures of the official split."""
    data_fingerprint: str
    """SHA-256 over ids, pictures and masks that were scored."""
    checkpoint_sha256: str | None = None
    """Of the network that was scored."""
    seconds: Amount | None = None
    """Wall time."""
    written: str = ""
    """ISO 8601, UTC."""
    images: Annotated[int, Field(ge=1, lt=1 << 40)]
    """Pictures that were scored."""
    classes: Annotated[list[str], Field(min_length=1)]
    """Names, in the order of `iou`."""
    miou: Percent | None
    """Mean IoU in percent; null where no class occurs."""
    iou: list[Percent | None]
    """IoU of each class in percent; null where it is absent."""
    absent: list[str]
    """Classes that occur neither in predictions nor in masks."""
    pixel_accuracy: Percent | None = None
    """Share of right pixels in percent."""
    coverage: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of pixels with a decision, in 0..1."""
    packages: list[PackageFacts] = Field(default_factory=list)
    """Code of others that took part."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Values that only inference reads, where they are not the recipe's own."""
    notes: list[str] = Field(default_factory=list)
    """What a reader must know of the checkpoint."""


D = TypeVar("D", bound=Document)


def read_document(path: Path, kind: type[D]) -> dict[str, Any]:
    """The plain values of a document, after its types were checked.

    Raises:
        harness.basics.reading.Damaged: unreadable, or a key is missing or of another type.
        harness.basics.reading.Newer: a newer version wrote it.
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
