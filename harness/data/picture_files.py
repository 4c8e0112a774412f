"""Which file is the picture of an id: any format, endings in any case, folders within the folder."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from harness.basics.errors import UserError
from harness.data.naming import PICTURES


class PictureFiles:
    """The pictures in a folder and its folders, by id: the path below the folder without its ending.

    Hidden files and folders are left out (macOS writes ``._a.jpg`` beside ``a.jpg``). The folder is read
    once, when it is first asked for.

    Args:
        folder: where pictures are.
        masks: where ``<id>.png`` are masks; beside a picture of another format they are no pictures.
    """

    def __init__(self, folder: Path, masks: Path | None = None) -> None:
        self.folder = folder
        self._masks_here = masks is not None and os.path.realpath(masks) == os.path.realpath(folder)

    @cached_property
    def _found(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = defaultdict(list)
        for name in sorted(_below(self.folder)):
            found[name.rpartition(".")[0]].append(name)
        return found

    def ids(self) -> list[str]:
        """Ids of all pictures, sorted."""
        return sorted(self._found)

    def of(self, image_id: str) -> list[Path]:
        """Files of an id: none, one, or several that cannot all be its picture."""
        names = self._found.get(image_id, [])
        if len(names) > 1 and self._masks_here:
            names = [name for name in names if not name.lower().endswith(".png")] or names
        paths = [self.folder / name for name in names]
        if not paths:  # written since the folder was read
            later = (in_any_case(self.folder / f"{image_id}{ending}") for ending in PICTURES)
            paths = [path for path in later if path.exists()][:1]
        return paths

    def only(self, image_id: str) -> Path:
        """The file of an id; where there is none, the place where a JPEG would stand."""
        return next(iter(self.of(image_id)), self.folder / f"{image_id}.jpg")

    def check(self, image_id: str, where: object) -> None:
        """Raises UserError where an id has several files, or is written with its ending."""
        files = self.of(image_id)
        if len(files) > 1:
            raise UserError(
                f"two files are the picture of {image_id!r}: {files[0].name} and {files[1].name}",
                where=self.folder,
                remedy="keep one, or rename the other and give it an id of its own",
            )
        bare = image_id.rpartition(".")[0]
        if not files and image_id.lower().endswith(PICTURES) and self.of(bare):
            raise UserError(
                f"{image_id!r} is the name of a file, an image id is wanted",
                where=where,
                remedy=f"write ids without endings: {bare}",
            )


def _below(folder: Path) -> Iterator[str]:
    """Paths of pictures below a folder, with forward slashes; links to folders are followed, each once."""
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        if real in seen:
            continue
        seen.add(real)
        inside = Path(os.path.relpath(place, folder)).as_posix()
        for name in files:
            if not name.startswith(".") and name.lower().endswith(PICTURES):
                yield name if inside == "." else f"{inside}/{name}"


def in_any_case(path: Path) -> Path:
    """A file, or the one that stands there with its ending in capitals."""
    if path.exists():
        return path
    other = (path.with_name(path.name.removesuffix(path.suffix) + e) for e in _cases(path.suffix))
    return next((each for each in other if each.exists()), path)


def _cases(ending: str) -> tuple[str, ...]:
    return ending.upper(), ending.lower(), ending.capitalize(), f".{ending[1:].capitalize()}"
