"""Lists of image ids and image tags: reading, writing, and those that travel with the project."""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from harness.basics.arrays import read_arrays
from harness.basics.errors import UserError
from harness.basics.files import write_with
from harness.basics.reading import MOST_DOCUMENT, read_bytes
from harness.basics.text import one_line
from harness.data.naming import stays_inside

#: Bytes of an id: names of files have 255 at most, and predictions append to it.
_LONGEST_ID = 240
PACKAGED = Path(__file__).parent / "lists"


@cache
def packaged_list(dataset: str, split: str) -> tuple[str, ...] | None:
    """The official list that travels with the project, None where none does."""
    path = PACKAGED / dataset / f"{split}.txt.gz"
    return read_list(path) if path.exists() else None


def read_list(
    path: Path, is_id: Callable[[str], bool] = lambda _: False, *, folders: bool = False
) -> tuple[str, ...]:
    """Image ids of a list, one for each line; blank lines, trailing blanks and Windows line ends pass.

    Args:
        path: a text file, or a gzip-compressed one (``.gz``).
        is_id: asked for lines with blanks inside: whether the whole line is one id (a picture of that
            name exists), or a line of several columns.
        folders: whether ids may name folders, ``a/b``; none may lead out of its folder.

    Raises:
        UserError: further columns, an id with a path, an id twice, not a single id, not text, or no file
            of a list's size.
    """
    data = read_bytes(path, MOST_DOCUMENT)
    try:
        text = (_inflated(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError("the list is not UTF-8 text", where=path, remedy="save it as plain text") from None
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(
            f"the list cannot be read: {error}", where=path, remedy="check its permissions, or copy it again"
        ) from None
    words = []
    for number, line in enumerate(text.splitlines(), 1):
        word, where = line.strip(), f"{path}, line {number}"
        if not word:
            continue
        columns = len(word.split())
        if columns > 1 and not is_id(word):
            raise UserError(
                f"the list has {columns} columns, one id for each line is wanted",
                where=where,
                remedy="keep the ids only, without paths, labels or second columns",
            )
        if ("/" in word or "\\" in word) and not (folders and stays_inside(word)):
            raise UserError(
                f"{word[:60]!r} is a path, an image id is wanted",
                where=where,
                remedy="write the path below the folder of pictures, as a/b"
                if folders
                else "drop folders and file endings",
            )
        if word != one_line(word) and not is_id(word):
            raise UserError(
                f"the id {word[:60]!r} holds characters that cannot be seen",
                where=where,
                remedy="save the list as plain text, and rename the picture",
            )
        words.append((number, word))
    return checked_ids(words, path)


def checked_ids(words: Iterable[tuple[int, str]], path: Path) -> tuple[str, ...]:
    """Ids with the lines that they stand on, once each has shown to be one.

    Raises:
        UserError: none at all, one twice, or one that is too long.
    """
    seen: dict[str, int] = {}
    for number, word in words:
        where = f"{path}, line {number}"
        longest = max(len(part.encode()) for part in word.split("/"))
        if longest > _LONGEST_ID:
            raise UserError(f"an id of {longest} bytes is no file name", where=where, remedy="shorten it")
        if word in seen:
            raise UserError(
                f"the id {word!r} stands on line {seen[word]} already", where=where, remedy="list it once"
            )
        seen[word] = number
    if not seen:
        raise UserError("the list holds no ids", where=path, remedy="write one image id for each line")
    return tuple(seen)


def _inflated(data: bytes) -> bytes:
    """The content of gzip-compressed bytes, within bounds."""
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
        found = stream.read(MOST_DOCUMENT + 1)
    if len(found) > MOST_DOCUMENT:
        raise ValueError(f"it inflates to more than {MOST_DOCUMENT:,} bytes")
    return found


def write_tags(path: Path, image_ids: Sequence[str], tags: np.ndarray) -> None:
    """Write ``(N, K)`` multi-hot image tags: an npz of ids, bits packed along K, and K."""
    names = np.array([i.encode() for i in image_ids], dtype=np.bytes_)
    bits = np.packbits(np.asarray(tags, dtype=bool), axis=1)
    write_with(path, lambda f: np.savez_compressed(f, ids=names, bits=bits, classes=np.int64(tags.shape[1])))


def read_tags(path: Path) -> dict[str, np.ndarray]:
    """Image id to ``(K,)`` tags, from a file of :func:`write_tags` (uint8), or of arrays ``ids``
    and ``(N, K)`` ``tags`` as anybody saves them.

    Raises:
        UserError: the file is missing, damaged, or not such a file.
    """
    if not os.path.lexists(path):
        raise UserError(
            "no official image tags",
            where=path,
            remedy="choose another supervision, or provide them (own data: tags.csv, see docs/data.md)",
        )
    try:
        data = read_arrays(path)
        if "tags" in data:  # as anybody saves them
            tags = _finite_tags(data["tags"])
        else:
            bits, count = data["bits"], int(data["classes"])
            if not 0 < count <= 8 * bits.shape[1]:
                raise ValueError(f"{count} classes")
            tags = np.unpackbits(bits, axis=1, count=count)
        names = [i if isinstance(i, str) else i.decode() for i in data["ids"].tolist()]
        if len(set(names)) < len(names):
            raise ValueError("a picture has two rows")
        return dict(zip(names, tags, strict=True))
    except (UserError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise UserError(f"not a file of image tags: {error}", where=path, remedy="write it again") from None


def _finite_tags(tags: np.ndarray) -> np.ndarray:
    """``(N, K)`` numbers; raises ValueError for other arrays."""
    if tags.ndim != 2 or tags.dtype.kind not in "buif" or not np.isfinite(tags).all():
        raise ValueError(
            f"tags are {tags.ndim}-dimensional {tags.dtype}, finite numbers (pictures, classes) are wanted"
        )
    return tags.astype(np.float64)
