"""Bundles: records of somebody in one file, whose every byte can be checked.

A bundle is a zip file (members stored, not compressed, so that nothing inflates) that any tool unpacks, and
of which there is exactly one form: members in the order of their names behind ``manifest.json``, no dates, no
extra fields. :func:`open_bundle` reads it from front to back as that form and believes nothing else of it:
sizes are bounded before anything is read, a name is one that a record has or it is refused, and whatever
differs from the form, in a member or between members, is named. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import orjson
from pydantic import Field

from harness.basics.files import named, whole_file
from harness.basics.reading import PART, Damaged, damaged, opened, unreadable
from harness.basics.text import clean, cleaned
from harness.records.documents import Count, Digest, Document, RecipeName, Seed, checked

MANIFEST = "manifest.json"
#: Version of the form.
BUNDLE_FORMAT = 1
#: Most members of a bundle, longest name of one, deepest folder.
MOST_FILES, _LONGEST, _DEEPEST = 200_000, 1000, 16
#: Most bytes of a bundle: zip files beyond need another form.
MOST_BYTES = (1 << 32) - 1

_ID = r"[0-9A-Za-z_-]{1,80}"
_TRIAL = rf"records/{PART}/{PART}/{_ID}/seed-\d{{1,20}}"
_SCORED = rf"{_TRIAL}/evaluations/{PART}"
#: What a member may be called, and most bytes of it.
_MEMBERS: Sequence[tuple[re.Pattern[str], int]] = tuple(
    (re.compile(pattern), most)
    for pattern, most in (
        (re.escape(MANIFEST), 64 << 20),
        (rf"{_TRIAL}/record\.json", 8 << 20),
        (rf"{_TRIAL}/history\.csv", 300 << 20),
        (rf"{_TRIAL}/weights\.safetensors", MOST_BYTES),
        (rf"{_SCORED}/evaluation\.json", 8 << 20),
        (rf"{_SCORED}/(per_image|boundary)\.npz", 512 << 20),
        (rf"{_SCORED}/predictions/(?:{PART}/){{0,6}}{PART}\.png", 256 << 20),
    )
)
#: Names that Windows gives to devices, whatever ending follows.
_DEVICES = re.compile(r"(?:con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(?:\..*)?", re.IGNORECASE)

# Zip files (APPNOTE 4.3.7, 4.3.12, 4.3.16): version 2.0, UTF-8 names, stored, 1980-01-01.
_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_END = struct.Struct("<4sHHHHIIH")
_VERSION, _UTF8, _DAY = 20, 0x800, 0x21


class BundledFile(Document):
    """A member."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of its content."""
    size: Count
    """Bytes."""


class BundledRecord(Document):
    """A record in a bundle."""

    name: RecipeName
    """Recipe, `method/table`."""
    digest: Digest
    """Of the training."""
    seed: Seed
    """Of the trial."""


class BundleManifest(Document):
    """``manifest.json``."""

    format: Literal["wsss-bundle"]
    """What the file is."""
    version: Annotated[int, Field(ge=1, le=BUNDLE_FORMAT)]
    """Of the form."""
    made_by: Annotated[str, Field(min_length=1, max_length=200)]
    """Who answers for it, in their own words."""
    made: Annotated[str, Field(max_length=40)]
    """ISO 8601, UTC."""
    notes: Annotated[str, Field(max_length=2000)] = ""
    """What a reader must know."""
    software: Annotated[str, Field(max_length=200)] = ""
    """What wrote it."""
    records: list[BundledRecord]
    """What is inside."""
    files: dict[str, BundledFile]
    """Every other member by its name."""


@dataclass(frozen=True)
class Bundle:
    """A bundle whose form and hashes are right; what its files say was not looked at.

    Attributes:
        path: the file.
        sha256: of the whole file.
        manifest: what it says of itself, its texts cleaned.
    """

    path: Path
    sha256: str
    manifest: BundleManifest

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name


# --- names -------------------------------------------------------------------------------------------


def member_fault(name: str) -> str:
    """Why a name cannot be that of a member; empty where it can."""
    if len(name) > _LONGEST or name.count("/") > _DEEPEST:
        return "its name is longer or deeper than any of a record"
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in name or ":" in name:
        return "its name leads out of the bundle's folder"
    if any(_DEVICES.fullmatch(part) or part[-1] in ". " for part in parts):
        return "its name is none on every system"
    if clean(name) != name:
        return "its name has characters that cannot be seen"
    if not any(pattern.fullmatch(name) for pattern, _ in _MEMBERS):
        return "its name is none of a record's files"
    return ""


def _most(name: str) -> int:
    return next(most for pattern, most in _MEMBERS if pattern.fullmatch(name))


def folded(name: str) -> str:
    """A name as file systems that ignore case and composition of characters compare it."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())


def _order(name: str) -> tuple[bool, bytes]:
    return name != MANIFEST, name.encode()


# --- the form ----------------------------------------------------------------------------------------


def _local(name: bytes, crc: int, size: int) -> bytes:
    head = _LOCAL.pack(b"PK\3\4", _VERSION, _UTF8, 0, 0, _DAY, crc, size, size, len(name), 0)
    return head + name


def _central(name: bytes, crc: int, size: int, place: int) -> bytes:
    head = _CENTRAL.pack(
        b"PK\1\2", _VERSION, _VERSION, _UTF8, 0, 0, _DAY, crc, size, size, len(name), 0, 0, 0, 0, 0, place
    )
    return head + name


def _end(number: int, size: int, place: int) -> bytes:
    comment = f"{number} members".encode()  # 65,535 is the most that the field itself holds
    shown = min(number, 0xFFFF)
    return _END.pack(b"PK\5\6", 0, 0, shown, shown, size, place, len(comment)) + comment


def write_bundle(
    path: Path,
    files: Mapping[str, Path | bytes],
    records: Iterable[Mapping[str, Any]],
    **said: str,
) -> str:
    """Write a bundle; equal content gives equal bytes.

    Args:
        path: the file.
        files: contents, or where they lie, by the names of members.
        records: name, digest and seed of each.
        said: ``made_by``, ``made``, ``notes`` and ``software`` of the manifest.

    Returns:
        The SHA-256 of the file.

    Raises:
        UserError: a name cannot be that of a member, or there is too much for one bundle.
    """
    listed: dict[str, dict[str, Any]] = {}
    for name in sorted(files, key=_order):
        if fault := member_fault(name):
            raise damaged(path, f"{name!r} cannot be packed: {fault}", "rename it")
        size, sha256 = 0, hashlib.sha256()
        for chunk in _chunks(files[name]):
            size += len(chunk)
            sha256.update(chunk)
        listed[name] = {"sha256": sha256.hexdigest(), "size": size}
    whole = {
        "format": "wsss-bundle",
        "version": BUNDLE_FORMAT,
        **said,
        "records": sorted(records, key=lambda r: (r["name"], r["digest"], r["seed"])),
        "files": listed,
    }
    text = (json.dumps(whole, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
    total = sum(entry["size"] for entry in listed.values()) + len(text)
    total += sum(2 * len(name.encode()) + 80 for name in listed) + 1000
    if len(listed) > MOST_FILES or total > MOST_BYTES:
        raise damaged(
            path, f"{len(listed):,} files of {total:,} bytes are too many for one bundle", "pack fewer"
        )
    written = hashlib.sha256()
    with whole_file(path, "wb") as stream:
        for chunk in _form({MANIFEST: text, **{name: files[name] for name in listed}}):
            written.update(chunk)
            stream.write(chunk)
    return written.hexdigest()


def _form(files: Mapping[str, Path | bytes]) -> Iterator[bytes]:
    """The bytes of a bundle."""
    place, directory = 0, b""
    for name, content in files.items():
        size, crc = 0, 0
        for chunk in _chunks(content):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
        head = _local(name.encode(), crc, size)
        directory += _central(name.encode(), crc, size, place)
        place += len(head) + size
        yield head
        yield from _chunks(content)
    yield directory
    yield _end(len(files), len(directory), place)


def _chunks(content: Path | bytes, size: int = 1 << 20) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with named(content), opened(content, MOST_BYTES) as stream:
        while chunk := stream.read(size):
            yield chunk


# --- reading -----------------------------------------------------------------------------------------


class _Reader:
    """A stream that knows where it is and what has passed."""

    def __init__(self, path: Path, stream: IO[bytes]) -> None:
        self.path, self.stream, self.place, self.hash = path, stream, 0, hashlib.sha256()

    def take(self, size: int) -> bytes:
        """So many bytes, fewer at the end."""
        parts, missing = [], size
        while missing and (chunk := self.stream.read(min(missing, 1 << 20))):
            parts.append(chunk)
            missing -= len(chunk)
        data = b"".join(parts)
        self.place += len(data)
        self.hash.update(data)
        return data

    def expect(self, wanted: bytes, what: str) -> None:
        """Exactly these bytes come next."""
        begin, found = self.place, self.take(len(wanted))
        if found != wanted:
            place = next(
                (i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), len(found)
            )
            why = "it ends" if len(found) == place else "another byte than a bundle has"
            raise damaged(self.path, f"{why} at {begin + place:,}, in {what}", _ASK)


_ASK = "ask whoever made it for the file once more"


def open_bundle(path: Path, into: Path | None = None) -> Bundle:
    """Read a bundle from its first byte to its last.

    Args:
        path: the file.
        into: an empty folder that its records are written to, ``<into>/<method>/<recipe>/...``; nothing is
            written by default. What is there after an error is not to be believed.

    Raises:
        Damaged: it is no bundle, or a byte of it is not what it must be; the member is named.
    """
    try:
        with opened(path, MOST_BYTES) as stream:
            return _read(_Reader(path, stream), os.fstat(stream.fileno()).st_size, into)
    except OSError as error:
        raise unreadable(path, error) from None


def _read(reader: _Reader, whole: int, into: Path | None) -> Bundle:
    path, directory, number = reader.path, b"", 0
    manifest: BundleManifest | None = None
    left: dict[str, BundledFile] = {}
    last = ""
    seen: dict[str, str] = {}
    while manifest is None or left:
        place, head = reader.place, reader.take(_LOCAL.size)
        name, size = _name(reader, head, manifest is None)
        if manifest is not None and name not in left:
            raise damaged(path, f"{name!r} is in it and not in its manifest, or twice", _ASK)
        if manifest is not None and _order(name) <= _order(last):
            raise damaged(path, f"{name!r} stands in another place than a bundle has it", _ASK)
        if (other := _clash(name, seen)) is not None:
            raise damaged(path, f"{name!r} and {other!r} are one name on some systems", _ASK)
        if size > min(_most(name), whole - reader.place):
            raise damaged(path, f"{name!r} says that it has {size:,} bytes, which is too many", _ASK)
        crc, content = _content(reader, name, size, left.get(name), into)
        if head + name.encode() != _local(name.encode(), crc, size):
            raise damaged(
                path,
                f"other bytes than a bundle has, in {name!r} or the head before it, from {place:,} on",
                _ASK,
            )
        directory += _central(name.encode(), crc, size, place)
        number, last = number + 1, name
        if manifest is None:
            manifest = _manifest(path, content)
            left = dict(manifest.files)
        else:
            del left[name]
    place = reader.place
    reader.expect(directory, "the directory of members")
    reader.expect(_end(number, len(directory), place), "the end of the directory")
    if reader.take(1):
        raise damaged(path, f"it goes on behind its end, at {reader.place - 1:,}", _ASK)
    return Bundle(path, reader.hash.hexdigest(), manifest)


def _clash(name: str, seen: dict[str, str]) -> str | None:
    """An earlier name, or folder of one, that some systems take for this one."""
    parts = name.split("/")
    for place in ("/".join(parts[: i + 1]) for i in range(len(parts))):
        if (other := seen.setdefault(folded(place), place)) != place:
            return other
    return None


def _name(reader: _Reader, head: bytes, first: bool) -> tuple[str, int]:
    """The name of the next member and its size, which are not believed yet."""
    path, place = reader.path, reader.place - len(head)
    if len(head) < _LOCAL.size or head[:4] != b"PK\3\4":
        problem = "it is no bundle" if first else f"a member is missing at {place:,}, or its head is damaged"
        raise damaged(path, problem, "name a file that wsss pack wrote" if first else _ASK)
    *_, size, length, _ = _LOCAL.unpack(head)
    raw = reader.take(length) if length <= _LONGEST else b""
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        name = ""
    if first and name != MANIFEST:
        raise damaged(
            path, "it is no bundle: its first member is no manifest", "name a file that wsss pack wrote"
        )
    if fault := member_fault(name):
        raise damaged(path, f"the member {name[:80]!r} at {place:,} is refused: {fault}", _ASK)
    return name, size


def _content(
    reader: _Reader, name: str, size: int, said: BundledFile | None, into: Path | None
) -> tuple[int, bytes]:
    """The checksum of a member's content; the content itself of a manifest, any other is written."""
    crc, sha256, missing, kept = 0, hashlib.sha256(), size, b""
    target = None if into is None or name == MANIFEST else into / name.removeprefix("records/")
    if target is not None:
        target.parent.mkdir(parents=True, exist_ok=True)
    with open(target or os.devnull, "xb" if target else "wb") as out:  # noqa: PTH123
        while missing:
            chunk = reader.take(min(missing, 1 << 20))
            if not chunk:
                raise damaged(reader.path, f"it ends within {name!r}", _ASK)
            missing -= len(chunk)
            crc = zlib.crc32(chunk, crc)
            sha256.update(chunk)
            out.write(chunk)
            kept = kept + chunk if name == MANIFEST else b""
    if said is not None and (said.size, said.sha256) != (size, sha256.hexdigest()):
        raise damaged(
            reader.path, f"{name!r} is not the file of its manifest: its SHA-256 is another one", _ASK
        )
    return crc, kept


def _manifest(path: Path, text: bytes) -> BundleManifest:
    try:
        values = orjson.loads(text)
    except ValueError as error:
        raise damaged(path, f"its manifest is not valid JSON: {error}", _ASK) from None
    if not isinstance(values, dict):
        raise damaged(path, "its manifest holds no object of keys and values", _ASK)
    version = values.get("version")
    if isinstance(version, int) and version > BUNDLE_FORMAT:
        raise Damaged(
            f"it has version {version} of bundles, newer than this version reads ({BUNDLE_FORMAT})",
            where=path,
            remedy="update wsss-bench",
        )
    canonical = (json.dumps(values, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode(
        errors="surrogatepass"
    )
    if canonical != text:
        raise damaged(path, "its manifest is written otherwise than a bundle's", _ASK)
    files = values.get("files")
    if isinstance(files, dict) and len(files) > MOST_FILES:
        raise damaged(path, f"it has {len(files):,} files, {MOST_FILES:,} are the most", _ASK)
    for name in files if isinstance(files, dict) else ():
        if fault := member_fault(name):
            raise damaged(path, f"the member {name[:80]!r} of its manifest is refused: {fault}", _ASK)
    found = checked(cleaned(values), BundleManifest, path)
    there = sum(name.endswith("/record.json") for name in found.files)
    if len(found.records) > there:
        problem = f"its manifest lists {len(found.records):,} records and {there:,} of their files"
        raise damaged(path, problem, _ASK)
    for record in found.records:
        name = f"records/{record.name}/{record.digest}/seed-{record.seed}/record.json"
        if name not in found.files:
            raise damaged(path, f"its manifest lists a record without {name!r}", _ASK)
    return found
