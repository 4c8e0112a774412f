"""A user's own data set: pictures, index masks and lists, described by one TOML file, without code.

::

    title = "Birds"                             # optional
    classes = ["background", "wing", "beak"]    # in the order of their values in the masks
    background = "background"                   # optional: the class that is background
    images = "images"                           # folders beside the file; these are the defaults
    masks = "masks"
    first_value = 0                             # value of the first class; or a table: see encoding.py
    void = [255]                                # values that are no class
    exif = "apply"                              # optional: turn pictures by their EXIF orientation
    tags = "tags.csv"                           # optional: image tags; default the file of them beside it
    [splits]                                    # optional: lists of ids; default <split>.txt beside it
    train = "train.txt"
    val = "val.txt"

It is named by ``--data-root NAME=PATH``, where PATH is the file or a folder that holds it as
``dataset.toml``, and used as any data set: ``wsss data verify NAME``, ``--set dataset=NAME``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from harness.basics.bounds import Byte
from harness.basics.errors import UserError, nearest
from harness.basics.files import expanded, read_toml
from harness.basics.reading import check_part
from harness.basics.registry import DATASETS
from harness.basics.schema import load, schema
from harness.basics.text import one_line
from harness.data.base import IGNORE, UNLABELLED, DatasetInfo, LabelSpec, Supervision
from harness.data.images import Exif
from harness.data.labels.annotations import LABEL_FORMATS, check_size
from harness.data.labels.tags import tags_file
from harness.data.lists import read_list
from harness.data.picture_files import PictureFiles, in_any_case
from harness.data.sets.encoding import Code, Encoding, Unlabelled, encoding, read_labelmap
from harness.data.sets.layout import FileDataset, bit_palette

FILE = "dataset.toml"
#: What lies in folders of labels that ``wsss data labels`` wrote.
_OURS = "labels.json"
#: Texts beside it that are no lists of ids: names of classes by YOLO's and CVAT's tools.
_NO_LISTS = ("classes.txt", "labelmap.txt")


@schema
class OwnSpec:
    """What a ``dataset.toml`` says."""

    classes: tuple[str, ...]
    """Class names in the order of their values in the masks."""
    title: str = ""
    """Name in tables; by default the name under which it is used."""
    background: str | None = None
    """The class that is background; none by default."""
    images: str = "images"
    """Folder of pictures, relative to the file."""
    masks: str = "masks"
    """Folder of masks `<id>.png`, relative to the file."""
    first_value: Byte = 0
    """Value of the first class in the masks: 1 where 0 means 'no class'."""
    void: tuple[Code, ...] = (255,)
    """Values or colours of pixels that are no class and are not scored."""
    values: dict[str, Code] = Field(default_factory=dict)
    """Value (0 to 255) or colour ([R, G, B]) of every class, in masks and label PNGs alike; by default
    the classes are numbered from `first_value`."""
    labelmap: str = ""
    """CVAT's `labelmap.txt`, relative to the file, in place of `values`."""
    unlabelled: Unlabelled | None = None
    """Value or colour of pixels that nobody annotated, in masks and label PNGs; `photograph` where labels
    are drawn on the picture itself."""
    palette: tuple[tuple[Byte, Byte, Byte], ...] = ()
    """Colours of the classes; VOC's by default."""
    exif: Exif = "ignore"
    """`apply` turns pictures as their EXIF orientation says: for labels drawn on what viewers show."""
    tags: str = ""
    """File of image tags, relative to the file: CSV, npz or one-hot npy; by default the one that is there."""
    splits: dict[str, str] = Field(default_factory=dict)
    """List of ids of each split, relative to the file; by default every `<split>.txt` beside it."""


class OwnDataset(FileDataset):
    """A data set that a :data:`FILE` describes; each one is a class of its own (:func:`describe`)."""

    spec: ClassVar[OwnSpec]
    file: ClassVar[Path]
    lists: ClassVar[dict[str, Path]]
    #: What values or colours of masks and label PNGs mean.
    encoding: ClassVar[Encoding]
    marker = FILE
    canonical_masks = False
    folders = True
    stray = 0.0

    @classmethod
    def _find(cls, root: Path) -> Path:
        return cls.file.parent  # it says itself where it is

    @classmethod
    def holds(cls, folder: Path) -> bool:
        """Whether the description is there."""
        return folder == cls.file.parent

    @classmethod
    def values(cls) -> np.ndarray:
        """``(256,)`` int16: labels of mask values as the file says, -1 for all others."""
        table = np.full(256, -1, np.int16)
        for code, label in cls.encoding.labels.items():
            if isinstance(code, int):
                table[code] = IGNORE if label == UNLABELLED else label
        return table

    def read_mask(self, image_id: str, split: str) -> np.ndarray:
        """``(H, W)`` uint8: ``0..K-1`` class, 255 void or not annotated. UserError as for every data set."""
        path = self.mask_path(image_id, split)
        if path is None or not self.tabled:
            return super().read_mask(image_id, split)
        label = self._decoded(path, image_id)
        return np.where(label == UNLABELLED, np.uint8(IGNORE), label)

    def read_official_label(self, image_id: str, supervision: Supervision, spec: LabelSpec) -> np.ndarray:
        """``(H, W)`` uint8: ``0..K-1`` annotated class, 254 elsewhere, from annotators' files.

        Label PNGs hold what the description says of values and colours, where it says anything and the
        recipe does not call them class numbers; those that ``wsss data labels`` wrote (``labels.json`` lies
        beside them) hold class numbers.

        Raises:
            UserError: as for every data set.
        """
        if spec.format != "png" or not self.described or "png" not in LABEL_FORMATS.get(supervision, ()):
            return super().read_official_label(image_id, supervision, spec)
        path = self.label_files(image_id, spec)[0]
        if spec.encoding == "classes" or (self.root / expanded(spec.folder) / _OURS).is_file():
            return super().read_official_label(image_id, supervision, spec)
        label = self._decoded(path, image_id, spec.unlabelled)
        check_size(label, self.picture_size(image_id), path)
        return np.where(label == IGNORE, np.uint8(UNLABELLED), label)

    def label_files(self, image_id: str, spec: LabelSpec) -> tuple[Path, ...]:
        """Files that :meth:`read_official_label` opens, and those that decide how."""
        files = super().label_files(image_id, spec)
        if spec.format == "png":
            files += (self.root / expanded(spec.folder) / _OURS,)
            files += (self.image_path(image_id),) if self.encoding.photograph else ()
        return files

    def numbering_of(self, path: Path) -> Literal["classes", "files"] | None:
        """Label files hold what the description says, where it says anything."""
        return "files" if self.described else None

    @property
    def described(self) -> bool:
        """Whether the description says what values or colours of labels mean."""
        return self.tabled or self.spec.unlabelled is not None

    @property
    def tabled(self) -> bool:
        """Whether files hold what :func:`harness.data.images.read_index` does not read: a table says it."""
        return bool(self.spec.values or self.spec.labelmap)

    def _decoded(self, path: Path, image_id: str, unlabelled: int | None = None) -> np.ndarray:
        """Labels of a file by the table, with the value that a recipe calls 'not annotated'."""
        table = self.encoding
        if unlabelled is not None and table.labels.get(unlabelled) != UNLABELLED:
            if table.colours or table.labels.get(unlabelled, IGNORE) != IGNORE:
                what = "colours" if table.colours else f"{unlabelled} as a class"
                raise UserError(
                    f"the value {unlabelled} cannot mean 'not annotated': {self.file.name} has {what}",
                    where="labels.unlabelled",
                    remedy=f"leave it out, and say unlabelled in {self.file}",
                )
            table = replace(table, labels={**table.labels, unlabelled: UNLABELLED})
        return table.read(path, self.read_image(image_id) if table.photograph else None)

    def list_path(self, split: str) -> Path:
        """The list that the file names."""
        return self.lists[split] if split in self.lists else self.root / f"{split}.txt"

    @property
    def tags_path(self) -> Path:
        """The file of image tags that the description names, or the one of :data:`tags.NAMES` beside it."""
        return tags_file(self.root, self.spec.tags, self.file)

    @cached_property
    def pictures(self) -> PictureFiles:
        """The files of the folder of pictures."""
        return PictureFiles(self.root / self.spec.images, self.root / self.spec.masks)

    def ids(self, split: str) -> Sequence[str]:
        """Image ids of a split, in list order.

        Raises:
            UserError: as for every data set; or an id has two files, or is written with its ending.
        """
        known = split in self._ids
        ids = super().ids(split)
        for image_id in () if known else ids:
            self.pictures.check(image_id, self.list_path(split))
        return ids

    def image_path(self, image_id: str) -> Path:
        """``<images>/<id>`` with whatever ending is there."""
        return self.pictures.only(image_id)

    def picture_notes(self, image_id: str) -> tuple[str, ...]:
        """What of a picture is not read, and what a word in the description would change."""
        notes = super().picture_notes(image_id)
        ignored = "an EXIF orientation, which is ignored"
        return tuple(f'{n} (exif = "apply" in {FILE} turns them)' if n == ignored else n for n in notes)

    @property
    def decoding(self) -> str:
        """Whether pictures are turned, and what a table says of values or colours."""
        turned = "" if self.exif == "ignore" else f"exif {self.exif}"
        return turned + (f" {sorted(map(str, self.encoding.labels.items()))}" if self.described else "")

    @property
    def reading(self) -> str:
        """What pictures and values of masks mean."""
        return f"{self.decoding} {self.encoding.labels} {self.encoding.photograph}"

    def mask_path(self, image_id: str, split: str) -> Path | None:
        """``<masks>/<id>.png``."""
        self.check_split(split)
        return in_any_case(self.root / self.spec.masks / f"{image_id}.png")

    def _illegal_remedy(self, illegal: object) -> str:
        return f"add classes or void values to {self.file}, or mend the masks"

    def __reduce__(self) -> tuple[Any, ...]:  # its class is made while running: send its description
        return _reopen, (self.info.name, self.file)


def _reopen(name: str, file: Path) -> OwnDataset:
    return describe(name, file)(file.parent)


def describe(name: str, path: Path) -> type[OwnDataset]:
    """The data set class that a description stands for, registered under ``name``.

    Args:
        name: what it is called in recipes and on the command line.
        path: the TOML file, or the folder that holds it as ``dataset.toml``.

    Raises:
        UserError: missing, malformed, or not consistent.
    """
    check_part(name, "the data set's name", f"--data-root {name}={path}")
    file = (path / FILE if path.is_dir() else path).absolute()
    try:
        found = file.stat()
    except FileNotFoundError:
        found = None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=file, remedy="check the path") from None
    if found is None:
        raise UserError(
            f"{name!r} is no data set that is known, and there is no {FILE} to describe it",
            where=file,
            remedy=f"write {FILE} (see docs/data.md); " + nearest(name, DATASETS.names()),
        )
    said = read_toml(file)
    spec = load(OwnSpec, said, file)
    spec = replace(spec, title=one_line(spec.title), classes=tuple(map(one_line, spec.classes)))
    _check(spec, file)
    table = _encoding(spec if "void" in said else replace(spec, void=_usual_void(spec)), file)
    named = {split: file.parent / text for split, text in spec.splits.items()}
    other = {file.parent / spec.labelmap, *(file.parent / name for name in _NO_LISTS)}
    lists = named or {p.stem: p for p in sorted(file.parent.glob("*.txt")) if p not in other}
    if not lists:
        raise UserError(
            "there is no list of images",
            where=file.parent,
            remedy="write train.txt and val.txt beside it, one id (file name without ending) for each line",
        )
    for split in lists:
        check_part(split, "the split's name", file)
    made: Any = type(
        name,
        (OwnDataset,),
        {
            "spec": spec,
            "file": file,
            "lists": lists,
            "encoding": table,
            "legal": table.words(),
            "exif": spec.exif,
        },
    )
    pictures = PictureFiles(file.parent / spec.images)
    sizes = {}
    for split, place in lists.items():
        if not place.is_file():
            raise UserError(f"no list of split {split!r}", where=place, remedy=f"write it, or mend {file}")
        sizes[split] = len(read_list(place, lambda i: bool(pictures.of(i)), folders=True))
    made.info = DatasetInfo(
        name=name,
        title=spec.title or name,
        classes=spec.classes,
        palette=spec.palette or _colours(table) or bit_palette(len(spec.classes)),
        splits=sizes,
        background=None if spec.background is None else spec.classes.index(spec.background),
        folder=str(file.parent.name),
        notes={"origin": "described by its owner"},
    )
    DATASETS.register(name, made)
    return made


def _check(spec: OwnSpec, file: Path) -> None:
    count = len(spec.classes)
    wrong = ""
    if count != len(set(spec.classes)) or not 2 <= count <= UNLABELLED:
        wrong = f"classes: {count} names; 2 to {UNLABELLED} different ones are possible"
    elif spec.background is not None and spec.background not in spec.classes:
        wrong = f"background: {spec.background!r} is none of the classes"
    elif not 0 <= spec.first_value <= 256 - count and not (spec.values or spec.labelmap):
        wrong = "first_value: masks hold values 0 to 255"
    elif spec.values and spec.labelmap:
        wrong = "values and labelmap: one of them says what values mean"
    elif spec.first_value and (spec.values or spec.labelmap):
        wrong = "first_value: values and labelmap say it of every class"
    elif spec.palette and len(spec.palette) != count:
        wrong = f"palette: {len(spec.palette)} colours for {count} classes"
    if wrong:
        raise UserError(wrong, where=file, remedy="see docs/data.md")


def _usual_void(spec: OwnSpec) -> tuple[int, ...]:
    """255, unless codes are colours or it is a class or unlabelled."""
    codes = [*spec.values.values(), spec.unlabelled]
    return () if spec.labelmap or 255 in codes or any(isinstance(c, tuple) for c in codes) else (255,)


def _encoding(spec: OwnSpec, file: Path) -> Encoding:
    """The table of values or colours that a description stands for."""
    values: dict[str, Any] = dict(spec.values)
    void, unlabelled = list(spec.void), spec.unlabelled
    if spec.labelmap:
        colours = read_labelmap(file.parent / spec.labelmap)
        values = {name: colour for name, colour in colours.items() if name in spec.classes}
        told = {*void, unlabelled}
        others = {
            name: colour for name, colour in colours.items() if name not in values and colour not in told
        }
        if unlabelled is None and "background" in others:  # CVAT's word for what nobody annotated
            unlabelled = others.pop("background")
        if others:
            name, colour = next(iter(others.items()))
            raise UserError(
                f"the label map has {name!r}, which is none of the classes",
                where=file,
                remedy=f"add it to classes, or its colour to void: void = [{list(colour)}]",
            )
    if not values:
        values = {name: spec.first_value + k for k, name in enumerate(spec.classes)}
    return encoding(spec.classes, values, void, unlabelled, file)


def _colours(table: Encoding) -> tuple[tuple[int, int, int], ...]:
    """Colours of the classes in the user's files, which are those to draw them in."""
    known = {label: code for code, label in table.labels.items() if isinstance(code, tuple)}
    return tuple(known[k] for k in range(len(table.classes))) if known else ()


#: Folders that this process was given, by the name of their data set; under no name, parents of many.
given_roots: dict[str, Path] = {}


def register(data_roots: Iterable[str]) -> None:
    """Make the user's own data sets among ``NAME=PATH`` known, once per process.

    Names of other data sets, and paths without a name, are left to them; all are remembered as
    :data:`given_roots`, for commands that are printed.

    Raises:
        UserError: see :func:`describe`.
    """
    for text in data_roots:
        name, path = name_and_path(text)
        place = expanded(path)
        given_roots[name] = place.absolute()
        if not name:
            continue
        if not place.exists():
            continue
        if name not in DATASETS or (
            is_own(name) and DATASETS.get(name).file != (place / FILE if place.is_dir() else place).absolute()
        ):
            describe(name, place)


def name_and_path(root: str) -> tuple[str, str]:
    """The parts of ``[NAME=]DIR``; the name is empty where there is none, as in a path with ``=`` in it."""
    name, equals, path = root.partition("=")
    return (name, path) if name and equals and not Path(root).exists() else ("", root)


def absolute_root(root: str) -> str:
    """``[NAME=]DIR`` for processes that stand in another folder."""
    name, path = name_and_path(root)
    return f"{name}=" * bool(name) + str(expanded(path).absolute())


def is_own(name: str) -> bool:
    """Whether a registered data set is one that its user described."""
    known = DATASETS.get(name)
    return isinstance(known, type) and issubclass(known, OwnDataset)
