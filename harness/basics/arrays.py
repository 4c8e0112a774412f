"""Arrays of npz files, read within bounds and several times as fast as by ``numpy.load``.

``numpy.load`` opens a stream for every array and parses its head as Python; the heads of equal arrays are
equal. Nothing is unpickled.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from harness.basics.reading import damaged, read_bytes

#: Largest npz file, and largest array in one: counts of 40,000 pictures and 200 classes take 64 MB each.
MOST_FILE = 512 << 20
MOST_ARRAY = 512 << 20
#: Most arrays of a file.
_MOST_MEMBERS = 64
_AGAIN = "evaluate again"


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an npz file, read-only.

    Raises:
        Damaged: the file is missing, damaged, or inflates to more than :data:`MOST_ARRAY` bytes an array.
    """
    data = read_bytes(path, MOST_FILE)
    found: dict[str, np.ndarray] = {}
    total = 0
    try:
        for name, packed, checksum, size, inflated, local in _members(data):
            total += inflated
            if inflated > MOST_ARRAY or total > 2 * MOST_ARRAY or len(found) >= _MOST_MEMBERS:
                raise ValueError(f"it inflates to {total:,} bytes and more")
            start = local + 30 + sum(_LENGTHS.unpack_from(data, local + 26))  # APPNOTE 4.3.7
            inflate = _known_member if size < 2**16 else _member
            found[name.removesuffix(".npy")] = inflate(data[start : start + size], packed, checksum, inflated)
    except (zipfile.BadZipFile, zlib.error, struct.error, ValueError, IndexError, EOFError) as error:
        why = "it is empty" if not data else f"damaged file: {error}"
        raise damaged(path, why, _AGAIN) from None
    except (SyntaxError, TypeError, KeyError, MemoryError, RecursionError, NotImplementedError) as error:
        raise damaged(path, f"damaged file: {type(error).__name__}", _AGAIN) from None
    return found


#: Zip files (APPNOTE 4.3.7, 4.3.12, 4.3.16): lengths of name and extra field in the head before a member,
#: an entry of the directory of members, and the end of that directory.
_LENGTHS = struct.Struct("<HH")
_ENTRY = struct.Struct("<4s6xH4xIII3H8xI")
_END = struct.Struct("<4s4xHHII2x")


def _members(data: bytes) -> Iterator[tuple[str, int, int, int, int, int]]:
    """Name, method, checksum, packed and inflated size and place of each member; ``zipfile`` takes several
    times as long."""
    end = len(data) - _END.size
    if end >= 0 and data.startswith(b"PK\x05\x06", end):  # no comment, as numpy writes them
        _, _, number, _, place = _END.unpack_from(data, end)
        for _ in range(number):
            mark, packed, checksum, size, inflated, *lengths, local = _ENTRY.unpack_from(data, place)
            if mark != b"PK\x01\x02" or 2**32 - 1 in (size, inflated, local):
                raise ValueError("directory of members")
            place += _ENTRY.size
            yield data[place : place + lengths[0]].decode(), packed, checksum, size, inflated, local
            place += sum(lengths)
        return
    for member in zipfile.ZipFile(io.BytesIO(data)).infolist():
        packed, checksum, sizes = member.compress_type, member.CRC, (member.compress_size, member.file_size)
        yield member.filename, packed, checksum, *sizes, member.header_offset


def _member(raw: bytes, packed: int, checksum: int, inflated: int) -> np.ndarray:
    """The array of a member of an npz file, never inflated beyond what the directory says."""
    data = raw
    if packed:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        data = inflater.decompress(raw, inflated + 1)
        if len(data) == inflated and not inflater.eof:
            data += inflater.flush(1)
    if len(data) != inflated or zlib.crc32(data) != checksum:
        raise ValueError("checksum")
    return _array(data)


#: Records of one split have the same ids and the same truth: these are inflated once.
_known_member = lru_cache(maxsize=64)(_member)


@lru_cache(maxsize=256)
def _header(text: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and type of an array, from the head of its npy file."""
    stream = io.BytesIO(text)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(stream)


def _array(data: bytes) -> np.ndarray:
    """An array from the bytes of an npy file."""
    wide = data[6] > 1  # version 2 has four bytes for the length of the head, version 1 two
    start = (12 if wide else 10) + int.from_bytes(data[8 : 12 if wide else 10], "little")
    shape, fortran, dtype = _header(data[:start])
    if dtype.hasobject:
        raise ValueError("it holds objects")
    return np.frombuffer(data, dtype=dtype, offset=start).reshape(shape, order="F" if fortran else "C")
