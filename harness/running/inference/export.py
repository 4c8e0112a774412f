"""Predictions, pseudo labels and activation maps of a split, in the forms that other code reads.

``png``     ``<id>.png``, palette label maps as VOC's; 255 where there is no decision
``npy``     ``<id>.npy``, a pickled dictionary of activation maps as SEAM writes and scores them: key the
            foreground class counted from 0 (background left out), value ``(H, W)`` float32 in [0, 1]; classes
            of the image tags alone. ``np.load(file, allow_pickle=True).item()`` reads it
``server``  ``results/VOC2012/Segmentation/comp6_test_cls/<id>.png`` in a ``.tar.gz``, what the VOC evaluation
            server takes; competition 6, segmentation trained with more than VOC's own pictures (ImageNet)
"""

from __future__ import annotations

import io
import json
import tarfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from harness.basics import finite, provenance
from harness.basics.errors import UserError
from harness.basics.files import check_writable, sha256_of, whole_file, write_json, write_with
from harness.basics.reading import read_object
from harness.basics.schema import dump
from harness.data.base import Dataset, DatasetInfo
from harness.data.images import palette_image, save_index
from harness.data.numbering import Numbering, palette_of, to_files
from harness.data.prepare.verify import preflight
from harness.data.sets.roots import open_dataset
from harness.engine.networks import load_noted
from harness.engine.outputs import SEGMENTATION, check_scored, outputs
from harness.evaluation import evaluator
from harness.nn import pixels
from harness.recipes import protocols
from harness.recipes.resolving import Resolved, resolve
from harness.records import origin
from harness.running.inference.scoring import recorded_checkpoint
from harness.running.trials.trial import Options, choose_device, forget_data

if TYPE_CHECKING:
    from harness.engine.method import Method

Format = Literal["png", "npy", "server"]

#: Folder of the label maps within the archive of the VOC evaluation server.
SERVER_FOLDER = "results/VOC2012/Segmentation/comp6_test_cls"
ARCHIVE = "comp6_test_cls.tar.gz"
#: Beside the files: what they were made of and how; ``pictures`` stands there when all are written.
FACTS = "export.json"


@torch.inference_mode()
def maps_of_split(
    method: Method,
    dataset: Dataset,
    split: str,
    *,
    ids: Sequence[str] | None = None,
    device: torch.device | str = "cpu",
    workers: int = 0,
) -> Iterator[tuple[str, dict[int, np.ndarray]]]:
    """Activation maps of pictures of a split, in list order.

    Args:
        method: a trained method.
        dataset: whose pictures and image tags.
        split: which pictures.
        ids: these of them; all by default.
        device: where the method is.
        workers: loader processes.

    Yields:
        Image id, and by foreground class, counted from 0 without the background, ``(H, W)`` float32.

    Raises:
        UserError: the method makes no activation maps.
    """
    ids = list(dataset.ids(split) if ids is None else ids)
    tags = torch.from_numpy(dataset.tags(ids)).float()
    foreground = [k for k in range(dataset.info.num_classes) if k != dataset.info.background]
    method.eval()
    for index, (name, image, _) in enumerate(evaluator.pictures(dataset, split, ids, workers)):
        raw = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).to(device)
        with finite.of_picture(name):
            maps = method.class_maps(pixels.normalise(raw)[None], tags[index : index + 1].to(device))
            if maps is not None:
                finite.require_finite(maps, "the activation maps")
        if maps is None:
            raise UserError(
                f"{type(method).title} makes no activation maps",
                where="--format npy",
                remedy="export label maps with --format png",
            )
        present = [(place, k) for place, k in enumerate(foreground) if tags[index, k] > 0]
        yield name, {place: maps[0, k].float().cpu().numpy() for place, k in present}


def write_maps(maps: Iterable[tuple[str, Mapping[int, np.ndarray]]], out: Path) -> Iterator[Path]:
    """Write ``<out>/<id>.npy`` of every picture; yields each file when it is whole."""
    for name, by_class in maps:
        path = out / f"{name}.npy"
        write_with(path, partial(np.save, arr=np.array(dict(by_class), dtype=object), allow_pickle=True))
        yield path


def write_labels(
    labels: Iterable[tuple[str, np.ndarray]], out: Path, dataset: Dataset, encoding: Numbering = "classes"
) -> Iterator[Path]:
    """Write ``<out>/<id>.png`` of every picture in a numbering; yields each file when it is whole."""
    palette = palette_of(dataset, encoding)
    numbers = np.arange(256, dtype=np.uint8) if encoding == "classes" else to_files(dataset)
    for name, label in labels:
        path = out / f"{name}.png"
        save_index(path, numbers[label], palette)
        yield path


def write_archive(labels: Iterable[tuple[str, np.ndarray]], out: Path, info: DatasetInfo) -> Iterator[Path]:
    """Write ``<out>/comp6_test_cls.tar.gz``; yields the path of every member, the file is whole at the end.

    Equal labels give equal bytes but for the compressor's own time stamp.

    Raises:
        UserError: a label without decision, which the server would refuse.
    """
    with (
        whole_file(out / ARCHIVE, "wb") as stream,
        tarfile.open(fileobj=stream, mode="w:gz") as archive,
    ):
        for name, label in labels:
            if (label >= info.num_classes).any():
                raise UserError(
                    f"the label map of {name} has pixels without decision",
                    where="--output",
                    remedy="submit the segmentation",
                )
            packed = io.BytesIO()
            palette_image(label, info.palette).save(packed, format="PNG")
            member = tarfile.TarInfo(f"{SERVER_FOLDER}/{name}.png")
            member.size = packed.tell()
            packed.seek(0)
            archive.addfile(member, packed)
            yield Path(member.name)


# --- a recipe's ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        dataset, split: of which pictures.
        pictures: how many.
        place: the folder, or the archive.
        kept: how many of them an earlier call with the same network had written.
    """

    dataset: str
    split: str
    pictures: int
    place: Path
    kept: int = 0


def usual_output(resolved: Resolved, form: Format = "png") -> str:
    """The output where none is named: the first pseudo label, or the segmentation."""
    made = () if form == "server" else outputs(resolved)
    return made[0] if made else SEGMENTATION


def export(
    recipe: str,
    out: Path,
    *,
    split: str | None = None,
    output: str | None = None,
    form: Format = "png",
    encoding: Numbering = "classes",
    checkpoint: Path | None = None,
    seed: int = 0,
    table: str | None = None,
    protocol: str | None = None,
    network: str = "default",
    overrides: Mapping[str, Any] | None = None,
    options: Options | None = None,
    say: Callable[[str], None] = warnings.warn,
    progress: Callable[[Iterable[Any], int], Iterable[Any]] = lambda written, number: written,
) -> Exported:
    """Write predictions, pseudo labels or activation maps of a split, and ``export.json`` beside them. Files
    that an earlier call with the same facts wrote are kept, so that one that was interrupted goes on.

    Args:
        recipe: its name, a finished record, or a checkpoint of this project.
        out: folder that is written.
        split: which pictures; the training split by default, ``test`` for the server.
        output: ``segmentation`` or the name of a pseudo label, see :func:`usual_output`.
        form: ``png``, ``npy`` or ``server``, see above.
        encoding: of ``png``: ``classes`` (0..K-1), or ``files``, the numbers of the data set's own files.
        checkpoint: weights; those of the finished record by default.
        seed: whose record.
        table: with ``checkpoint``: the key table of the code that wrote it.
        protocol: of a segmentation, the recipe's usual one by default.
        network: which of the method's networks segments.
        overrides: recipe values by dotted key.
        options: records, data and device; usual ones by default.
        say: is told what a user of the files must know.
        progress: wraps what is written, of which the number is given.

    Raises:
        UserError: a name is unknown, there is no such record, the weights do not fit, or the method makes no
            such output.
    """
    forget_data()
    options = options or Options()
    _, recipe, overrides, checkpoint = origin.origin_of(recipe, overrides, checkpoint, options.store)
    resolved = resolve(recipe, overrides)
    name = resolved.recipe.dataset
    named = None if form == "npy" else output
    check_scored(resolved, split=split, protocol=protocol, network=network, table=table, output=named)
    on = choose_device(options.device)
    check_writable(out)
    split = split or ("test" if form == "server" else resolved.recipe.train_split)
    if form == "server" and name != "voc2012":
        raise UserError(f"{name} has no evaluation server of this form", where="--format server")
    if form == "npy" and output not in (None, "cam"):
        raise UserError(f"{output!r} is no activation map", where="--output", remedy="leave it out")
    file = checkpoint or recorded_checkpoint(recipe, seed, options.store, overrides)
    dataset = open_dataset(name, options.data_roots, options.cache)
    seen = preflight(dataset, [split], cache=options.cache, workers=options.workers, pictures_only=[split])
    method, notes = load_noted(resolved, on, file, table, say)
    facts: dict[str, Any] = {
        "recipe": recipe,
        "overrides": dump(overrides),
        "split": split,
        "format": form,
        "checkpoint_sha256": sha256_of(file),
        "data_fingerprint": seen[split],
        "code": provenance.code(),
        "notes": notes,
    }
    used = protocol or resolved.recipe.usual_evaluation.protocol
    made = "cam" if form == "npy" else output or usual_output(resolved, form)
    if form != "npy":
        facts["output"] = made
    if made == SEGMENTATION:
        facts |= {"protocol": used, "network": network}
    if form == "png":
        facts["encoding"] = encoding
    ids = list(dataset.ids(split))
    left = _left(out, facts, ids, form)
    write_json(out / FACTS, facts)
    if form == "npy":
        maps = maps_of_split(method, dataset, split, ids=left, device=on, workers=options.workers)
        written = write_maps(maps, out)
    else:
        found = evaluator.predictions(
            method,
            dataset,
            split,
            protocols.protocol(used),
            network=network,
            output=made,
            device=on,
            workers=options.workers,
            ids=left,
        )
        labels = ((i, label) for i, label, _ in found)
        if form == "png":
            written = write_labels(labels, out, dataset, encoding)
        else:
            written = write_archive(labels, out, dataset.info)
    if left:
        for _ in progress(written, len(left)):
            pass
    write_json(out / FACTS, {**facts, "pictures": len(ids)})
    place = out / ARCHIVE if form == "server" else out
    return Exported(name, split, len(ids), place, len(ids) - len(left))


def _left(out: Path, facts: Mapping[str, Any], ids: Sequence[str], form: Format) -> list[str]:
    """Pictures whose files are not there yet; those of other facts are removed, lest they count as done."""
    before: dict[str, Any] = {}
    with suppress(UserError, OSError):  # none yet, or one that cannot be read
        before = read_object(out / FACTS)
    same = all(before.get(key) == value for key, value in json.loads(json.dumps(facts)).items())
    if form == "server":  # a whole file, or none
        return [] if same and "pictures" in before and (out / ARCHIVE).is_file() else list(ids)
    files = {name: out / f"{name}.{form}" for name in ids}
    if not same:
        for file in files.values():
            file.unlink(missing_ok=True)
    return [name for name, file in files.items() if not file.is_file()]
