"""A cache that shows what the real one holds and takes every write itself, for looks that leave no trace."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def cache_overlay(cache: Path) -> Iterator[Path]:
    """A temporary folder in place of a cache, gone in the end.

    Its folders are its own and its files links to those of the cache. All files of a cache are replaced
    whole and never written into, so that whatever is generated, prepared or remembered stays here.

    Args:
        cache: the user's cache, which need not exist.
    """
    with tempfile.TemporaryDirectory(prefix="wsss-look-", ignore_cleanup_errors=True) as place:
        for folder, inner, files in os.walk(cache):
            if Path(folder) == cache:  # mirrors of stores are no cache of data, and may be large
                inner[:] = [name for name in inner if name != "stores"]
            own = Path(place) / Path(folder).relative_to(cache)
            own.mkdir(exist_ok=True)
            for name in files:
                (own / name).symlink_to(Path(folder, name).absolute())
        yield Path(place)
