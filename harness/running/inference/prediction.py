"""Segmentation of any pictures with a trained network: palette PNGs, overlays and probabilities.

Beside the label maps stand ``predict.json``, which network made them, of which classes, in which colours; and
``predict.jsonl``, a line for each picture. By both an interrupted command goes on, and another one does not
write over what is there.
"""

from __future__ import annotations

import json
import os
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from harness.basics.errors import UserError
from harness.basics.files import append, check_writable, sha256_of, whole_file, write_json, write_with
from harness.basics.reading import read_object
from harness.basics.registry import DATASETS
from harness.basics.schema import dump
from harness.data.images import picture_notes, read_rgb, save_index
from harness.data.naming import PICTURES
from harness.data.sets.own import register
from harness.engine.networks import load_network
from harness.engine.outputs import check_scored
from harness.evaluation import tiling
from harness.recipes import protocols
from harness.recipes.resolving import resolve
from harness.records import origin
from harness.records.records import Store
from harness.running.inference.scoring import recorded_checkpoint
from harness.running.trials.trial import choose_device

#: What was predicted with, and what of.
FACTS, DONE = "predict.json", "predict.jsonl"


@dataclass(frozen=True)
class Picture:
    """A picture, and where below the output folder its results go.

    Attributes:
        file: the picture.
        name: its path below the folder that was named, without ending; its name where it was named itself.
    """

    file: Path
    name: str

    def targets(self, out: Path, scores: bool) -> tuple[Path, ...]:
        """Files of results, the label map first."""
        ends = (".png", "_overlay.png", *([".npz"] if scores else []))
        return tuple(out / f"{self.name}{end}" for end in ends)


def predict(
    source: str | Path,
    pictures: Sequence[Path],
    out: Path,
    *,
    checkpoint: Path | None = None,
    seed: int = 0,
    table: str | None = None,
    protocol: str | None = None,
    network: str = "default",
    overrides: Mapping[str, Any] | None = None,
    results: Path | str = "results",
    data_roots: Sequence[str] = (),
    device: str = "auto",
    scores: bool = False,
    tile: int | None = None,
    left_out: dict[Path, UserError] | None = None,
    say: Callable[[str], None] = warnings.warn,
    progress: Callable[[Iterable[Any], int], Iterable[Any]] = lambda pictures, number: pictures,
) -> Iterator[Path]:
    """Segment pictures; yields each label map's path when it is written. Those that an earlier call with
    the same network wrote are kept.

    Args:
        source: a recipe, a finished record (its folder or ``record.json``), or a checkpoint of this project.
        pictures: of any size, or folders of them, whose folders the results mirror.
        out: folder for ``<name>.png`` (palette label map), ``<name>_overlay.png`` and ``<name>.npz``.
        checkpoint: of a recipe: weights of this project, or with ``table`` another code's; those of the
            finished record by default.
        seed: of a recipe: whose record.
        table: name of a key table of the method.
        protocol: protocol name, the recipe's first evaluation's by default.
        network: which of the method's networks.
        overrides: of a recipe: what the network was trained with; of others: what only inference reads.
        results: where records are; a folder or a URI.
        data_roots: ``NAME=PATH`` of own data sets that the recipe names.
        device: ``auto``, ``cpu``, ``cuda``.
        scores: write probabilities, ``scores`` in ``<name>.npz``, ``(K, H, W)`` float16.
        tile: side of the tiles of every picture larger than that, 0 for none; by default large pictures
            are cut so that memory stays bounded, see :mod:`harness.evaluation.tiling`.
        left_out: receives the pictures that cannot be decoded; they are raised at the end by default.
        say: is told what was assumed of the checkpoint, see :func:`harness.engine.networks.load_network`, and
            what of the pictures is not read.
        progress: wraps the pictures that are left to do, of which the number is given.

    Raises:
        UserError: there is no such record, the weights do not fit; a result would replace a picture, the
            result of another one, or a file that is none; or, at the end, pictures cannot be decoded.
    """
    register(data_roots)
    store = Store(results)
    came, recipe, overrides, checkpoint = origin.origin_of(source, overrides, checkpoint, store)
    with origin.standing_in(came):
        resolved = resolve(recipe, overrides)
        check_scored(resolved, protocol=protocol, network=network, table=table)
        on = choose_device(device)
        check_writable(out)
        files = list_pictures(pictures, out)
        targets = _refuse_collisions(files, pictures, out, scores)
        file = checkpoint or recorded_checkpoint(recipe, seed, store, overrides)
        known = DATASETS.get(resolved.recipe.dataset)
        info, exif = known.info, known.exif
        method = load_network(resolved, on, file, table, say=lambda note: say(f"note: {note}"))
        used = protocol or resolved.recipe.usual_evaluation.protocol
        p = protocols.protocol(used)
        facts: dict[str, Any] = {
            "recipe": recipe,
            "overrides": dump(overrides),
            "checkpoint_sha256": sha256_of(file),
            "network": network,
            "protocol": used,
            "tile": tile,
            "exif": exif,
            "encoding": "classes",
            "classes": list(info.classes),
            "palette": [list(colour) for colour in info.palette],
            "background": info.background,
        }
        todo = _left(files, targets, out, facts)
        write_json(out / FACTS, facts)
        wrong: dict[Path, UserError] = {} if left_out is None else left_out
        notes: dict[str, int] = {}
        cut = 0
        for picture in progress(todo, len(todo)):
            try:
                image = read_rgb(picture.file, exif)
                said = picture_notes(picture.file, exif)
            except UserError as error:
                wrong[picture.file] = error
                continue
            for note in said:
                notes[note] = notes.get(note, 0) + 1
            side = _side(image, tile, info.num_classes, p)
            cut += side is not None
            label, blended, *more = targets[picture]
            label.unlink(missing_ok=True)
            append(out / DONE, json.dumps(_stamp(picture)) + "\n")
            with _kept(more, (info.num_classes, *image.shape[:2])) as keep:
                labels = tiling.segment(
                    method, image, p, device=on, network=network, side=side, keep=keep, name=str(picture.file)
                )
            over = Image.fromarray(colour_overlay(image, labels, info.palette, info.background))
            with whole_file(blended, "wb") as stream:
                over.save(stream, format="PNG")
            save_index(label, labels, info.palette)  # last: its picture is done when it is there
            yield label
    for note, number in notes.items():
        say(f"note: {number} pictures with {note}")
    if cut:
        say(f"note: {cut} large pictures were predicted in tiles")
    if wrong and left_out is None:
        named = "; ".join(f"{path}: {error.problem}" for path, error in list(wrong.items())[:6])
        more_text = f"; and {len(wrong) - 6} more" if len(wrong) > 6 else ""
        raise UserError(f"{len(wrong)} pictures could not be decoded: {named}{more_text}")


# --- which pictures ----------------------------------------------------------------------------------


def list_pictures(paths: Sequence[Path], out: Path | None = None) -> list[Picture]:
    """Pictures, those of folders with everything below them, without hidden files and folders.

    Args:
        paths: files and folders.
        out: the folder of results, which is not looked into.

    Raises:
        UserError: something is missing, or a folder holds no picture.
    """
    files: list[Picture] = []
    own = None if out is None else os.path.realpath(out)
    for path in paths:
        if not path.exists():
            raise UserError("no such picture, recipe or folder", where=path)
        if not path.is_dir():
            files.append(Picture(path, path.stem))
            continue
        inside = []
        for folder, below, names in os.walk(path):
            below[:] = sorted(
                b for b in below if not b.startswith(".") and os.path.realpath(Path(folder, b)) != own
            )
            inside += [
                Path(folder, n)
                for n in sorted(names)
                if not n.startswith(".") and Path(n).suffix.lower() in PICTURES
            ]
        if not inside:
            raise UserError(
                "the folder holds no pictures", where=path, remedy=f"accepted: {', '.join(PICTURES)}"
            )
        files += [Picture(f, f.relative_to(path).with_suffix("").as_posix()) for f in inside]
    return files


def _refuse_collisions(
    files: Sequence[Picture], given: Sequence[Path], out: Path, scores: bool
) -> dict[Picture, tuple[Path, ...]]:
    """The files of results of every picture.

    Raises:
        UserError: one of them is a picture, or a result of another picture.
    """
    elsewhere = "name another folder with --out"
    for folder in given:
        if folder.is_dir() and os.path.realpath(folder) == os.path.realpath(out):
            raise UserError("results would stand among the pictures", where=out, remedy=elsewhere)
    inputs = {_identity(picture.file): picture.file for picture in files}
    owners: dict[str, Picture] = {}
    targets = {}
    for picture in files:
        targets[picture] = picture.targets(out, scores)
        for target in targets[picture]:
            own = _identity(target)
            if own is not None and own in inputs:
                raise UserError(
                    f"the result of {picture.file} would replace the picture {inputs[own]}",
                    where=target,
                    remedy=elsewhere,
                )
            other = owners.setdefault(os.path.normpath(target), picture)
            if other is not picture:
                raise UserError(
                    f"two pictures have the same result: {other.file} and {picture.file}",
                    where=target,
                    remedy="rename one of them, or predict them into different folders",
                )
    return targets


def _identity(file: Path) -> tuple[int, int] | None:
    """Which file a path leads to, by whatever name; None where there is none."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


# --- what is there already ---------------------------------------------------------------------------


def _stamp(picture: Picture) -> dict[str, Any]:
    status = picture.file.stat()
    return {
        "name": picture.name,
        "picture": os.path.realpath(picture.file),
        "size": status.st_size,
        "changed": status.st_mtime_ns,
    }


def _left(
    files: Sequence[Picture],
    targets: Mapping[Picture, tuple[Path, ...]],
    out: Path,
    facts: Mapping[str, Any],
) -> list[Picture]:
    """The pictures that are not done yet.

    Raises:
        UserError: results are there of another network or other pictures, or files that are none.
    """
    elsewhere = "name another folder with --out, or move what is there away"
    before = read_object(out / FACTS) if (out / FACTS).is_file() else {}
    differing = [key for key in facts if before and before.get(key) != json.loads(json.dumps(facts[key]))]
    if differing:
        raise UserError(
            f"the folder holds results of another {' and '.join(differing[:3])}", where=out, remedy=elsewhere
        )
    done = _journal(out / DONE)
    todo = []
    for picture in files:
        there = [target for target in targets[picture] if os.path.lexists(target)]
        line = done.get(picture.name)
        if there and (line is None or line.get("picture") != os.path.realpath(picture.file)):
            whose = f"the result of {line['picture']}" if line else "no result of this command"
            raise UserError(
                f"the result of {picture.file} would replace a file that is {whose}",
                where=there[0],
                remedy=elsewhere,
            )
        if len(there) < len(targets[picture]) or line != _stamp(picture):
            todo.append(picture)
    return todo


def _journal(file: Path) -> dict[str, dict[str, Any]]:
    """The last line of each picture; one that was cut off counts for nothing."""
    found: dict[str, dict[str, Any]] = {}
    if not file.is_file():
        return found
    for text in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("name"), str) and "picture" in line:
            found[line["name"]] = line
    return found


# --- results -----------------------------------------------------------------------------------------


def _side(image: np.ndarray, tile: int | None, num_classes: int, p: protocols.Protocol) -> int | None:
    height, width = image.shape[:2]
    if tile is None:
        return tiling.tile_side(height, width, num_classes, p)
    return tile if tile and max(height, width) > tile else None


@contextmanager
def _kept(files: Sequence[Path], shape: tuple[int, int, int]) -> Iterator[_Room | None]:
    """A place on disk for probabilities, ``scores`` of the npz file; None where none are wanted."""
    if not files:
        yield None
        return
    files[0].parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=files[0].parent) as room:
        kept = _Room(room, shape)
        yield kept
        write_with(files[0], lambda stream: _write_scores(stream, kept))


class _Room:
    """``(K, H, W)`` float16 in a file, of which no more is in memory than what is just written or read: pages
    of one mapping would stay until the last class is written."""

    def __init__(self, room: IO[bytes], shape: tuple[int, int, int]) -> None:
        self.room, self.shape = room, shape
        room.truncate(2 * int(np.prod(shape)))

    def __setitem__(self, where: Any, values: np.ndarray) -> None:
        mapped = np.memmap(self.room, np.float16, "r+", shape=self.shape)
        mapped[where] = values

    def planes(self) -> Iterator[bytes]:
        """The values of each class."""
        self.room.flush()
        self.room.seek(0)
        for _ in range(self.shape[0]):
            yield self.room.read(2 * self.shape[1] * self.shape[2])


def _write_scores(stream: IO[bytes], scores: _Room) -> None:
    """``scores`` as an npz file, class by class: nobody holds all of it."""
    entry = zipfile.ZipInfo("scores.npy")  # without the time of day
    entry.compress_type = zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(stream, "w") as archive, archive.open(entry, "w", force_zip64=True) as member:
        header = {"descr": np.dtype(np.float16).str, "fortran_order": False, "shape": scores.shape}
        np.lib.format.write_array_header_1_0(member, header)
        for plane in scores.planes():
            member.write(plane)


def colour_overlay(
    image: np.ndarray,
    labels: np.ndarray,
    palette: Sequence[Sequence[int]],
    background: int | None,
    alpha: float = 0.55,
) -> np.ndarray:
    """Class colours laid over a picture; background stays as it is.

    Args:
        image: ``(H, W, 3)`` uint8.
        labels: ``(H, W)`` uint8.
        palette: ``(K, 3)`` colours.
        background: label left transparent, None for none.
        alpha: share of the class colour.
    """
    colours = np.zeros((256, 3), dtype=np.float32)
    colours[: len(palette)] = palette
    mixed = np.empty_like(image)
    for rows in range(0, len(image), 512):  # large pictures are mixed in stripes
        part, own = image[rows : rows + 512], labels[rows : rows + 512]
        blend = ((1 - alpha) * part + alpha * colours[own]).round().astype(np.uint8)
        if background is not None:
            blend[own == background] = part[own == background]
        mixed[rows : rows + 512] = blend
    return mixed
