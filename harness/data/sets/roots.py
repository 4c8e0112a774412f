"""Where data sets are: what ``--data-root`` names."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from harness.basics.errors import UserError, nearest
from harness.basics.files import cache_folder, expanded
from harness.basics.registry import DATASETS
from harness.data.base import Dataset
from harness.data.sets import own
from harness.data.sets.layout import is_archive


@cache
def open_dataset(name: str, data_roots: tuple[str, ...] = (), cache_root: Path | None = None) -> Dataset:
    """The data set under the roots given, generated first where it is a generated one.

    Args:
        name: registry name.
        data_roots: ``PATH`` (a parent of official folders) or ``NAME=PATH``.
        cache_root: where generated data sets live; the user's cache by default.

    Raises:
        UserError: no root was given, or it does not exist.
    """
    cls = DATASETS.get(name)
    common: list[Path] = []
    named: list[Path] = []
    for text in data_roots:
        known, path = own.name_and_path(text)
        if known and known not in DATASETS:
            raise UserError(
                f"{known!r} is no data set",
                where=f"--data-root {text}",
                remedy=nearest(known, DATASETS.names()),
            )
        root = expanded(path)
        described = known and own.is_own(known) and root.is_file()
        if not root.is_dir() and not described:
            packed = root.is_file() and is_archive(root)
            raise UserError(
                f"the data root {root} is no folder",
                where="--data-root",
                remedy="unpack it and name the folder" if packed else "check the path",
            )
        if not known:
            common.append(root)
        elif known == name:
            named.append(root)
    roots = named or common
    return cls.locate(roots[0] if roots else None, cache_root or cache_folder())
