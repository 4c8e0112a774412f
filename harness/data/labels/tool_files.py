"""Files of annotation tools: LabelMe JSON, COCO JSON, VOC XML, YOLO text, clicks as CSV.

LabelMe, VOC and YOLO write one file for each picture, ``<id>.json``, ``<id>.xml`` or ``<id>.txt``; COCO
and CSV one for all, which names pictures by their files. Classes go by name; YOLO's numbers mean the
lines of a ``classes.txt`` beside its files, or the names of its ``data.yaml``: they need not be those of the
data set.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from harness.basics.errors import UserError, nearest
from harness.basics.reading import MOST_TEXT, read_object, read_text
from harness.data import coco_masks
from harness.data.base import Supervision
from harness.data.labels.annotations import Stroke, class_list
from harness.data.labels.coordinates import check_points
from harness.data.labels.shapes import Area, Drawn, checked_box
from harness.data.labels.tags import csv_rows
from harness.data.naming import ByPicture, bare

_PICTURE = frozenset({"id", "image", "image_id", "picture", "file", "filename", "file_name", "name", "path"})
_CLASS = frozenset({"class", "label", "cls", "class_name", "tag"})


def read_shapes(
    form: str,
    path: Path,
    image_id: str,
    supervision: Supervision,
    size: tuple[int, int],
    names: Mapping[str, int],
) -> Drawn:
    """What a file of a tool says of a picture.

    Args:
        form: ``labelme``, ``coco``, ``voc``, ``yolo`` or ``csv``.
        path: the file.
        image_id: the picture.
        supervision: kind of weak label; of COCO's two forms of an object it decides which is read.
        size: ``(H, W)`` of the picture.
        names: class names and aliases to labels.

    Raises:
        UserError: missing or malformed, made for another picture, an unknown class, or coordinates that
            cannot be meant; file and picture are named.
    """
    if not path.is_file():
        raise UserError(
            "the label file is missing",
            where=f"{path}, picture {image_id}",
            remedy="complete the labels or check labels.folder; where nothing is drawn, a file that says so",
        )
    return _READERS[form](path, image_id, supervision, size, names)


def _label(name: Any, names: Mapping[str, int], where: object) -> int:
    if not isinstance(name, str) or name not in names:
        raise UserError(f"unknown class {str(name)[:60]!r}", where=where, remedy=nearest(str(name), names))
    return names[name]


def _same_size(stated: tuple[Any, Any], size: tuple[int, int], where: object) -> None:
    """Raises UserError where a file states another height and width than the picture's."""
    if None not in stated and tuple(stated) != size and stated != (0, 0):
        raise UserError(
            f"the file speaks of a picture of {stated[1]}x{stated[0]} pixels, ours is {size[1]}x{size[0]}",
            where=where,
            remedy="use labels made for these very pictures"
            + (', or exif = "apply" for turned ones' if tuple(stated) == size[::-1] else ""),
        )


def _area(label: int, points: np.ndarray, size: tuple[int, int], where: object) -> Area:
    """A polygon ``(N, 2)``."""
    check_points(points, size, where)
    try:
        inside = coco_masks.decode([points.ravel().tolist()], size)
    except UserError as error:
        raise UserError(error.problem, where=where, remedy="mend or delete it") from None
    (left, top), (right, bottom) = points.min(0), points.max(0)
    return Area(label, inside, (label, float(left), float(top), float(right), float(bottom)))


# --- LabelMe -----------------------------------------------------------------------------------------


def _labelme(
    path: Path, image_id: str, supervision: Supervision, size: tuple[int, int], names: Mapping[str, int]
) -> Drawn:
    where = f"{path}, picture {image_id}"
    content = read_object(path, MOST_TEXT)
    _same_size((content.get("imageHeight"), content.get("imageWidth")), size, where)
    entries = content.get("shapes")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError("not a LabelMe file: it has no list of shapes", where=where)
    drawn = [(entry, _points(entry.get("points"), where)) for entry in entries]
    if drawn:
        check_points(np.concatenate([points for _, points in drawn]), size, where)
    shapes = Drawn()
    for entry, points in drawn:
        label = _label(entry.get("label"), names, where)
        kind = entry.get("shape_type", "polygon")
        if kind == "rectangle":  # any two opposite corners, or all four
            corners = (*points.min(0), *points.max(0))
            shapes.boxes.append(checked_box(label, corners, size, where))
        elif kind == "circle" and len(points) == 2:
            shapes.areas.append(_area(label, _circle(points, size), size, where))
        elif kind == "polygon":
            shapes.areas.append(_area(label, points, size, where))
        elif kind in ("line", "linestrip") and len(points) > 1:
            shapes.lines.append(Stroke(label, points))
        elif kind in ("point", "points"):
            shapes.points += [Stroke(label, point[None]) for point in points]
        else:
            raise UserError(
                f"a shape of type {str(kind)[:40]!r} with {len(points)} points is not read",
                where=where,
                remedy="draw polygons, rectangles, circles, lines, line strips or points",
            )
    return shapes


def _points(points: Any, where: object) -> np.ndarray:
    """``(N, 2)`` float64, N >= 1."""
    try:
        found = np.array([[float(x), float(y)] for x, y in points])
    except (TypeError, ValueError, OverflowError):
        found = np.zeros((0, 2))
    if not len(found):
        raise UserError("a shape's points are not pairs of x and y", where=where, remedy="mend or delete it")
    return found


def _circle(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Corners of a circle of centre and one point on it, cut off at the picture's frame."""
    angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    radius = np.hypot(*(points[1] - points[0]))
    return np.clip(
        points[0] + radius * np.stack([np.cos(angles), np.sin(angles)], 1), 0, np.array(size[::-1], float)
    )


# --- COCO --------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def _coco_pictures(path: Path, modified: int, size: int) -> tuple[ByPicture[Any], Mapping[int, str]]:
    """What a file of COCO annotations says by picture, and class names by category id."""
    content = read_object(path, MOST_TEXT)
    try:
        kinds = {c["id"]: str(c["name"]) for c in content["categories"]}
        of_picture: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
        for annotation in content["annotations"]:
            of_picture[annotation["image_id"]].append(annotation)
        said = {str(p["file_name"]): (p, of_picture[p["id"]]) for p in content["images"]}
    except (KeyError, TypeError, AttributeError) as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"not a file of COCO annotations: {why}",
            where=path,
            remedy="images (id, file_name), annotations (image_id, category_id) and categories are wanted",
        ) from None
    return ByPicture(said, path), kinds


def _coco(
    path: Path, image_id: str, supervision: Supervision, size: tuple[int, int], names: Mapping[str, int]
) -> Drawn:
    status = path.stat()
    pictures, kinds = _coco_pictures(path, status.st_mtime_ns, status.st_size)
    found = pictures.get(image_id)
    if found is None:
        raise UserError(
            f"the file knows no picture {image_id!r}", where=path, remedy="use the file made for this split"
        )
    picture, annotations = found
    _same_size((picture.get("height"), picture.get("width")), size, f"{path}, picture {image_id}")
    shapes = Drawn()
    for annotation in annotations:
        where = f"{path}, picture {image_id}, annotation {annotation.get('id', 'without id')}"
        kind = annotation.get("category_id")
        name = kinds.get(kind) if isinstance(kind, int) else None
        if name is None:
            raise UserError(f"unknown category {kind!r}", where=where, remedy="add it to the categories")
        label = _label(name, names, where)
        if supervision == "box":
            if not annotation.get("iscrowd"):  # the box of a crowd is none of an object
                left, top, width, height = _four(annotation.get("bbox"), where)
                shapes.boxes.append(checked_box(label, (left, top, left + width, top + height), size, where))
            continue
        try:
            outline = annotation.get("segmentation")
            if isinstance(outline, list):
                check_points(np.concatenate(coco_masks.checked_polygons(outline)), size, where)
            inside = coco_masks.decode(outline, size)
        except UserError as error:
            raise UserError(error.problem, where=where, remedy=error.remedy or "mend or delete it") from None
        rows, columns = np.nonzero(inside)
        if len(rows):
            box = (
                label,
                float(columns.min()),
                float(rows.min()),
                float(columns.max()) + 1,
                float(rows.max()) + 1,
            )
            shapes.areas.append(Area(label, inside, box))
    return shapes


def _four(box: Any, where: object) -> tuple[float, float, float, float]:
    if not isinstance(box, list) or len(box) != 4 or not all(type(v) in (int, float) for v in box):
        raise UserError(
            "an object without a box", where=where, remedy="bbox is left, top, width, height in pixels"
        )
    left, top, width, height = map(float, box)
    return left, top, width, height


# --- VOC ---------------------------------------------------------------------------------------------


def _voc(
    path: Path, image_id: str, supervision: Supervision, size: tuple[int, int], names: Mapping[str, int]
) -> Drawn:
    where, shapes = f"{path}, picture {image_id}", Drawn()
    try:
        root = ElementTree.fromstring(read_text(path))
        stated = tuple(root.findtext(f"size/{side}") for side in ("height", "width"))
        _same_size(tuple(None if text is None else int(text) for text in stated), size, where)  # type: ignore[arg-type]
        for element in root.iter("object"):
            label = _label((element.findtext("name") or "").strip(), names, where)
            corner = element.find("bndbox")
            left, top, right, bottom = (
                float((corner.findtext(key) if corner is not None else None) or "nan")
                for key in ("xmin", "ymin", "xmax", "ymax")
            )
            shapes.boxes.append(checked_box(label, (left - 1, top - 1, right, bottom), size, where))
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f"not a VOC annotation: {error}", where=where, remedy="export it again") from None
    return shapes


# --- YOLO --------------------------------------------------------------------------------------------


def _yolo(
    path: Path, image_id: str, supervision: Supervision, size: tuple[int, int], names: Mapping[str, int]
) -> Drawn:
    kinds, shapes, (height, width) = _yolo_names(path), Drawn(), size
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}, picture {image_id}, line {number}"
        try:
            kind, *numbers = [float(word) for word in line.split()]
        except ValueError:
            kind, numbers = math.nan, []
        polygon = len(numbers) >= 6 and len(numbers) % 2 == 0
        if not (polygon or len(numbers) == 4) or not np.isfinite([kind, *numbers]).all():
            raise UserError(
                "not an object: class, then centre x, y, width and height, or a polygon's x, y, x, y, ...",
                where=where,
                remedy="mend or delete the line",
            )
        if kind != int(kind) or not 0 <= kind < len(kinds):
            raise UserError(
                f"class {kind:g} is none of the {len(kinds)} classes that YOLO's list names",
                where=where,
                remedy="use the list (classes.txt, data.yaml) that belongs to these files",
            )
        if not all(-0.01 <= v <= 1.01 for v in numbers):
            raise UserError(
                f"{max(numbers, key=abs):g} is no share of the picture, and pixels are not meant here",
                where=where,
                remedy="divide x by the picture's width and y by its height, or export another format",
            )
        label = _label(kinds[int(kind)], names, where)
        if polygon:
            points = np.reshape(numbers, (-1, 2)) * np.array([width, height])
            shapes.areas.append(_area(label, np.clip(points, 0, [width, height]), size, where))
        else:
            x, y, w, h = np.array(numbers) * np.array([width, height, width, height])
            # shares are written with a few decimals: beyond the frame lies their rounding, or a mistake
            corners = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
            shapes.boxes.append(checked_box(label, corners, size, where))
    return shapes


def _yolo_names(path: Path) -> list[str]:
    """Class names by number."""
    file = class_list(path)
    if file.is_file() and file.suffix in (".yaml", ".yml"):
        return _yaml_names(file)
    if file.is_file():
        return [line.strip() for line in read_text(file).splitlines() if line.strip()]
    raise UserError(
        "it is not said which classes YOLO's numbers mean",
        where=file,
        remedy="write this file: the names of the classes in YOLO's order, one for each line; or put the "
        "data.yaml there that has them",
    )


def _yaml_names(file: Path) -> list[str]:
    """``names`` of Ultralytics' ``data.yaml``: a list, or names by number from 0 on."""
    from importlib import import_module

    try:
        yaml: Any = import_module("yaml")  # comes with timm
        found = yaml.safe_load(read_text(file))
    except UserError:
        raise
    except Exception as error:  # of its own kinds, and of a missing package
        raise UserError(
            f"cannot be read: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
            where=file,
            remedy="mend it, or write classes.txt beside the labels: a name for each line",
        ) from error
    names = found.get("names") if isinstance(found, Mapping) else None
    if isinstance(names, Mapping) and sorted(map(str, names)) == sorted(str(k) for k in range(len(names))):
        by_number = {str(k): name for k, name in names.items()}
        names = [by_number[str(k)] for k in range(len(by_number))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(
            "names: a list of names, or a name for every number from 0 on, is needed",
            where=file,
            remedy="mend it, or write classes.txt beside the labels: a name for each line",
        )
    return [name.strip() for name in names]


# --- CSV ---------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)
def _csv_pictures(path: Path, modified: int, size: int) -> ByPicture[list[tuple[int, list[str]]]]:
    """Line numbers and cells x, y, class of each picture."""
    rows = csv_rows(path)
    head = [cell.casefold() for cell in rows[0][1]]
    order = [0, 1, 2, 3]
    if len(head) >= 4 and {"x", "y"} <= set(head):
        places = [
            next((k for k, c in enumerate(head) if c in group), -1)
            for group in (_PICTURE, {"x"}, {"y"}, _CLASS)
        ]
        if -1 in places:
            raise UserError(
                f"the header {', '.join(head)} does not name picture, x, y and class",
                where=f"{path}, header",
                remedy="write picture,x,y,class",
            )
        order, rows = places, rows[1:]
    said: dict[str, list[tuple[int, list[str]]]] = {}
    for number, cells in rows:
        clicks = said.setdefault(bare(cells[order[0]]) if len(cells) > order[0] else "", [])
        rest = [cell for k, cell in enumerate(cells) if k != order[0] and cell]
        if rest:  # a picture's name alone says that it has no click
            if len(cells) <= max(order):
                raise UserError(
                    "not a click: picture, x, y, class", where=f"{path}, line {number}", remedy="complete it"
                )
            clicks.append((number, [cells[k] for k in order[1:]]))
    return ByPicture(said, path)


def _csv(
    path: Path, image_id: str, supervision: Supervision, size: tuple[int, int], names: Mapping[str, int]
) -> Drawn:
    status = path.stat()
    rows = _csv_pictures(path, status.st_mtime_ns, status.st_size).get(image_id)
    if rows is None:
        raise UserError(
            f"no clicks for picture {image_id!r}",
            where=path,
            remedy="use the file made for this split; a row of its name alone says that it has none",
        )
    strokes = []
    for number, (x, y, name) in rows:
        where = f"{path}, picture {image_id}, line {number}"
        try:
            point = np.array([[float(x), float(y)]])
        except ValueError:
            raise UserError(
                f"{x[:20]!r}, {y[:20]!r} is no place", where=where, remedy="pixels x and y"
            ) from None
        strokes.append(Stroke(_label(name, names, where), point))
    if strokes:
        check_points(np.concatenate([s.points for s in strokes]), size, f"{path}, picture {image_id}")
    return Drawn(points=strokes)


_Reader = Callable[[Path, str, Supervision, tuple[int, int], Mapping[str, int]], Drawn]
_READERS: Mapping[str, _Reader] = {
    "labelme": _labelme,
    "coco": _coco,
    "voc": _voc,
    "yolo": _yolo,
    "csv": _csv,
}
