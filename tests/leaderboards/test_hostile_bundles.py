"""Files that no bundle is: refused by every verb, in a few lines, and nothing of them arrives."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from bundles_by_hand import TRIAL, WHO, made, raw, tiny

from harness.basics.reading import Damaged
from harness.records import bundles
from harness.records.bundles import MANIFEST, member_fault, open_bundle, write_bundle
from tests.runs import wsss

NAMES = [
    "/etc/passwd",
    "../evil",
    "records/../../evil",
    f"{TRIAL}/../../../../../evil.json",
    "C:/evil",
    "C:evil",
    "\\\\server\\share\\evil",
    f"{TRIAL}\\record.json",
    f"{TRIAL}/rec\0ord.json",
    f"{TRIAL}/record.json\n",
    f"{TRIAL}/\x1b[2Jrecord.json",
    f"{TRIAL}/\u202erecord.json",
    f"{TRIAL}//record.json",
    f"{TRIAL}/./record.json",
    "records/CON/mini/abc/seed-0/record.json",
    "records/agmm/nul.txt/abc/seed-0/record.json",
    "records/agmm/mini. /abc/seed-0/record.json",
    "records/agmm/.hidden/abc/seed-0/record.json",
    "records/agmm/-rf/abc/seed-0/record.json",
    "records/agmm/" + "d/" * 40 + "record.json",
    "records/" + "a" * 2000 + "/mini/abc/seed-0/record.json",
    f"{TRIAL}/checkpoint/last.pt",
    f"{TRIAL}/weights.pkl",
    f"{TRIAL}/run.py",
    f"{TRIAL}/evaluations/val/per_image.npy",
    "other.txt",
    "",
    ".",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_none_of_a_records_files_is_refused(name: str, tmp_path: Path) -> None:
    assert member_fault(name)
    file = made(tmp_path / "b.wsss", [(name.encode(), b"{}")])
    into = tmp_path / "into" / "deep" / "inside"
    into.mkdir(parents=True)
    with pytest.raises(Damaged) as caught:
        open_bundle(file, into)
    assert "\x1b" not in str(caught.value)
    assert "\u202e" not in str(caught.value)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [file]
    with pytest.raises(Damaged):
        write_bundle(tmp_path / "c", {name: b"{}"}, [], **WHO)


def record_name(name: str) -> bytes:
    return f"records/{name}/abc/seed-0/record.json".encode()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("agmm/mini", "agmm/MINI"),
        ("AGMM/mini", "agmm/mini-2"),
        ("agmm/stra\u00dfe", "agmm/strasse"),
        ("agmm/caf\u00e9", "agmm/cafe\u0301"),
    ],
)
def test_names_that_are_one_on_some_systems_are_refused(one: str, other: str, tmp_path: Path) -> None:
    pair = sorted([record_name(one), record_name(other)])
    with pytest.raises(Damaged, match="one name on some systems"):
        open_bundle(made(tmp_path / "b", [(name, b"{}") for name in pair]))


def test_a_member_that_stands_twice_or_is_not_listed_is_refused(tmp_path: Path) -> None:
    name = record_name("agmm/mini")
    with pytest.raises(Damaged, match="another byte than a bundle has"):
        open_bundle(made(tmp_path / "b", [(name, b"{}"), (name, b"{}")]))
    other = record_name("agmm/other")
    with pytest.raises(Damaged, match="or twice"):
        open_bundle(made(tmp_path / "d", [(name, b"{}"), (name, b"{}"), (other, b"{}")]))
    with pytest.raises(Damaged, match="not in its manifest"):
        open_bundle(made(tmp_path / "c", [(name, b"{}"), (other, b"{}")], listed={
            name.decode(): {"sha256": hashlib.sha256(b"{}").hexdigest(), "size": 2},
            record_name("agmm/third").decode(): {"sha256": "0" * 64, "size": 2},
        }))  # fmt: skip


def _deflated(file: Path) -> None:
    """A bomb: gigabytes that a compressed member would inflate to."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(MANIFEST, b"0" * (1 << 24))


def _claims(file: Path) -> None:
    """A member that says that it has four gigabytes."""
    made(file, [(record_name("agmm/mini"), b"{}")])
    data = bytearray(file.read_bytes())
    place = data.index(b"PK\3\4", 4)
    struct.pack_into("<II", data, place + 18, 0xFFFFFFF0, 0xFFFFFFF0)
    file.write_bytes(bytes(data))


def _hole(file: Path) -> None:
    with file.open("wb") as stream:
        stream.truncate(9 << 30)


def _folder(file: Path) -> None:
    file.mkdir()


def _fifo(file: Path) -> None:
    os.mkfifo(file)


def _loop(file: Path) -> None:
    file.symlink_to(file.name)


def _text(text: bytes) -> Callable[[Path], None]:
    return lambda file: raw(file, [(MANIFEST.encode(), text)]) and None


def _said(**changes: object) -> Callable[[Path], None]:
    head = {"format": "wsss-bundle", "version": 1, **WHO, "records": [], "files": {}, **changes}
    return _text((json.dumps(head, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())


def _fields(local: dict[int, bytes], central: dict[int, bytes]) -> Callable[[Path], None]:
    """A sound bundle whose last member has other bytes in its head and in its line of the directory."""

    def make(file: Path) -> None:
        data = bytearray(tiny(file))
        for sign, changes in ((b"PK\3\4", local), (b"PK\1\2", central)):
            for place, value in changes.items():
                start = data.rindex(sign) + place
                data[start : start + len(value)] = value
        file.write_bytes(bytes(data))

    return make


def _ended(place: int, value: bytes) -> Callable[[Path], None]:
    """A sound bundle with other bytes in the end of its directory."""

    def make(file: Path) -> None:
        data = bytearray(tiny(file))
        start = data.rindex(b"PK\5\6") + place
        data[start : start + len(value)] = value
        file.write_bytes(bytes(data))

    return make


def _zipped(**attributes: object) -> Callable[[Path], None]:
    """What a common tool makes of a bundle's members, one of which has attributes of its own."""

    def make(file: Path) -> None:
        tiny(file)
        with zipfile.ZipFile(file) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(file, "w") as archive:
            for name, data in members.items():
                info = zipfile.ZipInfo(name)
                for key, value in attributes.items() if name != MANIFEST else ():
                    setattr(info, key, value)
                archive.writestr(info, data)

    return make


def _overlapping(file: Path) -> None:
    """Two lines of the directory that name one member."""
    data = bytearray(tiny(file))
    first = data.index(b"PK\1\2", data.index(b"PK\1\2") + 1)
    second = data.rindex(b"PK\1\2")
    data[second + 42 : second + 46] = data[first + 42 : first + 46]
    file.write_bytes(bytes(data))


_LINK = 0o120777 << 16
#: What zip files can say, and no bundle does.
ZIPPED: dict[str, Callable[[Path], None]] = {
    "a link": _fields({}, {5: b"\3", 38: struct.pack("<I", _LINK)}),
    "a device": _fields({}, {5: b"\3", 38: struct.pack("<I", 0o060666 << 16)}),
    "a folder's attribute": _fields({}, {38: struct.pack("<I", 0x10)}),
    "a link of a common tool": _zipped(create_system=3, external_attr=_LINK),
    "an encrypted member": _fields({6: b"\1\x08"}, {8: b"\1\x08"}),
    "sizes behind the content": _fields({6: b"\x08\x08"}, {8: b"\x08\x08"}),
    "a compressed member": _fields({8: b"\x08"}, {10: b"\x08"}),
    "names that are no UTF-8": _fields({6: b"\0\0", 30: b"\xff"}, {8: b"\0\0", 46: b"\xff"}),
    "names without their flag": _fields({6: b"\0\0"}, {8: b"\0\0"}),
    "an extra field": _zipped(extra=struct.pack("<HHQQ", 1, 16, 1, 1)),
    "a comment on a member": _zipped(comment=b"read me"),
    "a date": _zipped(date_time=(2026, 1, 1, 0, 0, 0)),
    "sizes beyond 32 bits": _fields({18: b"\xff" * 8}, {20: b"\xff" * 8}),
    "a member of another disk": _fields({}, {34: b"\1"}),
    "an archive of several disks": _ended(4, b"\1\0\1\0"),
    "a directory elsewhere": _ended(16, b"\0\0\0\0"),
    "a directory of more members": _ended(8, b"\xff\xff\xff\xff"),
    "overlapping members": _overlapping,
    "a program before it": lambda file: file.write_bytes(b"MZ" + tiny(file)) and None,
    "a bundle behind it": lambda file: file.write_bytes(tiny(file) * 2) and None,
    "a bundle inside": lambda file: made(file, [(b"records/a/b/c/seed-0/more.wsss", b"PK")]) and None,
}

HOSTILE: dict[str, Callable[[Path], None]] = ZIPPED | {
    "a zip bomb": _deflated,
    "a member that claims gigabytes": _claims,
    "a hole of gigabytes": _hole,
    "a folder": _folder,
    "a pipe": _fifo,
    "a link to itself": _loop,
    "deep JSON": _text(b"[" * 100_000 + b"]" * 100_000),
    "a list": _text(b"[]\n"),
    "NaN": _text(b'{"version": NaN}\n'),
    "an integer beyond all": _text(b'{"version": ' + b"9" * 5000 + b"}\n"),
    "a version of huge": _said(version=10**30),
    "a newer version": _said(version=2),
    "a version of truth": _said(version=True),
    "no maker": _said(made_by=""),
    "a maker of megabytes": _said(made_by="x" * 3_000_000),
    "sizes below zero": _said(files={record_name("a/b").decode(): {"sha256": "0" * 64, "size": -1}}),
    "records that lead out": _said(records=[{"name": "../x/y", "digest": "a", "seed": 0}]),
    "a seed of huge": _said(records=[{"name": "a/b", "digest": "a", "seed": 10**30}]),
    "keys twice": _text(b'{"format": "x", "format": "wsss-bundle"}\n'),
    "a pickle": lambda file: file.write_bytes(b"\x80\x04cos\nsystem\n(S'touch evil'\ntR.") and None,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_refused_by_every_verb(kind: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    HOSTILE[kind](tmp_path / "b.wsss")
    for verb in (["check-bundle", "b.wsss"], ["merge", "b.wsss", "--results", "merged"]):
        assert wsss(*verb) == 2
        error = capsys.readouterr().err
        assert "b.wsss" in error
        assert "Traceback" not in error
        assert len(error.splitlines()) <= 6
    assert [p.name for p in tmp_path.iterdir()] == ["b.wsss"]


def test_a_manifest_that_lists_more_than_there_is_is_refused_at_once(tmp_path: Path, capsys) -> None:
    """A stranger's list of a million records is no page of a million lines."""
    records = [{"name": "a/b", "digest": "c", "seed": i} for i in range(3000)]
    _said(records=records)(tmp_path / "b.wsss")
    assert wsss("check-bundle", tmp_path / "b.wsss") == 2
    assert "3,000 records and 0 of their files" in " ".join(capsys.readouterr().err.split())
    listed = {record_name(f"a/{i}").decode(): {"sha256": "0" * 64, "size": 1} for i in range(3)}
    records = [{"name": "a/1", "digest": "abc", "seed": i} for i in range(3)]
    _said(records=records, files=listed)(tmp_path / "c.wsss")
    with pytest.raises(Damaged, match="lists a record without"):
        open_bundle(tmp_path / "c.wsss")


def test_many_members_are_refused_before_they_are_read(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(bundles, "MOST_FILES", 20)
    members = [(record_name(f"agmm/r{i:03d}"), b"{}") for i in range(40)]
    with pytest.raises(Damaged, match="20 are the most"):
        open_bundle(made(tmp_path / "b", members))
