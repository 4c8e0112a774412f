"""Annotators' files: scribbles as PNG, ScribbleSup XML or polyline text, clicks as JSON.

File names in an official label folder: ``<id>.png``, ``<id>.xml``, ``<id>_polyline.txt`` or
``<id>.txt``. Clicks stand in one JSON file for all pictures, ``{id: [{"x", "y", "cls"}, ...]}``.
Coordinates are pixels, x to the right and y down, from the top left pixel.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image, ImageDraw

from harness.basics.errors import UserError, nearest
from harness.basics.files import expanded
from harness.basics.reading import read_text
from harness.data.base import IGNORE, UNLABELLED, LabelSpec, Supervision
from harness.data.images import read_index
from harness.data.labels.coordinates import check_points
from harness.data.picture_files import in_any_case

#: Farthest coordinate of a stroke or click, in pixels: drawing what lies beyond would overflow.
_FARTHEST = 1e6
#: Which files can carry which weak label.
LABEL_FORMATS: Mapping[Supervision, tuple[str, ...]] = {
    "scribble": ("png", "xml", "polyline", "labelme"),
    "point": ("png", "clicks", "csv", "labelme"),
    "block": ("png", "labelme", "coco", "yolo"),
    "box": ("png", "labelme", "coco", "voc", "yolo"),
}
#: Endings of files of tools that write one for each picture; their other formats have one file for all.
ENDINGS: Mapping[str, str] = {"labelme": ".json", "voc": ".xml", "yolo": ".txt"}
#: Formats that :mod:`harness.data.labels.tool_files` reads.
TOOLS = frozenset({*ENDINGS, "coco", "csv"})


@dataclass(frozen=True)
class Stroke:
    """One stroke, or with a single point one click.

    Attributes:
        label: class.
        points: ``(N, 2)`` float64 x, y in pixels, ``N >= 1``.
    """

    label: int
    points: np.ndarray


def illegal_values(labels: np.ndarray, num_classes: int, *legal: int) -> list[int]:
    """Values of a uint8 map that are neither ``0..num_classes-1`` nor among ``legal``."""
    present = np.bincount(labels.ravel(), minlength=256) > 0
    present[:num_classes] = False
    present[list(legal)] = False
    return np.flatnonzero(present).tolist()


# --- which file --------------------------------------------------------------------------------------


def _folder(root: Path, spec: LabelSpec, field: str = "folder") -> Path:
    value = getattr(spec, field)
    if not value:
        raise UserError(
            "official labels need to know where their files are",
            where=f"labels.{field}",
            remedy="name a folder (a JSON file for clicks), absolute or relative to the data set's folder",
        )
    path = root / expanded(value)
    if not path.exists():
        raise UserError("no such folder or file of weak labels", where=path, remedy=f"check labels.{field}")
    return path


def label_files(root: Path, image_id: str, spec: LabelSpec) -> tuple[Path, ...]:
    """Files that hold the label of a picture.

    Args:
        root: the data set's own folder, which relative folders start from.
        image_id: the picture.
        spec: format and folder.

    Raises:
        UserError: the folder is not given or does not exist, or the format is not given.
    """
    folder = _folder(root, spec)
    if spec.format == "clicks":
        return (folder, *((_folder(root, spec, "background"),) if spec.background else ()))
    if spec.format == "polyline":
        usual, short = folder / f"{image_id}_polyline.txt", folder / f"{image_id}.txt"
        return (short if short.exists() and not usual.exists() else usual,)
    if not spec.format:
        raise UserError(
            "official labels need a format",
            where="labels.format",
            remedy="png, xml, polyline, clicks, labelme, coco, voc, yolo or csv",
        )
    if spec.format in TOOLS - set(ENDINGS):
        return (folder,)
    file = in_any_case(folder / f"{image_id}{ENDINGS.get(spec.format, f'.{spec.format}')}")
    return (file, class_list(file)) if spec.format == "yolo" else (file,)


#: Files that name YOLO's classes: a name for each line (labelImg, CVAT), or ``names`` in YAML (Ultralytics).
YOLO_NAMES = ("classes.txt", "obj.names", "data.yaml", "dataset.yaml", "data.yml", "dataset.yml")


def class_list(file: Path) -> Path:
    """Where it stands which classes YOLO's numbers mean: beside a file, or in one of the two folders above;
    ``classes.txt`` beside it where it stands nowhere."""
    folders = [file.parent, file.parent.parent, file.parent.parent.parent]
    places = [folder / name for name in YOLO_NAMES for folder in folders]
    return next((place for place in places if place.is_file()), places[0])


def check_format(supervision: Supervision, spec: LabelSpec) -> None:
    """Raises UserError unless files of the format can carry this kind of weak label."""
    formats = LABEL_FORMATS.get(supervision, ())
    if spec.format not in formats:
        said = f"format {spec.format!r}" if spec.format else "no format"
        raise UserError(
            f"{said} for {supervision} labels from annotators' files",
            where="labels.format",
            remedy=f"valid: {', '.join(formats)}" if formats else "use simulated labels or labels_from",
        )


def read_label(
    root: Path,
    image_id: str,
    supervision: Supervision,
    spec: LabelSpec,
    *,
    size: tuple[int, int],
    names: Mapping[str, int],
    files: Callable[[], tuple[Path, ...]] | None = None,
    stray: float = 0.5,
    numbers: np.ndarray | None = None,
) -> np.ndarray:
    """The label of one picture: ``(H, W)`` uint8, ``0..K-1`` annotated class, 254 elsewhere.

    Args:
        root: the data set's own folder, which relative folders start from.
        image_id: the picture.
        supervision: kind of weak label.
        spec: format, folder, stroke width, value that means 'not annotated'.
        size: ``(H, W)`` of the picture.
        names: class names and aliases to labels ``0..K-1``.
        files: gives the files that hold the label; by default those of :func:`label_files`.
        stray: share of a picture's points that may lie outside of it.
        numbers: PNG only: ``(256,)`` label of every value, 255 for no class, -1 for illegal ones; class
            numbers by default.

    Raises:
        UserError: a file is missing or malformed, does not fit the picture, names an unknown class,
            or the format cannot carry this supervision.
    """
    check_format(supervision, spec)
    found = label_files(root, image_id, spec) if files is None else files()
    num_classes = max(names.values()) + 1
    if spec.format == "png":
        return read_png(found[0], spec.unlabelled, size=size, names=names, numbers=numbers)
    if spec.format == "clicks":
        strokes = read_clicks(found, image_id, num_classes)
    elif spec.format == "xml":
        strokes = read_xml(found[0], size=size, names=names)
    else:
        strokes = read_polylines(found[0], num_classes)
    points = np.concatenate([np.zeros((0, 2)), *(stroke.points for stroke in strokes)])
    check_points(points, size, f"{found[0]}, picture {image_id}", stray)
    return (draw_clicks if spec.format == "clicks" else draw_strokes)(strokes, size, spec.stroke)


# --- reading -----------------------------------------------------------------------------------------


def read_png(
    path: Path,
    unlabelled: int | None,
    *,
    size: tuple[int, int],
    names: Mapping[str, int],
    numbers: np.ndarray | None = None,
) -> np.ndarray:
    """A label stored as an index PNG, with ``unlabelled`` and values of no class mapped to 254.

    Args:
        path: the file.
        unlabelled: the value that means 'not annotated'.
        size: ``(H, W)`` of the picture.
        names: class names and aliases to labels.
        numbers: as in :func:`read_label`.

    Raises:
        UserError: ``unlabelled`` is None (codes differ from project to project, and a wrong guess
            trains a class out of the unlabelled pixels) and ``numbers`` know no value of no class, it is the
            number of a class, or the file does not fit.
    """
    count = max(names.values()) + 1
    table = np.full(256, -1, np.int16) if numbers is None else numbers.copy()
    if numbers is None:
        table[:count] = np.arange(count)
    if unlabelled is None and not (table == IGNORE).any():
        raise UserError(
            "it is not said which value of the label PNGs means 'not annotated'",
            where="labels.unlabelled",
            remedy=f"255 for files of TEL, rloss and BLPSeg, {count} (K) for those of AGMM",
        )
    if unlabelled is not None:
        if 0 <= table[unlabelled] < count:
            name = next(name for name, label in names.items() if label == table[unlabelled])
            raise UserError(
                f"the value {unlabelled} of the label PNGs is the class {name!r} and cannot also mean "
                "'not annotated'",
                where="labels.unlabelled",
                remedy="set it to the value that these files use for 'not annotated', and labels.encoding to "
                "whose numbers they hold",
            )
        table[unlabelled] = IGNORE
    label = read_index(path)
    check_size(label, size, path)
    illegal = np.flatnonzero((np.bincount(label.ravel(), minlength=256) > 0) & (table < 0)).tolist()
    if illegal:
        legal = f"0..{count - 1}" if numbers is None else "the numbers of the data set's own files"
        also = "" if unlabelled is None else f" and {unlabelled} (not annotated)"
        raise UserError(
            f"the label holds {illegal}; legal are {legal}{also}",
            where=path,
            remedy="set labels.unlabelled to the value that these files use for 'not annotated'"
            + ("" if numbers is None else ", or labels.encoding = 'classes'"),
        )
    return np.where(table == IGNORE, UNLABELLED, table).astype(np.uint8)[label]


def check_size(label: np.ndarray, size: tuple[int, int], path: Path) -> None:
    """Raises UserError when a label is not as large as its picture, ``(H, W)``."""
    if label.shape != size:
        raise UserError(
            f"the label is {label.shape[1]}x{label.shape[0]} pixels, its picture {size[1]}x{size[0]}",
            where=path,
            remedy="use labels made for these very pictures, neither resized nor cropped",
        )


def _text(path: Path) -> str:
    if not os.path.lexists(path):
        raise UserError(
            "the label file is missing", where=path, remedy="complete the labels or check labels.folder"
        )
    return read_text(path)


def read_xml(path: Path, *, size: tuple[int, int], names: Mapping[str, int]) -> list[Stroke]:
    """Strokes of a ScribbleSup file (``polygon`` elements with a ``tag`` and ``point``s).

    Args:
        path: the file.
        size: ``(H, W)`` of the picture.
        names: class names and aliases to labels.

    Raises:
        UserError: not such a file, a picture size other than ``size``, or an unknown class.
    """
    try:
        root = ElementTree.fromstring(_text(path))
        stated = (int(_child(root, "size/height")), int(_child(root, "size/width")))
        strokes = [
            (
                _child(polygon, "tag").strip(),
                [[_coordinate(_child(p, "X")), _coordinate(_child(p, "Y"))] for p in polygon.iter("point")],
            )
            for polygon in root.iter("polygon")
        ]
    except (ElementTree.ParseError, ValueError, OverflowError) as error:
        raise UserError(
            f"not a ScribbleSup file: {error}", where=path, remedy="copy or unpack the file again"
        ) from None
    if stated != size:
        raise UserError(
            f"the file speaks of a picture of {stated[1]}x{stated[0]} pixels, ours is {size[1]}x{size[0]}",
            where=path,
            remedy="use labels made for these very pictures",
        )
    unknown = [tag for tag, _ in strokes if tag not in names]
    if unknown:
        raise UserError(f"unknown class {unknown[0]!r}", where=path, remedy=nearest(unknown[0], names))
    return [Stroke(names[tag], np.array(points, np.float64)) for tag, points in strokes if points]


def _child(element: ElementTree.Element, path: str) -> str:
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"<{element.tag}> lacks {path}")
    return text


def _coordinate(text: str) -> float:
    """A coordinate. Raises ValueError where it can be none."""
    value = float(text)
    if not abs(value) <= _FARTHEST:
        raise ValueError(f"a point at {text[:20]}")
    return value


def read_polylines(path: Path, num_classes: int) -> list[Stroke]:
    """Strokes of a text file, one for each line: class, then x, y, x, y, ... separated by commas.

    Raises:
        UserError: the file is missing, a line is malformed, or a class is not ``0..num_classes-1``.
    """
    strokes = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            values = [float(word) for word in line.strip().rstrip(",").split(",")]
        except ValueError:
            values = []
        if len(values) < 3 or len(values) % 2 == 0 or not _near(values):
            raise UserError("not a stroke: class, then pairs of x and y, separated by commas", where=where)
        strokes.append(Stroke(_legal(values[0], num_classes, where), np.reshape(values[1:], (-1, 2))))
    return strokes


def _near(values: Sequence[float]) -> bool:
    """Whether numbers are finite, and can be coordinates."""
    return bool((np.abs(values) <= _FARTHEST).all())


def _legal(value: float, num_classes: int, where: object) -> int:
    if value != int(value) or not 0 <= value < num_classes:
        raise UserError(f"class {value:g} is none of 0..{num_classes - 1}", where=where)
    return int(value)


@lru_cache(maxsize=8)
def _parsed(path: Path, modified: int, size: int) -> dict:
    """A JSON file, parsed again only when it changed."""
    try:
        content = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"not valid JSON: {error}", where=path, remedy="copy the file again") from None
    if not isinstance(content, dict):
        raise UserError("not a JSON object of clicks by image id", where=path)
    return content


def read_clicks(files: Sequence[Path], image_id: str, num_classes: int) -> list[Stroke]:
    """Clicks of a picture from one or several JSON files in the form of What's the Point.

    Args:
        files: objects first, then (What's the Point has none) background.
        image_id: the picture; every file must know it, with an empty list where there is no click.
        num_classes: K.

    Raises:
        UserError: a file is missing or malformed, or does not know the picture.
    """
    clicks = []
    for file in files:
        if not file.is_file():
            raise UserError("no such JSON file of clicks", where=file, remedy="check labels.folder")
        stat = file.stat()
        content = _parsed(file, stat.st_mtime_ns, stat.st_size)
        if image_id not in content:
            raise UserError(
                f"no clicks for picture {image_id!r}", where=file, remedy="use the file made for this split"
            )
        where, entries = f"{file}, {image_id}", content[image_id]
        if not isinstance(entries, list):
            raise UserError("not a list of clicks", where=where, remedy="write an empty list for none")
        for entry in entries:
            try:
                x, y, label = float(entry["x"]), float(entry["y"]), float(entry["cls"])
            except (KeyError, TypeError, ValueError, OverflowError):
                raise UserError("not a click: numbers 'x', 'y' and 'cls' are needed", where=where) from None
            if not _near([x, y]):
                raise UserError("a click without a place", where=where)
            if not np.isfinite(label):
                raise UserError(f"class {label} is none", where=where)
            clicks.append(Stroke(_legal(label, num_classes, where), np.array([[x, y]])))
    return clicks


# --- drawing -----------------------------------------------------------------------------------------


def draw_strokes(strokes: Sequence[Stroke], size: tuple[int, int], width: int) -> np.ndarray:
    """Draw strokes into ``(H, W)`` uint8, 254 elsewhere; later strokes cover earlier ones.

    Width 1 draws what BLPSeg trains on (data/xml2png_voc.py): points clamped to the picture, line
    points cut off to whole pixels, nothing for a stroke of a single point. Greater widths draw what
    TEL and GatedCRF train on (TEL lib/datasets/loader/voc2012_loader.py, rasterize_scribbles): lines
    of this width with a disc at every point.
    """
    if width == 1:
        label = np.full(size, UNLABELLED, np.uint8)
        for stroke in strokes:
            rows, columns = _line_pixels(stroke.points, size)
            label[rows, columns] = stroke.label
        return label
    canvas = Image.new("L", size[::-1], UNLABELLED)
    draw = ImageDraw.Draw(canvas)
    for stroke in strokes:
        points = [tuple(p) for p in stroke.points.tolist()]
        if len(points) > 1:
            draw.line(points, fill=stroke.label, width=width, joint="curve")
        _discs(draw, stroke, width)
    return np.array(canvas)


def draw_clicks(clicks: Sequence[Stroke], size: tuple[int, int], width: int) -> np.ndarray:
    """Draw clicks into ``(H, W)`` uint8, 254 elsewhere: discs of diameter ``width``, single pixels for 1
    (TEL lib/datasets/loader/voc2012_loader.py, rasterize_clicks). Clicks outside leave nothing."""
    canvas = Image.new("L", size[::-1], UNLABELLED)
    draw = ImageDraw.Draw(canvas)
    for click in clicks:
        if width > 1:
            _discs(draw, click, width)
        else:
            draw.point([tuple(p) for p in click.points.tolist()], fill=click.label)
    return np.array(canvas)


def _discs(draw: ImageDraw.ImageDraw, stroke: Stroke, width: int) -> None:
    for x, y in stroke.points.tolist():
        draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=stroke.label)


def _line_pixels(points: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of a one pixel wide stroke.

    Between P and Q, with m the greater of their row and column distances, the pixels are P +
    i (Q - P)/m for i = 0..m-1, cut off to whole numbers, and both ends.
    """
    if len(points) < 2:
        empty = np.zeros(0, np.int64)
        return empty, empty
    whole = np.clip(points.astype(np.int64)[:, ::-1], 0, np.array(size) - 1)  # row, column
    start, way = whole[:-1], np.diff(whole, axis=0)
    steps = np.abs(way).max(1)
    line = np.repeat(np.arange(len(steps)), steps)
    along = np.arange(len(line)) - np.repeat(np.cumsum(steps) - steps, steps)
    share = way / np.maximum(steps, 1)[:, None]  # divided first: the cut depends on the rounding
    pixels = (start[line] + share[line] * along[:, None]).astype(np.int64)
    rows, columns = np.concatenate([pixels, whole]).T
    return rows, columns
