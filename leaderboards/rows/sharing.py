"""Records that several people share: packed, checked, and merged into one store."""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import harness
from harness.basics.errors import UserError
from harness.basics.files import check_writable, write_with
from harness.basics.reading import Damaged, damaged, read_bytes
from harness.basics.text import one_line
from harness.data.base import Dataset
from harness.data.predictions import FolderPredictions
from harness.evaluation import evaluator
from harness.evaluation.verification import Open, verify_store
from harness.recipes import protocols
from harness.recipes.row_names import row_name
from harness.records.adding import adding
from harness.records.bundles import MOST_BYTES, Bundle, open_bundle, write_bundle
from harness.records.records import EvaluationRecord, Record, Store
from harness.records.remote import for_readers
from leaderboards.rows.gathering import protocol_changes

#: Files of an evaluation that travel.
_SCORED = ("evaluation.json", "per_image.npz", "boundary.npz")
#: Seconds to wait for others who write into a store under a URI.
_PATIENCE = 600.0


@dataclass(frozen=True)
class Packed:
    """What was written.

    Attributes:
        file, sha256: the bundle.
        records: how many.
        left_out: what was damaged, or is not whole.
        lacking: records without what was asked for.
    """

    file: Path
    sha256: str
    records: int
    left_out: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()


def pack(
    store: Store,
    file: Path,
    *,
    made_by: str,
    notes: str = "",
    chosen: Callable[[Record], bool] = lambda record: True,
    weights: bool = False,
    predictions: bool = False,
) -> Packed:
    """Write finished records of a store into a bundle.

    Args:
        store: where they are.
        file: the bundle.
        made_by: who answers for them.
        notes: what a reader must know.
        chosen: which of the finished records.
        weights: with the weights of each, as safetensors.
        predictions: with the label maps that ``--save-predictions`` kept.

    Raises:
        UserError: no such record, or nobody answers for them.
    """
    who = one_line(made_by, 200)
    if not who:
        raise UserError(
            "nobody answers for the bundle", where="--made-by", remedy="give a name and an address"
        )
    check_writable(file, file=True)
    files: dict[str, Path | bytes] = {}
    listed: list[dict[str, Any]] = []
    lacking: list[str] = []
    for record in store.records():
        if not record.finished or not chosen(record):
            continue
        place = record.path.relative_to(store.root).as_posix()
        store.pull(record.path, partial(_wanted, weights=weights, predictions=predictions))
        own = _files(record, weights, predictions)
        label = f"{row_name(record.name, record.data.get('overrides', {}))} seed {record.seed}"
        kinds = (("weights", weights, "weights.safetensors"), ("predictions", predictions, "/predictions/"))
        lacking += [
            f"{label} has no {what}"
            for what, asked, part in kinds
            if asked and not any(part in n for n in own)
        ]
        files |= {f"records/{place}/{name}": content for name, content in own.items()}
        listed.append({"name": record.name, "digest": record.digest, "seed": record.seed})
    if not listed:
        raise UserError(
            "no finished record to pack",
            where=store.place,
            remedy="run a recipe, or name others of the store",
        )
    sha256 = write_bundle(
        file,
        files,
        listed,
        made_by=who,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        notes=one_line(notes, 2000),
        software=f"wsss-bench {harness.__version__}",
    )
    left = tuple(error.brief for error in store.left_out.values())
    return Packed(file, sha256, len(listed), left, tuple(lacking))


def _wanted(name: str, *, weights: bool, predictions: bool) -> bool:
    """Whether a file of a record travels, or is read for what does."""
    return (
        for_readers(name)
        or (weights and name == "checkpoint/last.pt")
        or (predictions and name.startswith("evaluations/") and "/predictions/" in name)
    )


def _files(record: Record, weights: bool, predictions: bool) -> dict[str, Path | bytes]:
    """What travels of a record; evaluations that are not sound stay behind, and are noted."""
    found: dict[str, Path | bytes] = {"record.json": record.path / "record.json"}
    if not record.history().empty:
        found["history.csv"] = record.path / "history.csv"
    for run in record.sound.values():
        names = [name for name in _SCORED if os.path.lexists(run.path / name)]
        if predictions and (run.path / "predictions").is_dir():
            pictures = sorted((run.path / "predictions").rglob("*.png"))
            names += [picture.relative_to(run.path).as_posix() for picture in pictures]
        found |= {f"evaluations/{run.path.name}/{name}": run.path / name for name in names}
    if weights and os.path.lexists(file := record.path / "checkpoint" / "last.pt"):
        found["weights.safetensors"] = _safe(file)
    return found


def _safe(file: Path) -> bytes:
    """The weights of a checkpoint of ours in a form that nobody has to unpickle."""
    import torch
    from safetensors.torch import save

    from harness.nn.torch_files import read_torch
    from harness.records.checkpoints import check_recorded

    check_recorded(file)
    state = read_torch(file)["method"]
    return save({k: v.contiguous() for k, v in state.items() if isinstance(v, torch.Tensor)})


# --- checking ----------------------------------------------------------------------------------------


@dataclass
class CheckedBundle:
    """What was found.

    Attributes:
        bundle: the file and its manifest.
        records, evaluations: how many are sound.
        breaches: what is wrong, by place within the bundle.
        unseen: what could not be compared, and why.
        remarks: what is right and a reader must know, such as protocols that have changed since.
    """

    bundle: Bundle
    records: int = 0
    evaluations: int = 0
    breaches: dict[str, str] = field(default_factory=dict)
    unseen: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


@contextmanager
def unpacked_bundle(file: Path) -> Iterator[tuple[Bundle, Store]]:
    """A bundle's records as a store in a folder that goes away.

    Raises:
        Damaged: it is no bundle, or a byte of it is not what it must be.
    """
    with tempfile.TemporaryDirectory(prefix="wsss-bundle-") as folder:
        root = Path(folder) / "records"
        root.mkdir()
        yield open_bundle(file, root), Store(root)


def check_bundle(file: Path, dataset: Open | None = None) -> CheckedBundle:
    """Everything that a bundle says, compared with what is in it.

    Its form and hashes; records and evaluations against their schema; figures against counts; counts against
    the other evaluations of the same data, against the data set where it is there, and against predictions
    where they are inside.

    Args:
        file: the bundle.
        dataset: opens a data set by its name.

    Raises:
        Damaged: it is no bundle, or a byte of it is not what it must be.
    """
    with unpacked_bundle(file) as (bundle, store):
        return _checked(bundle, store, dataset)


def _checked(bundle: Bundle, store: Store, dataset: Open | None) -> CheckedBundle:
    found = CheckedBundle(bundle)
    done = verify_store(store, dataset)
    for error in done.breaches.values():
        found.breaches[_within(error.where, store)] = " ".join(error.problem.split())
    records = list(store.records())
    said = {(r.name, r.digest, r.seed) for r in bundle.manifest.records}
    there = {(r.name, r.digest, r.seed) for r in records}
    for name, digest, seed in sorted(said ^ there):
        where = f"records/{name}/{digest}/seed-{seed}"
        problem = "it is not in the manifest" if (name, digest, seed) in there else "no sound record is there"
        found.breaches.setdefault(where, problem)
    for record in records:
        if not record.finished:
            found.breaches[_within(record.path, store)] = "it is no finished record"
        for run in record.sound.values():
            _predictions(run, record, store, dataset, found)
            changed = _protocol(run)
            if changed and changed not in found.remarks:
                found.remarks.append(changed)
    found.records, found.evaluations = done.records, done.evaluations
    found.unseen |= {split: " ".join(why.split()) for split, why in done.unseen.items()}
    return found


def _within(where: object, store: Store) -> str:
    path = Path(str(where))
    return f"records/{path.relative_to(store.root).as_posix()}" if store.holds(path) else str(where)


def _protocol(run: EvaluationRecord) -> str:
    name = run.data["spec"]["protocol"]
    now = protocols.protocols().get(name)
    if now is None:
        return "" if name == "external" else f"the protocol {name!r} is not known here"
    changed = protocol_changes(run.data["protocol"], now)
    return f"the protocol {name!r} has changed since: {', '.join(changed)}" if changed else ""


def _predictions(
    run: EvaluationRecord, record: Record, store: Store, dataset: Open | None, found: CheckedBundle
) -> None:
    """Count the predictions that are inside, where the data set is here."""
    folder = run.path / "predictions"
    if not folder.is_dir():
        return
    split, where = run.data["spec"]["split"], _within(folder, store)
    try:
        if dataset is None:
            raise UserError("no data set was opened")
        opened: Dataset = dataset(record.recipe["dataset"])
        counts = evaluator.gather(
            FolderPredictions(opened, folder, split, "classes"), opened.info.num_classes
        )
    except UserError as error:
        kept = found.unseen if dataset is None or _no_data(dataset, record) else found.breaches
        kept[where] = " ".join(error.problem.split())
        return
    own = run.counts()
    place = {name: i for i, name in enumerate(counts.ids)}
    if set(place) != set(own.ids):
        found.breaches[where] = "its pictures are not those that were counted"
        return
    rows = np.array([place[name] for name in own.ids])
    for part in ("intersection", "predicted", "labelled"):
        differ = (getattr(counts, part)[rows] != getattr(own, part)).any(1)
        if differ.any():
            first = own.ids[int(np.flatnonzero(differ)[0])]
            found.breaches[where] = f"counted anew, {int(differ.sum())} pictures differ, the first is {first}"
            return


def _no_data(dataset: Open, record: Record) -> bool:
    try:
        dataset(record.recipe["dataset"])
    except UserError:
        return True
    return False


# --- merging -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Disagreement:
    """Equal recipe, values, data and seed, and other numbers.

    Attributes:
        record: its row and seed.
        evaluation: what was scored.
        figures: mIoU by who says so; the first one stands in the store.
    """

    record: str
    evaluation: str
    figures: tuple[tuple[str, float], ...]

    @property
    def text(self) -> str:
        """One sentence."""
        said = ", ".join(f"{who} says {value:.2f}" for who, value in self.figures)
        return f"disagreement on {self.evaluation}: {said}; the first one stands here"


@dataclass
class Merged:
    """What has become of bundles.

    Attributes:
        bundles: those that were read.
        written, present: records that are new here, and that were here with the same numbers.
        disagreements: what equal digests do not agree on.
        makers: records by who made them.
    """

    bundles: list[Bundle] = field(default_factory=list)
    written: int = 0
    present: int = 0
    disagreements: list[Disagreement] = field(default_factory=list)
    makers: dict[str, int] = field(default_factory=dict)


def merge(files: Sequence[Path], store: Store, *, say: Callable[[str], None] = warnings.warn) -> Merged:
    """Bring the records of bundles into a store. All of them are checked before the first byte is written.

    A record that is here already, with the same counts, stays as it is and remembers the further bundle.
    Where counts differ, the one that was here first stands, and a note of the record says who says otherwise.

    Args:
        files: bundles.
        store: where records go.
        say: is told what a reader must know.

    Raises:
        UserError: a bundle is damaged or hostile, or does not say what is in it; nothing was written.
    """
    done = Merged()
    with tempfile.TemporaryDirectory(prefix="wsss-merge-") as folder:
        origins: list[tuple[Bundle, Store]] = []
        for number, file in enumerate(files):
            root = Path(folder) / str(number)
            root.mkdir()
            bundle = open_bundle(file, root)
            checked = _checked(bundle, Store(root), None)
            if checked.breaches:
                where, why = next(iter(checked.breaches.items()))
                more = f" (and {len(checked.breaches) - 1} more)" if len(checked.breaches) > 1 else ""
                raise damaged(file, f"{where}: {why}{more}", "wsss check-bundle names all of it")
            for remark in checked.remarks:
                say(f"{bundle.name}: {remark}")
            origins.append((bundle, Store(root)))
            done.bundles.append(bundle)
        check_writable(store.root)
        with store.only_driver(patience=_PATIENCE):
            store.refresh(*{record.name for bundle in done.bundles for record in bundle.manifest.records})
            for bundle in done.bundles:
                for (
                    said
                ) in bundle.manifest.records:  # one that is damaged here is met before a byte is written
                    store.get(store.folder(said.name, said.digest, said.seed))
            for bundle, origin in origins:
                who = bundle.manifest.made_by
                for record in origin.records():
                    try:
                        _merged(record, bundle, store, done)
                    except Damaged as error:  # in use just now: others go on
                        store.note(error)
                    else:
                        done.makers[who] = done.makers.get(who, 0) + 1
    return done


@dataclass(frozen=True)
class _Change:
    """What a record of a bundle is to the store.

    Attributes:
        new: whether there is none of its digest and seed.
        data: what ``record.json`` shall hold; None where it holds that.
        runs: evaluations to copy.
        found: what the two do not agree on.
    """

    new: bool
    data: Mapping[str, Any] | None
    runs: Sequence[EvaluationRecord]
    found: Sequence[Disagreement]


def _merged(record: Record, bundle: Bundle, store: Store, done: Merged) -> None:
    place = store.folder(record.name, record.digest, record.seed)
    change = _change(store.get(place), record, bundle)
    if change.data is not None or change.runs:
        with adding(store, place):  # others may have added to it since
            change = _change(store.get(place), record, bundle)
            for run in change.runs:
                _copy_evaluation(run, place)
            if change.new and not record.history().empty:
                _put(record.path / "history.csv", place / "history.csv")
            if change.data is not None:
                store.write_record(place, {k: v for k, v in change.data.items() if k != "schema"})
    else:
        store.push(place)  # what a merge that was killed had not stored yet
    done.disagreements += change.found
    done.written += change.new
    done.present += not change.new and not change.found


def _change(own: Record | None, record: Record, bundle: Bundle) -> _Change:
    who = {"made_by": bundle.manifest.made_by, "bundle": bundle.name, "sha256": bundle.sha256}
    if own is None or not own.finished:
        data = {**record.data, "shared": [*record.data.get("shared", []), who]}
        return _Change(True, data, list(record.sound.values()), ())
    found, lacking = _compared(own, record, who["made_by"])
    shared, notes = list(own.data.get("shared", [])), list(own.data.get("notes", []))
    added = who["sha256"] not in {s["sha256"] for s in shared}
    texts = [one.text for one in found if one.text not in notes]
    if not added and not texts:
        return _Change(False, None, lacking, found)
    data = {**own.data, "shared": [*shared, *([who] if added else [])]}
    if texts:
        data["notes"] = [*notes, *texts]
    return _Change(False, data, lacking, found)


def _compared(own: Record, other: Record, who: str) -> tuple[list[Disagreement], list[EvaluationRecord]]:
    """What two records of one digest and seed do not agree on, and evaluations that only the other has."""
    found, lacking = [], []
    here = own.data.get("shared", [])
    mine = here[0]["made_by"] if here else "this store"
    for name, run in other.sound.items():
        known = own.sound.get(name)
        if known is None:
            hashes = {e.data.get("checkpoint_sha256") for e in own.sound.values()}
            if run.data.get("checkpoint_sha256") in hashes:
                lacking.append(run)
        elif known.data["digest"] == run.data["digest"] and _counts(known) != _counts(run):
            row = row_name(own.name, own.data.get("overrides", {}))
            label = f"{row} seed {own.seed}"
            found.append(Disagreement(label, name, ((mine, known.miou), (who, run.miou))))
    return found, lacking


def _counts(run: EvaluationRecord) -> bytes:
    """Equal for evaluations that have counted the same."""
    counts = run.counts()
    order = sorted(range(len(counts.ids)), key=counts.ids.__getitem__)
    content = hashlib.sha256("\0".join(counts.ids[i] for i in order).encode(errors="surrogatepass"))
    for part in (counts.intersection, counts.predicted, counts.labelled):
        content.update(np.ascontiguousarray(part[order]).tobytes())
    return content.digest()


def _copy_evaluation(run: EvaluationRecord, place: Path) -> None:
    for name in reversed(_SCORED):  # the JSON last
        if os.path.lexists(run.path / name):
            _put(run.path / name, place / "evaluations" / run.path.name / name)


def _put(source: Path, target: Path) -> None:
    content = read_bytes(source, MOST_BYTES)
    write_with(target, partial(_write, content))


def _write(content: bytes, stream: Any) -> None:
    stream.write(content)
