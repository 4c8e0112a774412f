"""Bundles of strangers: every byte is checked, nothing hostile arrives, disagreement is shown."""

from __future__ import annotations

import hashlib
import json
import random
import shlex
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from bundles_by_hand import WHO, raw, tiny
from synthetic import CLASSES, Factory

from harness.basics.errors import UserError
from harness.basics.reading import Damaged
from harness.records.bundles import MANIFEST, open_bundle, write_bundle
from harness.records.records import Store
from leaderboards.rows.frozen import freeze, since, thaw
from leaderboards.rows.gathering import gather_records
from leaderboards.rows.sharing import check_bundle, merge, pack
from leaderboards.rows.tables import leaderboard
from tests.runs import wsss


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
