"""What data sets of files share: where the official folder is, lists, decoding, label values, tags."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import ClassVar

import numpy as np

from harness.basics.errors import UserError
from harness.data.base import Dataset, LabelSpec, Supervision, class_numbers
from harness.data.images import read_index, read_rgb
from harness.data.labels.annotations import TOOLS, check_format, label_files, read_label
from harness.data.labels.painting import tags_from_mask
from harness.data.labels.shapes import Drawn, painted
from harness.data.labels.tags import tags_by_picture
from harness.data.labels.tool_files import read_shapes
from harness.data.lists import PACKAGED, packaged_list, read_list
from harness.data.naming import ByPicture

_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".7z", ".rar")


class FileDataset(Dataset):
    """A data set whose masks are index PNGs and whose splits are lists of ids.

    A subclass says where things are (:meth:`holds`, :attr:`list_folders`, :meth:`image_path`,
    :meth:`mask_path`) and, where masks are not stored as labels, what their values mean
    (:meth:`values`). Lists and tags in the data set's own folder win over those that ship with the
    project. Nothing is written.

    Args:
        root: the official folder, or one of its parents as far as ``info.folder`` reaches.

    Raises:
        UserError: no such folder below ``root``.
    """

    #: Other names of the official folder in use.
    other_folders: ClassVar[tuple[str, ...]] = ()
    #: What ``holds`` looks for, in words.
    marker: ClassVar[str] = ""
    #: Legal values of masks on disk, in words.
    legal: ClassVar[str] = ""
    #: Names that annotators' files use besides the class names.
    aliases: ClassVar[Mapping[str, str]] = {}
    #: Share of the points of annotators' files that may lie outside a picture.
    stray: ClassVar[float] = 0.5
    #: Whether ids may name folders below that of the pictures: ``a/b``.
    folders: ClassVar[bool] = False
    #: Folders of ``<split>.txt`` in a copy; where there is none, one would stand in the last.
    list_folders: ClassVar[tuple[str, ...]] = ("lists",)
    #: The data set whose packaged lists and tags these pictures have, where it is another one.
    lists_of: ClassVar[str] = ""
    #: Image tags are the classes that masks show, where no file of them is there: nobody else gave any.
    tags_of_masks: ClassVar[bool] = False
    canonical_masks = True

    def __init__(self, root: Path | str) -> None:
        super().__init__(self._find(Path(root)))
        self._ids: dict[str, tuple[str, ...]] = {}
        self._tags: ByPicture[np.ndarray] | None = None

    # --- what a subclass says ------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def holds(cls, folder: Path) -> bool:
        """Whether ``folder`` looks like the official one."""

    def list_path(self, split: str) -> Path:
        """Where a list of this copy's own stands, or would stand."""
        *_, usual = places = [self.root / folder / f"{split}.txt" for folder in self.list_folders]
        return next((place for place in places if place.exists()), usual)

    @property
    def _packaged(self) -> str:
        return self.lists_of or self.info.name

    @property
    def tags_path(self) -> Path:
        """Where image tags of this copy's own would stand."""
        return self.list_path("train").with_name("tags.npz")

    @classmethod
    def values(cls) -> np.ndarray:
        """``(256,)`` int16: label of every value in a mask file, 255 void, -1 illegal."""
        return class_numbers(cls.info.num_classes, void=True)

    # --- where it is ---------------------------------------------------------------------------------

    @classmethod
    def _find(cls, root: Path) -> Path:
        info = cls.info
        tried: dict[Path, None] = {}
        for name in (info.folder, *cls.other_folders):
            parts = Path(name).parts
            tried |= dict.fromkeys(root.joinpath(*parts[skip:]) for skip in range(len(parts) + 1))
        found = next((folder for folder in tried if cls.holds(folder)), None)
        if found is not None:
            return found
        packed = next((p for folder in tried for p in _archives(folder)), None)
        if packed is not None:
            raise UserError(
                f"{info.title} is not unpacked: there is {packed.name} but no {cls.marker}",
                where=packed,
                remedy=f"unpack it, so that {info.folder} holds {cls.marker}",
            )
        raise UserError(
            f"no {info.title} below the data root: no {cls.marker} in " + ", ".join(str(f) for f in tried),
            where=root,
            remedy=f"pass the folder that holds {info.folder}"
            + (f" (obtain it from {info.homepage})" if info.homepage else ""),
        )

    # --- lists ---------------------------------------------------------------------------------------

    def ids(self, split: str) -> Sequence[str]:
        """Image ids of a split, in list order.

        Raises:
            UserError: unknown split, no list, a list that is not one id for each line, or one that
                holds pictures of another split.
        """
        self.check_split(split)
        if split not in self._ids:
            own, packaged = self.list_path(split), packaged_list(self._packaged, split)
            if own.exists():
                ids = self._own_list(own)
                if packaged is not None:
                    self._refuse_other_split(split, ids, packaged)
                self._ids[split] = ids
            else:
                self._ids[split] = packaged if packaged is not None else self._missing_list(split)
        return self._ids[split]

    def _own_list(self, path: Path) -> tuple[str, ...]:
        """Ids of a list in the data set's own folder."""
        return read_list(path, lambda i: self.image_path(i).exists(), folders=self.folders)

    def unofficial(self, split: str) -> list[str]:
        """Ids of this copy's list that the official one does not have."""
        official = packaged_list(self._packaged, split)
        known = set(official or ())
        return [] if official is None else [i for i in self.ids(split) if i not in known]

    def _refuse_other_split(self, split: str, ids: Sequence[str], official: Sequence[str]) -> None:
        """A list under the wrong name trains on what it is scored on."""
        strange = set(ids) - set(official)
        for other in self.info.splits if strange else ():
            taken = strange & set(packaged_list(self._packaged, other) or ())
            if taken:
                raise UserError(
                    f"{len(taken)} of the {len(ids)} ids in the list of {split!r} belong to {other!r}, "
                    f"the first is {next(i for i in ids if i in taken)!r}",
                    where=self.list_path(split),
                    remedy=f"write the list of {split!r} into it, or delete it to use the official one",
                )

    def _missing_list(self, split: str) -> tuple[str, ...]:
        raise UserError(
            f"{self.info.name} has no list of split {split!r}",
            where=self.list_path(split),
            remedy="write one image id for each line into this file",
        )

    # --- files ---------------------------------------------------------------------------------------

    def read_image(self, image_id: str) -> np.ndarray:
        """``(H, W, 3)`` uint8 RGB, decoded whole. EXIF orientation is ignored, as in the masks, unless the
        owner of the data set asks for it."""
        return read_rgb(self.image_path(image_id), self.exif)

    def read_mask(self, image_id: str, split: str) -> np.ndarray:
        """``(H, W)`` uint8: ``0..K-1`` class, 255 void.

        Raises:
            UserError: missing, corrupt or not an index map, an illegal value, or a split without masks.
        """
        path = self.mask_path(image_id, split)
        if path is None:
            raise UserError(
                f"split {split!r} of {self.info.name} has no public masks",
                remedy="export predictions for the official server, or score another split",
            )
        mask = read_index(path, self.info.palette)
        table, legal = self.table_of(path)
        illegal = np.flatnonzero((np.bincount(mask.ravel(), minlength=256) > 0) & (table < 0)).tolist()
        if illegal:
            raise UserError(
                f"the mask holds {illegal}; legal are {legal}",
                where=path,
                remedy=self._illegal_remedy(illegal),
            )
        return mask if self.canonical_masks else table.astype(np.uint8)[mask]

    def table_of(self, path: Path) -> tuple[np.ndarray, str]:
        """Labels of the values in a mask file as by :meth:`values`, and the legal values in words."""
        return _table(type(self)), self.legal or f"0..{self.info.num_classes - 1} and 255 (void)"

    def numbers(self) -> np.ndarray:
        """``(256,)`` int16: label of every number in the data set's own files."""
        return _table(type(self))

    def _illegal_remedy(self, illegal: Sequence[int]) -> str:
        return f"take the mask from the official archive of {self.info.title}"

    # --- weak labels ---------------------------------------------------------------------------------

    def read_official_label(self, image_id: str, supervision: Supervision, spec: LabelSpec) -> np.ndarray:
        """``(H, W)`` uint8: ``0..K-1`` annotated class, 254 elsewhere, from annotators' files.

        Raises:
            UserError: see :func:`harness.data.labels.annotations.read_label`, and for files of
                annotation tools :func:`harness.data.labels.tool_files.read_shapes`.
        """
        if spec.format in TOOLS:
            shapes = self._shapes(image_id, supervision, spec)
            size, place = self.picture_size(image_id), self.label_files(image_id, spec)[0]
            return painted(shapes, supervision, size, spec, self.info.background, place)
        return read_label(
            self.root,
            image_id,
            supervision,
            spec,
            files=partial(self.label_files, image_id, spec),
            size=self.picture_size(image_id),
            names=self.annotator_names(),
            stray=self.stray,
            numbers=self.numbers() if spec.encoding == "files" else None,
        )

    def _shapes(self, image_id: str, supervision: Supervision, spec: LabelSpec) -> Drawn:
        """What an annotation tool's file says of a picture."""
        check_format(supervision, spec)
        place, size = self.label_files(image_id, spec)[0], self.picture_size(image_id)
        return read_shapes(spec.format, place, image_id, supervision, size, self.annotator_names())

    def label_tags(
        self, image_id: str, supervision: Supervision, spec: LabelSpec, label: np.ndarray
    ) -> np.ndarray:
        """``(K,)`` uint8 multi-hot: classes labelled, and those that have a box, whatever is inside."""
        tags = super().label_tags(image_id, supervision, spec, label)
        if supervision == "box" and spec.format in TOOLS:
            shapes = self._shapes(image_id, supervision, spec)
            tags[[box[0] for box in shapes.boxes] + [area.label for area in shapes.areas]] = 1
        return tags

    def label_files(self, image_id: str, spec: LabelSpec) -> tuple[Path, ...]:
        """Files that :meth:`read_official_label` opens."""
        return label_files(self.root, image_id, spec)

    def annotator_names(self) -> dict[str, int]:
        """Class names and their aliases to labels."""
        labels = {name: label for label, name in enumerate(self.info.classes)}
        return labels | {alias: labels[name] for alias, name in self.aliases.items()}

    # --- tags ----------------------------------------------------------------------------------------

    def tags(self, image_ids: Sequence[str]) -> np.ndarray:
        """``(N, K)`` uint8 multi-hot official image tags; the background column is 0.

        Raises:
            UserError: no tags ship for this data set, an image has none (VOC test), or the file has other
                columns than the data set has classes.
        """
        if self.tags_of_masks and not self.tags_path.exists():
            split = next(iter(self.info.splits))  # wherever a picture is, its mask has one place
            rows = [mask_tags(self, split, image_id) for image_id in image_ids]
            return np.stack(rows) if rows else np.zeros((0, self.info.num_classes), np.uint8)
        if self._tags is None:
            own = self.tags_path
            packaged = PACKAGED / self._packaged / "tags.npz"
            self._tags = tags_by_picture(
                packaged if packaged.exists() and not own.exists() else own, self.info
            )
        found = [(i, self._tags.get(i)) for i in image_ids]
        missing = [i for i, row in found if row is None]
        if missing:
            raise UserError(
                f"no official image tags of {missing[0]!r}"
                + (f" and {len(missing) - 1} more pictures" if len(missing) > 1 else ""),
                where=self.root,
                remedy=f"train on a split whose tags are public, or write {self.tags_path}",
            )
        rows = [row for _, row in found if row is not None]
        return np.stack(rows) if rows else np.zeros((0, self.info.num_classes), np.uint8)


def mask_tags(dataset: Dataset, split: str, image_id: str) -> np.ndarray:
    """``(K,)`` uint8 multi-hot: classes that a picture's dense mask shows, without background."""
    tags = tags_from_mask(dataset.read_mask(image_id, split), dataset.info.num_classes)
    if dataset.info.background is not None:
        tags[dataset.info.background] = 0
    return tags


def bit_palette(count: int) -> tuple[tuple[int, int, int], ...]:
    """``count`` colours by VOC's bit rule: bits 0, 1, 2 of the label, and again of label >> 3, and so
    on, become the bits of red, green and blue from the highest down (VOCdevkit VOClabelcolormap.m)."""
    labels = np.arange(count)[:, None, None]
    steps = np.arange(8)[None, :, None]
    bits = (labels >> (3 * steps + np.arange(3))) & 1
    return tuple(tuple(int(v) for v in colour) for colour in (bits << (7 - steps)).sum(1))  # type: ignore[misc]


@cache
def _table(cls: type[FileDataset]) -> np.ndarray:
    """What mask values mean, built once."""
    table = cls.values()
    table.flags.writeable = False
    return table


def is_archive(path: Path) -> bool:
    """Whether a file is one to be unpacked, by its name."""
    return path.suffix.lower() in _ARCHIVES and path.is_file()


def _archives(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return [folder] if is_archive(folder) else []
    return sorted(path for path in folder.iterdir() if is_archive(path))
