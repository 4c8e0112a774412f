"""How annotators' files name pictures, and how a picture's id finds what they say of it.

Tools write ``a.jpg``, ``images/a.jpg`` or ``C:\\photos\\a.JPG`` where a list of ids says ``a``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Generic, TypeVar

from harness.basics.errors import UserError

_T = TypeVar("_T")

#: Endings of pictures, in small letters; files may write them in any case.
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


def bare(name: str) -> str:
    """A picture's name as an id is written: forward slashes, no leading ``./``, no ending of a picture."""
    path = PurePosixPath(name.strip().replace("\\", "/"))
    return str(path.with_suffix("") if path.suffix.lower() in PICTURES else path)


def stays_inside(image_id: str) -> bool:
    """Whether an id with folders, ``a/b``, leads to a file below any folder that it is put in."""
    parts = image_id.split("/")
    return not any(part.strip() in ("", ".", "..") or "\\" in part or ":" in part for part in parts)


class ByPicture(Generic[_T]):
    """What a file says of pictures, found by id.

    Args:
        said: by the file's names of pictures.
        where: the file, for errors.
    """

    def __init__(self, said: Mapping[str, _T], where: object) -> None:
        self._said = {bare(name): value for name, value in said.items()}
        self._where = where
        self._tails: dict[str, list[str]] = defaultdict(list)
        for name in self._said:
            parts = name.split("/")
            for start in range(1, len(parts)):
                self._tails["/".join(parts[start:])].append(name)

    def get(self, image_id: str) -> _T | None:
        """What is said of a picture, None where nothing is.

        Raises:
            UserError: the file speaks of two pictures of this name in different folders.
        """
        if image_id in self._said:
            return self._said[image_id]
        named = self._tails.get(image_id, [])
        if len(named) > 1:
            raise UserError(
                f"the file speaks of {len(named)} pictures {image_id!r}: {named[0]}, {named[1]}",
                where=self._where,
                remedy="name pictures in it as the lists do",
            )
        return self._said[named[0]] if named else None
