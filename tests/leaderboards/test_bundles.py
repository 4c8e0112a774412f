"""Bundles of strangers: every byte is checked, nothing hostile arrives, disagreement is shown."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shlex
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from synthetic import CLASSES, Factory

from harness.basics.errors import UserError
from harness.basics.reading import Damaged
from harness.records import bundles
from harness.records.bundles import MANIFEST, member_fault, open_bundle, write_bundle
from harness.records.records import Store
from leaderboards.rows.frozen import freeze, since, thaw
from leaderboards.rows.gathering import gather_records
from leaderboards.rows.sharing import check_bundle, merge, pack
from leaderboards.rows.tables import leaderboard
from tests.runs import wsss

TRIAL = "records/agmm/mini/abc/seed-0"
WHO = {"made_by": "Ada", "made": "2026-01-01T00:00:00+00:00", "notes": "", "software": "x"}


@pytest.fixture(autouse=True)
def classes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Synthetic records of the miniature scenes have classes of their own."""
    monkeypatch.setattr("harness.evaluation.verification._classes", lambda record: None)


def stores(tmp_path: Path) -> list[Store]:
    """Two people's records: ten trainings, one of them in both, with other numbers."""
    found = []
    for person in range(2):
        factory = Factory(Store(tmp_path / f"person-{person}"))
        for number in range(5):
            factory.record(factory.resolved(f"agmm/own-{person}-{number}"), quality=0.5 + 0.05 * number)
        factory.record(factory.resolved("pce/both"), quality=0.6 if person else 0.7)
        factory.record(factory.resolved("pce/same"), quality=0.6)
        found.append(factory.store)
    return found


def packed(store: Store, place: Path, who: str, **changes) -> list[Path]:
    """One bundle for each recipe."""
    files = []
    for name in sorted({record.name for record in store.records()}):
        file = place / f"{who}-{name.replace('/', '-')}.wsss"
        pack(store, file, made_by=who, chosen=lambda record, name=name: record.name == name, **changes)
        files.append(file)
    return files


def test_bundles_of_two_stores_become_one_table(tmp_path: Path) -> None:
    ada, bob = stores(tmp_path)
    files = packed(ada, tmp_path, "Ada") + packed(bob, tmp_path, "Bob")
    assert len(files) == 14
    target = Store(tmp_path / "merged")
    done = merge(files, target)
    assert (done.written, done.present, len(done.disagreements)) == (12, 1, 1)
    assert done.makers == {"Ada": 7, "Bob": 7}
    rows = {row.recipe: row for row in leaderboard(gather_records(target), resamples=10)}
    assert len(rows) == 12
    assert "made by Bob" in rows["agmm/own-1-3"].notes
    assert {"made by Ada", "made by Bob"} <= set(rows["pce/same"].notes)
    (note,) = [text for text in rows["pce/both"].notes if "disagreement" in text]
    theirs = [next(iter(next(s.records("pce/both")).evaluations.values())).miou for s in (ada, bob)]
    assert f"Ada says {theirs[0]:.2f}" in note
    assert f"Bob says {theirs[1]:.2f}" in note
    assert rows["pce/both"].mean == pytest.approx(theirs[0])
    before = {f: f.read_bytes() for f in target.root.rglob("*.json")}
    again = merge(files, target)
    assert (again.written, len(again.disagreements)) == (0, 1)
    assert before == {f: f.read_bytes() for f in target.root.rglob("*.json")}


def anew(file: Path, content: bytes) -> None:
    """A new file of a name: some systems bring one that is written over to the disk at once."""
    file.unlink()
    file.write_bytes(content)


def test_one_altered_byte_in_ten_bundles_is_found_and_named(tmp_path: Path) -> None:
    """Every member, every gap between members, the directory and the end; every bit of some, at random."""
    ada, bob = stores(tmp_path)
    files = (packed(ada, tmp_path, "Ada") + packed(bob, tmp_path, "Bob"))[:10]
    rng = random.Random(0)
    for file in files:
        whole = file.read_bytes()
        with zipfile.ZipFile(file) as archive:
            members = [(i.filename, i.header_offset, i.file_size) for i in archive.infolist()]
            assert archive.testzip() is None
        places = {0, len(whole) - 1, len(whole) // 2, *(rng.randrange(len(whole)) for _ in range(12))}
        directory = whole.rindex(b"PK\5\6")
        places |= {directory, directory + 10, directory - 20}
        for name, start, size in members:
            places |= {start + 5, start + 12, start + 31, start + 30 + len(name) + size - 1}
        for place in sorted(places):
            other = bytes([whole[place] ^ (1 << rng.randrange(8))])
            anew(file, whole[:place] + other + whole[place + 1 :])
            with pytest.raises(Damaged) as caught:
                open_bundle(file)
            assert file.name in str(caught.value.where)
            begins = [(n, start + 30 + len(n), size) for n, start, size in members]
            inside = [n for n, begin, size in begins if begin <= place < begin + size]
            assert all(name in caught.value.problem for name in inside)
        with pytest.raises(UserError, match=file.name):
            merge(files, Store(tmp_path / "merged"))
        for cut in (whole[:-1], whole[: len(whole) // 2], whole + b"\0", b"", b"PK"):
            anew(file, cut)
            with pytest.raises(Damaged):
                open_bundle(file)
        file.write_bytes(whole)
    assert not (tmp_path / "merged").exists()
    assert check_bundle(files[0]).breaches == {}


def tiny(file: Path) -> bytes:
    """A bundle of two members, whose every byte can be tried."""
    sha256 = write_bundle(file, {f"{TRIAL}/record.json": b"{}", f"{TRIAL}/history.csv": b"a,b"}, [], **WHO)
    assert open_bundle(file).sha256 == sha256
    return file.read_bytes()


def test_every_altered_missing_and_added_byte_of_a_bundle_is_found(tmp_path: Path) -> None:
    file = tmp_path / "b.wsss"
    whole = tiny(file)
    record, history = (whole.index(content) for content in (b"{}PK", b"a,bPK"))

    def found(altered: bytes) -> str:
        anew(file, altered)
        with pytest.raises(Damaged) as caught:
            open_bundle(file)
        assert file.name in str(caught.value.where)
        return caught.value.problem

    for place, byte in enumerate(whole):
        before, behind = whole[:place], whole[place + 1 :]
        for other in {byte ^ 1, byte ^ 0x80, 0, 0xFF} - {byte}:
            problem = found(before + bytes([other]) + behind)
            assert "record.json" in problem or not record <= place < record + 2
            assert "history.csv" in problem or not history <= place < history + 3
        found(before)
        for altered in {
            before + behind,
            before + bytes([byte]) + whole[place:],
            before + b"\0" + whole[place:],
        }:
            found(altered)
    found(whole + b"\0")
    found(b"MZ" + whole)


def test_equal_records_give_equal_bundles_that_any_tool_unpacks(tmp_path: Path, factory: Factory) -> None:
    factory.record()
    files = {f"records/agmm/a/1/seed-{i}/record.json": b"{}" for i in range(3)}
    one, other = (write_bundle(tmp_path / n, dict(order), [], **WHO) for n, order in
                  (("a", sorted(files.items())), ("b", sorted(files.items(), reverse=True))))  # fmt: skip
    assert one == other == hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest()
    with zipfile.ZipFile(tmp_path / "a") as archive:
        assert archive.namelist() == [MANIFEST, *sorted(files)]


# --- hostile ---------------------------------------------------------------------------------------------

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


# --- what is inside --------------------------------------------------------------------------------------


def rewritten(store: Store, file: Path, change: Callable[[Path], None]) -> Path:
    """A bundle whose form and hashes are right, of a store in which something was changed first."""
    files: dict[str, Path | bytes] = {}
    listed = []
    for record in list(store.records()):
        listed.append({"name": record.name, "digest": record.digest, "seed": record.seed})
        change(record.path)
        for path in record.path.rglob("*"):
            if path.is_file():
                files[f"records/{path.relative_to(store.root).as_posix()}"] = path
    write_bundle(file, files, listed, **WHO)
    return file


def _edit(name: str, key: str, value: object) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        (file,) = place.rglob(name)
        data = json.loads(file.read_text())
        data[key] = value
        file.write_text(json.dumps(data))

    return change


def _counts(place: Path) -> None:
    (file,) = place.rglob("per_image.npz")
    arrays = dict(np.load(file))
    arrays["intersection"][0, 0] -= 1
    np.savez_compressed(file, **arrays)


def _pickled(place: Path) -> None:
    (file,) = place.rglob("per_image.npz")
    np.savez(file, ids=np.array([print], dtype=object))


def _ids(*names: str) -> Callable[[Path], None]:
    """Pictures that are called so, the others as before."""

    def change(place: Path) -> None:
        (file,) = place.rglob("per_image.npz")
        arrays = dict(np.load(file))
        arrays["ids"] = np.array([*names, *arrays["ids"][len(names) :]])
        np.savez_compressed(file, **arrays)

    return change


def _array(name: str, value: object, kind: str = "") -> Callable[[Path], None]:
    """One count is another value, or all of another type."""

    def change(place: Path) -> None:
        (file,) = place.rglob("per_image.npz")
        arrays = dict(np.load(file))
        if kind:
            arrays[name] = arrays[name].astype(kind)
        arrays[name][0, 0] = value
        np.savez_compressed(file, **arrays)

    return change


def _recipe(key: str, value: object) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        data = json.loads((place / "record.json").read_text())
        data["recipe"][key] = value
        (place / "record.json").write_text(json.dumps(data))

    return change


def _deep(place: Path) -> None:
    (place / "record.json").write_text('{"a":' * 200_000 + "1" + "}" * 200_000)


def _inflates(place: Path) -> None:
    """An array of 64 MiB in 64 KiB, whose directory says 64 bytes."""
    (file,) = place.rglob("per_image.npz")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("ids.npy", "w", force_zip64=True) as stream:
            for _ in range(64):
                stream.write(b"\0" * (1 << 20))
        archive.getinfo("ids.npy").file_size = 64


@pytest.mark.parametrize(
    "change",
    [
        _deep,
        _inflates,
        _edit("evaluation.json", "miou", 99.0),
        _edit("evaluation.json", "images", 10**30),
        _edit("record.json", "name", "../../evil/x"),
        _edit("record.json", "seed", 7),
        _edit("record.json", "schema", 99),
        _edit("record.json", "status", "failed"),
        _edit("record.json", "shared", "me"),
        _edit("record.json", "seconds", float("nan")),
        _edit("record.json", "shared", [{"made_by": "me"}]),
        _edit("record.json", "overrides", {"x": 10**400}),
        _edit("evaluation.json", "name", "../../../x"),
        _recipe("dataset", "../../etc"),
        _recipe("supervision", "<b>"),
        _ids("../../../../etc/passwd"),
        _ids("a/../../b"),
        _ids("/etc/passwd"),
        _ids("..\\b"),
        _array("intersection", float("nan"), "float64"),
        _array("predicted", -5),
        _array("labelled", 2**62),
        _array("labelled", 3, "uint64"),
        _counts,
        _pickled,
    ],
)
def test_a_bundle_that_lies_about_its_content_is_found_and_not_merged(
    factory: Factory, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    factory.record(factory.resolved("agmm/a"))
    file = rewritten(factory.store, tmp_path / "b.wsss", change)
    found = check_bundle(file)
    assert found.breaches
    assert all(where.startswith("records/agmm/a/") for where in found.breaches)
    with pytest.raises(UserError, match="check-bundle names"):
        merge([file], Store(tmp_path / "merged"))
    assert not (tmp_path / "merged").exists()


EVIL = "<img src=x>\\input{x}\x1b[2J|`"
SAID = [
    _edit("record.json", "overrides", {EVIL: EVIL, "a": json.loads("[" * 300 + "]" * 300)}),
    _edit("record.json", "called", EVIL * 3),
    _edit("record.json", "ended", EVIL),
    _edit("record.json", "checkpoint", {"file": "../../../../etc/passwd"}),
    _edit("record.json", "hardware", {"gpu": EVIL}),
    _edit("record.json", "weights", {"name": "/etc/passwd", "backbone": EVIL}),
    _edit("evaluation.json", "notes", [EVIL] * 50),
    _recipe("backbone", EVIL),
    _recipe("labels_from", "../../../etc/passwd"),
    _recipe("config", {EVIL: EVIL}),
    _recipe("train_split", "../../x"),
    _ids("\x1b[2J<img src=x>"),
]


def test_what_a_stranger_says_breaks_no_verb_and_stays_text(factory: Factory, tmp_path: Path, capsys) -> None:
    def change(place: Path) -> None:
        for one in SAID:
            one(place)

    factory.record(factory.resolved("agmm/a", dataset="strangers"), classes=(EVIL, "\x1b[2J", "|", "x"))
    file = rewritten(factory.store, tmp_path / "b.wsss", change)
    where = ["--results", tmp_path / "merged"]
    out = tmp_path / "out"
    assert wsss("merge", file, *where) == 0
    assert wsss("leaderboard", *where, "--out", out, "--format", "md,csv,tex,json") == 0
    assert wsss("freeze", "now", *where, "--out", tmp_path / "frozen") == 0
    assert wsss("compare", "agmm/a", "agmm/a", *where) in (0, 2)
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out + shown.err
    for written in (p for p in out.iterdir() if p.suffix in (".md", ".tex")):
        text = written.read_text()
        assert "\x1b" not in text
        assert "<img" not in text or written.suffix != ".md"
        assert "\\input{" not in text or written.suffix != ".tex"


def test_a_protocol_of_a_later_version_is_said_and_stands_in_no_table(
    factory: Factory, tmp_path: Path
) -> None:
    """Numbers that something unknown has changed are not set beside others."""
    factory.record(factory.resolved("agmm/a"), protocol={"later": 3})
    file = rewritten(factory.store, tmp_path / "b.wsss", lambda place: None)
    (remark,) = check_bundle(file).remarks
    assert "has changed since: later" in remark
    (row,) = leaderboard(gather_records(factory.store), resamples=0)
    assert row.verdict == "stale"


def test_names_of_strangers_reach_no_terminal_table_or_page_unescaped(tmp_path: Path, capsys) -> None:
    factory = Factory(Store(tmp_path / "results"))
    factory.record(factory.resolved("agmm/a"), title="<script>alert(1)</script>\x1b[2J")
    evil = "\x1b]0;x\x07<img src=x onerror=alert(1)>|\u202eevil"
    file = rewritten(factory.store, tmp_path / "b.wsss", lambda place: None)
    file = made_by(file, evil)
    assert wsss("check-bundle", file) == 0
    assert wsss("merge", file, "--results", tmp_path / "merged") == 0
    shown = capsys.readouterr()
    for text in (shown.out, shown.err):
        assert "\x1b" not in text
        assert "\u202e" not in text
    assert wsss("report", "--no-plots", "--results", tmp_path / "merged", "--out", tmp_path / "out") == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<img src=x" not in page
    assert "<script>alert" not in page
    assert "made by &lt;img" in page or "made by \\u003cimg" in page
    table = (tmp_path / "out" / "leaderboard.md").read_text()
    assert "<img" not in table
    assert "made by" in table


def made_by(file: Path, who: str) -> Path:
    """The same bundle in another's name."""
    members = []
    with zipfile.ZipFile(file) as archive:
        head = json.loads(archive.read(MANIFEST))
        members = [(i.filename.encode(), archive.read(i)) for i in archive.infolist()[1:]]
    head["made_by"] = who
    text = (json.dumps(head, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
    return raw(file, [(MANIFEST.encode(), text), *members])


def test_weights_travel_without_a_pickle_and_predictions_are_counted(small, tmp_path: Path, capsys) -> None:
    from PIL import Image
    from safetensors.numpy import load

    results = tmp_path / "results"
    values = ("schedule.steps=2", "batch.per_group=4", "crop=32", "weights=none")
    sets = [part for value in values for part in ("--set", value)]
    common = ["--results", results, "--data-root", small]
    arguments = [*sets, "--seed", 0, "--local", "--device", "cpu", "--save-predictions", *common]
    assert wsss("run", "pce/mini-scribble", *arguments) == 0
    file, root = tmp_path / "b.wsss", ["--data-root", small]
    packing = ["pack", file, "--made-by", "Ada", "--weights", "--predictions", "--results", results]
    assert wsss(*packing) == 0
    assert wsss("check-bundle", file, *root) == 0
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        (kept,) = [n for n in names if n.endswith("weights.safetensors")]
        assert load(archive.read(kept))
    assert not [n for n in names if n.endswith((".pt", ".pkl"))]
    capsys.readouterr()
    picture = next(results.rglob("predictions/*.png"))
    with Image.open(picture) as image:
        changed, palette = np.array(image), image.getpalette()
    changed[:4] = (changed[:4] + 1) % 4
    drawn = Image.fromarray(changed)
    drawn.putpalette(palette)
    drawn.save(picture)
    assert wsss(*packing) == 0
    assert wsss("check-bundle", file, *root) == 1
    assert f"the first is {picture.stem}" in " ".join(capsys.readouterr().out.split())


def test_a_frozen_board_says_what_has_changed_since(factory: Factory, tmp_path: Path) -> None:
    for seed in range(2):
        factory.record(factory.resolved("agmm/a"), seed, quality=0.6)
        factory.record(factory.resolved("pce/b"), seed, quality=0.6)
        factory.record(factory.resolved("pce/c"), seed, quality=0.6)
    rows = leaderboard(gather_records(factory.store), resamples=0)
    freeze(rows, "spring", tmp_path / "frozen")
    board = thaw("spring", tmp_path / "frozen")
    assert {one.what for one in since(board, rows)} == {"same"}
    with pytest.raises(UserError, match="frozen already"):
        freeze(rows, "spring", tmp_path / "frozen")
    factory.record(factory.resolved("agmm/a"), 2, quality=0.6)
    factory.record(factory.resolved("pce/b"), 1, quality=0.4)
    factory.record(factory.resolved("pce/new"))
    later = [r for r in leaderboard(gather_records(factory.store), resamples=0) if r.recipe != "pce/c"]
    found = {one.name: one.what for one in since(board, later)}
    assert found == {"agmm/a": "seeds", "pce/b": "changed", "pce/new": "new", "pce/c": "gone"}
    for name in ("../x", "a/b", "", "nul\0", "-x"):
        with pytest.raises(UserError):
            freeze(rows, name, tmp_path / "frozen")
    (tmp_path / "frozen" / "odd.json").write_text('{"schema": 1, "rows": 7}')
    with pytest.raises(Damaged):
        thaw("odd", tmp_path / "frozen")


def test_freeze_on_the_command_line(factory: Factory, tmp_path: Path, capsys) -> None:
    factory.record(factory.resolved("agmm/unshipped"), classes=CLASSES)
    common = ["--results", factory.store.root, "--out", tmp_path / "frozen"]
    assert wsss("freeze", "now", *common) == 0
    assert wsss("freeze", "now", "--compare", *common) == 0
    assert "1 of 1 rows are the same" in capsys.readouterr().out
    assert wsss("freeze", "then", "--compare", *common) == 2


def test_the_workflow_of_a_public_leaderboard_runs_as_printed(
    factory: Factory, tmp_path: Path, monkeypatch
) -> None:
    """Every `wsss` line of the page, in its order, on a repository with two bundles."""
    page = (Path(__file__).parents[2] / "docs" / "public_leaderboard.md").read_text(encoding="utf-8")
    flow = page.partition("```yaml")[2].partition("```")[0]
    assert "pull_request_target" not in flow
    assert "secrets." not in flow
    lines = [line.partition("run: ")[2] for line in flow.splitlines() if "run: wsss" in line]
    assert len(lines) == 3
    factory.record(factory.resolved("agmm/a"))
    monkeypatch.chdir(tmp_path)
    Path("bundles").mkdir()
    packed(factory.store, tmp_path / "bundles", "Ada")
    for line in lines:
        words = shlex.split(line.partition(" || ")[0])[1:]
        expanded = [p for w in words for p in (sorted(map(str, Path().glob(w))) if "*" in w else [w])]
        assert wsss(*expanded, *(["--no-plots"] if words[0] == "report" else [])) == 0
    assert "made by Ada" in Path("public/report.html").read_text(encoding="utf-8")
