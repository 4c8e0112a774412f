"""Files in the form of a bundle, with whatever members: by a hand that no check holds back."""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path

from harness.records import bundles
from harness.records.bundles import MANIFEST, open_bundle, write_bundle

TRIAL = "records/agmm/mini/abc/seed-0"
WHO = {"made_by": "Ada", "made": "2026-01-01T00:00:00+00:00", "notes": "", "software": "x"}


def tiny(file: Path) -> bytes:
    """A bundle of two members, whose every byte can be tried."""
    sha256 = write_bundle(file, {f"{TRIAL}/record.json": b"{}", f"{TRIAL}/history.csv": b"a,b"}, [], **WHO)
    assert open_bundle(file).sha256 == sha256
    return file.read_bytes()


def made(file: Path, members: list[tuple[bytes, bytes]], listed: dict | None = None) -> Path:
    """A file in the form of a bundle with whatever members, by a hand that no check holds back."""
    if listed is None:
        listed = {
            name.decode("utf-8", "replace"): {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
            for name, data in members
        }
    head = {"format": "wsss-bundle", "version": 1, **WHO, "records": [], "files": listed}
    text = (json.dumps(head, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode(errors="replace")
    return raw(file, [(MANIFEST.encode(), text), *members])


def raw(file: Path, members: list[tuple[bytes, bytes]]) -> Path:
    place, out, directory = 0, b"", b""
    for name, data in members:
        crc, size, length = zlib.crc32(data), len(data), len(name)
        head = bundles._LOCAL.pack(b"PK\3\4", 20, 0x800, 0, 0, 0x21, crc, size, size, length, 0) + name
        directory += bundles._central(name, crc, size, place) if length < 65536 else b""
        out += head + data
        place += len(head) + size
    file.write_bytes(out + directory + bundles._end(len(members), len(directory), place))
    return file
