"""Files of ``torch.save``: nothing in them is executed, and a flipped bit is found.

``torch.save`` writes a zip file with a checksum of every member; ``torch.load`` does not look at it.
"""

from __future__ import annotations

import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from harness.basics.reading import check_regular, damaged

#: Bytes that are read at once for the checksum.
_BLOCK = 1 << 20
#: A file of ``torch.save`` is not compressed: its members are not larger than itself, up to padding.
_ROOM = 1 << 20


def read_torch(path: Path) -> Any:
    """What ``torch.save`` wrote, on the CPU.

    Returns:
        Tensors and plain values only (``weights_only``).

    Raises:
        Damaged: no regular file, not such a file, asks for code, or its checksums do not fit.
    """
    check_regular(path)
    try:
        _check_members(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling, zip and storage errors have no common base
        lines = str(error).splitlines()
        why = lines[0][:200] if lines else type(error).__name__
        if isinstance(
            error, pickle.UnpicklingError | LookupError
        ):  # torch advises to execute what is in the file
            told = next((line for line in lines if _REFUSED in line), "").partition(_REFUSED)[2]
            why = "it holds something else than weights" + (
                f" ({told.partition(' was not')[0].strip()[:160]})" if told else ""
            )
        empty = path.stat().st_size == 0
        raise damaged(path, "it is empty" if empty else f"it cannot be read: {why}") from error


#: What torch says before it names what it has refused.
_REFUSED = "WeightsUnpickler error:"


def _check_members(path: Path) -> None:
    """Compare the checksum of every member; files of older forms than zip have none."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > path.stat().st_size + _ROOM:
            raise ValueError("it inflates beyond its size")
        for member in members:
            try:
                with archive.open(member) as stream:  # to its end, where the checksum is compared
                    while stream.read(_BLOCK):
                        pass
            except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
                raise ValueError(f"a part is damaged ({error})") from error
