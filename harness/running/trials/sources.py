"""Pseudo labels that a trained network makes for another recipe to train on."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from harness.basics.errors import UserError
from harness.basics.files import sha256_of, write_json
from harness.basics.reading import set_damaged_aside
from harness.basics.schema import digest
from harness.data.images import save_index
from harness.engine.networks import build_method, load_weights
from harness.engine.rehearsal import source_output
from harness.evaluation import evaluator
from harness.recipes import foreign, protocols
from harness.recipes.names import run_command
from harness.records.locks import locked
from harness.records.records import Record
from harness.records.remote import for_work, reported
from harness.running.trials.mending import is_whole

if TYPE_CHECKING:
    from harness.running.trials.trial import Prepared


def labels_by(source: Prepared, labels_from: str, split: str, workers: int) -> tuple[Path, str]:
    """The folder of a finished trial's pseudo labels on a split; written first where it is not there.

    Args:
        source: the trial that makes them.
        labels_from: its recipe, with ``:output`` where its method gives several.
        split: pictures to label, with their image tags.
        workers: loader processes.

    Returns:
        The folder and what made the labels, see :func:`harness.running.trials.trial.exported`.

    Raises:
        UserError: the trial is not finished, or gives no such output.
    """
    name = source.trial.name
    source.store.pull(source.folder, for_work)
    if source.record is None or not source.record.finished:
        raise UserError(
            f"the pseudo labels come from {source.trial}, which is not finished",
            where="labels_from",
            remedy="run it first: "
            + run_command(
                name, source.trial.overrides, f"--seed {source.trial.seed}", called=source.trial.called
            ),
        )
    output = source_output(source.resolved, labels_from)
    if other := foreign.difference(source.record.data, source.resolved):
        warnings.warn(f"{source.trial}, whose pseudo labels are trained on: {other}", stacklevel=2)
    code = _code_of(source, source.record)
    place = _pulled(source, split, output)
    complete, ids = place / "complete.json", source.dataset.ids(split)
    if not is_whole(place, ids, code):
        with locked(place.with_name(f".{place.name}.lock")):  # another driver may want them too
            if not is_whole(place, ids, code):
                if set_damaged_aside(complete) is not None:
                    why = f"{place} is damaged, or was made by other code"
                    warnings.warn(f"{why}: its labels are made again", stacklevel=2)
                method = build_method(source.resolved, source.device, source.trial.seed)
                load_weights(method, source.folder / "checkpoint" / "last.pt")
                pairs = evaluator.predictions(
                    method,
                    source.dataset,
                    split,
                    protocols.protocol("single"),
                    output=output,
                    device=source.device,
                    workers=workers,
                )
                for image_id, labels, _ in pairs:
                    save_index(place / f"{image_id}.png", labels, source.dataset.info.palette)
                made = {i: sha256_of(place / f"{i}.png") for i in ids}
                memo = {"split": split, "output": output, "seed": source.trial.seed, "sha256": made}
                write_json(complete, memo | ({"code": code} if code else {}))
                with reported():  # whoever does not find them makes them again
                    source.store.push(source.folder)
    return place, f"{name}:{output} {source.digest}" + (f" {code}" if code else "")


def labels_there(source: Prepared, labels_from: str, split: str) -> bool:
    """Whether the trial is finished and its pseudo labels on a split are there, whole and made by the code
    that is here, so that :func:`labels_by` would write nothing. Arguments likewise."""
    record = source.record
    if record is None or not record.finished:
        return False
    place = _pulled(source, split, source_output(source.resolved, labels_from))
    return is_whole(place, source.dataset.ids(split), _code_of(source, record))


def _pulled(source: Prepared, split: str, output: str) -> Path:
    """The folder of pseudo labels, with what the store holds of it."""
    place = source.folder / "pseudo_labels" / f"{split}-{output}"
    source.store.pull(source.folder, lambda file: file.startswith(f"pseudo_labels/{place.name}/"))
    return place


def _code_of(source: Prepared, record: Record) -> str:
    """Digest of the code of other packages that trained a network and makes labels with it; empty if none."""
    trained, here = foreign.made_by(record.data), foreign.code_identity(foreign.packages_of(source.resolved))
    return digest([trained, here]) if trained or here else ""
